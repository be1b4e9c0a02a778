"""What a map says of areas and streams, with intervals over scenes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neuroclips.cortex.regions import HIGHER, LOWER, Regions
from neuroclips.evaluation.intervals import SceneBootstrap
from neuroclips.evaluation.significance import holm
from neuroclips.shapes import Float


@dataclass(frozen=True)
class RegionValues:
    """One map's mean over the voxels of each of R regions.

    draws : (N, R) of every draw of scenes, or None where nothing was drawn (weights).
    p : (R,) one-sided, of no more than 0; NaN where it cannot be told.
    """

    value: Float[np.ndarray, " R"]
    draws: Float[np.ndarray, "N R"] | None = None
    p: Float[np.ndarray, " R"] | None = None


@dataclass(frozen=True)
class Claim:
    """Is a map's mean larger in one set of areas than in another? ``interval`` is of the difference, 95 %."""

    map: str
    larger: str
    smaller: str
    difference: float
    interval: tuple[float, float] | None

    @property
    def holds(self) -> bool:
        """The interval lies above zero."""
        return self.interval is not None and self.interval[0] > 0


def of_clips(
    boot: SceneBootstrap,
    numerators: Float[np.ndarray, "B R"],
    denominators: Float[np.ndarray, "B R"] | Float[np.ndarray, " R"],
    order: int = 1,
) -> RegionValues:
    """A region's value as a ratio of sums over clips, resampled by scenes.

    denominators : (R,) for a mean over clips of numerators / denominators, such as the number of voxels; (B, R) where
        clips weigh differently. p is of the numerators, by flips of whole scenes: is the region above 0?
    order : 2 where numerators are of products of two clips: a scene's draw then moves the value twice as far.
    """
    whole = np.broadcast_to(denominators, numerators.shape)
    sums = [
        np.stack([np.bincount(boot.block, c, boot.n_scenes) for c in side.T], axis=1) for side in (numerators, whole)
    ]
    value = sums[0].sum(axis=0) / sums[1].sum(axis=0)
    return RegionValues(
        value,
        value + order * ((boot.times @ sums[0]) / (boot.times @ sums[1]) - value),
        _flipped_p(sums[0].astype(np.float64), boot.seed, np.sqrt(order)),
    )


def _flipped_p(sums: Float[np.ndarray, "S R"], seed: int, wider: float) -> Float[np.ndarray, " R"]:
    """p that each region's sum over scenes is above 0, by flips of whole scenes; NaN with fewer than 6 scenes.

    There are so many flips that the smallest p survives Holm's correction over all regions. ``wider`` : of products of
    two clips, each factor alone could have been flipped; the sum would vary this much more than that of both factors'
    mean.
    """
    if len(sums) < 6:
        return np.full(sums.shape[1], np.nan)
    rng, seen = np.random.default_rng(seed), sums.sum(axis=0)
    slack = 1e-12 * np.abs(sums).sum(axis=0)  # equal up to rounding counts as equal
    as_large, flips = np.zeros(len(seen)), 0
    while flips < max(1000, 50 * len(seen)):
        signs = rng.integers(0, 2, size=(1000, len(sums))) * 2 - 1
        as_large += np.count_nonzero(wider * (signs @ sums) + slack >= seen, axis=0)
        flips += len(signs)
    return (1 + as_large) / (1 + flips)


def area_rows(
    name: str, found: RegionValues, regions: Regions, boot: SceneBootstrap, voxels: Float[np.ndarray, " V"] | None
) -> pd.DataFrame:
    """A row a region: map, region, kind, stream, hemisphere, n_voxels, value, ci_low, ci_high, p, p_holm, and the
    quartiles q25 and q75 over its voxels. Holm's correction is over the areas, or the streams, of this map."""
    rows = pd.DataFrame(
        {
            "map": name,
            "region": [r.name for r in regions.regions],
            "kind": [r.kind for r in regions.regions],
            "stream": [r.stream for r in regions.regions],
            "hemisphere": [r.hemisphere for r in regions.regions],
            "n_voxels": [r.n_voxels for r in regions.regions],
            "value": found.value,
        }
    )
    ends = [None] * len(regions) if found.draws is None else [boot.interval(draws) for draws in found.draws.T]
    rows["ci_low"], rows["ci_high"] = ([np.nan if e is None else e[side] for e in ends] for side in (0, 1))
    rows["p"] = np.nan if found.p is None else found.p
    rows["p_holm"] = np.nan
    for _, family in rows[rows["p"].notna()].groupby("kind"):
        rows.loc[family.index, "p_holm"] = holm(family["p"].to_numpy())
    for share in (25, 75):
        rows[f"q{share}"] = [
            np.nan if voxels is None else np.percentile(voxels[regions.voxels(i)], share) for i in range(len(regions))
        ]
    return rows


def claim(name: str, found: RegionValues, regions: Regions, boot: SceneBootstrap, higher: bool) -> Claim | None:
    """The paper's claim of one map: larger in higher visual areas, or in early ones. None without voxels in both."""
    order = (HIGHER, LOWER) if higher else (LOWER, HIGHER)
    a, b = (regions.index(name) for name in order)
    if a is None or b is None:
        return None
    interval = None if found.draws is None else boot.interval(found.draws[:, a] - found.draws[:, b])
    return Claim(name, *order, float(found.value[a] - found.value[b]), interval)
