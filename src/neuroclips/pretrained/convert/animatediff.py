"""Stable Diffusion 1.5, AnimateDiff v3 and SparseCtrl into one folder of ``NeuroClipsPipeline``.

The image model's UNet and the motion modules become one ``UNetMotionModel``. The domain adapter, low-rank changes that
the motion modules were trained behind, is added to the UNet's attention, W + scale * up @ down, once that is in.
Motion modules were trained with group statistics of each frame alone, so ``frame_norm`` is written as true: diffusers'
own class, with the same weights, is another function.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from neuroclips.artefacts import read_json, write_json
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.checkpoints import read_checkpoint
from neuroclips.pretrained.convert import stable_diffusion, vae
from neuroclips.pretrained.convert.folders import Dtype, folder_aside, parameters, write_config, write_weights
from neuroclips.pretrained.convert.names import Account, Place, converted, dropping, meta, renamed
from neuroclips.pretrained.convert.stable_diffusion import TEXT_AT, UNET_AT, VAE_AT, Part, under

MOTION: dict[str, Any] = dict(
    block_out_channels=[320, 640, 1280, 1280], motion_layers_per_block=2, motion_num_attention_heads=8,
    motion_norm_num_groups=32, motion_max_seq_length=32, use_motion_mid_block=False,
)  # fmt: skip
SPARSECTRL: dict[str, Any] = dict(
    in_channels=4, conditioning_channels=4, concat_conditioning_mask=True, use_simplified_condition_embedding=True,
    cross_attention_dim=768, block_out_channels=[320, 640, 1280, 1280], layers_per_block=2, attention_head_dim=8,
    motion_num_attention_heads=8, motion_max_seq_length=32, transformer_layers_per_block=1,
    temporal_transformer_layers_per_block=1,
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = dict(
    unet=stable_diffusion.UNET, vae=stable_diffusion.VAE, text_encoder=stable_diffusion.TEXT, motion=MOTION,
    sparsectrl=SPARSECTRL,
)  # fmt: skip
SCHEDULER: dict[str, Any] = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="linear", steps_offset=1,
    timestep_spacing="leading", clip_sample=False, set_alpha_to_one=True, prediction_type="epsilon",
)  # fmt: skip
SAMPLE_SIZE = 32  # 256 pixels, as in the paper; the image model's own is 64
SETTINGS: dict[str, Any] = dict(
    frame_norm=True, steps=25, guidance_scale=8.5, negative_prompt="",
    style=", 8k uhd, dslr, soft lighting, high quality, film grain, Fujifilm XT3",
)  # fmt: skip

_RENAME = renamed(
    (r"(motion_modules\.\d+)", r"\1.temporal_transformer"),
    (r"pos_embed\.pe$", "attention_blocks.0.pos_encoder.pe"),
    (r"\.attn([12])\.", lambda m: f".attention_blocks.{int(m[1]) - 1}."),
    (r"\.norm([12])\.", lambda m: f".norms.{int(m[1]) - 1}."),
    (r"\.norm3\.", ".ff_norm."),
)


def of_motion(attentions: int) -> Any:
    """Names of AnimateDiff in its motion modules; other names stay.

    attentions : in each module, 2 in the video model and 1 in SparseCtrl. Each has its own copy of the table of
        positions, and diffusers has one.
    """

    def rule(name: str) -> Place:
        if ".motion_modules." not in name:
            return Place(name)
        key = _RENAME(name)
        if not name.endswith(".pe"):
            return Place(key)
        copies = (key.replace("attention_blocks.0", f"attention_blocks.{i}") for i in range(1, attentions))
        return Place(key, twins=tuple(copies))

    return rule


def motion(source: Mapping[str, Tensor], config: Mapping[str, Any]) -> Part:
    """A ``MotionAdapter`` without numbers, its parameters, and the account of ``v3_sd15_mm.ckpt``."""
    from diffusers import MotionAdapter

    model = meta(lambda: MotionAdapter.from_config(dict(config)))
    state, account = converted(source, model.state_dict(), of_motion(attentions=2))
    return model, state, account


def sparsectrl(source: Mapping[str, Tensor], config: Mapping[str, Any]) -> Part:
    """As ``motion``, of a ``SparseControlNetModel`` and ``v3_sd15_sparsectrl_rgb.ckpt``."""
    from diffusers import SparseControlNetModel

    model = meta(lambda: SparseControlNetModel.from_config(dict(config)))
    drop = dropping((r"animatediff_config", "settings of training"))
    state, account = converted(source, model.state_dict(), of_motion(attentions=1), drop=drop)
    return model, state, account


def adapter_places(unet: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """For every attention matrix of a UNet the keys of the two factors, down and up, that change it."""
    at = renamed(
        (r"\.to_out\.0\.weight$", ".processor.to_out_lora"), (r"\.to_([qkv])\.weight$", r".processor.to_\1_lora")
    )  # fmt: skip
    names = [name for name in unet if ".motion_modules." not in name and at(name) != name]
    return {name: (f"{at(name)}.down.weight", f"{at(name)}.up.weight") for name in names}


def adapted(
    unet: Mapping[str, Tensor], source: Mapping[str, Tensor], scale: float | int = 1.0
) -> tuple[dict[str, Tensor], Account]:
    """A UNet's parameters with W + scale * up @ down, in float32, for all attention matrices; and the account."""
    places, state, wrong, missing = adapter_places(unet), dict(unet), [], []
    for name, keys in places.items():
        missing += [key for key in keys if key not in source]
        if not all(key in source for key in keys):
            continue
        down, up = (source[key] for key in keys)
        (out, into), rank = unet[name].shape, len(down)
        if down.shape != (rank, into) or up.shape != (out, rank):
            found = " and ".join("x".join(map(str, part.shape)) for part in (down, up))
            wrong.append(f"{name} {out}x{into} changed by {found}")
            continue
        state[name] = unet[name].float() + scale * up.float() @ down.float()
    used = {key: None for keys in places.values() for key in keys if key in source}
    unexpected = tuple(key for key in source if key not in used)
    return state, Account(tuple(used), {}, tuple(missing), unexpected, tuple(wrong))


def image_model(base: Path, configs: Mapping[str, Any]) -> tuple[dict[str, Part], Account, dict[str, Any]]:
    """UNet, VAE and, where it has one, text encoder of Stable Diffusion 1.5, from one file or a folder of diffusers.

    Also the account of all other keys, and the configurations, which a folder brings itself.
    """
    if base.is_dir():
        configs = {**configs, **{part: _config(base / part) for part in ("unet", "vae", "text_encoder")}}
        found = {part: _folder(base / part) for part in ("unet", "vae", "text_encoder")}
        rest = Account((), {})
    else:
        tensors = read_checkpoint(base).tensors
        prefixes = {"unet": UNET_AT, "vae": VAE_AT, "text_encoder": TEXT_AT}
        found = {part: under(tensors, prefix) for part, prefix in prefixes.items()}
        others = [name for name in tensors if not name.startswith(tuple(prefixes.values()))]
        rest = Account((), dict.fromkeys(others, "not of UNet, VAE or text encoder"))
    makers = {"unet": stable_diffusion.unet, "vae": vae.autoencoder, "text_encoder": stable_diffusion.text_encoder}
    return {part: makers[part](found[part], configs[part]) for part in found if found[part]}, rest, dict(configs)


def _config(folder: Path) -> dict[str, Any]:
    """Of a part of a folder of diffusers or transformers, without what only names its origin."""
    return {name: value for name, value in read_json(folder / "config.json").items() if not name.startswith("_")}


def _folder(folder: Path) -> dict[str, Tensor]:
    for pattern in ("*model.safetensors", "*model.fp16.safetensors", "*model.bin"):
        for file in sorted(folder.glob(pattern)):
            return read_checkpoint(file).tensors
    raise ArtefactError(f"{folder}: no weights in it; expected a folder of diffusers, with *model.safetensors")


def convert(
    sources: Mapping[str, Path],
    out: Path,
    *,
    configs: Mapping[str, Any] = CONFIGS,
    settings: Mapping[str, Any] = SETTINGS,
    adapter_scale: float | int = 1.0,
    sample_size: int | None = SAMPLE_SIZE,
    dtype: Dtype = "fp32",
) -> dict[str, Any]:
    """Write a folder that ``video.neuroclips_pipeline.NeuroClipsPipeline.load`` reads.

    sources : ``base``, Stable Diffusion 1.5 as one file (RealisticVision) or a folder of diffusers; ``motion``,
        ``adapter`` and ``sparsectrl``, AnimateDiff's files; ``text``, a folder with ``tokenizer/`` and, for a base
        without one, ``text_encoder/``. A folder as base needs no ``text``.
    configs, settings : arguments of the parts and of the pipeline; the defaults are the paper's.
    sample_size : side of the videos' latents, where nobody says another; None: that of the image model.
    dtype : of all weights but the autoencoder's.
    Raises ArtefactError for another layout of any file, and where no tokenizer is found: none is in a checkpoint.
    """
    from diffusers import DDIMScheduler, UNetMotionModel

    base, text = sources["base"], sources.get("text", sources["base"])
    tokenizer = text / "tokenizer"
    if not tokenizer.is_dir():
        raise ArtefactError(
            f"{tokenizer}: no such folder; a checkpoint holds no tokenizer, so take the one of Stable Diffusion 1.5"
        )
    parts, rest, configs = image_model(base, configs)
    for name, prefix in (("unet", UNET_AT), ("vae", VAE_AT)):
        if name not in parts:
            raise ArtefactError(f"{base}: nothing under {prefix}; expected a checkpoint of Stable Diffusion 1.5")
    if "text_encoder" not in parts:
        config = _config(text / "text_encoder")
        parts["text_encoder"] = stable_diffusion.text_encoder(_folder(text / "text_encoder"), config)
    motion_part = motion(read_checkpoint(sources["motion"]).tensors, configs["motion"])
    control_part = sparsectrl(read_checkpoint(sources["sparsectrl"]).tensors, configs["sparsectrl"])
    from_files = [
        *((base, name, parts[name][2]) for name in parts),
        (sources["motion"], "motion", motion_part[2]), (sources["sparsectrl"], "sparsectrl", control_part[2]),
    ]  # fmt: skip
    for path, name, account in from_files:
        account.check(path, f"the video generator's {name}")
    unet_state, adapter_account = adapted(parts["unet"][1], read_checkpoint(sources["adapter"]).tensors, adapter_scale)
    adapter_account.check(sources["adapter"], "an adapter of Stable Diffusion 1.5's attention")
    video_unet = meta(lambda: UNetMotionModel.from_unet2d(parts["unet"][0], motion_part[0]))
    if sample_size is not None:
        video_unet.register_to_config(sample_size=sample_size)
    states = {
        "unet": (video_unet, unet_state | motion_part[1]),
        "controlnet": (control_part[0], control_part[1]),
        "text_encoder": parts["text_encoder"][:2],
    }
    with folder_aside(out) as folder:
        for name, (model, state) in states.items():
            assert set(state) == set(model.state_dict()), name
            write_weights(write_config(folder / name, model), state, dtype)
        write_weights(write_config(folder / "vae", parts["vae"][0]), parts["vae"][1])
        scheduler: Any = DDIMScheduler(**SCHEDULER)
        scheduler.save_pretrained(folder / "scheduler")
        shutil.copytree(tokenizer, folder / "tokenizer")
        write_json(folder / "model_index.json", _index(tokenizer, settings))
    accounts = {name: account.card() for _, name, account in from_files}
    return {
        "class": "neuroclips.video.neuroclips_pipeline.NeuroClipsPipeline", "dtype": dtype,
        "parameters": {name: parameters(model.parameters()) for name, (model, _) in states.items()}
        | {"vae": parameters(parts["vae"][0].parameters())},
        "accounts": accounts | {"adapter": adapter_account.card(), "rest of base": rest.card()},
        "adapter_scale": adapter_scale, "tokenizer": f"copied from {text.name}/tokenizer",
    }  # fmt: skip


def _index(tokenizer: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What ``save_pretrained`` of the pipeline would write; the class itself is above this layer."""
    import diffusers

    kind = read_json(tokenizer / "tokenizer_config.json").get("tokenizer_class", "CLIPTokenizer")
    return {
        "_class_name": "NeuroClipsPipeline", "_diffusers_version": diffusers.__version__,
        "vae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", "UNetMotionModel"],
        "controlnet": ["diffusers", "SparseControlNetModel"], "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", kind],
        "motion_adapter": [None, None], **settings,
    }  # fmt: skip
