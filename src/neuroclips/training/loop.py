"""The one training loop, on Hugging Face Accelerate: schedule, weight averaging, choice by validation, checkpoints.

AdamW (Loshchilov and Hutter 2019); the weights that are returned are those of the best validation. Every step draws its
randomness from ``stable_seed(seed, batch number)``, so a run that was killed goes on from its checkpoint to the same
bits on a CPU as one that was not. The test split has no way in: ``validate`` is the caller's.

Several processes (``accelerate launch``): process p of P takes the batches ``P n + p``, with a generator seeded by n
and p; gradients are averaged, so that a step has P times as many clips. The main process's validation counts, and it
writes; all read its files, so they need a common disk. With ``--use_fsdp`` (torch's FSDP2) weights, gradients, averages
and AdamW's moments are shared out between them instead of copied to each; with ``--fsdp_offload_params true`` they stay
in the host's memory but for what a step needs, even those of a single process on one GPU. Networks with parameters that
have no axis are copied all the same: torch cannot share these out.

Memory for N trained parameters, in bytes: weights 4 N, gradients 4 N, AdamW 8 N, averages 4 N; bfloat16 copies of the
weights 2 N; the best weights 4 N of the host's, but only without a checkpoint; and activations.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    patch_environment,
    send_to_device,
)
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from neuroclips.artefacts import stable_seed
from neuroclips.errors import DataError, RecipeError
from neuroclips.training import TrainingSettings, processes
from neuroclips.training.checkpoint import (
    Row,
    Run,
    best_file,
    fill,
    made_with,
    read_best,
    read_checkpoint,
    remove_bests,
    undivided,
    whole,
    write_checkpoint,
)

M = TypeVar("M", bound=nn.Module)
Loss = Callable[[Any, Any, torch.Generator], tuple[Tensor, dict[str, Any]]]
Batches = Callable[[int, torch.Generator], Any] | Iterator[Any]
Waiting = list[tuple[int, dict[str, Any]]]  # steps, and their losses that are still on the device
QUIET = ("seconds", "learning_rate")  # not in the line of progress
SAVING = 0.05  # of the time, at most
LARGE = 50_000_000  # trained parameters, from which memory is looked after at the cost of time or of the last bits
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # CUDA and MPS, CPUs, CUDA's libraries
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


@dataclass
class _Saved:
    """The last checkpoint: when, in seconds of the training, and how long it took; steps, rows and best step in it."""

    spent: float
    took: float
    steps: int
    rows: int
    best_step: int


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
        iterator, which a resumed run takes from where it then stands. Tensors are moved to the device. The generator
        is on the CPU, for the loss too.
    checkpoint : file to resume from, written every ``save_every_s`` seconds, at the end, and on Ctrl-C (SIGINT; not
        where weights are shared out), never half a step. A finished one is returned without training. The best weights
        are beside it (``checkpoint.best_file``). Deleting both is the caller's: their names end alike.
    validate : of the module, averaged if asked for, in eval mode without gradients: values by name. ``choose`` names
        the one that decides; the lowest is best, or the ``highest``. Without it the last weights are returned.
    device : "auto" takes CUDA, else MPS, else the CPU.
    progress : called with (done, total, what) after every step, as ``stages.progress_bar`` yields.

    Raises ``DataError`` for a loss or a deciding value that is not finite; ``ArtefactError`` for a checkpoint that is
    damaged, of another training, or does not fit on the disk, which keeps the last one; ``RecipeError`` for a device or
    precision that this machine lacks, and where memory does not suffice.
    """
    if sum(p.numel() for p in module.parameters()) >= LARGE:
        gc.collect()  # torch leaves cycles that may hold the optimiser of an earlier training
    accelerator = _accelerator(module, settings, device)
    on, sharded = accelerator.device, accelerator.distributed_type == DistributedType.FSDP
    for part in module.modules():
        if hasattr(part, "checkpoint_activations"):
            setattr(part, "checkpoint_activations", settings.checkpoint_activations)  # noqa: B010
    learns = {name: p.requires_grad for name, p in module.named_parameters()}
    with _enough_memory(module, checkpoint):
        objective, optimizer = accelerator.prepare(_Objective(module, loss), _adamw(module, settings, on))
        averaged = None
        if settings.ema is not None:
            averaged = {name: value.detach().clone() for name, value in module.state_dict().items()}
    choice = (choose, highest) if validate else None
    made = made_with(module, settings, processes=accelerator.num_processes, choice=choice)
    run, what = Run(), "training"
    if checkpoint is not None and checkpoint.exists():
        state = read_checkpoint(checkpoint, made)
        run, what = Run(**state["run"]), f"resuming {checkpoint.name} at step {state['run']['step']}"
        if run.best_step and not run.best_weights:
            read_best(checkpoint, run.best_step, module.state_dict())  # whether it can be
        _load(state, module, averaged, optimizer, accelerator.scaler)
        del state  # holds the file open
    accelerator.wait_for_everyone()  # or another's first checkpoint is taken for one to resume from
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    # Accelerate clips gradients in shares only where it is given its own list of them.
    clipped = list(objective.parameters()) if sharded else trainable
    kept_on = torch.device("cpu") if accelerator.is_main_process else None
    waiting: Waiting = []
    generator = torch.Generator()
    started = time.monotonic() - run.spent
    saved = _Saved(run.spent, 0.0, run.step, len(run.curve), run.best_step)

    def share() -> float:
        run.spent = time.monotonic() - started
        done = min(1.0, max(run.step / settings.steps, run.spent / (60 * settings.minutes)))
        return done if math.isinf(settings.minutes) else processes.told(done)  # clocks differ

    def step(rate: float) -> None:
        losses = []
        for group in optimizer.param_groups:
            group["lr"] = rate
        for number in range(run.step * settings.accumulate, (run.step + 1) * settings.accumulate):
            generator.manual_seed(stable_seed(settings.seed, number, accelerator.process_index))
            _seed_module(stable_seed("module", settings.seed, number, accelerator.process_index), on)
            own = number * accelerator.num_processes + accelerator.process_index
            batch = batches(own, generator) if callable(batches) else next(batches)
            with accelerator.accumulate(objective):
                with accelerator.autocast() if sharded else nullcontext():  # else Accelerate has seen to it
                    value, parts = objective(send_to_device(batch, on, non_blocking=True), generator)
                accelerator.backward(value)
            losses.append((run.step + 1, {**parts, "loss": value.detach()}))
        accelerator.clip_grad_norm_(clipped, settings.clip_norm)
        optimizer.step()
        module.zero_grad()  # now, so that neither validation nor saving has gradients beside it
        run.step += 1
        waiting.extend(losses)
        if averaged is not None and settings.ema is not None:
            _average(averaged, module, min(settings.ema, (1 + run.step) / (10 + run.step)))
        if on.type == "cpu" or run.step % LOOK_EVERY == 0:
            _read_losses(waiting, run.sums, on)

    def chosen() -> dict[str, Tensor]:
        """Weights that are validated and returned."""
        return module.state_dict() if averaged is None else averaged

    def add_row() -> None:
        _read_losses(waiting, run.sums, on)
        values: Mapping[str, float] = {}
        if validate is not None:
            _seed_module(stable_seed("validation", settings.seed), on)
            as_they_are = averaged is None and not sharded
            with torch.no_grad(), nullcontext() if as_they_are else _holding(module, whole(chosen(), on, on)):
                values = processes.told({name: float(value) for name, value in validate(module.eval()).items()})
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
                keep_best()

    def keep_best() -> None:
        if checkpoint is None:
            run.best_weights = {name: value.detach().to("cpu", copy=True) for name, value in chosen().items()}
            return
        run.best_weights = {}
        if sharded or accelerator.is_main_process:
            weights = whole(chosen(), on, kept_on)
            if accelerator.is_main_process:
                write_checkpoint(best_file(checkpoint, run.best_step), weights)
                remove_bests(checkpoint, but=(saved.best_step, run.best_step))

    def save() -> None:
        nonlocal saved
        begun = time.monotonic()
        _read_losses(waiting, run.sums, on)  # so that nothing ruined is kept
        if checkpoint is not None and (sharded or accelerator.is_main_process):
            state = whole(_state(module, averaged, optimizer, accelerator.scaler), on, kept_on)
            if accelerator.is_main_process:
                write_checkpoint(checkpoint, {"made_with": made, "run": vars(run), **state})
                remove_bests(checkpoint, but=(run.best_step,))
        now = time.monotonic()
        saved = _Saved(now - started, now - begun, run.step, len(run.curve), run.best_step)

    def due() -> bool:
        """Whether it is time to save."""
        wait = max(settings.save_every_s, saved.took / SAVING) if settings.save_every_s else 0.0
        late = run.spent - saved.spent >= wait
        return processes.told(late) if sharded else late  # all take part in it

    with _enough_memory(module, checkpoint), torch.random.fork_rng([on] if on.type == "cuda" else []):
        module.zero_grad()
        module.train()
        try:
            while True:
                done = share()
                row = run.step > 0 and (run.step % settings.validate_every == 0 or done == 1)
                if row and (not run.curve or run.curve[-1]["step"] != run.step):
                    add_row()
                    what = "  ".join(f"{k} {v:.4g}" for k, v in run.curve[-1].items() if k not in QUIET)
                if progress is not None and accelerator.is_main_process:
                    progress(round(done * settings.steps), settings.steps, what)
                if done == 1 or (settings.patience is not None and run.stale >= settings.patience):
                    break
                if due():
                    save()
                with undivided():
                    step(settings.rate(min(1.0, done + 0.5 / settings.steps)))  # the middle of the step
            if (run.step, len(run.curve)) != (saved.steps, saved.rows):
                save()
        except KeyboardInterrupt:
            if not sharded:  # the others may be at another step
                save()
            raise
    accelerator.wait_for_everyone()
    weights: Mapping[str, Tensor] = run.best_weights or chosen()
    if run.best_step and not run.best_weights and checkpoint is not None:
        weights = read_best(checkpoint, run.best_step, weights)
    if sharded:
        weights = whole(weights, on, on)
        _put(module, {n: nn.Parameter(v.to(on, copy=True), learns[n]) for n, v in weights.items() if n in learns})
    for name, value in module.state_dict().items():
        fill(value, weights[name])
    return Trained(module.eval(), run.curve, run.best_step if validate else run.step, run.step)


def _accelerator(module: nn.Module, settings: TrainingSettings, device: str) -> Accelerator:
    """Accelerate for this training; an earlier one in this process may have had another precision or device."""
    AcceleratorState._reset_state(reset_partial_state=True)
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    shared = asked and all(p.ndim for p in module.parameters())
    try:
        with patch_environment(ACCELERATE_USE_FSDP=str(shared).lower()):
            accelerator = Accelerator(
                cpu=device == "cpu",
                mixed_precision=settings.precision,
                # A plugin, for ``accelerate launch`` overrules a number. Gradients that wait for the other batches of
                # their step would be whole on every process; shares of them take less.
                gradient_accumulation_plugin=GradientAccumulationPlugin(settings.accumulate, sync_each_batch=shared),
                fsdp_plugin=_fsdp(settings.precision) if shared else None,
                kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            )
    except ValueError as error:
        raise RecipeError(f"training: precision {settings.precision!r} on device {device!r}: {error}") from error
    if device not in ("auto", accelerator.device.type):
        raise RecipeError(f"training: device is {device!r}; expected 'auto', 'cpu' or {accelerator.device.type!r} here")
    if settings.precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would compute in float32
        raise RecipeError("training: precision is 'fp16'; expected 'no' or 'bf16' on a CPU")
    return accelerator


def _fsdp(precision: str) -> FullyShardedDataParallelPlugin:
    """How weights are shared out: as a whole, for nearly all of the largest network is one matrix.

    In bfloat16 they are put together in it, which takes half the memory and traffic; gradients are summed in float32.
    """
    bf16 = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=bf16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="NO_WRAP", reshard_after_forward=True, activation_checkpointing=False,
        mixed_precision_policy=policy,
    )  # fmt: skip


def _adamw(module: nn.Module, settings: TrainingSettings, on: torch.device) -> torch.optim.AdamW:
    """AdamW of the trainable parameters; those of fewer than two axes do not decay unless all do.

    The fused one on CUDA, and on CPUs for large networks: it needs nothing beside the moments, where the plain one
    makes two more copies of a parameter, and is faster. It rounds differently; small networks on a CPU keep the plain
    one, and with it their numbers.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    exempt = [p for p in trainable if p.ndim < 2 and not settings.decay_all]
    decayed = [p for p in trainable if p.ndim >= 2 or settings.decay_all]
    groups = [{"params": exempt, "weight_decay": 0.0}, {"params": decayed, "weight_decay": settings.weight_decay}]
    fused = on.type == "cuda" or (on.type == "cpu" and sum(p.numel() for p in trainable) >= LARGE)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused or None)


def _state(module: nn.Module, averaged: dict[str, Tensor] | None, optimizer: Any, scaler: Any) -> dict[str, Any]:
    """What a checkpoint keeps of the networks and the optimiser; tensors are the ones in use."""
    state = {"module": module.state_dict(), "averaged": averaged, "optimizer": optimizer.state_dict()}
    state["scaler"] = None if scaler is None else scaler.state_dict()
    return {name: part for name, part in state.items() if part is not None}


def _load(
    state: dict[str, Any], module: nn.Module, averaged: dict[str, Tensor] | None, optimizer: Any, scaler: Any
) -> None:
    """Take over what ``_state`` kept, each process its share."""
    for name, value in module.state_dict().items():
        fill(value, state["module"][name])
    for name, value in (averaged or {}).items():
        fill(value, state["averaged"][name])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = state["optimizer"]["state"]
    for number, kept in moments.items():
        like = parameters[number].detach()
        for name, value in kept.items():
            kept[name] = torch.empty_like(like) if value.shape == like.shape else value.clone()
            fill(kept[name], value)
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])


def _put(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Make ``values`` the module's parameters and buffers of these names."""
    for name, value in values.items():
        owner, _, own = name.rpartition(".")
        part = module.get_submodule(owner)
        parameter = own in part._parameters and not isinstance(value, nn.Parameter)
        setattr(part, own, nn.Parameter(value, requires_grad=False) if parameter else value)


@contextmanager
def _holding(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The module with ``values`` in place of its own parameters and buffers while the block lasts."""
    own = module.state_dict(keep_vars=True)
    _put(module, values)
    try:
        yield
    finally:
        _put(module, own)


@contextmanager
def _enough_memory(module: nn.Module, checkpoint: Path | None) -> Iterator[None]:
    """Where memory ends, an error that says what takes less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)):
            raise
        size = sum(p.numel() for p in module.parameters() if p.requires_grad)
        kept = "" if checkpoint is None or not checkpoint.exists() else f". The last checkpoint is kept: {checkpoint}"
        raise RecipeError(
            f"training: out of memory with {size:,} trained parameters ({str(error).splitlines()[0]}); expected "
            f"{16 * size / 2**30:.1f} GiB for weights, gradients and AdamW, and room for activations. Train with "
            "smaller batches (accumulate keeps a step's clips), checkpoint_activations, a smaller width, or share the "
            "network out (accelerate launch --use_fsdp, on one GPU with --fsdp_offload_params true). `neuroclips plan "
            f"RECIPE` says what fits{kept}"
        ) from error


def _seed_module(seed: int, on: torch.device) -> None:
    """Seed what dropout draws from, here and on the device; ``torch.manual_seed`` takes as long as a small step."""
    torch.default_generator.manual_seed(seed)
    if on.type != "cpu":
        torch.get_device_module(on).manual_seed(seed)


def _average(averaged: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    """Move averaged parameters towards the module's: ``decay * averaged + (1 - decay) * module``; copy the rest."""
    parameters = {name: _own(p) for name, p in module.named_parameters()}
    get_ema_multi_avg_fn(decay)([_own(averaged[name]) for name in parameters], list(parameters.values()), None)
    for name, value in module.state_dict().items():
        if name not in parameters:
            averaged[name].copy_(value)


def _own(value: Tensor) -> Tensor:
    """This process's share of a tensor, or all of one that is not shared."""
    return value.to_local() if isinstance(value, DTensor) else value


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
