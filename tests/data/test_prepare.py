"""The preparation stage from CIFTI and MP4 to memory-mapped splits, with planted voxels and a planted delay."""

import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest
from cc2017_dataset import DELAY, N_CORTEX, SUBJECT, make_dataset, run_path, write_film, write_run

from neuroclips.artefacts import read_arrays, write_arrays, write_json
from neuroclips.data.bold import clean, read_run
from neuroclips.data.cc2017 import find_runs
from neuroclips.data.clips import TestClips, TrainingClips, ValidationClips
from neuroclips.data.lag import lag_curve, thumbnails
from neuroclips.data.prepare import prepare, prepare_bold, scene_of
from neuroclips.data.prepared import load_clips
from neuroclips.data.rois import cortex_rois
from neuroclips.data.source import ScanSource
from neuroclips.data.study import open_source
from neuroclips.errors import ArtefactError, DataError
from neuroclips.recipe import DataRecipe

SEGMENTS = {"seg1": (14, 2), "seg2": (13, 2), "seg3": (16, 3), "seg4": (12, 2), "test1": (15, 4), "test2": (11, 2)}
PLANTED = np.sort(np.random.default_rng(9).choice(np.arange(10, N_CORTEX), 400, replace=False))
F, SIZE, TOP = 5, 32, 250


def recipe(**changes):
    usual = {
        "subject": SUBJECT, "train": ("seg1", "seg2", "seg3"), "validation": ("seg4",), "test": ("test1", "test2"),
        "delay_trs": DELAY, "frames_per_clip": F, "frame_size": SIZE, "selection": {"method": "top", "top": TOP},
    }  # fmt: skip
    return DataRecipe.model_validate({**usual, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set in which test1 lacks repeat 2, and test2's repeat 2 stopped early."""
    root = tmp_path_factory.mktemp("cc2017")
    make_dataset(root, SEGMENTS, PLANTED)
    run_path(root, "test1", 2).unlink()
    write_run(run_path(root, "test2", 2), np.ones((9, N_CORTEX)))
    (root / f"subject{SUBJECT}/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii.txt").write_text("not a scan")
    return root


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    calls = []
    summary = prepare(root, recipe(), out, progress=lambda *call: calls.append(call))
    return out / "prepare", summary, calls


def copied(root, path):
    """The data set again, as hard links: replace a file before you damage it."""
    shutil.copytree(root, path, copy_function=os.link)
    return path


def test_splits_have_the_right_shapes_and_types(prepared):
    data = load_clips(prepared[0])
    assert [type(s) for s in (data.train, data.validation, data.test)] == [TrainingClips, ValidationClips, TestClips]
    assert data.train.bold.shape == (14 + 13 + 16, 3, TOP)
    assert data.validation.frames.shape == (12, F, 3, SIZE, SIZE)
    assert data.test.present.shape == (15 + 11, 4)
    assert (data.t_r, data.delay_trs, data.mask.sum()) == (2.0, DELAY, TOP)
    assert data.test.ids[15] == "test2/0000s"
    assert data.test.onset[:4].tolist() == [0, 2, 4, 6]
    assert isinstance(data.train.bold, np.memmap)
    np.testing.assert_array_equal(data.train.reliability, data.reliability[data.mask])


def test_bold_is_each_run_cleaned_on_its_own(root, prepared):
    data = load_clips(prepared[0])
    rows = data.train.segment == data.train.segments.index("seg3")
    run = read_run(run_path(root, "seg3", 3), 16).values
    np.testing.assert_allclose(data.train.bold[rows, 2], clean(run, 16, DELAY)[:, data.mask], atol=1e-5)
    there = data.train.bold[rows, 2]
    np.testing.assert_allclose(there.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(there.std(axis=0, ddof=1), 1, rtol=1e-4)


def test_missing_and_short_repeats_are_reported(prepared):
    out, summary, _ = prepared
    data = load_clips(out)
    test1, test2 = summary["splits"]["test"]["segments"]
    assert (test1["repeats"], test1["missing"]) == ([1, 3, 4], [2])
    assert (test2["repeats"], test2["missing"]) == ([1], [2, 3, 4])
    expected = "test2_2_Atlas.dtseries.nii: 9 volumes; expected 16 or 17, for a film of 11 TRs"
    assert expected in test2["excluded"][2]
    assert any(expected in warning for warning in summary["warnings"])
    np.testing.assert_array_equal(data.test.present[0], [True, False, True, True])
    np.testing.assert_array_equal(data.test.present[-1], [True, False, False, False])
    assert not data.test.bold[~np.asarray(data.test.present)].any()
    json.dumps(summary)


def test_selected_voxels_are_planted_and_reliable(prepared):
    out, summary, _ = prepared
    data = load_clips(out)
    # Three short segments leave the t-test 2 degrees of freedom: chance voxels rank high, but planted ones dominate.
    hits = np.isin(np.flatnonzero(data.mask), PLANTED).mean()
    assert hits > 0.5  # chance: 0.007
    assert np.median(data.reliability[PLANTED]) > 0.9
    assert abs(np.median(data.reliability)) < 0.05
    assert summary["constant_voxels"]["seg1_1_Atlas.dtseries.nii"] == 1
    assert (data.t[5], data.p[5]) == (0, 1)


def test_planted_delay_is_recovered(prepared):
    curve = prepared[1]["lag_curve"]
    assert curve["best"] == DELAY
    assert curve["correlation"][DELAY] > 0.5 > 2 * max(curve["correlation"][i] for i in (0, 1, 3, 4))


def test_frames_and_scenes_follow_the_film(root, prepared):
    data = load_clips(prepared[0])
    # Every clip is a scene of its own in these films: no number twice, none left out, over all splits.
    scenes = np.concatenate([data.train.scene, data.validation.scene, data.test.scene])
    np.testing.assert_array_equal(scenes, np.arange(43 + 12 + 26))
    colours = make_colours(root)
    middle = np.asarray(data.test.frames[3, 2], float).reshape(3, 2, 16, 2, 16)[:, :, 4:12, :, 6:14].mean(axis=(2, 4))
    np.testing.assert_allclose(middle, colours.transpose(2, 0, 1), atol=12)


def make_colours(root):
    """Block colours of clip 3 of test1, read straight from the film by another route."""
    import cv2

    film = cv2.VideoCapture(str(root / "stimuli" / "test1.mp4"))
    film.set(cv2.CAP_PROP_POS_FRAMES, 3 * 60 + 24)
    picture = film.read()[1][:, 8:72, ::-1]  # centre square of 64 x 80, RGB
    return picture.reshape(2, 32, 2, 32, 3)[:, 8:24, :, 8:24].mean(axis=(1, 3))


def test_progress_covers_the_work(prepared):
    calls = prepared[2]
    starts = [i for i, call in enumerate(calls) if call[0] == 0] + [len(calls)]
    stages = [calls[start:end] for start, end in itertools.pairwise(starts)]
    assert [stage[0][2] for stage in stages] == ["film of seg1", "reliability: seg1, repeat 1", "train: seg1, repeat 1"]
    for stage in stages:
        assert [call[0] for call in stage] == list(range(stage[0][1]))
    assert calls[-1][2] == "lag curve"


def test_too_little_evidence_falls_back_loudly(root, tmp_path, caplog):
    summary = prepare(root, recipe(selection={}, delay_trs=0, train=("seg1", "seg2")), tmp_path)
    assert summary["selection"]["fallback"] is True
    assert summary["selection"]["selected"] == 1000
    text = "fewer than 100 of 59412 voxels pass the selection (p < 0.05, Bonferroni, over 2 training segments)"
    assert any(text in warning for warning in summary["warnings"])
    assert text in caplog.text
    assert len(load_clips(tmp_path / "prepare").train) == 14 + 13


def test_another_delay_or_tr_in_the_scans_is_noticed(root, tmp_path):
    odd = copied(root, tmp_path / "data")
    path = run_path(odd, "seg4", 2)
    values = read_run(path, 12).values
    path.unlink()
    write_run(path, values, t_r=1.0)
    summary = prepare(odd, recipe(delay_trs=3), tmp_path / "out")
    tr, lag = summary["warnings"][-2:]
    assert tr == f"{path}: its header states a TR of 1 s; the recipe's 2 s is used for all scans"
    assert "decode the film best at a lag of 2 TRs" in lag
    assert "not at data.delay_trs = 3" in lag


def test_values_that_are_not_finite_stop_the_stage(root, tmp_path):
    damaged = copied(root, tmp_path / "data")
    path = run_path(damaged, "test1", 3)
    values = read_run(path, 15).values
    path.unlink()
    values[2, 17] = np.nan
    write_run(path, values)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: 1 of 59412 voxels .* \(first: voxel 17\)"):
        prepare(damaged, recipe(), tmp_path / "out")
    assert not (tmp_path / "out" / "prepare" / "test.safetensors").exists()


def test_missing_things_are_named(root):
    with pytest.raises(DataError, match=r"stimuli/seg9\.mp4: no such file; expected the film of segment 'seg9'"):
        open_source(root, recipe(train=("seg1", "seg9")))
    with pytest.raises(DataError, match=r"scans of segment 'seg9' of subject 3; segments found .*: seg1, seg2, seg3"):
        find_runs(root, SUBJECT, "seg9")
    with pytest.raises(DataError, match=r"subject8/fmri/seg1/cifti: no such folder; .* none$"):
        open_source(root, recipe(subject=8))
    with pytest.raises(
        DataError, match=r"subject2/.* none; CC2017's subject2 is https://doi\.org/10\.4231/R7NS0S1F: put"
    ):
        open_source(root, recipe(subject=2))
    with pytest.raises(DataError, match=r"segment 'test2' has 1 usable scans; expected at least 2 .*9 v"):
        open_source(root, recipe(train=("seg1", "test2"), test=("test1",)))
    with pytest.raises(DataError, match="the train split names 1 segments; expected at least 2"):
        open_source(root, recipe(train=("seg1",)))


def test_a_segment_in_two_splits_is_refused(root):
    leaking = recipe().model_copy(update={"test": ("seg2",)})  # past the recipe's own check
    with pytest.raises(DataError, match="one is named twice; expected each in exactly one split"):
        open_source(root, leaking)


def test_film_that_does_not_fit_the_scans_is_refused(root, tmp_path):
    damaged = copied(root, tmp_path / "data")
    film = damaged / "stimuli" / "seg4.mp4"
    film.unlink()
    write_film(film, [np.zeros((64, 80, 3), np.uint8)] * (60 * 9))
    with pytest.raises(DataError, match=r"'seg4' .* 0 usable scans; .* expected 14 or 15, for a film of 9 TRs"):
        open_source(damaged, recipe())


def test_find_runs_reads_names_strictly(root):
    assert list(find_runs(root, SUBJECT, "test1")[0]) == [1, 3, 4]
    assert list(find_runs(root, SUBJECT, "seg1")[0]) == [1, 2]


def test_damaged_directories_are_refused(prepared, tmp_path):
    def broken(name):
        shutil.copytree(prepared[0].parent, tmp_path / name)
        return tmp_path / name / "prepare"

    directory = broken("a")
    (directory / "test.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"test\.safetensors"):
        load_clips(directory)
    directory = broken("b")
    voxels = {name: np.array(array) for name, array in read_arrays(directory / "voxels.safetensors").items()}
    voxels["mask"][np.flatnonzero(voxels["mask"])[0]] = False
    write_arrays(directory / "voxels.safetensors", voxels)
    with pytest.raises(ArtefactError, match=r"bold has shape \(43, 3, 250\); expected \(43, 3, 249\)"):
        load_clips(directory)
    directory = broken("c")
    write_json(directory / "segments.json", {"t_r": 2.0})
    with pytest.raises(ArtefactError, match=r"segments\.json: cannot be read as segment names"):
        load_clips(directory)
    directory = broken("d")
    about = json.loads((directory / "segments.json").read_text())
    about["segments"]["test"] = ["test1"]
    write_json(directory / "segments.json", about)
    with pytest.raises(ArtefactError, match=r"test.safetensors: segment numbers 0 to 1; expected 0 to 0, for test1"):
        load_clips(directory)


def test_scene_is_the_one_at_the_middle_of_the_clip():
    onset = np.arange(5) * 2.0
    assert scene_of(onset, 2.0, []).tolist() == [0] * 5
    assert scene_of(onset, 2.0, [2.9, 3.1]).tolist() == [0, 1, 2, 2, 2]  # the middle of the second clip is 3.0
    assert scene_of(onset, 2.0, [5.2, 5.4, 5.6]).tolist() == [0, 0, 0, 1, 1]  # scenes without a clip get no number


def test_thumbnails_are_block_means():
    frames = np.random.default_rng(3).integers(0, 256, (3, 4, 3, 16, 24), dtype=np.uint8)
    small = thumbnails(frames).reshape(3, 3, 8, 8)
    assert small[1, 2, 5, 6] == pytest.approx(frames[1, :, 2, 10:12, 18:21].mean() / 255)


def test_lag_curve_without_signal_is_flat():
    rng = np.random.default_rng(4)
    curve = lag_curve(rng.normal(size=(3, 80, 41)), rng.normal(size=(80, 6)), rng.normal(size=(3, 90, 41)),
                      np.c_[rng.normal(size=(90, 5)), np.ones(90)])  # fmt: skip
    assert np.abs(curve).max() < 0.25
    assert lag_curve(np.zeros((1, 8, 2)), np.zeros((8, 1)), np.zeros((1, 9, 2)), np.zeros((9, 1))).tolist() == [0]


@pytest.mark.parametrize(("what", "calls"), [("film", 3), ("responses", 4), ("responses", 15)])
def test_an_interrupted_preparation_goes_on_with_the_scan_it_was_at(root, prepared, tmp_path, monkeypatch, what, calls):
    """7 training scans for their reliability, then every scan at the selected voxels."""
    counted = {"film": 0, "responses": 0}

    def counting(name, stop):
        inner = getattr(ScanSource, name)

        def work(self, *arguments, **named):
            if (name, counted[name]) == (what, stop):
                raise KeyboardInterrupt
            counted[name] += 1
            return inner(self, *arguments, **named)

        return work

    with monkeypatch.context() as patched:
        for name in counted:
            patched.setattr(ScanSource, name, counting(name, calls))
        with pytest.raises(KeyboardInterrupt):
            prepare(root, recipe(), tmp_path)
    assert not (tmp_path / "prepare" / "test.safetensors").exists()
    first = dict(counted)
    with monkeypatch.context() as patched:
        for name in counted:
            patched.setattr(ScanSource, name, counting(name, None))
        prepare(root, recipe(), tmp_path)
    runs = sum(len(list((root / f"subject{SUBJECT}/fmri/{name}/cifti").glob("*.nii"))) for name in SEGMENTS) - 1
    # Nothing is read twice, but for a training segment that was begun: its repeats are correlated together.
    begun = (calls % 7) % 2 if (what, calls) == ("responses", 4) else 0
    assert counted == {"film": len(SEGMENTS), "responses": 7 + runs + begun}
    assert first[what] == calls
    for path in prepared[0].parent.rglob("*.safetensors"):
        assert (tmp_path / path.relative_to(prepared[0].parent)).read_bytes() == path.read_bytes()


def test_what_was_odd_is_said_whichever_run_read_it(root, tmp_path, monkeypatch):
    odd = copied(root, tmp_path / "data")
    path = run_path(odd, "seg1", 1)
    values = read_run(path, 14).values
    path.unlink()
    write_run(path, values, t_r=1.0)
    inner, met = ScanSource.responses, []

    def until_the_test(self, segment, repeat, voxels=None):
        if segment.split == "test" and not met:
            met.append(segment.name)
            raise KeyboardInterrupt
        return inner(self, segment, repeat, voxels)

    monkeypatch.setattr(ScanSource, "responses", until_the_test)
    with pytest.raises(KeyboardInterrupt):
        prepare(odd, recipe(), tmp_path / "out")
    summary = prepare(odd, recipe(), tmp_path / "out")
    assert sum("its header states a TR of 1 s" in warning for warning in summary["warnings"]) == 1
    assert summary["constant_voxels"]["seg1_1_Atlas.dtseries.nii"] == 1


def test_another_selection_reads_no_statistics_again(root, prepared, tmp_path, monkeypatch):
    again = copied(prepared[0].parent, tmp_path / "again")
    shutil.rmtree(again / "prepare")
    read = []
    inner = ScanSource.responses
    monkeypatch.setattr(
        ScanSource, "responses", lambda self, segment, repeat, voxels=None: (
            read.append((segment.split, voxels is None)), inner(self, segment, repeat, voxels))[1],
    )  # fmt: skip
    chosen = recipe(selection={"method": "top", "top": 90, "rois": ["visual"], "hemisphere": "left"})
    source = open_source(root, chosen)
    summary = prepare_bold(source, chosen, again / "films", again / "reliability", again / "prepare")
    assert not any(whole for _, whole in read)
    areas = cortex_rois(["visual"], "left")
    data = load_clips(again / "prepare")
    assert (data.mask.sum(), (data.mask & ~areas).sum(), data.test.bold.shape[2]) == (90, 0, 90)
    assert summary["selection"]["asked"] == areas.sum()
    np.testing.assert_array_equal(data.p, load_clips(prepared[0]).p)


def test_several_delays_pair_with_the_first_and_are_seen_together(root, prepared, tmp_path):
    summary = prepare(root, recipe(delay_trs=[1, 2, 4]), tmp_path)
    data, single = load_clips(tmp_path / "prepare"), load_clips(prepared[0])
    assert (data.delay_trs, data.lags, summary["lags"]) == (1, (0, 1, 3), [0, 1, 3])
    assert not any("decode the film best" in warning for warning in summary["warnings"])  # 2 is among them
    assert data.train.inputs().shape == (43, 3 * TOP)
    # Volume 2 of the middle lag is the one that a delay of 2 pairs, up to the crop that it is z-scored over.
    both = data.mask & single.mask
    ours = data.train.inputs()[:12, TOP : 2 * TOP][:, both[data.mask]]
    theirs = single.train.responses()[:12, both[single.mask]]
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9
    assert np.corrcoef(ours[1:].ravel(), theirs[:-1].ravel())[0, 1] < 0.4
