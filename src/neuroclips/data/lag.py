"""The delay between film and response, measured: how well each lag of the scan decodes a thumbnail of the film."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuroclips.data.clips import shifted
from neuroclips.shapes import Float, Float32, Int, UInt8

THUMBNAIL = 8  # pixels, square: layout and colour, the easiest things to decode
# Judgement, not measurement: when to tell the user that another lag does better.
MEANINGFUL = 0.1  # correlation below which the best lag is taken for luck
MARGIN = 0.02  # by which it must beat the recipe's lag


def thumbnails(frames: UInt8[np.ndarray, "B F 3 H W"]) -> Float32[np.ndarray, "B D"]:
    """Mean picture of each clip at 8 x 8 pixels, as D = 192 numbers in [0, 1]. H and W are multiples of 8."""
    b, f, _, h, w = frames.shape
    blocks = frames.reshape(b, f, 3, THUMBNAIL, h // THUMBNAIL, THUMBNAIL, w // THUMBNAIL)
    return (blocks.mean(axis=(1, 4, 6), dtype=np.float32) / 255).reshape(b, -1)


def row_lags(
    fit: tuple[Float[np.ndarray, "N V"], Float[np.ndarray, "N D"], Int[np.ndarray, " N"]],
    tried: tuple[Float[np.ndarray, "B V"], Float[np.ndarray, "B D"], Int[np.ndarray, " B"]],
    shifts: Sequence[int],
) -> Float[np.ndarray, " L"]:
    """Decodability of each row's picture from the response ``shift`` rows later, for every shift.

    ``fit`` and ``tried`` are responses, pictures and segment of each row (``lag_curve``). Rows are in order of time
    within their segment. Only rows that have a response at every shift are used, so that all are judged alike.
    """

    def lagged(bold: np.ndarray, pictures: np.ndarray, segment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        source = np.stack([shifted(segment, shift) for shift in shifts])  # (L, B), -1 where there is none
        rows = (source >= 0).all(axis=0)
        return bold[source[:, rows]], pictures[rows]

    return lag_curve(*lagged(*fit), *lagged(*tried))


def lag_curve(
    fit_bold: Float[np.ndarray, "L N V"],
    fit_pictures: Float[np.ndarray, "N D"],
    bold: Float[np.ndarray, "L B V"],
    pictures: Float[np.ndarray, "B D"],
) -> Float[np.ndarray, " L"]:
    """Decodability at each of L lags: ridge from ``fit_bold`` to ``fit_pictures``, tried on ``bold``.

    The mean over targets of the correlation, over clips, between predicted and true ``pictures`` (targets that do not
    vary are left out). The penalty is V, the mean diagonal of the linear kernel of z-scored voxels: the height of the
    curve could be tuned, but only its peak matters. A pure function of numpy arrays.
    """
    from sklearn.linear_model import Ridge  # a second to import; scikit-learn comes with nilearn and himalaya

    scores = []
    for x_fit, x in zip(fit_bold, bold):
        predicted = Ridge(alpha=x.shape[1]).fit(x_fit, fit_pictures).predict(x)
        scores.append(_mean_correlation(predicted, pictures))
    return np.array(scores)


def meaningful(n_clips: int) -> float:
    """The correlation that the best lag must reach, or its being best is luck; few clips have more of it."""
    return max(MEANINGFUL, 2 / np.sqrt(max(n_clips, 1)))


def _mean_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over columns of Pearson's r; columns that do not vary in both are left out, 0 if none varies."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    varies = norm > 1e-9
    return float(np.mean((a * b).sum(axis=0)[varies] / norm[varies])) if varies.any() else 0.0
