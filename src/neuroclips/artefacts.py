"""Artefacts on disk: safetensors arrays and a JSON card, never half-written, always traceable.

A stage directory holds its files and one ``card.json``, written last: a directory without a card is unfinished.
Everything is written aside, synced and renamed, so a reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from neuroclips.errors import ArtefactError
from neuroclips.shapes import Int

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_Specs = Mapping[str, tuple[tuple[int, ...], str]]  # name of each array -> shape, dtype as safetensors calls it
_BYTES_AT_ONCE = 1 << 28
_MAX_HEADER_BYTES = 100_000_000  # the bound of the safetensors format itself


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success sync it and rename it into place, on error remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as readable JSON, atomically. NaN is refused: it is not JSON."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1, allow_nan=False, default=_as_json) + "\n")


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


class ArrayWriter:
    """A safetensors file filled in place through memory maps, so that it may be larger than memory.

    >>> import numpy as np, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> with ArrayWriter(path, {"bold": ((3, 2), "F32")}) as arrays:
    ...     arrays["bold"][1] = [5, 7]
    >>> read_arrays(path)["bold"][1].tolist()
    [5.0, 7.0]
    """

    def __init__(self, path: Path, specs: _Specs):
        self.path, self.specs = Path(path), dict(specs)

    def __enter__(self) -> dict[str, np.ndarray]:
        self._aside = written_aside(self.path)
        aside = self._aside.__enter__()
        try:
            _allocate(aside, self.specs)
            self._maps = _map_arrays(aside, mode="r+")
        except BaseException as error:
            self._aside.__exit__(type(error), error, error.__traceback__)
            raise
        return dict(self._maps)

    def __exit__(self, *error: Any) -> None:
        for array in self._maps.values():
            if isinstance(array, np.memmap):
                array.flush()
        self._maps = {}
        self._aside.__exit__(*error)


def _allocate(path: Path, specs: _Specs) -> None:
    """A safetensors file of zeros. Its space is claimed now: a full disk met through a memory map kills the process."""
    header, offset = {}, 0
    for name, (shape, dtype) in specs.items():
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(_DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # keeps the data aligned for the memory map
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if not hasattr(os, "posix_fallocate"):  # macOS, Windows
            file.truncate(8 + len(text) + offset)
        elif offset:
            file.flush()
            try:
                os.posix_fallocate(file.fileno(), 8 + len(text), offset)
            except OSError as error:
                free = shutil.disk_usage(path.parent).free
                raise ArtefactError(
                    f"{path.parent}: no room for {offset / 1e9:.2f} GB of arrays, {free / 1e9:.2f} are free ({error})"
                ) from error


class GrowingArrays:
    """A safetensors file made part by part, which a killed run goes on with: parts that were finished stand.

    A part's memory maps are closed when it is done, so that memory does not grow with the file. ``close`` puts the file
    in its place when every part is there. Other processes may fill in rows (``opened``); ``finish`` notes their parts.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> for attempt in range(2):
    ...     growing = GrowingArrays(path, {"bold": ((3, 2), "F32")})
    ...     for number in range(3):
    ...         if not growing.has(f"clip {number}"):
    ...             with growing.part(f"clip {number}") as arrays:
    ...                 arrays["bold"][number] = attempt
    ...     growing.close()
    >>> read_arrays(path)["bold"].tolist()
    [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self, path: Path, specs: _Specs):
        self.path, self.specs = Path(path), dict(specs)
        self.growing = self.path.with_name(f".{self.path.name}.growing")
        self._journal = self.path.with_name(f".{self.path.name}.finished")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._done: set[str] | None = None  # None: the file is whole
        if not _holds(self.path, self.specs):
            self._done = set()
            if _holds(self.growing, self.specs) and self._journal.exists():
                self._done = set(self._journal.read_text().splitlines())
            else:
                self._journal.unlink(missing_ok=True)
                try:
                    _allocate(self.growing, self.specs)
                except ArtefactError:
                    self.growing.unlink(missing_ok=True)
                    raise

    def has(self, part: str) -> bool:
        """Whether a part was finished, now or by a run before."""
        return self._done is None or part in self._done

    @contextmanager
    def part(self, name: str) -> Iterator[dict[str, np.ndarray]]:
        """The whole arrays, to fill in the rows of one part; noted as finished on success."""
        with self.opened(self.growing) as arrays:
            yield arrays
        self.finish(name)

    @staticmethod
    @contextmanager
    def opened(growing: Path) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of a growing file, to fill in some rows, in any process; on leaving they are on disk."""
        arrays = _map_arrays(growing, mode="r+")
        yield arrays
        for array in arrays.values():
            if isinstance(array, np.memmap):
                array.flush()

    def finish(self, name: str) -> None:
        """Note a part as finished; what was written is on disk."""
        assert self._done is not None
        with self._journal.open("a") as file:
            file.write(f"{name}\n")
            file.flush()
            os.fsync(file.fileno())
        self._done.add(name)

    def close(self) -> None:
        """Every part is there: the file takes its name."""
        if self._done is not None:
            with self.growing.open("rb") as file:
                os.fsync(file.fileno())
            self.growing.replace(self.path)
            self._journal.unlink(missing_ok=True)
            self._done = None


def _holds(path: Path, specs: _Specs) -> bool:
    """Whether a file holds arrays of these names, shapes and types."""
    if not path.exists():
        return False
    try:
        found = read_arrays(path)
    except ArtefactError:
        return False
    shapes = {name: (array.shape, _NAMES[array.dtype]) for name, array in found.items()}
    return shapes == {name: (tuple(shape), dtype) for name, (shape, dtype) in specs.items()}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to a safetensors file, atomically."""
    specs = {name: (array.shape, _dtype_name(name, array)) for name, array in arrays.items()}
    with ArrayWriter(path, specs) as maps:
        for name, array in arrays.items():
            if array.ndim == 0:
                maps[name][...] = array
                continue
            at_once = _BYTES_AT_ONCE * len(array) // max(1, array.nbytes)
            for part in in_parts(len(array), at_once, array, maps[name]):
                maps[name][part] = array[part]


@contextmanager
def rows_written(path: Path, n: int) -> Iterator[Callable[[slice, Mapping[str, np.ndarray]], None]]:
    """Yield ``write(rows, arrays)``, which puts some of ``n`` rows into a file; memory does not grow with the file.

    Names, types and shapes of a row are those of the first arrays; without any there is no file.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> with rows_written(path, 3) as write:
    ...     for rows in in_parts(3, 2):
    ...         write(rows, {"number": np.arange(3)[rows]})
    >>> read_arrays(path)["number"].tolist()
    [0, 1, 2]
    """
    with ExitStack() as stack:
        maps: dict[str, np.ndarray] = {}

        def write(rows: slice, arrays: Mapping[str, np.ndarray]) -> None:
            if not maps:
                specs = {name: ((n, *array.shape[1:]), _dtype_name(name, array)) for name, array in arrays.items()}
                maps.update(stack.enter_context(ArrayWriter(path, specs)))
            for name, array in arrays.items():
                maps[name][rows] = array
            let_go(*maps.values())

        yield write


def _dtype_name(name: str, array: np.ndarray) -> str:
    if array.dtype not in _NAMES:
        raise ArtefactError(f"array {name!r} has dtype {array.dtype}; expected one of {', '.join(map(str, _NAMES))}")
    return _NAMES[array.dtype]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Open a safetensors file as read-only memory maps: nothing is read until it is indexed."""
    return _map_arrays(Path(path), mode="r")


def _map_arrays(path: Path, mode: Any) -> dict[str, np.ndarray]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ArtefactError(f"{path}: header length {length} in a file of {size} bytes; not a safetensors file")
            header = json.loads(file.read(length))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path}: cannot be read as safetensors ({error})") from error
    arrays: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        start, end = entry["data_offsets"]
        if end - start != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize or 8 + length + end > size:
            raise ArtefactError(
                f"{path}: array {name!r} of shape {shape} does not fit a file of {size} bytes; it is truncated"
            )
        if end == start:
            arrays[name] = np.zeros(shape, dtype)
        else:
            arrays[name] = np.memmap(path, dtype=dtype, mode=mode, offset=8 + length + start, shape=shape)
    return arrays


def in_parts(n: int, at_once: int, *read: Any) -> Iterator[slice]:
    """Slices of ``n`` things, ``at_once`` each. After each one the memory of the mapped arrays ``read`` is let go.

    >>> [(part.start, part.stop) for part in in_parts(5, 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, n, max(1, at_once)):
        yield slice(start, min(start + max(1, at_once), n))
        let_go(*read)


def let_go(*arrays: Any) -> None:
    """Give back the memory that the files of mapped arrays take in this process. Nothing is lost: what is read again
    comes from the system's cache or from disk. Other arrays are left alone."""
    for array in arrays:
        source = array.rows if isinstance(array, Rows) else array
        while source is not None and not isinstance(source, np.memmap):
            source = getattr(source, "base", None)
        # What is mapped for reading, or shared with the file, has its content elsewhere.
        if isinstance(source, np.memmap) and source.mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED"):
            source._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


class Rows:
    """``rows[order]``, read when it is indexed: a choice or another order of rows that outgrow memory, without a copy.

    >>> rows = Rows(np.arange(12).reshape(4, 3), np.array([3, 0]))
    >>> rows.shape, rows[:, 1:].tolist(), np.asarray(rows).tolist()
    ((2, 3), [[10, 11], [1, 2]], [[9, 10, 11], [0, 1, 2]])
    """

    def __init__(self, rows: Any, order: Int[np.ndarray, " N"]):
        self.rows, self.order, self.dtype = rows, order, rows.dtype

    def __len__(self) -> int:
        return len(self.order)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.order), *self.rows.shape[1:])

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *rest = index if isinstance(index, tuple) else (index,)
        return np.asarray(self.rows[(self.order[first], *rest)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def reshape(self, *shape: int) -> Rows:
        """With other axes behind the first one."""
        return Rows(self.rows.reshape(len(self.rows), *shape[1:]), self.order)


def kept_rows(
    folder: Path,
    ids: Sequence[str],
    make: Callable[[Int[np.ndarray, " N"]], Mapping[str, np.ndarray]],
    *,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Arrays of all clips, made ``batch`` clips at a time and kept clip by clip in ``folder`` until it is removed.

    They are returned memory-mapped, from one file in ``folder``.

    make : arrays of the clips with the given numbers, one row a clip; called only for clips that ``folder`` lacks, so
        a killed run goes on where it stopped. Rows must depend on their clip alone.
    progress : called with (clips done, clips).
    """
    whole = folder / f"all-{content_hash(list(ids))[:16]}.safetensors"
    if not whole.exists():
        files = [folder / f"{name.replace('/', '_')}.safetensors" for name in ids]
        missing = [number for number, file in enumerate(files) if not file.exists()]
        for start in range(0, len(missing), batch):
            if progress is not None:
                progress(len(ids) - len(missing) + start, len(ids))
            numbers = missing[start : start + batch]
            made = make(np.array(numbers))
            for row, number in enumerate(numbers):
                write_arrays(files[number], {name: np.asarray(array[row]) for name, array in made.items()})
        if not files:
            return {}
        with rows_written(whole, len(ids)) as write:
            for number, file in enumerate(files):
                write(slice(number, number + 1), {name: row[None] for name, row in read_arrays(file).items()})
        for file in files:
            file.unlink()
    return read_arrays(whole)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(content: Any) -> str:
    """SHA-256 of a JSON-like value, independent of key order."""
    text = json.dumps(content, sort_keys=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()


def stable_seed(*parts: Any) -> int:
    """A 63-bit seed from any JSON-like parts: the same on every machine, in every order of work.

    >>> stable_seed(7, "test1/clip3") == stable_seed(7, "test1/clip3") != stable_seed(8, "test1/clip3")
    True
    """
    return int(content_hash(list(parts))[:16], 16) >> 1


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is an ArtefactError that names it."""
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path}: not a readable JSON file ({error})") from error


def read_card(directory: Path) -> dict[str, Any] | None:
    """The card of a finished stage directory, or None when there is none."""
    path = directory / "card.json"
    return read_json(path) if path.exists() else None


def remove_tree(directory: Path) -> None:
    """Remove a stage directory, card first, so that an interrupted removal reads as unfinished."""
    (directory / "card.json").unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
