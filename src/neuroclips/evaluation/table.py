"""One row a score, with everything that it must stand beside: interval, chance, floors, ceiling, n and seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from neuroclips.artefacts import write_json, written_aside
from neuroclips.errors import ArtefactError
from neuroclips.evaluation.significance import holm

Interval = tuple[float, float]  # low, high


@dataclass(frozen=True)
class Score:
    """A score of one method, by one metric, in one space. Parts that do not apply are None, never NaN.

    metric : such as "top-1" or "SSIM"; ``note`` names the variant (window, pool, judge).
    space : where the prediction was compared: "tokens", "latents", "video".
    unit : "share" (of 1, printed in percent), "dB", "rank" or "" (a plain number).
    ci_low, ci_high : 95 % scene-bootstrap interval; None with fewer than two scenes.
    chance : analytic value for a prediction without information, where there is one.
    floors : scores without brain information, by name.
    baselines : scores of simpler methods that read the same brain, by name.
    differences : value minus floor or baseline, paired interval.
    ceiling : best reachable score, measured on the same clips.
    brain_attributable : (value - shuffled floor) / (ceiling - shuffled floor), and its interval.
    p_values : "other pairings": one-sided permutation test of identification against pairings shuffled across scenes;
        a floor's or baseline's name: two-sided paired test of the mean difference to it, by flips of whole scenes.
    p_holm : the same, adjusted for all metrics in which this method is compared with the same thing (``with_holm``).
    n_effective : Kish's effective number of scenes; n clips are not n independent clips.
    control : the row is a floor shown with its own interval, not a method.
    """

    metric: str
    method: str
    value: float
    n: int
    n_effective: float
    seed: int
    ci_low: float | None = None
    ci_high: float | None = None
    chance: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, Interval] = field(default_factory=dict)
    ceiling: float | None = None
    brain_attributable: float | None = None
    brain_attributable_interval: Interval | None = None
    p_values: Mapping[str, float] = field(default_factory=dict)
    p_holm: Mapping[str, float] = field(default_factory=dict)
    n_repeats: int | None = None
    space: str = "video"
    unit: str = ""
    note: str = ""
    higher_is_better: bool = True
    control: bool = False

    @property
    def beats_floors(self) -> bool | None:
        """Whether the paired interval of the difference to every floor lies on the good side of 0; None if unknown."""
        found = [self.beats(name) for name in self.differences if name not in self.baselines]
        return all(found) if found else None

    def beats(self, name: str) -> bool | None:
        """Whether the paired interval of the difference to this floor or baseline is on the good side of 0."""
        if name not in self.differences:
            return None
        low, high = self.differences[name]
        return low > 0 if self.higher_is_better else high < 0

    @property
    def contains_chance(self) -> bool | None:
        """Whether chance lies in the interval, as it should for a control; None without chance or interval."""
        if self.chance is None or self.ci_low is None or self.ci_high is None:
            return None
        return self.ci_low <= self.chance <= self.ci_high

    @property
    def beats_chance(self) -> bool | None:
        """Whether the interval lies on the good side of chance; None without chance or interval.

        A control should read False.
        """
        if self.chance is None or self.ci_low is None or self.ci_high is None:
            return None
        return self.ci_low > self.chance if self.higher_is_better else self.ci_high < self.chance


def with_holm(scores: Sequence[Score]) -> list[Score]:
    """The same rows with ``p_holm``: Holm's adjustment over the metrics of a method and its number of repeats.

    A family is one method compared with one thing (such as the shuffled floor) in every metric and space.
    """
    families: dict[tuple[str, int | None, str], list[tuple[int, float]]] = {}
    for row, score in enumerate(scores):
        for name, p in score.p_values.items():
            families.setdefault((score.method, score.n_repeats, name), []).append((row, p))
    adjusted: list[dict[str, float]] = [{} for _ in scores]
    for (_, _, name), members in families.items():
        for (row, _), p in zip(members, holm([p for _, p in members])):
            adjusted[row][name] = float(p)
    return [replace(score, p_holm=p) for score, p in zip(scores, adjusted)]


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write scores as a JSON list, atomically; a value that is not finite is written as null."""
    write_json(path, [_without_nan(asdict(score)) for score in scores])


def write_tables(folder: Path, scores: Sequence[Score], per_clip: pd.DataFrame) -> None:
    """``scores.json`` for programs, ``scores.md`` and ``scores.tex`` for people and papers, ``per_clip.parquet``."""
    write_scores(folder / "scores.json", scores)
    for name, text in (("scores.md", markdown_table(scores)), ("scores.tex", latex_table(scores))):
        with written_aside(folder / name) as aside:
            aside.write_text(text)
    with written_aside(folder / "per_clip.parquet") as aside:
        per_clip.to_parquet(aside)


def read_scores(path: Path) -> list[Score]:
    """Read what ``write_scores`` wrote. A null value reads as NaN where the row must have a number."""
    known = {f.name for f in fields(Score)}
    try:
        rows = json.loads(Path(path).read_text())
        if not isinstance(rows, list):
            raise ArtefactError(f"{path}: expected a list of scores, found {type(rows).__name__}")
        return [_from_json({k: v for k, v in row.items() if k in known}) for row in rows]
    except (OSError, json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise ArtefactError(f"{path}: not a readable list of scores ({error})") from error


def _from_json(row: dict[str, Any]) -> Score:
    nan = float("nan")
    row["value"] = nan if row["value"] is None else row["value"]
    for kind in ("floors", "baselines"):
        row[kind] = {k: nan if v is None else v for k, v in row.get(kind, {}).items()}
    row["differences"] = {k: tuple(v) for k, v in row.get("differences", {}).items()}
    if row.get("brain_attributable_interval") is not None:
        row["brain_attributable_interval"] = tuple(row["brain_attributable_interval"])
    return Score(**row)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_value(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A number as people read it: shares in percent, a dash for what is missing.

    >>> format_value(0.2314, "share"), format_value(9.2113, "dB"), format_value(None)
    ('23.1 %', '9.21 dB', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "share":
        percent = 100 * value
        return f"{percent:.2f} %" if 0 < abs(percent) < 1 else f"{percent:.1f} %"
    text = f"{value:.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".rstrip(".")
    return f"{text} {unit}" if unit == "dB" else text


def format_interval(interval: Interval | None, unit: str = "") -> str:
    """``low – high`` in the unit's notation, or a dash.

    >>> format_interval((0.18, 0.291), "share")
    '18.0 – 29.1 %'
    """
    if interval is None:
        return "–"
    low, high = (format_value(end, unit) for end in interval)
    between = "to" if min(interval) < 0 else "–"  # a dash before a minus reads badly
    return f"{low.removesuffix(' %').removesuffix(' dB')} {between} {high}"


def score_interval(score: Score) -> Interval | None:
    """The score's own interval, or None."""
    return None if score.ci_low is None or score.ci_high is None else (score.ci_low, score.ci_high)


_HEADINGS = (
    "space",
    "metric",
    "method",
    "score",
    "95 %",
    "chance",
    "beside",
    "ceiling",
    "from the brain",
    "n",
    "n eff",
)


def _cells(s: Score) -> tuple[str, ...]:
    beside = ", ".join(f"{k} {format_value(v, s.unit)}" for k, v in {**s.floors, **s.baselines}.items())
    return (
        s.space, s.metric if s.higher_is_better else f"{s.metric} (lower is better)", s.method,
        format_value(s.value, s.unit), format_interval(score_interval(s), s.unit), format_value(s.chance, s.unit),
        beside or "–", format_value(s.ceiling, s.unit), format_value(s.brain_attributable, "share"), str(s.n),
        f"{s.n_effective:.1f}",
    )  # fmt: skip


def markdown_rows(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def latex_rows(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A LaTeX ``tabular``; needs the package ``booktabs``."""
    return pd.DataFrame([list(row) for row in rows], columns=list(heading)).to_latex(index=False, escape=True)


def markdown_table(scores: Sequence[Score]) -> str:
    """The scores as a Markdown table, controls in italics; notes below it, each once."""
    rows = [tuple(f"*{cell}*" for cell in _cells(s)) if s.control else _cells(s) for s in scores]
    notes = dict.fromkeys(f"* {s.space}, {s.metric}: {s.note}\n" for s in scores if s.note)
    return f"{markdown_rows(_HEADINGS, rows)}\n{''.join(notes)}\n{_CAPTION}\n"


_CAPTION = "Intervals: 95 %, bootstrap over scenes. n eff: Kish's effective number of scenes."


def latex_table(scores: Sequence[Score]) -> str:
    """The scores as a LaTeX ``tabular``, controls left out: they are the shuffled floor."""
    return f"% {_CAPTION}\n{latex_rows(_HEADINGS, [_cells(s) for s in scores if not s.control])}"


def hardest_floor(score: Score) -> tuple[str, float] | None:
    """Name and value of the floor that is hardest to beat; None without floors."""
    known = {name: value for name, value in score.floors.items() if math.isfinite(value)}
    pick = max if score.higher_is_better else min
    return pick(known.items(), key=lambda item: item[1]) if known else None


def _hardest(score: Score) -> str:
    floor = hardest_floor(score)
    return "–" if floor is None else f"{format_value(floor[1], score.unit)} {escape(floor[0])}"


def _coloured(score: Score) -> str:
    colour = {True: "green", False: "red", None: "default"}[score.beats_floors]
    return f"[{colour}]{format_value(score.value, score.unit)}[/]"


def rich_table(scores: Sequence[Score]) -> Group:
    """The scores for a terminal, a table a method and space: each beside chance, its hardest floor and its ceiling."""
    blocks: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        blocks.setdefault((score.method, score.space), []).append(score)
    tables: list[RenderableType] = []
    for (method, space), rows in blocks.items():
        title = f"[bold]{escape(method)}[/bold], {escape(space)}: {rows[0].n} clips, n eff {rows[0].n_effective:.1f}"
        table = Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False)
        columns: dict[str, list[str]] = {
            "metric": [f"{s.metric}{'' if s.higher_is_better else ' ↓'}" for s in rows],
            "score": [_coloured(s) for s in rows],
            "95 %": [format_interval(score_interval(s), s.unit) for s in rows],
            "chance": [format_value(s.chance, s.unit) for s in rows],
            "hardest floor": [_hardest(s) for s in rows],
            "ceiling": [format_value(s.ceiling, s.unit) for s in rows],
            "brain": [format_value(s.brain_attributable, "share") for s in rows],
        }
        kept = {name: cells for name, cells in columns.items() if any(cell != "–" for cell in cells)}
        for name in kept:
            table.add_column(name, justify="left" if name in {"metric", "hardest floor"} else "right")
        for score, *cells in zip(rows, *kept.values()):
            table.add_row(*cells, style="dim" if score.control else None)
        tables.append(table)
    return Group(*tables, f"{_CAPTION} Green beats every floor; red does not. brain: (score - shuffled) / "
                 "(ceiling - shuffled).")  # fmt: skip
