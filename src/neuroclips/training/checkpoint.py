"""Checkpoints of a training: what they keep and must agree with, and interrupts that wait for a whole step."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroclips.errors import ArtefactError
from neuroclips.training import TrainingSettings

Row = dict[str, int | float]  # of the curve
LENGTH = ("steps", "minutes", "validate_every", "patience", "save_every_s")  # may differ: a run may be prolonged


@dataclass
class Run:
    """What a checkpoint keeps beside the weights. Scores are lower when better; sums are (sum, count) by name."""

    step: int = 0
    spent: float = 0.0  # seconds
    curve: list[Row] = field(default_factory=list)
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    best: float = math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0  # validations since the best


def made_with(
    module: nn.Module, settings: TrainingSettings, *, processes: int, choice: tuple[str, bool] | None
) -> dict[str, Any]:
    """What a checkpoint must agree with, by name: settings, how weights are chosen, shapes, what is trained."""
    made = {name: value for name, value in asdict(settings).items() if name not in LENGTH}
    made |= {"processes": processes, "choice by validation": choice}
    made |= {f"shape of {name}": tuple(value.shape) for name, value in module.state_dict().items()}
    return made | {f"{name} is trained": p.requires_grad for name, p in module.named_parameters()}


def read_checkpoint(path: Path, made: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content, on the CPU; ``ArtefactError`` when damaged or made with anything but ``made``."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        came = state["made_with"]
    except Exception as error:  # a damaged file may raise anything
        raise ArtefactError(
            f"{path}: expected a checkpoint of a training; it cannot be read ({type(error).__name__}: {error}). Remove "
            "it to start anew"
        ) from error
    for name in {**made, **came}:
        if made.get(name) != came.get(name):
            raise ArtefactError(
                f"{path}: made with {name} = {came.get(name)}; expected {made.get(name)}, as in this training. Train "
                "as it was made, or remove it to start anew"
            )
    return state


@contextmanager
def undivided() -> Iterator[None]:
    """Hold Ctrl-C (SIGINT) back until the end, so that no checkpoint sees half a step.

    Python interrupts the main thread only; nothing is held back in others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)
