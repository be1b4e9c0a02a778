"""From a data set in the CC2017 layout to the arrays of three splits: the first stage of every run.

Two passes, one scan in memory at a time: the training scans tell which voxels answer the film reliably; then every
scan is cleaned again, at these voxels only, and written beside its film's clips.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroclips.artefacts import ArrayWriter, read_arrays, write_arrays, write_json
from neuroclips.data.bold import clean, read_run
from neuroclips.data.cc2017 import N_CORTEX, TRAILING_SPARES
from neuroclips.data.clips import Clips, TestClips, TrainingClips, ValidationClips
from neuroclips.data.frames import read_clips, scene_cuts
from neuroclips.data.lag import MEANINGFUL, lag_curve, thumbnails
from neuroclips.data.selection import FALLBACK, Selection, repeat_correlation, select_voxels
from neuroclips.data.splits import SPLITS, Segment, find_splits
from neuroclips.errors import ArtefactError, DataError
from neuroclips.recipe import DataRecipe
from neuroclips.shapes import Bool, Float, Float32

_LAG_SEGMENTS = 4  # training segments that the lag curve is fitted on: 32 minutes of CC2017 tell the delay
_T_R_TOLERANCE = 0.001  # seconds by which a header may differ from the recipe unmentioned

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Prepared:
    """The prepared data of one subject, memory-mapped. Voxel arrays cover all 59,412 cortical vertices.

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


def prepare(root: Path, recipe: DataRecipe, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write ``train``, ``validation``, ``test`` and ``voxels`` (.safetensors) and ``segments.json`` into ``out``.

    ``progress(done, total, what)`` is called before each scan and film. Returns the summary for the stage's card:
    what was found, left out, selected, and every doubt under ``warnings`` (logged, too).

    Raises
    ------
    DataError
        Something on disk is not what the recipe or the layout says; the message names the file, what came and what
        was expected. Missing repeats and runs of a wrong length are not errors: they are left out and reported.
    """
    if recipe.delay_trs > TRAILING_SPARES:
        raise DataError(f"data.delay_trs is {recipe.delay_trs}; expected at most {TRAILING_SPARES}, the spare volumes")
    splits = find_splits(Path(root), recipe)
    stage = _Stage(recipe, out, progress or (lambda done, total, what: None))
    stage.total = 2 * sum(len(s.runs) for s in splits["train"]) + sum(
        len(s.runs) for split in SPLITS[1:] for s in splits[split]
    ) + sum(len(splits[split]) for split in SPLITS)  # fmt: skip

    selection = stage.select(splits["train"])
    scenes = 0
    described = {}
    for split in SPLITS:
        described[split], scenes = stage.write_split(split, splits[split], selection.mask, first_scene=scenes)
    write_arrays(
        out / "voxels.safetensors",
        {"mask": selection.mask, "p": selection.p, "t": selection.t, "reliability": selection.reliability},
    )
    lags = stage.lags(splits, selection.mask)
    write_json(
        out / "segments.json",
        {
            "t_r": recipe.t_r,
            "delay_trs": recipe.delay_trs,
            "segments": {split: [s.name for s in splits[split]] for split in SPLITS},
        },
    )
    return {
        "subject": recipe.subject,
        "t_r": recipe.t_r,
        "delay_trs": recipe.delay_trs,
        "splits": described,
        "selection": {
            **recipe.selection.model_dump(),
            "selected": int(selection.mask.sum()),
            "of": N_CORTEX,
            "fallback": selection.fallback,
            "median_reliability": float(np.median(selection.reliability[selection.mask])),
        },
        "lag_curve": lags,
        "constant_voxels": stage.constant,
        "scenes": scenes,
        "warnings": stage.warnings,
    }


class _Stage:
    """What accumulates while one subject is prepared: warnings, odd voxels, progress."""

    def __init__(self, recipe: DataRecipe, out: Path, progress: Progress):
        self.recipe, self.out, self.progress = recipe, out, progress
        self.warnings: list[str] = []
        self.constant: dict[str, int] = {}  # scan -> voxels that never change in it
        self.wrong_t_r: set[Path] = set()
        self.done = self.total = 0

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        log.warning(text)

    def step(self, what: str) -> None:
        self.progress(self.done, self.total, what)
        self.done += 1

    def read(self, path: Path, n_trs: int) -> np.ndarray:
        """All volumes of a run, (T, 59412); a header that states another TR is noted, not believed."""
        run = read_run(path, n_trs)
        if run.t_r is None or abs(run.t_r - self.recipe.t_r) > _T_R_TOLERANCE:
            self.wrong_t_r.add(path)
            if len(self.wrong_t_r) == 1:  # the others are most likely alike
                stated = "no usable TR" if run.t_r is None else f"a TR of {run.t_r:g} s"
                self.warn(f"{path.name}: header states {stated}; the recipe's {self.recipe.t_r:g} s is used")
        return run.values

    def select(self, segments: tuple[Segment, ...]) -> Selection:
        """Pass 1, training segments only: repeat correlations, then the voxels."""
        rows = []
        for segment in segments:
            rows.append(repeat_correlation(self._cleaned(segment)))
        selection = select_voxels(np.stack(rows), self.recipe.selection)
        if selection.fallback:
            self.warn(
                f"no reliable brain signal: fewer than 100 voxels pass Bonferroni at p < {self.recipe.selection.p:g} "
                f"over {len(segments)} training segments; the {FALLBACK} voxels of smallest p are used instead"
            )
        return selection

    def _cleaned(self, segment: Segment):
        for repeat, path in segment.runs.items():
            self.step(f"reliability: {segment.name} repeat {repeat}")
            run = clean(self.read(path, segment.n_trs), segment.n_trs, self.recipe.delay_trs)
            yield run

    def write_split(
        self, split: str, segments: tuple[Segment, ...], mask: np.ndarray, first_scene: int
    ) -> tuple[dict[str, Any], int]:
        """Pass 2: one split's arrays. Returns its description and the next free scene number."""
        raise NotImplementedError
