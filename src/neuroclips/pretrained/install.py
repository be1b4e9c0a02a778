"""From files to a ready model: fetched or given, checked, converted, and put in its place with a card.

A ready model appears whole or not at all; what was there before stays until the new one is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from neuroclips.artefacts import write_json
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.catalogue import Model, Source, in_words, models_home, ready_folder, source_path, state_of
from neuroclips.pretrained.download import Origins, fetch, find, forget, free_bytes, link_or_copy, still_to_come
from neuroclips.pretrained.verify import Report, check_file, sha256_of

PACKAGES = ("neuroclips", "torch", "diffusers", "transformers", "safetensors")


@dataclass(frozen=True)
class Found:
    """A source that is here: where, and what its card says of it."""

    source: Source
    path: Path
    note: Mapping[str, Any]


def pull(model: Model, origins: Origins, report: Report, *, again: bool = False, drop_sources: bool = False) -> Path:
    """Fetch what is missing of a model, convert it, and return its folder; does nothing where it is ready.

    again : forget what was fetched and made before; the ready folder stays until the new one is whole.
    drop_sources : remove the downloaded files when the model is ready.

    Raises ArtefactError for everything a user can mend: no network, no room, files that are not what they should be.
    """
    with _alone(model):
        if state_of(model).name == "ready" and not again:
            return ready_folder(model)
        if again:
            for source in model.sources:
                forget(source)
        check_room(model)
        found = []
        for source in model.sources:
            if (note := fetch(model, source, origins, report)) is not None:
                found.append(Found(source, source_path(source), note))
        folder = _make_ready(model, found, report)
        if drop_sources:
            for source in model.sources:
                forget(source)
        return folder


def take(model: Model, given: Sequence[str], report: Report, *, any_version: bool = False) -> Path:
    """Make a model ready from files of the user's: ``ROLE=PATH``, or a file or folder of known names.

    any_version : files of another size or hash than the catalogue's are taken, and the card says so.

    Raises ArtefactError where files are missing, or are not what they should be.
    """
    with _alone(model):
        paths = _given(model, given)
        found = []
        for source, path in paths.items():
            sha256 = check_file(path, source, report, any_version=any_version)
            same = source.sha256 == sha256
            note = {"from": str(path.absolute()), "revision": source.revision if same else None, "sha256": sha256,
                    "bytes": path.stat().st_size, "checked": "catalogue" if same else "given by the user"}  # fmt: skip
            found.append(Found(source, path, note))
        return _make_ready(model, found, report, any_version=any_version)


def _given(model: Model, given: Sequence[str]) -> dict[Source, Path]:
    """Which of the user's files is which source."""
    roles, paths = model.roles, dict[Source, Path]()
    for each in given:
        role, named, rest = each.partition("=")
        named = named if role in roles else ""
        path, wanted = Path(rest if named else each).expanduser(), roles[role] if named else list(model.sources)
        if path.is_dir():
            fitting = {source: place for source in wanted if (place := find(model, source, path, flat=True))}
        elif path.is_file():
            named_so = [source for source in wanted if PurePosixPath(source.file).name == path.name]
            alone = [source for source in wanted if not source.optional]
            fitting = dict.fromkeys(named_so or (alone if len(alone) == 1 else []), path)
        else:
            raise ArtefactError(f"{path}: no such file or folder; {model.name} is made from {_wanted(model.sources)}")
        if not fitting:
            raise ArtefactError(f"{path}: nothing that {model.name} is made from; expected {_wanted(wanted)}")
        paths |= fitting
    missing = [source for source in model.sources if source not in paths and not source.optional]
    for source in [source for source in missing if source_path(source).exists()]:  # from a pull
        paths[source] = source_path(source)
        missing.remove(source)
    if missing:
        raise ArtefactError(
            f"{model.name}: missing {_wanted(missing)}; give each as ROLE=PATH, or a folder that holds them, or let "
            f"`neuroclips models pull {model.name}` fetch everything"
        )
    return paths


def _wanted(sources: Sequence[Source]) -> str:
    return ", ".join(f"{source.role} ({source.file})" for source in sources if not source.optional)


def check_room(model: Model) -> None:
    """Refuse a pull that the disk cannot hold: what is still to come, and the converted model beside it."""
    download, made = still_to_come(model), model.ready or 0
    free = free_bytes()
    if download + made > free:
        raise ArtefactError(
            f"{model.name}: needs {in_words(download + made)} ({in_words(download)} to download, {in_words(made)} "
            f"converted), {in_words(free)} are free in {models_home()}: {in_words(download + made - free)} are "
            "missing; free some space, or set NEUROCLIPS_MODELS to a folder on a larger disk"
        )


@contextmanager
def _alone(model: Model) -> Iterator[None]:
    """One process at a time works on a model."""
    from filelock import FileLock, Timeout  # late, and a dependency of torch

    path = models_home() / f".{model.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise ArtefactError(
            f"{model.name}: another process works on it (it holds {path}); wait until it is done"
        ) from error


def _make_ready(model: Model, found: Sequence[Found], report: Report, *, any_version: bool = False) -> Path:
    """Convert or copy, write the card, and move the folder into its place."""
    work = models_home() / ".making" / model.name
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    out = work / model.name
    work.mkdir(parents=True)
    try:
        account = _converted(model, found, work, out) if model.converter else {}
        hashes = {}
        for each in found:
            if each.source.into is not None:
                link_or_copy(each.path, out / each.source.into, report)
                hashes[each.source.into] = each.note["sha256"]
        held = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
        held.pop("card.json", None)  # the converter's, which becomes part of this one
        card = account | {
            "name": model.name, "what": model.purpose, "serves": model.serves,
            "licences": [licence.model_dump() for licence in model.licences], "cite": model.cite,
            "sources": [{"role": each.source.role, "file": each.source.file, **_public(each.note)} for each in found],
            "any_version": any_version,
            "files": {name: {"bytes": path.stat().st_size, "sha256": hashes.get(name) or sha256_of(path, report)}
                      for name, path in held.items()},
            "versions": {name: version(name) for name in PACKAGES},
        }  # fmt: skip
        write_json(out / "card.json", card)
        folder = ready_folder(model)
        if folder.exists():
            folder.replace(work / "old")
        out.replace(folder)
        return folder
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _public(note: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in note.items() if name != "mtime_ns"}


def _converted(model: Model, found: Sequence[Found], work: Path, out: Path) -> dict[str, Any]:
    """Run the converter; a role of several files is given to it as their folder."""
    from neuroclips.pretrained.convert import CONVERTERS  # late: torch and diffusers

    assert model.converter is not None
    sources = {}
    for role, members in model.roles.items():
        here = [each for each in found if each.source.role == role]
        if len(members) == 1 and here:
            sources[role] = here[0].path
        elif here:
            for each in here:
                link_or_copy(each.path, work / "sources" / role / each.source.file)
            sources[role] = work / "sources" / role
    return CONVERTERS[model.converter](sources, out)
