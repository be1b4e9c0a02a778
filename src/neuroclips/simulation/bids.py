"""A simulated study in the layout of BIDS derivatives, unlike CC2017 wherever studies differ.

    OUT/study.tsv                                one row a presentation of a film: run, onset, film, ...
    OUT/stimuli/film01.mp4 ...                   films, 25 frames a second
    OUT/sub-01/func/                             what fMRIPrep leaves of each run, and the run's events
    OUT/truth/                                   what is true of the brain; nothing in the study speaks of it

A run holds two films. They start between two volumes, each film at a moment of its own within the TR, which is the same
in all its repeats: clips are cut on the grid of volumes, so only then do repeats show the same clips.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage, sparse

from neuroclips.artefacts import (
    content_hash,
    read_arrays,
    read_json,
    stable_seed,
    write_arrays,
    write_json,
    written_aside,
)
from neuroclips.data.bold import detrend
from neuroclips.data.cc2017 import N_CORTEX, N_GRAYORDINATES, TRAILING_SPARES
from neuroclips.errors import ArtefactError, DataError
from neuroclips.shapes import Float32, Int
from neuroclips.simulation import features as film
from neuroclips.simulation import scanner
from neuroclips.simulation.film import frame_table, plan_film, scene_table, write_film
from neuroclips.simulation.mesh import SIDES, hemisphere_mesh
from neuroclips.simulation.response import components, gains, gram, reliability_of, tune
from neuroclips.simulation.sprites import ATTRIBUTION
from neuroclips.simulation.study import in_parallel
from neuroclips.simulation.subject import workers
from neuroclips.simulation.visuotopy import receptive_fields

FILMS_A_RUN = 2
BLANK, PAUSE, REST = 6.0, 8.0, 12.0  # seconds without film: at least this before the first and between, after the last
TAIL = 30.0  # seconds after a film in which the brain still answers it
DELAY = 4.0  # seconds; where variances and noise ceilings are taken, in whole TRs
DETREND_SECONDS = 150.0  # and after what detrending: a polynomial of degree 1, and 1 more for each of these in a film
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it, modulo one, are spread evenly and never whole
VOXEL = 4.0  # mm
_SHAPE = (49, 58, 49)  # the box of MNI152NLin2009cAsym at 4 mm
_AFFINE = np.array([[VOXEL, 0, 0, -96], [0, VOXEL, 0, -132], [0, 0, VOXEL, -78], [0, 0, 0, 1]])
_SPACE = "space-MNI152NLin2009cAsym_res-4"

Space = Literal["volume", "cortex"]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Presentation:
    """One showing of a film: ``onset`` in seconds from the start of the run's first volume to the first frame."""

    film: str
    repeat: int
    onset: float


@dataclass(frozen=True)
class Places:
    """The P places that the scanner measures, each a mean over some of the 91,282 grayordinates.

    weights : (P, 91282) sparse, rows sum to one.
    scale : (P,) brings the mean's noise back to unit variance.
    ijk : (P, 3) voxel of each place; None where places are the grayordinates themselves.
    """

    weights: sparse.csr_matrix
    scale: Float32[np.ndarray, " P"]
    ijk: Int[np.ndarray, "P 3"] | None


def simulate_bids_study(
    out: Path,
    *,
    subject: int = 1,
    seed: int = 7,
    t_r: float | int = 1.5,
    fps: int = 25,
    train_segments: int = 18,
    validation_segments: int = 2,
    test_segments: int = 2,
    seconds: float | int = 40,
    train_repeats: int = 2,
    test_repeats: int = 3,
    signal: float | int = 1.0,
    size: int = 96,
    space: Space = "volume",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Show picture-book films to a simulated subject, and write the study as fMRIPrep would leave it.

    Films that are there are kept, and so are runs: a killed simulation resumes. What is made depends on the settings
    alone, byte for byte.

    Parameters
    ----------
    train_segments, validation_segments, test_segments : films of each split, numbered through in this order.
    seconds : length of a film, a multiple of 0.5; it need not be one of ``t_r``.
    train_repeats, test_repeats : presentations of each film; validation films are shown as often as training films.
    signal : strength of the response; 0 is a brain that did not see the films.
    size : side of the films in pixels.
    space : 4 mm NIfTI volumes with a brain mask, or CIFTI grayordinates.
    progress : called with (done, total, what).

    Returns
    -------
    summary : counts of films, runs and voxels, and the path of the table.

    Raises
    ------
    DataError
        ``seconds`` is not a multiple of 0.5.
    ArtefactError
        ``out`` holds a study made with other settings.
    """
    if seconds % film.STEP:
        raise DataError(f"seconds is {seconds:g}; expected a multiple of {film.STEP:g}, the step of the simulation")
    out, t_r, tell = Path(out), float(t_r), progress or (lambda done, total, what: None)
    settings = {
        "subject": subject, "seed": seed, "t_r": t_r, "fps": fps, "seconds": float(seconds), "signal": float(signal),
        "segments": [train_segments, validation_segments, test_segments], "repeats": [train_repeats, test_repeats],
        "size": size, "space": space,
    }  # fmt: skip
    _claim(out / "truth" / "study.json", settings)

    plan = plan_film(
        seed, train_segments=train_segments + validation_segments, test_segments=test_segments, train_seconds=seconds,
        test_seconds=seconds,
    )  # fmt: skip
    scenes = {f"film{number:02d}": made for number, made in enumerate(plan.values(), 1)}
    parts = {"train": train_segments, "validation": validation_segments, "test": test_segments}
    split = dict(zip(scenes, [name for name, count in parts.items() for _ in range(count)]))
    films = {name: out / "stimuli" / f"{name}.mp4" for name in scenes}
    in_parallel(
        {
            name: partial(write_film, path, scenes=scenes[name], size=size, fps=fps)
            for name, path in films.items()
            if not path.exists()
        },
        progress,
    )
    lasts = round(seconds * fps) / fps
    phases = {name: phase(number, t_r) for number, name in enumerate(films)}
    runs = []
    for part in parts:  # splits share no run, or what lingers of one film would reach from one split into another
        repeats = {name: test_repeats if part == "test" else train_repeats for name in films if split[name] == part}
        runs += plan_runs(repeats, phases, lasts, t_r)
    volumes = [math.ceil((run[-1].onset + lasts + REST) / t_r) for run in runs]

    places = voxels() if space == "volume" else grayordinates()
    if not (out / "truth" / "brain.safetensors").exists():
        table = pd.concat([scene_table(made).assign(film=name) for name, made in scenes.items()], ignore_index=True)
        _keep(out / "truth" / "scenes.parquet", table.to_parquet)
        tables = {name: frame_table(made, fps=fps) for name, made in scenes.items()}
        training = [name for name in films if split[name] == "train"]
        _make_truth(
            out / "truth", films, tables, training, places, phases=phases, lasts=lasts, t_r=t_r,
            n_volumes=max(volumes), signal=float(signal), seeds=(seed, subject), tell=tell,
        )  # fmt: skip

    label = f"sub-{subject:02d}"
    func = out / label / "func"
    names = [run_files(f"{label}_task-film_run-{number:02d}", space) for number in range(1, len(runs) + 1)]
    baseline = places.weights @ scanner.baseline(stable_seed(seed, subject, "baseline"))
    # Slices are taken as shifted to the middle of their volume, fMRIPrep's way: there responses are sampled.
    sidecar = {"TaskName": "film", "RepetitionTime": t_r, "SliceTimingCorrected": True, "StartTime": t_r / 2,
               "SkullStripped": False}  # fmt: skip

    def write_mask(path: Path) -> None:
        assert places.ijk is not None
        _write_volume(path, np.ones(len(places.ijk), np.uint8), places.ijk)

    def scan(number: int) -> str:
        run, n_volumes, own = runs[number], volumes[number], stable_seed(seed, subject, number)
        motion = head_motion(n_volumes, stable_seed(own, "motion"))
        shown = events(run, lasts, n_volumes * t_r)

        def write_bold(path: Path) -> None:
            bold = _bold(out / "truth", run, n_volumes, places, baseline, t_r, own)
            if places.ijk is None:
                scanner.write_run(path, bold, t_r)
            else:
                _write_volume(path, bold.round().astype(np.int16), places.ijk, t_r)

        write: dict[str, Callable[[Path], Any]] = {
            "run": write_bold,
            "mask": write_mask,
            "sidecar": partial(write_json, content=sidecar),
            "confounds": partial(_write_tsv, motion),
            "events": partial(_write_tsv, shown),
        }
        for kind, name in names[number].items():
            _keep(func / name, write[kind])
        return f"run {number + 1}"

    scanner.smoothing_scale(), scanner.grayordinates()  # cached before threads ask for them
    with workers() as pool:
        for done, what in enumerate(pool.map(scan, range(len(runs))), start=1):
            tell(done, len(runs), what)

    if space == "volume":
        _keep(func / whole_mask(label), write_mask)
    about = {
        "Name": "A simulated subject watches films",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "neuroclips simulation", "Version": version("neuroclips")}],
        "Acknowledgements": ATTRIBUTION,
    }
    _keep(out / "dataset_description.json", partial(write_json, content=about))
    study = study_table(runs, names, split, label)
    _keep(out / "study.tsv", partial(_write_tsv, study))
    brain = read_arrays(out / "truth" / "brain.safetensors")
    ceiling = np.asarray(brain["ceiling"])[np.asarray(brain["driven"])]
    return {
        "study": out / "study.tsv",
        "films": len(films),
        "runs": len(runs),
        "presentations": len(study),
        "minutes": round(sum(volumes) * t_r / 60, 1),
        "voxels": places.weights.shape[0],
        "driven_voxels": len(ceiling),
        "median_ceiling": round(float(np.median(ceiling)), 3),
    }


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Note the settings of a study, so that files made with others never get among them."""
    key = content_hash(settings)
    if not path.exists():
        write_json(path, settings | {"key": key})
    elif read_json(path)["key"] != key:
        raise ArtefactError(f"{path}: the study was made with other settings; delete the folder to make this one")


def _keep(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file aside and rename it, unless it is there already."""
    if not path.exists():
        with written_aside(path) as aside:
            write(aside)


def _write_tsv(table: pd.DataFrame, path: Path) -> None:
    """Tab separated, with BIDS' word for what is missing."""
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")


# --- what is shown when -----------------------------------------------------------------------------------------------


def phase(number: int, t_r: float) -> float:
    """Seconds between the start of a volume and the start of film ``number`` (from 0): inside (0, ``t_r``)."""
    return round(t_r * ((number + 0.4) * GOLDEN % 1), 3)


def plan_runs(
    repeats: Mapping[str, int], phases: Mapping[str, float], lasts: float, t_r: float
) -> list[list[Presentation]]:
    """When each film is shown, ``FILMS_A_RUN`` a run, as often as ``repeats`` says; each lasts ``lasts`` seconds.

    A film starts ``phases`` seconds after some volume does. All films are shown once before any is shown again, in an
    order turned by one each time, so that a film has other neighbours. A run never holds a film twice.
    """
    runs = []
    for repeat in range(1, max(repeats.values(), default=0) + 1):
        shown = [name for name, count in repeats.items() if count >= repeat]
        turned = shown[(repeat - 1) % len(shown) :] + shown[: (repeat - 1) % len(shown)]
        for start in range(0, len(turned), FILMS_A_RUN):
            run, free = [], BLANK
            for name in turned[start : start + FILMS_A_RUN]:
                onset = round(math.ceil((free - phases[name]) / t_r) * t_r + phases[name], 3)
                run.append(Presentation(name, repeat, onset))
                free = onset + lasts + PAUSE
            runs.append(run)
    return runs


def events(run: Sequence[Presentation], lasts: float, end: float) -> pd.DataFrame:
    """The BIDS events of a run that ends after ``end`` seconds: films, and the rest between them."""
    starts = [0.0, *(time for shown in run for time in (shown.onset, shown.onset + lasts))]
    table = pd.DataFrame({"onset": starts, "duration": np.diff([*starts, end])})
    table["trial_type"] = ["rest", *["film", "rest"] * len(run)]
    table["stim_file"] = [None, *(name for shown in run for name in (f"{shown.film}.mp4", None))]
    return table.round(3)


def run_files(stem: str, space: Space) -> dict[str, str]:
    """What the files of one run are called, by what they are: fMRIPrep's names, and the events beside them."""
    if space == "cortex":
        scan = f"{stem}_space-fsLR_den-91k"
        files = {"run": f"{scan}_bold.dtseries.nii", "sidecar": f"{scan}_bold.json"}
    else:
        scan = f"{stem}_{_SPACE}_desc"
        files = {"run": f"{scan}-preproc_bold.nii.gz", "sidecar": f"{scan}-preproc_bold.json"}
        files["mask"] = f"{scan}-brain_mask.nii.gz"
    return files | {"confounds": f"{stem}_desc-confounds_timeseries.tsv", "events": f"{stem}_events.tsv"}


def whole_mask(subject: str) -> str:
    """What the mask of all runs is called: voxels must be the same in all, and fMRIPrep masks each run by itself."""
    return f"{subject}_task-film_{_SPACE}_desc-brain_mask.nii.gz"


def study_table(
    runs: Sequence[Sequence[Presentation]],
    names: Sequence[Mapping[str, str]],
    split: Mapping[str, str],
    subject: str,
) -> pd.DataFrame:
    """The table that ``neuroclips prepare table`` reads: one row a presentation, paths relative to the table."""
    return pd.DataFrame(
        {
            "run": f"{subject}/func/{files['run']}",
            "onset": shown.onset,
            "film": f"stimuli/{shown.film}.mp4",
            "segment": shown.film,
            "repeat": shown.repeat,
            "split": split[shown.film],
            "subject": subject,
            **({"mask": f"{subject}/func/{whole_mask(subject)}"} if "mask" in files else {}),
            "confounds": f"{subject}/func/{files['confounds']}",
        }
        for run, files in zip(runs, names, strict=True)
        for shown in run
    )


def head_motion(n_volumes: int, seed: int) -> pd.DataFrame:
    """Confounds as fMRIPrep names them: a head that wanders by hundredths of a millimetre. The scans do not show it.

    Framewise displacement is Power's (NeuroImage 59, 2012): the sum of the six absolute differences to the volume
    before, mm, with rotations (radians) as arcs on a sphere of 50 mm; the first volume has none.
    """
    steps = np.random.default_rng(seed).normal(0, [0.02] * 3 + [0.02 / 50] * 3, (n_volumes, 6))
    moved = pd.DataFrame(np.cumsum(steps, 0), columns=["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"])
    moved = moved.round(7)
    displacement = (moved.diff().abs() * ([1] * 3 + [50] * 3)).sum(axis=1, skipna=False)
    return moved.assign(framewise_displacement=displacement.round(6))


# --- where it is measured ---------------------------------------------------------------------------------------------


def grayordinates() -> Places:
    """The 91,282 grayordinates themselves."""
    return Places(sparse.identity(N_GRAYORDINATES, np.float32, "csr"), np.ones(N_GRAYORDINATES, np.float32), None)


@cache
def voxels() -> Places:
    """The voxels of a brain-shaped mask at 4 mm, in the order of ``numpy.nonzero``.

    A voxel that holds vertices of the mid-thickness cortex (MNI coordinates) is their mean. Noise that neighbours share
    survives the mean and other noise does not; it is brought back to unit variance, so that a voxel of 4 mm is as noisy
    as one of the cortex. The rest of the mask, which is cortex grown by one voxel and filled, takes the noise of
    subcortical grayordinates, one each: no position, just noise.
    """
    points = np.concatenate([hemisphere_mesh(side)[0] for side in SIDES])
    ijk = np.rint((points - _AFFINE[:3, 3]) / VOXEL).astype(int)
    cortex = np.zeros(_SHAPE, bool)
    cortex[tuple(ijk.T)] = True
    mask = ndimage.binary_fill_holes(ndimage.binary_dilation(cortex))
    number = np.full(_SHAPE, -1)
    number[mask] = np.arange(mask.sum())
    row = number[tuple(ijk.T)]  # voxel of each vertex
    empty = np.flatnonzero(~cortex[mask])
    value = np.concatenate([1 / np.bincount(row)[row], np.ones(len(empty))]).astype(np.float32)
    columns = np.arange(N_CORTEX + len(empty))
    shape = (int(mask.sum()), N_GRAYORDINATES)
    weights = sparse.csr_matrix((value, (np.concatenate([row, empty]), columns)), shape)

    over_cortex = weights[:, :N_CORTEX]
    variance = (over_cortex @ scanner.spatial_covariance(np.arange(N_CORTEX))).multiply(over_cortex).sum(1)
    variance = np.asarray(variance).ravel()
    variance[empty] = 1
    return Places(weights, (1 / np.sqrt(variance)).astype(np.float32), np.argwhere(mask))


# --- what the brain does ----------------------------------------------------------------------------------------------


def _make_truth(
    folder: Path,
    films: Mapping[str, Path],
    tables: Mapping[str, pd.DataFrame],
    training: Sequence[str],
    places: Places,
    *,
    phases: Mapping[str, float],
    lasts: float,
    t_r: float,
    n_volumes: int,
    signal: float,
    seeds: tuple[int, int],
    tell: Progress,
) -> None:
    """Write the noise-free responses to every film and, last, what is true of the brain.

    A response starts with the volume during which its film starts; ``n_volumes`` is the length of the longest run.
    """
    fields = receptive_fields(stable_seed(*seeds, "fields"))
    tuning = tune(fields, film.truth_axes(), stable_seed(*seeds, "tuning"))
    watched = {}
    with workers() as pool:
        for done, (name, seen) in enumerate(
            zip(films, pool.map(lambda name: film.film_features(films[name], tables[name], film.STEP), films)), 1
        ):
            watched[name] = seen
            tell(done, len(films), f"what drives voxels in {name}")

    n_clips = {name: int((lasts - t_r + phases[name]) / t_r) for name in films}
    order = 1 + int(lasts / DETREND_SECONDS)
    first = 1 + round(DELAY / t_r)  # the response to clip 0, which starts with the volume after the onset

    def parts(name: str) -> np.ndarray:
        length = math.ceil((t_r + lasts + TAIL) / t_r)
        return components(watched[name], tuning, n_volumes=length, lead=phases[name] / t_r, t_r=t_r)

    def answer(response: np.ndarray, name: str) -> np.ndarray:
        return response[..., first : first + n_clips[name], :]

    total, spares = np.zeros((len(tuning.voxel), 4, 4)), ((0, 0), (0, TRAILING_SPARES), (0, 0))
    for name in training:
        total += gram(np.pad(answer(parts(name), name), spares), n_clips[name], 0, order)  # spares as in CC2017
    quiet = {name: scanner.detrended_noise_variance(n_volumes, n_clips[name], t_r, order) for name in training}
    n_trs = sum(n_clips[name] for name in training)
    gain = gains(total, n_trs, tuning, signal, float(np.mean(list(quiet.values()))))

    mean = places.weights[:, tuning.voxel]
    share = np.asarray(mean.sum(1)).ravel()  # of a place's vertices, those that respond
    driven = np.flatnonzero(share)
    ceiling = np.zeros(len(share), np.float32)
    for name in films:
        vertices = np.einsum("itv,vi->tv", parts(name), gain).astype(np.float32)
        response = (mean[driven] @ vertices.T).T
        write_arrays(folder / f"{name}.safetensors", {"response": response})  # (T, driven)
        if name in training:
            variance = detrend(answer(response, name), order).var(0)
            ceiling[driven] += reliability_of(variance, quiet[name]) / len(training)
    brain = {
        "x": fields.x, "y": fields.y, "sigma": fields.sigma,  # (59412,) degrees; NaN without a field
        "group": fields.group.astype(np.uint8),  # (59412,) index into visuotopy.GROUPS
        "driven": driven.astype(np.int32),  # voxels (rows of the mask, or grayordinates) that respond
        "share": share.astype(np.float32),  # of each voxel's vertices, those that respond
        "ceiling": ceiling,  # expected correlation between single repeats
    }  # fmt: skip
    if places.ijk is not None:
        brain["ijk"] = places.ijk.astype(np.int32)
    write_arrays(folder / "brain.safetensors", brain)


def _bold(
    truth: Path,
    run: Sequence[Presentation],
    n_volumes: int,
    places: Places,
    baseline: Float32[np.ndarray, " P"],
    t_r: float,
    seed: int,
) -> Float32[np.ndarray, "P T"]:
    """One run: baseline, noise, and what is left of each film's response before the run ends."""
    bold = places.weights @ scanner.noise(np.random.default_rng(seed), n_volumes, t_r)
    bold *= places.scale[:, None]
    driven = np.asarray(read_arrays(truth / "brain.safetensors")["driven"])
    for shown in run:
        start = int(shown.onset // t_r)
        response = read_arrays(truth / f"{shown.film}.safetensors")["response"][: n_volumes - start]  # (T, driven)
        bold[driven, start : start + len(response)] += response.T
    bold *= scanner.UNIT * baseline[:, None]
    bold += baseline[:, None]
    return bold


def _write_volume(path: Path, values: np.ndarray, ijk: Int[np.ndarray, "P 3"], t_r: float | None = None) -> None:
    """Write values of voxels, (P,) or over time (P, T), as compressed NIfTI; zero elsewhere. Same bytes each time."""
    volume = np.zeros((*_SHAPE, *values.shape[1:]), values.dtype)
    volume[tuple(ijk.T)] = values
    image = nib.Nifti1Image(volume, _AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(_AFFINE, code="mni")
    image.set_qform(_AFFINE, code="mni")
    if t_r is not None:
        image.header.set_zooms((VOXEL, VOXEL, VOXEL, t_r))
    path.write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))
