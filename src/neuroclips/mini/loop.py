"""How mini networks are trained and left behind: shared settings, progress for a log, no traces of folders."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

from neuroclips.artefacts import read_json, write_json
from neuroclips.training import TrainingSettings
from neuroclips.training.checkpoint import Row
from neuroclips.training.loop import Batches, Loss, M
from neuroclips.training.loop import train as train_any


def train(
    module: M,
    loss: Loss,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    checkpoint: Path,
    device: str,
    minutes: float = math.inf,
) -> tuple[M, list[Row]]:
    """Train ``module`` in place; returns it with averaged weights, and the curve of losses. Resumes a cut run."""
    settings = TrainingSettings(
        steps=steps, minutes=minutes, learning_rate=learning_rate, seed=seed, validate_every=100, decay_all=True,
        ema=0.999, precision="bf16" if device == "cuda" else "no",
    )  # fmt: skip
    console, shown = Console(stderr=True), ""

    def show(done: int, total: int, what: str) -> None:
        nonlocal shown
        if what != shown:
            console.print(f"{done} of {total}: {what}")
            shown = what

    trained = train_any(module, loss, batches, settings=settings, checkpoint=checkpoint, device=device, progress=show)
    return trained.module, trained.curve


def forget_folders(out: Path) -> None:
    """Take from the configurations of saved parts the folder they were once loaded from; it is nobody's business."""
    for path in out.glob("*/config.json"):
        write_json(path, {name: value for name, value in read_json(path).items() if name != "_name_or_path"})
