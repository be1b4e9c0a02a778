"""Two sets of videos side by side: which clips belong together, and both on one grid of times and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from neuroclips.data.videos import VideoSource, few
from neuroclips.errors import DataError
from neuroclips.shapes import Int, UInt8


@dataclass(frozen=True)
class Pairs:
    """Clip ``truth[i]`` of the truth belongs to clip ``predicted[i]`` of the prediction, by ``rule``."""

    truth: Int[np.ndarray, " B"]
    predicted: Int[np.ndarray, " B"]
    rule: str


def pair(truth: VideoSource, predicted: VideoSource) -> Pairs:
    """Which clips belong together, in the truth's order: those of one name.

    Rows of an array have no names of their own; with an array on one side, clips are paired by their order.

    Raises
    ------
    DataError
        The two have different numbers of clips, or names that do not match; the message says which.
    """
    n = len(truth)
    if set(truth.names) == set(predicted.names):
        place = {name: row for row, name in enumerate(predicted.names)}
        rows = np.array([place[name] for name in truth.names])
        return Pairs(np.arange(n), rows, "by name" if truth.named and predicted.named else "by order")
    problem = f"{predicted.path}: {len(predicted)} clips, where the truth in {truth.path} has {n}"
    if truth.named and predicted.named:
        missing = [name for name in truth.names if name not in set(predicted.names)]
        extra = [name for name in predicted.names if name not in set(truth.names)]
        differ = [f"{what} {', '.join(few(some))}" for what, some in (("missing:", missing), ("extra:", extra)) if some]
        raise DataError(f"{problem}; {'; '.join(differ)}; expected the same names")
    if len(predicted) != n:
        raise DataError(f"{problem}; expected as many")
    return Pairs(np.arange(n), np.arange(n), "by order")


def aligned(source: VideoSource, n_frames: int, height: int, width: int) -> VideoSource:
    """The source at ``n_frames`` frames of ``height`` x ``width`` pixels; what is done is in ``alignment``.

    Frames are those nearest in time when both go from the first moment to the last, ``rint(linspace(0, F - 1, n))``;
    none are made up. Frames are made smaller by area averaging, larger by bicubic interpolation (OpenCV's).

    Raises
    ------
    DataError
        The source has fewer frames, or its frames' aspect ratio differs by more than 1 %.
    """
    _, f, _, h, w = source.shape
    if n_frames > f:
        raise DataError(f"{source.path}: {f} frames a clip; expected at least {n_frames}")
    if abs(w * height / (h * width) - 1) > 0.01:
        raise DataError(
            f"{source.path}: frames of {h} x {w} pixels, to be compared at {height} x {width}; expected one aspect "
            "ratio, to within 1 %: cut both to the same part of the picture first"
        )
    chosen = np.rint(np.linspace(0, f - 1, n_frames)).astype(int)
    rules = [source.alignment] if source.alignment else []
    if n_frames < f:
        rules.append(f"frames {', '.join(map(str, chosen))} of {f}")
    if (height, width) != (h, w):
        how = "area averaging" if _shrinks(source.shape, height, width) else "bicubic interpolation"
        rules.append(f"{h} x {w} resized to {height} x {width} by {how}")

    def read(row: int) -> np.ndarray:
        video = source.read(row)[chosen]
        return video if (height, width) == (h, w) else resized(video, height, width)

    shape = (len(source), n_frames, 3, height, width)
    return replace(source, shape=shape, read=read, alignment="; ".join(rules))


def resized(video: UInt8[np.ndarray, "F 3 H W"], height: int, width: int) -> UInt8[np.ndarray, "F 3 height width"]:
    """A video at another size: smaller by area averaging, larger by bicubic interpolation."""
    import cv2  # a third of a second that only this function should cost

    how = cv2.INTER_AREA if _shrinks(video.shape, height, width) else cv2.INTER_CUBIC
    frames = np.ascontiguousarray(video.transpose(0, 2, 3, 1))
    return np.stack([cv2.resize(frame, (width, height), interpolation=how) for frame in frames]).transpose(0, 3, 1, 2)


def _shrinks(shape: Sequence[int], height: int, width: int) -> bool:
    return height * width < shape[-2] * shape[-1]
