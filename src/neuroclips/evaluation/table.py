"""One row a score, with everything that it must stand beside: interval, chance, floors, ceiling, n and seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from neuroclips.artefacts import write_json
from neuroclips.errors import ArtefactError

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
    p_value : one-sided permutation test against pairings shuffled across scenes.
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
    p_value: float | None = None
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
    def beats_chance(self) -> bool | None:
        """Whether the interval lies on the good side of chance; None without chance or interval.

        A control should read False. (A shuffled strong decoder may score *below* chance: it confidently finds another
        clip.)
        """
        if self.chance is None or self.ci_low is None or self.ci_high is None:
            return None
        return self.ci_low > self.chance if self.higher_is_better else self.ci_high < self.chance


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write scores as a JSON list, atomically; a value that is not finite is written as null."""
    write_json(path, [_without_nan(asdict(score)) for score in scores])


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


def scores_to_frame(scores: Sequence[Score]) -> pd.DataFrame:
    """One row a score; floors, baselines and differences are spread over columns, such as ``floor: shuffled``."""
    rows = []
    for score in scores:
        row = asdict(score)
        floors, baselines, differences = row.pop("floors"), row.pop("baselines"), row.pop("differences")
        interval = row.pop("brain_attributable_interval") or (None, None)
        row["brain_attributable_low"], row["brain_attributable_high"] = interval
        row |= {f"floor: {name}": value for name, value in floors.items()}
        row |= {f"baseline: {name}": value for name, value in baselines.items()}
        for name, (low, high) in differences.items():
            row |= {f"minus {name}, low": low, f"minus {name}, high": high}
        rows.append(row)
    return pd.DataFrame(rows)


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


def rich_table(scores: Sequence[Score], title: str = "Scores") -> Table:
    """The scores for a terminal, one row each, controls dimmed."""
    table = Table(title=title, caption="95 % scene-bootstrap intervals; n eff: Kish's effective number of scenes")
    for heading in ("space", "metric", "method", "score", "95 %", "chance", "beside", "ceiling", "brain", "n", "n eff"):
        table.add_column(heading, justify="left" if heading in {"space", "metric", "method", "beside"} else "right")
    for s in scores:
        beside = ", ".join(f"{k} {format_value(v, s.unit)}" for k, v in {**s.floors, **s.baselines}.items())
        table.add_row(
            s.space, s.metric, s.method, format_value(s.value, s.unit), format_interval(score_interval(s), s.unit),
            format_value(s.chance, s.unit), beside or "–", format_value(s.ceiling, s.unit),
            format_value(s.brain_attributable, "share"), str(s.n), f"{s.n_effective:.1f}",
            style="dim" if s.control else None,
        )  # fmt: skip
    return table
