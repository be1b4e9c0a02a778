"""A scene of the picture book: who is in it, where, in what light, and how everything moves, in words and in numbers.

Positions are fractions of the frame, x rightward and y downward from its upper left corner; speeds are frame widths
per second; rotations are radians, clockwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from neuroclips.simulation.grounds import GROUNDS, LIGHTS
from neuroclips.simulation.things import THINGS, Thing

__all__ = ["MOTIONS", "Actor", "ActorState", "Places", "Scene", "caption_words", "sample_scene"]

MOTIONS = ("rest", "drift", "cross", "approach", "recede", "bounce", "spin", "sway", "circle")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
SCENE_SECONDS = (4.0, 12.0)

T = TypeVar("T")

Places = Callable[[Thing], Sequence[str]]
"""Which grounds a thing may be shown on."""

_BOUNCE_HEIGHT, _SWAY_WIDTH, _SWAY_ANGLE, _CIRCLE_RADIUS, _PAN_REACH = 0.25, 0.12, 0.3, 0.15, 0.25
_MASS_NOUNS = frozenset(
    ("bread", "cheese", "popcorn", "broccoli", "corn", "wheat", "lightning", "fire", "sushi", "chocolate")
)
_PATH_WORDS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
_VERBS = {
    "rest": "stays still",
    "approach": "comes closer",
    "recede": "moves away",
    "bounce": "bounces",
    "spin": "spins",
    "sway": "sways",
    "circle": "moves in a circle",
}


@dataclass(frozen=True)
class ActorState:
    """The truth about one actor at T times; each field float64 (T,).

    `x`, `y`: centre of its square; `size`: side of the square as a fraction of the frame; `rotation`; `vx`, `vy`:
    apparent speed in the frame, so that a panning camera moves a resting actor; `visible`: share of the unrotated
    square inside the frame, whatever else may cover it.
    """

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    rotation: np.ndarray
    vx: np.ndarray
    vy: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True)
class Actor:
    """A thing in motion. `x`, `y`: where it is at time 0, with the camera centred; `size`: side of its square then.

    `speed` is in frame widths per second (the peak, for bounce and sway); for approach and recede it is the rate of
    growth or shrinking of the logarithm of the size per second, for spin turns per second. `phase` in [0, 1) shifts
    periodic motions by that share of a period. `mirrored` turns the picture left to right.
    """

    thing: Thing
    motion: str
    x: float
    y: float
    size: float
    direction: str = "left"
    speed: float = 0.0
    phase: float = 0.0
    mirrored: bool = False

    def path(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """x, y, size and rotation at times t (seconds) before the camera's part; may run far out of the frame."""
        dx, dy = DIRECTIONS[self.direction]
        x, y, size, rotation = (np.full(t.shape, v, float) for v in (self.x, self.y, self.size, 0.0))
        v, turn = self.speed, 2 * np.pi * self.phase
        if self.motion in ("drift", "cross"):
            x, y = x + dx * v * t, y + dy * v * t
        elif self.motion == "approach":
            size = size * np.exp(v * t)
        elif self.motion == "recede":
            size = size * np.exp(-v * t)
        elif self.motion == "bounce":
            y = y + _BOUNCE_HEIGHT * (0.5 - np.abs(np.sin(v / _BOUNCE_HEIGHT * t + turn / 2)))
        elif self.motion == "spin":
            rotation = (dx or 1.0) * (2 * np.pi * v * t + turn)
        elif self.motion == "sway":
            swing = np.sin(v / _SWAY_WIDTH * t + turn)
            x, rotation = x + _SWAY_WIDTH * swing, _SWAY_ANGLE * swing
        elif self.motion == "circle":
            angle = (dx or 1.0) * (v / _CIRCLE_RADIUS * t + turn)
            x, y = x + _CIRCLE_RADIUS * np.cos(angle), y + _CIRCLE_RADIUS * np.sin(angle)
        return x, y, size, rotation

    @property
    def words(self) -> str:
        """This actor's part of the caption: "a dog runs to the left"."""
        name = self.thing.name
        article = "some" if name in _MASS_NOUNS else "an" if name[0] in "aeiou" else "a"
        return f"{article} {name} {self._verb}"

    @property
    def _verb(self) -> str:
        if self.motion == "drift":
            return f"drifts {_PATH_WORDS[self.direction]}"
        if self.motion != "cross":
            return _VERBS[self.motion]
        thing = self.thing
        if thing.attributes["airborne"] >= 0.5:
            verb = "flies"
        elif thing.attributes["aquatic"] >= 0.8:
            verb = "swims" if thing.attributes["animate"] else "sails"
        elif thing.attributes["animate"] >= 0.5:
            verb = "runs"
        else:
            verb = "drives" if thing.category == "vehicle" else "slides"
        return f"{verb} {_PATH_WORDS[self.direction]}"


@dataclass(frozen=True)
class Scene:
    """One shot. The first actor is the main one and is drawn in front; `pan` is the camera's speed (x, y).

    The camera sweeps to and fro within a quarter of a frame of the centre. `seed` chooses between drawings of the
    ground and places the light.
    """

    ground: str
    light: str
    actors: tuple[Actor, ...]
    duration_s: float
    pan: tuple[float, float] = (0.0, 0.0)
    seed: int = 0

    @property
    def main(self) -> Actor:
        return self.actors[0]

    @property
    def caption(self) -> str:
        """The scene in words: lower case, no punctuation, small fixed grammar."""
        parts = [" and ".join(actor.words for actor in self.actors), GROUNDS[self.ground].phrase]
        return " ".join([*parts, LIGHTS[self.light].phrase]).strip()

    def camera(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Displacement (x, y) of the camera in frame widths at times t."""
        return _sweep(self.pan[0], t), _sweep(self.pan[1], t)

    def state(self, times_s: Sequence[float] | np.ndarray) -> tuple[ActorState, ...]:
        """The truth at each time, one `ActorState` an actor, in the order of `actors`."""
        times = np.asarray(times_s, float)
        return tuple(self._actor_state(actor, times) for actor in self.actors)

    def _actor_state(self, actor: Actor, t: np.ndarray) -> ActorState:
        x, y, size, rotation = actor.path(t)
        (cx, cy), step = self.camera(t), 1e-4
        (ax, ay, *_), (bx, by, *_) = actor.path(t - step), actor.path(t + step)
        (acx, acy), (bcx, bcy) = self.camera(t - step), self.camera(t + step)
        vx, vy = (bx - bcx - ax + acx) / (2 * step), (by - bcy - ay + acy) / (2 * step)
        x, y = x - cx, y - cy
        if actor.motion == "cross":  # leaves on one side, comes back on the other
            sideways = actor.direction in ("left", "right")
            x, y = (_wrap(x, actor.size), y) if sideways else (x, _wrap(y, actor.size))
        visible = _overlap(x, size) * _overlap(y, size)
        return ActorState(x, y, size, rotation, vx, vy, visible)


def _sweep(speed: float, t: np.ndarray) -> np.ndarray:
    """A triangle wave between -/+ `_PAN_REACH`, starting opposite to where it heads."""
    if speed == 0:
        return np.zeros_like(t)
    way = np.abs((abs(speed) * t) % (4 * _PAN_REACH) - 2 * _PAN_REACH)
    return np.sign(speed) * (_PAN_REACH - way)


def _wrap(x: np.ndarray, size: float) -> np.ndarray:
    """Positions folded into [-size/2, 1 + size/2): at either end the square is just out of sight."""
    return (x + size / 2) % (1 + size) - size / 2


def _overlap(x: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.clip((np.minimum(x + size / 2, 1) - np.maximum(x - size / 2, 0)) / size, 0, 1)


def sample_scene(
    rng: np.random.Generator,
    *,
    things: Sequence[Thing],
    places: Places,
    duration_s: float | int | None = None,
    companions: Sequence[Thing] | None = None,
    companion_places: Places | None = None,
) -> Scene:
    """Draws a scene: the main actor from `things`, on one of its `places`; in four scenes of ten a second actor.

    The second actor comes from `companions` (default: `things`), among those that `companion_places` (default:
    `places`) allows on the main one's ground. `duration_s` defaults to a draw from 4 to 12 s.
    """
    seconds = float(rng.uniform(*SCENE_SECONDS)) if duration_s is None else float(duration_s)
    thing = _pick(rng, things)
    ground = _pick(rng, places(thing))
    # Half of the scenes are in plain daylight, as in film.
    light = "day" if rng.random() < 0.5 else _pick(rng, GROUNDS[ground].lights)
    cast = [thing]
    if rng.random() < 0.4:
        allowed = companion_places or places
        others = [t for t in (things if companions is None else companions) if t != thing and ground in allowed(t)]
        if others:
            cast.append(_pick(rng, others))
    pan = _sample_pan(rng, GROUNDS[ground].horizon)
    halves = rng.permutation(2)
    actors = tuple(_sample_actor(rng, t, seconds, int(half), len(cast), pan) for half, t in zip(halves, cast))
    return Scene(ground, light, actors, seconds, pan, int(rng.integers(2**31)))


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _sample_pan(rng: np.random.Generator, horizon: bool) -> tuple[float, float]:
    if rng.random() < 0.6:
        return 0.0, 0.0
    speed = float(rng.uniform(0.04, 0.16) * rng.choice([-1, 1]))
    return (speed, 0.0) if horizon or rng.random() < 0.7 else (0.0, speed)


def _sample_actor(
    rng: np.random.Generator, thing: Thing, seconds: float, half: int, cast: int, pan: tuple[float, float]
) -> Actor:
    """Sizes and starts vary widely, yet the thing spends most of the scene mostly in sight."""
    motion = _pick(rng, MOTIONS)
    size = float(rng.uniform(0.32, 0.7) if cast == 1 else rng.uniform(0.3, 0.5))
    # Two actors share the frame: each has its half of it.
    low, high = (0.28, 0.72) if cast == 1 else ((0.2, 0.42), (0.58, 0.8))[half]
    # A panning camera moves everything by up to a quarter of the frame: start nearer to its centre.
    x = 0.5 + (float(rng.uniform(low, high)) - 0.5) * (0.6 if pan[0] else 1)
    y = 0.5 + float(rng.uniform(-0.2, 0.2)) * (0.4 if pan[1] else 1)
    direction = str(rng.choice(list(DIRECTIONS), p=[0.35, 0.35, 0.15, 0.15]))
    speed = 0.0
    if motion == "drift":
        speed = float(rng.uniform(0.5, 1.0) * min(0.15, 0.6 / seconds))
        dx, dy = DIRECTIONS[direction]
        x, y = x - dx * speed * seconds / 2, y - dy * speed * seconds / 2
    elif motion == "cross":
        speed = float(rng.uniform(0.15, 0.5))
        direction = str(rng.choice(["left", "right"]))
    elif motion in ("approach", "recede"):
        small = float(rng.uniform(0.22, 0.32))
        large = float(rng.uniform(0.6, 0.9) if cast == 1 else rng.uniform(0.45, 0.6))
        size = small if motion == "approach" else large
        speed = float(np.log(large / small) / seconds)
    elif motion == "spin":
        speed = float(rng.uniform(0.12, 0.5))
    elif motion in ("bounce", "sway", "circle"):
        speed = float(rng.uniform(0.2, 0.5))
    # The pictures mostly look left; those that travel right are turned to look where they go.
    travels = motion in ("drift", "cross") and direction in ("left", "right")
    mirrored = direction == "right" if travels else bool(rng.random() < 0.5)
    return Actor(thing, motion, x, y, size, direction, speed, float(rng.random()), mirrored)


@functools.cache
def caption_words() -> frozenset[str]:
    """Every word that a caption can hold."""
    grammar = [*_VERBS.values(), *_PATH_WORDS.values(), "a an some and drifts flies swims sails runs drives slides"]
    places = [ground.phrase for ground in GROUNDS.values()] + [light.phrase for light in LIGHTS.values()]
    return frozenset(" ".join([*grammar, *places, *(thing.name for thing in THINGS)]).split())
