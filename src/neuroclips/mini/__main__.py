"""``python -m neuroclips.mini vae|clip|keyframe|...``: train mini networks and write their weights and card."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from neuroclips.pretrained.registry import shipped

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Out = Annotated[Path | None, typer.Option(help="folder for the weights; default: where the package looks for them")]
Minutes = Annotated[float, typer.Option(help="stop after this long (the learning rate still falls to zero)")]
Steps = Annotated[int, typer.Option(help="optimiser steps")]
Scenes = Annotated[int, typer.Option(help="scenes a step")]
Workers = Annotated[int, typer.Option(help="rendering processes")]
Seed = Annotated[int, typer.Option()]
Start = Annotated[Path | None, typer.Option(help="go on from the weights in this folder, at half the rate")]
Compiled = Annotated[bool, typer.Option("--compiled", help="compile the network first; for long runs on a GPU")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@app.command()
def vae(
    movies: Annotated[Path | None, typer.Option(help="folder of natural films to mix in (a fifth more data)")] = None,
    start: Start = None,
    out: Out = None,
    steps: Steps = 30_000,
    minutes: Minutes = 180,
    scenes: Scenes = 16,
    workers: Workers = 2,
    seed: Seed = 1,
) -> None:
    """Train the mini autoencoder."""
    from neuroclips.mini.train_vae import main

    print(main(out or shipped("vae"), movies=movies, start=start, steps=steps, minutes=minutes,
               scenes=scenes, workers=workers, seed=seed, device=DEVICE)["scores"])  # fmt: skip


@app.command()
def clip(
    out: Out = None,
    steps: Steps = 20_000,
    minutes: Minutes = 180,
    scenes: Scenes = 128,
    workers: Workers = 2,
    seed: Seed = 1,
) -> None:
    """Train the mini CLIP."""
    from neuroclips.mini.train_clip import main

    print(main(out or shipped("clip"), steps=steps, minutes=minutes, scenes=scenes, workers=workers,
               seed=seed, device=DEVICE)["scores"])  # fmt: skip


@app.command()
def keyframe(
    start: Start = None,
    out: Out = None,
    steps: Steps = 100_000,
    minutes: Minutes = 180,
    scenes: Scenes = 256,
    workers: Workers = 2,
    seed: Seed = 1,
    compiled: Compiled = False,
) -> None:
    """Train the mini keyframe generator."""
    from neuroclips.mini.train_keyframe import main

    print(main(out or shipped("keyframe"), start=start, steps=steps, minutes=minutes, scenes=scenes,
               workers=workers, seed=seed, device=DEVICE, fast=compiled)["scores"])  # fmt: skip


@app.command()
def caption(
    start: Start = None,
    out: Out = None,
    steps: Steps = 100_000,
    minutes: Minutes = 180,
    scenes: Scenes = 256,
    workers: Workers = 2,
    seed: Seed = 1,
) -> None:
    """Train the mini captioner."""
    from neuroclips.mini.train_caption import main

    print(main(out or shipped("caption"), start=start, steps=steps, minutes=minutes, scenes=scenes,
               workers=workers, seed=seed, device=DEVICE)["scores"])  # fmt: skip


@app.command()
def judge(
    out: Out = None,
    steps: Steps = 20_000,
    minutes: Minutes = 19,
    batch: Annotated[int, typer.Option(help="frames a step")] = 64,
    seed: Seed = 1,
) -> None:
    """Train the picture-book judge, which scores videos and from which nothing learns."""
    from neuroclips.mini.train_judge import main

    print(main(out or shipped("judge"), steps=steps, minutes=minutes, batch=batch, seed=seed, device=DEVICE)["scores"])


@app.command()
def video(
    leg: Annotated[str, typer.Option(help="image, motion, control; or all in turn that are not done yet")] = "all",
    start: Annotated[Path | None, typer.Option(help="folder of the leg before, or of this one to go on with")] = None,
    out: Out = None,
    steps: Annotated[int, typer.Option(help="optimiser steps of a leg")] = 100_000,
    minutes: Annotated[float, typer.Option(help="of all legs; or of the one that is named")] = 360,
    scenes: Annotated[int, typer.Option(help="clips a step; single frames are of twice as many scenes")] = 128,
    workers: Workers = 2,
    seed: Seed = 1,
    compiled: Compiled = False,
) -> None:
    """Train the mini video model: image, motion and control in turn."""
    from neuroclips.mini.train_video import main

    card = main(out or shipped("video"), leg=leg, start=start, steps=steps, minutes=minutes, scenes=scenes,
                workers=workers, seed=seed, device=DEVICE, fast=compiled)  # fmt: skip
    print({name: each["scores"] for name, each in card["legs"].items()})


SUBJECTS, HELD_OUT, FILMS = [101, 102, 103, 105], 104, 400
Folder = Annotated[Path, typer.Option(help="folder of the population; grows file by file, a killed run goes on")]
Films = Annotated[int, typer.Option(help="films of 100 s; each takes about 6 MB")]


@app.command()
def population(folder: Folder = Path("runs/population"), films: Films = FILMS, workers: Workers = 2) -> None:
    """Simulate the subjects and films that the mini decoders are trained on: 30 minutes on two cores."""
    from neuroclips.mini.population import make_population

    make_population(folder, films=films, subjects=[*SUBJECTS, HELD_OUT], workers=workers)


@app.command()
def decoders(
    folder: Folder = Path("runs/population"),
    out: Out = None,
    films: Films = FILMS,
    scale: Annotated[float, typer.Option(help="of the number of steps; below 1 for a quick trial")] = 1.0,
) -> None:
    """Train what subjects share: semantics, prior and perception networks."""
    from neuroclips.mini.train_decoders import main

    card = main(folder, out or shipped("decoders"), subjects=SUBJECTS, held_out=HELD_OUT, films=films,
                device=DEVICE, scale=scale)  # fmt: skip
    print({name: training["curve"][-1] for name, training in card["training"].items()})


app()
