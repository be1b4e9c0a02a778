"""A simulated subject watches films in the scanner: CC2017-shaped files, and the truth beside them.

    ROOT/subjectK/fmri/SEG/cifti/SEG_R_Atlas.dtseries.nii      scans, 91,282 grayordinates, 2 s a volume
    TRUTH/brain.safetensors                                    receptive fields, groups, latencies, noise ceilings
    TRUTH/SEG.safetensors                                      noise-free responses of the driven voxels

A film of T TRs makes runs of T + 5 volumes (``seg*`` and ``test1``: the film starts at volume 1) or T + 6 (``test2``
and on: volume 2), with the blank screen before and after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from neuroclips.artefacts import content_hash, file_hash, read_arrays, read_json, stable_seed, write_arrays, write_json
from neuroclips.data.bold import crop, detrend
from neuroclips.data.cc2017 import N_CORTEX, TRAILING_SPARES
from neuroclips.data.clips import T_R
from neuroclips.data.frames import count_trs, film_info
from neuroclips.errors import ArtefactError
from neuroclips.recipe import BrainRecipe
from neuroclips.simulation import features as film
from neuroclips.simulation import scanner
from neuroclips.simulation.response import LATENCIES, Tuning, components, gains, gram, reliability_of, tune
from neuroclips.simulation.visuotopy import GROUPS, receptive_fields

if TYPE_CHECKING:
    import pandas as pd

MAX_WORKERS = 4  # a run of 245 volumes takes about 0.4 GB in each
REFERENCE_DELAY = 2  # TRs; where variances and noise ceilings are taken, as in method a.4

Progress = Callable[[int, int, str], None]


def spare_volumes(segment: str) -> int:
    """Volumes before the film: 1 for ``seg*`` and ``test1``, 2 for the other test segments, as in CC2017."""
    return 2 if segment.startswith("test") and segment != "test1" else 1


def n_film_volumes(segment: str, n_volumes: int) -> int:
    """Volumes of a run that fall on the film."""
    return n_volumes - spare_volumes(segment) - TRAILING_SPARES


def is_test(segment: str) -> bool:
    return segment.startswith("test")


def simulate_subject(
    films: Mapping[str, Path],
    root: Path,
    truth_dir: Path,
    *,
    scene_truth: Mapping[str, pd.DataFrame] | None,
    recipe: BrainRecipe,
    seed: int,
    scanned: Collection[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scan a simulated subject while it watches ``films`` (segment name to file). Returns a summary for the card.

    Finished runs are kept, so that a killed simulation resumes; each run's noise is seeded by subject, segment and
    repeat, so that it does not matter which runs were there.

    Parameters
    ----------
    scene_truth : segment name to the table of frames of ``write_film``; None makes meaning from image statistics.
    scanned : segments of which runs are written; all by default.
    progress : called with (done, total, what).

    Raises
    ------
    ArtefactError
        ``truth_dir`` holds a subject made from other films or settings.
    """
    tell = progress or (lambda done, total, what: None)
    settings = {
        "films": {name: file_hash(path) for name, path in films.items()},
        "meaning": film.describe(scene_truth),
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
    }
    key = content_hash(settings)
    made = _made_key(truth_dir)
    if made not in (None, key):
        raise ArtefactError(
            f"{truth_dir} holds a subject made from other films or settings; delete it to make this one"
        )
    sizes = {name: count_trs(path, film_info(path), T_R) for name, path in films.items()}
    if made is None:
        with workers() as pool:
            _make_truth(films, sizes, truth_dir, scene_truth, recipe, seed, pool, tell)
        write_json(truth_dir / "subject.json", settings | {"key": key})

    runs = [
        (segment, repeat)
        for segment in films
        if scanned is None or segment in scanned
        for repeat in range(1, (recipe.test_repeats if is_test(segment) else recipe.train_repeats) + 1)
    ]
    voxel = np.asarray(read_arrays(truth_dir / "brain.safetensors")["driven"])
    baseline = scanner.baseline(stable_seed(seed, recipe.subject, "baseline"))

    def scan(run: tuple[str, int]) -> str:
        segment, repeat = run
        folder = Path(root) / f"subject{recipe.subject}" / "fmri" / segment / "cifti"
        path = folder / f"{segment}_{repeat}_Atlas.dtseries.nii"
        if not path.exists():
            response = read_arrays(truth_dir / f"{segment}.safetensors")["response"]  # (T, driven)
            rng = np.random.default_rng(stable_seed(seed, recipe.subject, segment, repeat))
            bold = scanner.noise(rng, len(response), T_R)
            bold[voxel] += response.T
            bold *= scanner.UNIT * baseline[:, None]
            bold += baseline[:, None]
            scanner.write_run(path, bold, T_R)
        return f"{segment} repeat {repeat}"

    scanner.smoothing_scale(), scanner.grayordinates()  # cached before threads ask for them
    with workers() as pool:
        for done, what in enumerate(pool.map(scan, runs), start=1):
            tell(done, len(runs), what)
    return summary(truth_dir) | {"runs": len(runs), "meaning": settings["meaning"]}


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """Threads for films and runs, each with one BLAS thread: more of those contend, which doubled processor time."""
    with threadpool_limits(1), ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1)) as pool:
        yield pool


def _made_key(truth_dir: Path) -> str | None:
    path = truth_dir / "subject.json"
    return read_json(path)["key"] if path.exists() else None


def _make_truth(
    films: Mapping[str, Path],
    sizes: Mapping[str, int],
    truth_dir: Path,
    scene_truth: Mapping[str, pd.DataFrame] | None,
    recipe: BrainRecipe,
    seed: int,
    pool: ThreadPoolExecutor,
    tell: Progress,
) -> None:
    """Write the noise-free responses of every film and, last, what is true of the brain."""
    fields = receptive_fields(stable_seed(seed, recipe.subject, "fields"))
    axes = film.statistics_axes() if scene_truth is None else film.truth_axes()
    tuning = tune(fields, axes, stable_seed(seed, recipe.subject, "tuning"))
    watched = {}

    def watch(name: str) -> film.Features:
        return film.film_features(films[name], None if scene_truth is None else scene_truth[name], T_R)

    for done, (name, seen) in enumerate(zip(films, pool.map(watch, films)), start=1):
        watched[name] = seen
        tell(done, len(films), f"what drives voxels in {name}")

    def parts(name: str) -> np.ndarray:
        lead = spare_volumes(name)
        n_volumes = sizes[name] + lead + TRAILING_SPARES
        return components(watched[name], tuning, n_volumes=n_volumes, lead=lead, t_r=T_R)

    training = [name for name in films if not is_test(name)] or list(films)
    total = np.sum([gram(parts(name), sizes[name], REFERENCE_DELAY) for name in training], axis=0)
    n_trs = sum(sizes[name] for name in training)
    quiet = {
        name: scanner.detrended_noise_variance(sizes[name] + spare_volumes(name) + TRAILING_SPARES, sizes[name], T_R)
        for name in films
    }
    noise_variance = float(np.mean([quiet[name] for name in training]))
    gain = gains(total, n_trs, tuning, recipe.signal, noise_variance)  # (V, 4)
    ceiling = np.zeros(len(tuning.voxel))
    for name in films:
        response = np.einsum("itv,vi->tv", parts(name), gain).astype(np.float32)
        write_arrays(truth_dir / f"{name}.safetensors", {"response": response[:, np.argsort(tuning.voxel)]})
        if name in training:
            variance = detrend(crop(response, sizes[name], REFERENCE_DELAY)).var(0)
            ceiling += reliability_of(variance, quiet[name]) / len(training)
    write_arrays(truth_dir / "brain.safetensors", _brain_truth(fields, tuning, ceiling, gain))


def _brain_truth(fields: Any, tuning: Tuning, ceiling: np.ndarray, gain: np.ndarray) -> dict[str, np.ndarray]:
    def spread(values: np.ndarray, empty: float = np.nan) -> np.ndarray:
        out = np.full((N_CORTEX, *values.shape[1:]), empty, np.float32)
        out[tuning.voxel] = values
        return out

    return {
        "x": fields.x, "y": fields.y, "sigma": fields.sigma,  # (59412,) degrees; NaN without a field
        "group": fields.group.astype(np.uint8),  # index into GROUPS; driven voxels are in `driven`
        "driven": np.sort(tuning.voxel).astype(np.int32),  # columns of `response`
        "latency": spread(np.array(LATENCIES)[tuning.latency]),  # seconds against the canonical response
        "strength": spread(gain, 0.0),  # (59412, 4) gain of each component
        "ceiling": spread(ceiling, 0.0),  # expected correlation between single repeats
    }  # fmt: skip


def summary(truth_dir: Path) -> dict[str, Any]:
    """What a reader of the card wants to know about the brain."""
    brain = read_arrays(truth_dir / "brain.safetensors")
    driven = np.asarray(brain["driven"])
    ceiling, group = brain["ceiling"][driven], brain["group"][driven]
    members = {name: ceiling[group == i] for i, name in enumerate(GROUPS) if i}
    return {
        "driven_voxels": len(driven),
        "driven_share": round(len(driven) / N_CORTEX, 4),
        "driven_by_group": {name: len(values) for name, values in members.items()},
        "median_ceiling_by_group": {name: round(float(np.median(values)), 3) for name, values in members.items()},
    }
