"""Maps as files for other programs: CIFTI and GIFTI for the cortex, NIfTI for volumes, CSV for both. All atomically.

NaN, no value, stays NaN, and is what stands outside the cortex or the mask. Connectome Workbench takes NaN for 0; its
colours, which the files carry along, leave 0 bare.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.cifti2 import BrainModelAxis, ScalarAxis

from neuroclips.artefacts import write_json, written_aside
from neuroclips.cortex.surface import N_VERTICES, SIDES, to_vertices, vertices
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.data.cc2017 import N_CORTEX
from neuroclips.data.rois import cortex_areas
from neuroclips.data.volumes import VolumeMask
from neuroclips.errors import DataError

_STRUCTURES = {"left": "CortexLeft", "right": "CortexRight"}


def cortex_axis() -> BrainModelAxis:
    """The 59,412 cortical grayordinates as CIFTI names them: left, then right, each by its vertices of 32,492."""
    left, right = (BrainModelAxis.from_surface(vertices(side), N_VERTICES, _STRUCTURES[side]) for side in SIDES)
    return left + right


def write_dscalar(path: Path, maps: Sequence[VoxelMap]) -> None:
    """Write maps of the cortex to one CIFTI file, ``.dscalar.nii``, float32; Workbench shows their titles.

    Unit, text and name of each are in its metadata. Raises DataError for another ending, no map, or a map of something
    else than 59,412 grayordinates.
    """
    path = Path(path)
    _check(path, (".dscalar.nii",), maps, N_CORTEX)
    values = np.stack([map.values for map in maps])
    meta = [{**_about(map), "PaletteColorMapping": _palette(map)} for map in maps]
    image = nib.Cifti2Image(values, (ScalarAxis([map.title for map in maps], meta), cortex_axis()))
    image.update_headers()
    image.nifti_header.set_data_dtype(np.float32)
    image.nifti_header.set_intent("ConnDenseScalar")
    with written_aside(path) as aside:
        aside.write_bytes(image.to_bytes())


def write_gifti(folder: Path, map: VoxelMap) -> list[Path]:
    """Write ``NAME.L.func.gii`` and ``NAME.R.func.gii``: a value for each of 32,492 vertices, NaN on the medial wall.

    Returns their paths. Raises DataError for a map of something else than 59,412 grayordinates.
    """
    paths = []
    for side in SIDES:
        path = Path(folder) / f"{map.name}.{side[0].upper()}.func.gii"
        _check(path, (".gii",), [map], N_CORTEX)
        array = nib.gifti.GiftiDataArray(
            to_vertices(map.values, side), intent="NIFTI_INTENT_NONE", datatype="NIFTI_TYPE_FLOAT32",
            meta=nib.gifti.GiftiMetaData({"Name": map.title, **_about(map), "PaletteColorMapping": _palette(map)}),
        )  # fmt: skip
        meta = nib.gifti.GiftiMetaData({"AnatomicalStructurePrimary": _STRUCTURES[side]})
        with written_aside(path) as aside:
            aside.write_bytes(nib.gifti.GiftiImage(meta=meta, darrays=[array]).to_bytes())
        paths.append(path)
    return paths


def write_nifti(path: Path, maps: Sequence[VoxelMap], mask: VolumeMask) -> None:
    """Write maps of the mask's V voxels to one 4-D NIfTI file, ``.nii`` or ``.nii.gz``, float32, NaN outside the mask.

    A ``.json`` beside it tells which volume is which map. Raises DataError for another ending, no map, or a map of
    something else than V voxels.
    """
    path = Path(path)
    suffix = _check(path, (".nii.gz", ".nii"), maps, mask.n_voxels)
    values = np.full((*mask.inside.shape, len(maps)), np.nan, np.float32)
    for number, map in enumerate(maps):
        values[mask.inside, number] = map.values
    image = nib.Nifti1Image(values, mask.affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = ", ".join(map.name for map in maps).encode()[:79]
    content = image.to_bytes()
    with written_aside(path) as aside:
        aside.write_bytes(gzip.compress(content, mtime=0) if suffix == ".nii.gz" else content)
    volumes = [{"volume": number, "title": map.title, **_about(map)} for number, map in enumerate(maps)]
    write_json(path.with_name(path.name[: -len(suffix)] + ".json"), {"maps": volumes})


def write_csv(path: Path, maps: Sequence[VoxelMap], mask: VolumeMask | None = None) -> None:
    """Write maps as a table of comma-separated values: a row a voxel, and a column a map under its name.

    Before them stand, on the cortex (``mask`` None), grayordinate, hemisphere, vertex and HCP-MMP1 area; in a volume,
    the voxel's number, its indices i, j, k and its place x, y, z in mm. No value is an empty field. Numbers have nine
    digits, which hold a float32 exactly.

    Raises DataError for another ending, no map, or a map of another space.
    """
    path = Path(path)
    _check(path, (".csv",), maps, N_CORTEX if mask is None else mask.n_voxels)
    if mask is None:
        numbers, names = cortex_areas()
        each = [vertices(side) for side in SIDES]
        columns = {
            "grayordinate": np.arange(N_CORTEX), "hemisphere": np.repeat(SIDES, [len(part) for part in each]),
            "vertex": np.concatenate(each), "area": np.array(names)[numbers],
        }  # fmt: skip
    else:
        indices = np.argwhere(mask.inside)
        places = (indices @ mask.affine[:3, :3].T + mask.affine[:3, 3]).round(4)
        columns = {"voxel": np.arange(len(indices)), **dict(zip("ijk", indices.T)), **dict(zip("xyz", places.T))}
    table = pd.DataFrame({**columns, **{map.name: map.values for map in maps}})
    with written_aside(path) as aside:
        table.to_csv(aside, index=False, float_format="%.9g", lineterminator="\n")


def _check(path: Path, suffixes: tuple[str, ...], maps: Sequence[VoxelMap], n_values: int) -> str:
    """The ending of the path, one of ``suffixes``; DataError unless there are maps, all of ``n_values`` voxels."""
    suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise DataError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if not maps:
        raise DataError(f"{path}: no map to write; expected at least 1")
    for map in maps:
        if len(map.values) != n_values:
            raise DataError(f"{path}: map {map.name!r} has {len(map.values)} values; expected {n_values}")
    return suffix


def _about(map: VoxelMap) -> dict[str, str]:
    return {"name": map.name, "unit": map.unit, "text": map.text}


def _palette(map: VoxelMap) -> str:
    """The XML in which Workbench keeps a map's colours: the palettes of its own that come close to ours.

    Workbench scales numbers above and below 0 apart: ends of the scale are in the order most negative, least negative,
    least positive, most positive.
    """
    low, high = map.limits
    negative = (low, min(high, 0)) if low < 0 else (-high, 0)
    positive = (max(low, 0), high) if high > 0 else (0, -low)
    root = ElementTree.Element("PaletteColorMapping", Version="1")
    for tag, text in {
        "ScaleMode": "MODE_USER_SCALE",
        "UserScaleValues": " ".join(f"{value:g}" for value in (*negative, *positive)),
        "PaletteName": "cool-warm" if map.signed else "magma",
        "InterpolatePalette": "true",
        "DisplayPositiveData": "true",
        "DisplayZeroData": "false",
        "DisplayNegativeData": "true",
        "ThresholdType": "THRESHOLD_TYPE_OFF",
    }.items():
        ElementTree.SubElement(root, tag).text = text
    return ElementTree.tostring(root, encoding="unicode")
