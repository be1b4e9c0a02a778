"""``neuroclips plan``: parameters, memory, disk and time of every stage, before anything is downloaded or run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from neuroclips.errors import RecipeError
from neuroclips.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from rich.table import Table

    from neuroclips.planning import Plan, Row

EPILOG = (
    "Examples: `neuroclips plan demo`   `neuroclips plan cc2017 --subject 2 --gpu a100 --ram 64 --disk 500`   "
    "`neuroclips plan tensors --gpu 24 --set generate.video.batch=1`"
)


def loaded(recipe: str, data: Path | None, changes: dict[str, Any]) -> Recipe:
    """The recipe, whether its data are here or not: planning needs none."""
    try:
        return load_recipe(recipe, changes)
    except RecipeError:
        if data is not None or "data.root" in changes:
            raise
        return load_recipe(recipe, {**changes, "data.root": "DATA"})


def show(
    recipe: Recipe,
    run: Path,
    *,
    gpu: str | None = None,
    ram: float | int | None = None,
    disk: float | int | None = None,
    probe: bool = False,
    as_json: bool = False,
) -> None:
    """Print the plan of a recipe; exit status 1 where something cannot fit, whatever is set.

    gpu : name of a card, GiB of its memory, or 'none'; ram, disk : GiB and GB. None of these: this machine's own.
    """
    from rich.console import Console

    from neuroclips import planning
    from neuroclips.planning.hardware import GIB, this_machine

    hardware = this_machine(run)
    if gpu is not None:
        hardware = hardware.with_gpu(gpu.lower())
    if ram is not None:
        hardware = replace(hardware, ram=ram * GIB)
    if disk is not None:
        hardware = replace(hardware, disk=disk * 1e9)
    speed = None
    errors = Console(stderr=True)
    if probe:
        from neuroclips.planning.speed import probe as measure

        with errors.status("measuring this machine"):
            speed = measure(recipe.decoders.networks.precision)
    with errors.status("walking through the networks"):
        found = planning.plan(recipe, run, hardware, speed)
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=1))
    else:
        console = Console()
        console.print(table(found))
        for line in said(found):
            typer.echo(line)
    if not found.fits:
        raise typer.Exit(1)


def table(found: Plan) -> Table:
    """A row for each part of a stage."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("stage")
    shown.add_column("what")
    for name in ("trained", "frozen", "GPU, GiB", "RAM, GiB", "disk, GB", "time"):
        shown.add_column(name, justify="right")
    shown.add_column("verdict", no_wrap=True)
    before = ""
    for row in found.rows:
        cells = _cells(row)
        shown.add_row("" if row.need.stage == before else row.need.stage, *cells)
        before = row.need.stage
    return shown


def _cells(row: Row) -> list[str]:
    need = row.need
    about = "~" if need.rough else ""
    return [
        need.what, _millions(need.trained), _millions(need.frozen), f"{row.gpu / 2**30:.1f}" if row.gpu else "–",
        f"{about}{row.ram / 2**30:.1f}", f"{need.disk / 1e9:.1f}",
        "not measured" if row.seconds is None else duration(row.seconds),
        "fits" if row.fits else "with settings" if row.settings else "cannot fit",
    ]  # fmt: skip


def said(found: Plan) -> list[str]:
    """What goes for all stages, in lines."""
    gpu = f"{found.hardware.name}, {found.hardware.gpu / 2**30:.0f} GiB" if found.hardware.gpu else "no GPU"
    from neuroclips.planning import in_words

    lines = [
        "",
        f"counts    {found.counts.source}",
        f"machine   {gpu}; {found.hardware.ram / 2**30:.0f} GiB of memory; "
        f"{found.hardware.disk / 1e9:.0f} GB of disk free",
        f"most      GPU {max(row.gpu for row in found.rows) / 2**30:.1f} GiB, RAM "
        f"{max(row.ram for row in found.rows) / 2**30:.1f} GiB",
        f"disk      {found.disk / 1e9:.0f} GB stay, and {found.scratch / 1e9:.0f} GB more are there for a while",
    ]
    for name, (download, ready) in found.missing.items():
        kept = f", {ready / 1e9:.1f} GB when ready" if ready else ""
        lines.append(f"missing   {name}: {download / 1e9:.1f} GB to download{kept}: neuroclips models pull {name}")
    known = [row for row in found.rows if row.seconds is not None]
    sources = ", ".join(dict.fromkeys(row.timed for row in known))
    total = sum(row.seconds or 0 for row in known)
    lines.append(f"time      {duration(total)} of what is known ({sources}); the rest is not measured")
    if found.disk_verdict:
        lines.append(f"disk      {found.disk_verdict}")
    for row in found.rows:
        if row.settings:
            lines.append(f"{row.need.stage}, {row.need.what}: {row.verdict}")
    if found.settings:
        lines.append(f"all together: {in_words(found.settings)}")
    lines += [f"cannot fit: {what} needs {short}, whatever is set" for what, short in found.cannot.items()]
    return lines


def _millions(count: int) -> str:
    return "–" if not count else f"{count / 1e6:,.1f} M"


def duration(seconds: float | int) -> str:
    """Seconds for people.

    >>> duration(40), duration(600), duration(9000), duration(3e5)
    ('40 s', '10 min', '2.5 h', '3.5 d')
    """
    for unit, length, until in (("s", 1, 100), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{seconds / length:.1f} {unit}" if unit == "h" else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.1f} d"


def _as_json(found: Plan) -> dict[str, Any]:
    rows = [
        {
            "stage": row.need.stage, "what": row.need.what, "trained": row.need.trained, "frozen": row.need.frozen,
            "gpu_bytes": round(row.gpu), "ram_bytes": round(row.ram), "disk_bytes": round(row.need.disk),
            "scratch_bytes": round(row.need.scratch), "seconds": row.seconds, "timed": row.timed,
            "rough": row.need.rough, "fits": row.fits, "verdict": row.verdict, "settings": dict(row.settings),
        }
        for row in found.rows
    ]  # fmt: skip
    return {
        "counts": vars(found.counts), "hardware": vars(found.hardware), "fits": found.fits, "rows": rows,
        "disk_bytes": round(found.disk), "scratch_bytes": round(found.scratch), "disk_verdict": found.disk_verdict,
        "settings": dict(found.settings), "cannot": dict(found.cannot),
        "missing": {name: {"download_bytes": a, "ready_bytes": b} for name, (a, b) in found.missing.items()},
    }  # fmt: skip
