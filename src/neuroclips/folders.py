"""``neuroclips score``: anyone's videos against the film, through the same code as our own.

It needs no model, recipe or training data of ours: two folders are enough. Floors come from the same videos: the
predictions of other scenes (``shuffled``), the mean frame, and the frames in another order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neuroclips.artefacts import content_hash, file_hash, write_json
from neuroclips.data.frames import cuts_between
from neuroclips.data.pairing import aligned, pair
from neuroclips.data.prepare import scene_of
from neuroclips.data.videos import VideoSource
from neuroclips.errors import DataError
from neuroclips.evaluation.floors import shuffled_orders
from neuroclips.evaluation.judged import joined, score_judged
from neuroclips.evaluation.judges import Judge, load_judge
from neuroclips.evaluation.measure import measure_videos
from neuroclips.evaluation.scores import Scored, score_measured
from neuroclips.evaluation.table import with_holm, write_tables
from neuroclips.report.page import ReportClip, ReportData, RunCard, ScoreName, Stage, percentile_clips, write_report
from neuroclips.shapes import Float, Int, UInt8

Report = Callable[[int, int, str], None]
SHOWN = 100  # clips on the page
RESERVED = ("film", "training film", "ceiling", "shuffled", "mean frame", "frames shuffled")  # names of our own


@dataclass(frozen=True)
class Places:
    """Where the truth's clips lie in the film: what decides which of them are independent, and which too alike."""

    segment: Int[np.ndarray, " B"]
    onset: Float[np.ndarray, " B"]
    scene: Int[np.ndarray, " B"]
    said: str


@dataclass(frozen=True)
class Question:
    """What is compared: videos of the same clips, in the truth's order and on one grid of times and pixels.

    methods : by name. Floors, baselines (read the same brain) and a ceiling may come from folders too.
    training : other film of the same kind, for the mean frame; None takes the truth's own.
    """

    truth: VideoSource
    methods: Mapping[str, VideoSource]
    floors: Mapping[str, VideoSource] = field(default_factory=dict)
    baselines: Mapping[str, VideoSource] = field(default_factory=dict)
    ceiling: VideoSource | None = None
    training: VideoSource | None = None

    @property
    def sources(self) -> dict[str, VideoSource]:
        """Everything that is read, by what it is."""
        found = {"film": self.truth, **self.methods, **self.floors, **self.baselines}
        extra = {"ceiling": self.ceiling, "training film": self.training}
        return found | {name: source for name, source in extra.items() if source is not None}


def ask(
    truth: VideoSource,
    methods: Mapping[str, VideoSource],
    *,
    floors: Mapping[str, VideoSource] | None = None,
    baselines: Mapping[str, VideoSource] | None = None,
    ceiling: VideoSource | None = None,
    training: VideoSource | None = None,
) -> Question:
    """Pair the clips of every folder with the truth's, and put all on one grid.

    Sizes become the truth's; times are those of whichever has the fewest frames, so that no frame is made up.

    Raises
    ------
    DataError
        Clips that do not pair, aspect ratios that differ, or two folders under one name.
    """
    floors, baselines = floors or {}, baselines or {}
    names = [*methods, *(f"{name}, shuffled" for name in methods), *floors, *baselines]
    twice = sorted({name for name in names if names.count(name) > 1 or name in RESERVED})
    if twice:
        raise DataError(f"{twice[0]!r} names two sets of videos; give each another name (NAME=FOLDER)")
    others = {**methods, **floors, **baselines, **({} if ceiling is None else {"ceiling": ceiling})}
    n_frames = min(source.shape[1] for source in (truth, *others.values()))
    height, width = truth.shape[3:]
    put = {name: aligned(source.take(pair(truth, source).predicted), n_frames, height, width)
           for name, source in others.items()}  # fmt: skip
    return Question(
        aligned(truth, n_frames, height, width),
        {name: put[name] for name in methods},
        {name: put[name] for name in floors},
        {name: put[name] for name in baselines},
        put.get("ceiling"),
        None if training is None else aligned(training, min(n_frames, training.shape[1]), height, width),
    )


def read_places(path: Path, names: Sequence[str]) -> Places:
    """Places from a table (.tsv or .csv) with a column ``clip`` and any of ``segment``, ``onset`` (s), ``scene``.

    Without ``scene`` every clip is a scene of its own; without ``segment`` and ``onset`` no clips are neighbours.

    Raises
    ------
    DataError
        The table cannot be read, lacks ``clip``, names a clip twice, lacks one of ``names``, or has other columns.
    """
    try:
        table = pd.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",", dtype={"clip": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table of clips ({error})") from error
    unknown = [name for name in table.columns if name not in {"clip", "segment", "onset", "scene"}]
    if "clip" not in table or unknown:
        raise DataError(f"{path}: columns {', '.join(map(str, table.columns))}; expected clip, segment, onset, scene")
    if table["clip"].duplicated().any() or table.isna().any(axis=None):
        raise DataError(f"{path}: a clip is named twice, or a cell is empty; expected one full row a clip")
    missing = [name for name in names if name not in set(table["clip"])]
    if missing:
        raise DataError(f"{path}: no row for clip {missing[0]!r} ({len(missing)} of {len(names)} are missing)")
    table = table.set_index("clip").loc[list(names)]
    n = len(table)
    segment = pd.factorize(table["segment"])[0] if "segment" in table else np.arange(n)
    if "onset" in table and not np.isfinite(pd.to_numeric(table["onset"], errors="coerce")).all():
        raise DataError(f"{path}: an onset is not a number; expected seconds")
    onset = table["onset"].to_numpy(np.float64) if "onset" in table else np.zeros(n)
    scene = pd.factorize(table["scene"])[0] if "scene" in table else np.arange(n)
    return Places(np.asarray(segment), onset, np.asarray(scene), f"from {path.name}")


def find_places(truth: VideoSource, clip_seconds: float | int, scenes: Literal["detect", "each"]) -> Places:
    """Clips as one segment in the order of their names, with cuts where PySceneDetect sees them; or (``each``) every
    clip a scene of its own without neighbours, as for clips that come from different films."""
    n = len(truth)
    if scenes == "each":
        return Places(np.arange(n), np.zeros(n), np.arange(n), "every clip a scene of its own")
    onset = np.arange(n) * float(clip_seconds)
    side = min(truth.shape[3:])
    small = aligned(truth, truth.shape[1], *(max(2, round(s * min(1, 128 / side) / 2) * 2) for s in truth.shape[3:]))
    fps = Fraction(truth.shape[1] / float(clip_seconds)).limit_denominator(1001)
    cuts = cuts_between((frame for clip in _each_clip(small) for frame in clip), fps)
    scene = scene_of(onset, float(clip_seconds), cuts)
    return Places(np.zeros(n, int), onset, scene, f"{scene[-1] + 1} scenes found by PySceneDetect in the clips' order")


def _each_clip(source: VideoSource, batch: int = 16) -> Iterator[UInt8[np.ndarray, "F 3 H W"]]:
    for start in range(0, len(source), batch):
        yield from source[start : start + batch]


class _Reordered:
    """A source's clips in another order: the predictions of other scenes."""

    def __init__(self, source: VideoSource, order: np.ndarray):
        self.source, self.order, self.shape = source, order, source.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.source[self.order[index]]


def score_folders(
    question: Question,
    places: Places,
    *,
    judges: Sequence[Judge] = (),
    looks: int | None = 3,
    shuffles: int = 2,
    exclude_seconds: float | int = 10,
    draws: int = 1000,
    seed: int = 0,
    legacy: bool = False,
    report: Report = lambda done, total, what: None,
) -> tuple[Scored, list[Stage]]:
    """Every score of every method, and what each step cost. Memory does not grow with the number of clips.

    Parameters
    ----------
    looks : frames that a judge looks at in every clip; None is all of them (needed for the similarity of neighbours).
    shuffles : how many times the predictions are shuffled across scenes for the floor ``shuffled``.
    exclude_seconds : neighbours this near are no distractors in identification.
    draws, seed : of the scene bootstrap and the shuffles.
    legacy : also the numbers that the field prints, each beside its floors.
    """
    truth, stages = question.truth, list[Stage]()
    orders = shuffled_orders(places.scene, seed, shuffles)
    shared: dict[str, Any] = {"ids": truth.names, "scene": places.scene, "draws": draws, "seed": seed}
    with _timed("mean frame", stages):
        still = _mean_frame(question.training or truth, truth.shape, report)
    floors: dict[str, Any] = {**question.floors, "mean frame": still}
    named = {name: f"{name}, shuffled" for name in question.methods}
    sets: dict[str, Any] = {**floors, **question.baselines, **question.methods}
    sets |= {named[name]: [_Reordered(s, order) for order in orders] for name, s in question.methods.items()}
    if question.ceiling is not None:
        sets["ceiling"] = question.ceiling
    with _timed("pixels and motion", stages):
        measured = measure_videos(
            sets, truth, frames_shuffled=list(question.methods), seed=seed, legacy=legacy,
            progress=_said(report, "pixels and motion"),
        )  # fmt: skip
    parts = []
    with _timed("intervals and tests, pixels and motion", stages):
        for name, source in question.methods.items():
            beside = {k: measured[k] for k in floors} | {"shuffled": measured[named[name]]}
            parts.append(
                score_measured(
                    name, measured[name], floors=beside, baselines={k: measured[k] for k in question.baselines},
                    ceiling=measured.get("ceiling"), note=source.alignment, **shared,
                )
            )  # fmt: skip
    for judge in judges:
        with _timed(judge.name, stages):
            wanted = {**question.methods, **question.floors, **question.baselines, "film": truth}
            if question.ceiling is not None:
                wanted["ceiling"] = question.ceiling
            if question.training is not None:
                wanted["training film"] = question.training
            seen: dict[str, Any] = {
                name: judge.look(source, frames=looks, progress=_said(report, f"{judge.name}, {name}"))
                for name, source in wanted.items()
            }
            seen["mean frame"] = judge.look(still, frames=looks)
            goal = seen["film"]
            known = seen.get("training film", goal)
            for name in question.methods:
                chance = {k: seen[k] for k in floors} | {"shuffled": [seen[name].take(order) for order in orders]}
                parts.append(
                    score_judged(
                        name, seen[name], goal, judge=judge.name, reference=known.features.mean(axis=(0, 1)),
                        floors=chance, baselines={k: seen[k] for k in question.baselines},
                        ceiling=seen.get("ceiling"), legacy=legacy,
                        consecutive=looks is None and judge.kind == "frames", segment=places.segment,
                        onset=places.onset, exclude_seconds=float(exclude_seconds), **shared,
                    )
                )  # fmt: skip
    every = joined(parts)
    return Scored(with_holm(every.scores), every.per_clip), stages


@contextmanager
def _timed(name: str, stages: list[Stage]) -> Iterator[None]:
    began = time.monotonic()
    yield
    stages.append(Stage(name, round(time.monotonic() - began, 2)))


def _mean_frame(source: VideoSource, shape: tuple[int, ...], report: Report) -> np.ndarray:
    """The mean of all frames, standing still, for every clip: float in [0, 1], a view of one frame's memory."""
    total = np.zeros(source.shape[2:])
    for done, clip in enumerate(_each_clip(source)):
        total += clip.sum(axis=0, dtype=np.float64)
        report(done, len(source), "mean frame")
    frame = (total / (len(source) * source.shape[1] * 255)).astype(np.float32)
    return np.broadcast_to(frame, shape)


def _said(report: Report, what: str) -> Callable[[int, int], None]:
    return lambda done, total: report(done, total, what)


def score_to_folder(
    question: Question, places: Places, out: Path, *, judges: Sequence[str], clip_seconds: float | int, **settings: Any
) -> Scored:
    """``score_folders``, with its tables, card and page written to ``out``; keyword arguments as there.

    scores.json, scores.md, scores.tex, per_clip.parquet : the scores. card.json : what they were made from.
    report.html : the scores, and clips to look at.
    """
    loaded = [load_judge(name) for name in judges]
    scored, stages = score_folders(question, places, judges=loaded, **settings)
    write_tables(out, scored.scores, scored.per_clip)
    said = {name: value for name, value in settings.items() if name != "report"}
    card = {
        "inputs": {name: _described(source) for name, source in question.sources.items()},
        "places": places.said, "settings": {**said, "clip_seconds": clip_seconds},
        "judges": {judge.name: {"weights": judge.weights, "trained on": judge.trained_on} for judge in loaded},
        "versions": {name: version(name) for name in ("neuroclips", "numpy", "opencv-python", "av", "torch")},
        "seconds": {stage.name: stage.seconds for stage in stages},
    }  # fmt: skip
    write_json(out / "card.json", card)
    write_report(out / "report.html", _page(question, places, scored, card, stages, clip_seconds))
    return scored


def _described(source: VideoSource) -> dict[str, Any]:
    files = [source.path] if source.path.is_file() else sorted(p for p in source.path.rglob("*") if p.is_file())
    return {
        "path": str(source.path), "what": source.origin, "shape": source.shape, "alignment": source.alignment,
        "warnings": source.warnings, "content": content_hash({str(p): file_hash(p) for p in files}),
    }  # fmt: skip


def _page(
    question: Question, places: Places, scored: Scored, card: Mapping[str, Any], stages: Sequence[Stage],
    clip_seconds: float | int,
) -> ReportData:  # fmt: skip
    truth, names = question.truth, question.truth.names
    main = next(iter(question.methods))
    gallery = ScoreName("video", main, "pixel correlation")
    # The page shows some clips of many: those at the gallery's percentiles, and others at equal distances.
    ranked = {names.index(clip["id"]) for clip in percentile_clips(scored.per_clip, gallery)}
    others = np.linspace(0, len(names) - 1, min(SHOWN, len(names))).astype(int)
    rows = sorted(ranked | set(others.tolist()))
    shown = {"shown": truth, **question.methods, **question.baselines}
    pictures = {name: source[np.array(rows)] for name, source in shown.items()}
    clips = [
        ReportClip(names[row], int(places.scene[row]), {name: videos[i] for name, videos in pictures.items()})
        for i, row in enumerate(rows)
    ]
    warnings = [f"{name}: {text}" for name, source in question.sources.items() for text in source.warnings]
    return ReportData(
        title=f"Scores of {', '.join(question.methods)}",
        opening=f"{len(names)} videos of each of {', '.join(question.methods)} were compared with the film in "
        f"{truth.path.name}.",
        scores=scored.scores,
        per_clip=scored.per_clip,
        clips=clips,
        gallery=gallery,
        n_clips=None if len(clips) == len(names) else len(names),
        clip_seconds=clip_seconds,
        notice=" ".join(warnings),
        card=RunCard(
            recipe={key: card[key] for key in ("settings", "inputs", "judges")}, versions=card["versions"],
            facts={"scenes": places.said}, stages=stages,
        ),
    )  # fmt: skip


def named_source(given: str, opened: Callable[[Path], VideoSource]) -> tuple[str, VideoSource]:
    """``NAME=PATH``, or a path whose last part is the name."""
    name, equals, path = given.partition("=")
    if not equals or Path(given).exists():
        name, path = Path(given).resolve().stem if Path(given).is_file() else Path(given).resolve().name, given
    return name, opened(Path(path))
