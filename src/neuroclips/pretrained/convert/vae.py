"""Stable Diffusion's autoencoder into ``diffusers.AutoencoderKL``: sizes, and three layouts that go around.

The perception decoder's targets come from ``sd_image_var_autoenc.pth``, a flat file of diffusers' names. Checkpoints of
whole models keep the same network under the names of latent diffusion, SDXL's among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from neuroclips.pretrained.checkpoints import read_checkpoint
from neuroclips.pretrained.convert.folders import Dtype, folder_aside, parameters, write_config, write_weights
from neuroclips.pretrained.convert.names import Account, Place, Rule, best, converted, meta, renamed

SIZES: dict[str, Any] = dict(
    in_channels=3, out_channels=3, latent_channels=4, layers_per_block=2, block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, norm_num_groups=32,
)  # fmt: skip
STABLE_DIFFUSION = SIZES | dict(sample_size=256, scaling_factor=0.18215)

_OLD_ATTENTION = renamed(
    (r"attentions\.0\.to_q\b", "attentions.0.query"), (r"attentions\.0\.to_k\b", "attentions.0.key"),
    (r"attentions\.0\.to_v\b", "attentions.0.value"), (r"attentions\.0\.to_out\.0", "attentions.0.proj_attn"),
)  # fmt: skip


def of_diffusers(name: str) -> Place:
    """Today's names."""
    return Place(name)


def of_old_diffusers(name: str) -> Place:
    """Names of diffusers before 0.13: attention as query, key, value, proj_attn."""
    return Place(_OLD_ATTENTION(name))


def of_latent_diffusion(levels: int) -> Rule:
    """Names of latent diffusion and of SDXL's sgm; attention is made of convolutions there.

    levels : resolutions of the autoencoder; the decoder counts them the other way round.
    """
    rename = renamed(
        (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    )

    def rule(name: str) -> Place:
        attention = "mid_block.attentions" in name and name.endswith(".weight") and "group_norm" not in name
        return Place(rename(name), "pointwise" if attention else "same")

    return rule


def rules(levels: int) -> list[Rule]:
    """Every layout that an autoencoder's file may have."""
    return [of_diffusers, of_old_diffusers, of_latent_diffusion(levels)]


def autoencoder(source: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor], Account]:
    """An ``AutoencoderKL`` without numbers, its parameters, and the account of a source in any of its layouts."""
    from diffusers import AutoencoderKL

    model = meta(lambda: AutoencoderKL.from_config(dict(config)))
    target = model.state_dict()
    state, account = converted(source, target, best(source, target, rules(len(config["block_out_channels"]))))
    return model, state, account


def convert(
    sources: Mapping[str, Path], out: Path, *, config: Mapping[str, Any] = STABLE_DIFFUSION, dtype: Dtype = "fp32"
) -> dict[str, Any]:
    """Write ``sources["vae"]`` as a folder that ``pretrained.vae.Vae.load`` reads.

    config : arguments of ``AutoencoderKL``; the default is Stable Diffusion's.
    Raises ArtefactError for another layout.
    """
    file = read_checkpoint(sources["vae"])
    model, state, account = autoencoder(file.tensors, config)
    account.check(file.path, "Stable Diffusion's autoencoder")
    with folder_aside(out) as folder:
        write_weights(write_config(folder, model), state, dtype)
    return {
        "class": "diffusers.AutoencoderKL", "parameters": parameters(model.parameters()), "dtype": dtype,
        "accounts": {"vae": account.card()},
    }  # fmt: skip
