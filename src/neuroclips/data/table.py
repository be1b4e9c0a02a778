"""Your own study: a table with one row for each presentation of a film in a scan.

    run                                onset  film                split       (and segment, repeat, subject, mask,
    sub-01/func/sub-01_..._bold.nii.gz  12.0  stimuli/harbour.mp4  train       confounds, film_start, duration)

Paths are relative to the table. Any TR, any frame rate, any onset: ``timing`` says which film goes with which volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path

import pandas as pd

from neuroclips.data.bold import count_volumes, header_t_r
from neuroclips.data.frames import film_info
from neuroclips.data.source import SPLITS, Scan, ScanSource, Segment, delays_of
from neuroclips.data.timing import clips_in_film, clips_in_run, cut, exact, place
from neuroclips.data.volumes import count_nifti_volumes, nifti_t_r, read_mask, read_motion
from neuroclips.errors import DataError
from neuroclips.recipe import DataRecipe

NEEDED = ("run", "onset", "film")
COLUMNS = (*NEEDED, "segment", "repeat", "split", "subject", "mask", "confounds", "film_start", "duration")
WHOLE_ENOUGH = 0.9  # of a film's clips must be in a run, or the run is left out as cut short
SHORTEST = 10  # clips of a film
_MISFIT = 0.1  # of a TR by which a repeat may lie off the grid of volumes unmentioned


@dataclass(frozen=True)
class Presentation:
    """A row of the table. ``line`` counts from 2, below the header, as an editor does. Times are in seconds."""

    line: int
    run: Path
    onset: Fraction
    film: Path
    segment: str
    repeat: int
    split: str | None
    mask: Path | None
    confounds: Path | None
    film_start: Fraction
    duration: Fraction | None


def read_presentations(path: Path, subject: int) -> list[Presentation]:
    """The presentations that a table lists for a subject (all, where it has no column ``subject``).

    Raises
    ------
    DataError
        Not a table, a needed column is missing, a column is unknown, a value is missing or of the wrong kind, or a file
        does not exist; the message names the table, the line, what came and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}; expected a table of your study (docs/bids.md)")
    table = _parsed(path)
    missing = [name for name in NEEDED if name not in table]
    unknown = [str(name) for name in table if name not in COLUMNS]
    if missing or unknown:
        said = [f"no column {', '.join(missing)}"] if missing else []
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        said += [f"unknown column {', '.join(unknown[:3])}{more}"] if unknown else []
        raise DataError(
            f"{path}: {'; '.join(said)}; expected {', '.join(NEEDED)} and any of {', '.join(COLUMNS[len(NEEDED) :])}, "
            f"separated by {'commas' if path.suffix == '.csv' else 'tabs'}"
        )
    rows = _Rows(path, table)
    if "subject" in table:
        numbers = table["subject"].map(lambda text: text.strip().removeprefix("sub-").lstrip("0"))
        chosen = numbers == str(subject)
        if not chosen.any():
            raise DataError(
                f"{path}: no row of subject {subject}; expected one of {', '.join(sorted(set(table['subject'])))}"
            )
        rows.table = table[chosen]
    found, counted = list[Presentation](), dict[str, int]()
    for number in rows.table.index:
        film = rows.file(number, "film")
        segment = rows.text(number, "segment") or film.stem
        counted[segment] = counted.get(segment, 0) + 1
        split = rows.text(number, "split") or None
        if split not in (None, *SPLITS):
            raise rows.error(number, f"split is {split!r}; expected {', '.join(SPLITS)}, or nothing")
        repeat = rows.seconds(number, "repeat", Fraction(counted[segment]))
        assert repeat is not None
        if repeat.denominator != 1 or not 1 <= repeat <= 99:
            raise rows.error(number, f"repeat is {float(repeat):g}; expected a whole number from 1 to 99")
        onset, start = rows.seconds(number, "onset"), rows.seconds(number, "film_start", Fraction(0))
        assert onset is not None
        assert start is not None
        if start < 0:
            raise rows.error(number, f"film_start is {float(start):g}; expected 0 or more")
        found.append(
            Presentation(
                line=number + 2, run=rows.file(number, "run"), onset=onset, film=film, segment=segment,
                repeat=int(repeat), split=split, mask=rows.optional_file(number, "mask"),
                confounds=rows.optional_file(number, "confounds"), film_start=start,
                duration=rows.seconds(number, "duration", None),
            )
        )  # fmt: skip
    if not found:
        raise DataError(f"{path}: no rows; expected one for each presentation of a film")
    return found


def _parsed(path: Path) -> pd.DataFrame:
    """The rows of a table that hold anything, as text; row n is line n + 2 of the file."""
    try:
        table = pd.read_csv(
            path, sep="," if path.suffix == ".csv" else "\t", dtype=str, keep_default_na=False, skip_blank_lines=False
        )
        if len(table) and not isinstance(table.index, pd.RangeIndex):
            raise ValueError("its rows have more values than its header has names")
        if not all(str(name).isprintable() for name in table):
            raise ValueError("its first line is not text")
    except Exception as error:  # whatever the parser raises on what is no table
        raise DataError(f"{path}: cannot be read as a table ({str(error).strip()})") from error
    return table[(table != "").any(axis=1)]


class _Rows:
    """Values of a table, checked one at a time."""

    def __init__(self, path: Path, table: pd.DataFrame):
        self.path, self.table = path, table

    def error(self, number: int, text: str) -> DataError:
        return DataError(f"{self.path}, line {number + 2}: {text}")

    def text(self, number: int, column: str) -> str:
        value = str(self.table.at[number, column]).strip() if column in self.table else ""
        return "" if value == "n/a" else value

    def file(self, number: int, column: str) -> Path:
        text = self.text(number, column)
        if not text:
            raise self.error(number, f"no {column}; expected the path of a file, from {self.path.parent} on")
        found = self.path.parent / text
        if not found.is_file():
            raise self.error(number, f"{column} is {text}, and there is no file {found}")
        return found

    def optional_file(self, number: int, column: str) -> Path | None:
        return self.file(number, column) if self.text(number, column) else None

    def seconds(self, number: int, column: str, default: Fraction | str | None = "needed") -> Fraction | None:
        text = self.text(number, column)
        if not text and not isinstance(default, str):
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(number, f"{column} is {text!r}; expected a number")
        return exact(value)


def table_source(path: Path, recipe: DataRecipe) -> ScanSource:
    """The scans and films that a table lists."""
    path, warnings = Path(path), list[str]()
    rows = read_presentations(path, recipe.subject)
    by_name: dict[str, list[Presentation]] = {}
    for row in rows:
        by_name.setdefault(row.segment, []).append(row)
    cortical = {_is_cifti(row.run) for row in rows}
    if len(cortical) > 1:
        raise DataError(
            f"{path}: some runs are CIFTI and some NIfTI; expected one kind, for voxels are the same in all"
        )
    mask = None if cortical == {True} else read_mask(_only_mask(path, rows, recipe))
    volumes = {row.run: count_volumes(row.run) if mask is None else count_nifti_volumes(row.run, mask) for row in rows}
    t_r = recipe.t_r or _agreed_t_r(path, sorted(volumes), cortical == {True})
    delays = delays_of(recipe, t_r)
    splits: dict[str, list[Segment]] = {split: [] for split in SPLITS}
    for name, split in _splits(path, by_name, recipe).items():
        segment = _segment(path, by_name[name], split, volumes, t_r, delays[0], recipe, warnings)
        splits[split].append(segment)
    _check_overlaps(path, [segment for split in SPLITS for segment in splits[split]], t_r)
    return ScanSource(
        path.parent, {split: tuple(found) for split, found in splits.items()},
        t_r=t_r, delays=delays, mask=mask, detrend=recipe.detrend, warnings=warnings,
    )  # fmt: skip


def _is_cifti(path: Path) -> bool:
    if path.name.endswith(".dtseries.nii"):
        return True
    if path.name.endswith((".nii", ".nii.gz")):
        return False
    raise DataError(f"{path}: expected a scan, .dtseries.nii (CIFTI), .nii or .nii.gz (NIfTI)")


def _only_mask(path: Path, rows: list[Presentation], recipe: DataRecipe) -> Path:
    masks = sorted({row.mask for row in rows if row.mask is not None})
    if recipe.mask is not None:
        return recipe.mask
    if not masks:
        raise DataError(f"{path}: NIfTI runs without a mask; expected a column mask, or data.mask")
    if len(masks) > 1:
        # fMRIPrep writes a mask for each run; voxels must be the same in all of them.
        raise DataError(
            f"{path}: {len(masks)} masks, such as {masks[0].name} and {masks[1].name}; expected the same one in every "
            "row (nilearn.masking.intersect_masks makes one), or data.mask"
        )
    return masks[0]


def _agreed_t_r(path: Path, runs: list[Path], cortical: bool) -> float:
    """The TR that all scans state."""
    stated = {run: header_t_r(run) if cortical else nifti_t_r(run) for run in runs}
    silent = [run for run, t_r in stated.items() if t_r is None]
    if silent:
        raise DataError(f"{silent[0]}: states no usable TR; give data.t_r (seconds)")
    periods = {t_r for t_r in stated.values() if t_r is not None}
    if max(periods) - min(periods) > 0.001:
        slow, fast = (next(run for run, t_r in stated.items() if t_r == end) for end in (max(periods), min(periods)))
        raise DataError(
            f"{path}: {slow.name} has a TR of {max(periods):g} s and {fast.name} one of {min(periods):g} s; expected "
            "one TR; give data.t_r if a header is wrong"
        )
    return float(exact(min(periods)))


def _splits(path: Path, by_name: dict[str, list[Presentation]], recipe: DataRecipe) -> dict[str, str]:
    """Segment -> split: from the recipe where it names segments, else from the table."""
    if recipe.train:
        named = {name: split for split in SPLITS for name in getattr(recipe, split)}
        unknown = [name for name in named if name not in by_name]
        if unknown:
            raise DataError(f"{path}: no segment {', '.join(unknown)}; expected some of {', '.join(by_name)}")
        return named
    found = {}
    for name, rows in by_name.items():
        splits = {row.split for row in rows}
        if len(splits) > 1:
            raise DataError(f"{path}: segment {name} is in the splits {', '.join(map(str, splits))}; expected one")
        split = splits.pop()
        if split is None:
            raise DataError(
                f"{path}, line {rows[0].line}: segment {name} has no split; expected a column split with "
                f"{', '.join(SPLITS)}, or data.train, data.validation and data.test"
            )
        found[name] = split
    return found


def _segment(
    path: Path, rows: list[Presentation], split: str, volumes: dict[Path, int], t_r: float, delay: int,
    recipe: DataRecipe, warnings: list[str],
) -> Segment:  # fmt: skip
    """One film's presentations on the grid that the first one gives."""
    first = rows[0]
    for row in rows[1:]:
        if (row.film, row.film_start, row.duration) != (first.film, first.film_start, first.duration):
            raise DataError(
                f"{path}, line {row.line}: segment {row.segment} is another film, or another part of it, than in line "
                f"{first.line}; expected the same"
            )
    if len({(row.run, row.onset) for row in rows}) < len(rows):
        raise DataError(f"{path}: segment {first.segment} has the same run and onset in two rows; expected each once")
    if len({row.repeat for row in rows}) < len(rows):
        raise DataError(
            f"{path}: segment {first.segment} has the repeats {sorted(r.repeat for r in rows)}; expected each once"
        )
    info = film_info(first.film)
    rest = info.length - first.film_start
    shown = rest if first.duration is None else min(rest, first.duration)
    if first.duration is not None and first.duration > rest + exact(t_r) / 4:
        warnings.append(f"{first.film}: lasts {float(rest):g} s; {path.name} says {float(first.duration):g} s")
    _, offset = cut(first.onset, t_r)
    in_film = clips_in_film(shown, offset, t_r, recipe.frames_per_clip)
    runs, excluded, counts = dict[int, Scan](), dict[int, str](), list[int]()
    for row in rows:
        placed = place(row.onset, t_r, offset)
        motion = None if row.confounds is None else read_motion(row.confounds, volumes[row.run])
        has = clips_in_run(volumes[row.run], placed.first, delay)
        reason = None
        if recipe.exclude is not None and f"{row.segment}/{row.repeat}" in recipe.exclude:
            reason = "named in data.exclude"
        elif abs(placed.misfit) > exact(t_r) / 2:
            reason = f"the film began {-float(row.onset):g} s before the scan"
        elif has < WHOLE_ENOUGH * in_film:
            reason = (
                f"{volumes[row.run]} volumes; expected at least {placed.first + delay + in_film}, for the {in_film} "
                f"clips of {first.film.name} from {float(row.onset):g} s on"
            )
        elif motion is not None and recipe.max_motion is not None and motion["mean_fd_mm"] > recipe.max_motion:
            reason = (
                f"mean framewise displacement {motion['mean_fd_mm']:.2f} mm; data.max_motion is {recipe.max_motion:g}"
            )
        if reason is not None:
            excluded[row.repeat] = f"{row.run}: {reason}"
            continue
        if abs(placed.misfit) > _MISFIT * exact(t_r):
            warnings.append(
                f"{path}, line {row.line}: repeat {row.repeat} of {row.segment} starts {float(placed.misfit):+.2f} s "
                f"off the grid of volumes that line {first.line} gives"
            )
        runs[row.repeat] = Scan(row.run, placed.first, volumes[row.run], float(placed.misfit), motion)
        counts.append(has)
    n_trs = min([in_film, *counts])
    if n_trs < in_film:
        warnings.append(
            f"{first.film.name}: the last {in_film - n_trs} of {in_film} clips are left out; a scan ends before the "
            "response to them"
        )
    if n_trs < SHORTEST:
        raise DataError(
            f"{first.film}: {n_trs} clips of {t_r:g} s; expected at least {SHORTEST}, for voxels are z-scored within a "
            "film; join films that were shown one after the other into one"
        )
    return Segment(
        first.segment, split, first.film, info, first.film_start + offset, n_trs, dict(sorted(runs.items())), excluded
    )


def _check_overlaps(path: Path, segments: list[Segment], t_r: float) -> None:
    """Raise DataError if two segments share volumes of a run, or if two splits share film."""
    for one, other in combinations(segments, 2):
        late = max(one.start, other.start)
        early = min(segment.start + segment.n_trs * exact(t_r) for segment in (one, other))
        if one.split != other.split and one.film == other.film and late < early:
            raise DataError(
                f"{path}: {one.film.name} from {float(late):g} to {float(early):g} s is in {one.name} ({one.split}) "
                f"and in {other.name} ({other.split}); expected film of one split in no other"
            )
        for scan, beside in product(one.runs.values(), other.runs.values()):
            # One volume may be shared: a repeat is placed to the nearest, a little early or late.
            first, last = max(scan.first, beside.first), min(scan.first + one.n_trs, beside.first + other.n_trs)
            if scan.path == beside.path and last - first > 1:
                raise DataError(
                    f"{path}: {one.name} and {other.name} are both shown during the volumes {first} to {last - 1} of "
                    f"{scan.path.name}; expected one film at a time"
                )
