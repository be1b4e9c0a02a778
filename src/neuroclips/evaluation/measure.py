"""Pixel and motion scores of many sets of videos against one truth, some clips at a time.

A full test set (1,200 clips of 16 frames at 256 pixels) is 3.8 GB. So the truth and every set are read in equal small
steps: frames are decoded once, the truth's optical flow is computed once, and memory does not grow with the film.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuroclips.errors import DataError
from neuroclips.evaluation.floors import as_list
from neuroclips.evaluation.motion import direction_agreement, end_point_error, frame_shuffled, optical_flow
from neuroclips.evaluation.pixels import VideoSet, as_unit_float, pixel_correlation, psnr, ssim, ssim_by_columns
from neuroclips.shapes import Float32

_VALUES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class About:
    """What a metric is: its unit, its variant, and whether more is better."""

    unit: str
    note: str
    higher_is_better: bool = True


PIXEL_METRICS: dict[str, tuple[Callable[..., np.ndarray], About]] = {
    "pixel correlation": (pixel_correlation, About("", "per frame over RGB values, mean over frames")),
    "SSIM": (ssim, About("", "RGB, 7x7 uniform window, data range 1")),
    "PSNR": (psnr, About("dB", "frames in [0, 1], at most 58.9 dB")),
}
LEGACY_METRICS: dict[str, tuple[Callable[..., np.ndarray], About]] = {
    "SSIM by columns": (ssim_by_columns, About("", "grey, each column of pixels by itself, as one released code does")),
}
FLOW_METRICS: dict[str, tuple[Callable[..., np.ndarray], About]] = {
    "motion direction": (direction_agreement, About("", "cosine of optical flows where the truth moves; chance 0")),
    "motion error": (end_point_error, About("", "end-point error of optical flows, pixels of 64 a side", False)),
}


@dataclass(frozen=True)
class Measured:
    """Scores of one set of videos (or of several that are pooled), clip by clip.

    values : metric to (B,), or (S, B) for S pooled sets.
    frames_shuffled : metrics of motion for the same videos with every clip's frames in another order, where asked for.
    """

    values: dict[str, np.ndarray]
    about: Mapping[str, About]
    frames_shuffled: dict[str, np.ndarray] = field(default_factory=dict)


def measure_videos(
    sets: Mapping[str, VideoSet | list[VideoSet]],
    truth: VideoSet,
    *,
    frames_shuffled: Collection[str] = (),
    seed: int = 0,
    legacy: bool = False,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Measured]:
    """Every metric of every set, in one pass over the clips.

    Parameters
    ----------
    sets : by name, (B, F, 3, H, W) as the truth; several in a list (such as shuffles) are pooled clip by clip.
    frames_shuffled : sets for which motion is also measured with each clip's frames in another order.
    seed : of those orders; a clip's depends on its number, not on ``batch``.
    legacy : also the field's odd ones.
    batch : clips read at a time, by default about 16 MB of floats; two batches are at work at once.
    progress : called with (clips done, clips).

    Raises
    ------
    DataError
        A set's shape is not the truth's; a truth of fewer than 7 pixels a side (SSIM has no window).
    """
    flat = {name: as_list(given) for name, given in sets.items()}
    n = truth.shape[0]
    batch = batch or max(1, _VALUES_AT_ONCE // int(np.prod(truth.shape[1:])))
    for name, each in flat.items():
        for videos in each:
            if tuple(videos.shape) != tuple(truth.shape):
                raise DataError(
                    f"videos {name!r} have shape {tuple(videos.shape)}, the truth {tuple(truth.shape)}; expected equal "
                    "(B, F, 3, H, W)"
                )
    moving = truth.shape[1] > 1
    metrics = PIXEL_METRICS | (LEGACY_METRICS if legacy else {}) | (FLOW_METRICS if moving else {})
    found: dict[str, list[dict[str, Float32[np.ndarray, " B"]]]] = {
        name: [_empty(n, metrics) for _ in each] for name, each in flat.items()
    }
    null = {name: _empty(n, FLOW_METRICS) for name in frames_shuffled} if moving else {}

    def work(start: int) -> int:
        part = slice(start, min(start + batch, n))
        goal = _Seen(truth[part], moving)
        for name, each in flat.items():
            for place, videos in enumerate(each):
                frames = videos[part]
                _measure(_Seen(frames, moving), goal, found[name][place], part)
                if name in null:
                    numbers = range(part.start, part.stop)
                    orders = [np.random.default_rng([seed, number]) for number in numbers]
                    other = [frame_shuffled(frames[i : i + 1], rng) for i, rng in enumerate(orders)]
                    _measure(_Seen(np.concatenate(other), moving), goal, null[name], part)
        return part.stop

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:  # OpenCV and numpy leave Python's lock
        for done in _in_order(pool, work, range(0, n, batch)):
            if progress is not None:
                progress(done, n)
    about = {name: entry[1] for name, entry in metrics.items()}
    result = {}
    for name, parts in found.items():
        pooled = isinstance(sets[name], list)
        values = {metric: np.stack([p[metric] for p in parts]) if pooled else parts[0][metric] for metric in metrics}
        result[name] = Measured(values, about, null.get(name, {}))
    return result


class _Seen:
    """Some clips as floats, with their optical flow."""

    def __init__(self, videos: Any, moving: bool):
        self.frames = as_unit_float(np.asarray(videos))
        self.flow = optical_flow(self.frames) if moving else None


def _empty(n: int, metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.empty(n, np.float32) for name in metrics}


def _measure(seen: _Seen, goal: _Seen, into: dict[str, np.ndarray], part: slice) -> None:
    for name, values in into.items():
        if name in FLOW_METRICS:
            values[part] = FLOW_METRICS[name][0](seen.flow, goal.flow)
        else:
            values[part] = (PIXEL_METRICS | LEGACY_METRICS)[name][0](seen.frames, goal.frames)


def _in_order(pool: ThreadPoolExecutor, work: Callable[[int], int], starts: Sequence[int]) -> Iterator[int]:
    """Results in order; an error, or Ctrl-C, drops what has not begun."""
    waiting = [pool.submit(work, start) for start in starts]
    try:
        for each in waiting:
            yield each.result()
    finally:
        for each in waiting:
            each.cancel()
