"""Residual blocks on vectors: the nonlinear part between a subject's own layer and the heads.

They stand where the method has MindEye2's mixer (method b.2). At a sequence length of one, as everybody runs it, that
mixer is its input plus one constant, and the 134 million parameters of its four blocks never get a gradient. No block
at all gives the same function; these blocks give one that learns.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroclips.shapes import Float

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def shrink(layer: Layer, by: float = 0.1) -> Layer:
    """Multiply a layer's initial weights and bias by ``by``: a branch that ends in it starts small, not dead."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(by)
    return layer


class ResidualBlock(nn.Module):
    """``x + W2 dropout(gelu(W1 LN(x)))``; W2 and its bias start at a tenth of torch's usual size."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, hidden)
        self.dropout, self.down = nn.Dropout(dropout), shrink(nn.Linear(hidden, width))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return x + self.down(self.dropout(F.gelu(self.up(self.norm(x)))))


class ResidualStack(nn.Sequential):
    """``blocks`` residual blocks, near the identity at first; none is the identity."""

    def __init__(self, width: int, blocks: int, hidden: int, dropout: float):
        super().__init__(*(ResidualBlock(width, hidden, dropout) for _ in range(blocks)))
