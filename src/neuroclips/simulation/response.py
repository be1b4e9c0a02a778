"""From what a film drives to noise-free BOLD: receptive fields, tuning, and the haemodynamic response.

Everything after the features is linear: ``BOLD = H F W``, with F (N steps, P features), W (P, V) the voxels' receptive
fields times tuning, and H (T volumes, N) the response function sampled in the middle of each volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from neuroclips.data.bold import crop, detrend
from neuroclips.shapes import Float, Float32, Int
from neuroclips.simulation.features import GRID, PLACES, STEP, Features, MeaningAxes, grid_centres, motion_filters
from neuroclips.simulation.mesh import cortical_noise
from neuroclips.simulation.visuotopy import FIELD_OF_VIEW, GROUPS, ReceptiveFields

COMPONENTS = ("motion", "colour", "contrast", "meaning")
# How much of each component (at equal variance) drives a group of areas, on average over its voxels.
MIXTURES = {
    "early": (0.55, 0.60, 0.45, 0.0),
    "colour": (0.30, 0.75, 0.30, 0.35),
    "motion": (0.80, 0.10, 0.20, 0.40),
    "semantic": (0.0, 0.25, 0.20, 0.95),
}
# Median correlation between two single presentations at signal 1 of a voxel whose field lies on the film.
RELIABILITY = {"early": 0.52, "colour": 0.50, "motion": 0.49, "semantic": 0.50}
RELIABILITY_SPREAD = 0.45  # standard deviation of its logit over voxels
MAX_RELIABILITY = 0.72
LATENCIES = (-1.2, -0.8, -0.4, 0.0, 0.4)  # seconds against the canonical peak at 5 s: visual cortex is quick
LEAST_COVERAGE = 0.02  # voxels whose field lies on the film with less than this share are not driven


@dataclass(frozen=True)
class Tuning:
    """What each of the V driven voxels responds to.

    voxel : (V,) cortical vertex.  latency : (V,) index into ``LATENCIES``, ascending: voxels are in its order.
    field : (V, GRID²) receptive field on the film.  colour : (V, 3) preference in luminance, red-green, blue-yellow.
    motion : (V, P) weights on motion filters.  meaning : (V, M) weights on meaning.
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


def response_matrix(
    n_steps: int, n_volumes: int, lead: float | int, t_r: float | int, latency: float
) -> Float32[np.ndarray, "T N"]:
    """How step n of a film drives volume v. Volumes are sampled at their middle.

    The film starts ``lead`` volumes after the first volume does; a fraction means that it starts within a volume.
    """
    volumes = (np.arange(n_volumes) - lead + 0.5) * t_r
    steps = (np.arange(n_steps) + 0.5) * STEP
    return (STEP * response_function(volumes[:, None] - steps, latency)).astype(np.float32)


def tune(fields: ReceptiveFields, axes: MeaningAxes, seed: int) -> Tuning:
    """Draw what every voxel prefers. Preferences vary smoothly over cortex, with a part of each voxel's own."""
    voxel = np.flatnonzero((fields.group > 0) & (fields.coverage() > LEAST_COVERAGE))
    rng = np.random.default_rng([seed, 11])
    columns = np.cumsum([1, 1, len(COMPONENTS), 3, 1, 1, len(axes.weight)])
    noise = np.sqrt(0.8) * cortical_noise(rng, width=5.0, columns=int(columns[-1]))[voxel]
    noise += np.sqrt(0.2) * rng.standard_normal(noise.shape, np.float32)  # (V, columns), unit variance
    latency = np.clip(np.rint(2 + noise[:, columns[-2] - 1]), 0, len(LATENCIES) - 1).astype(np.int64)
    order = np.argsort(latency, kind="stable")
    voxel, noise, latency = voxel[order], noise[order], latency[order]
    x, y, sigma, group = fields.x[voxel], fields.y[voxel], fields.sigma[voxel], fields.group[voxel]
    direction, speed, mix, colour, gain, _, code = np.split(noise, columns[:-1], axis=1)

    mixture = np.array([(0.0,) * 4, *(MIXTURES[g] for g in GROUPS[1:])])[group] * np.exp(0.4 * mix)
    base = np.array([0.5, *(RELIABILITY[g] for g in GROUPS[1:])])[group]
    logit = np.log(base / (1 - base)) + RELIABILITY_SPREAD * gain[:, 0]
    reliability = np.minimum(1 / (1 + np.exp(-logit)), MAX_RELIABILITY)
    # A field partly off the film hears only part of it.
    snr = reliability / (1 - reliability) * fields.coverage()[voxel]
    seen = np.zeros((len(voxel), len(motion_filters()["x"])), np.float32)
    moved = np.flatnonzero(mixture[:, 0])
    directed = np.where(group == GROUPS.index("motion"), 1.0, 0.35)
    for v in np.array_split(moved, 16):  # bounds memory: a weight has half a dozen intermediates of this size
        seen[v] = motion_weights(x[v], y[v], sigma[v], 180 * direction[v, 0], speed[v, 0], directed[v])
    return Tuning(
        voxel=voxel,
        latency=latency,
        motion=seen,
        field=field_weights(x, y, sigma),
        colour=colour.astype(np.float32),
        meaning=meaning_weights(x, y, sigma, code * axes.weight, axes),
        mixture=(mixture / np.linalg.norm(mixture, axis=1, keepdims=True)).astype(np.float32),
        reliability=(snr / (1 + snr)).astype(np.float32),
    )


def motion_weights(
    x: np.ndarray, y: np.ndarray, sigma: np.ndarray, direction: np.ndarray, speed: np.ndarray, directed: np.ndarray
) -> Float32[np.ndarray, "V P"]:
    """Weights of V voxels on the P motion-energy filters: field times orientation, direction and speed tuning.

    ``direction`` in degrees; ``speed`` is standard normal, low to high temporal frequency; ``directed`` in [0, 1] is
    how far a voxel prefers one direction over its opposite.
    """
    f = {name: value.astype(np.float32) for name, value in motion_filters().items()}
    reach = sigma[:, None] ** 2 + f["sigma"] ** 2 / 2
    near = np.exp(-((x[:, None] - f["x"]) ** 2 + (y[:, None] - f["y"]) ** 2) / (2 * reach))
    off = np.radians(f["direction"] - direction[:, None])
    moving = f["temporal"] > 0
    # Direction is carried by filters that move; orientation by all. The mean over angles is partly taken off, as
    # divisive normalisation does: else every voxel would just report how much happens anywhere.
    preferred = directed[:, None] * moving * np.cos(off) + (1 - 0.5 * directed[:, None]) * np.cos(2 * off) + 0.4
    quick = np.exp(0.8 * speed[:, None] * (f["temporal"] - 2) / 2)
    fine = np.exp(-((np.log2(f["spatial"]) - np.log2(np.clip(20 / sigma, 2, 8))[:, None]) ** 2) / 2)
    return (near * preferred * quick * fine).astype(np.float32)


def field_weights(x: np.ndarray, y: np.ndarray, sigma: np.ndarray) -> Float32[np.ndarray, "V cells"]:
    """Receptive fields of V voxels on the GRID x GRID cells of the film; what falls off the film is lost."""
    cx, cy = grid_centres(GRID)
    reach = sigma[:, None] ** 2 + (FIELD_OF_VIEW / GRID) ** 2 / 12  # a cell is a box of its own width
    weight = np.exp(-((x[:, None] - cx) ** 2 + (y[:, None] - cy) ** 2) / (2 * reach))
    return (weight / (2 * np.pi * reach) * (FIELD_OF_VIEW / GRID) ** 2).astype(np.float32)


def meaning_weights(
    x: np.ndarray, y: np.ndarray, sigma: np.ndarray, code: np.ndarray, axes: MeaningAxes
) -> Float32[np.ndarray, "V M"]:
    """Semantic preference ``code`` (V, D), gated half-way by whether the actor is inside the receptive field."""
    cx, cy = grid_centres(PLACES)
    reach = sigma[:, None] ** 2 + (FIELD_OF_VIEW / PLACES) ** 2 / 4
    gate = 0.5 + 0.5 * np.exp(-((x[:, None] - cx) ** 2 + (y[:, None] - cy) ** 2) / (2 * reach))
    gate = np.concatenate([gate, np.ones((len(x), 1))], 1)  # the last column, index -1: anywhere
    return (code[:, axes.code] * gate[:, axes.place]).astype(np.float32)


def components(
    features: Features, tuning: Tuning, *, n_volumes: int, lead: float | int, t_r: float | int
) -> Float32[np.ndarray, "4 T V"]:
    """The four ``COMPONENTS`` of the noise-free response, each in its own units."""
    n_steps = len(features.motion)
    layout, contrast = features.layout.reshape(n_steps, 3, -1), features.contrast.reshape(n_steps, -1)
    out = np.zeros((4, n_volumes, len(tuning.voxel)), np.float32)
    starts = np.searchsorted(tuning.latency, np.arange(len(LATENCIES) + 1))
    for latency, start, stop in zip(LATENCIES, starts, starts[1:]):
        v = slice(start, stop)  # a view of the weights: copies would cost more than the products
        h = response_matrix(n_steps, n_volumes, lead, t_r, latency)
        out[0][:, v] = (h @ features.motion) @ tuning.motion[v].T
        for c in range(3):
            out[1][:, v] += (h @ layout[:, c]) @ tuning.field[v].T * tuning.colour[v, c]
        out[2][:, v] = (h @ contrast) @ tuning.field[v].T
        out[3][:, v] = (h @ features.meaning) @ tuning.meaning[v].T
    return out


def gram(
    parts: Float32[np.ndarray, "4 T V"], n_trs: int, delay_trs: int = 2, order: int = 4
) -> Float[np.ndarray, "V 4 4"]:
    """Products of components over a run's film, after the detrending that every decoder's input goes through."""
    clean = np.stack([detrend(crop(part, n_trs, delay_trs), order) for part in parts])
    return np.einsum("itv,jtv->vij", clean, clean, dtype=np.float64)


def gains(
    total: Float[np.ndarray, "V 4 4"], n_trs: int, tuning: Tuning, signal: float, noise_variance: float
) -> Float32[np.ndarray, "V 4"]:
    """Weight of each component so that a voxel's mixture has its wanted reliability at signal 1.

    total : sum of ``gram`` over runs that hold ``n_trs`` film volumes together.
    noise_variance : of the noise after detrending; BOLD is in units of the noise's standard deviation before it.
    """
    size = np.sqrt(np.einsum("vii->vi", total) / n_trs)
    unit = np.divide(tuning.mixture, size, out=np.zeros_like(size), where=size > 1e-6)
    variance = np.einsum("vi,vij,vj->v", unit, total, unit) / n_trs
    wanted = tuning.reliability / (1 - tuning.reliability) * noise_variance
    scale = np.sqrt(np.divide(wanted, variance, out=np.zeros_like(variance), where=variance > 1e-6))
    return (signal * unit * scale[:, None]).astype(np.float32)


def reliability_of(variance: np.ndarray, noise_variance: float) -> np.ndarray:
    """Expected correlation between single repeats, the noise ceiling of one: signal over signal plus noise variance."""
    return variance / (variance + noise_variance)
