"""Figures, pixel by pixel: planted hemispheres and areas, colours for every eye, readable text, stable files."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from neuroclips.cortex.plot import (
    AREAS,
    SEQUENTIAL,
    THUMBNAIL,
    WIDTH,
    colours,
    flat_thumbnail,
    plot_cortex,
    plot_volume,
    save_picture,
)
from neuroclips.cortex.surface import area_borders, panel, vertex_areas
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.data.cc2017 import N_CORTEX, N_LEFT
from neuroclips.data.rois import cortex_areas, cortex_rois
from neuroclips.data.volumes import VolumeMask
from neuroclips.errors import DataError

# Machado, Oliveira & Fernandes 2009, severity 1, of linear red, green and blue.
EYES = {
    "all cones": np.eye(3),
    "no long cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.052]],
    "no middle cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no short cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}  # fmt: skip


def make(values, limits=(0.0, 1.0), signed=False, title="Perception: importance", unit="loss of correlation"):
    return VoxelMap("map", title, unit, np.asarray(values, np.float32), "What. How.", limits, signed)


def planted(mask, value=1.0):
    return make(np.where(mask, value, np.nan))


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def spread(picture):
    """Between the strongest and the weakest of red, green and blue: 0 where it is grey."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    return np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)


def coloured(picture):
    return spread(picture) > 25


def brains(picture):
    """Without title and colour bar."""
    return picture[160:-180]


# ---------------------------------------------------------------- which side, which area


@pytest.fixture(scope="module")
def twins():
    return [plot_cortex(planted(cortex_rois(["V1"], "left"))) for _ in range(2)]


@pytest.fixture(scope="module")
def v1(twins):
    return pixels(twins[0])


def test_a_planted_hemisphere_is_on_its_side_of_every_view():
    mask = np.arange(N_CORTEX) < N_LEFT
    found = coloured(brains(pixels(plot_cortex(planted(mask), borders=False, labels=()))))
    assert found[:, : WIDTH // 2].sum() == found.sum() > 1e6
    for side, middle in ((mask, np.s_[:450]), (~mask, np.s_[450:])):
        small = coloured(flat_thumbnail(planted(side)).transpose(1, 2, 0))
        assert small[:, middle].sum() == small.sum() > 5e4


def test_left_v1_is_at_the_back_of_the_left_hemisphere(v1):
    """By hand: outside the lateral view; left end of the medial one; inner side of the pair from behind; top below."""
    found = coloured(brains(v1))
    outer, middle = found[:, :750], found[:, 750:1080]
    assert not found[:, 1080:].any()
    lateral, medial = outer[:500], outer[700:1290]
    assert lateral.sum() < 0.02 * medial.sum()
    assert np.nonzero(medial)[1].max() < 250
    posterior, ventral = np.nonzero(middle[:500]), np.nonzero(middle[570:1290])
    assert np.median(posterior[1]) > 100  # towards the midline
    assert np.quantile(ventral[0], 0.9) < 250  # below the occipital pole, which is at the top


def test_pixels_of_an_area_have_the_colour_of_its_value():
    picture = flat_thumbnail(planted(cortex_rois(["V1", "FFC"]), 0.37))
    bare = flat_thumbnail(planted(np.zeros(N_CORTEX, bool)))
    shown, names = panel("left", "flat", THUMBNAIL), cortex_areas()[1]
    corners = np.isin(vertex_areas("left")[shown.corners], [names.index("V1"), names.index("FFC")])
    inner = corners.all(axis=1) & (area_borders("left", "flat", THUMBNAIL) == 0) & (shown.opacity == 1)
    rows, columns = np.nonzero(shown.inside)  # the left panel starts in the thumbnail's corner
    colour = np.rint(255 * colours(False)[round(0.37 * 255)])
    assert inner.sum() > 1000
    np.testing.assert_allclose(picture[:, rows[inner], columns[inner]], np.tile(colour, (inner.sum(), 1)).T, atol=1)
    outer = ~corners.any(axis=1)
    np.testing.assert_array_equal(picture[:, rows[outer], columns[outer]], bare[:, rows[outer], columns[outer]])
    assert np.ptp(bare.astype(int), axis=0).max() == 0  # grey


def test_values_beyond_the_limits_get_the_colours_of_the_ends():
    mask = cortex_rois(["V1"])
    within, beyond = (make(np.where(mask, value, 0.2), (0.2, 0.6)) for value in (0.6, 7.0))
    # Interpolation runs over the end sooner beside the area; elsewhere they are the same.
    assert (flat_thumbnail(within) == flat_thumbnail(beyond)).all(axis=0).mean() > 0.985
    both = make(np.where(mask, 9.0, -9.0), (0.2, 0.6))
    points = [points_of_colour_bar(map) for map in (within, beyond, both)]
    assert points == [0, 1, 2]


def points_of_colour_bar(map):
    return sum(type(patch).__name__ == "PathPatch" for patch in plot_cortex(map).axes[1].patches)


def test_borders_are_drawn_or_not():
    nothing = make(np.full(N_CORTEX, np.nan))
    without, with_all = (brains(pixels(plot_cortex(nothing, borders=which, labels=()))) for which in ((), True))
    with_two = brains(pixels(plot_cortex(nothing, borders=("V1", "MT"), labels=())))
    assert spread(with_all).max() == 0
    dark, dark_two = ((picture[..., 0] + 20.0 < without[..., 0]).mean() for picture in (with_all, with_two))
    assert 0.01 < dark < 0.08
    assert 0.01 < dark_two / dark < 0.15


# ---------------------------------------------------------------- colours


def seen(colour, eye):
    """CIELAB of colours in [0, 1] as an eye sees them."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.transpose(EYES[eye])).clip(0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)[None])[0]


GREYS = np.linspace(0.5, 0.9, 60)[:, None] * np.ones(3)  # of bare cortex, from the shaded edge to the medial wall


def nearest_grey(colour, eye):
    return deltaE_ciede2000(seen(colour, eye)[:, None], seen(GREYS, eye)[None]).min()


@pytest.mark.parametrize("eye", EYES)
def test_every_eye_can_read_the_colours(eye):
    sequential = seen(colours(False), eye)
    assert (np.diff(sequential[::8, 0]) > 0.5).all()  # ever lighter, so that even a grey copy can be read
    assert nearest_grey(colours(False), eye) > 7  # 2.3 is just noticeable
    diverging = seen(colours(True), eye)
    assert deltaE_ciede2000(diverging[:64], diverging[:-65:-1]).min() > 10  # low and high never look the same
    assert np.argmax(diverging[:, 0]) == pytest.approx(128, abs=12)


@pytest.mark.parametrize("other", ["viridis", "plasma", "magma", "cividis"])
def test_other_uniform_colour_maps_come_near_the_grey_of_bare_cortex(other):
    """Why it is inferno: the reason given beside SEQUENTIAL."""
    assert SEQUENTIAL == "inferno"
    table = colormaps[other](np.linspace(0, 1, 256))[:, :3]
    assert min(nearest_grey(table, eye) for eye in EYES) < 4.5


# ---------------------------------------------------------------- text


def texts(figure):
    """The boxes of all texts in the figure, in pixels, by what they say."""
    figure.draw_without_rendering()
    found = [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]
    return {text.get_text(): text.get_window_extent() for text in found}


def test_texts_say_what_is_shown_and_do_not_touch():
    title = "A long title of a map: semantics, permutation importance in subject 1 of the CC2017 data set, $10^3"
    figure = plot_cortex(make(np.linspace(-1, 1, N_CORTEX), (-1.0, 1.0), True, title, "difference of correlation, $r"))
    boxes = texts(figure)
    assert "no value" not in boxes
    expected = {title, "left hemisphere", "right hemisphere", "posterior", "difference of correlation, $r", "lateral"}
    assert expected | set(AREAS) <= set(boxes)
    for text, box in boxes.items():
        assert 10 < box.x0 < box.x1 < figure.bbox.width - 10, text
        assert 5 < box.y0 < box.y1 < figure.bbox.height - 5, text
    labels = [text.get_window_extent() for text in figure.findobj(plt.Text) if text.get_text() in AREAS]
    assert len(labels) == 2 * len(AREAS)
    for number, box in enumerate(labels):
        assert not any(box.overlaps(other) for other in labels[:number])


def test_no_value_is_explained_where_there_is_none(twins):
    assert "no value" in texts(twins[0])


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_map_gives_the_same_file(tmp_path, twins, v1, kind):
    first, second = tmp_path / f"a.{kind}", tmp_path / "deep" / f"b.{kind.upper()}"
    save_picture(twins[0], first)
    save_picture(twins[1], second)
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [first.name, second.name]
    assert content[:4] == {"png": b"\x89PNG", "svg": b"<?xm", "pdf": b"%PDF"}[kind]
    assert len(content) < 4e6
    assert b"Date" not in content
    if kind == "png":
        with Image.open(first) as image:
            np.testing.assert_array_equal(np.asarray(image)[..., :3], v1)
    if kind == "svg":
        assert content.count(b"<image") <= 2  # the brains, and the colour bar
        assert content.count(b"<use") > 100  # text is drawn, not pixels


def test_other_kinds_of_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.jpg: expected the name of a picture, \.png, \.svg or \.pdf"):
        save_picture(plot_cortex(planted(cortex_rois(["V1"]))), tmp_path / "a.jpg")
    assert not any(tmp_path.iterdir())


def test_threads_do_not_meet(tmp_path):
    map = planted(cortex_rois(["MT"]))
    before = plt.get_fignums(), dict(plt.rcParams)

    def work(number):
        path = tmp_path / f"{number}.svg"
        save_picture(plot_cortex(map), path)
        return path.read_bytes()

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(work, range(2)))) == 1
    assert (plt.get_fignums(), dict(plt.rcParams)) == before


def test_the_thumbnail():
    picture = flat_thumbnail(planted(cortex_rois(["visual"]), 0.5))
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 3
    assert picture.shape[2] == 900
    assert 300 < picture.shape[1] < 400
    assert (picture[:, :, [0, -1]] == 255).all()
    assert 0.35 < (picture < 250).all(axis=0).mean() < 0.75


@pytest.mark.parametrize(
    ("values", "limits", "message"),
    [
        (np.zeros(321), (0.0, 1.0), "map 'map' has 321 values; expected 59412"),
        (np.zeros(N_CORTEX), (1.0, 1.0), r"limits 1.0 to 1.0; expected a low number and a higher one"),
        (np.zeros(N_CORTEX), (0.0, float("nan")), "limits 0.0 to nan"),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(values, limits, message):
    for draw in (plot_cortex, flat_thumbnail):
        with pytest.raises(DataError, match=message):
            draw(make(values, limits))


# ---------------------------------------------------------------- volumes


@pytest.fixture(scope="module", params=["straight", "flipped", "turned"])
def mask(request):
    """A box with a bump, 23 x 27 x 19 voxels of 3, 3.5 and 4 mm; its middle is at x = 0."""
    inside = np.zeros((29, 33, 24), bool)
    inside[3:26, 2:29, 3:22] = True
    inside[14, 29:31, 10] = True
    affine = np.diag([3, 3.5, 4, 1.0])
    if request.param == "flipped":
        affine[0, 0] = -3
    if request.param == "turned":
        affine[:2, :2] = [[2.95, -0.6], [0.5, 3.4]]
    affine[:3, 3] = -affine[:3, :3] @ [14, 15.5, 12]
    return VolumeMask(Path("mask.nii.gz"), inside, affine)


def places(mask):
    return np.argwhere(mask.inside) @ mask.affine[:3, :3].T + mask.affine[:3, 3]


def slices(figure):
    """The boxes in pixels, (left, right, top, bottom), of the slices along z, y and x."""
    figure.draw_without_rendering()
    boxes = [axes.get_window_extent() for axes in figure.axes if len(axes.images) == 2]
    height = figure.bbox.height
    rounded = [tuple(map(round, (box.x0, box.x1, height - box.y1, height - box.y0))) for box in boxes]
    return [rounded[start : start + 7] for start in range(0, len(rounded), 7)]


def test_a_planted_side_of_a_volume_is_on_its_side(mask):
    x = places(mask)[:, 0]
    figure = plot_volume(make(np.where(x < -2, 0.8, np.nan)), mask)
    found, (axial, coronal, sagittal) = coloured(pixels(figure)), slices(figure)
    assert len(sagittal) == 7
    for left, right, top, bottom in (*axial, *coronal):
        part = found[top:bottom, left:right]
        assert part.sum() > 300
        assert np.nonzero(part)[1].max() < 0.6 * (right - left)


def test_colours_and_gaps_of_a_volume(mask):
    """A value of 0 has a colour; no value is grey, wherever it lies."""
    y = places(mask)[:, 1]
    picture = pixels(plot_volume(make(np.where(y < 0, 0.0, np.nan)), mask)).astype(np.int16)
    slices_only = picture[130:1330]
    lowest, grey = np.rint(255 * colours(False)[0]).astype(int), 204
    near = np.abs(slices_only - lowest).max(axis=-1) <= 1
    bare = np.abs(slices_only - grey).max(axis=-1) <= 1
    assert near.sum() > 20_000
    assert bare.sum() > 20_000
    other = ~near & ~bare & (slices_only < 250).any(axis=-1)
    assert other.mean() < 0.03  # text, and edges
    assert plt.get_fignums() == []


def test_volumes_that_do_not_fit_are_refused(mask):
    with pytest.raises(DataError, match=f"map 'map' has {N_CORTEX} values; expected {mask.n_voxels}"):
        plot_volume(make(np.zeros(N_CORTEX)), mask)
    boxes = texts(plot_volume(make(np.full(mask.n_voxels, np.nan)), mask))
    assert {"no value", "loss of correlation", "Perception: importance", "L", "R"} <= set(boxes)
