"""The haemodynamic response, what drives voxels, the noise, and the ideal observer's arithmetic."""

import numpy as np
import pytest
from scipy import sparse, stats
from tiny_films import truth_table, write_bars

from neuroclips.simulation import features as film
from neuroclips.simulation import scanner
from neuroclips.simulation.observer import log_likelihood
from neuroclips.simulation.response import (
    LATENCIES,
    Tuning,
    field_weights,
    gains,
    meaning_weights,
    motion_weights,
    response_function,
    response_matrix,
    tune,
)
from neuroclips.simulation.visuotopy import FIELD_OF_VIEW, GROUPS, receptive_fields

T = np.arange(0, 40, 0.01)


def test_response_function_equals_scipys_gamma_densities():
    expected = stats.gamma.pdf(T, 6) - stats.gamma.pdf(T, 16) / 6
    np.testing.assert_allclose(response_function(T), expected, atol=1e-12)
    assert T[np.argmax(response_function(T))] == pytest.approx(5.0, abs=0.05)
    assert (response_function(np.array([-3.0, -0.1, 0.0])) == 0).all()


@pytest.mark.parametrize("latency", LATENCIES)
def test_latency_moves_the_peak_and_keeps_the_area(latency):
    response = response_function(T, latency)
    assert T[np.argmax(response)] == pytest.approx(5 + latency, abs=0.05)
    assert response.sum() * 0.01 == pytest.approx(5 / 6, abs=2e-3)


def test_response_matrix_puts_the_peak_two_and_a_half_volumes_after_its_step():
    h = response_matrix(n_steps=80, n_volumes=25, lead=1, t_r=2.0, latency=0.0)
    assert h.shape == (25, 80)
    assert (h[0] == 0).all()  # the spare volume ends before the film starts
    step = 24  # 12.25 s into the film; volume v is sampled at 2 (v - 1) + 1 s
    assert 2 * (np.argmax(h[:, step]) - 1) + 1 - 12.25 == pytest.approx(5.0, abs=1.0)


def test_blank_screen_leaves_the_response_alone_and_its_tail_ends():
    h = response_matrix(n_steps=40, n_volumes=46, lead=2, t_r=2.0, latency=0.0)  # 20 s of film in 92 s of scan
    response = h @ np.ones(40)
    assert np.abs(response[:2]).max() == 0
    assert response[4:12].max() > 0.9
    assert np.abs(response[28:]).max() < 0.01  # 32 s after the film


def test_luminance_and_colour_are_zero_for_grey():
    frames = np.full((2, 3, 5, 7), 128, np.uint8)
    assert np.abs(film.opponent(frames)).max() < 0.003
    frames[:, 0] = 255
    light, red_green, blue_yellow = film.opponent(frames)[0, :, 0, 0]
    assert light > 0.1
    assert red_green > 0.4
    assert blue_yellow < -0.1


@pytest.mark.parametrize("direction", [0, 90])
def test_motion_energy_prefers_the_direction_of_a_drifting_grating(direction):
    y, x = np.mgrid[: film.PIXELS, : film.PIXELS] / film.PIXELS
    t = np.arange(48)[:, None, None] / 16
    along = x if direction == 0 else -y  # rows run downward
    drifting = (0.4 * np.cos(2 * np.pi * (4 * along - 2 * t))).astype(np.float32)
    assert drifting[1, 20, 20] != drifting[0, 20, 20]
    energy = film.motion_energy(drifting)
    assert energy.shape[0] == 6
    f = film.motion_filters()
    centre = (np.hypot(f["x"], f["y"]) < 1) & (f["spatial"] == 4) & (f["temporal"] == 2)
    response = dict(zip(f["direction"][centre], energy[2:4].mean(0)[centre]))
    assert max(response, key=response.get) == direction
    assert response[direction] > 3 * response[direction + 180]


def test_fields_weigh_the_right_part_of_the_film():
    x, y, sigma = np.array([6.0, -6.0]), np.array([4.0, 40.0]), np.array([1.0, 1.0])
    weight = field_weights(x, y, sigma)
    assert weight[0].sum() == pytest.approx(1.0, abs=0.01)
    assert weight[1].sum() < 1e-6  # off the film
    grid = weight[0].reshape(film.GRID, film.GRID)
    row, column = np.unravel_index(grid.argmax(), grid.shape)
    assert row < film.GRID / 2 < column  # up is the first rows, right the last columns
    cx, cy = film.grid_centres(film.GRID)
    assert weight[0] @ cx == pytest.approx(6.0, abs=0.1)
    assert weight[0] @ cy == pytest.approx(4.0, abs=0.1)


def test_directed_voxels_tell_opposite_directions_apart():
    ones = np.ones(1)
    f = film.motion_filters()
    at_fovea = (np.hypot(f["x"], f["y"]) < 1) & (f["temporal"] == 2) & (f["spatial"] == 4)
    w = motion_weights(0 * ones, 0 * ones, 3 * ones, 90 * ones, 0 * ones, ones)[0]
    assert w[at_fovea & (f["direction"] == 90)] > 2 * abs(w[at_fovea & (f["direction"] == 270)])


def test_meaning_is_gated_by_where_the_actor_is():
    axes = film.truth_axes()
    code = np.ones((2, len(axes.weight)))
    w = meaning_weights(np.array([7.0, -7.0]), np.zeros(2), np.full(2, 3.0), code, axes)
    right, left = film.place_net(np.array([6.8]), np.zeros(1))[0], film.place_net(np.array([-6.8]), np.zeros(1))[0]
    first = axes.code == 0
    assert w[0, first] @ right > 1.3 * (w[0, first] @ left)
    assert w[1, first] @ left > 1.3 * (w[1, first] @ right)


def test_meaning_follows_the_truth_table():
    truth = truth_table(20, seed=3)
    meaning = film.truth_meaning(truth, fps=20.0, n_steps=40, name="film")
    axes = film.truth_axes()
    assert meaning.shape == (40, len(axes.code))
    first = truth["main_thing"].iloc[0]
    main = film.thing_code(first)
    # Scene 0 has one actor: its columns, summed over places, are its code times the width it shows.
    shown = np.array([meaning[1, axes.code == d].sum() for d in range(len(main))])
    np.testing.assert_allclose(shown, main * truth["main_size"].iloc[15], atol=1e-5)
    ground = meaning[:, axes.place == -1]
    assert (ground.sum(1) == 2).all()  # one ground, one light


def test_a_thing_keeps_its_identity_and_shares_its_category():
    dog, horse = film.thing_code("dog"), film.thing_code("horse")
    np.testing.assert_array_equal(dog, film.thing_code("dog"))
    n = len(film.CATEGORIES)
    np.testing.assert_array_equal(dog[:n], horse[:n])
    assert abs(dog[-film.IDENTITY :] @ horse[-film.IDENTITY :]) < 0.7


@pytest.mark.parametrize("fps", [12, 25])
def test_films_without_a_truth_table_get_image_statistics(tmp_path, fps):
    path = write_bars(tmp_path / "a.mp4", seconds=14, seed=2, fps=fps)
    seen = film.film_features(path, None, t_r=2.0)
    assert seen.meaning.shape == (28, len(film.statistics_axes().code))
    assert seen.meaning.std(0).max() > 0.01
    assert "image statistics" in film.describe(None)


def test_gains_reach_the_wanted_reliability():
    rng = np.random.default_rng(0)
    v, n = 7, 500
    parts = rng.normal(size=(4, n, v)) * rng.uniform(0.1, 30, (4, 1, v))
    total = np.einsum("itv,jtv->vij", parts, parts)
    tuning = a_tuning(mixture=rng.uniform(0, 1, (v, 4)), reliability=rng.uniform(0.1, 0.7, v))
    gain = gains(total, n, tuning, signal=1.0, noise_variance=0.8)
    variance = (np.einsum("itv,vi->tv", parts, gain) ** 2).mean(0)
    np.testing.assert_allclose(variance / (variance + 0.8), tuning.reliability, rtol=1e-4)
    assert (gains(total, n, tuning, signal=0.0, noise_variance=0.8) == 0).all()


def a_tuning(mixture, reliability):
    v = len(reliability)
    index, empty = (
        np.arange(v),
        {name: np.zeros((v, 3), np.float32) for name in ("motion", "field", "meaning", "colour")},
    )
    return Tuning(
        voxel=index,
        latency=index,
        mixture=mixture.astype(np.float32),
        reliability=reliability.astype(np.float32),
        **empty,
    )


def test_tuning_covers_visual_cortex_and_follows_the_groups():
    fields = receptive_fields(seed=5)
    tuning = tune(fields, film.truth_axes(), seed=8)
    group = fields.group[tuning.voxel]
    assert (group > 0).all()
    motion, meaning = tuning.mixture[:, 0], tuning.mixture[:, 3]
    assert (meaning[group == GROUPS.index("early")] == 0).all()
    assert np.median(motion[group == GROUPS.index("motion")]) > np.median(motion[group == GROUPS.index("early")])
    assert np.median(meaning[group == GROUPS.index("semantic")]) > 0.8
    assert (tuning.reliability > 0).all()
    assert tuning.reliability.max() < 0.75


def test_noise_has_the_stated_variance_autocorrelation_and_spread():
    rng = np.random.default_rng(1)
    n = scanner.noise(rng, 61, 2.0)
    assert n.shape == (scanner.N_GRAYORDINATES, 61)
    clean = n - n.mean(1, keepdims=True)
    drift = scanner.drift_basis(61, 2.0)
    q, _ = np.linalg.qr(np.vstack([np.ones(61), drift]).T)
    clean = clean - (clean @ q) @ q.T
    assert clean.var(1).mean() == pytest.approx(1.0, abs=0.1)
    lag_one = np.mean(clean[:, 1:] * clean[:, :-1]) / np.mean(clean**2)
    assert lag_one == pytest.approx(scanner.AUTOCORRELATION, abs=0.07)
    covariance = scanner.spatial_covariance(np.arange(500, 900))
    np.testing.assert_allclose(covariance.diagonal(), 1.0, atol=1e-5)
    standard = clean[500:900] / clean[500:900].std(1, keepdims=True)
    empirical = standard @ standard.T / 61
    off = ~np.eye(400, dtype=bool)
    assert np.corrcoef(empirical[off], covariance.toarray()[off])[0, 1] > 0.3
    near = off & (covariance.toarray() > 0.25)
    assert empirical[near].mean() == pytest.approx(covariance.toarray()[near].mean(), abs=0.05)


def test_detrended_noise_variance_agrees_with_noise():
    from neuroclips.data.bold import crop, detrend

    n = scanner.noise(np.random.default_rng(2), 30, 2.0)
    measured = detrend(crop(n.T[:, ::7], 25, 2)).var(0).mean()
    assert scanner.detrended_noise_variance(30, 25, 2.0) == pytest.approx(measured, rel=0.03)


def test_log_likelihood_equals_scipys_multivariate_normal():
    rng = np.random.default_rng(4)
    b, c, v = 3, 5, 8
    root = rng.normal(size=(v, v))
    covariance = root @ root.T + np.eye(v)
    measured, expected = rng.normal(size=(b, v)), rng.normal(size=(c, v))
    k = np.array([1, 2, 4])
    got = log_likelihood(measured, expected, sparse.csr_matrix(covariance), k)
    want = np.array(
        [[stats.multivariate_normal(s, covariance / n).logpdf(y) for s in expected] for y, n in zip(measured, k)]
    )
    np.testing.assert_allclose(got - got[:, :1], want - want[:, :1], rtol=1e-4, atol=1e-4)


def test_grid_is_the_films_field_of_view():
    x, y = film.grid_centres(film.GRID)
    assert x.max() - x.min() == pytest.approx(FIELD_OF_VIEW * (1 - 1 / film.GRID))
    assert y[0] > 0 > y[-1]
