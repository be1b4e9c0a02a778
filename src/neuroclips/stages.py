"""What each stage of a run does: read its parents' directories, write its own, return what its card should say.

Every function takes (run directory, own directory, recipe, console). The order, keys and cards are ``pipeline``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from neuroclips.decoders.ridge import RidgeDecoder
from neuroclips.evaluation.floors import mean_frame_videos, mean_video_videos, shuffle_across_scenes
from neuroclips.evaluation.identification import correlation_scores
from neuroclips.evaluation.scores import Scored, score_identification, score_videos
from neuroclips.evaluation.table import write_scores
from neuroclips.pretrained.registry import resolve
from neuroclips.recipe import Recipe
from neuroclips.reconstructor import Reconstructor
from neuroclips.report.from_run import report_data
from neuroclips.report.page import write_report
from neuroclips.video.guidance import Guidance

SPLITS = ("train", "validation", "test")
Report = Callable[[int, int, str], None]


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


def _load_targets(run: Path, split: str) -> Targets:
    return Targets(**read_arrays(run / "targets" / f"{split}.safetensors"))


def fit(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Fit the decoders on training clips."""
    prepared = data.load_clips(run / "prepare")
    perception, semantics = (RidgeDecoder(recipe.ridge.alphas, recipe.ridge.targets_batch) for _ in range(2))
    reconstructor = Reconstructor(recipe.targets.vae, recipe.targets.clip, perception, semantics)
    reconstructor.fit(
        prepared.train, prepared.validation, _load_targets(run, "train"), _load_targets(run, "validation")
    )
    return reconstructor.save(own)


def reconstruct(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Decode the test clips: guidance for each number of repeats, videos, and the controls with shuffled fMRI.

    guidance-R.safetensors : latents and tokens from the mean of R repeats.
    shuffled-R.safetensors : the same through the same frozen pipeline, where every clip got the fMRI of another scene,
        stacked over S shuffles.
    videos.safetensors, videos-shuffled.safetensors, videos-ceiling.safetensors : one array (..., B, F, 3, H, W) uint8 a
        generator, from the most repeats; the ceiling is given the truth's own latents and tokens.
    NAME/CLIP.mp4 : the videos, to watch.
    """
    test = data.load_clips(run / "prepare").test
    reconstructor = Reconstructor.load(run / "fit")
    generators = [reconstructor.generator(name) for name in recipe.generate.generators]
    repeats = repeats_of(recipe, test.bold.shape[1])
    orders = [
        shuffle_across_scenes(test.scene, np.random.default_rng(stable_seed(recipe.seed, "shuffled fMRI", s)))
        for s in range(recipe.evaluate.shuffles)
    ]
    guidance: Guidance
    shuffled: list[Guidance]
    for k in repeats:
        responses = test.responses(k)
        guidance = reconstructor.decode(responses, test.ids)
        shuffled = [reconstructor.decode(responses[order], test.ids) for order in orders]
        write_arrays(own / f"guidance-{k}.safetensors", _arrays(guidance))
        parts = [_arrays(g) for g in shuffled]
        write_arrays(own / f"shuffled-{k}.safetensors", {name: np.stack([p[name] for p in parts]) for name in parts[0]})
    true = _load_targets(run, "test")
    best = Guidance(test.ids, np.asarray(true.latents, np.float32), np.asarray(true.tokens, np.float32))
    with progress_bar(console) as report:
        total, done = len(generators) * (2 + len(shuffled)), 0

        def generate(what: str, given: Guidance) -> dict[str, np.ndarray]:
            nonlocal done
            videos = {}
            for generator in generators:
                report(done, total, f"{generator.name}, {what}")
                videos[generator.name] = generator.generate(given, seed=recipe.seed)
                done += 1
            return videos

        videos = generate("decoded", guidance)
        write_arrays(own / "videos.safetensors", videos)
        write_arrays(own / "videos-ceiling.safetensors", generate("ceiling", best))
        controls = [generate("shuffled fMRI", g) for g in shuffled]
        stacked = {name: np.stack([c[name] for c in controls]) for name in videos}
        write_arrays(own / "videos-shuffled.safetensors", stacked)
    for name, array in videos.items():
        for clip, video in zip(test.ids, array):
            write_clip_video(own / name / f"{clip.replace('/', '_')}.mp4", video, test.t_r)
    return {"generators": list(videos), "repeats": repeats, "shuffles": len(orders)}


def _arrays(guidance: Guidance) -> dict[str, np.ndarray]:
    assert guidance.latents is not None
    assert guidance.tokens is not None
    return {"latents": guidance.latents, "tokens": guidance.tokens}


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
    parts: list[Scored] = []
    with progress_bar(console) as report:
        total, done = 2 * len(n_repeats) + len(recipe.generate.generators), 0
        for k in reversed(n_repeats):
            ceiling, ceiling_name = _identification_ceiling(run, test, k)
            for space in ("tokens", "latents"):
                report(done, total, f"identification, {space}")
                done += 1
                parts.append(
                    score_identification(
                        "ridge",
                        read_arrays(made / f"guidance-{k}.safetensors")[space],
                        getattr(_load_targets(run, "test"), space),
                        reference=np.asarray(getattr(_load_targets(run, "train"), space), np.float32).mean(axis=0),
                        segment=test.segment,
                        onset=test.onset,
                        floors={"shuffled": list(read_arrays(made / f"shuffled-{k}.safetensors")[space])},
                        ceiling=ceiling,
                        exclude_seconds=recipe.evaluate.exclude_seconds,
                        space=space,
                        n_repeats=k,
                        **shared,
                    )
                )
        floors: dict[str, Any] = {
            "mean frame": mean_frame_videos(prepared.train.frames, len(test)),
            "mean video": mean_video_videos(prepared.train.frames, len(test)),
        }
        for name in recipe.generate.generators:
            report(done, total, f"pixels, {name}")
            done += 1
            of_generator = {
                **floors,
                "shuffled": list(read_arrays(made / "videos-shuffled.safetensors")[name]),
            }
            parts.append(
                score_videos(
                    name,
                    read_arrays(made / "videos.safetensors")[name],
                    test.frames,
                    floors=of_generator,
                    ceiling=read_arrays(made / "videos-ceiling.safetensors")[name],
                    n_repeats=n_repeats[-1],
                    **shared,
                )
            )
    scores = [score for part in parts for score in part.scores]
    write_scores(own / "scores.json", scores)
    per_clip = pd.concat(
        [part.per_clip.assign(n_repeats=part.scores[0].n_repeats) for part in parts], ignore_index=True
    )
    with written_aside(own / "per_clip.parquet") as aside:
        per_clip.to_parquet(aside)
    return {"rows": len(scores), "ceiling": ceiling_name, "test_split_opened": _count_opening(run)}


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
    names = ("simulate", "prepare", "targets", "fit", "reconstruct", "observe", "evaluate")
    cards = {name: card for name in names if (card := read_card(run / name)) is not None}
    page = report_data(run, recipe, cards)
    write_report(own / "report.html", page)
    return {"clips": len(page.clips)}
