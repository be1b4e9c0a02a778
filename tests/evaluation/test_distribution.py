import numpy as np
import pytest
from scipy.linalg import sqrtm

from neuroclips.errors import DataError
from neuroclips.evaluation.distribution import frechet_distance


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def with_moments(mean, sd, n, rng):
    """(n, D) features whose sample mean and sample covariance are exactly ``mean`` and diag(sd^2)."""
    noise = rng.normal(size=(n, len(sd)))
    orthonormal = np.linalg.qr(noise - noise.mean(axis=0))[0]
    return orthonormal * np.sqrt(n - 1) * sd + mean


def test_textbook_formula_with_matrix_square_root(rng):
    a = rng.normal(size=(40, 7)) @ rng.normal(size=(7, 7)) + rng.normal(size=7)
    b = rng.normal(size=(23, 7)) @ rng.normal(size=(7, 7))
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(s_a @ s_b))
    expected = np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.trace(s_a + s_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n_a", "n_b", "width"), [(30, 11, 5), (9, 6, 4), (200, 50, 20)])
def test_closed_form_of_diagonal_gaussians(rng, n_a, n_b, width):
    mean_a, mean_b = rng.normal(size=(2, width))
    sd_a, sd_b = rng.uniform(0.1, 3, size=(2, width))
    a, b = with_moments(mean_a, sd_a, n_a, rng), with_moments(mean_b, sd_b, n_b, rng)
    expected = np.square(mean_a - mean_b).sum() + np.square(sd_a - sd_b).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_fewer_clips_than_features(rng):
    a, b = rng.normal(size=(6, 31)), rng.normal(size=(9, 31)) + 0.5
    values, vectors = np.linalg.eigh(np.cov(a.T))
    half = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(half @ np.cov(b.T) @ half), 0)).sum()
    means = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    expected = means + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [6, 60])
def test_equal_sets_a_shift_and_a_prediction_that_is_always_the_same(rng, n):
    truth = rng.normal(size=(n, 17)).astype(np.float32) + 3
    assert frechet_distance(truth, truth) < 1e-9
    assert frechet_distance(rng.permutation(truth), truth) < 1e-9  # it does not know which clip is which
    assert frechet_distance(truth.astype(np.float64) + 0.5, truth) == pytest.approx(17 / 4)
    assert frechet_distance(3 * truth, 3 * truth + 1) == pytest.approx(17, rel=1e-5)
    frozen = np.repeat(truth.mean(axis=0, dtype=np.float64)[None], 5, axis=0)
    assert frechet_distance(frozen, truth) == pytest.approx(np.trace(np.cov(truth.T)), rel=1e-6)


def test_two_draws_of_one_distribution_come_nearer_as_they_grow(rng):
    distances = [frechet_distance(*rng.normal(size=(2, n, 16))) for n in (8, 64, 512)]
    assert distances[0] > 3 * distances[1] > 9 * distances[2] > 0


@pytest.mark.usefixtures("unchecked_types")
def test_refusals(rng):
    features = rng.normal(size=(5, 7))
    with pytest.raises(DataError, match=r"expected \(A, D\) and \(N, D\)"):
        frechet_distance(features, features[:, :6])
    with pytest.raises(DataError, match="first set holds 1 clip"):
        frechet_distance(features[:1], features)
    with pytest.raises(DataError, match="second set of features holds"):
        frechet_distance(features, np.where(features > 1, np.nan, features))
