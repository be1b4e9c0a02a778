"""Scores of several runs of one recipe, as the tables of docs/results.md.

    python benchmarks/seeds.py runs/seed7 runs/seed11 runs/seed12 runs/seed13

Scores: mean over runs and, in brackets, the lowest and the highest; elsewhere means. The last columns count the runs
whose paired 95 % interval is clear of ridge, of every floor, and whose shuffled control's interval contains chance.
"""

import sys
from pathlib import Path

from neuroclips.evaluation.table import Score, format_value, read_scores

WANTED = [
    ("neural", "tokens", ("top-1", "top-5", "pairwise", "median rank", "agreement", "error")),
    ("prior", "tokens", ("top-1", "pairwise", "agreement", "error")),
    ("neural", "latents", ("top-1", "pairwise")),
    ("blurry", "video", ("pixel correlation", "SSIM", "PSNR", "motion direction")),
    ("nearest", "video", ("pixel correlation", "SSIM", "PSNR")),
]


def find(scores: list[Score], method: str, space: str, metric: str, n_repeats: int | None) -> Score:
    """The one row with these names."""
    (row,) = (
        s for s in scores if (s.method, s.space, s.metric, s.n_repeats) == (method, space, metric, n_repeats)
    )  # fmt: skip
    return row


def spread(values: list[float], unit: str) -> str:
    """``mean (lowest to highest)``."""
    return f"{mean(values, unit)} ({format_value(min(values), unit)} to {format_value(max(values), unit)})"


def mean(values: list[float | None], unit: str) -> str:
    """The mean, or a dash where there is no such value."""
    known = [v for v in values if v is not None]
    return format_value(sum(known) / len(known), unit) if known else "–"


def contains_chance(control: Score) -> bool | None:
    if control.chance is None or control.ci_low is None or control.ci_high is None:
        return None
    return control.ci_low <= control.chance <= control.ci_high


def main(runs: list[Path]) -> None:
    tables = [read_scores(run / "scores.json") for run in runs]
    repeats = sorted({s.n_repeats for s in tables[0] if s.n_repeats is not None})
    print(f"{len(runs)} runs, {repeats[-1]} presentations averaged.\n")
    columns = ("what", "metric", "score", "ridge", "shuffled", "mean frame", "chance", "ceiling", "beats ridge",
               "beats floors", "control")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for method, space, metrics in WANTED:
        for metric in metrics:
            rows = [find(t, method, space, metric, repeats[-1]) for t in tables]
            controls = [find(t, f"{method}, shuffled", space, metric, repeats[-1]) for t in tables]
            unit = rows[0].unit
            cells = [spread([r.value for r in rows], unit)]
            cells += [mean([r.baselines.get("ridge") for r in rows], unit)]
            cells += [mean([r.floors.get(name) for r in rows], unit) for name in ("shuffled", "mean frame")]
            cells += [mean([getattr(r, name) for r in rows], unit) for name in ("chance", "ceiling")]
            clear = sum(bool(r.beats_floors) for r in rows)
            ridge = (
                f"{sum(bool(r.beats('ridge')) for r in rows)} of {len(runs)}" if "ridge" in rows[0].baselines else "–"
            )
            at_chance = [contains_chance(c) for c in controls]
            quiet = "–" if None in at_chance else f"{at_chance.count(True)} of {len(runs)}"
            print(
                f"| {space}, {method} | {metric} | {' | '.join(cells)} | {ridge} | {clear} of {len(runs)} | {quiet} |"
            )
    print("\n| presentations averaged | tokens, top-1 | shuffled | ceiling |\n| --- | --- | --- | --- |")
    for k in repeats:
        rows = [find(t, "neural", "tokens", "top-1", k) for t in tables]
        cells = [spread([r.value for r in rows], "share"), mean([r.floors["shuffled"] for r in rows], "share")]
        print(f"| {k} | {' | '.join([*cells, mean([r.ceiling for r in rows], 'share')])} |")


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]] or sys.exit(__doc__))
