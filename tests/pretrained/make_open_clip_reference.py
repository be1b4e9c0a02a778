"""Writes ``open_clip_reference.safetensors``: what open_clip computes with tiny towers of random weights.

Weights are under open_clip's names. All axes differ in size, and gains and biases are random. Images enter as they do
in MindEye2's embedder, once as they are and once squeezed into [0.5, 1].

Run it in an environment of its own, since the library wants packages that this one does not:

    pip install open_clip_torch==3.3.0 safetensors
    python tests/pretrained/make_open_clip_reference.py
"""

from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
START, END = 17, 18  # the last two words, as in CLIP's vocabulary


@torch.no_grad()
def main():
    torch.manual_seed(0)
    vision = dict(layers=2, width=24, head_width=8, mlp_ratio=1.5, patch_size=4, image_size=12, output_tokens=True)
    text = dict(context_length=7, vocab_size=19, width=16, heads=2, layers=3)
    model = CLIP(10, vision, text).eval()
    for name, parameter in model.named_parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.normal_(std=2 * spread)
        if name.endswith("weight") and "ln_" in name:
            parameter.add_(1)
    images = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8)
    x = images / 255
    words = torch.tensor([[START, 3, END, 0, 0, 0, 0], [START, 5, 6, 7, 8, END, 0]])
    pooled, tokens = model.visual((x - MEAN) / STD)
    _, squeezed = model.visual(((x + 1) / 2 - MEAN) / STD)
    out = {
        "images": images,
        "tokens": tokens,
        "tokens_squeezed": squeezed,
        "pooled": pooled,
        "words": words,
        "text": model.encode_text(words),
    }
    out |= {f"source.{name}": value for name, value in model.state_dict().items()}
    save_file(
        {name: value.clone().contiguous() for name, value in out.items()},
        Path(__file__).parent / "open_clip_reference.safetensors",
    )


if __name__ == "__main__":
    main()
