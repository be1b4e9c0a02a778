"""Train the mini CLIP: 16 tokens of 192 for a 64-pixel frame, and a summary of 128 shared with captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from neuroclips.artefacts import write_arrays, write_json
from neuroclips.mini.corpus import held_out_scenes, scene_batches
from neuroclips.mini.loop import train
from neuroclips.pretrained.clip import Clip, image_tokens, pixels
from neuroclips.simulation.scenes import caption_words
from neuroclips.simulation.things import HELD_OUT_THINGS

SIZE = 64
MAX_WORDS = 32
SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the caption grammar, with CLIP's start and end tokens."""
    ids = {word: i for i, word in enumerate((*SPECIAL, *sorted(caption_words())))}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", ids["<start>"]), ("<end>", ids["<end>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>",
        model_max_length=MAX_WORDS,
    )  # fmt: skip


def config(words: PreTrainedTokenizerFast) -> CLIPConfig:
    """3.4 M parameters; patches of 16 pixels."""
    text = dict(
        vocab_size=len(words), hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=MAX_WORDS, pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, hidden_act="gelu",
    )  # fmt: skip
    vision = dict(
        hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, image_size=SIZE,
        patch_size=16, hidden_act="gelu",
    )  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)


class ClipWithTokenHead(nn.Module):
    """CLIP plus a linear map from the mean image token to the summary space.

    The usual loss never touches the last layer's patch tokens, which are what decoders predict; contrasting their mean
    with the caption as well gives them meaning. The map is kept as the token-to-text projector (method b.5).
    """

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip
        self.projector = nn.Linear(clip.visual_projection.in_features, clip.visual_projection.out_features, bias=False)


def loss(model: ClipWithTokenHead, batch: dict, _: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Symmetric InfoNCE of captions with image summaries and with projected mean tokens (equal weights).

    Captions that occur twice in a batch are not each other's negatives.
    """
    clip = model.clip
    tokens, summary = image_tokens(clip, batch["pixels"])
    text = clip.text_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
    text = functional.normalize(clip.text_projection(text), dim=-1).float()
    scale = clip.logit_scale.exp().clamp(max=100)
    same = batch["caption"][:, None] == batch["caption"][None]
    twins = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    target = torch.arange(len(text), device=text.device)
    total, logged = torch.zeros((), device=text.device), {}
    for name, image in (("summary", summary), ("tokens", model.projector(tokens.mean(dim=1)))):
        logits = scale * functional.normalize(image, dim=-1).float() @ text.T
        logits = logits.masked_fill(twins, -torch.inf)
        part = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        total = total + part
        logged[name] = part
        logged[f"{name}_top1"] = (logits.argmax(1) == target).float().mean()
    return total, logged


def batches(scenes: int, words: PreTrainedTokenizerFast, *, seed: int, workers: int, device: str) -> Iterator:
    """Endless batches of one random frame and the caption of each scene; frames are shifted and tinted a little."""
    for frames, captions in scene_batches(size=SIZE, frames=1, scenes=scenes, seed=seed, workers=workers):
        x = pixels(frames[:, 0].to(device), SIZE)
        gain = 1 + 0.1 * torch.randn(len(x), 3, 1, 1, device=device)
        batch = words(list(captions), padding=True, truncation=True, return_tensors="pt").to(device)
        number = {c: i for i, c in enumerate(captions)}
        yield {
            "pixels": x * gain + 0.1 * torch.randn(len(x), 3, 1, 1, device=device), "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "caption": torch.tensor([number[c] for c in captions], device=device),
        }  # fmt: skip


def caption_top1(clip: Clip, projector: np.ndarray, images: np.ndarray, captions: list[str]) -> dict[str, float]:
    """Share of images whose own caption is nearest among blocks of 100, from summaries and from mean tokens."""
    tokens, summary = clip.images(images)
    mean = tokens.mean(axis=1) @ projector.T
    text = clip.texts(captions)
    found: dict[str, list[float]] = {"summary": [], "tokens": []}
    for start in range(0, len(captions) - 99, 100):
        block = slice(start, start + 100)
        for name, image in (("summary", summary), ("tokens", mean)):
            found[name].append(float(np.mean((image[block] @ text[block].T).argmax(1) == np.arange(100))))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main(out: Path, *, steps: int, minutes: float, scenes: int, workers: int, seed: int, device: str) -> dict:
    """Train, score on held-out scenes, write weights, tokenizer, projector and card to ``out``; returns the card."""
    torch.manual_seed(seed)
    checkpoint = out.with_suffix(".checkpoint.pt")  # beside the weights until they are written
    words = tokenizer()
    untrained = ClipWithTokenHead(CLIPModel(config(words)))
    stream = batches(scenes, words, seed=seed, workers=workers, device=device)
    model, curve = train(
        untrained, loss, stream, steps=steps, minutes=minutes, learning_rate=7e-4,
        seed=seed, checkpoint=checkpoint, device=device,
    )  # fmt: skip
    clip = Clip(model.clip, words, device=device)
    projector = model.projector.weight.detach().float().cpu().numpy()  # (P, D)
    scores: dict[str, float] = {}
    for name, things in (("held_out_scenes", None), ("unseen_things", HELD_OUT_THINGS)):
        chosen = {} if things is None else {"things": things}
        top1 = caption_top1(clip, projector, *held_out_scenes(500, size=SIZE, seed=seed, **chosen))
        scores |= {f"caption_top1_of_100_{name}_from_{part}": value for part, value in top1.items()}
    card = {
        "what": "mini CLIP, picture-book world, 64 pixels, 16 tokens of 192",
        "made_by": "python -m neuroclips.mini clip", "seed": seed, "steps": curve[-1]["step"],
        "seconds": curve[-1]["seconds"], "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "scenes_a_step": scenes, "parameters": sum(p.numel() for p in model.parameters()), "scores": scores,
        "curve": curve[:: max(1, len(curve) // 50)],
    }  # fmt: skip
    clip.model.half().save_pretrained(out)
    words.save_pretrained(out)
    write_arrays(out / "projector.safetensors", {"weight": projector.astype(np.float16)})
    write_json(out / "card.json", card)
    checkpoint.unlink()
    return card
