import tracemalloc

import numpy as np
import pytest
from scipy import stats

from neuroclips.errors import DataError
from neuroclips.evaluation.agreement import (
    mean_and_sd,
    pattern_correlation,
    profile_correlation,
    resampled_profile,
)
from neuroclips.evaluation.intervals import SceneBootstrap

PARTS = "neuroclips.evaluation.agreement._VALUES_AT_ONCE"


@pytest.fixture
def pair():
    """Predicted and true features of 13 clips, 5 tokens of 8, that share a large common part."""
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(13, 5, 8)) * rng.uniform(0.1, 5, size=(5, 8)) + 20 * rng.normal(size=(5, 8))
    return (truth + rng.normal(size=truth.shape)).astype(np.float32), truth.astype(np.float32)


def trained(truth):
    return truth.mean(axis=0, dtype=np.float64), truth.std(axis=0, dtype=np.float64)


@pytest.mark.parametrize("at_once", [1 << 21, 50, 7])
def test_both_agree_with_scipy_and_numpy(pair, at_once, monkeypatch):
    monkeypatch.setattr(PARTS, at_once)
    predicted, truth = pair
    x, y = (side.astype(np.float64).reshape(13, 40) for side in pair)
    expected = stats.pearsonr(x, y, axis=0).statistic
    np.testing.assert_allclose(profile_correlation(predicted, truth), expected.reshape(5, 8), atol=1e-9)
    expected = np.corrcoef(x, y)[:13, 13:].diagonal()
    np.testing.assert_allclose(pattern_correlation(predicted, truth), expected, atol=1e-9)
    mean, sd = trained(truth[:9])
    x, y = ((side - mean.ravel()) / sd.ravel() for side in (x, y))
    expected = np.corrcoef(x, y)[:13, 13:].diagonal()
    np.testing.assert_allclose(pattern_correlation(predicted, truth, mean=mean, sd=sd), expected, atol=1e-9)


@pytest.mark.parametrize("at_once", [1 << 21, 85])
def test_mean_and_sd_of_units_with_a_large_common_part(at_once, monkeypatch):
    monkeypatch.setattr(PARTS, at_once)
    rng = np.random.default_rng(6)
    features = (1000 * rng.normal(size=(5, 8)) + rng.normal(size=(13, 5, 8))).astype(np.float32)
    features[:, 2, 3] = 0.1
    mean, sd = mean_and_sd(features)
    np.testing.assert_allclose(mean, features.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(sd, features.std(axis=0, dtype=np.float64), rtol=1e-5)
    assert sd[2, 3] == 0


def test_truth_the_training_mean_and_shuffled_clips(pair):
    predicted, truth = pair
    mean, sd = trained(truth)
    np.testing.assert_allclose(profile_correlation(truth, truth), 1)
    np.testing.assert_allclose(profile_correlation(-3 * truth, truth), -1)
    np.testing.assert_allclose(pattern_correlation(truth, truth, mean=mean, sd=sd), 1)
    constant = np.repeat(mean[None].astype(np.float32), 13, axis=0)  # up to rounding
    assert not profile_correlation(constant, truth).any()
    assert not pattern_correlation(constant, truth, mean=mean, sd=sd).any()
    assert (pattern_correlation(constant, truth) > 0.9).all()  # why training statistics are needed
    other = np.roll(predicted, 1, axis=0)
    assert abs(profile_correlation(other, truth).mean()) < 0.2
    assert abs(pattern_correlation(other, truth, mean=mean, sd=sd).mean()) < 0.2
    assert profile_correlation(predicted, truth).mean() > 0.7


def test_units_that_never_change(pair):
    predicted, truth = (side.copy() for side in pair)
    predicted[:, 2, 3], truth[:, 4, 1] = 1 / 3, 7
    found = profile_correlation(predicted, truth)
    assert np.argwhere(found == 0).tolist() == [[2, 3], [4, 1]]
    mean, sd = trained(truth)
    kept = np.ones((5, 8), bool)
    kept[4, 1] = False  # its sd is 0
    expected = pattern_correlation(predicted[:, kept], truth[:, kept], mean=mean[kept], sd=sd[kept])
    np.testing.assert_allclose(pattern_correlation(predicted, truth, mean=mean, sd=sd), expected)


@pytest.mark.parametrize("correlation", [profile_correlation, pattern_correlation])
def test_mapped_features_are_read_in_parts(tmp_path, monkeypatch, correlation):
    rng = np.random.default_rng(5)
    sides = []
    for name in ("predicted", "truth"):
        np.save(tmp_path / name, rng.normal(size=(300, 3000)).astype(np.float16))
        sides.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    whole = correlation(*sides)
    monkeypatch.setattr(PARTS, 6000)
    tracemalloc.start()
    in_parts = correlation(*sides)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(in_parts, whole, atol=1e-12)
    assert peak < 300 * 3000 * 2 / 2  # half of one file


@pytest.mark.usefixtures("unchecked_types")
def test_refusals(pair):
    predicted, truth = pair
    mean, sd = trained(truth)
    for correlation in (profile_correlation, pattern_correlation):
        with pytest.raises(DataError, match="expected equal"):
            correlation(predicted[:, :4], truth)
        bad = predicted.copy()
        bad[11, 1, 2] = np.inf
        with pytest.raises(DataError, match="predicted features of clip 11"):
            correlation(bad, truth)
    with pytest.raises(DataError, match="at least 2"):
        profile_correlation(predicted[:1], truth[:1])
    with pytest.raises(DataError, match="come together"):
        pattern_correlation(predicted, truth, mean=mean)
    with pytest.raises(DataError, match=r"expected \(5, 8\)"):
        pattern_correlation(predicted, truth, mean=mean.T, sd=sd.T)
    with pytest.raises(DataError, match="not negative"):
        pattern_correlation(predicted, truth, mean=mean, sd=-sd)
    with pytest.raises(DataError, match="at least 2 that vary"):
        pattern_correlation(predicted, truth, mean=mean, sd=0 * sd)


def test_resampled_profile_is_the_profile_of_the_clips_that_were_drawn():
    rng = np.random.default_rng(8)
    scene = np.repeat(np.arange(7), [3, 1, 2, 4, 2, 3, 2])
    truth = rng.normal(size=(17, 5, 6)) + 30
    predicted = (truth + 2 * rng.normal(size=truth.shape)).astype(np.float32)
    predicted[:, 2, 3] = 4.0  # constant: 0
    boot = SceneBootstrap(scene, draws=9, seed=2)
    found = resampled_profile(predicted, truth, boot)
    assert found.value == pytest.approx(profile_correlation(predicted, truth).mean(), abs=1e-5)
    for times, draw in zip(boot.times, found.draws):
        drawn = np.repeat(np.arange(17), times[scene])
        assert draw == pytest.approx(profile_correlation(predicted[drawn], truth[drawn]).mean(), abs=1e-5)
