"""Files of a run's maps: pictures, what other programs open, and maps of single clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from neuroclips.artefacts import read_arrays, read_card, written_aside
from neuroclips.cortex.export import write_csv, write_dscalar, write_gifti, write_nifti
from neuroclips.cortex.plot import plot_cortex, plot_volume, save_picture
from neuroclips.cortex.regions import Regions, cortex_regions, volume_regions
from neuroclips.cortex.results import MapResults, Space
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.data.prepared import Prepared, load_clips
from neuroclips.data.rois import volume_rois
from neuroclips.data.source import CORTEX
from neuroclips.data.volumes import VolumeMask, read_mask
from neuroclips.errors import ArtefactError, DataError
from neuroclips.recipe import MapsRecipe, Recipe
from neuroclips.stages import Report, progress_bar

FORMATS = ("png", "svg", "pdf")


def space_of(run: Path, prepared: Prepared) -> tuple[Space, VolumeMask | None]:
    """What voxels are, and the mask of a study in volume space."""
    path = run / "prepare" / "mask.nii"
    if prepared.space == CORTEX:
        return "cortex", None
    return ("volume", read_mask(path)) if path.exists() else ("unknown", None)


def write_pictures(
    folder: Path, maps: Sequence[VoxelMap], mask: VolumeMask | None, formats: Sequence[str], report: Report
) -> None:
    """``NAME.png`` of every map, and in other formats: of the cortex, or of the volume where there is a mask."""
    for number, each in enumerate(maps):
        report(number, len(maps), f"picture: {each.name}")
        figure = plot_cortex(each) if mask is None else plot_volume(each, mask)
        for suffix in formats:
            save_picture(figure, folder / f"{each.name}.{suffix}")


def regions_of(prepared: Prepared, recipe: Recipe, space: Space, mask: VolumeMask | None) -> Regions:
    """Areas of the selected voxels: HCP-MMP1 on the cortex, those of the recipe's atlas in volumes."""
    selected = np.asarray(prepared.mask)
    if space == "cortex":
        return cortex_regions(selected)
    atlas, areas = recipe.data.selection.atlas, {}
    if mask is not None and atlas is not None:
        labels = recipe.data.selection.atlas_labels
        areas = {name: volume_rois([name], atlas, labels, mask)[selected] for name in recipe.data.selection.rois}
    return volume_regions(areas, int(selected.sum()))


def write_files(own: Path, results: MapResults, mask: VolumeMask | None) -> None:
    """The maps as people exchange them: ``areas.csv``, and where it is known where voxels are, ``maps.csv``.

    Of the cortex also ``maps.dscalar.nii`` and ``gifti/NAME.L.func.gii`` and ``.R.``, of a volume ``maps.nii.gz``.
    """
    with written_aside(own / "areas.csv") as aside:
        results.areas.to_csv(aside, index=False, float_format="%.6g")
    if results.space == "unknown":
        return
    write_csv(own / "maps.csv", results.every, mask)
    if mask is not None:
        write_nifti(own / "maps.nii.gz", results.every, mask)
        return
    write_dscalar(own / "maps.dscalar.nii", results.every)
    for each in results.every:
        write_gifti(own / "gifti", each)


def write_more(run: Path, formats: Sequence[str], clips: Sequence[str], console: Console) -> None:
    """What was asked for beyond what the stage writes: pictures in other formats, and maps of single clips,
    ``clips/ID.png`` and ``.dscalar.nii`` (or ``.nii.gz``).

    Raises DataError for a clip that is not there, and where clips were not re-encoded.
    """
    own, results, prepared = run / "maps", MapResults.read(run / "maps"), load_clips(run / "prepare")
    mask = space_of(run, prepared)[1]
    ids = prepared.test.ids
    for clip in clips:
        if clip not in ids:
            raise DataError(f"{run}: no test clip {clip!r}; there are {len(ids)}, {ids[0]} to {ids[-1]}")
        if results.clips is None or results.space == "unknown":
            raise DataError(f"{run}: clips have no maps; expected re-encoding (maps.encoding), and voxels with a place")
    regions = regions_of(prepared, recipe_of(run, {}), results.space, mask)
    generators = [] if results.clips is None else list(results.clips["generator"].unique())
    with progress_bar(console) as report:
        if formats:
            write_pictures(own / "pictures", results.every, mask, formats, report)
        for clip in clips:
            shown = []
            for generator in generators:
                products = read_arrays(own / f"reencoding-{generator}.safetensors")["products"][ids.index(clip)]
                shown.append(clip_map(clip, generator, products, np.asarray(prepared.mask), regions))
            write_pictures(own / "clips", shown, mask, ("png", *formats), report)
            name = clip.replace("/", "_")
            if mask is None:
                write_dscalar(own / "clips" / f"{name}.dscalar.nii", shown)
            else:
                write_nifti(own / "clips" / f"{name}.nii.gz", shown, mask)


def clip_map(
    clip: str, generator: str, products: np.ndarray, mask: np.ndarray, regions: Regions, what: str = ""
) -> VoxelMap:
    """Where one clip's re-encoding agrees with its scans; ``products``: (V,) as of ``reencoding.agreement``.

    A single product says little, so voxels show the mean of their area in their hemisphere. ``what``: best, say.
    """
    size = np.bincount(regions.cell, minlength=regions.n_cells)
    areas = np.bincount(regions.cell, products.astype(np.float64), regions.n_cells) / size
    values = np.full(len(mask), np.nan, np.float32)
    values[mask] = areas[regions.cell]
    top = float(np.percentile(np.abs(areas), 95)) or 1.0
    return VoxelMap(
        name=f"reencoding-{generator}-{what or clip.replace('/', '_')}",
        title=f"Re-encoding of “{generator}”: {f'the {what} clip, ' if what else ''}{clip}",
        unit="agreement (its mean over clips is the correlation)",
        values=values,
        text=f"Where the film decoded for {clip} agrees with held-out scans of it: predicted times measured responses, "
        "in standard deviations, mean of each area. Above 0 an area says that it saw this film; one clip alone is "
        "noisy, and below 0 it saw something else.",
        limits=(-top, top),
        signed=True,
    )


def recipe_of(run: Path, changes: Mapping[str, Any]) -> Recipe:
    """The recipe of a fitted run, with maps, as it stands in the card of its stage ``fit``."""
    card = read_card(run / "fit")
    if card is None:
        raise ArtefactError(f"{run}: not a fitted run; expected a run directory (neuroclips fit RECIPE -o {run})")
    made = read_card(run / "maps")  # what was asked the last time, where nothing else is asked now
    try:
        recipe = Recipe.model_validate(card["recipe"])
        before = recipe.maps if made is None else Recipe.model_validate(made["recipe"]).maps
    except ValidationError as error:
        raise ArtefactError(f"{run}: made by another version of neuroclips; expected a run of this one") from error
    return recipe.model_copy(update={"maps": (before or MapsRecipe()).model_copy(update=dict(changes))})
