"""The ideal observer of a simulated subject: the ceiling of identification from one volume a clip.

It knows the noise-free response to every candidate clip and the covariance of the noise, and asks of each measured
volume how likely each candidate is: Gaussian log-likelihood, that is, matching in the space where noise is white.
A decoder that sees one volume a clip cannot identify better, save through what neighbouring volumes would tell it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.sparse.linalg import splu

from neuroclips.artefacts import read_arrays
from neuroclips.data.bold import crop, detrend
from neuroclips.data.clips import Clips
from neuroclips.errors import DataError
from neuroclips.shapes import Bool, Float, Float32
from neuroclips.simulation.scanner import detrended_noise_variance, spatial_covariance
from neuroclips.simulation.subject import n_film_volumes


def identification_scores(
    clips: Clips,
    mask: Bool[np.ndarray, " G"],
    truth_dir: Path,
    *,
    delay_trs: int,
    n_repeats: int | None = None,
) -> Float32[np.ndarray, "B B"]:
    """Log-likelihood (up to a constant a row) of every clip's response, given what was measured at each clip.

    Row i holds the mean of the first ``n_repeats`` measured repeats of clip i (all by default) against candidate clips
    in columns: the diagonal is the truth.

    Parameters
    ----------
    mask : (59412,) the cortical voxels that ``clips.bold`` holds, in order.
    truth_dir : where ``simulate_subject`` wrote what is true of this subject.
    delay_trs : as the clips were paired with volumes.
    """
    if int(mask.sum()) != clips.n_voxels:
        raise DataError(f"a mask of {int(mask.sum())} voxels for clips of {clips.n_voxels}")
    wanted = clips.present if n_repeats is None else clips.present & (np.cumsum(clips.present, 1) <= n_repeats)
    k = wanted.sum(1)  # (B,)
    mean = np.zeros((len(clips), clips.n_voxels), np.float32)
    for r in range(clips.bold.shape[1]):
        mean += np.where(wanted[:, r, None], clips.bold[:, r], 0)
    mean /= np.maximum(k, 1)[:, None]

    expected, variance, noise = expected_responses(truth_dir, clips, mask, delay_trs)
    measured = mean * np.sqrt(variance + noise)  # from z-scores back to units of the noise
    covariance = noise * spatial_covariance(np.flatnonzero(mask))
    return log_likelihood(measured, expected, covariance, k)


def expected_responses(
    truth_dir: Path, clips: Clips, mask: Bool[np.ndarray, " G"], delay_trs: int
) -> tuple[Float[np.ndarray, "B V"], Float[np.ndarray, " V"], float]:
    """Noise-free response at each clip after detrending, its variance in each voxel, and the variance of the noise.

    Variances are means over the clips' segments: a measured volume does not tell which segment it is from.
    """
    voxels = np.flatnonzero(mask)
    column = np.full(len(mask), -1)
    driven = np.asarray(read_arrays(truth_dir / "brain.safetensors")["driven"])
    column[driven] = np.arange(len(driven))
    known = column[voxels] >= 0
    expected, variances, noises = np.zeros((len(clips), len(voxels)), np.float32), [], []
    for number, segment in enumerate(clips.segments):
        here = clips.segment == number
        if not here.any():
            continue
        response = read_arrays(truth_dir / f"{segment}.safetensors")["response"]
        n_trs = n_film_volumes(segment, len(response))
        clean = detrend(crop(response, n_trs, delay_trs))[:, column[voxels[known]]]
        at = np.rint(clips.onset[here] / clips.t_r).astype(int)
        expected[np.ix_(here, known)] = clean[at]
        variance = np.zeros(len(voxels))
        variance[known] = clean.var(0)
        variances.append(variance)
        noises.append(detrended_noise_variance(len(response), n_trs, clips.t_r))
    return expected, np.mean(variances, axis=0), float(np.mean(noises))


def log_likelihood(
    measured: Float[np.ndarray, "B V"], expected: Float[np.ndarray, "C V"], covariance, n_repeats: np.ndarray
) -> Float32[np.ndarray, "B C"]:
    """log p(measured | candidate) up to a constant a row, for Gaussian noise of sparse ``covariance`` (V, V) / repeats.

    With P the inverse of the covariance: n (y' P s - s' P s / 2) for measured y and candidate s.
    """
    whitened = splu(covariance.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(
        np.ascontiguousarray(expected.T, dtype=np.float64)
    )  # (V, C) = P s
    power = np.einsum("cv,vc->c", expected, whitened)
    return (n_repeats[:, None] * (measured @ whitened - power / 2)).astype(np.float32)
