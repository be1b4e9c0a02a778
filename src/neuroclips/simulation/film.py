"""The picture-book film: scenes cut together, written as video, with the truth of every frame beside it.

>>> import numpy as np
>>> from neuroclips.simulation.things import TRAINING_THINGS
>>> scenes = plan_segment(np.random.default_rng(0), 20.0, things=TRAINING_THINGS, places=familiar_places)
>>> sum(scene.duration_s for scene in scenes)
20.0
>>> render(scenes[0], [0.0, 0.5, 1.0], 64).shape
(3, 3, 64, 64)
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from neuroclips.data.frames import write_video
from neuroclips.simulation.grounds import GROUNDS
from neuroclips.simulation.rendering import draw_frames, render
from neuroclips.simulation.scenes import SCENE_SECONDS, Actor, ActorState, Places, Scene, caption_words, sample_scene
from neuroclips.simulation.things import HELD_OUT_THINGS, TRAINING_THINGS, Thing

__all__ = [
    "Actor",
    "ActorState",
    "Places",
    "Scene",
    "caption_words",
    "familiar_places",
    "frame_table",
    "new_places",
    "place_is_held_out",
    "plan_film",
    "plan_segment",
    "render",
    "sample_scene",
    "scene_table",
    "schedule",
    "write_film",
]

# --- which pairs of thing and ground training never shows -------------------------------------------------------------


def place_is_held_out(thing: Thing, ground: str) -> bool:
    """Whether training never shows this thing on this ground: a fixed draw, about one pair in six."""
    return zlib.crc32(f"{thing.name} | {ground}".encode()) % 6 == 0


@functools.cache
def familiar_places(thing: Thing) -> tuple[str, ...]:
    """The grounds on which training may show a thing."""
    return tuple(ground for ground in GROUNDS if not place_is_held_out(thing, ground))


@functools.cache
def new_places(thing: Thing) -> tuple[str, ...]:
    """The grounds on which only a test film shows a thing; none for a few things."""
    return tuple(ground for ground in GROUNDS if place_is_held_out(thing, ground))


# --- planning ---------------------------------------------------------------------------------------------------------


def plan_segment(
    rng: np.random.Generator, seconds: float | int, *, things: Sequence[Thing], places: Places
) -> list[Scene]:
    """Scenes of 4 to 12 s with hard cuts that exactly fill `seconds`.

    Consecutive scenes share neither the main thing nor the ground.
    """
    scenes: list[Scene] = []
    for duration in _durations(rng, seconds):
        draw = functools.partial(sample_scene, rng, things=things, places=places, duration_s=duration)
        scenes.append(_next_scene(scenes, draw))
    return scenes


def plan_film(
    seed: int,
    *,
    train_segments: int,
    test_segments: int,
    train_seconds: float | int,
    test_seconds: float | int,
    unseen_things: float | int = 0.25,
    new_places: float | int = 0.25,
) -> dict[str, list[Scene]]:
    """A whole film: scenes of segments seg1, seg2, ... to train on and test1, test2, ... to test on.

    Training shows training things in their familiar places only. Of all test scenes a share `unseen_things` has a
    held-out thing as main actor, and a share `new_places` a training thing on a ground where training never shows it;
    the rest are new scenes of a (thing, ground, motion) that no training scene of this film has. Second actors are
    always training things in familiar places.
    """
    if not (0 <= unseen_things <= 1 and 0 <= new_places <= 1 and unseen_things + new_places <= 1):
        raise ValueError(
            f"unseen_things and new_places are shares of the test scenes; got {unseen_things} and {new_places}"
        )
    train_seed, test_seed = np.random.SeedSequence(seed).spawn(2)
    film = {
        f"seg{k}": plan_segment(
            np.random.default_rng(child), train_seconds, things=TRAINING_THINGS, places=familiar_places
        )
        for k, child in enumerate(train_seed.spawn(train_segments), 1)
    }
    shown = {_gist(scene) for scenes in film.values() for scene in scenes}
    rng = np.random.default_rng(test_seed)
    durations = [_durations(rng, test_seconds) for _ in range(test_segments)]
    kinds = iter(rng.permutation(_quota(sum(map(len, durations)), unseen_things, new_places)))
    for k, segment in enumerate(durations, 1):
        scenes: list[Scene] = []
        for duration in segment:
            scenes.append(_next_scene(scenes, _test_scene(rng, next(kinds), duration, shown)))
        film[f"test{k}"] = scenes
    return film


def _quota(count: int, unseen: float | int, placed: float | int) -> list[str]:
    """The kind of each of `count` test scenes, in no order."""
    of_unseen, of_placed = round(count * unseen), round(count * placed)
    kinds = ["unseen thing"] * of_unseen + ["new place"] * of_placed
    return (kinds + ["familiar"] * count)[:count]


def _test_scene(
    rng: np.random.Generator, kind: str, duration: float, shown: set[tuple[str, str, str]]
) -> Callable[[], Scene]:
    """Draws test scenes of one kind."""
    things, places = TRAINING_THINGS, familiar_places
    if kind == "unseen thing":
        things = HELD_OUT_THINGS
    elif kind == "new place":
        things, places = tuple(thing for thing in TRAINING_THINGS if new_places(thing)), new_places

    def draw() -> Scene:
        while True:
            scene = sample_scene(
                rng,
                things=things,
                places=places,
                duration_s=duration,
                companions=TRAINING_THINGS,
                companion_places=familiar_places,
            )
            if _gist(scene) not in shown:
                return scene

    return draw


def _gist(scene: Scene) -> tuple[str, str, str]:
    return scene.main.thing.name, scene.ground, scene.main.motion


def _next_scene(before: list[Scene], draw: Callable[[], Scene]) -> Scene:
    """Draws until the scene differs in main thing and ground from the one before it."""
    for _ in range(1000):
        scene = draw()
        if not before or (scene.main.thing != before[-1].main.thing and scene.ground != before[-1].ground):
            return scene
    raise ValueError("no scene differs from the one before it in thing and ground: give more things or places")


def _durations(rng: np.random.Generator, seconds: float | int) -> list[float]:
    """Scene lengths in tenths of a second, between 4 and 12 s, that sum to `seconds`."""
    least, most = (round(10 * s) for s in SCENE_SECONDS)
    left = round(10 * seconds)
    if left < least or abs(left - 10 * seconds) > 1e-6:
        raise ValueError(f"a segment lasts at least {SCENE_SECONDS[0]} s, in tenths of a second; got {seconds} s")
    tenths = []
    while left > most:
        tenths.append(int(rng.integers(least, min(most, left - least) + 1)))
        left -= tenths[-1]
    return [t / 10 for t in [*tenths, left]]


# --- tables -----------------------------------------------------------------------------------------------------------


def scene_table(scenes: Sequence[Scene]) -> pd.DataFrame:
    """One row a scene: when, what, where; and whether training could have shown its thing, and its thing there."""
    ends = np.cumsum([scene.duration_s for scene in scenes])
    return pd.DataFrame(
        {
            "scene": index,
            "start_s": round(float(end - scene.duration_s), 6),
            "end_s": round(float(end), 6),
            "caption": scene.caption,
            "thing": scene.main.thing.name,
            "category": scene.main.thing.category,
            "ground": scene.ground,
            "light": scene.light,
            "motion": scene.main.motion,
            "direction": scene.main.direction,
            "second_thing": scene.actors[1].thing.name if len(scene.actors) > 1 else None,
            "unseen_thing": scene.main.thing.held_out,
            "new_place": not scene.main.thing.held_out and place_is_held_out(scene.main.thing, scene.ground),
        }
        for index, (scene, end) in enumerate(zip(scenes, ends, strict=True))
    )


def frame_table(scenes: Sequence[Scene], *, fps: int = 30) -> pd.DataFrame:
    """The truth of every frame of a segment, one row a frame; actor columns start with `main_` and `second_`.

    Columns that speak of a second actor are empty where there is none. Units are those of `ActorState`.
    """
    parts, start = [], 0
    for index, (scene, times) in enumerate(schedule(scenes, fps)):
        columns: dict[str, object] = {
            "frame": np.arange(start, start + len(times)),
            "time_s": np.arange(start, start + len(times)) / fps,
            "scene": index,
            "caption": scene.caption,
            "ground": scene.ground,
            "light": scene.light,
            "pan_x": scene.pan[0],
            "pan_y": scene.pan[1],
        }
        for role, actor, state in zip(("main", "second"), scene.actors, scene.state(times)):
            columns |= {f"{role}_{name}": value for name, value in _actor_columns(actor, state).items()}
        parts.append(pd.DataFrame(columns))
        start += len(times)
    return pd.concat(parts, ignore_index=True)


def _actor_columns(actor: Actor, state: ActorState) -> dict[str, object]:
    return {
        "thing": actor.thing.name,
        "category": actor.thing.category,
        "motion": actor.motion,
        "direction": actor.direction,
        **vars(state),
    }


def schedule(scenes: Sequence[Scene], fps: int) -> Iterator[tuple[Scene, np.ndarray]]:
    """Each scene with the times, from its own start, of the frames that fall into it."""
    ends = np.cumsum([scene.duration_s for scene in scenes])
    first = 0
    for scene, end in zip(scenes, ends, strict=True):
        last = round(end * fps)
        yield scene, np.arange(first, last) / fps - (end - scene.duration_s)
        first = last


# --- writing ----------------------------------------------------------------------------------------------------------


def write_film(path: str | os.PathLike[str], scenes: Sequence[Scene], *, size: int, fps: int = 30) -> pd.DataFrame:
    """Renders a segment to an MP4 of `round(seconds * fps)` frames of `size` px; returns its `frame_table`.

    The file appears under its name only when it is complete.
    """
    frames = (
        frame.transpose(2, 0, 1) for scene, times in schedule(scenes, fps) for frame in draw_frames(scene, times, size)
    )
    write_video(Path(path), frames, fps)
    return frame_table(scenes, fps=fps)
