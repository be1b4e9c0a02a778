"""From CLIP tokens to caption embeddings: the frozen judge inside the text losses (method b.5).

    prediction = W mean_k tokens_k

The authors fitted W on image tokens and captions and never trained it with a brain. ``fit_text_projector`` does the
same for any pairs.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroclips.artefacts import read_arrays
from neuroclips.decoders.losses import info_nce
from neuroclips.errors import ArtefactError, DataError
from neuroclips.shapes import Float


class TextProjector(nn.Module):
    """Mean over tokens, then one matrix without bias; 1664 -> 1280 in the paper."""

    def __init__(self, token_width: int = 1664, text_width: int = 1280):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(text_width, token_width) / math.sqrt(token_width))

    @classmethod
    def from_file(cls, path: Path) -> TextProjector:
        """Read ``weight`` (P, D) from a safetensors file, such as the mini CLIP's ``projector.safetensors``."""
        arrays = read_arrays(path)
        if "weight" not in arrays or arrays["weight"].ndim != 2:
            found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
            raise ArtefactError(f"{path}: holds {found}; a text projector is one array `weight` (P, D)")
        return cls._of(torch.from_numpy(np.array(arrays["weight"], np.float32)))

    @classmethod
    def _of(cls, weight: Tensor) -> TextProjector:
        projector = cls(weight.shape[1], weight.shape[0]).to(weight.device)
        projector.load_state_dict({"weight": weight})
        return projector

    def forward(self, tokens: Float[Tensor, "B K D"]) -> Float[Tensor, "B P"]:
        """Predicted caption embeddings; their length means nothing, the losses see cosines."""
        return F.linear(tokens.mean(dim=1), self.weight)


def fit_text_projector(
    tokens: Float[np.ndarray, "N K D"] | Float[Tensor, "N K D"],
    text: Float[np.ndarray, "N P"] | Float[Tensor, "N P"],
    *,
    alpha: float = 1e-3,
    temperature: float = 0.1,
    steps: int = 500,
    batch: int = 256,
    learning_rate: float = 0.01,
    seed: int = 0,
    device: str = "cpu",
) -> TextProjector:
    """Fit W to pairs of image tokens and caption embeddings of unit length.

    It starts at ridge, ``W = T^T M (M^T M + alpha s I)^-1``, with M (N, D) the mean tokens, T the embeddings and s the
    mean of the diagonal of M^T M. Adam then lowers ``info_nce`` at ``temperature`` on batches drawn by ``seed``.
    ``learning_rate`` is in units of the RMS weight at the start and falls linearly to 0.
    """
    if len(tokens) != len(text) or len(tokens) < 2:
        raise DataError(
            f"fit_text_projector was given tokens of {len(tokens)} images and {len(text)} texts; expected pairs"
        )
    mean = (
        tokens.mean(axis=1, dtype=np.float32) if isinstance(tokens, np.ndarray) else tokens.mean(1, dtype=torch.float32)
    )
    m, t = (torch.as_tensor(np.array(x) if isinstance(x, np.ndarray) else x).float().to(device) for x in (mean, text))
    gram = m.T @ m
    gram.diagonal().add_(alpha * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, m.T @ t).T.contiguous().requires_grad_()
    rate = learning_rate * weight.detach().square().mean().sqrt().item()
    optimiser = torch.optim.Adam([weight], lr=rate)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        rows = torch.randperm(len(m), generator=generator)[:batch].to(device)
        loss = info_nce(F.linear(m[rows], weight), t[rows], temperature)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return TextProjector._of(weight.detach())
