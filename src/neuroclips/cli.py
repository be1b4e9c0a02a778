"""The command line: one command a stage, and ``run`` for all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from neuroclips import __version__, cli_plan
from neuroclips.cli_models import models
from neuroclips.errors import DataError, NeuroClipsError, RecipeError
from neuroclips.recipe import Recipe, describe_recipe, load_recipe, named_recipes

app = typer.Typer(
    name="neuroclips",
    help="fMRI in, video out: decode film from brain scans, with every score beside its floor and ceiling.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

app.add_typer(models, name="models")

RecipeName = Annotated[str, typer.Argument(help="name of a shipped recipe, or path of a .yaml", metavar="RECIPE")]
Data = Annotated[
    Path | None,
    typer.Argument(help="your data, for a recipe that asks for them: a folder, or a table", metavar="[DATA]"),
]
Subject = Annotated[int | None, typer.Option("--subject", min=1, help="which subject of the data", show_default=False)]
Directory = Annotated[
    Path | None, typer.Option("--out", "-o", help="run directory; default runs/NAME", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="change one setting, such as brain.signal=0.5", show_default=False),
]


def _parse(changes: list[str] | None) -> dict[str, Any]:
    parsed = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise RecipeError(f"--set {change!r}: expected KEY=VALUE, such as brain.signal=0.5")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {change!r}: the value is not valid YAML ({error})") from error
    return parsed


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C says what is kept; here and not in main, for typer would swallow it."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; finished work is kept, the same command goes on from there", err=True)
        raise typer.Exit(130) from None


def _about(data: Path | None, subject: int | None, changes: list[str] | None) -> dict[str, Any]:
    """Changes of a recipe from the command line."""
    given: dict[str, Any] = {} if data is None else {"data.root": str(data)}
    return given | ({} if subject is None else {"data.subject": subject, "brain.subject": subject}) | _parse(changes)


def _directory(out: Path | None, recipe: Recipe) -> Path:
    """Where a run goes: subjects of one recipe get folders of their own."""
    subject = f"-subject{recipe.data.subject}" if recipe.data.root is not None else ""
    return out or Path("runs") / f"{recipe.name}{subject}"


def _run(
    recipe: str, out: Path | None, changes: dict[str, Any], until: str | None
) -> tuple[Path, dict[str, dict[str, Any]]]:
    from neuroclips import pipeline  # late: torch and diffusers take seconds, --help should not

    loaded = load_recipe(recipe, changes)
    directory = _directory(out, loaded)
    with _interruptible():
        cards = pipeline.run(loaded, directory, until=until)
    if until != "prepare":  # which says all of it
        for warning in cards.get("prepare", {}).get("summary", {}).get("warnings", []):
            typer.echo(f"warning  {warning}", err=True)
    typer.echo(f"total {sum(card['seconds'] for card in cards.values()):.0f} s of work in {directory}")
    if "report" in cards:
        typer.echo(f"scores  {directory / 'scores.json'}\nreport  {directory / 'report.html'}")
    return directory, cards


@app.command(
    epilog="Examples: `neuroclips run demo`   `neuroclips run demo -s brain.signal=0 -o runs/silent`   "
    "`neuroclips run cc2017 /data/wen2017 --subject 1`"
)
def run(
    recipe: RecipeName, data: Data = None, subject: Subject = None, out: Directory = None, set_: Changes = None
) -> None:
    """Walk through every stage of a recipe: scans to videos, scores and a page. Finished stages are skipped."""
    _run(recipe, out, _about(data, subject, set_), None)


@app.command(epilog=cli_plan.EPILOG)
def plan(
    recipe: RecipeName,
    data: Data = None,
    subject: Subject = None,
    out: Directory = None,
    set_: Changes = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="a card (h100, a100, 4090, ...), GiB of its memory, or none; default: this one's"),
    ] = None,
    ram: Annotated[float | None, typer.Option(min=1, help="GiB of memory; default: this machine's")] = None,
    disk: Annotated[float | None, typer.Option(min=1, help="GB of free disk; default: the run directory's")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="measure this machine for times: half a minute")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for programs, in bytes and seconds")] = False,
) -> None:
    """What a run would take, before anything is downloaded or run: parameters, memory, disk and time of every stage.

    Needs neither data nor weights nor a GPU. What does not fit gets the setting that makes it fit, or says what is
    missing; exit status 1 if anything cannot fit.
    """
    found = cli_plan.loaded(recipe, data, _about(data, subject, set_))
    cli_plan.show(found, _directory(out, found), gpu=gpu, ram=ram, disk=disk, probe=probe, as_json=as_json)


@app.command(epilog="Example: `neuroclips demo` leaves runs/demo/report.html")
def demo(
    movies: Annotated[
        Path | None, typer.Option(help="folder of your own films for the simulated subject to watch")
    ] = None,
    out: Directory = None,
    set_: Changes = None,
) -> None:
    """A simulated subject watches film; the film is decoded from the scans. Under fourteen minutes on a laptop."""
    changes = _parse(set_)
    if movies is not None:
        # A folder rarely holds enough film for the demo's four test segments, each second of which is shown once.
        shorter = {"film.test_segments": 2, "data.test": ["test1", "test2"]}
        # The mini generators know the picture-book world only.
        other = {"name": "movies", "film.movies": str(movies.resolve()), "generate.video": None}
        changes = {**other, **shorter, **changes}
    _run("demo", out, changes, None)


@app.command(
    epilog="Examples: `neuroclips prepare cc2017 /data/wen2017 --subject 1`   "
    "`neuroclips prepare tensors /data/cc2017_dataset --subject 1`   `neuroclips prepare table STUDY.tsv`"
)
def prepare(
    recipe: RecipeName, data: Data = None, subject: Subject = None, out: Directory = None, set_: Changes = None
) -> None:
    """From scans and films to arrays: unpack, detrend, z-score, select voxels, cut clips; and say what was found.

    CC2017 as downloaded (zips or folders), its published tensors, or a table of your own study. Leaves a page,
    data.html, with every run, the splits and when the brain answers. A killed preparation goes on where it stopped.
    """
    directory, cards = _run(recipe, out, _about(data, subject, set_), "prepare")
    for name, text in prepared_lines(cards["prepare"]["summary"]):
        typer.echo(f"{name:10}  {text}")
    typer.echo(f"{'page':10}  {directory / 'data.html'}")


def prepared_lines(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a preparation found, in a few lines for the terminal."""
    delays = ", ".join(str(said["delay_trs"] + lag) for lag in said["lags"])
    yield "data", f"subject {said['subject']}, {said['space']}, TR {said['t_r']:g} s, delay {delays} TRs"
    for split, found in said["splits"].items():
        minutes = found["clips"] * said["t_r"] / 60
        runs = sum(len(segment["repeats"]) for segment in found["segments"])
        yield (
            split,
            f"{len(found['segments'])} films, {found['clips']} clips ({minutes:.0f} min) of {found['scenes']} scenes, "
            f"{runs} presentations",
        )
        for segment in found["segments"]:
            for reason in segment["excluded"].values():
                yield "left out", reason
    chosen = said["selection"]
    yield (
        "voxels",
        f"{chosen['selected']:,} of {chosen['asked']:,} ({chosen['method']}); median correlation of repeats "
        f"{chosen['median_reliability']:.2f}",
    )
    lag = said["lag_curve"]
    yield "lag", f"film is decoded best {lag['best']} TRs later (correlation {max(lag['correlation']):.2f})"
    for warning in said["warnings"]:
        if not warning.startswith("left out: "):
            yield "warning", warning


def _stage_command(name: str, text: str) -> None:
    @app.command(name, help=text, epilog=f"Example: `neuroclips {name} demo`")
    def command(
        recipe: RecipeName, data: Data = None, subject: Subject = None, out: Directory = None, set_: Changes = None
    ) -> None:
        _run(recipe, out, _about(data, subject, set_), name)


for _name, _text in {
    "simulate": "Make a film and a simulated subject that watches it, in the files a real study would have.",
    "targets": "What the frozen networks see in every clip: VAE latents and CLIP tokens.",
    "fit": "Fit the decoders on the training clips.",
    "generate": "Draw keyframes, write captions and generate videos of the test clips, and of the controls.",
    "evaluate": "Score the videos beside chance, floors and ceilings; writes scores.json.",
    "report": "Write the page: videos side by side, scores, run card.",
}.items():
    _stage_command(_name, f"{_text} Runs the stages before it where they are missing.")


@app.command(
    epilog="Examples: `neuroclips reconstruct demo`   `neuroclips reconstruct demo --segment test1 --continuous`"
)
def reconstruct(
    recipe: RecipeName,
    data: Data = None,
    subject: Subject = None,
    out: Directory = None,
    set_: Changes = None,
    segment: Annotated[str | None, typer.Option(help="with --continuous: which test segment")] = None,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="one long MP4 of the segment, scene by scene")
    ] = False,
) -> None:
    """Decode the test clips into guidance and videos, and the shuffled controls; or one segment into one long video.

    Runs the stages before it where they are missing.
    """
    changes = _about(data, subject, set_)
    if not continuous and segment is None:
        _run(recipe, out, changes, "reconstruct")
        return
    if not continuous or segment is None:
        raise RecipeError("--segment and --continuous go together, such as --segment test1 --continuous")
    from rich.console import Console

    from neuroclips import generation

    loaded = load_recipe(recipe, changes)
    if loaded.generate.video is None:
        loaded = load_recipe(recipe, {**changes, "generate.video": {}})
    _run(recipe, out, changes, "fit")
    with _interruptible():
        path = generation.continuous(_directory(out, loaded), loaded, segment, Console(stderr=True))
    typer.echo(f"{path}\n{path.with_name(f'{segment}-beside.mp4')}")


@app.command(
    epilog="Examples: `neuroclips score --truth film/ --pred mine/`   "
    "`neuroclips score --truth gt.pt --pred ours=a.pt --pred theirs=b.pt --ceiling ceiling.pt --legacy`"
)
def score(
    truth: Annotated[Path, typer.Option(help="the film: a folder of videos, or one array of all clips")],
    pred: Annotated[list[str], typer.Option(help="a method's videos, FOLDER or NAME=FOLDER; may be given again")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for scores.json, tables and the page")] = Path(
        "scores"
    ),
    floor: Annotated[
        list[str] | None, typer.Option(help="videos made without the brain, NAME=FOLDER", show_default=False)
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="videos of a simpler method, NAME=FOLDER", show_default=False)
    ] = None,
    ceiling: Annotated[Path | None, typer.Option(help="videos of the best reachable reconstruction")] = None,
    training: Annotated[Path | None, typer.Option(help="training film, for the mean frame; default: the truth")] = None,
    clips: Annotated[
        Path | None, typer.Option(help="table (.tsv, .csv) with columns clip, segment, onset, scene")
    ] = None,
    scenes: Annotated[
        Literal["detect", "each"], typer.Option(help="cuts seen in the clips' order, or every clip a scene")
    ] = "detect",
    clip_seconds: Annotated[float, typer.Option(min=0.01, help="how long a clip lasts")] = 2.0,
    exclude_seconds: Annotated[float, typer.Option(min=0, help="neighbours this near are no distractors")] = 10.0,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="outside network that looks at the videos: a name or a folder; 'none' for none"),
    ] = None,
    looks: Annotated[int, typer.Option(min=0, help="frames a judge looks at in a clip; 0 is all")] = 3,
    shuffles: Annotated[int, typer.Option(min=1, help="shuffles across scenes for the floor")] = 2,
    bootstrap: Annotated[int, typer.Option(min=100, help="draws for the 95 % intervals")] = 1000,
    layout: Annotated[Literal["auto", "BFCHW", "BCFHW", "BFHWC"], typer.Option(help="axes of arrays")] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    legacy: Annotated[bool, typer.Option("--legacy", help="also the numbers that the field prints")] = False,
) -> None:
    """Score anybody's videos against the film, beside floors; needs no recipe and no model of ours.

    MP4, GIF, folders of PNG frames, NPY, or tensors (.pt) of shape (clips, frames, C, H, W) or (clips, C, frames, H,
    W). Sizes are brought to the truth's; of two frame rates, the frames nearest in time are compared.
    """
    from rich.console import Console

    from neuroclips import folders
    from neuroclips.data.videos import VideoSource, open_videos
    from neuroclips.evaluation.judges import JUDGE, judges_here
    from neuroclips.evaluation.table import rich_table
    from neuroclips.stages import progress_bar

    console = Console(stderr=True)

    def opened(path: Path) -> VideoSource:
        source = open_videos(path, layout=layout)
        for warning in source.warnings:
            console.print(f"[yellow]warning[/yellow] {path}: {warning}")
        return source

    def named(given: list[str] | None) -> dict[str, VideoSource]:
        pairs = [folders.named_source(each, opened) for each in given or []]
        if len({name for name, _ in pairs}) < len(pairs):
            raise DataError(f"{', '.join(given or [])}: two folders of one name; give NAME=FOLDER")
        return dict(pairs)

    judges = [name for name in judge or judges_here([JUDGE]) if name != "none"]
    if not judge and not judges:
        console.print(f"no scores by {JUDGE}, which is not installed: pip install 'neuroclips\\[judges]'")
    with _interruptible():
        question = folders.ask(
            opened(truth), named(pred), floors=named(floor), baselines=named(baseline),
            ceiling=None if ceiling is None else opened(ceiling),
            training=None if training is None else opened(training),
        )  # fmt: skip
        if clips is not None:
            places = folders.read_places(clips, question.truth.names)
        else:
            places = folders.find_places(question.truth, clip_seconds, scenes)
        with progress_bar(console) as report:
            scored = folders.score_to_folder(
                question, places, out, judges=judges, clip_seconds=clip_seconds, looks=looks or None, shuffles=shuffles,
                exclude_seconds=exclude_seconds, draws=bootstrap, seed=seed, legacy=legacy, report=report,
            )  # fmt: skip
    Console().print(rich_table([row for row in scored.scores if not row.control]))
    typer.echo(f"{places.said}\nscores  {out / 'scores.json'}\nreport  {out / 'report.html'}")


@app.command(
    epilog="Examples: `neuroclips audit runs/demo`   `neuroclips audit runs/subject1 runs/subject2 --out audit`"
)
def audit(
    runs: Annotated[list[Path], typer.Argument(help="run directories with prepared data", metavar="RUN...")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder for the findings; default RUN/audit", show_default=False)
    ] = None,
) -> None:
    """Check prepared data before believing scores: copies, shifts, film in two splits, voxels chosen on test scans.

    Writes audit.json and audit.html. Exit status 1 if anything is a *fault*; warnings alone leave it at 0. Several
    runs, such as several subjects, are also compared with each other.
    """
    from rich.console import Console

    from neuroclips import auditing

    folder = out or runs[0] / "audit"
    with _interruptible():
        worst = auditing.audit(runs, folder, Console()).worst
    typer.echo(f"findings  {folder / 'audit.json'}\npage      {folder / 'audit.html'}")
    if worst == "fault":
        raise typer.Exit(1)


@app.command(
    epilog="Examples: `neuroclips maps runs/demo`   `neuroclips maps runs/demo --format svg --format pdf`   "
    "`neuroclips maps runs/demo --method ridge --lesions areas --clip test1/0012s`"
)
def maps(
    run: Annotated[Path, typer.Argument(help="directory of a run that has been fitted", metavar="RUN")],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="pictures as svg or pdf, too; may be given again", show_default=False),
    ] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(help="also where this clip can be trusted; may be given again", show_default=False),
    ] = None,
    method: Annotated[
        Literal["ridge", "neural", "end-to-end"] | None,
        typer.Option(help="whose maps; default: the method that makes the videos", show_default=False),
    ] = None,
    lesions: Annotated[
        Literal["streams", "areas", "none"] | None,
        typer.Option(help="what is scrambled to see what the whole decoder loses", show_default=False),
    ] = None,
) -> None:
    """Which voxels mattered: maps on the cortex, areas compared, and files for Connectome Workbench.

    Weights as in the paper, and what tells more than weights: patterns, permutation importance, lesions, encoding
    models, re-encoded video. Leaves a page (maps.html), pictures, CIFTI, GIFTI and tables; of volumes NIfTI.
    """
    from rich.console import Console

    from neuroclips import map_files, pipeline

    asked: dict[str, Any] = {} if method is None else {"method": method}
    if lesions is not None:
        asked["lesions"] = None if lesions == "none" else lesions
    if strange := [kind for kind in formats or [] if kind not in map_files.FORMATS]:
        raise DataError(f"--format {strange[0]}: expected one of {', '.join(map_files.FORMATS)}")
    console = Console(stderr=True)
    with _interruptible():
        said = pipeline.run_one(map_files.recipe_of(run, asked), run, "maps", console)["summary"]
        map_files.write_more(run, formats or [], clip or [], console)
    for line in said["findings"]:
        typer.echo(line)
    typer.echo(f"page      {run / 'maps.html'}\npictures  {run / 'maps' / 'pictures'}\nfiles     {run / 'maps'}")


@app.command(
    epilog="Examples: `neuroclips table runs/seed7 runs/seed8 runs/seed9 --metric top-1`   "
    "`neuroclips table runs/demo --space video --latex > table.tex`"
)
def table(
    runs: Annotated[list[Path], typer.Argument(help="folders that hold a scores.json", metavar="RUN...")],
    space: Annotated[list[str] | None, typer.Option(help="only of this space; may be given again")] = None,
    method: Annotated[list[str] | None, typer.Option(help="only of this method; may be given again")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="only by this metric; may be given again")] = None,
    latex: Annotated[bool, typer.Option("--latex", help="LaTeX (booktabs) in place of Markdown")] = False,
) -> None:
    """Scores of one run, or of several subjects or seeds side by side, each by itself and their mean."""
    from neuroclips.evaluation.across import ENOUGH, across_runs, table_of
    from neuroclips.evaluation.table import read_scores

    found = across_runs([read_scores(run / "scores.json") for run in runs])
    kept = [
        each for each in found
        if (not space or each.rows[0].space in space)
        and (not method or each.rows[0].method in method)
        and (not metric or each.rows[0].metric in metric)
    ]  # fmt: skip
    if not kept:
        raise DataError("no score of that space, method and metric; leave out --space, --method or --metric to see all")
    typer.echo(table_of(kept, latex=latex), nl=False)
    if len(runs) < ENOUGH:
        typer.echo(f"{len(runs)} of the {ENOUGH} runs that a table to be reported should have", err=True)


@app.command(epilog="Example: `neuroclips recipes`")
def recipes() -> None:
    """List the recipes that ship with the package."""
    for name in named_recipes():
        typer.echo(f"{name:12} {describe_recipe(name)}")


@app.command(epilog="Example: `neuroclips version`")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point: a user's mistake is one line, not a traceback."""
    try:
        app()
    except (NeuroClipsError, OSError) as error:
        # Libraries' own reasons, which messages quote, may have several lines.
        sys.exit(f"error: {' '.join(line.strip() for line in str(error).splitlines())}")
    except Exception as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # of torch, not loaded
            raise
        where = "the GPU" if "CUDA" in str(error) else "this machine"
        sys.exit(
            f"error: out of memory on {where}; finished work is kept. `neuroclips plan RECIPE` says what each stage "
            "needs, and which settings need less"
        )
