"""Score one method: its predictions, its floors and its ceiling go through the same code, on the same clips.

Plain arrays in, rows out; nothing here knows how a prediction was made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from neuroclips.artefacts import Rows, in_parts
from neuroclips.errors import DataError
from neuroclips.evaluation.agreement import Features, pattern_correlation, resampled_profile
from neuroclips.evaluation.floors import as_list, shuffle_across_scenes
from neuroclips.evaluation.identification import (
    METRICS,
    Identification,
    candidate_pool,
    correlation_scores,
    identify,
    identify_every_pairing,
)
from neuroclips.evaluation.intervals import Resampled, SceneBootstrap, Statistic, n_effective, rare_share_interval
from neuroclips.evaluation.measure import Measured, measure_videos
from neuroclips.evaluation.pixels import VideoSet
from neuroclips.evaluation.significance import paired_p_value, permutation_p_value
from neuroclips.evaluation.table import Score
from neuroclips.shapes import Float, Float32, Int

FLIPS = 10_000  # of scenes' signs: Holm multiplies p by the number of metrics, so its grain must be fine
_VALUES_AT_ONCE = 1 << 21
PAIRINGS = "other pairings"  # the name of the permutation test among the p-values of a row


@dataclass(frozen=True)
class Scored:
    """Rows for the table, and one value per clip and metric for the report.

    per_clip : columns clip, scene, method, space, metric, n_repeats (where it is known), value.
    """

    scores: list[Score]
    per_clip: pd.DataFrame


@dataclass(frozen=True)
class MetricValues:
    """One metric of one method and of what it stands beside, clip by clip: what a row of the table is made from.

    values : (B,).
    beside : floors and baselines by name, each (B,), or (S, B) where S shuffles are pooled clip by clip.
    ceiling : (B,) of the best reachable prediction.
    chance : (B,) for a prediction without information.
    p_values : of tests that need more than these values, by name.
    """

    name: str
    values: np.ndarray
    beside: Mapping[str, np.ndarray]
    ceiling: np.ndarray | None = None
    chance: np.ndarray | None = None
    statistic: Statistic = "mean"
    unit: str = ""
    note: str = ""
    higher_is_better: bool = True
    p_values: Mapping[str, float] = field(default_factory=dict)


def score_videos(
    method: str,
    videos: VideoSet,
    truth: VideoSet,
    *,
    ids: Sequence[str],
    scene: Int[np.ndarray, " B"],
    floors: Mapping[str, VideoSet | list[VideoSet]],
    baselines: Mapping[str, VideoSet] | None = None,
    ceiling: VideoSet | None = None,
    shuffled: str = "shuffled",
    n_repeats: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Scored:
    """Pixel and motion scores of reconstructed videos, one row a metric, and a row of its own for the shuffled control.

    Parameters
    ----------
    method : name of what made the videos.
    videos, truth : (B, F, 3, H, W) uint8, or float in [0, 1]; arrays, or anything that is indexed like one.
    ids, scene : name and scene number of each clip.
    floors : videos made without brain information, by name; a list (several shuffles) is pooled clip by clip.
    baselines : videos that a simpler method made of the same fMRI, by name.
    ceiling : videos of the best reachable reconstruction, such as the truth through the VAE.
    shuffled : which floor is the shuffled fMRI; it defines the brain-attributable share.
    n_repeats : how many repeats of each test clip were averaged.
    draws, seed : of the scene bootstrap.

    To score many methods against the same floors, measure everything once (``measure_videos``) and make the rows of
    each with ``score_measured``.
    """
    baselines = baselines or {}
    sets: dict[str, VideoSet | list[VideoSet]] = {**floors, **baselines, "": videos}
    if ceiling is not None:
        sets["ceiling of this"] = ceiling
    found = measure_videos(sets, truth, frames_shuffled=[""], seed=seed)
    own, best = found.pop(""), found.pop("ceiling of this", None)
    return score_measured(
        method, own, ids=ids, scene=scene, floors={k: v for k, v in found.items() if k not in baselines},
        baselines={k: found[k] for k in baselines}, ceiling=best, shuffled=shuffled, n_repeats=n_repeats, draws=draws,
        seed=seed,
    )  # fmt: skip


def score_measured(
    method: str,
    measured: Measured,
    *,
    ids: Sequence[str],
    scene: Int[np.ndarray, " B"],
    floors: Mapping[str, Measured],
    baselines: Mapping[str, Measured] | None = None,
    ceiling: Measured | None = None,
    space: str = "video",
    shuffled: str = "shuffled",
    n_repeats: int | None = None,
    note: str = "",
    draws: int = 1000,
    seed: int = 0,
) -> Scored:
    """The rows of ``score_videos`` from what ``measure_videos`` found. ``note`` is added to that of every row."""
    baselines = baselines or {}
    metrics = []
    for name, values in measured.values.items():
        about = measured.about[name]
        beside = {k: v.values[name] for k, v in {**floors, **baselines}.items() if name in v.values}
        if name in measured.frames_shuffled:
            beside["frames shuffled"] = measured.frames_shuffled[name]
        metrics.append(
            MetricValues(
                name, values, beside, None if ceiling is None else ceiling.values.get(name), unit=about.unit,
                note="; ".join(filter(None, (about.note, note))), higher_is_better=about.higher_is_better,
            )
        )  # fmt: skip
    return score_metrics(method, space, metrics, ids, scene, shuffled, list(baselines), n_repeats, draws, seed)


def score_agreement(
    method: str,
    predicted: Features,
    true: Float[np.ndarray, "B ..."],
    *,
    reference: Float[np.ndarray, ...],
    sd: Float[np.ndarray, ...] | None = None,
    ids: Sequence[str],
    scene: Int[np.ndarray, " B"],
    floors: Mapping[str, Features | list[Features]],
    baselines: Mapping[str, Features] | None = None,
    space: str = "tokens",
    shuffled: str = "shuffled",
    n_repeats: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Scored:
    """How near predicted features are to the true ones, clip by clip; arguments as for ``score_identification``.

    agreement : Pearson correlation after subtracting ``reference`` from both sides; higher is better.
    error : squared distance, in units of the mean squared distance of the truth from ``reference``, so that predicting
        the training mean for every clip costs 1; lower is better.
    pattern correlation, profile correlation : bdpy's definitions (``agreement``); the pattern needs ``sd`` (...), that
        of every feature over the training clips.
    """
    baselines = baselines or {}
    centre, ones = np.asarray(reference, np.float32), np.ones(reference.shape)
    unit = float(_squared_distances(np.broadcast_to(centre, true.shape), true).mean())

    def agreement(x: Features) -> np.ndarray:
        return pattern_correlation(x, true, mean=reference, sd=ones)

    def error(x: Features) -> np.ndarray:
        return _squared_distances(x, true) / unit

    def pattern(x: Features) -> np.ndarray:
        return pattern_correlation(x, true, mean=reference, sd=sd)

    others: dict[str, Any] = {**floors, **baselines}
    wanted = [
        ("agreement", agreement, "correlation with the true features, training mean subtracted", True),
        ("error", error, "squared distance; the training mean for every clip costs 1", False),
    ]
    if sd is not None:
        wanted.append(("pattern correlation", pattern, "over units, each standardised by its training clips", True))
    metrics = [
        MetricValues(
            name, of(predicted), {k: np.stack([of(x) for x in as_list(v)]) for k, v in others.items()}, None,
            note=note, higher_is_better=higher,
        )
        for name, of, note, higher in wanted
    ]  # fmt: skip
    found = score_metrics(method, space, metrics, ids, scene, shuffled, list(baselines), n_repeats, draws, seed)
    row = _profile(found.scores[0], predicted, true, floors, baselines, scene, draws)
    return Scored([*found.scores, row], found.per_clip)


def _squared_distances(x: Features, y: Float[np.ndarray, "B ..."]) -> Float32[np.ndarray, " B"]:
    """Of every clip, summed over its features; a few clips at a time."""
    found = np.empty(len(y), np.float32)
    for rows in in_parts(len(y), _VALUES_AT_ONCE // int(np.prod(y.shape[1:])), x, y):
        difference = np.asarray(x[rows], np.float32) - np.asarray(y[rows], np.float32)
        found[rows] = np.square(difference).reshape(len(difference), -1).sum(axis=1)
    return found


def _profile(
    like: Score, predicted: Features, true: np.ndarray, floors: Mapping[str, Features | list[Features]],
    baselines: Mapping[str, Features], scene: np.ndarray, draws: int,
) -> Score:  # fmt: skip
    """The row of the profile correlation, which has no values clip by clip: it is taken over clips."""
    boot = SceneBootstrap(scene, draws, like.seed)
    own = resampled_profile(predicted, true, boot)
    beside = {}
    others: dict[str, Any] = {**floors, **baselines}
    for name, given in others.items():
        each = [resampled_profile(x, true, boot) for x in as_list(given)]
        beside[name] = np.mean([[found.value, *found.draws] for found in each], axis=0)
    differences = {name: boot.interval(own.draws - both[1:]) for name, both in beside.items()}
    low, high = boot.interval(own.draws) or (None, None)
    return replace(
        like, metric="profile correlation", value=own.value, ci_low=low, ci_high=high, chance=0.0, p_values={},
        floors={name: float(beside[name][0]) for name in floors},
        baselines={name: float(beside[name][0]) for name in baselines},
        differences={name: ends for name, ends in differences.items() if ends is not None},
        note="over clips, mean over units; a unit that never changes counts 0", higher_is_better=True,
    )  # fmt: skip


def score_identification(
    method: str,
    predicted: Features,
    candidates: Float[np.ndarray, "B ..."],
    *,
    reference: Float[np.ndarray, ...],
    ids: Sequence[str],
    segment: Int[np.ndarray, " B"],
    onset: Float[np.ndarray, " B"],
    scene: Int[np.ndarray, " B"],
    floors: Mapping[str, Features | list[Features]],
    baselines: Mapping[str, Features] | None = None,
    ceiling: Float[np.ndarray, "B B"] | None = None,
    exclude_seconds: float = 10.0,
    space: str = "tokens",
    shuffled: str = "shuffled",
    n_repeats: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Scored:
    """Find each clip among all clips from its predicted features: top-1, top-5, pairwise accuracy, median rank.

    Parameters
    ----------
    predicted, candidates : (B, ...) features, such as CLIP tokens; clip b of one belongs to clip b of the other.
    reference : (...) mean of the *training* clips' features, subtracted from both sides before correlating.
    segment, onset : where each clip lies; clips of the same segment within ``exclude_seconds`` are no distractors.
    floors : features predicted without brain information, by name; a list (several shuffles) is pooled. ``Rows`` of
        ``predicted`` cost next to nothing, where shuffled fMRI predicts what the fMRI predicts, shuffled.
    baselines : features that a simpler method predicted from the same fMRI, by name.
    ceiling : (B, B) similarity of the best reachable prediction (rows) and each candidate, such as the ideal
        observer's log-likelihoods.
    ids, scene, shuffled, n_repeats, draws, seed : as for ``score_videos``.
    """
    pool = candidate_pool(segment, onset, exclude_seconds)
    similarity = correlation_scores(predicted, candidates, reference)
    found = identify(similarity, pool)
    baselines = baselines or {}

    others: dict[str, Any] = {**floors, **baselines}

    def similarity_of(other: Features) -> np.ndarray:
        if isinstance(other, Rows) and other.rows is predicted:
            return similarity[other.order]
        return correlation_scores(other, candidates, reference)

    beside = {
        name: [identify(similarity_of(p), pool).values for p in as_list(predictions)]
        for name, predictions in others.items()
    }
    found_ceiling = None if ceiling is None else identify(ceiling, pool).values
    chance, p_values = _other_pairings(found, similarity, pool, scene, draws, seed)
    size = f"{found.pool_size.min()}–{found.pool_size.max()}".removeprefix(f"{found.pool_size.max()}–")
    note = f"pool of {size} clips, neighbours within {exclude_seconds:g} s left out"
    metrics = [
        MetricValues(
            "median rank" if name == "rank" else name,
            found.values[name],
            {other: np.stack([each[name] for each in results]) for other, results in beside.items()},
            None if found_ceiling is None else found_ceiling[name],
            chance=chance[name],
            statistic="median" if name == "rank" else "mean",
            unit="rank" if name == "rank" else "share",
            note=note,
            higher_is_better=name != "rank",
            p_values=p_values[name],
        )
        for name in METRICS
    ]
    return score_metrics(method, space, metrics, ids, scene, shuffled, list(baselines), n_repeats, draws, seed)


def _other_pairings(
    found: Identification, similarity: np.ndarray, pool: np.ndarray, scene: np.ndarray, draws: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Chance, and the permutation test: what if every prediction had been made for a clip of another scene?

    Chance is exact: for each target the mean (of ranks, the median) over all predictions of other scenes. It is not
    1 / n: as a target's neighbours are left out of its pool, it has no rivals that look like it there, and predictions
    that were not meant for it find it too often. Where one scene dominates there is no test, and chance is 1 / n.
    """
    rng, targets = np.random.default_rng(seed), np.arange(len(scene))
    try:
        sources = [shuffle_across_scenes(scene, rng) for _ in range(draws)]
    except DataError:
        return dict(found.chance), {name: {} for name in METRICS}
    chance, p_values = {}, {}
    other = np.where(scene[:, None] != scene[None], 1.0, np.nan)  # (prediction, target)
    for name, table in identify_every_pairing(similarity, pool).items():
        sign, summary, over = (-1, np.median, np.nanmedian) if name == "rank" else (1, np.mean, np.nanmean)
        chance[name] = over(table * other, axis=0)
        null = np.array([sign * summary(table[source, targets]) for source in sources])
        p_values[name] = {PAIRINGS: permutation_p_value(float(sign * summary(np.diagonal(table))), null)}
    return chance, p_values


def score_metrics(
    method: str, space: str, metrics: Sequence[MetricValues], ids: Sequence[str], scene: Int[np.ndarray, " B"],
    shuffled: str, baselines: Collection[str], n_repeats: int | None, draws: int, seed: int,
) -> Scored:  # fmt: skip
    """One row a metric, from its values clip by clip: intervals, paired differences and their tests, and a row of its
    own for the shuffled control. Arguments as for ``score_videos``; ``baselines`` names those that read the brain."""
    if not len(ids) == len(scene) == metrics[0].values.shape[-1]:
        raise DataError(f"{len(ids)} ids, {len(scene)} scenes and {metrics[0].values.shape[-1]} clips; expected equal")
    boot = SceneBootstrap(scene, draws, seed)
    scores, parts = [], []
    for metric in metrics:
        value = boot.of(metric.values, metric.statistic)
        beside = {name: boot.of(values, metric.statistic) for name, values in metric.beside.items()}
        floors = {name: found for name, found in beside.items() if name not in baselines}
        ceiling = None if metric.ceiling is None else boot.of(metric.ceiling, metric.statistic)
        share, share_interval = _brain_attributable(boot, value, floors.get(shuffled), ceiling, metric.higher_is_better)
        low, high = _interval(boot, value, metric.values, metric.unit)
        differences = {name: boot.interval(value.draws - other.draws) for name, other in beside.items()}
        tests = {
            name: paired_p_value(metric.values - np.atleast_2d(values).mean(axis=0), scene, draws=FLIPS, seed=seed)
            for name, values in metric.beside.items()
        }
        score = Score(
            metric=metric.name,
            method=method,
            value=value.value,
            ci_low=low,
            ci_high=high,
            chance=_summary(metric.chance, metric.statistic),
            floors={name: floor.value for name, floor in floors.items()},
            baselines={name: beside[name].value for name in baselines if name in beside},
            differences={name: ends for name, ends in differences.items() if ends is not None},
            ceiling=None if ceiling is None else ceiling.value,
            brain_attributable=share,
            brain_attributable_interval=share_interval,
            p_values={**metric.p_values, **{name: p for name, p in tests.items() if p is not None}},
            n=len(ids),
            n_effective=n_effective(scene),
            n_repeats=n_repeats,
            seed=seed,
            space=space,
            unit=metric.unit,
            note=metric.note,
            higher_is_better=metric.higher_is_better,
        )
        scores.append(score)
        rows = {method: metric.values}
        if shuffled in floors:
            name = f"{method}, {shuffled}"
            ends = _interval(boot, floors[shuffled], metric.beside[shuffled], metric.unit)
            scores.append(_control(score, name, floors[shuffled].value, ends))
            rows[name] = np.atleast_2d(metric.beside[shuffled]).mean(axis=0)
        for name, values in rows.items():
            columns: dict[str, Any] = {"clip": list(ids), "scene": scene, "method": name, "space": space}
            columns |= {"metric": metric.name} | ({} if n_repeats is None else {"n_repeats": n_repeats})
            parts.append(pd.DataFrame(columns | {"value": np.asarray(values, np.float64)}))
    return Scored(scores, pd.concat(parts, ignore_index=True))


def _summary(values: np.ndarray | None, statistic: Statistic) -> float | None:
    return None if values is None else float(getattr(np, statistic)(values))


def _interval(
    boot: SceneBootstrap, found: Resampled, values: np.ndarray, unit: str
) -> tuple[float, float] | tuple[None, None]:
    rare = rare_share_interval(np.asarray(values, np.float64), boot.block) if unit == "share" else None
    return rare or boot.interval(found.draws) or (None, None)


def _control(score: Score, name: str, value: float, ends: tuple[float, float] | tuple[None, None]) -> Score:
    """The row of the shuffled floor, with its own interval: it should contain chance."""
    return replace(
        score, method=name, value=value, ci_low=ends[0], ci_high=ends[1], floors={}, baselines={},
        differences={}, ceiling=None, brain_attributable=None, brain_attributable_interval=None, p_values={},
        control=True,
    )  # fmt: skip


def _brain_attributable(
    boot: SceneBootstrap, value: Resampled, floor: Resampled | None, ceiling: Resampled | None, higher_is_better: bool
) -> tuple[float | None, tuple[float, float] | None]:
    """(value - floor) / (ceiling - floor), where the ceiling is better than the floor beyond doubt (99.9 %)."""
    sign = 1 if higher_is_better else -1
    if floor is None or ceiling is None or sign * (ceiling.value - floor.value) <= 0:
        return None, None
    room = boot.interval(sign * (ceiling.draws - floor.draws), 0.999)
    if room is not None and room[0] <= 0:  # dividing by a room that may be nothing says nothing
        return None, None
    with np.errstate(divide="ignore", invalid="ignore"):  # single draws may have no room; interval() skips those
        shares = (value.draws - floor.draws) / (ceiling.draws - floor.draws)
    return (value.value - floor.value) / (ceiling.value - floor.value), boot.interval(shares)
