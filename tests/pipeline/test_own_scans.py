"""Scans of the user's own: the same path without a simulation, on a folder in the layout of CC2017."""

import os
import shutil

import pytest
from tiny_run import CHANGES, walk

from neuroclips.artefacts import read_arrays
from neuroclips.evaluation.table import read_scores
from neuroclips.recipe import Recipe, load_recipe


@pytest.fixture
def own_recipe(tiny_run, tmp_path):
    scans = shutil.copytree(tiny_run.scans, tmp_path / "scans", copy_function=os.link)
    content = load_recipe("smoke", CHANGES).model_dump(mode="json")
    return Recipe.model_validate({**content, "name": "mine", "film": None, "data": {**content["data"], "root": scans}})


def test_the_same_scans_give_the_same_decoding_without_a_simulation(tiny_run, own_recipe, tmp_path):
    cards, _ = walk(own_recipe, tmp_path / "run")
    assert list(cards)[:4] == ["survey", "films", "reliability", "prepare"]
    assert list(cards)[4:] == ["targets", "fit", "reconstruct", "curves", "evaluate", "report"]
    ours, simulated = (
        read_arrays(d / "reconstruct" / "videos.safetensors") for d in (tmp_path / "run", tiny_run.directory)
    )
    for name, videos in simulated.items():
        assert (videos == ours[name]).all()
    # No observer knows this brain: the ceiling is what repeats of the same scan tell of each other.
    assert cards["evaluate"]["summary"]["ceiling"] == "split half of the repeats"
    top1 = next(s for s in read_scores(tmp_path / "run" / "scores.json") if s.metric == "top-1" and s.n_repeats == 2)
    assert top1.ceiling > 2 * top1.chance
    assert "simulated" not in (tmp_path / "run" / "report.html").read_text().split("</header>")[0]


def test_new_scans_make_old_results_stale(own_recipe, tmp_path):
    def done(recipe=own_recipe):
        said = walk(recipe, tmp_path / "run", until="targets")[1]
        return [line.split()[1] for line in said.splitlines() if "  done in " in line]

    assert done() == ["survey", "films", "reliability", "prepare", "targets"]
    assert done() == []
    film, scan = own_recipe.data.root / "stimuli" / "seg1.mp4", own_recipe.data.root / "subject1" / "fmri" / "seg3"
    os.utime(film, (1, 1))
    assert done() == ["survey", "films", "prepare", "targets"]  # what repeats have in common is not the film's affair
    os.utime(next(scan.rglob("*.nii")), (1, 1))
    assert done() == ["survey", "prepare"]  # a validation scan: films, their targets and training scans are as before
    several = own_recipe.data.model_copy(update={"delay_trs": (2, 3)})
    assert done(own_recipe.model_copy(update={"data": several})) == ["survey", "prepare"]
