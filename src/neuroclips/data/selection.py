"""Which voxels answer the film the same way twice (method of Wen et al. 2018, on the training segments alone).

Per training segment, the correlation between its repeats; Fisher's z; a one-sample t-test of the segments' z against
zero at every voxel; then Bonferroni or Benjamini-Hochberg over the voxels that are asked, or simply those with the
smallest p. Areas and mask files say which voxels are asked; t and p are kept for all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from neuroclips.errors import DataError
from neuroclips.recipe import SelectionRecipe
from neuroclips.shapes import Bool, Float, Float32

MINIMUM = 100  # fewer voxels than this cannot carry a decoder
FALLBACK = 1000  # then so many, with the smallest p: a control without signal must run through the same pipeline
_LARGEST_R = 1 - 1e-6  # a correlation of 1 (a copied file) would give an infinite z


@dataclass(frozen=True)
class Selection:
    """Voxels kept, and the evidence, for all V cortical voxels.

    mask : which voxels are kept.
    t, p : t-test of Fisher's z over segments; a voxel that never varies has t 0 and p 1.
    reliability : mean correlation between repeats over segments.
    fallback : too few voxels passed the test, so that the best ones were taken instead, significant or not.
    """

    mask: Bool[np.ndarray, " V"]
    t: Float32[np.ndarray, " V"]
    p: Float[np.ndarray, " V"]
    reliability: Float32[np.ndarray, " V"]
    fallback: bool


def repeat_correlation(runs: Iterable[Float[np.ndarray, "T V"]]) -> Float[np.ndarray, " V"]:
    """Pearson correlation between the repeats of one segment at each voxel; the mean over all pairs if more than two.

    The runs must be z-scored (``bold.zscore``). They are consumed one at a time: for n of them,
    ``sum over pairs r_ab = (|sum of runs|^2 - sum of |run|^2) / (2 (T - 1))``. A voxel without variance counts as 0.
    """
    total, squares, n = None, None, 0
    for run in runs:
        total = run.copy(order="K") if total is None else np.add(total, run, out=total)
        square = np.einsum("tv,tv->v", run, run, dtype=np.float64)
        squares = square if squares is None else squares + square
        n += 1
    if total is None or squares is None or n < 2:
        raise DataError(f"{n} repeats; expected at least 2 to correlate")
    joint = np.einsum("tv,tv->v", total, total, dtype=np.float64)
    return (joint - squares) / (n * (n - 1) * (len(total) - 1))


def fisher_z(r: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """``0.5 ln((1 + r) / (1 - r))``, with |r| held below 1 - 1e-6 so that it stays finite (|z| < 7.3)."""
    return np.arctanh(np.clip(np.asarray(r, np.float64), -_LARGEST_R, _LARGEST_R))


def t_test(z: Float[np.ndarray, "S V"], sides: int) -> tuple[Float[np.ndarray, " V"], Float[np.ndarray, " V"]]:
    """One-sample t-test of the mean over S segments against 0: ``t`` and ``p`` of each voxel.

    One-sided asks for a positive mean, two-sided for any mean but 0. Where all S values are equal, t is infinite,
    except where they are all 0: a voxel that never varies has t 0 and p 1.
    """
    n = len(z)
    if n < 2:
        raise DataError(f"{n} training segment; expected at least 2 for a t-test over segments")
    mean = z.mean(axis=0)
    error = z.std(axis=0, ddof=1) / np.sqrt(n)
    t = np.divide(mean, error, out=np.copysign(np.inf, mean), where=error > 0)
    t[(error == 0) & (mean == 0)] = 0
    p = stats.t.sf(t, n - 1) if sides == 1 else 2 * stats.t.sf(np.abs(t), n - 1)
    p[t == 0] = 1
    return t, p


def select_voxels(
    r: Float[np.ndarray, "S V"], recipe: SelectionRecipe, asked: Bool[np.ndarray, " V"] | None = None
) -> Selection:
    """Select voxels from the repeat correlations of S training segments; ``asked`` are the candidates (default: all).

    Raises DataError when no candidate varies, when there are fewer than 2 segments, or when ``top`` asks for more
    voxels than vary.
    """
    t, p = t_test(fisher_z(r), recipe.sides)
    asked = np.ones(len(p), bool) if asked is None else asked
    varies = np.any(r != 0, axis=0) & asked
    if not varies.any():
        raise DataError(f"none of {asked.sum()} voxels varies over time in both repeats; nothing to select")
    fallback = False
    if recipe.method == "all":
        mask = varies
    elif recipe.method == "top":
        if recipe.top > varies.sum():
            raise DataError(f"selection.top is {recipe.top}; only {varies.sum()} of {asked.sum()} voxels vary")
        mask = _smallest_p(t, varies, recipe.sides, recipe.top)
    else:
        mask = varies & (_adjusted(p, asked, recipe.method) < recipe.p)
        fallback = bool(mask.sum() < min(MINIMUM, varies.sum()))
        if fallback:
            mask = _smallest_p(t, varies, recipe.sides, FALLBACK)
    # p keeps double precision: the best voxels' p underflow in single.
    return Selection(mask, t.astype(np.float32), p, r.mean(axis=0).astype(np.float32), fallback)


def _adjusted(p: np.ndarray, asked: np.ndarray, method: str) -> np.ndarray:
    """p corrected for the number of voxels asked: to be held against the error rate. 1 for those not asked."""
    adjusted = np.ones(len(p))
    if method == "fdr":
        adjusted[asked] = stats.false_discovery_control(p[asked], method="bh")
    else:
        adjusted[asked] = np.minimum(p[asked] * asked.sum(), 1)
    return adjusted


def _smallest_p(t: np.ndarray, varies: np.ndarray, sides: int, count: int) -> np.ndarray:
    """Mask of the ``count`` varying voxels (or all, if fewer) of smallest p: by t, which does not underflow."""
    strength = np.where(varies, t if sides == 1 else np.abs(t), -np.inf)
    best = np.argsort(-strength, kind="stable")[: min(count, int(varies.sum()))]
    mask = np.zeros(len(t), bool)
    mask[best] = True
    return mask
