"""Checkpoints of a training: what they keep and must agree with, and interrupts that wait for a whole step.

A checkpoint is one file: 12 bytes for every trained number (float32 weights and AdamW's two moments), 16 where weights
are averaged. The weights of the best validation are in a file of their own beside it (``best_file``), written when they
are found and not with every checkpoint: 4 bytes a number. Files are whole, whatever the number of processes.
"""

from __future__ import annotations

import math
import re
import shutil
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neuroclips.artefacts import written_aside
from neuroclips.errors import ArtefactError
from neuroclips.training import TrainingSettings

Row = dict[str, int | float]  # of the curve
# May differ from a checkpoint's: a run may be prolonged, and these change no number.
FREE = ("steps", "minutes", "validate_every", "patience", "save_every_s", "checkpoint_activations")


@dataclass
class Run:
    """What a checkpoint keeps beside the weights. Scores are lower when better; sums are (sum, count) by name."""

    step: int = 0
    spent: float = 0.0  # seconds
    curve: list[Row] = field(default_factory=list)
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    best: float = math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # only of a run without checkpoints
    stale: int = 0  # validations since the best


def made_with(
    module: nn.Module, settings: TrainingSettings, *, processes: int, choice: tuple[str, bool] | None
) -> dict[str, Any]:
    """What a checkpoint must agree with, by name: settings, how weights are chosen, shapes, what is trained."""
    made = {name: value for name, value in asdict(settings).items() if name not in FREE}
    made |= {"processes": processes, "choice by validation": choice}
    made |= {f"shape of {name}": tuple(value.shape) for name, value in module.state_dict().items()}
    return made | {f"{name} is trained": p.requires_grad for name, p in module.named_parameters()}


def best_file(checkpoint: Path, step: int) -> Path:
    """Where the weights of the best validation are, which was at ``step``.

    >>> best_file(Path("fit/.prior.checkpoint.pt"), 120).name
    '.best-120.prior.checkpoint.pt'
    """
    return checkpoint.with_name(f".best-{step}.{checkpoint.name.lstrip('.')}")


def remove_bests(checkpoint: Path, *, but: Collection[int]) -> None:
    """Remove the weights of other bests of this training than those at the steps ``but``."""
    name = re.compile(r"\.best-(\d+)\." + re.escape(checkpoint.name.lstrip(".")))
    for path in checkpoint.parent.iterdir():
        found = name.fullmatch(path.name)
        if found and int(found[1]) not in but:
            path.unlink()


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as PyTorch does, on success in place of what was there.

    Raises ``ArtefactError`` where it does not fit on the disk, if possible before anything is written.
    """
    sizes: list[int] = []
    recursively_apply(lambda tensor: sizes.append(tensor.nbytes), content)
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(sizes) / 1e9, shutil.disk_usage(path.parent).free / 1e9
    problem: Exception | str = f"it needs {needed:.2f} GB, {free:.2f} GB are free"
    if needed < free:
        try:
            with written_aside(path) as aside:
                torch.save(content, aside)
            return
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            problem = error
    raise ArtefactError(
        f"{path}: the checkpoint cannot be written ({problem}); expected room for a second one beside the last, which "
        "is kept. Make room, or choose another disk, and start again: the training goes on from there"
    ) from (problem if isinstance(problem, Exception) else None)


def read_checkpoint(path: Path, made: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content, on the CPU; ``ArtefactError`` when damaged or made with anything but ``made``.

    Tensors stay in the file until they are used, so that reading takes no memory of its own.
    """
    state = _read(path, "a checkpoint of a training", lambda content: content["made_with"])
    came = state["made_with"]
    for name in {**made, **came}:
        if made.get(name) != came.get(name):
            raise ArtefactError(
                f"{path}: made with {name} = {came.get(name)}; expected {made.get(name)}, as in this training. Train "
                "as it was made, or remove it to start anew"
            )
    return state


def read_best(checkpoint: Path, step: int, names: Collection[str]) -> dict[str, Tensor]:
    """The weights of the best validation, which was at ``step``, by name; ``ArtefactError`` when damaged or not there.

    Tensors stay in the file until they are used.
    """
    what = f"the weights of the best validation, at step {step}, beside {checkpoint.name}"
    weights = _read(best_file(checkpoint, step), what, lambda content: [content[name] for name in names])
    return {name: weights[name] for name in names}


def _read(path: Path, what: str, look: Callable[[Any], Any]) -> Any:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        look(content)
    except Exception as error:  # a damaged file may raise anything
        raise ArtefactError(
            f"{path}: expected {what}; it cannot be read ({type(error).__name__}: {error}). Remove the checkpoint to "
            "start anew"
        ) from error
    return content


def whole(values: Any, on: torch.device, to: torch.device | None) -> Any:
    """``values``, nested in dictionaries and lists, where tensors that processes share are put together on ``on``, one
    after the other, and moved ``to``; None drops them. Every process has to call it. Other values stay as they are."""

    def together(value: DTensor) -> Tensor | None:
        full = value.to_local() if value.device_mesh.size() == 1 else cast(DTensor, value.to(on)).full_tensor()
        return None if to is None else full.to(to)

    return recursively_apply(together, values, test_type=lambda value: isinstance(value, DTensor))


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole ``value`` into ``target``, or this process's rows of it where processes share ``target``."""
    if isinstance(target, DTensor):
        rows = -(-len(value) // target.device_mesh.size())
        value = value[target.device_mesh.get_local_rank() * rows :][:rows]
        target = target.to_local()
    target.copy_(value)


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
