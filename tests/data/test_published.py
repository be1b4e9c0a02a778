"""CC2017 as published tensors: the same arrays as from scans, and the delay inside them found."""

import json

import numpy as np
import pytest
import torch
from cc2017_dataset import DELAY, SUBJECT, make_dataset

from neuroclips.artefacts import read_json
from neuroclips.data import published
from neuroclips.data.prepare import prepare
from neuroclips.data.prepared import load_clips
from neuroclips.data.study import open_source
from neuroclips.errors import DataError
from neuroclips.recipe import DataRecipe

TRS, F, SIZE, V = 24, 3, 32, 60
SEGMENTS = {**{f"seg{k}": (TRS, 2) for k in range(1, 6)}, "test1": (TRS, 3), "test2": (TRS, 3)}
SPLITS = {"train": ("seg1", "seg2", "seg3", "seg4"), "validation": ("seg5",), "test": ("test1", "test2")}
PLANTED = np.arange(100, 100 + 3 * V, 3)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(published, "TRS", TRS)
    monkeypatch.setattr(published, "_OPENED", {})
    monkeypatch.setattr(published, "_CURVES", {})


def recipe(layout, **changes):
    usual = {
        "layout": layout, "subject": SUBJECT, **SPLITS, "delay_trs": DELAY, "frames_per_clip": F, "frame_size": SIZE,
        "selection": {"method": "all" if layout == "tensors" else "top", "top": V},
    }  # fmt: skip
    return DataRecipe.model_validate({**usual, **changes})


def write_tensors(folder, train, test, train_frames, test_frames, captions=False):
    """As published: float32, frames in [0, 1], training rows in the order of segments."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for split, bold, frames in (("train", train, train_frames), ("test", test, test_frames)):
        torch.save(torch.from_numpy(np.array(bold, np.float32)), folder / f"subj0{SUBJECT}_{split}_fmri.pt")
        torch.save(torch.from_numpy(np.array(frames, np.float32) / 255), folder / f"GT_{split}_3fps.pt")
        if captions:
            torch.save(np.array([f"{split} clip {k}" for k in range(len(bold))]), folder / f"GT_{split}_caption.pt")
            text = torch.from_numpy(rng.normal(size=(len(bold), 7)).astype(np.float32))
            torch.save(text, folder / f"GT_{split}_caption_emb.pt")
    if captions:
        torch.save({"proj": torch.ones(5, 7)}, folder / "coco_tokens_avg_proj.pth")
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The data as prepared from scans and films."""
    root, out = tmp_path_factory.mktemp("cc2017"), tmp_path_factory.mktemp("raw")
    make_dataset(root, SEGMENTS, PLANTED)
    summary = prepare(root, recipe("cc2017"), out)
    return load_clips(out / "prepare"), summary


def both(data, name):
    return np.concatenate([getattr(data.train, name), getattr(data.validation, name)])


def test_tensors_give_the_same_arrays_as_scans(raw, tmp_path):
    data, _ = raw
    folder = write_tensors(
        tmp_path / "t", both(data, "bold"), data.test.bold, both(data, "frames"), data.test.frames, captions=True
    )
    summary = prepare(folder, recipe("tensors"), tmp_path / "out")
    found = load_clips(tmp_path / "out" / "prepare")
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(found, split), getattr(data, split)
        for name in ("bold", "frames", "present", "segment", "onset"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=f"{split} {name}")
        # Cuts are seen in three frames every two seconds here, and in thirty a second in the film.
        assert (np.diff(ours.scene) == np.diff(theirs.scene)).mean() > 0.9
        assert ours.ids == theirs.ids
    np.testing.assert_allclose(found.reliability, data.reliability[data.mask], atol=1e-6)
    np.testing.assert_allclose(found.p, data.p[data.mask], rtol=1e-3)
    assert (found.mask.shape, found.mask.all(), found.delay_trs) == ((V,), True, DELAY)
    assert "published tensor" in found.space
    about = summary["source"]
    assert about["stored_delay_trs"].startswith("2, measured")
    assert about["files"]["train frames"]["dtype"] == "float32"
    assert about["train"]["z_scored_per_segment"] is True
    json.dumps(summary)
    # The published captions come along, split as the clips are.
    captions = read_json(tmp_path / "out" / "films" / "captions.json")
    assert captions["validation"][1] == f"train clip {4 * TRS + 1}"
    assert len(captions["test"]) == 2 * TRS


def planted(stored, rng):
    """Responses that answer film 2 TRs later, with a delay of ``stored`` TRs taken out when they were packed."""
    n = len(SEGMENTS) * TRS
    colours = rng.integers(0, 256, (n, 3, 2, 2)).astype(np.uint8)
    frames = np.kron(colours, np.ones((1, 1, 16, 16), np.uint8))[:, None].repeat(F, axis=1)
    weights = rng.normal(size=(12, V))
    picture = colours.reshape(n, 12) / 128.0 - 1
    bold = np.zeros((n, 2, V), np.float32)
    for segment in range(len(SEGMENTS)):
        rows = np.arange(segment * TRS, (segment + 1) * TRS)
        source = rows - (2 - stored)  # the film that row j answers
        inside = (source >= rows[0]) & (source <= rows[-1])
        for repeat in range(2):
            bold[rows, repeat] = rng.normal(size=(TRS, V))
            bold[rows[inside], repeat] += 2 * picture[source[inside]] @ weights
    rows = bold.reshape(len(SEGMENTS), TRS, 2, V)
    rows = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, ddof=1, keepdims=True)
    return rows.reshape(n, 2, V), frames, picture @ weights


@pytest.mark.parametrize("stored", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_delay_inside_is_found_and_made_up_for(stored, seed, tmp_path):
    bold, frames, answer = planted(stored, np.random.default_rng(seed))
    cut = 5 * TRS
    folder = write_tensors(tmp_path / "t", bold[:cut], bold[cut:], frames[:cut], frames[cut:])
    summary = prepare(folder, recipe("tensors"), tmp_path / "out")
    assert summary["source"]["stored_delay_trs"].startswith(f"{stored}, measured")
    assert any("delay of" in warning for warning in summary["warnings"]) == (stored != 2)
    assert summary["lag_curve"]["best"] == 2
    data = load_clips(tmp_path / "out" / "prepare")
    clips = TRS - abs(2 - stored)
    assert len(data.train) == 4 * clips
    assert data.train.onset[0] == 2.0 * max(0, stored - 2)
    rows = (data.train.segment * TRS + np.rint(data.train.onset / 2).astype(int)).astype(int)
    r = np.corrcoef(data.train.bold[:, 0].ravel(), answer[rows].ravel())[0, 1]
    assert r > 0.7  # the response of each clip is the answer to its own film
    np.testing.assert_array_equal(data.train.frames, frames[rows])  # and the film is its own


def test_a_delay_that_the_user_knows_is_not_measured(tmp_path):
    bold, frames, _ = planted(0, np.random.default_rng(3))
    cut = 5 * TRS
    folder = write_tensors(tmp_path / "t", bold[:cut], bold[cut:], frames[:cut], frames[cut:])
    source = open_source(folder, recipe("tensors", stored_delay_trs=1, delay_trs=[1, 2]))
    assert (source.stored, source.delays, source.splits["train"][0].n_trs) == (1, (1, 2), TRS)
    assert not published._CURVES


def test_noise_says_that_the_delay_is_unknown(tmp_path):
    rng = np.random.default_rng(4)
    bold, frames, _ = planted(1, rng)
    noise, cut = rng.normal(size=bold.shape), 5 * TRS
    folder = write_tensors(tmp_path / "t", noise[:cut], noise[cut:], frames[:cut], frames[cut:])
    source = open_source(folder, recipe("tensors"))
    assert source.stored == 2
    assert any("no shift of rows decodes the film" in warning for warning in source.warnings)
    assert any("z-scored" in warning for warning in source.warnings)
    found = source.responses(source.splits["train"][0], 2)  # so it is done here
    np.testing.assert_allclose(found.std(axis=0, ddof=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": ("seg1", "seg9")}, "no segment 'seg9'; expected seg1 to seg5 and test1 to test2"),
        ({"train": ("seg1", "test1"), "test": ("test2",)}, "'test1' is test film; expected it in the split test"),
        ({"frames_per_clip": 2}, "3 frames of 32 x 32 pixels a clip, and data.frames_per_clip is 2"),
        ({"selection": {"rois": ["V1"]}}, "need to know where voxels are; this is a published tensor"),
        ({"exclude": ("seg1/1",)}, "'seg1' has 1 usable scans; expected at least 2 in the train split"),
    ],
)
def test_what_tensors_cannot_give_is_refused(changes, said, tmp_path):
    bold, frames, _ = planted(2, np.random.default_rng(5))
    cut = 5 * TRS
    folder = write_tensors(tmp_path / "t", bold[:cut], bold[cut:], frames[:cut], frames[cut:])
    with pytest.raises(DataError, match=said):
        prepare(folder, recipe("tensors", **changes), tmp_path / "out")
