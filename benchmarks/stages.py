"""Time, memory and size of every stage of a finished run, from its cards, as a Markdown table.

    python benchmarks/stages.py runs/demo

Seconds are wall time; memory is the highest resident memory of the process and its children, sampled.
"""

from __future__ import annotations

import sys
from pathlib import Path

from neuroclips.artefacts import read_card
from neuroclips.pipeline import plan
from neuroclips.recipe import Recipe


def table(run: Path) -> str:
    """One row a stage in the order of the recipe; stages that have not finished are left out."""
    found = sorted(run.glob("*/card.json"))
    if not found:
        raise SystemExit(f"{run}: no card.json in any folder of it; expected a run directory, such as runs/demo")
    recipe = Recipe.model_validate((read_card(found[0].parent) or {})["recipe"])
    cards = {stage.name: card for stage in plan(recipe) if (card := read_card(run / stage.name))}
    total = sum(card["seconds"] for card in cards.values())
    peak = max(card["peak_memory_gb"] for card in cards.values())
    rows = ["| stage | seconds | share | peak memory, GB | files, MB |", "| --- | ---: | ---: | ---: | ---: |"]
    megabytes = {name: sum(f["bytes"] for f in card["files"].values()) / 1e6 for name, card in cards.items()}
    for name, card in cards.items():
        rows.append(
            f"| {name} | {card['seconds']:.1f} | {card['seconds'] / total:.0%} | {card['peak_memory_gb']:.2f} "
            f"| {megabytes[name]:.0f} |"
        )
    rows.append(f"| **all** | **{total:.1f}** | | **{peak:.2f}** | **{sum(megabytes.values()):.0f}** |")
    commits = ", ".join(sorted({str(card["commit"]) for card in cards.values()}))
    return "\n".join([*rows, "", f"Recipe `{recipe.name}`, seed {recipe.seed}, commit {commits}."])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(table(Path(sys.argv[1])))
