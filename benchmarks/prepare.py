"""Preparing one CC2017 run: our polynomial detrending and z-scoring against nilearn's, and reading CIFTI.

    python benchmarks/prepare.py

Both sides clean the same array of 240 volumes x 59,412 voxels in this process, alternately, best of ``ROUNDS``; the
ratio is what to compare between machines. It stops if the two results disagree.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.cifti2 import cifti2_axes
from nilearn.signal import clean as nilearn_clean

from neuroclips.data.bold import detrend, read_run, zscore
from neuroclips.data.cc2017 import N_CORTEX, N_GRAYORDINATES, N_LEFT, N_RIGHT

N_TRS, ROUNDS = 240, 5


def ours(run: np.ndarray) -> np.ndarray:
    return zscore(detrend(run))


def theirs(run: np.ndarray) -> np.ndarray:
    powers = np.vander(np.linspace(-1, 1, len(run)), 5, increasing=True)[:, 1:]
    return nilearn_clean(run, confounds=powers, detrend=False, standardize="zscore_sample", ensure_finite=False)


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def write_run(path: Path, values: np.ndarray) -> None:
    """A dense time series with the standard grayordinates."""
    axis = cifti2_axes.BrainModelAxis.from_surface(np.arange(N_LEFT), 32_492, "CortexLeft")
    axis += cifti2_axes.BrainModelAxis.from_surface(np.arange(N_RIGHT), 32_492, "CortexRight")
    places = np.stack(np.unravel_index(np.arange(N_GRAYORDINATES - N_CORTEX), (91, 109, 91)), axis=1)
    axis += cifti2_axes.BrainModelAxis(
        "CIFTI_STRUCTURE_THALAMUS_LEFT", voxel=places, affine=np.eye(4), volume_shape=(91, 109, 91)
    )
    image = nib.Cifti2Image(values, (cifti2_axes.SeriesAxis(0, 2.0, len(values)), axis))
    image.nifti_header.set_intent("ConnDenseSeries")
    image.to_filename(path)


def main() -> None:
    rng = np.random.default_rng(0)
    trend = 200 * np.linspace(-1, 1, N_TRS + 5, dtype=np.float32)[:, None] ** 3
    scan = 9000 + trend + 60 * rng.standard_normal((N_TRS + 5, N_GRAYORDINATES), np.float32)
    result: dict[str, object] = {}
    for order in ("C", "F"):  # F is what nibabel gives
        run = np.asarray(scan[1 : 1 + N_TRS, :N_CORTEX], order=order)
        difference = float(np.abs(ours(run) - theirs(run)).max())
        if difference > 0.01:
            raise SystemExit(f"results differ by {difference}: the comparison is void")
        times = [(seconds(ours, run), seconds(theirs, run)) for _ in range(ROUNDS)]
        mine, nilearn = map(min, zip(*times))
        result[f"clean, {order} order"] = {
            "ours_s": round(mine, 3),
            "nilearn_s": round(nilearn, 3),
            "ratio": round(nilearn / mine, 2),
            "largest_difference": difference,
        }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seg1_1_Atlas.dtseries.nii"
        write_run(path, scan)
        reads = [(seconds(read_run, path, N_TRS), seconds(_plain_read, path)) for _ in range(ROUNDS)]
        mine, plain = map(min, zip(*reads))
        result["read"] = {"ours_s": round(mine, 3), "nib_load_s": round(plain, 3), "ratio": round(plain / mine, 2)}
    result["machine"] = f"{platform.machine()} {platform.system()}"
    result["versions"] = {name: version(name) for name in ("numpy", "nibabel", "nilearn")}
    print(json.dumps(result, indent=1))


def _plain_read(path: Path) -> np.ndarray:
    return np.array(nib.load(path).dataobj[:, :N_CORTEX], dtype=np.float32)


if __name__ == "__main__":
    main()
