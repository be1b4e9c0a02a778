"""Pixel agreement of two sets of videos, one value a clip (the mean over its frames).

These scores reward blur and say little alone: a flat grey frame can beat a sharp wrong one. They are printed beside
the mean-frame floor, never without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np

from neuroclips.errors import DataError
from neuroclips.shapes import Float, Float32, UInt8

Videos = UInt8[np.ndarray, "B F 3 H W"] | Float[np.ndarray, "B F 3 H W"]
PerClip = Float32[np.ndarray, " B"]

_CLIPS_AT_ONCE = 16
_WINDOW = 7
_MSE_OF_8_BITS = (1 / 255) ** 2 / 12  # mean squared rounding error of uint8 frames, as a share of the range


@runtime_checkable
class VideoSet(Protocol):
    """Videos (B, F, 3, H, W), uint8 or float in [0, 1]: an array, or a source that is read when it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Any, /) -> Any: ...


def pixel_correlation(predicted: Videos, truth: Videos) -> PerClip:
    """Pearson correlation over the C*H*W values of each frame, averaged over frames. A constant frame scores 0."""
    return _per_clip(_frame_correlation, predicted, truth)


def ssim(predicted: Videos, truth: Videos) -> PerClip:
    """Structural similarity, variant "RGB, 7x7 uniform window, data range 1": Wang et al. 2004, averaged over frames.

    Equals ``skimage.metrics.structural_similarity(x, y, channel_axis=0, data_range=1.0)`` of each frame in [0, 1]
    (sample covariance, K1 = 0.01, K2 = 0.03, the border of 3 pixels left out), for a whole batch at once.
    """
    if min(truth.shape[-2:]) < _WINDOW:
        raise DataError(f"frames are {truth.shape[-2]} x {truth.shape[-1]} pixels; SSIM needs at least 7 x 7")
    return _per_clip(_frame_ssim, predicted, truth)


def psnr(predicted: Videos, truth: Videos) -> PerClip:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE) of each frame in [0, 1], averaged over frames.

    An error below the rounding of 8-bit frames, (1/255)^2 / 12, counts as that: at most 58.9 dB, so that one perfect
    frame does not make the mean infinite.
    """
    return _per_clip(_frame_psnr, predicted, truth)


def ssim_by_columns(predicted: Videos, truth: Videos) -> PerClip:
    """SSIM of grey frames with every column of pixels compared by itself, windows of 7 x 1: the field's odd variant.

    One released code hands a grey image (H, W) to scikit-image and calls its last axis "channels", so that W signals of
    length H are compared. Higher than SSIM for the same pictures; here to recognise numbers, not to use. Equals
    ``structural_similarity(x, y, channel_axis=-1, data_range=1.0)`` of luminance frames.
    """
    if truth.shape[-2] < _WINDOW:
        raise DataError(f"frames are {truth.shape[-2]} pixels high; SSIM by columns needs at least 7")
    return _per_clip(_frame_ssim_by_columns, predicted, truth)


def as_unit_float(videos: Videos) -> Float32[np.ndarray, "B F 3 H W"]:
    """uint8 in [0, 255] or float in [0, 1], to float32 in [0, 1]; other ranges are refused."""
    if videos.dtype == np.uint8:
        return videos.astype(np.float32) / np.float32(255)
    low, high = float(videos.min(initial=0)), float(videos.max(initial=0))
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
        raise DataError(f"float videos span [{low:g}, {high:g}]; expected finite values in [0, 1], or uint8")
    return videos.astype(np.float32)


def _per_clip(metric: Callable[[np.ndarray, np.ndarray], np.ndarray], predicted: Videos, truth: Videos) -> PerClip:
    """Apply a metric of (N, 3, H, W) pairs to all frames, some clips at a time, and average over frames."""
    if predicted.shape != truth.shape:
        raise DataError(f"videos have shape {predicted.shape}, the truth {truth.shape}; expected equal (B, F, 3, H, W)")
    result = np.empty(len(truth), np.float32)
    for start in range(0, len(truth), _CLIPS_AT_ONCE):
        part = slice(start, start + _CLIPS_AT_ONCE)
        x, y = as_unit_float(predicted[part]), as_unit_float(truth[part])
        frames = metric(x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:]))
        result[part] = frames.reshape(x.shape[:2]).mean(axis=1)
    return result


def _frame_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([_correlation_of_one(a.ravel(), b.ravel()) for a, b in zip(x, y)])


def _correlation_of_one(x: np.ndarray, y: np.ndarray) -> float:
    x, y = (side - side.mean(dtype=np.float64).astype(np.float32) for side in (x, y))
    sd_x, sd_y = (np.sqrt(float(side @ side) / len(side)) for side in (x, y))
    if sd_x < 1e-6 or sd_y < 1e-6:  # one grey level in one pixel of 64 x 64 is 4e-5
        return 0.0
    return float(x @ y) / len(x) / (sd_x * sd_y)


def _frame_ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([_ssim_of_one(a, b) for a, b in zip(x, y)])  # a frame fits into the cache, a batch does not


def _ssim_of_one(x: np.ndarray, y: np.ndarray, width: int = _WINDOW) -> float:
    edge, side, c1, c2 = _WINDOW // 2, width // 2, 0.01**2, 0.03**2
    unbiased = _WINDOW * width / (_WINDOW * width - 1)

    def local_mean(image: np.ndarray) -> np.ndarray:
        # Channels lie under one another; windows that reach from one into the next are cut off with the border.
        tall = cv2.boxFilter(image.reshape(-1, image.shape[-1]), -1, (width, _WINDOW))
        return tall.reshape(image.shape)[..., edge:-edge, side : image.shape[-1] - side]

    mean_x, mean_y = local_mean(x), local_mean(y)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    cov = unbiased * (local_mean(x * y) - product)
    variances = unbiased * (local_mean(x * x + y * y) - squares)  # of x and y, summed
    similarity = (2 * product + c1) * (2 * cov + c2) / ((squares + c1) * (variances + c2))
    return float(similarity.mean(dtype=np.float64))


def _frame_psnr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    def mse(a: np.ndarray, b: np.ndarray) -> float:
        difference = (a - b).ravel()
        return float(difference @ difference) / difference.size

    return -10 * np.log10(np.maximum([mse(a, b) for a, b in zip(x, y)], _MSE_OF_8_BITS))


def _frame_ssim_by_columns(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    grey = np.array([0.299, 0.587, 0.114], np.float32)
    x, y = (np.einsum("nchw,c->nhw", side, grey) for side in (x, y))
    return np.array([_ssim_of_one(a, b, width=1) for a, b in zip(x, y)])
