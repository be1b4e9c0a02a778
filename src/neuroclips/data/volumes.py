"""Runs of studies in volume space: NIfTI, read through a mask, for what ``bold.py`` does with CIFTI.

    sub-01_task-film_run-1_space-MNI_desc-preproc_bold.nii.gz        (X, Y, Z, T)
    sub-01_task-film_run-1_space-MNI_desc-preproc_bold.json          BIDS sidecar: RepetitionTime in seconds
    sub-01_task-film_run-1_desc-confounds_timeseries.tsv             fMRIPrep: framewise displacement

A voxel's number is its place among the voxels inside the mask, in C order of (x, y, z): the last axis moves fastest.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener

from neuroclips.artefacts import written_aside
from neuroclips.data.bold import Run
from neuroclips.errors import DataError
from neuroclips.shapes import Bool, Float

MINIMUM_INSIDE = 100  # voxels: fewer cannot carry a decoder, and point to a wrong file
GRID_TOLERANCE = 1e-3  # of the entries of two affines (mm, and mm per voxel)
_SUFFIXES = (".nii.gz", ".nii")
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_BLOCK_BYTES = 32 * 1024**2  # of volumes in double precision, as nibabel gives them; it scales with copies of its own


@dataclass(frozen=True)
class VolumeMask:
    """The voxels of a volume that are read.

    path : the file it comes from.
    inside : (X, Y, Z) which voxels are in.
    affine : (4, 4) from voxel indices to mm.
    """

    path: Path
    inside: Bool[np.ndarray, "X Y Z"]
    affine: Float[np.ndarray, "4 4"]

    @property
    def n_voxels(self) -> int:
        return int(np.count_nonzero(self.inside))


def read_mask(path: Path) -> VolumeMask:
    """Read a mask from ``.nii`` or ``.nii.gz``: voxels that are not zero are inside.

    Raises DataError unless it is one sound volume (3-D, or 4-D with one volume) of finite values with at least 100
    voxels inside.
    """
    path = Path(path)
    values, affine = read_volume(path)
    finite = np.isfinite(values)
    if not finite.all():
        raise DataError(f"{path}: {np.count_nonzero(~finite)} values are not finite; expected a mask of 0 and 1")
    mask = VolumeMask(path, values != 0, affine)
    if mask.n_voxels < MINIMUM_INSIDE:
        raise DataError(
            f"{path}: {mask.n_voxels} of {values.size} voxels are inside (not zero); expected at least {MINIMUM_INSIDE}"
        )
    return mask


def write_mask(path: Path, mask: VolumeMask) -> None:
    """Write a mask as NIfTI of 0 and 1, for ``read_mask``; atomically."""
    with written_aside(path) as aside:
        aside.write_bytes(nib.Nifti1Image(mask.inside.astype(np.uint8), mask.affine).to_bytes())


def read_volume(path: Path) -> tuple[np.ndarray, Float[np.ndarray, "4 4"]]:
    """Values (X, Y, Z), scaled as the header says, and affine of a NIfTI file of one volume (3-D, or 4-D with one).

    Values are as they come: they may be infinite or not numbers. Raises DataError for anything else.
    """
    path = Path(path)
    image = _open(path)
    if len(image.shape) != 3 and (len(image.shape) != 4 or image.shape[3] != 1):
        raise DataError(f"{path}: dimensions {_shape(image)}; expected one volume (x, y, z)")
    ((_, values),) = _blocks(path, image)
    return values[..., 0], np.asarray(image.affine, np.float64)


def check_grid(path: Path, shape: tuple[int, ...], affine: Float[np.ndarray, "4 4"], mask: VolumeMask) -> None:
    """Raise DataError unless (x, y, z) ``shape`` and ``affine`` of ``path`` are those of the mask, within 1e-3."""
    if shape != mask.inside.shape or not np.allclose(affine, mask.affine, rtol=0, atol=GRID_TOLERANCE):
        theirs, ours = (f"{s} voxels with affine {a.round(4).tolist()}" for s, a in (
            (tuple(map(int, shape)), affine), (mask.inside.shape, mask.affine),
        ))  # fmt: skip
        raise DataError(
            f"{path}: grid of {theirs}; expected that of the mask {mask.path}, {ours}; resample one of them, "
            "or give a mask in the space of the scans"
        )


def count_nifti_volumes(path: Path, mask: VolumeMask | None = None) -> int:
    """Volumes in a 4-D NIfTI file, from its header alone. Raises DataError if it is not NIfTI, not 4-D, or not on the
    grid of the mask, where one is given."""
    image = _open_run(Path(path))
    if mask is not None:
        check_grid(path, image.shape[:3], image.affine, mask)
    return int(image.shape[3])


def nifti_t_r(path: Path) -> float | None:
    """Seconds between volumes: RepetitionTime of the BIDS sidecar (same name, ``.json``), else the header's.

    The header's is ``pixdim[4]`` in its own unit (seconds, milliseconds or microseconds). None where neither says
    anything usable: 0, or another unit. A claim to be compared with the recipe, as in ``bold.Run``.

    Raises DataError for a sidecar that is not a JSON object, or whose RepetitionTime is not a number of seconds.
    """
    path = Path(path)
    sidecar = path.with_name(path.name[: -len(_suffix(path))] + ".json")
    if sidecar.is_file():
        try:
            fields = json.loads(sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{sidecar}: cannot be read as JSON ({error}); expected the sidecar of {path.name}"
            ) from error
        if not isinstance(fields, dict):
            raise DataError(f"{sidecar}: holds a {type(fields).__name__}; expected a JSON object")
        if "RepetitionTime" in fields:
            step = fields["RepetitionTime"]
            if isinstance(step, bool) or not isinstance(step, int | float) or not 0 <= step < math.inf:
                raise DataError(f"{sidecar}: RepetitionTime is {step!r}; expected a number of seconds")
            return float(step) or None
    header = _open_run(path).header
    try:
        unit = _SECONDS[header.get_xyzt_units()[1]]
    except KeyError:  # no unit, none of time, or a code that means nothing
        return None
    step = float(header["pixdim"][4]) * unit
    return round(step, 6) if 0 < step < math.inf else None  # the header is single precision: 0.72 comes as 0.72000003


def read_nifti_run(path: Path, mask: VolumeMask) -> Run:
    """Read the mask's voxels of one 4-D ``.nii`` or ``.nii.gz``: (T, V) float32, V in C order of (x, y, z).

    A voxel's volumes lie side by side in memory, as in CIFTI. The file is read once, in blocks of volumes, and to its
    end, where gzip keeps its checksum: memory is the result and about 100 MiB.

    Raises
    ------
    DataError
        The file is not NIfTI, truncated, damaged or not 4-D; its grid is not the mask's; values inside the mask are
        not finite (outside they may be), or none of them varies over time.
    """
    path = Path(path)
    image = _open_run(path)
    check_grid(path, image.shape[:3], image.affine, mask)
    values = np.empty((mask.n_voxels, image.shape[3]), np.float32)
    finite, varies = np.ones(len(values), bool), np.zeros(len(values), bool)
    for start, block in _blocks(path, image):
        part = values[:, start : start + block.shape[3]]
        with np.errstate(over="ignore"):  # beyond single precision becomes infinite, and is reported below
            part[:] = block[mask.inside]
        finite &= np.isfinite(part).all(axis=1)
        varies |= (part != values[:, :1]).any(axis=1)
    if not finite.all():
        place = tuple(map(int, np.argwhere(mask.inside)[np.argmin(finite)]))
        raise DataError(
            f"{path}: {np.count_nonzero(~finite)} of {mask.n_voxels} voxels inside the mask have values that are not "
            f"finite (first: voxel {place} of x, y, z from 0); expected finite values inside; leave the run out, or "
            "give a mask without these voxels"
        )
    if not varies.any():
        raise DataError(
            f"{path}: none of {mask.n_voxels} voxels inside the mask varies over its {image.shape[3]} volumes; "
            "expected a scan"
        )
    return Run(values.T, nifti_t_r(path))


def read_motion(path: Path, n_volumes: int) -> dict[str, float]:
    """Head motion of one run, from the framewise displacement (mm; Power et al. 2012) in fMRIPrep's confounds.

    ``mean_fd_mm`` and ``max_fd_mm``; ``share_above_half_mm``, in [0, 1], is the share of volumes above 0.5 mm. The
    first volume has no displacement ("n/a") and does not count.

    Raises DataError if the table has another number of rows than ``n_volumes``, no column framewise_displacement, or
    something else in it than finite numbers from 0.
    """
    path = Path(path)
    table = read_table(path, ("framewise_displacement",))
    if len(table) != n_volumes:
        raise DataError(f"{path}: {len(table)} rows; expected {n_volumes}, one for each volume of the run")
    texts = [row["framewise_displacement"] for row in table]
    if texts and texts[0] == "n/a":
        texts = texts[1:]
    try:
        displacement = np.array([float(text) for text in texts])
    except ValueError as error:
        raise DataError(f"{path}: framewise_displacement holds other things than numbers ({error})") from error
    if not len(displacement) or not (np.isfinite(displacement) & (displacement >= 0)).all():
        raise DataError(f"{path}: framewise_displacement; expected finite numbers of mm from 0, after a first n/a")
    return {
        "mean_fd_mm": float(displacement.mean()),
        "max_fd_mm": float(displacement.max()),
        "share_above_half_mm": float((displacement > 0.5).mean()),
    }


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a tab-separated table, as BIDS has them, by the names in its first line.

    Raises DataError for a file that is no such table, or lacks one of ``columns``.
    """
    try:
        lines = csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t", strict=True)
        header, *rows = [line for line in lines if line] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a tab-separated table ({error})") from error
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{path}: no column {' or '.join(missing)} among {len(header)}: {', '.join(header)[:200]}")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(f"{path}: row {number} has {len(row)} fields; expected {len(header)}, as in the first line")
    return [dict(zip(header, row)) for row in rows]


def _suffix(path: Path) -> str:
    """``.nii.gz`` or ``.nii``; DataError for another name."""
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise DataError(f"{path}: expected a NIfTI file, .nii or .nii.gz")


def _open(path: Path) -> nib.Nifti1Image:
    """The image with its header; no values are read."""
    _suffix(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a NIfTI volume")
    try:
        image = nib.load(path)
    except Exception as error:  # whatever a damaged header makes the parser raise
        raise DataError(f"{path}: cannot be read as NIfTI ({error})") from error
    if not isinstance(image, nib.Nifti1Image):  # CIFTI ends in .nii too; NIfTI-2 is a kind of Nifti1Image
        raise DataError(f"{path}: {type(image).__name__}; expected a NIfTI volume (x, y, z)")
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(f"{path}: values of type {image.get_data_dtype()}; expected real numbers")
    if any(size < 1 for size in image.shape):
        raise DataError(f"{path}: dimensions {_shape(image)}; expected none of them below 1")
    return image


def _open_run(path: Path) -> nib.Nifti1Image:
    image = _open(path)
    if len(image.shape) != 4:
        raise DataError(f"{path}: dimensions {_shape(image)}; expected a run (x, y, z, volumes)")
    return image


def _shape(image: nib.Nifti1Image) -> tuple[int, ...]:
    return tuple(map(int, image.shape))


def _blocks(path: Path, image: nib.Nifti1Image) -> Iterator[tuple[int, np.ndarray]]:
    """The number of its first volume and (X, Y, Z, volumes) scaled values, block by block; a single volume is one."""
    proxy, shape = image.dataobj, (*image.shape, 1)[:4]
    assert isinstance(proxy, ArrayProxy), "an image that comes from a file"
    step = max(1, _BLOCK_BYTES // (8 * math.prod(shape[:3])))
    try:
        # One open file for all blocks: opened for each, a compressed one would be decompressed from its start again.
        with ImageOpener(str(path)) as file:
            values = ArrayProxy(file, (shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter), mmap=False)
            for start in range(0, shape[3], step):
                yield start, np.asarray(values[..., start : start + step])
            while file.read(2**20):  # to the end, where gzip compares its checksum
                pass
    except Exception as error:  # EOF, zlib, OS and nibabel errors
        raise DataError(f"{path}: truncated or damaged; a sound header, but not its values ({error})") from error
