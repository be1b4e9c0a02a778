"""What subjects share, as it ships with the package: sizes, construction, weights.

The ``input`` layers are a subject's own and are in no file here; ``attach`` puts one into a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from neuroclips.decoders.code import Basis, InputLayer, read_rounded, write_rounded
from neuroclips.decoders.perception import PerceptionNetwork
from neuroclips.decoders.prior import DiffusionPrior, PriorNetwork
from neuroclips.decoders.semantics import SemanticsNetwork

Network = TypeVar("Network", SemanticsNetwork, PerceptionNetwork)


@dataclass(frozen=True)
class Sizes:
    """Of all networks on one pair of token and latent spaces. The defaults are those of the mini spaces.

    tokens : (K, D).  latents : (F, C, h, w).  width : of the code.
    """

    tokens: tuple[int, int] = (16, 192)
    latents: tuple[int, int, int, int] = (6, 16, 8, 8)
    width: int = 384
    semantics_blocks: int = 2
    perception_blocks: int = 1
    hidden: int = 1024
    dropout: float = 0.5
    grid: int = 4
    channels: tuple[int, ...] = (64, 48)
    prior_depth: int = 4
    prior_heads: int = 6
    prior_head_width: int = 32


SIZES = Sizes()


def build_semantics(sizes: Sizes, basis: Basis, voxels: int = 1) -> SemanticsNetwork:
    """A network that starts as the basis' own way back from code to tokens: as ridge, once an input layer is in."""
    k, d = sizes.tokens
    network = SemanticsNetwork(
        voxels, tokens=k, token_width=d, width=sizes.width, blocks=sizes.semantics_blocks, hidden=sizes.hidden,
        dropout=sizes.dropout,
    )  # fmt: skip
    with torch.no_grad():
        network.head.weight.zero_()
        axes = basis.tokens_axes * basis.scale[: basis.n_tokens, None]
        network.head.weight[:, : basis.n_tokens] = torch.from_numpy(axes.T.copy())
        network.head.bias.copy_(torch.from_numpy(basis.tokens_mean.ravel()))
    return network


def build_perception(sizes: Sizes, basis: Basis, voxels: int = 1, *, position: bool = True) -> PerceptionNetwork:
    """As ``build_semantics``, from code to latents; ``position``: whether temporal attention knows frames' order."""
    f, c, h, w = sizes.latents
    network = PerceptionNetwork(
        voxels, frames=f, latent=(c, h, w), width=sizes.width, blocks=sizes.perception_blocks, hidden=sizes.hidden,
        dropout=sizes.dropout, grid=sizes.grid, grid_dropout=0.1, channels=sizes.channels, skip=True,
        position=position,
    )  # fmt: skip
    assert network.skip is not None
    with torch.no_grad():
        network.skip.weight.zero_()
        axes = basis.latents_axes * basis.scale[basis.n_tokens :, None]
        network.skip.weight[:, basis.n_tokens :] = torch.from_numpy(axes.T.copy())
        network.skip.bias.copy_(torch.from_numpy(basis.latents_mean.ravel()))
    return network


def build_prior(sizes: Sizes) -> DiffusionPrior:
    """The prior over standardised tokens, with the consistent noise schedule (``DiffusionPrior``)."""
    k, d = sizes.tokens
    network = PriorNetwork(
        tokens=k, width=d, depth=sizes.prior_depth, heads=sizes.prior_heads, head_width=sizes.prior_head_width
    )
    return DiffusionPrior(network, schedule="textbook")


def shared_state(module: nn.Module) -> dict[str, Tensor]:
    """Weights of all but the subject's input layer."""
    return {name: value for name, value in module.state_dict().items() if not name.startswith("input.")}


def attach(network: Network, layer: InputLayer) -> Network:
    """Put a solved input layer into a network built for its voxels."""
    with torch.no_grad():
        network.input.weight.copy_(torch.tensor(layer.weight.T))
        network.input.bias.copy_(torch.tensor(layer.bias))
    return network


def write_state(path: Path, state: dict[str, Tensor]) -> None:
    """Write weights to ship: in float16, large matrices as ``write_rounded`` does."""
    write_rounded(path, {name: tensor.detach().cpu().half().numpy() for name, tensor in state.items()})


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file as float32, rounded or not."""
    return {name: torch.from_numpy(array) for name, array in read_rounded(path).items()}
