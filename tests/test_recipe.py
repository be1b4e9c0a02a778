import numpy as np
import pytest

from neuroclips.errors import RecipeError
from neuroclips.recipe import VideoRecipe, describe_recipe, load_recipe, named_recipes
from neuroclips.reconstructor import KEYFRAME

OWN_DATA = """
name: mine
data: {root: scans, train: [seg1, seg2], validation: [seg3], test: [test1]}
"""


@pytest.mark.parametrize("name", named_recipes())
def test_every_shipped_recipe_loads_under_its_own_name(name):
    wants_data = {"cc2017": "the folder of your data", "table": "the table of your study"}
    if name in {"cc2017", "tensors", "table"}:
        with pytest.raises(RecipeError, match=f"which data. Give {wants_data.get(name, 'the folder')}"):
            load_recipe(name)
    recipe = load_recipe(name, {"data.root": "somewhere"} if name in {"cc2017", "tensors", "table"} else None)
    assert recipe.name == name
    assert recipe.description == describe_recipe(name)


def test_changes_are_laid_over():
    recipe = load_recipe("demo", {"film.train_segments": 4, "brain.signal": 0})
    assert (recipe.film.train_segments, recipe.brain.signal) == (4, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"film.sice": 64}, r"film\.sice: Extra inputs are not permitted"),
        ({"data.delay_trs": 9}, "data: delay_trs is 9; expected 0 to 4"),
        ({"film.size": "big"}, r"film\.size: .*valid integer"),
        ({"data.test": ["seg1"]}, r"seg1.* two splits"),
        ({"seed.x": 1}, "'seed' is not a group"),
        ({"film.unseen_things": 0.7, "film.new_places": 0.5}, r"film: .*at most 1 together"),
        ({"brain.subject": 2}, r"brain\.subject 2 .*data\.subject 1"),
        ({"ridge.alphas": [1, 0]}, r"ridge\.alphas\.1: .*greater than 0"),
        ({"generate.video.keyframe_index": 16}, r"generate\.video: .*keyframe_index 16; expected a frame of 0 to 15"),
        ({"generate.video.strength": 1.5}, r"generate\.video\.strength: .*less than or equal to 1"),
        ({"data.root": "scans"}, "either 'film'.*or 'data.root'"),
    ],
)
def test_faults_are_named_with_their_place(changes, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe("demo", changes)


def test_the_papers_scale_is_what_a_recipe_starts_from():
    paper = load_recipe("cc2017", {"data.root": "scans", "generate.video.strength": 0.9})
    assert (paper.targets.clip, paper.targets.keyframes, paper.data.frame_size) == ("clip-bigg", (2, 3), 224)
    assert paper.decoders.methods == ("ridge", "end-to-end")
    assert (paper.generate.video.strength, paper.generate.video.keyframe) == (
        0.9,
        "sdxl-unclip",
    )  # ours, and the scale's
    without = load_recipe("cc2017", {"data.root": "scans", "generate.video": None})
    assert without.generate.video is None
    mini = load_recipe("cc2017", {"data.root": "scans", "scale": "mini"})
    assert (mini.targets.clip, mini.decoders.methods, mini.generate.video) == ("mini", ("ridge", "neural"), None)
    assert paper.data.train == mini.data.train


@pytest.mark.parametrize("frames", [(2,), (2, 3), (1, 2, 3), (0, 2, 5)])
def test_keyframes_stand_around_the_one_that_is_decoded(frames):
    assert load_recipe("demo", {"targets.keyframes": frames}).targets.keyframes == frames


@pytest.mark.parametrize(
    ("frames", "said"), [([3, 2], "ascending"), ([2, 6], "0 to 5"), ([3, 4], "expected frame 2"), ([], "0 to 5")]
)
def test_other_keyframes_are_refused(frames, said):
    with pytest.raises(RecipeError, match=f"targets.keyframes is .*{said}"):
        load_recipe("demo", {"targets.keyframes": frames})


def test_recipe_files(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN_DATA)
    assert load_recipe(path).film is None
    path.write_text("name: [")
    with pytest.raises(RecipeError, match=r"mine\.yaml: not valid YAML"):
        load_recipe(path)
    path.write_text("- name")
    with pytest.raises(RecipeError, match="expected a mapping"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"other\.yaml: no such recipe file"):
        load_recipe(tmp_path / "other.yaml")
    with pytest.raises(RecipeError, match=r"no recipe 'dmeo'; shipped are .*demo"):
        load_recipe("dmeo")


def test_the_keyframe_stands_at_the_moment_whose_tokens_are_decoded():
    moments = np.linspace(0, 5, 16)  # of the six frames
    assert moments[VideoRecipe().keyframe_at] == KEYFRAME
    assert VideoRecipe(frames=1).keyframe_at == 0
    assert (VideoRecipe(keyframe_index=-1).keyframe_at, VideoRecipe(keyframe_index=0).keyframe_at) == (15, 0)
