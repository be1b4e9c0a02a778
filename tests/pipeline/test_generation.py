"""Generated videos in a run: every condition, resumed clip by clip, fused, and joined to one long film."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_generators import write_generators
from tiny_run import CHANGES, copied, walk
from typer.testing import CliRunner

from neuroclips import scoring
from neuroclips.artefacts import read_arrays, write_arrays
from neuroclips.cli import app
from neuroclips.data.frames import read_video
from neuroclips.data.prepared import load_clips
from neuroclips.errors import ArtefactError, RecipeError
from neuroclips.evaluation.judges import JUDGE, judges_here
from neuroclips.recipe import load_recipe


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    weights = write_generators(tmp_path_factory.mktemp("generators"))
    return {
        "generate.video": {**weights, "clips": 7, "frames": 5, "batch": 3, "fusion": {"limit": 2}, "ablations": True}
    }


@pytest.fixture(scope="module")
def run(tiny_run, settings, tmp_path_factory):
    """The tiny run with generated video: recipe, directory, cards."""
    directory = copied(tiny_run.directory, tmp_path_factory.mktemp("generated") / "run")
    recipe = load_recipe("smoke", {**CHANGES, **settings})
    return recipe, directory, walk(recipe, directory)[0]


def test_every_condition_has_its_keyframes_captions_and_videos(run):
    _, directory, cards = run
    made = directory / "generate"
    test = load_clips(directory / "prepare").test
    chosen = json.loads((made / "clips.json").read_text())
    per_segment = [[c for c in chosen if c.startswith(s)] for s in test.segments]
    assert [len(part) for part in per_segment] == [7, 7]
    assert per_segment[1] == [f"test2/{2 * i:04d}s" for i in range(7)]
    captions = json.loads((made / "captions.json").read_text())
    assert set(captions) == {"decoded", "ceiling", "shuffled-0"}
    for name, said in captions.items():
        found = read_arrays(made / f"{name}.safetensors")
        assert found["keyframes"].shape == (14, 3, 32, 32)
        assert found["videos"].shape == (14, 5, 3, 32, 32)
        assert found["videos"].std() > 1
        assert len(said) == 14
    decoded, shuffled = (read_arrays(made / f"{n}.safetensors")["videos"] for n in ("decoded", "shuffled-0"))
    assert (decoded != shuffled).any(axis=(1, 2, 3, 4)).all()
    shown = read_video(made / "decoded" / "test1_0000s.mp4")
    assert shown.shape == (5, 3, 32, 32)
    assert np.abs(shown.astype(int) - decoded[0]).mean() < 6
    assert not (made / ".kept").exists()
    assert cards["generate"]["summary"]["clips"] == 14


def test_videos_are_scored_beside_floors_baseline_and_ceiling(run):
    _, directory, _ = run
    rows = json.loads((directory / "scores.json").read_text())
    rows = rows["scores"] if isinstance(rows, dict) else rows
    row = next(r for r in rows if r["method"] == "neuroclips" and r["metric"] == "pixel correlation")
    assert row["n"] == 14
    assert set(row["floors"]) == {"mean frame", "mean video", "no brain", "shuffled"}
    assert set(row["baselines"]) == {"blurry", "nearest"}
    assert row["ceiling"] is not None
    methods = {r["method"] for r in rows if r["space"] == "video" and r["metric"] == "SSIM"}
    left_out = {f"neuroclips, {what}" for what in ("without keyframe", "without blurry video", "without caption")}
    assert {"neuroclips, fused", "neuroclips, no brain", *left_out} <= methods
    assert {r["metric"] for r in rows if r["space"] == "fusion"} >= {"accuracy", "balanced accuracy"}
    if judges_here([JUDGE]):
        judged = next(
            r for r in rows if r["space"] == JUDGE and r["method"] == "neuroclips" and r["metric"] == "pairwise"
        )
        assert abs(judged["chance"] - 0.5) < 0.1
        assert judged["floors"]["shuffled"] is not None
        assert judged["ceiling"] is not None


def test_left_out_guidance_is_left_out(run):
    _, directory, _ = run
    names = ("decoded", "without-keyframe", "without-blurry-video", "without-caption", "no-brain")
    made = {name: read_arrays(directory / "generate" / f"{name}.safetensors")["videos"] for name in names}
    whole = made["decoded"]
    for name in names[1:]:
        assert (made[name] != whole).any(axis=(1, 2, 3, 4)).all(), name
    assert (made["no-brain"][0] != made["no-brain"][1]).any()  # each clip has its own noise


def test_fused_clips_take_over_where_the_clip_before_ended(run):
    _, directory, _ = run
    made = directory / "generate"
    fusion = read_arrays(made / "fusion.safetensors")
    alone, fused = (read_arrays(made / f"{n}.safetensors")["videos"] for n in ("decoded", "fused"))
    starts = fusion["position"] == 0
    assert np.array_equal(alone[starts], fused[starts])
    assert (alone[~starts] != fused[~starts]).any(axis=(1, 2, 3, 4)).all()
    assert fusion["position"].max() <= 1
    assert (fusion["before"][fusion["position"] > 0] >= 0).all()


@pytest.mark.parametrize("compare", ["tokens", "keyframes"])
def test_scenes_are_judged_on_what_can_be_compared(tiny_run, settings, run, tmp_path, compare):
    _, directory, _ = run
    if compare == "keyframes":
        directory = copied(tiny_run.directory, tmp_path / "run")
        changes = {**settings["generate.video"], "ablations": False, "fusion": {"compare": "keyframes", "limit": None}}
        walk(load_recipe("smoke", {**CHANGES, "generate.video": changes}), directory)
    made = directory / "generate"
    decided, fusion = (read_arrays(made / f"{name}.safetensors") for name in ("decisions", "fusion"))
    assert len(decided["clip"]) == (20 if compare == "tokens" else 14)
    test = load_clips(directory / "prepare").test
    number = {clip: i for i, clip in enumerate(test.ids)}
    chosen = [number[clip] for clip in json.loads((made / "clips.json").read_text())]
    joined = dict(zip(decided["clip"].tolist(), decided["joined"].tolist()))
    assert [joined[c] for c in chosen] == fusion["joined"].tolist()
    assert (decided["before"] == -1).sum() == 2  # the first clips of two segments
    rows = json.loads((directory / "scores.json").read_text())
    rows = rows["scores"] if isinstance(rows, dict) else rows
    assert {r["method"] for r in rows if r["space"] == "fusion" and r["metric"] == "accuracy"} == {compare}


def test_a_killed_generation_goes_on_with_the_clip_it_was_at(tiny_run, settings, run, tmp_path):
    directory = copied(tiny_run.directory, tmp_path / "run")
    changes = {**CHANGES, **settings}
    code = (
        "from neuroclips import pipeline; from neuroclips.recipe import load_recipe; import json, sys\n"
        "pipeline.run(load_recipe('smoke', json.loads(sys.argv[1])), sys.argv[2], until='generate')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(changes), str(directory)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    videos = directory / "generate" / ".kept" / "ceiling" / "videos"  # the second condition: much is left to do
    deadline = time.monotonic() + 120
    while not (videos.exists() and any(videos.iterdir())):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in (directory / "generate" / ".kept").rglob("*.safetensors")}
    assert done
    walk(load_recipe("smoke", changes), directory, until="generate")
    for name in ("decoded", "ceiling", "shuffled-0", "fused"):
        mine, whole = (read_arrays(d / "generate" / f"{name}.safetensors") for d in (directory, run[1]))
        for part, atol in (("keyframes", 1e-3), ("videos", 1)):  # other clips share a batch now: rounding may differ
            if part not in whole:
                continue
            np.testing.assert_allclose(mine[part].astype(float), whole[part].astype(float), atol=atol, err_msg=name)


def test_what_was_kept_is_not_made_again(tiny_run, settings, tmp_path, monkeypatch):
    from neuroclips.video.generator import NeuroClipsGenerator

    directory = copied(tiny_run.directory, tmp_path / "run")
    recipe = load_recipe("smoke", {**CHANGES, **settings})
    asked, stop = [], [9]
    inner = NeuroClipsGenerator.generate

    def generate(self, guidance, *, seed):
        if len(asked) + len(guidance) > stop[0]:
            raise KeyboardInterrupt
        asked.extend(guidance.ids)
        return inner(self, guidance, seed=seed)

    monkeypatch.setattr(NeuroClipsGenerator, "generate", generate)
    with pytest.raises(KeyboardInterrupt):
        walk(recipe, directory, until="generate")
    assert len(asked) == 9
    stop[0] = 1000
    walk(recipe, directory, until="generate")
    assert len(asked[:14]) == len(set(asked[:14])) == 14  # the first condition: every clip once


def test_videos_of_another_size_are_scored_at_the_films(run, tmp_path):
    """The video model's frames may be larger than the film's: of 10 x 96 x 96 pixels here, of 3 x 32 x 32 there."""
    directory = copied(run[1], tmp_path / "run")
    prepared = load_clips(directory / "prepare")
    film = prepared.test.take(scoring._with_video(directory, prepared.test)).frames
    large = film.repeat(3, axis=3).repeat(3, axis=4)[:, np.rint(np.linspace(0, 2, 10)).astype(int)]
    for name in ("decoded", "ceiling"):
        path = directory / "generate" / f"{name}.safetensors"
        path.unlink()
        write_arrays(path, {"videos": large})
    sets = scoring._generated(directory, prepared)
    for videos in (sets.methods["neuroclips"], sets.ceiling):
        assert videos.shape == film.shape
        np.testing.assert_array_equal(videos[2:9], film[2:9])


def test_one_long_video_of_a_segment(run, settings):
    _, directory, _ = run
    words = ["reconstruct", "smoke", "--out", str(directory), "--segment", "test2", "--continuous"]
    for key, value in {**CHANGES, **settings}.items():
        words += ["-s", f"{key}={json.dumps(value)}"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    film = read_video(directory / "continuous" / "test2.mp4")
    assert film.shape == (10 * 5, 3, 32, 32)
    beside = read_video(directory / "continuous" / "test2-beside.mp4")
    assert beside.shape == (10 * 5, 3, 32, 96)
    shown = load_clips(directory / "prepare").test.frames[10:, 0]
    assert np.abs(beside[::5, :, :, :32].astype(int) - shown).mean() < 6
    assert [p.name for p in (directory / "continuous").iterdir() if p.is_dir()] in ([], [".kept"])
    wrong = CliRunner().invoke(app, [*words[:5], "test9", *words[6:]])
    assert isinstance(wrong.exception, RecipeError)
    assert "no test segment 'test9'; there are test1, test2" in str(wrong.exception)
    assert isinstance(CliRunner().invoke(app, [w for w in words if w != "--continuous"]).exception, RecipeError)


def test_missing_weights_are_named_before_any_work(tmp_path):
    recipe = load_recipe("smoke", {**CHANGES, "generate.video": {"video": str(tmp_path / "nowhere")}})
    with pytest.raises(ArtefactError, match=r"nowhere: no model_index\.json; expected 'mini' or a folder of video"):
        walk(recipe, tmp_path / "run")
    assert not os.path.exists(tmp_path / "run")
