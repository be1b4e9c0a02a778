"""Names and places in the CC2017 layout (Wen et al. 2018, Purdue University Research Repository 2809, CC0).

    ROOT/stimuli/seg1.mp4 ... test5.mp4
    ROOT/subject1/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii        segment seg1, repeat 1
    ROOT/subject1/fmri/seg1/mni/seg1_1_mni.nii.gz                  the same scan in a volume

ROOT may be the folder ``video_fmri_dataset`` itself, or the one that holds it or its zips. Any data set laid out like
this is read; the segment names come from the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from neuroclips.errors import DataError

# The HCP "91k" standard grayordinates (Glasser et al. 2013): fs_LR 32k vertices less the medial wall, then subcortex.
N_GRAYORDINATES = 91_282
N_LEFT, N_RIGHT = 29_696, 29_716
N_CORTEX = N_LEFT + N_RIGHT  # 59,412

# Wen's own script keeps volumes 2..241 of runs of 245 and 3..242 of runs of 246 (counted from 1): 240 volumes of film
# after 1 or 2 spare ones, and 4 spare ones at the end.
LEADING_SPARES = (1, 2)
TRAILING_SPARES = 4

FOLDER = "video_fmri_dataset"
DOIS = {
    "stimuli": "10.4231/R71Z42KK", "subject1": "10.4231/R7X63K3M", "subject2": "10.4231/R7NS0S1F",
    "subject3": "10.4231/R7J101BV",
}  # fmt: skip
# Subject, segment and repeat -> what is known against it. Left out unless ``data.exclude`` says otherwise.
SUSPECT = {(3, "test2", 9): "Mind-Animator (Lu et al. 2025) leaves this repeat out as damaged"}

# The repeat number has two digits at most: it sizes arrays, so a stray file name must not make it huge. Both
# separators: test1_9.mni.nii.gz of subject 1 has a dot where the others have an underscore.
_ENDINGS = {"cifti": r"[_.]Atlas\.dtseries\.nii", "mni": r"[_.]mni\.nii(?:\.gz)?"}


def dataset_folder(root: Path) -> Path:
    """The folder ``video_fmri_dataset`` in ROOT, whether it is there yet or not; or ROOT, if that is what it is."""
    return Path(root) if (Path(root) / "stimuli").is_dir() else Path(root) / FOLDER


def wanted(subjects: set[int], files: str) -> Callable[[PurePosixPath], bool]:
    """Which members of the zips a run needs: films, and the scans of one kind of some subjects."""
    scan = re.compile(rf"subject(\d+)/fmri/[^/]+/{files}/[^/]+\.nii(?:\.gz)?")

    def is_wanted(path: PurePosixPath) -> bool:
        if path.parts[0] == "stimuli":
            return len(path.parts) == 2 and path.suffix == ".mp4"
        match = scan.fullmatch(str(path))
        return match is not None and int(match[1]) in subjects

    return is_wanted


def find_runs(root: Path, subject: int, segment: str, files: str = "cifti") -> tuple[dict[int, Path], list[str]]:
    """The scans of one segment by repeat number (from 1), in order, and a sentence for every odd file name.

    Repeats that are missing are just not there.

    Raises
    ------
    DataError
        The segment has no folder of scans (the message lists the segments that the subject has), or two files claim
        to be the same repeat.
    """
    fmri = Path(root) / f"subject{subject}" / "fmri"
    folder = fmri / segment / files
    if not folder.is_dir():
        others = [kind for kind in _ENDINGS if (fmri / segment / kind).is_dir()]
        found = sorted(p.name for p in fmri.iterdir() if p.is_dir()) if fmri.is_dir() else []
        there = f"{others[0]} is there, and data.files: {others[0]} reads it" if others else (
            f"segments found under {fmri}: {', '.join(found) or 'none'}"
        )  # fmt: skip
        raise DataError(
            f"{folder}: no such folder; expected the scans of segment {segment!r} of subject {subject}; {there}"
            f"{_download(root, f'subject{subject}')}"
        )
    pattern = re.compile(rf"{re.escape(segment)}_([1-9]\d?){_ENDINGS[files]}")
    usual = {"cifti": "_Atlas.dtseries.nii", "mni": "_mni.nii.gz"}[files]
    runs: dict[int, Path] = {}
    odd = []
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None:
            if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith("."):
                odd.append(f"{path}: not read; expected {segment}_REPEAT{usual}")
            continue
        repeat = int(match[1])
        if repeat in runs:
            raise DataError(f"{path}: repeat {repeat} of {segment} is {runs[repeat].name}, too; expected one file each")
        if path.name != f"{segment}_{repeat}{usual}":
            odd.append(f"{path}: misnamed; read as repeat {repeat} of {segment} (expected {segment}_{repeat}{usual})")
        runs[repeat] = path
    return dict(sorted(runs.items())), odd


def _download(root: Path, part: str) -> str:
    """Where a part of CC2017 is had, if all of it is missing."""
    if part not in DOIS or (Path(root) / part).exists():
        return ""
    return f"; CC2017's {part} is https://doi.org/{DOIS[part]}: put the download into the folder, as it is"


def film_path(root: Path, segment: str) -> Path:
    """The film of one segment. Raises DataError when it is not there."""
    path = Path(root) / "stimuli" / f"{segment}.mp4"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the film of segment {segment!r}{_download(root, 'stimuli')}")
    return path
