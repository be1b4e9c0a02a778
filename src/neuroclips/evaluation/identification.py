"""Identification: is the clip that was seen found among all the clips that could have been?

It cannot be won by looking good. A prediction is compared with every candidate clip; the score of the true clip is
ranked among those of its pool. Ties count by expectation, so a prediction that says nothing scores exactly chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from neuroclips.artefacts import Rows, in_parts
from neuroclips.errors import DataError
from neuroclips.shapes import Bool, Float, Float32, Int

_FEATURES_AT_ONCE = 1 << 14  # 1,200 clips x 16,384 features in float32 are 80 MB
METRICS = ("top-1", "top-5", "pairwise", "rank")


@dataclass(frozen=True)
class Identification:
    """Per-clip results, and their analytic chance levels given each clip's pool of n candidates.

    values : metric to (B,). "top-1" and "top-5": probability that the true clip is among the best 1 or 5 (a fraction
        when it ties); "pairwise": share of distractors that score lower; "rank": expected rank, 1 is best.
    chance : metric to (B,). 1 / n, min(5 / n, 1), 0.5 and (n + 1) / 2.
    pool_size : (B,) n, the true clip included.
    """

    values: Mapping[str, Float[np.ndarray, " B"]]
    chance: Mapping[str, Float[np.ndarray, " B"]]
    pool_size: Int[np.ndarray, " B"]


def correlation_scores(
    predicted: Float[np.ndarray, "B ..."] | Float[Rows, "B ..."],
    candidates: Float[np.ndarray, "N ..."],
    reference: Float[np.ndarray, ...],
) -> Float32[np.ndarray, "B N"]:
    """Pearson correlation of flattened features, after subtracting ``reference`` from both sides.

    ``reference`` (one clip's shape) should be the mean over the *training* clips. Embeddings share a large common
    part; left in, it makes all correlations high and alike. A row equal to the reference has no direction: it scores 0
    with every candidate and so ties with all of them. Features are read in parts, so inputs may be memory-mapped.
    """
    if predicted.shape[1:] != candidates.shape[1:] or reference.shape != candidates.shape[1:]:
        raise DataError(
            f"features differ in shape: predicted {predicted.shape}, candidates {candidates.shape}, reference "
            f"{reference.shape}; expected (B, ...), (N, ...) and (...)"
        )
    n = int(np.prod(reference.shape))
    x, y, centre = predicted.reshape(len(predicted), n), candidates.reshape(len(candidates), n), reference.reshape(n)
    cross = np.zeros((len(x), len(y)))
    sums = {side: np.zeros((3, len(side_x))) for side, side_x in (("x", x), ("y", y))}  # sum, squares, raw squares
    for part in in_parts(n, _FEATURES_AT_ONCE, x, y):
        a, b = (np.asarray(side[:, part], np.float32) - centre[part].astype(np.float32) for side in (x, y))
        cross += a @ b.T
        for total, difference, raw in ((sums["x"], a, x), (sums["y"], b, y)):
            total[0] += difference.sum(axis=1, dtype=np.float64)
            total[1] += np.square(difference).sum(axis=1, dtype=np.float64)
            total[2] += np.square(raw[:, part], dtype=np.float64).sum(axis=1)
    cross -= np.outer(sums["x"][0], sums["y"][0]) / n
    return (cross * np.outer(_inverse_norms(sums["x"], n), _inverse_norms(sums["y"], n))).astype(np.float32)


def _inverse_norms(sums: np.ndarray, n: int) -> np.ndarray:
    total, squares, raw_squares = sums
    variance = squares - total**2 / n
    # Below a millionth of the raw norm only rounding is left of the difference from the reference.
    flat = variance <= 1e-12 * np.maximum(raw_squares, np.finfo(np.float64).tiny)
    return np.where(flat, 0, 1 / np.sqrt(np.where(flat, 1, variance)))


def candidate_pool(
    segment: Int[np.ndarray, " B"], onset: Float[np.ndarray, " B"], exclude_seconds: float
) -> Bool[np.ndarray, "B B"]:
    """Row t: which clips are candidates when clip t is the target.

    Clips of the target's own segment whose onset lies within ``exclude_seconds`` of the target's (inclusive) are left
    out, except the target itself: they look like it and their fMRI overlaps with its own.
    """
    near = np.abs(onset[:, None] - onset[None]) <= exclude_seconds + 1e-9
    return ~(near & (segment[:, None] == segment[None])) | np.eye(len(onset), dtype=bool)


def identify(scores: Float[np.ndarray, "B B"], pool: Bool[np.ndarray, "B B"]) -> Identification:
    """Rank the true clip (the diagonal) of each row of ``scores`` among the candidates that ``pool`` allows.

    With a distractors above the true clip and t tied with it, its rank is uniform on a + 1 ... a + t + 1, hence
    P(rank <= k) = clip((k - a) / (t + 1), 0, 1) and expected rank a + 1 + t / 2.

    >>> scores = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.7, 0.6, 0.1]])
    >>> found = identify(scores, np.ones((3, 3), bool))
    >>> found.values["top-1"].tolist(), found.values["rank"].tolist()
    ([1.0, 0.5, 0.0], [1.0, 1.5, 3.0])
    """
    size = _checked_pool_size(scores, pool)
    true = np.diagonal(scores)[:, None]
    above = ((scores > true) & pool).sum(axis=1)
    tied = ((scores == true) & pool).sum(axis=1) - 1
    chance = {"top-1": 1 / size, "top-5": np.minimum(5 / size, 1), "pairwise": np.full(len(size), 0.5),
              "rank": (size + 1) / 2}  # fmt: skip
    return Identification(_results(above, tied, size), chance, size)


def identify_every_pairing(
    scores: Float[np.ndarray, "B B"], pool: Bool[np.ndarray, "B B"]
) -> dict[str, Float[np.ndarray, "B B"]]:
    """Metric to a table (prediction i, target t): the result if prediction i had been made for target t.

    The diagonal is ``identify``. A permutation test reads thousands of shuffled pairings out of it.
    """
    size = _checked_pool_size(scores, pool)
    above, tied = np.empty(scores.shape, np.int64), np.empty(scores.shape, np.int64)
    target, left_out = np.nonzero(~pool)
    for i, row in enumerate(scores):
        ordered = np.sort(row)
        above[i] = len(row) - np.searchsorted(ordered, row, side="right")
        tied[i] = len(row) - above[i] - np.searchsorted(ordered, row, side="left") - 1
        above[i] -= np.bincount(target[row[left_out] > row[target]], minlength=len(row))
        tied[i] -= np.bincount(target[row[left_out] == row[target]], minlength=len(row))
    return _results(above, tied, size)


def _checked_pool_size(scores: np.ndarray, pool: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise DataError("identification scores hold values that are not finite; expected finite similarities")
    if not np.diagonal(pool).all():
        raise DataError("a target is missing from its own candidate pool; expected a pool with a true diagonal")
    size = pool.sum(axis=1)
    if size.min() < 2:
        raise DataError(
            f"clip {int(np.argmin(size))} has no distractor left in its pool; give more clips or exclude fewer seconds"
        )
    return size


def _results(above: np.ndarray, tied: np.ndarray, size: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics from counts of distractors above and tied; the last axis is the target."""
    return {
        "top-1": np.clip((1 - above) / (tied + 1), 0, 1),
        "top-5": np.clip((5 - above) / (tied + 1), 0, 1),
        "pairwise": 1 - (above + tied / 2) / (size - 1),
        "rank": above + 1 + tied / 2,
    }
