"""Tests that respect scenes: how often would chance alone do as well?

Nothing is assumed about the distribution of a score: labels are exchanged that could as well have been the other way
round if there were no effect, and always for a whole scene at once, for the clips of a scene are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuroclips.errors import DataError
from neuroclips.shapes import Float, Float64, Int


def permutation_p_value(observed: float, null: Float[np.ndarray, " N"]) -> float:
    """One-sided p = (1 + number of null values at or above the observed) / (1 + N); never zero.

    Phipson and Smyth (2010, Stat. Appl. Genet. Mol. Biol. 9:39).
    """
    return float((1 + np.count_nonzero(null >= observed)) / (1 + len(null)))


def paired_p_value(
    difference: Float[np.ndarray, " B"], scene: Int[np.ndarray, " B"], *, draws: int = 1000, seed: int = 0
) -> float | None:
    """Two-sided p of the mean of paired differences, by flipping the sign of whole scenes at random.

    If two methods are equally good, which of them is called the first in a scene is arbitrary. The statistic is the
    sum of the differences; p = (1 + number of flips as far from 0) / (1 + draws). None with fewer than 6 scenes, for
    then no result could reach 0.05 (2 of 2^5 flips leave all signs alike).

    >>> paired_p_value(np.full(40, 0.1), np.arange(40) // 2) < 0.01
    True
    """
    if len(difference) != len(scene) or not np.isfinite(difference).all():
        raise DataError(f"{len(difference)} differences for {len(scene)} clips; expected one finite value a clip")
    numbers, block = np.unique(scene, return_inverse=True)
    if len(numbers) < 6:
        return None
    sums = np.bincount(block, difference, len(numbers))
    signs = np.random.default_rng(seed).integers(0, 2, size=(draws, len(numbers))) * 2 - 1
    # Equal up to rounding counts as equal: flips of scenes without a difference must not decide.
    slack = 1e-12 * np.abs(sums).sum()
    return permutation_p_value(abs(float(sums.sum())), np.abs(signs @ sums) + slack)


def holm(p_values: Sequence[float] | Float[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """Adjusted p-values that bound the chance of any false alarm in the family (Holm 1979, Scand. J. Stat. 6:65).

    The k-th smallest of n is multiplied by n - k + 1; a larger p is never adjusted below a smaller one.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1)
    return adjusted
