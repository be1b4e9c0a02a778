"""The published, preprocessed CC2017 tensors (hub dataset ``gongzx/cc2017_dataset``), read without executing anything.

    subj01_train_fmri.pt       (4320, 2, V)   responses, 18 segments of 240 TRs one after another, 2 repeats
    subj01_test_fmri.pt        (1200, 10, V)  5 segments of 240 TRs, 10 repeats
    GT_train_3fps.pt           (4320, 6, 3, 224, 224) frames of each TR's 2 seconds; GT_test_3fps.pt the same for 1200
    GT_train_caption.pt        4320 captions, a numpy array of strings (optional, as everything below)
    GT_train_caption_emb.pt    (4320, 1280)   CLIP embeddings of the captions
    coco_tokens_avg_proj.pth   {"proj": (1664, 1280)}: mean of image tokens @ proj = text embedding

What the publication does not say is measured: the unit of the frames, whether responses are z-scored per segment, which
repeats are missing, which are copies. Whether the responses are shifted against the film cannot be seen here. Segments,
repeats, clips and voxels are counted from 0.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neuroclips.data.tensor_file import as_array, described, is_mappable, load_plain, read_strings, read_tensor
from neuroclips.errors import DataError
from neuroclips.shapes import Float, Float32, Int, UInt8

_Place = tuple[str, int, int]  # split, segment, repeat

TRS_PER_SEGMENT = 240  # 8 minutes of film at a TR of 2 seconds

_SPLITS = ("train", "test")
_FILES = {
    "fmri": "subj{subject:02d}_{split}_fmri.pt", "frames": "GT_{split}_3fps.pt",
    "captions": "GT_{split}_caption.pt", "text": "GT_{split}_caption_emb.pt",
}  # fmt: skip
_REQUIRED = ("fmri", "frames")
_PROJECTOR = "coco_tokens_avg_proj.pth"
_SAMPLE = 64  # clips that decide the unit of the frames
_TOLERANCE = 1e-3  # of the range of the frames' values
_Z_TOLERANCE = 0.01  # of mean 0 and deviation 1: float16 loses 1e-3, another crop far more
_THREADS = 4


@dataclass(frozen=True)
class FrameTensor:
    """The frames of a split: (N, F, 3, H, W) RGB in a file, of which ``read`` gives some clips as uint8.

    path : the file.
    shape : (N, F, 3, H, W).
    dtype : as stored.
    span : the stored values lie in [0, span], 1 or 255.
    """

    path: Path
    shape: tuple[int, int, int, int, int]
    dtype: np.dtype
    span: int
    _open: Callable[[], np.ndarray] = field(repr=False)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: slice | Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b F 3 H W"]:
        """The clips at ``rows``: values as stored times 255 / span, rounded.

        Raises DataError, with the number of the clip, for values that are not finite or outside [0, span].
        """
        numbers = np.arange(len(self))[rows]
        if numbers.ndim != 1:
            raise TypeError(f"clips are taken by a slice or an array of clip numbers, not by {rows!r}")
        frames = np.empty((len(numbers), *self.shape[1:]), np.uint8)

        def put(place: int) -> None:
            frames[place] = self._clip(int(numbers[place]))

        _each(put, range(len(numbers)))
        return frames

    def _clip(self, number: int) -> np.ndarray:
        # Mapped anew for each clip: what was read through a map counts as this process's memory until it is closed.
        tensor = self._open()
        if (tensor.shape, tensor.dtype) != (self.shape, self.dtype):
            raise DataError(
                f"{self.path}: {tensor.dtype} of shape {tensor.shape}, where {self.dtype} of shape {self.shape} was "
                "opened; expected a file that does not change"
            )
        clip = tensor[number]
        if clip.dtype == np.uint8:
            return clip
        low, high = _ends(self.path, number, clip)
        if low < -_TOLERANCE * self.span or high > (1 + _TOLERANCE) * self.span:
            raise DataError(
                f"{self.path}: clip {number} has values from {low:g} to {high:g}; expected [0, {self.span}]"
            )
        return np.clip(np.rint(clip.astype(np.float32) * (255 // self.span)), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class SplitTensors:
    """One split as published; row n of everything is clip n.

    bold : (N, R, V) responses as stored, memory-mapped, read-only.
    frames : N clips of RGB frames.
    captions : N sentences, or None.
    text : (N, P) embeddings of the captions, or None.
    """

    bold: Float[np.ndarray, "N R V"]
    frames: FrameTensor
    captions: list[str] | None
    text: Float32[np.ndarray, "N P"] | None


@dataclass(frozen=True)
class PublishedTensors:
    """Everything published for one subject, and what was found on opening it.

    projector : (P, D), the transpose of ``proj``: text embedding = projector @ mean of image tokens; or None.
    about : JSON-like:

        trs_per_segment
        files               by role, such as "train fmri": name, bytes, dtype, shape; of frames also the ``span``
                            [0, 1] or [0, 255] and the range ``sampled`` in 64 clips spread over the file
        missing             roles of files that are not there
        train, test         segments, repeats, voxels; over segments, repeats that exist, and voxels that vary there:
                            ``max_abs_mean`` and ``sd`` [least, largest] (sample standard deviation), and
                            ``z_scored_per_segment`` (|mean| < 0.01 and |sd - 1| < 0.01 everywhere);
                            ``constant_voxels`` never vary within a segment, ``sometimes_constant_voxels`` now and then
        missing_repeats     [split, segment, repeat] whose responses are all zero
        duplicates          [[split, segment, repeat], the earlier one that it equals bit by bit]
        warnings            sentences
    """

    folder: Path
    subject: int
    train: SplitTensors
    test: SplitTensors
    projector: Float32[np.ndarray, "P D"] | None
    about: dict[str, Any]


def tensor_files(folder: Path, subject: int) -> dict[str, Path]:
    """The files of a subject that are there, by role: "train fmri", "train frames", "train captions", "train text",
    the same for "test", and "projector". Nothing is opened."""
    return {role: path for role, path in _expected_files(Path(folder), subject).items() if path.is_file()}


def open_tensors(
    folder: Path,
    subject: int,
    *,
    trs_per_segment: int = TRS_PER_SEGMENT,
    progress: Callable[[int, int, str], None] | None = None,
) -> PublishedTensors:
    """Open the published tensors of a subject: check their shapes, read all responses once, and sample the frames.

    Frames may be uint8, or floating point in [0, 1] or [0, 255]: ``FrameTensor.read`` checks what 64 clips promise.
    Responses are read in blocks of one segment and repeat, so that memory does not grow with the files.

    Parameters
    ----------
    trs_per_segment : rows of one segment; both splits must be whole segments.
    progress : called with (segments read, segments, file name) while responses are read.

    Raises
    ------
    DataError
        A file is missing (captions, their embeddings and the projector may be), damaged, not fetched by git LFS, of
        another shape, number of clips or type, or names objects that might run code when loaded; responses that are
        not finite or constant everywhere; frames that are not finite, outside their unit, or black.
    """
    folder = Path(folder)
    files = _found_files(folder, subject)
    missing = [role for role in _expected_files(folder, subject) if role not in files]
    about: dict[str, Any] = {"trs_per_segment": trs_per_segment, "files": {}, "missing": missing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, about unusual pickles; what is wrong with them is raised
        train, test = (_open_split(split, files, trs_per_segment, about["files"]) for split in _SPLITS)
        projector = _read_projector(files["projector"], about["files"]) if "projector" in files else None
        _check_agreement(files, train, test, projector)
        bold = {"train": train.bold, "test": test.bold}
        about |= _measure({split: files[f"{split} fmri"] for split in _SPLITS}, bold, trs_per_segment, progress)
    for role, path in files.items():
        if not is_mappable(path) and role.endswith(_REQUIRED):
            about["warnings"].append(f"{path}: PyTorch's old format, which is read into memory as a whole")
    if train.frames.shape[3:] != test.frames.shape[3:]:
        sizes = ["{} x {}".format(*split.frames.shape[3:]) for split in (train, test)]
        about["warnings"].append(f"{folder}: training frames have {sizes[0]} pixels and test frames {sizes[1]}")
    return PublishedTensors(folder, subject, train, test, projector, about)


# ---------------------------------------------------------------- files


def _expected_files(folder: Path, subject: int) -> dict[str, Path]:
    names = {
        f"{split} {part}": name.format(subject=subject, split=split)
        for split in _SPLITS
        for part, name in _FILES.items()
    }
    return {role: folder / name for role, name in (names | {"projector": _PROJECTOR}).items()}


def _found_files(folder: Path, subject: int) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the published CC2017 tensors")
    files, expected = tensor_files(folder, subject), _expected_files(folder, subject)
    if not any(f"{split} fmri" in files for split in _SPLITS):
        matches = [re.fullmatch(r"subj(\d\d)_(?:train|test)_fmri\.pt", path.name) for path in folder.iterdir()]
        subjects = sorted({int(match[1]) for match in matches if match})
        held = f"it holds subjects {', '.join(map(str, subjects))}" if subjects else "it holds no subject's"
        raise DataError(
            f"{folder}: no responses of subject {subject}, {held}; expected {expected['train fmri'].name} and "
            f"{expected['test fmri'].name}"
        )
    lacking = [path.name for role, path in expected.items() if role.endswith(_REQUIRED) and role not in files]
    if lacking:
        raise DataError(f"{folder}: lacks {', '.join(lacking)}; expected responses and frames of both splits")
    return files


def _opener(path: Path, tensor: np.ndarray) -> Callable[[], np.ndarray]:
    """Gives the tensor of a file, mapped anew with each call; one in the old format is in memory already."""
    return (lambda: read_tensor(path)) if is_mappable(path) else (lambda: tensor)


# ---------------------------------------------------------------- one split


def _open_split(split: str, files: dict[str, Path], trs_per_segment: int, about: dict[str, Any]) -> SplitTensors:
    """Open what a split has, with shapes and types checked; ``about`` gets an entry for each file."""
    part = {role.removeprefix(f"{split} "): path for role, path in files.items() if role.startswith(split)}
    path = part["fmri"]
    bold = read_tensor(path)
    if bold.ndim != 3 or bold.size == 0 or bold.dtype.kind != "f":
        raise DataError(
            f"{path}: {bold.dtype} of shape {bold.shape}; expected floating point of 3 axes: clips, repeats, voxels"
        )
    n = len(bold)
    if n % trs_per_segment:
        raise DataError(f"{path}: {n} clips; expected a multiple of {trs_per_segment}, whole segments")
    about[f"{split} fmri"] = _card(path, bold)
    frames, about[f"{split} frames"] = _open_frames(part["frames"])
    _check_rows(frames.path, len(frames), path, n)
    captions = text = None
    if "captions" in part:
        strings = read_strings(part["captions"])
        about[f"{split} captions"] = _card(part["captions"], strings)
        _check_rows(part["captions"], len(strings), path, n)
        captions = strings.tolist()
    if "text" in part:
        stored = read_tensor(part["text"])
        about[f"{split} text"] = _card(part["text"], stored)
        text = _matrix(part["text"], stored, "clips, embedding")
        _check_rows(part["text"], len(text), path, n)
    return SplitTensors(bold, frames, captions, text)


def _card(path: Path, array: np.ndarray) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "dtype": str(array.dtype), "shape": list(array.shape)}


def _check_rows(path: Path, rows: int, other: Path, expected: int) -> None:
    if rows != expected:
        raise DataError(f"{path}: {rows} clips, where {other.name} has {expected}; expected the same clips")


def _open_frames(path: Path) -> tuple[FrameTensor, dict[str, Any]]:
    """The frames in a file, whose unit is told by the values of some clips, and the entry of the file."""
    tensor = read_tensor(path)
    opener = _opener(path, tensor)
    if tensor.ndim != 5 or tensor.size == 0:
        raise DataError(f"{path}: shape {tensor.shape}; expected 5 axes: clips, frames, 3, H, W")
    n, f, c, h, w = tensor.shape
    if c != 3:
        last = ", not channels last" if w == 3 else ""
        raise DataError(f"{path}: {c} channels in shape {tensor.shape}; expected clips, frames, 3, H, W{last}")
    if tensor.dtype != np.uint8 and tensor.dtype.kind != "f":
        raise DataError(f"{path}: values of {tensor.dtype}; expected uint8 or floating point")
    sample = np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).round().astype(int)).tolist()
    ends = np.array(_each(lambda number: _ends(path, number, opener()[number]), sample))
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    span = 1 if tensor.dtype != np.uint8 and high <= 1 + _TOLERANCE else 255
    excess = _TOLERANCE * span
    if low < -excess or high > span + excess or (span == 255 and tensor.dtype != np.uint8 and high <= 2):
        raise DataError(
            f"{path}: values from {low:g} to {high:g} in {len(sample)} clips; expected [0, 1], or [0, 255] with some "
            "above 2"
        )
    if high < 1.5 * span / 255:
        raise DataError(
            f"{path}: values of {tensor.dtype} up to {high:g} in {len(sample)} clips, black to the eye; expected some "
            f"above {span / 255:.2g} (were they cast or divided once too often?)"
        )
    frames = FrameTensor(path, (n, f, c, h, w), tensor.dtype, span, opener)
    return frames, _card(path, tensor) | {"span": [0, span], "sampled": [low, high]}


def _ends(path: Path, number: int, clip: np.ndarray) -> tuple[float, float]:
    low, high = float(clip.min()), float(clip.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{path}: clip {number} holds values that are not finite; expected [0, 1] or [0, 255]")
    return low, high


def _read_projector(path: Path, about: dict[str, Any]) -> np.ndarray:
    import torch

    content = load_plain(path, '{"proj": tensor} as torch.save writes it')
    if not isinstance(content, dict) or not isinstance(content.get("proj"), torch.Tensor):
        raise DataError(f"{path}: holds {described(content)}; expected a dictionary with the tensor 'proj'")
    stored = as_array(path, content["proj"])
    about["projector"] = _card(path, stored)
    return np.ascontiguousarray(_matrix(path, stored, "token width, embedding").T)


def _matrix(path: Path, stored: np.ndarray, axes: str) -> np.ndarray:
    """A small matrix in memory as float32; all values must be finite."""
    if stored.ndim != 2 or stored.size == 0 or stored.dtype.kind != "f":
        raise DataError(f"{path}: {stored.dtype} of shape {stored.shape}; expected floating point of 2 axes: {axes}")
    matrix = np.array(stored, np.float32)
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if broken.size:
        raise DataError(
            f"{path}: {len(broken)} of {len(matrix)} rows hold values that are not finite (first: row {broken[0]}); "
            "expected finite values everywhere"
        )
    return matrix


def _check_agreement(
    files: dict[str, Path], train: SplitTensors, test: SplitTensors, projector: np.ndarray | None
) -> None:
    """What must be equal across files: voxels, frames a clip, width of the embeddings."""
    splits = dict(zip(_SPLITS, (train, test)))
    widths = {f"{name} text": split.text.shape[1] for name, split in splits.items() if split.text is not None}
    if projector is not None:
        widths["projector"] = len(projector)
    for what, sizes in (
        ("voxels", {f"{name} fmri": split.bold.shape[2] for name, split in splits.items()}),
        ("frames a clip", {f"{name} frames": split.frames.shape[1] for name, split in splits.items()}),
        ("numbers an embedding", widths),
    ):
        for role, size in sizes.items():
            first = next(iter(sizes))
            if size != sizes[first]:
                raise DataError(
                    f"{files[role]}: {size} {what}, where {files[first].name} has {sizes[first]}; expected as many"
                )


# ---------------------------------------------------------------- responses


def _measure(
    paths: dict[str, Path],
    bold: dict[str, np.ndarray],
    trs_per_segment: int,
    progress: Callable[[int, int, str], None] | None,
) -> dict[str, Any]:
    """Facts about the responses of both splits, for ``PublishedTensors.about``; reads everything once."""
    facts: dict[str, Any] = {}
    notes: list[str] = []
    missing: list[_Place] = []
    duplicates: list[tuple[_Place, _Place]] = []
    seen: dict[bytes, _Place] = {}  # the first place with this content
    for split, path in paths.items():
        _, repeats, voxels = bold[split].shape
        tally = _Tally(voxels)
        for place, block in _blocks(split, path, bold[split], trs_per_segment, progress):
            empty = int((~block.any(axis=1)).sum())
            if empty == trs_per_segment:
                missing.append(place)
                if missing[-repeats:] == [(split, place[1], repeat) for repeat in range(repeats)]:
                    notes.append(f"{path}: no responses in segment {place[1]}; all repeats are zero")
                continue
            if empty:
                notes.append(f"{path}: {empty} of {trs_per_segment} rows of {_in_words(place)} are all zero")
            twin = seen.setdefault(hashlib.blake2b(block.data).digest(), place)
            if twin != place:
                duplicates.append((place, twin))
            tally.add(block)
        if not tally.varied.any():
            raise DataError(f"{path}: all {voxels} voxels are constant within every segment; expected responses")
        facts[split] = {"segments": len(bold[split]) // trs_per_segment, "repeats": repeats, "voxels": voxels}
        facts[split] |= tally.facts()
        if not facts[split]["z_scored_per_segment"]:
            notes.append(
                f"{path}: not z-scored per segment of {trs_per_segment} rows (|mean| up to {tally.mean:.3g}, standard "
                f"deviation from {tally.low:.3g} to {tally.high:.3g}): scaled otherwise, or not cut into whole segments"
            )
    if duplicates:
        pairs = [f"{_in_words(place)} equals {_in_words(twin)}" for place, twin in duplicates]
        more = f"; and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        notes.append(f"{paths['train'].parent}: responses occur twice: {'; '.join(pairs[:3])}{more}")
    lists = {"missing_repeats": [list(place) for place in missing], "duplicates": [[*map(list, d)] for d in duplicates]}
    return {**facts, **lists, "warnings": notes}


def _blocks(
    split: str,
    path: Path,
    bold: np.ndarray,
    trs_per_segment: int,
    progress: Callable[[int, int, str], None] | None,
) -> Iterator[tuple[_Place, np.ndarray]]:
    """Each segment and repeat as (T, V), finite."""
    opener = _opener(path, bold)
    n = len(bold) // trs_per_segment
    for segment in range(n):
        rows = opener()[segment * trs_per_segment : (segment + 1) * trs_per_segment]  # anew: see FrameTensor
        for repeat in range(bold.shape[1]):
            block, place = np.ascontiguousarray(rows[:, repeat]), (split, segment, repeat)
            broken = ~np.isfinite(block)
            if broken.all():
                raise DataError(
                    f"{path}: nothing is finite in {_in_words(place)}; expected finite values, or zeros for a repeat "
                    "that is missing"
                )
            if broken.any():
                row, voxel = np.argwhere(broken)[0]
                raise DataError(
                    f"{path}: {int(broken.sum())} values of {_in_words(place)} are not finite (first: "
                    f"{block[row, voxel]} at clip {segment * trs_per_segment + row}, repeat {repeat}, voxel {voxel}); "
                    "expected finite values everywhere"
                )
            yield place, block
        if progress is not None:
            progress(segment + 1, n, path.name)


def _in_words(place: _Place) -> str:
    return f"{place[0]} segment {place[1]}, repeat {place[2]}"


class _Tally:
    """Means and deviations over blocks of one segment and repeat, over the voxels that vary in them."""

    def __init__(self, voxels: int):
        self.varied, self.stood = np.zeros(voxels, bool), np.zeros(voxels, bool)
        self.mean, self.low, self.high = 0.0, math.inf, 0.0

    def add(self, block: Float[np.ndarray, "T V"]) -> None:
        varies = block.max(axis=0) > block.min(axis=0)
        self.varied |= varies
        self.stood |= ~varies
        if varies.any():
            centred = block.astype(np.float64)
            mean = centred.mean(axis=0)
            centred -= mean
            sd = np.sqrt(np.einsum("tv,tv->v", centred, centred) / (len(block) - 1))[varies]
            self.mean = max(self.mean, float(np.abs(mean[varies]).max()))
            self.low, self.high = min(self.low, float(sd.min())), max(self.high, float(sd.max()))

    def facts(self) -> dict[str, Any]:
        alike = max(self.mean, abs(self.low - 1), abs(self.high - 1)) < _Z_TOLERANCE
        return {
            "max_abs_mean": self.mean, "sd": [self.low, self.high], "z_scored_per_segment": alike,
            "constant_voxels": int((~self.varied).sum()),
            "sometimes_constant_voxels": int((self.varied & self.stood).sum()),
        }  # fmt: skip


def _each(work: Callable[[int], Any], items: Iterable[int]) -> list[Any]:
    """``work`` of each item, in order, by a few threads: reading and numpy let them run side by side."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, items))
