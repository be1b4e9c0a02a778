"""Named sets of voxels: areas, streams and hemispheres, over which maps are summarised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neuroclips.data.cc2017 import N_LEFT
from neuroclips.data.rois import STREAMS, cortex_areas
from neuroclips.shapes import Bool, Float, Int

HEMISPHERES = ("both", "left", "right")
# The visual streams of Glasser et al. 2016, V1 with its neighbours.
GROUPS: dict[str, tuple[str, ...]] = {
    "early": STREAMS["primary visual"] + STREAMS["early visual"],
    "dorsal": STREAMS["dorsal"],
    "ventral": STREAMS["ventral"],
    "lateral": STREAMS["MT+"],
}
# What the paper says of its figure 5: perception is read from early visual cortex and MT, semantics from higher areas.
LOWER, HIGHER = "V1-V4, MT", "LO, FFC, VVC, PHA"
CLAIM: dict[str, tuple[str, ...]] = {
    LOWER: (*GROUPS["early"], "MT"),
    HIGHER: ("LO1", "LO2", "LO3", "FFC", "VVC", "PHA1", "PHA2", "PHA3"),
}
LEAST = 10  # voxels of an area that is summarised


@dataclass(frozen=True)
class Region:
    """A named set of voxels. ``kind``: "area", "stream", "claim" or "all"; ``stream``: the one that an area is of."""

    name: str
    kind: str
    hemisphere: str
    n_voxels: int
    stream: str = ""


@dataclass(frozen=True)
class Regions:
    """R regions that are unions of C disjoint cells (an area of one hemisphere), over V voxels.

    cell : (V,) number of each voxel's cell.  unions : (C, R) which cells make up which region.
    """

    regions: tuple[Region, ...]
    cell: Int[np.ndarray, " V"]
    unions: Bool[np.ndarray, "C R"]

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def n_voxels(self) -> int:
        return len(self.cell)

    @property
    def n_cells(self) -> int:
        return len(self.unions)

    @property
    def sizes(self) -> Float[np.ndarray, " R"]:
        """Voxels of each region."""
        return np.array([float(region.n_voxels) for region in self.regions])

    def index(self, name: str, hemisphere: str = "both") -> int | None:
        """Number of the region of this name, or None."""
        found = (i for i, r in enumerate(self.regions) if (r.name, r.hemisphere) == (name, hemisphere))
        return next(found, None)

    def only(self, numbers: Sequence[int]) -> Regions:
        """Some of the regions."""
        return Regions(tuple(self.regions[i] for i in numbers), self.cell, self.unions[:, list(numbers)])

    def voxels(self, region: int) -> Int[np.ndarray, " N"]:
        """The voxels of a region."""
        return np.flatnonzero(self.unions[self.cell, region])

    def add(self, sums: Float[np.ndarray, "B C"], values: Float[np.ndarray, "B N"], part: slice) -> None:
        """Add the values of the voxels ``part`` to the sums of their cells, in place."""
        cell = self.cell[part]
        order = np.argsort(cell, kind="stable")
        numbers, starts = np.unique(cell[order], return_index=True)
        sums[:, numbers] += np.add.reduceat(values[:, order], starts, axis=1)

    def of_cells(self, sums: Float[np.ndarray, "*S C"]) -> Float[np.ndarray, "*S R"]:
        """Sums of regions from those of cells."""
        return sums @ self.unions.astype(sums.dtype)

    def means(self, values: Float[np.ndarray, " V"]) -> Float[np.ndarray, " R"]:
        """Mean of a map over each region's voxels."""
        sums = np.bincount(self.cell, values, self.n_cells)
        return self.of_cells(sums) / self.sizes


def cortex_regions(mask: Bool[np.ndarray, " G"], least: int = LEAST) -> Regions:
    """The HCP-MMP1 areas, streams and hemispheres of the selected ones of 59,412 grayordinates.

    Areas with fewer than ``least`` selected voxels (in a hemisphere, or in both together) are left out; voxels of no
    area count in "all voxels" only.
    """
    area, names = cortex_areas()
    voxels = np.flatnonzero(mask)
    side = (voxels >= N_LEFT).astype(int)
    stream = {member: group for group, members in GROUPS.items() for member in members}
    sets: dict[tuple[str, str], Sequence[str]] = {("all voxels", "all"): names}
    sets |= {(name, "claim"): members for name, members in CLAIM.items()}
    sets |= {(name, "stream"): members for name, members in GROUPS.items()}
    sets |= {(name, "area"): (name,) for name in names[1:]}
    return _regions(area[voxels], side, {key: np.isin(names, value) for key, value in sets.items()}, stream, least)


def volume_regions(areas: Mapping[str, Bool[np.ndarray, " V"]], n_voxels: int, least: int = LEAST) -> Regions:
    """Areas of a study in volume space, or of voxels whose place is not known (no areas): of no hemisphere.

    A voxel in several areas counts in the first.
    """
    names = ("", *areas)
    number = np.zeros(n_voxels, int)
    for i in range(len(areas), 0, -1):
        number[areas[names[i]]] = i
    sets = {("all voxels", "all"): np.ones(len(names), bool)}
    sets |= {(name, "area"): np.arange(len(names)) == i for i, name in enumerate(names) if i}
    return _regions(number, None, sets, {}, least)


def _regions(
    number: np.ndarray, side: np.ndarray | None, sets: Mapping[tuple[str, str], np.ndarray], stream: Mapping[str, str],
    least: int,
) -> Regions:  # fmt: skip
    """Regions from the area number of each voxel, its side, and which numbers are in which named set."""
    sides = np.zeros(len(number), int) if side is None else side
    pairs, cell = np.unique(np.stack([number, sides]), axis=1, return_inverse=True)
    size = np.bincount(cell.ravel(), minlength=pairs.shape[1])
    found, unions = [], []
    for (name, kind), members in sets.items():
        for hemisphere in HEMISPHERES if side is not None else HEMISPHERES[:1]:
            inside = members[pairs[0]]
            if hemisphere != "both":
                inside = inside & (pairs[1] == HEMISPHERES.index(hemisphere) - 1)
            n = int(size[inside].sum())
            if n >= (least if kind != "all" else 1):
                found.append(Region(name, kind, hemisphere, n, stream.get(name, "")))
                unions.append(inside)
    return Regions(tuple(found), cell.ravel(), np.stack(unions, axis=1))
