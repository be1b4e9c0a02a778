"""Encoding models of a run: what the film explains in each voxel, and whether decoded film explains it too.

Spaces of a film, whatever film it is, the one that was shown or one that was decoded:

    low-level   principal components of its VAE latents, of the strength of edges and changes, and of coarse flow
    semantic    principal components of its CLIP tokens
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from neuroclips.artefacts import let_go
from neuroclips.cortex.encoding import (
    EncodingModel,
    Principal,
    VariancePartition,
    contrast_and_change,
    fit_encoding,
    mean_responses,
    principal,
    variance_partition,
)
from neuroclips.cortex.reencoding import (
    ClipTrust,
    Reencoding,
    agreement,
    clip_trust,
    presentation_halves,
    reencoding_accuracy,
)
from neuroclips.cortex.regions import Regions
from neuroclips.data.clips import Targets, TestClips, TrainingClips
from neuroclips.evaluation.identification import candidate_pool
from neuroclips.evaluation.noise_ceiling import split_half
from neuroclips.reconstructor import Reconstructor
from neuroclips.shapes import Float32, UInt8
from neuroclips.video.motion import coarse_flow

COMPONENTS = {"latents": 100, "change": 60, "flow": 40, "tokens": 100}  # at most, of each part of a space
Report = Callable[[int, int, str], None]
Spaces = dict[str, Float32[np.ndarray, "B _"]]


@dataclass(frozen=True)
class FilmSpaces:
    """The feature spaces of films, their axes found on the training film."""

    parts: dict[str, Principal]

    @classmethod
    def fit(cls, frames: UInt8[np.ndarray, "B F 3 H W"], targets: Targets) -> FilmSpaces:
        found = cls({name: principal(values, COMPONENTS[name]) for name, values in _seen(frames, targets).items()})
        let_go(frames, targets.latents, targets.tokens)
        return found

    def __call__(self, frames: UInt8[np.ndarray, "B F 3 H W"], targets: Targets) -> Spaces:
        found = {name: self.parts[name].encode(values) for name, values in _seen(frames, targets).items()}
        let_go(frames, targets.latents, targets.tokens)
        return {
            "low-level": np.concatenate([found[n] for n in ("latents", "change", "flow") if n in found], axis=1),
            "semantic": found["tokens"],
        }


def _seen(frames: np.ndarray, targets: Targets) -> dict[str, np.ndarray]:
    frames = np.asarray(frames)
    found = {"latents": np.asarray(targets.latents), "tokens": np.asarray(targets.tokens)}
    if frames.shape[1] > 1:  # one frame a clip neither changes nor moves
        found |= {"change": contrast_and_change(frames), "flow": coarse_flow(frames).reshape(len(frames), -1)}
    return found


@dataclass(frozen=True)
class Encoding:
    """Models fitted on training clips: of both spaces together, and of each alone."""

    spaces: FilmSpaces
    joint: EncodingModel
    alone: dict[str, EncodingModel]

    @classmethod
    def fit(cls, train: TrainingClips, targets: Targets, seed: int, report: Report) -> Encoding:
        spaces = FilmSpaces.fit(train.frames, targets)
        shown, y = spaces(train.frames, targets), mean_responses(train)
        report(0, 3, "encoding: both spaces")
        joint = fit_encoding(shown, train.segment, y, seed=seed)
        alone = {}
        for number, (name, features) in enumerate(shown.items(), 1):
            report(number, 3, f"encoding: {name}")
            alone[name] = fit_encoding({name: features}, train.segment, y, seed=seed)
        return cls(spaces, joint, alone)

    def partition(self, test: TestClips, targets: Targets, regions: Regions) -> VariancePartition:
        """Variance of the mean test response that each space explains, per voxel and region."""
        member = regions.unions[regions.cell].T  # (R, V)
        shown = self.spaces(test.frames, targets)
        return variance_partition(self.joint, self.alone, shown, test.segment, mean_responses(test), member)


@dataclass(frozen=True)
class Trust:
    """How far decoded film predicts scans that it was not decoded from.

    products : (B, V), see ``reencoding.agreement``.  ceiling : (V,) the largest correlation that noise allows.
    film : mean correlation that the film itself reaches, as it was shown: what the encoding model allows.
    overall, patterns : over clips, and clip by clip.
    """

    products: Float32[np.ndarray, "B V"]
    ceiling: Float32[np.ndarray, " V"]
    film: float
    overall: Reencoding
    patterns: ClipTrust


def trust_of(
    encoding: Encoding, reconstructor: Reconstructor, generator: str, test: TestClips, targets: Targets,
    exclude_seconds: float | int, *, seed: int, shuffles: int, draws: int,
) -> Trust | None:  # fmt: skip
    """Decode the odd presentations into film, re-encode it, and compare with the even ones; None with one presentation.

    Both halves have seen the same film, but their noise is independent, so that agreement is of the film alone.
    Features are those of the decoded frames: what decoders say without frames is a channel of its own between the two
    halves, and can predict better than the film that was shown. ``targets``: of that film.
    """
    if int(test.present.sum(axis=1).min()) < 2:
        return None
    decoded_from, kept = presentation_halves(test)
    videos = reconstructor.reconstruct(decoded_from, generator, seed=seed)
    features = encoding.spaces(videos, reconstructor.targets(replace(test, frames=videos)))
    predicted, measured = encoding.joint.predict(features, test.segment), mean_responses(kept)
    shown = encoding.joint.predict(encoding.spaces(test.frames, targets), test.segment)
    pool = candidate_pool(test.segment, test.onset, exclude_seconds)
    k = int(np.rint(kept.present.sum(axis=1).mean()))
    options = {"shuffles": shuffles, "seed": seed, "draws": draws}
    return Trust(
        agreement(predicted, measured),
        np.sqrt(split_half(test.bold, np.asarray(test.present), k)).astype(np.float32),
        float(agreement(shown, measured).mean()),
        reencoding_accuracy(predicted, measured, test.scene, **options),
        clip_trust(predicted, measured, test.scene, pool, **options),
    )
