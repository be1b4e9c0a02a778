"""What the page shows of generated videos, from a ``generate`` folder of known frames."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny_run import CHANGES, copied

from neuroclips.artefacts import write_arrays, write_json
from neuroclips.data.prepared import load_clips
from neuroclips.evaluation.table import Score
from neuroclips.recipe import load_recipe
from neuroclips.report.from_run import report_data
from neuroclips.report.generated import Generated, chains, exhibits, read_condition, spread_evenly, with_generated
from neuroclips.report.page import ReportClip, ScoreName, render_report

N_FRAMES = 5
EVIL = "</script><img src=http://evil.example/x onerror=alert(1)>{{ 7 * 7 }}"


def write_stage(folder, ids, joined_after, positions):
    """A ``generate`` folder whose every frame differs from all others."""
    rng, n = np.random.default_rng(3), len(ids)
    for name in ("decoded", "ceiling", "fused"):
        videos = rng.integers(0, 256, size=(n, N_FRAMES, 3, 32, 32), dtype=np.uint8)
        keyframes = rng.random((n, 3, 32, 32), dtype=np.float32)
        write_arrays(folder / f"{name}.safetensors", {"keyframes": keyframes, "videos": videos})
    before = np.array([i - 1 if i and ids[i][:5] == ids[i - 1][:5] else -1 for i in range(n)])
    joined = np.isin(np.arange(n), joined_after)
    write_arrays(folder / "fusion.safetensors", {"before": before, "joined": joined, "position": np.asarray(positions)})
    captions = {name: [f"{name} caption {i}" for i in range(n)] for name in ("decoded", "ceiling")}
    captions["decoded"][1] = EVIL
    write_json(folder / "captions.json", captions)
    write_json(folder / "clips.json", ids)
    return before


@pytest.fixture
def run(tiny_run, tmp_path):
    """The tiny run as if 7 clips of each segment had generated videos: directory, recipe, cards, ids, values."""
    directory = copied(tiny_run.directory, tmp_path / "run")
    test = load_clips(directory / "prepare").test
    ids = [*test.ids[:7], *test.ids[10:17]]
    (directory / "generate").mkdir()
    write_stage(directory / "generate", ids, [1, 2, 3, 9], [0, 1, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0])
    path = directory / "evaluate" / "per_clip.parquet"
    values = pd.DataFrame({
        "clip": ids, "scene": 0, "method": "neuroclips", "space": "video", "metric": "pixel correlation",
        "value": np.random.default_rng(5).permutation(14) / 20, "n_repeats": 2,
    })  # fmt: skip
    fused = values.assign(method="neuroclips, fused", value=1.0)
    table = pd.concat([pd.read_parquet(path), values, fused], ignore_index=True)
    os.unlink(path)  # a hard link to the shared run
    table.to_parquet(path)
    recipe = load_recipe("smoke", {**CHANGES, "generate.video": {"clips": 7}})
    cards = {name: card for name, card in tiny_run.cards.items() if name != "report"}
    return directory, recipe, cards, ids, values


def test_generated_clips_come_in_the_order_of_what_guides_what_and_others_stay(run):
    directory, recipe, cards, ids, _ = run
    clips = {clip.id: clip for clip in report_data(directory, recipe, cards).clips}
    assert list(clips) == load_clips(directory / "prepare").test.ids
    for name, clip in clips.items():
        made = ["keyframe", "neuroclips"] if name in ids else []
        assert list(clip.pictures) == ["shown", "blurry", *made, "nearest"]
        assert bool(clip.text) == (name in ids)
    assert clips[ids[0]].text == "caption written from the keyframe: decoded caption 0"
    assert clips[ids[0]].pictures["keyframe"].shape == (3, 32, 32)


def test_a_clip_of_other_methods_keeps_them_all():
    still, video = np.zeros((3, 4, 4), np.uint8), np.zeros((2, 3, 4, 4), np.uint8)
    clip = ReportClip("a", 0, {"shown": video, "nearest": video, "other": video})
    clip = with_generated(clip, Generated(still, "said", video))
    assert list(clip.pictures) == ["shown", "keyframe", "neuroclips", "nearest", "other"]


def test_the_gallery_is_drawn_from_generated_clips_alone(run):
    directory, recipe, cards, _, values = run
    data = report_data(directory, recipe, cards)
    ranked = values.sort_values("value", ascending=False)["clip"].tolist()  # no value is there twice
    drawn = re.findall(r'data-clip="([^"]*)"', render_report(data))
    # Of 14 clips: the first, the last, and those next to 3.25, 6.5 and 9.75 (half goes to the even rank from below).
    assert drawn == [ranked[i] for i in (0, 3, 7, 10, 13)]
    assert data.gallery == ScoreName("video", "neuroclips", "pixel correlation")
    assert "Of 20 test clips, 14 have a video by “neuroclips”" in render_report(data)
    ceiling = next(exhibit for exhibit in data.exhibits if exhibit.name == "ceiling")
    assert [strip.id for strip in ceiling.strips] == drawn


def test_the_ceiling_shows_what_was_made_from_the_truth(run):
    directory, recipe, cards, ids, _ = run
    data = report_data(directory, recipe, cards)
    made = read_condition(directory / "generate", "ceiling")
    test = load_clips(directory / "prepare").test
    ceiling = data.exhibits[0]
    assert "generator's own limit, not decoding" in ceiling.text
    for strip in ceiling.strips:
        shown, keyframe, video = strip.pictures.values()
        assert np.array_equal(shown, test.frames[test.ids.index(strip.id)])
        assert np.array_equal(keyframe, made[strip.id].keyframe)
        assert np.array_equal(video, made[strip.id].video)
        assert strip.text == f"caption written from the keyframe: ceiling caption {ids.index(strip.id)}"


def test_keyframes_become_pixels_without_wrapping_around(tmp_path):
    keyframes = np.broadcast_to(np.array([-0.1, 0.5, 1.01], np.float32)[:, None, None], (1, 3, 2, 2))
    videos = np.zeros((1, 1, 3, 2, 2), np.uint8)
    write_arrays(tmp_path / "decoded.safetensors", {"keyframes": keyframes, "videos": videos})
    write_json(tmp_path / "clips.json", ["a"])
    write_json(tmp_path / "captions.json", {"decoded": [""]})
    made = read_condition(tmp_path, "decoded")["a"]
    assert made.keyframe[:, 0, 0].tolist() == [0, 128, 255]
    assert made.text == "caption written from the keyframe: (empty)"


def test_longer_videos_are_joined_frame_by_frame(run):
    directory, recipe, cards, ids, _ = run
    test = load_clips(directory / "prepare").test
    fused = report_data(directory, recipe, cards).exhibits[1]
    assert [strip.title for strip in fused.strips] == ["3 clips, 6 s", "2 clips, 4 s"]
    assert [strip.id for strip in fused.strips] == [f"{ids[0]} to {ids[2]}", f"{ids[8]} to {ids[9]}"]
    assert [strip.seconds for strip in fused.strips] == [6.0, 4.0]
    sources = {
        "shown": {clip: test.frames[test.ids.index(clip)] for clip in ids},
        "without fusion": {k: v.video for k, v in read_condition(directory / "generate", "decoded").items()},
        "fused": dict(zip(ids, raw_videos(directory / "generate" / "fused.safetensors"))),
    }
    for strip, clips in zip(fused.strips, (ids[0:3], ids[8:10])):
        assert list(strip.pictures) == list(sources)
        for name, video in strip.pictures.items():
            assert np.array_equal(video, np.concatenate([sources[name][clip] for clip in clips]))


def raw_videos(path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    start, end = json.loads(content[8 : 8 + size])["videos"]["data_offsets"]
    return np.frombuffer(content[8 + size + start : 8 + size + end], np.uint8).reshape(-1, N_FRAMES, 3, 32, 32)


def test_the_page_says_how_many_were_judged_joined_and_judged_right(run):
    directory, _, _, ids, _ = run
    test = load_clips(directory / "prepare").test
    gallery = [{"label": "best", "id": ids[0], "value": 1.0}]
    said = exhibits(directory / "generate", test, gallery, [])[1].text
    assert "follow another: 12; judged to go on with its scene: 4; joined to it: 3 (clips a video: at most 3)." in said
    assert "right" not in said
    right = Score("accuracy", "keyframes", 0.75, 12, 3.0, 0, chance=0.5, space="fusion", unit="share")
    said = exhibits(directory / "generate", test, gallery, [right])[1].text
    assert "judgements on test clips 75.0 % are right; always the more frequent answer would be for 50.0 %." in said


def test_scores_of_fusion_are_on_the_page_and_other_repeats_are_not(run):
    directory, recipe, cards, *_ = run
    path = directory / "evaluate" / "scores.json"
    rows = json.loads(path.read_text())
    os.unlink(path)
    fusion = {"metric": "cut recall", "space": "fusion", "method": "keyframes", "n_repeats": None, "unit": "share"}
    write_json(path, [*rows, {**rows[0], **fusion}])
    data = report_data(directory, recipe, cards)
    assert [s.metric for s in data.scores if s.space == "fusion"] == ["cut recall"]
    assert {s.n_repeats for s in data.scores} == {2, None}
    assert 'cut recall <span class="faint">fusion · higher is better</span>' in render_report(data)


def test_without_fusion_there_is_no_section_of_it(run):
    directory, recipe, cards, *_ = run
    (directory / "generate" / "fused.safetensors").unlink()
    assert [exhibit.name for exhibit in report_data(directory, recipe, cards).exhibits] == ["ceiling"]


def test_captions_are_text(run):
    directory, recipe, cards, ids, _ = run
    page = render_report(report_data(directory, recipe, cards))
    assert EVIL not in page
    content = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    clip = next(clip for clip in content["clips"] if clip["id"] == ids[1])
    assert clip["text"] == f"caption written from the keyframe: {EVIL}"


def test_a_recipe_without_video_leaves_the_page_as_it_was(run, tiny_run):
    directory, _, cards, *_ = run
    before = render_report(report_data(tiny_run.directory, tiny_run.recipe, cards))
    data = report_data(directory, tiny_run.recipe, cards)  # the folder of an earlier recipe is still there
    generated = data.per_clip["method"].str.startswith("neuroclips")
    assert render_report(replace(data, per_clip=data.per_clip[~generated])) == before
    assert re.findall(r'<section id="(\w+)">', before)[:3] == ["gallery", "browser", "scores"]
    assert "Five of 20 test clips, drawn by rule" in before


def test_chains_follow_the_clips_before_in_whatever_order_they_come():
    before, position = np.array([3, -1, 0, 1, -1, 4, 5]), np.array([2, 0, 0, 1, 0, 1, 0])
    assert chains(before, position) == [[1, 3, 0], [4, 5]]
    assert chains(np.array([-1, 0]), np.array([0, 0])) == []


@pytest.mark.parametrize("n", [0, 1, 2, 6, 7, 8, 41])
def test_chains_shown_are_spread_from_the_first_to_the_last(n):
    found = [[i] for i in range(n)]
    places = [chain[0] for chain in spread_evenly(found, 6)]
    assert len(places) == len(set(places)) == min(n, 6)
    if n:
        assert (places[0], places[-1]) == (0, n - 1 if n > 1 else 0)
        steps = np.diff(places)
        assert len(steps) == 0 or steps.max() - steps.min() <= 1
