"""``neuroclips models``: which published weights there are, under which licence, and bringing them here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroclips.errors import ArtefactError
from neuroclips.pretrained import catalogue
from neuroclips.pretrained.catalogue import Model, in_words

if TYPE_CHECKING:
    from rich.console import Console

    from neuroclips.pretrained.verify import Report

models = typer.Typer(
    name="models",
    help="Published weights of full-size networks: what there is, under which licence; fetch, check, import.",
    epilog="Examples: `neuroclips models list`   `neuroclips models pull sd-vae`   `neuroclips models verify`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Names = Annotated[list[str], typer.Argument(help="names of `neuroclips models list`, or all", metavar="NAME...")]


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; what has come is kept, the same command goes on from there", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _bytes_bar(console: Console) -> Iterator[Report]:
    """A bar of bytes with speed and time left."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("  {task.description:<36.36}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int | None, what: str) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.remove_task(task)
                tasks.clear()
                tasks[what] = bar.add_task(what, total=total, completed=done)
            bar.update(tasks[what], completed=done, total=total)

        yield report


def _chosen(names: Sequence[str]) -> list[Model]:
    if "all" in names:
        return list(catalogue.published().values())
    return [catalogue.published_model(name) for name in dict.fromkeys(names)]


def _shipped_row() -> dict[str, Any]:
    """What comes with the package."""
    from neuroclips.pretrained.registry import shipped

    folder = shipped("")
    kinds = [path.name for path in sorted(folder.iterdir()) if (path / "card.json").exists()]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "name": "mini", "purpose": "small networks of the demo; they ship with the package",
        "serves": ", ".join(kinds), "bytes": size, "licence": "Apache-2.0", "state": "ready", "share": 1.0,
        "reason": "", "where": str(folder),
    }  # fmt: skip


def _row(model: Model) -> dict[str, Any]:
    state, folder = catalogue.state_of(model), catalogue.ready_folder(model)
    origins = dict.fromkeys(source.repo or source.root.name for source in model.sources)
    return {
        "name": model.name, "purpose": model.purpose, "serves": model.serves, "bytes": model.size,
        "licence": model.licence, "state": state.name, "share": state.share, "reason": state.reason,
        "where": str(folder) if folder.exists() else ", ".join(origins), "parameters": model.parameters,
        "licences": [each.model_dump() for each in model.licences], "cite": model.cite,
        "sources": [each.model_dump() for each in model.sources],
    }  # fmt: skip


@models.command("list", epilog="Examples: `neuroclips models list`   `neuroclips models list --json`")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="everything that is known of them, for programs")] = False,
) -> None:
    """Published and shipped weights: for what, how large, under which licence, and what is here of them."""
    rows = [*(_row(model) for model in catalogue.published().values()), _shipped_row()]
    if as_json:
        typer.echo(json.dumps({"home": str(catalogue.models_home()), "models": rows}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("name", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for heading in ("state", "licence", "for what, and where"):
        table.add_column(heading)
    for row in rows:
        state = str(catalogue.State(row["state"], row["share"])) + (f": {row['reason']}" if row["reason"] else "")
        what = f"{row['purpose']}\n[dim]{row['where']}[/dim]"
        table.add_row(row["name"], in_words(row["bytes"]), state, row["licence"], what)
    Console().print(table)
    typer.echo(f"kept in {catalogue.models_home()} (NEUROCLIPS_MODELS); `neuroclips models pull NAME` fetches one")


@models.command(
    epilog="Examples: `neuroclips models pull sd-vae`   `neuroclips models pull all --mirror /data/weights --offline`"
    "   `neuroclips models pull blip2 --yes --drop-sources`"
)
def pull(
    names: Names,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="accept the licences shown, and do not ask")] = False,
    mirror: Annotated[
        Path | None, typer.Option(help="folder with the files; looked through before the network", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="never use the network")] = False,
    endpoint: Annotated[
        str, typer.Option(envvar="HF_ENDPOINT", help="of the hub, or of a server that answers like it")
    ] = "https://huggingface.co",
    token: Annotated[
        str | None, typer.Option(envvar="HF_TOKEN", help="of the hub", show_default=False, show_envvar=True)
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="forget what was fetched and made before")] = False,
    drop_sources: Annotated[
        bool, typer.Option("--drop-sources/--keep-sources", help="remove downloaded files when the model is ready")
    ] = False,
) -> None:
    """Fetch models, check every byte, and convert them; licences are shown first. An interrupted pull goes on.

    A file whose hash is known must have it. Of others, the hash is what the hub states, or what came the first time.
    """
    from rich.console import Console

    from neuroclips.pretrained import install
    from neuroclips.pretrained.download import Origins

    if mirror is not None and not mirror.is_dir():
        raise ArtefactError(f"--mirror {mirror}: no such folder; expected one that holds the models' files")
    console = Console(stderr=True)
    wanted = []
    for model in _chosen(names):
        if catalogue.state_of(model).name == "ready" and not again:
            typer.echo(f"{model.name}: ready in {catalogue.ready_folder(model)}")
        else:
            wanted.append(model)
    for model in wanted:
        _show_terms(model)
    if not wanted:
        return
    if not yes and not typer.confirm("Fetch and use under these conditions?"):
        typer.echo("nothing was fetched")
        raise typer.Exit(1)
    origins = Origins(endpoint=endpoint, token=token, mirror=mirror, offline=offline)
    for model in wanted:
        with _interruptible(), _bytes_bar(console) as report:
            folder = install.pull(model, origins, report, again=again, drop_sources=drop_sources)
        _show_made(model, folder)


def _show_terms(model: Model) -> None:
    """What a user agrees to, before anything is fetched."""
    unknown = sum(source.size is None for source in model.sources)
    more = f", and {unknown} small files whose size is not known" if unknown and model.size else ""
    typer.echo(f"{model.name}  {in_words(model.size)}{more}\n  for      {model.purpose}")
    for place in dict.fromkeys((source.shown, source.revision) for source in model.sources):
        typer.echo(f"  from     {place[0]}, revision {place[1] or 'not known: the newest'}")
    for licence in model.licences:
        typer.echo(f"  licence  {licence.of}: {licence.shown} ({licence.link})\n           {licence.conditions}")
    typer.echo(f"  cite     {model.cite}")
    blind = [source.file for source in model.sources if source.sha256 is None and not source.optional]
    if blind:
        typer.echo(f"  hash     not known of {', '.join(blind)}: the first download is taken as it comes, and noted")


def _show_made(model: Model, folder: Path) -> None:
    from neuroclips.artefacts import read_json

    checked = {each["checked"] for each in read_json(folder / "card.json")["sources"]}
    trusted = "; some hashes were noted at this first use" if "first use" in checked else ""
    typer.echo(f"{model.name}: ready in {folder}{trusted}")


@models.command(
    "import",
    epilog="Examples: `neuroclips models import sd-vae sd_image_var_autoenc.pth`   `neuroclips models import blip2 "
    "FOLDER`   `neuroclips models import animatediff base=realistic.safetensors motion=v3_sd15_mm.ckpt "
    "adapter=v3_sd15_adapter.ckpt sparsectrl=v3_sd15_sparsectrl_rgb.ckpt text=stable-diffusion-v1-5/`",
)
def import_model(
    name: Annotated[str, typer.Argument(help="name of `neuroclips models list`")],
    given: Annotated[
        list[str], typer.Argument(help="ROLE=PATH, or files and folders of known names", metavar="FILE_OR_FOLDER...")
    ],
    any_version: Annotated[
        bool, typer.Option("--any-version", help="take files of another size or hash; the card will say so")
    ] = False,
) -> None:
    """Make a model ready from files that you have: checked, converted, nothing downloaded. Yours stay as they are."""
    from rich.console import Console

    from neuroclips.pretrained import install

    model = catalogue.published_model(name)
    with _interruptible(), _bytes_bar(Console(stderr=True)) as report:
        folder = install.take(model, given, report, any_version=any_version)
    typer.echo(f"{model.name}: ready in {folder}\nlicence  {model.licence}")


@models.command(epilog="Examples: `neuroclips models verify`   `neuroclips models verify sd-vae blip2 --finite`")
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="names; default: every model that is here", metavar="[NAME]...")
    ] = None,
    finite: Annotated[bool, typer.Option("--finite", help="also look for weights that are not finite")] = False,
) -> None:
    """Read every byte of what is here: altered, cut short, missing, of another version, or with code inside.

    Nothing of a file is executed. Exit status 1 if anything is wrong.
    """
    from rich.console import Console

    from neuroclips.pretrained.verify import verify_model

    chosen = _chosen(names or ["all"])
    here = [model for model in chosen if catalogue.state_of(model).name != "absent"]
    if names and (absent := [model.name for model in chosen if model not in here]):
        raise ArtefactError(f"{', '.join(absent)}: not here; `neuroclips models pull {' '.join(absent)}` fetches them")
    if not here:
        typer.echo(f"no model in {catalogue.models_home()}; `neuroclips models list` shows what there is")
    faults = 0
    for model in here:
        with _interruptible(), _bytes_bar(Console(stderr=True)) as report:
            found = verify_model(model, report, finite=finite)
        faults += sum(each.level == "fault" for each in found)
        if not any(each.level == "fault" for each in found):
            typer.echo(f"{model.name}: {catalogue.state_of(model)}, every byte as it should be")
        for each in found:
            typer.echo(f"{model.name}: {each.level}  {each.text}")
    if faults:
        raise typer.Exit(1)
