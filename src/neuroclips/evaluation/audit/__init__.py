"""Is this data set fit to be trusted? Checks of prepared data, before anybody believes a score.

Every check is a pure function: arrays in, a list of ``Finding`` out, at least one. Its criterion is closed (no fit by
eye) and its thresholds are constants beside it. A *fault* breaks what scores mean; a *warning* is to be looked at.
Nothing here changes data, and nothing here is a score.
"""

from neuroclips.evaluation.audit.film import (
    FilmPair,
    Timeline,
    check_copies,
    check_joins,
    check_scenes,
    check_similarity,
    frame_likeness,
    nearest_frames,
)
from neuroclips.evaluation.audit.finding import (
    Finding,
    Scan,
    Severity,
    worst,
)
from neuroclips.evaluation.audit.scans import (
    COPY_R,
    MAX_SHIFT,
    MIN_TRS,
    check_duplicates,
    check_film_shift,
    check_jumps,
    check_presence,
    check_repeats,
    check_values,
    peak_position,
    shifted_correlation,
)
from neuroclips.evaluation.audit.voxels import (
    autocorrelation,
    check_independence,
    check_selection,
    effective_n,
)

__all__ = [
    "COPY_R",
    "MAX_SHIFT",
    "MIN_TRS",
    "FilmPair",
    "Finding",
    "Scan",
    "Severity",
    "Timeline",
    "autocorrelation",
    "check_copies",
    "check_duplicates",
    "check_film_shift",
    "check_independence",
    "check_joins",
    "check_jumps",
    "check_presence",
    "check_repeats",
    "check_scenes",
    "check_selection",
    "check_similarity",
    "check_values",
    "effective_n",
    "frame_likeness",
    "nearest_frames",
    "peak_position",
    "shifted_correlation",
    "worst",
]
