import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata

from neuroclips.cortex import importance
from neuroclips.cortex.importance import mean_weights, patterns, permutation_importance
from neuroclips.cortex.regions import volume_regions
from neuroclips.decoders import FirstLayer
from neuroclips.decoders.ridge import RidgeDecoders
from neuroclips.errors import DataError

PATHWAYS = ("perception", "semantics")


def linear(weight, bias, goal=None):
    return FirstLayer(
        rows=lambda columns: weight[columns],
        output=lambda x: x @ weight + bias,
        goal=lambda targets: goal,
    )


@pytest.fixture
def small():
    """2 lags of 3 voxels, 4 outputs, 5 clips."""
    rng = np.random.default_rng(1)
    x, weight, bias, goal = (rng.normal(size=s).astype(np.float32) for s in ((5, 6), (6, 4), 4, (5, 4)))
    return x, weight, bias, (x @ weight + goal).astype(np.float32)


def regions_of(n):
    return volume_regions({"first": np.arange(n) < 2}, n, least=1)


def auc(score, tuned, untuned):
    ranks = rankdata(np.r_[score[tuned], score[untuned]])
    n = np.count_nonzero(tuned)
    return (ranks[:n].sum() - n * (n + 1) / 2) / (n * np.count_nonzero(untuned))


def test_it_is_the_mean_over_every_permutation_of_the_clips(small):
    x, weight, bias, goal = small
    found = permutation_importance(linear(weight, bias), x, goal, regions_of(3))
    y = goal - goal.mean(axis=0)

    def score(inputs):
        said = inputs @ weight + bias
        whole = x @ weight + bias
        whole = whole - whole.mean(axis=0)
        return np.vdot(whole, y) / np.vdot(whole, whole) * np.vdot(said - said.mean(axis=0), y) / np.vdot(y, y)

    for voxel in range(3):
        losses = []
        for order in itertools.permutations(range(5)):
            scrambled = x.copy()
            scrambled[:, [voxel, voxel + 3]] = x[np.array(order)][:, [voxel, voxel + 3]]
            losses.append(score(x) - score(scrambled))
        np.testing.assert_allclose(found.values[voxel], np.mean(losses), atol=1e-5)
    np.testing.assert_allclose(found.score, score(x), rtol=1e-5)


def test_voxels_add_up_to_the_score_which_is_the_variance_explained_at_the_best_scale(planted):
    decoders = RidgeDecoders().fit(planted.train, planted.train_targets)
    inputs = decoders.inputs(planted.test)
    for pathway in PATHWAYS:
        layer = decoders.first_layer(pathway)
        goal = layer.goal(planted.test_targets)
        found = permutation_importance(layer, inputs, goal, regions_of(planted.test.n_voxels))
        said, y = (side - side.mean(axis=0) for side in (layer.output(inputs), goal))
        best = min(np.square(y - a * said).sum() for a in np.linspace(0.2, 3, 2000)) / np.square(y).sum()
        np.testing.assert_allclose(found.score, 1 - best, atol=1e-4)
        np.testing.assert_allclose(found.values.sum(), found.score, rtol=1e-3)
        everything, first = found.per_clip.mean(axis=0)
        np.testing.assert_allclose([everything, first], [found.values.sum(), found.values[:2].sum()], rtol=1e-3)


def test_the_layer_of_ridge_is_the_decoder_itself(planted):
    decoders = RidgeDecoders().fit(planted.train, planted.train_targets)
    inputs = decoders.inputs(planted.test)
    decoded = decoders.decode(inputs, planted.test.ids)
    for pathway, name in zip(PATHWAYS, ("latents", "tokens")):
        layer = decoders.first_layer(pathway)
        np.testing.assert_allclose(
            layer.output(inputs).reshape(getattr(decoded, name).shape), getattr(decoded, name), atol=1e-4
        )
        rows = layer.rows(np.arange(inputs.shape[1]))
        np.testing.assert_allclose(
            (inputs[1] - inputs[0]) @ rows, layer.output(inputs)[1] - layer.output(inputs)[0], atol=1e-3
        )


def test_patterns_and_importance_find_what_weights_miss(planted):
    decoders = RidgeDecoders().fit(planted.train, planted.train_targets)
    inputs = decoders.inputs(planted.test)
    number = np.cumsum(planted.test.present, axis=1)
    odd, even = (
        decoders.inputs(replace(planted.test, present=planted.test.present & (number % 2 == parity)))
        for parity in (1, 0)
    )
    noise = planted.kind == 3
    for pathway in PATHWAYS:
        layer, tuned = decoders.first_layer(pathway), planted.tuned(pathway)
        regions = regions_of(len(tuned))
        carried = patterns(layer, (odd, even), regions).values
        lost = permutation_importance(layer, inputs, layer.goal(planted.test_targets), regions).values
        weight = mean_weights(layer, len(tuned), inputs.shape[1])
        assert auc(carried, tuned, noise) > 0.95
        assert auc(lost, tuned, noise) > 0.85
        assert auc(weight, tuned, noise) < 0.2  # what cancels noise has the largest weights of all
        assert auc(carried, tuned, ~tuned) > 0.95
        # Nothing on average where there is nothing, in units of what there is.
        assert abs(carried[noise].mean()) < 0.04 * carried[tuned].mean()
        # One set of presentations for everything lets the shared noise in.
        assert patterns(layer, (inputs, inputs), regions).values[noise].mean() > 3 * abs(carried[noise].mean())


def test_patterns_are_covariances_across_halves():
    rng = np.random.default_rng(2)
    one, two = (rng.normal(size=(7, 6)).astype(np.float32) for _ in range(2))
    weight = rng.normal(size=(6, 4)).astype(np.float32)
    found = patterns(linear(weight, np.zeros(4, np.float32)), (one, two), regions_of(3))
    a, b = one - one.mean(axis=0), two - two.mean(axis=0)
    s, t = a @ weight, b @ weight
    expected = np.zeros(3)
    for voxel in range(3):
        for column in (voxel, voxel + 3):
            products = sum(
                np.cov(a[:, column], t[:, k], ddof=0)[0, 1] * np.cov(b[:, column], s[:, k], ddof=0)[0, 1]
                for k in range(4)
            )
            size = a[:, column].std() * b[:, column].std() * np.sqrt(s.var(axis=0).sum() * t.var(axis=0).sum())
            expected[voxel] += products / size / 2
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)
    np.testing.assert_allclose(found.per_clip.mean(axis=0), [expected.sum(), expected[:2].sum()], rtol=1e-4)


def test_a_voxel_that_is_decoded_as_it_is_has_a_pattern_of_one():
    x = np.random.default_rng(3).normal(size=(50, 2)).astype(np.float32)
    found = patterns(linear(np.array([[1.0], [0.0]], np.float32), np.zeros(1, np.float32)), (x, x), regions_of(2))
    r = np.corrcoef(x.T)[0, 1]
    np.testing.assert_allclose(found.values, [1, r**2], atol=1e-5)


def test_weights_are_scaled_means_over_lags_and_outputs():
    weight = np.array([[1, -1], [2, 4], [0, 0], [3, -1], [2, 0], [0, 2]], np.float32)  # 2 lags of 3 voxels
    found = mean_weights(linear(weight, np.zeros(2)), 3, 6)
    np.testing.assert_allclose(found, (np.array([1.5, 2.0, 0.5]) - 0.5) / 1.5)
    assert (mean_weights(linear(np.ones((6, 2), np.float32), np.zeros(2)), 3, 6) == 0).all()


def test_parts_change_nothing(planted, monkeypatch):
    decoders = RidgeDecoders().fit(planted.train, planted.train_targets)
    inputs, layer = decoders.inputs(planted.test), decoders.first_layer("semantics")
    regions, goal = regions_of(planted.test.n_voxels), layer.goal(planted.test_targets)

    def all_of_them():
        lost, carried = permutation_importance(layer, inputs, goal, regions), patterns(layer, (inputs, inputs), regions)
        weight = mean_weights(layer, regions.n_voxels, inputs.shape[1])
        return [lost.values, lost.per_clip, carried.values, carried.per_clip, weight]

    whole = all_of_them()
    monkeypatch.setattr(importance, "_VALUES_AT_ONCE", 7 * inputs.shape[0])
    for a, b in zip(whole, all_of_them()):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_a_decoder_worse_than_none_explains_nothing(small):
    x, weight, bias, _ = small
    found = permutation_importance(linear(weight, bias), x, -(x @ weight), regions_of(3))
    assert found.score == 0
    assert (found.values == 0).all()


def test_a_film_that_never_changes_is_refused(small):
    x, weight, bias, goal = small
    with pytest.raises(DataError, match="the same in all clips"):
        permutation_importance(linear(weight, bias), x, np.ones_like(goal), regions_of(3))
    with pytest.raises(DataError, match="inputs of 6 columns; expected a multiple of 4 voxels"):
        permutation_importance(linear(weight, bias), x, goal, regions_of(4))
