"""What the brain says about a clip, and the interface of everything that turns it into video."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np

from neuroclips.shapes import Float32, Int, UInt8


@dataclass(frozen=True)
class Guidance:
    """What the brain says about each clip; everything that a video generator may look at.

    Parts that no decoder gave are None.

    ids : clip names; a generator seeds each clip's noise with ``stable_seed(seed, id)``.
    latents : (B, F, C, h, w) scaled latents of the blurry video (alpha guidance).
    tokens : (B, K, D) CLIP tokens of the keyframe.
    flow : (B, 2, g, g) motion at g x g places from each frame to the next, x in widths and y in heights of the frame
        (``video.motion.coarse_flow``); the blurry video moves along it. None where the latents move by themselves, as
        the truth's do.
    prior_tokens : (B, K, D) the diffusion prior's tokens: nearer to those of images, for keyframe generators.
    keyframes : (B, 3, H, W) float in [0, 1] (beta guidance).
    captions : one sentence a clip (gamma guidance).
    first_frames : (B, 3, H, W) float in [0, 1], the last frame of the clip before, where fusion joins them; it takes
        the keyframe's place, at frame 0.
    """

    ids: list[str]
    latents: Float32[np.ndarray, "B F C h w"] | None = None
    tokens: Float32[np.ndarray, "B K D"] | None = None
    prior_tokens: Float32[np.ndarray, "B K D"] | None = None
    flow: Float32[np.ndarray, "B 2 g g"] | None = None
    keyframes: Float32[np.ndarray, "B 3 H W"] | None = None
    captions: list[str] | None = None
    first_frames: Float32[np.ndarray, "B 3 H W"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Int[np.ndarray, " N"]) -> Guidance:
        """The clips at ``index``, every part of them."""
        parts: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        for name, rows in parts.items():
            if rows is not None:
                parts[name] = [rows[i] for i in index] if isinstance(rows, list) else rows[index]
        return Guidance(**parts)


@runtime_checkable
class VideoGenerator(Protocol):
    """Turns guidance into one video a clip. ``name`` appears in scores, file names and the page."""

    name: str

    def generate(self, guidance: Guidance, *, seed: int) -> UInt8[np.ndarray, "B F 3 H W"]: ...
