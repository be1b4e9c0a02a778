"""A population to learn from: other simulated subjects, who watch endless film.

NeuroClips starts from MindEye2's weights, which saw seven people before the one to be decoded. This is their stand-in:
subjects with brains, voxels and noise of their own, none of them a demo's. Each has 30 minutes of film to solve its
input layer (``decoders.code``) and then watches the rest; its codes there, with the film's latents and tokens, are what
the shared networks are trained on. Films hold training things in familiar places only.

A population is a folder that grows file by file, so that a killed run goes on; a film costs a second on two cores.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track
from scipy import stats
from threadpoolctl import threadpool_limits

from neuroclips.artefacts import read_arrays, stable_seed, write_arrays
from neuroclips.data.bold import clean
from neuroclips.data.cc2017 import N_CORTEX, TRAILING_SPARES
from neuroclips.data.clips import T_R, Targets
from neuroclips.decoders.code import Basis, InputLayer, solve_input_layer
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.vae import Vae
from neuroclips.reconstructor import KEYFRAME
from neuroclips.simulation import scanner
from neuroclips.simulation.features import FRAMES_PER_STEP, PIXELS, STEP, Features, frame_features, truth_axes
from neuroclips.simulation.film import familiar_places, frame_table, plan_segment, render, schedule
from neuroclips.simulation.response import Tuning, components, gains, gram, tune
from neuroclips.simulation.things import TRAINING_THINGS
from neuroclips.simulation.visuotopy import receptive_fields
from neuroclips.training.decoders import AXES, VOLUMES

SECONDS, CLIPS, LEAD, DELAY = 100, 50, 1, 2  # of a film; its clips; volumes before it; volumes from clip to response
FPS = round(FRAMES_PER_STEP / STEP)
FRAMES, SIZE = 6, 64  # of a clip, as in the demo
LAYER_FILMS = 18  # films that a subject's own layer is solved on, as many as the demo's training segments
BASIS_FILMS = 140
P = 0.05 / N_CORTEX


def film_path(folder: Path, number: int) -> Path:
    return folder / f"film-{number:04d}.safetensors"


def codes_path(folder: Path, subject: int) -> Path:
    return folder / f"codes-{subject}.safetensors"


def make_film(number: int, folder: Path) -> None:
    """Draw film ``number``; write what drives voxels in it and, of each clip, 6 frames at 64 pixels."""
    with threadpool_limits(1):
        rng = np.random.default_rng([77, number])
        scenes = plan_segment(rng, SECONDS, things=TRAINING_THINGS, places=familiar_places)
        frames = np.concatenate([render(scene, times, 2 * SIZE) for scene, times in schedule(scenes, FPS)])
        small = [cv2.resize(f.transpose(1, 2, 0), (PIXELS, PIXELS), interpolation=cv2.INTER_AREA) for f in frames]
        table = frame_table(scenes, fps=FPS)
        seen = frame_features(np.stack(small).transpose(0, 3, 1, 2), table, float(FPS), name=f"film {number}")
        within = np.round(np.arange(FRAMES) * T_R * FPS / FRAMES).astype(int)
        kept = frames[(np.arange(CLIPS)[:, None] * round(T_R * FPS) + within).ravel()]
        kept = kept.reshape(CLIPS, FRAMES, 3, SIZE, 2, SIZE, 2).mean((4, 6)).round().astype(np.uint8)
    arrays = {"motion": seen.motion.astype(np.float16), "layout": seen.layout, "contrast": seen.contrast}
    write_arrays(film_path(folder, number), {**arrays, "meaning": seen.meaning.astype(np.float16), "frames": kept})


def make_targets(numbers: list[int], folder: Path) -> None:
    """Latents of every frame and tokens of the keyframe of each film's clips, beside the film."""
    vae, clip = Vae.load("mini"), Clip.load("mini")
    for number in track(numbers, "latents and tokens"):
        frames = np.asarray(read_arrays(film_path(folder, number))["frames"])
        found = {"latents": vae.encode(frames), "tokens": clip.images(frames[:, KEYFRAME])[0]}
        half = {name: array.astype(np.float16) for name, array in found.items()}
        write_arrays(folder / f"targets-{number:04d}.safetensors", half)


def read_targets(folder: Path, numbers: list[int]) -> Targets:
    """Targets of the clips of these films, in order."""
    read = [read_arrays(folder / f"targets-{n:04d}.safetensors") for n in numbers]
    return Targets(*(np.concatenate([part[name] for part in read]) for name in ("latents", "tokens")))


@dataclass(frozen=True)
class Subject:
    """A simulated subject of the population, its voxels selected, its input layer solved."""

    seed: int
    tuning: Tuning
    gain: np.ndarray
    selected: np.ndarray
    layer: InputLayer
    layer_films: list[int]


def _features(folder: Path, number: int) -> Features:
    arrays = read_arrays(film_path(folder, number))
    return Features(*(np.asarray(arrays[n], np.float32) for n in ("motion", "layout", "contrast", "meaning")))


def _parts(folder: Path, tuning: Tuning, number: int) -> np.ndarray:
    volumes = CLIPS + LEAD + TRAILING_SPARES
    return components(_features(folder, number), tuning, n_volumes=volumes, lead=LEAD, t_r=T_R)


def _scan(folder: Path, seed: int, tuning: Tuning, gain: np.ndarray, run: tuple[int, int, int]) -> np.ndarray:
    """Cleaned responses (clips, driven voxels) to a film, the mean of so many presentations."""
    number, presentations, repeat = run
    rng = np.random.default_rng([seed, number, repeat])
    noise = scanner.noise(rng, CLIPS + LEAD + TRAILING_SPARES, T_R)[tuning.voxel].T / np.sqrt(presentations)
    return clean(
        np.ascontiguousarray(noise + np.einsum("itv,vi->tv", _parts(folder, tuning, number), gain)), CLIPS, DELAY
    )


def volumes_of(responses: np.ndarray) -> np.ndarray:
    """(films * clips, VOLUMES * V): each clip's own volume and those after it; beyond the end of a film, zero."""
    runs = responses.reshape(-1, CLIPS, responses.shape[1])
    padded = np.pad(runs, ((0, 0), (0, VOLUMES - 1), (0, 0)))
    return np.concatenate([padded[:, v : v + CLIPS] for v in range(VOLUMES)], axis=2).reshape(len(responses), -1)


def make_subject(seed: int, folder: Path, films: int, basis: Basis, pool: ThreadPoolExecutor) -> Subject:
    """Draw a brain, select its voxels and solve its input layer on two presentations of ``LAYER_FILMS`` films."""
    tuning = tune(receptive_fields(stable_seed(seed, 1, "fields")), truth_axes(), stable_seed(seed, 1, "tuning"))
    chosen = [int(n) for n in np.random.default_rng([seed, 1]).permutation(films)[:LAYER_FILMS]]
    total = np.sum(list(pool.map(lambda n: gram(_parts(folder, tuning, n), CLIPS, DELAY), chosen)), axis=0)
    quiet = scanner.detrended_noise_variance(CLIPS + LEAD + TRAILING_SPARES, CLIPS, T_R)
    gain = gains(total, CLIPS * len(chosen), tuning, 1.0, quiet)
    scan = partial(_scan, folder, seed, tuning, gain)
    first, second = (np.stack(list(pool.map(scan, [(n, 1, r) for n in chosen]))) for r in (0, 1))
    r = np.clip((first * second).mean(axis=1), -0.999, 0.999)  # (films, driven)
    selected = stats.ttest_1samp(np.arctanh(r), 0, alternative="greater").pvalue < P
    reliability = np.clip(r.mean(axis=0)[selected], 0, 1)
    mean = ((first + second) / 2)[..., selected] / np.sqrt(reliability + (1 - reliability) / 2)
    x = volumes_of(mean.reshape(-1, mean.shape[2]).astype(np.float32))
    layer = solve_input_layer(x, basis.encode(read_targets(folder, chosen)), np.repeat(chosen, CLIPS))
    return Subject(seed, tuning, gain, selected, layer, chosen)


def watch(subject: Subject, folder: Path, films: int, pool: ThreadPoolExecutor) -> Iterator[tuple[int, np.ndarray]]:
    """(film, codes of its clips) for every film that the input layer was not solved on.

    Each film is the mean of 1, 2 or 5 presentations, so that what follows learns codes of every quality.
    """
    rest = [n for n in range(films) if n not in set(subject.layer_films)]
    presentations = np.random.default_rng([subject.seed, 2]).choice([1, 2, 5], len(rest))
    scan = partial(_scan, folder, subject.seed, subject.tuning, subject.gain)
    for start in range(0, len(rest), 20):
        runs = [(n, int(p), 9) for n, p in zip(rest[start : start + 20], presentations[start : start + 20])]
        for (number, _, _), responses in zip(runs, pool.map(scan, runs)):
            yield number, subject.layer(volumes_of(responses[:, subject.selected]))


def make_population(folder: Path, *, films: int, subjects: list[int], workers: int = 2) -> None:
    """Make what is missing of a population: films, targets, basis, and codes of every subject."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(films) if not film_path(folder, n).exists()]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
        made = processes.map(partial(make_film, folder=folder), missing)
        for _ in track(made, "films", total=len(missing)):
            pass
    make_targets([n for n in range(films) if not (folder / f"targets-{n:04d}.safetensors").exists()], folder)
    if not (folder / "basis.safetensors").exists():
        Basis.fit(read_targets(folder, list(range(min(films, BASIS_FILMS)))), *AXES).save(folder / "basis.safetensors")
    basis = Basis.load(folder / "basis.safetensors")
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        for seed in subjects:
            if codes_path(folder, seed).exists():
                continue
            subject = make_subject(seed, folder, films, basis, pool)
            seen = list(track(watch(subject, folder, films, pool), f"subject {seed}", total=films - LAYER_FILMS))
            numbers, codes = np.array([n for n, _ in seen], np.int32), np.stack([c for _, c in seen])
            write_arrays(codes_path(folder, seed), {"film": numbers, "codes": codes.astype(np.float16)})
