import numpy as np
import pytest

from neuroclips.errors import DataError
from neuroclips.evaluation.intervals import SceneBootstrap
from neuroclips.evaluation.uncertainty import COVERAGES, abstention_curve, sample_agreement


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_agreement_is_the_mean_correlation_of_all_pairs(rng):
    samples, reference = rng.normal(size=(4, 3, 5, 8)) + 2, rng.normal(size=(5, 8))
    found = sample_agreement(samples, reference)
    for b in range(3):
        table = np.corrcoef((samples[:, b] - reference).reshape(4, -1))
        assert found[b] == pytest.approx((table.sum() - 4) / 12, abs=1e-6)


def test_agreement_follows_the_noise_of_the_samples(rng):
    noise = np.array([0.1, 0.5, 1.0, 2.0, 4.0])
    truth, reference = rng.normal(size=(5, 3000)), 30 * rng.normal(size=3000)
    samples = reference + truth + noise[:, None] * rng.normal(size=(6, 5, 3000))
    np.testing.assert_allclose(sample_agreement(samples, reference), 1 / (1 + noise**2), atol=0.04)
    assert sample_agreement(samples, np.zeros(3000)).min() > 0.97  # what all clips share hides the difference


def test_samples_without_direction_agree_with_none(rng):
    reference = rng.normal(size=7).astype(np.float32)
    samples = np.tile(reference, (3, 2, 1))
    samples[:2, 1] = rng.normal(size=7)  # two of three are equal, the third says nothing
    np.testing.assert_allclose(sample_agreement(samples, reference), [0, 1 / 3], atol=1e-6)


def test_samples_that_do_not_fit_are_refused(rng):
    with pytest.raises(DataError, match="1 samples of each clip"):
        sample_agreement(rng.normal(size=(1, 3, 4)), np.zeros(4))
    with pytest.raises(DataError, match="samples of clip 2 hold values that are not finite"):
        sample_agreement(np.where(np.arange(3)[:, None] == 2, np.nan, rng.normal(size=(2, 3, 4))), np.zeros(4))


def test_perfect_confidence_has_the_curve_min_1_p_over_c():
    correct, p = np.repeat([1.0, 0.0], [30, 90]), 0.25
    found = abstention_curve(correct, -np.arange(120.0), np.arange(120), draws=100)
    expected = np.minimum(1, p / np.array(COVERAGES))
    np.testing.assert_allclose(found.value, expected)
    assert found.overall == p
    assert found.area == pytest.approx(np.trapezoid(expected - p, COVERAGES))
    assert found.area_interval[0] > 0
    assert found.null_interval[1] < found.area
    assert found.p_value == 1 / 101


def test_constant_confidence_is_exactly_the_flat_line(rng):
    correct, scene = rng.random(50), np.repeat(np.arange(10), 5)
    found = abstention_curve(correct, np.full(50, 0.3), scene, draws=100)
    np.testing.assert_allclose(found.value, correct.mean())
    assert found.area == pytest.approx(0, abs=1e-12)
    assert np.ptp(found.ci_low) == pytest.approx(0, abs=1e-12)  # the same interval at every coverage
    assert found.p_value > 0.2


def test_ties_are_the_mean_over_their_orders(rng):
    correct, confidence = rng.integers(0, 2, 12).astype(float), rng.integers(0, 3, 12).astype(float)
    found = abstention_curve(correct, confidence, np.arange(12), (0.25, 0.5, 0.75), draws=10)
    orders = [np.lexsort((rng.random(12), -confidence)) for _ in range(20000)]
    for share, value in zip((3, 6, 9), found.value):
        assert value == pytest.approx(np.mean([correct[order[:share]].mean() for order in orders]), abs=0.01)


def test_a_clip_in_part():
    found = abstention_curve(np.array([1.0, 0, 1]), np.array([3.0, 2, 1]), np.arange(3), (0.5, 1.0), draws=10)
    assert found.value[0] == pytest.approx(1 / 1.5)  # the first, and half of the second


def test_draws_pick_the_most_confident_anew(rng):
    scene = np.repeat(np.arange(6), [2, 3, 1, 4, 2, 3])
    correct, confidence = rng.random(15), rng.normal(size=15)
    found = abstention_curve(correct, confidence, scene, (0.4, 1.0), draws=400, seed=3)
    boot, values = SceneBootstrap(scene, 400, 3), []
    for times in boot.times:
        clips = np.repeat(np.arange(15), times[boot.block])
        order = clips[np.argsort(-confidence[clips])]
        wanted = 0.4 * len(order)
        weight = np.clip(wanted - np.arange(len(order)), 0, 1)
        values.append((weight * correct[order]).sum() / wanted)
    assert (found.ci_low[0], found.ci_high[0]) == pytest.approx(boot.interval(np.array(values)))


def test_null_is_calibrated_where_scenes_are_right_and_sure_together(rng):
    scene, p_values, naive = np.repeat(np.arange(24), 5), [], []
    for seed in range(120):
        correct = (rng.normal(size=24)[scene] + 0.3 * rng.normal(size=120) > 0).astype(float)
        confidence = rng.normal(size=24)[scene] + 0.3 * rng.normal(size=120)
        found = abstention_curve(correct, confidence, scene, draws=100, seed=seed)
        p_values.append(found.p_value)
        naive.append(abstention_curve(correct, confidence, np.arange(120), draws=100, seed=seed).p_value)
    assert 0.01 <= np.mean(np.array(p_values) < 0.1) <= 0.19
    assert np.mean(np.array(naive) < 0.1) > 0.2  # what ignoring scenes would claim


def test_informative_confidence_is_found(rng):
    ability, scene = rng.normal(size=300), np.repeat(np.arange(75), 4)
    correct = (rng.random(300) < 1 / (1 + np.exp(-2 * ability))).astype(float)
    found = abstention_curve(correct, ability + 0.5 * rng.normal(size=300), scene, draws=200)
    assert found.p_value < 0.01
    assert found.value[0] > found.value[4] > found.value[-1] == pytest.approx(found.overall)
    against = abstention_curve(correct, -ability, scene, draws=200)
    assert against.area_interval[1] < 0
    assert against.p_value > 0.99


def test_few_scenes():
    one = abstention_curve(np.array([1.0, 0]), np.array([1.0, 0]), np.zeros(2, int))
    assert (one.ci_low, one.ci_high, one.area_interval, one.null_interval, one.p_value) == (None,) * 5
    assert one.value[0] == 1
    dominated = abstention_curve(np.array([1.0, 0, 0]), np.array([1.0, 0, 0]), np.array([0, 0, 1]))
    assert dominated.p_value is None
    assert dominated.ci_low is not None


def test_what_makes_no_curve_is_refused(unchecked_types):
    good = np.arange(4.0)
    for coverages in ((0.5,), (0.0, 1.0), (0.5, 0.2), (0.5, 1.2)):
        with pytest.raises(DataError, match="expected two or more, ascending in"):
            abstention_curve(good, good, np.arange(4), coverages)
    with pytest.raises(DataError, match="4 scores, 3 confidences, 4 scenes"):
        abstention_curve(good, good[:3], np.arange(4))
    with pytest.raises(DataError, match="not finite"):
        abstention_curve(good, np.array([0, 1, np.nan, 2]), np.arange(4))
