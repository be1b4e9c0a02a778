"""Checks of scans: their values, their repeats, and whether they are in step with each other and with the film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.linalg import solve

from neuroclips.evaluation.audit.finding import Finding, Scan, Severity, or_ok, robust_sd, several, standardised
from neuroclips.shapes import Bool, Float

COPY_R = 0.99  # pooled correlation of two scans; equal files have 1
NEAR_COPY_Z = 1.0  # Fisher's z by which a pair of repeats may pass the median pair: four of its usual spreads or more
NEAR_COPY_R = 0.8  # below this, a high pair is a good pair
MAX_SHIFT = 3  # TRs tried to either side
MIN_TRS = 30  # a shorter run has too few rows to place a peak in
REPEAT_SHIFT = 0.4  # TRs from the middle repeat; two repeats one TR apart lie 0.5 from their middle each
FILM_SHIFT = 0.75  # TRs; the film's peak is broad, so it may be off by half a TR in a sound run
FILM_SPREADS = 5  # and so many robust standard deviations of all runs' peaks
FILM_COMPONENTS = 20  # principal components of the film's thumbnails that are decoded
FILM_R = 0.1  # mean curve below this: the film cannot be decoded here, and where its peak lies means nothing
WINDOW = (-1, 0, 1)  # volumes around a clip's own that it is decoded from: its response is smeared over several
REPEAT_R = 0.05  # median correlation below which a split as a whole says nothing
LOST, WEAK = 0.25, 0.5  # a fault below the first: another film, or no subject; a warning below the second: a tired one
SCALE = 0.1  # of a z-scored voxel's mean from 0 and standard deviation from 1
VOXEL_SHARE = 0.01  # of voxels that may be odd before a whole run or selection is called so
CONSTANT_SHARE = 0.05  # of voxels that never change in a run; more means that part of the brain was not scanned
JUMP = 8.0  # robust standard deviations of the volume-to-volume change that no repeat shares
_START = "Compare the scan's start with the film's (dummy volumes, triggers); correct it or leave the run out."


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
        height = (excess - np.median(excess)) / max(robust_sd(excess), 1e-9)
        volumes = np.flatnonzero(height > JUMP) + 1
        if len(volumes):
            highest, which = float(height.max()), several([str(v) for v in volumes])
            text = f"{len(volumes)} volumes change by up to {highest:.0f} robust standard deviations: {which} (from 0)"
            do = "Look for head motion there; leave the run out if there are many."
            numbers = {"volumes": len(volumes), "highest": highest}
            found.append(Finding("sudden jumps", "warning", text, scan.name, do, numbers))
    return found


def check_duplicates(scans: Sequence[Scan]) -> list[Finding]:
    """The same scan under two names: two repeats, two segments or two subjects.

    Every pair of runs of equal length (at the same voxels) is correlated over volumes and voxels together. Fault: r
    above 0.99. Warning: a pair above 0.8 whose Fisher's z exceeds that of the median pair of repeats by more than 1.
    """
    check, found = "same scan twice", list[Finding]()
    pairs: list[tuple[float, Scan, Scan]] = []
    for shape in sorted({s.values.shape for s in scans}):
        group = [s for s in scans if s.values.shape == shape]
        flat = np.stack([standardised(s.values).ravel() for s in group])
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
        where, numbers = several([names for _, names in copies]), {"pairs": len(copies), "r": copies[0][0]}
        found.append(Finding(check, severity, f"{text}{usual:.2f}", where, do, numbers))
    top = pairs[0][0] if pairs else 0.0
    text = f"no two of {len(scans)} scans are copies; highest r = {top:.2f}, median pair of repeats {usual:.2f}"
    return or_ok(check, found, text, {"highest_r": top, "usual_r": usual})


def shifted_correlation(a: Float[np.ndarray, "T D"], b: Float[np.ndarray, "T D"]) -> Float[np.ndarray, " S"]:
    """Mean over columns of the correlation of ``a`` at time t + s with ``b`` at time t, for s = -3 ... 3 TRs.

    Columns are z-scored over all T once; the mean is over the rows that overlap. T is at least 4.
    """
    a, b = standardised(a), standardised(b)
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
    return or_ok("repeats that disagree", disagree, text, numbers) + or_ok(
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
    middle, spread = float(np.median(places)), robust_sd(places)
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
    return or_ok(check, found, f"{text} (spread {spread:.2f})", numbers)
