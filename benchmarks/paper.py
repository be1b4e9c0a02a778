"""Time and memory of every part but the video generator, at the paper's size, with random weights, on one GPU.

    python benchmarks/paper.py --out paper.md              # all sections on a GPU; minutes
    python benchmarks/paper.py --only semantics prior      # some of them
    python benchmarks/paper.py --small --device cpu        # tiny sizes, to see that it runs; the figures mean nothing

Nothing is compared: it answers what the method costs. The video generator is in ``video.py``; the released perception
network is in ``perception.py``.

Training: the package's networks and objectives on random targets, in bfloat16 autocast with float32 weights, gradients
clipped at 1 and AdamW that exempts norms and biases, as ``training.loop`` does but for the weight averaging. AdamW is
torch's fused one on CUDA; rows that say "AdamW by default" have the loop's. A step is forward, loss, backward, clipping
and AdamW, on one batch that stays on the device. Loading is timed apart: drawing a batch from half-precision arrays in
memory, turning it to float32 and moving it there. The switches are "corrected" unless a row says otherwise.

Generation: bfloat16, autoencoders in float32, no compiling; the prior has float32 weights under autocast. Images and
tokens are random and start on the device, except where the package's own call takes and gives arrays: ``Vae.encode``,
``Vae.decode`` and ``KeyframeGenerator.generate``. "Noise from the CPU" draws what a clip needs from its own generator
there, as the package does.

Seconds are the median of the runs after those to warm up. The peak is torch's, of allocated memory, weights included.
It stops if a part has not the number of parameters that it should.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.utils import logging
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, GitConfig, GitForCausalLM

from neuroclips.decoders.perception import PerceptionNetwork
from neuroclips.decoders.prior import DiffusionPrior, PriorNetwork
from neuroclips.decoders.semantics import SemanticsNetwork
from neuroclips.decoders.text import TextProjector
from neuroclips.pretrained.clip import image_tokens, pixels
from neuroclips.pretrained.keyframe import KeyframeGenerator
from neuroclips.pretrained.vae import Vae
from neuroclips.training.objectives import PerceptionObjective, PriorObjective, SemanticsObjective
from neuroclips.training.switches import switches

GIB = 2**30
FRAMES, GUIDANCE, PRIOR_STEPS, WORDS = 6, 5.0, 20, 20


@dataclass(frozen=True)
class Size:
    """Everything that ``--small`` changes; the defaults are the paper's.

    ``timesteps`` are those of the keyframe generator: as many from 999 down, equally spaced, as the released ones.
    """

    voxels: int = 13_447
    tokens: tuple[int, int] = (256, 1664)
    text: int = 1280
    latent: tuple[int, int, int] = (4, 28, 28)
    teacher: int = 512
    batches: tuple[int, int, int] = (40, 240, 64)  # perception, semantics, prior
    semantics_too: tuple[int, ...] = (24,)
    decoded: int = 64  # clips of the prior at once
    images: int = 64  # of CLIP and captioner at once
    side: int = 224
    frames: int = 240  # of the autoencoder
    keyframes: tuple[int, ...] = (1, 4)
    timesteps: int = 38
    perception: tuple[tuple[str, Any], ...] = ()
    semantics: tuple[tuple[str, Any], ...] = ()
    prior: tuple[tuple[str, Any], ...] = ()
    clip: tuple[int, int, int, int] = (1664, 8192, 48, 16)  # width, inner width, layers, heads; patches of 14
    git: tuple[tuple[int, int, int, int], tuple[int, int, int, int]] = ((1024, 4096, 24, 16), (768, 3072, 6, 12))
    vocabulary: int = 30_522
    vae: tuple[int, ...] = (128, 256, 512, 512)
    unet: tuple[int, ...] = (320, 640, 1280)
    transformers: tuple[int, ...] = (1, 2, 10)
    unet_heads: tuple[int, ...] = (5, 10, 20)
    unet_time: int = 256
    unet_sample: int = 96


PAPER = Size()
SMALL = Size(
    voxels=50, tokens=(4, 32), text=16, latent=(4, 4, 4), teacher=512, batches=(3, 4, 4), semantics_too=(2,), decoded=2,
    images=2, side=28, frames=6, keyframes=(1, 2), timesteps=3,
    perception=(("width", 32), ("hidden", 16), ("grid", 2), ("grid_channels", 8), ("channels", (32, 32)), ("rank", 4)),
    semantics=(("width", 32), ("hidden", 16)), prior=(("depth", 1), ("heads", 2), ("head_width", 16)),
    clip=(32, 64, 2, 4), git=((32, 64, 2, 4), (32, 64, 2, 4)), vocabulary=200, vae=(32, 32, 32, 32), unet=(32, 64, 64),
    transformers=(1, 1, 1), unet_heads=(1, 2, 2), unet_time=8, unet_sample=4,
)  # fmt: skip

PUBLISHED = {  # parameters at the paper's size; of blocks that the released networks do not have, our own count
    "subject's layer": 55_083_008,
    "token head": 1_745_256_448,
    "token projector": 8_321_664,
    "semantics": 1_842_268_800,
    "perception": 85_864_555,
    "to the grid": 12_848_192,
    "latent decoder": 2_166_443,
    "maps head": 559_616,
    "prior": 259_865_200,  # the 16 rotary frequencies are no parameters here
    "text projector": 2_129_920,
    "CLIP's image tower": 1_844_907_264,
    "keyframe UNet": 2_501_272_324,
    "autoencoder": 83_653_863,
}


# --- parts ------------------------------------------------------------------------------------------------------------


def perception(size: Size, **more: Any) -> PerceptionNetwork:
    return PerceptionNetwork(size.voxels, latent=size.latent, **dict(size.perception), **more)


def semantics(size: Size) -> SemanticsNetwork:
    k, d = size.tokens
    return SemanticsNetwork(size.voxels, tokens=k, token_width=d, **dict(size.semantics))


def prior(size: Size) -> DiffusionPrior:
    k, d = size.tokens
    return DiffusionPrior(PriorNetwork(tokens=k, width=d, **dict(size.prior)))


def clip(size: Size) -> CLIPVisionModelWithProjection:
    width, inner, layers, heads = size.clip
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            image_size=size.side, patch_size=14, hidden_act="gelu", layer_norm_eps=1e-5, projection_dim=size.text,
        )
    )  # fmt: skip


def autoencoder(size: Size, scaling: float) -> AutoencoderKL:
    levels = len(size.vae)
    return AutoencoderKL(
        block_out_channels=size.vae, down_block_types=("DownEncoderBlock2D",) * levels, layers_per_block=2,
        up_block_types=("UpDecoderBlock2D",) * levels, latent_channels=4, norm_num_groups=32, scaling_factor=scaling,
    )  # fmt: skip


def unet(size: Size) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=size.unet_sample, in_channels=4, out_channels=4, layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=size.unet, transformer_layers_per_block=size.transformers,
        attention_head_dim=size.unet_heads, cross_attention_dim=size.tokens[1], use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=size.unet_time,
        projection_class_embeddings_input_dim=4 * size.unet_time,
    )  # fmt: skip


def captioner(size: Size) -> GitForCausalLM:
    """Of GIT-large's size."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    seen, written = (dict(zip(names, values)) for values in size.git)
    return GitForCausalLM(
        GitConfig(
            vision_config={**seen, "image_size": size.side, "patch_size": 14}, **written,
            vocab_size=size.vocabulary, bos_token_id=101, eos_token_id=102, pad_token_id=0,
        )
    )  # fmt: skip


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def check_parameters() -> None:
    """Stop where a part at the paper's size has not the parameters that it should; nothing is allocated."""
    with torch.device("meta"):
        seen, meant = perception(PAPER, maps=True), semantics(PAPER)
        found = {
            "subject's layer": meant.input, "token head": meant.head, "token projector": meant.projector,
            "semantics": meant, "perception": perception(PAPER), "to the grid": seen.to_grid,
            "latent decoder": seen.decoder, "maps head": seen.maps, "prior": PriorNetwork(),
            "text projector": TextProjector(), "CLIP's image tower": clip(PAPER), "keyframe UNet": unet(PAPER),
            "autoencoder": autoencoder(PAPER, 0.13025),
        }  # fmt: skip
    wrong = [f"{name} {count(part):,}" for name, part in found.items() if count(part) != PUBLISHED[name]]
    if wrong:
        raise SystemExit(f"other numbers of parameters than expected: {', '.join(wrong)}: void")


# --- measuring --------------------------------------------------------------------------------------------------------


class Bench:
    """Size, device and what has been found so far."""

    def __init__(self, size: Size, device: str, steps: int):
        self.size, self.device, self.steps = size, torch.device(device), steps
        self.cuda = self.device.type == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> str:
        return f"{torch.cuda.max_memory_allocated() / GIB:.2f}" if self.cuda else "–"

    def built(self, make: Callable[..., Any], *args: Any, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
        """A part with random weights, made on the device."""
        torch.manual_seed(0)
        with self.device:
            return make(self.size, *args, **more).to(dtype)

    def random(self, *shape: int) -> np.ndarray:
        """Standard normal, in half precision, as prepared targets are kept."""
        return torch.randn(shape, device=self.device).half().cpu().numpy()

    def seconds(self, work: Callable[[], Any], runs: int, warm: int = 1) -> float:
        taken = []
        for _ in range(warm + runs):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken[warm:])

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16)

    def steps_of(self, module: nn.Module, objective: Any, fused: bool, drawn_here: bool) -> list[str]:
        """Cells of a row: optimiser steps of ``module`` on one batch of its objective."""
        module.train()
        parameters = list(module.parameters())
        groups = [{"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
                  {"params": [p for p in parameters if p.ndim >= 2]}]  # fmt: skip
        optimiser = torch.optim.AdamW(groups, lr=3e-4, weight_decay=0.01, fused=True if fused and self.cuda else None)
        generator = torch.Generator(self.device if drawn_here else "cpu").manual_seed(0)

        def load() -> Any:
            batch = objective.batches(0, generator)
            parts = (part.to(self.device) if isinstance(part, torch.Tensor) else part for part in batch)
            return type(batch)(*parts)

        loading, batch = self.seconds(load, 2), load()

        def step() -> None:
            module.zero_grad()
            with self.autocast():
                loss, _ = objective.loss(module, batch, generator)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()

        taken = self.seconds(step, self.steps, warm=2)
        state = sum(v.nbytes for s in optimiser.state.values() for v in s.values() if isinstance(v, torch.Tensor))
        return [f"{count(module):,}", f"{taken:.4f}", f"{1 / taken:.2f}", f"{loading:.3f}", f"{state / GIB:.2f}"]

    def calls_of(self, module: nn.Module, work: Callable[[], Any], items: int, runs: int = 5) -> list[str]:
        """Cells of a row: seconds of a call, and items a second."""
        taken = self.seconds(work, runs)
        return [f"{count(module):,}", f"{taken:.3f}", f"{taken / items:.5f}", f"{items / taken:.2f}"]


# --- training ---------------------------------------------------------------------------------------------------------


def train_perception(bench: Bench, batch: int, released: bool) -> list[str]:
    size = bench.size
    more = dict(expansion="inception", blocks=0, maps=True, position=False) if released else {}
    network = bench.built(perception, **more)
    places = network.grid[1] * network.grid[2]
    teacher = tuple(bench.random(batch, FRAMES, places, size.teacher) for _ in range(2)) if released else None
    objective = PerceptionObjective(
        bench.random(batch, 1, size.voxels), bench.random(batch, FRAMES, *size.latent),
        switches=switches("released" if released else "corrected"), batch=batch, teacher=teacher,
    )  # fmt: skip
    return bench.steps_of(network, objective, fused=True, drawn_here=False)


def train_semantics(bench: Bench, batch: int, fused: bool) -> list[str]:
    size, (k, d) = bench.size, bench.size.tokens
    objective = SemanticsObjective(
        bench.random(batch, 1, size.voxels), bench.random(batch, 1, k, d), switches=switches("corrected"), steps=540,
        batch=batch, text=bench.random(batch, size.text), projector=TextProjector(d, size.text),
    )  # fmt: skip
    return bench.steps_of(bench.built(semantics), objective, fused=fused, drawn_here=False)


def train_prior(bench: Bench, batch: int, drawn_here: bool) -> list[str]:
    size, (k, d) = bench.size, bench.size.tokens
    objective = PriorObjective(
        bench.random(batch, 1, k, d), bench.random(batch, 1, k, d), switches=switches("corrected"), batch=batch,
        text=bench.random(batch, size.text), projector=TextProjector(d, size.text),
    )  # fmt: skip
    return bench.steps_of(bench.built(prior), objective, fused=True, drawn_here=drawn_here)


# --- generation -------------------------------------------------------------------------------------------------------


def run_clip(bench: Bench, batch: int, dtype: torch.dtype) -> list[str]:
    model = bench.built(clip, dtype=dtype).eval()
    side = bench.size.side
    images = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, device=bench.device)
    return bench.calls_of(model, lambda: image_tokens(model, pixels(images, side).to(dtype)), batch)


def run_vae(bench: Bench, batch: int, decode: bool) -> list[str]:
    model = bench.built(autoencoder, 0.18215).to(memory_format=torch.channels_last)
    vae = Vae(model, device=str(bench.device))
    side = bench.size.side
    images = np.random.default_rng(0).integers(256, size=(batch, 3, side, side), dtype=np.uint8)
    latents = vae.encode(images)
    return bench.calls_of(model, lambda: vae.decode(latents) if decode else vae.encode(images), batch, runs=3)


def run_prior(bench: Bench, batch: int, drawn_here: bool) -> list[str]:
    model = bench.built(prior).eval()
    condition = torch.randn(batch, *bench.size.tokens, device=bench.device)

    def work() -> None:
        draws = [torch.Generator(bench.device if drawn_here else "cpu").manual_seed(i) for i in range(batch)]
        with bench.autocast():
            model.sample(condition, draws, steps=PRIOR_STEPS)

    return bench.calls_of(model, work, batch, runs=3 if drawn_here else 1)


def run_expected(bench: Bench, batch: int) -> list[str]:
    model = bench.built(prior).eval()
    condition = torch.randn(batch, *bench.size.tokens, device=bench.device)
    draws = [torch.Generator().manual_seed(i) for i in range(batch)]
    return bench.calls_of(model, lambda: model.expected(condition, draws, samples=4), batch, runs=3)


def run_keyframe(bench: Bench, batch: int) -> list[str]:
    size = bench.size
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
    )
    timesteps = [int(t) for t in np.floor(np.linspace(999, 0, size.timesteps, endpoint=False))]
    parts = dict(
        unet=bench.built(unet, dtype=torch.bfloat16).eval().requires_grad_(False),
        vae=bench.built(autoencoder, 0.13025).eval().requires_grad_(False), scheduler=scheduler,
        unconditional="noise", offset_noise=0.04, pixel_gain=0.8, pixel_offset=0.2, guidance_scale=GUIDANCE,
    )  # fmt: skip
    generator = KeyframeGenerator(**parts, timesteps=timesteps)
    tokens = bench.random(batch, *size.tokens)
    ids = [str(i) for i in range(batch)]

    def work() -> None:
        images = generator.generate(tokens, ids, seed=0, batch=batch)
        expected = (batch, 3, *[8 * size.unet_sample] * 2)
        assert images.shape == expected, images.shape

    cells = bench.calls_of(parts["unet"], work, batch, runs=1)
    return [f"{count(parts['unet']):,} + {count(parts['vae']):,}", *cells[1:]]


def run_captioner(bench: Bench, batch: int) -> list[str]:
    model = bench.built(captioner, dtype=torch.bfloat16).eval()
    images = torch.randn(batch, 3, bench.size.side, bench.size.side, device=bench.device, dtype=torch.bfloat16)
    fixed = dict(max_new_tokens=WORDS, min_new_tokens=WORDS, do_sample=False, num_beams=1)
    return bench.calls_of(model, lambda: model.generate(pixel_values=images, **fixed), batch, runs=2)


# --- sections ---------------------------------------------------------------------------------------------------------

Row = tuple[str, int, Callable[[Bench], list[str]]]
TRAINING = ("perception", "semantics", "prior")
GENERATION = ("clip", "vae", "sampling", "keyframe", "captioner")
HEADS = {
    "Training": ("network", "batch", "parameters", "s a step", "steps a second", "s to load a batch",
                 "AdamW's state, GiB", "peak, GiB"),
    "Generation": ("part", "batch", "parameters", "s a batch", "s an item", "items a second", "peak, GiB"),
}  # fmt: skip


def rows(section: str, size: Size) -> Iterator[Row]:
    """What is measured in a section: its name in the table, the batch, and the work."""
    clips, keyframes, conditions = size.batches
    bf16, frames, n = torch.bfloat16, size.frames, size.images
    if section == "perception":
        yield "perception", clips, partial(train_perception, batch=clips, released=False)
        yield "perception, released layers and loss", clips, partial(train_perception, batch=clips, released=True)
    elif section == "semantics":
        for batch in (*size.semantics_too, keyframes):
            yield "semantics", batch, partial(train_semantics, batch=batch, fused=True)
        yield "semantics, AdamW by default", keyframes, partial(train_semantics, batch=keyframes, fused=False)
    elif section == "prior":
        yield "prior, noise from the CPU", conditions, partial(train_prior, batch=conditions, drawn_here=False)
        yield "prior, noise from the device", conditions, partial(train_prior, batch=conditions, drawn_here=True)
    elif section == "clip":
        yield "CLIP's image tower, images", n, partial(run_clip, batch=n, dtype=bf16)
        yield "the same in float32, as `Clip` runs it", n, partial(run_clip, batch=n, dtype=torch.float32)
    elif section == "vae":
        yield f"autoencoder, encode frames of {size.side} px", frames, partial(run_vae, batch=frames, decode=False)
        yield f"autoencoder, decode frames of {size.side} px", frames, partial(run_vae, batch=frames, decode=True)
    elif section == "sampling":
        n, what = size.decoded, f"prior, {PRIOR_STEPS} steps"
        yield f"{what}, clips, noise from the CPU", n, partial(run_prior, batch=n, drawn_here=False)
        yield f"{what}, clips, noise from the device", n, partial(run_prior, batch=n, drawn_here=True)
        yield "prior, one step, 4 draws a clip, float32, as decoding runs it", n, partial(run_expected, batch=n)
    elif section == "keyframe":
        what = f"keyframe, {8 * size.unet_sample} px, {size.timesteps} steps, guidance {GUIDANCE:g}, images"
        for batch in size.keyframes:
            yield what, batch, partial(run_keyframe, batch=batch)
    elif section == "captioner":
        yield f"captioner of GIT-large's size, {WORDS} words, images", n, partial(run_captioner, batch=n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=(*TRAINING, *GENERATION), metavar="NAME",
                        help=f"sections: {', '.join((*TRAINING, *GENERATION))}")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--steps", type=int, default=10, help="timed optimiser steps, after two that are not")
    parser.add_argument("--out", type=Path, help="also write the tables here, after every row")
    given = parser.parse_args()
    logging.set_verbosity_error()  # diffusers warns of every change of type
    bench = Bench(SMALL if given.small else PAPER, given.device, given.steps)
    check_parameters()
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if given.out:
            given.out.write_text("\n".join(lines) + "\n")

    where = torch.cuda.get_device_name() if bench.cuda else f"{platform.machine()}, no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "diffusers"))
    say(f"{where}, {os.cpu_count()} processor cores, Python {platform.python_version()}, {versions}.")
    if given.small:
        say("Tiny sizes, to see that it runs: the figures mean nothing.")
    for title, sections in (("Training", TRAINING), ("Generation", GENERATION)):
        chosen = [name for name in sections if given.only is None or name in given.only]
        if not chosen:
            continue
        head = HEADS[title]
        say(f"\n### {title}\n\n| {' | '.join(head)} |\n| --- |{' ---: |' * (len(head) - 1)}")
        for section in chosen:
            for what, batch, work in rows(section, bench.size):
                bench.free()
                try:
                    with contextlib.nullcontext() if title == "Training" else torch.inference_mode():
                        cells = [*work(bench), bench.peak()]
                except torch.OutOfMemoryError:
                    cells = ["does not fit", *["–"] * (len(head) - 3)]
                say(f"| {what} | {batch:,} | {' | '.join(cells)} |")
    if bench.cuda:
        say(f"\nThe device has {math.floor(torch.cuda.get_device_properties(0).total_memory / GIB)} GiB.")


if __name__ == "__main__":
    main()
