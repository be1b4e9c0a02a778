"""Retinotopy of the simulated cortex against the textbook and the closed form."""

import numpy as np
import pytest
from scipy import sparse, stats

from neuroclips.simulation import mesh, visuotopy
from neuroclips.simulation.visuotopy import FOVEAL_CONSTANT, N_CORTEX, eccentricity_at, receptive_fields


@pytest.fixture(scope="module")
def fields():
    return receptive_fields(seed=5)


def points_of(side):
    return mesh.hemisphere_mesh(side)[0]


@pytest.mark.parametrize(("side", "hemifield"), [("left", 1), ("right", -1)])
def test_fields_are_contralateral_and_upper_field_is_ventral(fields, side, hemifield):
    part = mesh.hemisphere_slice(side)
    height = points_of(side)[:, 2]
    for area in ("V1", "V2", "V3"):
        here = fields.area[part] == area
        x, y = fields.x[part][here], fields.y[part][here]
        assert np.isfinite(x).all()
        assert (hemifield * x >= -1e-3).all()
        forward = points_of(side)[here, 1]  # the calcarine sulcus rises on its way forward: take that off first
        level = height[here] - np.polyval(np.polyfit(forward, height[here], 2), forward)
        assert np.corrcoef(np.arctan2(y, np.abs(x)), level)[0, 1] < -0.5
        assert np.median(level[y > 1]) < np.median(level[y < -1]) - 5  # mm
    # Who lies beside V3 is known from anatomy: V3A and V6 above its lower field, VMV1 below its upper field.
    edges = mesh.edge_lengths(*mesh.hemisphere_mesh(side)).tocoo()
    for neighbour, sign in (("V3A", -1), ("V6", -1), ("VMV1", 1)):
        beside = (fields.area[part][edges.row] == "V3") & (fields.area[part][edges.col] == neighbour)
        assert beside.any()
        assert (sign * fields.y[part][edges.row[beside]] > 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_eccentricity_grows_away_from_the_occipital_pole(fields, side):
    part = mesh.hemisphere_slice(side)
    v1 = fields.area[part] == "V1"
    e = np.hypot(fields.x, fields.y)[part][v1]
    points = points_of(side)[v1]
    fovea = points[np.argmin(e)]
    assert fovea[1] < np.quantile(points[:, 1], 0.25)  # near the posterior end,
    assert abs(fovea[0]) > np.quantile(np.abs(points[:, 0]), 0.95)  # on its outer side, where V1 to V3 meet
    assert stats.spearmanr(e, points[:, 1])[0] > 0.85  # y points forward
    assert e.max() == pytest.approx(visuotopy.FAR_PERIPHERY, rel=0.02)


@pytest.mark.parametrize(("side", "which"), [("left", 0), ("right", 1)])
def test_magnification_in_v1_agrees_with_the_closed_form(fields, side, which):
    """Straight-line distances between neighbours, over their difference in eccentricity, against M = k / (E + a)."""
    part = mesh.hemisphere_slice(side)
    points, triangles = mesh.hemisphere_mesh(side)
    e, angle = np.hypot(fields.x, fields.y)[part], np.degrees(np.arctan2(fields.y, np.abs(fields.x)))[part]
    pairs = sparse.triu(mesh.edge_lengths(points, triangles)).tocoo()
    i, j = pairs.row, pairs.col
    near_meridian = (fields.area[part] == "V1") & (np.abs(angle) < 60)
    for low, high in ((1, 3), (3, 8), (8, 20)):
        mean_e = (e[i] + e[j]) / 2
        ok = near_meridian[i] & near_meridian[j] & (mean_e > low) & (mean_e < high)
        # The gradient of E is the largest slope over the edges around a vertex; along other edges it is less.
        slope = (np.abs(e[i] - e[j]) / pairs.data)[ok]
        expected = (mean_e[ok] + FOVEAL_CONSTANT) / fields.k[which]
        assert np.quantile(slope / expected, 0.9) == pytest.approx(1.0, abs=0.15)
    assert 12 < fields.k[which] < 22  # Horton & Hoyt: 17.3 mm


def test_eccentricity_at_inverts_the_complex_logarithm():
    e = np.array([0.0, 0.5, 2.0, 10.0, 45.0])
    w = 15.3 * (np.log(e + 0.75 + 0j) - np.log(0.75))  # Schwartz: w = k log(z + a), on the horizontal meridian
    np.testing.assert_allclose(eccentricity_at(w.real, k=15.3), e, atol=1e-9)


def test_field_size_grows_with_eccentricity_and_along_the_hierarchy(fields):
    e = np.hypot(fields.x, fields.y)
    sizes = []
    for area in ("V1", "V2", "V3", "V4"):
        here = fields.area == area
        assert stats.pearsonr(e[here], fields.sigma[here])[0] > 0.99
        sizes.append(np.median(fields.sigma[here & (e > 4) & (e < 7)]))
    assert np.all(np.diff(sizes) > 0.1)


def test_v1_and_v2_mirror_each_other_across_their_border(fields):
    """Neighbours across the V1/V2 border both look near the vertical meridian, at like eccentricity."""
    for side in mesh.SIDES:
        part = mesh.hemisphere_slice(side)
        edges = mesh.edge_lengths(*mesh.hemisphere_mesh(side)).tocoo()
        e, angle = np.hypot(fields.x, fields.y)[part], np.degrees(np.arctan2(fields.y, np.abs(fields.x)))[part]
        area = fields.area[part]
        across = (area[edges.row] == "V1") & (area[edges.col] == "V2") & (e[edges.row] > 1) & (e[edges.row] < 30)
        a, b = edges.row[across], edges.col[across]
        assert np.median(np.abs(angle[a])) > 80
        assert np.median(np.abs(angle[b])) > 80
        assert np.mean(np.sign(angle[a]) == np.sign(angle[b])) > 0.95
        assert np.median(np.abs(np.log(e[a] / e[b]))) < 0.2


def test_only_visual_areas_have_fields(fields):
    assert len(fields.x) == N_CORTEX
    assert np.isnan(fields.x[fields.group == 0]).all()
    assert np.isfinite(fields.x[fields.group > 0]).all()
    assert (fields.coverage()[fields.group == 0] == 0).all()
    far = (fields.area == "V1") & (np.hypot(fields.x, fields.y) > 40)
    assert fields.coverage()[far].max() < 0.05


def test_coarse_fields_follow_the_seed_and_early_ones_do_not(fields):
    other = receptive_fields(seed=6)
    early = fields.group == 1
    np.testing.assert_array_equal(fields.x[early], other.x[early])
    assert abs(np.corrcoef(fields.y[fields.group > 1], other.y[fields.group > 1])[0, 1]) < 0.2


def test_harmonic_is_linear_between_the_ends_of_a_strip():
    """A flat strip of 4 x 11 vertices: the solution of Laplace's equation is the position along it."""
    along, across = np.meshgrid(np.arange(11.0), np.arange(4.0), indexing="ij")
    points = np.stack([along.ravel(), across.ravel(), 0 * along.ravel()], 1)
    corner = (np.arange(10)[:, None] * 4 + np.arange(3)).ravel()
    triangles = np.concatenate([corner[:, None] + [0, 4, 5], corner[:, None] + [0, 5, 1]])
    fixed = dict.fromkeys(range(4), 0.0) | dict.fromkeys(range(40, 44), 1.0)
    solved = mesh.harmonic(mesh.laplacian(points, triangles), np.ones(44, bool), fixed)
    np.testing.assert_allclose(solved, points[:, 0] / 10, atol=2e-3)
