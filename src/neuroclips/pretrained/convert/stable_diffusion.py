"""Stable Diffusion's networks under the names of latent diffusion, as in checkpoints of a whole model in one file.

SDXL's UNet has the same names, so ``unclip`` uses the rule of the UNet, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from neuroclips.pretrained.convert import vae
from neuroclips.pretrained.convert.names import Account, Place, Rule, best, converted, dropping, meta, renamed

UNET: dict[str, Any] = dict(
    sample_size=64, in_channels=4, out_channels=4, cross_attention_dim=768, attention_head_dim=8, layers_per_block=2,
    block_out_channels=[320, 640, 1280, 1280],
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
)  # fmt: skip
VAE = vae.STABLE_DIFFUSION | dict(sample_size=512)
TEXT: dict[str, Any] = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408,
    max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=768, bos_token_id=49406,
    eos_token_id=49407, pad_token_id=49407,
)  # fmt: skip
UNET_AT, VAE_AT, TEXT_AT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
_POSITIONS = (r".*\bposition_ids$", "counts from 0, recomputed")

_RESNET = renamed(
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip


def of_unet(up_block_types: Sequence[str], layers: int) -> Rule:
    """Names of a UNet in latent diffusion, which counts its layers through all blocks.

    up_block_types, layers : of the ``UNet2DConditionModel``; a block is ``layers`` on its way down and one more on its
        way up, and an enlargement comes after the attention of its layer, if there is some.
    """

    def upsampler(match: Any) -> str:
        block = int(match[1])
        return f"output_blocks.{(block + 1) * (layers + 1) - 1}.{2 if 'Attn' in up_block_types[block] else 1}.conv"

    rename = renamed(
        (r"^conv_in\b", "input_blocks.0.0"), (r"^conv_norm_out\b", "out.0"), (r"^conv_out\b", "out.2"),
        (r"^time_embedding\.linear_([12])", lambda m: f"time_embed.{2 * (int(m[1]) - 1)}"),
        (r"^add_embedding\.linear_([12])", lambda m: f"label_emb.0.{2 * (int(m[1]) - 1)}"),
        (r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)",
         lambda m: f"input_blocks.{1 + int(m[1]) * (layers + 1) + int(m[3])}.{int(m[2] == 'attentions')}"),
        (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv",
         lambda m: f"input_blocks.{(int(m[1]) + 1) * (layers + 1)}.0.op"),
        (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
        (r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)",
         lambda m: f"output_blocks.{int(m[1]) * (layers + 1) + int(m[3])}.{int(m[2] == 'attentions')}"),
        (r"^up_blocks\.(\d+)\.upsamplers\.0\.conv", upsampler),
    )  # fmt: skip
    return lambda name: Place(rename(_RESNET(name) if ".resnets." in name else name))


def of_text(name: str) -> Place:
    """Names of Stable Diffusion's text encoder: transformers' of version 4."""
    return Place(f"text_model.{name}")


def of_bare_text(name: str) -> Place:
    """transformers 5's names, which some older files have, too."""
    return Place(name)


Part = tuple[Any, dict[str, Tensor], Account]


def unet(source: Mapping[str, Tensor], config: Mapping[str, Any]) -> Part:
    """A UNet without numbers, its parameters, and the account of a source under its prefix or with diffusers' names."""
    from diffusers import UNet2DConditionModel

    model = meta(lambda: UNet2DConditionModel.from_config(dict(config)))
    target = model.state_dict()
    rules = [of_unet(config["up_block_types"], config["layers_per_block"]), Place]
    state, account = converted(source, target, best(source, target, rules))
    return model, state, account


def text_encoder(source: Mapping[str, Tensor], config: Mapping[str, Any]) -> Part:
    """As ``unet``, of the text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    model = meta(lambda: CLIPTextModel(CLIPTextConfig.from_dict(dict(config))))
    target = model.state_dict()
    rule = best(source, target, [of_text, of_bare_text])
    state, account = converted(source, target, rule, drop=dropping(_POSITIONS))
    return model, state, account


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
