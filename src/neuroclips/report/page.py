"""One self-contained HTML page of a run: its scores beside floors and ceilings, and every clip to look at.

The page needs no network and no other file. Its texts (clip names, recipe values, credits) are not trusted: they are
escaped, and a content security policy lets only the page's own script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup

from neuroclips.artefacts import written_aside
from neuroclips.errors import DataError
from neuroclips.evaluation.table import Score, format_interval, format_value, score_interval
from neuroclips.report import charts
from neuroclips.report.charts import Curve
from neuroclips.report.data_card import DataCard
from neuroclips.report.film import encode_jpeg, encode_mp4
from neuroclips.report.maps import MapsSection, maps_section
from neuroclips.shapes import UInt8

Picture = UInt8[np.ndarray, "... 3 _ _"]  # a video (F, 3, H, W), or a still (3, H, W)

_OWN = ("report.css", "maps.css", "report.js", "surface.js")  # styles and scripts among the templates
_PERCENTILES = {"best": 1.0, "75th percentile": 0.75, "median": 0.5, "25th percentile": 0.25, "worst": 0.0}


@dataclass(frozen=True)
class ReportClip:
    """A test clip and its pictures by name, in the order in which they stand side by side: "shown" first.

    text : a line below the pictures, such as a caption.
    """

    id: str
    scene: int
    pictures: Mapping[str, Picture]
    text: str = ""


@dataclass(frozen=True)
class Strip:
    """Pictures side by side under a heading: of ``id``, with videos that last ``seconds`` (a clip's, by default)."""

    title: str
    id: str
    pictures: Mapping[str, Picture]
    text: str = ""
    seconds: float | int | None = None


@dataclass(frozen=True)
class Exhibit:
    """A section of strips, between the gallery and the browser of all clips; ``name`` is its address on the page."""

    name: str
    title: str
    text: str
    strips: Sequence[Strip]


@dataclass(frozen=True)
class ScoreName:
    """Names one score: where it was measured, of which method, by which metric."""

    space: str
    method: str
    metric: str


@dataclass(frozen=True)
class Stage:
    """What a stage of the run cost."""

    name: str
    seconds: float | int
    memory_mb: float | int | None = None


@dataclass(frozen=True)
class RunCard:
    """Where the numbers come from. ``recipe`` is JSON-like; ``facts`` are lines such as seed, commit, data hash."""

    recipe: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[Stage] = ()


@dataclass(frozen=True)
class Credit:
    """Whose work the page shows, under which licence. Only http and https addresses become links."""

    text: str
    url: str | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything on the page. Parts that a run does not have are None or empty and leave no trace.

    what, source : complete "We decoded WHAT from SOURCE."; ``opening`` takes that sentence's place.
    scores : rows of the score table.
    headline : the score that the first paragraph is about; the first row that is no control by default.
    per_clip : columns clip, scene, method, space, metric, value (``evaluation.scores.Scored.per_clip``).
    gallery : the per-clip score that ranks the clips for the gallery; ``clips`` are shown at fixed percentiles of it.
    clip_seconds : how long a clip lasts.
    exhibits : more to look at, in order.
    notice : a sentence that readers must not miss, such as that the subject is simulated.
    n_clips : how many clips were scored, where the page has room for some of them only.
    maps : which voxels mattered.
    data_card : what the scans and films were, and which voxels were selected.
    """

    title: str
    what: str = ""
    source: str = ""
    scores: Sequence[Score] = ()
    headline: ScoreName | None = None
    per_clip: pd.DataFrame | None = None
    clips: Sequence[ReportClip] = ()
    gallery: ScoreName | None = None
    clip_seconds: float | int = 2.0
    exhibits: Sequence[Exhibit] = ()
    notice: str = ""
    opening: str = ""
    n_clips: int | None = None
    repeats_curve: Curve | None = None
    curves: Sequence[Curve] = ()
    training_curves: Sequence[Curve] = ()
    maps: MapsSection | None = None
    data_card: DataCard | None = None
    card: RunCard | None = None
    credits: Sequence[Credit] = ()


def write_report(path: Path | str, data: ReportData) -> None:
    """Write the page, atomically.

    At 64 x 64 pixels, 200 clips with three videos of 6 frames are about 8 MB; 64 clips with a generated video of 16
    frames beside them, about 6 MB. The cortex of the section on maps is 0.6 MB, each map with a picture 0.2 MB more.
    """
    text = render_report(data)
    with written_aside(Path(path)) as aside:
        aside.write_text(text, encoding="utf-8")


def render_report(data: ReportData) -> str:
    """The page as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neuroclips.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates = files("neuroclips.report").joinpath("templates")
    own = {name: templates.joinpath(name).read_text(encoding="utf-8") for name in _OWN}
    headline = _headline_score(data)
    curves = [c for c in (data.repeats_curve, *data.curves) if c is not None]
    found = data.data_card
    maps = None if data.maps is None else maps_section(data.maps)
    scripts = ["report.js"] + (["surface.js"] if maps and maps["viewer"] else [])
    return environment.get_template("report.html.j2").render(
        data=data,
        headline=headline,
        sentences=_sentences(data, headline),
        tiles=_tiles(headline),
        panels=charts.dot_panels(data.scores),
        rows=[_table_row(score) for score in data.scores],
        gallery=_gallery(data),
        curves=[charts.line_chart(curve) for curve in curves],
        training_curves=[charts.line_chart(curve) for curve in data.training_curves],
        found=found,
        found_curves=[] if found is None else [charts.line_chart(curve) for curve in found.curves],
        histogram=None if found is None else charts.histogram(found.voxels),
        recipe=None if data.card is None else _as_yaml(data.card.recipe),
        credits=[(credit.text, _web_address(credit.url)) for credit in data.credits],
        pictures=_payload(data),
        geometry={name: getattr(charts, name) for name in ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")},
        maps=maps,
        # Markup: these are files of this package, not text of the run.
        style=Markup(own["report.css"] + (own["maps.css"] if maps else "")),
        scripts=[Markup(own[name]) for name in scripts],
        script_sources=Markup(" ".join(f"'sha256-{_sha256(own[name])}'" for name in scripts)),
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def percentile_clips(per_clip: pd.DataFrame, name: ScoreName, higher_is_better: bool = True) -> list[dict[str, Any]]:
    """The clips at fixed percentiles of a score, best to worst: chosen by rule, not by eye.

    Clips are sorted by the score, equal scores by clip name; percentile q of n clips is number round(q (n - 1)).
    """
    chosen = _values_of(per_clip, name)
    if chosen.empty:
        raise DataError(
            f"no per-clip values of {name.metric!r} by {name.method!r} in {name.space!r}; cannot rank clips"
        )
    ordered = chosen.sort_values(["value", "clip"], ascending=[higher_is_better, True])
    numbers = {label: round(q * (len(ordered) - 1)) for label, q in _PERCENTILES.items()}
    return [
        {"label": label, "id": ordered["clip"].iloc[i], "value": float(ordered["value"].iloc[i])}
        for label, i in numbers.items()
    ]


def _values_of(per_clip: pd.DataFrame, name: ScoreName) -> pd.DataFrame:
    return per_clip[
        (per_clip["space"] == name.space) & (per_clip["method"] == name.method) & (per_clip["metric"] == name.metric)
    ]


def _headline_score(data: ReportData) -> Score | None:
    for score in data.scores:
        wanted = not score.control if data.headline is None else _name_of(score) == data.headline
        if wanted:
            return score
    if data.headline is not None:
        raise DataError(f"the headline score {data.headline} is not among the scores")
    return None


def _name_of(score: Score) -> ScoreName:
    return ScoreName(score.space, score.method, score.metric)


def _sentences(data: ReportData, score: Score | None) -> list[str]:
    """The first paragraph in plain words: what was decoded from what, and how good against floor and ceiling."""
    said = [data.opening or f"We decoded {data.what} from {data.source}."]
    if score is None:
        return said

    def text(value: float | None) -> str:
        return format_value(value, score.unit)

    result = {
        "top-1": f"found the right clip at its first choice for {text(score.value)} of {score.n} clips",
        "top-5": f"had the right clip among its first five for {text(score.value)} of {score.n} clips",
        "pairwise": f"put the right clip before {text(score.value)} of the wrong ones",
        "median rank": f"put the right clip at median rank {text(score.value)}",
    }.get(score.metric, f"reached a {score.metric} of {text(score.value)} over {score.n} clips")
    interval = score_interval(score)
    between = "" if interval is None else f" (95 % interval {format_interval(interval, score.unit)})"
    said.append(f"Compared by {score.space}, “{score.method}” {result}{between}.")
    beside = [] if score.chance is None else [f"chance is {text(score.chance)}"]
    for kind, scores in (("floor", score.floors), ("baseline", score.baselines)):
        beside += [f"the {kind} “{name}” reaches {text(value)}" for name, value in scores.items()]
    if score.ceiling is not None:
        beside.append(f"the ceiling is {text(score.ceiling)}")
    if beside:
        said.append(f"{beside[0][0].upper()}{'; '.join(beside)[1:]}.")
    if score.beats_floors:
        said.append("It is better than every floor by more than the paired 95 % interval.")
    elif score.beats_floors is False:
        not_beaten = [f"“{n}”" for n in score.differences if n not in score.baselines and not score.beats(n)]
        said.append(f"It is not clearly better than {', '.join(not_beaten)}: read it as no evidence of decoding.")
    for name in score.baselines:
        said.append(f"It is {'' if score.beats(name) else 'not '}clearly better than the baseline “{name}”.")
    return said


def _tiles(score: Score | None) -> list[dict[str, str]]:
    if score is None:
        return []
    tiles = [{"name": f"{score.metric}, {score.method}", "value": format_value(score.value, score.unit),
              "below": format_interval(score_interval(score), score.unit)}]  # fmt: skip
    if score.chance is not None:
        chance = format_value(score.chance, score.unit)
        tiles.append({"name": "chance", "value": chance, "below": "predictions made for other scenes"})
    if score.floors:
        pick = max if score.higher_is_better else min
        name, value = pick(score.floors.items(), key=lambda item: item[1])
        tiles.append({"name": "hardest floor", "value": format_value(value, score.unit), "below": name})
    for name, value in score.baselines.items():
        tiles.append({"name": "baseline", "value": format_value(value, score.unit), "below": name})
    if score.ceiling is not None:
        tiles.append({"name": "ceiling", "value": format_value(score.ceiling, score.unit), "below": "best reachable"})
    if score.brain_attributable is not None:
        below = format_interval(score.brain_attributable_interval, "share")
        share = format_value(score.brain_attributable, "share")
        tiles.append({"name": "from the brain", "value": share, "below": below})
    return tiles


def _table_row(score: Score) -> dict[str, Any]:
    def difference(name: str) -> str:
        ends = score.differences.get(name)
        return "" if ends is None else f"difference {format_interval(ends, score.unit)}"

    test = next((name for name in ("other pairings", "shuffled") if name in score.p_values), None)
    p = "–" if test is None else f"{score.p_values[test]:.2g}"
    if test is not None and test in score.p_holm:
        p += f" ({score.p_holm[test]:.2g})"
    beside = {**score.floors, **score.baselines}
    return {
        "score": score, "value": format_value(score.value, score.unit),
        "interval": format_interval(score_interval(score), score.unit),
        "chance": format_value(score.chance, score.unit), "ceiling": format_value(score.ceiling, score.unit),
        "beside": [(name, format_value(v, score.unit), difference(name)) for name, v in beside.items()],
        "brain": format_value(score.brain_attributable, "share"),
        "brain_interval": format_interval(score.brain_attributable_interval, "share"),
        "p": p, "n_effective": f"{score.n_effective:.1f}",
    }  # fmt: skip


def _gallery(data: ReportData) -> dict[str, Any] | None:
    if data.gallery is None or data.per_clip is None or not data.clips:
        return None
    row = next((s for s in data.scores if _name_of(s) == data.gallery), None)
    unit, higher = (row.unit, row.higher_is_better) if row else ("", True)
    shown, ids = data.per_clip, {clip.id for clip in data.clips}
    clips = percentile_clips(shown, data.gallery, higher)
    if any(clip["id"] not in ids for clip in clips):  # rank those that the page has
        shown = shown[shown["clip"].isin(ids)]
        clips = percentile_clips(shown, data.gallery, higher)
    return {
        "name": data.gallery,
        "ranked": len(_values_of(shown, data.gallery)),
        "clips": [clip | {"text": format_value(clip["value"], unit)} for clip in clips],
    }


def _payload(data: ReportData) -> dict[str, Any]:
    """What the page's script reads: the pictures of every clip and exhibit, and the clips' scores."""
    ids = [clip.id for clip in data.clips]
    if len(set(ids)) != len(ids):
        raise DataError(f"{len(ids)} clips have {len(set(ids))} different ids; expected one id a clip")
    columns, values = _per_clip_columns(data, ids)
    ranked = None if data.gallery is None else asdict(data.gallery)
    return {
        "shown": columns.index(ranked) if ranked in columns else 0,
        "columns": columns,
        "clips": [
            _encoded(clip, data.clip_seconds) | {"scene": clip.scene, "values": v}
            for clip, v in zip(data.clips, values)
        ],
        "exhibits": [
            [_encoded(s, data.clip_seconds if s.seconds is None else s.seconds) for s in exhibit.strips]
            for exhibit in data.exhibits
        ],
    }


def _encoded(shown: ReportClip | Strip, seconds: float | int) -> dict[str, Any]:
    pictures = []
    for name, picture in shown.pictures.items():
        still = picture.ndim == 3
        content = encode_jpeg(picture) if still else encode_mp4(picture, seconds)
        kind = "image/jpeg" if still else "video/mp4"
        pictures.append({"name": name, "type": kind, "content": base64.b64encode(content).decode()})
    return {"id": shown.id, "text": shown.text, "pictures": pictures}


def _per_clip_columns(data: ReportData, ids: list[str]) -> tuple[list[dict[str, str]], list[list[float | None]]]:
    if data.per_clip is None or data.per_clip.empty:
        return [], [[] for _ in ids]
    keys = ["space", "metric", "method"]
    order = list(data.per_clip[keys].drop_duplicates().itertuples(index=False, name=None))
    wide = data.per_clip.pivot_table(index="clip", columns=keys, values="value", sort=False).reindex(ids)
    values = [
        [float(f"{v:.4g}") if math.isfinite(v) else None for v in row] for row in wide[order].to_numpy(np.float64)
    ]
    return [dict(zip(keys, column)) for column in order], values


def _as_yaml(content: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(dict(content), default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def _web_address(url: str | None) -> str | None:
    return url if url is not None and url.lower().startswith(("https://", "http://")) else None
