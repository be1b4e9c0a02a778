"""What an outside judge makes of a method's videos, beside its floors and its ceiling: rows for the table.

Is the clip found among all others by what the judge sees in the video; does the judge see the same class; do
neighbouring frames change as much as in the film.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuroclips.errors import DataError
from neuroclips.evaluation.distribution import frechet_distance
from neuroclips.evaluation.floors import as_list
from neuroclips.evaluation.identification import correlation_scores
from neuroclips.evaluation.intervals import n_effective
from neuroclips.evaluation.judges import Seen
from neuroclips.evaluation.motion import frame_similarity, frame_similarity_difference
from neuroclips.evaluation.nway import n_way, n_way_chance
from neuroclips.evaluation.scores import MetricValues, Scored, score_identification, score_metrics
from neuroclips.evaluation.table import Score
from neuroclips.shapes import Float32, Int

N_WAY = (2, 50)
ACCEPTED = {1: "{n}-way", 3: "{n}-way, any of 3"}  # true classes, and the metric's name
LIKENESS = 0.6  # below this likeness to the film the field's thresholded frame similarity counts 0


def score_judged(
    method: str,
    seen: Seen,
    truth: Seen,
    *,
    judge: str,
    reference: Float32[np.ndarray, " D"],
    ids: Sequence[str],
    scene: Int[np.ndarray, " B"],
    floors: Mapping[str, Seen | list[Seen]],
    baselines: Mapping[str, Seen] | None = None,
    ceiling: Seen | None = None,
    shuffled: str = "shuffled",
    n_repeats: int | None = None,
    draws: int = 1000,
    seed: int = 0,
    consecutive: bool = False,
    legacy: bool = False,
    **identification: Any,
) -> Scored:
    """Every row that one judge can give one method.

    top-1, top-5, pairwise, median rank : identification from the judge's features, averaged over its looks.
    2-way, 50-way : does the prediction's class score single out the truth's best class; exact (``n_way``), mean over
        looks. "any of 3" is the field's variant, in which any of the truth's three best classes counts.
    frame similarity difference : of neighbouring frames, if the looks are ``consecutive`` frames.
    Fréchet distance : of all features from the truth's; no interval, for it has no value clip by clip.

    With ``legacy`` also the raw "frame similarity" (the field's "CLIP-pcc", which never looks at the truth), and the
    same with clips of likeness (cosine of the judge's features) at most 0.6 to the film counted as 0.

    Parameters
    ----------
    judge : its name.
    reference : (D,) mean of the judge's features of *training* film, or of other film.
    floors, baselines, ceiling : what the judge saw in them; otherwise as for ``score_videos``.
    consecutive : whether the judge looked at every frame.
    identification : ``segment``, ``onset`` and ``exclude_seconds``, as for ``score_identification``.
    """
    baselines = baselines or {}
    shared: dict[str, Any] = {
        "ids": ids, "scene": scene, "shuffled": shuffled, "n_repeats": n_repeats, "draws": draws, "seed": seed,
    }  # fmt: skip
    goal = truth.features.mean(axis=1)
    found = score_identification(
        method, seen.features.mean(axis=1), goal, reference=reference, space=judge,
        floors={name: [s.features.mean(axis=1) for s in as_list(given)] for name, given in floors.items()},
        baselines={name: s.features.mean(axis=1) for name, s in baselines.items()},
        ceiling=None if ceiling is None else correlation_scores(ceiling.features.mean(axis=1), goal, reference),
        **identification, **shared,
    )  # fmt: skip
    looks = truth.features.shape[1]
    metrics = []

    def add(name: str, of: Any, *, best: bool = True, **about: Any) -> None:
        beside = {k: np.stack([of(s) for s in as_list(v)]) for k, v in {**floors, **baselines}.items()}
        metrics.append(MetricValues(name, of(seen), beside, of(ceiling) if ceiling and best else None, **about))

    if truth.classes is not None:
        goal_classes = truth.classes
        n_classes = goal_classes.shape[-1]
        for accept, name in ACCEPTED.items():
            for n in N_WAY:
                if n <= n_classes - accept + 1:
                    chance = np.full(len(ids), n_way_chance(n, accept))
                    add(
                        name.format(n=n), lambda s, n=n, a=accept: _wins(s, goal_classes, n, a), chance=chance,
                        unit="share", note=f"exact, mean over {looks} looks, {n_classes} classes",
                    )  # fmt: skip
    if consecutive and looks > 1:
        own, film = (float(frame_similarity(s.features).mean()) for s in (seen, truth))
        note = f"of consecutive frames; here {own:.3f}, the film {film:.3f}"
        add(
            "frame similarity difference", lambda s: frame_similarity_difference(s.features, truth.features),
            higher_is_better=False, note=note,
        )  # fmt: skip
        if legacy:
            said = f'the field\'s "CLIP-pcc", by this judge; never looks at the truth; the film itself: {film:.3f}'
            add("frame similarity", lambda s: frame_similarity(s.features), best=False, note=said)
            said = f"0 where the likeness to the film is at most {LIKENESS:g}; the film itself: {film:.3f}"
            add("frame similarity, thresholded", lambda s: _thresholded(s, truth), best=False, note=said)
    if metrics:
        rest = score_metrics(method, judge, metrics, ids, scene, shuffled, list(baselines), n_repeats, draws, seed)
        found = joined([found, rest])
    distance = _frechet(method, seen, truth, judge, floors, baselines, ceiling, shared)
    return Scored([*found.scores, distance], found.per_clip)


def joined(parts: Sequence[Scored]) -> Scored:
    """The rows of several, in order."""
    scores = [score for part in parts for score in part.scores]
    return Scored(scores, pd.concat([part.per_clip for part in parts], ignore_index=True))


def _wins(seen: Seen, truth: np.ndarray, n: int, accept: int) -> np.ndarray:
    if seen.classes is None or seen.classes.shape != truth.shape:
        raise DataError("a judge gave class scores of the truth and none, or others, of a prediction")
    return n_way(seen.classes, truth, n, accept=accept).mean(axis=1)


def _thresholded(seen: Seen, truth: Seen) -> np.ndarray:
    x, y = (s.features.mean(axis=1).astype(np.float64) for s in (seen, truth))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    likeness = (x * y).sum(axis=1) / np.where(norms > 0, norms, 1)
    return np.where(likeness > LIKENESS, frame_similarity(seen.features), 0).astype(np.float32)


def _frechet(
    method: str, seen: Seen, truth: Seen, judge: str, floors: Mapping[str, Seen | list[Seen]],
    baselines: Mapping[str, Seen], ceiling: Seen | None, shared: Mapping[str, Any],
) -> Score:  # fmt: skip
    goal = truth.features.mean(axis=1).astype(np.float64)

    def distance(given: Seen | list[Seen]) -> float:
        return float(
            np.mean([frechet_distance(s.features.mean(axis=1).astype(np.float64), goal) for s in as_list(given)])
        )

    return Score(
        metric="Fréchet distance", method=method, space=judge, value=distance(seen), n=len(goal),
        n_effective=n_effective(shared["scene"]), seed=shared["seed"], n_repeats=shared["n_repeats"],
        floors={name: distance(s) for name, s in floors.items()},
        baselines={name: distance(s) for name, s in baselines.items()},
        ceiling=None if ceiling is None else distance(ceiling), higher_is_better=False,
        note="of the videos' features from the film's, as distributions; grows as clips get fewer",
    )  # fmt: skip
