"""Noise ceiling: how much of a voxel's response the film explains at all, measured from repeats of the same film.

Every response is a signal that the repeats share plus noise that they do not: y_br = s_b + e_br for clip b and repeat
r. Both estimates below are of rho = var(s) / (var(s) + var(e)), the reliability of a single presentation; a mean of k
presentations has reliability

    r_k = k rho / (1 + (k - 1) rho)          (Spearman-Brown; k may be a fraction)

and no prediction can correlate with that mean better than sqrt(r_k) on average. Voxels are read in parts, so ``bold``
may be memory-mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from neuroclips.errors import DataError
from neuroclips.shapes import Bool, Float

_VALUES_AT_ONCE = 1 << 23  # of bold, in float64: 64 MB
_FLAT = 1e-12  # share of the raw sum of squares below which only rounding is left of a variance
EXPLAINABLE = 0.1  # explainable variance above which a voxel is said to follow the film


@dataclass(frozen=True)
class NoiseCeiling:
    """The noise ceiling of a set of voxels, in a few numbers.

    n_voxels, n_repeats : how many; of repeats, the most that any clip has.
    explainable_variance : median over voxels, of a single presentation.
    share_explainable : share of voxels with an explainable variance above 0.1.
    reliability : median split-half reliability of the mean of all repeats.
    correlation : sqrt(reliability), the correlation with that mean that a perfect prediction would reach.
    """

    n_voxels: int
    n_repeats: int
    explainable_variance: float
    share_explainable: float
    reliability: float
    correlation: float


def noise_ceiling(bold: Float[np.ndarray, "B R V"], present: Bool[np.ndarray, "B R"]) -> NoiseCeiling | None:
    """Summary over voxels of ``explainable_variance`` and ``split_half``; None where no clip was shown twice."""
    if present.sum(axis=1).max(initial=0) < 2:
        return None
    variance, reliability = explainable_variance(bold, present), float(np.median(split_half(bold, present)))
    return NoiseCeiling(
        n_voxels=bold.shape[2],
        n_repeats=int(present.sum(axis=1).max()),
        explainable_variance=float(np.median(variance)),
        share_explainable=float((variance > EXPLAINABLE).mean()),
        reliability=reliability,
        correlation=float(np.sqrt(reliability)),
    )


def spearman_brown(reliability: Float[np.ndarray, ...], k: float | int) -> Float[np.ndarray, ...]:
    """Reliability of a mean of ``k`` presentations, from that of one: k r / (1 + (k - 1) r).

    >>> spearman_brown(np.array([0.0, 0.25, 1.0]), 3).tolist()
    [0.0, 0.5, 1.0]
    """
    return k * reliability / (1 + (k - 1) * reliability)


def explainable_variance(bold: Float[np.ndarray, "B R V"], present: Bool[np.ndarray, "B R"]) -> Float[np.ndarray, " V"]:
    """Share of a single presentation's variance that repeats have in common, per voxel.

    With N responses of B clips, it compares the variance around each clip's mean, which is noise, with that around the
    mean of everything, each divided by its degrees of freedom:

        1 - (sum_br (y_br - mean_b)^2 / (N - B)) / (sum_br (y_br - mean)^2 / (N - 1))

    For standardised voxels this is the explainable variance of the voxelwise encoding tutorials with its correction
    for the number of repeats. It is not clipped: voxels that do not follow the film scatter around 0, below it too. A
    voxel that never changes gets 0. Clips shown once add to the total only.

    Raises
    ------
    DataError
        No clip was shown twice.
    """
    counts = present.sum(axis=1)[:, None]  # (B, 1)
    n, repeated = int(counts.sum()), int((counts - 1).clip(min=0).sum())
    if repeated == 0:
        raise DataError("no clip was shown twice; explainable variance needs at least two repeats of a clip")
    found = np.zeros(bold.shape[2])
    for part, y in _voxel_parts(bold):
        y = np.where(present[..., None], y, 0)
        centred = y - np.where(present[..., None], y.sum(axis=(0, 1)) / n, 0)
        total = np.square(centred).sum(axis=(0, 1))
        between = (np.square(centred.sum(axis=1)) / counts.clip(min=1)).sum(axis=0)
        changes = total > _FLAT * np.square(y).sum(axis=(0, 1))
        np.divide((total - between) / repeated, total / (n - 1), out=found[part], where=changes)
        found[part] = np.where(changes, 1 - found[part], 0)
    return found


def split_half(
    bold: Float[np.ndarray, "B R V"], present: Bool[np.ndarray, "B R"], n_repeats: int | None = None
) -> Float[np.ndarray, " V"]:
    """Reliability of the mean of ``n_repeats`` presentations (of all by default), from the odd and the even ones.

    The means of each clip's odd and even presentations are correlated over the clips that have both, and corrected
    for their length. Means of k1 and k2 presentations with reliability rho each correlate by

        r = q / sqrt((q + 1/k1) (q + 1/k2)),  q = rho / (1 - rho),

    which is solved for q; with k1 = k2 this is the Spearman-Brown formula. Where clips differ in their number of
    repeats, 1/k is its mean over clips. A correlation below 0 predicts no reliability at all: 0.

    Raises
    ------
    DataError
        Fewer than three clips were shown twice.
    """
    numbers = np.cumsum(present, axis=1)  # 1, 2, ... of a clip's existing presentations
    halves = [present & (numbers % 2 == parity) for parity in (1, 0)]
    rows = np.flatnonzero(halves[1].any(axis=1))
    if len(rows) < 3:
        raise DataError(f"{len(rows)} clips were shown twice; split-half reliability needs at least three")
    halves = [half[rows] for half in halves]
    counts = [half.sum(axis=1)[:, None] for half in halves]
    noise = [float((1 / k).mean()) for k in counts]  # of a mean, in units of a single presentation's
    whole = float((1 / (counts[0] + counts[1])).mean()) if n_repeats is None else 1 / n_repeats
    found = np.zeros(bold.shape[2])
    for part, y in _voxel_parts(bold, rows):
        means = [np.where(half[..., None], y, 0).sum(axis=1) / k for half, k in zip(halves, counts)]
        r = _correlation(*means).clip(min=0)
        square, (a, b) = r**2, noise
        # q as a fraction: its denominator is 0 at r = 1
        above = square * (a + b) + np.sqrt(square**2 * (a + b) ** 2 + 4 * (1 - square) * square * a * b)
        found[part] = above / (above + 2 * (1 - square) * whole)
    return found


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation of the columns of (B, V) arrays, (V,); 0 where one of them is constant."""
    raw, (x, y) = [np.square(z).sum(axis=0) for z in (x, y)], (x - x.mean(axis=0), y - y.mean(axis=0))
    squares = [np.square(z).sum(axis=0) for z in (x, y)]
    change = (squares[0] > _FLAT * raw[0]) & (squares[1] > _FLAT * raw[1])
    scale = np.sqrt(squares[0] * squares[1])
    return np.divide((x * y).sum(axis=0), scale, out=np.zeros(len(scale)), where=change).clip(-1, 1)


def _voxel_parts(bold: np.ndarray, rows: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Neighbouring voxels and their responses, (B, R, some of V) float64, of all clips or of those in ``rows``."""
    at_once = max(1, _VALUES_AT_ONCE // max(1, bold.shape[0] * bold.shape[1]))
    for start in range(0, bold.shape[2], at_once):
        part = slice(start, start + at_once)
        y = np.asarray(bold[:, :, part], np.float64)
        yield part, y if rows is None or len(rows) == len(y) else y[rows]
