"""Where each parameter of a target lies in a source: rules of names, read in both directions.

A rule takes the name of a target's parameter and says where the source keeps it (``Place``). One direction turns a
source into a target (``converted``); the other turns a target's shapes into the layout that its source must have
(``unconverted``), so that whatever came in can be compared with what was expected, key by key and shape by shape.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from neuroclips.errors import ArtefactError

Tensors = Mapping[str, Tensor]
Way = Literal["same", "transposed", "pointwise", "third"]


@dataclass(frozen=True)
class Place:
    """Where a source keeps one parameter of a target.

    way : 'same'; 'transposed', a matrix whose axes are exchanged; 'pointwise', a matrix as a convolution of one pixel;
        'third', one of three parameters that lie one after another, number ``part``.
    twins : other keys of the source that hold the same.
    """

    key: str
    way: Way = "same"
    part: int = 0
    twins: tuple[str, ...] = ()


Rule = Callable[[str], Place]


@dataclass(frozen=True)
class Account:
    """What became of every key of a source, and which parameters of the target have one.

    loaded : keys of the source that are in the target.  dropped : all others, and why.
    missing : keys that the target needs and the source lacks.  unexpected : keys that nothing accounts for.
    wrong : keys of another shape than the target needs.  All three with the shapes expected and found.
    """

    loaded: tuple[str, ...]
    dropped: dict[str, str]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    def check(self, source: Any, target: str) -> Account:
        """Itself, if the source is complete; else an ArtefactError that names the first few keys."""
        faults = (
            ("missing", self.missing), ("of another shape", self.wrong), ("that nothing accounts for", self.unexpected)
        )  # fmt: skip
        said = [f"{len(keys)} keys {what} ({_first(keys)})" for what, keys in faults if keys]
        if said:
            raise ArtefactError(
                f"{source}: not the layout of {target}: {'; '.join(said)}; {len(self.loaded)} keys fit. Is it another "
                "version of the checkpoint, or another model's? Take the file that the model's card names"
            )
        return self

    def card(self) -> dict[str, Any]:
        """For a model's card: how many keys are in the target, and how many were left out for which reason."""
        return {"loaded": len(self.loaded), "dropped": dict(Counter(self.dropped.values()))}


def _first(keys: Sequence[str], count: int = 3) -> str:
    more = f", and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + more


def converted(
    source: Tensors, target: Tensors, rule: Rule, *, drop: Callable[[str], str | None] = lambda key: None
) -> tuple[dict[str, Tensor], Account]:
    """The parameters of a target from a source, and the account of it; nothing is copied, but for transposed matrices.

    target : its state, of which only names and shapes are read; may be on the meta device.
    drop : of a key that the target does not use, why that is well; None where it is not.

    Twins that hold different numbers raise an ArtefactError; whatever else is wrong is in the account.
    """
    layout = unconverted({name: value.to("meta") for name, value in target.items()}, rule)
    missing = [f"{key} {_shape(value)}" for key, value in layout.items() if key not in source]
    wrong = [
        f"{key} {_shape(source[key])} instead of {_shape(value)}"
        for key, value in layout.items()
        if key in source and source[key].shape != value.shape
    ]
    dropped, unexpected = {}, []
    for key in source:
        if key not in layout:
            reason = drop(key)
            if reason is None:
                unexpected.append(f"{key} {_shape(source[key])}")
            else:
                dropped[key] = reason
    state: dict[str, Tensor] = {}
    loaded: dict[str, None] = {}
    if not (missing or wrong):
        for name in target:
            place = rule(name)
            state[name] = _taken(source[place.key], place)
            loaded[place.key] = None
            for twin in place.twins:
                dropped[twin] = "holds the same as another key"
                if not torch.equal(source[twin], source[place.key]):
                    raise ArtefactError(f"{twin} differs from {place.key}; expected the same numbers in both")
    else:
        loaded = dict.fromkeys(key for key in layout if key in source)
    account = Account(tuple(loaded), dropped, tuple(missing), tuple(unexpected), tuple(wrong))
    return state, account


def unconverted(state: Tensors, rule: Rule) -> dict[str, Tensor]:
    """The way back: a target's parameters under the names and in the shapes of its source; meta tensors give a layout.

    >>> import torch
    >>> linear = {f"{name}_proj.weight": torch.empty(3, 5, device="meta") for name in "qkv"}
    >>> rule = lambda name: Place("in_proj.weight", "third", "qkv".index(name[0]))
    >>> {key: tuple(value.shape) for key, value in unconverted(linear, rule).items()}
    {'in_proj.weight': (9, 5)}
    """
    source: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        place = rule(name)
        assert place.key not in source, f"{place.key} would be two parameters"
        if place.way == "third":
            parts = thirds.setdefault(place.key, {})
            assert place.part not in parts, f"third {place.part} of {place.key} would be two parameters"
            parts[place.part] = value
            continue
        back = value.T if place.way == "transposed" else value[..., None, None] if place.way == "pointwise" else value
        source |= dict.fromkeys((place.key, *place.twins), back)
    return source | {key: torch.cat([parts[i] for i in range(3)]) for key, parts in thirds.items()}


def _taken(value: Tensor, place: Place) -> Tensor:
    match place.way:
        case "transposed":
            return value.T.contiguous()
        case "pointwise":
            return value.flatten(1)
        case "third":
            return value.chunk(3)[place.part]
        case _:
            return value


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def renamed(*replacements: tuple[str, str | Callable[[re.Match[str]], str]]) -> Callable[[str], str]:
    """All of some regular expressions' replacements, one after another."""
    compiled = [(re.compile(pattern), new) for pattern, new in replacements]

    def rename(name: str) -> str:
        for pattern, new in compiled:
            name = pattern.sub(new, name)
        return name

    return rename


def within(prefix: str, rule: Rule) -> Rule:
    """A rule for a source that keeps all keys under a prefix."""

    def inside(name: str) -> Place:
        place = rule(name)
        return Place(prefix + place.key, place.way, place.part, tuple(prefix + twin for twin in place.twins))

    return inside


def best(source: Tensors, target: Tensors, rules: Sequence[Rule]) -> Rule:
    """The rule under which a source has the most of what the target needs: files of one model have several layouts."""
    return max(rules, key=lambda rule: sum(rule(name).key in source for name in target))


def dropping(*reasons: tuple[str, str]) -> Callable[[str], str | None]:
    """The reason of the first regular expression that a key begins with."""
    compiled = [(re.compile(pattern), reason) for pattern, reason in reasons]
    return lambda key: next((reason for pattern, reason in compiled if pattern.match(key)), None)


def meta(make: Callable[[], Any]) -> Any:
    """The module that ``make`` makes, of names and shapes alone."""
    with torch.device("meta"):
        return make().eval()
