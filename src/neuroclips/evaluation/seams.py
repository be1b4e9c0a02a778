"""Does fusion join the right clips, and are the joins smooth?

A clip either continues the scene of the clip before it or starts behind a cut. ``before`` (B,) names, for every clip,
the clip that ends where it starts, or -1 where there is none; such clips are neither joined nor judged. Nothing here
knows how a decision or a video was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from neuroclips.errors import DataError
from neuroclips.evaluation.intervals import Resampled, SceneBootstrap, n_effective
from neuroclips.evaluation.pixels import Videos, as_unit_float
from neuroclips.evaluation.table import Score
from neuroclips.shapes import Bool, Float, Int, UInt8


def continues_scene(scene: Int[np.ndarray, " B"], before: Int[np.ndarray, " B"]) -> Bool[np.ndarray, " B"]:
    """The truth: whether each clip has the scene number of the clip before it; False where there is none."""
    return (before >= 0) & (scene == scene[before])


def choose_threshold(similarity: Float[np.ndarray, " B"], same: Bool[np.ndarray, " B"]) -> float:
    """The threshold for which ``similarity > threshold`` tells ``same`` with the highest balanced accuracy.

    Choose it on validation clips. Clips whose similarity is NaN follow none and are left out. Candidates lie in the
    middle between neighbouring values; of equally good ones the one in the widest gap is taken, then the lowest. When
    none is better than chance it is the highest similarity, above which nothing is joined.

    Raises ``DataError`` when all pairs show the same scene, or none does.

    >>> choose_threshold(np.array([0.0, 0.25, 0.75, 1.0]), np.array([False, False, True, True]))
    0.5
    """
    pairs = ~np.isnan(similarity)
    values, same = similarity[pairs].astype(np.float64), same[pairs]
    n_same, n_cuts = int(same.sum()), int((~same).sum())
    if n_same == 0 or n_cuts == 0:
        raise DataError(
            f"of {len(same)} pairs of consecutive clips, {n_same} show the same scene and {n_cuts} a cut; a threshold "
            "needs some of both: choose it on more segments"
        )
    order = np.argsort(values, kind="stable")
    values, same = values[order], same[order]
    gap = np.diff(values)
    # Twice the balanced accuracy, times both counts: integers, so that ties are exact.
    found = n_cuts * (n_same - np.cumsum(same)) + n_same * np.cumsum(~same)
    found = np.where(gap > 0, found[:-1], 0)
    if found.max() <= n_same * n_cuts:
        return float(values[-1])
    best = int(np.argmax(np.where(found == found.max(), gap, 0)))
    return float(values[best] + gap[best] / 2)


class PixelDifferenceRule:
    """The rule that fusion must beat: a cut is where the picture changes.

    A clip continues the one before it unless their ``pixel_difference`` is above a threshold, which is chosen on
    validation as the fusion rules choose theirs. ``-threshold_`` is that difference, in [0, 1].
    """

    name = "pixel difference"
    threshold_: float

    def fit(self, videos: Videos, before: Int[np.ndarray, " B"], same: Bool[np.ndarray, " B"]) -> PixelDifferenceRule:
        """Choose the threshold on validation clips, shown by the videos that the rule will see (such as blurry)."""
        self.threshold_ = choose_threshold(-pixel_difference(videos, before), same)
        return self

    def evidence(self, videos: Videos, before: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """How much speaks for the same scene; NaN where there is no clip before."""
        return -pixel_difference(videos, before)

    def same_scene(self, videos: Videos, before: Int[np.ndarray, " B"]) -> Bool[np.ndarray, " B"]:
        """Whether each clip continues the clip before it."""
        return self.evidence(videos, before) > self.threshold_


def pixel_difference(videos: Videos, before: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Mean absolute difference, in [0, 1], of each clip's mean frame and that of the clip before it.

    NaN where there is none. Cuts fall anywhere in a clip, so the two frames that meet are often of one scene when the
    clips are not: in two validation segments of the demo's film (98 pairs, 22 cuts) they tell cuts with an area under
    the ROC curve of 0.64, mean frames with 0.98. Videos may be memory-mapped: they are read two clips at a time.
    """
    found = np.full(len(before), np.nan)
    for i in np.flatnonzero(before >= 0):
        found[i] = _difference(*as_unit_float(videos[[before[i], i]]).mean(axis=1))
    return found


def _difference(frame: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(frame - other).mean(dtype=np.float64))


@dataclass(frozen=True)
class Seams:
    """How far pictures jump where clips are joined, in [0, 1].

    clip : (N,) the clips that were joined to the one before.
    jump : (N,) mean absolute difference of the clip's first frame and the last frame of the clip before.
    within : (N,) the same of consecutive frames inside the two clips, the median, which a cut does not move. A jump
        near it is a smooth join; a jump near 0 is a frame that is shown twice.
    """

    clip: Int[np.ndarray, " N"]
    jump: Float[np.ndarray, " N"]
    within: Float[np.ndarray, " N"]


def seams(videos: Videos, before: Int[np.ndarray, " B"], joined: Bool[np.ndarray, " B"]) -> Seams:
    """The joins of ``videos``; with the same ``joined``, videos made without fusion and the film are comparable.

    Raises ``DataError`` for videos of one frame, which have no ``within``.
    """
    if videos.shape[1] < 2:
        raise DataError(f"videos have {videos.shape[1]} frame; a join is compared with the step between at least 2")
    clip = np.flatnonzero(joined & (before >= 0))
    jump, within = np.empty(len(clip)), np.empty(len(clip))
    for n, i in enumerate(clip):
        pair = as_unit_float(videos[[before[i], i]])  # (2, F, 3, H, W)
        jump[n] = _difference(pair[0, -1], pair[1, 0])
        within[n] = np.median(np.abs(np.diff(pair, axis=1)).mean(axis=(2, 3, 4), dtype=np.float64))
    return Seams(clip, jump, within)


def seam_score(
    method: str,
    videos: Videos,
    beside: Mapping[str, Videos],
    film: UInt8[np.ndarray, "B G 3 h w"],
    before: Int[np.ndarray, " B"],
    joined: Bool[np.ndarray, " B"],
    *,
    block: Int[np.ndarray, " B"],
    draws: int = 1000,
    seed: int = 0,
) -> Score:
    """How far the picture jumps, on average, where ``joined`` clips meet; lower is smoother, 0 is a frame shown twice.

    ``beside`` are videos of the same clips made otherwise, such as without fusion (paired differences). The film's own
    jump is in the note, not a ceiling: its frames may lie further apart. Raises ``DataError`` when nothing is joined.
    """
    at = seams(videos, before, joined)
    if len(at.clip) == 0:
        raise DataError("no clips are joined; there is no seam to score")
    boot = SceneBootstrap(block[at.clip], draws, seed)
    found = boot.of(at.jump)
    others = {name: boot.of(seams(other, before, joined).jump) for name, other in beside.items()}
    differences = {name: boot.interval(found.draws - other.draws) for name, other in others.items()}
    low, high = boot.interval(found.draws) or (None, None)
    return Score(
        metric="jump at joins", method=method, value=found.value, n=len(at.clip),
        n_effective=n_effective(block[at.clip]), seed=seed, ci_low=low, ci_high=high,
        baselines={name: other.value for name, other in others.items()},
        differences={name: ends for name, ends in differences.items() if ends is not None},
        space="fusion", higher_is_better=False,
        note=f"mean absolute difference in [0, 1]; within clips it is {float(at.within.mean()):.3f}; the film's, of "
        f"{film.shape[1]} frames a clip, {float(seams(film, before, joined).jump.mean()):.3f}",
    )  # fmt: skip


def decision_scores(
    method: str,
    joined: Bool[np.ndarray, " B"],
    same: Bool[np.ndarray, " B"],
    *,
    before: Int[np.ndarray, " B"],
    block: Int[np.ndarray, " B"],
    baselines: Mapping[str, Bool[np.ndarray, " B"]] | None = None,
    evidence: Float[np.ndarray, " B"] | None = None,
    baseline_evidence: Mapping[str, Float[np.ndarray, " B"]] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """How well ``joined`` tells which clips continue the scene of the clip before: one row a metric.

    accuracy : share of decisions that are right; its chance is to decide always for the more frequent answer.
    balanced accuracy : mean of the shares of right decisions among continued scenes and among cuts; chance 0.5.
    cut precision, cut recall : share of cuts among decided cuts, and of decided cuts among cuts. Chance decides at
        random, as often for a cut as the method does.
    AUC : share of (cut, continued scene) pairs in which the cut has less ``evidence`` for the same scene: what the
        evidence is worth, whatever the threshold. Only with evidence; chance 0.5.

    What has no cases (the recall of a film without cuts) is NaN.

    Parameters
    ----------
    joined, same : the decision and the truth; see ``continues_scene``.
    block : what the bootstrap draws whole: the scene, or the segment, of each clip.
    baselines : decisions of simpler rules, such as ``PixelDifferenceRule``; ``differences`` are paired.
    evidence, baseline_evidence : what the decisions were made from.

    Raises ``DataError`` when no clip follows another.
    """
    pairs = before >= 0
    if not pairs.any():
        raise DataError(f"none of {len(before)} clips follows another; there is no decision to score")
    boot, cut = SceneBootstrap(block[pairs], draws, seed), ~same[pairs]

    def metrics(decided: np.ndarray, by: np.ndarray | None) -> dict[str, Resampled]:
        found = _decision_metrics(boot, ~decided[pairs], cut)
        return found if by is None else {**found, "AUC": _area_under_curve(boot, by[pairs], cut)}

    found = metrics(joined, evidence)
    by = baseline_evidence or {}
    beside = {name: metrics(other, by.get(name)) for name, other in (baselines or {}).items()}
    share, decided_share = float(cut.mean()), float((~joined[pairs]).mean())
    chance = {
        "accuracy": max(share, 1 - share),
        "balanced accuracy": 0.5,
        "cut precision": share,
        "cut recall": decided_share,
        "AUC": 0.5,
    }
    rows = []
    for metric, value in found.items():
        low, high = boot.interval(value.draws) or (None, None)
        others = {name: theirs[metric] for name, theirs in beside.items() if metric in theirs}
        differences = {name: boot.interval(value.draws - other.draws) for name, other in others.items()}
        rows.append(
            Score(
                metric=metric,
                method=method,
                value=value.value,
                n=int(pairs.sum()),
                n_effective=n_effective(block[pairs]),
                seed=seed,
                ci_low=low,
                ci_high=high,
                chance=chance[metric],
                baselines={name: other.value for name, other in others.items()},
                differences={name: ends for name, ends in differences.items() if ends is not None},
                space="fusion",
                unit="" if metric == "AUC" else "share",
                note=f"does a clip continue the one before? {int(cut.sum())} cuts among {int(pairs.sum())} pairs",
            )
        )
    return rows


def _decision_metrics(boot: SceneBootstrap, decided: np.ndarray, cut: np.ndarray) -> dict[str, Resampled]:
    """Metrics of decided cuts (N,) against true cuts (N,): ratios of sums, over all pairs and over each draw."""

    def total(of: np.ndarray) -> np.ndarray:  # (1 + draws,)
        return np.append(of.sum(), boot.times @ np.bincount(boot.block, of, boot.n_scenes))

    right = decided == cut
    with np.errstate(divide="ignore", invalid="ignore"):  # no cases: NaN
        recall = total(decided & cut) / total(cut)
        values = {
            "accuracy": total(right) / total(np.ones_like(cut)),
            "balanced accuracy": (recall + total(~decided & ~cut) / total(~cut)) / 2,
            "cut precision": total(decided & cut) / total(decided),
            "cut recall": recall,
        }
    return {name: Resampled(float(v[0]), v[1:]) for name, v in values.items()}


def _area_under_curve(boot: SceneBootstrap, evidence: np.ndarray, cut: np.ndarray) -> Resampled:
    """AUC of ``evidence`` (N,) for continued scenes against cuts, ties by half; over all pairs and over each draw."""
    wins = (evidence[cut, None] < evidence[~cut]) + 0.5 * (evidence[cut, None] == evidence[~cut])
    scenes = np.eye(boot.n_scenes)[boot.block]  # (N, scenes)
    won = scenes[cut].T @ wins @ scenes[~cut]  # by the scene of the cut and that of the continued clip
    times = np.concatenate([np.ones((1, boot.n_scenes), int), boot.times])
    with np.errstate(divide="ignore", invalid="ignore"):
        area = ((times @ won) * times).sum(axis=1) / ((times @ scenes[cut].sum(0)) * (times @ scenes[~cut].sum(0)))
    return Resampled(float(area[0]), area[1:])
