"""The stage ``maps``: which voxels mattered. Maps of one method, summaries of areas, and what they say.

Maps describe a fitted decoder on the test clips; nothing is chosen by them. Like scores, they open the test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from neuroclips.artefacts import write_arrays
from neuroclips.cortex.importance import mean_weights, patterns, permutation_importance
from neuroclips.cortex.lesions import lesion_losses
from neuroclips.cortex.reencoding import presentation_halves
from neuroclips.cortex.regions import Regions
from neuroclips.cortex.results import MapResults
from neuroclips.cortex.summary import Claim, RegionValues, area_rows, claim, of_clips
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.data.clips import Targets, TestClips
from neuroclips.data.prepared import Prepared, load_clips
from neuroclips.decoders import PATHWAYS, Decoded, Decoders, Pathway
from neuroclips.encoding import Encoding, Trust, trust_of
from neuroclips.errors import DataError
from neuroclips.evaluation.agreement import pattern_correlation
from neuroclips.evaluation.floors import shuffled_orders
from neuroclips.evaluation.identification import candidate_pool, correlation_scores, identify
from neuroclips.evaluation.intervals import SceneBootstrap
from neuroclips.evaluation.noise_ceiling import explainable_variance
from neuroclips.map_files import clip_map, regions_of, space_of, write_files, write_pictures
from neuroclips.recipe import MapsRecipe, Recipe
from neuroclips.reconstructor import Reconstructor
from neuroclips.report.from_run import maps_page
from neuroclips.report.page import write_report
from neuroclips.stages import Report, count_opening, load_targets, progress_bar

GROUPS = {"perception": "Perception", "semantics": "Semantics"}
BRAIN, TRUST = "The brain itself", "Can the video be trusted?"
SHUFFLES = 20  # of re-encoded clips
PPM = 1e6  # importance is so small a share of a score, a voxel


class Found:
    """Maps of one subject and their summaries, as they come in.

    mask : (G,) selected voxels.  regions, boot : of the V selected ones, and of the clips.
    """

    def __init__(self, mask: np.ndarray, regions: Regions, boot: SceneBootstrap):
        self.mask, self.regions, self.boot = mask, regions, boot
        self.maps: dict[str, list[VoxelMap]] = {}
        self.rows: list[pd.DataFrame] = []
        self.claims: list[Claim] = []
        self.findings: list[str] = []
        self.clips: pd.DataFrame | None = None

    def add(
        self, group: str, name: str, title: str, unit: str, values: np.ndarray, text: str, *,
        limits: tuple[float, float] | None = None, signed: bool = False, of_regions: RegionValues | None = None,
        higher: bool | None = None,
    ) -> None:  # fmt: skip
        """A map over the V selected voxels, its summaries, and what it says of the paper's claim (``higher``)."""
        known = np.abs(values[np.isfinite(values)]) if signed else values[np.isfinite(values)]
        top = float(np.percentile(known, 99)) if len(known) else 0.0
        top = top if top > 0 else 1.0
        limits = limits or ((-top, top) if signed else (0.0, top))
        whole = np.full(len(self.mask), np.nan, np.float32)
        whole[self.mask] = values
        self.maps.setdefault(group, []).append(VoxelMap(name, title, unit, whole, text, limits, signed))
        summary = of_regions or RegionValues(self.regions.means(values))
        self.rows.append(area_rows(name, summary, self.regions, self.boot, values).assign(unit=unit))
        if higher is not None and (said := claim(name, summary, self.regions, self.boot, higher)) is not None:
            self.claims.append(said)


@dataclass(frozen=True)
class Subject:
    """What maps are made from: a fitted method, and the test clips with their targets.

    means : the mean training targets, (1, ...) each.
    """

    prepared: Prepared
    recipe: Recipe
    decoders: Decoders
    targets: Targets
    means: Targets

    @property
    def test(self) -> TestClips:
        return self.prepared.test


def maps(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Which voxels mattered to one method; files as ``cortex.results`` has them."""
    chosen = recipe.maps or MapsRecipe()
    method = chosen.method or recipe.decoders.methods[-1]
    if method not in recipe.decoders.methods:
        raise DataError(f"{run}: {method} was not fitted; expected one of {', '.join(recipe.decoders.methods)}")
    prepared = load_clips(run / "prepare")
    space, volume = space_of(run, prepared)
    train, reconstructor = load_targets(run, "train"), Reconstructor.load(run / "fit" / method)
    means = Targets(*(t.mean(axis=0, keepdims=True, dtype=np.float32) for t in (train.latents, train.tokens)))
    s = Subject(prepared, recipe, reconstructor.decoders, load_targets(run, "test"), means)
    boot = SceneBootstrap(np.asarray(s.test.scene), recipe.evaluate.bootstrap, recipe.seed)
    found = Found(np.asarray(prepared.mask), regions_of(prepared, recipe, space, volume), boot)
    count_opening(run)
    with progress_bar(console) as report:
        for number, pathway in enumerate(PATHWAYS):
            report(number, len(PATHWAYS), f"{pathway}: first layer")
            first_layer_maps(found, s, pathway)
        preference(found)
        if chosen.lesions is not None:
            lesion_rows(found, s, chosen, report)
        noise_ceiling_map(found, s)
        if chosen.encoding:
            encoding = Encoding.fit(prepared.train, train, recipe.seed, report)
            partition_maps(found, s, encoding)
            trust_maps(found, s, encoding, reconstructor, own, report)
    results = MapResults(
        found.maps,
        pd.concat(found.rows, ignore_index=True),
        found.claims,
        [*sentences(found), *found.findings],
        space,
        found.clips,
    )
    results.write(own)
    if space != "unknown":
        with progress_bar(console) as report:
            write_pictures(own / "pictures", results.every, volume, ("png",), report)
    write_files(own, results, volume)
    write_report(own / "maps.html", maps_page(run, recipe, method))
    return {
        "method": method, "space": space, "maps": [m.name for m in results.every], "regions": len(found.regions),
        "findings": list(results.findings),
    }  # fmt: skip


def first_layer_maps(found: Found, s: Subject, pathway: Pathway) -> None:
    """Weights, patterns and importance of the layer that hears voxels."""
    layer, higher, group = s.decoders.first_layer(pathway), pathway == "semantics", GROUPS[pathway]
    inputs = s.decoders.inputs(s.test)
    what = "latents of the film" if pathway == "perception" else "CLIP tokens of the keyframe"
    once = int(s.test.present.sum(axis=1).min()) < 2  # noise cannot be told from signal
    one, two = (s.decoders.inputs(half) for half in ((s.test, s.test) if once else presentation_halves(s.test)))
    carried = patterns(layer, (one, two), found.regions)
    how = "noise and all" if once else "from two halves of the presentations with noise of their own"
    found.add(
        group, f"{pathway}-patterns", f"{group}: patterns", "r²", carried.values,
        f"How much of the decoded {what} each voxel itself carries (Haufe patterns): its squared correlation with what "
        f"is decoded, {how}. Read this map for where information "
        "is; a voxel that only helps to cancel noise is near 0, or below it by chance.",
        of_regions=of_clips(found.boot, carried.per_clip, found.regions.sizes, order=2), higher=higher,
    )  # fmt: skip
    lost = permutation_importance(layer, inputs, layer.goal(s.targets), found.regions)
    found.add(
        group, f"{pathway}-importance", f"{group}: permutation importance", "ppm of explained variance",
        lost.values * PPM,
        f"How much of the explained variance of the {what} is lost when this voxel's responses are exchanged between "
        f"clips, the exact mean over all permutations; all voxels together make up the score of {lost.score:.3f}. "
        "Read it for what the decoder uses: voxels that say the same share what they are worth.",
        of_regions=of_clips(found.boot, lost.per_clip * PPM, found.regions.sizes), higher=higher,
    )  # fmt: skip
    found.add(
        group, f"{pathway}-weights", f"{group}: weights, as in the paper", "mean |weight|, scaled to [0, 1]",
        mean_weights(layer, found.regions.n_voxels, inputs.shape[1]),
        "Mean absolute weight of every voxel in the first layer, scaled to [0, 1], as in the paper's figure 5. Read it "
        "with care: noise gets weights too, where it cancels the noise of other voxels (docs/maps.md).",
        limits=(0.25, 0.75), higher=higher,
    )  # fmt: skip


def preference(found: Found) -> None:
    """Which of the two pathways a voxel serves more."""
    share = {}
    for pathway in PATHWAYS:
        values = next(m.values for m in found.maps[GROUPS[pathway]] if m.name == f"{pathway}-importance")
        values = values[found.mask].astype(np.float64)
        if values.sum() <= 0:  # nothing is explained: there is nothing to share
            return
        share[pathway] = values / values.sum() * len(values)
    found.add(
        "Both", "preference", "Semantics or perception?", "difference of shares (1: an average voxel's)",
        (share["semantics"] - share["perception"]).astype(np.float32),
        "A voxel's share in the importance for semantics less its share in that for perception, in units of an average "
        "voxel. Above 0 it serves semantics more than perception, below 0 the other way round.",
        signed=True,
    )  # fmt: skip


def _agreement(s: Subject, pool: np.ndarray, decoded: Decoded) -> dict[str, np.ndarray]:
    """Of every clip: correlation of latents and of tokens with the true ones, and whether tokens find it (top-1)."""
    mean = s.means.latents[0]
    latents = pattern_correlation(decoded.latents, s.targets.latents, mean=mean, sd=np.ones_like(mean))
    tokens = correlation_scores(decoded.tokens, s.targets.tokens, s.means.tokens[0])
    return {"perception": latents, "semantics": np.diagonal(tokens), "top-1": identify(tokens, pool).values["top-1"]}


def lesion_rows(found: Found, s: Subject, chosen: MapsRecipe, report: Report) -> None:
    """What the whole decoder loses without each stream, or area."""
    kinds = ("all", "claim", "stream") if chosen.lesions == "streams" else ("all", "claim", "stream", "area")
    numbers = [
        i for i, r in enumerate(found.regions.regions)
        if r.kind in kinds and (r.kind in ("claim", "stream", "all") or r.hemisphere == "both")
    ]  # fmt: skip
    orders = shuffled_orders(s.test.scene, s.recipe.seed, chosen.shuffles)
    inputs = s.decoders.inputs(s.test)
    pool = candidate_pool(s.test.segment, s.test.onset, s.recipe.evaluate.exclude_seconds)
    lost = lesion_losses(
        s.decoders, inputs, s.test.ids, partial(_agreement, s, pool), found.regions, numbers, orders, report
    )  # fmt: skip
    some = found.regions.only(numbers)
    for name, unit, scale in (
        ("perception", "correlation lost", 1), ("semantics", "correlation lost", 1), ("top-1", "% of clips lost", 100),
    ):  # fmt: skip
        values = of_clips(found.boot, lost[name] * scale, np.ones(len(numbers)))
        rows = area_rows(f"{name}-lesion", values, some, found.boot, None)
        found.rows.append(rows.assign(unit=unit))


def noise_ceiling_map(found: Found, s: Subject) -> None:
    """Explainable variance of every voxel, from the test presentations."""
    test = s.test
    if int(test.present.sum(axis=1).max()) < 2:
        return
    values = explainable_variance(test.bold, np.asarray(test.present)).astype(np.float32)
    found.add(
        BRAIN, "noise-ceiling", "Noise ceiling", "explainable variance of one presentation", values,
        "How much of a voxel's response to one presentation the film explains at all: what presentations of the same "
        "film have in common. No model of the film can explain more, so judge the other maps against this one.",
    )  # fmt: skip


def partition_maps(found: Found, s: Subject, encoding: Encoding) -> None:
    """How much of each voxel's response low-level and semantic features explain, alone and together."""
    parts = encoding.partition(s.prepared.test, s.targets, found.regions)
    unit = "share of the mean response's variance"
    texts = {
        "low-level": "latents, edges, changes and flow of the film explain beyond its CLIP tokens",
        "semantic": "CLIP tokens of the film explain beyond its latents, edges, changes and flow",
    }
    for name, text in texts.items():
        found.add(
            BRAIN, f"{name}-unique", f"Explained by {name} features alone", unit,
            parts.voxels.unique[name].astype(np.float32),
            f"How much of a voxel's response to film that no model had seen the {text} (banded ridge). It is about the "
            "brain, whatever the decoder does; what goes with both is in the map of shared variance.",
            of_regions=of_clips(found.boot, parts.explained.unique[name], parts.squares), higher=name == "semantic",
        )  # fmt: skip
    for name, title, values, sums, text in (
        ("shared", "Explained by either", parts.voxels.shared, parts.explained.shared,
         "How much of a voxel's response both kinds of features explain equally well: what goes together in the film. "
         "Below 0, features of one kind only help beside the other."),
        ("explained", "Explained in all", parts.voxels.total, parts.explained.total,
         "How much of a voxel's response to film that no model had seen low-level and semantic features explain "
         "together. The noise ceiling of these scans is above it; below 0 a model does worse than the mean."),
    ):  # fmt: skip
        found.add(BRAIN, f"{name}-variance", title, unit, values.astype(np.float32), text,
                  of_regions=of_clips(found.boot, sums, parts.squares))  # fmt: skip


def trust_maps(
    found: Found, s: Subject, encoding: Encoding, reconstructor: Reconstructor, own: Path, report: Report
) -> None:
    """Does decoded film predict scans that it was not decoded from? Overall, and clip by clip."""
    test, tables = s.test, []
    for number, generator in enumerate(s.recipe.generate.generators):
        report(number, len(s.recipe.generate.generators), f"re-encoding: {generator}")
        trust = trust_of(
            encoding, reconstructor, generator, test, s.targets, s.recipe.evaluate.exclude_seconds, seed=s.recipe.seed,
            shuffles=SHUFFLES, draws=s.recipe.evaluate.bootstrap,
        )  # fmt: skip
        if trust is None:
            found.findings.append("Re-encoding needs two presentations of every test clip; there is one.")
            return
        per_clip = np.zeros((len(test), found.regions.n_cells))
        found.regions.add(per_clip, trust.products, slice(None))
        name = f"reencoding-{generator}"
        found.add(
            TRUST, name, f"Re-encoding of “{generator}”", "correlation", trust.products.mean(axis=0),
            f"The decoded film (“{generator}”) was given to an encoding model, and its prediction compared with scans "
            "that had no part in the decoding: correlation over clips. Where it is high, the decoded film can be "
            f"trusted; on average the film itself comes to {trust.film:.2f}, noise allows {trust.ceiling.mean():.2f}.",
            of_regions=of_clips(found.boot, found.regions.of_cells(per_clip), found.regions.sizes),
        )  # fmt: skip
        found.findings.append(_trust_sentence(generator, trust))
        write_arrays(own / f"{name}.safetensors", {"products": trust.products.astype(np.float16)})
        fit, shuffled = trust.patterns.correlation.clips, trust.patterns.correlation.shuffled.mean(axis=0)
        tables.append(
            pd.DataFrame(
                {
                    "clip": test.ids, "scene": np.asarray(test.scene), "generator": generator,
                    "correlation": fit, "shuffled": shuffled,
                    "percentile": trust.patterns.percentile,
                }
            )
        )  # fmt: skip
        if number == len(s.recipe.generate.generators) - 1:  # examples, chosen by rule
            order = np.argsort(fit)
            for what, place in {"best": -1, "median": len(order) // 2, "worst": 0}.items():
                clip = order[place]
                products = trust.products[clip]
                found.maps[TRUST].append(clip_map(test.ids[clip], generator, products, found.mask, found.regions, what))
    found.clips = pd.concat(tables, ignore_index=True)


def _trust_sentence(generator: str, trust: Trust) -> str:
    overall, ends = trust.overall, trust.overall.difference_interval
    if ends is None:
        return f"Re-encoding of “{generator}”: correlation {overall.value:.3f}; too few scenes for an interval."
    verdict = "more than" if ends[0] > 0 else "not clearly more than"
    share = (trust.patterns.percentile > 0.95).mean()
    beside = f"the film itself {trust.film:.3f}, noise allows {trust.ceiling.mean():.3f}"
    return (
        f"Re-encoding of “{generator}”: decoded film predicts held-out scans with a correlation of {overall.value:.3f} "
        f"({beside}), {verdict} film decoded for other scenes (difference {overall.difference:.3f}, 95 % interval "
        f"{ends[0]:.3f} to {ends[1]:.3f}). {share:.0%} of the clips fit their own scans better than 95 % of others do."
    )


def sentences(found: Found) -> Sequence[str]:
    """What the maps say of the paper's claim."""
    units = {m.name: (m.title, m.unit) for maps in found.maps.values() for m in maps}
    said = []
    for each in found.claims:
        title, unit = units[each.map]
        if each.interval is None:
            continue
        low, high = each.interval
        verdict = "larger" if each.holds else "smaller" if high < 0 else "not clearly larger"
        said.append(
            f"{title}: {verdict} in {each.larger} than in {each.smaller} "
            f"(difference {each.difference:.3g}, 95 % interval {low:.3g} to {high:.3g} {unit})."
        )
    return said
