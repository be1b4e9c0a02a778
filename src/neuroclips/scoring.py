"""The stage ``evaluate``, which alone compares with the test film: every score beside chance, floors and ceilings.

Predictions, floors, baselines and ceilings are measured once, through the same code, and set beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from neuroclips.artefacts import Rows, let_go, read_arrays, read_json
from neuroclips.curves import score_curves
from neuroclips.data.clips import Clips
from neuroclips.data.pairing import aligned
from neuroclips.data.prepared import Prepared, load_clips
from neuroclips.data.videos import VideoSource
from neuroclips.errors import MissingExtraError, RecipeError
from neuroclips.evaluation.agreement import Features, mean_and_sd
from neuroclips.evaluation.curves import write_curves
from neuroclips.evaluation.floors import mean_frame_videos, mean_video_videos
from neuroclips.evaluation.identification import correlation_scores
from neuroclips.evaluation.judged import joined, score_judged
from neuroclips.evaluation.judges import (
    JUDGES,
    TEXT_JUDGE,
    Judge,
    judges_here,
    load_judge,
    refuse_targets,
    text_features,
    text_weights,
)
from neuroclips.evaluation.measure import measure_videos
from neuroclips.evaluation.noise_ceiling import noise_ceiling
from neuroclips.evaluation.pixels import VideoSet
from neuroclips.evaluation.scores import Scored, score_agreement, score_identification, score_measured
from neuroclips.evaluation.seams import continues_scene, decision_scores, seam_score
from neuroclips.evaluation.table import Score, with_holm, write_tables
from neuroclips.recipe import Recipe
from neuroclips.shapes import Int
from neuroclips.stages import (
    ABLATIONS,
    Report,
    count_opening,
    decoder_weights,
    load_targets,
    progress_bar,
    repeats_of,
    weights_hashes,
)

PRIMARY = ("top-1", "top-5", "pairwise", "median rank")  # cannot be won by looking good; their chance is exact
LOOKS = 3  # frames of a video that a large judge looks at; one whose input is no larger than the film sees them all


def evaluate(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Score what was decoded and what was generated; writes tables for people and for programs.

    scores.json, scores.md, scores.tex : one row a score. per_clip.parquet : one value a clip, method and metric.
    curves.json : identification under other conditions, and what abstaining gains.
    """
    prepared = load_clips(run / "prepare")
    test = prepared.test
    n_repeats = repeats_of(recipe, test.bold.shape[1])
    judges = _judges(recipe, console)
    parts: list[Scored] = []
    known = load_targets(run, "train")
    about = {"tokens": mean_and_sd(known.tokens), "latents": mean_and_sd(known.latents)}
    with progress_bar(console) as report:
        for k in reversed(n_repeats):
            ceiling, ceiling_name = _identification_ceiling(run, test, k)
            for number, method in enumerate(reversed(recipe.decoders.methods)):
                report(number, len(recipe.decoders.methods), f"identification, {k} presentations")
                parts += _score_decoded(run, recipe, method, k, test, about, ceiling)
        if recipe.generate.video is not None:
            parts += _score_sets(recipe, _generated(run, prepared), prepared, judges, n_repeats[-1], report)
            parts += _score_captions(run, recipe, test, n_repeats[-1])
        # The quick videos are many and judged too, where that takes seconds.
        quick = [judge for judge in judges if _is_small(judge, test)]
        for generator in recipe.generate.generators:
            sets = _quick(run, prepared, generator)
            parts += _score_sets(recipe, sets, prepared, quick, n_repeats[-1], report)
    every = joined(parts)
    scores = with_holm([*every.scores, *_score_fusion(run, recipe, test)])
    write_tables(own, scores, every.per_clip)
    write_curves(own / "curves.json", *score_curves(run, recipe))
    ceiling_of_voxels = noise_ceiling(test.bold, test.present)
    controls = [s for s in scores if s.control and s.metric in PRIMARY and s.contains_chance is not None]
    return {
        "rows": len(scores),
        "ceiling": ceiling_name,
        "noise_ceiling": None if ceiling_of_voxels is None else asdict(ceiling_of_voxels),
        "controls": len(controls),
        "controls_that_contain_chance": sum(s.contains_chance is True for s in controls),
        "judges": {judge.name: list(judge.weights) for judge in judges}
        | ({TEXT_JUDGE: list(text_weights())} if any(s.space == TEXT_JUDGE for s in scores) else {}),
        "test_split_opened": count_opening(run),
    }


def judge_names(recipe: Recipe) -> list[str]:
    """The recipe's judges; refuses one that is no known name or judge's folder, or that training aims at, before any
    work."""
    names = list(recipe.evaluate.judges)
    folders = [name for name in names if name not in JUDGES]
    missing = [name for name in folders if not Path(name).is_dir()]
    if missing:
        raise RecipeError(f"evaluate.judges: no judge {missing[0]!r}; there are {', '.join(JUDGES)}, or give a folder")
    here = [*folders, *judges_here(name for name in names if name in JUDGES)]
    refuse_targets(here, {**weights_hashes(recipe), **decoder_weights(recipe)})
    return names


def _judges(recipe: Recipe, console: Console) -> list[Judge]:
    """The judges that are installed."""
    here = judges_here(recipe.evaluate.judges)
    for name in recipe.evaluate.judges:
        if name not in here:
            console.print(f"  no scores by {name}: its weights are not here (docs/evaluation.md, judges)")
    return [load_judge(name) for name in here]


def _shared(recipe: Recipe, test: Clips, n_repeats: int) -> dict[str, Any]:
    """What every call of a score wants."""
    return {
        "ids": test.ids, "scene": test.scene, "draws": recipe.evaluate.bootstrap, "seed": recipe.seed,
        "n_repeats": n_repeats,
    }  # fmt: skip


def _placed(recipe: Recipe, test: Clips) -> dict[str, Any]:
    """What identification wants to know about the place of clips."""
    return {"segment": test.segment, "onset": test.onset, "exclude_seconds": recipe.evaluate.exclude_seconds}


def _score_decoded(
    run: Path, recipe: Recipe, method: str, k: int, test: Clips, about: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ceiling: np.ndarray | None,
) -> list[Scored]:  # fmt: skip
    """Identification from what one method decoded from ``k`` repeats, and how near its tokens are to the truth.

    about : mean and standard deviation of the training clips' tokens and latents.
    """
    made, true = run / "reconstruct", load_targets(run, "test")
    found, orders = read_arrays(made / f"{method}-{k}.safetensors"), _orders(run)
    floors = {name: read_arrays(path) for name, path in _floors(made, method).items()}
    compared = method != "ridge" and "ridge" in recipe.decoders.methods
    ridge = read_arrays(made / f"ridge-{k}.safetensors") if compared else {}
    parts = []
    for part in (name for name in ("tokens", "prior_tokens", "latents") if name in found):
        predicted = found[part]
        space = "tokens" if part == "prior_tokens" else part
        name = "prior" if part == "prior_tokens" else method
        baselines = {"ridge": ridge[space]} if compared else {}
        if part == "prior_tokens":
            baselines["its input"] = found["tokens"]
        given: dict[str, Any] = {
            "reference": about[space][0], "space": space, "baselines": baselines,
            "floors": {
                "shuffled": [Rows(predicted, order) for order in orders],
                **{name: floor[part] for name, floor in floors.items()},
            },
            **_shared(recipe, test, k),
        }  # fmt: skip
        goal = getattr(true, space)
        parts.append(score_identification(name, predicted, goal, ceiling=ceiling, **given, **_placed(recipe, test)))
        if space == "tokens":
            parts.append(score_agreement(name, predicted, goal, sd=about[space][1], **given))
    return parts


def _orders(run: Path) -> list[np.ndarray]:
    """For each shuffle: whose fMRI every clip received."""
    return [np.array(order) for order in read_arrays(run / "reconstruct" / "shuffled.safetensors")["orders"]]


def _floors(made: Path, what: str) -> dict[str, Path]:
    """Files of the floors that are not shuffles, by name."""
    files = {"Gaussian fMRI": "noise", "wrong subject": "wrong-subject"}
    paths = {name: made / f"{what}-{file}.safetensors" for name, file in files.items()}
    return {name: path for name, path in paths.items() if path.exists()}


@dataclass(frozen=True)
class _Sets:
    """Videos (N, F, 3, H, W) of the test clips ``rows``, and what they all stand beside.

    shuffled : made from the fMRI of other scenes, one set a shuffle.
    """

    rows: Int[np.ndarray, " N"]
    methods: Mapping[str, VideoSet]
    floors: Mapping[str, VideoSet]
    shuffled: list[VideoSet]
    baselines: Mapping[str, VideoSet]
    ceiling: VideoSet


def _videos(path: Path, name: str) -> VideoSource:
    """Videos of a file, read when they are asked for."""
    array = read_arrays(path)[name]

    def read(row: int) -> np.ndarray:
        video = np.array(array[row])
        let_go(array)
        return video

    return VideoSource(path, [str(row) for row in range(len(array))], array.shape, name, read, named=False)


def _still(prepared: Prepared, n: int) -> dict[str, np.ndarray]:
    frames = prepared.train.frames
    return {"mean frame": mean_frame_videos(frames, n), "mean video": mean_video_videos(frames, n)}


def _quick(run: Path, prepared: Prepared, name: str) -> _Sets:
    """The videos of one generator that needs no diffusion: all test clips."""
    made, n = run / "reconstruct", len(prepared.test)

    own, by_ridge = _videos(made / "videos.safetensors", name), made / "videos-baseline.safetensors"
    floors = {what: _videos(path, name) for what, path in _floors(made, "videos").items()}
    baseline = by_ridge.exists() and name in read_arrays(by_ridge)
    return _Sets(
        np.arange(n), {name: own}, {**_still(prepared, n), **floors}, [own.take(order) for order in _orders(run)],
        {"ridge": _videos(by_ridge, name)} if baseline else {}, _videos(made / "videos-ceiling.safetensors", name),
    )  # fmt: skip


def _with_video(run: Path, test: Clips) -> np.ndarray:
    """(N,) numbers of the test clips that got a generated video."""
    number = {clip: i for i, clip in enumerate(test.ids)}
    return np.array([number[clip] for clip in read_json(run / "generate" / "clips.json")])


def _generated(run: Path, prepared: Prepared) -> _Sets:
    """Generated videos beside the blurry and the nearest ones of the same clips; whole, fused, with paths left out."""
    made, test = run / "generate", prepared.test
    rows = _with_video(run, test)

    def videos(condition: str) -> VideoSource:
        """At the times and the size of the film's frames: of 16 frames, those that stand nearest to its 6."""
        return aligned(_videos(made / f"{condition}.safetensors", "videos"), test.n_frames, *test.frames.shape[3:])

    names = {"decoded": "neuroclips", "fused": "neuroclips, fused"}
    names |= {slug: f"neuroclips, {slug.replace('-', ' ')}" for slug in ABLATIONS}
    quick = run / "reconstruct" / "videos.safetensors"
    no_brain = {"no brain": videos("no-brain")} if (made / "no-brain.safetensors").exists() else {}
    return _Sets(
        rows,
        {name: videos(slug) for slug, name in names.items() if (made / f"{slug}.safetensors").exists()},
        {**_still(prepared, len(rows)), **no_brain},
        [videos(f"shuffled-{s}") for s in range(len(list(made.glob("shuffled-*.safetensors"))))],
        {name: _videos(quick, name).take(rows) for name in read_arrays(quick)},
        videos("ceiling"),
    )


def _score_sets(
    recipe: Recipe, sets: _Sets, prepared: Prepared, judges: Sequence[Judge], n_repeats: int, report: Report
) -> list[Scored]:
    """Pixels, motion, and what every judge sees: each set is looked at once, whatever it stands beside."""
    of_these = prepared.test.take(sets.rows)
    shared = _shared(recipe, of_these, n_repeats)
    what = ", ".join(sets.methods)
    measured = measure_videos(
        {**sets.floors, **sets.baselines, **sets.methods, "shuffled": sets.shuffled, "ceiling": sets.ceiling},
        of_these.frames, frames_shuffled=list(sets.methods), seed=recipe.seed,
        progress=lambda done, total: report(done, total, f"pixels and motion, {what}"),
    )  # fmt: skip
    floors = [*sets.floors, "shuffled"]
    parts = [
        score_measured(
            name, measured[name], floors={k: measured[k] for k in floors}, ceiling=measured["ceiling"],
            baselines={k: measured[k] for k in sets.baselines}, **shared,
        )
        for name in sets.methods
    ]  # fmt: skip
    for judge in judges:
        consecutive = _is_small(judge, prepared.test)
        report(0, 1, f"{judge.name}, {what}")
        look = partial(judge.look, frames=None if consecutive else LOOKS)
        seen: dict[str, Any] = {
            name: look(videos)
            for name, videos in {**sets.methods, **sets.floors, **sets.baselines, "ceiling": sets.ceiling}.items()
        }
        seen["shuffled"] = [look(videos) for videos in sets.shuffled]
        truth, film = look(of_these.frames), look(prepared.train.frames[:: max(1, len(prepared.train) // 200)])
        parts += [
            score_judged(
                name, seen[name], truth, judge=judge.name, reference=film.features.mean(axis=(0, 1)),
                floors={k: seen[k] for k in floors}, baselines={k: seen[k] for k in sets.baselines},
                ceiling=seen["ceiling"], consecutive=consecutive, **shared, **_placed(recipe, of_these),
            )
            for name in sets.methods
        ]  # fmt: skip
    return parts


def _is_small(judge: Judge, test: Clips) -> bool:
    return max(judge.size) <= test.frames.shape[-1]


def _score_captions(run: Path, recipe: Recipe, test: Clips, n_repeats: int) -> list[Scored]:
    """Is a clip found by what its caption says? Among the captions that the truth's own tokens get."""
    of_these, captions = test.take(_with_video(run, test)), read_json(run / "generate" / "captions.json")
    try:
        said = {name: text_features(texts) for name, texts in captions.items()}
    except MissingExtraError:
        return []
    shuffled: list[Features] = [
        said[f"shuffled-{s}"] for s in range(sum(name.startswith("shuffled-") for name in said))
    ]
    goal = said["ceiling"]
    return [
        score_identification(
            "caption", said["decoded"], goal, reference=goal.mean(axis=0), space=TEXT_JUDGE,
            floors={"shuffled": shuffled}, ceiling=correlation_scores(goal, goal, goal.mean(axis=0)),
            **_shared(recipe, of_these, n_repeats), **_placed(recipe, of_these),
        )
    ]  # fmt: skip


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
