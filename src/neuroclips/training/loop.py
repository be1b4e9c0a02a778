"""The one training loop, on Hugging Face Accelerate: schedule, weight averaging, choice by validation, checkpoints.

AdamW (Loshchilov and Hutter 2019); the weights that are returned are those of the best validation. Every step draws its
randomness from ``stable_seed(seed, batch number)``, so a run that was killed goes on from its checkpoint to the same
bits on a CPU as one that was not. The test split has no way in: ``validate`` is the caller's.

Under ``accelerate launch`` every process calls ``batches`` with a generator seeded by its own index, gradients are
averaged, the main process validates for all and writes. Dividing data that is not drawn at random is up to ``batches``.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, send_to_device
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from neuroclips.artefacts import stable_seed, written_aside
from neuroclips.errors import DataError, RecipeError
from neuroclips.training import TrainingSettings
from neuroclips.training.checkpoint import Row, Run, made_with, read_checkpoint, undivided

M = TypeVar("M", bound=nn.Module)
Loss = Callable[[Any, Any, torch.Generator], tuple[Tensor, dict[str, Any]]]
Batches = Callable[[int, torch.Generator], Any] | Iterator[Any]
Waiting = list[tuple[int, dict[str, Any]]]  # steps, and their losses that are still on the device
QUIET = ("seconds", "learning_rate")  # not in the line of progress
LOOK_EVERY = 20  # steps between looks at the losses on an accelerator; looking waits for it


@dataclass(frozen=True)
class Trained(Generic[M]):
    """What ``train`` returns.

    Parameters
    ----------
    module : the module that was given, with the chosen weights, in eval mode, on the device of the training.
    curve : a row every ``validate_every`` steps and at the end: step, seconds, learning_rate, the means of loss and
        its parts since the last row, and what ``validate`` returned as ``validation_...``.
    best_step : the step that the weights are from. steps : how many there were.
    """

    module: M
    curve: list[Row]
    best_step: int
    steps: int


class _Objective(nn.Module):
    """Module and loss as one forward pass, so that precision and gradient exchange cover whatever the loss calls."""

    def __init__(self, module: nn.Module, loss: Loss):
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        value, parts = self.loss(self.module, batch, generator)
        return value, {name: part.detach() if isinstance(part, Tensor) else part for name, part in parts.items()}


def train(
    module: M,
    loss: Loss,
    batches: Batches,
    *,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
    validate: Callable[[M], Mapping[str, float]] | None = None,
    choose: str = "loss",
    highest: bool = False,
    device: str = "auto",
    progress: Callable[[int, int, str], None] | None = None,
) -> Trained[M]:
    """Train ``module`` in place and choose its weights by validation.

    Parameters
    ----------
    loss : of (module, batch, generator): a scalar to minimise, and scalars to log. It may call any of the module's
        methods. Scalars may stay on the device: the loop reads them rarely.
    batches : a function of (number, generator), the same batch for the same number, counted from 0; or an endless
        iterator, which a resumed run takes from where it then stands. Tensors are moved to the device.
    checkpoint : file to resume from, written every ``save_every_s`` seconds, at the end, and on Ctrl-C (SIGINT), never
        half a step. A finished one is returned without training. Deleting it is the caller's.
    validate : of the module, averaged if asked for, in eval mode without gradients: values by name. ``choose`` names
        the one that decides; the lowest is best, or the ``highest``. Without it the last weights are returned.
    device : "auto" takes CUDA, else MPS, else the CPU.
    progress : called with (done, total, what) after every step, as ``stages.progress_bar`` yields.

    Raises ``DataError`` for a loss or a deciding value that is not finite; ``ArtefactError`` for a checkpoint that is
    damaged or of another training; ``RecipeError`` for a device or precision that this machine lacks.
    """
    accelerator = _accelerator(settings, device)
    on = accelerator.device
    objective, optimizer = accelerator.prepare(_Objective(module, loss), _adamw(module, settings))
    averaged = None if settings.ema is None else copy.deepcopy(module).requires_grad_(False)
    chosen = module if averaged is None else averaged
    kept = {"module": module, "averaged": averaged, "optimizer": optimizer, "scaler": accelerator.scaler}
    kept = {name: part for name, part in kept.items() if part is not None}
    choice = (choose, highest) if validate else None
    made = made_with(module, settings, processes=accelerator.num_processes, choice=choice)
    run, what = Run(), "training"
    if checkpoint is not None and checkpoint.exists():
        state = read_checkpoint(checkpoint, made)
        for name, part in kept.items():
            part.load_state_dict(state[name])
        run, what = Run(**state["run"]), f"resuming {checkpoint.name} at step {state['run']['step']}"
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    waiting: Waiting = []
    generator = torch.Generator()
    started, saved = time.monotonic() - run.spent, run.spent

    def share() -> float:
        run.spent = time.monotonic() - started
        done = min(1.0, max(run.step / settings.steps, run.spent / (60 * settings.minutes)))
        return done if math.isinf(settings.minutes) else _of_main(done)  # clocks differ

    def step(rate: float) -> None:
        module.zero_grad()
        losses = []
        for group in optimizer.param_groups:
            group["lr"] = rate
        for number in range(run.step * settings.accumulate, (run.step + 1) * settings.accumulate):
            generator.manual_seed(stable_seed(settings.seed, number, accelerator.process_index))
            _seed_module(stable_seed("module", settings.seed, number, accelerator.process_index), on)
            batch = batches(number, generator) if callable(batches) else next(batches)
            with accelerator.accumulate(objective):
                value, parts = objective(send_to_device(batch, on, non_blocking=True), generator)
                accelerator.backward(value)
            losses.append((run.step + 1, {**parts, "loss": value.detach()}))
        accelerator.clip_grad_norm_(trainable, settings.clip_norm)
        optimizer.step()
        run.step += 1
        waiting.extend(losses)
        if averaged is not None and settings.ema is not None:
            _average(averaged, module, min(settings.ema, (1 + run.step) / (10 + run.step)))
        if on.type == "cpu" or run.step % LOOK_EVERY == 0:
            _read_losses(waiting, run.sums, on)

    def add_row() -> None:
        _read_losses(waiting, run.sums, on)
        values: Mapping[str, float] = {}
        if validate is not None:
            _seed_module(stable_seed("validation", settings.seed), on)
            with torch.no_grad():
                values = _of_main({name: float(value) for name, value in validate(chosen.eval()).items()})
            module.train()
            if not math.isfinite(values.get(choose, math.nan)):
                raise DataError(f"validation at step {run.step} gave {dict(values)}; expected a finite {choose!r}")
        with undivided():
            means = {name: total / count for name, (total, count) in run.sums.items()}
            row: Row = {"step": run.step, "seconds": run.spent, "learning_rate": optimizer.param_groups[0]["lr"]}
            run.curve.append(row | means | {f"validation_{name}": value for name, value in values.items()})
            run.sums = {}
            if validate is None:
                return
            score = -values[choose] if highest else values[choose]
            run.stale += 1
            if score < run.best:
                run.best, run.best_step, run.stale = score, run.step, 0
                run.best_weights = {name: v.detach().to("cpu", copy=True) for name, v in chosen.state_dict().items()}

    def save() -> None:
        _read_losses(waiting, run.sums, on)  # so that nothing ruined is kept
        if checkpoint is not None and accelerator.is_main_process:
            state = {name: part.state_dict() for name, part in kept.items()}
            with written_aside(checkpoint) as aside:
                torch.save({"made_with": made, "run": vars(run), **state}, aside)

    with torch.random.fork_rng([on] if on.type == "cuda" else []):
        module.train()
        try:
            while True:
                done = share()
                due = run.step > 0 and (run.step % settings.validate_every == 0 or done == 1)
                if due and (not run.curve or run.curve[-1]["step"] != run.step):
                    add_row()
                    what = "  ".join(f"{k} {v:.4g}" for k, v in run.curve[-1].items() if k not in QUIET)
                if progress is not None and accelerator.is_main_process:
                    progress(round(done * settings.steps), settings.steps, what)
                if done == 1 or (settings.patience is not None and run.stale >= settings.patience):
                    break
                if run.spent - saved >= settings.save_every_s:
                    save()
                    saved = run.spent
                with undivided():
                    step(settings.rate(min(1.0, done + 0.5 / settings.steps)))  # the middle of the step
            save()
        except KeyboardInterrupt:
            save()
            raise
    module.zero_grad()
    accelerator.wait_for_everyone()
    module.load_state_dict(run.best_weights or chosen.state_dict())
    return Trained(module.eval(), run.curve, run.best_step if validate else run.step, run.step)


def _accelerator(settings: TrainingSettings, device: str) -> Accelerator:
    """Accelerate for this training; an earlier one in this process may have had another precision or device."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision=settings.precision, gradient_accumulation_steps=settings.accumulate
        )
    except ValueError as error:
        raise RecipeError(f"training: precision {settings.precision!r} on device {device!r}: {error}") from error
    if device not in ("auto", accelerator.device.type):
        raise RecipeError(f"training: device is {device!r}; expected 'auto', 'cpu' or {accelerator.device.type!r} here")
    if settings.precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would compute in float32
        raise RecipeError("training: precision is 'fp16'; expected 'no' or 'bf16' on a CPU")
    return accelerator


def _adamw(module: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW of the trainable parameters; those of fewer than two axes do not decay unless all do."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    exempt = [p for p in trainable if p.ndim < 2 and not settings.decay_all]
    decayed = [p for p in trainable if p.ndim >= 2 or settings.decay_all]
    groups = [{"params": exempt, "weight_decay": 0.0}, {"params": decayed, "weight_decay": settings.weight_decay}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _seed_module(seed: int, on: torch.device) -> None:
    """Seed what dropout draws from, here and on the device; ``torch.manual_seed`` takes as long as a small step."""
    torch.default_generator.manual_seed(seed)
    if on.type != "cpu":
        torch.get_device_module(on).manual_seed(seed)


def _average(averaged: nn.Module, module: nn.Module, decay: float) -> None:
    """Move averaged parameters towards the module's: ``decay * averaged + (1 - decay) * module``; copy buffers."""
    get_ema_multi_avg_fn(decay)(list(averaged.parameters()), list(module.parameters()), None)
    for mine, its in zip(averaged.buffers(), module.buffers()):
        mine.copy_(its)


def _read_losses(waiting: Waiting, sums: dict[str, tuple[float, int]], on: torch.device) -> None:
    """Add the losses that wait on the device to ``sums``, in one transfer; refuse a loss that is not finite."""
    scalars = [torch.as_tensor(v, dtype=torch.float32, device=on) for _, row in waiting for v in row.values()]
    values = iter(torch.stack(scalars).tolist() if scalars else [])
    for step, parts in waiting:
        read = {name: next(values) for name in parts}
        if not math.isfinite(read["loss"]):
            raise DataError(
                f"the loss is not finite at step {step}: {read}; look for infinite values in the data, or lower the "
                "learning rate"
            )
        for name, value in read.items():
            total, count = sums.get(name, (0.0, 0))
            sums[name] = (total + value, count + 1)
    waiting.clear()


def _of_main(value: Any) -> Any:
    """The main process's value, in every process."""
    return broadcast_object_list([value])[0]
