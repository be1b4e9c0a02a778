import numpy as np
import pytest

from neuroclips.errors import DataError
from neuroclips.evaluation.floors import mean_frame_videos, mean_video_videos, shuffle_across_scenes


@pytest.mark.parametrize("counts", [[1, 1], [3, 3], [5, 1, 2, 1, 1], [4, 7, 2, 9, 3, 1], [1] * 30])
def test_no_clip_receives_its_own_scene(counts):
    scene = np.random.default_rng(1).permutation(len(counts))[np.repeat(np.arange(len(counts)), counts)] * 10
    for seed in range(50):
        source = shuffle_across_scenes(scene, np.random.default_rng(seed))
        assert sorted(source) == list(range(len(scene)))
        assert (scene[source] != scene).all()


def test_time_order_is_kept_within_scenes():
    scene = np.repeat(np.arange(20), 6)
    source = shuffle_across_scenes(scene, np.random.default_rng(0))
    inside = scene[1:] == scene[:-1]
    breaks = np.diff(source)[inside] != 1
    assert breaks.sum() <= 20  # at most one join of two donor scenes in each receiving scene


def test_every_other_scene_is_about_equally_likely():
    scene = np.repeat(np.arange(6), 2)
    donors = [scene[shuffle_across_scenes(scene, np.random.default_rng(s))[4]] for s in range(3000)]
    counts = np.bincount(donors, minlength=6)
    assert counts[2] == 0
    np.testing.assert_allclose(np.delete(counts, 2) / 3000, 1 / 5, atol=0.04)


@pytest.mark.parametrize("scene", [[0, 0, 0], [0, 0, 0, 1], []])
def test_impossible_shuffles_are_refused(scene):
    with pytest.raises(DataError, match="cannot shuffle across scenes"):
        shuffle_across_scenes(np.array(scene, int), np.random.default_rng(0))


def test_mean_videos():
    training = np.random.default_rng(2).integers(0, 256, size=(5, 4, 3, 6, 7), dtype=np.uint8)
    frame, video = mean_frame_videos(training, 2), mean_video_videos(training, 2)
    assert frame.shape == video.shape == (2, 4, 3, 6, 7)
    np.testing.assert_allclose(video[1], training.mean(axis=0) / 255, rtol=1e-6)
    np.testing.assert_allclose(frame[0, 3], training.mean(axis=(0, 1)) / 255, rtol=1e-6)
