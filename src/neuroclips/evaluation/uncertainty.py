"""Does a decoder know when it is right? Agreement among samples as confidence, and what abstaining by it would gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuroclips.artefacts import in_parts
from neuroclips.errors import DataError
from neuroclips.evaluation.floors import shuffle_across_scenes
from neuroclips.evaluation.identification import correlation_scores
from neuroclips.evaluation.intervals import SceneBootstrap, n_effective
from neuroclips.evaluation.significance import permutation_p_value
from neuroclips.evaluation.table import Interval
from neuroclips.shapes import Float, Int

COVERAGES = tuple(i / 10 for i in range(1, 11))


def sample_agreement(
    samples: Float[np.ndarray, "S B ..."], reference: Float[np.ndarray, ...]
) -> Float[np.ndarray, " B"]:
    """Mean Pearson correlation over all pairs of a clip's S samples, after subtracting ``reference`` from each.

    The truth is not looked at, so it can serve as the clip's confidence. ``reference`` (one clip's shape) should be the
    mean over the *training* clips, as in ``correlation_scores``: without it, samples agree in what all clips share. A
    sample equal to the reference says nothing, and agrees with no other: 0.

    Raises
    ------
    DataError
        There are fewer than two samples, or one has a value that is not finite.
    """
    if len(samples) < 2:
        raise DataError(f"{len(samples)} samples of each clip; agreement needs at least two")
    pairs = np.triu_indices(len(samples), 1)
    found = np.empty(samples.shape[1])
    for clip in in_parts(len(found), 1, samples):  # a clip at a time: samples may be memory-mapped
        b = clip.start
        of_clip = np.asarray(samples[:, b], np.float32)
        if not np.isfinite(of_clip).all():
            raise DataError(f"samples of clip {b} hold values that are not finite; expected finite features")
        found[b] = correlation_scores(of_clip, of_clip, reference)[pairs].mean()
    return found


@dataclass(frozen=True)
class AbstentionCurve:
    """The score over the clips that a decoder is most confident of, for shares c of the clips.

    coverage, value : (C,) the shares, and the mean score over the most confident clips.
    ci_low, ci_high : (C,) 95 % scene-bootstrap intervals; None with fewer than two scenes.
    overall : mean score over all clips: the flat line that a confidence without information gives at every share.
    area, area_interval : between the curve and the flat line, over the shares (trapezoids); 0 for no information.
    null_interval, p_value : middle 95 % of the area when scores are shuffled across scenes, and the
        one-sided permutation test; None where one scene dominates and no such shuffle exists.
    """

    coverage: tuple[float, ...]
    value: tuple[float, ...]
    ci_low: tuple[float, ...] | None
    ci_high: tuple[float, ...] | None
    overall: float
    area: float
    area_interval: Interval | None
    null_interval: Interval | None
    p_value: float | None
    n: int
    n_effective: float
    seed: int


def abstention_curve(
    correct: Float[np.ndarray, " B"],
    confidence: Float[np.ndarray, " B"],
    scene: Int[np.ndarray, " B"],
    coverages: Sequence[float] = COVERAGES,
    draws: int = 1000,
    seed: int = 0,
) -> AbstentionCurve:
    """How well a decoder would do if it answered only for the share c of clips that it is most confident of.

    Parameters
    ----------
    correct : score of each clip, higher is better, such as ``identify(...).values["top-1"]``.
    confidence : of each clip, made without its truth; higher is surer.
    scene : scene number of each clip.
    coverages : ascending shares in (0, 1], at least two. Where c B is no whole number, the last clip counts in part.
    draws, seed : of the scene bootstrap, and of the shuffles.

    Clips of equal confidence are taken by expectation, each with the mean score of all of them: a constant confidence
    gives exactly the flat line. In every bootstrap draw the most confident share is picked anew: the interval is that
    of the rule "answer for the surest c of what comes", not of one fixed set of clips. The null moves scores to
    other scenes as ``shuffle_across_scenes`` does, neighbours together, because the clips of a scene tend to be right,
    and sure, together.

    >>> found = abstention_curve(np.array([1.0, 1, 0, 0]), np.array([9.0, 8, 2, 1]), np.arange(4), (0.5, 1.0))
    >>> found.value, found.overall, found.area
    ((1.0, 0.5), 0.5, 0.125)
    """
    shares = np.asarray(coverages, np.float64)
    if len(shares) < 2 or not (shares[0] > 0 and shares[-1] <= 1 and (np.diff(shares) > 0).all()):
        raise DataError(f"coverages {', '.join(f'{c:g}' for c in shares)}; expected two or more, ascending in (0, 1]")
    if not len(correct) == len(confidence) == len(scene):
        raise DataError(f"{len(correct)} scores, {len(confidence)} confidences, {len(scene)} scenes; expected as many")
    if not (np.isfinite(correct).all() and np.isfinite(confidence).all()):
        raise DataError("scores or confidences hold values that are not finite; expected one number for each clip")
    boot = SceneBootstrap(scene, draws, seed)
    value, area = (found[0] for found in _most_confident(np.ones((1, len(scene))), correct, confidence, shares))
    curves, areas = _most_confident(boot.times[:, boot.block], correct, confidence, shares)
    ends = [boot.interval(column) for column in curves.T]
    low, high = zip(*(end for end in ends if end is not None)) if len(areas) else (None, None)
    null, rng = None, np.random.default_rng(seed)
    try:
        shuffled = np.stack([correct[shuffle_across_scenes(scene, rng)] for _ in range(draws)])
        null = _most_confident(np.ones(shuffled.shape), shuffled, confidence, shares)[1]
    except DataError:  # one scene dominates: there is no test
        pass
    return AbstentionCurve(
        coverage=tuple(shares.tolist()), value=tuple(value.tolist()), ci_low=low, ci_high=high,
        overall=float(np.mean(correct)), area=float(area), area_interval=boot.interval(areas),
        null_interval=None if null is None else (float(np.quantile(null, 0.025)), float(np.quantile(null, 0.975))),
        p_value=None if null is None else permutation_p_value(float(area), null + 1e-12),  # equal up to rounding
        n=len(scene), n_effective=n_effective(scene), seed=seed,
    )  # fmt: skip


def _most_confident(
    weights: np.ndarray, correct: np.ndarray, confidence: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean score of the most confident clips (N, C), and the area above the mean of all (N,); weights are (N, B)."""
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))  # of groups of equal confidence
    clips, score = (np.cumsum(w[:, order], axis=1)[:, ends] for w in (weights, weights * correct))
    clips, score = (np.pad(sums, ((0, 0), (1, 0))) for sums in (clips, score))
    wanted = shares * clips[:, -1:]
    # within a group the expected score grows in proportion to the clips taken: a straight line
    means = np.array([np.interp(w, n, s) for w, n, s in zip(wanted, clips, score)]).reshape(wanted.shape) / wanted
    return means, np.trapezoid(means - score[:, -1:] / clips[:, -1:], shares, axis=1)
