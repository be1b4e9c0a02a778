"""Does the reconstruction move where, and in the direction in which, the film moves?

Optical flow is OpenCV's (Farneback, 2003), computed alike for truth and prediction. A frozen video has no direction and
scores 0, and so does, on average, one whose frames are in random order.
"""

from __future__ import annotations

import cv2
import numpy as np

from neuroclips.errors import DataError
from neuroclips.evaluation.pixels import Videos, as_unit_float
from neuroclips.shapes import Float32

MOVING = 0.5  # pixels between two frames at 64 pixels a side: a pixel of the truth that moves by more is judged
STILL = 0.2  # a prediction that moves by less there has no direction; frozen frames come out at up to 0.15
LEAST_SHARE = 0.01  # of a clip's pixels must move for the clip to be judged
_REFERENCE_SIDE = 64


def optical_flow(videos: Videos) -> Float32[np.ndarray, "B S 2 H W"]:
    """Flow (x, y) in pixels from each frame to the next, of the videos' luminance."""
    if videos.shape[1] < 2:
        raise DataError(f"videos have {videos.shape[1]} frame; motion needs at least 2")
    b, f, _, h, w = videos.shape
    flow, start = np.empty((b, f - 1, 2, h, w), np.float32), np.zeros((h, w, 2), np.float32)
    for i in range(b):
        grey = (as_unit_float(videos[i : i + 1])[0].transpose(0, 2, 3, 1) @ _LUMINANCE * 255).astype(np.uint8)
        for j in range(f - 1):
            found = cv2.calcOpticalFlowFarneback(grey[j], grey[j + 1], start.copy(), 0.5, 3, 11, 3, 7, 1.5, 0)
            flow[i, j] = found.transpose(2, 0, 1)
    return flow


_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def direction_agreement(
    predicted: Float32[np.ndarray, "B S 2 H W"], truth: Float32[np.ndarray, "B S 2 H W"]
) -> Float32[np.ndarray, " B"]:
    """Cosine of the angle between two flows, averaged over the pixels and frames that move in the truth.

    In [-1, 1]; chance and a frozen prediction are 0. A clip of which less than ``LEAST_SHARE`` moves has no direction
    and is 0, for the ceiling too.
    """
    if predicted.shape != truth.shape:
        raise DataError(f"flows have shape {predicted.shape}, the truth {truth.shape}; expected equal (B, S, 2, H, W)")
    scale = truth.shape[-1] / _REFERENCE_SIDE
    speed, predicted_speed = (np.linalg.norm(flow, axis=2) for flow in (truth, predicted))
    judged = speed > MOVING * scale
    cosine = (predicted * truth).sum(axis=2) / np.maximum(predicted_speed * speed, 1e-12)
    cosine = np.where(predicted_speed > STILL * scale, cosine, 0)
    count = judged.sum(axis=(1, 2, 3))
    moves = count >= LEAST_SHARE * judged[0].size
    return np.where(moves, (cosine * judged).sum(axis=(1, 2, 3)) / np.maximum(count, 1), 0).astype(np.float32)


def motion_direction(predicted: Videos, truth: Videos) -> Float32[np.ndarray, " B"]:
    """``direction_agreement`` of the optical flows of two sets of videos; a single frame has no motion and scores 0."""
    if truth.shape[1] < 2:
        return np.zeros(len(truth), np.float32)
    return direction_agreement(optical_flow(predicted), optical_flow(truth))
