"""The places of the picture book: procedural textures, and the lights they are seen in.

A ground is painted once a variant as one or two layers on a canvas that repeats without a seam, two frame widths wide,
and `render` crops moving windows from it. All noise is made by filtering white noise in the Fourier domain, which
makes it periodic for free.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["GROUNDS", "LIGHTS", "VARIANTS", "Ground", "Layer", "Light", "layers"]

FRAME = 256
"""Painted pixels per frame width; `layers` scales them to the size asked for."""
SPAN = 2 * FRAME
"""Painted width of a canvas (and height, but for grounds with a horizon: one frame)."""
VARIANTS = 5
"""Differently drawn canvases a ground."""

Array = np.ndarray
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Layer:
    """`canvas`: uint8 (H, W, 3) RGB, or (H, W, 4) premultiplied RGBA for a layer that lies over another.

    `velocity`: the layer's own motion (clouds, waves) in frame widths per second, right and down positive.
    """

    canvas: Array
    velocity: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Light:
    """A pixel in [0, 1] is seen as `gain * pixel + haze`; `phrase` ends the caption."""

    gain: Colour
    haze: Colour
    phrase: str


LIGHTS = {
    "day": Light((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ""),
    "morning": Light((1.05, 0.98, 0.78), (0.05, 0.03, 0.0), "in the morning"),
    "dusk": Light((0.92, 0.64, 0.60), (0.08, 0.02, 0.06), "at dusk"),
    "night": Light((0.46, 0.54, 0.74), (0.0, 0.01, 0.05), "at night"),
    "fog": Light((0.56, 0.57, 0.57), (0.36, 0.37, 0.38), "in fog"),
}


@dataclass(frozen=True)
class Ground:
    """A place: `phrase` names it in captions, `shadow` in [0, 1] is how dark an actor's shadow falls on it.

    A ground with a `horizon` is one frame high, so that a camera may pan over it only sideways.
    """

    name: str
    phrase: str
    paint: Callable[[np.random.Generator], list[Layer]]
    shadow: float = 0.4
    horizon: bool = False
    lights: tuple[str, ...] = tuple(LIGHTS)


@functools.lru_cache(maxsize=256)
def layers(name: str, variant: int, size: int) -> tuple[Layer, ...]:
    """The layers of a ground for frames of `size` pixels; the same picture at every size, kept in the process."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), variant])
    scale = size / FRAME
    way = cv2.INTER_AREA if scale <= 1 else cv2.INTER_LINEAR
    return tuple(
        Layer(cv2.resize(layer.canvas, None, fx=scale, fy=scale, interpolation=way), layer.velocity)
        for layer in GROUNDS[name].paint(rng)
    )


def _noise(rng: np.random.Generator, scale: float | int, stretch: float | int = 1, height: int = SPAN) -> Array:
    """Periodic noise (height, SPAN), mean 0, variance 1: blobs of `scale` px, `stretch` times as wide as high."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(SPAN)[None]
    white = np.fft.rfft2(rng.standard_normal((height, SPAN)))
    field = np.fft.irfft2(white / (1 + (fx * scale * stretch * 3) ** 2 + (fy * scale * 3) ** 2) ** 1.5, (height, SPAN))
    field -= field.mean()
    return (field / field.std()).astype(np.float32)


def _mix(low: Colour, high: Colour, share: Array) -> Array:
    """Colours (H, W, 3) between two, by a share (H, W) that is clipped to [0, 1]."""
    share = np.clip(share, 0, 1)[..., None]
    return np.asarray(low, np.float32) * (1 - share) + np.asarray(high, np.float32) * share


def _bytes(colour: Array) -> Array:
    return np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)


def _over(colour: Array, alpha: Array) -> Array:
    """Premultiplied RGBA bytes from colours (H, W, 3) and an alpha (H, W)."""
    alpha = np.clip(alpha, 0, 1)[..., None]
    return _bytes(np.concatenate([colour * alpha, alpha], axis=-1))


def _tint(rng: np.random.Generator, colour: Colour, spread: float = 0.06) -> Colour:
    return tuple(np.clip(np.asarray(colour) + rng.uniform(-spread, spread, 3), 0, 1))


def _strew(
    rng: np.random.Generator,
    canvas: Array,
    count: int,
    colours: list[Colour],
    radius: tuple[float | int, float | int],
    flat: float,
) -> None:
    """Draws `count` ellipses at random on `canvas` (float, in place), wrapped over its edges."""
    height, width = canvas.shape[:2]
    for _ in range(count):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        r, turn = rng.uniform(*radius), rng.uniform(0, 360)
        colour = np.asarray(colours[rng.integers(len(colours))]) * rng.uniform(0.8, 1.1)
        for dx in (-width, 0, width):
            for dy in (-height, 0, height):
                if -r < x + dx < width + r and -r < y + dy < height + r:
                    centre = (round((x + dx) * 8), round((y + dy) * 8))
                    axes = (round(r * 8), round(r * flat * 8))
                    cv2.ellipse(canvas, centre, axes, turn, 0, 360, colour.tolist(), -1, cv2.LINE_AA, 3)


def _grass(rng: np.random.Generator) -> list[Layer]:
    blades = 0.5 + 0.22 * _noise(rng, 3, 0.25) + 0.2 * _noise(rng, 60)
    return [Layer(_bytes(_mix(_tint(rng, (0.16, 0.40, 0.10)), _tint(rng, (0.52, 0.76, 0.24)), blades)))]


def _sand(rng: np.random.Generator) -> list[Layer]:
    y = np.arange(SPAN, dtype=np.float32)[:, None]
    ripples = np.sin(2 * np.pi * y / SPAN * 18 + 2.2 * _noise(rng, 70))
    share = 0.5 + 0.2 * ripples + 0.07 * _noise(rng, 1.5) + 0.12 * _noise(rng, 80)
    return [Layer(_bytes(_mix(_tint(rng, (0.74, 0.58, 0.34)), _tint(rng, (0.98, 0.87, 0.62)), share)))]


def _water(rng: np.random.Generator) -> list[Layer]:
    deep, bright = _tint(rng, (0.03, 0.30, 0.52)), _tint(rng, (0.32, 0.72, 0.84))
    base = _mix(deep, bright, 0.45 + 0.2 * _noise(rng, 18, 2.5) + 0.1 * _noise(rng, 70))
    # Thin bright lines where a smooth noise crosses zero: light caught by waves.
    glints = np.exp(-((_noise(rng, 22, 2.2) / 0.12) ** 2)) * (0.5 + 0.3 * _noise(rng, 60))
    light = np.full((SPAN, SPAN, 3), (0.85, 0.97, 1.0), np.float32)
    return [Layer(_bytes(base), (0.03, 0.01)), Layer(_over(light, 0.75 * glints), (-0.06, 0.025))]


def _snow(rng: np.random.Generator) -> list[Layer]:
    share = 0.62 + 0.25 * _noise(rng, 55, 1.8) + 0.05 * _noise(rng, 2)
    base = _mix(_tint(rng, (0.66, 0.77, 0.92), 0.04), (0.98, 0.99, 1.0), share)
    flakes = np.zeros((SPAN, SPAN, 3), np.float32)
    _strew(rng, flakes, 110, [(1.0, 1.0, 1.0)], (1.5, 3.5), 1.0)
    falling = _over(np.ones_like(flakes), cv2.GaussianBlur(flakes[..., 0], (0, 0), 0.8))
    return [Layer(_bytes(base)), Layer(falling, (0.02, 0.12))]


def _brick(rng: np.random.Generator) -> list[Layer]:
    rows, columns = 16, 8
    h, w = SPAN // rows, SPAN // columns
    mortar = np.asarray(_tint(rng, (0.78, 0.74, 0.68)), np.float32)
    canvas = np.broadcast_to(mortar, (SPAN, SPAN, 3)).copy()
    red, gap = np.asarray(_tint(rng, (0.68, 0.30, 0.22), 0.1)), 2
    for row in range(rows):
        for column in range(columns):
            brick = red * rng.uniform(0.75, 1.2) + rng.uniform(-0.03, 0.03, 3)
            columns_px = (np.arange(gap, w - gap) + column * w + (row % 2) * w // 2) % SPAN
            canvas[row * h + gap : (row + 1) * h - gap, columns_px] = brick
    canvas *= 1 + 0.06 * _noise(rng, 2)[..., None] + 0.06 * _noise(rng, 50)[..., None]
    return [Layer(_bytes(cv2.GaussianBlur(canvas, (0, 0), 0.8, borderType=cv2.BORDER_REFLECT)))]


def _night_sky(rng: np.random.Generator) -> list[Layer]:
    band = 0.35 + 0.3 * _noise(rng, 80, 2)
    base = _mix(_tint(rng, (0.03, 0.04, 0.16), 0.02), _tint(rng, (0.20, 0.16, 0.44)), band)
    _strew(rng, base, 240, [(1.0, 1.0, 0.9), (0.8, 0.9, 1.0), (1.0, 0.85, 0.7)], (0.8, 1.8), 1.0)
    _strew(rng, base, 24, [(1.0, 1.0, 0.95)], (2.0, 3.4), 1.0)
    return [Layer(_bytes(base), (0.008, 0.0))]


def _forest_floor(rng: np.random.Generator) -> list[Layer]:
    base = _mix((0.20, 0.13, 0.07), _tint(rng, (0.42, 0.30, 0.16)), 0.5 + 0.3 * _noise(rng, 12))
    leaves = [(0.72, 0.40, 0.12), (0.60, 0.26, 0.10), (0.80, 0.58, 0.18), (0.36, 0.42, 0.14), (0.46, 0.30, 0.16)]
    _strew(rng, base, 620, leaves, (6, 14), 0.45)
    return [Layer(_bytes(base * (1 + 0.14 * _noise(rng, 60)[..., None])))]


def _road(rng: np.random.Generator) -> list[Layer]:
    grit = 0.45 + 0.16 * _noise(rng, 1.5) + 0.1 * _noise(rng, 60)
    base = _mix(_tint(rng, (0.28, 0.28, 0.31), 0.03), (0.50, 0.50, 0.52), grit)
    paint = _tint(rng, (0.98, 0.86, 0.30)) if rng.random() < 0.5 else (0.95, 0.95, 0.93)
    worn = 0.9 + 0.1 * _noise(rng, 3)
    y, x = np.mgrid[:SPAN, :SPAN]
    dash = ((y % FRAME > 118) & (y % FRAME < 138) & (x % 128 < 76)) | (y % FRAME < 7)
    return [Layer(_bytes(np.where(dash[..., None], np.asarray(paint, np.float32) * worn[..., None], base)))]


def _wood_floor(rng: np.random.Generator) -> list[Layer]:
    plank = 32
    low, high = _tint(rng, (0.50, 0.30, 0.14)), _tint(rng, (0.84, 0.60, 0.34))
    tone = np.repeat(rng.uniform(-0.22, 0.22, SPAN // plank), plank)[:, None]
    grain = 0.16 * _noise(rng, 1.6, 24) + 0.10 * np.sin(3 * _noise(rng, 10, 9))
    canvas = _mix(low, high, 0.55 + tone + grain)
    canvas[::plank] *= 0.45
    canvas[1::plank] *= 0.7
    for row, x in enumerate(rng.integers(0, SPAN, SPAN // plank)):
        canvas[row * plank : (row + 1) * plank, x : x + 2] *= 0.5
    return [Layer(_bytes(canvas))]


def _sky(rng: np.random.Generator, height: int, top: Colour, bottom: Colour, cover: float) -> list[Layer]:
    """Blue falling to pale, and clouds that drift over it."""
    fall = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones((1, SPAN), np.float32)
    if height == SPAN:  # this canvas also repeats downward
        fall = 0.5 - 0.5 * np.cos(2 * np.pi * fall)
    puff = _noise(rng, 46, 1.7, height)
    alpha = (puff + 0.25 * _noise(rng, 9, 1.5, height) + cover) * 1.6
    shade = _mix((0.84, 0.88, 0.95), (1.0, 1.0, 1.0), 0.6 + 0.35 * np.roll(puff, 12, axis=0))
    clouds = _over(shade, np.clip(alpha, 0, 1) * 0.95)
    return [Layer(_bytes(_mix(top, bottom, fall))), Layer(clouds, (float(rng.choice([-1, 1]) * 0.04), 0.0))]


def _clouds(rng: np.random.Generator) -> list[Layer]:
    return _sky(rng, SPAN, _tint(rng, (0.24, 0.52, 0.88)), _tint(rng, (0.58, 0.80, 0.97)), -0.2)


def _ridge(rng: np.random.Generator, scale: float | int, level: float, height: float) -> Array:
    """True below a wavy skyline: (FRAME, SPAN), `level` and `height` as fractions of the frame."""
    profile = _noise(rng, scale)[0]
    skyline = level - height * (profile - profile.min()) / np.ptp(profile)
    # A slope of one pixel instead of a step keeps the skyline smooth.
    return np.clip(np.arange(FRAME, dtype=np.float32)[:, None] - skyline[None] * FRAME, 0, 1)


def _meadow(rng: np.random.Generator) -> list[Layer]:
    sky = _sky(rng, FRAME, _tint(rng, (0.34, 0.62, 0.94)), (0.86, 0.94, 0.99), -0.7)
    hills = _ridge(rng, 60, 0.52, 0.16)
    near = _ridge(rng, 90, 0.60, 0.07)
    deep = np.linspace(0, 1, FRAME, dtype=np.float32)[:, None]
    far_green = _mix((0.40, 0.66, 0.48), (0.30, 0.56, 0.34), deep * 2 - 0.7)
    grass = _mix(_tint(rng, (0.46, 0.72, 0.26)), (0.20, 0.48, 0.12), deep * 1.6 - 0.8 + 0.16 * _noise(rng, 5, 1, FRAME))
    colour = far_green * (1 - near[..., None]) + grass * near[..., None]
    petals = [(0.98, 0.90, 0.30), (0.96, 0.96, 0.96), (0.92, 0.36, 0.42), (0.72, 0.48, 0.90)]
    _strew(rng, colour[round(0.66 * FRAME) :], 130, petals, (1.5, 4), 0.8)
    return [sky[0], sky[1], Layer(_over(colour, hills))]


def _beach(rng: np.random.Generator) -> list[Layer]:
    sky = _sky(rng, FRAME, _tint(rng, (0.36, 0.68, 0.95)), (0.94, 0.95, 0.92), -0.9)
    rows = np.arange(FRAME, dtype=np.float32)[:, None] / FRAME
    sea = _mix((0.06, 0.42, 0.66), (0.36, 0.80, 0.82), (rows - 0.42) * 4 + 0.16 * _noise(rng, 4, 8, FRAME))
    sand = _mix(_tint(rng, (0.98, 0.88, 0.64)), (0.84, 0.68, 0.42), (rows - 0.6) * 2 + 0.08 * _noise(rng, 2, 1, FRAME))
    shore = _ridge(rng, 80, 0.68, 0.07)
    colour = sea * (1 - shore[..., None]) + sand * shore[..., None]
    # White foam where sea becomes sand.
    edge = np.clip(1 - np.abs(cv2.GaussianBlur(shore, (0, 0), 3) - 0.4) * 2.6, 0, 1)[..., None]
    colour = colour * (1 - edge) + edge
    return [sky[0], sky[1], Layer(_over(colour, np.clip((rows - 0.42) * FRAME, 0, 1) * np.ones((1, SPAN))))]


def _mountains(rng: np.random.Generator) -> list[Layer]:
    sky = _sky(rng, FRAME, _tint(rng, (0.42, 0.60, 0.90)), (0.98, 0.90, 0.84), -0.8)
    far, near = _ridge(rng, 34, 0.62, 0.42), _ridge(rng, 50, 0.86, 0.26)
    rows = np.arange(FRAME, dtype=np.float32)[:, None] / FRAME
    rock = _mix((0.96, 0.97, 1.0), _tint(rng, (0.40, 0.42, 0.58)), (rows - 0.36) * 9 + 0.9 * _noise(rng, 8, 1, FRAME))
    trees = (rows - 0.6) * 2.4 + 0.14 * _noise(rng, 4, 0.5, FRAME)
    wood = _mix(_tint(rng, (0.22, 0.44, 0.34)), (0.10, 0.26, 0.20), trees)
    return [sky[0], sky[1], Layer(_over(rock * (1 - near[..., None]) + wood * near[..., None], np.maximum(far, near)))]


def _carpet(rng: np.random.Generator) -> list[Layer]:
    looms = [
        ((0.66, 0.12, 0.20), (0.94, 0.78, 0.46), (0.14, 0.22, 0.46)),
        ((0.12, 0.38, 0.44), (0.96, 0.88, 0.70), (0.78, 0.36, 0.22)),
        ((0.44, 0.24, 0.52), (0.92, 0.76, 0.90), (0.20, 0.16, 0.36)),
    ]
    wool, motif, rim = (_tint(rng, colour, 0.08) for colour in looms[rng.integers(len(looms))])
    tile = 128
    y, x = np.mgrid[:SPAN, :SPAN] % tile - tile / 2
    diamond = np.abs(x) + np.abs(y)
    canvas = np.broadcast_to(np.asarray(wool, np.float32), (SPAN, SPAN, 3)).copy()
    canvas[(diamond > 38) & (diamond < 50)] = motif
    canvas[diamond < 24] = rim
    canvas[diamond < 9] = motif
    canvas[diamond > 112] = rim
    weave = cv2.GaussianBlur(canvas, (0, 0), 1.0)
    return [Layer(_bytes(weave * (1 + 0.09 * _noise(rng, 1.3)[..., None] + 0.07 * _noise(rng, 60)[..., None])))]


def _flower_field(rng: np.random.Generator) -> list[Layer]:
    base = _grass(rng)[0].canvas.astype(np.float32) / 255 * 0.85
    palettes = [
        [(0.95, 0.30, 0.40), (0.98, 0.70, 0.78), (1.0, 1.0, 1.0)],
        [(0.98, 0.86, 0.20), (1.0, 0.98, 0.85), (0.98, 0.62, 0.16)],
        [(0.60, 0.42, 0.88), (0.86, 0.74, 0.98), (0.36, 0.40, 0.86)],
    ]
    petals = palettes[rng.integers(len(palettes))]
    _strew(rng, base, 260, petals, (5, 11), 0.85)
    _strew(rng, base, 130, [(0.98, 0.86, 0.24)], (1.5, 3.5), 1.0)
    return [Layer(_bytes(base))]


def _pebbles(rng: np.random.Generator) -> list[Layer]:
    base = _mix((0.20, 0.21, 0.23), (0.34, 0.33, 0.33), 0.5 + 0.3 * _noise(rng, 4))
    stones = [_tint(rng, c) for c in ((0.62, 0.62, 0.64), (0.76, 0.72, 0.66), (0.48, 0.52, 0.58), (0.72, 0.60, 0.52))]
    _strew(rng, base, 700, stones, (11, 22), 0.75)
    return [Layer(_bytes(base * (1 + 0.05 * _noise(rng, 2)[..., None] + 0.10 * _noise(rng, 14)[..., None])))]


_BRIGHT = ("day", "morning", "dusk", "fog")  # a dark ground hides dark things at night
_INSIDE = ("day", "morning", "dusk", "night")

GROUNDS = {
    ground.name: ground
    for ground in (
        Ground("grass", "over grass", _grass),
        Ground("sand", "over sand", _sand),
        Ground("water", "over water", _water, shadow=0.25),
        Ground("snow", "over snow", _snow, shadow=0.3),
        Ground("brick", "along a brick wall", _brick, lights=_INSIDE),
        Ground("night sky", "in the night sky", _night_sky, shadow=0.0, lights=("day",)),
        Ground("forest floor", "over a forest floor", _forest_floor, lights=_BRIGHT),
        Ground("road", "over a road", _road),
        Ground("wood floor", "over a wood floor", _wood_floor, lights=_INSIDE),
        Ground("meadow", "in a meadow", _meadow, shadow=0.3, horizon=True),
        Ground("beach", "at the beach", _beach, shadow=0.3, horizon=True),
        Ground("mountains", "near mountains", _mountains, shadow=0.2, horizon=True),
        Ground("clouds", "among clouds", _clouds, shadow=0.0),
        Ground("carpet", "over a carpet", _carpet, lights=_INSIDE),
        Ground("flower field", "over flowers", _flower_field),
        Ground("pebbles", "over pebbles", _pebbles),
    )
}
