"""Curves: a score under one condition after another, as files keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuroclips.artefacts import read_json, write_json
from neuroclips.errors import ArtefactError
from neuroclips.evaluation.table import Score
from neuroclips.evaluation.uncertainty import AbstentionCurve


@dataclass(frozen=True)
class CurvePoint:
    """A score of the curve "training minutes", "components" (numbers a clip) or "lag" (in TRs), where that is ``x``."""

    curve: str
    x: float
    score: Score


def write_curves(path: Path, points: Sequence[CurvePoint], abstention: AbstentionCurve | None) -> None:
    """Write what ``score_curves`` returned as JSON: ``points`` and ``abstention``."""
    about = None if abstention is None else asdict(abstention)
    write_json(path, {"points": [asdict(point) for point in points], "abstention": about})


def read_curves(path: Path) -> tuple[list[CurvePoint], AbstentionCurve | None]:
    """Read what ``write_curves`` wrote."""
    content = read_json(path)
    try:
        points = [CurvePoint(p["curve"], p["x"], Score(**_tuples(p["score"]))) for p in content["points"]]
        about = content["abstention"]
        return points, None if about is None else AbstentionCurve(**_tuples(about))
    except (TypeError, KeyError) as error:
        raise ArtefactError(f"{path}: not readable curves ({error!r})") from error


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, Mapping):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(value) if isinstance(value, list) else value
