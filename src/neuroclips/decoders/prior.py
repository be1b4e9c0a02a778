"""Diffusion prior: from the CLIP tokens that a brain suggests to CLIP tokens that an image could have.

A transformer predicts the clean tokens x0 from noisy ones, the diffusion time and the brain's tokens as condition
(method b.4: MindEye2's prior, built on dalle2-pytorch 1.15.6, which ``tests/decoders`` compares with). Forward process,
with abar the cosine schedule of Nichol and Dhariwal (2021) and N diffusion steps:

    x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise,   t = 0 .. N-1;   loss = mean (network(x_t, t, condition) - x0)^2

MindEye2's public weights, once renamed, load strictly into ``PriorNetwork``: they fix its parameters, norms, buckets
and noise schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neuroclips.errors import DataError
from neuroclips.shapes import Bool, Float, Int

BUCKETS, MAX_DISTANCE = 32, 128  # of the relative bias
ROTARY_WIDTH, THETA = 32, 10_000.0
COSINE_SCALE = 16.0  # of cosines between queries and keys


def cosine_alphas_cumprod(timesteps: int) -> Float[Tensor, " N"]:
    """abar_t = prod_{s <= t} (1 - beta_s) of the cosine schedule, float64; offset 0.008, betas at most 0.999."""
    time = torch.arange(timesteps + 1, dtype=torch.float64, device="cpu") / timesteps
    signal = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return torch.cumprod(1 - (1 - signal[1:] / signal[:-1]).clamp(max=0.999), dim=0)


def sampling_times(timesteps: int, steps: int) -> list[int]:
    """``steps`` times, equally spaced from near ``timesteps`` down to -1 = clean; ``steps - 1`` network calls.

    >>> sampling_times(100, 5)
    [79, 59, 39, 19, -1]
    """
    if not 2 <= steps <= timesteps:
        raise DataError(f"the prior was asked for {steps} sampling steps; expected 2 to {timesteps}")
    return [int((timesteps + 1) * i / steps - 1) for i in reversed(range(steps))]


def relative_buckets(distance: Int[Tensor, "queries keys"]) -> Int[Tensor, "queries keys"]:
    """Buckets of distances >= 0 as in T5: exact below 16, logarithmic from 16 to 128, the last bucket beyond."""
    exact = BUCKETS // 2
    far = torch.log(distance.clamp(min=1) / exact) / math.log(MAX_DISTANCE / exact) * (BUCKETS - exact)
    return torch.where(distance < exact, distance, (exact + far.long()).clamp(max=BUCKETS - 1))


def _norm(x: Tensor, gain: Tensor) -> Tensor:
    """Layer norm with a gain only, in float32 under autocast too."""
    return F.layer_norm(x.float(), gain.shape, gain)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the last axis of (..., L, width) by ``angle`` (L, pairs); the rest stays."""
    rotated, rest = x.split([2 * angle.shape[1], x.shape[-1] - 2 * angle.shape[1]], dim=-1)
    even, odd = rotated.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2), rest), dim=-1)


class _Block(nn.Module):
    """Attention of many query heads to one shared key and value head, then a gated feed-forward layer."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.null_kv = nn.Parameter(torch.randn(2, head_width))
        self.norm_attn = nn.Parameter(torch.ones(width))
        self.q = nn.Linear(width, heads * head_width, bias=False)
        self.kv = nn.Linear(width, 2 * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.norm_out = nn.Parameter(torch.ones(width))
        self.norm_ff = nn.Parameter(torch.ones(width))
        self.up = nn.Linear(width, 8 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor, angle: Tensor) -> Tensor:
        x = x + _norm(self.out(self._attend(_norm(x, self.norm_attn), bias, angle)), self.norm_out)
        value, gate = self.up(_norm(x, self.norm_ff)).chunk(2, dim=-1)
        return x + self.down(value * F.silu(gate))

    def _attend(self, x: Tensor, bias: Tensor, angle: Tensor) -> Tensor:
        """Cosine attention, a learned null key and value before the sequence: (B, L, D) to (B, L, heads * width)."""
        q, (key, value) = self.q(x), self.kv(x).chunk(2, dim=-1)
        dtype, width = q.dtype, key.shape[-1]
        null_key, null_value = self.null_kv[:, None, None].expand(-1, len(x), -1, -1)
        q = F.normalize(_rotate(q.float().unflatten(-1, (self.heads, width)).transpose(1, 2), angle), dim=-1)
        key = F.normalize(torch.cat((null_key, _rotate(key.float(), angle)), dim=1), dim=-1)
        value = torch.cat((null_value, value.float()), dim=1)
        # CUDA's fused kernel wants widths that are multiples of 8 (zeros change no cosine) and keys and values that are
        # repeated in memory: expanded ones give NaN without an error (torch 2.11, 513 queries, bias, no gradient).
        q, key, value = (F.pad(t, (0, -width % 8)).to(dtype) for t in (q, key, value))
        key, value = (t[:, None].repeat(1, self.heads, 1, 1) for t in (key, value))
        y = F.scaled_dot_product_attention(q, key, value, attn_mask=bias.to(dtype), scale=COSINE_SCALE)
        return y[..., :width].transpose(1, 2).flatten(2)


class PriorNetwork(nn.Module):
    """x0 from noisy tokens, time and condition; a transformer on [condition | time | noisy tokens + position].

    Blocks are not causal in attention, but the relative bias is T5's causal one: bucket of max(i - j, 0), where column
    j = 0 is the null key; one table for all layers. Queries and keys are rotated on their first 32 features. The last
    norm first divides by the maximum over features (not of absolute values): but for eps, only its sign matters.

    Norms have eps 1e-5 and run in float32. The library takes eps 1e-3 where it meets half precision, so run converted
    weights in float32 if the numbers of the original matter.

    Parameters
    ----------
    tokens, width : K and D of the tokens; D is even. The defaults of all are the paper's (method b.4).
    depth, heads, head_width : blocks, query heads of a block, and features of a head.

    Attributes
    ----------
    checkpoint_activations : compute the blocks' activations again for the gradient instead of keeping them: less
        memory, a forward pass more, the same numbers.
    """

    def __init__(self, *, tokens: int = 256, width: int = 1664, depth: int = 6, heads: int = 32, head_width: int = 52):
        super().__init__()
        self.tokens, self.width, self.head_width = tokens, width, head_width
        self.pos = nn.Parameter(torch.randn(tokens, width) / math.sqrt(width))
        self.null_brain = nn.Parameter(torch.randn(tokens, width))
        self.null_image = nn.Parameter(torch.randn(tokens, width))
        inner = 2 * width
        self.time = nn.Sequential(
            nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, width)
        )
        self.rel = nn.Embedding(BUCKETS, heads)
        self.blocks = nn.ModuleList(_Block(width, heads, head_width) for _ in range(depth))
        self.norm = nn.Parameter(torch.ones(width))
        self.proj = nn.Linear(width, width, bias=False)
        self.checkpoint_activations = False

    def forward(
        self,
        noisy: Float[Tensor, "B K D"],
        t: Int[Tensor, " B"],
        condition: Float[Tensor, "B K D"],
        *,
        drop_condition: Bool[Tensor, " B"] | None = None,
        drop_noisy: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B K D"]:
        """Prediction of x0, float32; dropped conditions and noisy tokens are replaced by learned ones."""
        if drop_condition is not None:
            condition = torch.where(drop_condition[:, None, None], self.null_brain, condition)
        if drop_noisy is not None:
            noisy = torch.where(drop_noisy[:, None, None], self.null_image, noisy)
        x = torch.cat((condition, self._time(t)[:, None], noisy + self.pos), dim=1)
        position = torch.arange(x.shape[1], device=x.device)
        bias, angle = self._bias(position), self._angle(position)
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():  # blocks draw nothing at random
                x = checkpoint(block, x, bias, angle, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, bias, angle)
        x = x[:, -self.tokens :].float()
        return self.proj(_norm(x / x.amax(dim=-1, keepdim=True).detach(), self.norm)).float()

    def _time(self, t: Tensor) -> Tensor:
        """Sines and cosines of D/2 frequencies from 1 to 1/10000, both included, through an MLP: (B,) to (B, D)."""
        half = self.width // 2
        phase = t[:, None] * torch.exp(torch.arange(half, device=t.device) * (-math.log(THETA) / (half - 1)))
        return self.time(torch.cat((phase.sin(), phase.cos()), dim=-1)).float()

    def _bias(self, position: Tensor) -> Tensor:
        """Bias (heads, L, L + 1) of queries at ``position``; column 0 is the null key, position j is column j + 1."""
        columns = torch.arange(len(position) + 1, device=position.device)
        return self.rel(relative_buckets((position[:, None] - columns).clamp(min=0))).permute(2, 0, 1).contiguous()

    def _angle(self, position: Tensor) -> Tensor:
        """Rotary angles (L, pairs) = position * 10000^(-2 pair / width)."""
        width = min(ROTARY_WIDTH, self.head_width)
        pair = torch.arange(width // 2, device=position.device)
        return position[:, None] * THETA ** (-2 * pair / width)


class DiffusionPrior(nn.Module):
    """Noise schedule, training loss and sampler around a ``PriorNetwork``.

    Parameters
    ----------
    network : predicts x0.
    timesteps : N, length of the noise schedule.
    drop : probability with which training drops a clip's condition and, independently, its noisy tokens.
    schedule : "library" samples as dalle2-pytorch does, whose update moves between abar_{t-1} although the network and
        its noise are taken at abar_t; the public weights were used with it. With an exact network it overstates the
        mean and understates the variance, the more so the more steps. "textbook" is DDIM with abar_t throughout.
    """

    abar: Tensor

    def __init__(
        self,
        network: PriorNetwork,
        *,
        timesteps: int = 100,
        drop: float = 0.2,
        schedule: Literal["library", "textbook"] = "library",
    ):
        super().__init__()
        self.network, self.timesteps, self.drop, self.schedule = network, timesteps, drop, schedule
        abar = cosine_alphas_cumprod(timesteps)
        self._abar: list[float] = abar.tolist()
        self.register_buffer("abar", abar.float(), persistent=False)

    def noised(
        self, tokens: Float[Tensor, "B K D"], t: Int[Tensor, " B"], noise: Float[Tensor, "B K D"]
    ) -> Float[Tensor, "B K D"]:
        """x_t = sqrt(abar_t) tokens + sqrt(1 - abar_t) noise."""
        abar = self.abar[t][:, None, None]
        return abar.sqrt() * tokens + (1 - abar).sqrt() * noise

    def denoised(
        self, tokens: Float[Tensor, "B K D"], condition: Float[Tensor, "B K D"], generator: torch.Generator
    ) -> Float[Tensor, "B K D"]:
        """The network's x0 from ``tokens`` noised to random times, with random drops: what training compares.

        The draws follow from ``generator``. Where tokens are on CUDA and it is not, a generator there draws, seeded by
        it: another noise than a CPU's, but without waiting for a CPU, which halves the speed at full size.
        """
        if tokens.is_cuda and generator.device.type == "cpu":
            seed = int(torch.randint(2**63 - 1, (), generator=generator))
            generator = torch.Generator(tokens.device).manual_seed(seed)
        clips, on = len(tokens), generator.device
        t = torch.randint(self.timesteps, (clips,), generator=generator, device=on).to(tokens.device)
        drops = (torch.rand(2, clips, generator=generator, device=on) < self.drop).to(tokens.device)
        noise = torch.randn(tokens.shape, generator=generator, device=on).to(tokens.device)
        noisy = self.noised(tokens, t, noise)
        return self.network(noisy, t, condition, drop_condition=drops[0], drop_noisy=drops[1])

    def loss(
        self, tokens: Float[Tensor, "B K D"], condition: Float[Tensor, "B K D"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Mean squared error of ``denoised``."""
        return F.mse_loss(self.denoised(tokens, condition, generator), tokens)

    @torch.no_grad()
    def sample(
        self,
        condition: Float[Tensor, "B K D"],
        noise: Sequence[torch.Generator] | Float[Tensor, "draws B S K D"],
        *,
        samples: int = 1,
        steps: int = 20,
        eta: float = 1.0,
        cond_scale: float = 1.0,
    ) -> Float[Tensor, "B S K D"]:
        """``samples`` draws of tokens for every clip by ``steps - 1`` calls of the network (DDIM, Song et al. 2021).

        From time t to t', with a and a' their abar:

            x = sqrt(a') x0 + c noise + sqrt(1 - a' - c^2) eps,   c = eta sqrt((1 - a / a') (1 - a') / (1 - a))

        and eps the noise that x and x0 imply; the last x0 is the sample.

        Parameters
        ----------
        noise : one generator a clip, so that its samples depend neither on its batch nor on its place there; or the
            ``steps - 1`` standard normal draws themselves.
        eta : 0 is deterministic after the first draw, 1 is ancestral.
        cond_scale : guidance, ``null + cond_scale (x0 - null)``; null is predicted with condition and noisy tokens
            dropped, as in the library.
        """
        times = sampling_times(self.timesteps, steps)
        repeated = condition.repeat_interleave(samples, dim=0)
        draws = _draws(noise, steps - 1, (samples, *condition.shape[1:]), condition.device)
        x, x0 = next(draws), repeated
        for t, after in pairwise(times):
            x0 = self._predict(x, t, repeated, cond_scale)
            if after >= 0:
                x = self._step(x, x0, next(draws), t, after, eta)
        return x0.unflatten(0, (-1, samples))

    @torch.no_grad()
    def expected(
        self,
        condition: Float[Tensor, "B K D"],
        noise: Sequence[torch.Generator] | Float[Tensor, "1 B S K D"],
        *,
        samples: int = 1,
    ) -> Float[Tensor, "B K D"]:
        """Posterior mean of the tokens in one step: x0 at the last time from pure noise, averaged over ``samples``."""
        x = next(_draws(noise, 1, (samples, *condition.shape[1:]), condition.device))
        x0 = self._predict(x, self.timesteps - 1, condition.repeat_interleave(samples, dim=0), 1.0)
        return x0.unflatten(0, (-1, samples)).mean(dim=1)

    def _predict(self, x: Tensor, t: int, condition: Tensor, cond_scale: float) -> Tensor:
        time = torch.full((len(x),), t, device=x.device)
        x0 = self.network(x, time, condition)
        if cond_scale == 1:
            return x0
        dropped = torch.ones_like(time, dtype=torch.bool)
        null = self.network(x, time, condition, drop_condition=dropped, drop_noisy=dropped)
        return null + cond_scale * (x0 - null)

    def _step(self, x: Tensor, x0: Tensor, noise: Tensor, t: int, after: int, eta: float) -> Tensor:
        abar = self._abar
        eps = (x - math.sqrt(abar[t]) * x0) / math.sqrt(1 - abar[t])
        if self.schedule == "library":
            abar = [1.0, *abar]
        a, a_after = abar[t], abar[after]
        c = eta * math.sqrt((1 - a / a_after) * (1 - a_after) / (1 - a))
        return math.sqrt(a_after) * x0 + c * noise + math.sqrt(1 - a_after - c**2) * eps


def _draws(
    noise: Sequence[torch.Generator] | Tensor, count: int, shape: tuple[int, ...], device: torch.device
) -> Iterator[Tensor]:
    """``count`` standard normal tensors (B S, K, D), from tensors (count, B, S, K, D) or from a generator a clip."""
    if isinstance(noise, Tensor):
        yield from noise.flatten(1, 2)
        return
    for _ in range(count):
        yield torch.cat([torch.randn(shape, generator=g, device=g.device).to(device) for g in noise])
