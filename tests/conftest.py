"""Fixtures that every part may use. All axes differ in size, so that swapped axes show."""

import jaxtyping
import numpy as np
import pytest

from neuroclips.data.clips import TestClips, TrainingClips, ValidationClips


@pytest.fixture
def unchecked_types():
    """Turn the shape and type checker off, to meet the errors that users meet."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def make_clips():
    """Clips of a planted brain: ``bold = gain * (feature @ map) + noise``, 5 features a clip, a scene every 4 clips."""

    def make(split="train", n_segments=4, clips=13, repeats=2, voxels=41, signal=1.0, seed=0):
        kind = {"train": TrainingClips, "validation": ValidationClips, "test": TestClips}[split]
        truth = np.random.default_rng(99).normal(size=(5, voxels)).astype(np.float32)
        rng = np.random.default_rng(seed)
        n = n_segments * clips
        features = rng.normal(size=(n, 5)).astype(np.float32)
        noise = rng.normal(size=(n, repeats, voxels)).astype(np.float32)
        bold = (signal * (features @ truth)[:, None] + noise) / np.sqrt(1 + 5 * signal**2)
        return kind(
            bold=bold.astype(np.float32),
            present=np.ones((n, repeats), bool),
            frames=rng.integers(0, 256, (n, 6, 3, 32, 32), dtype=np.uint8),
            segment=np.repeat(np.arange(n_segments), clips),
            onset=np.tile(np.arange(clips) * 2.0, n_segments),
            scene=np.arange(n) // 4,
            segments=tuple(f"{split}{i}" for i in range(n_segments)),
            reliability=np.full(voxels, 5 * signal**2 / (1 + 5 * signal**2), np.float32),
        ), features

    return make
