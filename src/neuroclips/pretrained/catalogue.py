"""The published models: what each is for, where it comes from, under which licence, and where it is kept here.

``weights.yaml`` holds the facts. Ready models are folders in ``models_home()``, in the layout of diffusers or
transformers, with a ``card.json``; the files they were made from are in ``models_home()/.sources``, beside notes of
where each came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from neuroclips.artefacts import read_json
from neuroclips.errors import ArtefactError

WEIGHTS = Path(str(files("neuroclips").joinpath("pretrained", "weights.yaml")))
_SHA256 = r"^[0-9a-f]{64}$"


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Licence(_Fact):
    """Under which conditions a part of a model may be used."""

    of: str
    name: str | None = Field(description="as SPDX calls it where it does; null: see ``stated``")
    stated: str = Field("not known", description="where there is no name: 'none stated', or 'not known'")
    link: str
    conditions: str

    @property
    def shown(self) -> str:
        return self.name or self.stated


class Source(_Fact):
    """One file that a model is made from; ``weights.yaml`` says what each fact means."""

    role: str
    file: str
    repo: str | None = None
    type: Literal["model", "dataset"] = "model"
    url: str | None = None
    revision: str | None = None
    bytes: int | None = Field(None, ge=1)
    about: int | None = Field(None, ge=1)
    sha256: str | None = Field(None, pattern=_SHA256)
    into: str | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> Source:
        if (self.repo is None) == (self.url is None):
            raise ValueError(f"{self.file}: expected a repository or an address, one of them")
        for path in (self.file, self.into or "."):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"{path}: leads out of its folder")
        return self

    @property
    def size(self) -> int | None:
        """Bytes, or about so many; None where nobody said."""
        return self.bytes or self.about

    @property
    def root(self) -> PurePosixPath:
        """The folder below ``.sources`` that holds the repository's files."""
        if self.repo is None:
            return PurePosixPath("urls", urlsplit(self.url or "").netloc)
        return PurePosixPath(f"{self.type}s", self.repo)

    @property
    def place(self) -> PurePosixPath:
        """Where the file is kept, below ``.sources``."""
        return self.root / self.file

    @property
    def shown(self) -> str:
        """Where it comes from, for people."""
        return self.url or f"{'datasets/' if self.type == 'dataset' else ''}{self.repo}"

    def address(self, endpoint: str) -> str:
        """Where it is downloaded from; ``endpoint`` is the hub's, or a mirror's that answers like it."""
        kind = "datasets/" if self.type == "dataset" else ""
        return self.url or f"{endpoint.rstrip('/')}/{kind}{self.repo}/resolve/{self.revision or 'main'}/{self.file}"


class Model(_Fact):
    """A published model; ``name`` is also its folder's."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    purpose: str
    serves: str = Field(description="kind of weights, as recipes ask for it: 'vae', 'clip', 'video', ...")
    parameters: int | None
    converter: str | None = Field(description="null: the files are ready as they are")
    ready: int | None
    licences: tuple[Licence, ...] = Field(min_length=1)
    cite: str
    sources: tuple[Source, ...] = Field(min_length=1)

    @property
    def size(self) -> int | None:
        """Bytes to download, as far as they are known; None where nothing is."""
        return sum(source.size or 0 for source in self.sources) or None

    @property
    def roles(self) -> dict[str, list[Source]]:
        """Sources by what the converter calls them."""
        roles: dict[str, list[Source]] = {}
        for source in self.sources:
            roles.setdefault(source.role, []).append(source)
        return roles

    @property
    def licence(self) -> str:
        """Names of all licences, for a line."""
        return ", ".join(dict.fromkeys(licence.shown for licence in self.licences))


@cache
def read_catalogue(path: Path) -> Mapping[str, Model]:
    """Models by name, from a file like ``weights.yaml``; ArtefactError where it does not say what it should."""
    try:
        entries = yaml.safe_load(path.read_text())
        return {name: Model(name=name, **entry) for name, entry in entries.items()}
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValidationError) as error:
        raise ArtefactError(f"{path}: cannot be read as a list of models ({error})") from error


def published() -> Mapping[str, Model]:
    """The models of ``weights.yaml`` by name.

    >>> published()["git-large"].serves
    'caption'
    """
    return read_catalogue(WEIGHTS)


def published_model(name: str) -> Model:
    """One of them; ArtefactError with the names there are."""
    if name not in published():
        raise ArtefactError(f"no model {name!r}; there are {', '.join(published())}")
    return published()[name]


def models_home() -> Path:
    """Where models are kept: NEUROCLIPS_MODELS, or ~/.cache/neuroclips/models."""
    return Path(os.environ.get("NEUROCLIPS_MODELS") or "~/.cache/neuroclips/models").expanduser()


def ready_folder(model: Model) -> Path:
    """Where a model is when it is ready."""
    return models_home() / model.name


def source_path(source: Source) -> Path:
    """Where a source is when it has been downloaded."""
    return models_home() / ".sources" / source.place


def part_path(source: Source) -> Path:
    """What of a source has come so far."""
    return source_path(source).with_name(f"{source_path(source).name}.part")


def read_note(source: Source) -> dict[str, Any]:
    """Where a downloaded file came from, its bytes and hash; empty where there is no note."""
    path = note_path(source)
    return read_json(path) if path.exists() else {}


def note_path(source: Source) -> Path:
    """The note beside a source."""
    return source_path(source).with_name(f"{source_path(source).name}.note.json")


@dataclass(frozen=True)
class State:
    """What is here of a model, as sizes tell; ``pretrained.verify`` looks at every byte."""

    name: Literal["ready", "downloaded", "partly", "absent", "broken"]
    share: float = 0.0  # of the bytes to download, of those that are known
    reason: str = ""

    def __str__(self) -> str:
        return f"partly ({100 * self.share:.0f} %)" if self.name == "partly" else self.name


def state_of(model: Model) -> State:
    """What is here of a model."""
    folder = ready_folder(model)
    if folder.exists():
        reason = next(_broken(folder), "")
        return State("broken", reason=reason) if reason else State("ready", 1.0)
    wanted = [source for source in model.sources if not source.optional]
    here = [_bytes_here(source) for source in wanted]
    if not any(here):
        return State("absent")
    if all(source_path(source).exists() for source in wanted):
        short = [s for s in wanted if s.bytes is not None and source_path(s).stat().st_size != s.bytes]
        return State("broken", reason=f"{short[0].file} has another size") if short else State("downloaded", 1.0)
    known = sum(source.size or 0 for source in wanted)
    return State("partly", min(0.99, sum(here) / known) if known else 0.0)


def _bytes_here(source: Source) -> int:
    return next((p.stat().st_size for p in (source_path(source), part_path(source)) if p.exists()), 0)


def _broken(folder: Path) -> Iterator[str]:
    if not (folder / "card.json").exists():
        yield "no card.json"
        return
    try:
        held = read_json(folder / "card.json")["files"]
        for name, about in held.items():
            path = folder / name
            if not path.exists():
                yield f"no {name}"
            elif path.stat().st_size != about["bytes"]:
                yield f"{name} has {path.stat().st_size} bytes of {about['bytes']}"
    except (ArtefactError, KeyError, TypeError, AttributeError):
        yield "card.json says too little"


def in_words(size: int | None) -> str:
    """Bytes for people; a rounded figure stays rounded.

    >>> in_words(17_980_447_939), in_words(389), in_words(None)
    ('18.0 GB', '389 B', 'not known')
    """
    if size is None:
        return "not known"
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} B"
