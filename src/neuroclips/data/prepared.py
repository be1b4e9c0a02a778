"""The arrays that ``prepare`` wrote, opened and checked: clips of three splits, and what is known of every voxel."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from neuroclips.artefacts import read_arrays
from neuroclips.data.clips import Clips, TestClips, TrainingClips, ValidationClips
from neuroclips.data.source import CORTEX, SPLITS
from neuroclips.errors import ArtefactError
from neuroclips.shapes import Bool, Float, Float32

_Kind = TypeVar("_Kind", bound=Clips)


@dataclass(frozen=True)
class Prepared:
    """The prepared data of one subject, memory-mapped. Voxel arrays cover the G voxels of the space: 59,412 cortical
    vertices, the voxels of a brain mask, or those of a published tensor.

    wrong_subject : the test clips with the scans of somebody else who saw the same film, if the recipe asked for them.
    mask : the voxels that the splits' ``bold`` holds, in order.
    p, t : of the selection test. reliability : mean correlation between training repeats.
    delay_trs : volumes between a clip and the response paired with it.  lags : see ``Clips.lags``.
    space : what voxels are, in words.
    """

    train: TrainingClips
    validation: ValidationClips
    test: TestClips
    mask: Bool[np.ndarray, " G"]
    p: Float[np.ndarray, " G"]
    t: Float32[np.ndarray, " G"]
    reliability: Float32[np.ndarray, " G"]
    t_r: float
    delay_trs: int
    lags: tuple[int, ...] = (0,)
    space: str = CORTEX
    wrong_subject: TestClips | None = None


def load_clips(directory: Path | str) -> Prepared:
    """Open what ``prepare`` wrote, memory-mapped: nothing is read until it is indexed.

    Raises
    ------
    ArtefactError
        A file is missing or damaged, or two arrays do not fit each other.
    """
    directory = Path(directory)
    voxels = read_arrays(directory / "voxels.safetensors")
    _expect_names(directory / "voxels.safetensors", voxels, {"mask", "p", "t", "reliability"})
    for name, array in voxels.items():
        if array.shape != voxels["mask"].shape or array.ndim != 1:
            raise ArtefactError(
                f"{directory / 'voxels.safetensors'}: {name} has shape {array.shape} and mask {voxels['mask'].shape}; "
                "expected one length"
            )
    try:
        about = json.loads((directory / "segments.json").read_text())
        t_r, delay_trs, space = float(about["t_r"]), int(about["delay_trs"]), str(about["space"])
        lags, films = tuple(int(k) for k in about["lags"]), directory / about["films"]
        names = {split: tuple(about["segments"][split]) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{directory / 'segments.json'}: cannot be read as segment names ({error!r})") from error
    reliability = np.asarray(voxels["reliability"][voxels["mask"]])
    first_scene = 0

    def split(kind: type[_Kind]) -> _Kind:
        nonlocal first_scene
        clips = _load_split(directory, films, kind, names[kind.split], reliability, t_r, lags, first_scene)
        first_scene += len(np.unique(clips.scene))
        return clips

    train, validation, test = split(TrainingClips), split(ValidationClips), split(TestClips)
    other, wrong = directory / "wrong_subject.safetensors", None
    if other.exists():
        arrays = read_arrays(other)
        _expect_names(other, arrays, {"bold", "present", "still"})
        wrong = replace(test, bold=arrays["bold"], present=arrays["present"])
        if wrong.bold.shape[::2] != test.bold.shape[::2] or wrong.present.shape != wrong.bold.shape[:2]:
            raise ArtefactError(f"{other}: bold has shape {wrong.bold.shape}; the test clips' is {test.bold.shape}")
    return Prepared(
        train=train,
        validation=validation,
        test=test,
        wrong_subject=wrong,
        mask=voxels["mask"],
        p=voxels["p"],
        t=voxels["t"],
        reliability=voxels["reliability"],
        t_r=t_r,
        delay_trs=delay_trs,
        lags=lags,
        space=space,
    )


def _load_split(
    directory: Path, films: Path, kind: type[_Kind], segments: tuple[str, ...], reliability: np.ndarray, t_r: float,
    lags: tuple[int, ...], first_scene: int,
) -> _Kind:  # fmt: skip
    path, film = directory / f"{kind.split}.safetensors", films / f"{kind.split}.safetensors"
    arrays, shown = read_arrays(path), read_arrays(film)
    _expect_names(path, arrays, {"bold", "present", "still"})
    _expect_names(film, shown, {"frames", "segment", "onset", "scene"})
    b, r = arrays["bold"].shape[:2]
    expected = {"bold": (b, r, len(reliability)), "present": (b, r), "segment": (b,), "onset": (b,), "scene": (b,)}
    for name, shape in {**expected, "frames": (b, *shown["frames"].shape[1:])}.items():
        where, array = (film, shown[name]) if name in shown else (path, arrays[name])
        if array.shape != shape:
            raise ArtefactError(
                f"{where}: {name} has shape {array.shape}; expected {shape}, for {b} clips, {r} repeats and "
                f"{len(reliability)} selected voxels"
            )
    segment, scene = np.asarray(shown["segment"]), np.asarray(shown["scene"])
    if b and not 0 <= segment.min() <= segment.max() < len(segments):
        raise ArtefactError(
            f"{film}: segment numbers {segment.min()} to {segment.max()}; expected 0 to {len(segments) - 1}, for "
            f"{', '.join(segments)}"
        )
    # Scenes are numbered within each film on disk, and over all films in memory.
    _, unique = np.unique(np.stack([segment, scene]), axis=1, return_inverse=True)
    return kind(
        bold=arrays["bold"], present=arrays["present"], frames=shown["frames"], segment=segment, onset=shown["onset"],
        scene=(first_scene + unique.ravel()).astype(np.int32), segments=segments, reliability=reliability, t_r=t_r,
        lags=lags,
    )  # fmt: skip


def _expect_names(path: Path, arrays: dict[str, np.ndarray], names: set[str]) -> None:
    if set(arrays) != names:
        raise ArtefactError(f"{path}: holds {', '.join(sorted(arrays))}; expected {', '.join(sorted(names))}")
