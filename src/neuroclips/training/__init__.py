"""Training of the neural decoders and the mini networks: ``loop.train``, and how to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from neuroclips.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train; the loop's only knobs.

    Parameters
    ----------
    steps : optimiser steps. minutes : a limit of time that ends the schedule, too, whichever comes first; with one,
        results depend on the machine's speed.
    learning_rate : its highest value. warmup : share of the run in which it rises; then a cosine takes it to zero.
    weight_decay : of AdamW. Norms and biases (parameters of fewer than two axes) are exempt as in MindEye2's method;
        ``decay_all`` decays them, too.
    clip_norm : largest norm of the gradient; ``inf`` does not clip.
    precision : of the forward pass; weights, optimiser and validation stay in float32.
    accumulate : batches of one optimiser step.
    checkpoint_activations : keep the inputs of a network's blocks only and compute the rest of their activations again
        for the gradient: less memory, more time, the same numbers. The diffusion prior has such blocks; networks
        without any ignore it.
    ema : decay of the averaged weights, which are then validated and returned; None does not average. Step n averages
        with ``min(ema, (1 + n) / (10 + n))``, so that short runs forget their start. Averages take as much memory as
        the weights.
    validate_every : steps between rows of the curve, and validations.
    patience : validations without a new best before the run stops; None never stops early.
    save_every_s : seconds between checkpoints; more where saving takes long, so that it takes a twentieth of the time
        at most. 0 saves after every step.

    Raises ``RecipeError`` for values out of range.
    """

    steps: int
    learning_rate: float
    seed: int
    validate_every: int
    patience: int | None = None
    weight_decay: float = 0.01
    decay_all: bool = False
    warmup: float = 0.02
    clip_norm: float = 1.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: int = 1
    checkpoint_activations: bool = False
    ema: float | None = None
    minutes: float = math.inf
    save_every_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "validate_every", "patience", "clip_norm", "accumulate", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RecipeError(f"training: {name} is {value}; expected more than 0")
        for name, value in (("warmup", self.warmup), ("ema", self.ema)):
            if value is not None and not 0 <= value < 1:
                raise RecipeError(f"training: {name} is {value}; expected at least 0 and less than 1")

    def rate(self, done: float) -> float:
        """Learning rate when the share ``done`` of the run, 0 to 1, is over."""
        if done < self.warmup:
            return self.learning_rate * done / self.warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))
