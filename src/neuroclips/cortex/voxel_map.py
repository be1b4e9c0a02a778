"""The contract of everything here: one number a voxel, and what it means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuroclips.shapes import Float32


@dataclass(frozen=True)
class VoxelMap:
    """One number for each of G voxels of the space: 59,412 cortical vertices, or the voxels of a brain mask.

    Attributes
    ----------
    name : of files, such as ``perception-importance``.
    title : for people, such as "Perception: permutation importance".
    unit : of the values, as it stands beside the colour bar.
    values : (G,) NaN where nothing is known, such as at voxels that were not selected.
    text : two sentences: what was measured, and how to read it.
    limits : of the colours, in ``unit``; what lies beyond gets the end's colour.
    signed : colours diverge from 0 (``limits`` are then symmetric); else they run from low to high.
    """

    name: str
    title: str
    unit: str
    values: Float32[np.ndarray, " G"]
    text: str
    limits: tuple[float, float]
    signed: bool = False
