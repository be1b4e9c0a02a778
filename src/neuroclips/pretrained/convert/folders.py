"""Folders of converted weights: written aside, tensor by tensor, and renamed when they are whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from neuroclips.artefacts import written_aside
from neuroclips.errors import ArtefactError

Dtype = Literal["fp32", "fp16"]
_PART = 1 << 24


@contextmanager
def folder_aside(out: Path) -> Iterator[Path]:
    """Yield a new folder beside ``out``; on success it becomes ``out``, on error it is removed.

    Raises ArtefactError where ``out`` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtefactError(f"{out}: holds something already; expected a new folder: remove it, or name another")
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    aside.mkdir(parents=True)
    try:
        yield aside
        if out.exists():
            out.rmdir()
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_weights(path: Path, state: Mapping[str, Tensor], dtype: Dtype = "fp32") -> None:
    """Write tensors to a safetensors file in parts of some million numbers, so that memory holds no more than a part.

    Raises ArtefactError for values that are not finite, or become so in float16, and where the disk is too small.
    """
    kind, name_of_kind, width = {"fp32": (torch.float32, "F32", 4), "fp16": (torch.float16, "F16", 2)}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in state.items():
        start, end = end, end + width * value.numel()
        header[name] = {"dtype": name_of_kind, "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < end + len(text):
        raise ArtefactError(f"{path.parent}: no room for {end / 1e9:.2f} GB of weights, {free / 1e9:.2f} are free")
    with written_aside(path) as aside, aside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, value in state.items():
            for part in value.reshape(-1).split(_PART):
                numbers = part.to(kind)
                if not torch.isfinite(numbers).all():
                    raise ArtefactError(f"{path}: {name} has values that are not finite in {numbers.dtype}")
                file.write(numbers.numpy().data)


def write_config(folder: Path, model: Any) -> Path:
    """Write the ``config.json`` of a diffusers or transformers model; returns where its weights belong."""
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "save_config"):
        model.save_config(folder)
        return folder / "diffusion_pytorch_model.safetensors"
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return folder / "model.safetensors"


def parameters(tensors: Iterable[Tensor]) -> int:
    """Numbers in all tensors."""
    return sum(value.numel() for value in tensors)
