"""Maps as figures for papers: the cortex from four sides and flat, or slices of a volume; PNG, SVG and PDF.

Figures are made without pyplot, so any thread can make one, and none needs a display. Text stays sharp at every size;
brains are pixels, 300 an inch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from neuroclips.artefacts import written_aside
from neuroclips.cortex.surface import SIDES, VIEWS, area_borders, label_places, paint, panel, to_vertices
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.data.cc2017 import N_CORTEX
from neuroclips.data.volumes import VolumeMask
from neuroclips.errors import DataError
from neuroclips.shapes import Bool, Float32, UInt8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of matplotlib's perceptually uniform colour maps inferno keeps farthest away from the greys of bare cortex (0.5 to
# 0.9), whether or not one is colour-blind: CIEDE2000 is 7 or more; magma comes to 4, plasma and cividis to 2, and
# viridis to 0 for those who do not tell red from green. Its black would look like a hole, so it starts after it.
SEQUENTIAL, DIVERGING = "inferno", "PuOr_r"
_AFTER_BLACK = 0.08
AREAS = (
    "V1", "V2", "V3", "V4", "V3A", "V6", "IPS1", "LO2", "MT", "FST", "PIT", "V8", "FFC", "VVC", "PH", "PHA1",
)  # fmt: skip
DPI = 300
WIDTH, MARGIN, GAP = 2160, 40, 24  # pixels: 7.2 inches, two columns of a journal
BRAIN, FLAT, THUMBNAIL = 4.1, 2.27, 0.975  # pixels a mm
THUMBNAIL_WIDTH = 900
_FONT = "DejaVu Sans"  # matplotlib brings it
_BARE = 0.8  # grey of cortex where there is no value
_DIMMED = 0.6  # how much of the shade values take: colours must stay those of the colour bar
_LINES = 0.7  # opacity of borders
_DARK = 0.33  # mean of red, green and blue below which borders are light
_saving = Lock()  # matplotlib takes some settings of files from global ones


@cache
def colours(signed: bool) -> Float32[np.ndarray, "N 3"]:
    """256 colours, red, green and blue in [0, 1], from the lowest value of a map to its highest."""
    from matplotlib import colormaps

    places = np.linspace(0 if signed else _AFTER_BLACK, 1, 256)
    return colormaps[DIVERGING if signed else SEQUENTIAL](places)[:, :3].astype(np.float32)


def plot_cortex(map: VoxelMap, *, borders: bool | Sequence[str] = True, labels: Sequence[str] = AREAS) -> Figure:
    """A figure of a map of the 59,412 cortical grayordinates, 7.2 inches wide.

    Both hemispheres, very inflated, from four sides and on the HCP's flat map, left on the left, with a colour bar.
    Bare cortex, grey with its gyri and sulci, is where the map has no value (NaN). 4 grayordinates of the left and 29
    of the right hemisphere are not on the flat map.

    borders : of HCP-MMP1 areas: all, none, or those of the named ones (``data.rois.cortex_rois``).
    labels : names of areas to write on the flat map.

    Raises DataError for another number of values, and limits that are no range.
    """
    from matplotlib.figure import Figure

    _check(map, N_CORTEX)
    panels = {(side, view): panel(side, view, _scale(view)) for side in SIDES for view in VIEWS}
    height = {view: max(panels[side, view].inside.shape[0] for side in SIDES) for view in VIEWS}
    top = 165
    ventral = top + height["posterior"] + 80
    flat = ventral + height["ventral"] + 85
    rows = {
        "lateral": top, "posterior": top, "medial": ventral + height["ventral"] - height["medial"], "ventral": ventral,
        "flat": flat,
    }  # fmt: skip
    bar = flat + height["flat"] + 30
    canvas = np.full((bar + 150, WIDTH, 3), 255, np.uint8)
    left = {}
    for (side, view), shown in panels.items():
        width = shown.inside.shape[1]
        if view in ("lateral", "medial"):
            x = MARGIN if side == "left" else WIDTH - MARGIN - width
        else:
            x = (WIDTH - GAP) // 2 - width if side == "left" else (WIDTH + GAP) // 2
        left[side, view] = x
        _paste(canvas, x, rows[view], _draw(map, side, view, _scale(view), borders))

    figure = Figure(figsize=(WIDTH / DPI, len(canvas) / DPI), dpi=DPI)
    page = _page(figure, len(canvas))
    opaque = np.dstack([canvas, np.full(canvas.shape[:2], 255, np.uint8)])  # halves matplotlib's memory
    page.imshow(opaque, extent=(0, WIDTH, len(canvas), 0), interpolation="nearest", aspect="auto")
    _text(page, WIDTH / 2, 48, map.title, size=min(9, 720 / max(len(map.title), 1)), weight="bold")
    for side in SIDES:
        start, end = left[side, "lateral"], left[side, "lateral"] + panels[side, "lateral"].inside.shape[1]
        _text(page, (start + end) / 2, top - 32, f"{side} hemisphere", weight="bold")
        for view in ("lateral", "medial"):
            y = rows[view] + height[view] + 28
            _text(page, (start + end) / 2, y, view)
            if (side == "left") == (view == "lateral"):
                _text(page, start, y, "← anterior", ha="left")
            else:
                _text(page, end, y, "anterior →", ha="right")
        for area, (right, down) in label_places(side, FLAT, tuple(labels)).items():
            _text(page, left[side, "flat"] + right, flat + down, area, size=5, halo=True)
        y, arrow = flat + height["flat"] - 60, "← anterior" if side == "left" else "anterior →"
        _text(page, MARGIN if side == "left" else WIDTH - MARGIN, y, f"{side} hemisphere, flat\n{arrow}", ha=side)
    _text(page, WIDTH / 2, top + height["posterior"] + 28, "posterior")
    _text(page, WIDTH / 2, ventral + height["ventral"] + 28, "ventral   ↓ anterior")
    _colour_bar(figure, map, bar, len(canvas))
    return figure


def flat_thumbnail(map: VoxelMap) -> UInt8[np.ndarray, "3 H W"]:
    """The flat map of both hemispheres with its areas' borders, 900 pixels wide, on white and without text."""
    _check(map, N_CORTEX)
    pictures = [_draw(map, side, "flat", THUMBNAIL, True) for side in SIDES]
    canvas = np.full((max(len(picture) for picture in pictures), THUMBNAIL_WIDTH, 3), 255, np.uint8)
    _paste(canvas, 0, 0, pictures[0])
    _paste(canvas, THUMBNAIL_WIDTH - pictures[1].shape[1], 0, pictures[1])
    return np.ascontiguousarray(canvas.transpose(2, 0, 1))


def plot_volume(map: VoxelMap, mask: VolumeMask) -> Figure:
    """A figure of a map of the V voxels of a mask: seven slices each way through the voxels that have a value.

    The mask is grey; left is on the left. Slices are nilearn's, without interpolation; a grid that is turned against
    the axes is resampled to nearest neighbours. Numbers are mm.

    Raises DataError for another number of values, and limits that are no range.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from nilearn.plotting.displays import XSlicer, YSlicer, ZSlicer

    _check(map, mask.n_voxels)
    known = np.isfinite(map.values)
    inside = mask.inside.astype(np.float32)
    values, has_value = np.zeros_like(inside), np.zeros_like(inside)
    values[mask.inside] = np.where(known, map.values, 0)  # nilearn takes NaN for 0; what has no value is transparent
    has_value[mask.inside] = known
    box = tuple(slice(max(index.min() - 1, 0), index.max() + 2) for index in np.nonzero(mask.inside))
    affine = mask.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    everything, image, transparency = (nib.Nifti1Image(part[box], affine) for part in (inside, values, has_value))

    height = 1500
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI)
    page = _page(figure, height)
    shown: dict[str, Any] = {"threshold": None, "resampling_interpolation": "nearest"}
    for row, (slicer, cuts) in enumerate(zip((ZSlicer, YSlicer, XSlicer), _cuts(mask, known)[::-1])):
        display = slicer.init_with_figure(
            everything, figure=figure, axes=[0.01, 0.67 - 0.265 * row, 0.98, 0.25], cut_coords=cuts.tolist()
        )
        display.add_overlay(
            everything, transparency=everything, cmap=ListedColormap([(_BARE,) * 3]), vmin=0, vmax=1, **shown
        )
        if known.any():
            display.add_overlay(
                image, transparency=transparency, cmap=ListedColormap(colours(map.signed)), vmin=map.limits[0],
                vmax=map.limits[1], **shown,
            )  # fmt: skip
        display.annotate(size=6.5)
    _text(page, WIDTH / 2, 48, map.title, size=min(9, 720 / max(len(map.title), 1)), weight="bold")
    _colour_bar(figure, map, height - 145, height)
    return figure


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as .png, .svg or .pdf, atomically; the same figure gives the same bytes. DataError for others."""
    from matplotlib import rc_context

    path = Path(path)
    kind = path.suffix.lower()[1:]
    options: dict[str, dict[str, Any]] = {
        "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 1}},  # 6: four times as long, for 3 %
        "svg": {"metadata": {"Date": None}},
        "pdf": {"metadata": {"CreationDate": None}},
    }
    if kind not in options:
        raise DataError(f"{path}: expected the name of a picture, .png, .svg or .pdf")
    settings: Any = {"svg.fonttype": "path", "svg.hashsalt": "neuroclips", "pdf.fonttype": 42}
    with _saving, rc_context(settings), written_aside(path) as aside:
        figure.savefig(aside, format=kind, dpi=DPI, **options[kind])


def _check(map: VoxelMap, n_values: int) -> None:
    low, high = map.limits
    if len(map.values) != n_values:
        raise DataError(f"map {map.name!r} has {len(map.values)} values; expected {n_values}, one for each voxel")
    if not (np.isfinite([low, high]).all() and low < high):
        raise DataError(f"map {map.name!r} has limits {low} to {high}; expected a low number and a higher one")


def _scale(view: str) -> float:
    return FLAT if view == "flat" else BRAIN


def _draw(
    map: VoxelMap, side: str, view: str, scale: float | int, borders: bool | Sequence[str]
) -> UInt8[np.ndarray, "H W 3"]:
    """One panel, on white. What values have no part in is done in one channel, for it is most of it."""
    shown = panel(side, view, scale)
    lines = np.zeros_like(shown.shade)
    if borders is True or (borders and len(borders)):
        lines = area_borders(side, view, scale, None if borders is True else tuple(borders))
    mean, share = paint(shown, to_vertices(map.values, side))
    bare = (shown.relief * shown.shade)[:, None]
    pixels = np.repeat(_finished(bare, lines, shown.opacity), 3, axis=1)
    rows, (low, high) = np.flatnonzero(share), map.limits
    place = np.rint((mean[rows] - low) * (255 / (high - low))).clip(0, 255).astype(np.intp)
    coloured = colours(map.signed)[place] * (1 - _DIMMED + _DIMMED * shown.shade[rows, None])
    coloured = bare[rows] + share[rows, None] * (coloured - bare[rows])
    pixels[rows] = _finished(coloured, lines[rows], shown.opacity[rows])
    canvas = np.full((*shown.inside.shape, 3), 255, np.uint8)
    canvas[shown.inside] = pixels
    return canvas


def _finished(pixels: np.ndarray, lines: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """(n, 1 or 3) pixels from 0 to 1 with borders drawn on them, light on dark ones, and a smooth outline; uint8."""
    line = np.where(pixels.mean(axis=1, keepdims=True) < _DARK, np.float32(0.8), np.float32(0))
    pixels = pixels + (_LINES * lines)[:, None] * (line - pixels)
    return np.rint(255 * (1 + opacity[:, None] * (pixels - 1))).astype(np.uint8)


def _paste(canvas: np.ndarray, x: int, y: int, picture: np.ndarray) -> None:
    part = canvas[y : y + picture.shape[0], x : x + picture.shape[1]]
    np.minimum(part, picture, out=part)  # both are on white


def _cuts(mask: VolumeMask, known: Bool[np.ndarray, " V"]) -> list[np.ndarray]:
    """Seven places in mm along x, y and z between the outermost voxels with a value (of all, where none has)."""
    places = np.argwhere(mask.inside) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    ends = np.quantile(places[known] if known.any() else places, [0.01, 0.99], axis=0)
    return [np.unique(np.linspace(low, high, 9)[1:-1]) for low, high in ends.T]


def _page(figure: Figure, height: int) -> Axes:
    """Axes all over the figure whose units are pixels to the right and down."""
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, WIDTH), ylim=(height, 0))
    page.set_axis_off()
    return page


def _text(
    page: Axes, x: float | int, y: float | int, text: str, *, size: float | int = 7, weight: str = "normal",
    ha: str = "center", halo: bool = False,
) -> None:  # fmt: skip
    from matplotlib.patheffects import withStroke

    effects = [withStroke(linewidth=1.8, foreground="white", alpha=0.9)] if halo else None
    page.text(
        x, y, text, fontsize=size, fontweight=weight, fontfamily=_FONT, ha=ha, va="center", color="black",
        path_effects=effects, parse_math=False, multialignment=ha,
    )  # fmt: skip


def _colour_bar(figure: Figure, map: VoxelMap, y: int, height: int) -> None:
    """A horizontal colour bar with the map's unit; pointed where values lie beyond its ends."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    low, high = map.limits
    below, above = bool((map.values < low).any()), bool((map.values > high).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    width, thick = 760, 30
    x = (WIDTH - width) / 2
    axes = figure.add_axes((x / WIDTH, 1 - (y + thick) / height, width / WIDTH, thick / height))
    mappable = ScalarMappable(Normalize(low, high), ListedColormap(colours(map.signed)))
    bar = figure.colorbar(mappable, cax=axes, orientation="horizontal", extend=extend)
    assert bar.solids is not None
    bar.solids.set_rasterized(True)  # as 256 shapes it shows seams between them
    bar.outline.set_linewidth(0.5)
    axes.tick_params(labelsize=6.5, width=0.5, length=2.5, labelfontfamily=_FONT)
    bar.set_label(map.unit, fontsize=7, fontfamily=_FONT, parse_math=False)
    if np.isnan(map.values).any():
        left = (x + width + 70) / WIDTH
        swatch = figure.add_axes((left, 1 - (y + thick) / height, thick / WIDTH, thick / height))
        swatch.set(xticks=[], yticks=[], facecolor=(_BARE,) * 3)
        swatch.patch.set_linewidth(0)
        for spine in swatch.spines.values():
            spine.set_linewidth(0.5)
        swatch.text(1.4, 0.5, "no value", fontsize=6.5, fontfamily=_FONT, va="center", transform=swatch.transAxes)
