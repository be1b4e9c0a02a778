"""What a machine has: memory of its GPU, its own memory, and disk."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from neuroclips.errors import RecipeError

GIB = 2**30
# Memory in GiB that is there for use, and dense bfloat16 arithmetic against an H100's, by makers' data sheets.
CARDS = {
    "h200": (139, 1.0), "h100": (78, 1.0), "a100": (79, 0.32), "a100-40": (39, 0.32), "a6000": (47, 0.16),
    "l40s": (44, 0.37), "5090": (31, 0.21), "4090": (23.5, 0.17), "3090": (23.5, 0.072), "t4": (14.5, 0.066),
}  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """Bytes of a GPU (None without one), of memory and of free disk; ``speed`` of the GPU against an H100, or None."""

    gpu: float | int | None
    ram: float | int
    disk: float | int
    name: str = "no GPU"
    speed: float | int | None = None

    def with_gpu(self, said: str) -> Hardware:
        """With another GPU: 'h100', 'a100', ..., GiB of memory, or 'none'."""
        if said == "none":
            return replace(self, gpu=None, name="no GPU", speed=None)
        if said in CARDS:
            return replace(self, gpu=CARDS[said][0] * GIB, name=said.upper(), speed=CARDS[said][1])
        if re.fullmatch(r"\d+(\.\d+)?", said) and float(said) > 0:
            return replace(self, gpu=float(said) * GIB, name=f"a GPU of {said} GiB", speed=None)
        raise RecipeError(f"--gpu {said}: expected GiB of memory, none, or one of {', '.join(CARDS)}")


def this_machine(run: Path) -> Hardware:
    """What is here; disk is that of the run directory, or of the nearest folder above it that exists."""
    import psutil
    import torch

    folder = run.resolve()
    while not folder.exists():
        folder = folder.parent
    found = Hardware(None, psutil.virtual_memory().total, shutil.disk_usage(folder).free)
    if not torch.cuda.is_available():
        return found
    about = torch.cuda.get_device_properties(0)
    name = about.name.lower()
    speed = next((speed for card, (_, speed) in CARDS.items() if card.partition("-")[0] in name), None)
    return replace(found, gpu=about.total_memory, name=about.name, speed=speed)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
