"""Names and places in the CC2017 layout (Wen et al. 2018, Purdue University Research Repository 2809, CC0).

    ROOT/stimuli/seg1.mp4 ... test5.mp4
    ROOT/subject1/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii        segment seg1, repeat 1

Any data set laid out like this is read; the segment names come from the recipe.
"""

from __future__ import annotations

import re
from pathlib import Path

from neuroclips.errors import DataError

# The HCP "91k" standard grayordinates (Glasser et al. 2013): fs_LR 32k vertices less the medial wall, then subcortex.
N_GRAYORDINATES = 91_282
N_LEFT, N_RIGHT = 29_696, 29_716
N_CORTEX = N_LEFT + N_RIGHT  # 59,412

# Wen's own script keeps volumes 2..241 of runs of 245 and 3..242 of runs of 246 (counted from 1): 240 volumes of film
# after 1 or 2 spare ones, and 4 spare ones at the end.
LEADING_SPARES = (1, 2)
TRAILING_SPARES = 4


def find_runs(root: Path, subject: int, segment: str) -> dict[int, Path]:
    """The scans of one segment, by repeat number (from 1), in order. Repeats that are missing are just not there.

    Raises
    ------
    DataError
        The segment has no folder of scans; the message lists the segments that the subject has.
    """
    fmri = Path(root) / f"subject{subject}" / "fmri"
    folder = fmri / segment / "cifti"
    if not folder.is_dir():
        found = sorted(p.name for p in fmri.iterdir() if p.is_dir()) if fmri.is_dir() else []
        raise DataError(
            f"{folder}: no such folder; expected the scans of segment {segment!r} of subject {subject}; "
            f"segments found under {fmri}: {', '.join(found) or 'none'}"
        )
    # Two digits at most: the repeat number sizes arrays, so a stray file name must not make it huge.
    pattern = re.compile(rf"{re.escape(segment)}_([1-9]\d?)_Atlas\.dtseries\.nii")
    matches = ((pattern.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def film_path(root: Path, segment: str) -> Path:
    """The film of one segment. Raises DataError when it is not there."""
    path = Path(root) / "stimuli" / f"{segment}.mp4"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the film of segment {segment!r}")
    return path
