"""What each stage of a run does: read its parents' directories, write its own, return what its card should say.

Every function takes (run directory, own directory, recipe, console). The order, keys and cards are ``pipeline``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
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
)
from neuroclips.data import prepare as data
from neuroclips.data.clips import Targets
from neuroclips.data.frames import write_clip_video
from neuroclips.data.prepared import load_clips
from neuroclips.data.source import Source
from neuroclips.data.study import open_source
from neuroclips.decoders import Decoders
from neuroclips.decoders.ridge import RidgeDecoders
from neuroclips.evaluation.floors import shuffled_orders
from neuroclips.pretrained.registry import resolve
from neuroclips.recipe import Recipe
from neuroclips.reconstructor import Reconstructor
from neuroclips.report.from_run import data_page, report_data
from neuroclips.report.page import write_report
from neuroclips.targets import write_targets
from neuroclips.training.decoders import NeuralDecoders, resolve_decoders
from neuroclips.video.guidance import Guidance, VideoGenerator

SPLITS = ("train", "validation", "test")
Report = Callable[[int, int, str], None]
ABLATIONS: dict[str, dict[str, Any]] = {  # settings of video; the paper's table 2, without motion, and none at all
    "without-keyframe": {"paths": ("alpha", "gamma")},
    "without-blurry-video": {"paths": ("beta", "gamma")},
    "without-caption": {"paths": ("alpha", "beta")},
    "without-motion": {"motion_gain": 0.0},
    "no-brain": {"paths": ()},
}


@contextmanager
def progress_bar(console: Console) -> Iterator[Report]:
    """A bar with time left, driven by ``report(done, total, what)``."""
    columns = (TextColumn("  {task.description:<28.28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def count_opening(run: Path) -> int:
    """How many times this run's decoding has been compared with its test split, this one included."""
    path = run / "test_split_opened.json"
    count = read_json(path)["times"] + 1 if path.exists() else 1
    write_json(path, {"times": count})
    return count


def source_files(path: Path | None) -> dict[str, list[int]]:
    """Size and time of change (ns) of a file of the user's, or of all in a folder: new ones make old results stale."""
    if path is None:
        return {}
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.exists() else []
    return {str(p): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}


def selection_files(recipe: Recipe) -> dict[str, list[int]]:
    """The files that select voxels."""
    chosen = recipe.data.selection
    return source_files(chosen.mask) | source_files(chosen.atlas) | source_files(chosen.atlas_labels)


def simulate(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Make the film, and a subject who watches it. The truth goes to ``truth/``; only ``observe`` reads it."""
    from neuroclips.simulation.study import simulate_study  # late: needs the optional extra 'demo'

    assert recipe.film is not None
    with progress_bar(console) as report:
        return simulate_study(
            recipe.film, recipe.brain, own, seed=recipe.seed, wrong_subject=recipe.data.wrong_subject, progress=report
        )


def _source(run: Path, recipe: Recipe, report: Report | None = None) -> Source:
    return open_source(recipe.data.root or run / "simulate" / "video_fmri_dataset", recipe.data, report)


def look(run: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Every film and scan that is read, with its size and time; zips are unpacked first. New files make old results
    stale, so this is asked in every run: it takes seconds."""
    with progress_bar(console) as report:
        return _source(run, recipe, report).identity(times=recipe.film is None)


def survey(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """What is there: films.json, training.json and scans.json name every file that the next stages read."""
    source = _source(run, recipe)
    for name, files in source.identity(times=recipe.film is None).items():  # a simulation has its own stage's hashes
        write_json(own / f"{name}.json", files)
    runs = sum(len(segment.runs) for split in SPLITS for segment in source.splits[split])
    films = sum(len(source.splits[split]) for split in SPLITS)
    return {"scans": runs, "films": films, "t_r": source.t_r, "space": source.space, "warnings": source.warnings}


def films(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """The clips of every film."""
    with progress_bar(console) as report:
        return data.prepare_films(_source(run, recipe), recipe.data, own, report)


def reliability(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """How alike the repeats of training scans are, at every voxel."""
    with progress_bar(console) as report:
        return data.measure_reliability(_source(run, recipe), own, report)


def prepare(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Voxels selected, and every scan cleaned at these voxels; ``data.html`` is the page of what was found."""
    with progress_bar(console) as report:
        source = _source(run, recipe)
        summary = data.prepare_bold(source, recipe.data, run / "films", run / "reliability", own, report)
    write_report(own / "data.html", data_page(run, recipe, summary))
    return summary


def weights_hashes(recipe: Recipe) -> dict[str, str]:
    """Hashes of the frozen networks' weights: new weights make old targets stale."""
    hashes: dict[str, str] = {}
    for kind in ("vae", "clip"):
        folder = resolve(getattr(recipe.targets, kind), kind)
        hashes |= {f"{kind}/{p.name}": file_hash(p) for p in sorted(folder.glob("*.safetensors"))}
    return hashes


def targets(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """What the frozen networks see in every clip, computed once: of films, whatever the scans are."""
    with progress_bar(console) as report:
        shapes = write_targets(run / "films", own, recipe.targets, report)
    return {"shapes": shapes, "weights": weights_hashes(recipe)}


def load_targets(run: Path, split: str) -> Targets:
    """What the stage ``targets`` computed for a split."""
    folder = run / "targets"
    text = read_arrays(folder / "text.safetensors")[split] if (folder / "text.safetensors").exists() else None
    return Targets(**read_arrays(folder / f"{split}.safetensors"), text=text)


def decoder_weights(recipe: Recipe) -> dict[str, str]:
    """Hashes of what subjects share: new weights make old decoders stale."""
    if "neural" not in recipe.decoders.methods or recipe.decoders.pretrained is None:
        return {}
    folder = resolve_decoders(recipe.decoders.pretrained)
    return {p.name: file_hash(p) for p in sorted(folder.glob("*.safetensors"))}


def fit(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Fit the decoders of every method on training clips: METHOD/ holds a reconstructor."""
    prepared = load_clips(run / "prepare")
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
        scene, stacked over S shuffles. METHOD-noise.safetensors : likewise, of Gaussian noise in place of the fMRI;
        METHOD-wrong-subject.safetensors : of another subject's fMRI, where the recipe names one.
    videos.safetensors, videos-shuffled.safetensors, videos-noise.safetensors, videos-wrong-subject.safetensors,
    videos-ceiling.safetensors : one array (..., B, F, 3, H, W) uint8 a generator, from the most repeats and the last
        method; the ceiling is given the truth's own latents and tokens.
    videos-baseline.safetensors : the generators of latents, given those of ridge, where another method made the videos.
    NAME/CLIP.mp4 : the videos, to watch.
    """
    prepared = load_clips(run / "prepare")
    test, methods = prepared.test, recipe.decoders.methods
    reconstructors = {method: Reconstructor.load(run / "fit" / method) for method in methods}
    main = reconstructors[methods[-1]]
    generators = [main.generator(name) for name in recipe.generate.generators]
    repeats = repeats_of(recipe, test.bold.shape[1])
    orders = shuffled_orders(test.scene, recipe.seed, recipe.evaluate.shuffles)
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
    floors: dict[str, Guidance] = {}  # of the last method: it makes the videos
    for method, reconstructor in reconstructors.items():
        rng = np.random.default_rng(stable_seed(recipe.seed, "Gaussian fMRI"))
        like = reconstructor.decoders.inputs(test, repeats[-1])
        given = {"noise": rng.standard_normal(like.shape, np.float32)}
        if prepared.wrong_subject is not None:
            given["wrong-subject"] = reconstructor.decoders.inputs(prepared.wrong_subject, None)
        for name, inputs in given.items():
            floors[name] = reconstructor.decode(inputs, test.ids)
            write_arrays(own / f"{method}-{name}.safetensors", _arrays(floors[name]))
    true = load_targets(run, "test")
    best = Guidance(test.ids, np.asarray(true.latents, np.float32), np.asarray(true.tokens, np.float32))
    baseline = [g for g in generators if g.name == "blurry" and "ridge" in methods[:-1]]
    with progress_bar(console) as report:
        total, done = len(generators) * (2 + len(floors) + len(shuffled)) + len(baseline), 0

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
        for name, guidance in floors.items():
            write_arrays(own / f"videos-{name}.safetensors", generate(name, guidance, generators))
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

    prepared = load_clips(run / "prepare")
    repeats = repeats_of(recipe, prepared.test.bold.shape[1])
    truth, mask, delay = run / "simulate" / "truth", np.asarray(prepared.mask), prepared.delay_trs
    found = {
        f"repeats-{k}": identification_scores(prepared.test, mask, truth, delay_trs=delay, n_repeats=k) for k in repeats
    }
    write_arrays(own / "similarity.safetensors", found)
    return {"repeats": repeats}


def report(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """The page of the run, ``report.html``."""
    names = (
        "simulate",
        "survey",
        "films",
        "reliability",
        "prepare",
        "targets",
        "fit",
        "reconstruct",
        "generate",
        "curves",
        "maps",
        "observe",
        "evaluate",
    )
    cards = {name: card for name in names if (card := read_card(run / name)) is not None}
    page = report_data(run, recipe, cards)
    write_report(own / "report.html", page)
    return {"clips": len(page.clips)}
