"""Runs in volume space, against nibabel's and nilearn's own readers, and files damaged on purpose."""

import gzip
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.masking import apply_mask

from neuroclips.data import volumes
from neuroclips.data.volumes import (
    VolumeMask,
    check_grid,
    count_nifti_volumes,
    nifti_t_r,
    read_mask,
    read_motion,
    read_nifti_run,
    read_volume,
)
from neuroclips.errors import DataError

SHAPE, T = (7, 9, 6), 11
AFFINE = np.array([[-3, 0.1, 0, 60], [0, 2.5, 0.2, -80], [0.3, 0, 2, -40], [0, 0, 0, 1.0]])
RUNS = ["run.nii", "run.nii.gz"]


def write(path: Path, values, affine=AFFINE, t_r=2.0, unit="sec"):
    """Write values (x, y, z[, volumes])."""
    image = nib.Nifti1Image(values, affine)
    if values.ndim == 4:
        image.header.set_xyzt_units("mm", unit)
        image.header["pixdim"][4] = t_r
    image.to_filename(path)
    return path


@pytest.fixture
def scan():
    return np.random.default_rng(0).normal(900, 40, (*SHAPE, T)).astype(np.float32)


@pytest.fixture
def inside():
    inside = np.random.default_rng(1).random(SHAPE) < 0.6
    inside[0, 0, 0] = False
    return inside


@pytest.fixture
def mask(tmp_path, inside):
    return read_mask(write(tmp_path / "mask.nii.gz", inside.astype(np.uint8)))


def damaged(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------- masks


def test_a_mask_is_what_is_not_zero(tmp_path, inside):
    weights = np.where(inside, -0.25, 0).astype(np.float32)
    for values in (weights, weights[..., None]):  # 3-D, and 4-D with one volume
        mask = read_mask(write(tmp_path / "mask.nii", values))
        np.testing.assert_array_equal(mask.inside, inside)
        assert mask.n_voxels == inside.sum()
        np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
        assert mask.path == tmp_path / "mask.nii"


def test_masks_that_are_no_masks_are_refused(tmp_path, scan, inside):
    few = np.zeros(SHAPE, np.uint8)
    few.flat[50:149] = 1
    with pytest.raises(DataError, match=r"few\.nii: 99 of 378 voxels are inside .*; expected at least 100"):
        read_mask(write(tmp_path / "few.nii", few))
    few.flat[149] = 1
    assert read_mask(write(tmp_path / "few.nii", few)).n_voxels == 100
    with pytest.raises(DataError, match=r"run\.nii: dimensions \(7, 9, 6, 11\); expected one volume"):
        read_mask(write(tmp_path / "run.nii", scan))
    with pytest.raises(DataError, match=r"nan\.nii: 2 values are not finite"):
        read_mask(write(tmp_path / "nan.nii", np.where(np.arange(378).reshape(SHAPE) < 2, np.nan, 1.0)))
    with pytest.raises(DataError, match=r"c\.nii: values of type complex64; expected real numbers"):
        read_mask(write(tmp_path / "c.nii", inside.astype(np.complex64)))


def test_files_that_are_no_nifti_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"mask\.mgz: expected a NIfTI file, \.nii or \.nii\.gz"):
        read_mask(tmp_path / "mask.mgz")
    with pytest.raises(DataError, match=r"mask\.nii: no such file"):
        read_mask(tmp_path / "mask.nii")
    for name in RUNS:
        with pytest.raises(DataError, match=r"cannot be read as NIfTI"):
            count_nifti_volumes(damaged(tmp_path / name, b"this is a download error page" * 40))


def test_cifti_is_refused_where_volumes_are_expected(tmp_path):
    axis = nib.cifti2.BrainModelAxis.from_surface(np.arange(13), 17, "CortexLeft")
    scalars = nib.cifti2.ScalarAxis(["a"])
    nib.Cifti2Image(np.ones((1, 13), np.float32), (scalars, axis)).to_filename(tmp_path / "a.dscalar.nii")
    with pytest.raises(DataError, match=r"a\.dscalar\.nii: Cifti2Image; expected a NIfTI volume"):
        read_volume(tmp_path / "a.dscalar.nii")


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("volumes_a_block", [1, 4, 100])
def test_reads_what_nilearn_reads(tmp_path, scan, mask, name, volumes_a_block, monkeypatch):
    monkeypatch.setattr(volumes, "_BLOCK_BYTES", volumes_a_block * 8 * 378)
    path = write(tmp_path / name, scan)
    run = read_nifti_run(path, mask)
    assert run.values.dtype == np.float32
    assert run.values.shape == (T, mask.n_voxels)
    assert run.values.flags.f_contiguous
    assert run.t_r == 2.0
    np.testing.assert_array_equal(run.values, apply_mask(str(path), str(mask.path), dtype=np.float32))
    places = np.argwhere(mask.inside)  # C order of (x, y, z)
    np.testing.assert_array_equal(run.values[:, 17], scan[tuple(places[17])])
    assert count_nifti_volumes(path) == T


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<i2", ">i2"])
def test_scaled_integers_of_either_byte_order(tmp_path, scan, mask, kind, order):
    header = kind.header_class(endianness=order[0])
    header.set_data_dtype(order)
    image = kind(scan, AFFINE, header)
    image.to_filename(tmp_path / "run.nii.gz")
    expected = np.asarray(nib.load(tmp_path / "run.nii.gz").dataobj)[mask.inside].T
    run = read_nifti_run(tmp_path / "run.nii.gz", mask)
    np.testing.assert_array_equal(run.values, expected.astype(np.float32))
    np.testing.assert_allclose(run.values, scan[mask.inside].T, atol=0.01)  # 16 bits over a range of about 300


def test_a_compressed_file_is_decompressed_once(tmp_path, scan, mask, monkeypatch):
    monkeypatch.setattr(volumes, "_BLOCK_BYTES", 1)  # a block a volume
    path = write(tmp_path / "run.nii.gz", np.repeat(scan, 20, axis=0), np.eye(4))
    mask = VolumeMask(mask.path, np.repeat(mask.inside, 20, axis=0), np.eye(4))
    size = len(gzip.decompress(path.read_bytes()))
    pieces = []
    read = gzip._GzipReader.read
    monkeypatch.setattr(gzip._GzipReader, "read", lambda self, n=-1: pieces.append(read(self, n)) or pieces[-1])
    read_nifti_run(path, mask)
    ours = sum(map(len, pieces))
    pieces.clear()
    for volume in range(T):  # nibabel's own way, a volume at a time, starts again for each: the counter counts
        nib.load(path).dataobj[..., volume]
    assert sum(map(len, pieces)) > 5 * size
    assert size <= ours < 2 * size  # the values once, and the first buffers again where only the header is wanted


def test_values_outside_the_mask_may_be_anything(tmp_path, scan, mask):
    scan[~mask.inside] = np.nan
    np.testing.assert_array_equal(read_nifti_run(write(tmp_path / "run.nii", scan), mask).values, scan[mask.inside].T)


def test_values_inside_that_are_not_finite_are_counted(tmp_path, scan, mask):
    places = np.argwhere(mask.inside)
    scan[(*places[40], 3)], scan[(*places[23], 10)] = np.nan, np.inf
    place = tuple(map(int, places[23]))
    message = (
        f"run.nii.gz: 2 of {mask.n_voxels} voxels inside the mask have values that are not finite (first: voxel {place}"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        read_nifti_run(write(tmp_path / "run.nii.gz", scan), mask)
    with pytest.raises(DataError, match=r"1 of .* not finite"):  # finite in double precision only
        double = np.ones((*SHAPE, T))
        double[(*places[5], 2)] = 1e300
        read_nifti_run(write(tmp_path / "run.nii", double), mask)


def test_a_run_that_never_varies_is_refused(tmp_path, scan, mask):
    still = np.repeat(scan[..., :1], T, axis=3)
    still[~mask.inside] = scan[~mask.inside]  # varies outside only
    with pytest.raises(DataError, match=rf"still\.nii: none of {mask.n_voxels} voxels .* varies over its 11 volumes"):
        read_nifti_run(write(tmp_path / "still.nii", still), mask)
    still[(*np.argwhere(mask.inside)[-1], T - 1)] += 1
    changes = np.ptp(read_nifti_run(write(tmp_path / "still.nii", still), mask).values, axis=0)
    assert np.flatnonzero(changes).tolist() == [mask.n_voxels - 1]


@pytest.mark.parametrize("function", [count_nifti_volumes, nifti_t_r])
def test_one_volume_is_no_run(tmp_path, scan, mask, function):
    path = write(tmp_path / "run.nii", scan[..., 0])
    for call in (function, lambda p: read_nifti_run(p, mask)):
        with pytest.raises(DataError, match=r"run\.nii: dimensions \(7, 9, 6\); expected a run \(x, y, z, volumes\)"):
            call(path)


def test_another_grid_is_refused(tmp_path, scan, mask):
    with pytest.raises(DataError) as error:
        read_nifti_run(write(tmp_path / "run.nii", np.swapaxes(scan, 0, 1)), mask)
    for part in ("run.nii: grid of (9, 7, 6) voxels", "[[-3.0, 0.1, 0.0, 60.0]", "(7, 9, 6) voxels", str(mask.path)):
        assert part in str(error.value)
    moved = AFFINE.copy()
    moved[1, 3] += 0.002
    with pytest.raises(DataError, match=r"grid of .*-79\.998.*; expected .*-80\.0.*; resample one of them"):
        read_nifti_run(write(tmp_path / "run.nii", scan, moved), mask)
    moved[1, 3] -= 0.0015
    check_grid(tmp_path / "run.nii", SHAPE, moved, mask)  # within 1e-3
    flipped = AFFINE * [[-1, 1, 1, 1]] + 0  # left and right exchanged: the same shape and voxel size
    with pytest.raises(DataError, match="grid of"):
        read_nifti_run(write(tmp_path / "run.nii", scan, flipped), mask)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kept", [0.4, 0.999])
def test_truncated_runs_are_refused(tmp_path, scan, mask, name, kept):
    content = write(tmp_path / name, scan).read_bytes()
    path = damaged(tmp_path / f"cut_{name}", content[: int(kept * len(content))])
    assert count_nifti_volumes(path) == T  # the header is sound
    with pytest.raises(DataError, match=rf"cut_{name}: truncated or damaged; a sound header, but not its values"):
        read_nifti_run(path, mask)


@pytest.mark.parametrize("name", RUNS)
def test_a_truncated_header_is_refused(tmp_path, scan, name):
    content = write(tmp_path / name, scan).read_bytes()
    with pytest.raises(DataError, match="cannot be read as NIfTI"):
        count_nifti_volumes(damaged(tmp_path / f"cut_{name}", content[:100]))


def test_a_wrong_checksum_is_found(tmp_path, scan, mask):
    content = bytearray(write(tmp_path / "run.nii.gz", scan).read_bytes())
    content[-6] ^= 1  # of the checksum: the values are all there
    with pytest.raises(DataError, match=r"run\.nii\.gz: truncated or damaged; .*CRC"):
        read_nifti_run(damaged(tmp_path / "run.nii.gz", bytes(content)), mask)


# ---------------------------------------------------------------- seconds between volumes


@pytest.mark.parametrize(
    ("t_r", "unit", "expected"),
    [(0.72, "sec", 0.72), (1500, "msec", 1.5), (2_250_000, "usec", 2.25), (2, "unknown", None), (2, "hz", None),
     (0, "sec", None)],
)  # fmt: skip
def test_the_header_says_how_long_in_its_own_unit(tmp_path, scan, t_r, unit, expected):
    assert nifti_t_r(write(tmp_path / "run.nii", scan, t_r=t_r, unit=unit)) == expected


def test_a_unit_code_that_means_nothing(tmp_path, scan):
    path = write(tmp_path / "run.nii", scan)
    content = bytearray(path.read_bytes())
    content[123] = 0b0011_1010  # xyzt_units: time code 56
    assert nifti_t_r(damaged(path, bytes(content))) is None


@pytest.mark.parametrize("name", RUNS)
def test_the_sidecar_wins_over_the_header(tmp_path, scan, mask, name):
    path = write(tmp_path / name, scan, t_r=3)
    sidecar = tmp_path / "run.json"
    sidecar.write_text(json.dumps({"RepetitionTime": 1.25, "TaskName": "film"}))
    assert nifti_t_r(path) == 1.25
    assert read_nifti_run(path, mask).t_r == 1.25
    sidecar.write_text(json.dumps({"TaskName": "film"}))
    assert nifti_t_r(path) == 3
    sidecar.write_text(json.dumps({"RepetitionTime": 0}))
    assert nifti_t_r(path) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"RepetitionTime": 2', "cannot be read as JSON"), ("[2.0]", "holds a list; expected a JSON object"),
     ('{"RepetitionTime": "2 s"}', "RepetitionTime is '2 s'; expected a number of seconds"),
     ('{"RepetitionTime": -2}', "RepetitionTime is -2"), ('{"RepetitionTime": NaN}', "RepetitionTime is nan"),
     ('{"RepetitionTime": true}', "RepetitionTime is True"), ("\xff\xfe", "cannot be read as JSON")],
)  # fmt: skip
def test_a_damaged_sidecar_is_refused(tmp_path, scan, text, message):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"run\.json: {re.escape(message)}"):
        nifti_t_r(write(tmp_path / "run.nii.gz", scan))


# ---------------------------------------------------------------- motion


def confounds(path: Path, displacement, columns=("csf", "framewise_displacement", "std_dvars")):
    rows = ["\t".join(columns), *(f"{i}.5\t{value}\tn/a" for i, value in enumerate(displacement))]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_motion_is_that_of_all_volumes_but_the_first(tmp_path):
    path = confounds(tmp_path / "c.tsv", ["n/a", 0.1, 0.5, 0.9, 0.6, 0.2, 0.1])
    motion = read_motion(path, 7)
    assert motion == {"mean_fd_mm": pytest.approx(0.4), "max_fd_mm": 0.9, "share_above_half_mm": pytest.approx(2 / 6)}


@pytest.mark.parametrize(
    ("displacement", "n_volumes", "message"),
    [(["n/a", 0.1, 0.2], 4, "3 rows; expected 4"), (["n/a", 0.1, "n/a"], 3, "other things than numbers"),
     (["n/a", "lots"], 2, "other things than numbers"), (["n/a", -0.1], 2, "expected finite numbers of mm from 0"),
     (["n/a", "inf"], 2, "expected finite numbers"), (["n/a"], 1, "expected finite numbers")],
)  # fmt: skip
def test_confounds_that_do_not_fit_are_refused(tmp_path, displacement, n_volumes, message):
    with pytest.raises(DataError, match=rf"c\.tsv: .*{message}"):
        read_motion(confounds(tmp_path / "c.tsv", displacement), n_volumes)


def test_confounds_without_the_column_are_refused(tmp_path):
    path = confounds(tmp_path / "c.tsv", [0.1], columns=("csf", "FramewiseDisplacement", "x"))
    with pytest.raises(DataError, match=r"c\.tsv: no column framewise_displacement among 3"):
        read_motion(path, 1)
    for content in (b"", b"\xff\xfe\x00a"):
        with pytest.raises(DataError, match=r"d\.tsv: "):
            read_motion(damaged(tmp_path / "d.tsv", content), 1)
    with pytest.raises(DataError, match=r"e\.tsv: cannot be read"):
        read_motion(tmp_path / "e.tsv", 1)


def test_a_ragged_table_is_refused(tmp_path):
    # One field more than names: some readers then take the first column for row names and shift all others.
    rows = "csf\tframewise_displacement\n1\t0.1\t5\n2\t0.2\t5\n"
    with pytest.raises(DataError, match=r"c\.tsv: row 1 has 3 fields; expected 2"):
        read_motion(damaged(tmp_path / "c.tsv", rows.encode()), 2)


def test_a_mask_knows_its_size():
    assert VolumeMask(Path("m.nii"), np.ones((2, 3, 5), bool), np.eye(4)).n_voxels == 30
