"""A run is complete, traceable, skipped when nothing changed, and survives being killed."""

import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from rich.console import Console
from tiny_run import copied, walk

from neuroclips import Reconstructor, pipeline
from neuroclips.artefacts import read_arrays
from neuroclips.data.bold import clean, read_run
from neuroclips.data.prepare import prepare
from neuroclips.data.prepared import load_clips
from neuroclips.errors import ArtefactError, DataError, RecipeError
from neuroclips.evaluation.table import read_scores
from neuroclips.recipe import load_recipe

STAGES = [
    "simulate", "survey", "films", "reliability", "prepare", "targets", "fit", "reconstruct", "curves", "observe",
    "evaluate", "report",
]  # fmt: skip


def visible(directory: Path) -> dict[str, Path]:
    """Files by name under a stage, without its card and hidden files."""
    return {
        str(p.relative_to(directory)): p
        for p in directory.rglob("*")
        if p.is_file() and not p.name.startswith(".") and p.name != "card.json"
    }


def done_stages(said: str) -> list[str]:
    return [line.split()[1] for line in said.splitlines() if "  done in " in line]


def skipped_stages(said: str) -> list[str]:
    return [line.split()[1] for line in said.splitlines() if line.endswith("up to date, skipped")]


def test_every_stage_finishes_in_order_and_says_so(tiny_run):
    assert list(tiny_run.cards) == done_stages(tiny_run.said) == STAGES
    assert skipped_stages(tiny_run.said) == []
    for name, stage in {"scores.json": "evaluate", "report.html": "report"}.items():
        assert (tiny_run.directory / name).read_bytes() == (tiny_run.directory / stage / name).read_bytes()


@pytest.mark.parametrize("name", STAGES)
def test_a_card_tells_where_its_files_come_from(tiny_run, name):
    own = tiny_run.directory / name
    card = json.loads((own / "card.json").read_text())
    stage = next(s for s in pipeline.plan(tiny_run.recipe) if s.name == name)
    assert card["stage"] == name
    assert card["recipe"] == json.loads(tiny_run.recipe.model_dump_json())
    assert card["seed"] == tiny_run.recipe.seed
    assert card["versions"] == {p: version(p) for p in pipeline.PACKAGES}
    for parent, content in card["parents"].items():
        of, _, file = parent.partition("/")
        known = tiny_run.cards[of]
        assert content == (known["files"][file]["sha256"] if file else known["content"])
    assert tuple(card["parents"]) == stage.parents
    assert 0 < card["seconds"] < 600
    assert 0.05 < card["peak_memory_gb"] < 64
    assert card["files"] == {
        file: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for file, path in visible(own).items()
    }
    assert not list(own.rglob("*.part"))


def test_a_second_run_skips_everything_and_changes_nothing(tiny_run):
    def state():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tiny_run.directory.rglob("*")}

    before = state()
    cards, said = walk(tiny_run.recipe, tiny_run.directory)
    assert skipped_stages(said) == STAGES
    assert done_stages(said) == []
    assert cards == {name: json.loads((tiny_run.directory / name / "card.json").read_text()) for name in STAGES}
    assert state() == before


@pytest.mark.parametrize(
    ("key", "value", "first_stages"),
    [
        ("seed", 4, {"simulate", "fit", "reconstruct", "evaluate"}),
        ("film.size", 80, {"simulate"}),
        ("brain.signal", 2, {"simulate"}),
        ("data.delay_trs", 3, {"survey"}),
        ("data.frame_size", 40, {"survey", "films"}),
        ("data.selection.method", "fdr", {"survey", "prepare"}),
        ("targets.device", "cpu", {"targets"}),
        ("ridge.targets_batch", 64, {"fit"}),
        ("decoders.prior_draws", 3, {"fit"}),
        ("generate.generators", ["blurry"], {"reconstruct"}),
        ("generate.test_repeats", [2], {"reconstruct", "observe"}),
        ("evaluate.shuffles", 3, {"reconstruct", "evaluate"}),
        ("evaluate.bootstrap", 200, {"evaluate"}),
        ("description", "another", {"report"}),
    ],
)
def test_a_setting_belongs_to_the_stages_that_use_it(tiny_run, key, value, first_stages):
    """What a stage is keyed by; everything after it is keyed by its content."""
    parts = tiny_run.recipe.model_dump(mode="json")
    *parents, leaf = key.split(".")
    inner = parts
    for parent in parents:
        inner = inner[parent]
    assert inner[leaf] != value
    inner[leaf] = value
    changed = type(tiny_run.recipe).model_validate(parts)
    run, console = tiny_run.directory, Console(file=io.StringIO())
    keys = {
        s.name: pipeline._key(s, changed, tiny_run.cards, s.look and s.look(run, changed, console))
        for s in pipeline.plan(changed)
    }
    assert {name for name, new in keys.items() if new != tiny_run.cards[name]["key"]} == first_stages


@pytest.mark.parametrize("key", ["decoders", "targets"])
def test_weights_that_are_not_there_are_met_before_any_work(tiny_run, tmp_path, key):
    group, change = getattr(tiny_run.recipe, key), {"decoders": "pretrained", "targets": "vae"}[key]
    recipe = tiny_run.recipe.model_copy(update={key: group.model_copy(update={change: str(tmp_path / "nothing")})})
    with pytest.raises(ArtefactError, match=r"nothing: no (basis\.safetensors|config\.json)"):
        walk(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_changed_setting_runs_only_the_stages_that_depend_on_it(tiny_run, tmp_path):
    run = copied(tiny_run.directory, tmp_path / "run")
    (run / "evaluate" / "stray.txt").write_text("left by another version")
    changed = tiny_run.recipe.model_copy(
        update={"evaluate": tiny_run.recipe.evaluate.model_copy(update={"bootstrap": 150})}
    )
    cards, said = walk(changed, run)
    assert done_stages(said) == ["evaluate", "report"]
    assert skipped_stages(said) == STAGES[: STAGES.index("evaluate")]
    assert not (run / "evaluate" / "stray.txt").exists()
    new, old = (json.loads((d / "scores.json").read_text()) for d in (run, tiny_run.directory))
    assert [row["value"] for row in new] == [row["value"] for row in old]
    assert [row["ci_low"] for row in new] != [row["ci_low"] for row in old]
    assert cards["evaluate"]["summary"]["test_split_opened"] == 2
    assert "2 (openings of the test split in this directory)" in (run / "report.html").read_text()


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
@pytest.mark.parametrize(
    ("stage", "file"),
    [("fit", "neural/prior.safetensors"), ("observe", "similarity.safetensors"), ("evaluate", "per_clip.parquet")],
)
def test_a_damaged_artefact_makes_its_stage_run_again(tiny_run, tmp_path, stage, file, damage):
    run = copied(tiny_run.directory, tmp_path / "run")
    whole = (run / stage / file).read_bytes()
    (run / stage / file).unlink()
    if damage == "truncated":
        (run / stage / file).write_bytes(whole[:-1])
    cards, said = walk(tiny_run.recipe, run)
    assert done_stages(said) == [stage]  # what comes out is the same, so nothing after it runs
    assert (run / stage / file).read_bytes() == whole
    assert cards[stage]["content"] == tiny_run.cards[stage]["content"]


def test_scores_and_page_come_back_to_the_top_of_the_run(tiny_run, tmp_path):
    run = copied(tiny_run.directory, tmp_path / "run")
    (run / "scores.json").unlink()
    (run / "report.html").unlink()
    (run / "report.html").write_text("an older page")
    _, said = walk(tiny_run.recipe, run)
    assert skipped_stages(said) == STAGES
    for name in ("scores.json", "report.html"):
        assert (run / name).read_bytes() == (tiny_run.directory / name).read_bytes()


def test_until_stops_after_a_stage(tiny_run, tmp_path):
    run = copied(tiny_run.directory, tmp_path / "run")
    for name in ("fit", "evaluate"):
        (run / name / "card.json").unlink()
    cards, said = walk(tiny_run.recipe, run, until="fit")
    assert (list(cards), done_stages(said)) == (STAGES[: STAGES.index("fit") + 1], ["fit"])
    assert not (run / "evaluate" / "card.json").exists()


def test_unknown_stages_are_refused_before_anything_runs(tiny_run, tmp_path):
    with pytest.raises(ArtefactError, match=r"no stage 'fitt' in this recipe; there are simulate, survey, .*report"):
        pipeline.run(tiny_run.recipe, tmp_path / "run", until="fitt")
    own = load_recipe("smoke", {"film": None, "data.root": str(tiny_run.scans)})
    with pytest.raises(ArtefactError, match=r"no stage 'observe' in this recipe; there are survey, "):
        pipeline.run(own, tmp_path / "run", until="observe")
    assert not (tmp_path / "run").exists()


def reproducible(names: Iterable[str]) -> list[str]:
    """Without the reconstructed clips to watch: they repeat videos.safetensors, and H.264 bytes may vary."""
    return [name for name in names if not name.endswith(".mp4") or "stimuli" in name]


def start(recipe: Path, run: Path) -> subprocess.Popen:
    command = "from neuroclips.cli import main; main()"
    with (run.parent / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", command, "run", str(recipe), "--out", str(run)], stdout=log, stderr=log
        )


def kill_at(process: subprocess.Popen, run: Path, pattern: str) -> None:
    """SIGKILL, which no process can answer, as soon as a file appears; its workers must end by themselves."""
    deadline = time.monotonic() + 240
    while not any(run.glob(pattern)):
        assert process.poll() is None, f"ended before {pattern} was there"
        assert time.monotonic() < deadline, f"waited too long for {pattern}"
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tiny_run, tmp_path):
    run, recipe = tmp_path / "run", tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(json.loads(tiny_run.recipe.model_dump_json())))
    for stage, pattern in (
        ("simulate", "simulate/video_fmri_dataset/stimuli/*.mp4"),
        ("simulate", "simulate/video_fmri_dataset/subject1/fmri/*/cifti/*.nii"),
        ("films", "films/train.safetensors"),
        ("prepare", "prepare/train.safetensors"),
        ("reconstruct", "reconstruct/ridge-1.safetensors"),
    ):
        kill_at(start(recipe, run), run, pattern)
        assert not (run / stage / "card.json").exists()
        found = {s: visible(run / s) for s in STAGES if (run / s).exists()}
        assert found[stage]
        for s, files in found.items():  # what is visible is whole
            for name in reproducible(files):
                path = files[name]
                assert hashlib.sha256(path.read_bytes()).hexdigest() == tiny_run.cards[s]["files"][name]["sha256"], path
    assert start(recipe, run).wait(timeout=300) == 0, (tmp_path / "log").read_text()[-2000:]
    assert (run / "scores.json").read_bytes() == (tiny_run.directory / "scores.json").read_bytes()
    for stage in STAGES[:-1]:  # the page tells seconds and memory
        card = json.loads((run / stage / "card.json").read_text())
        files, expected = card["files"], tiny_run.cards[stage]["files"]
        assert set(files) == set(expected)
        for name in reproducible(files):
            assert files[name] == expected[name], f"{stage}/{name}"
    assert not list(run.rglob("*.part"))
    assert json.loads((run / "test_split_opened.json").read_text()) == {"times": 1}


def test_what_shuffled_fmri_makes_is_what_the_fmri_makes_shuffled(tiny_run):
    """``reconstruct`` keeps the orders of the shuffled control alone. Here the fMRI itself is shuffled."""
    run, test = tiny_run.directory, load_clips(tiny_run.directory / "prepare").test
    made = run / "reconstruct"
    orders = read_arrays(made / "shuffled.safetensors")["orders"]
    assert orders.shape == (2, 20)
    order = np.array(orders[1])
    assert (test.scene[order] != test.scene).all()
    for method in ("ridge", "neural"):
        reconstructor = Reconstructor.load(run / "fit" / method)
        guidance = reconstructor.decode(reconstructor.decoders.inputs(test, None)[order], test.ids)
        kept = read_arrays(made / f"{method}-2.safetensors")
        for part in ("tokens", "latents"):
            np.testing.assert_allclose(getattr(guidance, part), kept[part][order], atol=1e-3)  # rounding in networks
            assert np.abs(getattr(guidance, part) - kept[part]).max() > 0.1
    videos = read_arrays(made / "videos.safetensors")
    for generator in ("blurry", "nearest"):
        shown = reconstructor.generator(generator).generate(guidance, seed=tiny_run.recipe.seed)
        assert np.abs(shown.astype(int) - videos[generator][order]).max() <= 1, generator  # rounding to 8 bits


def test_another_subjects_scans_are_a_floor(tiny_run):
    run, prepared = tiny_run.directory, load_clips(tiny_run.directory / "prepare")
    scans = tiny_run.scans / "subject2" / "fmri"
    assert sorted(p.name for p in scans.iterdir()) == ["test1", "test2"]  # she watched nothing else
    n = int((prepared.test.segment == 0).sum())
    whole = read_run(scans / "test1" / "cifti" / "test1_1_Atlas.dtseries.nii", n).values
    expected = clean(whole[:, np.asarray(prepared.mask)], n, prepared.delay_trs)
    np.testing.assert_allclose(prepared.wrong_subject.bold[:n, 0], expected, atol=1e-4)
    own = prepared.test.bold[:n, 0]
    assert abs(np.corrcoef(own.ravel(), expected.ravel())[0, 1]) < 0.5
    rows = [s for s in read_scores(run / "scores.json") if s.metric in {"pairwise", "SSIM"} and not s.control]
    assert {s.space for s in rows} >= {"tokens", "latents", "video"}
    assert all({"wrong subject", "Gaussian fMRI", "shuffled"} <= set(s.floors) for s in rows)


def test_a_wrong_subject_who_is_not_there_is_named(tiny_run, tmp_path):
    recipe = tiny_run.recipe.data.model_copy(update={"wrong_subject": 9})
    with pytest.raises(DataError, match="subject9"):
        prepare(tiny_run.scans, recipe, tmp_path)
    with pytest.raises(RecipeError, match="the subject itself"):
        load_recipe("smoke", {"data.wrong_subject": 1})
