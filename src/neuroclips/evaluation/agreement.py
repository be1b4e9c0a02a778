"""Latent agreement: correlation of predicted with true features, unit by unit or clip by clip.

The definitions are those of bdpy (Kamitani lab), where "profile" and "pattern" come from. A unit is one value of the
flattened features. Both functions read the features in parts, so inputs may be memory-mapped and larger than memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroclips.artefacts import Rows, in_parts
from neuroclips.errors import DataError
from neuroclips.evaluation.intervals import Resampled, SceneBootstrap
from neuroclips.shapes import Float, Float32

_VALUES_AT_ONCE = 1 << 21  # in float64 16 MB a side, and about six times that at work
Features = Float[np.ndarray, "B ..."] | Float[Rows, "B ..."]  # of clips; ``Rows`` are others in another order


def mean_and_sd(features: Float[np.ndarray, "B ..."]) -> tuple[Float32[np.ndarray, ...], Float32[np.ndarray, ...]]:
    """Mean and standard deviation over clips of every unit: what all clips share, and the scale of what they do not."""
    flat, n = features.reshape(len(features), -1), len(features)
    first = np.asarray(flat[0], np.float64)  # sums of small numbers keep their digits
    total, squares = np.zeros((2, flat.shape[1]))
    for rows in in_parts(n, _VALUES_AT_ONCE // flat.shape[1], flat):
        values = flat[rows].astype(np.float64) - first
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
    sd, shape = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0)), features.shape[1:]
    return (first + total / n).astype(np.float32).reshape(shape), sd.astype(np.float32).reshape(shape)


def profile_correlation(
    predicted: Float[np.ndarray, "B ..."], truth: Float[np.ndarray, "B ..."]
) -> Float[np.ndarray, ...]:
    """Pearson correlation over clips, for each unit: does it rise and fall as the film asks?

    A unit that is constant over clips, in the prediction or in the truth, scores 0: a prediction that never changes
    says nothing, and would profit if such units were left out. (bdpy gives NaN.)

    >>> truth = np.array([[0.0, 1.0, 5.0], [1.0, 2.0, 5.0], [2.0, 3.0, 5.0]])
    >>> profile_correlation(truth * [2.0, -1.0, 1.0], truth).round(6).tolist()
    [1.0, -1.0, 0.0]
    """
    x, y = _flattened(predicted, truth)
    if len(y) < 2:
        raise DataError(f"{len(y)} clip; the profile correlation needs at least 2, as it is taken over clips")
    result = np.empty(y.shape[1])
    at_once = max(1, _VALUES_AT_ONCE // len(y))
    for part in in_parts(len(result), at_once, x, y):
        a, b = _finite(x[:, part], "predicted"), _finite(y[:, part], "true")
        result[part] = _correlation(a, b, 0)
    return result.reshape(truth.shape[1:])


def pattern_correlation(
    predicted: Features,
    truth: Float[np.ndarray, "B ..."],
    *,
    mean: Float[np.ndarray, ...] | None = None,
    sd: Float[np.ndarray, ...] | None = None,
) -> Float[np.ndarray, " B"]:
    """Pearson correlation over units, for each clip: is its pattern the true one?

    Parameters
    ----------
    predicted, truth : (B, ...) features.
    mean, sd : (...) of each unit over the *training* clips. Both sides are standardised by them first, so that what all
        clips share does not count; without them any prediction, the training mean too, correlates with every clip.
        Units whose sd is 0 are left out.

    A clip whose (standardised) features are all alike has no pattern and scores 0, as the training mean does.
    """
    x, y = _flattened(predicted, truth)
    if (mean is None) != (sd is None):
        raise DataError("mean and sd of the training features come together; expected both, or neither")
    centre, scale = np.zeros(y.shape[1]), np.ones(y.shape[1])
    if mean is not None and sd is not None:
        if mean.shape != truth.shape[1:] or sd.shape != truth.shape[1:]:
            raise DataError(f"mean {mean.shape} and sd {sd.shape} of the training features; expected {truth.shape[1:]}")
        centre, scale = np.asarray(mean, np.float64).ravel(), np.asarray(sd, np.float64).ravel()
        if not (np.isfinite(centre).all() and (scale >= 0).all() and np.isfinite(scale).all()):
            raise DataError("mean and sd of the training features must be finite, and sd not negative")
    kept: slice | np.ndarray = slice(None) if scale.all() else np.flatnonzero(scale)
    centre, scale = centre[kept], scale[kept]
    if len(scale) < 2:
        raise DataError(f"{len(scale)} unit to correlate over; the pattern correlation needs at least 2 that vary")
    result = np.empty(len(y))
    at_once = max(1, _VALUES_AT_ONCE // y.shape[1])
    for part in in_parts(len(result), at_once, x, y):
        a, b = _finite(x[part], "predicted", part.start), _finite(y[part], "true", part.start)
        result[part] = _correlation(a[:, kept] / scale, b[:, kept] / scale, 1, centre / scale)
    return result


def _flattened(predicted: Any, truth: np.ndarray) -> tuple[Any, np.ndarray]:
    if predicted.shape != truth.shape:
        raise DataError(f"features have shape {predicted.shape}, the truth {truth.shape}; expected equal (B, ...)")
    n = int(np.prod(truth.shape[1:]))
    return predicted.reshape(len(truth), n), truth.reshape(len(truth), n)


def _finite(part: np.ndarray, side: str, first: int = 0) -> np.ndarray:
    """The part in float64; ``first`` is the number of its first clip, for the message."""
    values = np.asarray(part, np.float64)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        clip = first + int(np.argmin(finite))
        raise DataError(f"{side} features of clip {clip} hold values that are not finite; expected finite features")
    return values


def _correlation(x: np.ndarray, y: np.ndarray, axis: int, centre: np.ndarray | float = 0.0) -> np.ndarray:
    """Pearson correlation along an axis after subtracting ``centre``; 0 where only rounding is left of a side."""
    norms, deviations = [], []
    for side in (x, y):
        deviation = side - centre
        deviation -= deviation.mean(axis=axis, keepdims=True)
        norms.append(np.linalg.norm(deviation, axis=axis))
        norms[-1][norms[-1] <= 1e-6 * np.linalg.norm(side, axis=axis)] = 0  # float32 is good to 1e-7
        deviations.append(deviation)
    product = norms[0] * norms[1]
    return np.where(product > 0, (deviations[0] * deviations[1]).sum(axis=axis) / np.where(product > 0, product, 1), 0)


def resampled_profile(
    predicted: Features,
    truth: Float[np.ndarray, "B ..."],
    boot: SceneBootstrap,
) -> Resampled:
    """Mean of ``profile_correlation`` over units, of all clips and of every bootstrap draw of their scenes.

    From sums by scene, so a draw costs no pass over the clips. A unit that is constant in a draw scores 0 in it.
    """
    x, y = _flattened(predicted, truth)
    times = np.concatenate([np.ones((1, boot.n_scenes), int), boot.times]).astype(np.float64)  # (1 + draws, scenes)
    n = times @ np.bincount(boot.block, minlength=boot.n_scenes)  # (1 + draws,)
    total, units = np.zeros(len(times)), y.shape[1]
    at_once = max(1, _VALUES_AT_ONCE // max(len(times), len(y)))
    order = np.argsort(boot.block, kind="stable")
    starts = np.searchsorted(boot.block[order], np.arange(boot.n_scenes))
    for part in in_parts(units, at_once, x, y):
        a, b = _finite(x[:, part], "predicted"), _finite(y[:, part], "true")
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)  # small numbers keep their digits
        noise = [1e-12 * np.square(side).sum(axis=0) / len(y) for side in (x[:, part], y[:, part])]
        sums = [times @ np.add.reduceat(s[order], starts) / n[:, None] for s in (a, b, a * a, b * b, a * b)]
        mean_a, mean_b, aa, bb, ab = sums
        var_a, var_b = aa - mean_a**2, bb - mean_b**2
        known = (var_a > noise[0]) & (var_b > noise[1])
        total += np.where(known, (ab - mean_a * mean_b) / np.sqrt(np.where(known, var_a * var_b, 1)), 0).sum(axis=1)
    return Resampled(float(total[0] / units), total[1:] / units)
