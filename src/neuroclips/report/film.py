"""Small MP4 files in memory, for pages that carry their videos with them."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

from neuroclips.errors import DataError
from neuroclips.shapes import UInt8

_SMALL = 160  # pixels; below this, frames are doubled so that 4:2:0 chroma keeps one colour a source pixel
_BT601 = 6  # smpte170m: the matrix that browsers assume for small videos, also written into the file


def encode_mp4(video: UInt8[np.ndarray, "F 3 H W"], seconds: float | int) -> bytes:
    """H.264 in MP4, playing the F frames at equal distances over ``seconds``; every browser can show it.

    Small frames are doubled by repetition; odd sizes lose their last row or column (H.264 wants even ones).
    The same frames give the same bytes.
    """
    if len(video) == 0 or seconds <= 0:
        raise DataError(f"cannot encode {len(video)} frames over {seconds} s; expected at least one, over some time")
    if max(video.shape[-2:]) <= _SMALL:
        video = video.repeat(2, axis=-2).repeat(2, axis=-1)
    height, width = (size - size % 2 for size in video.shape[-2:])
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(len(video) / seconds).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "21", "preset": "slow", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT601
        for image in video[..., :height, :width]:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image.transpose(1, 2, 0)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
