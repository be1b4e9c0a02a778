"""Grounds of the picture-book world: procedural textures, larger than the frame so that the camera can pan."""

from __future__ import annotations

import cv2
import numpy as np

from neuroclips.shapes import UInt8

CANVAS = 2  # texture width and height in frames: a pan of up to half a frame each way


def _noise(rng: np.random.Generator, n: int, cells: tuple[int, int], octaves: int = 3) -> np.ndarray:
    """Smooth noise (n, n) in about [-1, 1]; ``cells`` across height and width, each octave twice as fine."""
    total = np.zeros((n, n), np.float32)
    for k in range(octaves):
        shape = tuple(min(n, c << k) for c in cells)
        grid = rng.uniform(-1, 1, shape).astype(np.float32)
        total += cv2.resize(grid, (n, n), interpolation=cv2.INTER_CUBIC) / 2**k
    return total / 1.5


def _mix(low: tuple, high: tuple, t: np.ndarray) -> np.ndarray:
    """Colours (n, n, 3) between ``low`` (t = -1) and ``high`` (t = 1)."""
    t = np.clip((t + 1) / 2, 0, 1)[..., None]
    return np.float32(low) * (1 - t) + np.float32(high) * t


def _horizon(rng: np.random.Generator, n: int, ground: np.ndarray, top: tuple, bottom: tuple, at: float) -> np.ndarray:
    """``ground`` below a gradient sky; the horizon lies at ``at`` of the canvas and rolls gently."""
    y = np.linspace(0, 1, n, dtype=np.float32)[:, None]
    line = at + 0.03 * np.sin(np.linspace(0, 2 * np.pi * rng.uniform(1, 3), n, dtype=np.float32) + rng.uniform(0, 6))
    sky = _mix(top, bottom, np.broadcast_to(2 * y / at - 1, (n, n)))
    edge = np.clip((y - line[None]) * n / 2, 0, 1)[..., None]
    return sky * (1 - edge) + ground * edge


def _grass(rng, n):
    return _mix((38, 104, 30), (128, 190, 62), _noise(rng, n, (9, 9)) + 0.5 * rng.normal(size=(n, n)).astype(np.float32))


def _sand(rng, n):
    ripples = 0.4 * np.sin(np.linspace(0, 60, n)[:, None] + 3 * _noise(rng, n, (3, 3)))
    return _mix((196, 150, 92), (244, 216, 160), _noise(rng, n, (5, 5)) * 0.6 + ripples)


def _water(rng, n):
    return _mix((16, 66, 140), (84, 176, 222), _noise(rng, n, (22, 5)))


def _snow(rng, n):
    return _mix((190, 206, 232), (252, 253, 255), _noise(rng, n, (4, 4)) + 0.3)


def _brick(rng, n):
    rows = 14
    y, x = np.mgrid[0:n, 0:n] / n * rows
    row = y.astype(int)
    x = x / 2 + (row % 2) / 2
    shade = rng.uniform(-1, 1, (rows + 1, rows + 2)).astype(np.float32)[row, x.astype(int)]
    wall = _mix((122, 44, 34), (190, 92, 66), shade * 0.7 + 0.3 * _noise(rng, n, (16, 16)))
    mortar = ((y % 1 < 0.13) | (x % 1 < 0.07))[..., None]
    return np.where(mortar, np.float32((206, 196, 182)), wall)


def _night(rng, n):
    sky = _mix((6, 8, 34), (44, 30, 86), _noise(rng, n, (3, 3)))
    stars = cv2.GaussianBlur((rng.random((n, n)) > 0.9965).astype(np.float32), (0, 0), max(n / 256, 0.6))
    return sky + 255 * np.minimum(stars / stars.max() * 1.6, 1)[..., None]


def _forest(rng, n):
    floor = _mix((52, 34, 18), (112, 84, 42), _noise(rng, n, (12, 12)))
    leaves = np.clip(4 * (_noise(rng, n, (14, 14)) - 0.2), 0, 1)[..., None]
    return floor * (1 - leaves) + np.float32((48, 86, 28)) * leaves


def _road(rng, n):
    y, x = np.mgrid[0:n, 0:n] / n
    tar = _mix((66, 66, 70), (104, 104, 108), rng.normal(size=(n, n)).astype(np.float32) * 0.5)
    lane = ((np.abs((y * 3) % 1 - 0.5) < 0.035) & ((x * 8 + rng.random()) % 1 < 0.6))[..., None]
    return np.where(lane, np.float32((236, 214, 120)), tar)


def _wood(rng, n):
    planks = 12
    y = np.arange(n)[:, None] / n * planks
    tone = rng.uniform(-0.6, 0.6, planks + 1).astype(np.float32)[np.broadcast_to(y.astype(int), (n, n))]
    floor = _mix((126, 76, 38), (206, 146, 88), tone + 0.6 * _noise(rng, n, (60, 4)))
    return floor * np.where(np.abs(y % 1) < 0.06, 0.5, 1)[..., None]


def _meadow(rng, n):
    return _horizon(rng, n, _grass(rng, n), (96, 164, 232), (206, 230, 250), rng.uniform(0.4, 0.6))


def _desert(rng, n):
    return _horizon(rng, n, _sand(rng, n), (228, 108, 72), (252, 206, 130), rng.uniform(0.4, 0.6))


def _sea(rng, n):
    return _horizon(rng, n, _water(rng, n), (130, 190, 240), (232, 240, 248), rng.uniform(0.35, 0.55))


def _carpet(rng, n):
    y, x = np.mgrid[0:n, 0:n] / n * rng.integers(8, 14)
    check = ((x.astype(int) + y.astype(int)) % 2)[..., None]
    a, b = rng.uniform(60, 235, (2, 3)).astype(np.float32)
    return np.where(check == 1, a, b) + 10 * rng.normal(size=(n, n, 1)).astype(np.float32)


def _clouds(rng, n):
    return _mix((88, 156, 230), (250, 252, 255), _noise(rng, n, (4, 3), octaves=4) * 1.4)


# name: painter, and the words for being there
GROUNDS = {
    "grass": (_grass, "over grass"), "sand": (_sand, "over sand"), "water": (_water, "over water"),
    "snow": (_snow, "over snow"), "brick": (_brick, "in front of a brick wall"), "night sky": (_night, "in the night sky"),
    "forest": (_forest, "on the forest floor"), "road": (_road, "on the road"), "wood": (_wood, "on a wooden floor"),
    "meadow": (_meadow, "in a meadow"), "desert": (_desert, "in the desert"), "sea": (_sea, "by the sea"),
    "carpet": (_carpet, "on a carpet"), "clouds": (_clouds, "among the clouds"),
}  # fmt: skip

# name: colour of the light, and the words for it
LIGHTS = {
    "day": ((1.0, 1.0, 1.0), ""), "morning": ((1.04, 0.98, 0.84), "in the morning"),
    "dusk": ((1.0, 0.74, 0.6), "at dusk"), "moonlight": ((0.46, 0.54, 0.8), "in the moonlight"),
}  # fmt: skip


def paint(ground: str, rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "n n 3"]:
    """The texture of a ground for frames of ``size`` pixels, ``CANVAS`` frames wide, with a soft gradient of light."""
    n = CANVAS * size
    canvas = GROUNDS[ground][0](rng, n)
    dx, dy = rng.uniform(-0.18, 0.18, 2)
    ramp = np.linspace(-1, 1, n, dtype=np.float32)
    light = 1 + dx * ramp[None] + dy * ramp[:, None]
    return np.clip(canvas * light[..., None] * rng.uniform(0.85, 1.1), 0, 255).astype(np.uint8)
