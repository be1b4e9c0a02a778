"""Generators without diffusion: the blurry video itself, and the nearest training clip."""

from __future__ import annotations

import numpy as np

from neuroclips.evaluation.agreement import mean_and_sd
from neuroclips.evaluation.identification import correlation_scores
from neuroclips.pretrained.vae import Vae
from neuroclips.shapes import Float, UInt8
from neuroclips.video.guidance import Guidance
from neuroclips.video.motion import moved


class BlurryGenerator:
    """Decodes the predicted latents, frame by frame, and moves them along the decoded flow: colour, layout and motion
    without content."""

    name = "blurry"

    def __init__(self, vae: Vae):
        self.vae = vae

    def generate(self, guidance: Guidance, *, seed: int) -> UInt8[np.ndarray, "B F 3 H W"]:
        assert guidance.latents is not None, "blurry needs latents"
        frames = self.vae.decode(guidance.latents)
        return frames if guidance.flow is None else moved(frames, guidance.flow)


class NearestGenerator:
    """Shows, unchanged, the training clip whose tokens correlate best with the predicted ones.

    Retrieval is the baseline that any generative method must beat (``docs/evaluation.md``).

    tokens : (T, K, D) of the training clips; frames : (T, F, 3, H, W) their frames. Both may be memory-mapped.
    """

    name = "nearest"

    def __init__(self, tokens: Float[np.ndarray, "T K D"], frames: UInt8[np.ndarray, "T F 3 H W"]):
        self.tokens, self.frames = tokens, frames
        self.mean = mean_and_sd(tokens)[0]  # tokens share a large constant part that says nothing about the clip

    def find(self, tokens: Float[np.ndarray, "B K D"]) -> np.ndarray:
        """Index (B,) of the training clip for each predicted token array."""
        return correlation_scores(tokens, self.tokens, self.mean).argmax(axis=1)

    def generate(self, guidance: Guidance, *, seed: int) -> UInt8[np.ndarray, "B F 3 H W"]:
        assert guidance.tokens is not None, "nearest needs tokens"
        return np.asarray(self.frames[self.find(guidance.tokens)])
