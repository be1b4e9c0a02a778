"""Motion that the brain told: a coarse optical flow of each clip, and pictures that move along it.

The perception decoder says what is where; what moves within two seconds is lost in it, since a picture and the same
picture a little to the left are far apart in latents and near in fMRI. Flow itself is decoded well by ridge: areas such
as MT respond to direction. So it is a target of its own, and the blurry video moves along what was decoded.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from neuroclips.errors import DataError
from neuroclips.shapes import Float32, UInt8

CELLS = 4  # a side of the net of places that flow is decoded at
# As ``VideoRecipe.motion_gain``: ridge shrinks what it is unsure of, and a cell's mean is less than what moves in it.
GAIN = 2.0
_SIDE, _FASTEST = 64, 0.125  # frames are reduced to so many pixels; flow is cut at so many widths a frame


def coarse_flow(videos: UInt8[np.ndarray, "B F 3 H W"]) -> Float32[np.ndarray, "B 2 g g"]:
    """Mean optical flow of each place of a clip, from each frame to the next: x in widths, y in heights of the frame.

    Dense inverse search (Kroeger et al. 2016) on luminance at 64 pixels a side. Scores of motion use another method
    (``evaluation.motion``), so that none is judged by its own teacher.
    """
    b, f, _, h, w = videos.shape
    if f < 2:
        raise DataError(f"clips have {f} frame; motion needs at least 2")
    share = min(1.0, _SIDE / max(h, w))
    size = max(round(w * share), 1), max(round(h * share), 1)
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found, start = np.empty((b, 2, CELLS, CELLS), np.float32), np.zeros((*size[::-1], 2), np.float32)
    for i, video in enumerate(videos):
        grey = [
            cv2.resize(cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY), size,
                       interpolation=cv2.INTER_AREA)
            for frame in video
        ]  # fmt: skip
        steps = np.stack([search.calc(a, b, start.copy()) for a, b in pairwise(grey)]) / np.array(size, np.float32)
        mean = steps.clip(-_FASTEST, _FASTEST).mean(axis=0)
        found[i] = cv2.resize(mean, (CELLS, CELLS), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    return found


def moved(
    videos: UInt8[np.ndarray, "B F 3 H W"] | Float32[np.ndarray, "B F 3 H W"],
    flow: Float32[np.ndarray, "B 2 g g"],
    *,
    still: float | int | None = None,
    gain: float | int = GAIN,
) -> np.ndarray:
    """Videos whose frame f is displaced by (f - still) times the flow, in the type of the videos.

    still : the frame that stays as it is; None is the middle of the video. gain : of the flow.
    What moves in from outside mirrors the picture's rim.
    """
    b, f, _, h, w = videos.shape
    if flow.shape[:2] != (b, 2):
        raise DataError(f"a flow of shape {flow.shape} for {b} videos; expected ({b}, 2, g, g)")
    still = (f - 1) / 2 if still is None else still
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    out = np.empty_like(videos)
    for i, video in enumerate(videos):
        dx, dy = (gain * side * cv2.resize(part, (w, h), interpolation=cv2.INTER_CUBIC)
                  for part, side in zip(np.asarray(flow[i], np.float32), (w, h)))  # fmt: skip
        for number, frame in enumerate(video):
            away = np.float32(number - still)
            picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
            shown = cv2.remap(picture, x - away * dx, y - away * dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            out[i, number] = shown.transpose(2, 0, 1)
    return out
