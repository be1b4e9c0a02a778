"""``neuroclips score`` on real files: MP4, PNG and tensors, right and wrong."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from neuroclips.cli import app
from neuroclips.data.frames import write_clip_video
from neuroclips.data.videos import open_videos
from neuroclips.errors import DataError, NeuroClipsError
from neuroclips.evaluation.table import read_scores
from neuroclips.folders import ask, find_places, read_places

B, F, H, W = 24, 6, 32, 48
SCENE = np.repeat(np.arange(8), 3)


@pytest.fixture(scope="module")
def film():
    """Eight scenes of three clips, each a colour pattern of its own that drifts; and a prediction of it."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, size=(8, 3, 4, 6))
    scenes = np.kron(coarse, np.ones((8, 8)))  # (8, 3, H, W)
    truth = np.empty((B, F, 3, H, W))
    for b in range(B):
        for f in range(F):
            truth[b, f] = np.roll(scenes[SCENE[b]], 2 * (b % 3 * F + f), axis=-1)
    noise = rng.normal(0, 40, size=(B, F, 3, 4, 6))
    predicted = truth * 0.7 + np.kron(noise, np.ones((8, 8))) + 30
    return truth.astype(np.uint8), np.clip(predicted, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def places(film, tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    truth, predicted = film
    for name, videos in (("truth", truth), ("mine", predicted)):
        for b, video in enumerate(videos):
            write_clip_video(folder / name / f"clip{b}.mp4", video, 2.0)
    sixteen = predicted[:, np.rint(np.linspace(0, F - 1, 16)).astype(int)]
    doubled = np.kron(sixteen, np.ones((2, 2))).transpose(0, 2, 1, 3, 4)  # (B, C, F, H, W) in [0, 1]
    torch.save(torch.from_numpy((doubled / 255).astype(np.float32)), folder / "tensor.pt")
    np.save(folder / "theirs.npy", predicted[::-1].copy())  # every clip another's
    clip = [f"clip{b}" for b in range(B)]
    table = pd.DataFrame({"clip": clip, "segment": "test1", "onset": np.arange(B) * 2.0, "scene": SCENE})
    table.to_csv(folder / "clips.tsv", sep="\t", index=False)
    return folder


def run(folder, *words, judge="none"):
    result = CliRunner().invoke(app, ["score", "--judge", judge, "--bootstrap", "100", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows_of(out, method):
    return {s.metric: s for s in read_scores(out / "scores.json") if s.method == method}


def test_two_folders_are_enough(places, film, tmp_path):
    out = tmp_path / "scores"
    table = ["--clips", places / "clips.tsv", "--exclude-seconds", 4]
    result = run(places, "--truth", places / "truth", "--pred", places / "mine", "-o", out, *table)
    assert result.exit_code == 0
    rows = rows_of(out, "mine")
    assert set(rows) == {"pixel correlation", "SSIM", "PSNR", "motion direction", "motion error"}
    assert set(rows["SSIM"].floors) == {"mean frame", "shuffled"}
    assert "frames shuffled" in rows["motion direction"].floors
    assert rows["pixel correlation"].beats_floors
    direct = [np.corrcoef(p.ravel(), t.ravel())[0, 1] for ps, ts in zip(*film[::-1]) for p, t in zip(ps, ts)]
    assert rows["pixel correlation"].value == pytest.approx(np.mean(direct), abs=0.02)  # H.264 between
    assert rows["SSIM"].n_effective == 8
    assert rows["SSIM"].p_holm["shuffled"] >= rows["SSIM"].p_values["shuffled"]
    per_clip = pd.read_parquet(out / "per_clip.parquet")
    assert set(per_clip["clip"]) == {f"clip{b}" for b in range(B)}
    card = json.loads((out / "card.json").read_text())
    assert card["inputs"]["mine"]["shape"] == [B, F, 3, H, W]
    assert "<html" in (out / "report.html").read_text()
    assert r"\begin{tabular}" in (out / "scores.tex").read_text()
    assert "| video | SSIM | mine |" in (out / "scores.md").read_text()


def test_a_tensor_of_other_size_and_rate_scores_alike(places, tmp_path):
    out = tmp_path / "scores"
    run(places, "--truth", places / "truth", "--pred", f"tensor={places / 'tensor.pt'}", "--pred", places / "mine",
        "-o", out, "--scenes", "each", "--legacy")  # fmt: skip
    tensor, mine = rows_of(out, "tensor"), rows_of(out, "mine")
    for metric in ("pixel correlation", "SSIM", "PSNR", "SSIM by columns"):
        assert tensor[metric].value == pytest.approx(mine[metric].value, rel=0.05), metric
    assert "frames 0, 3, 6, 9, 12, 15 of 16" in tensor["SSIM"].note
    assert "resized to 32 x 48 by area averaging" in tensor["SSIM"].note
    assert mine["SSIM"].n_effective == B


def test_truth_against_itself_and_against_others(places, tmp_path):
    out = tmp_path / "scores"
    run(places, "--truth", places / "truth", "--pred", f"same={places / 'truth'}", "--baseline",
        f"reversed={places / 'theirs.npy'}", "--ceiling", places / "truth", "-o", out, "--clips",
        places / "clips.tsv")  # fmt: skip
    rows = rows_of(out, "same")
    assert rows["SSIM"].value == pytest.approx(1, abs=1e-6)
    assert rows["PSNR"].value == pytest.approx(58.92, abs=0.01)
    assert rows["motion error"].value == 0
    assert rows["SSIM"].ceiling == pytest.approx(1)
    assert rows["SSIM"].brain_attributable == pytest.approx(1)
    assert rows["SSIM"].beats("reversed")
    assert rows["SSIM"].p_values["reversed"] < 0.05


def test_a_judge_finds_the_clips(places, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    out = tmp_path / "scores"
    run(places, "--truth", places / "truth", "--pred", places / "mine", "-o", out, "--clips", places / "clips.tsv",
        "--looks", 2, "--exclude-seconds", 4, judge="EfficientNet-Lite0")  # fmt: skip
    rows = {s.metric: s for s in read_scores(out / "scores.json") if s.space == "EfficientNet-Lite0" and not s.control}
    assert rows["pairwise"].value > 0.6
    assert {"top-1", "2-way", "50-way, any of 3", "Fréchet distance"} <= set(rows)
    assert rows["2-way, any of 3"].chance == 0.75


def test_scenes_are_found_in_the_film(film, tmp_path):
    np.save(tmp_path / "truth.npy", film[0])
    source = open_videos(tmp_path / "truth.npy")
    found = find_places(source, 2.0, "detect")
    assert found.said.startswith(f"{found.scene[-1] + 1} scenes")
    cuts = np.flatnonzero(np.diff(found.scene)) + 1
    assert set(cuts) <= set(range(3, B, 3))  # none is invented
    assert len(cuts) >= 5  # of 7
    each = find_places(source, 2.0, "each")
    assert len(set(each.scene)) == len(set(each.segment)) == B


WRONG = {
    "an empty folder": (["--truth", "empty", "--pred", "mine"], "empty"),
    "no such folder": (["--truth", "truth", "--pred", "nowhere"], "nowhere"),
    "fewer clips": (["--truth", "truth", "--pred", "fewer"], "missing: clip20"),
    "another shape of frames": (["--truth", "truth", "--pred", "square"], "aspect ratio"),
    "NaN": (["--truth", "truth", "--pred", "nan.npy"], "nan.npy"),
    "a table that lacks clips": (["--truth", "truth", "--pred", "mine", "--clips", "short.tsv"], "no row for clip"),
    "one name twice": (["--truth", "truth", "--pred", "mine", "--pred", "mine"], "two folders of one name"),
    "a reserved name": (["--truth", "truth", "--pred", "shuffled=mine"], "names two sets"),
    "the name of the ceiling": (["--truth", "truth", "--pred", "ceiling=mine"], "names two sets"),
    "the name of a shuffle": (["--truth", "truth", "--pred", "mine", "--floor", "mine, shuffled=mine"], "names two"),
    "no such judge": (["--truth", "truth", "--pred", "mine", "--judge", "nobody"], "nobody"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_clear_error_and_leaves_nothing(case, places, film, tmp_path, monkeypatch):
    for name in ("truth", "mine", "clips.tsv"):
        (tmp_path / name).symlink_to(places / name)
    (tmp_path / "empty").mkdir()
    if case == "fewer clips":
        for b in range(20):
            write_clip_video(tmp_path / "fewer" / f"clip{b}.mp4", film[1][b], 2.0)
    if case == "another shape of frames":
        for b in range(B):
            write_clip_video(tmp_path / "square" / f"clip{b}.mp4", film[1][b, ..., :32], 2.0)
    if case == "NaN":
        broken = film[1].astype(np.float32) / 255
        broken[7, 2] = np.nan
        np.save(tmp_path / "nan.npy", broken)
    if case == "a table that lacks clips":
        pd.read_csv(tmp_path / "clips.tsv", sep="\t").iloc[:20].to_csv(tmp_path / "short.tsv", sep="\t", index=False)
    monkeypatch.chdir(tmp_path)
    words, said = WRONG[case]
    with pytest.raises((NeuroClipsError, OSError)) as error:
        run(tmp_path, *words, "--bootstrap", 100)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("words", [["--layout", "CBA"], ["--scenes", "all"]])
def test_a_wrong_choice_is_told_what_there_is(words, places, tmp_path):
    result = run(places, "--truth", places / "truth", "--pred", places / "mine", "-o", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert words[1] in result.output
    assert not (tmp_path / "out").exists()


def test_tables_of_clips_that_are_wrong(tmp_path):
    names = ["a", "b"]
    for text, said in (
        ("clip\tplace\na\t1\nb\t2\n", "columns clip, place"),
        ("clip\tscene\na\t1\na\t2\n", "named twice"),
        ("clip\tonset\na\tearly\nb\t2\n", "not a number"),
        ("scene\n1\n2\n", "expected clip"),
    ):
        (tmp_path / "t.tsv").write_text(text)
        with pytest.raises(DataError, match=said):
            read_places(tmp_path / "t.tsv", names)


def test_clips_are_paired_by_name_whatever_their_order(film, tmp_path):
    truth, predicted = film
    for b in (9, 1, 23, 4):
        write_clip_video(tmp_path / "truth" / f"clip{b}.mp4", truth[b], 2.0)
        write_clip_video(tmp_path / "mine" / f"clip{b}.mp4", predicted[b], 2.0)
    question = ask(open_videos(tmp_path / "truth"), {"mine": open_videos(tmp_path / "mine")})
    assert question.truth.names == question.methods["mine"].names == ["clip1", "clip4", "clip9", "clip23"]
    assert np.abs(question.methods["mine"][2:3][0].astype(int) - predicted[9]).mean() < 6
