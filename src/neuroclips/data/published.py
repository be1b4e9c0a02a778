"""CC2017 as published for NeuroClips: tensors that somebody prepared, read through the same interface as scans.

Nothing says by how much responses were shifted against the film when the tensors were made (method a.4). It is
measured: the shift of rows at which responses decode the film best, on training and validation segments.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from neuroclips.data.bold import zscore
from neuroclips.data.frames import FilmInfo, cuts_between
from neuroclips.data.lag import meaningful, row_lags, thumbnails
from neuroclips.data.pairing import resized
from neuroclips.data.source import SPLITS, Scan, Segment, check_splits, delays_of, left_out
from neuroclips.data.tensors import PublishedTensors, SplitTensors, open_tensors, tensor_files
from neuroclips.data.timing import default_delay, exact
from neuroclips.data.volumes import VolumeMask
from neuroclips.errors import DataError
from neuroclips.recipe import DataRecipe
from neuroclips.shapes import Float32, UInt8

TRS = 240  # rows of a segment: 480 s
SHIFTS = range(-4, 5)  # rows by which responses are tried against the film
ASKED = 6  # training segments that the shift is measured with, and as many validation segments at most

Progress = Callable[[int, int, str], None]


class TensorSource:
    """The published tensors of one subject. Segments are ``seg1`` ... and ``test1`` ..., 240 rows each, in order.

    stored : the delay between film and response, in TRs, that is inside the tensors; ``about`` says how it is known.
    """

    others: tuple[Segment, ...] = ()
    space = "published tensor; places of its voxels are unknown"
    mask: VolumeMask | None = None

    def __init__(self, root: Path, recipe: DataRecipe, progress: Progress | None = None):
        self.folder, self.t_r = Path(root), recipe.t_r or 2.0
        key = (str(self.folder), recipe.subject, self._files(recipe.subject))
        if key not in _OPENED:
            _OPENED[key] = open_tensors(self.folder, recipe.subject, trs_per_segment=TRS, progress=progress)
        self.tensors = _OPENED[key]
        self.about: dict[str, Any] = dict(self.tensors.about)
        self.warnings: list[str] = list(self.about.get("warnings", []))
        self.constant: dict[str, int] = {}
        self.n_voxels = self.tensors.train.bold.shape[2]
        self.delays = delays_of(recipe, self.t_r)
        self.stored, said = self._stored(recipe)
        self.about["stored_delay_trs"] = said
        self._shift = self.delays[0] - self.stored  # row j + shift goes with clip j
        if abs(self._shift) > TRS // 4:
            raise DataError(f"{root}: a shift of {self._shift} rows; expected a delay nearer to what is stored")
        self.splits = {
            split: tuple(self._segment(name, split, recipe) for name in getattr(recipe, split)) for split in SPLITS
        }
        check_splits(self.splits)
        self.warnings += left_out(self.splits)

    def _files(self, subject: int) -> tuple[tuple[str, int, int], ...]:
        files = sorted(tensor_files(self.folder, subject).values())
        return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)

    def _part(self, name: str) -> tuple[SplitTensors, slice]:
        """The tensors that hold a segment, and its rows."""
        for prefix, tensors in (("seg", self.tensors.train), ("test", self.tensors.test)):
            number = name.removeprefix(prefix)
            if name.startswith(prefix) and number.isdigit() and 1 <= int(number) <= len(tensors.bold) // TRS:
                return tensors, slice((int(number) - 1) * TRS, int(number) * TRS)
        n_train, n_test = (len(t.bold) // TRS for t in (self.tensors.train, self.tensors.test))
        raise DataError(
            f"{self.folder}: no segment {name!r}; expected seg1 to seg{n_train} and test1 to test{n_test}, for tensors "
            f"of {len(self.tensors.train.bold)} and {len(self.tensors.test.bold)} rows"
        )

    def _segment(self, name: str, split: str, recipe: DataRecipe) -> Segment:
        tensors, rows = self._part(name)
        if name.startswith("test") and split != "test":
            raise DataError(f"segment {name!r} is test film; expected it in the split test")
        runs, excluded = {}, {}
        published = "test" if tensors is self.tensors.test else "train"
        for repeat in range(1, tensors.bold.shape[1] + 1):
            if f"{name}/{repeat}" in (recipe.exclude or ()):
                excluded[repeat] = f"{name}, repeat {repeat}: named in data.exclude"
            elif [published, rows.start // TRS, repeat - 1] in self.about["missing_repeats"]:
                excluded[repeat] = f"{name}, repeat {repeat}: all zero in {self.folder}"
            else:
                runs[repeat] = Scan(self.folder, max(0, self._shift), TRS)
        _, f, _, height, width = tensors.frames.shape
        info = FilmInfo(Fraction(f) / exact(self.t_r), TRS * f, height, width)
        start = max(0, -self._shift) * exact(self.t_r)
        return Segment(name, split, self.folder, info, start, TRS - abs(self._shift), runs, excluded)

    def _stored(self, recipe: DataRecipe) -> tuple[int, str]:
        if recipe.stored_delay_trs is not None:
            return recipe.stored_delay_trs, f"{recipe.stored_delay_trs}, given as data.stored_delay_trs"
        usual = default_delay(self.t_r)
        curve = _row_lags(self, tuple(recipe.train[:ASKED]), tuple(recipe.validation[:ASKED]))
        self.about["row_lag_curve"] = {"rows": list(SHIFTS), "correlation": [float(c) for c in curve]}
        best = SHIFTS[int(curve.argmax())]
        tried = len(recipe.validation[:ASKED]) * (TRS - SHIFTS[-1] + SHIFTS[0])
        if curve.max() < meaningful(tried):
            self.warnings.append(
                f"{self.folder}: no shift of rows decodes the film (best correlation {curve.max():.3f}); the delay "
                f"inside the tensors is unknown and taken as {usual} TRs; data.stored_delay_trs says otherwise"
            )
            return usual, f"{usual}, assumed: no shift decodes the film"
        stored = usual - best
        text = (
            f"{stored}, measured: responses decode the film best {best} rows after its clip (correlation "
            f"{curve.max():.3f}), and {usual} TRs after it is when a brain answers"
        )
        if stored != usual:
            self.warnings.append(
                f"{self.folder}: a delay of {stored} TRs is inside the tensors, not the {usual} of the paper; rows are "
                f"shifted by {self.delays[0] - stored} (data.stored_delay_trs overrules the measurement)"
            )
        return stored, text

    def responses(self, segment: Segment, repeat: int, voxels: np.ndarray | None = None) -> Float32[np.ndarray, "T V"]:
        tensors, rows = self._part(segment.name)
        first = rows.start + max(0, self._shift)
        kept = tensors.bold[first : first + segment.n_trs, repeat - 1]
        values = np.asarray(kept if voxels is None else kept[:, voxels], np.float32)
        still = int((values.max(axis=0) == values.min(axis=0)).sum())
        if still:
            self.constant[f"{segment.name}, repeat {repeat}"] = still
        part = self.about["test" if tensors is self.tensors.test else "train"]
        return values if part["z_scored_per_segment"] else zscore(values)

    def film(
        self, segment: Segment, frames_per_clip: int, size: int, out: UInt8[np.ndarray, "T F 3 H W"]
    ) -> list[float]:
        tensors, rows = self._part(segment.name)
        _, f, _, height, width = tensors.frames.shape
        if f % frames_per_clip or height != width:
            raise DataError(
                f"{self.folder}: {f} frames of {height} x {width} pixels a clip, and data.frames_per_clip is "
                f"{frames_per_clip}; expected a divisor of {f}, and square frames"
            )
        step = f // frames_per_clip
        first = rows.start + max(0, -self._shift)
        for row in range(segment.n_trs):
            frames = tensors.frames.read(slice(first + row, first + row + 1))[0, ::step]
            out[row] = frames if height == size else resized(frames, size, size)
        fps = frames_per_clip / exact(self.t_r)
        start = float(segment.start)  # as everywhere, cuts are in seconds of the film
        return [start + cut for cut in cuts_between((frame for clip in out for frame in clip), fps)]

    def captions(self, segment: Segment) -> tuple[list[str], Float32[np.ndarray, "T P"] | None] | None:
        """The published captions of a segment's clips, and their embeddings where they are published, too."""
        tensors, rows = self._part(segment.name)
        first = rows.start + max(0, -self._shift)
        if tensors.captions is None:
            return None
        chosen = slice(first, first + segment.n_trs)
        return tensors.captions[chosen], None if tensors.text is None else tensors.text[chosen]

    def identity(self, times: bool = True) -> dict[str, dict[str, Any]]:
        names = {split: [s.name for s in self.splits[split]] for split in SPLITS}
        files = [(Path(name).name, size, changed) for name, size, changed in self._files(self.tensors.subject)]
        grid = {"t_r": self.t_r, "shift": self._shift, "splits": names, "files": files}
        runs = {s.name: list(s.runs) for split in SPLITS for s in self.splits[split]}
        scans = {**grid, "runs": runs}  # the shift of rows is in the grid
        return {"films": grid, "training": scans, "scans": {**scans, "delays": self.delays}}


# Of files that did not change, for the several stages of a run.
_OPENED: dict[Any, PublishedTensors] = {}
_CURVES: dict[Any, Float32[np.ndarray, " L"]] = {}


def _row_lags(source: TensorSource, training: tuple[str, ...], validation: tuple[str, ...]) -> np.ndarray:
    """How well responses decode the film at each of ``SHIFTS``: fitted on training, tried on validation segments."""
    key = (source._files(source.tensors.subject), training, validation)
    if key not in _CURVES:

        def parts(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            found = [source._part(name) for name in names]
            bold = [np.asarray(t.bold[rows], np.float32).mean(axis=1) for t, rows in found]
            film = [thumbnails(t.frames.read(rows)[:, 2:3]) for t, rows in found]
            return np.concatenate(bold), np.concatenate(film), np.repeat(np.arange(len(names)), TRS)

        _CURVES[key] = row_lags(parts(training), parts(validation), SHIFTS)
    return _CURVES[key]
