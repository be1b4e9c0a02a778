"""``neuroclips run RECIPE``: stages in order, each with its artefacts and its card.

    [simulate] -> survey -> films -> targets -> fit -> reconstruct -> [generate] -> [curves] -> [maps] -> [observe]
                         -> reliability -> prepare ->                            -> evaluate -> report

A stage whose settings and parents are unchanged is skipped and says so. A killed run resumes: finished stages stand,
the stage that was cut starts again, and inside ``simulate`` every finished film and scan, inside ``generate`` every
finished clip stands too.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from neuroclips import curves, generation, maps, scoring, stages
from neuroclips.artefacts import content_hash, file_hash, read_card, remove_tree, write_json, written_aside
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.registry import refuse_absent
from neuroclips.recipe import Recipe
from neuroclips.training import processes

PACKAGES = ("neuroclips", "numpy", "torch", "diffusers", "transformers", "himalaya", "nibabel", "av")
# Copied to the top of the run directory, for people.
SHOWN = {"prepare": "data.html", "maps": "maps.html", "evaluate": "scores.json", "report": "report.html"}


@dataclass(frozen=True)
class Stage:
    """One step of a run: ``work(run directory, own directory, recipe, console)`` returns what the card should say.

    ``settings`` picks the part of the recipe that changes the result; ``format`` is raised when the files change.
    A parent is a stage, or one file of a stage that is all this one depends on (``survey/films.json``). ``look``
    finds out what else the result depends on, such as files outside the run directory; its answer is part of the key.
    ``together``: where several processes were launched, all of them do the work; else the main one alone.
    """

    name: str
    work: Callable[[Path, Path, Recipe, Console], dict[str, Any]]
    parents: tuple[str, ...]
    settings: Callable[[Recipe], Any]
    format: int = 1
    look: Callable[[Path, Recipe, Console], Any] | None = None
    together: bool = False


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, in order. A simulated subject adds its making and its ideal observer."""
    present = {"simulate": recipe.film is not None, "observe": recipe.film is not None}
    present["generate"], present["curves"] = recipe.generate.video is not None, recipe.curves is not None
    present["maps"] = recipe.maps is not None
    source = tuple(name for name in ("simulate",) if present[name])
    extra = tuple(name for name in ("generate", "curves", "observe") if present[name])
    scores = ("prepare", "targets", "fit", "reconstruct", *extra)
    shown = ("maps",) if present["maps"] else ()
    stages_ = [
        Stage(
            "simulate",
            stages.simulate,
            (),
            lambda r: [
                r.film,
                r.brain,
                r.seed,
                r.data.wrong_subject,
                stages.source_files(r.film.movies if r.film else None),
            ],
        ),
        Stage("survey", stages.survey, source, lambda r: [r.data], look=stages.look),
        Stage("films", stages.films, ("survey/films.json",), lambda r: [r.data.frames_per_clip, r.data.frame_size]),
        Stage("reliability", stages.reliability, ("survey/training.json",), lambda r: []),
        Stage(
            "prepare",
            stages.prepare,
            ("survey/scans.json", "films", "reliability"),
            lambda r: [r.data.selection, stages.selection_files(r)],
            format=3,
        ),
        Stage("targets", stages.targets, ("films",), lambda r: [r.targets, stages.weights_hashes(r)], format=2),
        Stage(
            "fit",
            stages.fit,
            ("prepare", "targets"),
            lambda r: [r.ridge, r.decoders, stages.decoder_weights(r), r.seed],
            format=3,
            together=True,
        ),
        Stage(
            "reconstruct",
            stages.reconstruct,
            ("prepare", "targets", "fit"),
            lambda r: [r.generate.generators, r.generate.test_repeats, r.evaluate.shuffles, r.seed],
            format=4,
        ),
        Stage(
            "generate",
            generation.generate,
            ("prepare", "targets", "fit"),
            lambda r: [r.generate.video, generation.video_weights(r), r.seed],
            format=2,
        ),
        Stage("curves", curves.curves, ("prepare", "targets", "fit"), lambda r: [r.curves]),
        Stage(
            "maps",
            maps.maps,
            ("prepare", "targets", "fit"),
            lambda r: [r.maps, r.generate.generators, r.evaluate.bootstrap, r.evaluate.exclude_seconds, r.seed],
        ),
        Stage("observe", stages.observe, ("simulate", "prepare"), lambda r: [r.generate.test_repeats]),
        Stage("evaluate", scoring.evaluate, scores, lambda r: [r.evaluate, scoring.judge_names(r), r.seed], format=4),
        Stage("report", stages.report, ("evaluate", *scores, *shown), lambda r: [r.name, r.description]),
    ]
    return [s for s in stages_ if present.get(s.name, True)]


def run(
    recipe: Recipe, directory: Path | str, *, until: str | None = None, console: Console | None = None
) -> dict[str, dict[str, Any]]:
    """Walk through every stage of ``recipe`` in ``directory``; returns the cards by stage.

    Parameters
    ----------
    until : name of the last stage to run; all by default.
    """
    directory, console = Path(directory), console or Console(stderr=True)
    planned = plan(recipe)
    names = [stage.name for stage in planned]
    processes.join()
    if until is not None and until not in names:
        raise ArtefactError(f"no stage {until!r} in this recipe; there are {', '.join(names)}")
    planned = planned[: names.index(until) + 1] if until is not None else planned
    refuse_absent(name for stage in planned for name in stages.weights_named(recipe, stage.name))
    for stage in planned:
        stage.settings(recipe)  # a folder of weights or scans that is not there is met now, not after minutes of work
    if not processes.is_main():
        return _help(planned, directory, recipe)
    cards: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(planned, 1):
        label = f"[bold]{number}/{len(names)} {stage.name}[/bold]"
        key = _key(stage, recipe, cards, stage.look and stage.look(directory, recipe, console))
        card = _finished(directory / stage.name, key)
        processes.told(card is None)
        if card is not None:
            console.print(f"{label}  up to date, skipped")
        else:
            console.print(label)
            card = _make(stage, key, directory, recipe, cards, console)
            console.print(f"{label}  {_cost(card)}")
        cards[stage.name] = card
        _show(directory, stage.name)
        processes.wait()
    return cards


def _help(planned: list[Stage], directory: Path, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What processes beside the main one do: work where all work together, and wait."""
    cards = {}
    for stage in planned:
        if processes.told(True) and stage.together:
            stage.work(directory, directory / stage.name, recipe, Console(quiet=True))
        processes.wait()
        cards[stage.name] = read_card(directory / stage.name) or {}
    return cards


def run_one(recipe: Recipe, directory: Path | str, name: str, console: Console | None = None) -> dict[str, Any]:
    """Walk through one stage of a finished run alone; returns its card. What it needs is taken as it is on disk, so
    that neither scans nor films have to be at hand.

    Raises ArtefactError where a stage that it needs is not finished.
    """
    directory, console = Path(directory), console or Console(stderr=True)
    stage = next(stage for stage in plan(recipe) if stage.name == name)
    cards: dict[str, dict[str, Any]] = {}
    for parent in stage.parents:
        card = read_card(directory / parent)
        if card is None or _finished(directory / parent, card["key"]) is None:
            raise ArtefactError(f"{directory}: the stage {parent} is not finished; expected a run that has been fitted")
        cards[parent] = card
    key = _key(stage, recipe, cards)
    card = _finished(directory / name, key)
    if card is not None:
        console.print(f"[bold]{name}[/bold]  up to date, skipped")
    else:
        card = _make(stage, key, directory, recipe, cards, console)
        console.print(f"[bold]{name}[/bold]  {_cost(card)}")
    _show(directory, name)
    return card


def _cost(card: dict[str, Any]) -> str:
    return f"done in {card['seconds']:.0f} s, peak memory {card['peak_memory_gb']:.1f} GB"


def _show(run_directory: Path, stage: str) -> None:
    """Copy what people look for to the top of the run directory, where it is missing or old."""
    if stage not in SHOWN:
        return
    made, shown = run_directory / stage / SHOWN[stage], run_directory / SHOWN[stage]
    if made.exists() and (not shown.exists() or file_hash(shown) != file_hash(made)):  # older versions made fewer
        with written_aside(shown) as aside:
            shutil.copyfile(made, aside)


def _key(stage: Stage, recipe: Recipe, cards: dict[str, dict[str, Any]], looked: Any = None) -> str:
    """Identity of a stage's result: its format, settings, what it looked at, and its parents' content."""
    settings = [s.model_dump(mode="json") if hasattr(s, "model_dump") else s for s in stage.settings(recipe)]
    looks = [looked] if stage.look else []
    return content_hash([stage.name, stage.format, settings, _parents(stage, cards), *looks])


def _parents(stage: Stage, cards: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What this stage's parents made: a hash each."""
    found = {}
    for parent in stage.parents:
        name, _, file = parent.partition("/")
        found[parent] = cards[name]["files"][file]["sha256"] if file else cards[name]["content"]
    return found


def _finished(directory: Path, key: str) -> dict[str, Any] | None:
    """The card of a finished stage with this key whose files are all there at their size."""
    card = read_card(directory)
    if card is None or card.get("key") != key:
        return None
    whole = all(_size(directory / name) == about["bytes"] for name, about in card["files"].items())
    return card if whole else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _make(
    stage: Stage, key: str, run_directory: Path, recipe: Recipe, cards: dict[str, dict[str, Any]], console: Console
) -> dict[str, Any]:
    """Run one stage and write its card last. What another key left behind is removed; the same key's is resumed."""
    own = run_directory / stage.name
    begun = own / ".begun"
    if own.exists() and (not begun.exists() or begun.read_text() != key):
        remove_tree(own)
    (own / "card.json").unlink(missing_ok=True)
    own.mkdir(parents=True, exist_ok=True)
    begun.write_text(key)
    for part in own.rglob(".*.part"):  # what a killed process was writing
        part.unlink()
    with _Meter() as meter:
        said = stage.work(run_directory, own, recipe, console)
    files = {
        str(path.relative_to(own)): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in sorted(own.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name != "card.json"
    }
    card = {
        "stage": stage.name, "key": key, "content": content_hash([key, {n: f["sha256"] for n, f in files.items()}]),
        "parents": _parents(stage, cards), "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed, "commit": _commit(), "versions": {name: version(name) for name in PACKAGES},
        "seconds": round(meter.seconds, 2), "peak_memory_gb": round(meter.peak_bytes / 1e9, 3), "summary": said,
        "files": files,
    }  # fmt: skip
    write_json(own / "card.json", card)
    return card


@dataclass
class _Meter:
    """Wall time and the highest resident memory of this process and its children, sampled four times a second."""

    seconds: float = 0.0
    peak_bytes: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> _Meter:
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._started

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # a child that ended between listing and reading
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            if self._stop.wait(0.25):
                return


def _commit() -> str | None:
    """Commit of the source tree that this package runs from, or None for an installed copy."""
    own = Path(__file__)

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=own.parent, capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", own.name)  # an installed copy may lie inside somebody else's repository
        return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return None
