"""Anyone's videos, for scoring: folders of films, GIFs or frames, and arrays, read a few clips at a time.

    folder/clip1.mp4 ...            one film a clip (.mp4 .mov .webm .avi .mkv), or one .gif
    folder/clip1/0001.png ...       one folder of PNG or JPEG frames a clip
    folder/clip1.npy ...            one array a clip, (F, 3, H, W), (3, F, H, W) or (F, H, W, 3)
    videos.npy .pt .pth             one array of all clips, (B, F, 3, H, W), (B, 3, F, H, W) or (B, F, H, W, 3)
    videos.safetensors              the same, as the array "videos" or the only one

Clips are in natural order (clip2 before clip10). Only the order of frames counts, not their times. Files are read
without running anything in them: a pickle that holds more than a tensor is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import av
import numpy as np

from neuroclips.artefacts import read_arrays
from neuroclips.data.frames import read_video
from neuroclips.data.tensor_file import is_mappable, read_tensor
from neuroclips.errors import DataError, NeuroClipsError
from neuroclips.shapes import Int, UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

Layout = Literal["auto", "BFCHW", "BCFHW", "BFHWC"]
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")

_FILMS = {".mp4": "MP4", ".mov": "MOV", ".webm": "WebM", ".avi": "AVI", ".mkv": "MKV"}
_IMAGES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_ARRAYS = {".npy": "NPY", ".pt": "PT", ".pth": "PT", ".safetensors": "safetensors"}
_KINDS = _FILMS | _IMAGES | _ARRAYS | {".gif": "GIF"}
_EXPECTED = (
    "expected a folder of films (MP4, MOV, WebM, AVI, MKV), GIFs, folders of PNG or JPEG frames, or NPY arrays; "
    "or one .npy, .pt, .pth or .safetensors of all clips"
)
_TO_FCHW = {"BFCHW": (0, 1, 2, 3), "BCFHW": (1, 0, 2, 3), "BFHWC": (0, 3, 1, 2)}  # of one clip, without B
_TOLERANCE = 1e-3  # of the range of values
_THREADS = 4


@dataclass(frozen=True)
class VideoSource:
    """Videos of equal shape that are read when they are asked for: ``source[2:5]`` is (3, F, 3, H, W) uint8 RGB.

    Attributes
    ----------
    path : where they are.
    names : one a clip: the file's without its suffix, the folder's, or "0000", "0001", ... for rows of an array.
    shape : (B, F, 3, H, W).
    origin : what they are, in words.
    read : gives clip number b as (F, 3, H, W) uint8; called from several threads.
    named : False where ``names`` are only row numbers.
    alignment : what ``aligned`` does to each clip, in words.
    warnings : what a reader of the scores should know, such as files that were skipped.
    """

    path: Path
    names: list[str]
    shape: tuple[int, int, int, int, int]
    origin: str
    read: Callable[[int], np.ndarray] = field(repr=False)
    named: bool = True
    alignment: str = ""
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: slice | Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b F 3 H W"]:
        rows = np.arange(len(self))[index]
        if rows.ndim != 1:
            raise TypeError(f"videos are taken by a slice or an array of clip numbers, not by {index!r}")
        videos = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def put(place: int) -> None:
            videos[place] = self.read(int(rows[place]))

        _each(put, range(len(rows)))
        return videos

    def take(self, rows: Int[np.ndarray, " b"]) -> VideoSource:
        """The clips at ``rows``, in that order; nothing is read."""
        kept = [int(row) for row in rows]
        names, shape = [self.names[row] for row in kept], (len(kept), *self.shape[1:])
        return replace(self, names=names, shape=shape, read=lambda row: self.read(kept[row]))


def open_videos(path: Path, *, layout: Layout = "auto") -> VideoSource:
    """Open a folder or file of videos; see the top of this module for what may be in it.

    Films and images are checked for size and number of frames now, without decoding them, and decoded when asked for.
    Grey images become RGB; images that are partly transparent or have 16 bits a channel are refused. GIFs are read with
    a warning. Hidden files, and files and folders that are no videos, are skipped with a warning.

    Arrays are memory-mapped. uint8 spans [0, 255]. All values of a floating-point array are looked at once, now: with
    a maximum up to 1 they span [0, 1], with one above 2 [0, 255]; negative values, and maxima between, are refused.

    Parameters
    ----------
    layout : axes of arrays, B clips, F frames, C channels; "auto" takes the one whose C axis has size 3. For arrays of
        one clip a file, B is left out.

    Raises
    ------
    DataError
        Not videos, several kinds of them, a damaged file, clips of different shapes, an array whose axes or value
        range are unclear. When a damaged film or image is only met on reading, then.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, layout)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {_EXPECTED}")
    if path.suffix.lower() not in _ARRAYS:
        raise DataError(f"{path}: one {path.suffix or 'unknown'} file; {_EXPECTED}")
    return _open_arrays(path, [path], layout)


# ---------------------------------------------------------------- folders


def _open_folder(path: Path, layout: Layout) -> VideoSource:
    files, folders, skipped = _scan(path)
    inside = {folder: _scan(folder) for folder in folders}
    framed = [folder for folder in folders if _has_frames(inside[folder][0])]
    kinds = {f"{kind} files": found for kind, found in files.items()}
    if framed:
        kinds["folders of frames"] = framed
    if not kinds:
        raise DataError(f"{path}: holds no videos{_hint(folders, skipped)}; {_EXPECTED}")
    if len(kinds) > 1:
        held = " and ".join(f"{len(found)} {kind} ({found[0].name})" for kind, found in kinds.items())
        raise DataError(f"{path}: holds {held}; expected videos of one kind")
    kind, clips = next(iter(files.items())) if files else ("frames", folders)
    if kind in _IMAGES.values():
        raise DataError(f"{path}: holds {kind} files itself; expected a folder of frames for each clip")
    if kind in _ARRAYS.values():
        if len(clips) > 1 and kind != "NPY":
            raise DataError(f"{path}: holds {len(clips)} {kind} files ({', '.join(few(clips))}); give one of them")
        source = _open_arrays(path, clips, layout)
    elif kind == "GIF":
        source = _open_files(path, clips, f"{len(clips)} GIF files", _gif_shape, _read_gif)
        source.warnings.append(
            f"{path}: GIF keeps at most 256 colours a frame; these are not the videos as they were shown or made"
        )
    elif kind == "frames":
        frames = {folder: _frames_of(folder, inside[folder][0]) for folder in folders}
        formats = {_IMAGES[file.suffix.lower()] for images in frames.values() for file in images}
        if len(formats) > 1:
            raise DataError(f"{path}: holds folders of PNG and of JPEG frames; expected videos of one kind")
        skipped += [entry for folder in folders for entry in (*inside[folder][1], *inside[folder][2])]
        source = _open_files(
            path, folders, f"{len(folders)} folders of {formats.pop()} frames",
            lambda clip: _frames_shape(frames[clip]), lambda clip: np.stack([_read_image(f) for f in frames[clip]]),
        )  # fmt: skip
    else:
        source = _open_files(path, clips, f"{len(clips)} {kind} files", _film_shape, read_video)
    if kind != "frames":
        skipped += folders
    if skipped:
        names = [str(entry.relative_to(path)) for entry in skipped]
        source.warnings.append(f"{path}: skipped what is no video: {', '.join(few(names))}")
    return source


def _scan(folder: Path) -> tuple[dict[str, list[Path]], list[Path], list[Path]]:
    """What a folder holds, in natural order: files by kind, folders, and what is hidden or of no known kind."""
    files, folders, skipped = dict[str, list[Path]](), list[Path](), list[Path]()
    with _reading(folder, "a folder"):
        for entry in sorted(folder.iterdir(), key=_natural):
            if entry.name.startswith((".", "__MACOSX")):
                skipped.append(entry)
            elif entry.is_dir():
                folders.append(entry)
            elif entry.suffix.lower() in _KINDS:
                files.setdefault(_KINDS[entry.suffix.lower()], []).append(entry)
            else:
                skipped.append(entry)
    return files, folders, skipped


def _natural(path: Path) -> tuple[list[str | int], str]:
    """Sorts clip2 before clip10: numbers by value. Text and numbers alternate, so that like meets like."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


def _has_frames(files: dict[str, list[Path]]) -> bool:
    return not files.keys().isdisjoint(_IMAGES.values())


def _hint(folders: Sequence[Path], skipped: Sequence[Path]) -> str:
    """What a folder without videos holds instead, such as a folder of them."""
    found = []
    for folder in folders:
        files, deeper, _ = _scan(folder)
        if files or any(_has_frames(_scan(clip)[0]) for clip in deeper):
            found.append(str(folder))
    if found:
        return f", but {found[0]} does: give that" if len(found) == 1 else f", but {', '.join(few(found))} do: give one"
    entries = [*folders, *skipped]
    return f", only {', '.join(few(entries))}" if entries else ""


def _frames_of(folder: Path, files: dict[str, list[Path]]) -> list[Path]:
    """The frames in a clip's folder: images of one kind, and nothing else that could be the clip."""
    if len(files) != 1 or not _has_frames(files):
        held = f"{' and '.join(files)} files" if files else "no frames"
        raise DataError(f"{folder}: holds {held}; expected the frames of a clip, either PNG or JPEG")
    return next(iter(files.values()))


def _open_files(
    path: Path,
    clips: Sequence[Path],
    origin: str,
    shape_of: Callable[[Path], tuple[int, int, int]],
    read: Callable[[Path], np.ndarray],
) -> VideoSource:
    """A source of one file or folder a clip; ``shape_of`` gives (F, H, W) cheaply."""
    f, h, w = _same_shape(clips, _each(shape_of, clips))

    def read_clip(row: int) -> np.ndarray:
        with _reading(clips[row], "a video"):
            video = read(clips[row])
        if video.shape != (f, 3, h, w):
            raise DataError(
                f"{clips[row]}: {_in_words((video.shape[0], *video.shape[2:]))} came, where its header announced "
                f"{_in_words((f, h, w))}; it is damaged, or changed since it was opened"
            )
        return video

    return VideoSource(path, _names(path, clips), (len(clips), f, 3, h, w), origin, read_clip)


def _names(path: Path, clips: Sequence[Path]) -> list[str]:
    names = [clip.name if clip.is_dir() else clip.stem for clip in clips]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: two clips are called {twice!r}; expected different names")
    return names


def _same_shape(clips: Sequence[Path], shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    odd = next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        gif = " (writers of GIF drop frames that repeat)" if clips[odd].suffix.lower() == ".gif" else ""
        raise DataError(
            f"{clips[odd]}: {_in_words(shapes[odd])}, where {clips[0].name} has {_in_words(shapes[0])}; "
            f"expected clips of one shape{gif}"
        )
    return shapes[0]


def _in_words(shape: Sequence[int]) -> str:
    return f"{shape[0]} frames of {shape[1]} x {shape[2]} pixels"


# ---------------------------------------------------------------- films and images


def _film_shape(path: Path) -> tuple[int, int, int]:
    """(F, H, W) of a film, from its packets."""
    with _reading(path, "a film"), av.open(str(path), metadata_errors="replace") as container:
        if not container.streams.video:
            raise DataError(f"{path}: no video stream; expected a film")
        stream = container.streams.video[0]
        n = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
        height, width = stream.codec_context.height, stream.codec_context.width
    if n == 0:
        raise DataError(f"{path}: no video frames; expected a film")
    return n, height, width


@contextmanager
def _image(path: Path, format: str) -> Iterator[Image]:
    """An image file, of which only the header is read until its pixels are wanted."""
    from PIL import Image

    with _reading(path, f"a {format}"), path.open("rb") as file:
        # Pillow makes 8 bits of 16-bit RGB and does not tell; the 25th byte of a PNG is its depth.
        depth = file.read(25)[24:] if format == "PNG" else b""
        file.seek(0)
        with Image.open(file, formats=(format,)) as image:
            if depth == b"\x10" or image.mode not in {"RGB", "RGBA", "L", "LA", "P", "PA", "1"}:
                kind = "16 bits a channel" if depth == b"\x10" else f"mode {image.mode}"
                raise DataError(f"{path}: an image of {kind}; expected RGB or grey of 8 bits a channel")
            yield image


def _frames_shape(frames: Sequence[Path]) -> tuple[int, int, int]:
    """(F, H, W) of a folder of images, from their headers; all must have one size."""
    size = None
    for path in frames:
        with _image(path, _IMAGES[path.suffix.lower()]) as image:
            size = size or image.size
            if image.size != size:
                raise DataError(
                    f"{path}: {image.height} x {image.width} pixels, where {frames[0].name} has {size[1]} x {size[0]}; "
                    "expected frames of one size"
                )
    assert size is not None
    return len(frames), size[1], size[0]


def _read_image(path: Path) -> UInt8[np.ndarray, "3 H W"]:
    with _image(path, _IMAGES[path.suffix.lower()]) as image:
        return _rgb(image, path)


def _gif_shape(path: Path) -> tuple[int, int, int]:
    with _image(path, "GIF") as image:
        return getattr(image, "n_frames", 1), image.height, image.width


def _read_gif(path: Path) -> UInt8[np.ndarray, "F 3 H W"]:
    with _image(path, "GIF") as image:
        frames = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frames.append(_rgb(image, path))
    return np.stack(frames)


def _rgb(image: Image, path: Path) -> UInt8[np.ndarray, "3 H W"]:
    """Pixels of an 8-bit image; grey becomes RGB, transparent is refused: what shows through is not in the file."""
    pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        raise DataError(f"{path}: partly transparent; expected an opaque image")
    return pixels[..., :3].transpose(2, 0, 1)


# ---------------------------------------------------------------- arrays


def _open_arrays(path: Path, files: list[Path], layout: Layout) -> VideoSource:
    """A source of one array of all clips, or of NPY files of one clip each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, about unusual pickles; what is wrong with them is raised
        arrays = [_read_array(file) for file in files]
    first, single = arrays[0], files[0].suffix.lower() == ".npy" and arrays[0].ndim == 4  # single: one clip a file
    if not single and first.ndim != 5:
        raise DataError(f"{files[0]}: an array of shape {first.shape}; expected 5 axes: clips, frames, 3, H, W")
    if not single and len(files) > 1:
        raise DataError(f"{path}: holds {len(files)} arrays of many clips ({', '.join(few(files))}); give one of them")
    if first.dtype != np.uint8 and first.dtype.kind != "f":
        raise DataError(f"{files[0]}: an array of {first.dtype}; expected uint8 or floating point")
    for file, array in zip(files, arrays):
        if (array.shape, array.dtype) != (first.shape, first.dtype):
            raise DataError(
                f"{file}: {array.dtype} of shape {array.shape}, where {files[0].name} has {first.dtype} of shape "
                f"{first.shape}; expected clips of one shape"
            )
    if first.size == 0:
        raise DataError(f"{files[0]}: an array of shape {first.shape}; expected at least one clip")
    axes = _axes(files[0], first.shape[-4:], layout)
    names = _names(path, files) if single else [f"{row:04d}" for row in range(len(first))]
    whole, notes = None if is_mappable(files[0]) else first, list[str]()
    if whole is not None:
        notes.append(f"{path}: PyTorch's old format, which is read into memory as a whole")

    def clip(row: int) -> np.ndarray:
        # Mapped anew for each clip: what was read through a map counts as this process's memory until it is closed.
        array = _read_array(files[row if single else 0]) if whole is None else whole
        return array if single else array[row]

    unit = 1 if first.dtype == np.uint8 else _unit_of_values(path, names, clip, notes)

    def read(row: int) -> np.ndarray:
        video = clip(row).transpose(axes)
        if video.dtype != np.uint8:
            video = np.clip(np.rint(video.astype(np.float32) * unit), 0, 255).astype(np.uint8)
        return video

    f, c, h, w = (first.shape[-4:][axis] for axis in axes)
    origin = (
        f"{f'{len(files)} arrays' if single else 'array'} {first.shape} of {first.dtype}, values in [0, {255 // unit}]"
    )
    return VideoSource(path, names, (len(names), f, c, h, w), origin, read, named=single, warnings=notes)


def _read_array(path: Path) -> np.ndarray:
    """The array in a file, mapped rather than read where the format allows it, without executing anything."""
    suffix = path.suffix.lower()
    with _reading(path, f"a {suffix} array"):
        if suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise DataError(f"{path}: an archive of arrays; expected one array")
            return array
        if suffix == ".safetensors":
            arrays = read_arrays(path)
            if "videos" not in arrays and len(arrays) != 1:
                raise DataError(f"{path}: holds the arrays {', '.join(few(list(arrays)))}; expected one, or 'videos'")
            return arrays.get("videos", next(iter(arrays.values())))
        return read_tensor(path)


def _axes(path: Path, shape: Sequence[int], layout: Layout) -> tuple[int, int, int, int]:
    """The order of a clip's axes that makes it (F, 3, H, W)."""
    fitting = [name for name, axes in _TO_FCHW.items() if shape[axes[1]] == 3]
    if layout != "auto" and layout not in fitting:
        raise DataError(
            f"{path}: {shape[_TO_FCHW[layout][1]]} channels in a clip of shape {shape}, layout {layout}; expected 3"
        )
    if not fitting:
        raise DataError(f"{path}: clips of shape {shape}; expected 3 channels, as in {', '.join(_TO_FCHW)}")
    if layout == "auto" and len(fitting) > 1:
        raise DataError(f"{path}: clips of shape {shape} may be {' or '.join(fitting)}; say which by the layout")
    return _TO_FCHW[fitting[0] if layout == "auto" else layout]


def _unit_of_values(path: Path, names: Sequence[str], clip: Callable[[int], np.ndarray], notes: list[str]) -> int:
    """What takes floating-point values to [0, 255]: 255 when all lie in [0, 1], else 1. Reads everything once."""

    def extremes(row: int) -> tuple[float, float]:
        values = clip(row)
        return float(values.min()), float(values.max())

    ends = np.array(_each(extremes, range(len(names))))  # (B, 2)
    broken = np.flatnonzero(~np.isfinite(ends).all(axis=1))
    if broken.size:
        raise DataError(
            f"{path}: clip {names[broken[0]]} holds values that are not finite; expected [0, 1] or [0, 255]"
        )
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    unit = 255 if high <= 1 + _TOLERANCE else 1
    span = 255 // unit
    if low < -_TOLERANCE * span or high > (1 + _TOLERANCE) * span or (unit == 1 and high <= 2):
        raise DataError(f"{path}: values from {low:g} to {high:g}; expected [0, 1], or [0, 255] with some above 2")
    dark = np.flatnonzero((ends[:, 1] > 0) & (ends[:, 1] <= 1 + _TOLERANCE))
    if unit == 1 and dark.size:
        notes.append(
            f"{path}: {len(dark)} clips, such as {names[dark[0]]}, have no value above 1 where others reach {high:g}; "
            "they are taken as almost black"
        )
    return unit


# ---------------------------------------------------------------- small parts


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever a parser raises on a damaged file (any exception: they are many) becomes a DataError that names it."""
    try:
        yield
    except NeuroClipsError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise DataError(f"{path}: cannot be read as {kind} ({reason})") from error


def _each(work: Callable[[_Item], _Made], items: Iterable[_Item]) -> list[_Made]:
    """``work`` of each item, in order, by a few threads: decoders and numpy let them run side by side."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, items))


def few(names: Sequence[Path] | Sequence[str]) -> list[str]:
    """The first three names, and how many more."""
    shown = [name.name if isinstance(name, Path) else str(name) for name in names[:3]]
    return shown if len(names) <= 3 else [*shown, f"and {len(names) - 3} more"]
