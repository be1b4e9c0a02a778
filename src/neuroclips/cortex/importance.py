"""How much each voxel matters to a decoder: weights, patterns, permutation importance.

With x_lv the response of voxel v at lag l, W the first layer that hears voxels, y^ = sum_lv x_lv W_lv + b its output
and y what it should be (both centred over the clips):

    weight      mean |W_lv| over lags and outputs, as the paper maps it. A voxel that only carries noise gets a large
                weight if that noise cancels the noise of others.
    pattern     sum_k cov(x_v, y^_k)^2, scaled: how much of what is decoded the voxel itself carries (Haufe et al. 2014,
                NeuroImage 87:96). A voxel that only cancels noise gets nothing.
    importance  the score that is lost when the voxel's responses are exchanged between clips.

The score is a <y^, y> / <y, y>, where a is the one factor that fits y^ to y best: the variance that is explained. Its
loss is exact: the mean over all B! permutations of the clips has a closed form, and needs no forward pass,

    loss_bv = a sum_l (x_blv - mean_lv) <W_lv, y_b> / <y, y>

for clip b, and the losses of all voxels add up to the score (the product measure of Pratt, 1987). The variance left
unexplained is no such score: a fitted decoder stands where it is flat, and voxels that carry the same share the loss.

Voxels are worked on in parts, so that memory is bounded whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from neuroclips.cortex.regions import Regions
from neuroclips.decoders import FirstLayer
from neuroclips.errors import DataError
from neuroclips.shapes import Float32, Int

_VALUES_AT_ONCE = 1 << 24  # of W, in float32: 64 MB


@dataclass(frozen=True)
class Importance:
    """What exchanging each voxel between clips costs.

    score : variance that the first layer explains, 0 to 1, at its best scale.
    values : (V,) of it that each voxel's exchange costs, as a share of 1; they add up to ``score``.
    per_clip : (B, R) the same of all voxels of a region together, for each clip; its mean over clips is the region's.
    """

    score: float
    values: Float32[np.ndarray, " V"]
    per_clip: Float32[np.ndarray, "B R"]


@dataclass(frozen=True)
class Patterns:
    """How much of what is decoded each voxel carries.

    values : (V,) squared correlation with what is decoded, weighted by how much varies along each of its axes; from two
        halves with independent noise, so that it is 0 on average, and may be negative, at voxels that carry nothing.
    per_clip : (B, R) a region's sum over voxels, split into what each clip adds; its mean over clips is the region's.
        It is of products of two clips, so that a clip counts twice: ``summary.of_clips(..., order=2)``.
    """

    values: Float32[np.ndarray, " V"]
    per_clip: Float32[np.ndarray, "B R"]


def _parts(n_voxels: int, outputs: int, lags: int) -> Iterator[slice]:
    at_once = max(1, _VALUES_AT_ONCE // max(1, outputs * lags))
    for start in range(0, n_voxels, at_once):
        yield slice(start, min(start + at_once, n_voxels))


def _columns(part: slice, n_voxels: int, lags: int) -> Int[np.ndarray, " N"]:
    """Columns of the inputs that hold these voxels, lag by lag."""
    return (np.arange(part.start, part.stop) + n_voxels * np.arange(lags)[:, None]).ravel()


def _lags(inputs: np.ndarray, n_voxels: int) -> int:
    lags, rest = divmod(inputs.shape[1], n_voxels)
    if rest or not lags:
        raise DataError(f"inputs of {inputs.shape[1]} columns; expected a multiple of {n_voxels} voxels")
    return lags


def mean_weights(layer: FirstLayer, n_voxels: int, n_columns: int) -> Float32[np.ndarray, " V"]:
    """Mean absolute weight of every voxel over lags and outputs, scaled to [0, 1] (paper, figure 5)."""
    lags, outputs = n_columns // n_voxels, layer.rows(np.arange(1)).shape[1]
    found = np.empty(n_voxels, np.float32)
    for part in _parts(n_voxels, outputs, lags):
        rows = np.abs(layer.rows(_columns(part, n_voxels, lags)))
        found[part] = rows.mean(axis=1).reshape(lags, -1).mean(axis=0)
    low, high = found.min(), found.max()
    return (found - low) / (high - low) if high > low else np.zeros_like(found)


def permutation_importance(
    layer: FirstLayer,
    inputs: Float32[np.ndarray, "B X"],
    goal: Float32[np.ndarray, "B Y"],
    regions: Regions,
) -> Importance:
    """Mean loss of score over all permutations of the clips, of every voxel (all its lags together) and region.

    Raises
    ------
    DataError
        The goal does not change between clips, or the inputs do not fit the regions' voxels.
    """
    v, b = regions.n_voxels, len(inputs)
    lags = _lags(inputs, v)
    said = layer.output(inputs)
    said, y = said - said.mean(axis=0), goal - goal.mean(axis=0)
    total, shared, own = (float(np.vdot(p, q)) for p, q in ((y, y), (said, y), (said, said)))
    if total <= 0:
        raise DataError("what should be decoded is the same in all clips; expected clips that differ")
    fit = max(shared, 0.0) / own if own > 0 else 0.0  # a decoder that is worse than none is used not at all
    values, per_clip = np.empty(v, np.float32), np.zeros((b, regions.n_cells), np.float64)
    for part in _parts(v, y.shape[1], lags):
        columns = _columns(part, v, lags)
        x = inputs[:, columns]
        x = x - x.mean(axis=0)
        lost = (x * (y @ layer.rows(columns).T)).reshape(b, lags, -1).sum(axis=1) * (fit * b / total)
        values[part] = lost.mean(axis=0)
        regions.add(per_clip, lost, part)
    return Importance(fit * max(shared, 0.0) / total, values, regions.of_cells(per_clip).astype(np.float32))


def patterns(
    layer: FirstLayer,
    halves: tuple[Float32[np.ndarray, "B X"], Float32[np.ndarray, "B X"]],
    regions: Regions,
) -> Patterns:
    """Haufe patterns from two sets of presentations of the same clips, each with its own noise.

    With the responses x and outputs y^ of either half, centred: the mean over lags of

        sum_k cov(x1, y^2_k) cov(x2, y^1_k) / (sd(x1) sd(x2) sqrt(sum_k var(y^1_k) sum_k var(y^2_k)))

    Were one half used for all, noise that voxels share would be in x and y^ alike and count as pattern. With equal
    halves (one presentation only) it does.
    """
    v = regions.n_voxels
    lags = _lags(halves[0], v)
    said = [layer.output(half) for half in halves]
    said = [s - s.mean(axis=0) for s in said]
    b, size = len(halves[0]), float(np.sqrt(np.prod([np.vdot(s, s) for s in said])))
    products = said[1] @ said[0].T / max(size * lags, np.finfo(np.float32).tiny)  # (B, B): y^2 of b with y^1 of c
    values, per_clip = np.zeros(v, np.float32), np.zeros((b, regions.n_cells))
    for part in _parts(v, b, lags):
        columns = _columns(part, v, lags)
        one, two = (side[:, columns] - side[:, columns].mean(axis=0) for side in halves)
        deviation = np.sqrt(np.square(one).mean(axis=0) * np.square(two).mean(axis=0))
        each = (one * (products @ two) + two * (products.T @ one)) / (2 * np.where(deviation > 0, deviation, np.inf))
        each = each.reshape(b, lags, -1).sum(axis=1)
        values[part] = each.mean(axis=0)
        regions.add(per_clip, each, part)
    return Patterns(values, regions.of_cells(per_clip).astype(np.float32))
