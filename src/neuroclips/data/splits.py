"""What is on disk for each split, checked before anything is computed.

Splits are made of whole segments only, so a cut never falls inside a run and no guard between neighbours in time is
needed: the responses of two splits share neither a scene nor a haemodynamic tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuroclips.data.bold import check_volumes, count_volumes
from neuroclips.data.cc2017 import film_path, find_runs
from neuroclips.data.frames import FilmInfo, count_trs, film_info
from neuroclips.errors import DataError
from neuroclips.recipe import DataRecipe

SPLITS = ("train", "validation", "test")
# Selection correlates the repeats of training segments; the other splits only need an answer.
MIN_REPEATS = {"train": 2, "validation": 1, "test": 1}


@dataclass(frozen=True)
class Segment:
    """One segment of one split: its film and its usable scans.

    runs : scan by repeat number (from 1); repeats that are missing or have a wrong number of volumes are not in it.
    excluded : repeat number -> why it is left out.
    """

    name: str
    split: str
    film: Path
    info: FilmInfo
    n_trs: int
    runs: dict[int, Path]
    excluded: dict[int, str]


def find_segment(root: Path, subject: int, name: str, split: str, t_r: float) -> Segment:
    """Look one segment up. Volumes are counted from the runs' headers; a run that does not fit its film is excluded.

    Raises DataError when the film or the folder of scans is missing, a header is damaged, or fewer scans fit than the
    split needs (2 for training, else 1).
    """
    film = film_path(root, name)
    info = film_info(film)
    n_trs = count_trs(film, info, t_r)
    runs, excluded = {}, {}
    for repeat, path in find_runs(root, subject, name).items():
        n_volumes = count_volumes(path)
        try:
            check_volumes(path, n_volumes, n_trs)
        except DataError as error:
            excluded[repeat] = str(error)
        else:
            runs[repeat] = path
    if len(runs) < MIN_REPEATS[split]:
        raise DataError(
            f"segment {name!r} of subject {subject} has {len(runs)} usable scans; expected at least "
            f"{MIN_REPEATS[split]} in the {split} split. {' '.join(excluded.values())}".rstrip()
        )
    return Segment(name, split, film, info, n_trs, runs, excluded)


def find_splits(root: Path, recipe: DataRecipe) -> dict[str, tuple[Segment, ...]]:
    """Every segment that the recipe names, by split.

    Raises DataError when a segment is in two splits (the recipe checks it too; leaking is worth two locks), a split is
    empty, or training has fewer than the 2 segments that the selection's t-test needs.
    """
    names = {split: tuple(getattr(recipe, split)) for split in SPLITS}
    every = [name for split in SPLITS for name in names[split]]
    if len(set(every)) < len(every):
        raise DataError(f"segments {every}: one is named twice; expected each in exactly one split")
    for split in SPLITS:
        least = 2 if split == "train" else 1
        if len(names[split]) < least:
            raise DataError(f"the {split} split names {len(names[split])} segments; expected at least {least}")
    return {
        split: tuple(find_segment(root, recipe.subject, name, split, recipe.t_r) for name in names[split])
        for split in SPLITS
    }
