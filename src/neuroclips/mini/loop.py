"""How both mini networks are trained: the settings they share, and lines of progress for a log."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

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
