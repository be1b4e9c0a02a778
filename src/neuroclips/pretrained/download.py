"""Fetch the files that models are made from: from the hub, from an address, or from a mirror folder.

``huggingface_hub`` is not used here. It keeps a cache of its own, takes addresses of the hub alone, may fetch in chunks
by a protocol that plain mirrors do not speak, and says nothing of a file's hash before it is there. One function over
``requests`` does for the hub, for other addresses and for any server that answers like them: what has come stays in
``FILE.part``, a Range request goes on from there, and a file that changed at its source begins again.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroclips.artefacts import read_json, write_json, written_aside
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.catalogue import (
    Model,
    Source,
    in_words,
    models_home,
    note_path,
    part_path,
    read_note,
    source_path,
)
from neuroclips.pretrained.verify import Report, check_file, impostor

if TYPE_CHECKING:
    from requests import Response

HUB = "https://huggingface.co"
ATTEMPTS = 5  # without a byte of progress
WAIT = 1.0  # seconds before the second attempt; twice as long before each further one
_CHUNK = 1 << 17  # what a lost connection may cost again
_TIMEOUT = (10, 60)  # seconds to connect, and between bytes
_EVERYWHERE = re.compile(r".*\.json|.*\.txt|model.*")  # names of files that many repositories have


@dataclass(frozen=True)
class Origins:
    """Where files may come from.

    endpoint, token : of the hub; the token is sent there alone.
    mirror : a folder that is looked through before the network (see ``find``).
    offline : never use the network.
    """

    endpoint: str = HUB
    token: str | None = None
    mirror: Path | None = None
    offline: bool = False


class Gone(ArtefactError):
    """The source has no such file."""


def fetch(model: Model, source: Source, origins: Origins, report: Report) -> dict[str, Any] | None:
    """Bring a source to its place, verified; returns its note: from, revision, bytes, sha256, and who vouched for it.

    ``checked`` says what the hash was compared with: the catalogue, what the hub stated, or nothing ('first use'). An
    optional source that does not exist gives None.

    Raises ArtefactError where it cannot be had, or is not what it should be; what is wrong is not kept.
    """
    path = source_path(source)
    if path.exists():
        if _unchanged(source, path):
            return read_note(source)
        before = read_note(source)
        wanted = source.model_copy(update={"sha256": source.sha256 or before.get("sha256")})
        try:
            sha256 = check_file(path, wanted, report)
        except ArtefactError as error:
            raise ArtefactError(f"{error}; `neuroclips models pull {model.name} --again` fetches it anew") from error
        return _noted(source, path, sha256, before.get("from", "placed by hand"), before.get("revision"))
    if origins.mirror is not None and (found := find(model, source, origins.mirror)) is not None:
        sha256 = check_file(found, source, report)
        link_or_copy(found, path, report)
        return _noted(source, path, sha256, str(found.absolute()), _revision_there(source, found))
    try:
        if origins.offline:
            where = f", nor in {origins.mirror}" if origins.mirror is not None else ""
            name = f"{source.root.name}/{source.file}" if source.repo is not None else source.file
            raise Gone(
                f"{model.name}: {source.file} is not here{where}, and --offline forbids the network; put it into a "
                f"folder as {name} and give that as --mirror, or leave out --offline"
            )
        return _download(model, source, origins, report)
    except Gone:
        if source.optional:
            return None
        raise


def _unchanged(source: Source, path: Path) -> bool:
    """Whether a file is the one that its note was written for, by size and time; ``verify`` reads all of it."""
    note, about = read_note(source), path.stat()
    expected = source.sha256 in (None, note.get("sha256"))
    return bool(note) and expected and [about.st_size, about.st_mtime_ns] == [note.get("bytes"), note.get("mtime_ns")]


def _noted(
    source: Source, path: Path, sha256: str, origin: str, revision: str | None, stated: str | None = None
) -> dict[str, Any]:
    checked = "catalogue" if source.sha256 else "hub" if stated else "first use"
    about = path.stat()
    note = {
        "from": origin, "revision": revision or (source.revision if source.sha256 else None),
        "bytes": about.st_size, "mtime_ns": about.st_mtime_ns, "sha256": sha256, "checked": checked,
    }  # fmt: skip
    write_json(note_path(source), note)
    return note


def _revision_there(source: Source, found: Path) -> str | None:
    """The revision of a mirror's file, as a hub cache names it, or the note of another machine's pull."""
    snapshot = found.parents[len(Path(source.file).parts) - 1]
    if snapshot.parent.name == "snapshots":
        return snapshot.name
    note = found.with_name(f"{found.name}.note.json")
    return read_json(note).get("revision") if note.exists() else None


def find(model: Model, source: Source, folder: Path, *, flat: bool = False) -> Path | None:
    """A source in a folder of files: one that another machine pulled into, a hub cache, clones, or files side by side.

    Tried in this order: ``.sources`` as pulled, a hub cache's snapshots, OWNER/NAME/FILE, NAME/FILE, MODEL/FILE, and
    then FILE alone, unless it has a name that many repositories use, such as config.json.

    flat : such a name is taken, too; the folder is known to hold this model.
    """
    names = [f".sources/{source.place}", str(source.place), f"{model.name}/{source.file}"]
    found: list[Path] = []
    if source.repo is not None:
        snapshots = folder / f"{source.type}s--{source.repo.replace('/', '--')}" / "snapshots"
        wanted = source.revision if source.revision and not source.sha256 else "*"
        found = sorted(snapshots.glob(f"{wanted}/{source.file}"))
        names += [f"{source.repo}/{source.file}", f"{source.root.name}/{source.file}"]
    if flat or not _EVERYWHERE.fullmatch(Path(source.file).name):
        names += [source.file, Path(source.file).name]
    return next((path for path in [*found, *(folder / name for name in names)] if path.is_file()), None)


def link_or_copy(old: Path, new: Path, report: Report | None = None) -> None:
    """Give a file a second name where the disk allows it, else copy it."""
    old, size, done = old.resolve(), old.stat().st_size, 0
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
        return
    except OSError:
        pass  # another disk, a file of another user's, or a file system without links
    with _room(new, size), written_aside(new) as aside, old.open("rb") as taken, aside.open("wb") as given:
        while part := taken.read(_CHUNK):
            given.write(part)
            done += len(part)
            if report is not None:
                report(done, size, f"copying {new.name}")


class _room:
    """A full disk is said in one sentence."""

    def __init__(self, path: Path, size: int | None):
        self.path, self.size = path, size

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(self.path.parent).free
            raise ArtefactError(
                f"{self.path}: the disk is full ({in_words(free)} free, the file has {in_words(self.size)}); what has "
                "come is kept: free some space, or set NEUROCLIPS_MODELS to a folder on a larger disk, and try again"
            ) from error


def _download(model: Model, source: Source, origins: Origins, report: Report) -> dict[str, Any]:
    """Download to ``FILE.part`` until it is whole, then check it and give it its name."""
    import requests  # late: only where something is fetched

    part, failed = part_path(source), 0
    part.parent.mkdir(parents=True, exist_ok=True)
    while True:
        before = _size(part)
        try:
            about = _transfer(model, source, origins, report)
            break
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            failed = failed + 1 if _size(part) <= before else 1
            if failed >= ATTEMPTS:
                address, reason = source.address(origins.endpoint), getattr(error.args[0], "reason", error)
                came = f"; the {in_words(_size(part))} that came are kept, the same command goes on from there"
                raise ArtefactError(
                    f"{address}: no connection, or one that was lost, {failed} times in a row ({reason})"
                    f"{came if _size(part) else ''}; without a network, give a folder with the files as --mirror"
                ) from error
            time.sleep(WAIT * 2 ** (failed - 1))
    wanted = source.model_copy(update={"sha256": source.sha256 or about["stated"]})
    try:
        sha256 = check_file(part, wanted, report)
    except ArtefactError as error:
        part.unlink()
        _about_part(part).unlink(missing_ok=True)
        raise ArtefactError(f"{error}; what came from {about['url']} was deleted, pull it again") from error
    part.replace(source_path(source))
    _about_part(part).unlink(missing_ok=True)
    return _noted(
        source, source_path(source), sha256, about["url"], about["commit"] or source.revision, about["stated"]
    )  # fmt: skip


def _transfer(model: Model, source: Source, origins: Origins, report: Report) -> dict[str, Any]:
    """One request for what is missing; returns what the server says of the file."""
    import requests

    url, part = source.address(origins.endpoint), part_path(source)
    started = read_json(_about_part(part)) if _about_part(part).exists() else {}
    same = started.get("url") == url and started.get("wanted") == source.revision and started.get("etag")
    start = _size(part) if same else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    if origins.token and source.repo is not None:
        headers["Authorization"] = f"Bearer {origins.token}"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        etag = _said(answer, "X-Linked-Etag") or _said(answer, "ETag")
        linked = etag if _said(answer, "X-Linked-Etag") else None  # of large files it is their SHA-256
        stated = linked if linked and len(linked) == 64 else None
        about = {"url": url, "wanted": source.revision, "etag": etag, "stated": stated,
                 "commit": _said(answer, "X-Repo-Commit")}  # fmt: skip
        if start and (answer.status_code == 416 or (answer.status_code == 206 and etag != started["etag"])):
            if answer.status_code == 416 and etag in (None, started["etag"]) and _total(answer, 0) == start:
                return started  # nothing was missing
            part.unlink(missing_ok=True)  # it changed at its source
            return _transfer(model, source, origins, report)
        _refuse(answer, model, source)
        start = start if answer.status_code == 206 else 0
        total, chunks = _total(answer, start), answer.iter_content(_CHUNK)
        first = next(chunks, b"")
        if not start and (what := impostor(first)):
            raise ArtefactError(f"{url}: {what}; nothing was kept")
        if source.bytes is not None and total not in (None, source.bytes):
            raise ArtefactError(
                f"{url}: has {total} bytes, expected {source.bytes}: another version than the catalogue's; take the "
                f"file from elsewhere and give it to `neuroclips models import {model.name}`"
            )
        if source.sha256 is not None and stated not in (None, source.sha256):
            raise ArtefactError(
                f"{url}: the hub states sha256 {str(stated)[:12]}..., expected {source.sha256[:12]}...: another "
                "version than the catalogue's; nothing was downloaded"
            )
        write_json(_about_part(part), about)
        with _room(part, total), part.open("ab" if start else "wb") as file:
            done = start
            for chunk in chain([first], chunks):
                file.write(chunk)
                done += len(chunk)
                report(done, total, Path(source.file).name)
            file.flush()
            os.fsync(file.fileno())
    return about


def _refuse(answer: Response, model: Model, source: Source) -> None:
    """Answers that are no file."""
    code, url = answer.status_code, answer.url.split("?")[0]
    if code in (401, 403):
        todo = "set HF_TOKEN, and accept its conditions on its page" if source.repo else (
            f"download it in a browser and give it to `neuroclips models import {model.name}`"
        )  # fmt: skip
        raise ArtefactError(f"{url}: asks for a login (HTTP {code}); {todo}")
    if code in (404, 410):
        of = f" of revision {source.revision}" if source.revision else ""
        raise Gone(f"{url}: no such file{of} (HTTP {code}); `neuroclips models import {model.name}` takes one you have")
    if code not in (200, 206):
        raise ArtefactError(f"{url}: HTTP {code} {answer.reason}; try again later, or give a folder as --mirror")
    if answer.headers.get("Content-Type", "").startswith("text/html") and Path(source.file).suffix != ".html":
        raise ArtefactError(f"{url}: {impostor(b'<html')}; nothing was kept")


def _said(answer: Response, name: str) -> str | None:
    """A header, of the first answer that has it: the hub says more than the store that it sends on to."""
    texts: Iterator[str | None] = (each.headers.get(name) for each in [*answer.history, answer])
    return next((text.removeprefix("W/").strip('"') for text in texts if text), None)


def _total(answer: Response, start: int) -> int | None:
    """Bytes of the whole file, by the answer to a request for what follows ``start``."""
    text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if text.isdigit():
        return int(text)
    text = answer.headers.get("Content-Length", "")
    return start + int(text) if text.isdigit() and answer.status_code != 416 else None


def _about_part(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def forget(source: Source) -> None:
    """Remove a source, what has come of it, and its note."""
    part = part_path(source)
    for path in (source_path(source), part, _about_part(part), note_path(source)):
        path.unlink(missing_ok=True)


def still_to_come(model: Model) -> int:
    """Bytes that a pull would download, as far as they are known."""
    wanted = [source for source in model.sources if not source_path(source).exists()]
    return sum(max(0, (source.size or 0) - _size(part_path(source))) for source in wanted)


def free_bytes() -> int:
    """Bytes free where models are kept, whether the folder exists already or not."""
    folder = models_home().absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
