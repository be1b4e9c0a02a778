"""A study of CC2017's full size through targets and one epoch of the end-to-end decoders, on a machine without a GPU.

    python benchmarks/full_size.py DATA RUN        DATA: CC2017, real or simulated (``cc2017.py`` leaves one)

4,320 training and validation and 1,200 test clips, thousands of voxels, and targets of the paper's shapes: 256 tokens
of 1664 of two keyframes, six latents of 4 x 28 x 28. The frozen networks have these shapes, next to no layers and
random weights: their tokens and latents mean nothing, but arrays, training, validation and checkpoints are of full
size. The decoders have width 256 in place of 4096, and no prior (days on a CPU). Prints time, memory and files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPConfig, CLIPModel

from neuroclips import pipeline
from neuroclips.pretrained.registry import shipped
from neuroclips.recipe import load_recipe


def frozen(folder: Path) -> dict[str, str]:
    """An autoencoder and a CLIP with the paper's shapes and hardly a layer."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=224,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    config = CLIPConfig(
        vision_config=dict(hidden_size=1664, intermediate_size=64, num_hidden_layers=0, num_attention_heads=16,
                           image_size=224, patch_size=14, hidden_act="gelu"),
        text_config=dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4),
        projection_dim=1280,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder / "clip")
    for file in shipped("clip").glob("*token*"):
        (folder / "clip" / file.name).write_bytes(file.read_bytes())
    return {"targets.vae": str(folder / "vae"), "targets.clip": str(folder / "clip"), "targets.captions": None}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--width", type=int, default=256)
    given = arguments.parse_args()
    networks = {"width": given.width, "prior_depth": 0, "initial": None, "text_projector": None, "precision": "no"}
    changes = {
        "data.root": str(given.data), "data.subject": 1, **frozen(given.run / "frozen"), "targets.dtype": "fp32",
        "decoders.methods": ["end-to-end"], "decoders.networks": networks, "decoders.epochs": 1, "generate.video": None,
    }  # fmt: skip
    cards = pipeline.run(load_recipe("cc2017", changes), given.run, until="fit")
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, card in cards.items():
        size = sum(file["bytes"] for file in card["files"].values()) / 1e9
        print(f"{name:12} {card['seconds']:8.0f} s  {card['peak_memory_gb']:6.1f} GB memory  {size:6.2f} GB files")
    print(json.dumps(cards["fit"]["summary"]["end-to-end"]["training"], indent=1)[:1500])


if __name__ == "__main__":
    main()
