"""Is this data set fit to be trusted? Checks of prepared data, before anybody believes a score.

Every check is a pure function: arrays in, a list of ``Finding`` out, at least one. Its criterion is closed (no fit by
eye) and its thresholds are the constants below. A *fault* breaks what scores mean; a *warning* is to be looked at.
Nothing here changes data, and nothing here is a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import Literal

import numpy as np
from scipy.linalg import solve

from neuroclips.data.selection import fisher_z, t_test
from neuroclips.evaluation.intervals import n_effective
from neuroclips.shapes import Bool, Float, Int, UInt8

Severity = Literal["ok", "warning", "fault"]

# The same scan twice. Noise keeps two real presentations apart, even where the film drives a voxel strongly.
COPY_R = 0.99  # pooled correlation of two scans; equal files have 1
NEAR_COPY_Z = 1.0  # Fisher's z by which a pair of repeats may pass the median pair: four of its usual spreads or more
NEAR_COPY_R = 0.8  # below this, a high pair is a good pair
# Shifts. Volumes are off by whole TRs or not at all, so half a TR or more is nearer to a fault than to none.
MAX_SHIFT = 3  # TRs tried to either side
MIN_TRS = 30  # a shorter run has too few rows to place a peak in
REPEAT_SHIFT = 0.4  # TRs from the middle repeat; two repeats one TR apart lie 0.5 from their middle each
FILM_SHIFT = 0.75  # TRs; the film's peak is broad, so it may be off by half a TR in a sound run
FILM_SPREADS = 5  # and so many robust standard deviations of all runs' peaks
FILM_COMPONENTS = 20  # principal components of the film's thumbnails that are decoded
FILM_R = 0.1  # mean curve below this: the film cannot be decoded here, and where its peak lies means nothing
WINDOW = (-1, 0, 1)  # volumes around a clip's own that it is decoded from: its response is smeared over several
# Repeats that disagree, as a share of the split's median.
REPEAT_R = 0.05  # median correlation below which a split as a whole says nothing
LOST, WEAK = 0.25, 0.5  # a fault below the first: another film, or no subject; a warning below the second: a tired one
# Film in two splits. Re-encoding keeps both bounds; another shot of the same place does not.
COPY_FRAME_R, COPY_FRAME_DIFFERENCE = 0.98, 8.0  # correlation of pixels at least, mean difference of 255 at most
SIMILAR_FRAME_R = 0.95  # worth a look
SAME_SHOT_R, SAME_SHOT_DIFFERENCE = 0.9, 16.0  # last frame of one segment and first of another, a fraction later
MIN_CONTRAST = 10.0  # standard deviation, of 255: black, white and faded frames are alike without being copies
NEAR_QUANTILE, NEAR_SHARE = 0.95, 0.25  # 5 % of test clips pass this quantile of training clips by luck, not 25 %
NEAR_CLIPS = 100  # training clips that such a quantile needs
GUARD_TRS = 5  # between clips of two splits in one run: the haemodynamic response is over after about 10 s
# Independence
FEW = 20  # effective clips below which an interval is a guess
# Values
SCALE = 0.1  # of a z-scored voxel's mean from 0 and standard deviation from 1
VOXEL_SHARE = 0.01  # of voxels that may be odd before a whole run or selection is called so
CONSTANT_SHARE = 0.05  # of voxels that never change in a run; more means that part of the brain was not scanned
JUMP = 8.0  # robust standard deviations of the volume-to-volume change that no repeat shares
# Voxel selection
EVIDENCE = 1e-3  # by which stored and recomputed reliability may differ: rounding is a thousand times smaller
T_EVIDENCE = 1e-2  # relative, median over voxels: t of two nearly equal segments is ill-conditioned


_START = "Compare the scan's start with the film's (dummy volumes, triggers); correct it or leave the run out."
_SELECT = "Select voxels again, from training segments only (neuroclips prepare)."


@dataclass(frozen=True)
class Finding:
    """What one check found.

    check : its name. severity : "ok", "warning" (look at it) or "fault" (scores would not mean what they say).
    found : what, with numbers. where : runs, segments or clips. do : what to do about it.
    numbers : the same numbers for programs. data : which data set, where several are audited.
    """

    check: str
    severity: Severity
    found: str
    where: str = ""
    do: str = ""
    numbers: Mapping[str, float | int] = field(default_factory=dict)
    data: str = ""


@dataclass(frozen=True)
class Scan:
    """One run: one presentation of one segment.

    values : (T, V) z-scored responses at the voxels compared, in order of time; finite.
    data : which data set, where several are audited.
    """

    split: str
    segment: str
    repeat: int
    values: Float[np.ndarray, "T V"]
    data: str = ""

    @property
    def name(self) -> str:
        return f"{self.data}{': ' if self.data else ''}{self.segment}, repeat {self.repeat}"


@dataclass(frozen=True)
class FilmPair:
    """Two clips of different splits that look alike: a held-out one and the one of another split nearest to it.

    clip, other : clip numbers. frame, other_frame : the frames that are most alike.
    r : correlation of their pixels. difference : their mean absolute difference, of 255.
    """

    clip: int
    frame: int
    other: int
    other_frame: int
    r: float
    difference: float

    @property
    def is_copy(self) -> bool:
        return self.r >= COPY_FRAME_R and self.difference <= COPY_FRAME_DIFFERENCE


def worst(findings: Iterable[Finding]) -> Severity:
    """The gravest severity among findings; "ok" where there are none."""
    order: tuple[Severity, ...] = ("ok", "warning", "fault")
    return max((f.severity for f in findings), key=order.index, default="ok")


def _or_ok(
    check: str, findings: list[Finding], found: str, numbers: Mapping[str, float | int] | None = None
) -> list[Finding]:
    return findings or [Finding(check, "ok", found, numbers=numbers or {})]


def _several(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _z(values: np.ndarray) -> np.ndarray:
    """Columns at mean 0 and variance 1 (divisor T); columns that do not vary are 0."""
    centred = values - values.mean(axis=0)
    sd = centred.std(axis=0)
    return centred * np.divide(1, sd, out=np.zeros_like(sd), where=sd > 1e-6)


def _robust_sd(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


# --- values -----------------------------------------------------------------------------------------------------------


def check_values(name: str, bold: Float[np.ndarray, "T V"], *, whole: bool = True) -> list[Finding]:
    """The values of one run: finite, changing, and z-scored per voxel. At most one finding of each kind; none if sound.

    Parameters
    ----------
    bold : all volumes of the run at all selected voxels.
    whole : the clips are all those of the run; a part of a run need not have mean 0 and standard deviation 1.

    Fault: any value that is not finite; more than 5 % of voxels constant; more than 1 % of the other voxels with a mean
    beyond 0.1 of 0 or a standard deviation (divisor T - 1) beyond 0.1 of 1. Warning: some voxels constant.
    """
    check, n = "values", bold.shape[1]
    finite = np.isfinite(bold).all(axis=0)
    found, broken = list[Finding](), int((~finite).sum())
    if broken:
        text = f"{broken} of {n} voxels have values that are not finite (first: column {int(np.argmin(finite))})"
        do = "Look at the scan; leave the run out, or prepare it again."
        found.append(Finding(check, "fault", text, name, do, {"not_finite": broken}))
    sound = bold[:, finite]
    varies = (sound != sound[0]).any(axis=0)
    constant = int((~varies).sum())
    if constant:
        text = f"{constant} of {n} voxels never change ({constant / n:.1%})"
        do = "They carry nothing in this run. If they are many, part of the brain lies outside the scan: leave it out."
        severity: Severity = "fault" if constant / n > CONSTANT_SHARE else "warning"
        found.append(Finding(check, severity, text, name, do, {"constant": constant}))
    sound = sound[:, varies]
    if whole and sound.size:
        mean, sd = sound.mean(axis=0, dtype=np.float64), sound.std(axis=0, ddof=1, dtype=np.float64)
        off = (np.abs(mean) > SCALE) | (np.abs(sd - 1) > SCALE)
        if off.mean() > VOXEL_SHARE:
            typical = {"mean": float(np.median(mean[off])), "sd": float(np.median(sd[off]))}
            text = (
                f"{off.mean():.0%} of voxels are not z-scored: mean {typical['mean']:.3g}, standard deviation "
                f"{typical['sd']:.3g} (medians over these); expected 0 and 1"
            )
            do = "Z-score every run by itself, as neuroclips prepare does; decoders assume it."
            found.append(Finding(check, "fault", text, name, do, typical))
    return found


def check_presence(segment: str, present: Bool[np.ndarray, "T R"], filled: Bool[np.ndarray, "T R"]) -> list[Finding]:
    """The repeats of one segment: those said to exist hold values, those said not to do not. No finding if complete.

    Parameters
    ----------
    present : which repeats of which clips are said to exist. filled : where any value differs from 0.

    Fault: a repeat that exists and is empty, or is filled and said not to exist. Warning: a repeat is missing.
    """
    check, found, n = "missing repeats", list[Finding](), present.shape[1]
    empty = [r + 1 for r in range(n) if (present[:, r] & ~filled[:, r]).any()]
    hidden = [r + 1 for r in range(n) if (~present[:, r] & filled[:, r]).any()]
    missing = [r + 1 for r in range(n) if not present[:, r].all() and r + 1 not in hidden]
    if empty:
        text = f"repeats {empty} are said to exist and have volumes of nothing but 0"
        do = "Prepare the data again; an average over empty repeats is too small."
        found.append(Finding(check, "fault", text, segment, do, {"empty": len(empty)}))
    if hidden:
        text = f"repeats {hidden} hold values and are said not to exist"
        do = "Prepare the data again, or correct 'present'."
        found.append(Finding(check, "fault", text, segment, do, {"hidden": len(hidden)}))
    if missing:
        text = f"repeats {missing} of {n} are missing"
        do = "Nothing, if the scan was never made; scores average what exists."
        found.append(Finding(check, "warning", text, segment, do, {"missing": len(missing)}))
    return found


def check_jumps(scans: Sequence[Scan]) -> list[Finding]:
    """Sudden changes of the whole picture between volumes, as motion makes them, in the repeats of one segment.

    The root mean square over voxels of the change since the volume before (DVARS; Power et al. 2012) less the median
    of the other repeats', since what the film does to the picture is common to all. Warning: it exceeds its median over
    the run by more than 8 robust standard deviations. Runs shorter than 30 TRs are not judged. None if there are none.
    """
    scans = [s for s in scans if len(s.values) >= MIN_TRS]
    changes = [np.sqrt(np.mean(np.diff(s.values, axis=0) ** 2, axis=1)) for s in scans]
    found = list[Finding]()
    for scan, change in zip(scans, changes):
        others = [c for c in changes if c is not change and len(c) == len(change)]
        excess = change - np.median(others, axis=0) if others else change
        height = (excess - np.median(excess)) / max(_robust_sd(excess), 1e-9)
        volumes = np.flatnonzero(height > JUMP) + 1
        if len(volumes):
            highest, which = float(height.max()), _several([str(v) for v in volumes])
            text = f"{len(volumes)} volumes change by up to {highest:.0f} robust standard deviations: {which} (from 0)"
            do = "Look for head motion there; leave the run out if there are many."
            numbers = {"volumes": len(volumes), "highest": highest}
            found.append(Finding("sudden jumps", "warning", text, scan.name, do, numbers))
    return found


# --- scans beside scans -----------------------------------------------------------------------------------------------


def check_duplicates(scans: Sequence[Scan]) -> list[Finding]:
    """The same scan under two names: two repeats, two segments or two subjects.

    Every pair of runs of equal length (at the same voxels) is correlated over volumes and voxels together. Fault: r
    above 0.99. Warning: a pair above 0.8 whose Fisher's z exceeds that of the median pair of repeats by more than 1.
    """
    check, found = "same scan twice", list[Finding]()
    pairs: list[tuple[float, Scan, Scan]] = []
    for shape in sorted({s.values.shape for s in scans}):
        group = [s for s in scans if s.values.shape == shape]
        flat = np.stack([_z(s.values).ravel() for s in group])
        flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
        r = flat @ flat.T
        pairs += [(float(r[a, b]), group[a], group[b]) for a, b in combinations(range(len(group)), 2)]
    pairs.sort(key=lambda pair: -pair[0])
    repeats = [r for r, a, b in pairs if (a.data, a.split, a.segment) == (b.data, b.split, b.segment)]
    usual = float(np.median(repeats)) if repeats else 0.0
    highest = max(NEAR_COPY_R, float(np.tanh(np.arctanh(min(usual, COPY_R)) + NEAR_COPY_Z)))
    kinds: dict[tuple[Severity, str, str], list[tuple[float, str]]] = {}  # all copies of one subject in one line
    for r, a, b in pairs:
        if r > min(highest, COPY_R):
            severity: Severity = "fault" if r > COPY_R else "warning"
            kinds.setdefault((severity, a.data, b.data), []).append((r, f"{a.name} and {b.name}"))
    for (severity, *_), copies in kinds.items():
        text = f"{len(copies)} pairs of scans correlate at up to r = {copies[0][0]:.4f}; the median pair of repeats at "
        do = "One scan may stand under two names: find the right one, or leave one out."
        where, numbers = _several([names for _, names in copies]), {"pairs": len(copies), "r": copies[0][0]}
        found.append(Finding(check, severity, f"{text}{usual:.2f}", where, do, numbers))
    top = pairs[0][0] if pairs else 0.0
    text = f"no two of {len(scans)} scans are copies; highest r = {top:.2f}, median pair of repeats {usual:.2f}"
    return _or_ok(check, found, text, {"highest_r": top, "usual_r": usual})


def shifted_correlation(a: Float[np.ndarray, "T D"], b: Float[np.ndarray, "T D"]) -> Float[np.ndarray, " S"]:
    """Mean over columns of the correlation of ``a`` at time t + s with ``b`` at time t, for s = -3 ... 3 TRs.

    Columns are z-scored over all T once; the mean is over the rows that overlap. T is at least 4.
    """
    a, b = _z(a), _z(b)
    n = len(a)
    shifts = range(-MAX_SHIFT, MAX_SHIFT + 1)
    rows = [(slice(max(s, 0), n + min(s, 0)), slice(max(-s, 0), n - max(s, 0))) for s in shifts]
    return np.array([np.mean(a[later] * b[now], dtype=np.float64) for later, now in rows])


def peak_position(curve: Float[np.ndarray, " S"]) -> float:
    """Where a curve over shifts -3 ... 3 has its peak, in TRs: through the highest value and its two neighbours, a
    parabola; the outermost shift where the highest value lies there."""
    top = int(np.argmax(curve))
    if top in (0, len(curve) - 1):
        return float(top - MAX_SHIFT)
    before, at, after = curve[top - 1 : top + 2]
    bend = before - 2 * at + after
    return float(top - MAX_SHIFT + (0.5 * (before - after) / bend if bend < 0 else 0))


def check_repeats(scans: Sequence[Scan]) -> list[Finding]:
    """Do the repeats of a segment agree, and at the same time? For all scans of one data set.

    Each pair of repeats is correlated, all voxels together, at shifts of -3 to 3 TRs (at 0 only, in runs shorter than
    30 TRs). A repeat's *agreement* is the median over the others of the highest value: a late repeat still agrees. Its
    *shift* is the median over all repeats, itself included, of the peak's position.

    "repeats that disagree": fault where agreement is below a quarter of the split's median, warning below a half.
    Where the split's median itself is below 0.05, one warning for the split. "shifted volumes": fault where a repeat
    that agrees is 0.4 TRs or more from the others.
    """
    segments: dict[tuple[str, str], list[Scan]] = {}
    for scan in scans:
        segments.setdefault((scan.split, scan.segment), []).append(scan)
    several = {key: _pairwise([run.values for run in runs]) for key, runs in segments.items() if len(runs) > 1}
    agreement = {key: low for key, (low, _) in several.items()}
    usual = {
        split: float(np.median(np.concatenate([low for key, low in agreement.items() if key[0] == split])))
        for split in dict.fromkeys(split for split, _ in agreement)
    }
    disagree, shifted, furthest = list[Finding](), list[Finding](), 0.0
    for split, median in usual.items():
        if median < REPEAT_R:
            text, where = f"repeats do not correlate: median r = {median:.3f}", f"the {split} split"
            do = "Expect scores at chance. If the subject did see the film, look for repeats of other films."
            disagree.append(Finding("repeats that disagree", "warning", text, where, do, {"median_r": median}))
    for key, (low, shift) in several.items():
        if usual[key[0]] < REPEAT_R:
            continue
        disagree += _disagreeing(segments[key], low, usual[key[0]])
        agrees = low >= LOST * usual[key[0]]
        furthest = max(furthest, float(np.abs(shift[agrees]).max(initial=0)))
        shifted += _shifted(segments[key], np.where(agrees, shift, 0))
    if not agreement:
        return [Finding("repeats that disagree", "ok", "not judged: no segment has two repeats")]
    every = np.concatenate(list(agreement.values()))
    numbers = {"median_r": float(np.median(every)), "lowest_r": float(every.min())}
    text = f"{len(every)} repeats agree: r = {every.min():.2f} to {every.max():.2f}, median {np.median(every):.2f}"
    together = f"repeats that agree answer within {furthest:.2f} TRs of each other"
    return _or_ok("repeats that disagree", disagree, text, numbers) + _or_ok(
        "shifted volumes", shifted, together, {"furthest_trs": furthest}
    )


def _pairwise(runs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Agreement and shift (R,) of the repeats of one segment, as ``check_repeats`` defines them."""
    n, long = len(runs), len(runs[0]) >= MIN_TRS
    high, place = np.full((n, n), np.nan), np.zeros((n, n))
    for a, b in combinations(range(n), 2):
        curve = shifted_correlation(runs[a], runs[b])
        high[a, b] = high[b, a] = curve.max() if long else curve[MAX_SHIFT]
        place[a, b] = peak_position(curve) if long else 0.0
        place[b, a] = -place[a, b]
    return np.nanmedian(high, axis=1), np.median(place, axis=1)


def _disagreeing(runs: Sequence[Scan], low: np.ndarray, usual: float) -> list[Finding]:
    lost, weak = low < LOST * usual, (low >= LOST * usual) & (low < WEAK * usual)
    wrong = "Was another film shown, or the scan filed under another segment? Leave it out unless you know."
    tired = "Look at the scan: motion, sleep, another film for a part of it."
    which = "; two repeats alone cannot tell which is wrong" if len(runs) == 2 else ""
    found = list[Finding]()
    cases: tuple[tuple[Severity, np.ndarray, str], ...] = (("fault", lost, wrong), ("warning", weak, tired))
    for severity, odd, do in cases:
        if odd.any():
            r = float(low[odd].min())
            repeats = ", ".join(str(run.repeat) for run, o in zip(runs, odd) if o)
            text = f"correlates with the other repeats at r = {r:.3f}; the median of the split is {usual:.2f}{which}"
            where = f"{runs[0].segment}, repeat {repeats}"
            found.append(Finding("repeats that disagree", severity, text, where, do, {"r": r, "usual_r": usual}))
    return found


def _shifted(runs: Sequence[Scan], shift: np.ndarray) -> list[Finding]:
    found = list[Finding]()
    if len(runs) == 2 and (np.abs(shift) >= REPEAT_SHIFT).all():
        early, late = (runs[i] for i in np.argsort(shift))
        trs = float(shift.max() - shift.min())
        text = f"repeat {late.repeat} answers {trs:.1f} TRs later than repeat {early.repeat}"
        return [Finding("shifted volumes", "fault", text, early.segment, _START, {"trs": trs})]
    for run, trs in zip(runs, shift):
        if abs(trs) >= REPEAT_SHIFT:
            text = f"answers {abs(trs):.1f} TRs {'later' if trs > 0 else 'earlier'} than the other repeats"
            found.append(Finding("shifted volumes", "fault", text, run.name, _START, {"trs": float(trs)}))
    return found


def _windows(values: np.ndarray) -> np.ndarray:
    """The volumes at t - 1, t and t + 1 side by side, (T, 3 V); 0 beyond the run."""
    padded = np.pad(values, ((-WINDOW[0], WINDOW[-1]), (0, 0)))
    return np.concatenate([padded[s - WINDOW[0] : len(values) + s - WINDOW[0]] for s in WINDOW], axis=1)


def check_film_shift(
    scans: Sequence[Scan], pictures: Mapping[tuple[str, str], Float[np.ndarray, "T D"]]
) -> list[Finding]:
    """Does every run answer its film with the delay that the other runs have? For all scans of one data set.

    Parameters
    ----------
    pictures : by (split, segment), one row of film features a clip, such as thumbnails.

    The film's 20 principal components are decoded (ridge, penalty = number of columns) from three volumes around each
    clip, fitted on the training segments *other than the run's own*, and correlated with the film at shifts of -3 to 3
    TRs. Fault: the peak lies away from the median run's by more than 0.75 TRs and 5 robust standard deviations. Runs
    shorter than 30 TRs, and those whose peak is below half of the median's, are not judged; nor is any run where the
    mean curve stays below 0.1. A delay that is wrong in *all* runs is not seen here: see the lag curve of ``prepare``.
    """
    check = "shifted volumes"
    training = [key for key in pictures if key[0] == "train" and any((s.split, s.segment) == key for s in scans)]
    if len(training) < 2:
        return [Finding(check, "ok", "not compared with the film: fewer than two training segments")]
    x = {key: _windows(np.mean([s.values for s in scans if (s.split, s.segment) == key], axis=0)) for key in training}
    rows = np.concatenate([np.full(len(x[key]), i) for i, key in enumerate(training)])
    every, film = np.concatenate([x[key] for key in training]), np.concatenate([pictures[key] for key in training])
    mean, scale = film.mean(axis=0), np.maximum(film.std(axis=0), 1e-6)
    standard = (film - mean) / scale
    axes = np.linalg.eigh(standard.T @ standard)[1][:, ::-1][:, :FILM_COMPONENTS]  # (D, 20), largest first
    targets, kernel = standard @ axes, every @ every.T
    curves = list[tuple[Scan, np.ndarray]]()
    others = [key for key in pictures if key not in training]
    # One fit without each training segment, for its own runs; one with all, for the runs of the other splits.
    for left_out, keys in [*((i, [key]) for i, key in enumerate(training)), (-1, others)]:
        kept = np.flatnonzero(rows != left_out)
        matrix = kernel[np.ix_(kept, kept)] + every.shape[1] * np.eye(len(kept), dtype=kernel.dtype)
        weights = every[kept].T @ solve(matrix, targets[kept], assume_a="pos")
        for scan in scans:
            key = (scan.split, scan.segment)
            if key in keys and len(scan.values) >= MIN_TRS:
                film_here = ((pictures[key] - mean) / scale) @ axes
                curves.append((scan, shifted_correlation(_windows(scan.values) @ weights, film_here)))
    top = float(np.mean([c for _, c in curves], axis=0).max()) if curves else 0.0
    if top < FILM_R:
        why = f"the film is decoded at r = {top:.2f}, too little" if curves else f"all runs are below {MIN_TRS} TRs"
        return [Finding(check, "ok", f"not compared with the film: {why}", numbers={"mean_r": top})]
    usual = float(np.median([c.max() for _, c in curves]))
    judged = [(scan, peak_position(c)) for scan, c in curves if c.max() >= usual / 2]
    places = np.array([place for _, place in judged])
    middle, spread = float(np.median(places)), _robust_sd(places)
    numbers = {"judged": len(judged), "spread_trs": spread, "furthest_trs": float(np.abs(places - middle).max())}
    late: dict[str, list[tuple[Scan, float]]] = {}
    for scan, off in zip((scan for scan, _ in judged), places - middle):
        if abs(off) > max(FILM_SHIFT, FILM_SPREADS * spread):
            late.setdefault(scan.segment, []).append((scan, float(off)))
    found = list[Finding]()
    for segment, off_runs in late.items():
        trs = float(np.median([off for _, off in off_runs]))
        text = f"answers its film {abs(trs):.1f} TRs {'later' if trs > 0 else 'earlier'} than other runs do theirs"
        where = f"{segment}, repeat {', '.join(str(scan.repeat) for scan, _ in off_runs)}"
        found.append(Finding(check, "fault", text, where, _START, {"trs": trs, "spread_trs": spread}))
    text = f"{len(judged)} of {len(scans)} runs answer their film alike, within {numbers['furthest_trs']:.2f} TRs"
    return _or_ok(check, found, f"{text} (spread {spread:.2f})", numbers)


# --- film beside film -------------------------------------------------------------------------------------------------


def frame_likeness(
    a: UInt8[np.ndarray, "N 3 H W"], b: UInt8[np.ndarray, "N 3 H W"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Of N pairs of frames: correlation of their pixels, and mean absolute difference (of 255). r = 0 where one of the
    two is faint, with a standard deviation of its pixels below 10 of 255."""
    x, y = (f.reshape(len(f), -1).astype(np.float64) for f in (a, b))
    difference = np.abs(x - y).mean(axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    faint = np.minimum(x.std(axis=1), y.std(axis=1)) < MIN_CONTRAST
    norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.where(faint, 0, (x * y).sum(axis=1) / np.maximum(norm, 1e-9)), difference


def nearest_frames(
    thumbs: Float[np.ndarray, "B F D"],
    frames: UInt8[np.ndarray, "B F 3 H W"],
    other_thumbs: Float[np.ndarray, "N F D"],
    other_frames: UInt8[np.ndarray, "N F 3 H W"],
) -> list[FilmPair]:
    """For every clip the most similar frame pair of another split: found by thumbnails, measured at full size.

    thumbs : every frame at few pixels. frames : may be memory-mapped; only the frames of the best pairs are read.
    """

    def unit(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)

    d, f, n = thumbs.shape[-1], thumbs.shape[1], other_thumbs.shape[1]
    theirs = unit(other_thumbs).reshape(-1, d)
    theirs[other_thumbs.reshape(-1, d).std(axis=1) < MIN_CONTRAST / 255] = 0  # faint frames resemble each other
    pairs, block = [], 64
    for start in range(0, len(thumbs), block):
        near = (unit(thumbs[start : start + block]).reshape(-1, d) @ theirs.T).argmax(axis=1).reshape(-1, f)
        for clip, found in enumerate(near, start):
            others, places = np.divmod(found, n)
            r, difference = frame_likeness(frames[clip], np.stack([other_frames[c, i] for c, i in zip(others, places)]))
            best = int(np.argmax(r))
            at = clip, best, int(others[best]), int(places[best])
            pairs.append(FilmPair(*at, r=float(r[best]), difference=float(difference[best])))
    return pairs


def check_copies(
    pairs: Sequence[FilmPair], ids: Sequence[str], other_ids: Sequence[str], *, split: str, other_split: str
) -> list[Finding]:
    """Film of one split that is in another, from ``nearest_frames``.

    Fault (test clips) or warning (validation clips): frames with a pixel correlation of at least 0.98 and a mean
    difference of at most 8 of 255. Warning: a correlation of at least 0.95.
    """
    check, found = "film in two splits", list[Finding]()
    ordered = sorted(pairs, key=lambda pair: -pair.r)
    if not ordered:
        return [Finding(check, "ok", f"no {split} clips")]
    copies = [p for p in ordered if p.is_copy]
    alike = [p for p in ordered if p.r >= SIMILAR_FRAME_R and not p.is_copy]
    leave = "Leave these segments out of one of the splits: what was trained on cannot be tested."
    look = "Look at the pictures; the same shot must not be in two splits."
    for group, what, do in ((copies, "nearly identical frames", leave), (alike, "very similar frames", look)):
        if group:
            severity: Severity = "fault" if group is copies and split == "test" else "warning"
            where = _several([f"{ids[p.clip]} and {other_ids[p.other]}" for p in group])
            text = (
                f"{len(group)} of {len(pairs)} {split} clips have {what} in the {other_split} split: r up to "
                f"{group[0].r:.3f}, mean difference {group[0].difference:.1f} of 255"
            )
            found.append(Finding(check, severity, text, where, do, {"clips": len(group), "r": group[0].r}))
    text = f"no {split} clip is in the {other_split} film; most similar frames: r = {ordered[0].r:.2f}"
    return _or_ok(check, found, text, {"highest_r": ordered[0].r})


def check_similarity(
    train: Float[np.ndarray, "N D"],
    segment: Int[np.ndarray, " N"],
    test: Float[np.ndarray, "B D"],
    space: str,
    *,
    ids: Sequence[str],
) -> list[Finding]:
    """Is the test film nearer to the training film than the training film's own segments are to each other?

    Parameters
    ----------
    train, test : embeddings of clips; cosines are taken after the training mean is subtracted.
    segment : of the training clips. space : what the embedding is, for the text.

    Each training clip's nearest clip *of another segment* gives a distribution of cosines. Warning: more than 25 %
    of test clips have a nearest training clip beyond its 95th percentile (5 % would by chance); for them, too, one
    training segment is left out, each in turn, and the shares averaged. Expected in films that
    come back to the same places; such a score says less about new film.
    """
    check = "test film like training film"
    parts = np.unique(segment)
    if len(parts) < 2 or len(train) < NEAR_CLIPS:
        text = f"not judged: {len(train)} training clips of {len(parts)} segments, fewer than {NEAR_CLIPS} of 2"
        return [Finding(check, "ok", text)]
    centred = (train - train.mean(axis=0), test - train.mean(axis=0))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in centred)
    by_segment = [np.stack([(x @ a[segment == s].T).max(axis=1) for s in parts]) for x in (a, b)]  # (S, N), (S, B)
    without = [[np.delete(best, i, axis=0).max(axis=0) for i in range(len(parts))] for best in by_segment]
    own = np.concatenate([best[segment == s] for best, s in zip(without[0], parts)])
    nearest = np.stack(without[1])  # (S, B): as for training clips, one segment is left out, each in turn
    near = nearest > np.quantile(own, NEAR_QUANTILE)
    usual = {"median_test": float(np.median(nearest)), "median_train": float(np.median(own))}
    text = (
        f"{near.mean():.1%} of test clips are nearer to a training clip ({space}, cosine) than 95 % of training clips "
        f"are to another segment; medians {usual['median_test']:.2f} and {usual['median_train']:.2f}"
    )
    numbers = usual | {"share": float(near.mean())}
    if near.mean() <= NEAR_SHARE:
        return [Finding(check, "ok", text, numbers=numbers)]
    closest = _several([ids[i] for i in np.argsort(-by_segment[1].max(axis=0))[: int(near.any(axis=0).sum())]])
    do = "Say so beside the scores, and report clips of new content separately."
    return [Finding(check, "warning", text, closest, do, numbers)]


@dataclass(frozen=True)
class Timeline:
    """Where the clips of one split lie: ``segments`` names, and per clip (B,) segment number, onset (s) and scene."""

    split: str
    segments: tuple[str, ...]
    segment: Int[np.ndarray, " B"]
    onset: Float[np.ndarray, " B"]
    scene: Int[np.ndarray, " B"]


def check_scenes(timelines: Sequence[Timeline], t_r: float | int) -> list[Finding]:
    """Scenes and moments that are in two splits.

    Fault: a scene number in two splits; clips of two splits at the same time of the same segment (less than a TR
    apart); clips of two splits in one segment with less than 5 TRs between them.
    """
    check, found = "scenes in two splits", list[Finding]()
    for a, b in combinations(timelines, 2):
        both = f"the {a.split} and the {b.split} split"
        shared = np.intersect1d(a.scene, b.scene)
        if len(shared):
            where, do = _several([str(s) for s in shared]), "Split between scenes, or better between segments."
            text = f"{len(shared)} scenes are in {both}"
            found.append(Finding(check, "fault", text, f"scenes {where}", do, {"scenes": len(shared)}))
        for name in sorted(set(a.segments) & set(b.segments)):
            one, two = (t.onset[t.segment == t.segments.index(name)] for t in (a, b))
            apart = float(np.abs(one[:, None] - two[None, :]).min(initial=np.inf) / t_r)  # 1: neighbours
            if apart < 1 - 1e-6:
                text, do = f"clips of {both} are at the same time of one segment", "Give every segment to one split."
            elif apart - 1 < GUARD_TRS - 1e-6:
                text = f"clips of {both} have {apart - 1:.1f} TRs between them"
                do = f"Leave {GUARD_TRS} TRs out between them, as long as responses last."
            else:
                continue
            found.append(Finding(check, "fault", text, name, do, {"trs_apart": apart}))
    n = len(np.unique(np.concatenate([t.scene for t in timelines])))
    return _or_ok(check, found, f"{n} scenes, each in one split")


def check_joins(ends: Sequence[tuple[str, str, np.ndarray, np.ndarray]]) -> list[Finding]:
    """A shot that runs on from one segment into another of a different split.

    ends : (split, segment, first frame, last frame), frames (3, H, W) uint8. Warning: the last frame of one and the
    first of the other have a pixel correlation of at least 0.9 and a mean difference of at most 16 of 255.
    """
    check, found, top = "shots across segments", list[Finding](), 0.0
    for (split, segment, _, last), (other_split, other, first, _) in permutations(ends, 2):
        if split == other_split:
            continue
        r, difference = (float(value[0]) for value in frame_likeness(last[None], first[None]))
        top = max(top, r)
        if r >= SAME_SHOT_R and difference <= SAME_SHOT_DIFFERENCE:
            text = (
                f"the {split} segment {segment} ends as the {other_split} segment {other} begins: r = {r:.3f}, mean "
                f"difference {difference:.1f} of 255"
            )
            do = "Look at both films; leave the clips at the join out, or put both segments in one split."
            found.append(Finding(check, "warning", text, f"{segment} and {other}", do, {"r": r}))
    return _or_ok(check, found, f"no segment begins as one of another split ends; most similar: r = {top:.2f}")


# --- independence -----------------------------------------------------------------------------------------------------


def autocorrelation(parts: Sequence[Float[np.ndarray, "_ D"]], most: int) -> Float[np.ndarray, " K"]:
    """Correlation of rows k apart, k = 1 ... ``most``, pooled over columns and over parts in order of time.

    Columns are z-scored over all parts together. Lags that no part is long enough for are 0.
    """
    whole = _z(np.concatenate(list(parts)))
    cut = np.split(whole, np.cumsum([len(p) for p in parts])[:-1])
    variance = float(np.mean(whole**2, dtype=np.float64))
    found = np.zeros(most)
    for k in range(1, most + 1):
        pairs = [(p[:-k], p[k:]) for p in cut if len(p) > k]
        if pairs and variance > 0:
            total = sum(float(np.sum(x * y, dtype=np.float64)) for x, y in pairs)
            found[k - 1] = total / sum(x.size for x, _ in pairs) / variance
    return found


def effective_n(n: int, rho: Float[np.ndarray, " K"]) -> float:
    """Independent rows that would say as much about a mean as ``n`` rows with autocorrelation ``rho`` at lags 1 ... K.

    n / (1 + 2 sum_k (1 - k / n) rho_k), the sum ending before the first value that is not positive; at most n.
    """
    ends = np.flatnonzero(rho <= 0)
    kept = rho[: ends[0]] if len(ends) else rho
    return float(n / (1 + 2 * np.sum((1 - np.arange(1, len(kept) + 1) / n) * kept)))


def check_independence(
    scene: Int[np.ndarray, " B"],
    responses: Sequence[Float[np.ndarray, "_ V"]],
    pictures: Sequence[Float[np.ndarray, "_ D"]],
) -> list[Finding]:
    """How many independent clips the test split is worth.

    Parameters
    ----------
    scene : of every test clip. responses, pictures : by test segment, rows in order of time.

    Three numbers: Kish's effective number of scenes, and what the autocorrelation of responses and of the film leaves.
    Warning: the smallest is below 20, when intervals are wide and hardly to be trusted.
    """
    check, most = "effective n", 30
    rho = {name: autocorrelation(parts, most) for name, parts in (("responses", responses), ("film", pictures))}
    sizes = {"scenes": n_effective(scene)} | {name: effective_n(len(scene), r) for name, r in rho.items()}
    text = (
        f"{len(scene)} test clips are worth {sizes['scenes']:.0f} by scenes, {sizes['responses']:.0f} by responses "
        f"(lag-1 autocorrelation {rho['responses'][0]:.2f}) and {sizes['film']:.0f} by film ({rho['film'][0]:.2f})"
    )
    numbers = {f"n_{name}": size for name, size in sizes.items()} | {f"rho_{k}": float(r[0]) for k, r in rho.items()}
    if min(sizes.values()) >= FEW:
        return [Finding(check, "ok", text, numbers=numbers)]
    do = "Test on more film: more scenes, not more repeats. Read intervals as rough."
    return [Finding(check, "warning", text, "the test split", do, numbers)]


# --- voxel selection --------------------------------------------------------------------------------------------------


def check_selection(
    mask: Bool[np.ndarray, " G"],
    p: Float[np.ndarray, " G"],
    t: Float[np.ndarray, " G"],
    reliability: Float[np.ndarray, " G"],
    train: Float[np.ndarray, "S V"],
    others: Mapping[str, Float[np.ndarray, "N V"]],
    usable: Bool[np.ndarray, " V"],
) -> list[Finding]:
    """Were the voxels chosen from training scans alone?

    Parameters
    ----------
    mask, p, t, reliability : as stored, for all G voxels; V of them are in the mask.
    train : correlation between repeats, by training segment and selected voxel, recomputed from the stored scans.
    others : the same for other splits, by name; only to say whose data the stored evidence fits.
    usable : (V,) voxels that are finite and vary in every training run; the others are not compared.

    Stored evidence is made from the training scans, so it must come out again. Fault: recomputed reliability differs
    from the stored one by more than 0.001 in more than 1 % of voxels, or t by more than 1 % in the median voxel.
    Fault: a voxel outside the mask has a smaller p than one inside, so that the mask was not made from this evidence.
    """
    check, found = "voxel selection", list[Finding]()
    stored, again = reliability[mask][usable], train.mean(axis=0)[usable]
    t_stored, t_again = t[mask][usable].astype(np.float64), t_test(fisher_z(train), 1)[0][usable]
    if len(again) == 0:
        return [Finding(check, "ok", "not checked: no voxel is sound in every training run")]

    def differ(r: np.ndarray) -> float:
        return float((np.abs(stored - r) > EVIDENCE).mean())

    with np.errstate(invalid="ignore"):  # infinite in both
        t_differs = float(np.nanmedian(np.abs(t_stored - t_again) / (1 + np.abs(t_again))))
    numbers = {"reliability_train": float(again.mean()), "differ": differ(again), "t_differs": t_differs}
    numbers |= {f"reliability_{name}": float(r.mean(axis=0)[usable].mean()) for name, r in others.items()}
    if differ(again) > VOXEL_SHARE or t_differs > T_EVIDENCE:
        made = {f"{name} segments": r for name, r in others.items()}
        made |= {f"training and {name} segments together": np.concatenate([train, r]) for name, r in others.items()}
        fits = [name for name, r in made.items() if differ(r.mean(axis=0)[usable]) <= VOXEL_SHARE]
        text = (
            f"stored evidence is not that of the training scans: reliability differs in {differ(again):.0%} of voxels "
            f"(mean {stored.mean():.3f}, recomputed {again.mean():.3f}), t by {t_differs:.1%} in the median"
        )
        text += f"; it is that of {fits[0]}" if fits else ""
        found.append(Finding(check, "fault", text, "voxels.safetensors", _SELECT, numbers))
    inside, outside = p[mask], p[~mask]
    if len(outside) and inside.max() > outside.min():
        wrong = int((outside < inside.max()).sum())
        text = (
            f"{wrong} voxels outside the mask have a smaller p than the weakest one inside ({inside.max():.2g}): the "
            "mask was not made from the stored evidence"
        )
        found.append(Finding(check, "fault", text, "voxels.safetensors", _SELECT, {"outside": wrong}))
    beside = ", ".join(f"{name} {numbers[f'reliability_{name}']:.3f}" for name in ("train", *others))
    text = f"{int(mask.sum())} voxels, from training scans alone; mean reliability: {beside}"
    return _or_ok(check, found, text, numbers)
