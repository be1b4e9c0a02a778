"""Which second of film goes with which volume: exact, in fractions of a second.

Volume v of a run lasts from ``v * t_r`` to ``(v + 1) * t_r``. A film starts at ``onset``, counted from the start of
volume 0. Clip j is the film during volume ``first + j``; the response paired with it is volume
``first + delay + j``. The film is cut on the grid of volumes and volumes are never interpolated:

    first = ceil(onset / t_r)          the first whole volume of film
    start = first * t_r - onset        the film's own second at which clip 0 starts
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from neuroclips.errors import DataError

DELAY_SECONDS = 4.0  # between film and response (method a.4); the nearest whole number of TRs is the default
_FINEST = 1_000_000  # a time is taken as the nearest fraction with a denominator up to this


def exact(seconds: float | int | Fraction) -> Fraction:
    """A time as a fraction: 1.5 is 3/2, and 0.72 is 18/25 rather than the nearest binary number."""
    return Fraction(seconds).limit_denominator(_FINEST)


def default_delay(t_r: float | int) -> int:
    """The whole number of TRs nearest to 4 s: 2 at a TR of 2 s."""
    return round(DELAY_SECONDS / t_r)


@dataclass(frozen=True)
class Placed:
    """A presentation on the grid of its run's volumes.

    first : the volume during which clip 0 was shown.
    misfit : seconds by which the film is further on, in this run, than clips are cut at; 0 for the presentation that
        the cut was made for, between -t_r/2 and t_r/2 for others (more where the film began before the scan).
    """

    first: int
    misfit: Fraction = Fraction(0)


def cut(onset: float | int | Fraction, t_r: float | int | Fraction) -> tuple[Placed, Fraction]:
    """The first whole volume of a film shown at ``onset`` s, and the film's second at which that volume starts, in
    [0, t_r). A film that was running before the scan is cut at volume 0.

    >>> cut(4.5, 2)  # volume 3 starts at 6 s: 1.5 s into the film
    (Placed(first=3, misfit=Fraction(0, 1)), Fraction(3, 2))
    """
    shown, period = exact(onset), exact(t_r)
    first = max(0, math.ceil(shown / period))
    return Placed(first), first * period - shown


def place(onset: float | int | Fraction, t_r: float | int | Fraction, start: Fraction) -> Placed:
    """Another presentation of a film that is cut at its second ``start``: the volume that starts nearest to it.

    >>> place(10.5, 2, Fraction(3, 2))  # the film's second 1.5 comes at 12 s: volume 6
    Placed(first=6, misfit=Fraction(0, 1))
    """
    shown, period = exact(onset), exact(t_r)
    first = max(0, math.floor((shown + start) / period + Fraction(1, 2)))
    return Placed(first, first * period - shown - start)


def clips_in_film(film_seconds: Fraction, start: Fraction, t_r: float | int | Fraction, frames_per_clip: int) -> int:
    """Clips that a film has from its second ``start`` on; the last frame of the last one is on for half its share."""
    share = Fraction(1, 2 * frames_per_clip)
    return max(0, math.ceil((film_seconds - start) / exact(t_r) + share) - 1)


def clips_in_run(n_volumes: int, first: int, delay: int) -> int:
    """Clips whose response, ``delay`` volumes later, is in a run of ``n_volumes``."""
    return max(0, n_volumes - first - delay)


def check_delays(delays: tuple[int, ...], t_r: float | int) -> None:
    """Raise DataError unless delays ascend and lie within 20 s: later volumes say nothing of a clip."""
    if not delays or list(delays) != sorted(set(delays)) or delays[0] < 0 or delays[-1] * t_r > 20:
        raise DataError(
            f"delay_trs is {list(delays)} at a TR of {t_r:g} s; expected ascending numbers of volumes from 0 to "
            f"{int(20 / t_r)} (20 s)"
        )
