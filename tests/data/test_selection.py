"""Selection of voxels, against scipy, numpy and planted answers."""

import numpy as np
import pytest
from scipy import stats

from neuroclips.data.bold import zscore
from neuroclips.data.selection import FALLBACK, fisher_z, repeat_correlation, select_voxels, t_test
from neuroclips.errors import DataError
from neuroclips.recipe import SelectionRecipe

T, V, S = 29, 53, 18


def repeats(n, signal, seed=0, voxels=V):
    rng = np.random.default_rng(seed)
    shared = signal * rng.normal(size=(T, voxels))
    return [zscore((shared + rng.normal(size=(T, voxels))).astype(np.float32)) for _ in range(n)]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_repeat_correlation_is_the_mean_over_pairs(n):
    runs = repeats(n, signal=0.8)
    expected = [np.corrcoef([run[:, v] for run in runs])[np.triu_indices(n, 1)].mean() for v in range(V)]
    np.testing.assert_allclose(repeat_correlation(iter(runs)), expected, atol=1e-5)


def test_repeat_correlation_leaves_its_input_alone_and_needs_two():
    runs = repeats(2, signal=1)
    before = runs[0].copy()
    repeat_correlation(runs)
    np.testing.assert_array_equal(runs[0], before)
    with pytest.raises(DataError, match="1 repeats; expected at least 2"):
        repeat_correlation(runs[:1])


def test_a_voxel_constant_in_one_repeat_counts_as_zero():
    a, b = repeats(2, signal=3)
    b[:, 7] = 0
    assert repeat_correlation([a, b])[7] == 0


@pytest.mark.parametrize(("sides", "alternative"), [(1, "greater"), (2, "two-sided")])
def test_t_test_agrees_with_scipy(sides, alternative):
    z = np.random.default_rng(2).normal(0.1, 0.3, (S, V))
    t, p = t_test(z, sides)
    expected = stats.ttest_1samp(z, 0, alternative=alternative)
    np.testing.assert_allclose(t, expected.statistic)
    np.testing.assert_allclose(p, expected.pvalue)


def test_t_test_without_variance():
    z = np.array([[0.0, 1.0, -1.0], [0.0, 1.0, -1.0]])
    t, p = t_test(z, 1)
    assert t.tolist() == [0, np.inf, -np.inf]
    assert p.tolist() == [1, 0, 1]
    assert t_test(z, 2)[1].tolist() == [1, 0, 0]


def test_fisher_z_stays_finite():
    z = fisher_z(np.array([0.5, 1.0, -1.0, 1.0000001]))
    assert np.isfinite(z).all()
    np.testing.assert_allclose(z[0], 0.5 * np.log(3))


def test_planted_voxels_are_selected_and_no_others():
    rng = np.random.default_rng(4)
    r = np.tanh(rng.normal(0, 0.065, (S, 5000)))  # null z of 240 volumes: s.d. 1 / sqrt(237)
    planted = np.arange(200, 700)
    r[:, planted] = np.tanh(rng.normal(0.3, 0.065, (S, 500)))
    selection = select_voxels(r, SelectionRecipe())
    assert not selection.fallback
    assert np.flatnonzero(selection.mask).tolist() == planted.tolist()
    np.testing.assert_allclose(selection.reliability, r.mean(axis=0), atol=1e-6)


def test_null_data_select_no_more_than_the_nominal_rate():
    # Family-wise error 0.05: in 200 data sets without signal, about 10 may select any voxel. Then the fallback acts.
    rng = np.random.default_rng(5)
    false = 0
    for _ in range(200):
        selection = select_voxels(np.tanh(rng.normal(0, 0.065, (S, 1500))), SelectionRecipe())
        assert selection.fallback
        assert selection.mask.sum() == FALLBACK
        false += (selection.p < 0.05 / 1500).any()
    assert false <= stats.binom.ppf(0.999, 200, 0.05)


def test_one_side_ignores_negative_reliability():
    r = np.full((3, 400), -0.5) + np.random.default_rng(6).normal(0, 1e-5, (3, 400))
    assert select_voxels(r, SelectionRecipe(sides=2)).fallback is False
    assert select_voxels(r, SelectionRecipe(sides=1)).fallback is True


def test_top_takes_the_smallest_p_even_where_p_underflows():
    r = np.random.default_rng(7).normal(0, 0.01, (S, 300))
    r[:, 100:150] += np.linspace(0.99, 0.995, 50)  # p about 1e-45 and below
    selection = select_voxels(r, SelectionRecipe(method="top", top=50))
    assert np.flatnonzero(selection.mask).tolist() == list(range(100, 150))
    assert selection.mask[selection.p.argsort(kind="stable")[:50]].all()


def test_voxels_that_never_vary_are_never_selected():
    r = np.zeros((2, 900))
    r[:, 10:20] = [[0.2], [-0.3]]  # the only ones that vary, although badly
    selection = select_voxels(r, SelectionRecipe())
    assert selection.fallback
    assert np.flatnonzero(selection.mask).tolist() == list(range(10, 20))
    with pytest.raises(DataError, match=r"selection\.top is 11; only 10 of 900 voxels vary"):
        select_voxels(r, SelectionRecipe(method="top", top=11))
    with pytest.raises(DataError, match="none of 900 voxels varies"):
        select_voxels(np.zeros((2, 900)), SelectionRecipe())


def test_one_segment_is_too_few():
    with pytest.raises(DataError, match="1 training segment; expected at least 2"):
        select_voxels(np.full((1, 30), 0.5), SelectionRecipe())


def test_false_discovery_rate_is_held_and_keeps_more_than_bonferroni():
    # Benjamini and Hochberg: of what is selected, 5 % at most are false on average.
    rng, false, kept, strict = np.random.default_rng(8), [], [], []
    planted = np.arange(1000) < 200
    for _ in range(60):
        r = np.tanh(rng.normal(np.where(planted, 0.08, 0), 0.065, (S, 1000)))
        found = select_voxels(r, SelectionRecipe(method="fdr")).mask
        false.append((found & ~planted).sum() / max(found.sum(), 1))
        kept.append((found & planted).sum())
        strict.append((select_voxels(r, SelectionRecipe()).p < 0.05 / 1000).sum())
    assert np.mean(false) < 0.05 * 0.8 + 3 * np.std(false) / np.sqrt(60)  # its rate is p times the share of nulls
    assert np.mean(false) > 0.01
    assert np.mean(kept) > 1.3 * np.mean(strict)


def test_only_voxels_that_are_asked_count():
    rng = np.random.default_rng(9)
    r = np.tanh(rng.normal(0.09, 0.065, (S, 3000)))
    asked = np.zeros(3000, bool)
    asked[500:700] = True
    some, all_ = (select_voxels(r, SelectionRecipe(), a) for a in (asked, None))
    assert not (some.mask & ~asked).any()
    np.testing.assert_array_equal(some.p, all_.p)  # evidence is kept for all, whoever is asked
    # The correction is for 200 voxels, not for 3,000.
    np.testing.assert_array_equal(some.mask, asked & (some.p < 0.05 / 200))
    assert some.mask.sum() > (all_.mask & asked).sum()
    assert select_voxels(r, SelectionRecipe(method="top", top=7), asked).mask[500:700].sum() == 7
    assert select_voxels(r, SelectionRecipe(method="all"), asked).mask.tolist() == asked.tolist()
    with pytest.raises(DataError, match=r"selection\.top is 201; only 200 of 200 voxels vary"):
        select_voxels(r, SelectionRecipe(method="top", top=201), asked)
