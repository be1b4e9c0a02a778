"""The same recipe on several subjects or seeds: every run by itself first, then their mean and how much they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from neuroclips.errors import DataError
from neuroclips.evaluation.table import (
    Score,
    format_interval,
    format_value,
    hardest_floor,
    latex_rows,
    markdown_rows,
)

ENOUGH = 5  # runs, for a table that is to be reported


@dataclass(frozen=True)
class Across:
    """One score over several runs.

    rows : of each run, in the order of the runs; they differ in nothing but the run.
    """

    rows: Sequence[Score]

    @property
    def value(self) -> float:
        return float(np.mean([s.value for s in self.rows]))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of the mean over runs, by Student's t: about other runs like these. None for one run."""
        values = np.array([s.value for s in self.rows])
        if len(values) < 2:
            return None
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        return self.value - half, self.value + half

    def mean(self, name: str) -> float | None:
        """Mean of a field over runs, or None where a run lacks it."""
        values = [getattr(s, name) for s in self.rows]
        return None if any(v is None for v in values) else float(np.mean(values))

    def mean_beside(self, name: str) -> float | None:
        """Mean of a floor or baseline over runs, or None where a run lacks it."""
        values = [{**s.floors, **s.baselines}.get(name) for s in self.rows]
        return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))

    def count(self, name: str) -> str:
        """In how many runs a property, such as ``beats_floors``, holds; a dash where it is not known."""
        values = [getattr(s, name) for s in self.rows]
        return "–" if any(v is None for v in values) else f"{sum(values)} of {len(values)}"


def across_runs(tables: Sequence[Sequence[Score]]) -> list[Across]:
    """The scores that all runs have, in the first run's order.

    Raises ``DataError`` where there are no runs, or no score is in all of them.
    """
    if not tables:
        raise DataError("no runs; expected the scores of at least one")
    by_key = [{_key(score): score for score in table} for table in tables]
    shared = [key for key in by_key[0] if all(key in table for table in by_key)]
    if not shared:
        raise DataError(f"the {len(tables)} runs have no score in common; expected runs of one recipe")
    return [Across([table[key] for table in by_key]) for key in shared]


def _key(score: Score) -> tuple[str, str, str, int | None]:
    return score.space, score.metric, score.method, score.n_repeats


def table_of(scores: Sequence[Across], *, latex: bool = False) -> str:
    """Mean over runs with its interval, beside means of chance, hardest floor, shuffled floor and ceiling."""
    n = len(scores[0].rows)
    heading = (
        "space", "metric", "method", "repeats", f"mean of {n}", "95 % over runs", "each run", "chance", "shuffled",
        "hardest floor", "baselines", "ceiling", "from the brain", "beats floors", "contains chance",
    )  # fmt: skip
    rows = [_cells(score) for score in scores]
    return latex_rows(heading, rows) if latex else markdown_rows(heading, rows)


def _cells(found: Across) -> tuple[str, ...]:
    first = found.rows[0]
    floors = [hardest_floor(s) for s in found.rows]
    hardest = "–"
    if all(f is not None for f in floors):
        named = [f for f in floors if f is not None]
        names = dict.fromkeys(name for name, _ in named)
        hardest = f"{format_value(float(np.mean([v for _, v in named])), first.unit)} {' or '.join(names)}"
    beside = {name: found.mean_beside(name) for name in first.baselines}
    baselines = ", ".join(f"{format_value(value, first.unit)} {name}" for name, value in beside.items())
    each = ", ".join(format_value(s.value, first.unit).removesuffix(" %").removesuffix(" dB") for s in found.rows)
    return (
        first.space, f"{first.metric}{'' if first.higher_is_better else ' (lower is better)'}", first.method,
        "–" if first.n_repeats is None else str(first.n_repeats), format_value(found.value, first.unit),
        format_interval(found.interval, first.unit), each, format_value(found.mean("chance"), first.unit),
        format_value(found.mean_beside("shuffled"), first.unit), hardest, baselines or "–",
        format_value(found.mean("ceiling"), first.unit), format_value(found.mean("brain_attributable"), "share"),
        "–" if first.control else found.count("beats_floors"), found.count("contains_chance") if first.control else "–",
    )  # fmt: skip
