"""The command line: one command a stage, and ``run`` for all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from neuroclips import __version__
from neuroclips.errors import NeuroClipsError, RecipeError
from neuroclips.recipe import load_recipe, named_recipes

app = typer.Typer(
    name="neuroclips",
    help="fMRI in, video out: decode film from brain scans, with every score beside its floor and ceiling.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[str, typer.Argument(help="name of a shipped recipe, or path of a .yaml", metavar="RECIPE")]
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


def _run(recipe: str, out: Path | None, changes: dict[str, Any], until: str | None) -> None:
    from neuroclips import pipeline  # late: torch and diffusers take seconds, --help should not

    loaded = load_recipe(recipe, changes)
    directory = out or Path("runs") / loaded.name
    with _interruptible():
        cards = pipeline.run(loaded, directory, until=until)
    typer.echo(f"total {sum(card['seconds'] for card in cards.values()):.0f} s of work in {directory}")
    if "report" in cards:
        typer.echo(f"scores  {directory / 'scores.json'}\nreport  {directory / 'report.html'}")


@app.command(epilog="Examples: `neuroclips run demo`   `neuroclips run demo -s brain.signal=0 -o runs/silent`")
def run(recipe: RecipeName, out: Directory = None, set_: Changes = None) -> None:
    """Walk through every stage of a recipe: scans to videos, scores and a page. Finished stages are skipped."""
    _run(recipe, out, _parse(set_), None)


@app.command(epilog="Example: `neuroclips demo` leaves runs/demo/report.html")
def demo(
    movies: Annotated[
        Path | None, typer.Option(help="folder of your own films for the simulated subject to watch")
    ] = None,
    out: Directory = None,
    set_: Changes = None,
) -> None:
    """A simulated subject watches film; the film is decoded from the scans. Ten minutes on a laptop."""
    changes = _parse(set_)
    if movies is not None:
        # A folder rarely holds enough film for the demo's four test segments, each second of which is shown once.
        shorter = {"film.test_segments": 2, "data.test": ["test1", "test2"]}
        # The mini generators know the picture-book world only.
        other = {"name": "movies", "film.movies": str(movies.resolve()), "generate.video": None}
        changes = {**other, **shorter, **changes}
    _run("demo", out, changes, None)


def _stage_command(name: str, text: str) -> None:
    @app.command(name, help=text, epilog=f"Example: `neuroclips {name} demo`")
    def command(recipe: RecipeName, out: Directory = None, set_: Changes = None) -> None:
        _run(recipe, out, _parse(set_), name)


for _name, _text in {
    "simulate": "Make a film and a simulated subject that watches it, in the files a real study would have.",
    "prepare": "From scans and films to arrays: crop, detrend, z-score, select voxels, cut clips.",
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
    changes = _parse(set_)
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
        path = generation.continuous(out or Path("runs") / loaded.name, loaded, segment, Console(stderr=True))
    typer.echo(f"{path}\n{path.with_name(f'{segment}-beside.mp4')}")


@app.command(epilog="Example: `neuroclips recipes`")
def recipes() -> None:
    """List the recipes that ship with the package."""
    for name in named_recipes():
        typer.echo(f"{name:12} {load_recipe(name).description}")


@app.command(epilog="Example: `neuroclips version`")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point: a user's mistake is one line, not a traceback."""
    try:
        app()
    except (NeuroClipsError, OSError) as error:
        sys.exit(f"error: {error}")
