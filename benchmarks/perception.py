"""One optimiser step of the perception network, against a network of the released sizes and structure.

    python benchmarks/perception.py                      # paper size: 13,447 voxels, 40 clips of 6 frames; minutes
    python benchmarks/perception.py --scale small        # seconds, to see that it runs
    python benchmarks/perception.py --device cuda --bf16 --json perception.json

A step is forward, loss, backward and AdamW on cached random targets; data loading and frozen networks are left out on
both sides, which spares the reference its decoding of 240 frames a step. Every network runs in a process of its own,
one after the other: time is the quickest of the steps, memory the peak of the process (CPU) or of torch's allocations
(CUDA). Processor time counts all threads and suffers less on a busy machine. Ratios carry over between machines;
seconds do not.

    ours             ``PerceptionNetwork`` and ``perception_loss``
    released, own    229,184,945 parameters (method b.6, b.7): inception, and mixers that never learn; linear layers on
                     240 rows; temporal attention over the whole batch; maps head. Its own loss on cached teacher maps,
                     as ``released_perception_loss`` computes it: in slices, which saves memory
    released, same   the same network with our loss

It stops if the reference does not have the parameters it should. Then, for ours: a step over voxels, clips and width.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from neuroclips.decoders.losses import perception_loss, released_perception_loss
from neuroclips.decoders.perception import MapsHead, PerceptionNetwork

FRAMES, LATENT, GRID = 6, (4, 28, 28), (64, 7, 7)
MEASURED = ("seconds", "processor_seconds", "peak_gib")
RELEASED_PARAMETERS = 229_184_945  # at the paper's size
SCALES = {"paper": dict(voxels=13_447, clips=40, width=4096), "small": dict(voxels=1_100, clips=8, width=256)}
CURVES = {
    "paper": dict(voxels=(2_000, 4_000, 8_000, 16_000), clips=(10, 20, 40, 80), width=(512, 1024, 2048, 4096)),
    "small": dict(voxels=(500, 2_000), clips=(4, 16), width=(128, 512)),
}


class Mixer(nn.Module):
    """b.2, over sequences of one: ``g`` turns its input into a constant, so nothing in ``f`` learns."""

    def __init__(self, width: int, blocks: int, inner: bool = True):
        super().__init__()

        def half(size: int, dropout: float = 0.15) -> nn.Sequential:
            layers = [nn.LayerNorm(size), nn.Linear(size, size), nn.GELU(), nn.Dropout(dropout)]
            return nn.Sequential(*layers, nn.Linear(size, size)) if inner else nn.Sequential(*layers)

        self.f = nn.ModuleList(half(width) for _ in range(blocks))
        self.g = nn.ModuleList(half(1) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, width)
        rows, columns = x, x.transpose(1, 2)
        for f, g in zip(self.f, self.g):
            x = rows = f(x) + rows
            columns = g(x.transpose(1, 2)) + columns
            x = columns.transpose(1, 2)
        return x


def attention(channels: int) -> Attention:
    return Attention(
        channels, heads=1, dim_head=channels, norm_num_groups=32, eps=1e-6, bias=True, residual_connection=True,
        _from_deprecated_attn_block=True,
    )  # fmt: skip


class BatchAttention(nn.Module):
    """b.7: over all frames of the batch at one place, without position; starts switched off."""

    def __init__(self, channels: int):
        super().__init__()
        self.attention, self.keep = attention(channels), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        n, _, rows, columns = x.shape
        y = self.attention(x.permute(2, 3, 0, 1).reshape(rows * columns, n, -1))
        y = y.reshape(rows, columns, n, -1).permute(2, 3, 0, 1)
        return self.keep * x + (1 - self.keep) * y


class Block(nn.Module):
    """One of diffusers' blocks, as a function of one argument."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.block = ResnetBlock2D(
            in_channels=before, out_channels=after, temb_channels=None, groups=32, eps=1e-6, non_linearity="swish"
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, None)


class Released(nn.Module):
    """The released perception network: 6 patterns of voxels a clip, then each of them by itself up to the grid."""

    def __init__(self, voxels: int, width: int):
        super().__init__()
        self.voxels = voxels
        self.spread = nn.Sequential(
            nn.Linear(voxels, 256), nn.GELU(), nn.Dropout(0.15), Mixer(256, 1, inner=False),
            nn.Linear(256, FRAMES * voxels), nn.GELU(), nn.Dropout(0.15),
        )  # fmt: skip
        cells = GRID[0] * GRID[1] * GRID[2]
        self.to_grid = nn.Sequential(
            nn.Linear(voxels, width), Mixer(width, 4), nn.Linear(width, cells), nn.Dropout(0.3)
        )
        self.norm, self.maps = nn.GroupNorm(1, GRID[0]), MapsHead(GRID[0])
        layers: list[nn.Module] = [nn.Conv2d(GRID[0], 128, 3, padding=1)]
        layers += [Block(128, 128), attention(128), BatchAttention(128), Block(128, 128)]
        for before, after, doubled in ((128, 128, True), (128, 64, True), (64, 32, False)):
            for first in (before, after):
                layers += [Block(first, after), attention(after), BatchAttention(after)]
            layers += [Upsample2D(after, use_conv=True)] if doubled else []
        layers += [nn.GroupNorm(32, 32, eps=1e-6), nn.SiLU(), nn.Conv2d(32, LATENT[0], 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patterns = self.spread(x[:, None]).reshape(-1, 1, self.voxels)
        grid = self.norm(self.to_grid(patterns).reshape(-1, *GRID))
        return self.decoder(grid).unflatten(0, (-1, FRAMES)), self.maps(grid).flatten(2).mT.flatten(0, 1)


def build(job: dict) -> nn.Module:
    if job["network"] == "ours":
        return PerceptionNetwork(job["voxels"], width=job["width"])
    network = Released(job["voxels"], job["width"])
    parameters = sum(p.numel() for p in network.parameters())
    if (job["voxels"], job["width"]) == (13_447, 4096) and parameters != RELEASED_PARAMETERS:
        raise SystemExit(f"the reference has {parameters:,} parameters, not {RELEASED_PARAMETERS:,}: void")
    return network


def run(job: dict) -> dict:
    """Build one network in this process, make its steps and measure them."""
    device = torch.device(job["device"])
    torch.manual_seed(0)
    with device:
        network = build(job)
        x = torch.randn(job["clips"], job["voxels"])
        target = torch.randn(job["clips"], FRAMES, *LATENT)
        places = job["clips"] * FRAMES * GRID[1] * GRID[2]
        teacher, augmented = torch.randn(2, places, 512) if job["network"] == "released, own" else (None, None)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-4, fused=True)
    cuda = device.type == "cuda"

    def loss() -> Tensor:
        half = torch.autocast(device.type, torch.bfloat16) if job["bf16"] else contextlib.nullcontext()
        with half:
            out = network(x)
            if job["network"] == "ours":
                return perception_loss(out.latents, target)
            latents, student = out
            if job["network"] == "released, same":
                return perception_loss(latents, target)
            return released_perception_loss(latents, target, student, teacher, augmented)

    seconds, processor = [], []
    for _ in range(job["steps"] + 1):
        start, start_processor = time.perf_counter(), time.process_time()
        value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **job,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": min(seconds[1:]),  # the first step also allocates
        "processor_seconds": min(processor[1:]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else kib / 2**20,
    }


def apart(job: dict) -> dict:
    """``run`` in a fresh process."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measured(row: dict) -> str:
    return f"{row['seconds']:10.3f} {row['processor_seconds']:12.3f} {row['peak_gib']:9.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="paper")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, on both sides")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one that is not")
    parser.add_argument("--no-curves", action="store_true")
    parser.add_argument("--json", type=Path, help="also write all rows here")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(run(json.loads(given.job))))
        return
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    print(
        f"{where}, Python {platform.python_version()}, torch {version('torch')}, {torch.get_num_threads()} threads,"
        f" diffusers {version('diffusers')}; {SCALES[given.scale]}, {'bf16 autocast' if given.bf16 else 'float32'}"
    )
    common = {"device": given.device, "bf16": given.bf16, "steps": given.steps, **SCALES[given.scale]}
    head = "   s a step  processor s  peak GiB"
    print(f"{'network':14}   parameters{head}   ours : this in time, processor time, memory")
    rows = []
    for name in ("ours", "released, own", "released, same"):
        row = apart({**common, "network": name})
        rows.append(row)
        ratios = " ".join(f"{rows[0][key] / row[key]:10.2f}" for key in MEASURED)
        print(f"{name:14} {row['parameters']:12,} {measured(row)} {ratios}", flush=True)
    for axis, values in {} if given.no_curves else CURVES[given.scale].items():
        print(f"{axis:>8}{head}")
        for value in values:
            row = apart({**common, "network": "ours", axis: value})
            rows.append({**row, "curve": axis})
            print(f"{value:8,} {measured(row)}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
