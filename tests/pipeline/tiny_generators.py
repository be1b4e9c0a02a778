"""Tiny generators with random weights, in folders as users have them; they share the mini VAE and CLIP."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, MotionAdapter, SparseControlNetModel, UNet2DConditionModel, UNetMotionModel
from transformers import CLIPImageProcessorPil, GitConfig, GitForCausalLM, GitProcessor

from neuroclips.mini.train_clip import tokenizer
from neuroclips.pretrained.keyframe import KeyframeGenerator
from neuroclips.video.neuroclips_pipeline import NeuroClipsPipeline

SHARED = dict(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=2)
SIDE = 4  # latents of 32-pixel frames


def write_generators(folder: Path) -> dict[str, str]:
    """Write them to ``folder``; returns the settings that name them."""
    torch.manual_seed(0)
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    blocks = dict(
        sample_size=SIDE, in_channels=16, out_channels=16, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **SHARED,
    )  # fmt: skip
    drawer = UNet2DConditionModel(cross_attention_dim=192, **blocks)
    KeyframeGenerator(drawer, None, scheduler, steps=2, guidance_scale=2).save_pretrained(folder / "keyframe")
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=4,
        use_motion_mid_block=False,
    )  # fmt: skip
    control = SparseControlNetModel(
        in_channels=16, conditioning_channels=16, motion_num_attention_heads=2, cross_attention_dim=128,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), **SHARED,
    )  # fmt: skip
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # zero-initialised layers too: the keyframe has a say
    unet = UNetMotionModel.from_unet2d(UNet2DConditionModel(cross_attention_dim=128, **blocks), adapter)
    pipeline = NeuroClipsPipeline(None, None, None, unet, scheduler, control, steps=3, guidance_scale=2)
    pipeline.save_pretrained(folder / "video")
    words = tokenizer()
    captioner = GitForCausalLM(
        GitConfig(
            vision_config=dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                               image_size=32, patch_size=16),
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=40, pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )
    )  # fmt: skip
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size=size, crop_size=size)
    captioner.save_pretrained(folder / "caption")
    GitProcessor(images, words).save_pretrained(folder / "caption")
    return {kind: str(folder / kind) for kind in ("video", "keyframe", "caption")}
