import numpy as np
import pytest
from scipy import stats

from neuroclips.errors import DataError
from neuroclips.evaluation.identification import (
    candidate_pool,
    correlation_scores,
    identify,
    identify_every_pairing,
)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_correlation_agrees_with_numpy_and_reads_features_in_parts(rng, monkeypatch):
    monkeypatch.setattr("neuroclips.evaluation.identification._FEATURES_AT_ONCE", 7)
    predicted, candidates = rng.normal(size=(3, 5, 8)) + 2, rng.normal(size=(4, 5, 8))
    reference = rng.normal(size=(5, 8))
    expected = np.corrcoef((predicted - reference).reshape(3, -1), (candidates - reference).reshape(4, -1))[:3, 3:]
    np.testing.assert_allclose(correlation_scores(predicted, candidates, reference), expected, atol=1e-6)


def test_prediction_of_the_reference_ties_with_every_candidate(rng):
    reference = rng.normal(size=(5, 8)).astype(np.float32)
    predicted = np.stack([reference * np.float32(1 + 1e-7)] * 3)  # the mean again, up to rounding
    assert not correlation_scores(predicted, rng.normal(size=(4, 5, 8)), reference).any()


def test_shapes_that_differ_are_refused(rng):
    with pytest.raises(DataError, match="differ in shape"):
        correlation_scores(rng.normal(size=(3, 5)), rng.normal(size=(3, 6)), rng.normal(size=6))


def test_pool_leaves_out_neighbours_of_the_same_segment_only():
    segment = np.array([0, 0, 0, 0, 1])
    onset = np.array([0.0, 10.0, 12.0, 30.0, 0.0])
    pool = candidate_pool(segment, onset, 10.0)
    assert np.flatnonzero(pool[0]).tolist() == [0, 2, 3, 4]  # 10 s is within, 12 s is not
    assert np.flatnonzero(pool[1]).tolist() == [1, 3, 4]
    assert pool[4].all()
    assert (pool == pool.T).all()


def test_hand_computed_ranks():
    scores = np.array([
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],  # first of 7
        [0.9, 0.1, 0.8, 0.7, 0.6, 0.5, 0.4],  # last of 7
        [0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1],  # shares the first three places
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],  # fourth; the best one is left out below: third of 6
        [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5],  # four above, shares places 5 to 7
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # all tie
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],  # first
    ])  # fmt: skip
    pool = np.ones((7, 7), bool)
    pool[3, 0] = False
    found = identify(scores, pool)
    np.testing.assert_allclose(found.values["rank"], [1, 7, 2, 3, 6, 4, 1])
    np.testing.assert_allclose(found.values["top-1"], [1, 0, 1 / 3, 0, 0, 1 / 7, 1])
    np.testing.assert_allclose(found.values["top-5"], [1, 0, 1, 1, 1 / 3, 5 / 7, 1])
    np.testing.assert_allclose(found.values["pairwise"], [1, 0, 5 / 6, 3 / 5, 1 / 6, 0.5, 1])
    assert found.pool_size.tolist() == [7, 7, 7, 6, 7, 7, 7]
    np.testing.assert_allclose(found.chance["top-1"], 1 / found.pool_size)
    np.testing.assert_allclose(found.chance["rank"], [4, 4, 4, 3.5, 4, 4, 4])


def test_excluded_neighbours_cannot_win():
    segment, onset = np.zeros(12, int), np.arange(12) * 2.0
    pool = candidate_pool(segment, onset, 6.0)
    scores = np.where(pool, 0.0, 1.0) + 0.5 * np.eye(12)  # every neighbour scores above the target
    assert (identify(scores, pool).values["top-1"] == 1).all()
    assert (identify(scores, np.ones_like(pool)).values["top-1"] == 0).all()


def test_constant_predictions_score_exactly_chance():
    pool = candidate_pool(np.repeat([0, 1], [9, 4]), np.r_[np.arange(9) * 2.0, np.arange(4) * 2.0], 4.0)
    found = identify(np.full((13, 13), 0.3), pool)
    assert len(set(found.pool_size)) > 1
    for metric, values in found.values.items():
        np.testing.assert_allclose(values, found.chance[metric], err_msg=metric)


def test_perfect_predictions_and_random_predictions(rng):
    features = rng.normal(size=(150, 11))
    pool = candidate_pool(np.repeat([0, 1, 2], 50), np.tile(np.arange(50) * 2.0, 3), 10.0)
    perfect = identify(correlation_scores(features, features, np.zeros(11)), pool)
    assert perfect.values["top-1"].mean() == perfect.values["pairwise"].mean() == 1
    hits, expected = 0.0, 0.0
    for _ in range(40):
        found = identify(rng.normal(size=(150, 150)), pool)
        hits, expected = hits + found.values["top-5"].sum(), expected + found.chance["top-5"].sum()
    low, high = stats.binom.interval(0.999, 40 * 150, expected / (40 * 150))
    assert low <= hits <= high


def test_table_of_every_pairing_agrees_with_identifying_shuffled_rows(rng):
    scores = rng.integers(0, 6, size=(14, 14)).astype(float)  # many ties
    pool = candidate_pool(np.repeat([0, 1], 7), np.tile(np.arange(7) * 2.0, 2), 3.0)
    tables = identify_every_pairing(scores, pool)
    for _ in range(5):
        source = rng.permutation(14)
        for metric, values in identify(scores[source], pool).values.items():
            np.testing.assert_allclose(tables[metric][source, np.arange(14)], values, err_msg=metric)


def test_bad_scores_and_empty_pools_are_refused():
    with pytest.raises(DataError, match="not finite"):
        identify(np.full((3, 3), np.nan), np.ones((3, 3), bool))
    with pytest.raises(DataError, match="no distractor"):
        identify(np.eye(3), np.eye(3, dtype=bool))
    with pytest.raises(DataError, match="missing from its own"):
        identify(np.eye(3), ~np.eye(3, dtype=bool))
