"""What a user types, and what a user reads when it goes wrong: one line that names the fault."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import typer
import yaml
from tiny_run import copied
from typer.testing import CliRunner

from neuroclips import __version__, cli
from neuroclips.data.frames import write_video
from neuroclips.pretrained.registry import shipped
from neuroclips.recipe import describe_recipe, named_recipes

COMMANDS = sorted(typer.main.get_command(cli.app).commands)


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the command line as a user does; returns (exit code, standard output, standard error)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["neuroclips", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        if isinstance(left.value.code, str):  # the interpreter prints it and leaves with 1
            return 1, out, f"{err}{left.value.code}\n"
        return left.value.code or 0, out, err

    return call


def own_recipe(tiny_run, root, path):
    """A recipe that reads ``root`` as if it were the user's own study."""
    parts = json.loads(tiny_run.recipe.model_dump_json())
    path.write_text(yaml.safe_dump(parts | {"name": "own", "film": None, "data": parts["data"] | {"root": str(root)}}))
    return path


def test_commands():
    stages = {"simulate", "prepare", "targets", "fit", "reconstruct", "generate", "evaluate", "report"}
    others = {"run", "demo", "recipes", "version", "score", "audit", "table", "maps", "models", "plan"}
    assert set(COMMANDS) == stages | others


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_an_example(name):
    shown = CliRunner().invoke(cli.app, [name, "--help"])
    assert shown.exit_code == 0
    assert re.search(rf"Examples?:.*neuroclips {name}\b", shown.output)


def test_recipes_and_version(call):
    code, out, _ = call("recipes")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == named_recipes()
    assert all(describe_recipe(name) in out for name in named_recipes())
    assert call("version") == (0, f"{__version__}\n", "")


def test_a_wrong_recipe_is_one_line_and_exit_code_1(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from neuroclips.cli import main; main()", "run", "nosuch"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"error: no recipe 'nosuch'; shipped are .*demo.*smoke.*\n", done.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("film.sice=3", r"film\.sice: Extra inputs are not permitted"),
        ("film.size=48", r"film\.size: .*greater than or equal to 64"),
        ("film.size", r"--set 'film\.size': expected KEY=VALUE"),
        ("film.size=[", r"--set 'film\.size=\[': the value is not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named(call, tmp_path, change, said):
    code, _, err = call("run", "smoke", "--set", change, "--out", tmp_path / "run")
    assert code == 1
    assert err.startswith("error: ")
    assert re.search(said, err)
    assert not (tmp_path / "run").exists()


def test_a_judge_that_cannot_judge_is_refused_before_any_work(call, tmp_path):
    target = tmp_path / "target"
    shutil.copytree(shipped("clip"), target)
    shutil.copyfile(shipped("judge") / "preprocessor_config.json", target / "preprocessor_config.json")
    for judge, said in (
        (target, "the judge is also a training target of the run"),
        ("nobody", "no judge 'nobody'"),
        (shipped("vae"), "no preprocessor_config.json; expected a judge's folder"),
    ):
        code, _, error = call("run", "smoke", "-o", tmp_path / "run", "-s", f"evaluate.judges=[{judge}]")
        assert code == 1
        assert said in error
        assert not (tmp_path / "run").exists()


def test_a_wrong_data_root_is_named(call, tiny_run, tmp_path):
    recipe = own_recipe(tiny_run, tmp_path / "nowhere", tmp_path / "own.yaml")
    code, _, err = call("prepare", recipe, "-o", tmp_path / "run")
    assert code == 1
    assert re.search(r"error: \S*nowhere: no such folder; expected the folder of the data", err)


def test_a_wrong_folder_of_films_is_named(call, tmp_path):
    code, _, err = call("demo", "--movies", tmp_path / "nowhere", "-o", tmp_path / "run")
    assert code == 1
    assert re.search(r"error: \S*nowhere: no such folder; expected a folder of films", err)


def test_a_damaged_scan_is_named(call, tiny_run, tmp_path):
    root = copied(tiny_run.scans, tmp_path / "study")
    scan = root / "subject1/fmri/seg2/cifti/seg2_1_Atlas.dtseries.nii"
    whole = scan.read_bytes()
    scan.unlink()
    scan.write_bytes(whole[: len(whole) // 2])
    recipe = own_recipe(tiny_run, root, tmp_path / "own.yaml")
    code, _, err = call("run", recipe, "-o", tmp_path / "run")
    assert code == 1
    assert re.search(rf"error: {re.escape(str(scan))}: truncated or damaged", err)
    assert "Traceback" not in err
    assert not (tmp_path / "run/prepare/card.json").exists()


def test_films_of_another_frame_rate_are_read_and_short_ones_refused(call, tiny_run, tmp_path):
    root = copied(tiny_run.scans, tmp_path / "study")
    rng = np.random.default_rng(0)

    def film(name, seconds):
        (root / "stimuli" / f"{name}.mp4").unlink()
        shown = rng.integers(0, 256, (3, 64, 64), dtype=np.uint8)
        write_video(root / "stimuli" / f"{name}.mp4", (shown for _ in range(24 * seconds)), 24)

    for name in ("seg1", "test1"):
        film(name, 20)
    recipe = own_recipe(tiny_run, root, tmp_path / "own.yaml")
    code, out, _ = call("prepare", recipe, "-o", tmp_path / "run")
    assert code == 0
    assert re.search(r"total \d+ s of work in \S*run\n", out)
    splits = json.loads((tmp_path / "run/prepare/card.json").read_text())["summary"]["splits"]
    rates = {s["name"]: s["film"]["fps"] for split in splits.values() for s in split["segments"]}
    assert rates == {"seg1": 24, "seg2": 30, "seg3": 30, "test1": 24, "test2": 30}
    film("seg1", 13)
    code, _, err = call("prepare", recipe, "-o", tmp_path / "other")
    assert code == 1
    assert re.search(r"error: \S*seg1\.mp4: lasts 13\.000 s, 6\.50 TRs of 2 s; expected a whole number", err)


def test_ctrl_c_says_how_to_go_on(tiny_run, tmp_path):
    recipe = own_recipe(tiny_run, tiny_run.scans, tmp_path / "own.yaml")
    # Started in the background of a shell, as in continuous integration, Python would ignore interrupts.
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = ["-c", f"{hear}; from neuroclips.cli import main; main()", "prepare", recipe, "-o", tmp_path / "run"]
    process = subprocess.Popen([sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run/prepare/.begun").exists():
        assert process.poll() is None
        time.sleep(0.01)
    code = None
    while code is None:  # an interrupt that meets a library's callback is lost; people press again
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=3)
    err = process.stderr.read()
    process.stderr.close()
    assert code == 130
    assert err.rstrip().endswith("interrupted; finished work is kept, the same command goes on from there")
    assert not (tmp_path / "run/prepare/card.json").exists()
