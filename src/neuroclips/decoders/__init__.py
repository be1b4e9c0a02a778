"""Decoders: voxels of a clip to what a frozen network sees in its frames.

Every decoder has the interface ``Decoder``: linear ones (``ridge``) today, the neural ones behind the same methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from neuroclips.data.clips import TrainingClips, ValidationClips
from neuroclips.shapes import Float, Float32


@runtime_checkable
class Decoder(Protocol):
    """Predicts one target array per clip from the clip's voxels.

    ``fit`` sees training clips, and validation clips for choices; it refuses the test split.
    """

    def fit(
        self,
        train: TrainingClips,
        targets: Float[np.ndarray, "B ..."],
        validation: ValidationClips | None = None,
        validation_targets: Float[np.ndarray, "Bv ..."] | None = None,
    ) -> Decoder: ...

    def predict(self, responses: Float32[np.ndarray, "B V"]) -> Float32[np.ndarray, "B ..."]: ...

    def save(self, directory: Path) -> dict[str, Any]:
        """Write learnt state to a directory; returns what the card should say of it."""
        ...

    @classmethod
    def load(cls, directory: Path) -> Decoder: ...
