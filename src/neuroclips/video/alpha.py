"""Alpha guidance: where on the noise schedule the blurry video enters, and how denoising starts from it.

Three ways (paper section 3.3, equation 5; method d.4), with z the blurry video's latents, e ~ N(0, 1), abar the
scheduler's cumulative signal power, T the first timestep of the full schedule, and N the training steps:

=========  ===============================================================================  =======================
mode       start                                                                            steps
=========  ===============================================================================  =======================
sdedit     sqrt(abar_t) z + sqrt(1 - abar_t) e, t the first step that ``strength`` keeps    from t on
paper      sqrt(abar_T / abar_s) z + sqrt(1 - abar_T / abar_s) e, s = strength N (eq. 5)    all
released   sqrt(abar_T) z + sqrt(1 - abar_T) e, whatever the strength                       all
=========  ===============================================================================  =======================

Only ``sdedit`` (Meng et al. 2022) lets the strength decide how much of the blurry video stays; it is the default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from neuroclips.errors import NeuroClipsError

StartMode = Literal["sdedit", "paper", "released"]


@dataclass(frozen=True)
class Start:
    """Denoising starts from ``signal * z + noise * e``, in the scheduler's own units, and runs ``timesteps``."""

    signal: float
    noise: float
    timesteps: torch.Tensor


def place(scheduler: Any, strength: float | int, mode: StartMode = "sdedit") -> Start:
    """How denoising starts from a blurry video, for any diffusers scheduler whose timesteps are set.

    Parameters
    ----------
    strength : share of the noise schedule that is run, in [0, 1]. 0 keeps the blurry video as it is (no timesteps);
        1 starts where generation from pure noise does. For ``paper``, theta of equation 5.

    Raises ``NeuroClipsError`` for a strength out of range, an unknown mode, or equation 5 with a scheduler that has no
    cumulative signal power (flow matching).
    """
    if mode not in get_args(StartMode):
        raise NeuroClipsError(f"start is {mode!r}; expected one of {', '.join(get_args(StartMode))}")
    if not 0 <= strength <= 1:
        raise NeuroClipsError(f"strength is {strength}; expected 0 (the blurry video itself) to 1 (all noise)")
    timesteps, order = scheduler.timesteps, scheduler.order
    if mode == "sdedit":
        # A scheduler of order 2 lists (all but the first of) its timesteps twice; a step is a pair of them.
        steps = math.ceil(len(timesteps) / order)
        timesteps = timesteps[(steps - math.floor(steps * strength + 0.5)) * order :]
        if len(timesteps) == 0:
            return Start(1.0, 0.0, timesteps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(len(scheduler.timesteps) - len(timesteps))
    signal, noise = _coefficients(scheduler, timesteps[:1])
    if mode == "paper":
        if not hasattr(scheduler, "alphas_cumprod"):
            raise NeuroClipsError(f"start 'paper' (equation 5) is not defined for {type(scheduler).__name__}")
        power = scheduler.alphas_cumprod
        first = round(float(timesteps[0]))
        ratio = float(power[first] / power[min(round(strength * len(power)), first)])
        units = signal / math.sqrt(float(power[first]))  # 1 where the scheduler keeps the variance, else 1 / sqrt(abar)
        signal, noise = units * math.sqrt(ratio), units * math.sqrt(1 - ratio)
    return Start(signal, noise, timesteps)


def _coefficients(scheduler: Any, t: torch.Tensor) -> tuple[float, float]:
    """Signal and noise of the scheduler's ``add_noise`` at a timestep (1,)."""
    one, zero = torch.ones(1, 1, device=t.device), torch.zeros(1, 1, device=t.device)
    return float(scheduler.add_noise(one, zero, t)), float(scheduler.add_noise(zero, one, t))


def at_frames(video: torch.Tensor, n_frames: int) -> torch.Tensor:
    """Video (B, F, ...) at ``n_frames`` equally spaced moments from its first to its last frame, linearly blended.

    Six frames become 16 by two blends between neighbours: frame k of the six is frame 3 k of the 16 (method d.4).
    """
    where = torch.linspace(0, video.shape[1] - 1, n_frames, dtype=torch.float64)
    before = where.floor().long().clamp(max=max(video.shape[1] - 2, 0))
    share = (where - before).to(video).reshape(-1, *[1] * (video.ndim - 2))
    after = (before + 1).clamp(max=video.shape[1] - 1)
    return torch.lerp(video[:, before], video[:, after], share.expand_as(video[:1, before]))
