"""The stage ``evaluate``: every score beside chance, floors and ceilings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from neuroclips.artefacts import read_arrays, read_json, write_json, written_aside
from neuroclips.data import prepare as data
from neuroclips.data.clips import Clips
from neuroclips.evaluation.floors import mean_frame_videos, mean_video_videos
from neuroclips.evaluation.identification import correlation_scores
from neuroclips.evaluation.judges import JUDGE, judge_features, judge_is_here
from neuroclips.evaluation.scores import Scored, score_agreement, score_identification, score_videos
from neuroclips.evaluation.seams import continues_scene, decision_scores, seam_score
from neuroclips.evaluation.table import Score, write_scores
from neuroclips.recipe import Recipe
from neuroclips.stages import ABLATIONS, load_targets, progress_bar, repeats_of


def evaluate(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Every score beside chance, floors and ceiling; the only stage that compares with the test film."""
    prepared = data.load_clips(run / "prepare")
    test, made = prepared.test, run / "reconstruct"
    n_repeats = repeats_of(recipe, test.bold.shape[1])
    shared: dict[str, Any] = {
        "ids": test.ids, "scene": test.scene, "draws": recipe.evaluate.bootstrap, "seed": recipe.seed,
    }  # fmt: skip
    methods, parts = recipe.decoders.methods, list[Scored]()
    with progress_bar(console) as report:
        total, done = len(methods) * len(n_repeats) + len(recipe.generate.generators), 0
        for k in reversed(n_repeats):
            ceiling, ceiling_name = _identification_ceiling(run, test, k)
            for method in reversed(methods):
                report(done, total, f"identification, {method}")
                done += 1
                parts += _score_decoded(run, recipe, method, k, test, ceiling, shared)
        still: dict[str, Any] = {
            "mean frame": mean_frame_videos(prepared.train.frames, len(test)),
            "mean video": mean_video_videos(prepared.train.frames, len(test)),
        }
        if recipe.generate.video is not None:
            report(done, total, "pixels and motion, neuroclips")
            parts += _score_generated(run, recipe, test, prepared.train, still, shared, n_repeats[-1])
        by_ridge = made / "videos-baseline.safetensors"
        baseline = read_arrays(by_ridge) if by_ridge.exists() else {}
        for name in recipe.generate.generators:
            report(done, total, f"pixels and motion, {name}")
            done += 1
            parts.append(
                score_videos(
                    name,
                    read_arrays(made / "videos.safetensors")[name],
                    test.frames,
                    floors={**still, "shuffled": list(read_arrays(made / "videos-shuffled.safetensors")[name])},
                    baselines={"ridge": baseline[name]} if name in baseline else {},
                    ceiling=read_arrays(made / "videos-ceiling.safetensors")[name],
                    n_repeats=n_repeats[-1],
                    **shared,
                )
            )
    scores = [score for part in parts for score in part.scores] + _score_fusion(run, recipe, test)
    write_scores(own / "scores.json", scores)
    per_clip = pd.concat(
        [part.per_clip.assign(n_repeats=part.scores[0].n_repeats) for part in parts], ignore_index=True
    )
    with written_aside(own / "per_clip.parquet") as aside:
        per_clip.to_parquet(aside)
    return {"rows": len(scores), "ceiling": ceiling_name, "test_split_opened": _count_opening(run)}


def _score_decoded(
    run: Path, recipe: Recipe, method: str, k: int, test: Clips, ceiling: np.ndarray | None, shared: dict[str, Any]
) -> list[Scored]:
    """Identification from what one method decoded from ``k`` repeats, and how near its tokens are to the truth."""
    made, true, known = run / "reconstruct", load_targets(run, "test"), load_targets(run, "train")
    found = read_arrays(made / f"{method}-{k}.safetensors")
    shuffled = read_arrays(made / f"{method}-{k}-shuffled.safetensors")
    compared = method != "ridge" and "ridge" in recipe.decoders.methods
    ridge = read_arrays(made / f"ridge-{k}.safetensors") if compared else {}
    parts = []
    for part, predicted in found.items():
        space = "tokens" if part == "prior_tokens" else part
        name = "prior" if part == "prior_tokens" else method
        given: dict[str, Any] = {
            "reference": np.asarray(getattr(known, space), np.float32).mean(axis=0), "space": space, "n_repeats": k,
            "floors": {"shuffled": list(shuffled[part])}, **shared,
        }  # fmt: skip
        baselines = {"ridge": ridge[space]} if compared else {}
        if part == "prior_tokens":
            baselines["its input"] = found["tokens"]
        goal = getattr(true, space)
        parts.append(
            score_identification(
                name, predicted, goal, segment=test.segment, onset=test.onset, baselines=baselines, ceiling=ceiling,
                exclude_seconds=recipe.evaluate.exclude_seconds, **given,
            )
        )  # fmt: skip
        if space == "tokens":
            parts.append(score_agreement(name, predicted, goal, baselines=baselines, **given))
    return parts


def _with_video(run: Path, test: Clips) -> np.ndarray:
    """(N,) numbers of the test clips that got a generated video."""
    number = {clip: i for i, clip in enumerate(test.ids)}
    return np.array([number[clip] for clip in read_json(run / "generate" / "clips.json")])


def _score_generated(
    run: Path, recipe: Recipe, test: Clips, train: Clips, still: dict[str, np.ndarray], shared: dict[str, Any],
    n_repeats: int,
) -> list[Scored]:  # fmt: skip
    """Generated videos beside the blurry and the nearest ones of the same clips; whole, fused, and with paths left out.

    Pixels and motion; and identification by an outside judge, where that is installed.
    """
    made, rows = run / "generate", _with_video(run, test)
    of_these = test.take(rows)

    def videos(condition: str) -> np.ndarray:
        """At the times of the film's frames: of 16 frames, those that stand nearest to its 6."""
        found = read_arrays(made / f"{condition}.safetensors")["videos"]
        return found[:, np.rint(np.linspace(0, found.shape[1] - 1, test.n_frames)).astype(int)]

    shuffled = [videos(path.stem) for path in sorted(made.glob("shuffled-*.safetensors"))]
    quick = read_arrays(run / "reconstruct" / "videos.safetensors")
    baselines = {name: np.asarray(array[rows]) for name, array in quick.items()}
    names = {"decoded": "neuroclips", "fused": "neuroclips, fused"}
    names |= {slug: f"neuroclips, {slug.replace('-', ' ')}" for slug in ABLATIONS}
    present = {slug: name for slug, name in names.items() if (made / f"{slug}.safetensors").exists()}
    shared = {**shared, "ids": of_these.ids, "scene": of_these.scene, "n_repeats": n_repeats}
    floors: dict[str, Any] = {name: array[: len(rows)] for name, array in still.items()}
    floors["shuffled"] = shuffled
    parts = [
        score_videos(
            name, videos(slug), of_these.frames, floors=floors, baselines=baselines, ceiling=videos("ceiling"), **shared
        )
        for slug, name in present.items()
    ]
    if judge_is_here():
        true, best = judge_features(np.asarray(of_these.frames)), judge_features(videos("ceiling"))
        reference = judge_features(np.asarray(train.frames[:: max(1, len(train) // 200)])).mean(axis=0)
        parts += [
            score_identification(
                name, judge_features(videos(slug)), true, reference=reference, space=JUDGE,
                segment=of_these.segment, onset=of_these.onset, exclude_seconds=recipe.evaluate.exclude_seconds,
                floors={"shuffled": [judge_features(v) for v in shuffled]},
                baselines={name: judge_features(v) for name, v in baselines.items()},
                ceiling=correlation_scores(best, true, reference), **shared,
            )
            for slug, name in present.items()
        ]  # fmt: skip
    return parts


def _score_fusion(run: Path, recipe: Recipe, test: Clips) -> list[Score]:
    """Whether fusion joined the right clips, and how far the picture jumps where it did, with and without it."""
    made = run / "generate"
    if recipe.generate.video is None or recipe.generate.video.fusion is None:
        return []
    decided = {name: np.array(array) for name, array in read_arrays(made / "decisions.safetensors").items()}
    judged, before = test.take(decided["clip"]), decided["before"]
    rows = decision_scores(
        recipe.generate.video.fusion.compare, decided["joined"], continues_scene(judged.scene, before),
        before=before, block=judged.scene, baselines={"pixel difference": decided["joined_by_pixels"]},
        evidence=decided["evidence"], baseline_evidence={"pixel difference": decided["pixel_evidence"]},
        draws=recipe.evaluate.bootstrap, seed=recipe.seed,
    )  # fmt: skip
    of_these = test.take(_with_video(run, test))
    chains = {name: np.array(array) for name, array in read_arrays(made / "fusion.safetensors").items()}
    alone, fused = (read_arrays(made / f"{name}.safetensors")["videos"] for name in ("decoded", "fused"))
    if (chains["position"] > 0).any():
        rows.append(
            seam_score(
                "neuroclips, fused", fused, {"without fusion": alone}, of_these.frames, chains["before"],
                chains["position"] > 0, block=of_these.scene, draws=recipe.evaluate.bootstrap, seed=recipe.seed,
            )
        )  # fmt: skip
    return [row for row in rows if np.isfinite(row.value)]


def _identification_ceiling(run: Path, test: Clips, k: int) -> tuple[np.ndarray | None, str]:
    """Similarities of the best identification that these scans allow, and its name.

    The ideal observer of a simulated subject; for a real one, scans matched to other repeats of the same clips.
    """
    if (run / "observe").exists():
        return np.asarray(read_arrays(run / "observe" / "similarity.safetensors")[f"repeats-{k}"]), "ideal observer"
    if test.bold.shape[1] < 2:
        return None, "none: one repeat"
    halves = [replace(test, bold=test.bold[:, start::2], present=test.present[:, start::2]) for start in (0, 1)]
    first, second = (half.responses() for half in halves)
    return correlation_scores(first, second, np.zeros(test.n_voxels, np.float32)), "split half of the repeats"


def _count_opening(run: Path) -> int:
    """How many times this run's test split has been scored, this one included."""
    path = run / "test_split_opened.json"
    count = read_json(path)["times"] + 1 if path.exists() else 1
    write_json(path, {"times": count})
    return count
