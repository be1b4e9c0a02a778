"""Unpack the downloads of CC2017: zips in zips, read where they lie, checked before they are believed.

Each download is one zip (15.3 GB for a subject) of ``<doi>/bundle.zip``, and that holds ``video_fmri_dataset/...``.
A bundle unwrapped by hand, and a zip that holds ``video_fmri_dataset/`` itself, are read as well. A bundle that is
stored in its zip is opened in place; one that is compressed there must be copied out first.

A killed run goes on where it stopped. Nothing that an archive says is believed: names, kinds and sizes of all members
are checked before the first is written, and only regular files are ever made.
"""

from __future__ import annotations

import calendar
import io
import os
import re
import shutil
import stat
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import psutil

from neuroclips.artefacts import read_json, write_json, written_aside
from neuroclips.data.cc2017 import FOLDER
from neuroclips.errors import DataError

_UNPACKING, _UNPACKED = ".unpacking", ".unpacked"  # copies of compressed bundles; what those held, once all is written
_MIB = 2**20
_BLOCK = 4 * _MIB
_REPORT = 64 * _MIB  # progress is told at least this often

# Bounds that CC2017 stays far below, and a zip made to fill disk or memory does not.
_MAX_RATIO, _RATIO_COUNTS_FROM = 100, 10 * _MIB  # size / compressed size, in files larger than this
_MAX_FILE = 8 * 2**30
_MAX_TOTAL = 200 * 2**30  # of one archive
_MAX_MEMBERS = 100_000  # of one archive
_MAX_LIST = 32 * _MIB  # zipfile reads the list of members at once; 300 bytes a member

_ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # flag bits: traditional, strong, and a list that is encrypted itself
_PATCH = 0x0020  # flag bit: a difference to another file

_Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Unpacked:
    """What ``unpack`` did.

    written, kept : files written now, and files that were there already.
    bytes : of the files written now.
    archives : the zips that hold parts of the data set, as paths from the root; one in another is ``a.zip/b/c.zip``.
    left_out : why members were left out -> how many.
    """

    written: int
    kept: int
    bytes: int
    archives: tuple[str, ...]
    left_out: dict[str, int]


@dataclass(frozen=True)
class _Archive:
    """An open zip: ``file`` on disk, to be downloaded again if need be; ``path`` goes on into it for a zip in a zip."""

    path: Path
    file: Path
    size: int
    reader: io.BufferedReader
    zip: ZipFile

    def refusal(self, why: str) -> DataError:
        return DataError(
            f"{self.path}: {why}; nothing was unpacked from it: download {self.file.name} again, or move it elsewhere "
            "if it is no part of the data"
        )


@dataclass(frozen=True)
class _Member:
    """One file to be made at ``path`` under the target folder. ``time`` is in seconds, the zip's clock taken as UTC."""

    path: PurePosixPath
    size: int
    crc: int
    time: int
    origin: Path  # as messages name it
    source: tuple[_Archive, ZipInfo] | None = field(default=None, compare=False)  # None: known from a record only


@dataclass(frozen=True)
class _Listing:
    """What one archive holds: files of the data set, zips to look into, and why the rest is left out."""

    archive: Path
    members: list[_Member] = field(default_factory=list)
    bundles: list[ZipInfo] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


class _Window(io.RawIOBase):
    """Bytes ``start`` to ``start + size`` of a file, as a file of their own: a zip stored in a zip without a copy."""

    def __init__(self, path: Path, start: int, size: int):
        self._file = path.open("rb", buffering=0)
        self._start, self._size, self._position = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if position < 0:
            raise OSError(f"seek to {position}, before the start")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._start + self._position)
        n = self._file.readinto(memoryview(buffer)[:wanted])
        self._position += n
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


class _Reader(io.BufferedReader):
    """Refuses to read much at once: only a list of members is, and its size is the archive's own claim."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_LIST:
            raise BadZipFile(f"its list of members takes {size:,} bytes; expected at most {_MAX_LIST:,}")
        return super().read(size)


def find_archives(root: Path) -> list[Path]:
    """The zips in ``root`` and one folder down, sorted; hidden ones and what macOS left behind are not looked at.

    Raises DataError when there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one with the downloaded zips")
    found = (path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.suffix.lower() == ".zip")
    return sorted(path for path in found if path.is_file() and not _is_hidden(path.relative_to(root)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def unpack(
    root: Path,
    into: Path,
    wanted: Callable[[PurePosixPath], bool],
    progress: Callable[[int, int, str], None] | None = None,
) -> Unpacked:
    """Unpack the data set's files from all zips under ``root`` (see ``find_archives``).

    A member ``.../video_fmri_dataset/PATH`` becomes ``into/PATH``, with the member's size and time of change. A file
    that is there with both is kept unread; one of that size and another time (a copy) is kept if its CRC-32 is the
    member's. A second call therefore writes nothing, and needs no right to write.

    into : any folder, made if need be; may be ``root``.
    wanted : called with PATH, such as ``subject1/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii``; says whether to unpack.
    progress : called with (MiB written, MiB to write, what), after each file and every 64 MiB. Compressed bundles are
        copied first, with a count of their own.

    Raises
    ------
    DataError
        A zip is damaged, or holds a member that could do harm: nothing is unpacked from any. Two archives hold
        different files of one path. ``into`` cannot be written to, or has too little room. A file's CRC-32 is wrong:
        the files before it stay.
    """
    root, into = Path(root), Path(into)
    listings: list[_Listing] = []
    compressed: dict[_Member, Path] = {}  # bundles to be copied out, and their zips
    with ExitStack() as stack:
        for path in find_archives(root):
            outer = _opened(stack, path, path, path)
            listings.append(_listed(outer, inside=False))
            for info in listings[-1].bundles:
                if info.compress_type == ZIP_STORED:
                    window = (_data_start(outer, info), info.file_size)
                    listings.append(_listed(_opened(stack, path / info.filename, path, path, window), inside=True))
                else:
                    place = PurePosixPath(_UNPACKING, f"{path.stem}.{info.CRC:08x}.zip")
                    compressed[_member(outer, info, place)] = path
        try:
            copied = {}
            for bundle in compressed:
                record = _recorded(into, bundle)
                if record is not None and all(_is_there(into, m) for m in record.members if wanted(m.path)):
                    listings.append(record)
                else:
                    copied[bundle] = _Listing(bundle.origin)
            _write([bundle for bundle in copied if not _is_there(into, bundle)], into, progress)
            for bundle in copied:
                archive = _opened(stack, bundle.origin, compressed[bundle], into / bundle.path)
                copied[bundle] = _listed(archive, inside=True)
            listings += copied.values()
            members = [member for listing in listings for member in listing.members]
            left_out = sum((listing.left_out for listing in listings), Counter())
            chosen = _chosen(members, wanted, left_out)
            missing = [member for member in chosen if not _is_there(into, member)]
            _write(missing, into, progress)
            for bundle, listing in copied.items():
                _record(into, bundle, listing)
        except Exception:  # not KeyboardInterrupt: a run that was stopped finds its copies again
            _remove_copies(into, compressed)
            raise
    _remove_copies(into, compressed)
    size = sum(member.size for member in missing)
    archives = tuple(str(listing.archive.relative_to(root)) for listing in listings if listing.members)
    return Unpacked(len(missing), len(chosen) - len(missing), size, archives, dict(left_out))


def _opened(stack: ExitStack, path: Path, file: Path, at: Path, window: tuple[int, int] | None = None) -> _Archive:
    """Open the zip that lies at ``at``, or in the window (start, size) of it, until ``stack`` is closed."""
    try:
        whole = at.stat().st_size
        start, size = window or (0, whole)
        reader = stack.enter_context(_Reader(_Window(at, start, size)))
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    try:
        return _Archive(path, file, size, reader, stack.enter_context(ZipFile(reader)))
    except Exception as error:  # whatever a damaged list of members makes zipfile raise
        raise DataError(_damage(path, "cannot be read as a zip", file, error)) from error


def _damage(path: Path, what: str, file: Path, error: Exception) -> str:
    why, size = str(error) or type(error).__name__, file.stat().st_size
    return (
        f"{path}: {what} ({why}); {file.name} ({size:,} bytes) is damaged or incomplete: download it again, or move it "
        "elsewhere if it is no part of the data"
    )


def _data_start(archive: _Archive, info: ZipInfo) -> int:
    """Where the bytes of a stored member begin: after its local header, whose name and extra field vary in length."""
    try:
        archive.zip.open(info).close()  # checks the header
        archive.reader.seek(info.header_offset)
        return info.header_offset + 30 + sum(struct.unpack("<26x2H", archive.reader.read(30)))
    except Exception as error:
        raise DataError(_damage(archive.path, f"member {info.filename!r} is damaged", archive.file, error)) from error


def _listed(archive: _Archive, inside: bool) -> _Listing:
    """All members of an archive, checked and sorted. Zips are bundles, unless ``archive`` is inside a zip itself."""
    listing, spellings, infos = _Listing(archive.path), set(), archive.zip.infolist()
    total, packed = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    if len(infos) > _MAX_MEMBERS:
        raise archive.refusal(f"{len(infos):,} members; expected at most {_MAX_MEMBERS:,}")
    if total > _MAX_TOTAL:
        raise archive.refusal(f"members of {total / 1e9:.0f} GB in all; expected at most {_MAX_TOTAL / 1e9:.0f} GB")
    if packed > archive.size:
        raise archive.refusal(f"members of {packed:,} bytes in a zip of {archive.size:,}; they overlap")
    for info in infos:
        parts = [part for part in info.filename.split("/") if part not in ("", ".")]
        in_dataset = FOLDER in parts[:-1]
        is_zip = not in_dataset and info.filename.lower().endswith(".zip")
        if fault := _fault(info, any_size=is_zip and not inside):
            raise archive.refusal(f"member {info.orig_filename!r} {fault}")
        if info.is_dir():
            continue
        if _is_clutter(parts):
            listing.left_out["left over by macOS"] += 1
        elif in_dataset:
            path = PurePosixPath(*parts[parts.index(FOLDER) + 1 :])
            if (spelling := str(path).casefold()) in spellings:
                raise archive.refusal(f"member {info.filename!r} is there twice")
            spellings.add(spelling)
            listing.members.append(_member(archive, info, path))
        elif is_zip and not inside:
            listing.bundles.append(info)
        else:
            listing.left_out["a zip inside two zips" if is_zip else f"not under {FOLDER}"] += 1
    return listing


def _fault(info: ZipInfo, any_size: bool) -> str | None:
    """What speaks against a member, or None. Bundles may have any size: all members together are bounded anyway."""
    # zipfile cuts a name off at a NUL, and some versions take another name from an extra field: both names are checked.
    for name in (info.orig_filename, info.filename):
        if not name:
            return "has no name"
        if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
            return "has control characters in its name"
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or ".." in parts or any(re.match("[A-Za-z]:", p) for p in parts):
            return "has a name that could lead out of the folder"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        return "is a link or a special file"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.flag_bits & _PATCH:
        return "holds a difference to another file; expected the file"
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}; expected 0 (stored) or 8 (deflated)"
    if info.compress_type == ZIP_STORED and info.file_size != info.compress_size:
        return f"has two sizes, {info.file_size:,} and {info.compress_size:,} bytes"
    if info.file_size > max(_RATIO_COUNTS_FROM, _MAX_RATIO * info.compress_size):
        return (
            f"claims {info.file_size:,} bytes from {info.compress_size:,}; expected at most {_MAX_RATIO} times as many"
        )
    if info.file_size > _MAX_FILE and not any_size:
        return f"claims {info.file_size / 1e9:.1f} GB; expected at most {_MAX_FILE / 1e9:.1f} GB"
    return None


def _is_clutter(parts: Sequence[str]) -> bool:
    """Whether macOS left it behind."""
    return any(part in ("__MACOSX", ".DS_Store") or part.startswith("._") for part in parts)


def _member(archive: _Archive, info: ZipInfo, path: PurePosixPath) -> _Member:
    year, month, day, *time = info.date_time  # a missing date has month 0 and day 0
    seconds = calendar.timegm((year, min(max(month, 1), 12), max(day, 1), *time))
    return _Member(path, info.file_size, info.CRC, seconds, archive.path / info.filename, (archive, info))


def _chosen(
    members: Iterable[_Member], wanted: Callable[[PurePosixPath], bool], left_out: Counter[str]
) -> list[_Member]:
    """The wanted members, each path once; why the others go is counted in ``left_out``."""
    chosen: dict[str, _Member] = {}
    for member in members:
        if not wanted(member.path):
            left_out["not wanted"] += 1
            continue
        first = chosen.setdefault(str(member.path).casefold(), member)
        if first is not member:
            if (first.path, first.size, first.crc) != (member.path, member.size, member.crc):
                raise DataError(
                    f"{member.origin} ({member.size:,} bytes) and {first.origin} ({first.size:,} bytes) are different "
                    f"files for {member.path}; expected one content and one spelling: move one of the archives away"
                )
            left_out["the same in another archive"] += 1
    folders = {str(folder).casefold() for member in chosen.values() for folder in member.path.parents}
    for path, member in chosen.items():
        if path in folders:
            raise DataError(f"{member.origin}: is a file, but its name is also that of a folder of other members")
    return list(chosen.values())


def _is_there(into: Path, member: _Member) -> bool:
    """Whether the file is in place: the member's size and time, or its size and CRC-32 (then it is given the time)."""
    path = into / member.path
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != member.size:
            return False
        if int(found.st_mtime) == member.time:
            return True
        crc = 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                crc = zlib.crc32(block, crc)
    except OSError:
        return False
    if crc == member.crc:
        with suppress(OSError):
            os.utime(path, (member.time, member.time))
    return crc == member.crc


def _write(members: Sequence[_Member], into: Path, progress: _Progress | None) -> None:
    """Write members to their places under ``into``, if there is room for all of them."""
    if not members:
        return
    needed = sum(member.size for member in members)
    try:
        into.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=into).close()  # asking for permission is no proof, on network disks
        free = shutil.disk_usage(into).free
    except OSError as error:
        raise DataError(
            f"{into}: cannot be written to ({error.strerror}); name another folder to unpack to as data.unpack_to"
        ) from error
    if needed > free:
        raise DataError(
            f"{into}: unpacking takes {needed / 1e9:.3f} GB, {free / 1e9:.3f} GB are free; make room, or "
            "name another folder to unpack to as data.unpack_to"
        )
    _remove_leftovers({(into / member.path).parent for member in members})
    done = told = 0
    for member in members:
        try:
            with written_aside(into / member.path) as aside:
                with aside.open("wb") as file:
                    for block in _blocks(member):
                        file.write(block)
                        done += len(block)
                        if progress is not None and done - told >= _REPORT:
                            told = done
                            progress(done // _MIB, -(-needed // _MIB), str(member.path))
                os.utime(aside, (member.time, member.time))
        except OSError as error:
            raise DataError(
                f"{into / member.path}: cannot be written ({error.strerror}); make room or allow it, or name another "
                "folder to unpack to as data.unpack_to; the files before it are finished and will be kept"
            ) from error
        if progress is not None:
            progress(-(-done // _MIB), -(-needed // _MIB), str(member.path))


def _blocks(member: _Member) -> Iterator[bytes]:
    """The content of a member, a few MiB at a time, never more than its size; checked against size and CRC-32."""
    assert member.source is not None
    (archive, info), size = member.source, 0
    try:
        with archive.zip.open(info) as file:
            while block := file.read(_BLOCK):  # zipfile stops at the size, and raises at the end if the CRC is wrong
                size += len(block)
                yield block
        if size != info.file_size:  # zipfile is content with less
            raise BadZipFile(f"{size:,} bytes instead of {info.file_size:,}")
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
        what = f"member {info.filename!r} is damaged"
        raise DataError(_damage(archive.path, what, archive.file, error)) from error


def _remove_leftovers(folders: Iterable[Path]) -> None:
    """Remove what killed runs were writing, but not what another process is writing now."""
    for folder in folders:
        for path in folder.glob(".*.part"):
            match = re.fullmatch(r"\..+\.(\d+)\.part", path.name)
            if match and (int(match[1]) == os.getpid() or not psutil.pid_exists(int(match[1]))):
                path.unlink(missing_ok=True)


def _remove_copies(into: Path, bundles: Iterable[_Member]) -> None:
    for bundle in bundles:
        with suppress(OSError):
            (into / bundle.path).unlink(missing_ok=True)
            (into / _UNPACKING).rmdir()  # if nothing else is in it


def _record(into: Path, bundle: _Member, listing: _Listing) -> None:
    """Note what a compressed bundle holds, so that the next call need not copy it out to find nothing to do."""
    rows = [[str(member.path), member.size, member.crc, member.time] for member in listing.members]
    with suppress(OSError):
        write_json(into / _UNPACKED / f"{bundle.path.name}.json", {"members": rows, "left_out": listing.left_out})


def _recorded(into: Path, bundle: _Member) -> _Listing | None:
    """What the last call noted. Used to find that all is there; whatever is not is unpacked from the bundle itself."""
    try:
        note = read_json(into / _UNPACKED / f"{bundle.path.name}.json")
        rows = [(PurePosixPath(path), size, crc, time) for path, size, crc, time in note["members"]]
        members = [_Member(*row, bundle.origin / FOLDER / row[0]) for row in rows]
        return _Listing(bundle.origin, members, left_out=Counter(note["left_out"]))
    except (ValueError, KeyError, TypeError):  # no note, or not one of ours
        return None
