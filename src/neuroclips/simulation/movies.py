"""Films of the user's own for the simulated subject: any folder of videos, cut into segments.

A film is shown in training or in test, never in both. Training goes round its films until the segments are full, each
time in another order; in test every second of film is shown once, so test segments may be shorter than asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuroclips.artefacts import stable_seed
from neuroclips.data.frames import film_info, stream_frames, write_video
from neuroclips.errors import DataError
from neuroclips.recipe import FilmRecipe
from neuroclips.shapes import UInt8
from neuroclips.simulation.scenes import SCENE_SECONDS

FPS = 30
TEST_SHARE = 0.3  # of the films, at least two
SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v"}


@dataclass(frozen=True)
class Shot:
    """``seconds`` of a film from ``start`` on."""

    path: Path
    start: float
    seconds: float


def plan_movies(folder: Path, recipe: FilmRecipe, seed: int) -> dict[str, list[Shot]]:
    """Shots of every segment, seg1 ... and test1 ...; a segment lasts a whole number of 2 s clips.

    Raises
    ------
    DataError
        The folder is missing or has too few films, or they are too short for the number of test segments.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; expected a folder of films")
    paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES)
    if len(paths) < 4:
        raise DataError(f"{folder}: {len(paths)} films ({', '.join(sorted(SUFFIXES))}); expected at least 4")
    rng = np.random.default_rng(stable_seed("movies", seed))
    order = rng.permutation(len(paths))
    n_test = max(2, round(TEST_SHARE * len(paths)))
    pieces = {path: _cut(path) for path in paths}
    test = [shot for i in order[:n_test] for shot in pieces[paths[i]]]
    train = [shot for i in order[n_test:] for shot in pieces[paths[i]]]
    film = {}
    endless = _endless(train, rng)
    for number in range(1, recipe.train_segments + 1):
        film[f"seg{number}"] = _fill(endless, float(recipe.train_seconds))
    # Test films are dealt to the segments in turn; within a segment, a film's shots stay together.
    for number in range(1, recipe.test_segments + 1):
        dealt = [shot for k, i in enumerate(order[:n_test]) if k % recipe.test_segments == number - 1
                 for shot in pieces[paths[i]]]  # fmt: skip
        seconds = min(recipe.test_seconds, 2 * int(sum(shot.seconds for shot in dealt) / 2))
        if seconds < 10:
            raise DataError(
                f"{folder}: {sum(shot.seconds for shot in test):.0f} s of test film for {recipe.test_segments} test "
                "segments; expected at least 10 s each: give more films, or fewer test segments (film.test_segments)"
            )
        film[f"test{number}"] = _fill(iter(dealt), float(seconds))
    return film


def _cut(path: Path) -> list[Shot]:
    """A film in pieces of equal length, none longer than a scene."""
    seconds = film_info(path).seconds
    n = int(np.ceil(seconds / SCENE_SECONDS[1]))
    return [Shot(path, k * seconds / n, seconds / n) for k in range(n)]


def _endless(shots: list[Shot], rng: np.random.Generator) -> Iterator[Shot]:
    while True:
        for i in rng.permutation(len(shots)):
            yield shots[i]


def _fill(shots: Iterator[Shot], seconds: float) -> list[Shot]:
    """Shots of exactly ``seconds``, the last one shortened."""
    chosen, left = [], seconds
    while left > 1e-6:
        shot = next(shots)
        chosen.append(Shot(shot.path, shot.start, min(shot.seconds, left)))
        left -= chosen[-1].seconds
    return chosen


def write_movie(path: Path, shots: list[Shot], size: int) -> None:
    """Write shots as one film of 30 frames a second, centre square; frame i is what its film shows at that time."""
    write_video(path, _frames(shots, size), FPS)


def _frames(shots: list[Shot], size: int) -> Iterator[UInt8[np.ndarray, "3 size size"]]:
    shown, end = 0, 0.0
    for shot in shots:
        info = film_info(shot.path)
        begin, end = end, end + shot.seconds
        times = np.arange(shown, round(end * FPS)) / FPS - begin + shot.start
        shown = round(end * FPS)
        if not len(times):  # a shot shorter than a frame
            continue
        numbers = np.clip((times * float(info.fps) + 1e-6).astype(int), 0, info.n_frames - 1)
        yield from stream_frames(shot.path, numbers, size)
