"""Clips a minute of ``NeuroClipsPipeline``, against diffusers' own pipeline called clip by clip.

    python benchmarks/video.py                                  # the mini models' size, on two cores: minutes
    python benchmarks/video.py --curves                         # and the cost over frames, steps and batch
    python benchmarks/video.py --size paper --device cuda --dtype bf16 --clips 8 --curves --json video.json

Weights are random and the same on both sides; prompts and keyframes differ from clip to clip. Without a blurry video
and with diffusers' group norm both sides do the same, and the script stops if their videos differ (float32). Then
what only ours does: per-frame norm, a blurry video at strength 0.7, and several seeds of a clip. Seconds are the
quickest of ``--repeats`` runs after one to warm up; memory is torch's peak (CUDA) or the process's (CPU).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import (
    AnimateDiffSparseControlNetPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
    UNetMotionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from neuroclips.video.neuroclips_pipeline import NeuroClipsPipeline

SIZES = {  # text width, words, UNet's widths, layers a block, autoencoder's widths, attention heads, groups, pixels
    "mini": (128, 32, (96,), 1, (24, 48, 128, 192), 4, 8, 64),
    "paper": (768, 77, (320, 640, 1280, 1280), 2, (128, 256, 512, 512), 8, 32, 256),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FRAMES, STEPS, SCALE = 16, 25, 8.5


def words(longest: int) -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(["<pad>", "<unk>", "<start>", "<end>", *(f"w{i}" for i in range(45))])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>",
        model_max_length=longest,
    )  # fmt: skip


def build(size: str, device: str, dtype: torch.dtype) -> dict:
    """The parts of both pipelines, with random weights."""
    text, longest, widths, layers, vae_widths, heads, groups, pixels = SIZES[size]
    levels, attended = len(widths), max(1, len(widths) - 1)  # the coarsest of several levels has no attention
    shared = dict(norm_num_groups=groups, cross_attention_dim=text, layers_per_block=layers)
    torch.manual_seed(0)
    with torch.device(device):
        vae = AutoencoderKL(
            block_out_channels=vae_widths, down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=layers, norm_num_groups=groups,
            sample_size=pixels, scaling_factor=0.18215,
        )  # fmt: skip
        torch.nn.init.zeros_(vae.quant_conv.weight[4:])  # no posterior variance: upstream samples, ours takes the mode
        torch.nn.init.constant_(vae.quant_conv.bias[4:], -30.0)
        encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=text, intermediate_size=4 * text, num_hidden_layers=12 if size == "paper" else 3,
                num_attention_heads=12 if size == "paper" else 4, max_position_embeddings=longest, vocab_size=49_408,
                bos_token_id=2, eos_token_id=3, pad_token_id=0,
            )
        )  # fmt: skip
        image = UNet2DConditionModel(
            sample_size=pixels // 8, block_out_channels=widths, attention_head_dim=heads,
            down_block_types=("CrossAttnDownBlock2D",) * attended + ("DownBlock2D",) * (levels - attended),
            up_block_types=("UpBlock2D",) * (levels - attended) + ("CrossAttnUpBlock2D",) * attended, **shared,
        )  # fmt: skip
        adapter = MotionAdapter(
            block_out_channels=widths, motion_layers_per_block=layers, motion_num_attention_heads=heads,
            motion_norm_num_groups=groups, use_motion_mid_block=False,
        )  # fmt: skip
        control = SparseControlNetModel(
            in_channels=4, conditioning_channels=4, block_out_channels=widths, attention_head_dim=heads,
            motion_num_attention_heads=heads,
            down_block_types=("CrossAttnDownBlockMotion",) * attended + ("DownBlockMotion",) * (levels - attended),
            **shared,
        )  # fmt: skip
        for name, parameter in control.named_parameters():  # zero at first, and then without effect
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond")):
                torch.nn.init.normal_(parameter, std=0.02)
        unet = UNetMotionModel.from_unet2d(image, adapter)
    parts = {"vae": vae, "text_encoder": encoder, "unet": unet, "controlnet": control}
    parts = {name: part.to(device, dtype).eval() for name, part in parts.items()}
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
                              clip_sample=False)  # fmt: skip
    return {**parts, "tokenizer": words(longest), "scheduler": scheduler}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--clips", type=int, default=8, help="at a time, in ours")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device, cuda, pixels = options.device, options.device == "cuda", SIZES[options.size][-1]
    parts = build(options.size, device, DTYPES[options.dtype])
    ours = NeuroClipsPipeline(**parts, frame_norm=False)
    upstream = AnimateDiffSparseControlNetPipeline(**parts, motion_adapter=None)
    for pipeline in (ours, upstream):
        pipeline.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(1)
    most = max(options.clips, 16)
    images = torch.rand(most, 1, 3, pixels, pixels, generator=draw)
    blurry = torch.rand(most, 6, 3, pixels, pixels, generator=draw)
    prompts = [" ".join(f"w{(7 * clip + k) % 45}" for k in range(12)) for clip in range(most)]

    def seeded(n: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(n)]

    def make(n: int, *, seeds: int = 1, frames: int = FRAMES, steps: int = STEPS, given: bool = False) -> torch.Tensor:
        more = {"blurry": blurry[:n], "strength": 0.7} if given else {}
        return ours(
            prompts[:n], keyframes=images[:n], generators=seeded(n * seeds), frames=frames, steps=steps,
            size=(pixels, pixels), guidance_scale=SCALE, output="float", **more,
        )  # fmt: skip

    def one_by_one(n: int) -> torch.Tensor:
        videos = []
        for clip in range(n):
            videos.append(
                upstream(
                    prompts[clip], height=pixels, width=pixels, num_frames=FRAMES, num_inference_steps=STEPS,
                    guidance_scale=SCALE, conditioning_frames=images[clip], controlnet_frame_indices=[0],
                    generator=torch.Generator().manual_seed(clip), output_type="pt",
                ).frames
            )  # fmt: skip
        return torch.cat(videos).float()

    def measure(what: str, work: Callable[[], torch.Tensor], videos: int) -> dict:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(1 + options.repeats):
            start = time.perf_counter()
            found = work()
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
        quickest = min(seconds[1:])
        row = {
            "what": what,
            "videos": videos,
            "seconds": quickest,
            "a_minute": 60 * videos / quickest,
            "peak_gib": peak,
        }
        memory = "" if peak is None else f"{peak:7.2f} GiB"
        print(f"{what:44} {quickest:8.2f} s {row['a_minute']:8.1f} videos a minute {memory}", flush=True)
        return {**row, "found": found}

    counts = {name: sum(p.numel() for p in parts[name].parameters()) for name in ("unet", "controlnet", "vae")}
    print(f"{options.size}, {options.dtype}, {counts}", flush=True)
    n = options.clips
    rows = [measure("diffusers' pipeline, clip by clip", lambda: one_by_one(n), n),
            measure(f"ours, {n} clips at a time", lambda: make(n), n)]  # fmt: skip
    difference = float((rows[0]["found"] - rows[1]["found"]).abs().max())
    print(f"largest difference of a pixel in [0, 1]: {difference:.1e}")
    if options.dtype == "fp32" and difference > 1e-2:
        raise SystemExit("the two disagree: void")
    print(f"ratio of clips a minute: {rows[1]['a_minute'] / rows[0]['a_minute']:.2f}")
    ours.__init__(**parts)  # per-frame norm from here on
    ours.set_progress_bar_config(disable=True)
    rows.append(measure("per-frame norm", lambda: make(n), n))
    rows.append(measure("and blurry video at strength 0.7", lambda: make(n, given=True), n))
    few = max(1, n // 4)
    rows.append(measure(f"and {few} clips, 4 seeds each", lambda: make(few, seeds=4, given=True), 4 * few))
    rows.append(measure("one clip", lambda: make(1, given=True), 1))
    if options.curves:
        for frames in (8, 16, 32):
            rows.append(measure(f"{frames} frames", lambda frames=frames: make(n, frames=frames, given=True), n))
        for steps in (5, 10, 25, 50):
            rows.append(measure(f"{steps} steps", lambda steps=steps: make(n, steps=steps, given=True), n))
        for clips in (1, 2, 4, 8, 16):
            rows.append(measure(f"batch {clips}", lambda clips=clips: make(clips, given=True), clips))
    if not cuda:
        print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if options.json:
        about = {
            "size": options.size, "dtype": options.dtype, "parameters": counts, "difference": difference,
            "device": torch.cuda.get_device_name() if cuda else platform.processor(),
            "versions": {name: version(name) for name in ("torch", "diffusers")},
        }  # fmt: skip
        kept = [{k: v for k, v in row.items() if k != "found"} for row in rows]
        options.json.write_text(json.dumps({**about, "rows": kept}, indent=1))


if __name__ == "__main__":
    main()
