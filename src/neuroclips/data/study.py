"""What is on disk, checked before anything is computed: the source that a recipe names.

Splits are made of whole segments only. In CC2017 each has runs of its own, so the responses of two splits share neither
a scene nor a haemodynamic tail; in a table, a pause between films of two splits in one run sees to that.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from neuroclips.data.archives import find_archives, unpack
from neuroclips.data.bold import check_volumes, count_volumes
from neuroclips.data.cc2017 import SUSPECT, TRAILING_SPARES, dataset_folder, film_path, find_runs, wanted
from neuroclips.data.frames import count_trs, film_info
from neuroclips.data.published import TensorSource
from neuroclips.data.source import SPLITS, Scan, ScanSource, Segment, Source, asked_voxels, delays_of
from neuroclips.data.table import table_source
from neuroclips.data.volumes import VolumeMask, count_nifti_volumes, read_mask
from neuroclips.errors import DataError
from neuroclips.recipe import DataRecipe

Progress = Callable[[int, int, str], None]


def open_source(root: Path, recipe: DataRecipe, progress: Progress | None = None) -> Source:
    """The data that a recipe names, in ``root``: looked at (headers only), not read.

    Zips in the CC2017 layout are unpacked first, as far as this recipe needs them.

    Raises
    ------
    DataError
        Something on disk is not what the recipe or the layout says; the message names the file, what came and what
        was expected. Missing repeats and runs of a wrong length are not errors: they are left out and reported.
    """
    if recipe.layout == "table":
        source: Source = table_source(root, recipe)
    elif not Path(root).is_dir():
        raise DataError(f"{root}: no such folder; expected the folder of the data")
    elif recipe.layout == "tensors":
        source = TensorSource(root, recipe, progress)
    else:
        source = cc2017_source(root, recipe, progress)
    asked_voxels(source, recipe.selection)  # what is wrong there is met now, not after all scans are read
    return source


def cc2017_source(root: Path, recipe: DataRecipe, progress: Progress | None = None) -> ScanSource:
    """Scans and films in the layout of CC2017: a film of T TRs, and runs of T + 5 or T + 6 volumes."""
    subjects = {recipe.subject} | ({recipe.wrong_subject} if recipe.wrong_subject is not None else set())
    folder = recipe.unpack_to or dataset_folder(root)
    if find_archives(Path(root)):
        unpack(Path(root), folder, wanted(subjects, recipe.files), progress)
    t_r = recipe.t_r or 2.0
    delays = delays_of(recipe, t_r)
    if delays[0] > TRAILING_SPARES:
        raise DataError(
            f"delay_trs starts at {delays[0]}; expected 0 to {TRAILING_SPARES}: a run of CC2017 has only "
            f"{TRAILING_SPARES} volumes after the film"
        )
    mask = read_mask(recipe.mask) if recipe.files == "mni" and recipe.mask is not None else None
    warnings: list[str] = []

    def find(subject: int, name: str, split: str) -> Segment:
        segment, odd = _find_segment(folder, subject, name, split, t_r, recipe, mask)
        warnings.extend(odd)
        return segment

    names = {split: getattr(recipe, split) for split in SPLITS}
    splits = {split: tuple(find(recipe.subject, name, split) for name in names[split]) for split in SPLITS}
    other = recipe.wrong_subject
    others = () if other is None else tuple(find(other, name, "test") for name in recipe.test)
    return ScanSource(
        folder, splits, t_r=t_r, delays=delays, others=others, mask=mask, detrend=recipe.detrend, warnings=warnings
    )


def _find_segment(
    folder: Path, subject: int, name: str, split: str, t_r: float, recipe: DataRecipe, mask: VolumeMask | None
) -> tuple[Segment, list[str]]:
    """One segment, and what is odd about its files. Volumes are counted from headers; a run that does not fit its film
    is left out."""
    film = film_path(folder, name)
    info = film_info(film)
    n_trs = count_trs(film, info, t_r)
    found, odd = find_runs(folder, subject, name, recipe.files)
    runs, excluded = {}, {}
    for repeat, path in found.items():
        unwanted = _unwanted(subject, name, repeat, recipe.exclude)
        if unwanted is not None:
            excluded[repeat] = f"{path}: {unwanted}"
            continue
        n_volumes = count_volumes(path) if mask is None else count_nifti_volumes(path, mask)
        try:
            check_volumes(path, n_volumes, n_trs)
        except DataError as error:
            excluded[repeat] = str(error)
        else:
            runs[repeat] = Scan(path, n_volumes - n_trs - TRAILING_SPARES, n_volumes)
    return Segment(name, split, film, info, Fraction(0), n_trs, runs, excluded), odd


def _unwanted(subject: int, segment: str, repeat: int, exclude: tuple[str, ...] | None) -> str | None:
    """Why a scan is left out unread, or None."""
    if exclude is not None:
        return "named in data.exclude" if f"{segment}/{repeat}" in exclude else None
    known = SUSPECT.get((subject, segment, repeat))
    return None if known is None else f"{known}; data.exclude: [] reads it"
