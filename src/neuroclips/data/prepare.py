"""From a data set in the CC2017 layout to the arrays of three splits: the first stage of every run.

Two passes, one scan in memory at a time: the training scans tell which voxels answer the film reliably; then every
scan is cleaned again, at these voxels only, and written beside its film's clips.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from neuroclips.artefacts import ArrayWriter, read_arrays, write_arrays, write_json
from neuroclips.data.bold import clean, read_run
from neuroclips.data.cc2017 import N_CORTEX, TRAILING_SPARES
from neuroclips.data.clips import Clips, TestClips, TrainingClips, ValidationClips
from neuroclips.data.frames import read_clips, scene_cuts
from neuroclips.data.lag import MARGIN, MEANINGFUL, lag_curve, thumbnails
from neuroclips.data.selection import FALLBACK, MINIMUM, Selection, repeat_correlation, select_voxels
from neuroclips.data.splits import SPLITS, Segment, find_segment, find_splits
from neuroclips.errors import ArtefactError
from neuroclips.recipe import DataRecipe
from neuroclips.shapes import Bool, Float, Float32

_LAG_SEGMENTS = 4  # training segments that the lag curve is fitted on: 32 minutes of CC2017 are plenty to see a peak
_T_R_TOLERANCE = 0.001  # seconds by which a header may differ from the recipe unmentioned

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]
_Kind = TypeVar("_Kind", bound=Clips)


@dataclass(frozen=True)
class Prepared:
    """The prepared data of one subject, memory-mapped. Voxel arrays cover all 59,412 cortical vertices.

    wrong_subject : the test clips with the scans of somebody else who saw the same film, if the recipe asked for them.
    mask : the voxels that the splits' ``bold`` holds, in vertex order.
    p, t : of the selection test. reliability : mean correlation between training repeats.
    """

    train: TrainingClips
    validation: ValidationClips
    test: TestClips
    mask: Bool[np.ndarray, " G"]
    p: Float[np.ndarray, " G"]
    t: Float32[np.ndarray, " G"]
    reliability: Float32[np.ndarray, " G"]
    t_r: float
    delay_trs: int
    wrong_subject: TestClips | None = None


def prepare(root: Path, recipe: DataRecipe, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write ``train``, ``validation``, ``test`` and ``voxels`` (.safetensors) and ``segments.json`` into ``out``.

    ``progress(done, total, what)`` is called before each scan and film. Returns the summary for the stage's card:
    what was found, left out and selected, and every doubt under ``warnings`` (which are logged, too).

    Raises
    ------
    DataError
        Something on disk is not what the recipe or the layout says; the message names the file, what came and what
        was expected. Missing repeats and runs of a wrong length are not errors: they are left out and reported.
    """
    out = Path(out)
    splits = find_splits(Path(root), recipe)
    others: tuple[Segment, ...] = ()
    if recipe.wrong_subject is not None:
        others = tuple(find_segment(Path(root), recipe.wrong_subject, s, "test", recipe.t_r) for s in recipe.test)
    scans = {split: sum(len(s.runs) for s in splits[split]) for split in SPLITS}
    films = sum(len(splits[split]) for split in SPLITS)
    of_others = sum(len(segment.runs) for segment in others)
    reader = _Reader(recipe.t_r, scans["train"] + sum(scans.values()) + films + 1 + of_others, progress)
    for split in SPLITS:
        for segment in splits[split]:
            for reason in segment.excluded.values():
                reader.warn(f"left out: {reason}")

    selection = _select(reader, splits["train"], recipe)
    described, first_scene = {}, 0
    for split in SPLITS:
        described[split] = _write_split(reader, splits[split], recipe, selection.mask, first_scene, out)
        first_scene += sum(s["scenes"] for s in described[split]["segments"])
    if others:
        _write_other(reader, others, recipe, selection.mask, out / "wrong_subject.safetensors")
    lags = _measure_lag(reader, splits, recipe, selection.mask, out)
    voxels = asdict(selection)
    fallback = voxels.pop("fallback")
    write_arrays(out / "voxels.safetensors", voxels)
    names = {split: [segment.name for segment in splits[split]] for split in SPLITS}
    write_json(out / "segments.json", {"t_r": recipe.t_r, "delay_trs": recipe.delay_trs, "segments": names})
    return {
        "subject": recipe.subject,
        "t_r": recipe.t_r,
        "delay_trs": recipe.delay_trs,
        "splits": described,
        "selection": {
            **recipe.selection.model_dump(),
            "selected": int(selection.mask.sum()),
            "of": N_CORTEX,
            "fallback": fallback,
            "median_reliability": float(np.median(selection.reliability[selection.mask])),
        },
        "lag_curve": lags,
        "constant_voxels": reader.constant,
        "warnings": reader.warnings,
    }


class _Reader:
    """Reads and cleans scans, tells progress, and remembers what was odd about them."""

    def __init__(self, t_r: float, total: int, progress: Progress | None):
        self.t_r, self.total, self.progress = t_r, total, progress
        self.done = 0
        self.warnings: list[str] = []
        self.constant: dict[str, int] = {}  # file name -> voxels that never change in it
        self.other_t_r = False

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        log.warning(text)

    def step(self, what: str) -> None:
        if self.progress:
            self.progress(self.done, self.total, what)
        self.done += 1

    def volumes(self, segment: Segment, repeat: int) -> np.ndarray:
        """All volumes of one scan, (T, 59412)."""
        path = segment.runs[repeat]
        run = read_run(path, segment.n_trs)
        if (run.t_r is None or abs(run.t_r - self.t_r) > _T_R_TOLERANCE) and not self.other_t_r:
            self.other_t_r = True  # said once: the other headers went through the same tools
            stated = "no usable TR" if run.t_r is None else f"a TR of {run.t_r:g} s"
            self.warn(f"{path}: its header states {stated}; the recipe's {self.t_r:g} s is used for all scans")
        constant = int((run.values.max(axis=0) == run.values.min(axis=0)).sum())
        if constant:
            self.constant[path.name] = constant
        return run.values


def _select(reader: _Reader, segments: tuple[Segment, ...], recipe: DataRecipe) -> Selection:
    """Pass 1, over training segments only: which voxels answer the film alike in every repeat."""

    def repeats(segment: Segment):
        for repeat in segment.runs:
            reader.step(f"reliability: {segment.name}, repeat {repeat}")
            yield clean(reader.volumes(segment, repeat), segment.n_trs, recipe.delay_trs)

    r = np.stack([repeat_correlation(repeats(segment)) for segment in segments])
    selection = select_voxels(r, recipe.selection)
    if selection.fallback:
        reader.warn(
            f"fewer than {MINIMUM} of {N_CORTEX} voxels pass the selection (p < {recipe.selection.p:g}, Bonferroni, "
            f"over {len(segments)} training segments); the {FALLBACK} of smallest p are used, significant or not. "
            "Expect scores near chance, unless there are just too few segments for the test"
        )
    return selection


def _write_split(
    reader: _Reader,
    segments: tuple[Segment, ...],
    recipe: DataRecipe,
    mask: np.ndarray,
    first_scene: int,
    out: Path,
) -> dict[str, Any]:
    """Pass 2, one split: cleaned responses at the selected voxels, clips, scenes. Returns its description."""
    split = segments[0].split
    b = sum(segment.n_trs for segment in segments)
    r = max(max(segment.runs) for segment in segments)
    specs = {
        "bold": ((b, r, int(mask.sum())), "F32"),
        "present": ((b, r), "BOOL"),
        "frames": ((b, recipe.frames_per_clip, 3, recipe.frame_size, recipe.frame_size), "U8"),
        "segment": ((b,), "I32"),
        "onset": ((b,), "F32"),
        "scene": ((b,), "I32"),
    }
    described, start = [], 0
    with ArrayWriter(out / f"{split}.safetensors", specs) as arrays:
        for number, segment in enumerate(segments):
            rows = slice(start, start + segment.n_trs)
            start += segment.n_trs
            _write_runs(reader, split, segment, recipe, mask, arrays, rows)
            reader.step(f"{split}: {segment.name}, film")
            read_clips(
                segment.film, segment.n_trs, recipe.t_r, recipe.frames_per_clip, recipe.frame_size,
                out=arrays["frames"][rows],
            )  # fmt: skip
            onset = recipe.t_r * np.arange(segment.n_trs)
            scene = scene_of(onset, recipe.t_r, scene_cuts(segment.film))
            arrays["segment"][rows] = number
            arrays["onset"][rows] = onset
            arrays["scene"][rows] = first_scene + scene
            first_scene += scene[-1] + 1
            described.append(
                {
                    "name": segment.name,
                    "clips": segment.n_trs,
                    "repeats": list(segment.runs),
                    "missing": [k for k in range(1, r + 1) if k not in segment.runs],
                    "excluded": segment.excluded,
                    "scenes": int(scene[-1]) + 1,
                    "film": {
                        "fps": float(segment.info.fps),
                        "frames": segment.info.n_frames,
                        "height": segment.info.height,
                        "width": segment.info.width,
                    },
                }
            )
    return {"clips": b, "repeats": r, "voxels": int(mask.sum()), "segments": described}


def _write_runs(
    reader: _Reader, what: str, segment: Segment, recipe: DataRecipe, mask: np.ndarray,
    arrays: dict[str, np.ndarray], rows: slice,
) -> None:  # fmt: skip
    """Every repeat of a segment, cleaned, at the selected voxels."""
    for repeat in segment.runs:
        reader.step(f"{what}: {segment.name}, repeat {repeat}")
        selected = reader.volumes(segment, repeat)[:, mask]
        arrays["bold"][rows, repeat - 1] = clean(selected, segment.n_trs, recipe.delay_trs)
        arrays["present"][rows, repeat - 1] = True


def _write_other(
    reader: _Reader, segments: tuple[Segment, ...], recipe: DataRecipe, mask: np.ndarray, path: Path
) -> None:
    """The test scans of another subject at this one's voxels: same vertices, other brain."""
    b, r = sum(segment.n_trs for segment in segments), max(max(segment.runs) for segment in segments)
    start = 0
    with ArrayWriter(path, {"bold": ((b, r, int(mask.sum())), "F32"), "present": ((b, r), "BOOL")}) as arrays:
        for segment in segments:
            rows = slice(start, start + segment.n_trs)
            start += segment.n_trs
            _write_runs(reader, f"subject {recipe.wrong_subject}", segment, recipe, mask, arrays, rows)


def scene_of(onset: Float[np.ndarray, " T"], t_r: float, cuts: list[float]) -> np.ndarray:
    """Scene number of each clip of a film, (T,), counted from 0 without gaps: the scene at the middle of the clip."""
    scene = np.searchsorted(np.array(cuts), onset + t_r / 2, side="right")
    return np.unique(scene, return_inverse=True)[1]  # scenes that no clip's middle falls into get no number


def _measure_lag(
    reader: _Reader, splits: dict[str, tuple[Segment, ...]], recipe: DataRecipe, mask: np.ndarray, out: Path
) -> dict[str, Any]:
    """Decodability at lags of 0 to 4 TRs, fitted on a few training segments and tried on the validation segments."""
    reader.step("lag curve")

    def parts(split: str, segments: tuple[Segment, ...]) -> tuple[np.ndarray, np.ndarray]:
        lagged = []
        for segment in segments:
            runs = [reader.volumes(segment, repeat)[:, mask] for repeat in segment.runs]
            lagged.append(
                [
                    np.mean([clean(run, segment.n_trs, lag) for run in runs], axis=0)
                    for lag in range(TRAILING_SPARES + 1)
                ]
            )
        n = sum(segment.n_trs for segment in segments)  # the segments are the first ones of their split
        pictures = thumbnails(read_arrays(out / f"{split}.safetensors")["frames"][:n])
        return np.concatenate(lagged, axis=1), pictures

    curve = lag_curve(*parts("train", splits["train"][:_LAG_SEGMENTS]), *parts("validation", splits["validation"]))
    best = int(curve.argmax())
    if curve[best] > max(MEANINGFUL, curve[recipe.delay_trs] + MARGIN):
        reader.warn(
            f"responses decode the film best at a lag of {best} TRs (correlation {curve[best]:.3f}), not at "
            f"data.delay_trs = {recipe.delay_trs} ({curve[recipe.delay_trs]:.3f})"
        )
    return {"lag_trs": list(range(len(curve))), "correlation": [float(c) for c in curve], "best": best}


def load_clips(directory: Path) -> Prepared:
    """Open what ``prepare`` wrote, memory-mapped: nothing is read until it is indexed.

    Raises
    ------
    ArtefactError
        A file is missing or damaged, or two arrays do not fit each other.
    """
    directory = Path(directory)
    voxels = read_arrays(directory / "voxels.safetensors")
    _expect_names(directory / "voxels.safetensors", voxels, {"mask", "p", "t", "reliability"})
    for name, array in voxels.items():
        if array.shape != (N_CORTEX,):
            raise ArtefactError(
                f"{directory / 'voxels.safetensors'}: {name} has shape {array.shape}; expected ({N_CORTEX},)"
            )
    try:
        about = json.loads((directory / "segments.json").read_text())
        t_r, delay_trs = float(about["t_r"]), int(about["delay_trs"])
        names = {split: tuple(about["segments"][split]) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{directory / 'segments.json'}: cannot be read as segment names ({error!r})") from error
    reliability = np.asarray(voxels["reliability"][voxels["mask"]])

    def split(kind: type[_Kind]) -> _Kind:
        path = directory / f"{kind.split}.safetensors"
        return _load_split(path, kind, names[kind.split], reliability, t_r)

    train, validation, test = split(TrainingClips), split(ValidationClips), split(TestClips)
    other, wrong = directory / "wrong_subject.safetensors", None
    if other.exists():
        arrays = read_arrays(other)
        _expect_names(other, arrays, {"bold", "present"})
        wrong = replace(test, bold=arrays["bold"], present=arrays["present"])
        if wrong.bold.shape[::2] != test.bold.shape[::2] or wrong.present.shape != wrong.bold.shape[:2]:
            raise ArtefactError(f"{other}: bold has shape {wrong.bold.shape}; the test clips' is {test.bold.shape}")
    return Prepared(
        train=train,
        validation=validation,
        test=test,
        wrong_subject=wrong,
        mask=voxels["mask"],
        p=voxels["p"],
        t=voxels["t"],
        reliability=voxels["reliability"],
        t_r=t_r,
        delay_trs=delay_trs,
    )


def _load_split(path: Path, kind: type[_Kind], segments: tuple[str, ...], reliability: np.ndarray, t_r: float) -> _Kind:
    arrays = read_arrays(path)
    _expect_names(path, arrays, {"bold", "present", "frames", "segment", "onset", "scene"})
    shapes = {name: array.shape for name, array in arrays.items()}
    b, r = shapes["bold"][:2]
    expected = {"bold": (b, r, len(reliability)), "present": (b, r), "segment": (b,), "onset": (b,), "scene": (b,)}
    for name, shape in {**expected, "frames": (b, *shapes["frames"][1:])}.items():
        if shapes[name] != shape:
            raise ArtefactError(
                f"{path}: {name} has shape {shapes[name]}; expected {shape}, for {b} clips, {r} repeats and "
                f"{len(reliability)} selected voxels"
            )
    if b and not 0 <= arrays["segment"].min() <= arrays["segment"].max() < len(segments):
        raise ArtefactError(
            f"{path}: segment numbers {arrays['segment'].min()} to {arrays['segment'].max()}; expected 0 to "
            f"{len(segments) - 1}, for {', '.join(segments)}"
        )
    return kind(**arrays, segments=segments, reliability=reliability, t_r=t_r)


def _expect_names(path: Path, arrays: dict[str, np.ndarray], names: set[str]) -> None:
    if set(arrays) != names:
        raise ArtefactError(f"{path}: holds {', '.join(sorted(arrays))}; expected {', '.join(sorted(names))}")
