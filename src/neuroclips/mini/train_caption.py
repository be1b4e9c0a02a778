"""Train the mini captioner: ``transformers.GitForCausalLM`` over the mini CLIP's words.

It writes the whole caption of a scene from one frame. Things, ground and light are seen; motion is guessed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import GitConfig, GitForCausalLM, GitProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from neuroclips.artefacts import read_json, stable_seed, write_json
from neuroclips.mini.corpus import encode, half, replay, sample_held_out, scene_batches, tokens
from neuroclips.mini.loop import train
from neuroclips.mini.train_clip import MAX_WORDS, tokenizer
from neuroclips.pretrained.caption import Captioner
from neuroclips.pretrained.clip import CLIP_MEAN, CLIP_STD, Clip, pixels
from neuroclips.pretrained.keyframe import KeyframeGenerator
from neuroclips.pretrained.vae import Vae
from neuroclips.simulation.grounds import GROUNDS
from neuroclips.simulation.rendering import render
from neuroclips.simulation.scenes import Scene

SIZE = 64
FRAMES_A_SCENE = 2
# Generated keyframes are imperfect: in this share of the frames, latents get noise of up to so many deviations.
ROUND_TRIP, LATENT_NOISE = 0.5, 0.6
SCORED = 500  # held-out scenes
IGNORED = -100  # label that the loss leaves out


def config(words: PreTrainedTokenizerFast) -> GitConfig:
    """1.3 M parameters; patches of 8 pixels."""
    vision = dict(
        hidden_size=128, intermediate_size=384, num_hidden_layers=5, num_attention_heads=4, image_size=SIZE,
        patch_size=8, hidden_act="gelu",
    )  # fmt: skip
    return GitConfig(
        vision_config=vision, vocab_size=len(words), hidden_size=128, intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=MAX_WORDS, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip


def processor(words: PreTrainedTokenizerFast) -> GitProcessor:
    """Frames to CLIP's input at 64 pixels, and words to ids."""
    images = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False, image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD)
    )
    return GitProcessor(images, words)


def loss(model: Any, batch: dict[str, Tensor], _: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """Cross-entropy of each word given the frame and the words before it."""
    words, known = batch["input_ids"], batch["attention_mask"] > 0
    out = model(input_ids=words, attention_mask=batch["attention_mask"], pixel_values=batch["pixels"].float())
    logits = out.logits[:, -words.shape[1] : -1].float()
    labels = words[:, 1:].masked_fill(~known[:, 1:], IGNORED)
    value = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    right = (logits.argmax(-1) == labels)[known[:, 1:]].float().mean()
    return value, {"words_right": right}


@torch.no_grad()
def imperfect(frames: Tensor, vae: Vae, generator: torch.Generator) -> Tensor:
    """Frames (n, 3, H, W) uint8 as a generator might have made them: through noisy latents, blurred, tinted, grainy."""
    n, device = len(frames), vae.device
    draw = torch.rand(6, n, 1, 1, 1, generator=generator).to(device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    frames = frames.to(device, non_blocking=True)
    latents = encode(vae, frames)
    latents = latents + LATENT_NOISE * draw[0] * torch.randn_like(latents)
    with half(device):
        decoded = vae.model.decode(latents / vae.model.config.scaling_factor).sample.float()
    x = torch.where(draw[1] < ROUND_TRIP, (decoded + 1) / 2, frames.float() / 255)
    blurred = functional.interpolate(functional.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    x = torch.where(draw[2] < 0.2, blurred, x)
    tinted = x * (1 + 0.1 * normal(n, 3, 1, 1)) + 0.05 * normal(n, 3, 1, 1)
    x = torch.where(draw[3] < 0.5, tinted, x)
    x = x + 0.05 * draw[4] * (draw[5] < 0.5) * torch.randn_like(x)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def batches(
    vae: Vae, words: PreTrainedTokenizerFast, scenes: int, *, seed: int, workers: int
) -> Iterator[dict[str, Tensor]]:
    """Endless frames, made imperfect, with the ids of their scenes' captions at full length."""
    generator = torch.Generator().manual_seed(stable_seed("mini caption", seed))
    for frames, captions in scene_batches(size=SIZE, frames=FRAMES_A_SCENE, scenes=scenes, seed=seed, workers=workers):
        text = words(list(captions), padding="max_length", truncation=True, return_tensors="pt").to(vae.device)
        seen = pixels(imperfect(frames.flatten(0, 1), vae, generator), SIZE)
        repeated = {n: text[n].repeat_interleave(FRAMES_A_SCENE, 0) for n in ("input_ids", "attention_mask")}
        yield {"pixels": seen.half(), **repeated}


def caption_scores(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares of captions that name the main thing, the ground with the light, the ground; and that are all right."""

    def share(parts: Sequence[str]) -> float:
        return float(np.mean([f" {part} " in f" {caption} " for caption, part in zip(captions, parts)]))

    return {
        "names_main_thing": share([scene.main.thing.name for scene in scenes]),
        "names_ground": share([GROUNDS[scene.ground].phrase for scene in scenes]),
        "whole_caption": float(np.mean([a == scene.caption for a, scene in zip(captions, scenes)])),
    }


def redrawn(frames: np.ndarray, vae: Vae, *, seed: int) -> np.ndarray:
    """Frames (n, 3, H, W) uint8 drawn again from their CLIP tokens by the shipped keyframe generator, as in a run."""
    seen = tokens(Clip.load("mini", device=vae.device), torch.from_numpy(frames)).cpu().numpy()
    artist = KeyframeGenerator.load("mini", vae=vae.model, device=vae.device)
    drawn = artist.generate(seen, [str(n) for n in range(len(frames))], seed=seed, batch=100)
    return (drawn * 255).round().astype(np.uint8)


def score(captioner: Captioner, vae: Vae, *, n: int | None = None, seed: int = 0) -> dict[str, float]:
    """Of captions of held-out scenes' middle frames: as they are, made imperfect, and drawn again from their tokens."""
    scenes = sample_held_out(n or SCORED, seed=seed)
    frames = np.stack([render(scene, np.array([scene.duration_s / 2]), SIZE)[0] for scene in scenes])
    with torch.random.fork_rng([vae.device] if vae.device == "cuda" else []):
        torch.manual_seed(seed)
        worse = imperfect(torch.from_numpy(frames), vae, torch.Generator().manual_seed(seed)).cpu().numpy()
    ways = {"": frames, "imperfect_": worse, "redrawn_": redrawn(frames, vae, seed=seed)}
    return {
        f"{way}{name}": value
        for way, shown in ways.items()
        for name, value in caption_scores(captioner.captions(shown), scenes).items()
    }


def main(
    out: Path, *, start: Path | None = None, steps: int, minutes: float, scenes: int, workers: int, seed: int,
    device: str,
) -> dict:  # fmt: skip
    """Train, score on held-out scenes, write weights, words and card to ``out``; returns the card.

    ``start``: folder to go on from, at half the rate.
    """
    torch.manual_seed(seed)
    checkpoint = out.with_suffix(".checkpoint.pt")  # beside the weights until they are written
    before = None if start is None else read_json(start / "card.json")
    words, vae = tokenizer(), Vae.load("mini", device=device)
    untrained = (
        GitForCausalLM(config(words)) if start is None else GitForCausalLM.from_pretrained(start, dtype=torch.float32)
    )
    stream = replay(batches(vae, words, scenes, seed=seed, workers=workers), uses=2, kept=16, seed=seed)
    model, curve = train(
        untrained, loss, stream, steps=steps, minutes=minutes, learning_rate=1e-3 if start is None else 5e-4,
        seed=seed, checkpoint=checkpoint, device=device,
    )  # fmt: skip
    save(model, words, out)
    card = {
        "what": "mini captioner, picture-book world, 64 pixels",
        "made_by": "python -m neuroclips.mini caption",
        "seed": seed,
        "steps": curve[-1]["step"],
        "seconds": curve[-1]["seconds"],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "frames_a_step": FRAMES_A_SCENE * scenes,
        "continued_from": before,
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": score(Captioner(model, processor(words), device=device), vae, seed=seed),
        "curve": curve[:: max(1, len(curve) // 50)],
    }
    write_json(out / "card.json", card)
    checkpoint.unlink()
    return card


def save(model: Any, words: PreTrainedTokenizerFast, out: Path) -> None:
    """Weights in float16, words and image processor, in transformers layout."""
    copy.deepcopy(model).half().save_pretrained(out)
    processor(words).save_pretrained(out)
