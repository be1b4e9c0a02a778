"""What each stage of a run does: read its parents' directories, write its own, return what its card should say.

Every function takes (run directory, own directory, recipe, console). The order, keys and cards are ``pipeline``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from neuroclips.artefacts import (
    file_hash,
    read_arrays,
    read_card,
    read_json,
    stable_seed,
    write_arrays,
    write_json,
    written_aside,
)
from neuroclips.data import prepare as data
from neuroclips.data.clips import Clips, Targets
from neuroclips.data.frames import write_clip_video
from neuroclips.decoders import Decoders
from neuroclips.decoders.ridge import RidgeDecoders
from neuroclips.evaluation.floors import mean_frame_videos, mean_video_videos, shuffle_across_scenes
from neuroclips.evaluation.identification import correlation_scores
from neuroclips.evaluation.judges import JUDGE, judge_features, judge_is_here
from neuroclips.evaluation.scores import Scored, score_agreement, score_identification, score_videos
from neuroclips.evaluation.seams import continues_scene, decision_scores, seam_score
from neuroclips.evaluation.table import Score, write_scores
from neuroclips.pretrained.registry import resolve
from neuroclips.recipe import Recipe
from neuroclips.reconstructor import Reconstructor
from neuroclips.report.from_run import report_data
from neuroclips.report.page import write_report
from neuroclips.training.decoders import NeuralDecoders, resolve_decoders
from neuroclips.video.guidance import Guidance, VideoGenerator

SPLITS = ("train", "validation", "test")
Report = Callable[[int, int, str], None]
GuidancePath = Literal["alpha", "beta", "gamma"]
ABLATIONS: dict[str, tuple[GuidancePath, ...]] = {  # of what was decoded; as the paper's table 2, and none at all
    "without-keyframe": ("alpha", "gamma"),
    "without-blurry-video": ("beta", "gamma"),
    "without-caption": ("alpha", "beta"),
    "no-brain": (),
}


@contextmanager
def progress_bar(console: Console) -> Iterator[Report]:
    """A bar with time left, driven by ``report(done, total, what)``."""
    columns = (TextColumn("  {task.description:<28.28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def source_files(folder: Path | None) -> dict[str, list[int]]:
    """Size and time of change (ns) of every file of the user's below ``folder``: new ones make old results stale."""
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder is not None else []
    return {str(p): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}


def simulate(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Make the film, and a subject who watches it. The truth goes to ``truth/``; only ``observe`` reads it."""
    from neuroclips.simulation.study import simulate_study  # late: needs the optional extra 'demo'

    assert recipe.film is not None
    with progress_bar(console) as report:
        return simulate_study(recipe.film, recipe.brain, own, seed=recipe.seed, progress=report)


def prepare(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """From scans and films to arrays."""
    root = recipe.data.root or run / "simulate" / "video_fmri_dataset"
    with progress_bar(console) as report:
        return data.prepare(root, recipe.data, own, progress=report)


def weights_hashes(recipe: Recipe) -> dict[str, str]:
    """Hashes of the frozen networks' weights: new weights make old targets stale."""
    hashes: dict[str, str] = {}
    for kind in ("vae", "clip"):
        folder = resolve(getattr(recipe.targets, kind), kind)
        hashes |= {f"{kind}/{p.name}": file_hash(p) for p in sorted(folder.glob("*.safetensors"))}
    return hashes


def targets(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """What the frozen networks see in every clip, computed once."""
    prepared = data.load_clips(run / "prepare")
    reconstructor = Reconstructor(recipe.targets.vae, recipe.targets.clip)
    shapes = {}
    with progress_bar(console) as report:
        for number, split in enumerate(SPLITS):
            report(number, len(SPLITS), split)
            found = reconstructor.targets(getattr(prepared, split))
            write_arrays(own / f"{split}.safetensors", {"latents": found.latents, "tokens": found.tokens})
            shapes[split] = {"latents": found.latents.shape, "tokens": found.tokens.shape}
    return {"shapes": shapes, "weights": weights_hashes(recipe)}


def load_targets(run: Path, split: str) -> Targets:
    """What the stage ``targets`` computed for a split."""
    return Targets(**read_arrays(run / "targets" / f"{split}.safetensors"))


def decoder_weights(recipe: Recipe) -> dict[str, str]:
    """Hashes of what subjects share: new weights make old decoders stale."""
    if "neural" not in recipe.decoders.methods or recipe.decoders.pretrained is None:
        return {}
    folder = resolve_decoders(recipe.decoders.pretrained)
    return {p.name: file_hash(p) for p in sorted(folder.glob("*.safetensors"))}


def fit(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Fit the decoders of every method on training clips: METHOD/ holds a reconstructor."""
    prepared = data.load_clips(run / "prepare")
    targets, seen = load_targets(run, "train"), load_targets(run, "validation")
    summaries: dict[str, Any] = {}
    chosen = recipe.decoders
    with progress_bar(console) as report:
        for number, method in enumerate(chosen.methods):
            report(number, len(chosen.methods), method)
            decoders: Decoders
            if method == "ridge":
                decoders = RidgeDecoders(recipe.ridge.alphas, recipe.ridge.targets_batch)
            else:
                decoders = NeuralDecoders(
                    chosen.pretrained, preset=chosen.preset, epochs=chosen.epochs, prior_draws=chosen.prior_draws,
                    seed=recipe.seed, device=chosen.device, checkpoints=own, progress=report,
                )  # fmt: skip
            reconstructor = Reconstructor(recipe.targets.vae, recipe.targets.clip, decoders)
            reconstructor.fit(prepared.train, prepared.validation, targets, seen)
            summaries[method] = reconstructor.save(own / method)
    for left in own.glob(".*.checkpoint.pt"):
        left.unlink()
    return summaries


def reconstruct(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Decode the test clips: guidance for each number of repeats, videos, and the controls with shuffled fMRI.

    METHOD-R.safetensors : latents and tokens (and the prior's) from the mean of R repeats.
    METHOD-R-shuffled.safetensors : the same through the same frozen pipeline, where every clip got the fMRI of another
        scene, stacked over S shuffles.
    videos.safetensors, videos-shuffled.safetensors, videos-ceiling.safetensors : one array (..., B, F, 3, H, W) uint8 a
        generator, from the most repeats and the last method; the ceiling is given the truth's own latents and tokens.
    videos-baseline.safetensors : the generators of latents, given those of ridge, where another method made the videos.
    NAME/CLIP.mp4 : the videos, to watch.
    """
    test = data.load_clips(run / "prepare").test
    methods = recipe.decoders.methods
    reconstructors = {method: Reconstructor.load(run / "fit" / method) for method in methods}
    main = reconstructors[methods[-1]]
    generators = [main.generator(name) for name in recipe.generate.generators]
    repeats = repeats_of(recipe, test.bold.shape[1])
    orders = [
        shuffle_across_scenes(test.scene, np.random.default_rng(stable_seed(recipe.seed, "shuffled fMRI", s)))
        for s in range(recipe.evaluate.shuffles)
    ]
    decoded: dict[str, Guidance] = {}
    shuffled: list[Guidance] = []
    for k in repeats:
        for method, reconstructor in reconstructors.items():
            inputs = reconstructor.decoders.inputs(test, k)
            decoded[method] = reconstructor.decode(inputs, test.ids)
            shuffled = [reconstructor.decode(inputs[order], test.ids) for order in orders]
            write_arrays(own / f"{method}-{k}.safetensors", _arrays(decoded[method]))
            parts = [_arrays(g) for g in shuffled]
            stacked = {name: np.stack([p[name] for p in parts]) for name in parts[0]}
            write_arrays(own / f"{method}-{k}-shuffled.safetensors", stacked)
    true = load_targets(run, "test")
    best = Guidance(test.ids, np.asarray(true.latents, np.float32), np.asarray(true.tokens, np.float32))
    baseline = [g for g in generators if g.name == "blurry" and "ridge" in methods[:-1]]
    with progress_bar(console) as report:
        total, done = len(generators) * (2 + len(shuffled)) + len(baseline), 0

        def generate(what: str, given: Guidance, using: Sequence[VideoGenerator]) -> dict[str, np.ndarray]:
            nonlocal done
            videos = {}
            for generator in using:
                report(done, total, f"{generator.name}, {what}")
                videos[generator.name] = generator.generate(given, seed=recipe.seed)
                done += 1
            return videos

        videos = generate("decoded", decoded[methods[-1]], generators)
        write_arrays(own / "videos.safetensors", videos)
        write_arrays(own / "videos-ceiling.safetensors", generate("ceiling", best, generators))
        if baseline:
            write_arrays(own / "videos-baseline.safetensors", generate("ridge", decoded["ridge"], baseline))
        controls = [generate("shuffled fMRI", g, generators) for g in shuffled]
        stacked = {name: np.stack([c[name] for c in controls]) for name in videos}
        write_arrays(own / "videos-shuffled.safetensors", stacked)
    for name, array in videos.items():
        for clip, video in zip(test.ids, array):
            write_clip_video(own / name / f"{clip.replace('/', '_')}.mp4", video, test.t_r)
    return {"generators": list(videos), "methods": list(methods), "repeats": repeats, "shuffles": len(orders)}


def _arrays(guidance: Guidance) -> dict[str, np.ndarray]:
    parts = {name: getattr(guidance, name) for name in ("latents", "tokens", "prior_tokens")}
    return {name: array for name, array in parts.items() if array is not None}


def repeats_of(recipe: Recipe, available: int) -> list[int]:
    """The numbers of test repeats to average: those asked for that exist, and always all of them, ascending."""
    return sorted({k for k in recipe.generate.test_repeats if k < available} | {available})


def observe(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """The ideal observer, who knows the simulated brain: similarity (B, B) of each test clip's scans to every clip."""
    from neuroclips.simulation.observer import identification_scores  # late: needs the optional extra 'demo'

    prepared = data.load_clips(run / "prepare")
    repeats = repeats_of(recipe, prepared.test.bold.shape[1])
    truth, mask, delay = run / "simulate" / "truth", np.asarray(prepared.mask), prepared.delay_trs
    found = {
        f"repeats-{k}": identification_scores(prepared.test, mask, truth, delay_trs=delay, n_repeats=k) for k in repeats
    }
    write_arrays(own / "similarity.safetensors", found)
    return {"repeats": repeats}


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


def report(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """The page of the run, ``report.html``."""
    names = ("simulate", "prepare", "targets", "fit", "reconstruct", "generate", "observe", "evaluate")
    cards = {name: card for name in names if (card := read_card(run / name)) is not None}
    page = report_data(run, recipe, cards)
    write_report(own / "report.html", page)
    return {"clips": len(page.clips)}
