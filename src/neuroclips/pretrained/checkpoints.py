"""Checkpoints of others, read without executing anything: pickles of PyTorch, and safetensors.

A pickle may name any function and have it called when it is loaded. PyTorch's restricted reader builds tensors and
plain containers, and refuses every other name. Training frameworks leave such names beside the weights; those known to
be leftovers are replaced by empty objects, nothing of them is imported or run. A file that names anything else is
refused.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from neuroclips.data.tensor_file import described, load_plain
from neuroclips.errors import ArtefactError, DataError

EXPECTED = "a checkpoint, as torch.save or safetensors write them"
# Where the weights are, in files that hold more than weights.
WRAPPERS = ("state_dict", "model_state_dict", "controlnet", "model", "module")
# Beginnings of names that training leaves behind; none of them is needed to read weights.
LEFTOVERS = (
    "pytorch_lightning.", "lightning.", "lightning_fabric.", "deepspeed.", "accelerate.", "omegaconf.", "sgm.", "ldm.",
    "torch.optim.", "torch.cuda.amp.", "torch.amp.", "numpy.", "argparse.Namespace", "collections.", "datetime.",
    "pathlib.", "typing.", "builtins.dict", "builtins.list", "builtins.tuple", "builtins.int", "builtins.float",
    "builtins.bool", "builtins.str", "builtins.object", "copyreg._reconstructor",
)  # fmt: skip
_WHOLE_BYTES = 2 * 1024**3  # the largest file that is read into memory, where it cannot be mapped


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a file, memory-mapped: nothing is read until it is used.

    inside : the entries that led to the weights, such as ('state_dict',).  beside : all other entries, left alone.
    inert : foreign names that the pickle mentions, replaced by empty objects.
    """

    path: Path
    tensors: dict[str, Tensor]
    inside: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()


class _Inert:
    """Stands for an object of any class: takes all arguments and any state, and keeps nothing."""

    def __new__(cls, *args: Any, **options: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **options: Any): ...

    def __setstate__(self, state: Any) -> None: ...


class _InertDict:
    """Stands for a class of dictionaries; the restricted reader fills no others than these."""

    def __new__(cls, *args: Any, **options: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def foreign_globals(path: Path) -> list[str]:
    """Every name in a pickle that PyTorch's restricted reader does not know; ``['os.system']`` is a bad sign.

    The pickle is taken apart, not run. A name that is put together while loading shows as '?': the restricted reader
    refuses such pickles. Safetensors name nothing.

    Raises ArtefactError for a file that is no pickle of PyTorch.
    """
    if path.suffix == ".safetensors":
        return []
    try:
        names = set().union(*(_names(part) for part in _pickles(path)))
    except Exception as error:  # whatever a damaged file makes the parser raise
        raise ArtefactError(f"{path}: cannot be read as a pickle ({error}); expected {EXPECTED}") from error
    return sorted(name for name in names if _is_foreign(name))


def _pickles(path: Path) -> list[BytesIO]:
    """The pickle of an archive; of an old file the five that stand one after another before the numbers."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return [_one_pickle(file) for _ in range(5)]
    with zipfile.ZipFile(path) as archive:
        return [BytesIO(archive.read(name)) for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]


def _one_pickle(file: Any) -> BytesIO:
    start = file.tell()
    end = [position for _, _, position in pickletools.genops(file) if position is not None][-1] + 1
    file.seek(start)
    return BytesIO(file.read(end - start))


def _names(part: BytesIO) -> set[str]:
    names: set[str] = set()
    strings: list[str | None] = []
    memo: dict[int, str | None] = {}
    argument: Any
    for code, argument, _ in pickletools.genops(part):
        if code.name in ("GLOBAL", "INST"):
            names.add(_of_python_3(*str(argument).split(" ", 1)))
        elif code.name == "STACK_GLOBAL":  # module and name are the two strings before it
            known = [string for string in strings[-2:] if string is not None]
            names.add(".".join(known) if len(known) == 2 else "?")
        elif code.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else None
        elif code.name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = strings[-1] if strings else None
        elif code.name in ("BINGET", "LONG_BINGET", "GET"):
            strings.append(memo.get(int(argument)))
        elif "UNICODE" in code.name or "STRING" in code.name:
            strings.append(str(argument))
        else:
            strings.append(None)  # another value lies between
    return names


def _of_python_3(module: str, name: str) -> str:
    """As PyTorch reads it: old pickles call ``builtins`` '__builtin__'."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _is_foreign(name: str) -> bool:
    """Asked of PyTorch, with an archive that holds this name alone."""
    module, _, attribute = name.rpartition(".")
    if not module or "\n" in name:
        return True
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("name/data.pkl", b"\x80\x02c%s\n%s\n." % (module.encode(), attribute.encode()))
        file.writestr("name/version", "3\n")
    archive.seek(0)
    return bool(get_unsafe_globals_in_checkpoint(archive))


def read_checkpoint(path: Path, *, allow_inert: bool = True) -> Checkpoint:
    """The weights of a ``.pth``, ``.ckpt``, ``.pt``, ``.bin`` or ``.safetensors`` file, under the file's own names.

    Entries that hold the weights (``WRAPPERS``) are opened; a 'module.' before every key, left by training on several
    devices, is taken off.

    allow_inert : read a file that names leftovers of training, too (see the module).

    Raises ArtefactError for what is no checkpoint, is damaged or cut off, or names anything that could be run.
    """
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file; expected {EXPECTED}")
    if path.suffix == ".safetensors":
        return Checkpoint(path, _unprefixed(_read_safetensors(path)))
    content, inert = _read_pickle(path, allow_inert)
    inside, beside = [], []
    while isinstance(content, Mapping):
        found = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if found is None:
            break
        inside.append(found)
        beside += [str(name) for name in content if name != found]
        content = content[found]
    if not isinstance(content, Mapping):
        raise ArtefactError(f"{path}: holds {described(content)}; expected tensors by name")
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ArtefactError(f"{path}: holds {described(content)} and no tensors; expected tensors by name")
    beside += [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    return Checkpoint(path, _unprefixed(tensors), tuple(inside), tuple(beside), tuple(inert))


def _unprefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # mapped, not read
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            head = file.read(60)
        hint = "run `git lfs pull`, or download it again" if head.startswith(b"version https://git-lfs") else (
            "download it again"
        )  # fmt: skip
        raise ArtefactError(
            f"{path}: not a whole safetensors file but {path.stat().st_size} bytes that begin with {head!r} ({error}); "
            f"{hint}"
        ) from error


def _read_pickle(path: Path, allow_inert: bool) -> tuple[Any, list[str]]:
    """What a file holds, and the foreign names in it, which are judged before anything is loaded."""
    try:
        names = foreign_globals(path)
    except ArtefactError:
        names = []  # what this is instead of a pickle is found below
    bad = [name for name in names if not name.startswith(LEFTOVERS)]
    if bad or (names and not allow_inert):
        raise ArtefactError(
            f"{path}: its pickle names {', '.join(bad or names)}, so it could run code; nothing of it was executed. "
            "Expected weights alone: load this file nowhere else, and take it again from the source that the model's "
            "card names"
        )
    pairs: list[Any] = [(_InertDict if name.lower().endswith("dict") else _Inert, name) for name in names]
    with safe_globals(pairs) if pairs else nullcontext(), warnings.catch_warnings():  # the list is the whole process's
        warnings.filterwarnings("ignore", message="Detected pickle protocol")  # it reads these, or says what it cannot
        try:
            return _loaded(path), names
        except DataError as error:
            raise ArtefactError(str(error)) from error


def _loaded(path: Path) -> Any:
    with path.open("rb") as file:
        old = file.read(1) == b"\x80"  # a bare pickle, as before PyTorch 1.6, and no archive
    if not old:
        if zipfile.is_zipfile(path) and not _pickles(path):
            raise DataError(f"{path}: an archive without data.pkl; expected {EXPECTED}")
        return load_plain(path, EXPECTED)
    if path.stat().st_size > _WHOLE_BYTES:
        raise DataError(
            f"{path}: {path.stat().st_size / 1e9:.1f} GB in PyTorch's old format, which cannot be read in parts; "
            "save it again with torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the parser raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise DataError(f"{path}: cannot be read as {EXPECTED} ({reason})") from error
