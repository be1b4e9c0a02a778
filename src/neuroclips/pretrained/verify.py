"""Whether files are what they should be, byte by byte: against the catalogue, and against cards and notes of our own.

Nothing of a checked file is executed: pickles are only searched for the names that they would call.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neuroclips.artefacts import read_json
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.catalogue import (
    Model,
    Source,
    part_path,
    read_note,
    ready_folder,
    source_path,
)

Report = Callable[[int, int | None, str], None]  # bytes done, bytes in all where known, what
_STEP = 1 << 22
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file of a model, or worth knowing (a note), in one line that says what to do."""

    model: str
    file: str
    level: Literal["fault", "note"]
    text: str


def sha256_of(path: Path, report: Report | None = None) -> str:
    """SHA-256 of a file of any size, hexadecimal."""
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while part := file.read(_STEP):
            digest.update(part)
            done += len(part)
            if report is not None:
                report(done, size, f"checking {path.name.removesuffix('.part')}")
    return digest.hexdigest()


def impostor(head: bytes) -> str | None:
    """What a file is in place of weights, by its first bytes: a pointer of Git LFS, or a web page; None otherwise."""
    start = head.lstrip()[:200].lower()
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself; `git lfs pull` fetches that"
    if start.startswith((b"<!doctype", b"<html")):
        return "a web page, not the file itself; its address asks for a login, or has moved"
    return None


def check_file(path: Path, source: Source, report: Report | None = None, *, any_version: bool = False) -> str:
    """The SHA-256 of a file that should be ``source``; ArtefactError where size, hash or kind differ.

    any_version : another size or hash is taken, as long as the file is no impostor.
    """
    with path.open("rb") as file:
        if what := impostor(file.read(512)):
            raise ArtefactError(f"{path}: {what}")
    size = path.stat().st_size
    if source.bytes is not None and size != source.bytes and not any_version:
        how = "it is cut short" if size < source.bytes else "it is another file"
        raise ArtefactError(f"{path}: {size} bytes, expected {source.bytes}; {how}")
    found = sha256_of(path, report)
    if source.sha256 is not None and found != source.sha256 and not any_version:
        raise ArtefactError(
            f"{path}: sha256 {found[:12]}..., expected {source.sha256[:12]}...; damaged, or another file"
        )
    return found


def verify_model(model: Model, report: Report | None = None, *, finite: bool = False) -> list[Finding]:
    """Everything wrong with what is here of a model: its sources, and the ready folder; empty where all is well.

    finite : also look for weights that are not finite numbers.
    """
    again = f"`neuroclips models pull {model.name} --again` fetches it anew"
    found = [
        Finding(model.name, source.file, level, f"{text}; {again}" if level == "fault" else text)
        for source in model.sources
        for level, text in _of_source(source, report)
    ]
    folder = ready_folder(model)
    if folder.exists():
        return found + [
            Finding(model.name, name, level, f"{text}; {again}" if level == "fault" else text)
            for name, level, text in _of_folder(model, folder, report, finite)
        ]
    here = [source for source in model.sources if source_path(source).exists() or part_path(source).exists()]
    if here:
        found += [
            Finding(
                model.name, source.file, "fault", f"missing; `neuroclips models pull {model.name}` fetches the rest"
            )
            for source in model.sources
            if not source.optional and not source_path(source).exists()
        ]
        if not found:
            text = f"downloaded, not ready; `neuroclips models pull {model.name}` converts it"
            found.append(Finding(model.name, "", "note", text))
    return found


_Said = tuple[Literal["fault", "note"], str]


def _of_source(source: Source, report: Report | None) -> Iterator[_Said]:
    path = source_path(source)
    if not path.exists():
        return
    try:
        note = read_note(source)
        sha256 = check_file(path, source, report)
    except ArtefactError as error:
        yield "fault", str(error)
        return
    known = source.sha256 is not None
    if not known and note and sha256 != note.get("sha256"):
        yield "fault", f"{path}: sha256 {sha256[:12]}..., but {note['sha256'][:12]}... when it was downloaded; damaged"
    elif not known and _other(source.revision, note.get("revision")):
        yield "fault", f"{path}: of revision {note['revision']}, expected {source.revision}"
    if path.suffix in PICKLES:
        yield from _of_pickle(path)


def _of_pickle(path: Path) -> Iterator[_Said]:
    """What a pickle would call beside making tensors; nothing is called."""
    from neuroclips.pretrained.checkpoints import LEFTOVERS, foreign_globals  # late: torch

    try:
        names = foreign_globals(path)
    except ArtefactError as error:
        yield "fault", str(error)
        return
    if harmful := [name for name in names if not name.startswith(LEFTOVERS)]:
        yield (
            "fault",
            f"{path}: its pickle names {', '.join(harmful)}, which could run code; nothing of it was executed",
        )
    elif names:
        yield "note", f"{path}: its pickle names leftovers of training ({', '.join(names)}), which are left out"


def _other(expected: str | None, found: str | None) -> bool:
    """Whether two revisions differ; an abbreviated commit is the same commit."""
    return bool(expected and found and not expected.startswith(found) and not found.startswith(expected))


def _of_folder(
    model: Model, folder: Path, report: Report | None, finite: bool
) -> Iterator[tuple[str, Literal["fault", "note"], str]]:
    try:
        card = read_json(folder / "card.json")
        held, made_from = card["files"], {each["file"]: each for each in card["sources"]}
    except (ArtefactError, KeyError, TypeError) as error:
        yield "card.json", "fault", f"{folder}: no card that says what it holds ({error})"
        return
    for level, text in _of_origin(model, folder, made_from, bool(card.get("any_version"))):
        yield "card.json", level, text
    for name, about in held.items():
        path = folder / name
        if not path.exists():
            yield name, "fault", f"{path}: missing"
        elif (size := path.stat().st_size) != about["bytes"]:
            yield (
                name,
                "fault",
                f"{path}: {size} bytes of {about['bytes']}; {'cut short' if size < about['bytes'] else 'altered'}",
            )
        elif (sha256 := sha256_of(path, report)) != about["sha256"]:
            yield (
                name,
                "fault",
                f"{path}: sha256 {sha256[:12]}..., but {about['sha256'][:12]}... when it was made; altered",
            )
        elif finite and path.suffix == ".safetensors" and (bad := _not_finite(path)):
            yield name, "fault", f"{path}: {bad} holds values that are not finite"
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in PICKLES):
        if path.relative_to(folder).as_posix() not in held:
            yield path.name, "fault", f"{path}: a pickle that does not belong here; remove it"


def _of_origin(model: Model, folder: Path, made_from: dict[str, Any], any_version: bool) -> Iterator[_Said]:
    """Whether a ready model was made from the files that the catalogue names."""
    for source in model.sources:
        said = made_from.get(source.file)
        if said is None:
            if not source.optional:
                yield "fault", f"{folder}: made without {source.file}"
        elif source.sha256 is not None and said["sha256"] != source.sha256:
            which = f"sha256 {said['sha256'][:12]}..., not {source.sha256[:12]}..."
            text = f"{folder}: made from another {source.file} ({which})"
            yield ("note", f"{text}, as --any-version allowed") if any_version else ("fault", text)
        elif source.sha256 is None and _other(source.revision, said.get("revision")):
            yield "fault", f"{folder}: made from {source.file} of revision {said['revision']}, not {source.revision}"


def _not_finite(path: Path) -> str | None:
    """The first tensor with NaN or infinity; read some million numbers at a time."""
    import torch  # late: it takes seconds
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            part = file.get_slice(name)
            shape = part.get_shape()
            if not shape:
                parts: Iterator[torch.Tensor] = iter([file.get_tensor(name)])
            else:
                rows = max(1, (1 << 24) * shape[0] // max(1, math.prod(shape)))
                parts = (part[start : start + rows] for start in range(0, shape[0], rows))
            if any(values.is_floating_point() and not torch.isfinite(values).all() for values in parts):
                return name
    return None
