"""Group normalisation of motion modules, per frame as AnimateDiff trained it or over all frames as diffusers has it.

The weights are the same, the function is not: with trained weights the two differ wherever frames differ.
"""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn


class FrameGroupNorm(nn.GroupNorm):
    """Group norm of (B, C, F, h, w) with statistics over (channels of a group, h, w) of one frame."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, frames, height, width = x.shape
        folded = x.transpose(1, 2).reshape(batch * frames, channels, height, width)
        return super().forward(folded).reshape(batch, frames, channels, height, width).transpose(1, 2)


def use_frame_norm(model: nn.Module, per_frame: bool = True) -> int:
    """Give every motion module of ``model`` per-frame (or diffusers' own) statistics, in place; returns how many.

    ``model`` is a ``UNetMotionModel``, ``MotionAdapter`` or ``SparseControlNetModel``. Parameters, their names and
    values stay as they are.
    """
    found = [module for module in model.modules() if isinstance(module, AnimateDiffTransformer3D)]
    for module in found:
        module.norm.__class__ = FrameGroupNorm if per_frame else nn.GroupNorm
    return len(found)
