"""Frozen captioner: images to one sentence each (method d.2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from neuroclips.errors import ArtefactError, DataError
from neuroclips.pretrained.registry import resolve
from neuroclips.shapes import Float32, UInt8

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


class Captioner:
    """Any of transformers' models that write about an image unasked: BLIP-2 (the paper's), GIT, or ours.

    Captions are written greedily, so they are the same in every run. A folder holds ``config.json``,
    ``model.safetensors``, ``generation_config.json`` (start, end and padding words), ``processor_config.json`` (how
    images are resized and normalised) and the tokenizer's files, as ``save_pretrained`` of model and processor leave
    them. The mini captioner is a ``GitForCausalLM`` with a ``GitProcessor`` of a ``CLIPImageProcessor`` and a
    word-level ``PreTrainedTokenizerFast``.

    max_new_tokens : where a caption is cut; a GIT needs one position more than that (``max_position_embeddings``).
    batch : images at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        max_new_tokens: int = 30,
        device: str = "cpu",
        batch: int = 32,
    ):
        self.model = model.eval().requires_grad_(False).to(device)
        self.processor, self.max_new_tokens, self.device, self.batch = processor, max_new_tokens, device, batch

    @classmethod
    def load(cls, name_or_folder: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Captioner:
        """Load ``mini`` (shipped with the package) or a folder in transformers layout; never from the network.

        dtype : of the weights; None: float32.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = resolve(name_or_folder, "caption")
        try:
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype or torch.float32, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{folder}: cannot be read as a captioner ({error})") from error
        if model.config.model_type == "blip-2" and model.config.image_token_index is None:
            # older files name no word for the image; the processor has added one to their tokenizer
            model.config.image_token_index = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
        return cls(model, processor, device=device)

    @torch.inference_mode()
    def captions(
        self,
        images: UInt8[np.ndarray, "n 3 H W"] | Float32[np.ndarray, "n 3 H W"],
        progress: Callable[[int, int, str], None] | None = None,
    ) -> list[str]:
        """One sentence an image, without special words; the same in any batch.

        images : uint8, or float32 in [0, 1], which is rounded to uint8.
        progress : called with (images done, images, what) after each batch.

        Raises DataError for images of another shape, type or range.
        """
        bytes_last = np.moveaxis(_as_bytes(images), 1, -1)
        captions: list[str] = []
        for first in range(0, len(bytes_last), self.batch):
            part = list(bytes_last[first : first + self.batch])
            inputs = self.processor(images=part, input_data_format="channels_last", return_tensors="pt")
            words = self.model.generate(
                pixel_values=inputs["pixel_values"].to(self.device, self.model.dtype),
                max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1,
            )  # fmt: skip
            texts = self.processor.batch_decode(words, skip_special_tokens=True)
            captions += [" ".join(text.split()) for text in texts]
            if progress is not None:
                progress(len(captions), len(images), "captions")
        return captions


def _as_bytes(images: np.ndarray) -> np.ndarray:
    if images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"images of shape {images.shape}; expected (images, 3, height, width)")
    if images.dtype == np.uint8:
        return images
    if images.dtype != np.float32:
        raise DataError(f"images of type {images.dtype}; expected uint8, or float32 in [0, 1]")
    if not np.all((images >= 0) & (images <= 1)):  # not so for NaN
        raise DataError("images with values outside [0, 1]; expected uint8, or float32 in [0, 1]")
    return np.round(images * 255).astype(np.uint8)
