"""Tests against closed forms and other libraries, and how often they cry wolf when there is nothing."""

import numpy as np
import pytest
from scipy import stats

from neuroclips.errors import DataError
from neuroclips.evaluation.floors import shuffle_across_scenes
from neuroclips.evaluation.intervals import SceneBootstrap
from neuroclips.evaluation.scores import PAIRINGS, score_identification
from neuroclips.evaluation.significance import holm, paired_p_value, permutation_p_value


def within_binomial_error(rejected: int, trials: int, rate: float) -> bool:
    """Whether so many rejections are nothing unusual (three in a thousand) at this rate."""
    low, high = stats.binom.interval(0.997, trials, rate)
    return low <= rejected <= high


def test_p_value_counts_the_observed():
    assert permutation_p_value(3.0, np.array([1.0, 2, 3, 4])) == 3 / 5
    assert permutation_p_value(9.0, np.zeros(99)) == 0.01


def test_sign_flips_agree_with_scipy():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.3, 0.6):
        difference = rng.normal(loc=shift, size=31)
        reference = stats.permutation_test(
            (difference,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
        )
        ours = paired_p_value(difference, np.arange(31), draws=20_000)
        assert ours == pytest.approx(reference.pvalue, abs=0.012)


def test_copies_of_a_clip_are_no_evidence():
    rng = np.random.default_rng(2)
    difference = rng.normal(loc=0.25, size=24)
    alone = paired_p_value(difference, np.arange(24), draws=5000)
    copied = paired_p_value(np.repeat(difference, 9), np.repeat(np.arange(24), 9), draws=5000)
    assert copied == pytest.approx(alone, abs=1e-9)
    ignoring_scenes = paired_p_value(np.repeat(difference, 9), np.arange(216), draws=5000)
    assert ignoring_scenes < alone / 3


def test_no_difference_and_too_few_scenes():
    assert paired_p_value(np.zeros(20), np.arange(20)) == 1
    assert paired_p_value(np.ones(20), np.repeat(np.arange(5), 4)) is None
    with pytest.raises(DataError, match="one finite value a clip"):
        paired_p_value(np.array([1.0, np.nan, 2.0]), np.arange(3))


def test_holm_agrees_with_its_definition():
    p = np.random.default_rng(3).uniform(size=11) ** 2
    order = np.argsort(p)
    expected = np.empty(11)
    for rank, i in enumerate(order):
        expected[i] = min(1, max((11 - k) * p[order[k]] for k in range(rank + 1)))
    np.testing.assert_allclose(holm(p), expected)
    assert holm([]).shape == (0,)


def test_holm_bounds_the_chance_of_any_false_alarm():
    rng = np.random.default_rng(4)
    common = rng.normal(size=(400, 1))  # metrics of one method hang together
    p = stats.norm.sf(0.6 * common + 0.8 * rng.normal(size=(400, 7)))
    any_raw = (p < 0.05).any(axis=1).sum()
    any_adjusted = sum((holm(row) < 0.05).any() for row in p)
    assert any_raw > 60  # expected about a quarter
    assert any_adjusted <= stats.binom.isf(0.0015, 400, 0.05)


# --- 200 simulated data sets in which the fMRI says nothing ---

TRIALS, SCENES, WIDTH = 200, 24, 30


def nothing(seed: int):
    """A small study without signal: features that last for a scene, drifting predictions that know nothing of them."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(SCENES), rng.integers(2, 5, size=SCENES))
    n = len(scene)
    truth = rng.normal(size=(SCENES, WIDTH))[scene] + 0.5 * rng.normal(size=(n, WIDTH))
    drift = np.cumsum(rng.normal(size=(n, WIDTH)), axis=0) / 8  # slow changes, as a scanner's
    predicted = drift + rng.normal(size=(n, WIDTH))
    return scene, truth, predicted


@pytest.fixture(scope="module")
def null_rows():
    found = []
    for seed in range(TRIALS):
        scene, truth, predicted = nothing(seed)
        n = len(scene)
        order = shuffle_across_scenes(scene, np.random.default_rng(seed))
        found.append(
            score_identification(
                "m", predicted, truth, reference=np.zeros(WIDTH), ids=[f"c{i}" for i in range(n)],
                segment=np.zeros(n, int), onset=np.arange(n) * 2.0, scene=scene, exclude_seconds=4.0, draws=300,
                floors={"shuffled": [predicted[order]]}, seed=seed,
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize("metric", ["top-1", "top-5", "pairwise", "median rank"])
def test_identification_rejects_at_its_rate_under_the_null(null_rows, metric):
    p = [s.p_values[PAIRINGS] for found in null_rows for s in found.scores if s.metric == metric and not s.control]
    assert len(p) == TRIALS
    assert sum(x <= 0.05 for x in p) <= stats.binom.isf(0.0015, TRIALS, 0.05)
    if metric in {"pairwise", "median rank"}:  # the others are coarse: ties with the null make them cautious
        assert within_binomial_error(sum(x <= 0.05 for x in p), TRIALS, 0.05)
        assert stats.kstest(p, "uniform").pvalue > 0.001


@pytest.mark.parametrize("metric", ["top-5", "pairwise"])
def test_the_paired_test_rejects_at_its_rate_under_the_null(null_rows, metric):
    p = [s.p_values["shuffled"] for found in null_rows for s in found.scores if s.metric == metric and not s.control]
    assert within_binomial_error(sum(x <= 0.05 for x in p), TRIALS, 0.05)


@pytest.mark.parametrize("metric", ["top-1", "top-5", "pairwise", "median rank"])
def test_intervals_contain_chance_under_the_null(null_rows, metric):
    for control in (False, True):
        rows = [s for found in null_rows for s in found.scores if s.metric == metric and s.control == control]
        inside = sum(s.contains_chance for s in rows)
        assert inside >= stats.binom.isf(0.9985, TRIALS, 0.95)  # rare successes: rather too wide than too narrow
    differences = [s.differences["shuffled"] for found in null_rows for s in found.scores if not s.control]
    assert np.mean([low <= 0 <= high for low, high in differences]) >= 0.93


def test_coverage_of_the_interval_is_nominal():
    """1,000 studies with a known mean: 93 to 97 % of the intervals must contain it."""
    rng, covered = np.random.default_rng(5), 0
    for trial in range(1000):
        scene = np.repeat(np.arange(40), rng.integers(2, 7, size=40))
        values = rng.normal(size=40)[scene] + 0.7 * rng.normal(size=len(scene))
        boot = SceneBootstrap(scene, draws=400, seed=trial)
        low, high = boot.interval(boot.of(values).draws)
        covered += low <= 0 <= high
    assert 0.93 <= covered / 1000 <= 0.97
