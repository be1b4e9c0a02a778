"""Peak memory of training a network through the package's own loop, beside a formula; each in a fresh process.

    python benchmarks/training_memory.py                   # semantics at three widths, prior and perception, on a CPU
    python benchmarks/training_memory.py semantics --width 256 --batch 60
    python benchmarks/training_memory.py prior --batch 64 --device cuda --precision bf16 --checkpoint-activations

Data are random. A JSON object a training, all sizes in bytes, beyond what process, libraries and data take: ``parts``
by counting, ``beside`` what the peak has more than all of these together (less than nothing where they are not all
there when it is reached), ``formula`` of semantics. On a CPU the peak is of resident memory, on CUDA of what torch
allocated.
"""

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import psutil
import torch

from neuroclips.decoders.perception import PerceptionNetwork
from neuroclips.decoders.prior import DiffusionPrior, PriorNetwork
from neuroclips.decoders.semantics import SemanticsNetwork
from neuroclips.training import TrainingSettings, loop
from neuroclips.training.objectives import PerceptionObjective, PriorObjective, SemanticsObjective
from neuroclips.training.switches import switches

STANDARD = (
    "semantics --width 128 --batch 60", "semantics --width 256 --batch 60", "semantics --width 512 --batch 60",
    "semantics --width 512 --batch 24", "semantics --width 256 --batch 60 --ema",
    "prior --depth 2 --batch 4", "prior --depth 2 --batch 4 --checkpoint-activations",
    "perception --width 1024 --batch 20",
)  # fmt: skip


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def build(a: argparse.Namespace) -> tuple[torch.nn.Module, Any]:
    """A network and its objective, on as many clips as a batch has."""
    chosen, k, d = switches("corrected"), a.tokens, a.token_width
    if a.network == "semantics":
        # BiMixCo needs more than the SoftCLIP loss after it, and is what the first steps have.
        objective: Any = SemanticsObjective(
            random(a.batch, 1, a.voxels), random(a.batch, 1, k, d), switches=chosen, steps=10**6, batch=a.batch
        )
        return SemanticsNetwork(a.voxels, tokens=k, token_width=d, width=a.width), objective
    if a.network == "prior":
        objective = PriorObjective(random(a.batch, 1, k, d), random(a.batch, 1, k, d), switches=chosen, batch=a.batch)
        return DiffusionPrior(PriorNetwork(tokens=k, width=d, depth=a.depth)), objective
    latents = random(a.batch, 6, 4, 28, 28)
    objective = PerceptionObjective(random(a.batch, 1, a.voxels), latents, switches=chosen, batch=a.batch)
    return PerceptionNetwork(a.voxels, width=a.width), objective


def semantics_bytes(a: argparse.Namespace, n: int) -> float:
    """The peak without autocast: everything that is kept for the gradient, or all gradients and the last activations.

    With T bytes of one float32 array of a batch's tokens, 18 T are kept; the head's gradient comes when 3.5 T are left.
    Both numbers were fitted to widths of 128 to 512 and batches of 24 and 60, on a CPU.
    """
    t = 4 * a.batch * a.tokens * a.token_width
    return (16 if a.ema else 12) * n + max(18 * t, 4 * n + 3.5 * t)


def measure(a: argparse.Namespace) -> dict[str, Any]:
    cuda = a.device == "cuda"
    network, objective = build(a)
    n = sum(p.numel() for p in network.parameters())
    settings = TrainingSettings(
        steps=a.steps, learning_rate=1e-4, seed=1, validate_every=a.steps, precision=a.precision,
        ema=0.99 if a.ema else None, checkpoint_activations=a.checkpoint_activations,
    )  # fmt: skip
    before = 0 if cuda else psutil.Process().memory_info().rss - 4 * n
    loop.train(network, objective.loss, objective.batches, settings=settings, device=a.device)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    parts = {"weights": 4 * n, "gradients": 4 * n, "adamw": 8 * n, "averages": 4 * n if a.ema else 0}
    return {
        **vars(a), "parameters": n, "parts": parts, "counted": sum(parts.values()), "peak": peak - before,
        "beside": peak - before - sum(parts.values()), "torch": torch.__version__,
        "formula": semantics_bytes(a, n) if a.network == "semantics" and a.precision == "no" else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=("semantics", "prior", "perception"))
    for name, usual in (("voxels", 13447), ("width", 4096), ("tokens", 256), ("token-width", 1664), ("depth", 6),
                        ("batch", 60), ("steps", 3)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--ema", action="store_true")
    parser.add_argument("--checkpoint-activations", action="store_true")
    given = parser.parse_args()
    if given.network:
        print(json.dumps(measure(given)), flush=True)
        return
    for one in STANDARD:
        subprocess.run([sys.executable, __file__, *one.split()], check=True)


if __name__ == "__main__":
    main()
