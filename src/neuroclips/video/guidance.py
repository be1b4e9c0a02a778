"""What the brain says about a clip, and the interface of everything that turns it into video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from neuroclips.shapes import Float32, UInt8


@dataclass(frozen=True)
class Guidance:
    """What the brain says about each clip; everything that a video generator may look at.

    Parts that no decoder gave are None.

    ids : clip names; a generator seeds each clip's noise with ``stable_seed(seed, id)``.
    latents : (B, F, C, h, w) scaled latents of the blurry video (alpha guidance).
    tokens : (B, K, D) CLIP tokens of the keyframe.
    prior_tokens : (B, K, D) the diffusion prior's tokens: nearer to those of images, for keyframe generators.
    keyframes : (B, 3, H, W) float in [0, 1] (beta guidance).
    captions : one sentence a clip (gamma guidance).
    """

    ids: list[str]
    latents: Float32[np.ndarray, "B F C h w"] | None = None
    tokens: Float32[np.ndarray, "B K D"] | None = None
    prior_tokens: Float32[np.ndarray, "B K D"] | None = None
    keyframes: Float32[np.ndarray, "B 3 H W"] | None = None
    captions: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@runtime_checkable
class VideoGenerator(Protocol):
    """Turns guidance into one video a clip. ``name`` appears in scores, file names and the page."""

    name: str

    def generate(self, guidance: Guidance, *, seed: int) -> UInt8[np.ndarray, "B F 3 H W"]: ...
