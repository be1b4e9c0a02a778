"""One tiny simulated run, made once a session and shared; read it, or copy it with ``copied``."""

import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neuroclips import pipeline
from neuroclips.recipe import Recipe, load_recipe

# 20 training clips, 10 to choose on, 20 to test on, of 3 frames.
CHANGES = {
    "film.train_segments": 3, "film.train_seconds": 20, "film.test_seconds": 20, "brain.test_repeats": 2,
    "data.train": ["seg1", "seg2"], "data.validation": ["seg3"], "data.frames_per_clip": 3, "data.frame_size": 32,
    "data.wrong_subject": 2,
    "data.selection.top": 700, "evaluate.bootstrap": 100, "evaluate.shuffles": 2,
    "decoders.pretrained": None, "decoders.epochs": 2, "generate.video": None, "maps": None,
}  # fmt: skip


@dataclass(frozen=True)
class TinyRun:
    """A finished run, its recipe, the cards that ``pipeline.run`` returned, and what it printed."""

    directory: Path
    recipe: Recipe
    cards: dict[str, Any]
    said: str

    @property
    def scans(self) -> Path:
        return self.directory / "simulate" / "video_fmri_dataset"


def walk(recipe: Recipe, directory: Path, **options: Any) -> tuple[dict[str, Any], str]:
    """Run, and return the cards and everything that was printed."""
    console = Console(record=True, file=io.StringIO(), width=200)
    return pipeline.run(recipe, directory, console=console, **options), console.export_text()


_made: list[TinyRun] = []  # tests of two folders use it; a fixture would be made once in each


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    if not _made:
        directory, recipe = tmp_path_factory.mktemp("tiny") / "run", load_recipe("smoke", CHANGES)
        _made.append(TinyRun(directory, recipe, *walk(recipe, directory)))
    return _made[0]


def copied(source: Path, target: Path) -> Path:
    """The same files as hard links: what is written by rename is safe, else unlink before you write."""
    return Path(shutil.copytree(source, target, copy_function=os.link))
