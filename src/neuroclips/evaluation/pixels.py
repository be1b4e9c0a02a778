"""Pixel agreement of two sets of videos, one value a clip (the mean over its frames).

These scores reward blur and say little alone: a flat grey frame can beat a sharp wrong one. They are printed beside
the mean-frame floor, never without it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import uniform_filter

from neuroclips.errors import DataError
from neuroclips.shapes import Float, Float32, UInt8

Videos = UInt8[np.ndarray, "B F 3 H W"] | Float[np.ndarray, "B F 3 H W"]
PerClip = Float32[np.ndarray, " B"]

_CLIPS_AT_ONCE = 16
_WINDOW = 7
_MSE_OF_8_BITS = (1 / 255) ** 2 / 12  # mean squared rounding error of uint8 frames, as a share of the range


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
    x, y = (side.reshape(len(side), -1) - side.mean(axis=(1, 2, 3), dtype=np.float64)[:, None] for side in (x, y))
    sd_x, sd_y = x.std(axis=1), y.std(axis=1)
    flat = (sd_x < 1e-6) | (sd_y < 1e-6)  # one grey level in one pixel of 64 x 64 is 4e-5
    return np.where(flat, 0, (x * y).mean(axis=1) / np.where(flat, 1, sd_x * sd_y))


def _frame_ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    def local_mean(image: np.ndarray) -> np.ndarray:
        edge = _WINDOW // 2
        return uniform_filter(image, size=(1, 1, _WINDOW, _WINDOW))[..., edge:-edge, edge:-edge]

    c1, c2 = 0.01**2, 0.03**2
    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = unbiased * (local_mean(x * x) - mean_x**2)
    var_y = unbiased * (local_mean(y * y) - mean_y**2)
    cov = unbiased * (local_mean(x * y) - mean_x * mean_y)
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(axis=(1, 2, 3), dtype=np.float64)


def _frame_psnr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    mse = np.square(x - y).mean(axis=(1, 2, 3), dtype=np.float64)
    return -10 * np.log10(np.maximum(mse, _MSE_OF_8_BITS))
