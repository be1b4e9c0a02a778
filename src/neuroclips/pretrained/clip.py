"""Frozen CLIP: frames to image tokens and summaries, captions to summaries (method b.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError

from neuroclips.artefacts import read_json
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.registry import resolve
from neuroclips.shapes import Float32, UInt8

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of frozen weights, by recipes' words

# Means and deviations of RGB in [0, 1] that every OpenAI and OpenCLIP image tower expects.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


# What squeezes images into [0.5, 1] first: ((x + 1) / 2 - mean) / std. MindEye2 took the tokens that its weights were
# taught with in this way, so whoever uses these weights must (method b.3).
SQUEEZED_MEAN = tuple(2 * v - 1 for v in CLIP_MEAN)
SQUEEZED_STD = tuple(2 * v for v in CLIP_STD)


def pixels(
    images: torch.Tensor, size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> torch.Tensor:
    """uint8 images (n, 3, H, W) to CLIP's input (n, 3, size, size): ``(image / 255 - mean) / std``."""
    x = images.float() / 255
    if x.shape[-1] != size or x.shape[-2] != size:
        x = torch.nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean_, std_ = (torch.tensor(v, device=x.device)[:, None, None] for v in (mean, std))
    return (x - mean_) / std_


def image_tokens(model: CLIPModel, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch tokens after the last layer norm (n, K, D), class token dropped, and the projected summary (n, P)."""
    vision = model.vision_model(pixel_values=x)
    tokens = model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:])
    return tokens, model.visual_projection(vision.pooler_output)


class Clip:
    """A ``transformers.CLIPModel`` and its tokenizer, numpy and strings in, numpy out.

    mean, std : of RGB in [0, 1], by which images are normalised (``pixels``).
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        device: str = "cpu",
        batch: int = 128,
    ):
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer, self.device, self.batch, self.mean, self.std = tokenizer, device, batch, mean, std

    @classmethod
    def load(cls, name_or_folder: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Clip:
        """Load ``mini`` (shipped with the package), a model of ``neuroclips models``, or a folder in transformers
        layout; never from the network. Images are normalised as its ``preprocessor_config.json`` says, if it has one.

        dtype : of the weights; None is float32.
        """
        from transformers import AutoTokenizer, CLIPModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # a bar for files of a second or two
        folder = resolve(name_or_folder, "clip")
        try:
            model = CLIPModel.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtefactError(f"{folder}: cannot be read as a CLIP model and its tokenizer ({error})") from error
        said = folder / "preprocessor_config.json"
        about = read_json(said) if said.exists() else {}
        return cls(
            model, tokenizer, mean=about.get("image_mean", CLIP_MEAN), std=about.get("image_std", CLIP_STD),
            device=device,
        )  # fmt: skip

    @torch.inference_mode()
    def images(self, images: UInt8[np.ndarray, "n 3 H W"]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (n, K, D) and unit-length summaries (n, P) of uint8 images, float32."""
        tokens, summaries = [], []
        for start in range(0, len(images), self.batch):
            x = torch.tensor(images[start : start + self.batch]).to(self.device)
            x = pixels(x, self.model.config.vision_config.image_size, self.mean, self.std)
            t, s = image_tokens(self.model, x.to(self.model.dtype))
            tokens.append(t.float().cpu().numpy())
            summaries.append(torch.nn.functional.normalize(s.float(), dim=-1).cpu().numpy())
        return np.concatenate(tokens), np.concatenate(summaries)

    @torch.inference_mode()
    def texts(self, captions: list[str]) -> Float32[np.ndarray, "n P"]:
        """Unit-length summaries of captions."""
        batch = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt").to(self.device)
        out = self.model.text_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        projected = self.model.text_projection(out.pooler_output).float()
        return torch.nn.functional.normalize(projected, dim=-1).cpu().numpy()
