"""The code between a subject's own layer and everything that subjects share.

    code = [ (tokens - mean) U_t,  (latents - mean) U_l ] / scale        what frozen networks see in a clip
    code^ = sum_l W_l x_l + b                                            ridge from the clip's volumes: the input layer

MindEye2 aligns subjects in a hidden space that it learns. Here the space is fixed, principal components of the targets,
so that a new subject's layer is a ridge regression with a closed form (paper, equation 3), and what follows it can be
trained on other subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold

from neuroclips.artefacts import read_arrays, write_arrays
from neuroclips.data.clips import Targets
from neuroclips.decoders.ridge import ALPHAS, MAX_FOLDS, solve_ridge_cv
from neuroclips.errors import DataError
from neuroclips.shapes import Float, Float32, Int

COLUMNS = 2**14  # features in memory at a time
LARGE, ROW_SCALE = 2**14, ".row_scale"  # elements of a matrix that is rounded; what the name of its scales ends in


def write_rounded(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, large matrices as int8 with a float32 scale a row: half the size of float16.

    Rounding moves a number by at most 1/254 of the largest in its row.
    """
    stored: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim == 2 and array.size >= LARGE:
            scale = np.maximum(np.abs(array).max(axis=1, keepdims=True).astype(np.float32) / 127, 1e-12)
            stored |= {name: np.round(array / scale).astype(np.int8), name + ROW_SCALE: scale}
        else:
            stored[name] = array
    write_arrays(path, stored)


def read_rounded(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as float32, whether ``write_rounded`` wrote them or not."""
    arrays = {name: np.array(array, np.float32) for name, array in read_arrays(path).items()}
    for name in [name for name in arrays if name.endswith(ROW_SCALE)]:
        arrays[name.removesuffix(ROW_SCALE)] *= arrays.pop(name)
    return arrays


def leading_axes(
    values: Float[np.ndarray, "B ..."], count: int
) -> tuple[Float32[np.ndarray, ...], Float32[np.ndarray, "A N"], Float32[np.ndarray, " A"]]:
    """Mean, principal axes (orthonormal rows) and singular values of clips' targets, from the clips' Gram matrix.

    A is ``count``, at most as many as there are clips or features that differ. ``values`` may be memory-mapped and
    larger than memory: ``COLUMNS`` features are read at a time, twice.
    """
    flat = values.reshape(len(values), -1)
    parts = [slice(start, start + COLUMNS) for start in range(0, flat.shape[1], COLUMNS)]
    mean = np.empty(flat.shape[1], np.float32)
    gram = np.zeros((len(flat), len(flat)))
    for part in parts:
        x = np.asarray(flat[:, part], np.float32)
        mean[part] = x.mean(axis=0)
        x = x - mean[part]
        gram += x @ x.T
    squares, vectors = np.linalg.eigh(gram)
    count = min(count, len(flat) - 1, flat.shape[1])
    squares, vectors = squares[::-1][:count], vectors[:, ::-1][:, :count]
    singular = np.sqrt(np.maximum(squares, 1e-12 * squares[0]))
    axes = np.empty((count, flat.shape[1]), np.float32)
    for part in parts:
        axes[:, part] = (vectors / singular).T @ (np.asarray(flat[:, part], np.float32) - mean[part])
    return mean.reshape(values.shape[1:]), axes, singular.astype(np.float32)


@dataclass(frozen=True)
class Basis:
    """Principal components of tokens and latents, and the standard deviation of each component.

    tokens_mean : (K, D).  tokens_axes : (A, K * D), orthonormal rows.
    latents_mean : (F, C, h, w).  latents_axes : (E, F * C * h * w), orthonormal rows.
    scale : (A + E,) standard deviation of each component; codes have about unit variance.
    """

    tokens_mean: Float32[np.ndarray, "K D"]
    tokens_axes: Float32[np.ndarray, "A KD"]
    latents_mean: Float32[np.ndarray, "F C h w"]
    latents_axes: Float32[np.ndarray, "E FChw"]
    scale: Float32[np.ndarray, " AE"]

    @property
    def n_tokens(self) -> int:
        """A: how many components of the code are of the tokens; they come first."""
        return len(self.tokens_axes)

    @property
    def width(self) -> int:
        return len(self.scale)

    @classmethod
    def fit(cls, targets: Targets, n_tokens: int, n_latents: int) -> Basis:
        """The leading components of these clips' targets, at most as many as there are clips or features."""
        parts: dict[str, np.ndarray] = {}
        scales = []
        for name, count in (("tokens", n_tokens), ("latents", n_latents)):
            mean, axes, singular = leading_axes(getattr(targets, name), count)
            parts |= {f"{name}_mean": mean, f"{name}_axes": axes}
            # Clips that are alike leave components of no size: divided by that, the rest would explode.
            scales.append(np.maximum(singular, 1e-3 * singular[0]) / np.sqrt(len(targets.tokens)))
        return cls(**parts, scale=np.concatenate(scales).astype(np.float32))

    def encode(self, targets: Targets) -> Float32[np.ndarray, "B AE"]:
        """The code of clips whose targets are known."""
        parts = []
        for name in ("tokens", "latents"):
            values, mean = np.asarray(getattr(targets, name), np.float32), getattr(self, f"{name}_mean")
            if values.shape[1:] != mean.shape:
                raise DataError(f"{name} of a clip have shape {values.shape[1:]}; this code was made for {mean.shape}")
            parts.append((values - mean).reshape(len(values), -1) @ getattr(self, f"{name}_axes").T)
        return (np.concatenate(parts, axis=1) / self.scale).astype(np.float32)

    def save(self, path: Path) -> None:
        half = {f.name: getattr(self, f.name).astype(np.float16) for f in fields(self)}
        write_rounded(path, half | {"scale": self.scale})  # small ones would be lost in halves

    @classmethod
    def load(cls, path: Path) -> Basis:
        return cls(**read_rounded(path))


@dataclass(frozen=True)
class InputLayer:
    """A subject's own linear layer, voxels to code, solved by ridge.

    weight : (X, W) for X = L V volumes times voxels.  bias : (W,).
    held_out : (B, W) codes of the training clips, each predicted by a layer that had not seen its run; what follows is
        trained on these, because the layer's own predictions on its training clips are far better than on new ones.
    """

    weight: Float32[np.ndarray, "X W"]
    bias: Float32[np.ndarray, " W"]
    held_out: Float32[np.ndarray, "B W"] | None = None

    def __call__(self, x: Float[np.ndarray, "B X"]) -> Float32[np.ndarray, "B W"]:
        return (x @ self.weight + self.bias).astype(np.float32)


def solve_input_layer(
    x: Float32[np.ndarray, "B X"],
    code: Float32[np.ndarray, "B W"],
    runs: Int[np.ndarray, " B"],
    *,
    alphas: Sequence[float] = ALPHAS,
    held_out: bool = False,
) -> InputLayer:
    """Ridge from volumes to code, its strength chosen for every component across runs (``solve_ridge_cv``)."""
    if len(x) != len(code):
        raise DataError(f"an input layer was given {len(x)} clips and {len(code)} codes; expected as many")
    x_mean, code_mean = x.mean(axis=0), code.mean(axis=0)
    centred = x - x_mean
    dual, chosen = solve_ridge_cv(centred, code - code_mean, runs, alphas, code.shape[1])
    weight = (centred.T @ dual / x.shape[1]).astype(np.float32)
    out = None
    if held_out:
        out, kernel = np.empty_like(code), centred @ centred.T / x.shape[1]
        for rest, left in GroupKFold(min(MAX_FOLDS, len(np.unique(runs)))).split(x, groups=runs):
            mean = code[rest].mean(axis=0)
            values, vectors = np.linalg.eigh(kernel[np.ix_(rest, rest)])
            inner = vectors.T @ (code[rest] - mean) / (values[:, None] + chosen)
            out[left] = kernel[np.ix_(left, rest)] @ vectors @ inner + mean
    return InputLayer(weight, (code_mean - x_mean @ weight).astype(np.float32), out)
