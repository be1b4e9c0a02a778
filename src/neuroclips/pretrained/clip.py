"""Frozen CLIP: frames to image tokens and summaries, captions to summaries (method b.3)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from neuroclips.pretrained.registry import resolve
from neuroclips.shapes import Float32, UInt8

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

# Means and deviations of RGB in [0, 1] that every OpenAI and OpenCLIP image tower expects.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pixels(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 images (n, 3, H, W) to CLIP's input (n, 3, size, size)."""
    x = images.float() / 255
    if x.shape[-1] != size or x.shape[-2] != size:
        x = torch.nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return (x - mean) / std


def image_tokens(model: CLIPModel, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch tokens after the last layer norm (n, K, D), class token dropped, and the projected summary (n, P)."""
    vision = model.vision_model(pixel_values=x)
    tokens = model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:])
    return tokens, model.visual_projection(vision.pooler_output)


class Clip:
    """A ``transformers.CLIPModel`` and its tokenizer, numpy and strings in, numpy out."""

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, *, device: str = "cpu", batch: int = 128):
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer, self.device, self.batch = tokenizer, device, batch

    @classmethod
    def load(cls, name_or_folder: str | Path, *, device: str = "cpu") -> Clip:
        """Load ``mini`` (shipped with the package) or a folder in transformers layout; never from the network."""
        from transformers import AutoTokenizer, CLIPModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # a bar for files of a second or two
        folder = resolve(name_or_folder, "clip")
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return cls(model, AutoTokenizer.from_pretrained(folder, local_files_only=True), device=device)

    @torch.inference_mode()
    def images(self, images: UInt8[np.ndarray, "n 3 H W"]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (n, K, D) and unit-length summaries (n, P) of uint8 images, float32."""
        tokens, summaries = [], []
        for start in range(0, len(images), self.batch):
            x = torch.tensor(images[start : start + self.batch]).to(self.device)
            t, s = image_tokens(self.model, pixels(x, self.model.config.vision_config.image_size))
            tokens.append(t.cpu().numpy())
            summaries.append(torch.nn.functional.normalize(s, dim=-1).cpu().numpy())
        return np.concatenate(tokens), np.concatenate(summaries)

    @torch.inference_mode()
    def texts(self, captions: list[str]) -> Float32[np.ndarray, "n P"]:
        """Unit-length summaries of captions."""
        batch = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt").to(self.device)
        out = self.model.text_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return torch.nn.functional.normalize(self.model.text_projection(out.pooler_output), dim=-1).cpu().numpy()
