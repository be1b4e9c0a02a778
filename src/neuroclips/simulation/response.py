"""From what a film drives to noise-free BOLD: receptive fields, tuning, and the haemodynamic response.

Everything after the features is linear: ``BOLD = H F W``, with F (N steps, P features), W (P, V) the voxels' receptive
fields times tuning, and H (T volumes, N) the response function sampled in the middle of each volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from neuroclips.shapes import Float, Float32, Int
from neuroclips.simulation.features import GRID, PLACES, STEP, Features, MeaningAxes, grid_centres, motion_filters
from neuroclips.simulation.visuotopy import FIELD_OF_VIEW, GROUPS, ReceptiveFields, cortical_noise

COMPONENTS = ("motion", "colour", "contrast", "meaning")
# How much of each component (at equal variance) drives a group of areas, on average over its voxels.
MIXTURES = {
    "early": (0.55, 0.60, 0.45, 0.0),
    "colour": (0.30, 0.75, 0.30, 0.35),
    "motion": (0.80, 0.10, 0.20, 0.40),
    "semantic": (0.10, 0.20, 0.15, 0.95),
}
# Median correlation between two single presentations at signal 1 of a voxel whose field lies on the film.
RELIABILITY = {"early": 0.50, "colour": 0.46, "motion": 0.42, "semantic": 0.42}
RELIABILITY_SPREAD = 0.45  # standard deviation of its logit over voxels
MAX_RELIABILITY = 0.72
LATENCIES = (-1.2, -0.8, -0.4, 0.0, 0.4)  # seconds against the canonical peak at 5 s: visual cortex is quick
LARGEST_SHARE = 1e-3  # fields with less than this share on the film are driven by nothing


@dataclass(frozen=True)
class Tuning:
    """What each of the V driven voxels responds to.

    voxel : (V,) cortical vertex.  latency : (V,) index into ``LATENCIES``.
    motion : (V, P) weights on motion filters.  field : (V, GRID²) receptive field on the film.
    colour : (V, 3) preference in luminance, red-green, blue-yellow.  meaning : (V, M) weights on meaning.
    mixture : (V, 4) share of each of ``COMPONENTS``.  reliability : (V,) wanted repeat correlation at signal 1.
    """

    voxel: Int[np.ndarray, " V"]
    latency: Int[np.ndarray, " V"]
    motion: Float32[np.ndarray, "V P"]
    field: Float32[np.ndarray, "V cells"]
    colour: Float32[np.ndarray, "V 3"]
    meaning: Float32[np.ndarray, "V M"]
    mixture: Float32[np.ndarray, "V 4"]
    reliability: Float32[np.ndarray, " V"]


def response_function(t: np.ndarray, latency: float = 0.0) -> np.ndarray:
    """Double-gamma response (1/s) at ``t`` seconds after a brief stimulus; its integral is 5/6.

    Gamma densities of shape 6 and 16, the second at one sixth (Friston et al., NeuroImage 7, 1998): a peak at 5 s, an
    undershoot at 15 s. ``latency`` seconds shift the peak by stretching time, so that the response starts at 0.

    >>> t = np.arange(0, 30, 0.01)
    >>> round(float(t[np.argmax(response_function(t))]), 1)
    5.0
    """
    stretch = 1 + latency / 5.0
    s = np.maximum(np.asarray(t, float), 0) / stretch
    with np.errstate(divide="ignore"):
        log = np.log(s)
    rise, fall = (np.exp((shape - 1) * log - s - gammaln(shape)) for shape in (6, 16))
    return (rise - fall / 6) / stretch


def response_matrix(n_steps: int, n_volumes: int, lead: int, t_r: float, latency: float) -> Float32[np.ndarray, "T N"]:
    """How step n of a film drives volume v. The film starts at volume ``lead``; volumes are sampled at their middle."""
    volumes = (np.arange(n_volumes) - lead + 0.5) * t_r
    steps = (np.arange(n_steps) + 0.5) * STEP
    return (STEP * response_function(volumes[:, None] - steps, latency)).astype(np.float32)


def tune(fields: ReceptiveFields, axes: MeaningAxes, seed: int) -> Tuning:
    """Draw what every voxel prefers. Preferences vary smoothly over cortex, with a part of each voxel's own."""
    voxel = np.flatnonzero((fields.group > 0) & (fields.coverage() > LARGEST_SHARE))
    x, y, sigma = fields.x[voxel], fields.y[voxel], fields.sigma[voxel]
    group = fields.group[voxel]
    n_codes = len(axes.weight)
    rng = np.random.default_rng([seed, 11])
    smooth = cortical_noise(rng, width=5.0, columns=2 + 4 + 3 + 1 + 1 + n_codes)[voxel]
    own = rng.standard_normal(smooth.shape)
    noise = np.sqrt(0.8) * smooth + np.sqrt(0.2) * own  # (V, columns), unit variance
    direction, speed, mix, colour, gain, delay, code = np.split(noise, [1, 2, 6, 9, 10, 11], axis=1)

    mixture = np.array([(0.0,) * 4, *(MIXTURES[g] for g in GROUPS[1:])])[group] * np.exp(0.4 * mix)
    base = np.array([0.5, *(RELIABILITY[g] for g in GROUPS[1:])])[group]
    logit = np.log(base / (1 - base)) + RELIABILITY_SPREAD * gain[:, 0]
    reliability = np.minimum(1 / (1 + np.exp(-logit)), MAX_RELIABILITY)
    # A field partly off the film hears only part of it.
    snr = reliability / (1 - reliability) * fields.coverage()[voxel]
    # Luminance is less of a preference than colour: photographs vary more in it, and it would drown the rest.
    colours = colour * np.where(group == GROUPS.index("colour"), 1.0, (1.0, 0.7, 0.7) if True else 1)[:, None]
    return Tuning(
        voxel=voxel,
        latency=np.clip(np.rint(2 + delay[:, 0]), 0, len(LATENCIES) - 1).astype(np.int64),
        motion=motion_weights(x, y, sigma, np.degrees(np.pi * direction[:, 0]), speed[:, 0],
                              np.where(group == GROUPS.index("motion"), 1.0, 0.35)),
        field=field_weights(x, y, sigma),
        colour=colours.astype(np.float32),
        meaning=meaning_weights(x, y, sigma, code * axes.weight, axes),
        mixture=(mixture / np.linalg.norm(mixture, axis=1, keepdims=True)).astype(np.float32),
        reliability=(snr / (1 + snr)).astype(np.float32),
    )  # fmt: skip
