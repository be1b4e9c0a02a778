"""Reading and cleaning runs, against numpy.polyfit, nilearn and files damaged on purpose."""

import re

import numpy as np
import pytest
from cc2017_dataset import N_CORTEX, grayordinates, write_run
from nilearn.signal import clean as nilearn_clean

from neuroclips.data.bold import clean, count_volumes, crop, detrend, read_run, zscore
from neuroclips.errors import DataError

N_TRS = 7  # volumes: 12 or 13


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).normal(9000, 50, (N_TRS + 5, N_CORTEX)).astype(np.float32)


@pytest.fixture(scope="module")
def scan(tmp_path_factory, values):
    return write_run(tmp_path_factory.mktemp("scan") / "seg1_1_Atlas.dtseries.nii", values)


def drifting(n_trs=240, voxels=37, seed=1):
    rng = np.random.default_rng(seed)
    t = np.linspace(-1, 1, n_trs)[:, None]
    trend = sum(rng.normal(0, 300, voxels) * t**k for k in range(5))
    return (10_000 + trend + rng.normal(0, 20, (n_trs, voxels))).astype(np.float32)


def test_reads_the_cortex_exactly_and_the_tr(scan, values):
    run = read_run(scan, N_TRS)
    np.testing.assert_array_equal(run.values, values)
    assert run.values.dtype == np.float32
    assert run.t_r == 2.0
    assert count_volumes(scan) == N_TRS + 5


def test_the_tr_of_a_header_is_a_claim(tmp_path, values):
    assert read_run(write_run(tmp_path / "a.dtseries.nii", values, t_r=1.5), N_TRS).t_r == 1.5
    assert read_run(write_run(tmp_path / "b.dtseries.nii", values, unit="HERTZ"), N_TRS).t_r is None


def test_wrong_volume_count_is_refused(scan):
    message = f"{scan}: 12 volumes; expected 13 or 14, for a film of 8 TRs with 1 or 2 spare volumes before it and 4"
    with pytest.raises(DataError, match=re.escape(message)):
        read_run(scan, 8)


@pytest.mark.parametrize(("kept", "message"), [(100, "cannot be read"), (3000, "cannot be read"), (0.5, "truncated")])
def test_truncated_file_is_refused(tmp_path, scan, kept, message):
    content = scan.read_bytes()
    cut = tmp_path / "cut.dtseries.nii"
    cut.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    with pytest.raises(DataError, match=rf"cut\.dtseries\.nii: {message}"):
        read_run(cut, N_TRS)


def test_not_a_cifti_file_is_refused(tmp_path):
    path = tmp_path / "note.dtseries.nii"
    path.write_text("this is a download error page" * 40)
    with pytest.raises(DataError, match=r"note\.dtseries\.nii: cannot be read as a CIFTI dense time series"):
        count_volumes(path)


def test_other_grayordinates_are_refused(tmp_path, values):
    few = write_run(tmp_path / "few.dtseries.nii", values, axis=grayordinates(subcortex=10))
    with pytest.raises(DataError, match=r"few.* dimensions \(1, 1, 1, 1, 12, 59422\); expected .*volumes, 91282\)"):
        read_run(few, N_TRS)
    # The right total, but the hemispheres are another mesh's: vertex numbers would silently mean other places.
    shifted = write_run(tmp_path / "shifted.dtseries.nii", values, axis=grayordinates(29_706, 29_706))
    with pytest.raises(DataError, match=r"LEFT from 0 of 29706, .*; expected CIFTI_STRUCTURE_\w+ from 0 of 29696"):
        read_run(shifted, N_TRS)


def test_nifti_without_cifti_header_is_refused(tmp_path, values):
    import nibabel as nib

    path = tmp_path / "plain.dtseries.nii"
    nib.Nifti2Image(np.zeros((1, 1, 1, 1, 12, 91_282), np.float32), np.eye(4)).to_filename(path)
    with pytest.raises(DataError, match=r"plain\.dtseries\.nii: NIfTI-2 without a CIFTI header"):
        read_run(path, N_TRS)


def test_values_that_are_not_finite_are_counted(tmp_path, values):
    broken = values.copy()
    broken[3, 777], broken[:, 41_000] = np.nan, np.inf
    path = write_run(tmp_path / "nan.dtseries.nii", broken)
    with pytest.raises(DataError, match=r"nan.dtseries.nii: 2 of 59412 voxels .* not finite \(first: voxel 777\)"):
        read_run(path, N_TRS)


def test_crop_follows_the_published_script():
    # The script keeps volumes 2..241 of 245 and 3..242 of 246, counted from 1, without delay.
    for volumes, first in ((245, 2), (246, 3)):
        run = np.arange(1, volumes + 1, dtype=np.float32)[:, None]
        kept = crop(run, 240, 0)
        assert (kept[0, 0], kept[-1, 0], len(kept)) == (first, first + 239, 240)
        assert crop(run, 240, 2)[0, 0] == first + 2
        assert crop(run, 240, 4)[-1, 0] == volumes


def test_crop_refuses_what_does_not_fit():
    with pytest.raises(DataError, match="delay_trs is 5; expected 0 to 4"):
        crop(np.zeros((20, 1), np.float32), 15, 5)
    with pytest.raises(DataError, match="18 volumes; expected at least 19 for a film of 15 TRs"):
        crop(np.zeros((18, 1), np.float32), 15, 0)


@pytest.mark.parametrize("order", ["C", "F"])
def test_detrend_agrees_with_polyfit(order):
    run = np.asarray(drifting(), order=order)
    t = np.linspace(-1, 1, len(run))
    double = run.astype(np.float64)
    fitted = np.stack([np.polyval(np.polyfit(t, voxel, 4), t) for voxel in double.T], axis=1)
    result = detrend(run)
    np.testing.assert_allclose(result, double - fitted, atol=0.02)  # single precision of values near 10,000
    assert result.flags.f_contiguous == run.flags.f_contiguous


def test_clean_agrees_with_nilearn():
    run = drifting()
    powers = np.vander(np.linspace(-1, 1, 240), 5, increasing=True)[:, 1:]
    theirs = nilearn_clean(run.astype(np.float64), confounds=powers, detrend=False, standardize="zscore_sample")
    scan = np.pad(run, ((1 + 2, 4 - 2), (0, 0)))  # one spare volume and a delay of 2 before it, 2 of 4 spares after
    np.testing.assert_allclose(clean(scan, 240, 2), theirs, atol=2e-3)


@pytest.mark.parametrize("order", ["C", "F"])
def test_zscore_and_voxels_without_variance(order):
    run = drifting(n_trs=31, voxels=6)
    run[:, 1] = 9000.125
    run[:, 2] = 0
    run[:, 4] = 3 + 500 * np.linspace(0, 1, 31) ** 3  # a polynomial: nothing is left of it
    result = zscore(detrend(np.asarray(run, order=order)))
    assert (result[:, [1, 2, 4]] == 0).all()
    np.testing.assert_allclose(result[:, [0, 3, 5]].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(result[:, [0, 3, 5]].std(axis=0, ddof=1), 1, rtol=1e-5)
    assert (zscore(run)[:, [1, 2]] == 0).all()


def test_detrend_refuses_runs_that_a_polynomial_explains():
    with pytest.raises(DataError, match="5 volumes; expected more than 5"):
        detrend(np.ones((5, 3), np.float32))
