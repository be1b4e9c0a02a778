"""Two sets of videos side by side: the right clips, at the same times and sizes, or one clear sentence."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.transform import downscale_local_mean

from neuroclips.data.pairing import aligned, pair
from neuroclips.data.videos import VideoSource, open_videos
from neuroclips.errors import DataError

NAMES = ["clip1", "clip2", "clip10", "clip11"]  # in natural order; as text, clip10 comes second


def source_of(names, videos=None, shape=(6, 3, 40, 56), named=True, path="pred"):
    """A source in memory; without ``videos``, clip b is full of b."""

    def read(row):
        return np.full(shape, row, np.uint8) if videos is None else videos[row]

    full = (len(names), *(shape if videos is None else videos.shape[1:]))
    return VideoSource(Path(path), list(names), full, "planted", read, named=named)


def rows_of(n):
    return [f"{i:04d}" for i in range(n)]


def test_clips_are_paired_by_name():
    truth, predicted = source_of(["a", "b", "c"]), source_of(["c", "a", "b"])
    pairs = pair(truth, predicted)
    assert (pairs.truth.tolist(), pairs.predicted.tolist(), pairs.rule) == ([0, 1, 2], [1, 2, 0], "by name")
    taken = predicted.take(pairs.predicted)
    assert (taken.names, taken.shape) == (["a", "b", "c"], (3, 6, 3, 40, 56))
    assert taken[1:][:, 0, 0, 0, 0].tolist() == [2, 0]


@pytest.mark.parametrize(("truth_named", "predicted_named"), [(True, False), (False, True), (False, False)])
def test_rows_of_an_array_are_paired_by_order(truth_named, predicted_named):
    truth, predicted = (
        source_of(NAMES if named else rows_of(4), named=named) for named in (truth_named, predicted_named)
    )
    pairs = pair(truth, predicted)
    assert (pairs.truth.tolist(), pairs.predicted.tolist(), pairs.rule) == ([*range(4)], [*range(4)], "by order")


def test_folders_pair_with_arrays_in_natural_order(tmp_path):
    videos = np.random.default_rng(0).integers(0, 256, (4, 6, 3, 40, 56), dtype=np.uint8)
    for name, video in zip(NAMES, videos):
        (tmp_path / "truth" / name).mkdir(parents=True)
        for i, frame in enumerate(video):
            Image.fromarray(frame.transpose(1, 2, 0)).save(tmp_path / "truth" / name / f"{i}.png")
    (tmp_path / "predicted").mkdir()
    np.save(tmp_path / "predicted" / "all.npy", videos)
    truth, predicted = open_videos(tmp_path / "truth"), open_videos(tmp_path / "predicted")
    pairs = pair(truth, predicted)
    np.testing.assert_array_equal(truth[pairs.truth], predicted[pairs.predicted])
    shutil.rmtree(tmp_path / "truth" / "clip2")
    with pytest.raises(DataError, match=r"predicted: 4 clips, where the truth in .*truth has 3; expected as many"):
        pair(open_videos(tmp_path / "truth"), predicted)


def test_clips_without_partner_are_named():
    truth = source_of([f"clip{i}" for i in range(9)], path="there")
    message = (
        r"^pred: 5 clips, where the truth in there has 9; missing: clip0, clip1, clip2, and 2 more; extra: x; "
        r"expected the same names$"
    )
    with pytest.raises(DataError, match=message):
        pair(truth, source_of(["clip8", "clip7", "clip6", "clip5", "x"]))
    with pytest.raises(
        DataError, match=r"pred: 9 clips, where the truth in there has 9; missing: clip0; extra: z; exp"
    ):
        pair(truth, source_of([*(f"clip{i}" for i in range(1, 9)), "z"]))


def test_sixteen_frames_are_taken_at_the_times_of_six():
    videos = np.arange(16, dtype=np.uint8)[None, :, None, None, None] + np.zeros((2, 16, 3, 8, 12), np.uint8)
    source = source_of(["a", "b"], videos)
    small = aligned(source, 6, 8, 12)
    assert (small.shape, small.alignment) == ((2, 6, 3, 8, 12), "frames 0, 3, 6, 9, 12, 15 of 16")
    assert small[1:][0, :, 2, 7, 11].tolist() == [0, 3, 6, 9, 12, 15]
    assert aligned(source, 16, 8, 12).alignment == ""
    np.testing.assert_array_equal(aligned(source, 16, 8, 12)[:], videos)
    with pytest.raises(DataError, match="pred: 16 frames a clip; expected at least 17"):
        aligned(source, 17, 8, 12)


def test_shrinking_averages_areas():
    videos = np.random.default_rng(1).integers(0, 256, (2, 4, 3, 24, 36), dtype=np.uint8)
    small = aligned(source_of(["a", "b"], videos), 4, 8, 12)
    assert small.alignment == "24 x 36 resized to 8 x 12 by area averaging"
    expected = downscale_local_mean(videos.astype(float), (1, 1, 1, 3, 3))
    assert np.abs(small[:] - expected).max() <= 0.501
    both = aligned(small, 2, 16, 24)
    assert both.alignment == (
        "24 x 36 resized to 8 x 12 by area averaging; frames 0, 3 of 4; 8 x 12 resized to 16 x 24 by bicubic "
        "interpolation"
    )


def test_enlarging_is_bicubic():
    videos = np.random.default_rng(2).integers(0, 256, (1, 2, 3, 8, 12), dtype=np.uint8)
    large = aligned(source_of(["a"], videos), 2, 24, 36)
    assert large.alignment == "8 x 12 resized to 24 x 36 by bicubic interpolation"
    # Odd factors keep the pixels themselves, and torch uses the same kernel (a = -0.75).
    np.testing.assert_array_equal(large[:][..., 1::3, 1::3], videos)
    tensor = torch.from_numpy(videos[0].astype(np.float32))
    expected = torch.nn.functional.interpolate(tensor, (24, 36), mode="bicubic", align_corners=False).clamp(0, 255)
    assert np.abs(large[:][0] - expected.numpy()).max() <= 1


def test_other_aspect_ratios_are_refused():
    source = source_of(["a"], shape=(6, 3, 256, 256))
    assert aligned(source, 6, 64, 64).shape == (1, 6, 3, 64, 64)
    assert aligned(source, 6, 200, 201)[:].shape == (1, 6, 3, 200, 201)
    with pytest.raises(DataError, match=r"pred: frames of 256 x 256 pixels, to be compared at 64 x 66; expected one a"):
        aligned(source, 6, 64, 66)
