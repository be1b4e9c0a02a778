"""What ``neuroclips prepare`` found, left out and selected, as the page shows it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import cv2
import numpy as np

from neuroclips.data.clips import Clips
from neuroclips.data.prepared import Prepared
from neuroclips.data.rois import STREAMS, cortex_rois
from neuroclips.data.source import CORTEX, SPLITS
from neuroclips.report.charts import Curve, Series, VoxelSummary, nice_ticks
from neuroclips.report.film import encode_jpeg
from neuroclips.shapes import UInt8

STRIPS = 24  # segments of a split whose film is shown, and frames of each: the page stays below a megabyte
FRAMES = 6
THUMBNAIL = 64  # pixels a side
_LONG = 30  # rows of a table that is folded up

_PRESENTATION = re.compile(r"\brepeat \d+ of ")
_LAYOUTS = {
    "cc2017": "scans in CC2017’s layout", "table": "scans listed in a table", "tensors": "published tensors",
}  # fmt: skip


@dataclass(frozen=True)
class DataCard:
    """Everything in the section on data; rows are JSON-like. Parts that a data set does not have are empty.

    sentences : what the data are, and which voxels were selected.
    alarm : what readers must not miss: that no voxels passed the selection.
    warnings : every doubt.
    splits : a row for each split: ``name``, ``segments``, ``minutes`` of film, ``clips``, ``repeats``, ``used`` and
        ``left_out`` presentations, ``scenes``, ``effective_n``, and ``dots``: ``x`` (percent of the axis), ``title``
        and ``odd`` of the agreement of each presentation.
    agreement : ends of that axis.
    films : for each split: ``name``, ``segments`` (how many there are) and ``strips``, each with ``name``, ``text`` and
        ``jpeg``, frames side by side in base64.
    runs : a row for each presentation of a segment, with those that are not used: ``split``, ``segment``, ``repeat``,
        ``file``, ``volumes``, ``first_volume`` (from 0), ``agreement`` and its ``x``, ``motion`` (mm), ``misfit`` (s),
        ``still`` (selected voxels that never change), ``reason`` why it is not used, ``warnings`` (numbers from 1).
    areas : a row for each group of cortical areas: ``name``, ``areas``, ``voxels``, median ``reliability``,
        ``selected``.
    facts : what was measured of published tensors.
    """

    sentences: Sequence[str]
    voxels: VoxelSummary
    curves: Sequence[Curve]
    splits: Sequence[Mapping[str, Any]]
    agreement: tuple[float, float]
    films: Sequence[Mapping[str, Any]]
    runs: Sequence[Mapping[str, Any]]
    areas: Sequence[Mapping[str, Any]] = ()
    alarm: str = ""
    warnings: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def odd(self) -> list[Mapping[str, Any]]:
        """Presentations that are not used or that a warning names, where the table of all is long."""
        return [r for r in self.runs if r["reason"] or r["warnings"]] if self.long else []

    @property
    def long(self) -> bool:
        return len(self.runs) > _LONG

    @property
    def columns(self) -> list[str]:
        """Those of ``runs`` that not every data set has something to say in."""
        return [name for name in ("motion", "misfit", "still", "file") if any(row[name] for row in self.runs)]

    @property
    def ending(self) -> str:
        """What all files' names end in, from an underscore or a dot on: BIDS names are long."""
        letters = zip(*(reversed(row["file"]) for row in self.runs if row["file"]))
        common = [letter for letter, *_ in takewhile(lambda column: len(set(column)) == 1, letters)]
        return re.sub(r"^[^_.]*", "", "".join(reversed(common)))


def data_card(prepared: Prepared, summary: Mapping[str, Any]) -> DataCard:
    """The card of ``data.prepare.prepare_bold``'s summary, as it is or read back from JSON, and of what it wrote."""
    runs = _runs(summary)
    values = [row["agreement"] for row in runs if row["agreement"] is not None]
    low, *_, high = nice_ticks(min([0.0, *values]), max([0.1, *values]))
    for row in runs:
        row["x"] = None if row["agreement"] is None else round(100 * (row["agreement"] - low) / (high - low), 1)
    chosen = summary["selection"]
    alarm = ""
    if chosen["fallback"]:
        alarm = (
            f"Too few voxels passed the selection. The {chosen['selected']:,} of smallest p are used instead, "
            "significant or not."
        )
    return DataCard(
        sentences=[_what(summary), _pairing(summary), _selection(summary)],
        alarm=alarm,
        warnings=list(summary["warnings"]),
        splits=[_split(name, summary, runs) for name in SPLITS],
        agreement=(low, high),
        films=[_films(getattr(prepared, name), summary["splits"][name]) for name in SPLITS],
        runs=runs,
        areas=_areas(prepared),
        voxels=_voxels(prepared),
        curves=_curves(summary),
        facts=_facts(summary["source"]),
    )


# ---------------------------------------------------------------- sentences


def _what(summary: Mapping[str, Any]) -> str:
    segments = [(s, len(s["runs"])) for split in summary["splits"].values() for s in split["segments"]]
    t_r, space = summary["t_r"], summary["space"]
    film = sum(s["clips"] for s, _ in segments) * t_r
    scan = sum(s["clips"] * n for s, n in segments) * t_r
    return (
        f"Subject {summary['subject']}: {_LAYOUTS[summary['layout']]} ({space}), a volume every {t_r:g} s. "
        f"{sum(n for _, n in segments)} presentations of {len(segments)} film segments are used: "
        f"{_lasting(scan)} of scan, {_lasting(film)} of film."
    )


def _lasting(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _pairing(summary: Mapping[str, Any]) -> str:
    t_r, delays = summary["t_r"], _delays(summary)
    trs, seconds = _joined(f"{d}" for d in delays), _joined(f"{d * t_r:g}" for d in delays)
    several = len(delays) > 1
    volumes = f"the volume{'s' if several else ''} {trs}"
    unit = "TR" if delays == [1] else "TRs"
    return (
        f"Each clip of {t_r:g} s is paired with {volumes} {unit} ({seconds} s) after the one during which it was shown"
        f"{', which decoders see together' if several else ''}."
    )


def _selection(summary: Mapping[str, Any]) -> str:
    chosen = summary["selection"]
    sided = f"{'one' if chosen['sides'] == 1 else 'two'}-sided t-test over training segments"
    method = chosen["method"]
    rule = {
        "bonferroni": f"whose repeats agree (p < {chosen['p']:g}, {sided}, Bonferroni)",
        "fdr": f"whose repeats agree (false discovery rate {chosen['p']:g}, {sided})",
        "top": f"whose repeats agree best (smallest p, {sided})",
        "all": "that change at all; none was tested",
    }[method]
    if chosen["fallback"]:
        rule = f"of smallest p ({sided}), for too few of them passed the test"
    where = []
    if chosen["rois"]:
        side = "" if chosen["hemisphere"] == "both" else f"; {chosen['hemisphere']} hemisphere"
        where.append(f" in the areas named ({', '.join(chosen['rois'])}{side})")
    if chosen["mask"]:
        where.append(f" in the mask {_name(str(chosen['mask']))}")
    asked = f"{chosen['asked']:,} voxels{' and'.join(where)}"
    if where:
        asked = f"the {asked}, of {chosen['of']:,} altogether,"
    share = f"{100 * chosen['selected'] / max(chosen['asked'], 1):.1f} %"
    alone = "" if method == "all" else " Only training scans were looked at for this."
    return (
        f"{chosen['selected']:,} of {asked} are selected, {share}: those {rule}. Their median reliability is "
        f"{chosen['median_reliability']:.2f}.{alone}"
    )


def _delays(summary: Mapping[str, Any]) -> list[int]:
    return [summary["delay_trs"] + lag for lag in summary["lags"]]


def _joined(parts: Any) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else str(last)


# ---------------------------------------------------------------- splits and presentations


def _split(name: str, summary: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    split, own = summary["splits"][name], [row for row in runs if row["split"] == name]
    repeats = sorted({len(s["repeats"]) for s in split["segments"]})
    return {
        "name": name,
        "segments": len(split["segments"]),
        "minutes": split["clips"] * summary["t_r"] / 60,
        "clips": split["clips"],
        "repeats": f"{repeats[0]}–{repeats[-1]}" if len(repeats) > 1 else f"{repeats[0]}",
        "used": sum(len(s["runs"]) for s in split["segments"]),
        "left_out": sum(len(s["excluded"]) for s in split["segments"]),
        "scenes": split["scenes"],
        "effective_n": split["effective_n"],
        "dots": [
            {"x": r["x"], "odd": bool(r["warnings"]), "title": f"{r['segment']}, {r['repeat']}: {r['agreement']:.2f}"}
            for r in own
            if r["x"] is not None
        ],
    }


def _runs(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that are used, left out, and missing, in the order of the film."""
    tensors = summary["layout"] == "tensors"
    rows = []
    for name in SPLITS:
        for segment in summary["splits"][name]["segments"]:
            place = {"split": name, "segment": segment["name"], "file": "", "volumes": None, "first_volume": None,
                     "agreement": None, "motion": None, "misfit": 0.0, "still": 0, "reason": "",
                     "warnings": []}  # fmt: skip
            found: dict[int, dict[str, Any]] = {}
            for run in segment["runs"]:
                about = {key: run[key] for key in ("volumes", "first_volume", "agreement", "motion", "misfit")}
                file = "" if tensors else run["file"]  # all of a tensor's segments are in one
                doubts = _doubts(summary["warnings"], segment["name"], run["repeat"], file)
                found[run["repeat"]] = {**about, "file": file, "still": run["still_voxels"], "warnings": doubts}
            for repeat, said in segment["excluded"].items():
                file, _, reason = said.partition(": ")  # "FILE: why", with the place in published tensors
                found[int(repeat)] = {"file": "" if tensors else _name(file), "reason": f"left out: {reason or said}"}
            rows += [place | {"repeat": f"repeat {k}"} | found[k] for k in sorted(found)]
            missing = [str(k) for k in segment["missing"] if k not in found]
            if missing:
                what = f"repeat{'s' if len(missing) > 1 else ''} {_joined(missing)}"
                rows.append(place | {"repeat": what, "reason": "not there"})
    return rows


def _doubts(warnings: Sequence[str], segment: str, repeat: int, file: str) -> list[int]:
    """Numbers, from 1, of the warnings that name this presentation, or its file and no presentation."""
    named, subjects = f"repeat {repeat} of {segment} ", [_name(text.partition(": ")[0]) for text in warnings]
    return [
        number
        for number, (text, subject) in enumerate(zip(warnings, subjects), 1)
        if named in text or (file and subject == file and not _PRESENTATION.search(text))
    ]


def _name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _films(clips: Clips, split: Mapping[str, Any]) -> dict[str, Any]:
    """A few frames of each segment's film; of long splits, some segments at equal distances."""
    n = len(split["segments"])
    strips = []
    for number in np.unique(np.linspace(0, n - 1, min(n, STRIPS)).round().astype(int)):
        segment = split["segments"][number]
        rows = np.flatnonzero(np.asarray(clips.segment) == number)
        middles = (2 * np.arange(FRAMES) + 1) * len(rows) // (2 * FRAMES)  # of so many equal parts
        frames = [_thumbnail(clips.frames[row, clips.n_frames // 2]) for row in rows[middles]]
        strips.append(
            {
                "name": segment["name"],
                "text": f"{segment['clips'] * clips.t_r / 60:.1f} min, {segment['scenes']} scenes",
                "jpeg": base64.b64encode(encode_jpeg(np.concatenate(frames, axis=2), quality=80)).decode(),
            }
        )
    return {"name": clips.split, "segments": n, "strips": strips}


def _thumbnail(frame: UInt8[np.ndarray, "3 H W"]) -> UInt8[np.ndarray, "3 h w"]:
    share = min(1.0, THUMBNAIL / max(frame.shape[1:]))
    size = (round(frame.shape[2] * share), round(frame.shape[1] * share))
    image = np.ascontiguousarray(frame.transpose(1, 2, 0))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).transpose(2, 0, 1)


# ---------------------------------------------------------------- voxels and delays


def _voxels(prepared: Prepared) -> VoxelSummary:
    edges = np.linspace(-0.2, 1.0, 49)
    reliability = np.clip(prepared.reliability, edges[0], edges[-1])
    return VoxelSummary(
        n_selected=int(prepared.mask.sum()),
        n_total=len(prepared.mask),
        edges=edges,
        counts=np.histogram(reliability, edges)[0],
        selected=np.histogram(reliability[prepared.mask], edges)[0],
    )


def _areas(prepared: Prepared) -> list[dict[str, Any]]:
    """Reliability by groups of visual areas; only the cortex's vertices have known areas."""
    if prepared.space != CORTEX:
        return []
    groups = {name: cortex_rois([name]) for name in STREAMS}
    groups["rest of cortex"] = ~groups.pop("visual")
    return [
        {
            "name": name,
            "areas": ", ".join(STREAMS.get(name, ())),
            "voxels": int(inside.sum()),
            "reliability": float(np.median(prepared.reliability[inside])),
            "selected": int(prepared.mask[inside].sum()),
        }
        for name, inside in groups.items()
    ]


def _curves(summary: Mapping[str, Any]) -> list[Curve]:
    curve, delays = summary["lag_curve"], _delays(summary)
    curves = [
        Curve(
            title="When the brain answers",
            x_label=f"lag of the response (TRs of {summary['t_r']:g} s)",
            y_label="correlation",
            series=[Series("validation segments", curve["lag_trs"], curve["correlation"])],
            marks={"delays used" if len(delays) > 1 else "delay used": delays},
            note="How well a coarse picture of each clip is decoded from the response so many TRs later. Best at "
            f"{curve['best']}. A curve without a peak, or with one elsewhere, says that scans and film do not fit.",
        )
    ]
    rows = summary["source"].get("row_lag_curve")
    if rows is not None:
        curves.append(
            Curve(
                title="The delay inside the tensors",
                x_label="rows between film and response",
                y_label="correlation",
                series=[Series("rows as stored", rows["rows"], rows["correlation"])],
                note="The same from the tensors as they are. A peak at 0 says that responses were shifted already.",
            )
        )
    return curves


def _facts(source: Mapping[str, Any]) -> dict[str, str]:
    """What was measured of published tensors, which count segments and repeats from 0; here from 1, as everywhere."""
    facts: dict[str, str] = {}
    if "stored_delay_trs" in source:
        facts["delay inside (TRs)"] = source["stored_delay_trs"]

    def named(place: Sequence[Any]) -> str:
        split, segment, repeat = place
        return f"{'test' if split == 'test' else 'seg'}{segment + 1}, repeat {repeat + 1}"

    for split in ("train", "test"):
        if split in source:
            part = source[split]
            low, high = part["sd"]
            scaled = (
                "z-scored in each segment"
                if part["z_scored_per_segment"]
                else f"not z-scored in each segment (|mean| up to {part['max_abs_mean']:.3g}, standard deviation "
                f"{low:.3g} to {high:.3g}), so z-scored here"
            )
            facts[f"{split} responses"] = (
                f"{part['segments']} segments, {part['repeats']} repeats, {part['voxels']:,} voxels; {scaled}; "
                f"{part['constant_voxels']} voxels never change, {part['sometimes_constant_voxels']} do not in "
                "some segments"
            )
    if source.get("missing_repeats"):
        facts["empty repeats"] = "; ".join(named(place) for place in source["missing_repeats"])
    if source.get("duplicates"):
        facts["copies"] = "; ".join(f"{named(a)} equals {named(b)}" for a, b in source["duplicates"])
    for role, file in source.get("files", {}).items():
        span = " values in [{}, {}],".format(*file["span"]) if "span" in file else ""
        shape = " × ".join(str(n) for n in file["shape"])
        facts[f"file: {role}"] = f"{file['name']}, {file['dtype']},{span} {shape}, {file['bytes'] / 1e6:,.1f} MB"
    if source.get("missing"):
        facts["files not there"] = ", ".join(source["missing"])
    return facts
