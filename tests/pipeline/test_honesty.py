"""Scores that could not come from the brain would show here."""

import ast
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console
from tiny_run import copied, walk

import neuroclips
from neuroclips import Reconstructor, pipeline
from neuroclips.artefacts import file_hash, read_card
from neuroclips.data.prepared import load_clips
from neuroclips.errors import NeuroClipsError, SplitLeakError
from neuroclips.evaluation.table import read_scores
from neuroclips.recipe import BrainRecipe, Recipe
from neuroclips.scoring import PRIMARY
from neuroclips.simulation.subject import simulate_subject

SOURCE = Path(neuroclips.__file__).parent

# --- the truth of the simulation is out of reach ----------------------------------------------------------------------


def test_decoding_gives_the_same_bytes_when_the_truth_is_gone(tiny_run, tmp_path):
    run = tmp_path / "run"
    copied(tiny_run.scans, run / "simulate" / "video_fmri_dataset")
    shutil.copyfile(tiny_run.directory / "simulate" / "card.json", run / "simulate" / "card.json")
    stages = {stage.name: stage for stage in pipeline.plan(tiny_run.recipe)}
    console = Console(quiet=True)
    for name in ("survey", "films", "reliability", "prepare", "targets", "fit", "reconstruct"):
        (run / name).mkdir()
        stages[name].work(run, run / name, tiny_run.recipe, console)
        for file, about in tiny_run.cards[name]["files"].items():
            if file.endswith(".mp4"):  # the arrays of videos.safetensors again, to watch; H.264 bytes may vary
                continue
            assert file_hash(run / name / file) == about["sha256"], f"{name}/{file}"
    copied(tiny_run.directory / "curves", run / "curves")  # threads may round them otherwise
    (run / "observe").mkdir()
    with pytest.raises((NeuroClipsError, OSError), match="truth"):
        stages["observe"].work(run, run / "observe", tiny_run.recipe, console)
    shutil.copyfile(tiny_run.directory / "observe" / "similarity.safetensors", run / "observe/similarity.safetensors")
    (run / "evaluate").mkdir()
    stages["evaluate"].work(run, run / "evaluate", tiny_run.recipe, console)
    assert (run / "evaluate" / "scores.json").read_bytes() == (tiny_run.directory / "scores.json").read_bytes()


def paths_to_truth(tree: ast.AST) -> set[str]:
    """Functions that hold a string with ``truth`` as a part of a path; docstrings do not count."""
    found = set()

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "truth" in node.value.split("/"):
            found.add(function)
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(tree, "module")
    return found


def imports_simulation(tree: ast.AST) -> bool:
    return any(
        (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neuroclips.simulation"))
        or (isinstance(node, ast.Import) and any(a.name.startswith("neuroclips.simulation") for a in node.names))
        for node in ast.walk(tree)
    )


def test_only_the_simulation_and_its_observer_name_the_truth():
    readers, importers = {}, set()
    for path in sorted(SOURCE.rglob("*.py")):
        place, tree = path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text())
        if place.startswith("simulation/"):
            continue
        if functions := paths_to_truth(tree):
            readers[place] = functions
        if imports_simulation(tree):
            importers.add(place)
    assert readers == {"stages.py": {"observe"}}
    # `mini` made the frozen networks from scenes of its own; no stage of a run imports it.
    assert {place for place in importers if not place.startswith("mini/")} == {"stages.py"}


# --- a brain that saw nothing -----------------------------------------------------------------------------------------

FPS, SIZE, SECONDS = 10, 64, {"seg1": 60, "seg2": 60, "seg3": 60, "seg4": 20, "test1": 44, "test2": 44}


def write_flashes(path: Path, seconds: int, seed: int) -> None:
    """Another scene every 2 s, four blocks of random colour: many independent clips in little film."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS)
        stream.height = stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for _ in range(seconds // 2):
            blocks = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
            picture = np.kron(blocks, np.ones((SIZE // 2, SIZE // 2, 1), np.uint8))
            for shift in range(2 * FPS):
                moved = np.ascontiguousarray(np.roll(picture, shift, axis=1))
                file.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        file.mux(stream.encode())


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Scores of two subjects who watch the same film in the same scanner: one sees it, one does not."""
    root = tmp_path_factory.mktemp("flashes")
    films = {name: root / "films" / f"{name}.mp4" for name in SECONDS}
    for seed, (name, path) in enumerate(films.items()):
        write_flashes(path, SECONDS[name], seed)
    found = {}
    for signal in (1.0, 0.0):
        data, run = root / f"data-{signal:g}", root / f"run-{signal:g}"
        copied(films["seg1"].parent, data / "stimuli")
        brain = BrainRecipe(signal=signal, train_repeats=2, test_repeats=2)
        simulate_subject(films, data, root / f"truth-{signal:g}", scene_truth=None, recipe=brain, seed=5)
        recipe = Recipe.model_validate({
            "name": "flashes", "seed": 5,
            "data": {
                "root": data, "train": ["seg1", "seg2", "seg3"], "validation": ["seg4"], "test": ["test1", "test2"],
                "frames_per_clip": 2, "frame_size": 32, "selection": {"method": "top", "top": 1500},
            },
            "decoders": {"methods": ["ridge"]},  # 90 clips train no network; tests/training shuffles the neural ones
            "generate": {"generators": ["blurry"], "test_repeats": [2]},
            "evaluate": {"bootstrap": 1000, "shuffles": 3, "exclude_seconds": 2},
        })  # fmt: skip
        walk(recipe, run, until="evaluate")
        found[signal] = read_scores(run / "scores.json")
    return found


def identification(scores):
    return [s for s in scores if s.metric in PRIMARY and not s.control]


def test_a_brain_that_saw_the_film_beats_chance(scored):
    rows = identification(scored[1.0])
    assert {(s.space, s.metric) for s in rows} == {
        (space, metric) for space in ("tokens", "latents") for metric in ("top-1", "top-5", "pairwise", "median rank")
    }
    assert [(s.space, s.metric, s.value) for s in rows if not s.beats_chance] == []
    assert all(s.p_values["other pairings"] <= 0.01 for s in rows)


def test_a_brain_that_did_not_see_it_does_not(scored):
    rows = identification(scored[0.0])
    assert len(rows) == 8
    assert [(s.space, s.metric, s.value) for s in rows if s.beats_chance] == []
    for s in rows:
        bound = s.ci_low if s.higher_is_better else s.ci_high
        assert (bound <= s.chance) if s.higher_is_better else (bound >= s.chance)


def test_shuffled_responses_of_a_brain_that_saw_it_do_not(scored):
    controls = [s for s in scored[1.0] if s.metric in PRIMARY and s.control]
    assert len(controls) == 8
    assert [(s.space, s.metric, s.value, s.chance) for s in controls if not s.contains_chance] == []


def test_no_share_of_a_score_is_owed_to_a_brain_that_did_not_see_it(scored):
    shares = [s for s in scored[0.0] if s.brain_attributable is not None]
    assert {"pixel correlation", "SSIM"} <= {s.metric for s in shares}  # identification has no ceiling above its floor
    outside = [
        (s.space, s.metric, s.brain_attributable_interval) for s in shares
        if not s.brain_attributable_interval[0] <= 0 <= s.brain_attributable_interval[1]
    ]  # fmt: skip
    assert outside == []
    assert all(s.brain_attributable_interval[0] > 0 for s in identification(scored[1.0]) if s.metric == "pairwise")


def test_pixels_beat_the_mean_frame_only_with_a_signal(scored):
    def beats_mean_frame(scores):
        return {s.metric: s.beats("mean frame") for s in scores if (s.space, s.method) == ("video", "blurry")}

    assert beats_mean_frame(scored[1.0])["pixel correlation"]
    assert not any(beats_mean_frame(scored[0.0]).values())


# --- the test split ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked_types")
def test_prepared_test_clips_cannot_be_fitted(tiny_run):
    prepared = load_clips(tiny_run.directory / "prepare")
    with pytest.raises(SplitLeakError, match=r"fit was given the test split \(test1, test2\)"):
        Reconstructor().fit(prepared.test)


def test_every_opening_of_the_test_split_is_counted(tiny_run, tmp_path):
    run = copied(tiny_run.directory, tmp_path / "run")
    assert json.loads((run / "test_split_opened.json").read_text()) == {"times": 1}
    for times in (2, 3):
        (run / "evaluate" / "card.json").unlink()
        walk(tiny_run.recipe, run, until="evaluate")
        assert json.loads((run / "test_split_opened.json").read_text()) == {"times": times}
        assert read_card(run / "evaluate")["summary"]["test_split_opened"] == times
    walk(tiny_run.recipe, run)  # skipped, so not opened
    assert json.loads((run / "test_split_opened.json").read_text()) == {"times": 3}
