"""What a check found, and small parts that the checks share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from neuroclips.shapes import Float

Severity = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    check : its name. severity : "ok", "warning" (look at it) or "fault" (scores would not mean what they say).
    found : what, with numbers. where : runs, segments or clips. do : what to do about it.
    numbers : the same numbers for programs. data : which data set, where several are audited.
    """

    check: str
    severity: Severity
    found: str
    where: str = ""
    do: str = ""
    numbers: Mapping[str, float | int] = field(default_factory=dict)
    data: str = ""


@dataclass(frozen=True)
class Scan:
    """One run: one presentation of one segment.

    values : (T, V) z-scored responses at the voxels compared, in order of time; finite.
    data : which data set, where several are audited.
    """

    split: str
    segment: str
    repeat: int
    values: Float[np.ndarray, "T V"]
    data: str = ""

    @property
    def name(self) -> str:
        return f"{self.data}{': ' if self.data else ''}{self.segment}, repeat {self.repeat}"


def worst(findings: Iterable[Finding]) -> Severity:
    """The gravest severity among findings; "ok" where there are none."""
    order: tuple[Severity, ...] = ("ok", "warning", "fault")
    return max((f.severity for f in findings), key=order.index, default="ok")


def or_ok(
    check: str, findings: list[Finding], found: str, numbers: Mapping[str, float | int] | None = None
) -> list[Finding]:
    return findings or [Finding(check, "ok", found, numbers=numbers or {})]


def several(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def standardised(values: np.ndarray) -> np.ndarray:
    """Columns at mean 0 and variance 1 (divisor T); columns that do not vary are 0."""
    centred = values - values.mean(axis=0)
    sd = centred.std(axis=0)
    return centred * np.divide(1, sd, out=np.zeros_like(sd), where=sd > 1e-6)


def robust_sd(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
