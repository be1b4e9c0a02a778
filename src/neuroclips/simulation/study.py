"""A whole simulated study: its films, the subject who watches them, and the truth about both, kept apart."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from neuroclips.artefacts import written_aside
from neuroclips.recipe import BrainRecipe, FilmRecipe
from neuroclips.simulation.film import frame_table, plan_film, scene_table, write_film
from neuroclips.simulation.movies import plan_movies, write_movie
from neuroclips.simulation.sprites import ATTRIBUTION
from neuroclips.simulation.subject import is_test, simulate_subject

Progress = Callable[[int, int, str], None]


def simulate_study(
    film: FilmRecipe,
    brain: BrainRecipe,
    out: Path,
    *,
    seed: int,
    wrong_subject: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write ``out/video_fmri_dataset`` in the layout of CC2017, and ``out/truth``; returns a summary for the card.

    Films and scans that are already there are kept: they depend on the recipe and the seed only. ``wrong_subject`` is
    another subject, who is scanned while she watches the test segments alone.
    """
    stimuli, truth = out / "video_fmri_dataset" / "stimuli", out / "truth"
    stimuli.mkdir(parents=True, exist_ok=True)
    tables: dict[str, pd.DataFrame] | None
    write: dict[str, Callable[[Path], Any]]
    if film.movies is not None:
        shots = plan_movies(film.movies, film, seed)
        write = {name: partial(write_movie, shots=s, size=film.size) for name, s in shots.items()}
        tables, about = None, {"films": f"{len(shots)} segments cut from the films of a folder"}
    else:
        scenes = plan_film(
            seed, train_segments=film.train_segments, test_segments=film.test_segments,
            train_seconds=film.train_seconds, test_seconds=film.test_seconds, unseen_things=film.unseen_things,
            new_places=film.new_places,
        )  # fmt: skip
        write = {name: partial(write_film, scenes=s, size=film.size) for name, s in scenes.items()}
        tables = {name: frame_table(s) for name, s in scenes.items()}
        table = pd.concat([scene_table(s).assign(segment=name) for name, s in scenes.items()], ignore_index=True)
        truth.mkdir(parents=True, exist_ok=True)
        with written_aside(truth / "scenes.parquet") as aside:
            table.to_parquet(aside)
        about = {"films": f"picture-book world, {len(table)} scenes", "credits": ATTRIBUTION}
    paths = {name: stimuli / f"{name}.mp4" for name in write}
    in_parallel({name: partial(write[name], path) for name, path in paths.items() if not path.exists()}, progress)
    scan = partial(
        simulate_subject, paths, out / "video_fmri_dataset", scene_truth=tables, seed=seed, progress=progress
    )
    if wrong_subject is not None:
        other = brain.model_copy(update={"subject": wrong_subject})
        scan(truth_dir=truth / f"subject{wrong_subject}", recipe=other, scanned=[n for n in paths if is_test(n)])
    return about | scan(truth_dir=truth, recipe=brain)


def in_parallel(jobs: dict[str, Callable[[], Any]], progress: Progress | None) -> None:
    """Do jobs in as many processes as there are cores (eight at most)."""
    context = multiprocessing.get_context("spawn")  # forking after threads have started can hang
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), context, initializer=_end_with_parent) as pool:
        waiting = {pool.submit(job): name for name, job in jobs.items()}
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            if progress is not None:
                progress(done, len(jobs), f"film {waiting[future]}")


def _end_with_parent() -> None:
    """Make a worker end when the process that started it is gone: a killed one cannot tell its workers to stop."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
