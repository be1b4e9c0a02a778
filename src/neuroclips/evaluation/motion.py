"""Does the reconstruction move where, and in the direction in which, the film moves?

Optical flow is OpenCV's (Farneback, 2003), computed alike for truth and prediction. A frozen video has no direction and
scores 0, and so does, on average, one whose frames are in random order: ``frame_shuffled`` makes that null.

``frame_similarity`` is the field's "CLIP-pcc". It never looks at the truth, so a frozen frame wins it; print it only
beside the truth's own value and ``frame_similarity_difference``.
"""

from __future__ import annotations

import cv2
import numpy as np

from neuroclips.errors import DataError
from neuroclips.evaluation.pixels import Videos, as_unit_float
from neuroclips.shapes import Float, Float32, UInt8

Frames = UInt8[np.ndarray, "B F ..."] | Float[np.ndarray, "B F ..."]

MOVING = 0.5  # pixels between two frames at 64 pixels a side: a pixel of the truth that moves by more is judged
STILL = 0.2  # a prediction that moves by less there has no direction; frozen frames come out at up to 0.15
LEAST_SHARE = 0.01  # of a clip's pixels must move for the clip to be judged
_REFERENCE_SIDE = 64  # larger frames are reduced to it: in blurry ones the flow at 256 pixels misses most of the motion


def optical_flow(videos: Videos) -> Float32[np.ndarray, "B S 2 h w"]:
    """Flow (x, y) in pixels from each frame to the next, of the videos' luminance.

    Frames of more than 64 pixels a side are reduced to that (area average, proportions kept), and the flow is in pixels
    of the reduced frames. The method looks for motion within windows of fixed size, and a large blurry frame is flat
    there; reduced, frames of every size are judged alike.
    """
    if videos.shape[1] < 2:
        raise DataError(f"videos have {videos.shape[1]} frame; motion needs at least 2")
    b, f, _, h, w = videos.shape
    share = min(1.0, _REFERENCE_SIDE / max(h, w))
    h, w = max(1, round(h * share)), max(1, round(w * share))
    flow, start = np.empty((b, f - 1, 2, h, w), np.float32), np.zeros((h, w, 2), np.float32)
    for i in range(b):
        luminance = as_unit_float(videos[i : i + 1])[0].transpose(0, 2, 3, 1) @ _LUMINANCE * 255
        if share < 1:
            luminance = np.stack([cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA) for frame in luminance])
        grey = luminance.astype(np.uint8)
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
    scale = _pixels_per_reference(predicted, truth)
    speed, predicted_speed = (np.linalg.norm(flow, axis=2) for flow in (truth, predicted))
    judged = speed > MOVING * scale
    cosine = (predicted * truth).sum(axis=2) / np.maximum(predicted_speed * speed, 1e-12)
    cosine = np.where(predicted_speed > STILL * scale, cosine, 0)
    count = judged.sum(axis=(1, 2, 3))
    moves = count >= LEAST_SHARE * judged[0].size
    return np.where(moves, (cosine * judged).sum(axis=(1, 2, 3)) / np.maximum(count, 1), 0).astype(np.float32)


def end_point_error(
    predicted: Float32[np.ndarray, "B S 2 H W"], truth: Float32[np.ndarray, "B S 2 H W"]
) -> Float32[np.ndarray, " B"]:
    """Length of the difference of two flows, averaged over all pixels and frames; 0 is best.

    In pixels between two frames at 64 pixels a side. A frozen prediction costs about the mean speed of the truth, less
    than one that moves the wrong way: read it beside the mean-frame floor and ``direction_agreement``.
    """
    scale = _pixels_per_reference(predicted, truth)
    return np.array([np.linalg.norm(p - t, axis=1).mean() / scale for p, t in zip(predicted, truth)], np.float32)


def _pixels_per_reference(predicted: np.ndarray, truth: np.ndarray) -> float:
    if predicted.shape != truth.shape:
        raise DataError(f"flows have shape {predicted.shape}, the truth {truth.shape}; expected equal (B, S, 2, H, W)")
    return truth.shape[-1] / _REFERENCE_SIDE


def frame_shuffled(videos: Frames, rng: np.random.Generator) -> Frames:
    """The null for motion: each clip's frames in a random order, every order but the true one equally likely.

    Takes videos, or anything else with a value a frame (B, F, ...), such as embeddings.
    It keeps what every frame shows and loses how one follows from another. Shuffle the *prediction*; a score of motion
    that stays the same has not seen motion.
    """
    b, f = videos.shape[:2]
    if f < 2:
        raise DataError(f"videos have {f} frame; other orders of the frames need at least 2")
    order = np.tile(np.arange(f), (b, 1))
    while (same := (order == np.arange(f)).all(axis=1)).any():
        order[same] = rng.permuted(order[same], axis=1)
    return videos[np.arange(b)[:, None], order]


def frame_similarity(features: Float[np.ndarray, "B F D"]) -> Float32[np.ndarray, " B"]:
    """Cosine similarity of the embeddings of consecutive frames, averaged over a clip, in [-1, 1].

    The field calls it "CLIP-pcc" when the embeddings are CLIP's, and reads higher as better. It says how alike
    neighbouring frames are, not whether the film was like that: a frozen video scores 1. An embedding of zeros has no
    direction and scores 0.
    """
    if features.shape[1] < 2:
        raise DataError(f"features have {features.shape[1]} frame; the similarity of neighbours needs at least 2")
    if not np.isfinite(features).all():
        raise DataError("features hold values that are not finite; expected finite embeddings")
    length = np.linalg.norm(features.astype(np.float64), axis=2, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    return (unit[:, 1:] * unit[:, :-1]).sum(axis=2).mean(axis=1).astype(np.float32)


def frame_similarity_difference(
    predicted: Float[np.ndarray, "B F D"], truth: Float[np.ndarray, "B F D"]
) -> Float32[np.ndarray, " B"]:
    """How far the ``frame_similarity`` of the prediction is from the truth's; 0 is best.

    Both sides come from one encoder. A frozen video costs 1 minus the truth's similarity.
    """
    if predicted.shape != truth.shape:
        raise DataError(f"features have shape {predicted.shape}, the truth {truth.shape}; expected equal (B, F, D)")
    return np.abs(frame_similarity(predicted) - frame_similarity(truth))
