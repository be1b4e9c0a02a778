"""MindEye2's SDXL-unCLIP checkpoint into a folder of ``KeyframeGenerator``.

The file holds the UNet and the autoencoder, and the CLIP tower that made the tokens it was trained with, which is
``clip-bigg``'s and is left out. What belongs to the weights is written with them: Euler steps at timesteps of their
own, noise in place of unconditional tokens, noise with an offset, and pixels = 0.8 x + 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from neuroclips.pretrained.checkpoints import read_checkpoint
from neuroclips.pretrained.convert import vae
from neuroclips.pretrained.convert.folders import Dtype, folder_aside, parameters, write_config, write_weights
from neuroclips.pretrained.convert.names import Account, dropping
from neuroclips.pretrained.convert.stable_diffusion import UNET_AT, VAE_AT, under, unet

UNET: dict[str, Any] = dict(
    sample_size=96, in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280], layers_per_block=2,
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20], cross_attention_dim=1664,
    use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=1024,
)  # fmt: skip
VAE = vae.SIZES | dict(sample_size=768, scaling_factor=0.13025)
SCHEDULER: dict[str, Any] = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
    prediction_type="epsilon", timestep_spacing="leading", steps_offset=0, interpolation_type="linear",
    final_sigmas_type="zero",
)  # fmt: skip
STEPS = 38
SETTINGS: dict[str, Any] = dict(
    unconditional="noise", offset_noise=0.04, pixel_gain=0.8, pixel_offset=0.2, guidance_scale=5.0,
    timesteps=[int(999 * (1 - i / STEPS)) for i in range(STEPS)],
)  # fmt: skip
CLIP_AT = "conditioner.embedders.0.model."
_DROP = dropping(
    (r"conditioner\.embedders\.0\.model\.", "the CLIP tower that made the tokens; clip-bigg is the same"),
    (r"denoiser\.sigmas$", "noise levels, recomputed by the scheduler"),
    (r"(?!model\.diffusion_model\.|first_stage_model\.)", "of training, not of the networks"),
)


def networks(
    source: Mapping[str, Tensor], unet_config: Mapping[str, Any], vae_config: Mapping[str, Any]
) -> dict[str, tuple[Any, dict[str, Tensor], Account]]:
    """UNet and VAE without numbers, with their parameters and accounts; the account 'rest' is of all other keys."""
    rest = [name for name in source if not name.startswith((UNET_AT, VAE_AT))]
    return {
        "unet": unet(under(source, UNET_AT), unet_config),
        "vae": vae.autoencoder(under(source, VAE_AT), vae_config),
        "rest": (None, {}, Account((), {name: _DROP(name) or "" for name in rest})),
    }


def convert(
    sources: Mapping[str, Path],
    out: Path,
    *,
    unet_config: Mapping[str, Any] = UNET,
    vae_config: Mapping[str, Any] = VAE,
    settings: Mapping[str, Any] = SETTINGS,
    dtype: Dtype = "fp32",
) -> dict[str, Any]:
    """Write ``sources["checkpoint"]`` as a folder that ``pretrained.keyframe.KeyframeGenerator.load`` reads.

    unet_config, vae_config, settings : arguments of the networks and of the generator; the defaults are MindEye2's.
    dtype : of the UNet; the autoencoder stays in float32, since SDXL's overflows in half precision.
    Raises ArtefactError for another layout.
    """
    from diffusers import EulerDiscreteScheduler

    from neuroclips.pretrained.keyframe import KeyframeGenerator

    file = read_checkpoint(sources["checkpoint"])
    parts = networks(file.tensors, unet_config, vae_config)
    for name, (_, _, account) in parts.items():
        account.check(file.path, f"the keyframe generator's {name}")
    (unet_model, unet_state, _), (vae_model, vae_state, _) = parts["unet"], parts["vae"]
    scheduler: Any = EulerDiscreteScheduler(**SCHEDULER)
    generator: Any = KeyframeGenerator(unet_model, vae_model, scheduler, **settings)
    with folder_aside(out) as folder:
        generator.save_config(folder)
        scheduler.save_pretrained(folder / "scheduler")
        write_weights(write_config(folder / "unet", unet_model), unet_state, dtype)
        write_weights(write_config(folder / "vae", vae_model), vae_state)
    return {
        "class": "neuroclips.pretrained.keyframe.KeyframeGenerator", "dtype": dtype,
        "parameters": {"unet": parameters(unet_model.parameters()), "vae": parameters(vae_model.parameters())},
        "accounts": {name: account.card() for name, (_, _, account) in parts.items()},
        "beside_the_weights": list(file.beside), "inert_names": list(file.inert),
    }  # fmt: skip
