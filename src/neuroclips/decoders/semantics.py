"""Semantics: voxels to the CLIP tokens of a clip's keyframe (method b.1 to b.3).

    code = input(x)                             the subject's own layer, V -> width
    backbone_tokens = head(backbone(code))      width -> K tokens of width D
    tokens = projected backbone tokens          each token by itself

``tokens`` meet CLIP's in the contrastive losses and condition the diffusion prior; MindEye2 conditions its prior on
``backbone_tokens``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from neuroclips.decoders.residual import ResidualStack, shrink
from neuroclips.shapes import Float


@dataclass(frozen=True)
class SemanticsOutput:
    """Tokens of every clip before and after the projector."""

    backbone_tokens: Float[Tensor, "B K D"]
    tokens: Float[Tensor, "B K D"]


class SemanticsNetwork(nn.Module):
    """The defaults are the paper's sizes, but for the residual blocks in place of its dead mixer (``residual``).

    Parameters
    ----------
    voxels : V.
    tokens, token_width : K and D.
    width : of the code between the subject's layer and the rest.
    blocks, hidden, dropout : residual blocks on the code, and their inner width; ``blocks=0`` is the function that the
        released mixer amounts to.
    projector : three times layer norm, GELU, linear, on every token. "mlp" is its output, as released; "residual" adds
        it to the backbone's tokens and starts it small. Both have the same parameters.
    """

    def __init__(
        self,
        voxels: int,
        *,
        tokens: int = 256,
        token_width: int = 1664,
        width: int = 4096,
        blocks: int = 4,
        hidden: int = 1024,
        dropout: float = 0.15,
        projector: Literal["residual", "mlp"] = "residual",
    ):
        super().__init__()
        self.shape, self.residual = (tokens, token_width), projector == "residual"
        self.input = nn.Linear(voxels, width)
        self.backbone = ResidualStack(width, blocks, hidden, dropout)
        self.head = nn.Linear(width, tokens * token_width)
        last = nn.Linear(token_width, token_width)
        layers = (nn.Linear(token_width, token_width), nn.Linear(token_width, token_width), last)
        self.projector = nn.Sequential(*(m for layer in layers for m in (nn.LayerNorm(token_width), nn.GELU(), layer)))
        if self.residual:
            shrink(last)

    def forward(self, x: Float[Tensor, "B V"]) -> SemanticsOutput:
        """Tokens of clips from their voxels, at unit variance."""
        return self.from_code(self.input(x))

    def from_code(self, code: Float[Tensor, "B width"]) -> SemanticsOutput:
        """All that follows the subject's layer, for codes that were computed elsewhere, by ridge for example."""
        backbone_tokens = self.head(self.backbone(code)).unflatten(1, self.shape)
        projected = self.projector(backbone_tokens)
        return SemanticsOutput(backbone_tokens, backbone_tokens + projected if self.residual else projected)
