"""Train the mini keyframe generator: latent diffusion conditioned on the mini CLIP's image tokens.

What it shares with the mini video model is here, too: the v objective of Salimans and Ho (2022), and scores of frames.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from neuroclips.artefacts import read_json, stable_seed, write_json
from neuroclips.mini.corpus import encode, held_out_scenes, replay, scene_batches, tokens
from neuroclips.mini.loop import forget_folders, train
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.keyframe import KeyframeGenerator, token_grid
from neuroclips.pretrained.vae import Vae

SIZE = 64
# One resolution: at 8 x 8, a level of 4 x 4 costs more parameters than it earns. 192 channels are the tokens' picture.
CONFIG: dict[str, Any] = dict(
    sample_size=8, in_channels=16 + 192, out_channels=16, block_out_channels=[112], layers_per_block=1,
    down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"],
    attention_head_dim=4, norm_num_groups=16, cross_attention_dim=192,
)  # fmt: skip
SCHEDULE: dict[str, Any] = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
    timestep_spacing="trailing",
)  # fmt: skip
FRAMES_A_SCENE = 4
UNCONDITIONAL = 0.1
# Tokens decoded from brains are shrunk towards the mean and wrong. Of a calibrated prediction that keeps a share s of
# the deviation from the mean, the error's variance is s (1 - s).
DEGRADED, SHRINK, NOISE = 0.6, (0.15, 1.0), (0.5, 1.3)
STEPS, SCALE = 10, 2.0  # of sampling, saved with the weights
SCORED = 200  # held-out scenes


def v_loss(predict: Callable[[Tensor, Tensor], Tensor], latents: Tensor, alphas: Tensor) -> Tensor:
    """Mean squared error of v = sqrt(a) noise - sqrt(1 - a) latents, at one diffusion step a row.

    ``alphas`` (N,) are the schedule's cumulated products. Steps are spread evenly over the rows, which are in no order.
    """
    n = len(latents)
    spread = (torch.arange(n, device=latents.device) + torch.rand(1, device=latents.device)) / n
    step = (spread * len(alphas)).long().clamp(max=len(alphas) - 1)
    a = alphas.to(latents.device)[step].view(-1, *[1] * (latents.ndim - 1))
    noise = torch.randn_like(latents)
    predicted = predict(a.sqrt() * latents + (1 - a).sqrt() * noise, step)
    return functional.mse_loss(predicted.float(), a.sqrt() * noise - (1 - a).sqrt() * latents)


@dataclass(frozen=True)
class TokenStatistics:
    """Mean and standard deviation (K, D) of image tokens."""

    mean: Tensor
    sd: Tensor

    @classmethod
    def of(cls, found: Tensor) -> TokenStatistics:
        return cls(found.mean(dim=0), found.std(dim=0))

    def degrade(self, x: Tensor, shrink: Tensor, noise: Tensor) -> Tensor:
        """mean + s (x - mean) + noise sqrt(s (1 - s)) error, with ``shrink`` s and ``noise`` a value a row.

        Half of the error's variance is what two other rows show, for errors of decoding look like pictures, too; the
        rest is white, half of it shared by the tokens of a frame.
        """
        deviation = x - self.mean
        others = (deviation.roll(1, 0) + deviation.roll(2, 0)) / 2**0.5
        white = self.sd * (torch.randn_like(x) + torch.randn_like(x[:, :1])) / 2**0.5
        shrink, noise = (v.view(-1, 1, 1) for v in (shrink, noise))
        return self.mean + shrink * deviation + noise * (shrink * (1 - shrink)).sqrt() * (others + white) / 2**0.5


@dataclass
class KeyframeLoss:
    """The v objective; tokens are degraded in half of the rows and replaced by N(0, 1) in a tenth."""

    alphas: Tensor
    statistics: TokenStatistics

    def __call__(self, unet: Any, batch: Mapping[str, Tensor], _: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        condition = batch["tokens"]
        draw = torch.rand(4, len(condition), device=condition.device)
        shrink, noise = (low + (high - low) * share for (low, high), share in zip((SHRINK, NOISE), draw))
        degraded = self.statistics.degrade(condition, shrink, noise)
        condition = torch.where((draw[2] < DEGRADED)[:, None, None], degraded, condition)
        condition = torch.where((draw[3] < UNCONDITIONAL)[:, None, None], torch.randn_like(condition), condition)
        grid = token_grid(condition, batch["latents"].shape[-2:])

        def predict(x: Tensor, step: Tensor) -> Tensor:
            return unet(torch.cat([x, grid], dim=1), step, condition).sample

        return v_loss(predict, batch["latents"], self.alphas), {}


def batches(vae: Vae, clip: Clip, scenes: int, *, seed: int, workers: int) -> Iterator[dict[str, Tensor]]:
    """Endless latents and tokens of 4 frames of each scene."""
    for frames, _ in scene_batches(size=SIZE, frames=FRAMES_A_SCENE, scenes=scenes, seed=seed, workers=workers):
        flat = frames.flatten(0, 1)
        yield {"latents": encode(vae, flat), "tokens": tokens(clip, flat)}


def identified(summary: np.ndarray, other: np.ndarray) -> float:
    """Share of rows of unit length whose nearest other row among blocks of 100 is their own; chance 0.01."""
    found, block = [], min(100, len(summary))
    for start in range(0, len(summary) - block + 1, block):
        rows = slice(start, start + block)
        found.append(float(np.mean((summary[rows] @ other[rows].T).argmax(1) == np.arange(block))))
    return float(np.mean(found))


def pixel_scores(made: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Mean over frames of PSNR in dB and of the correlation of pixels."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (made, true))
    psnr = 10 * np.log10(255**2 / np.maximum(((a - b) ** 2).mean(axis=1), 1e-6))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return {"psnr": float(psnr.mean()), "correlation": float(((a * b).sum(1) / np.maximum(lengths, 1e-6)).mean())}


def score(
    generator: KeyframeGenerator, clip: Clip, statistics: TokenStatistics, *, n: int | None = None, seed: int = 0
) -> dict[str, float]:
    """Of frames generated from held-out scenes' tokens, true and degraded: are they like the true frames?

    Degraded tokens keep 0.3 of their deviations from the mean, as decoded ones do; for them, see ``TokenStatistics``.
    """
    n = n or SCORED
    images, captions = held_out_scenes(n, size=SIZE, seed=seed)
    true = tokens(clip, torch.from_numpy(images)).cpu()
    with torch.random.fork_rng([]):
        torch.manual_seed(stable_seed("mini keyframe scores", seed))
        on_cpu = TokenStatistics(statistics.mean.cpu(), statistics.sd.cpu())
        degraded = on_cpu.degrade(true, torch.full((n,), 0.3), torch.ones(n))
    summary = clip.images(images)[1]
    scores: dict[str, float] = {}
    for what, condition in (("true", true), ("degraded", degraded)):
        made = generator.generate(condition.numpy(), captions, seed=seed, batch=50)
        made_bytes = (made * 255).round().astype(np.uint8)
        found = {
            "top1_of_100": identified(clip.images(made_bytes)[1], summary), **pixel_scores(made_bytes, images)
        }  # fmt: skip
        scores |= {f"{what}_tokens_{name}": value for name, value in found.items()}
    return scores


def main(
    out: Path, *, start: Path | None = None, steps: int, minutes: float, scenes: int, workers: int, seed: int,
    device: str, fast: bool = False,
) -> dict:  # fmt: skip
    """Train, score on held-out scenes, write weights and card to ``out``; returns the card.

    Parameters
    ----------
    start : folder to go on from, at half the rate. fast : compile the network; worth it on a GPU for long runs.
    """
    torch.manual_seed(seed)
    checkpoint = out.with_suffix(".checkpoint.pt")  # beside the weights until they are written
    before = None if start is None else read_json(start / "card.json")
    unet: Any = UNet2DConditionModel(**CONFIG)
    if start is not None:
        unet = UNet2DConditionModel.from_pretrained(start, subfolder="unet", torch_dtype=torch.float32)
    if fast:
        unet.compile()
    scheduler: Any = EulerDiscreteScheduler(**SCHEDULE)
    vae, clip = Vae.load("mini", device=device), Clip.load("mini", device=device)
    fresh = batches(vae, clip, scenes, seed=seed, workers=workers)
    first = next(fresh)
    statistics = TokenStatistics.of(first["tokens"])
    objective = KeyframeLoss(scheduler.alphas_cumprod.to(device), statistics)
    stream = replay(itertools.chain([first], fresh), uses=2, kept=16, seed=seed)
    unet, curve = train(
        unet, objective, stream, steps=steps, minutes=minutes, learning_rate=1e-3 if start is None else 5e-4,
        seed=seed, checkpoint=checkpoint, device=device,
    )  # fmt: skip
    unet = copy.deepcopy(unet)  # the copy is not compiled
    save(unet, scheduler, out)
    generator = KeyframeGenerator(unet, vae.model, scheduler, steps=STEPS, guidance_scale=SCALE)
    card = {
        "what": "mini keyframe generator: latent diffusion from mini CLIP tokens, picture-book world, 64 pixels",
        "made_by": "python -m neuroclips.mini keyframe",
        "seed": seed,
        "steps": curve[-1]["step"],
        "seconds": curve[-1]["seconds"],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "frames_a_step": FRAMES_A_SCENE * scenes,
        "continued_from": before,
        "tokens": {
            "replaced_by_noise": UNCONDITIONAL,
            "degraded": DEGRADED,
            "shrunk_to": list(SHRINK),
            "noise": list(NOISE),
        },
        "sampling": {"steps": STEPS, "scale": SCALE},
        "parameters": sum(p.numel() for p in unet.parameters()),
        "scores": score(generator, clip, statistics, seed=seed),
        "curve": curve[:: max(1, len(curve) // 50)],
    }
    write_json(out / "card.json", card)
    checkpoint.unlink()
    return card


def save(unet: Any, scheduler: Any, out: Path) -> None:
    """Weights in float16 and the scheduler, in diffusers layout; the autoencoder is elsewhere."""
    half = copy.deepcopy(unet).half()
    KeyframeGenerator(half, None, scheduler, steps=STEPS, guidance_scale=SCALE).save_pretrained(out)
    forget_folders(out)
