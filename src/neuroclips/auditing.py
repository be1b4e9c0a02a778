"""``neuroclips audit``: is this prepared data set fit to be trusted? Reads run directories, changes nothing in them.

The checks are ``evaluation.audit``'s. Here run directories are read, a run and a segment at a time, and the findings
are printed and written: ``audit.json``, and ``audit.html`` with pictures of the film that is most alike in two splits.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import jinja2
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from neuroclips.artefacts import read_arrays, write_json, written_aside
from neuroclips.data.bold import zscore
from neuroclips.data.clips import Clips
from neuroclips.data.lag import THUMBNAIL, thumbnails
from neuroclips.data.prepared import Prepared, load_clips
from neuroclips.data.selection import repeat_correlation
from neuroclips.errors import DataError
from neuroclips.evaluation import audit as checks
from neuroclips.evaluation.audit import FilmPair, Finding, Scan, Severity, Timeline
from neuroclips.report.film import encode_jpeg

VOXELS = 1000  # of highest reliability: enough to compare scans by, and 83 MB for the 86 runs of a CC2017 subject
PRINTS = 500  # vertices that all subjects have, to compare subjects by
PICTURES = 8  # pairs of clips shown
LISTED = 5  # findings of one kind in the terminal
_COLOURS = {"ok": "green", "warning": "yellow", "fault": "bold red"}


@dataclass(frozen=True)
class Picture:
    """A pair of clips that look alike, to be shown: their names, two frames (3, H, W), and how alike they are."""

    title: str
    frames: tuple[np.ndarray, np.ndarray]
    r: float
    difference: float


@dataclass(frozen=True)
class Audit:
    """Everything that was found, and the film that is most alike in two splits."""

    findings: list[Finding]
    pictures: list[Picture]

    @property
    def worst(self) -> Severity:
        return checks.worst(self.findings)


def audit(runs: Sequence[Path], out: Path, console: Console) -> Audit:
    """Audit the prepared data of one or several runs, print what was found, and write it into ``out``.

    Raises
    ------
    DataError
        A run is given twice. ArtefactError: a run has no prepared data, or it is damaged.
    """
    runs = [Path(run) for run in runs]
    paths = [run.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise DataError(f"runs {', '.join(map(str, runs))}: one is given twice; expected each once")
    names = [path.name for path in paths] if len({p.name for p in paths}) == len(paths) else [str(p) for p in paths]
    labels = names if len(runs) > 1 else [""]
    for run in runs:
        if not (run / "prepare").is_dir():
            raise DataError(f"{run}: no prepared data; expected a run directory (neuroclips prepare RECIPE -o {run})")
    prepared = [load_clips(run / "prepare") for run in runs]
    findings, pictures, prints = list[Finding](), list[Picture](), list[Scan]()
    vertices = _common_vertices(prepared)
    for run, data, label in zip(runs, prepared, labels):
        one = _Reader(run, data, label, vertices, console)
        found = one.findings()
        findings += [replace(f, data=label) for f in found]
        pictures += one.pictures
        prints += one.prints
    if len(vertices) < 2:
        what = "subjects are not compared with each other: their selected voxels have fewer than two in common"
        findings.append(Finding("same scan twice", "ok", what))
    else:
        findings += checks.check_duplicates(prints)
    findings.sort(key=lambda f: ("fault", "warning", "ok").index(f.severity))  # stable: the order of checks stays
    result = Audit(findings, sorted(pictures, key=lambda p: -p.r)[:PICTURES])
    _write(result, runs, Path(out))
    console.print(rich_table(result))
    return result


def _common_vertices(prepared: Sequence[Prepared]) -> np.ndarray:
    """At most ``PRINTS`` cortical vertices that every subject's mask holds, evenly spread."""
    common = np.flatnonzero(np.logical_and.reduce([np.asarray(p.mask) for p in prepared]))
    return common[np.unique(np.linspace(0, len(common) - 1, min(PRINTS, len(common))).astype(int))]


class _Reader:
    """One run directory: reads every scan and film once, keeps what the checks compare."""

    def __init__(self, run: Path, prepared: Prepared, label: str, vertices: np.ndarray, console: Console):
        self.run, self.prepared, self.label, self.console = run, prepared, label, console
        self.splits: dict[str, Clips] = {c.split: c for c in (prepared.train, prepared.validation, prepared.test)}
        self.voxels = np.sort(np.argsort(-prepared.train.reliability, kind="stable")[:VOXELS])
        self.places = np.searchsorted(np.flatnonzero(prepared.mask), vertices)  # of the prints in the mask
        self.scans, self.prints = list[Scan](), list[Scan]()
        self.pictures = list[Picture]()
        self.found = list[Finding]()
        self.usable = np.ones(len(prepared.train.reliability), bool)
        self.reliability: dict[str, list[np.ndarray]] = {split: [] for split in self.splits}
        self.thumbs: dict[str, np.ndarray] = {}

    def findings(self) -> list[Finding]:
        parts = [(c, number) for c in self.splits.values() for number in range(len(c.segments))]
        for clips in self.splits.values():
            self.thumbs[clips.split] = np.zeros((len(clips), clips.n_frames, 3 * THUMBNAIL**2), np.float32)
        for clips, number in track(parts, f"reading {self.run.name}", console=self.console, transient=True):
            self._read_segment(clips, number)
        return [*self._values(), *self._times(), *self._films(), *self._scores()]

    def _rows(self, clips: Clips, number: int) -> np.ndarray:
        """The clips of one segment in order of time."""
        rows = np.flatnonzero(clips.segment == number)
        return rows[np.argsort(clips.onset[rows], kind="stable")]

    def _read_segment(self, clips: Clips, number: int) -> None:
        rows, name = self._rows(clips, number), clips.segments[number]
        if len(rows) == 0:
            self.found.append(Finding("missing repeats", "warning", "no clips", name, "Leave the segment out."))
            return
        here = slice(rows[0], rows[-1] + 1) if np.array_equal(np.diff(rows), np.ones(len(rows) - 1)) else rows
        height, width = (size - size % THUMBNAIL for size in clips.frames.shape[-2:])
        frames = clips.frames[here][..., :height, :width]
        flat = frames.reshape(-1, 1, *frames.shape[2:])
        self.thumbs[clips.split][rows] = thumbnails(flat).reshape(len(rows), clips.n_frames, -1)
        whole = sum(name in c.segments for c in self.splits.values()) == 1
        filled = np.zeros((len(rows), clips.bold.shape[1]), bool)
        first = len(self.scans)

        def runs() -> Iterator[np.ndarray]:
            for r in range(clips.bold.shape[1]):
                bold = np.asarray(clips.bold[here, r])
                filled[:, r] = (bold != 0).any(axis=1)
                if not clips.present[rows, r].all() or not filled[:, r].any():
                    continue
                scan = Scan(clips.split, name, r + 1, bold[:, self.voxels])
                self.found += checks.check_values(scan.name, bold, whole=whole)
                finite = np.isfinite(bold).all(axis=0)
                if clips.split == "train":
                    self.usable &= finite & (bold.max(axis=0) > bold.min(axis=0))
                bold = np.where(finite, bold, np.float32(0))
                self.scans.append(replace(scan, values=bold[:, self.voxels]))
                self.prints.append(replace(scan, values=bold[:, self.places], data=self.label))
                yield zscore(bold)

        each = runs()
        if (clips.present[rows].all(axis=0)).sum() >= 2:
            self.reliability[clips.split].append(repeat_correlation(each))
        else:
            for _ in each:
                pass
        self.found += checks.check_presence(name, np.asarray(clips.present[rows]), filled)
        self.found += checks.check_jumps(self.scans[first:])

    def _values(self) -> list[Finding]:
        """What was found while reading, and a line for each check that found nothing."""
        found = list(self.found)
        for check, text in (
            ("values", f"{len(self.scans)} runs of {len(self.usable)} voxels: finite, changing, z-scored"),
            ("missing repeats", f"{len(self.scans)} runs, none missing"),
            ("sudden jumps", f"none in {sum(len(s.values) >= checks.MIN_TRS for s in self.scans)} runs"),
        ):
            if not any(f.check == check for f in found):
                found.append(Finding(check, "ok", text))
        return found

    def _times(self) -> list[Finding]:
        pictures = {
            (clips.split, name): self.thumbs[clips.split][self._rows(clips, number)].mean(axis=1)
            for clips in self.splits.values()
            for number, name in enumerate(clips.segments)
        }
        return checks.check_repeats(self.scans) + checks.check_film_shift(self.scans, pictures)

    def _films(self) -> list[Finding]:
        found = list[Finding]()
        for split, other in (("test", "train"), ("test", "validation"), ("validation", "train")):
            a, b = self.splits[split], self.splits[other]
            pairs = checks.nearest_frames(self.thumbs[split], a.frames, self.thumbs[other], b.frames)
            found += checks.check_copies(pairs, a.ids, b.ids, split=split, other_split=other)
            self.pictures += [self._picture(a, b, p) for p in sorted(pairs, key=lambda p: -p.r)[:PICTURES]]
        space, train, test = self._embeddings()
        found += checks.check_similarity(train, np.asarray(self.splits["train"].segment), test, space,
                                         ids=self.splits["test"].ids)  # fmt: skip
        timelines = [
            Timeline(c.split, c.segments, np.asarray(c.segment), np.asarray(c.onset), np.asarray(c.scene))
            for c in self.splits.values()
        ]
        found += checks.check_scenes(timelines, self.prepared.t_r)
        ends = []
        for clips in self.splits.values():
            for number, name in enumerate(clips.segments):
                rows = self._rows(clips, number)
                if len(rows):
                    first, last = np.asarray(clips.frames[rows[0], 0]), np.asarray(clips.frames[rows[-1], -1])
                    ends.append((clips.split, name, first, last))
        return found + checks.check_joins(ends)

    def _picture(self, a: Clips, b: Clips, pair: FilmPair) -> Picture:
        title = (
            f"{self.label}{': ' if self.label else ''}{a.split} {a.ids[pair.clip]} and {b.split} {b.ids[pair.other]}"
        )
        frames = np.array(a.frames[pair.clip, pair.frame]), np.array(b.frames[pair.other, pair.other_frame])
        return Picture(title, frames, pair.r, pair.difference)

    def _embeddings(self) -> tuple[str, np.ndarray, np.ndarray]:
        """Mean CLIP tokens of training and test clips where they were computed, else thumbnails."""
        found = []
        for split in ("train", "test"):
            path = self.run / "targets" / f"{split}.safetensors"
            tokens = read_arrays(path)["tokens"] if path.exists() else np.zeros((0, 1, 1), np.float32)
            if len(tokens) != len(self.splits[split]):
                return "thumbnails", self.thumbs["train"].mean(axis=1), self.thumbs["test"].mean(axis=1)
            found.append(np.stack([np.asarray(clip, np.float32).mean(axis=0) for clip in tokens]))
        return "CLIP tokens", found[0], found[1]

    def _scores(self) -> list[Finding]:
        test, voxels = self.splits["test"], self.prepared
        segments = [self._rows(test, number) for number in range(len(test.segments))]
        by_name: dict[str, list[np.ndarray]] = {}
        for scan in self.scans:
            if scan.split == "test":
                by_name.setdefault(scan.segment, []).append(scan.values)
        responses = [np.mean(values, axis=0) for values in by_name.values()]
        pictures = [self.thumbs["test"][rows].mean(axis=1) for rows in segments if len(rows)]
        found = checks.check_independence(np.asarray(test.scene), responses, pictures)
        others = {s: np.stack(self.reliability[s]) for s in ("validation", "test") if self.reliability[s]}
        if len(self.reliability["train"]) < 2:
            text = "not checked: fewer than two training segments with two repeats"
            return [*found, Finding("voxel selection", "ok", text)]
        return found + checks.check_selection(
            np.asarray(voxels.mask), np.asarray(voxels.p), np.asarray(voxels.t), np.asarray(voxels.reliability),
            np.stack(self.reliability["train"]), others, self.usable,
        )  # fmt: skip


# --- what is written --------------------------------------------------------------------------------------------------


def rich_table(result: Audit) -> Table:
    """The findings for a terminal, faults first; of many of one kind the first five (``audit.json`` has all)."""
    faults, warnings = (sum(f.severity == s for f in result.findings) for s in ("fault", "warning"))
    table = Table("", "check", "found", title=f"Audit: {faults} faults, {warnings} warnings", show_lines=True)
    kinds: dict[tuple[Severity, str], list[Finding]] = {}
    for f in result.findings:
        kinds.setdefault((f.severity, f.check), []).append(f)
    for (severity, check), alike in kinds.items():
        lines = []
        for f in alike[:LISTED]:
            where = ": ".join(part for part in (f.data, f.where) if part)
            lines.append((f"[bold]{escape(where)}[/]: " if where else "") + escape(f.found))
        lines += [f"and {len(alike) - LISTED} more"] if len(alike) > LISTED else []
        lines += [f"[dim]do:[/] {escape(do)}" for do in dict.fromkeys(f.do for f in alike if f.do)]
        table.add_row(f"[{_COLOURS[severity]}]{severity}[/]", check, "\n".join(lines))
    return table


def _write(result: Audit, runs: Sequence[Path], out: Path) -> None:
    pairs = [{"clips": p.title, "r": p.r, "difference": p.difference} for p in result.pictures]
    about = {"neuroclips": version("neuroclips"), "runs": [str(run) for run in runs], "worst": result.worst}
    write_json(out / "audit.json", about | {"findings": [asdict(f) for f in result.findings], "alike": pairs})
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    shown = [(p, *(base64.b64encode(encode_jpeg(frame)).decode() for frame in p.frames)) for p in result.pictures]
    with written_aside(out / "audit.html") as aside:
        aside.write_text(page.render(findings=result.findings, runs=runs, worst=result.worst, shown=shown))


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Audit</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { border-top: 1px solid #ccc; padding: .4rem .6rem; vertical-align: top;
text-align: left } .fault { color: #b00020; font-weight: 600 } .warning { color: #8a5a00 } .ok { color: #1b6e2c }
figure { display: inline-block; margin: .5rem 1rem .5rem 0 } img { width: 12rem; image-rendering: auto }
</style>
<h1>Audit of {{ runs | join(", ") }}: <span class="{{ worst }}">{{ worst }}</span></h1>
<table><tr><th></th><th>check</th><th>what was found</th><th>where</th><th>what to do</th></tr>
{% for f in findings %}<tr><td class="{{ f.severity }}">{{ f.severity }}</td><td>{{ f.check }}</td>
<td>{{ f.found }}</td><td>{% if f.data %}{{ f.data }}: {% endif %}{{ f.where }}</td><td>{{ f.do }}</td></tr>
{% endfor %}</table>
<h2>Film most alike in two splits</h2>
<p>The most similar frames of clips of different splits. Of a copy, pixels correlate at 0.98 or more and differ by 8 of
255 or less.</p>
{% for p, one, two in shown %}<figure><img src="data:image/jpeg;base64,{{ one }}" alt="">
<img src="data:image/jpeg;base64,{{ two }}" alt="">
<figcaption>{{ p.title }}: r = {{ "%.3f" | format(p.r) }}, difference {{ "%.1f" | format(p.difference) }}</figcaption>
</figure>{% endfor %}
</html>
"""
