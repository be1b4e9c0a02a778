"""Score one method: its predictions, its floors and its ceiling go through the same code, on the same clips.

Plain arrays in, rows out; nothing here knows how a prediction was made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from neuroclips.errors import DataError
from neuroclips.evaluation.floors import shuffle_across_scenes
from neuroclips.evaluation.identification import (
    METRICS,
    candidate_pool,
    correlation_scores,
    identify,
    identify_every_pairing,
)
from neuroclips.evaluation.intervals import Resampled, SceneBootstrap, Statistic, n_effective, permutation_p_value
from neuroclips.evaluation.motion import motion_direction
from neuroclips.evaluation.pixels import Videos, pixel_correlation, psnr, ssim
from neuroclips.evaluation.table import Score
from neuroclips.shapes import Float, Int

PIXEL_METRICS = {
    "pixel correlation": (pixel_correlation, "", "per frame over RGB values, mean over frames"),
    "SSIM": (ssim, "", "RGB, 7x7 uniform window, data range 1"),
    "PSNR": (psnr, "dB", "frames in [0, 1], at most 58.9 dB"),
    "motion direction": (motion_direction, "", "cosine of optical flows where the truth moves; chance 0"),
}


@dataclass(frozen=True)
class Scored:
    """Rows for the table, and one value per clip and metric for the report.

    per_clip : columns clip, scene, method, space, metric, value.
    """

    scores: list[Score]
    per_clip: pd.DataFrame


@dataclass(frozen=True)
class _Metric:
    """What is needed to make the rows of one metric. Values are (B,), or (S, B) where S shuffles are pooled."""

    name: str
    values: np.ndarray
    beside: dict[str, np.ndarray]  # floors and baselines
    ceiling: np.ndarray | None
    chance: np.ndarray | None = None
    statistic: Statistic = "mean"
    unit: str = ""
    note: str = ""
    higher_is_better: bool = True
    p_value: float | None = None


def score_videos(
    method: str,
    videos: Videos,
    truth: Videos,
    *,
    ids: Sequence[str],
    scene: Int[np.ndarray, " B"],
    floors: Mapping[str, Videos | Sequence[Videos]],
    baselines: Mapping[str, Videos] | None = None,
    ceiling: Videos | None = None,
    shuffled: str = "shuffled",
    n_repeats: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Scored:
    """Pixel scores of reconstructed videos, one row a metric, and a row of its own for the shuffled control.

    Parameters
    ----------
    method : name of what made the videos.
    videos, truth : (B, F, 3, H, W) uint8, or float in [0, 1].
    ids, scene : name and scene number of each clip.
    floors : videos made without brain information, by name; a list (several shuffles) is pooled clip by clip.
    baselines : videos that a simpler method made of the same fMRI, by name.
    ceiling : videos of the best reachable reconstruction, such as the truth through the VAE.
    shuffled : which floor is the shuffled fMRI; it defines the brain-attributable share.
    n_repeats : how many repeats of each test clip were averaged.
    draws, seed : of the scene bootstrap.
    """
    metrics, baselines = [], baselines or {}
    for name, (metric, unit, note) in PIXEL_METRICS.items():
        beside = {k: np.stack([metric(v, truth) for v in _as_list(vs)]) for k, vs in {**floors, **baselines}.items()}
        best = None if ceiling is None else metric(ceiling, truth)
        metrics.append(_Metric(name, metric(videos, truth), beside, best, unit=unit, note=note))
    return _scored(method, "video", metrics, ids, scene, shuffled, baselines, n_repeats, draws, seed)


def score_agreement(
    method: str,
    predicted: Float[np.ndarray, "B ..."],
    true: Float[np.ndarray, "B ..."],
    *,
    reference: Float[np.ndarray, ...],
    ids: Sequence[str],
    scene: Int[np.ndarray, " B"],
    floors: Mapping[str, np.ndarray | Sequence[np.ndarray]],
    baselines: Mapping[str, np.ndarray] | None = None,
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
    """
    baselines = baselines or {}
    goal = np.asarray(true, np.float32).reshape(len(true), -1)
    centre = np.asarray(reference, np.float32).ravel()
    unit = float(np.square(goal - centre).sum(axis=1).mean())

    def agreement(x: np.ndarray) -> np.ndarray:
        return np.diagonal(correlation_scores(x, true, reference))

    def error(x: np.ndarray) -> np.ndarray:
        return np.square(np.asarray(x, np.float32).reshape(len(x), -1) - goal).sum(axis=1) / unit

    others = {**floors, **baselines}
    metrics = [
        _Metric(
            name, of(predicted), {k: np.stack([of(x) for x in _as_list(v)]) for k, v in others.items()}, None,
            note=note, higher_is_better=higher,
        )
        for name, of, note, higher in (
            ("agreement", agreement, "correlation with the true features, training mean subtracted", True),
            ("error", error, "squared distance; the training mean for every clip costs 1", False),
        )
    ]  # fmt: skip
    return _scored(method, space, metrics, ids, scene, shuffled, baselines, n_repeats, draws, seed)


def score_identification(
    method: str,
    predicted: Float[np.ndarray, "B ..."],
    candidates: Float[np.ndarray, "B ..."],
    *,
    reference: Float[np.ndarray, ...],
    ids: Sequence[str],
    segment: Int[np.ndarray, " B"],
    onset: Float[np.ndarray, " B"],
    scene: Int[np.ndarray, " B"],
    floors: Mapping[str, np.ndarray | Sequence[np.ndarray]],
    baselines: Mapping[str, np.ndarray] | None = None,
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
    floors : features predicted without brain information, by name; a list (several shuffles) is pooled.
    baselines : features that a simpler method predicted from the same fMRI, by name.
    ceiling : (B, B) similarity of the best reachable prediction (rows) and each candidate, such as the ideal
        observer's log-likelihoods.
    ids, scene, shuffled, n_repeats, draws, seed : as for ``score_videos``.
    """
    pool = candidate_pool(segment, onset, exclude_seconds)
    similarity = correlation_scores(predicted, candidates, reference)
    found = identify(similarity, pool)
    baselines = baselines or {}
    found_beside = {
        name: [identify(correlation_scores(p, candidates, reference), pool).values for p in _as_list(predictions)]
        for name, predictions in {**floors, **baselines}.items()
    }
    found_ceiling = None if ceiling is None else identify(ceiling, pool).values
    p_values = _pairing_p_values(similarity, pool, scene, draws, seed)
    size = f"{found.pool_size.min()}–{found.pool_size.max()}".removeprefix(f"{found.pool_size.max()}–")
    note = f"pool of {size} clips, neighbours within {exclude_seconds:g} s left out"
    metrics = [
        _Metric(
            "median rank" if name == "rank" else name,
            found.values[name],
            {other: np.stack([v[name] for v in shuffles]) for other, shuffles in found_beside.items()},
            None if found_ceiling is None else found_ceiling[name],
            chance=found.chance[name],
            statistic="median" if name == "rank" else "mean",
            unit="rank" if name == "rank" else "share",
            note=note,
            higher_is_better=name != "rank",
            p_value=p_values[name],
        )
        for name in METRICS
    ]
    return _scored(method, space, metrics, ids, scene, shuffled, baselines, n_repeats, draws, seed)


def _pairing_p_values(
    similarity: np.ndarray, pool: np.ndarray, scene: np.ndarray, draws: int, seed: int
) -> dict[str, float | None]:
    """Permutation test: is the true pairing of predictions and clips better than pairings shuffled across scenes?"""
    rng, targets = np.random.default_rng(seed), np.arange(len(scene))
    try:
        sources = [shuffle_across_scenes(scene, rng) for _ in range(draws)]
    except DataError:  # one scene dominates: no such pairing exists, so there is no test
        return dict.fromkeys(METRICS)
    p_values: dict[str, float | None] = {}
    for name, table in identify_every_pairing(similarity, pool).items():
        sign, summary = (-1, np.median) if name == "rank" else (1, np.mean)
        null = np.array([sign * summary(table[source, targets]) for source in sources])
        p_values[name] = permutation_p_value(float(sign * summary(np.diagonal(table))), null)
    return p_values


def _scored(
    method: str, space: str, metrics: Sequence[_Metric], ids: Sequence[str], scene: np.ndarray,
    shuffled: str, baselines: Collection[str], n_repeats: int | None, draws: int, seed: int,
) -> Scored:  # fmt: skip
    if not len(ids) == len(scene) == metrics[0].values.shape[-1]:
        raise DataError(f"{len(ids)} ids, {len(scene)} scenes and {metrics[0].values.shape[-1]} clips; expected equal")
    boot = SceneBootstrap(scene, draws, seed)
    scores, parts = [], []
    for metric in metrics:
        value = boot.of(metric.values, metric.statistic)
        beside = {name: boot.of(values, metric.statistic) for name, values in metric.beside.items()}
        floors = {name: found for name, found in beside.items() if name not in baselines}
        ceiling = None if metric.ceiling is None else boot.of(metric.ceiling, metric.statistic)
        share, share_interval = _brain_attributable(boot, value, floors.get(shuffled), ceiling)
        low, high = boot.interval(value.draws) or (None, None)
        differences = {name: boot.interval(value.draws - other.draws) for name, other in beside.items()}
        score = Score(
            metric=metric.name,
            method=method,
            value=value.value,
            ci_low=low,
            ci_high=high,
            chance=None if metric.chance is None else float(getattr(np, metric.statistic)(metric.chance)),
            floors={name: floor.value for name, floor in floors.items()},
            baselines={name: beside[name].value for name in baselines},
            differences={name: ends for name, ends in differences.items() if ends is not None},
            ceiling=None if ceiling is None else ceiling.value,
            brain_attributable=share,
            brain_attributable_interval=share_interval,
            p_value=metric.p_value,
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
            scores.append(_control(score, name, floors[shuffled], boot))
            rows[name] = np.atleast_2d(metric.beside[shuffled]).mean(axis=0)
        for name, values in rows.items():
            columns = {"clip": list(ids), "scene": scene, "method": name, "space": space, "metric": metric.name}
            parts.append(pd.DataFrame(columns | {"value": np.asarray(values, np.float64)}))
    return Scored(scores, pd.concat(parts, ignore_index=True))


def _control(score: Score, name: str, floor: Resampled, boot: SceneBootstrap) -> Score:
    """The row of the shuffled floor, with its own interval: it should not lie above chance."""
    low, high = boot.interval(floor.draws) or (None, None)
    return replace(
        score, method=name, value=floor.value, ci_low=low, ci_high=high, floors={}, baselines={}, differences={},
        ceiling=None, brain_attributable=None, brain_attributable_interval=None, p_value=None, control=True,
    )  # fmt: skip


def _brain_attributable(
    boot: SceneBootstrap, value: Resampled, floor: Resampled | None, ceiling: Resampled | None
) -> tuple[float | None, tuple[float, float] | None]:
    """(value - floor) / (ceiling - floor), where the ceiling differs from the floor beyond its interval."""
    if floor is None or ceiling is None or ceiling.value == floor.value:
        return None, None
    room = boot.interval(ceiling.draws - floor.draws)
    if room is not None and room[0] <= 0 <= room[1]:  # dividing by a room that may be nothing says nothing
        return None, None
    with np.errstate(divide="ignore", invalid="ignore"):  # single draws may have no room; interval() skips those
        shares = (value.draws - floor.draws) / (ceiling.draws - floor.draws)
    return (value.value - floor.value) / (ceiling.value - floor.value), boot.interval(shares)


def _as_list(arrays: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    return [arrays] if isinstance(arrays, np.ndarray) else list(arrays)
