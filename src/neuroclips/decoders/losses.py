"""Losses of the decoders: pure functions of torch tensors, each a scalar, on any device.

Semantics (method c.1, c.2): ``bimixco``, ``soft_clip``, ``info_nce``, and ``prior_loss`` which builds on it.
Perception (method c.3): ``perception_loss`` as published (equation 1), ``released_perception_loss`` as released.

Rows are flattened and L2-normalised, so similarities are cosines. Similarities and log-softmax are computed in float32
(float64 stays float64), also under autocast: a cosine over a temperature of 0.006 does not survive half precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from neuroclips.errors import DataError
from neuroclips.shapes import Float, Int

STILL = 0.01  # of a clip's RMS frame norm: frames nearer to the clip's mean than this have no direction of change


@dataclass(frozen=True)
class Mixup:
    """How every sample of a batch is mixed: ``weight_i x_i + (1 - weight_i) x_partner_i``.

    weight : in [0, 1]; 1 leaves the sample as it is, whoever its partner.
    partner : a permutation of the batch, which may have fixed points.
    """

    weight: Float[Tensor, " B"]
    partner: Int[Tensor, " B"]


def draw_mixup(n: int, generator: torch.Generator, beta: float = 0.15, share: float = 0.5) -> Mixup:
    """Mix each of ``n`` samples with probability ``share``, weight ~ Beta(beta, beta); the others get weight 1.

    Unmixed samples keep the partner that the permutation gives them: it has no weight, and ``released`` targets need
    to know whether it is the sample itself. Tensors are on the CPU; ``generator`` decides everything.
    """
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    rng = np.random.default_rng(int(seed))  # torch has no public Beta that takes a generator
    weight = np.where(rng.random(n) < share, rng.beta(beta, beta, n), 1.0)
    return Mixup(torch.from_numpy(weight).float(), torch.from_numpy(rng.permutation(n)))


def mix(x: Float[Tensor, "B ..."], mixup: Mixup) -> Float[Tensor, "B ..."]:
    """``x`` with every sample mixed with its partner, in the type and on the device of ``x``."""
    _refuse_other_count("mix", x, mixup)
    weight = mixup.weight.to(x).reshape(-1, *[1] * (x.ndim - 1))
    return weight * x + (1 - weight) * x[mixup.partner.to(x.device)]


def mixup_targets(mixup: Mixup, fixed_points: Literal["safe", "released"] = "safe") -> Float[Tensor, "B B"]:
    """Q of ``bimixco``: lambda_i at (i, i) and 1 - lambda_i at (i, partner_i).

    Where a sample is its own partner, ``safe`` adds both, so that every row sums to 1. ``released`` lets the second
    overwrite the first, as the authors' code does (method g.2, item 13): the row then sums to 1 - lambda_i, which is 0
    for an unmixed sample.
    """
    rows = torch.arange(len(mixup.weight), device=mixup.weight.device)
    partner = (rows, mixup.partner)
    return torch.diag(mixup.weight).index_put(partner, 1 - mixup.weight, accumulate=fixed_points == "safe")


def bimixco(
    predicted: Float[Tensor, "B ..."],
    target: Float[Tensor, "B ..."],
    mixup: Mixup,
    temperature: float = 0.006,
    fixed_points: Literal["safe", "released"] = "safe",
) -> Float[Tensor, ""]:
    """Symmetric contrastive loss of mixed samples against unmixed targets (method c.1).

        P = p t^T / temperature,   loss = -(1 / 2B) sum_ij Q_ij [log softmax_j(P)_ij + log softmax_i(P)_ij]

    ``predicted`` comes from mixed voxels, ``target`` is not mixed; Q is ``mixup_targets``.
    """
    _refuse_unlike("bimixco", predicted, target)
    _refuse_other_count("bimixco", predicted, mixup)
    logits = _dot(_unit(predicted.flatten(1)), _unit(target.flatten(1))) / temperature
    q = mixup_targets(mixup, fixed_points).to(logits)
    return -(q * (logits.log_softmax(1) + logits.log_softmax(0))).sum() / (2 * len(q))


def soft_clip(
    predicted: Float[Tensor, "B ..."], target: Float[Tensor, "B ..."], temperature: float
) -> Float[Tensor, ""]:
    """Contrastive loss whose goal is how similar the targets are to each other (method c.1).

    teacher = softmax(t t^T / temperature)
    loss = mean over rows of cross-entropy(teacher, p t^T / temperature), averaged with that of t p^T / temperature
    """
    _refuse_unlike("soft_clip", predicted, target)
    p, t = _unit(predicted.flatten(1)), _unit(target.flatten(1))
    teacher = (_dot(t, t) / temperature).softmax(1)
    logits = _dot(p, t) / temperature
    return (F.cross_entropy(logits, teacher) + F.cross_entropy(logits.mT, teacher)) / 2


def soft_clip_temperature(progress: float) -> float:
    """Half-cosine from 0.004 to 0.0075 as ``progress`` goes from 0 to 1 (method c.1)."""
    if not 0 <= progress <= 1:
        raise DataError(f"soft_clip_temperature was given a progress of {progress}; expected 0 to 1")
    return 0.0075 + (0.004 - 0.0075) * (1 + math.cos(math.pi * progress)) / 2


def info_nce(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."], temperature: float = 0.1) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: each row of ``a`` finds its row of ``b`` among all, and the reverse (text loss, method c.1).

    A batch of one has nothing to tell apart and costs 0.
    """
    _refuse_unlike("info_nce", a, b)
    return _matched(_dot(_unit(a.flatten(1)), _unit(b.flatten(1))) / temperature)


def prior_loss(
    predicted_x0: Float[Tensor, "B K D"],
    tokens: Float[Tensor, "B K D"],
    text_predicted: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    *,
    prior_weight: float = 30.0,
    text_weight: float = 1.0,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """``prior_weight * MSE(predicted_x0, tokens) + text_weight * info_nce(text_predicted, text)`` (method c.2).

    ``text_predicted`` is the text projector's view of ``predicted_x0``. The SoftCLIP term of the authors' second stage
    is constant there, nothing that it depends on is trained, and is left out.
    """
    _refuse_unlike("prior_loss", predicted_x0, tokens)
    mse = F.mse_loss(_at_least_float32(predicted_x0), _at_least_float32(tokens))
    return prior_weight * mse + text_weight * info_nce(text_predicted, text, temperature)


def frame_contrastive(
    predicted: Float[Tensor, "B F ..."],
    target: Float[Tensor, "B F ..."],
    temperature: float = 0.1,
    *,
    centre: bool = False,
) -> Float[Tensor, ""]:
    """Both contrastive terms of equation 1: symmetric InfoNCE over the F frames of each clip, mean over clips.

    Frames are never compared across clips. The paper states neither similarity nor temperature. Here the similarity is
    the cosine of flattened frames, as in every other loss of the method, and the temperature 0.1, that of its text
    InfoNCE: frames of one clip have cosines near 1, and at 0.1 a difference of 0.05 still counts half a nat, whereas
    the 0.006 of ``bimixco`` would spend the loss on differences the size of noise.

    It rewards telling frames apart, so it is not smallest at the true frames but where their differences are
    exaggerated. With weight 1 in ``perception_loss``, as published, frames with twice the true change can cost less
    than the true ones. With weight 0.1, or with ``centre``, the L1 term prevails there (see the tests).

    A still clip costs log F at best. If all true frames are equal, the gradient is zero wherever all predicted frames
    are equally similar to them (in particular equal), and otherwise pulls these similarities together: it never pushes
    equal frames apart.

    centre : subtract the clip's mean over frames first, on either side, so that the term contrasts what changes between
        frames and not what they share. Changes below ``STILL`` of the clip's RMS frame norm are shrunk to less than
        unit length, not blown up to it; a still true clip then costs log F whatever is predicted, without gradient.
    """
    _refuse_unlike("frame_contrastive", predicted, target, "(B, F, ...)", 3)
    direction = _unit_change if centre else _unit
    return _matched(_dot(direction(target.flatten(2)), direction(predicted.flatten(2))) / temperature)


def perception_loss(
    predicted: Float[Tensor, "B F ..."],
    target: Float[Tensor, "B F ..."],
    *,
    weight: float = 1.0,
    temperature: float = 0.1,
    centre: bool = False,
) -> Float[Tensor, ""]:
    """Equation 1: mean absolute error of latents + ``weight`` * ``frame_contrastive``, whose options it passes on."""
    contrast = frame_contrastive(predicted, target, temperature, centre=centre)
    return F.l1_loss(_at_least_float32(predicted), _at_least_float32(target)) + weight * contrast


def soft_contrastive(
    student: Float[Tensor, "N D"],
    teacher: Float[Tensor, "N D"],
    teacher_augmented: Float[Tensor, "N D"],
    temperature: float = 0.2,
    *,
    rows: int = 2048,
) -> Float[Tensor, ""]:
    """Distillation of a frozen network's map embeddings, SoftCont of the released code (method c.3).

        loss = mean over rows of cross-entropy(softmax(T A^T / temperature), S A^T / temperature),
               averaged with the same of A T^T and A S^T

    N counts every place of every frame of the batch (40 * 6 * 49 = 11,760), which would make four N x N matrices of
    0.55 GB. They are made ``rows`` rows at a time and made again for the gradient; the value does not depend on it.
    """
    if not student.shape == teacher.shape == teacher_augmented.shape or student.ndim != 2 or student.numel() == 0:
        raise DataError(
            f"soft_contrastive was given student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and"
            f" teacher_augmented {tuple(teacher_augmented.shape)}; expected three times the same (N, D), not empty"
        )
    s, t, a = _unit(student), _unit(teacher), _unit(teacher_augmented)
    total = s.new_zeros(())
    for start in range(0, len(s), rows):
        own = slice(start, start + rows)
        for anchors, keys in (((s[own], t[own]), (a, a)), ((a[own], a[own]), (s, t))):
            total = total + checkpoint(
                _distilled, *anchors, *keys, temperature, use_reentrant=False, preserve_rng_state=False
            )
    return total / (2 * len(s))


def released_perception_loss(
    predicted: Float[Tensor, "B F ..."],
    target: Float[Tensor, "B F ..."],
    student: Float[Tensor, "N D"],
    teacher: Float[Tensor, "N D"],
    teacher_augmented: Float[Tensor, "N D"],
    *,
    temperature: float = 0.2,
) -> Float[Tensor, ""]:
    """``0.5 * (L1 + 0.1 * soft_contrastive)`` with L1 the mean absolute error of latents: the released code (c.3)."""
    _refuse_unlike("released_perception_loss", predicted, target)
    l1 = F.l1_loss(_at_least_float32(predicted), _at_least_float32(target))
    return 0.5 * (l1 + 0.1 * soft_contrastive(student, teacher, teacher_augmented, temperature))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(_at_least_float32(x), dim=-1)


def _unit_change(x: Tensor) -> Tensor:
    """Deviations of (B, F, D) frames from their clip's mean, at unit norm unless smaller than ``STILL``."""
    x = _at_least_float32(x)
    change = x - x.mean(dim=1, keepdim=True)
    size = x.detach().square().sum(dim=2, keepdim=True).mean(dim=1, keepdim=True).sqrt()
    norm = torch.linalg.vector_norm(change, dim=2, keepdim=True)
    return change / torch.maximum(norm, (STILL * size).clamp_min(1e-12))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.mT


def _matched(logits: Tensor) -> Tensor:
    """Cross-entropy of the diagonal, along rows and along columns, averaged."""
    both = logits.log_softmax(-1) + logits.log_softmax(-2)
    return -both.diagonal(dim1=-2, dim2=-1).mean() / 2


def _distilled(a: Tensor, a_teacher: Tensor, b: Tensor, b_teacher: Tensor, temperature: float) -> Tensor:
    """Summed cross-entropy of the rows of a b^T, with those of a_teacher b_teacher^T as their goal."""
    goal = (_dot(a_teacher, b_teacher) / temperature).softmax(1)
    return F.cross_entropy(_dot(a, b) / temperature, goal, reduction="sum")


def _refuse_unlike(what: str, a: Tensor, b: Tensor, axes: str = "(B, ...)", ndim: int = 2) -> None:
    if a.shape != b.shape or a.ndim < ndim or a.numel() == 0:
        came = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise DataError(f"{what} was given tensors of {came}; expected twice the same {axes}, not empty")


def _refuse_other_count(what: str, x: Tensor, mixup: Mixup) -> None:
    if not len(x) == len(mixup.weight) == len(mixup.partner):
        raise DataError(
            f"{what} was given {len(x)} samples, {len(mixup.weight)} weights and {len(mixup.partner)} partners;"
            " expected as many of each"
        )
