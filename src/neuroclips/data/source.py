"""Where responses and film come from: scans on disk, or tensors that somebody prepared. Looked at before any work.

A source knows its segments, and gives the cleaned responses of one scan and the clips of one film at a time. What
prepares arrays from it (``prepare``) does not know which kind it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from neuroclips.data.bold import Run, read_run, standardise
from neuroclips.data.cc2017 import N_CORTEX
from neuroclips.data.frames import FilmInfo, read_clips, scene_cuts
from neuroclips.data.rois import cortex_rois, mask_from_file, volume_rois
from neuroclips.data.timing import check_delays, default_delay
from neuroclips.data.volumes import VolumeMask, read_nifti_run
from neuroclips.errors import DataError
from neuroclips.recipe import DataRecipe, SelectionRecipe
from neuroclips.shapes import Bool, Float32, UInt8

SPLITS = ("train", "validation", "test")
# Selection correlates the repeats of training segments; the other splits only need an answer.
MIN_REPEATS = {"train": 2, "validation": 1, "test": 1}
CORTEX = "fs_LR 32k cortex"  # the space of CIFTI scans: 59,412 vertices, left then right

_T_R_TOLERANCE = 0.001  # seconds by which a header may differ from the recipe unmentioned
_DETREND_SECONDS = 150.0  # one more degree for each: the rule of AFNI's 3dDeconvolve, 4 for the 480 s of CC2017


@dataclass(frozen=True)
class Scan:
    """One presentation of a segment's film.

    first : the volume during which clip 0 was shown (``timing``).  misfit : see ``timing.Placed``, seconds.
    motion : framewise displacement, where it is known (``volumes.read_motion``).
    """

    path: Path
    first: int
    n_volumes: int
    misfit: float = 0.0
    motion: dict[str, float] | None = None


@dataclass(frozen=True)
class Segment:
    """One segment of one split: its film and its usable scans.

    start : the film's second at which clip 0 starts.  n_trs : its clips, one a TR.
    runs : scan by repeat number (from 1); repeats that are missing or left out are not in it.
    excluded : repeat number -> why it is left out.
    """

    name: str
    split: str
    film: Path
    info: FilmInfo
    start: Fraction
    n_trs: int
    runs: dict[int, Scan]
    excluded: dict[int, str] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Everything that ``prepare`` asks of data.

    splits : segments by split; others : the test segments with another subject's scans, or none.
    t_r : seconds.  delays : volumes between a clip and the responses that are seen with it; the first one pairs them.
    space : what voxels are, in words; n_voxels : how many.  mask : where they are in a volume, else None.
    warnings : what was odd, in the order in which it was met.
    constant : scan -> voxels that never change during its film.
    about : JSON-like, what else was measured.
    """

    splits: dict[str, tuple[Segment, ...]]
    others: tuple[Segment, ...]
    t_r: float
    delays: tuple[int, ...]
    space: str
    n_voxels: int
    mask: VolumeMask | None
    warnings: list[str]
    constant: dict[str, int]
    about: dict[str, Any]

    def responses(self, segment: Segment, repeat: int, voxels: np.ndarray | None = None) -> Float32[np.ndarray, "T V"]:
        """Detrended and z-scored responses to the clips of a segment, in one repeat; of some voxels, or all."""
        ...

    def film(
        self, segment: Segment, frames_per_clip: int, size: int, out: UInt8[np.ndarray, "T F 3 H W"]
    ) -> list[float]:
        """Write the clips of a segment's film into ``out``; returns the seconds of the film's cuts."""
        ...

    def captions(self, segment: Segment) -> tuple[list[str], Float32[np.ndarray, "T P"] | None] | None:
        """A sentence for each clip of a segment, and unit embeddings of them, where they came with the data."""
        ...

    def identity(self, times: bool = True) -> dict[str, dict[str, Any]]:
        """JSON-like: what films, training scans and all scans are, so that a change of one makes results stale.

        Files are known by name, size and, with ``times``, time of change (ns).
        """
        ...


def delays_of(recipe: DataRecipe, t_r: float) -> tuple[int, ...]:
    """The recipe's delays in TRs, ascending; by default the one nearest to 4 s."""
    delays = recipe.delays or (default_delay(t_r),)
    check_delays(delays, t_r)
    return delays


def left_out(splits: dict[str, tuple[Segment, ...]]) -> list[str]:
    """A sentence for every scan that is left out."""
    every = (segment for split in SPLITS for segment in splits[split])
    return [f"left out: {reason}" for segment in every for reason in segment.excluded.values()]


def check_splits(splits: dict[str, tuple[Segment, ...]]) -> None:
    """Raise DataError unless each segment is in one split (leaking is worth two locks), no split is empty, training has
    the two segments that the selection's t-test needs, and each segment has enough scans."""
    names = [segment.name for split in SPLITS for segment in splits[split]]
    if len(set(names)) < len(names):
        raise DataError(f"segments {names}: one is named twice; expected each in exactly one split")
    for split in SPLITS:
        least = 2 if split == "train" else 1
        if len(splits[split]) < least:
            raise DataError(f"the {split} split names {len(splits[split])} segments; expected at least {least}")
        for segment in splits[split]:
            if len(segment.runs) < MIN_REPEATS[split]:
                raise DataError(
                    f"segment {segment.name!r} has {len(segment.runs)} usable scans; expected at least "
                    f"{MIN_REPEATS[split]} in the {split} split. {' '.join(segment.excluded.values())}".rstrip()
                )


class ScanSource:
    """Scans and films on disk: CC2017's layout, or a table of anybody's study (``cc2017.find``, ``table.find``)."""

    def __init__(
        self,
        root: Path,
        splits: dict[str, tuple[Segment, ...]],
        *,
        t_r: float,
        delays: tuple[int, ...],
        others: tuple[Segment, ...] = (),
        mask: VolumeMask | None = None,
        detrend: int | None = 4,
        warnings: list[str] | None = None,
    ):
        check_splits(splits)
        self.root = root  # what files are named from, so that a folder may be moved
        self.splits, self.others, self.t_r, self.delays, self.mask = splits, others, t_r, delays, mask
        self.detrend = detrend
        self.space = CORTEX if mask is None else f"volume, mask {mask.path.name}"
        self.n_voxels = N_CORTEX if mask is None else mask.n_voxels
        self.warnings = list(warnings or [])
        self.constant: dict[str, int] = {}
        self.about: dict[str, Any] = {}
        self.warnings += left_out(splits)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(segment for split in SPLITS for segment in self.splits[split])

    def degree(self, segment: Segment) -> int:
        """Of the polynomial in time that is removed from a scan."""
        return self.detrend or 1 + int(segment.n_trs * self.t_r / _DETREND_SECONDS)

    def _read(self, scan: Scan) -> Run:
        return read_run(scan.path) if self.mask is None else read_nifti_run(scan.path, self.mask)

    def responses(self, segment: Segment, repeat: int, voxels: np.ndarray | None = None) -> Float32[np.ndarray, "T V"]:
        scan = segment.runs[repeat]
        run = self._read(scan)
        # Said once: the other headers went through the same tools.
        other = run.t_r is None or abs(run.t_r - self.t_r) > _T_R_TOLERANCE
        if other and not any("its header states" in text for text in self.warnings):
            stated = "no usable TR" if run.t_r is None else f"a TR of {run.t_r:g} s"
            self.warnings.append(
                f"{scan.path}: its header states {stated}; the recipe's {self.t_r:g} s is used for all scans"
            )
        start = scan.first + self.delays[0]
        if len(run.values) != scan.n_volumes or start + segment.n_trs > scan.n_volumes:
            raise DataError(
                f"{scan.path}: {len(run.values)} volumes; expected {scan.n_volumes}, as when it was first looked at"
            )
        kept = run.values[start : start + segment.n_trs]
        still = int((kept.max(axis=0) == kept.min(axis=0)).sum())
        if still == kept.shape[1]:
            raise DataError(
                f"{scan.path}: no voxel changes in the {segment.n_trs} volumes of the film; expected a scan; leave it "
                f"out (data.exclude: [{segment.name}/{repeat}])"
            )
        if still:
            self.constant[scan.path.name] = still
        return standardise(kept if voxels is None else kept[:, voxels], self.degree(segment))

    def film(
        self, segment: Segment, frames_per_clip: int, size: int, out: UInt8[np.ndarray, "T F 3 H W"]
    ) -> list[float]:
        read_clips(segment.film, segment.n_trs, self.t_r, frames_per_clip, size, out=out, start=segment.start)
        return scene_cuts(segment.film)

    def captions(self, segment: Segment) -> None:
        return None

    def identity(self, times: bool = True) -> dict[str, dict[str, Any]]:
        def known(path: Path) -> list[Any]:
            about = path.stat()
            return [os.path.relpath(path, self.root), about.st_size, *([about.st_mtime_ns] if times else [])]

        def scans(segments: tuple[Segment, ...]) -> list[Any]:
            return [
                [s.split, s.name, s.n_trs, r, scan.first, *known(scan.path)]
                for s in segments
                for r, scan in s.runs.items()
            ]

        grid = {"t_r": self.t_r, "splits": {split: [s.name for s in self.splits[split]] for split in SPLITS}}
        mask = None if self.mask is None else known(self.mask.path)
        cleaning = {"t_r": self.t_r, "delay": self.delays[0], "detrend": self.detrend, "mask": mask}
        return {
            "films": grid | {"films": [[s.name, s.n_trs, str(s.start), *known(s.film)] for s in self.segments]},
            "training": cleaning | {"scans": scans(self.splits["train"])},
            "scans": cleaning | {"delays": self.delays, "scans": scans(self.segments), "others": scans(self.others)},
        }


def asked_voxels(source: Source, recipe: SelectionRecipe) -> Bool[np.ndarray, " G"]:
    """Which voxels of a source anatomy allows: those of the recipe's areas and of its mask file; all, by default.

    Raises DataError for an unknown area, a mask that does not fit, none that is in both, and where nothing is known of
    the places of voxels.
    """
    asked = np.ones(source.n_voxels, bool)
    if not (recipe.rois or recipe.mask):
        return asked
    if not isinstance(source, ScanSource):
        raise DataError(f"selection.rois and selection.mask need to know where voxels are; this is a {source.space}")
    if recipe.rois and source.mask is None:
        asked &= cortex_rois(recipe.rois, recipe.hemisphere)
    elif recipe.rois and source.mask is not None:
        if recipe.atlas is None:
            raise DataError(
                f"selection.rois: {', '.join(recipe.rois)} in a volume; expected an atlas in selection.atlas"
            )
        asked &= volume_rois(recipe.rois, recipe.atlas, recipe.atlas_labels, source.mask)
    if recipe.mask is not None:
        asked &= mask_from_file(recipe.mask, source.mask)
    if not asked.any():
        raise DataError(f"{recipe.mask}: none of its voxels is in {', '.join(recipe.rois)}; expected some in both")
    return asked
