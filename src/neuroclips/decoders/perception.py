"""Perception: voxels to the latents of every frame of a clip (method b.6, b.7).

    code = input(x)                                 the subject's own layer, V -> width
    code_f = code + U_f D code                      one code a frame, f = 1 .. F
    grid_f = norm(to_grid(code_f))                  a coarse map a frame
    latents = decoder(grid)                         convolutions and attention, over places and over the clip's frames

Frames of one clip attend to each other; clips never do. In the released code attention spans the whole batch, so that
a prediction depends on its neighbours there, and frames carry no position (method g.2, item 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroclips.decoders.residual import ResidualStack, shrink
from neuroclips.errors import DataError
from neuroclips.shapes import Float

KEEP = 0.9  # of a frame at first, in temporal attention; at 1, the released start, attention gets no gradient at first
EPS = 1e-6  # of the decoder's group norms, as in diffusers


def frame_positions(frames: int, width: int) -> Float[Tensor, "F D"]:
    """Sinusoids of the frame's number: wavelengths from 2 pi to 10,000 times that, sines first."""
    pair = torch.arange(-(-width // 2))
    angle = torch.arange(frames)[:, None] * 10_000.0 ** (-2 * pair / width)
    return torch.cat((angle.sin(), angle.cos()), dim=1)[:, :width]


def doublings(latent: tuple[int, int, int], grid: int, most: int) -> int:
    """How often a grid of ``grid`` rows doubles to the latent's height; at most ``most`` times.

    >>> doublings((4, 28, 28), 7, 3)
    2
    """
    _, rows, columns = latent
    n = max(rows // max(grid, 1), 1).bit_length() - 1
    if grid * 2**n != rows or columns % 2**n or n > most:
        raise DataError(
            f"a grid of {grid} rows cannot become latents of {rows} x {columns}: expected the rows divided by 2 up to"
            f" {most} times, and columns that can be divided as often"
        )
    return n


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups where they divide the channels, else the most that divide both; two channels a group at least.

    The released decoder has groups of one at its finest level, where every channel loses its mean over the frame, just
    before the output too: how bright and of what colour a frame is could then only be told by the maps' shapes.
    """
    groups = math.gcd(32, channels)
    return nn.GroupNorm(groups if groups < channels else max(channels // 2, 1), channels, eps=EPS)


class ResNet(nn.Module):
    """``shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))``; the shortcut is 1 x 1 where channels change."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N Co h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class SpatialAttention(nn.Module):
    """``x + out(attention(norm(x)))`` over the places of one frame, one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C h w"]:
        q, k, v = self.qkv(self.norm(x).flatten(2).mT)[:, None].chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.out(y).mT.unflatten(2, x.shape[2:])


class TemporalAttention(nn.Module):
    """``keep x + (1 - keep) (x + out(attention(norm(x) + position)))`` over the F frames of one clip at one place.

    One head, and ``keep`` a learnt number. Without ``position``, shuffled frames give the same, shuffled. Channels are
    normalised over the places of a frame. The released code normalises over the frames of a place, which at 32 channels
    is every channel by itself: frames that start out alike would be blown up to unit variance.
    """

    position: Tensor | None

    def __init__(self, channels: int, frames: int, position: bool = True):
        super().__init__()
        self.frames = frames
        self.norm = group_norm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.keep = nn.Parameter(torch.tensor(KEEP))
        self.register_buffer("position", frame_positions(frames, channels) if position else None, persistent=False)

    def forward(self, x: Float[Tensor, "BF C h w"]) -> Float[Tensor, "BF C h w"]:
        y = self.norm(x).flatten(2).mT.unflatten(0, (-1, self.frames))
        if self.position is not None:
            y = y + self.position[:, None]
        # (B, places, F, C): places stand where heads do, so that nothing is copied into groups
        q, k, v = self.qkv(y).transpose(1, 2).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
        change = F.linear(y, (1 - self.keep) * self.out.weight, (1 - self.keep) * self.out.bias)
        return x + change.mT.unflatten(2, x.shape[2:])


class Doubling(nn.Module):
    """Twice as many rows and columns, by repetition and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C H W"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class LatentDecoder(nn.Module):
    """Coarse maps of the frames of clips to their latents: the decoder of Stable Diffusion's autoencoder with temporal
    attention after each spatial one, small (method b.7).

    Parameters
    ----------
    inputs, outputs : channels of the maps and of the latents.
    frames : F; attention groups are the F frames of one clip, whatever the batch.
    channels : of the up blocks, coarse to fine; the first ``doublings`` of them double the side.
    position : whether temporal attention knows the order of frames.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        frames: int = 6,
        channels: tuple[int, ...] = (128, 64, 32),
        doublings: int = 2,
        position: bool = True,
    ):
        super().__init__()

        def attended(before: int, after: int) -> list[nn.Module]:
            return [ResNet(before, after), SpatialAttention(after), TemporalAttention(after, frames, position)]

        first, last = channels[0], channels[-1]
        layers = [nn.Conv2d(inputs, first, 3, padding=1), *attended(first, first), ResNet(first, first)]
        for i, (before, after) in enumerate(zip((first, *channels), channels)):
            layers += attended(before, after) + attended(after, after)
            if i < doublings:
                layers.append(Doubling(after))
        self.last = nn.Conv2d(last, outputs, 3, padding=1)
        self.layers = nn.Sequential(*layers, group_norm(last), nn.SiLU())

    def forward(self, maps: Float[Tensor, "B F c g1 g2"]) -> Float[Tensor, "B F C h w"]:
        x = maps.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.last(self.layers(x)).unflatten(0, maps.shape[:2])


class Inception(nn.Module):
    """The released way to F voxel patterns: V -> rank, one residual block, rank -> F V (method b.6), each with GELU and
    dropout, after the last layer too. The block's half over a sequence of one is left out: it cannot learn."""

    def __init__(self, voxels: int, frames: int, rank: int, dropout: float):
        super().__init__()
        self.frames = frames
        self.first, self.last = nn.Linear(voxels, rank), nn.Linear(rank, frames * voxels)
        self.norm, self.inner = nn.LayerNorm(rank), nn.Linear(rank, rank)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B V"]) -> Float[Tensor, "B F V"]:
        x = self.dropout(F.gelu(self.first(x)))
        x = x + self.dropout(F.gelu(self.inner(self.norm(x))))
        return self.dropout(F.gelu(self.last(x))).unflatten(1, (self.frames, -1))


class FrameCodes(nn.Module):
    """One code to F: ``code + U_f D code``, of rank ``rank`` and with a bias a frame; frames start nearly alike."""

    def __init__(self, width: int, frames: int, rank: int):
        super().__init__()
        self.frames = frames
        self.down, self.up = nn.Linear(width, rank), shrink(nn.Linear(rank, frames * width))

    def forward(self, code: Float[Tensor, "B width"]) -> Float[Tensor, "B F width"]:
        return code[:, None] + self.up(self.down(code)).unflatten(1, (self.frames, -1))


class MapsHead(nn.Sequential):
    """1 x 1 convolutions from the grid's channels to the embeddings that the released loss distils (method b.7)."""

    def __init__(self, channels: int, width: int = 512):
        super().__init__(
            nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(1, width), nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(1, width), nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )  # fmt: skip


@dataclass(frozen=True)
class PerceptionOutput:
    """Latents of every frame; with the maps head, an embedding of every place of every frame's grid."""

    latents: Float[Tensor, "B F C h w"]
    maps: Float[Tensor, "B F P E"] | None = None


class PerceptionNetwork(nn.Module):
    """The defaults have the paper's sizes; ``expansion="inception", blocks=0, maps=True`` has the released layers, but
    for the mixers that cannot learn.

    Parameters
    ----------
    voxels : V.
    frames, latent : F and (C, h, w) of the target.
    width : of the code.
    blocks, hidden, dropout : residual blocks on the code, their inner width.
    grid, grid_channels, grid_dropout : rows of the coarse map (its columns follow from the latent), its channels, and
        the dropout before it is normalised.
    channels : of the decoder, coarse to fine.
    expansion : how one scan becomes F frames. "code" computes one code a clip and changes it for every frame
        (``FrameCodes``); "inception" makes F patterns of voxels first (``Inception``), so that all after it costs F
        times as much.
    rank : of either.
    position : whether temporal attention knows the order of frames.
    maps : whether to have the auxiliary head, which only the released loss uses.
    skip : add a linear map of the code to all latents. Where codes are principal components of ridge's latents and the
        map takes them back, the network starts as ridge: the decoder's last layer then starts at a hundredth.
    """

    def __init__(
        self,
        voxels: int,
        *,
        frames: int = 6,
        latent: tuple[int, int, int] = (4, 28, 28),
        width: int = 4096,
        blocks: int = 1,
        hidden: int = 1024,
        dropout: float = 0.15,
        grid: int = 7,
        grid_channels: int = 64,
        grid_dropout: float = 0.3,
        channels: tuple[int, ...] = (128, 64, 32),
        expansion: Literal["code", "inception"] = "code",
        rank: int = 256,
        position: bool = True,
        maps: bool = False,
        skip: bool = False,
    ):
        super().__init__()
        if skip and expansion == "inception":
            raise DataError('skip=True needs one code a clip; expected it with expansion="code"')
        twice = doublings(latent, grid, len(channels))
        self.target = (frames, *latent)
        self.grid = (grid_channels, grid, latent[2] // 2**twice)
        inception = expansion == "inception"
        self.inception = Inception(voxels, frames, rank, dropout) if inception else nn.Identity()
        self.input = nn.Linear(voxels, width)
        self.backbone = ResidualStack(width, blocks, hidden, dropout)
        self.expansion = nn.Identity() if inception else FrameCodes(width, frames, rank)
        self.to_grid = nn.Sequential(nn.Linear(width, math.prod(self.grid)), nn.Dropout(grid_dropout))
        self.norm = nn.GroupNorm(1, grid_channels)
        self.decoder = LatentDecoder(
            grid_channels, latent[0], frames=frames, channels=channels, doublings=twice, position=position
        )
        self.maps = MapsHead(grid_channels) if maps else None
        self.skip = nn.Linear(width, math.prod(self.target)) if skip else None
        if skip:
            shrink(self.decoder.last, 0.01)

    def forward(self, x: Float[Tensor, "B V"]) -> PerceptionOutput:
        """Latents of clips from their voxels, at unit variance."""
        return self.from_code(self.input(self.inception(x)))

    def from_code(self, code: Float[Tensor, "B *F width"]) -> PerceptionOutput:
        """All that follows the subject's layer. Codes are (B, width); with ``expansion="inception"`` (B, F, width)."""
        maps = self.to_grid(self.expansion(self.backbone(code))).unflatten(2, self.grid)
        maps = self.norm(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        latents = self.decoder(maps)
        if self.skip is not None:
            latents = latents + self.skip(code).unflatten(1, self.target)
        if self.maps is None:
            return PerceptionOutput(latents)
        embedded = self.maps(maps.flatten(0, 1)).flatten(2).mT
        return PerceptionOutput(latents, embedded.unflatten(0, maps.shape[:2]))
