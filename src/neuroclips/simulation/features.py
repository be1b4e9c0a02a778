"""What drives the simulated voxels: motion energy, light and colour, local contrast, and meaning.

Every space is averaged to steps of ``STEP`` seconds. The blank screen before and after a film is all zeros.
Decoders never have these spaces as targets: what they decode (VAE latents, CLIP tokens) must be found through them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroclips.artefacts import stable_seed
from neuroclips.data.frames import count_trs, film_info, read_clips
from neuroclips.errors import DataError, MissingExtraError
from neuroclips.shapes import Float, Float32, Int, UInt8
from neuroclips.simulation.grounds import GROUNDS, LIGHTS
from neuroclips.simulation.scenes import MOTIONS
from neuroclips.simulation.things import ATTRIBUTES, CATEGORIES, thing_named
from neuroclips.simulation.visuotopy import FIELD_OF_VIEW

if TYPE_CHECKING:
    import pandas as pd

STEP = 0.5  # seconds; a quarter of a TR resolves the response function's rise
FRAMES_PER_STEP = 8  # 16 frames a second, as motion energy is usually computed at 15 (Nishimoto et al. 2011)
PIXELS = 48  # side of the picture that motion energy sees
GRID = 16  # cells a side for light, colour and contrast: 1.3 degrees each
PLACES = 3  # a PLACES x PLACES net of positions says where an actor is
IDENTITY = 24  # width of the random code that makes every thing itself


@dataclass(frozen=True)
class Features:
    """What drives voxels in one film, over its N steps of ``STEP`` seconds.

    motion : (N, P) square root of motion energy; the P filters are ``motion_filters()``.
    layout : (N, 3, GRID, GRID) luminance, red-green and blue-yellow; 0 is the grey of the blank screen.
    contrast : (N, GRID, GRID) standard deviation of luminance inside each cell.
    meaning : (N, M) semantic code times place; see ``MeaningAxes``.
    """

    motion: Float32[np.ndarray, "N P"]
    layout: Float32[np.ndarray, "N 3 H W"]
    contrast: Float32[np.ndarray, "N H W"]
    meaning: Float32[np.ndarray, "N M"]


@dataclass(frozen=True)
class MeaningAxes:
    """What column m of ``Features.meaning`` stands for.

    code : (M,) semantic dimension.  place : (M,) cell of the place net, or -1 for the whole picture.
    weight : (D,) how strongly each of the D semantic dimensions drives voxels.
    """

    code: Int[np.ndarray, " M"]
    place: Int[np.ndarray, " M"]
    weight: Float[np.ndarray, " D"]


@cache
def _pyramid() -> Any:
    try:
        import moten
    except ImportError as error:
        raise MissingExtraError("simulating a brain needs pymoten: pip install 'neuroclips[demo]'") from error
    # 2, 4 and 8 cycles a picture are 0.1, 0.2 and 0.4 cycles a degree on a film 20.3 degrees wide.
    return moten.pyramids.MotionEnergyPyramid(
        stimulus_vhsize=(PIXELS, PIXELS), stimulus_fps=int(FRAMES_PER_STEP / STEP), spatial_frequencies=[2, 4, 8],
        temporal_frequencies=[0, 2, 4], filter_spacing=2.5, include_edges=True,
    )  # fmt: skip


def motion_filters() -> dict[str, np.ndarray]:
    """The P filters: ``x``, ``y`` (degrees, up positive), ``sigma`` (degrees), ``direction`` (degrees, 0 rightward),
    ``spatial`` (cycles a picture) and ``temporal`` frequency (Hz)."""
    p = _pyramid().parameters
    return {
        "x": (p.centerh - 0.5) * FIELD_OF_VIEW,
        "y": (0.5 - p.centerv) * FIELD_OF_VIEW,
        "sigma": p.spatial_env * FIELD_OF_VIEW,
        # pymoten 0.1.3 names the direction opposite to the one its filter prefers: a grating that drifts rightward
        # drives the filters named 180 twenty times as much as those named 0.
        "direction": (p.direction + 180) % 360,
        "spatial": p.spatial_freq,
        "temporal": p.temporal_freq,
    }


def grid_centres(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y (degrees, up positive) of the cells of a net over the film, row by row from the top: each (cells²,)."""
    at = ((np.arange(cells) + 0.5) / cells - 0.5) * FIELD_OF_VIEW
    y, x = np.meshgrid(-at, at, indexing="ij")
    return x.ravel(), y.ravel()


def film_features(path: Path, truth: pd.DataFrame | None, t_r: float) -> Features:
    """Features of one film. ``truth`` is its table of frames; without one, meaning is made from image statistics."""
    info = film_info(path)
    n_trs = count_trs(path, info, t_r)
    held = 1  # steps of motion energy that a frame stays: more than one only for films slower than 16 frames a second
    while FRAMES_PER_STEP / held > float(info.fps) * STEP and held < FRAMES_PER_STEP:
        held *= 2
    per_clip = round(t_r / STEP) * FRAMES_PER_STEP // held
    frames = read_clips(path, n_trs, t_r, per_clip, PIXELS).reshape(-1, 3, PIXELS, PIXELS).repeat(held, axis=0)
    return frame_features(frames, truth, float(info.fps), name=str(path))


def frame_features(frames: UInt8[np.ndarray, "F 3 H W"], truth: pd.DataFrame | None, fps: float, name: str) -> Features:
    """Features of frames of ``PIXELS`` a side, ``FRAMES_PER_STEP`` a step; ``fps`` is the rate of the truth's rows."""
    light = opponent(frames)
    layout = _cells(_steps(light))
    variance = _cells(_steps(light[:, :1] ** 2)) - layout[:, :1] ** 2
    contrast = np.sqrt(np.maximum(variance, 0))[:, 0]
    if truth is None:
        meaning = statistics_meaning(_steps(frames.astype(np.float32)), contrast)
    else:
        meaning = truth_meaning(truth, fps, n_steps=len(layout), name=name)
    return Features(motion_energy(light[:, 0]), layout, contrast, meaning)


def opponent(frames: UInt8[np.ndarray, "F 3 H W"]) -> Float32[np.ndarray, "F 3 H W"]:
    """Luminance (Rec. 601), red minus green and blue minus yellow, each 0 for mid grey, within [-1, 1]."""
    r, g, b = (frames[:, c].astype(np.float32) / 255 for c in range(3))
    return np.stack([0.299 * r + 0.587 * g + 0.114 * b - 0.5, r - g, b - (r + g) / 2], axis=1)


def motion_energy(luminance: Float32[np.ndarray, "F H W"]) -> Float32[np.ndarray, "N P"]:
    """Square root of motion energy of each filter, averaged over steps.

    The root is pymoten's quadrature amplitude: a compression like that of cortical contrast response.
    """
    pyramid = _pyramid()
    energy = pyramid.project_stimulus_batched(
        luminance, output_nonlinearity=lambda x: x, stimulus_batch_size=1024, batch_size=256
    )
    return _steps(np.sqrt(energy))


def _steps(frames: np.ndarray) -> np.ndarray:
    """Mean over the frames of each step."""
    return frames.reshape(-1, FRAMES_PER_STEP, *frames.shape[1:]).mean(1, dtype=np.float32)


def _cells(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) averaged to GRID x GRID cells."""
    n, c, h, w = images.shape
    return images.reshape(n, c, GRID, h // GRID, GRID, w // GRID).mean((3, 5))


# --- meaning ----------------------------------------------------------------------------------------------------------

_ACTOR = len(CATEGORIES) + len(ATTRIBUTES) + IDENTITY + len(MOTIONS)


def thing_code(name: str) -> Float[np.ndarray, " D"]:
    """Category, attributes, and a random identity of unit length that its name fixes and that it shares with none."""
    thing = thing_named(name)
    category = np.array([float(thing.category == c) for c in CATEGORIES])
    attributes = np.array([thing.attributes[a] - 0.3 for a in ATTRIBUTES])
    identity = np.random.default_rng(stable_seed("thing", name)).normal(size=IDENTITY)
    return np.concatenate([category, attributes, identity / np.linalg.norm(identity)])


def place_net(x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "N places"]:
    """How near positions (degrees, up positive) are to each cell of the place net; rows sum to one."""
    cx, cy = grid_centres(PLACES)
    width = FIELD_OF_VIEW / PLACES / 1.5
    near = np.exp(-((x[:, None] - cx) ** 2 + (y[:, None] - cy) ** 2) / (2 * width**2)) + 1e-6
    return near / near.sum(1, keepdims=True)


def truth_meaning(truth: pd.DataFrame, fps: float, n_steps: int, name: str) -> Float32[np.ndarray, "N M"]:
    """Semantic features from the table of frames that ``write_film`` returns: who is where, doing what, on what.

    An actor's code is weighted by the root of the area it shows, and multiplied with the place net.
    """
    if len(truth) < round(n_steps * STEP * fps):
        raise DataError(
            f"{name}: a truth table of {len(truth)} frames for a film of {n_steps * STEP:g} s at {fps:g} Hz"
        )
    middle = truth.iloc[np.floor((np.arange(n_steps) + 0.5) * STEP * fps).astype(int)]
    acted = np.zeros((n_steps, _ACTOR, PLACES**2))
    for role in ("main", "second"):
        if f"{role}_thing" not in middle:
            continue
        there = middle[f"{role}_thing"].notna().to_numpy()
        rows = middle[there]
        if not there.any():
            continue
        codes = {thing: thing_code(thing) for thing in rows[f"{role}_thing"].unique()}
        what = np.stack([codes[thing] for thing in rows[f"{role}_thing"]])
        does = (rows[f"{role}_motion"].to_numpy(str)[:, None] == np.array(MOTIONS)).astype(float)
        area = rows[f"{role}_size"].to_numpy(float) * np.sqrt(rows[f"{role}_visible"].to_numpy(float))
        x = (rows[f"{role}_x"].to_numpy(float) - 0.5) * FIELD_OF_VIEW
        y = (0.5 - rows[f"{role}_y"].to_numpy(float)) * FIELD_OF_VIEW
        code = np.concatenate([what, does], 1) * area[:, None]
        acted[there] += code[:, :, None] * place_net(x, y)[:, None, :]
    ground = (middle["ground"].to_numpy(str)[:, None] == np.array(list(GROUNDS))).astype(float)
    light = (middle["light"].to_numpy(str)[:, None] == np.array(list(LIGHTS))).astype(float)
    return np.concatenate([acted.reshape(n_steps, -1), ground, light], 1).astype(np.float32)


def truth_axes() -> MeaningAxes:
    """Axes of ``truth_meaning``. Weights: category and attributes lead; identity, motion and ground add detail."""
    scene = len(GROUNDS) + len(LIGHTS)
    weight = np.repeat(
        [1.0, 1.0, 0.9, 0.4, 0.5, 0.3],
        [len(CATEGORIES), len(ATTRIBUTES), IDENTITY, len(MOTIONS), len(GROUNDS), len(LIGHTS)],
    )
    code = np.concatenate([np.repeat(np.arange(_ACTOR), PLACES**2), _ACTOR + np.arange(scene)])
    place = np.concatenate([np.tile(np.arange(PLACES**2), _ACTOR), np.full(scene, -1)])
    return MeaningAxes(code, place, weight)


STATISTICS = 40  # width of the projected image statistics


def statistics_meaning(
    images: Float32[np.ndarray, "N 3 H W"], contrast: Float32[np.ndarray, "N cells cells"]
) -> Float32[np.ndarray, "N M"]:
    """A stand-in for meaning in films without a truth table, from global image statistics.

    Colour histogram (4 x 4 x 4 bins) and histogram of oriented gradients (8 directions, 2 x 2 cells), centred on a
    flat picture and randomly projected; multiplied with the place of the centre of contrast.
    """
    from skimage.feature import hog

    codes = np.empty((len(images), 64 + 32))
    for n, image in enumerate(images):
        bins = np.clip(image / 64, 0, 3).astype(int).reshape(3, -1)
        codes[n, :64] = np.bincount(bins[0] * 16 + bins[1] * 4 + bins[2], minlength=64) / bins.shape[1]
        half = image.shape[1] // 2
        codes[n, 64:] = hog(image, 8, (half, half), (1, 1), channel_axis=0)
    random = np.random.default_rng(stable_seed("image statistics")).normal(size=(codes.shape[1], STATISTICS))
    code = np.sqrt(codes) @ random / np.sqrt(codes.shape[1])
    x, y = grid_centres(GRID)
    mass = contrast.reshape(len(contrast), -1) ** 2 + 1e-6
    mass /= mass.sum(1, keepdims=True)
    return (code[:, :, None] * place_net(mass @ x, mass @ y)[:, None]).reshape(len(images), -1).astype(np.float32)


def statistics_axes() -> MeaningAxes:
    """Axes of ``statistics_meaning``."""
    code, place = np.repeat(np.arange(STATISTICS), PLACES**2), np.tile(np.arange(PLACES**2), STATISTICS)
    return MeaningAxes(code, place, np.ones(STATISTICS))


def describe(scene_truth: Mapping[str, object] | None) -> str:
    """Which semantic space drives the semantic voxels, in a sentence for the card."""
    if scene_truth is None:
        return "image statistics (colour histogram, oriented gradients; randomly projected): no truth table was given"
    return "category, attributes, identity, motion, ground and light from the film's truth table"
