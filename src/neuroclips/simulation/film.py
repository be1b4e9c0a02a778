"""Scenes of the picture-book world, their rendering at any time and size, and films made of them.

Positions and sizes are in frames (1 = the width of the picture), x to the right and y down; times in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pandas as pd

from neuroclips.artefacts import stable_seed
from neuroclips.data.frames import write_video
from neuroclips.shapes import Float, UInt8
from neuroclips.simulation.grounds import CANVAS, GROUNDS, LIGHTS, paint
from neuroclips.simulation.sprites import pyramid
from neuroclips.simulation.things import THINGS, Thing

FPS = 30
SCENE_SECONDS = (4, 12)
_SHADOW = (0.03, 0.045, 0.35)  # offset right and down, strength

# motion: the words for it, by what moves: things with legs, things with wheels, everything else
MOTIONS = {
    "drift": ("walks", "rolls", "drifts"),
    "cross": ("runs", "speeds", "flies"),
    "approach": ("comes closer",) * 3,
    "recede": ("goes away",) * 3,
    "bounce": ("jumps", "bounces", "bounces"),
    "spin": ("spins",) * 3,
    "sway": ("dances", "rocks", "sways"),
    "rest": ("stays still",) * 3,
}
_DIRECTED = {"drift", "cross"}  # motions whose caption tells the direction
DIRECTIONS = {"to the right": (1, 0), "to the left": (-1, 0), "upwards": (0, -1), "downwards": (0, 1)}


@dataclass(frozen=True)
class Actor:
    """A thing that moves. ``size`` of its picture; (x, y) its centre at time 0; ``speed`` in frames a second."""

    thing: Thing
    motion: str
    direction: str
    speed: float
    size: float
    x: float
    y: float
    phase: float


@dataclass(frozen=True)
class Scene:
    """One uncut shot. ``pan`` is the camera's speed (x, y) in frames a second; ``seed`` paints the ground."""

    ground: str
    light: str
    pan: tuple[float, float]
    actors: tuple[Actor, ...]
    duration_s: float
    seed: int

    @property
    def caption(self) -> str:
        """One plain sentence, such as ``a dog runs to the left over grass``."""
        acts = " and ".join(_phrase(actor) for actor in self.actors)
        return " ".join(f"{acts} {GROUNDS[self.ground][1]} {LIGHTS[self.light][1]}".split())

    def state(self, times: Float[np.ndarray, " T"]) -> dict[str, Float[np.ndarray, "T A"]]:
        """Where every actor is: x, y, size, angle (degrees, clockwise), vx, vy (frames a second), visible (share)."""
        now, soon = (self._poses(np.asarray(times, float) + dt) for dt in (0.0, 1e-3))
        x, y, size, angle = now
        wrapped = np.abs(soon[0] - x) > 0.5  # a crossing actor came in again on the other side
        vx, vy = (np.where(wrapped, np.nan, (b - a) / 1e-3) for a, b in zip(now[:2], soon[:2]))
        inside = [np.clip((np.minimum(c + size / 2, 1) - np.maximum(c - size / 2, 0)) / size, 0, 1) for c in (x, y)]
        return {"x": x, "y": y, "size": size, "angle": angle, "vx": vx, "vy": vy, "visible": inside[0] * inside[1]}

    def _poses(self, times: np.ndarray) -> tuple[np.ndarray, ...]:
        poses = [_pose(actor, times, self.duration_s) for actor in self.actors]
        return tuple(np.stack(part, axis=1) for part in zip(*poses))


def _phrase(actor: Actor) -> str:
    attributes = actor.thing.attributes
    kind = 0 if attributes[0] else 1 if actor.thing.category == "vehicle" else 2
    words = ["an" if actor.thing.name[0] in "aeiou" else "a", actor.thing.name, MOTIONS[actor.motion][kind]]
    return " ".join([*words, actor.direction] if actor.motion in _DIRECTED else words)


VOCABULARY = frozenset(
    " ".join(
        [
            "a an and", *(t.name for t in THINGS), *(w for words in MOTIONS.values() for w in words), *DIRECTIONS,
            *(words for _, words in GROUNDS.values()), *(words for _, words in LIGHTS.values()),
        ]
    ).split()
)  # fmt: skip


def _pose(actor: Actor, t: np.ndarray, duration: float) -> tuple[np.ndarray, ...]:
    """x, y, size and angle of an actor at times ``t`` (T,)."""
    x, y, size, angle = (np.full_like(t, v) for v in (actor.x, actor.y, actor.size, 0.0))
    way = np.array(DIRECTIONS[actor.direction], float) * actor.speed
    if actor.motion == "drift":  # turns round before it leaves the picture
        x, y = _reflect(x + way[0] * t), _reflect(y + way[1] * t)
    elif actor.motion == "cross":  # leaves, and comes in again on the other side
        margin = actor.size / 2
        span = 1 + 2 * margin
        x, y = (((c + w * t + margin) % span) - margin if w else c for c, w in ((x, way[0]), (y, way[1])))
    elif actor.motion in ("approach", "recede"):
        grown = np.clip(t / duration, 0, 1)
        grown = grown if actor.motion == "approach" else 1 - grown
        size = 0.22 * (max(actor.size, 0.6) / 0.22) ** grown
        x, y = (0.5 + (c - 0.5) * (1.3 - grown) for c in (x, y))
    elif actor.motion == "bounce":
        y = y - 0.3 * np.abs(np.sin(np.pi * (0.9 + actor.speed) * t + actor.phase)) + 0.12
    elif actor.motion == "spin":
        angle = np.sign(np.cos(actor.phase)) * 360 * (0.15 + 0.5 * actor.speed) * t
    elif actor.motion == "sway":
        swing = np.sin(2 * np.pi * (0.35 + 0.4 * actor.speed) * t + actor.phase)
        x, angle = x + 0.13 * swing, 16 * swing
    return x, y, size, angle


def _reflect(c: np.ndarray, low: float = 0.12, high: float = 0.88) -> np.ndarray:
    return low + np.abs((c - low + (high - low)) % (2 * (high - low)) - (high - low))


def render(scene: Scene, times: Float[np.ndarray, " T"], size: int) -> UInt8[np.ndarray, "T 3 size size"]:
    """Frames of a scene at any times, RGB. About 0.5 ms a frame at 128 pixels."""
    ground = paint(scene.ground, np.random.default_rng(scene.seed), size)
    light = np.array(LIGHTS[scene.light][0], np.float32)
    ground = np.clip(ground * light, 0, 255).astype(np.uint8)
    state = scene.state(times)
    middle = (CANVAS - 1) / 2 * size
    frames = np.empty((len(times), 3, size, size), np.uint8)
    for i, t in enumerate(times):
        # Pans turn round at the edge of the canvas.
        left, top = (_reflect(np.array(0.5 + v * t), 0.02, 0.98) * 2 * middle for v in scene.pan)
        frame = cv2.warpAffine(
            ground, np.float32([[1, 0, -left], [0, 1, -top]]), (size, size), flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )  # fmt: skip
        for a, actor in enumerate(scene.actors):
            pose = (float(state[k][i, a]) for k in ("x", "y", "size", "angle"))
            _draw(frame, actor, *pose, light)
        frames[i] = frame.transpose(2, 0, 1)
    return frames


def _draw(frame: np.ndarray, actor: Actor, x: float, y: float, scale: float, angle: float, light: np.ndarray) -> None:
    """Blend an actor and its shadow into ``frame`` (H, W, 3) in place."""
    size = frame.shape[0]
    wanted = scale * size * 1.5  # pixels of the picture with its margin
    levels = pyramid(actor.thing.codepoint)
    picture, shadow = levels[max(0, min(len(levels) - 1, int(np.log2(max(levels[0][0].shape[0] / wanted, 1)))))]
    side = picture.shape[0]
    # Pictures look to the left; who moves to the right is mirrored.
    mirror = -1.0 if actor.direction == "to the right" else 1.0
    zoom, turn = wanted / side, np.deg2rad(angle)
    rotation = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag([mirror, 1.0])
    reach = int(np.ceil(wanted * (0.5 if angle == 0 else 0.71))) + 1
    for layer, (dx, dy) in ((shadow, _SHADOW[:2]), (picture, (0.0, 0.0))):
        cx, cy = (x + dx * scale) * size - 0.5, (y + dy * scale) * size - 0.5
        x0, x1 = max(0, int(cx) - reach), min(size, int(cx) + reach + 1)
        y0, y1 = max(0, int(cy) - reach), min(size, int(cy) + reach + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        offset = np.array([cx - x0, cy - y0]) - rotation @ np.full(2, (side - 1) / 2)
        matrix = np.column_stack([rotation, offset]).astype(np.float32)
        warped = cv2.warpAffine(layer, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
        part = frame[y0:y1, x0:x1]
        if warped.ndim == 2:
            part[:] = part * (1 - _SHADOW[2] * warped[..., None])
        else:
            part[:] = np.minimum(part * (1 - warped[..., 3:]) + 255 * warped[..., :3] * np.minimum(light * 1.1, 1), 255)


def place_is_held_out(thing: Thing, ground: str) -> bool:
    """Whether a thing never stands on this ground in training: a fixed one in six of all pairs."""
    return stable_seed("place", thing.name, ground) % 6 == 0


def sample_scene(
    rng: np.random.Generator,
    *,
    things: Sequence[Thing],
    places: Literal["known", "new", "any"] = "known",
    duration_s: float | None = None,
) -> Scene:
    """A random scene whose main actor is one of ``things``, in a place that training shows (``known``) or not (``new``).

    A second actor, in a third of the scenes, is always a known thing, or one of ``things``, in a known place.
    """
    main = things[rng.integers(len(things))]
    grounds = [g for g in GROUNDS if places == "any" or place_is_held_out(main, g) == (places == "new")]
    if not grounds:  # a thing without held-out places, asked for a new one
        return sample_scene(rng, things=things, places=places, duration_s=duration_s)
    ground = grounds[rng.integers(len(grounds))]
    actors = [_sample_actor(rng, main, (0.42, 0.85))]
    others = [t for t in THINGS if not t.held_out and t is not main and not place_is_held_out(t, ground)]
    if rng.random() < 0.35:
        second = _sample_actor(rng, others[rng.integers(len(others))], (0.3, 0.5))
        apart = {axis: (getattr(actors[0], axis) + 0.35) % 0.6 + 0.2 for axis in ("x", "y")}  # on the free side
        actors.append(replace(second, **apart))
    moving = rng.random() < 0.5
    pan = tuple(float(v) for v in rng.normal(0, 0.05, 2)) if moving else (0.0, 0.0)
    return Scene(
        ground=ground, light=str(rng.choice(list(LIGHTS), p=[0.55, 0.15, 0.15, 0.15])), pan=pan, actors=tuple(actors),
        duration_s=float(rng.integers(SCENE_SECONDS[0], SCENE_SECONDS[1] + 1)) if duration_s is None else duration_s,
        seed=int(rng.integers(2**31)),
    )  # fmt: skip


def _sample_actor(rng: np.random.Generator, thing: Thing, sizes: tuple[float, float]) -> Actor:
    motion = list(MOTIONS)[rng.integers(len(MOTIONS))]
    direction = list(DIRECTIONS)[rng.choice(4, p=[0.35, 0.35, 0.15, 0.15])]
    speed = rng.uniform(0.04, 0.14) if motion == "drift" else rng.uniform(0.25, 0.55)
    x, y = rng.uniform(0.2, 0.8, 2)
    return Actor(thing, motion, direction, float(speed), float(rng.uniform(*sizes)), float(x), float(y),
                 float(rng.uniform(0, 2 * np.pi)))  # fmt: skip


def plan_film(
    seed: int, *, train_segments: int, test_segments: int, train_seconds: int, test_seconds: int,
    unseen_things: float = 0.25, new_places: float = 0.25,
) -> dict[str, list[Scene]]:  # fmt: skip
    """Scenes of every segment: seg1, seg2, ... for training and test1, test2, ... for test.

    Of the test scenes a share ``unseen_things`` has a held-out thing as main actor and a share ``new_places`` a known
    thing on a ground where training never shows it; the others are new scenes of known things in known places.
    """
    rng = np.random.default_rng(stable_seed("film", seed))
    known, unseen = (tuple(t for t in THINGS if t.held_out == held_out) for held_out in (False, True))
    film: dict[str, list[Scene]] = {}
    for kind, n, seconds in (("seg", train_segments, train_seconds), ("test", test_segments, test_seconds)):
        for number in range(1, n + 1):
            scenes: list[Scene] = []
            for duration in _durations(rng, seconds):
                draw = rng.random() if kind == "test" else 1.0
                things = unseen if draw < unseen_things else known
                places = "any" if things is unseen else "new" if draw < unseen_things + new_places else "known"
                while True:  # no thing or ground twice in a row: every cut shows
                    scene = sample_scene(rng, things=things, places=places, duration_s=duration)
                    last = scenes[-1] if scenes else None
                    if last is None or (
                        scene.ground != last.ground and scene.actors[0].thing is not last.actors[0].thing
                    ):
                        break
                scenes.append(scene)
            film[f"{kind}{number}"] = scenes
    return film


def _durations(rng: np.random.Generator, seconds: int) -> list[float]:
    """Scene lengths of 4 to 12 whole seconds that fill ``seconds`` exactly."""
    low, high = SCENE_SECONDS
    durations, left = [], seconds
    while left > high:
        duration = int(rng.integers(low, min(high, left - low) + 1))
        durations.append(float(duration))
        left -= duration
    return [*durations, float(left)]


def write_film(path: Path, scenes: Sequence[Scene], *, size: int, fps: int = FPS) -> pd.DataFrame:
    """Render scenes to an MP4 and return the truth: one row a frame and actor.

    Columns: frame, scene, caption, ground, light, pan_x, pan_y, actor, thing, category, motion, direction, and x, y,
    size, angle, vx, vy, visible of ``Scene.state``.
    """
    truth, first = [], 0

    def frames():
        nonlocal first
        for number, scene in enumerate(scenes):
            n = round(scene.duration_s * fps)
            times = np.arange(n) / fps
            state = scene.state(times)
            for a, actor in enumerate(scene.actors):
                truth.append(
                    pd.DataFrame(
                        {
                            "frame": first + np.arange(n), "scene": number, "caption": scene.caption,
                            "ground": scene.ground, "light": scene.light, "pan_x": scene.pan[0], "pan_y": scene.pan[1],
                            "actor": a, "thing": actor.thing.name, "category": actor.thing.category,
                            "motion": actor.motion, "direction": actor.direction,
                            **{name: values[:, a] for name, values in state.items()},
                        }
                    )
                )  # fmt: skip
            first += n
            yield from render(scene, times, size)

    write_video(path, frames(), fps=fps)
    return pd.concat(truth, ignore_index=True)


def scene_table(segment: str, scenes: Sequence[Scene]) -> pd.DataFrame:
    """One row a scene: segment, start_s, end_s, caption, thing, category, ground, motion, unseen_thing, new_place."""
    ends = np.cumsum([s.duration_s for s in scenes])
    return pd.DataFrame(
        {
            "segment": segment, "start_s": ends - [s.duration_s for s in scenes], "end_s": ends,
            "caption": [s.caption for s in scenes], "thing": [s.actors[0].thing.name for s in scenes],
            "category": [s.actors[0].thing.category for s in scenes], "ground": [s.ground for s in scenes],
            "motion": [s.actors[0].motion for s in scenes],
            "unseen_thing": [s.actors[0].thing.held_out for s in scenes],
            "new_place": [place_is_held_out(s.actors[0].thing, s.ground) for s in scenes],
        }
    )  # fmt: skip
