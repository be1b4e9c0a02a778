import math

import numpy as np
import pytest
from scipy.stats import rankdata

from neuroclips.errors import DataError
from neuroclips.evaluation.nway import n_way, n_way_chance

TRIALS = 20_000


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def sampled(predicted, truth, n, accept, rng):
    """Share of ``TRIALS`` trials won: draw distractors, and among those that tie as best, choose one at random."""
    true = np.argsort(-truth, kind="stable")[:accept]
    others = np.setdiff1d(np.arange(len(truth)), true)
    drawn = rng.permuted(np.tile(others, (TRIALS, 1)), axis=1)[:, : n - 1]
    candidates = np.concatenate([np.tile(true, (TRIALS, 1)), drawn], axis=1)
    scores = predicted[candidates]
    lot = np.where(scores == scores.max(axis=1, keepdims=True), rng.random(scores.shape), -1)
    return np.mean(lot.argmax(axis=1) < accept)


@pytest.mark.parametrize("levels", [None, 3, 7])  # of the scores; few levels tie often, in prediction and truth
@pytest.mark.parametrize(("n", "accept"), [(2, 1), (6, 1), (2, 3), (9, 3)])
def test_exact_is_the_mean_of_sampled_trials(rng, levels, n, accept):
    noise, truth = rng.random((2, 23, 17))
    predicted = truth + 2 * noise
    if levels:
        predicted, truth = np.floor(predicted * levels / 3), np.floor(truth * levels)
    exact = n_way(predicted, truth, n, accept=accept)
    drawn = np.array([sampled(p, t, n, accept, rng) for p, t in zip(predicted, truth)])
    error = np.sqrt(exact * (1 - exact) / TRIALS)
    assert (np.abs(drawn - exact) <= 4.5 * error + 1e-9).all()
    assert ((exact > 0.01) & (exact < 0.99)).sum() >= 3  # else nothing was compared


@pytest.mark.parametrize("accept", [1, 3])
def test_fifty_of_a_thousand_classes_in_whole_numbers(rng, accept):
    truth = rng.normal(size=(3, 6, 1000)).astype(np.float32)
    predicted = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    expected = np.empty((3, 6))
    for clip in range(3):
        for frame in range(6):
            true = set(np.argsort(truth[clip, frame])[-accept:].tolist())
            scores = predicted[clip, frame]
            best = max(scores[i] for i in true)
            below = sum(scores[i] < best for i in range(1000) if i not in true)
            expected[clip, frame] = math.comb(int(below), 49) / math.comb(1000 - accept, 49)
    np.testing.assert_allclose(n_way(predicted, truth, 50, accept=accept), expected, rtol=1e-9)


def test_two_way_is_the_share_of_classes_that_score_below(rng):
    truth, predicted = rng.random((4, 23)), np.floor(6 * rng.random((4, 23)))
    rank = rankdata(predicted, axis=1)[np.arange(4), truth.argmax(axis=1)]  # tied ranks are averaged
    np.testing.assert_allclose(n_way(predicted, truth, 2), (rank - 1) / 22)


@pytest.mark.parametrize(("n", "accept"), [(2, 1), (50, 1), (2, 3), (50, 3), (198, 3)])
def test_the_truth_wins_and_a_prediction_that_says_nothing_scores_chance(rng, n, accept):
    truth = rng.normal(size=(3, 200)).astype(np.float32)
    assert (n_way(truth, truth, n, accept=accept) == 1).all()
    assert (n_way(np.exp(truth), truth, n, accept=accept) == 1).all()  # only the order of scores counts
    assert not n_way(-truth, truth, 198, accept=accept).any()  # nothing but better distractors
    constant = np.zeros_like(truth)
    np.testing.assert_allclose(n_way(constant, truth, n, accept=accept), n_way_chance(n, accept), rtol=1e-9)


@pytest.mark.parametrize(("n", "accept"), [(2, 1), (50, 1), (2, 3), (50, 3)])
def test_unrelated_scores_are_at_chance(rng, n, accept):
    truth, predicted = rng.normal(size=(2, 3000, 100)).astype(np.float32)
    wins = n_way(predicted, truth, n, accept=accept)
    assert abs(wins.mean() - n_way_chance(n, accept)) < 4 * wins.std() / np.sqrt(len(wins))


def test_frames_and_parts(rng, monkeypatch):
    predicted, truth = rng.random((2, 3, 6, 31)).astype(np.float16)
    whole = n_way(predicted, truth, 5, accept=3)
    assert whole.shape == (3, 6)
    monkeypatch.setattr("neuroclips.evaluation.nway._ROWS_AT_ONCE", 4)
    np.testing.assert_array_equal(n_way(predicted, truth, 5, accept=3), whole)
    for clip in range(3):
        np.testing.assert_array_equal(n_way(predicted[clip], truth[clip], 5, accept=3), whole[clip])
    truth[2, 1, 4] = np.nan
    with pytest.raises(DataError, match="true class scores of row 13"):
        n_way(predicted, truth, 5)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("n", "accept", "message"),
    [(1, 1, "expected 2 to 31"), (32, 1, "expected 2 to 31"), (30, 3, "expected 2 to 29"), (2, 31, "31 true classes"),
     (2, 0, "0 true classes")],
)  # fmt: skip
def test_impossible_trials_are_refused(rng, n, accept, message):
    scores = rng.random((3, 31))
    with pytest.raises(DataError, match=message):
        n_way(scores, scores, n, accept=accept)
    with pytest.raises(DataError, match="expected equal"):
        n_way(scores, scores[:2], 2)
    with pytest.raises(DataError, match="at least 2"):
        n_way_chance(1)
