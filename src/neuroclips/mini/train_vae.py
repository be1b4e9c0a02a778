"""Train the mini autoencoder: 64-pixel frames to 8 x 8 latents of 16 channels, a 12-fold compression."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from neuroclips.artefacts import read_json, stable_seed, write_json
from neuroclips.mini.corpus import held_out_scenes, natural_frames, scene_batches
from neuroclips.mini.loop import train
from neuroclips.pretrained.vae import Vae
from neuroclips.simulation.things import HELD_OUT_THINGS

SIZE = 64
CONFIG = dict(
    in_channels=3, out_channels=3, latent_channels=16, sample_size=SIZE,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(24, 48, 128, 192), layers_per_block=1, norm_num_groups=8, mid_block_add_attention=True,
)  # fmt: skip
KL_WEIGHT = 1e-6  # as in latent diffusion: the latents stay smooth, not Gaussian
NATURAL_SHARE = 0.2
HELD_OUT_FILMS = ("dog", "coffee", "city")  # natural films kept for scoring, when the folder has them


def loss(vae: Any, x: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """L1 and squared error per pixel in [-1, 1], squared error of finite differences (edges), and KL to a Gaussian."""
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample(generator)).sample.float()
    squared, absolute = (y - x).square().mean(), (y - x).abs().mean()
    edges = sum((torch.diff(y, dim=d) - torch.diff(x, dim=d)).square().mean() for d in (2, 3))
    kl = posterior.kl().mean()
    total = 0.25 * absolute + 8 * squared + 0.5 * edges + KL_WEIGHT * kl
    psnr = -10 * torch.log10(squared / 4)
    return total, {"psnr": psnr, "kl": kl}


def batches(scenes: int, natural: dict[str, np.ndarray], *, seed: int, workers: int, device: str) -> Iterator:
    """Endless (n, 3, SIZE, SIZE) batches in [-1, 1]: 4 frames of each scene, and random crops of natural frames."""
    rng = np.random.default_rng(stable_seed("mini vae", seed))
    pool = [f for name, f in natural.items() if name not in HELD_OUT_FILMS]
    for frames, _ in scene_batches(size=SIZE, frames=4, scenes=scenes, seed=seed, workers=workers):
        x = frames.flatten(0, 1)
        if pool:
            crops = [_crop(rng, pool[rng.integers(len(pool))]) for _ in range(int(NATURAL_SHARE * len(x)))]
            x = torch.cat([x, torch.from_numpy(np.stack(crops))])
        x = x.to(device, non_blocking=True, memory_format=torch.channels_last)
        yield x.float() / 127.5 - 1


def _crop(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """A random SIZE-pixel crop (3, SIZE, SIZE), mirrored half of the time, of a random frame."""
    frame = frames[rng.integers(len(frames))]
    top, left = rng.integers(0, frame.shape[1] - SIZE + 1), rng.integers(0, frame.shape[2] - SIZE + 1)
    crop = frame[:, top : top + SIZE, left : left + SIZE]
    return np.ascontiguousarray(crop[:, :, ::-1] if rng.random() < 0.5 else crop)


def psnr(vae: Vae, images: np.ndarray) -> float:
    """Mean over images of the round trip's PSNR in dB, peak 255."""
    error = (vae.decode(vae.encode(images)).astype(np.float32) - images) ** 2
    return float(np.mean(10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))))


def main(
    out: Path, *, movies: Path | None, natural: dict[str, np.ndarray] | None = None, start: Path | None = None,
    steps: int, minutes: float, scenes: int, workers: int, seed: int, device: str,
) -> dict:  # fmt: skip
    """Train, score on held-out scenes, write weights and card to ``out``; returns the card."""
    torch.manual_seed(seed)
    checkpoint = out.with_suffix(".checkpoint.pt")  # beside the weights until they are written
    natural = natural if natural is not None else natural_frames(movies, size=96) if movies else {}
    before = None if start is None else read_json(start / "card.json")
    model: Any = AutoencoderKL(**CONFIG) if start is None else AutoencoderKL.from_pretrained(start).float()
    model = model.to(memory_format=torch.channels_last)
    stream = batches(scenes, natural, seed=seed, workers=workers, device=device)
    model, curve = train(
        model, loss, stream, steps=steps, minutes=minutes, learning_rate=8e-4 if start is None else 4e-4,
        seed=seed, checkpoint=checkpoint, device=device,
    )  # fmt: skip
    known, _ = held_out_scenes(300, size=SIZE, seed=seed)
    vae = Vae(model, device=device)
    # Unit variance of the scaled latents over known scenes, as every latent diffusion model expects.
    vae.model.register_to_config(scaling_factor=float(1 / vae.encode(known).std() * vae.model.config.scaling_factor))
    scores = {"psnr_held_out_scenes": psnr(vae, known)}
    scores["psnr_unseen_things"] = psnr(vae, held_out_scenes(300, size=SIZE, seed=seed, things=HELD_OUT_THINGS)[0])
    for name in HELD_OUT_FILMS:
        if name in natural:
            middle = (natural[name].shape[-1] - SIZE) // 2
            crop = natural[name][:, :, middle : middle + SIZE, middle : middle + SIZE]
            scores[f"psnr_natural_{name}"] = psnr(vae, crop)
    card = {
        "what": "mini autoencoder, picture-book world and natural frames, 64 pixels",
        "made_by": "python -m neuroclips.mini vae",
        "seed": seed,
        "steps": curve[-1]["step"],
        "seconds": curve[-1]["seconds"],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "frames_a_step": int(4 * scenes * (1 + NATURAL_SHARE * bool(natural))),
        "natural_films": [name for name in sorted(natural) if name not in HELD_OUT_FILMS],
        "continued_from": before,
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": scores,
        "curve": curve[:: max(1, len(curve) // 50)],
    }
    vae.model.half().save_pretrained(out)
    write_json(out / "card.json", card)
    checkpoint.unlink()
    return card
