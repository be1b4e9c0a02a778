"""Decoders: the voxels of a clip to what frozen networks see in its frames.

Everything that decodes a whole clip has the interface ``Decoders``: ridge here, the networks in ``training``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from neuroclips.data.clips import Clips, Targets, TrainingClips, ValidationClips
from neuroclips.shapes import Float32, Int

Pathway = Literal["perception", "semantics"]
PATHWAYS: tuple[Pathway, ...] = ("perception", "semantics")


@dataclass(frozen=True)
class Decoded:
    """What was read out of each clip's fMRI.

    latents : (B, F, C, h, w) of the blurry video.  tokens : (B, K, D) of the keyframe.
    prior_tokens : (B, K, D) ``tokens`` drawn towards what the diffusion prior makes of them, or None without one.
    """

    latents: Float32[np.ndarray, "B F C h w"]
    tokens: Float32[np.ndarray, "B K D"]
    prior_tokens: Float32[np.ndarray, "B K D"] | None = None


@dataclass(frozen=True)
class FirstLayer:
    """The layer of one pathway that hears voxels: ``output(x) = x W + bias``, in the units of what it predicts.

    rows : columns of the inputs, (N,) -> their rows of W, (N, Y); made when asked, since W may be larger than memory.
    output : (B, X) inputs -> (B, Y).
    goal : targets -> (B, Y), what the output should be.
    """

    rows: Callable[[Int[np.ndarray, " N"]], Float32[np.ndarray, "N Y"]]
    output: Callable[[Float32[np.ndarray, "B X"]], Float32[np.ndarray, "B Y"]]
    goal: Callable[[Targets], Float32[np.ndarray, "B Y"]]


@runtime_checkable
class Decoders(Protocol):
    """Perception and semantics of one subject.

    ``fit`` sees training clips, and validation clips for choices; it refuses the test split. ``inputs`` takes from
    clips what ``decode`` needs, a row a clip: rows may be reordered in between, as the shuffled control does.
    """

    def fit(
        self,
        train: TrainingClips,
        targets: Targets,
        validation: ValidationClips | None = None,
        validation_targets: Targets | None = None,
    ) -> Decoders: ...

    def inputs(self, clips: Clips, n_repeats: int | None = None) -> Float32[np.ndarray, "B X"]: ...

    def decode(self, inputs: Float32[np.ndarray, "B X"], ids: list[str], *, prior: bool = True) -> Decoded:
        """Without ``prior``, nothing is drawn and ``prior_tokens`` is None."""
        ...

    def first_layer(self, pathway: Pathway) -> FirstLayer: ...

    def save(self, directory: Path) -> dict[str, Any]:
        """Write learnt state to a directory; returns what the card should say of it."""
        ...

    @classmethod
    def load(cls, directory: Path) -> Decoders: ...
