"""What each stage of a run does: read its parents' directories, write its own, return what its card should say.

Every function takes (run directory, own directory, recipe, console). The order, keys and cards are ``pipeline``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from neuroclips.artefacts import (
    in_parts,
    read_arrays,
    read_card,
    read_json,
    rows_written,
    stable_seed,
    write_arrays,
    write_json,
)
from neuroclips.data import prepare as data
from neuroclips.data.clips import Targets, TestClips
from neuroclips.data.frames import write_clip_video
from neuroclips.data.prepared import load_clips
from neuroclips.data.source import Source
from neuroclips.data.study import open_source
from neuroclips.decoders import Decoders
from neuroclips.decoders.ridge import RidgeDecoders
from neuroclips.evaluation.floors import shuffled_orders
from neuroclips.pretrained.registry import resolve, weights_of
from neuroclips.recipe import Recipe
from neuroclips.reconstructor import CLIPS_AT_ONCE, Reconstructor
from neuroclips.report.from_run import data_page, report_data
from neuroclips.report.page import write_report
from neuroclips.targets import write_targets
from neuroclips.training import processes
from neuroclips.training.decoders import NeuralDecoders, pick_device, resolve_decoders
from neuroclips.training.end_to_end import EndToEndDecoders
from neuroclips.training.switches import switches
from neuroclips.video.guidance import Guidance, VideoGenerator

SPLITS = ("train", "validation", "test")
Report = Callable[[int, int, str], None]
Guided = Iterator[tuple[slice, Guidance]]  # some clips at a time
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


def weights_named(recipe: Recipe, stage: str) -> list[str | None]:
    """Weights that a stage reads, as the recipe names them."""
    chosen, networks, video = recipe.targets, recipe.decoders.networks, recipe.generate.video
    trained = "end-to-end" in recipe.decoders.methods
    named: dict[str, list[str | None]] = {
        "targets": [chosen.vae, chosen.clip, chosen.captions],
        "fit": [networks.initial, networks.text_projector] if trained else [],
        "generate": [] if video is None else [video.video, video.keyframe, video.caption],
    }
    return named.get(stage, [])


def weights_hashes(recipe: Recipe) -> dict[str, str]:
    """Hashes of the frozen networks' weights: new weights make old targets stale."""
    hashes: dict[str, str] = {}
    for kind in ("vae", "clip"):
        folder = resolve(getattr(recipe.targets, kind), kind)
        hashes |= {f"{kind}/{name}": found for name, found in weights_of(folder).items()}
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
    return Targets.of(read_arrays(folder / f"{split}.safetensors"), text)


def decoder_weights(recipe: Recipe) -> dict[str, str]:
    """Hashes of what decoders start from: new weights make old decoders stale. Switches that do not exist are met here,
    too, before any work."""
    chosen = recipe.decoders
    switches(chosen.preset, **chosen.switches)
    hashes: dict[str, str] = {}
    if "neural" in chosen.methods and chosen.pretrained is not None:
        hashes |= weights_of(resolve_decoders(chosen.pretrained))
    if "end-to-end" in chosen.methods:
        for name, kind, holds in (
            (chosen.networks.initial, "mindeye2", "semantics.safetensors"),
            (chosen.networks.text_projector, "text-projector", "projector.safetensors"),
        ):
            if name is not None:
                hashes |= weights_of(resolve(name, kind, holds=holds))
    return hashes


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
                if not processes.is_main():
                    continue
                decoders = RidgeDecoders(recipe.ridge.alphas, recipe.ridge.targets_batch, own / method)
            else:
                shared: dict[str, Any] = dict(
                    preset=chosen.preset, changes=chosen.switches, epochs=chosen.epochs,
                    prior_draws=chosen.prior_draws, seed=recipe.seed, device=chosen.device, checkpoints=own,
                    progress=report,
                )  # fmt: skip
                if method == "neural":
                    decoders = NeuralDecoders(chosen.pretrained, **shared)
                else:
                    decoders = EndToEndDecoders(chosen.networks, **shared)
            reconstructor = Reconstructor(recipe.targets.vae, recipe.targets.clip, decoders)
            reconstructor.fit(prepared.train, prepared.validation, targets, seen)
            if not processes.is_main():
                continue
            summaries[method] = reconstructor.save(
                own / method, films=run / "films" / "train.safetensors", targets=run / "targets" / "train.safetensors"
            )
    processes.wait()
    for left in own.glob(".*.checkpoint.pt") if processes.is_main() else ():
        left.unlink()
    return summaries


def reconstruct(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Decode the test clips: guidance for each number of repeats, videos, and the controls without the right fMRI.

    METHOD-R.safetensors : latents and tokens (and the prior's), from the mean of R repeats; in single precision, as a
        decoder that is unsure hardly moves from the mean of all clips.
    METHOD-noise.safetensors : the same through the same frozen pipeline, of Gaussian noise in place of the fMRI;
        METHOD-wrong-subject.safetensors : of another subject's fMRI, where the recipe names one.
    shuffled.safetensors : ``orders`` (S, B), whose fMRI every clip gets in S shuffles, always another scene's. Decoders
        and the generators below hear every clip by itself, so what they make of shuffled fMRI is what they make of the
        fMRI, shuffled: it is read in that order (``artefacts.Rows``), and takes no room.
    videos.safetensors, videos-noise.safetensors, videos-wrong-subject.safetensors, videos-ceiling.safetensors : one
        array (B, F, 3, H, W) uint8 a generator, from the most repeats and the last method; the ceiling is given the
        truth's own latents and tokens.
    videos-baseline.safetensors : the generators of latents, given those of ridge, where another method made the videos.
    NAME/CLIP.mp4 : the videos, to watch.
    """
    prepared = load_clips(run / "prepare")
    test, methods = prepared.test, recipe.decoders.methods
    repeats = repeats_of(recipe, test.bold.shape[1])
    orders = shuffled_orders(test.scene, recipe.seed, recipe.evaluate.shuffles)
    write_arrays(own / "shuffled.safetensors", {"orders": np.stack(orders)})
    floors: dict[str, TestClips | None] = {"noise": None}
    if prepared.wrong_subject is not None:
        floors["wrong-subject"] = prepared.wrong_subject
    with progress_bar(console) as report:
        total, done = len(methods) * (len(repeats) + len(floors)) + 1, 0

        def make(what: str, parts: Guided, kept: Path | None, videos: str, using: Sequence[VideoGenerator]) -> None:
            """Write the guidance, some clips at a time, and the videos that generators make of it."""
            nonlocal done
            with ExitStack() as files:
                keep = None if kept is None else files.enter_context(rows_written(kept, len(test)))
                show = files.enter_context(rows_written(own / f"{videos}.safetensors", len(test))) if using else None
                for rows, guidance in parts:
                    report(done, total, f"{what}, clip {rows.start}")
                    if keep is not None:
                        keep(rows, _arrays(guidance))
                    if show is not None:
                        show(rows, {g.name: g.generate(guidance, seed=recipe.seed) for g in using})
            done += 1

        for method in methods:
            reconstructor = Reconstructor.load(run / "fit" / method, device=str(pick_device(recipe.decoders.device)))
            last, rng = method == methods[-1], np.random.default_rng(stable_seed(recipe.seed, "Gaussian fMRI"))
            names = [n for n in recipe.generate.generators if last or (method == "ridge" and n == "blurry")]
            generators = [reconstructor.generator(name) for name in names]
            for k in repeats:
                inputs = reconstructor.decoders.inputs(test, k)
                make(
                    f"{method}, {k} repeats", reconstructor.decoded(inputs, test.ids),
                    own / f"{method}-{k}.safetensors", "videos" if last else "videos-baseline",
                    generators if k == repeats[-1] else [],
                )  # fmt: skip
            for name, other in floors.items():
                if other is None:
                    given = rng.standard_normal(inputs.shape, np.float32)
                else:
                    given = reconstructor.decoders.inputs(other, None)
                make(
                    f"{method}, {name}", reconstructor.decoded(given, test.ids), own / f"{method}-{name}.safetensors",
                    f"videos-{name}", generators if last else [],
                )  # fmt: skip
        make("ceiling", _told(test, load_targets(run, "test")), None, "videos-ceiling", generators)
    if not names:
        write_arrays(own / "videos.safetensors", {})
    for name, shown in read_arrays(own / "videos.safetensors").items():
        for clip, video in zip(test.ids, shown):
            write_clip_video(own / name / f"{clip.replace('/', '_')}.mp4", video, test.t_r)
    return {"generators": names, "methods": list(methods), "repeats": repeats, "shuffles": len(orders)}


def _told(test: TestClips, true: Targets) -> Guided:
    """Guidance as it would be if the brain had told everything, some clips at a time."""
    for rows in in_parts(len(test), CLIPS_AT_ONCE, true.latents, true.tokens):
        latents, tokens = (np.asarray(part[rows], np.float32) for part in (true.latents, true.tokens))
        yield rows, Guidance(test.ids[rows], latents=latents, tokens=tokens)


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
