"""Small MP4 and JPEG files in memory, for pages that carry their videos and pictures with them."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import cv2
import numpy as np

from neuroclips.errors import DataError
from neuroclips.shapes import UInt8

_SMALL = 160  # pixels; below this, frames are doubled so that 4:2:0 chroma keeps one colour a source pixel
# Several threads, or macroblock-tree rate control, and x264 now and then writes other bytes for the same frames.
_SETTINGS = {"crf": "21", "preset": "slow", "threads": "1", "mbtree": "0"}
_BT601 = 6  # smpte170m: the matrix that browsers assume for small videos, also written into the file


def encode_mp4(video: UInt8[np.ndarray, "F 3 H W"], seconds: float | int) -> bytes:
    """H.264 in MP4, playing the F frames at equal distances over ``seconds``; every browser can show it.

    Small frames are doubled by repetition; odd sizes lose their last row or column (H.264 wants even ones).
    The same frames give the same bytes.
    """
    if len(video) == 0 or seconds <= 0:
        raise DataError(f"cannot encode {len(video)} frames over {seconds} s; expected at least one, over some time")
    video = _doubled(video)
    height, width = (size - size % 2 for size in video.shape[-2:])
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(len(video) / seconds).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options=_SETTINGS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT601
        for image in video[..., :height, :width]:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image.transpose(1, 2, 0)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def encode_jpeg(image: UInt8[np.ndarray, "3 H W"], quality: int = 92) -> bytes:
    """JPEG with full colour resolution. Small images are doubled as videos are, so that both look alike when enlarged.

    The same image gives the same bytes.
    """
    bgr = np.ascontiguousarray(_doubled(image)[::-1].transpose(1, 2, 0))
    full_colour = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality, *full_colour))[1].tobytes()


def _doubled(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, axis=-2).repeat(2, axis=-1) if max(pixels.shape[-2:]) <= _SMALL else pixels
