"""Decode, then re-encode: does the decoded film predict the activity that it claims to come from?

    responses of one half of the presentations  --decoder-->  film  --encoding model-->  predicted responses
    predicted responses  against  responses of the other half

**Never compare with the scans that were decoded.** A decoder passes on some of their noise; the encoding model turns it
back into responses, and the same noise waits in what it is compared with. Agreement then exceeds the noise ceiling, and
0 without any signal at all. ``presentation_halves`` gives the two halves, and their noise is independent.

**Take the decoded film's features from its frames**, by the networks that the encoding model's features are from. The
features that a decoder predicts on the way to a film are a linear channel from one half of the scans to the other: they
carry whatever voxels have in common, shown on the decoded film or not, and can re-encode better than the true film.
The true film's own features, through the same model, say how far a perfect decoder would get.

Encoding models use delays, so the predicted pattern of a clip rests on the decoded film of its neighbours, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from neuroclips.data.clips import Clips
from neuroclips.errors import DataError
from neuroclips.evaluation.floors import shuffled_orders
from neuroclips.evaluation.identification import correlation_scores, identify
from neuroclips.evaluation.intervals import SceneBootstrap
from neuroclips.shapes import Bool, Float, Float32, Int

Interval = tuple[float, float] | None
_Kind = TypeVar("_Kind", bound=Clips)


def presentation_halves(clips: _Kind) -> tuple[_Kind, _Kind]:
    """The same clips with their odd and with their even presentations only: ``decoded_from`` and ``measured``.

    With an odd number of presentations the first half has one more. Their noise is independent. The ceiling of a
    comparison with a half of k presentations is ``sqrt(split_half(bold, present, k))``.
    """
    numbers = np.cumsum(clips.present, axis=1)
    if len(clips) and numbers[:, -1].min() < 2:
        short = int(np.argmin(numbers[:, -1]))
        raise DataError(
            f"clip {clips.ids[short]} was shown {numbers[short, -1]} time(s); to decode from one half of the "
            "presentations and compare with the other, at least 2 are needed"
        )
    decoded_from, measured = (replace(clips, present=clips.present & (numbers % 2 == odd)) for odd in (1, 0))
    return decoded_from, measured


def agreement(predicted: Float[np.ndarray, "B V"], measured: Float[np.ndarray, "B V"]) -> Float32[np.ndarray, "B V"]:
    """Predicted times measured responses, each z-scored over the clips of every voxel.

    The mean over clips is the voxel's Pearson correlation. So a row is a clip's trust map, the parts of these
    correlations that the clip brings, and any mean over clips and voxels is a mean correlation. Single products are not
    bounded: smooth a row over areas or neighbours before it is read. A voxel that does not change has 0.
    """
    _check_pair(predicted, measured)
    return _standard(predicted) * _standard(measured)


@dataclass(frozen=True)
class Reencoding:
    """A measure of agreement for every clip, and beside it that of other clips' re-encodings.

    clips : (B,) of every clip's own re-encoding.
    shuffled : (S, B) of the re-encoding of a clip of another scene, for S shuffles.
    value, interval : mean over clips, 95 % over scenes.
    difference, difference_interval : ``clips`` less ``shuffled``, paired clip by clip; clear of 0 says that films were
        decoded that fit their own scans better than other scans.
    """

    clips: Float[np.ndarray, " B"]
    shuffled: Float[np.ndarray, "S B"]
    value: float
    interval: Interval
    difference: float
    difference_interval: Interval


def reencoding_accuracy(
    predicted: Float[np.ndarray, "B V"],
    measured: Float[np.ndarray, "B V"],
    scene: Int[np.ndarray, " B"],
    *,
    shuffles: int = 20,
    seed: int = 0,
    draws: int = 1000,
) -> Reencoding:
    """Correlation over clips of predicted and measured responses, mean of all voxels: how well films re-encode.

    ``value`` is the mean of ``agreement``, and ``clips`` is what each clip brings to it. Its ceiling is the mean over
    the same voxels of ``sqrt(split_half(bold, present, k))``, with k presentations in ``measured``.
    """
    _check_pair(predicted, measured)
    # Shuffling clips changes neither mean nor spread of a voxel: all pairings are in one table.
    table = _standard(measured) @ _standard(predicted).T / measured.shape[1]
    return _beside_shuffled(table, scene, shuffles, seed, draws)


@dataclass(frozen=True)
class ClipTrust:
    """How well the pattern over voxels that a decoded clip predicts fits the measured one.

    correlation : over voxels, each centred over clips: of every clip, and of shuffled ones.
    others : (B,) mean correlation of the clip's measured pattern with the re-encodings of the other clips in its pool.
    percentile : (B,) share of these that fit less well than its own, in [0, 1]; ties count half, and chance is 0.5.
    pool_size : (B,) candidates, the clip itself included.
    """

    correlation: Reencoding
    others: Float[np.ndarray, " B"]
    percentile: Float[np.ndarray, " B"]
    pool_size: Int[np.ndarray, " B"]


def clip_trust(
    predicted: Float[np.ndarray, "B V"],
    measured: Float[np.ndarray, "B V"],
    scene: Int[np.ndarray, " B"],
    pool: Bool[np.ndarray, "B B"],
    *,
    shuffles: int = 20,
    seed: int = 0,
    draws: int = 1000,
) -> ClipTrust:
    """Correlation over voxels of every clip's predicted and measured pattern, beside other clips' predictions.

    Voxels are centred over clips but not scaled, so those with more predicted variance, which the encoding model knows
    more about, count for more. A clip with a pattern of one value in all voxels has no direction and correlates 0.

    Parameters
    ----------
    pool : row t, with which clips' re-encodings that of clip t competes: ``candidate_pool`` leaves out its neighbours,
        which share its film and, by the delays, its prediction.
    """
    _check_pair(predicted, measured)
    x, y = _centred(predicted), _centred(measured)
    table = correlation_scores(y, x, np.zeros(x.shape[1], np.float32)).astype(np.float64)
    found = identify(table, pool)
    rest = pool & ~np.eye(len(table), dtype=bool)
    return ClipTrust(
        correlation=_beside_shuffled(table, scene, shuffles, seed, draws),
        others=(table * rest).sum(axis=1) / rest.sum(axis=1),
        percentile=found.values["pairwise"],
        pool_size=found.pool_size,
    )


def _beside_shuffled(table: np.ndarray, scene: np.ndarray, shuffles: int, seed: int, draws: int) -> Reencoding:
    """``table``: measured clip by re-encoded clip."""
    own, rows = np.diagonal(table).astype(np.float64), np.arange(len(table))
    orders = shuffled_orders(scene, seed, shuffles)
    other = np.stack([table[rows, order] for order in orders]).astype(np.float64)
    boot = SceneBootstrap(scene, draws, seed)
    mine, difference = boot.of(own), boot.of(own - other.mean(axis=0))
    return Reencoding(
        own, other, mine.value, boot.interval(mine.draws), difference.value, boot.interval(difference.draws)
    )


def _centred(values: np.ndarray) -> Float32[np.ndarray, "B V"]:
    """Voxels less their mean over clips; exactly 0 where that leaves only rounding."""
    values = np.asarray(values, np.float32)
    centred = values - values.mean(axis=0)
    centred[:, np.square(centred).sum(axis=0) <= 1e-12 * np.square(values).sum(axis=0)] = 0
    return centred


def _standard(values: np.ndarray) -> Float32[np.ndarray, "B V"]:
    """z-scores over clips; 0 for voxels that do not change."""
    centred = _centred(values)
    spread = np.sqrt(np.square(centred).mean(axis=0))
    return np.divide(centred, spread, out=centred, where=spread > 0)


def _check_pair(predicted: np.ndarray, measured: np.ndarray) -> None:
    if predicted.shape != measured.shape or predicted.ndim != 2 or len(predicted) < 2:
        raise DataError(
            f"predicted responses have shape {predicted.shape}, measured ones {measured.shape}; expected equal (B, V) "
            "of at least 2 clips"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(measured).all()):
        raise DataError("responses hold values that are not finite; expected finite numbers")
