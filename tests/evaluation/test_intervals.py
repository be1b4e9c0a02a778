import numpy as np
import pytest
from scipy import stats

from neuroclips.errors import DataError
from neuroclips.evaluation.intervals import SceneBootstrap, n_effective, rare_share_interval


def test_interval_agrees_with_t_for_independent_scenes():
    values = np.random.default_rng(0).normal(size=60)
    low, high = (boot := SceneBootstrap(np.arange(60), draws=4000, seed=1)).interval(boot.of(values).draws)
    expected = stats.t.interval(0.95, 59, values.mean(), stats.sem(values))
    np.testing.assert_allclose([low, high], expected, atol=0.03)


@pytest.mark.parametrize("scenes", [8, 40])
def test_coverage_with_clips_that_share_a_scene(scenes):
    rng, covered, naive = np.random.default_rng(4), 0, 0
    for trial in range(300):
        length = rng.integers(2, 7, size=scenes)
        scene = np.repeat(np.arange(scenes), length)
        values = rng.normal(size=scenes)[scene] + 0.3 * rng.normal(size=len(scene))  # true mean 0
        boot = SceneBootstrap(scene, draws=400, seed=trial)
        low, high = boot.interval(boot.of(values).draws)
        covered += low <= 0 <= high
        naive += abs(values.mean()) <= 1.96 * stats.sem(values)
    assert 0.90 <= covered / 300 <= 0.985
    assert naive / 300 < 0.85  # what ignoring scenes would claim


def test_mean_of_a_draw_is_a_ratio_of_sums():
    scene, values = np.array([5, 5, 5, 2, 9, 9]), np.array([1.0, 2, 3, 10, 4, 6])
    boot = SceneBootstrap(scene, draws=50, seed=0)
    for times, draw, median in zip(boot.times, boot.of(values).draws, boot.of(values, "median").draws):
        pooled = np.repeat(values, times[np.searchsorted([2, 5, 9], scene)])  # scenes in number order
        assert draw == pytest.approx(pooled.mean())
        assert median == pytest.approx(np.median(pooled))


def test_several_rows_are_pooled():
    scene, values = np.array([0, 0, 1, 2, 2]), np.random.default_rng(1).normal(size=(3, 5))
    boot = SceneBootstrap(scene, draws=20, seed=0)
    np.testing.assert_allclose(boot.of(values).draws, boot.of(values.mean(axis=0)).draws)
    assert boot.of(values, "median").value == np.median(values)


def test_one_scene_has_no_interval():
    boot = SceneBootstrap(np.zeros(4, int))
    assert boot.of(np.arange(4.0)).value == 1.5
    assert boot.interval(boot.of(np.arange(4.0)).draws) is None


def test_values_that_do_not_fit_are_refused():
    boot = SceneBootstrap(np.arange(4))
    for values in (np.ones(3), np.array([1, 2, np.nan, 3])):
        with pytest.raises(DataError, match="must be finite, one for each of 4 clips"):
            boot.of(values)
    with pytest.raises(DataError, match="no clips"):
        SceneBootstrap(np.array([], int))


def test_effective_n_matches_the_variance_of_a_mean_of_copied_clips():
    scene, rng = np.repeat(np.arange(4), [1, 2, 3, 10]), np.random.default_rng(0)
    means = rng.normal(size=(20000, 4))[:, scene].mean(axis=1)
    assert 1 / means.var() == pytest.approx(n_effective(scene), rel=0.05)


def test_rare_successes_get_a_score_interval():
    scene = np.arange(30)
    values = np.zeros(30)
    for hits in range(4):
        values[:hits] = 1
        expected = stats.binomtest(hits, 30).proportion_ci(method="wilson")
        assert rare_share_interval(values, scene) == pytest.approx(tuple(expected), abs=1e-9)
        assert rare_share_interval(1 - values, scene) == pytest.approx((1 - expected[1], 1 - expected[0]), abs=1e-9)
    values[:5] = 1
    assert rare_share_interval(values, scene) is None  # five scenes: the bootstrap takes over
    assert rare_share_interval(np.zeros(30), np.zeros(30, int)) is None  # one scene says nothing of others
    copies = rare_share_interval(np.zeros((2, 60)), np.repeat(scene, 2))
    assert copies == pytest.approx(tuple(stats.binomtest(0, 60).proportion_ci(method="wilson")), abs=1e-9)
