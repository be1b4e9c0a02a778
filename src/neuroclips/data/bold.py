"""From one CIFTI run to z-scored responses: read, crop, detrend, z-score (Wen et al. 2018, their own order of steps).

Arrays are (T, V): volumes by voxels. nibabel gives them in Fortran order (a voxel's volumes side by side), and every
step keeps the order it is given, because arithmetic between the two orders is slow (see ``detrend``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from neuroclips.data.cc2017 import LEADING_SPARES, N_CORTEX, N_GRAYORDINATES, N_LEFT, N_RIGHT, TRAILING_SPARES
from neuroclips.errors import DataError
from neuroclips.shapes import Float, Float32

_CORTEX = [("CIFTI_STRUCTURE_CORTEX_LEFT", 0, N_LEFT), ("CIFTI_STRUCTURE_CORTEX_RIGHT", N_LEFT, N_RIGHT)]
_CIFTI_EXTENSION = 32  # NIfTI extension code
# What single precision leaves of a value after removing something as large as it: below this share it is rounding.
_ROUNDING = 16 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Run:
    """One scan as it lies on disk.

    values : (T, V) all volumes of the 59,412 cortical grayordinates, scanner units, all finite.
    t_r : seconds between volumes according to the file, or None when it says nothing usable. A claim to be compared
        with the recipe, not a fact: headers of CC2017 passed through several tools.
    """

    values: Float32[np.ndarray, "T V"]
    t_r: float | None


def count_volumes(path: Path) -> int:
    """Volumes in a dense time series, from its NIfTI-2 header alone (0.6 ms; parsing the CIFTI header takes 53 ms).

    Raises DataError if the file is not NIfTI-2, does not have 91,282 grayordinates, or is shorter than it says: half a
    download is met at the first look, not hours later.
    """
    try:
        with path.open("rb") as file:
            header = nib.Nifti2Header.from_fileobj(file)
        shape, size = header.get_data_shape(), path.stat().st_size
        whole = header.get_data_offset() + math.prod(map(int, shape)) * header.get_data_dtype().itemsize
    except Exception as error:  # whatever a damaged header makes the parser raise
        raise DataError(f"{path}: cannot be read as a CIFTI dense time series ({error})") from error
    if len(shape) != 6 or shape[5] != N_GRAYORDINATES:
        raise DataError(
            f"{path}: header has dimensions {tuple(map(int, shape))}; expected (1, 1, 1, 1, volumes, {N_GRAYORDINATES})"
        )
    if size < whole:
        raise DataError(f"{path}: truncated or damaged; {size:,} bytes; its header says {whole:,}; fetch it again")
    return int(shape[4])


def header_t_r(path: Path) -> float | None:
    """Seconds between volumes according to the CIFTI header; None when it says nothing usable."""
    return _seconds(open_cifti(path)[1])


def check_volumes(path: Path, n_volumes: int, n_trs: int) -> None:
    """Raise DataError unless a run of ``n_volumes`` fits a film of ``n_trs`` TRs: 5 or 6 volumes more."""
    expected = [n_trs + lead + TRAILING_SPARES for lead in LEADING_SPARES]
    if n_volumes not in expected:
        raise DataError(
            f"{path}: {n_volumes} volumes; expected {expected[0]} or {expected[1]}, for a film of {n_trs} TRs with "
            f"{LEADING_SPARES[0]} or {LEADING_SPARES[1]} spare volumes before it and {TRAILING_SPARES} after"
        )


def open_cifti(path: Path, kind: str = "dense time series") -> tuple[nib.Nifti2Image, nib.cifti2.Cifti2Matrix]:
    """Open a CIFTI file whose columns are grayordinates; its values (1, 1, 1, 1, rows, grayordinates) are not read.

    Returns the image and the matrix of its CIFTI header (index map 0: the rows, 1: the grayordinates). Raises DataError
    unless it is a CIFTI file whose columns start with the standard cortex, left then right; ``kind`` says in the
    message what was expected.
    """
    try:
        # As NIfTI-2 with its CIFTI extension: nib.load copies the header's 91,282 places, 0.17 s against 0.05 s.
        image = nib.Nifti2Image.from_filename(path)
        matrix = next(e for e in image.header.extensions if e.get_code() == _CIFTI_EXTENSION).get_content().matrix
        models = [(m.brain_structure, m.index_offset, m.index_count) for m in matrix.get_index_map(1).brain_models]
    except StopIteration as error:
        raise DataError(f"{path}: NIfTI-2 without a CIFTI header; expected a {kind}") from error
    except Exception as error:  # XML, struct, OS and nibabel errors: all mean a damaged or foreign file
        raise DataError(f"{path}: cannot be read as a CIFTI {kind} ({error})") from error
    if models[:2] != _CORTEX:
        came = ", ".join(f"{name} from {start} of {count}" for name, start, count in models[:2])
        raise DataError(
            f"{path}: grayordinates start with {came or 'none'}; expected {_CORTEX[0][0]} from 0 of {N_LEFT}, "
            f"then {_CORTEX[1][0]} from {N_LEFT} of {N_RIGHT} (fs_LR 32k without the medial wall)"
        )
    return image, matrix


def read_run(path: Path, n_trs: int | None = None) -> Run:
    """Read the cortex of one dense time series, such as CC2017's ``*_Atlas.dtseries.nii`` of a film of ``n_trs`` TRs.

    Raises
    ------
    DataError
        The file is unreadable or truncated, has other grayordinates than the standard 91,282 (the cortex first, left
        then right), another number of volumes than ``n_trs`` + 5 or + 6 (where that is given), or values that are not
        finite.
    """
    path = Path(path)
    n_volumes = count_volumes(path)
    if n_trs is not None:
        check_volumes(path, n_volumes, n_trs)
    image, matrix = open_cifti(path)
    try:
        # A copy, so that the file can be closed.
        values = np.array(image.dataobj[0, 0, 0, 0, :, :N_CORTEX], dtype=np.float32)
    except Exception as error:
        raise DataError(f"{path}: truncated or damaged; a sound header, but not its values ({error})") from error
    finite = np.isfinite(values)
    if not finite.all():
        broken = np.flatnonzero(~finite.all(axis=0))
        raise DataError(
            f"{path}: {len(broken)} of {N_CORTEX} voxels have values that are not finite (first: voxel {broken[0]}); "
            "expected finite values everywhere; leave the run out (data.exclude), or fill these voxels with 0"
        )
    return Run(values, _seconds(matrix))


def _seconds(matrix: nib.cifti2.Cifti2Matrix) -> float | None:
    """The step of a CIFTI file's series map in seconds; None when there is no such map, or it is not of time."""
    try:
        series = matrix.get_index_map(0)
    except nib.cifti2.Cifti2HeaderError:
        return None
    step, exponent = getattr(series, "series_step", None), getattr(series, "series_exponent", None)
    if step is None or getattr(series, "series_unit", None) != "SECOND":
        return None
    return float(step) * 10.0 ** (exponent or 0)


def crop(run: Float[np.ndarray, "T V"], n_trs: int, delay_trs: int) -> Float[np.ndarray, "n_trs V"]:
    """The ``n_trs`` volumes that answer the film's clips: volume ``lead + delay_trs + j`` goes with clip j.

    The spare volumes at the start (``lead``) are what remains beyond ``n_trs`` and the 4 at the end. The delay eats
    into those 4, so no clip is lost. A view, not a copy.
    """
    if not 0 <= delay_trs <= TRAILING_SPARES:
        raise DataError(
            f"delay_trs is {delay_trs}; expected 0 to {TRAILING_SPARES}: a run has only {TRAILING_SPARES} volumes "
            "after the film"
        )
    start = len(run) - n_trs - TRAILING_SPARES + delay_trs
    if start < delay_trs:
        raise DataError(f"{len(run)} volumes; expected at least {n_trs + TRAILING_SPARES} for a film of {n_trs} TRs")
    return run[start : start + n_trs]


def detrend(run: Float[np.ndarray, "T V"], order: int = 4) -> Float32[np.ndarray, "T V"]:
    """Residual of each voxel after a least-squares polynomial in time of degree ``order``.

    Through an orthonormal basis Q of the polynomials, the residual is x - Q (Q' x): two thin products, no solver.
    What is left of a constant or an exact polynomial is rounding; it becomes exactly zero.
    """
    run = np.asarray(run, np.float32)
    n = len(run)
    if n <= order + 1:
        raise DataError(f"{n} volumes; expected more than {order + 1} to remove a polynomial of degree {order}")
    # Degree by degree on [-1, 1] the columns are far better conditioned than t^0..t^4, and span the same space.
    basis, _ = np.linalg.qr(np.vander(np.linspace(-1, 1, n), order + 1, increasing=True))
    basis = basis.astype(np.float32)
    mean = run.mean(axis=0)
    residual = run - mean  # first, so that single precision is spent on the signal and not on its offset
    weights = basis.T @ residual  # (order + 1, V)
    # In the order of `residual`: subtracting across orders takes 22 ms for 240 x 59,412, within one order 3 ms.
    trend = (weights.T @ basis.T).T if residual.flags.f_contiguous else basis @ weights
    residual -= trend
    size = np.sqrt(mean**2 + np.square(weights).sum(axis=0) / n)
    left = np.sqrt(np.einsum("tv,tv->v", residual, residual) / n)
    residual[:, left <= _ROUNDING * size] = 0
    return residual


def zscore(run: Float[np.ndarray, "T V"]) -> Float32[np.ndarray, "T V"]:
    """Each voxel at mean 0 and sample standard deviation 1 (divisor T - 1); a constant voxel becomes 0 everywhere."""
    run = np.asarray(run, np.float32)
    mean = run.mean(axis=0)
    centred = run - mean
    deviation = np.sqrt(np.einsum("tv,tv->v", centred, centred) / (len(run) - 1))
    varies = deviation > _ROUNDING * np.abs(mean)
    centred *= np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)
    return centred


def standardise(run: Float[np.ndarray, "T V"], order: int = 4) -> Float32[np.ndarray, "T V"]:
    """Detrend and z-score the volumes that are given, and no others."""
    return zscore(detrend(run, order))


def clean(run: Float[np.ndarray, "T V"], n_trs: int, delay_trs: int) -> Float32[np.ndarray, "n_trs V"]:
    """Crop, detrend and z-score one run of CC2017: statistics are those of the ``n_trs`` volumes that are kept."""
    return standardise(crop(run, n_trs, delay_trs))
