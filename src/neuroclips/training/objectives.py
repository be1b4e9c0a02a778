"""What the decoders' networks are trained on: ``batches`` and ``loss`` of ``training.loop.train`` (method c.1 to c.3).

    objective = SemanticsObjective(responses, tokens, switches=switches("corrected"), steps=540, batch=240)
    train(network, objective.loss, objective.batches, settings=settings)

Every epoch visits every clip once, in an order of its own that follows from ``seed`` and the number of the epoch; which
repeat and which keyframe of a clip follows from ``Switches``, drawn from the batch's generator. So a batch depends on
its number and generator only. Of several processes, number p of P calls ``batches`` with ``P * number + p``.

Arrays may be memory-mapped and of any float type: only a batch's rows are read, and become float32.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from neuroclips.artefacts import stable_seed
from neuroclips.decoders.losses import (
    bimixco,
    draw_mixup,
    info_nce,
    mix,
    perception_loss,
    prior_loss,
    released_perception_loss,
    soft_clip,
    soft_clip_temperature,
)
from neuroclips.decoders.perception import PerceptionNetwork
from neuroclips.decoders.prior import DiffusionPrior
from neuroclips.decoders.semantics import SemanticsNetwork
from neuroclips.decoders.text import TextProjector
from neuroclips.errors import DataError
from neuroclips.shapes import Bool, Float, Float32
from neuroclips.training.switches import Switches

LOOKED_AT = 512  # clips that the tokens' variance is measured on, at most
Parts = dict[str, Any]


def epoch_length(clips: int, batch: int) -> int:
    """Batches of an epoch: the fewest of at most ``batch`` clips. Their sizes differ by one at most.

    >>> epoch_length(4320, 720), epoch_length(4320, 64)
    (6, 68)
    """
    return -(-clips // batch)


class SemanticsBatch(NamedTuple):
    """responses (n, X), tokens (n, K, D), text (n, E); ``softened`` is the progress through SoftCLIP's share of the
    training, None in BiMixCo's."""

    responses: Tensor
    tokens: Tensor
    text: Tensor | None
    softened: float | None


class SemanticsObjective:
    """Responses to the tokens of a keyframe.

        loss = contrast + text_weight info_nce(projector(predicted), text) + mse_weight MSE(predicted, tokens) / v

    ``contrast`` is ``bimixco`` of mixed responses in the first ``mixup_share_of_training``, then ``soft_clip``, whose
    temperature rises over what remains. Texts are not mixed (c.1); tokens are, in the MSE. v is the variance of tokens
    over clips, so that predicting their mean costs 1.

    Parameters
    ----------
    responses : (B, R, X) of R repeats, X voxels; or codes of the subject's layer, with ``codes``.
    tokens : (B, M, K, D) of M candidate keyframes.
    steps : batches of the whole training. batch : clips of a batch, at most.
    present : (B, R) which repeats exist; None is all. The others are never read into a batch.
    text : caption embeddings, (B, E) of every clip or (B, M, E) of every candidate; with their ``projector``, of which
        a frozen copy is used.
    seed : of the clips' order.
    """

    def __init__(
        self,
        responses: Float[np.ndarray, "B R X"],
        tokens: Float[np.ndarray, "B M K D"],
        *,
        switches: Switches,
        steps: int,
        batch: int,
        present: Bool[np.ndarray, "B R"] | None = None,
        text: Float[np.ndarray, "B *candidates E"] | None = None,
        projector: TextProjector | None = None,
        codes: bool = False,
        seed: int = 0,
    ):
        _refuse_other_clips("SemanticsObjective", responses=responses, tokens=tokens, present=present, text=text)
        self.responses, self.tokens, self.text, self.codes = responses, tokens, text, codes
        self.switches, self.steps = switches, steps
        self.draws = _Draws(responses, present, tokens.shape[1], switches, batch, seed)
        self.projector = _frozen("SemanticsObjective", text, projector, tokens.shape[1])
        self.variance = _variance(tokens) if switches.mse_weight else 1.0

    def batches(self, number: int, generator: torch.Generator) -> SemanticsBatch:
        """Batch ``number``, counted from 0."""
        rows = self.draws(number, generator)
        done, share = min(number / self.steps, 1.0), self.switches.mixup_share_of_training
        return SemanticsBatch(
            _responses(self.responses, self.draws.present, rows, self.switches),
            _tensor(self.tokens[rows.clip, rows.keyframe]),
            _captions(self.text, rows),
            None if done < share or share == 1 else (done - share) / (1 - share),
        )

    def loss(self, module: SemanticsNetwork, batch: SemanticsBatch, generator: torch.Generator) -> tuple[Tensor, Parts]:
        """The loss, and its terms before they are weighted."""
        x, goal = batch.responses, batch.tokens
        parts: Parts = {}
        if batch.softened is None:
            mixup = draw_mixup(len(x), generator)
            predicted, goal = self._predicted(module, mix(x, mixup)), mix(goal, mixup)
            total = parts["bimixco"] = bimixco(
                predicted, batch.tokens, mixup, fixed_points=self.switches.mixup_fixed_points
            )
        else:
            predicted = self._predicted(module, x)
            total = parts["soft_clip"] = soft_clip(predicted, goal, soft_clip_temperature(batch.softened))
        if self.projector is not None and batch.text is not None:
            parts["text"] = info_nce(self.projector.to(predicted.device)(predicted), batch.text)
            total = total + self.switches.text_weight * parts["text"]
        if self.switches.mse_weight:
            parts["mse"] = F.mse_loss(predicted.float(), goal) / self.variance
            total = total + self.switches.mse_weight * parts["mse"]
        return total, parts

    def _predicted(self, module: SemanticsNetwork, x: Tensor) -> Tensor:
        return (module.from_code(x) if self.codes else module(x)).tokens


class PriorBatch(NamedTuple):
    """condition (n, K, D), tokens (n, K, D), text (n, E)."""

    condition: Tensor
    tokens: Tensor
    text: Tensor | None


class PriorObjective:
    """Tokens that a brain suggests to those of a keyframe: ``prior_loss`` of one denoising at a random time (c.2).

        loss = prior_weight MSE(x0, tokens) + text_weight_prior info_nce(projector(x0), text)

    Parameters
    ----------
    conditions : (B, C, K, D) of C variants of each clip, by repeat or by fold, of which a batch has one. The switch
        ``keyframe`` chooses it as it does repeats; ``repeats`` has no say.
    present : (B, C) which variants exist; None is all.
    tokens, batch, text, projector : as in ``SemanticsObjective``.
    mean, sd : (K, D) and a number, by which conditions and tokens are standardised as they are drawn. Errors count in
        these units; the projector sees tokens in their own.
    """

    def __init__(
        self,
        conditions: Float[np.ndarray, "B C K D"],
        tokens: Float[np.ndarray, "B M K D"],
        *,
        switches: Switches,
        batch: int,
        present: Bool[np.ndarray, "B C"] | None = None,
        text: Float[np.ndarray, "B *candidates E"] | None = None,
        projector: TextProjector | None = None,
        mean: Float32[np.ndarray, "K D"] | None = None,
        sd: float | int = 1,
        seed: int = 0,
    ):
        self.mean, self.sd = torch.zeros(()) if mean is None else torch.tensor(mean), float(sd)
        _refuse_other_clips("PriorObjective", conditions=conditions, tokens=tokens, present=present, text=text)
        self.conditions, self.tokens, self.text, self.switches = conditions, tokens, text, switches
        self.draws = _Draws(conditions, present, tokens.shape[1], switches, batch, seed)
        self.projector = _frozen("PriorObjective", text, projector, tokens.shape[1])

    def batches(self, number: int, generator: torch.Generator) -> PriorBatch:
        """Batch ``number``, counted from 0."""
        rows = self.draws(number, generator)
        drawn = self.conditions[rows.clip, rows.repeat], self.tokens[rows.clip, rows.keyframe]
        condition, tokens = ((_tensor(x) - self.mean) / self.sd for x in drawn)
        return PriorBatch(condition, tokens, _captions(self.text, rows))

    def loss(self, module: DiffusionPrior, batch: PriorBatch, generator: torch.Generator) -> tuple[Tensor, Parts]:
        """The loss, and its terms before they are weighted."""
        x0 = module.denoised(batch.tokens, batch.condition, generator)
        mse = F.mse_loss(x0, batch.tokens)
        weight = self.switches.prior_weight
        if self.projector is None or batch.text is None:
            return weight * mse, {"mse": mse}
        seen = self.projector.to(x0.device)(x0 * self.sd + self.mean.to(x0.device))
        total = prior_loss(
            x0, batch.tokens, seen, batch.text,
            prior_weight=weight, text_weight=self.switches.text_weight_prior,
        )  # fmt: skip
        return total, {"mse": mse, "text": info_nce(seen.detach(), batch.text)}


class PerceptionBatch(NamedTuple):
    """responses (n, X), latents (n, F, C, h, w), maps and augmented (n, F, P, E)."""

    responses: Tensor
    latents: Tensor
    maps: Tensor | None
    augmented: Tensor | None


class PerceptionObjective:
    """Responses to the latents of every frame, by ``perception_loss`` or ``released_perception_loss`` (c.3).

    Parameters
    ----------
    responses, batch, present, codes : as in ``SemanticsObjective``.
    latents : (B, F, C, h, w).
    teacher : map embeddings (B, F, P, E) of the clean frames and of augmented ones, for the released loss, which
        expects a network with ``maps`` of as many places and features.
    """

    def __init__(
        self,
        responses: Float[np.ndarray, "B R X"],
        latents: Float[np.ndarray, "B F C h w"],
        *,
        switches: Switches,
        batch: int,
        present: Bool[np.ndarray, "B R"] | None = None,
        codes: bool = False,
        teacher: tuple[Float[np.ndarray, "B F P E"], Float[np.ndarray, "B F P E"]] | None = None,
        seed: int = 0,
    ):
        _refuse_other_clips("PerceptionObjective", responses=responses, latents=latents, present=present)
        self.released = switches.perception_loss == "released"
        if self.released and teacher is None:
            raise DataError(
                'PerceptionObjective was given perception_loss="released" without a teacher; expected its maps of the'
                " clean and of the augmented frames, or another loss"
            )
        self.teacher = teacher if self.released else None
        if self.teacher is not None:
            clean, augmented = self.teacher
            _refuse_other_clips("PerceptionObjective", latents=latents, clean=clean, augmented=augmented)
        self.responses, self.latents, self.codes, self.switches = responses, latents, codes, switches
        self.draws = _Draws(responses, present, 1, switches, batch, seed)

    def batches(self, number: int, generator: torch.Generator) -> PerceptionBatch:
        """Batch ``number``, counted from 0."""
        rows = self.draws(number, generator)
        maps, augmented = (_tensor(m[rows.clip]) for m in self.teacher) if self.teacher else (None, None)
        responses = _responses(self.responses, self.draws.present, rows, self.switches)
        return PerceptionBatch(responses, _tensor(self.latents[rows.clip]), maps, augmented)

    def loss(
        self, module: PerceptionNetwork, batch: PerceptionBatch, generator: torch.Generator
    ) -> tuple[Tensor, Parts]:
        """The loss, and its mean absolute error."""
        output = module.from_code(batch.responses) if self.codes else module(batch.responses)
        parts = {"l1": F.l1_loss(output.latents.detach().float(), batch.latents)}
        if not self.released:
            weight, centre = self.switches.perception_contrast_weight, self.switches.perception_loss == "centred"
            return perception_loss(output.latents, batch.latents, weight=weight, centre=centre), parts
        if output.maps is None or batch.maps is None or batch.augmented is None:
            raise DataError('perception_loss="released" met a network without maps; expected one made with maps=True')
        maps = (m.flatten(0, 2) for m in (output.maps, batch.maps, batch.augmented))
        return released_perception_loss(output.latents, batch.latents, *maps), parts


class _Rows(NamedTuple):
    """Indices (n,) of clips, and for each of its repeat, its keyframe and the keyframe whose caption it gets."""

    clip: np.ndarray
    repeat: np.ndarray
    keyframe: np.ndarray
    captioned: np.ndarray


class _Draws:
    """Which clips a batch has, and which repeat and keyframe of each. ``responses`` (B, R, ...) are not read."""

    def __init__(
        self,
        responses: np.ndarray,
        present: Bool[np.ndarray, "B R"] | None,
        keyframes: int,
        switches: Switches,
        batch: int,
        seed: int,
    ):
        self.present = np.ones(responses.shape[:2], bool) if present is None else present
        if self.present.shape != responses.shape[:2]:
            raise DataError(f"`present` is {self.present.shape}; expected {responses.shape[:2]}, of clips and repeats")
        empty = np.flatnonzero(~self.present.any(axis=1))
        if len(empty):
            raise DataError(f"{len(empty)} clips, first number {empty[0]}, have no repeat; expected one at least")
        self.keyframes, self.batch, self.seed = keyframes, batch, seed
        self.alternate = switches.keyframe == "alternate"

    def __call__(self, number: int, generator: torch.Generator) -> _Rows:
        clips = len(self.present)
        length = epoch_length(clips, self.batch)
        epoch, place = divmod(number, length)
        order = np.random.default_rng(stable_seed("epoch", self.seed, epoch)).permutation(clips)
        clip = np.array_split(order, length)[place]
        count = self.present[clip].sum(axis=1)
        existing_first = np.argsort(~self.present[clip], axis=1, kind="stable")
        if self.alternate:
            odd = np.full(len(clip), epoch % 2)
            nth, keyframe = odd % count, (self.keyframes - 1 + odd) // 2
            captioned = np.full(len(clip), (self.keyframes - 1) // 2)
        else:
            drawn = torch.rand(2, len(clip), generator=generator, device=generator.device, dtype=torch.float64)
            u, v = drawn.cpu().numpy()
            nth, keyframe = (u * count).astype(int), (v * self.keyframes).astype(int)
            captioned = keyframe
        return _Rows(clip, existing_first[np.arange(len(clip)), nth], keyframe, captioned)


def _responses(responses: np.ndarray, present: np.ndarray, rows: _Rows, switches: Switches) -> Tensor:
    """(n, X): the repeat that was drawn, or the mean of those that exist."""
    if switches.repeats == "mix":
        return _tensor(responses[rows.clip, rows.repeat])
    exists = present[rows.clip][..., None]
    return _tensor(np.where(exists, responses[rows.clip], 0).sum(axis=1, dtype=np.float32) / exists.sum(axis=1))


def _captions(text: np.ndarray | None, rows: _Rows) -> Tensor | None:
    if text is None:
        return None
    return _tensor(text[rows.clip] if text.ndim == 2 else text[rows.clip, rows.captioned])


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


def _variance(tokens: Float[np.ndarray, "B M K D"]) -> float:
    """Variance of tokens over clips and candidates, mean over places and features; one clip in memory at a time."""
    total, squares = np.zeros(tokens.shape[2:]), 0.0
    looked_at = range(0, len(tokens), -(-len(tokens) // LOOKED_AT))
    for b in looked_at:
        own = np.asarray(tokens[b], np.float64)
        total += own.sum(axis=0)
        squares += float(np.square(own).sum())
    n = len(looked_at) * tokens.shape[1]
    variance = squares / (n * total.size) - float(np.square(total / n).mean())
    if not variance > 0:
        raise DataError(f"the tokens of all clips have a variance of {variance:g}; expected tokens that differ")
    return variance


def _frozen(
    what: str, text: np.ndarray | None, projector: TextProjector | None, keyframes: int
) -> TextProjector | None:
    """A copy that no gradient reaches, of a projector that came with texts, of every clip or of every candidate."""
    if (text is None) != (projector is None):
        raise DataError(f"{what} was given only one of text and projector; expected both or neither")
    if text is not None and text.shape[1:-1] not in ((), (keyframes,)):
        raise DataError(f"{what} was given text {text.shape} for {keyframes} keyframes a clip; expected one or as many")
    return None if projector is None else copy.deepcopy(projector).requires_grad_(False)


def _refuse_other_clips(what: str, **arrays: np.ndarray | None) -> None:
    given = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(given.values())) != 1 or 0 in given.values():
        found = ", ".join(f"{name} of {count}" for name, count in given.items())
        raise DataError(f"{what} was given {found} clips; expected as many of each, and one at least")
