"""N-way classification: does a classifier see in the reconstruction what it sees in the film?

A judge gives every class a score, for the prediction and for the truth. In one trial the true classes meet N - 1
distractor classes, drawn without replacement from all others; the prediction wins if the best of them, by its own
scores, is a true class. The field draws some hundred trials and prints their noise as an interval; here the probability
of winning is exact.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from neuroclips.errors import DataError
from neuroclips.shapes import Float

_ROWS_AT_ONCE = 1024  # 1,000 classes of 1,024 frames in float64 are 8 MB


def n_way(
    predicted: Float[np.ndarray, "*b M"], truth: Float[np.ndarray, "*b M"], n: int, *, accept: int = 1
) -> Float[np.ndarray, "*b"]:
    """Probability that the prediction wins an N-way trial, for every clip, or every frame of every clip.

    With M' classes outside the true set, k of them scoring below the best true class and none tied with it,
    P = C(k, N-1) / C(M', N-1). Classes that tie as the best of a trial are equally likely to be called best: with s
    true classes at the best score and j tied distractors drawn, the trial counts s / (s + j). So constant scores give
    exactly ``n_way_chance``, whatever N; in a 2-way trial with one true class a tie counts half.

    Parameters
    ----------
    predicted, truth : (..., M) scores of M classes: probabilities, logits, or any others that grow with belief. Leading
        axes are the caller's; of scores (B, F, M), the mean over the last axis of the result is the clip's.
    n : classes in a trial, the true one included; at least 2.
    accept : how many of the truth's best classes are true. 1 is the plain task; 3 is the variant of earlier work in
        this field, whose chance is 3 / (N + 2). Of classes that tie in the truth, those with lower numbers are taken.

    >>> truth = np.array([[0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]])
    >>> predicted = np.array([[0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.2, 0.1]])
    >>> n_way(predicted, truth, 2).round(3).tolist(), n_way(predicted, truth, 3).round(3).tolist()
    ([1.0, 0.667], [1.0, 0.333])
    """
    if predicted.shape != truth.shape:
        raise DataError(f"class scores have shape {predicted.shape}, the truth {truth.shape}; expected equal (..., M)")
    classes = truth.shape[-1]
    outside = classes - accept
    if accept < 1 or outside < 1:
        raise DataError(f"{accept} true classes of {classes}; expected at least 1, and at least 1 left as distractor")
    if not 2 <= n <= outside + 1:
        raise DataError(f"n is {n}; expected 2 to {outside + 1}, as {outside} of {classes} classes are distractors")
    # clear[a]: probability that all drawn distractors are among a given a of the M' outside
    clear = np.exp(_log_choose(np.arange(outside + 1), n - 1) - _log_choose(np.array(outside), n - 1))
    x, y = predicted.reshape(-1, classes), truth.reshape(-1, classes)
    wins = np.empty(len(x))
    for start in range(0, len(x), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        wins[part] = _wins(x[part], y[part], accept, clear, start)
    return wins.reshape(truth.shape[:-1])


def n_way_chance(n: int, accept: int = 1) -> float:
    """Probability of winning when all classes are alike to the prediction: accept / (N - 1 + accept).

    >>> n_way_chance(2), n_way_chance(50), n_way_chance(2, accept=3)
    (0.5, 0.02, 0.75)
    """
    if n < 2 or accept < 1:
        raise DataError(f"n is {n} and accept {accept}; expected at least 2 and at least 1")
    return accept / (n - 1 + accept)


def _wins(predicted: np.ndarray, truth: np.ndarray, accept: int, clear: np.ndarray, first: int) -> np.ndarray:
    """Probability of winning for each row; ``first`` is the number of the first one, for messages."""
    for side, scores in (("predicted", predicted), ("true", truth)):
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            row = first + int(np.argmin(finite))
            raise DataError(f"{side} class scores of row {row} hold values that are not finite; expected finite scores")
    rows, left = np.arange(len(truth))[:, None], truth.astype(np.float64)
    top = np.empty((len(truth), accept), int)
    for i in range(accept):
        top[:, i] = left.argmax(axis=1)
        left[rows[:, 0], top[:, i]] = -np.inf
    true = predicted[rows, top]
    best = true.max(axis=1, keepdims=True)
    true_tied = (true == best).sum(axis=1)
    tied = (predicted == best).sum(axis=1) - true_tied
    below = (predicted < best).sum(axis=1) - (accept - true_tied)
    # Put all that tie into a random order. The i distractors ahead of the first true class must not be drawn.
    wins, probability = np.zeros(len(true)), true_tied / (true_tied + tied)
    for i in range(int(tied.max(initial=0)) + 1):
        wins += probability * clear[np.maximum(below + tied - i, 0)]
        probability *= (tied - i) / np.maximum(true_tied + tied - i - 1, 1)
    return wins


def _log_choose(a: np.ndarray, b: int) -> np.ndarray:
    """log C(a, b); minus infinity where a < b."""
    possible = np.maximum(a, b)
    return np.where(a < b, -np.inf, gammaln(possible + 1) - gammaln(b + 1) - gammaln(possible - b + 1))
