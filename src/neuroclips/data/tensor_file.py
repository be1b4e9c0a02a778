"""One ``.pt`` file, read without executing anything: tensors, plain containers, and arrays of strings."""

from __future__ import annotations

import pickle
import re
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from neuroclips.errors import DataError

TENSOR = "what torch.save(tensor, FILE) writes"
_WHOLE_BYTES = 2 * 1024**3  # the largest file that is read into memory, where it cannot be mapped


def is_mappable(path: Path) -> bool:
    """Whether an array can be read in parts: all can, but tensors in the format of before PyTorch 1.6."""
    return path.suffix.lower() not in {".pt", ".pth"} or _head(path).startswith(b"PK\3\4")


def read_tensor(path: Path) -> np.ndarray:
    """The one tensor in a ``.pt`` file, memory-mapped and read-only, without executing anything.

    Raises
    ------
    DataError
        Not such a file, damaged, objects other than a tensor, a type that numpy does not know, or larger than 2 GB in
        the format of before PyTorch 1.6, which cannot be mapped.
    """
    import torch

    tensor = load_plain(path, TENSOR)
    if not isinstance(tensor, torch.Tensor):
        raise DataError(f"{path}: holds {described(tensor)}; expected one tensor")
    return as_array(path, tensor)


def as_array(path: Path, tensor: Any) -> np.ndarray:
    """A tensor as a read-only array that shares its memory. Raises DataError for types that numpy does not have."""
    try:
        array = tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        kind = f"{str(tensor.dtype).removeprefix('torch.')} ({str(tensor.layout).removeprefix('torch.')})"
        raise DataError(f"{path}: a tensor of {kind}; expected a dense one of a type that numpy has") from error
    array.flags.writeable = False
    return array


def load_plain(path: Path, expected: str, *, strings: bool = False) -> Any:
    """What ``torch.save`` wrote: tensors and plain containers, with ``strings`` also numpy arrays of strings. A pickle
    that names anything else is refused before it runs."""
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    plain = "plain strings" if strings else "a plain tensor"
    # Entered only where it is needed: the list is the whole process's, and frames are read by several threads.
    with safe_globals(_string_globals()) if strings else nullcontext():
        try:
            _check_kind(path, plain, expected)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable(path))
        except DataError:
            raise
        except pickle.UnpicklingError as error:
            try:
                names = sorted(get_unsafe_globals_in_checkpoint(path))
            except Exception:  # it reads fewer formats than torch.load
                names = []
            objects = f"objects ({', '.join(names)})" if names else "objects"
            raise DataError(
                f"{path}: not {plain} but {objects} that may run code when loaded, or damaged; it was not "
                f"loaded; expected {expected}"
            ) from error
        except Exception as error:  # whatever a damaged file makes the parser raise
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise DataError(f"{path}: cannot be read as a {path.suffix} array ({reason})") from error


def _string_globals() -> list[Any]:
    """What the pickle of a numpy array of strings names; not ``ObjectDType``, so that arrays of objects are refused."""
    # In numpy 1, which wrote the published files, the function had another name; it is mapped, not imported.
    reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    old = (reconstruct, "numpy.core.multiarray._reconstruct")
    return [reconstruct, old, np.ndarray, np.dtype, np.dtypes.StrDType]


def _check_kind(path: Path, plain: str, expected: str) -> None:
    """Refuse what downloads leave behind instead of a file, and files that cannot be mapped rightly."""
    size, head = path.stat().st_size, _head(path)
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: a git-LFS pointer of {size} bytes; expected the file itself: run `git lfs pull`")
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        raise DataError(f"{path}: a web page of {size} bytes; expected {expected}: download it again")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):  # of a failed download, or an empty file
        held = f"text, {head[:40].decode().strip()!r}" if head else "an empty file"
        raise DataError(f"{path}: not {plain} but {held}; expected {expected}: download it again")
    if is_mappable(path):
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: truncated, its end is missing after {size} bytes; download it again")
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise DataError(f"{path}: a compressed archive, which cannot be mapped; expected {expected}")
    elif size > _WHOLE_BYTES:
        raise DataError(
            f"{path}: {size / 1e9:.1f} GB in PyTorch's old format, which cannot be read in parts; "
            "save it again with torch.save(torch.load(OLD, weights_only=True), NEW)"
        )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)


def described(content: Any) -> str:
    """In words, what a file holds instead of a tensor."""
    keys = [str(key) for key in content] if isinstance(content, dict) else []
    more = [f"and {len(keys) - 3} more"] if len(keys) > 3 else []
    return f"a {type(content).__name__}" + (f" with the keys {', '.join(keys[:3] + more)}" if keys else "")


def read_strings(path: Path) -> np.ndarray:
    """The one array of strings in a ``.pt`` file, (N,); arrays of objects are refused unread."""
    expected = "a numpy array of strings (not of objects)"
    strings = load_plain(path, expected, strings=True)
    if not isinstance(strings, np.ndarray):
        raise DataError(f"{path}: holds {described(strings)}; expected {expected}")
    if strings.dtype.kind != "U" or strings.ndim != 1:
        raise DataError(f"{path}: an array of {strings.dtype}, shape {strings.shape}; expected one axis of strings")
    return strings
