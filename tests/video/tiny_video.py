"""Parts of a tiny video pipeline: the real classes, random weights, every axis of its own size."""

import functools

import torch
from diffusers import (
    AutoencoderKL,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
    UNetMotionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

WIDTHS, WORDS, DIM, LATENTS = (8, 16), 7, 12, 4  # upstream's pipeline knows no other number of latents
DDIM = dict(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False)


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<unk>", "<start>", "<end>", "a", "red", "blue", "fish", "car", "swims", "stops", "here", "now"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>",
        model_max_length=WORDS,
    )  # fmt: skip


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random values everywhere, zero-initialised layers included, so that every path shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            spread = 1.0 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.1
            value = spread * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(value + (1 if "norm" in name and name.endswith("weight") else 0))
    return module.eval()


@functools.cache
def parts() -> dict:
    shared = dict(
        norm_num_groups=4, cross_attention_dim=DIM, layers_per_block=1, block_out_channels=WIDTHS, attention_head_dim=2
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 6), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=LATENTS, sample_size=16, scaling_factor=0.7,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=13, hidden_size=DIM, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=WORDS, bos_token_id=2, eos_token_id=3, pad_token_id=0,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=LATENTS, out_channels=LATENTS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **shared,
    )  # fmt: skip
    adapter = MotionAdapter(
        block_out_channels=WIDTHS, motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=4,
        motion_max_seq_length=9, use_motion_mid_block=False,
    )  # fmt: skip
    control = SparseControlNetModel(
        in_channels=LATENTS, conditioning_channels=LATENTS, motion_max_seq_length=9, motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), **shared,
    )  # fmt: skip
    motion_unet = UNetMotionModel.from_unet2d(randomised(unet, 3), randomised(adapter, 4))
    return dict(
        vae=randomised(vae, 1), text_encoder=randomised(text, 2), tokenizer=tokenizer(),
        unet=randomised(motion_unet, 5), controlnet=randomised(control, 6),
    )  # fmt: skip
