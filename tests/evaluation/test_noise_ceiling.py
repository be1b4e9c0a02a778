import numpy as np
import pytest
from scipy import stats

from neuroclips.errors import DataError
from neuroclips.evaluation import noise_ceiling as module
from neuroclips.evaluation.noise_ceiling import explainable_variance, noise_ceiling, spearman_brown, split_half


def planted(clips, repeats, voxels, rho, seed=0, mean=0.0, scale=1.0):
    """Bold of which each voxel's single presentation has reliability ``rho``."""
    rng = np.random.default_rng(seed)
    signal = np.sqrt(rho) * rng.normal(size=(clips, 1, voxels))
    noise = np.sqrt(1 - rho) * rng.normal(size=(clips, repeats, voxels))
    return (mean + scale * (signal + noise)).astype(np.float32), np.ones((clips, repeats), bool)


@pytest.mark.parametrize("repeats", [2, 3, 5])
@pytest.mark.parametrize("rho", [0.0, 0.15, 0.6])
def test_explainable_variance_finds_the_planted_share(repeats, rho):
    found = explainable_variance(*planted(150, repeats, 2000, rho, mean=3.0, scale=7.0))
    error = found.std() / np.sqrt(len(found))
    bias = 2.0 * rho / 150  # of a ratio of estimates, of the order of one clip
    assert abs(found.mean() - rho) < 4 * error + bias
    naive = 1 - (1 - rho) * (repeats - 1) / repeats  # without the degrees of freedom
    assert naive - found.mean() > 20 * error


def test_explainable_variance_is_the_tutorials_corrected_one_for_standardised_voxels():
    bold, present = planted(90, 4, 33, 0.3, seed=2)
    bold = stats.zscore(bold.astype(np.float64), axis=0).astype(np.float32)  # every repeat is a run of its own
    uncorrected = 1 - (bold - bold.mean(axis=1, keepdims=True)).var(axis=(0, 1))
    expected = uncorrected - (1 - uncorrected) / 3
    np.testing.assert_allclose(explainable_variance(bold, present), expected, atol=0.005)  # (N - 1) / N of the total


def test_reading_in_parts_changes_nothing_and_absent_repeats_are_not_looked_at(monkeypatch):
    bold, present = planted(60, 4, 29, 0.4, seed=3)
    whole = explainable_variance(bold, present), split_half(bold, present)
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 60 * 4 * 7)
    for estimate, expected in zip((explainable_variance, split_half), whole):
        np.testing.assert_allclose(estimate(bold, present), expected, rtol=1e-12)
        absent = present.copy()
        absent[40:, 2:] = False
        spoiled = np.where(absent[..., None], bold, np.float32(1e6))
        np.testing.assert_allclose(estimate(spoiled, absent), estimate(bold * absent[..., None], absent))


@pytest.mark.parametrize("repeats", [2, 3, 5])
@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_split_half_finds_the_reliability_of_any_number_of_presentations(repeats, rho):
    bold, present = planted(4000, repeats, 200, rho, seed=4)
    for k in (None, 1, 12):
        found, expected = split_half(bold, present, k), spearman_brown(np.array(rho), repeats if k is None else k)
        assert abs(found.mean() - expected) < 5 * found.std() / np.sqrt(200) + 0.003, k


def test_split_half_of_two_is_spearman_brown_and_agrees_with_another_correlation():
    bold, present = planted(50, 2, 17, 0.5, seed=5)
    r = np.array([stats.pearsonr(bold[:, 0, v], bold[:, 1, v]).statistic for v in range(17)])
    np.testing.assert_allclose(split_half(bold, present), 2 * r / (1 + r), rtol=1e-5)
    np.testing.assert_allclose(split_half(bold, present, 1), r, rtol=1e-5)
    four = np.concatenate([bold, bold[:, ::-1]], axis=1)  # odd and even means are equal to the single presentations'
    odd, even = four[:, ::2].mean(axis=1), four[:, 1::2].mean(axis=1)
    r = np.array([stats.pearsonr(odd[:, v], even[:, v]).statistic for v in range(17)])
    np.testing.assert_allclose(split_half(four, np.ones((50, 4), bool)), 2 * r / (1 + r), rtol=1e-5)


def test_split_half_where_clips_differ_in_their_repeats():
    bold, present = planted(6000, 5, 150, 0.3, seed=6)
    present[2000:4000, 2:] = False  # 2 repeats
    present[4000:5000, 0] = False  # 4: the first is missing, so the second counts as odd
    present[5000:, 1:] = False  # 1: left out
    found = split_half(bold, present, 1)
    assert abs(found.mean() - 0.3) < 0.01


def test_voxels_at_the_ends():
    bold, present = planted(30, 3, 4, 0.0)
    bold[:, :, 0] = np.random.default_rng(0).normal(size=(30, 1))  # the same in every repeat
    bold[:, :, 1] = 12.3  # never changes
    bold[:, 1, 2] = -bold[:, 0, 2]
    bold[:, 2, 2] = bold[:, 0, 2]  # odd and even are opposite
    variance, reliability = explainable_variance(bold, present), split_half(bold, present)
    assert (variance[0], variance[1]) == (pytest.approx(1), 0)
    assert variance[2] < 0
    assert reliability[0] == pytest.approx(1)
    assert reliability[1] == reliability[2] == 0


def test_the_ceiling_is_reached_by_the_signal_and_beaten_by_nothing():
    rng, rho, repeats = np.random.default_rng(7), 0.2, 5
    signal = rng.normal(size=(900, 1, 80))
    bold = (np.sqrt(rho) * signal + np.sqrt(1 - rho) * rng.normal(size=(900, repeats, 80))).astype(np.float32)
    summary = noise_ceiling(bold, np.ones((900, repeats), bool))
    mean = bold.mean(axis=1)
    reached = np.median([np.corrcoef(mean[:, v], signal[:, 0, v])[0, 1] for v in range(80)])
    assert summary.correlation == pytest.approx(reached, abs=0.015)
    assert summary.reliability == pytest.approx(float(spearman_brown(np.array(rho), repeats)), abs=0.02)
    assert summary.explainable_variance == pytest.approx(rho, abs=0.02)
    assert (summary.n_voxels, summary.n_repeats) == (80, 5)


def test_share_of_explainable_voxels():
    (good, present), (bad, _) = planted(400, 3, 30, 0.5, seed=8), planted(400, 3, 70, 0.0, seed=9)
    summary = noise_ceiling(np.concatenate([good, bad], axis=2), present)
    assert summary.share_explainable == pytest.approx(0.3, abs=0.011)


def test_clips_shown_once_have_no_ceiling():
    bold, present = planted(20, 2, 3, 0.5)
    present[:, 1] = False
    assert noise_ceiling(bold, present) is None
    with pytest.raises(DataError, match="no clip was shown twice"):
        explainable_variance(bold, present)
    present[:2, 1] = True
    with pytest.raises(DataError, match="2 clips were shown twice; split-half reliability needs at least three"):
        split_half(bold, present)
