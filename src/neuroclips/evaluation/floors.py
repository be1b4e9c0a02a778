"""Predictions without brain information: what any score must beat."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from neuroclips.artefacts import in_parts, stable_seed
from neuroclips.errors import DataError
from neuroclips.shapes import Float, Float32, Int, UInt8

_CLIPS_AT_ONCE = 256
T = TypeVar("T")


def mean_frame_videos(training: UInt8[np.ndarray, "B F 3 H W"], n_clips: int) -> Float32[np.ndarray, "N F 3 H W"]:
    """The mean of all training frames, standing still, as the prediction of every clip.

    Float in [0, 1]; a read-only view that takes the memory of one frame.
    """
    frame = (_mean_video(training).mean(axis=0) / 255).astype(np.float32)  # (3, H, W)
    return np.broadcast_to(frame, (n_clips, training.shape[1], *frame.shape))


def mean_video_videos(training: UInt8[np.ndarray, "B F 3 H W"], n_clips: int) -> Float32[np.ndarray, "N F 3 H W"]:
    """The mean training video, frame by frame, as the prediction of every clip. Float in [0, 1]; a read-only view."""
    video = (_mean_video(training) / 255).astype(np.float32)  # (F, 3, H, W)
    return np.broadcast_to(video, (n_clips, *video.shape))


def _mean_video(training: UInt8[np.ndarray, "B F 3 H W"]) -> Float[np.ndarray, "F 3 H W"]:
    total = np.zeros(training.shape[1:])
    for rows in in_parts(len(training), _CLIPS_AT_ONCE, training):
        total += training[rows].sum(axis=0, dtype=np.uint64)  # exact
    return total / len(training)


def as_list(given: T | list[T]) -> list[T]:
    """The predictions of a floor, one or several that are pooled, as a list."""
    return given if isinstance(given, list) else [given]


def shuffled_orders(scene: Int[np.ndarray, " B"], seed: int, n: int) -> list[Int[np.ndarray, " B"]]:
    """For each of n shuffles: whose fMRI every clip receives, always that of a clip of another scene."""
    rngs = (np.random.default_rng(stable_seed(seed, "shuffled fMRI", s)) for s in range(n))
    return [shuffle_across_scenes(scene, rng) for rng in rngs]


def shuffle_across_scenes(scene: Int[np.ndarray, " B"], rng: np.random.Generator) -> Int[np.ndarray, " B"]:
    """A permutation by which no clip receives the fMRI of its own scene; use it as ``responses[permutation]``.

    The scenes are put in random order, each with its clips in time order, and the whole row is turned by at least the
    longest scene: so the clips of a scene receive consecutive clips of other scenes, whatever the scenes' lengths, and
    slow changes of the signal stay in the shuffled data as they are in the real data.

    Raises
    ------
    DataError
        One scene holds more than half of the clips, when no such permutation exists (Hall's theorem).

    >>> scene = np.array([0, 0, 0, 1, 2, 2])
    >>> source = shuffle_across_scenes(scene, np.random.default_rng(0))
    >>> bool((scene[source] != scene).all()), sorted(source.tolist())
    (True, [0, 1, 2, 3, 4, 5])
    """
    numbers, block, counts = np.unique(scene, return_inverse=True, return_counts=True)
    longest, n = (int(counts.max()), len(scene)) if len(scene) else (0, 0)
    if longest == 0 or 2 * longest > n:
        raise DataError(
            f"cannot shuffle across scenes: the longest scene has {longest} of {n} clips; expected at most half"
        )
    order = np.argsort(rng.permutation(len(numbers))[block], kind="stable")  # scenes shuffled, time order kept within
    turn = int(rng.integers(longest, n - longest + 1))
    source = np.empty(n, np.int64)
    source[order] = np.roll(order, turn)
    return source
