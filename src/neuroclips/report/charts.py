"""Geometry of the page's charts: numbers to positions. The template draws them as inline SVG.

Charts are plain data here, so that they can be tested without a browser.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import SupportsFloat

import numpy as np

from neuroclips.errors import DataError
from neuroclips.evaluation.table import Score, format_interval, format_value, score_interval
from neuroclips.shapes import Float, Int

WIDTH, HEIGHT = 460, 270  # of line charts and histograms, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44

Numbers = Sequence[SupportsFloat] | np.ndarray


@dataclass(frozen=True)
class Series:
    """One line: y at x, and optionally the ends of its 95 % interval at each x. Missing y are NaN and leave a gap."""

    name: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None


@dataclass(frozen=True)
class Curve:
    """A line chart. ``levels`` are named horizontal lines, such as chance, and ``marks`` vertical ones, at one or more
    x; ``logarithmic`` is its x axis."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    levels: Mapping[str, SupportsFloat] = field(default_factory=dict)
    note: str = ""
    logarithmic: bool = False
    marks: Mapping[str, Numbers] = field(default_factory=dict)


@dataclass(frozen=True)
class VoxelSummary:
    """Which voxels were kept: counts over bins of reliability.

    edges : (N + 1,) bin edges of the correlation between repeats on training segments.
    counts, selected : (N,) how many voxels in each bin, and how many of them were selected.
    """

    n_selected: int
    n_total: int
    edges: Float[np.ndarray, " M"]
    counts: Int[np.ndarray, " N"]
    selected: Int[np.ndarray, " N"]


@dataclass(frozen=True)
class BarRow:
    """Values of one area, by series: (value, low, high). Ends of the 95 % interval that are not known are NaN."""

    name: str
    group: str
    values: Mapping[str, tuple[float | int, float | int, float | int]]


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars from zero: rows under the headings of their groups, the same series side by side in each row.

    label : of the axis, with its unit. Missing values are left out, or NaN.
    """

    title: str
    label: str
    rows: Sequence[BarRow]
    note: str = ""


def nice_ticks(low: float | int, high: float | int, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high].

    >>> nice_ticks(0, 0.43)
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    """
    if not high > low:
        low, high = low - 0.5, low + 0.5
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def line_chart(curve: Curve) -> dict:
    """Positions of a curve's lines, bands, levels and ticks, and its legend."""
    for s in curve.series:
        lengths = {len(part) for part in (s.x, s.y, s.low, s.high) if part is not None}
        if len(lengths) != 1:
            raise DataError(f"curve {curve.title!r}, series {s.name!r}: x, y, low and high differ in length")
    marks = {name: [float(x) for x in places] for name, places in curve.marks.items()}
    x_values = _finite([*(v for s in curve.series for v in s.x), *(x for places in marks.values() for x in places)])
    x_values = x_values or [0.0]
    levels = {name: float(level) for name, level in curve.levels.items() if math.isfinite(float(level))}
    y_values = _finite([v for s in curve.series for part in (s.y, s.low, s.high) if part is not None for v in part])
    y_ticks = nice_ticks(*_span([*y_values, *levels.values()]))
    x_ticks = sorted(set(x_values)) if len(set(x_values)) <= 8 else nice_ticks(min(x_values), max(x_values))
    if curve.logarithmic and min(x_values) > 0:
        x_ticks = sorted(set(x_values))
    left, right = min(x_ticks), max(x_ticks)

    def at(x: float | int, y: float | int) -> tuple[float, float]:
        share_x = (x - left) / (right - left) if right > left else 0.5
        if curve.logarithmic and left > 0 and right > left:
            share_x = math.log(x / left) / math.log(right / left)
        share_y = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return (round(LEFT + share_x * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - share_y * _PLOT_HEIGHT, 1))

    lines = []
    for s in curve.series:
        points = [at(x, y) for x, y in zip(s.x, s.y) if math.isfinite(x) and math.isfinite(y)]
        band = []
        if s.low is not None and s.high is not None:
            inside = [(x, a, b) for x, a, b in zip(s.x, s.low, s.high) if math.isfinite(a) and math.isfinite(b)]
            band = [at(x, b) for x, _, b in inside] + [at(x, a) for x, a, _ in reversed(inside)]
        shown = points if len(points) <= 30 else []  # dots on a long training curve would hide the line
        lines.append({"name": s.name, "points": _path(points), "dots": shown, "band": _path(band)})
    return {
        "title": curve.title, "x_label": curve.x_label, "y_label": curve.y_label, "note": curve.note, "lines": lines,
        "levels": [{"name": k, "y": at(left, v)[1]} for k, v in levels.items()],
        "marks": [{"name": k, "xs": [at(x, y_ticks[0])[0] for x in places]} for k, places in marks.items()],
        "x_ticks": _apart([(at(x, y_ticks[0])[0], f"{x:.4g}") for x in x_ticks]),
        "y_ticks": [(at(left, y)[1], f"{y:g}") for y in y_ticks],
    }  # fmt: skip


def _apart(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The ticks without those whose labels would touch the next one's; the last stays."""
    kept: list[tuple[float, str]] = []
    for x, text in reversed(ticks):
        if not kept or kept[-1][0] - x >= 4 * (len(text) + len(kept[-1][1])):
            kept.append((x, text))
    return kept[::-1]


_PLOT_HEIGHT = HEIGHT - TOP - BOTTOM


def histogram(voxels: VoxelSummary) -> dict:
    """Bars of all voxels and of the selected ones; heights are square roots, so that the few reliable ones show."""
    if not len(voxels.edges) == len(voxels.counts) + 1 == len(voxels.selected) + 1:
        raise DataError(
            f"voxel histogram has {len(voxels.edges)} edges, {len(voxels.counts)} counts and {len(voxels.selected)} "
            "selected counts; expected N + 1, N and N"
        )
    top = math.sqrt(max(int(voxels.counts.max()), 1))
    low, high = float(voxels.edges[0]), float(voxels.edges[-1])
    positions = LEFT + (np.asarray(voxels.edges) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def bar(i: int, count: int) -> dict:
        height = _PLOT_HEIGHT * math.sqrt(count) / top
        width = float(positions[i + 1] - positions[i])
        return {
            "x": round(float(positions[i]), 1),
            "y": round(HEIGHT - BOTTOM - height, 1),
            "width": round(width * 0.92, 1),
            "height": round(height, 1),
            "title": f"{voxels.edges[i]:.2f} to {voxels.edges[i + 1]:.2f}: {count:,}",
        }

    counts = [c for c in (1, 10, 100, 1000, 10_000, 100_000) if 0.07 <= math.sqrt(c) / top <= 1]  # no overlap
    ticks = [t for t in nice_ticks(low, high) if low - 1e-9 <= t <= high + 1e-9]
    return {
        "all": [bar(i, int(c)) for i, c in enumerate(voxels.counts)],
        "selected": [bar(i, int(c)) for i, c in enumerate(voxels.selected)],
        "x_ticks": [(round(LEFT + (t - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1), f"{t:g}") for t in ticks],
        "y_ticks": [(round(HEIGHT - BOTTOM - _PLOT_HEIGHT * math.sqrt(c) / top, 1), f"{c:,}") for c in counts],
    }


def dot_panels(scores: Sequence[Score]) -> list[dict]:
    """One panel for each space and metric, one row a method; positions are percentages of the width.

    All rows of a panel share one scale, so positions compare.
    """
    panels, spaces = [], list(dict.fromkeys(s.space for s in scores))
    for space, metric in dict.fromkeys((s.space, s.metric) for s in scores):
        rows = [s for s in scores if (s.space, s.metric) == (space, metric)]
        ticks = nice_ticks(*_span(_finite(_numbers(rows))), about=4)
        unit = rows[0].unit
        panels.append({
            "order": spaces.index(space), "space": space, "metric": metric, "note": rows[0].note,
            "higher": rows[0].higher_is_better,
            "ticks": [(_percent(t, ticks), _tick_text(t, unit)) for t in ticks],
            "rows": [_dot_row(score, ticks) for score in rows],
        })  # fmt: skip
    return panels


def _dot_row(score: Score, ticks: list[float]) -> dict:
    def mark(name: str, value: float) -> dict:
        return {"x": _percent(value, ticks), "title": f"{name}: {format_value(value, score.unit)}"}

    interval = score_interval(score)
    return {
        "method": score.method, "control": score.control, "text": format_value(score.value, score.unit),
        "interval_text": format_interval(interval, score.unit),
        "value": mark(score.method, score.value) if math.isfinite(score.value) else None,
        "interval": None if interval is None else [_percent(end, ticks) for end in interval],
        "chance": None if score.chance is None else mark("chance", score.chance),
        "ceiling": None if score.ceiling is None else mark("ceiling", score.ceiling),
        "floors": [mark(f"floor, {name}", value) for name, value in score.floors.items() if math.isfinite(value)],
        "baselines": [mark(f"baseline, {name}", v) for name, v in score.baselines.items() if math.isfinite(v)],
    }  # fmt: skip


def bar_panel(chart: BarChart) -> dict:
    """Bars of a chart, group by group; across, positions are percentages of the width, and one scale holds for all.

    Each series has the same lane and colour in every row. The axis includes zero.
    """
    series = list(dict.fromkeys(name for row in chart.rows for name in row.values))
    numbers = _finite(number for row in chart.rows for three in row.values.values() for number in three)
    ticks = nice_ticks(*_span([0.0, *numbers]), about=6)

    def bar(name: str, row: BarRow) -> dict | None:
        value, low, high = row.values.get(name, (math.nan,) * 3)
        if not math.isfinite(value):
            return None
        start, end = sorted((_percent(0.0, ticks), _percent(value, ticks)))
        known = math.isfinite(low) and math.isfinite(high)
        between = f" ({format_interval((low, high))})" if known else ""
        return {
            "lane": series.index(name), "x": start, "width": round(end - start, 2),
            "interval": [_percent(low, ticks), _percent(high, ticks)] if known else None,
            "title": f"{row.name}, {name}: {format_value(value)}{between}",
        }  # fmt: skip

    groups: dict[str, list[dict]] = {}  # in the order in which they first come
    for row in chart.rows:
        bars = [found for name in series if (found := bar(name, row)) is not None]
        groups.setdefault(row.group, []).append({"name": row.name, "bars": bars})
    return {
        "title": chart.title, "label": chart.label, "note": chart.note, "series": series,
        "zero": _percent(0.0, ticks), "ticks": [(_percent(t, ticks), f"{t:g}") for t in ticks],
        "groups": [{"name": name, "rows": rows} for name, rows in groups.items()],
    }  # fmt: skip


def _numbers(rows: Sequence[Score]) -> Iterable[SupportsFloat | None]:
    for s in rows:
        yield from (s.value, s.ci_low, s.ci_high, s.chance, s.ceiling, *s.floors.values(), *s.baselines.values())
        if s.unit == "share":
            yield 0.0


def _percent(value: float, ticks: list[float]) -> float:
    return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)


def _tick_text(value: float, unit: str) -> str:
    return f"{100 * value:g} %" if unit == "share" else f"{value:g}"


def _finite(values: Iterable[SupportsFloat | None]) -> list[float]:
    return [float(v) for v in values if v is not None and math.isfinite(float(v))]


def _span(values: list[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 1.0)


def _path(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
