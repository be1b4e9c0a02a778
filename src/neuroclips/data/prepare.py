"""From scans and films to the arrays of three splits: the first stages of every run.

    films        the clips of every film, and its scenes                          films/SPLIT.safetensors
    reliability  the repeats of training scans, correlated at every voxel          reliability/repeats.safetensors
    prepare      voxels selected; every scan cleaned at these voxels only          prepare/SPLIT.safetensors

One scan or film is in memory at a time, and each one that is finished stands when a run is killed. A new selection
reads no scan twice for its statistics, and leaves films, and what frozen networks see in them, alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuroclips.artefacts import GrowingArrays, read_arrays, read_json, write_arrays, write_json
from neuroclips.data import lag
from neuroclips.data.clips import Clips
from neuroclips.data.prepared import Prepared, load_clips
from neuroclips.data.selection import FALLBACK, MINIMUM, Selection, repeat_correlation, select_voxels
from neuroclips.data.source import SPLITS, Segment, Source, asked_voxels
from neuroclips.data.study import open_source
from neuroclips.data.volumes import write_mask
from neuroclips.recipe import DataRecipe, SelectionRecipe
from neuroclips.shapes import Bool, Float

_LAG_CLIPS = 1000  # of training that the lag curve is fitted on: 33 minutes of CC2017 are plenty to see a peak
_DISAGREES = 0.4  # of the agreement of a segment's usual repeat, below which one is doubted
_CLEAR = 0.05  # agreement below which no repeat is told from another

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


def prepare(root: Path, recipe: DataRecipe, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """All three stages, into ``films``, ``reliability`` and ``prepare`` of ``out``; ``load_clips(out / "prepare")``
    opens the result.

    ``progress(done, total, what)`` is called before each scan and film. Returns ``prepare_bold``'s summary, whose
    warnings are logged.

    Raises
    ------
    DataError
        Something on disk is not what the recipe or the layout says; the message names the file, what came and what
        was expected. Missing repeats and runs of a wrong length are not errors: they are left out and reported.
    """
    out, source = Path(out), open_source(Path(root), recipe, progress)
    prepare_films(source, recipe, out / "films", progress)
    measure_reliability(source, out / "reliability", progress)
    summary = prepare_bold(source, recipe, out / "films", out / "reliability", out / "prepare", progress)
    for text in summary["warnings"]:
        log.warning(text)
    return summary


class _Steps:
    """Tells progress."""

    def __init__(self, total: int, progress: Progress | None):
        self.total, self.progress, self.done = total, progress, 0

    def __call__(self, what: str) -> None:
        if self.progress:
            self.progress(self.done, self.total, what)
        self.done += 1


def prepare_films(source: Source, recipe: DataRecipe, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write the clips of every film, SPLIT.safetensors: frames (B, F, 3, H, W), segment, onset (s of the film) and
    scene (numbered within each film). A finished film stands. Captions that came with the data go into captions.json
    and text.safetensors. Returns what was found in each film."""
    f, size = recipe.frames_per_clip, recipe.frame_size
    step = _Steps(sum(len(source.splits[split]) for split in SPLITS), progress)
    found: dict[str, Any] = {}
    for split in SPLITS:
        segments = source.splits[split]
        b = sum(segment.n_trs for segment in segments)
        specs = {
            "frames": ((b, f, 3, size, size), "U8"), "segment": ((b,), "I32"), "onset": ((b,), "F32"),
            "scene": ((b,), "I32"),
        }  # fmt: skip
        films = GrowingArrays(Path(out) / f"{split}.safetensors", specs)
        for number, (segment, rows) in enumerate(_placed(segments)):
            step(f"film of {segment.name}")
            if not films.has(segment.name):
                with films.part(segment.name) as arrays:
                    cuts = source.film(segment, f, size, arrays["frames"][rows])
                    onset = float(segment.start) + source.t_r * np.arange(segment.n_trs)
                    arrays["segment"][rows] = number
                    arrays["onset"][rows] = onset
                    arrays["scene"][rows] = scene_of(onset, source.t_r, cuts)
        films.close()
        scene = read_arrays(Path(out) / f"{split}.safetensors")["scene"]
        for segment, rows in _placed(segments):
            info = segment.info
            found[segment.name] = {
                "split": split, "clips": segment.n_trs, "scenes": int(scene[rows].max()) + 1,
                "start": float(segment.start), "fps": float(info.fps), "frames": info.n_frames, "height": info.height,
                "width": info.width,
            }  # fmt: skip
    _write_captions(source, Path(out))
    return found


def _write_captions(source: Source, out: Path) -> None:
    given = {split: [source.captions(segment) for segment in source.splits[split]] for split in SPLITS}
    whole = {split: [part for part in parts if part is not None] for split, parts in given.items()}
    if any(len(whole[split]) < len(given[split]) for split in SPLITS):
        return
    write_json(out / "captions.json", {s: [text for texts, _ in parts for text in texts] for s, parts in whole.items()})
    text = {split: [vectors for _, vectors in parts if vectors is not None] for split, parts in whole.items()}
    if all(len(text[split]) == len(whole[split]) for split in SPLITS):
        write_arrays(out / "text.safetensors", {split: np.concatenate(parts) for split, parts in text.items()})


def _placed(segments: Sequence[Segment]) -> list[tuple[Segment, slice]]:
    """Segments, and the rows of their clips in the split's arrays."""
    ends = np.cumsum([segment.n_trs for segment in segments]).tolist()
    return [(segment, slice(end - segment.n_trs, end)) for segment, end in zip(segments, ends)]


def measure_reliability(source: Source, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Correlate the repeats of each training segment at every voxel: repeats.safetensors, ``r`` (S, G). The other
    splits are not looked at: voxels are chosen on training scans alone."""
    segments = source.splits["train"]
    growing = GrowingArrays(Path(out) / "repeats.safetensors", {"r": ((len(segments), source.n_voxels), "F64")})
    step = _Steps(sum(len(segment.runs) for segment in segments), progress)
    for number, segment in enumerate(segments):
        if growing.has(segment.name):
            step.done += len(segment.runs)
            continue

        def repeats(segment: Segment = segment):
            for repeat in segment.runs:
                step(f"reliability: {segment.name}, repeat {repeat}")
                yield source.responses(segment, repeat)

        with growing.part(segment.name) as arrays:
            arrays["r"][number] = repeat_correlation(repeats())
    growing.close()
    return {"segments": [segment.name for segment in segments], "voxels": source.n_voxels}


def prepare_bold(
    source: Source, recipe: DataRecipe, films: Path, reliability: Path, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Select voxels, and write ``train``, ``validation``, ``test`` and ``voxels`` (.safetensors) and ``segments.json``.

    Of scans in volume space, ``mask.nii`` as well. Returns the summary for the stage's card: what was found, left out
    and selected, and every doubt under ``warnings``.
    """
    out = Path(out)
    said = out / ".said.json"  # what was odd about scans that a killed run has read already
    if said.exists():
        before = read_json(said)
        source.warnings[:] = list(dict.fromkeys([*source.warnings, *before["warnings"]]))
        source.constant.update(before["constant"])
    warnings = source.warnings
    selection, asked = _select(source, recipe.selection, reliability, warnings)
    scans = [segment for split in SPLITS for segment in source.splits[split]] + list(source.others)
    step = _Steps(sum(len(segment.runs) for segment in scans) + 1, progress)
    described = {}
    for split in SPLITS:
        segments = source.splits[split]
        still = _write_bold(source, segments, selection.mask, out / f"{split}.safetensors", step, split)
        described[split] = _describe_split(out / f"{split}.safetensors", films, segments, still, warnings)
    if source.others:
        what = f"subject {recipe.wrong_subject}"
        _write_bold(source, source.others, selection.mask, out / "wrong_subject.safetensors", step, what)
    voxels = asdict(selection)
    fallback = voxels.pop("fallback")
    write_arrays(out / "voxels.safetensors", voxels)
    if source.mask is not None:
        write_mask(out / "mask.nii", source.mask)  # where voxels are, for maps
    names = {split: [segment.name for segment in source.splits[split]] for split in SPLITS}
    lags = [delay - source.delays[0] for delay in source.delays]
    about = {"t_r": source.t_r, "delay_trs": source.delays[0], "lags": lags, "space": source.space, "segments": names}
    write_json(out / "segments.json", about | {"films": os.path.relpath(films, out)})  # a run directory may be moved
    step("lag curve")
    curve = _measure_lag(source, load_clips(out), Path(films), warnings)
    return {
        "subject": recipe.subject,
        "layout": recipe.layout,
        "space": source.space,
        "t_r": source.t_r,
        "delay_trs": source.delays[0],
        "lags": lags,
        "splits": described,
        "selection": {
            **recipe.selection.model_dump(mode="json"),
            "selected": int(selection.mask.sum()),
            "asked": int(asked.sum()),
            "of": source.n_voxels,
            "fallback": fallback,
            "median_reliability": float(np.median(selection.reliability[selection.mask])),
        },
        "lag_curve": curve,
        "constant_voxels": dict(source.constant),
        "source": source.about,
        "warnings": warnings,
    }


def _select(
    source: Source, recipe: SelectionRecipe, reliability: Path, warnings: list[str]
) -> tuple[Selection, Bool[np.ndarray, " G"]]:
    """The voxels that answer the training film alike in every repeat, among those that anatomy allows."""
    asked = asked_voxels(source, recipe)
    r = np.asarray(read_arrays(Path(reliability) / "repeats.safetensors")["r"])
    selection = select_voxels(r, recipe, asked)
    if selection.fallback:
        test = {"bonferroni": "Bonferroni", "fdr": "false discovery rate"}[recipe.method]
        warnings.append(
            f"fewer than {MINIMUM} of {asked.sum()} voxels pass the selection (p < {recipe.p:g}, {test}, "
            f"over {len(r)} training segments); the {min(FALLBACK, selection.mask.sum())} of smallest p are used, "
            "significant or not. Expect scores near chance, unless there are just too few segments for the test"
        )
    return selection, asked


def _write_bold(
    source: Source, segments: Sequence[Segment], mask: np.ndarray, path: Path, step: _Steps, what: str
) -> dict[str, dict[int, int]]:
    """Every repeat of the segments, cleaned, at the selected voxels: bold (B, R, V), present (B, R), and how many of
    the selected voxels never change in a run, ``still`` (segments, R)."""
    b, r = sum(segment.n_trs for segment in segments), max(max(segment.runs) for segment in segments)
    specs = {
        "bold": ((b, r, int(mask.sum())), "F32"), "present": ((b, r), "BOOL"), "still": ((len(segments), r), "I32"),
    }  # fmt: skip
    growing = GrowingArrays(path, specs)
    for number, (segment, rows) in enumerate(_placed(segments)):
        for repeat in segment.runs:
            step(f"{what}: {segment.name}, repeat {repeat}")
            if growing.has(f"{segment.name}/{repeat}"):
                continue
            with growing.part(f"{segment.name}/{repeat}") as arrays:
                found = source.responses(segment, repeat, mask)
                arrays["bold"][rows, repeat - 1] = found
                arrays["present"][rows, repeat - 1] = True
                arrays["still"][number, repeat - 1] = int((~found.any(axis=0)).sum())
                write_json(path.parent / ".said.json", {"warnings": source.warnings, "constant": source.constant})
    growing.close()
    still = read_arrays(path)["still"]
    return {s.name: {k: int(still[n, k - 1]) for k in s.runs} for n, s in enumerate(segments)}


def _describe_split(
    path: Path, films: Path, segments: Sequence[Segment], still: dict[str, dict[int, int]], warnings: list[str]
) -> dict[str, Any]:
    """The split for the card: every run with its agreement with the other repeats, scenes, effective n."""
    scene = np.asarray(read_arrays(Path(films) / path.name)["scene"])
    described, sizes = [], list[np.ndarray]()
    b, r, v = read_arrays(path)["bold"].shape
    for segment, rows in _placed(segments):
        # Mapped anew for each segment: what was read through a map counts as memory of this process until it is closed.
        agreement = _agreement(read_arrays(path)["bold"][rows], list(segment.runs))
        _doubt(segment, agreement, warnings)
        sizes.append(np.bincount(scene[rows]))
        described.append(
            {
                "name": segment.name,
                "clips": segment.n_trs,
                "repeats": list(segment.runs),
                "missing": [k for k in range(1, r + 1) if k not in segment.runs],
                "excluded": segment.excluded,
                "scenes": len(sizes[-1]),
                "film": {
                    "file": segment.film.name, "start": float(segment.start), "fps": float(segment.info.fps),
                    "frames": segment.info.n_frames, "height": segment.info.height, "width": segment.info.width,
                },
                "runs": [
                    {
                        "repeat": k, "file": scan.path.name, "volumes": scan.n_volumes, "first_volume": scan.first,
                        "misfit": scan.misfit, "motion": scan.motion, "still_voxels": still[segment.name][k],
                        "agreement": agreement.get(k),
                    }
                    for k, scan in segment.runs.items()
                ],
            }
        )  # fmt: skip
    n = np.concatenate(sizes)
    return {
        "clips": b, "repeats": r, "voxels": v, "scenes": len(n),
        "effective_n": float(n.sum() ** 2 / (n**2).sum()), "segments": described,
    }  # fmt: skip


def _agreement(bold: Float[np.ndarray, "T R V"], repeats: list[int]) -> dict[int, float]:
    """Of each repeat: the median over voxels of its correlation with the mean of the others. Empty for a single one."""
    if len(repeats) < 2:
        return {}
    total = np.sum([bold[:, k - 1] for k in repeats], axis=0)
    found = {}
    for k in repeats:
        own = np.asarray(bold[:, k - 1])
        others = total - own
        norm = np.linalg.norm(own, axis=0) * np.linalg.norm(others - others.mean(axis=0), axis=0)
        r = np.divide((own * others).sum(axis=0), norm, out=np.zeros_like(norm), where=norm > 0)
        found[k] = round(float(np.median(r)), 4)
    return found


def _doubt(segment: Segment, agreement: dict[int, float], warnings: list[str]) -> None:
    """Say which repeats of a segment are unlike the others; it takes three to tell."""
    if len(agreement) < 3:
        return
    usual = float(np.median(list(agreement.values())))
    for repeat, r in agreement.items():
        if usual > _CLEAR and r < _DISAGREES * usual:
            warnings.append(
                f"{segment.runs[repeat].path.name}: repeat {repeat} of {segment.name} is unlike the others "
                f"(correlation {r:.2f}, usually {usual:.2f}); look at it, or leave it out (data.exclude: "
                f"[{segment.name}/{repeat}])"
            )


def scene_of(onset: Float[np.ndarray, " T"], t_r: float, cuts: list[float]) -> np.ndarray:
    """Scene number of each clip of a film, (T,), counted from 0 without gaps: the scene at the middle of the clip."""
    scene = np.searchsorted(np.array(cuts), onset + t_r / 2, side="right")
    return np.unique(scene, return_inverse=True)[1]  # scenes that no clip's middle falls into get no number


def _measure_lag(source: Source, data: Prepared, films: Path, warnings: list[str]) -> dict[str, Any]:
    """Decodability at lags from 0 TRs to 2 beyond the delay (4 at least), fitted on a few training segments and tried
    on the validation segments."""
    delay = data.delay_trs
    lags = list(range(max(4, source.delays[-1] + 2) + 1))

    def part(clips: Clips) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ends = np.cumsum(np.bincount(clips.segment))  # segments are in order
        n = int(ends[max(1, int(np.searchsorted(ends, _LAG_CLIPS, side="right"))) - 1])  # whole ones
        chosen = replace(clips, frames=clips.frames[:, :1]).take(np.arange(n))  # without a gigabyte of film
        # Mapped anew for each part, as in _describe_split.
        film = [
            lag.thumbnails(read_arrays(films / f"{clips.split}.safetensors")["frames"][start : min(start + 64, n)])
            for start in range(0, n, 64)
        ]
        return chosen.responses(), np.concatenate(film), np.asarray(chosen.segment)

    curve = lag.row_lags(part(data.train), part(data.validation), [k - delay for k in lags])
    best = int(curve.argmax())
    seen = max(source.delays, key=lambda k: float(curve[k]))  # the best of those that decoders see
    if curve[best] > max(lag.meaningful(len(data.validation)), curve[seen] + lag.MARGIN):
        warnings.append(
            f"responses decode the film best at a lag of {best} TRs (correlation {curve[best]:.3f}), not at "
            f"data.delay_trs = {seen} ({curve[seen]:.3f})"
        )
    return {"lag_trs": lags, "correlation": [float(c) for c in curve], "best": best}
