"""Frames of a scene: ground, soft shadows, pictures, light. About a millisecond a frame at 128 px on one core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from neuroclips.simulation.grounds import GROUNDS, LIGHTS, VARIANTS, layers
from neuroclips.simulation.scenes import Actor, Scene
from neuroclips.simulation.sprites import sprite

__all__ = ["draw_frames", "render"]


def render(scene: Scene, times_s: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
    """Frames of a scene at any times (seconds from its start): uint8 (T, 3, size, size), RGB."""
    frames = np.empty((len(times_s), size, size, 3), np.uint8)
    for k, frame in enumerate(draw_frames(scene, times_s, size)):
        frames[k] = frame
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))


def draw_frames(scene: Scene, times_s: Sequence[float] | np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yields uint8 (size, size, 3) frames."""
    times = np.asarray(times_s, float)
    ground = GROUNDS[scene.ground]
    rng = np.random.default_rng(scene.seed)
    canvases = layers(scene.ground, int(rng.integers(VARIANTS)), size)
    corner = rng.uniform(0, 2, 2) * (1, not ground.horizon)
    field, haze = _light(scene.light, rng, size)
    camera = np.stack(scene.camera(times), axis=-1)
    cast = [(_pyramid(actor), state) for actor, state in zip(scene.actors, scene.state(times), strict=True)][::-1]
    for k, t in enumerate(times):
        frame = _window(canvases[0].canvas, (corner + camera[k] - np.multiply(canvases[0].velocity, t)) * size, size)
        for layer in canvases[1:]:
            _blend(frame, _window(layer.canvas, (corner + camera[k] - np.multiply(layer.velocity, t)) * size, size))
        for pictures, state in cast:
            _draw_actor(frame, pictures, state.x[k], state.y[k], state.size[k], state.rotation[k], ground.shadow)
        yield cv2.add(cv2.multiply(frame, field, scale=1 / 128), haze)


def _light(name: str, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Gain (1 is 128) and haze of each pixel, uint8 (size, size, 3): a light that falls off across the frame."""
    light, angle = LIGHTS[name], rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    fall = 1.0 + 0.22 * (np.cos(angle) * x + np.sin(angle) * y) - 0.25 * (x**2 + y**2)
    gain = np.asarray(light.gain) * rng.uniform(0.94, 1.06, 3)
    haze = np.broadcast_to(np.rint(np.asarray(light.haze) * 255), (size, size, 3))
    return np.rint(fall[..., None] * gain * 128).clip(0, 255).astype(np.uint8), haze.astype(np.uint8)


def _pyramid(actor: Actor) -> list[np.ndarray]:
    """The picture at 128, 64, 32 and 16 px: shrinking from the nearest larger one keeps edges smooth."""
    picture = sprite(actor.thing)
    pictures = [np.ascontiguousarray(picture[:, ::-1]) if actor.mirrored else picture]
    while len(pictures) < 4:
        pictures.append(cv2.resize(pictures[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return pictures


def _window(canvas: np.ndarray, corner: np.ndarray, size: int) -> np.ndarray:
    """A size x size window of a canvas that repeats, at a fractional corner (x, y) in px."""
    height, width = canvas.shape[:2]
    x, y = corner[0] % width, corner[1] % height if height > size else 0.0
    shift = np.array([[1, 0, x], [0, 1, y]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(canvas, shift, (size, size), flags=flags, borderMode=cv2.BORDER_WRAP)


def _blend(frame: np.ndarray, over: np.ndarray) -> None:
    """Lays premultiplied RGBA over RGB, in place."""
    through = cv2.cvtColor(cv2.bitwise_not(over[..., 3]), cv2.COLOR_GRAY2RGB)
    cv2.add(cv2.multiply(frame, through, scale=1 / 255), cv2.cvtColor(over, cv2.COLOR_RGBA2RGB), dst=frame)


def _draw_actor(
    frame: np.ndarray, pictures: list[np.ndarray], x: float, y: float, size: float, rotation: float, shadow: float
) -> None:
    """Draws a picture with its centre at (x, y) and, under it, its soft shadow, in place."""
    side = size * frame.shape[0]
    if shadow:
        # The smallest picture, enlarged, is blurred enough to be a shadow.
        placed = _place(pictures[-1], frame.shape[0], x + 0.04 * size, y + 0.06 * size, side, rotation)
        if placed is not None:
            box, over = placed
            dark = cv2.cvtColor(cv2.convertScaleAbs(over[..., 3], alpha=-shadow, beta=255), cv2.COLOR_GRAY2RGB)
            frame[box] = cv2.multiply(frame[box], dark, scale=1 / 255)
    level = int(np.clip(np.log2(pictures[0].shape[0] / side), 0, len(pictures) - 1))
    placed = _place(pictures[level], frame.shape[0], x, y, side, rotation)
    if placed is not None:
        box, over = placed
        part = np.ascontiguousarray(frame[box])
        _blend(part, over)
        frame[box] = part


def _place(
    picture: np.ndarray, width: int, x: float, y: float, side: float, rotation: float
) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """A picture scaled to `side` px and turned: the box of the frame that it touches, and its pixels there."""
    c, s = np.cos(rotation), np.sin(rotation)
    reach = side / 2 * (abs(c) + abs(s)) + 1
    left, top = max(int(x * width - reach), 0), max(int(y * width - reach), 0)
    right, bottom = min(int(x * width + reach) + 1, width), min(int(y * width + reach) + 1, width)
    if right <= left or bottom <= top:
        return None
    # Pixel centres lie at half-integers: (p + 0.5) of the frame comes from (q + 0.5) of the picture.
    scale, half = picture.shape[0] / side, picture.shape[0] / 2
    u, v = left + 0.5 - x * width, top + 0.5 - y * width
    back = scale * np.array([[c, s, c * u + s * v], [-s, c, c * v - s * u]]) + [[0, 0, half - 0.5]]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    over = cv2.warpAffine(picture, back, (right - left, bottom - top), flags=flags, borderMode=cv2.BORDER_CONSTANT)
    return (slice(top, bottom), slice(left, right)), over
