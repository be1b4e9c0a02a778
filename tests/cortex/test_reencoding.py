import numpy as np
import pytest
import torch
from scipy import stats
from threadpoolctl import threadpool_limits

from neuroclips.cortex.encoding import fit_encoding, mean_responses
from neuroclips.cortex.reencoding import agreement, clip_trust, presentation_halves, reencoding_accuracy
from neuroclips.data.clips import TestClips
from neuroclips.decoders.ridge import RidgeDecoder
from neuroclips.errors import DataError
from neuroclips.evaluation.floors import shuffled_orders
from neuroclips.evaluation.identification import candidate_pool
from neuroclips.evaluation.noise_ceiling import split_half


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices are small: more threads gain nothing, and wait for each other when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture
def decode_and_reencode(make_clips):
    """Ridge both ways between 5 features and 11 voxels; test clips were shown four times.

    Returns what was predicted from the first half, the measured responses of both halves, and the test clips.
    """

    def run(signal, seed=0):
        train, features = make_clips(n_segments=12, repeats=2, voxels=11, signal=signal, seed=seed)
        test, _ = make_clips("test", n_segments=24, repeats=4, voxels=11, signal=signal, seed=seed + 1)
        decoder = RidgeDecoder().fit(train, features)
        model = fit_encoding({"film": features}, train.segment, mean_responses(train), delays=(0,))
        decoded_from, measured = presentation_halves(test)
        film = decoder.predict(decoded_from.responses())
        predicted = model.predict({"film": film}, test.segment)
        return predicted, mean_responses(decoded_from), mean_responses(measured), test

    return run


def ceiling(test, k):
    return np.sqrt(split_half(test.bold, test.present, k)).mean()


def test_scans_that_were_decoded_beat_the_ceiling_and_other_scans_do_not(decode_and_reencode):
    predicted, same, other, test = decode_and_reencode(0.3)
    inflated, honest = (reencoding_accuracy(predicted, y, test.scene) for y in (same, other))
    assert inflated.interval[0] > ceiling(test, 2)
    assert honest.interval[1] < ceiling(test, 2)
    assert honest.difference_interval[0] > 0.3


def test_without_any_signal_only_the_decoded_scans_agree(decode_and_reencode):
    found = {"same": [], "other": []}
    for seed in range(100, 140, 2):
        predicted, same, other, test = decode_and_reencode(0.0, seed)
        found["same"].append(reencoding_accuracy(predicted, same, test.scene))
        found["other"].append(reencoding_accuracy(predicted, other, test.scene))
    assert all(a.interval[0] > 0.15 and a.difference_interval[0] > 0.15 for a in found["same"])
    values = np.array([a.value for a in found["other"]])
    assert abs(values.mean()) < 3 * stats.sem(values)
    assert np.abs(values).max() < 0.08
    assert sum(a.difference_interval[0] <= 0 <= a.difference_interval[1] for a in found["other"]) >= 16


def test_a_perfect_prediction_reaches_the_ceiling_and_shuffled_clips_reach_nothing(make_clips):
    test, features = make_clips("test", n_segments=40, repeats=5, signal=0.4, seed=3)
    truth = np.random.default_rng(99).normal(size=(5, 41))  # as the fixture's
    _, measured = presentation_halves(test)
    found = reencoding_accuracy(features @ truth, mean_responses(measured), test.scene)
    assert found.value == pytest.approx(ceiling(test, 2), abs=0.02)
    assert abs(found.shuffled.mean()) < 0.05
    assert found.difference == pytest.approx(found.value - found.shuffled.mean())
    assert found.interval[0] < found.value < found.interval[1]
    assert found.difference_interval[0] > 0.3


def pair(clips=31, voxels=23, seed=0):
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(clips, voxels)) * rng.uniform(0.5, 3, voxels) + rng.normal(size=voxels)
    return (0.1 * measured + rng.normal(size=(clips, voxels)) + 5).astype(np.float32), measured.astype(np.float32)


def test_agreement_averages_to_correlations():
    predicted, measured = pair()
    predicted[:, 6], measured[:, 9] = 0.3, 0.0  # voxels that do not change
    products = agreement(predicted, measured)
    assert products.shape == (31, 23)
    for v in range(23):
        expected = 0 if v in (6, 9) else stats.pearsonr(predicted[:, v], measured[:, v]).statistic
        assert products[:, v].mean() == pytest.approx(expected, abs=1e-5)
    scene = np.arange(31) // 3
    found = reencoding_accuracy(predicted, measured, scene, shuffles=7, seed=4)
    np.testing.assert_allclose(found.clips, products.mean(axis=1), atol=1e-5)
    assert found.value == pytest.approx(products.mean(), abs=1e-5)
    for shuffled, order in zip(found.shuffled, shuffled_orders(scene, 4, 7)):
        np.testing.assert_allclose(shuffled, agreement(predicted[order], measured).mean(axis=1), atol=1e-5)


def test_clip_trust_by_plain_loops():
    predicted, measured = pair(seed=1)
    segment, onset, scene = np.repeat([0, 1], [20, 11]), 2.0 * np.append(np.arange(20), np.arange(11)), np.arange(31)
    pool = candidate_pool(segment, onset, 10.0)
    found = clip_trust(predicted, measured, scene, pool, shuffles=5, seed=2)
    x, y = predicted - predicted.mean(axis=0), measured - measured.mean(axis=0)
    for b in range(31):
        own = np.corrcoef(x[b], y[b])[0, 1]
        far = [i for i in range(31) if segment[i] != segment[b] or abs(onset[i] - onset[b]) > 10]
        others = np.array([np.corrcoef(x[i], y[b])[0, 1] for i in far])
        assert found.correlation.clips[b] == pytest.approx(own, abs=1e-5)
        assert found.others[b] == pytest.approx(others.mean(), abs=1e-5)
        assert found.percentile[b] == pytest.approx((others < own).mean())
        assert found.pool_size[b] == len(far) + 1
    order = shuffled_orders(scene, 2, 5)[3]
    expected = [np.corrcoef(x[order[b]], y[b])[0, 1] for b in range(31)]
    np.testing.assert_allclose(found.correlation.shuffled[3], expected, atol=1e-5)


def test_trust_tells_clips_that_were_decoded_well_from_those_that_were_not(decode_and_reencode):
    predicted, _, measured, test = decode_and_reencode(0.6)
    bad = np.arange(len(test)) % 3 == 0
    rng = np.random.default_rng(8)
    predicted[bad] = rng.permuted(predicted[bad], axis=1)  # patterns of the same size that say nothing
    pool = candidate_pool(test.segment, test.onset, 10.0)
    found = clip_trust(predicted, measured, test.scene, pool)
    assert found.percentile[~bad].mean() > 0.9
    assert abs(found.percentile[bad].mean() - 0.5) < 4 * np.sqrt(1 / 12 / bad.sum())
    assert found.correlation.clips[~bad].mean() > found.correlation.clips[bad].mean() + 0.4
    assert found.correlation.difference_interval[0] > 0.2


def test_a_film_that_stands_still_is_trusted_nowhere():
    _, measured = pair()
    still = np.tile(np.linspace(0, 1, 23, dtype=np.float32), (31, 1))
    assert not agreement(still, measured).any()
    found = clip_trust(still, measured, np.arange(31), np.ones((31, 31), bool))
    assert not found.correlation.clips.any()
    np.testing.assert_allclose(found.percentile, 0.5)


def test_halves_share_no_presentation(make_clips):
    test, _ = make_clips("test", repeats=5)
    test.present[7, [0, 3]] = False
    decoded_from, measured = presentation_halves(test)
    assert type(decoded_from) is TestClips
    assert not (decoded_from.present & measured.present).any()
    np.testing.assert_array_equal(decoded_from.present | measured.present, test.present)
    np.testing.assert_allclose(mean_responses(measured)[3], test.bold[3, 1::2].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(mean_responses(decoded_from)[7], test.bold[7, [1, 4]].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(mean_responses(measured)[7], test.bold[7, 2], atol=1e-6)
    test.present[9, 1:] = False
    with pytest.raises(DataError, match=r"test0/0018s was shown 1 time\(s\).*at least 2 are needed"):
        presentation_halves(test)


@pytest.mark.usefixtures("unchecked_types")
def test_refusals():
    predicted, measured = pair()
    with pytest.raises(DataError, match=r"have shape \(31, 22\), measured ones \(31, 23\); expected equal"):
        agreement(predicted[:, 1:], measured)
    measured[2, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        reencoding_accuracy(predicted, measured, np.arange(31))
