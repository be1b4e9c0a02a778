"""How much there is to do in a run: clips, voxels and presentations. Counted where data are prepared, else known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroclips.artefacts import read_card
from neuroclips.errors import RecipeError
from neuroclips.recipe import Recipe

CC2017 = {1: 13_447, 2: 14_828, 3: 9_114}  # voxels of the paper's subjects
CLIPS, REPEATS, TEST_REPEATS = 240, 2, 10  # of every segment of CC2017
CORTEX = 59_412
SELECTED = 0.2  # of the cortex, of a simulated subject (demo: 0.197)


@dataclass(frozen=True)
class Counts:
    """Clips of every split, presentations, selected voxels V, and voxels of the space they are selected from.

    segments : films, of training alone and of all.  source : where the figures are from, in words.
    """

    train: int
    validation: int
    test: int
    repeats: int
    test_repeats: int
    voxels: int
    space: int
    segments: tuple[int, int]
    source: str

    @property
    def clips(self) -> int:
        return self.train + self.validation + self.test

    @property
    def presentations(self) -> int:
        """Clips times their presentations."""
        return (self.train + self.validation) * self.repeats + self.test * self.test_repeats


def count_run(recipe: Recipe, run: Path) -> Counts:
    """Counts of a run: from its card of ``prepare``, from what the recipe simulates, or those of CC2017.

    Raises ``RecipeError`` for a study of one's own that is not prepared yet: nobody knows it.
    """
    card = read_card(run / "prepare")
    if card is not None:
        return _counted(card["summary"], run)
    data, film = recipe.data, recipe.film
    train, validation, test = (len(names) for names in (data.train, data.validation, data.test))
    films = (train, train + validation + test)
    if film is not None:
        trained, tested = film.train_seconds // 2, film.test_seconds // 2
        voxels, how = _selected(recipe, int(SELECTED * CORTEX))
        return Counts(
            train * trained, validation * trained, test * tested, recipe.brain.train_repeats,
            recipe.brain.test_repeats, voxels, CORTEX, films, how,
        )  # fmt: skip
    if data.layout == "table":
        raise RecipeError(
            f"plan: how many clips and voxels a study of your own has is not known before `neuroclips prepare`; run it "
            f"first, then plan again (looked in {run})"
        )
    known = CC2017.get(data.subject, max(CC2017.values()))
    voxels, how = (known, "") if data.layout == "tensors" else _selected(recipe, known)
    space = known if data.layout == "tensors" else CORTEX
    how = how or f"CC2017's 4,320 and 1,200 clips, and the paper's {voxels:,} voxels of subject {data.subject}, assumed"
    clips = (train * CLIPS, validation * CLIPS, test * CLIPS)
    return Counts(clips[0], clips[1], clips[2], REPEATS, TEST_REPEATS, voxels, space, films, how)


def _selected(recipe: Recipe, usual: int) -> tuple[int, str]:
    chosen = recipe.data.selection
    if chosen.method == "top":
        return chosen.top, "clips and voxels as the recipe has them"
    if chosen.method == "all":
        return CORTEX, "clips as the recipe has them; all voxels of the cortex"
    if recipe.film is None:
        return usual, ""
    return usual, f"clips as the recipe has them; {usual:,} voxels, assumed"


def _counted(said: dict[str, Any], run: Path) -> Counts:
    splits, chosen = said["splits"], said["selection"]
    train, validation, test = (splits[name] for name in ("train", "validation", "test"))
    films = (len(train["segments"]), sum(len(split["segments"]) for split in splits.values()))
    return Counts(
        train["clips"], validation["clips"], test["clips"], train["repeats"], test["repeats"], chosen["selected"],
        chosen["of"], films, f"counted in {run}",
    )  # fmt: skip
