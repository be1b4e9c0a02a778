"""The published matrix from CLIP tokens to caption embeddings, as ``decoders.text.TextProjector`` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroclips.pretrained.checkpoints import read_checkpoint
from neuroclips.pretrained.convert.folders import Dtype, folder_aside, parameters, write_weights
from neuroclips.pretrained.convert.names import Account, Place, converted


def projector(source: Mapping[str, Tensor], shape: tuple[int, int]) -> tuple[dict[str, Tensor], Account]:
    """``weight`` (P, D) from ``proj`` (D, P): prediction = mean token @ proj."""
    target = {"weight": torch.empty(shape, device="meta")}
    return converted(source, target, lambda name: Place("proj", "transposed"))


def convert(
    sources: Mapping[str, Path], out: Path, *, shape: tuple[int, int] = (1280, 1664), dtype: Dtype = "fp32"
) -> dict[str, Any]:
    """Write ``sources["projector"]`` as ``projector.safetensors``. shape : (P, D), widths of captions and of tokens."""
    file = read_checkpoint(sources["projector"])
    state, account = projector(file.tensors, shape)
    account.check(file.path, "a projector from tokens to captions")
    with folder_aside(out) as folder:
        write_weights(folder / "projector.safetensors", state, dtype)
    return {
        "class": "neuroclips.decoders.text.TextProjector", "parameters": parameters(state.values()), "dtype": dtype,
        "accounts": {"projector": account.card()},
    }  # fmt: skip
