"""Multi-fMRI fusion: consecutive clips of one scene become one longer video (paper section 3.4).

    before    = clips.neighbour(-1)                           which clip ends where this one starts
    joined    = rule.same_scene(embeddings, before)           does it continue that clip's scene?
    positions = chain_positions(joined, before, limit=3)      its place in a video of up to 3 clips, 6 s
    videos    = fuse(generator, guidance, positions, before)  last frame of one clip -> first frame of the next
    film      = join(videos, onset, t_r)                      one segment, in time order

The paper judges by a shallow network on the CLIP embeddings of two neighbouring keyframes whether they show the same
class. It leaves open what the network looks like, what it is trained on and how it is thresholded, and no code or
weights were released. Here "the same" means the same scene: no cut of the film lies between the two clips. A rule
learns from training clips, and its threshold is chosen on validation clips, as that of best balanced accuracy.
Embeddings of training clips are better than those of new clips if the decoder was fitted to them, which is why the
threshold must not come from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from neuroclips.artefacts import read_arrays, read_json, write_arrays, write_json
from neuroclips.data.clips import Clips, refuse_test_clips
from neuroclips.errors import ArtefactError, DataError, RecipeError
from neuroclips.evaluation.seams import choose_threshold, continues_scene
from neuroclips.shapes import Bool, Float, Int, UInt8
from neuroclips.video.guidance import Guidance, VideoGenerator


# 1. Which consecutive clips show the same scene.
@dataclass(frozen=True)
class KnownScenes:
    """Clips whose scenes are known, for a rule to learn from.

    embeddings : (B, P) a CLIP summary of each clip's reconstructed keyframe or decoded tokens, whatever the rule will
        see of new clips.
    before : (B,) the clip right before each, or -1.
    same : (B,) whether it continues that clip's scene.
    """

    embeddings: Float[np.ndarray, "B P"]
    before: Int[np.ndarray, " B"]
    same: Bool[np.ndarray, " B"]

    @classmethod
    def of(cls, clips: Clips, embeddings: Float[np.ndarray, "B P"]) -> KnownScenes:
        """Those of training or validation clips. Raises SplitLeakError for test clips."""
        refuse_test_clips(clips)
        before = clips.neighbour(-1)
        return cls(embeddings, before, continues_scene(clips.scene, before))


def similarity(
    embeddings: Float[np.ndarray, "B P"], before: Int[np.ndarray, " B"], centre: Float[np.ndarray, " P"]
) -> Float[np.ndarray, " B"]:
    """Cosine, in [-1, 1], of each clip with the clip before it; NaN where there is none.

    ``centre``, the mean embedding of the training clips, is subtracted first: CLIP embeddings share a large constant
    part, with which all cosines are high and alike.
    """
    earlier, later = _pairs(embeddings, before, centre)
    return _per_clip((earlier * later).sum(axis=1), before)


def pair_features(
    embeddings: Float[np.ndarray, "B P"], before: Int[np.ndarray, " B"], centre: Float[np.ndarray, " P"]
) -> Float[np.ndarray, "N X"]:
    """What the network sees of the N clips that follow another: |a - b|, a b and their cosine, X = 2 P + 1.

    a and b are the centred embeddings, of unit length. The features stay the same when a and b change places: whether
    two clips show one scene does not depend on their order.
    """
    a, b = _pairs(embeddings, before, centre)
    return np.concatenate([np.abs(a - b), a * b, (a * b).sum(axis=1, keepdims=True)], axis=1)


def _pairs(embeddings: np.ndarray, before: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred unit embeddings (N, P) of the clips before, and of the clips that follow them."""
    if not np.isfinite(embeddings).all():
        raise DataError(f"embedding of clip {int(np.argmin(np.isfinite(embeddings).all(axis=1)))} is not finite")
    if embeddings.shape[1:] != centre.shape:
        raise DataError(f"embeddings are {embeddings.shape[1]} wide; the rule was fitted to {len(centre)}")
    unit = embeddings.astype(np.float64) - centre
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    later = before >= 0
    return unit[before[later]], unit[later]


def _per_clip(values: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Values (N,) of the clips that follow another, among all clips (B,)."""
    spread = np.full(len(before), np.nan)
    spread[before >= 0] = values
    return spread


class SceneRule(ABC):
    """Decides which clips continue the scene of the clip before them: where ``evidence > threshold_``.

    ``save`` writes what was learnt, ``load_scene_rule`` reads it.
    """

    name: ClassVar[str]
    learnt: ClassVar[tuple[str, ...]]
    settings: ClassVar[tuple[str, ...]] = ()
    threshold_: float

    @abstractmethod
    def fit(self, training: KnownScenes, validation: KnownScenes) -> SceneRule:
        """Learn from training clips and choose the threshold on validation clips.

        Raises ``DataError`` when either shows no cut, or nothing but cuts.
        """

    @abstractmethod
    def evidence(self, embeddings: Float[np.ndarray, "B P"], before: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """How much speaks for the same scene; NaN where there is no clip before."""

    def same_scene(self, embeddings: Float[np.ndarray, "B P"], before: Int[np.ndarray, " B"]) -> Bool[np.ndarray, " B"]:
        """Whether each clip continues the scene of the clip before it; False where there is none."""
        return self.evidence(embeddings, before) > self.threshold_

    def save(self, directory: Path) -> dict[str, Any]:
        """Write the rule to ``directory``; returns its name, settings and threshold."""
        write_arrays(directory / "scene_rule.safetensors", {name: getattr(self, name) for name in self.learnt})
        settings = {name: getattr(self, name) for name in self.settings}
        about = {"rule": self.name, "settings": settings, "threshold": self.threshold_}
        write_json(directory / "scene_rule.json", about)
        return about


class SceneSimilarity(SceneRule):
    """Clips show the same scene when the cosine of their embeddings is above a threshold (see ``similarity``).

    Attributes
    ----------
    centre_ : (P,) mean embedding of the training clips.
    threshold_ : cosine.
    """

    name = "similarity"
    learnt = ("centre_",)
    centre_: np.ndarray

    def fit(self, training: KnownScenes, validation: KnownScenes) -> SceneSimilarity:
        self.centre_ = training.embeddings.mean(axis=0, dtype=np.float64)
        self.threshold_ = choose_threshold(self.evidence(validation.embeddings, validation.before), validation.same)
        return self

    def evidence(self, embeddings: Float[np.ndarray, "B P"], before: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        return similarity(embeddings, before, self.centre_)


class SceneClassifier(SceneRule):
    """The paper's shallow network on two embeddings, with one hidden layer (see ``pair_features``).

        evidence = relu(features weight_in + bias_in) weight_out + bias_out

    Continued scenes and cuts weigh alike in its cross-entropy, however rare cuts are. All pairs make one batch of Adam;
    the weights are those of the lowest validation loss. It can learn which part of an embedding tells scenes apart, but
    has to: on planted scenes that all of it tells apart, the cosine of ``SceneSimilarity`` was as good with 3,600 pairs
    and better with 240.

    Parameters
    ----------
    hidden : units. steps, learning_rate : of Adam. seed : of the first weights.

    Attributes
    ----------
    centre_ : (P,) mean embedding of the training clips.
    weight_in_ : (X, hidden), bias_in_ : (hidden,), weight_out_ : (hidden,), bias_out_ : (1,).
    threshold_ : log-odds.
    """

    name = "classifier"
    learnt = ("centre_", "weight_in_", "bias_in_", "weight_out_", "bias_out_")
    settings = ("hidden", "steps", "learning_rate", "seed")
    centre_: np.ndarray
    weight_in_: np.ndarray
    bias_in_: np.ndarray
    weight_out_: np.ndarray
    bias_out_: np.ndarray

    def __init__(self, hidden: int = 32, steps: int = 200, learning_rate: float = 3e-3, seed: int = 0):
        self.hidden, self.steps, self.learning_rate, self.seed = hidden, steps, learning_rate, seed

    def fit(self, training: KnownScenes, validation: KnownScenes) -> SceneClassifier:
        self.centre_ = training.embeddings.mean(axis=0, dtype=np.float64)
        x, x_validation = (pair_features(k.embeddings, k.before, self.centre_) for k in (training, validation))
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1)  # a constant feature stays as it is
        batch, validation_batch = (
            _balanced((features - mean) / scale, known.same[known.before >= 0])
            for features, known in ((x, training), (x_validation, validation))
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            network = nn.Sequential(nn.Linear(x.shape[1], self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1))
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        lowest = np.inf
        for step in range(self.steps + 1):
            with torch.no_grad():
                loss = float(validation_batch.loss(network))
            if loss < lowest:
                lowest, best = loss, [p.detach().double().numpy().copy() for p in network.parameters()]
            if step < self.steps:
                optimizer.zero_grad()
                batch.loss(network).backward()
                optimizer.step()
        weight, bias, weight_out, self.bias_out_ = best
        # Scaling the features is part of the first layer from here on.
        self.weight_in_ = np.ascontiguousarray((weight / scale).T)
        self.bias_in_, self.weight_out_ = bias - mean @ self.weight_in_, weight_out[0]
        self.threshold_ = choose_threshold(self.evidence(validation.embeddings, validation.before), validation.same)
        return self

    def evidence(self, embeddings: Float[np.ndarray, "B P"], before: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        features = pair_features(embeddings, before, self.centre_)
        hidden = np.maximum(features @ self.weight_in_ + self.bias_in_, 0)
        return _per_clip(hidden @ self.weight_out_ + self.bias_out_, before)


@dataclass(frozen=True)
class _Batch:
    """All pairs: features (N, X), labels (N, 1) and weights (N, 1) of which each class has half."""

    x: torch.Tensor
    same: torch.Tensor
    weight: torch.Tensor

    def loss(self, network: nn.Module) -> torch.Tensor:
        return binary_cross_entropy_with_logits(network(self.x), self.same, self.weight, reduction="sum")


def _balanced(x: np.ndarray, same: np.ndarray) -> _Batch:
    if same.all() or not same.any():
        raise DataError(
            f"of {len(same)} pairs of consecutive clips, {int(same.sum())} show the same scene; the classifier needs "
            "both continued scenes and cuts: give more segments"
        )
    weight = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    return _Batch(*(torch.tensor(part, dtype=torch.float32) for part in (x, same[:, None], weight[:, None])))


SCENE_RULES: dict[str, type[SceneRule]] = {rule.name: rule for rule in (SceneSimilarity, SceneClassifier)}


def load_scene_rule(directory: Path) -> SceneRule:
    """A saved rule, ready to decide. Raises ``ArtefactError`` for files that are damaged or of something else."""
    about, arrays = read_json(directory / "scene_rule.json"), read_arrays(directory / "scene_rule.safetensors")
    kind = SCENE_RULES.get(about.get("rule"))
    if kind is None or set(arrays) != set(kind.learnt):
        raise ArtefactError(
            f"{directory}: rule {about.get('rule')!r} with arrays {', '.join(sorted(arrays))}; expected one of "
            + ", ".join(f"{name!r} with {', '.join(sorted(rule.learnt))}" for name, rule in SCENE_RULES.items())
        )
    rule = kind(**about["settings"])
    rule.threshold_ = float(about["threshold"])
    for name, array in arrays.items():
        setattr(rule, name, np.array(array))
    return rule


# 2. Chains of joined clips.
def chain_positions(
    joined: Bool[np.ndarray, " B"], before: Int[np.ndarray, " B"], limit: int | None = 3
) -> Int[np.ndarray, " B"]:
    """Position of each clip in its chain; 0 starts one.

    A chain has at most ``limit`` clips, and the next joined clip starts another: the paper joins 3 clips of 2 s.
    With 1 there is no fusion; with None a chain is as long as the clips are joined (continuous decoding).

    >>> chain_positions(np.array([False, True, True, True]), np.array([-1, 0, 1, 2])).tolist()
    [0, 1, 2, 0]
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"a chain of at most {limit} clips; expected a limit of 1 or more, or None")
    if (joined & (before < 0)).any():
        raise DataError(f"clip {int(np.argmax(joined & (before < 0)))} is joined to the clip before it; there is none")
    after = {int(b): i for i, b in enumerate(before) if b >= 0}
    positions = np.zeros(len(joined), np.int64)
    for start in np.flatnonzero(before < 0):
        clip = int(start)
        while clip in after:
            clip, position = after[clip], int(positions[clip]) + 1
            if joined[clip] and (limit is None or position < limit):
                positions[clip] = position
    return positions


# 3. Generate.
def fuse(
    generator: VideoGenerator,
    guidance: Guidance,
    positions: Int[np.ndarray, " B"],
    before: Int[np.ndarray, " B"],
    *,
    seed: int,
) -> UInt8[np.ndarray, "B F 3 H W"]:
    """Videos of chains: the last frame of each clip's video conditions the next clip's video.

    All clips at position 0 are generated together, each as it would be without fusion; then all at position 1, with
    ``Guidance.first_frames`` from the videos of the clips before them, and so on. Everything else that guides a clip
    stays its own; the paper speaks of its keyframe only.
    """
    assert guidance.first_frames is None, "fuse sets first_frames itself"
    start = np.flatnonzero(positions == 0)
    first = generator.generate(guidance.take(start), seed=seed)
    videos = np.empty((len(guidance), *first.shape[1:]), np.uint8)
    videos[start] = first
    for position in range(1, int(positions.max(initial=0)) + 1):
        clips = np.flatnonzero(positions == position)
        earlier = before[clips]
        assert (earlier >= 0).all(), f"a clip at position {position} has no clip before it"
        assert (positions[earlier] == position - 1).all(), f"a clip at position {position} follows one elsewhere"
        last_frames = videos[earlier, -1].astype(np.float32) / 255
        videos[clips] = generator.generate(replace(guidance.take(clips), first_frames=last_frames), seed=seed)
    return videos


# 4. Show.
def join(
    videos: UInt8[np.ndarray, "B F 3 H W"], onset: Float[np.ndarray, " B"], t_r: float
) -> UInt8[np.ndarray, "N 3 H W"]:
    """One long video, N = B F frames, of one segment's clips in time order. Clips may come in any order.

    Raises ``DataError`` when clips in the middle are missing, or there twice, with the times at which they start.
    """
    order = np.argsort(onset, kind="stable")
    number = np.rint((onset[order] - onset.min()) / t_r).astype(np.int64)
    times = np.bincount(number)
    if (times != 1).any():
        start = float(onset.min())
        missing, repeated = (
            ", ".join(f"{start + n * t_r:g} s" for n in np.flatnonzero(wrong)) or "none"
            for wrong in (times == 0, times > 1)
        )
        raise DataError(
            f"cannot join clips from {start:g} s to {onset.max():g} s: those at {missing} are missing, at {repeated} "
            f"repeated; expected one clip of the segment every {t_r:g} s"
        )
    return videos[order].reshape(-1, *videos.shape[2:])
