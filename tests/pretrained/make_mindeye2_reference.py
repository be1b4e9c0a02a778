"""Writes ``mindeye2_reference.safetensors``: what MindEye2's networks compute, under the names of its checkpoints.

dalle2-pytorch supplies the prior's parts and its sampler. MindEye2's arrangement of them, and its backbone with mixers
at a sequence of one, are restated here at tiny sizes; the branch for blurry images is left out. All axes differ in
size, and gains and biases are random.

Run it in an environment of its own, since the library wants packages that this one does not:

    pip install dalle2-pytorch==1.15.6 rotary-embedding-torch==0.5.3 safetensors
    python tests/pretrained/make_mindeye2_reference.py
"""

from pathlib import Path
from unittest import mock

import torch
from dalle2_pytorch.dalle2_pytorch import MLP, CausalTransformer, DiffusionPrior, SinusoidalPosEmb
from safetensors.torch import save_file
from torch import nn

CLIPS, VOXELS, WIDTH, TOKENS, TOKEN_WIDTH = 4, 7, 12, 3, 16
DEPTH, HEADS, HEAD_WIDTH, STEPS = 2, 5, 34, 20


def mixer(width):
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(0.15), nn.Linear(width, width)),
    )


class Backbone(nn.Module):
    """Four mixers, a map to tokens, and a projector on each token."""

    def __init__(self):
        super().__init__()
        self.mixer_blocks1 = nn.ModuleList(mixer(WIDTH) for _ in range(4))
        self.mixer_blocks2 = nn.ModuleList(mixer(1) for _ in range(4))
        self.backbone_linear = nn.Linear(WIDTH, TOKENS * TOKEN_WIDTH)
        layers = [nn.LayerNorm(TOKEN_WIDTH), nn.GELU(), nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH)]
        for _ in range(2):
            layers += [nn.LayerNorm(TOKEN_WIDTH), nn.GELU(), nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH)]
        self.clip_proj = nn.Sequential(*layers)

    def forward(self, x):
        """(B, 1, WIDTH) to tokens before and after the projector."""
        along, across = x, x.transpose(1, 2)
        for first, second in zip(self.mixer_blocks1, self.mixer_blocks2, strict=True):
            x = along = first(x) + along
            x = across = second(x.transpose(1, 2)) + across
            x = x.transpose(1, 2)
        tokens = self.backbone_linear(x.flatten(1)).reshape(-1, TOKENS, TOKEN_WIDTH)
        return tokens, self.clip_proj(tokens)


class PriorNetwork(nn.Module):
    """Condition, time, noisy tokens with a learned position; not causal; the last tokens are the output."""

    self_cond = False
    dim = TOKEN_WIDTH

    def __init__(self):
        super().__init__()
        self.learned_query = nn.Parameter(torch.randn(TOKENS, TOKEN_WIDTH))
        self.null_brain_embeds = nn.Parameter(torch.randn(TOKENS, TOKEN_WIDTH))
        self.null_image_embed = nn.Parameter(torch.randn(TOKENS, TOKEN_WIDTH))
        time = nn.Sequential(SinusoidalPosEmb(TOKEN_WIDTH), MLP(TOKEN_WIDTH, TOKEN_WIDTH))
        self.to_time_embeds = nn.Sequential(time)
        self.causal_transformer = CausalTransformer(
            dim=TOKEN_WIDTH, depth=DEPTH, dim_head=HEAD_WIDTH, heads=HEADS, rotary_emb=True
        )
        for attention, _ in self.causal_transformer.layers:
            attention.causal = False

    def forward(self, noisy, t, *, text_embed, self_cond=None):
        time = self.to_time_embeds(t.float())[:, None]
        return self.causal_transformer(torch.cat((text_embed, time, noisy + self.learned_query), dim=1))[:, -TOKENS:]

    def forward_with_cond_scale(self, noisy, t, *, cond_scale, **condition):
        assert cond_scale == 1
        return self(noisy, t, **condition)


class MindEye2(nn.Module):
    def __init__(self):
        super().__init__()
        self.ridge = nn.Module()
        self.ridge.linears = nn.ModuleList([nn.Linear(VOXELS, WIDTH)])
        self.backbone = Backbone()
        self.diffusion_prior = DiffusionPrior(
            PriorNetwork(), image_embed_dim=TOKEN_WIDTH, timesteps=100, condition_on_text_encodings=False
        )


@torch.no_grad()
def main():
    torch.manual_seed(0)
    model = MindEye2().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "freqs" not in name:
            parameter.add_(0.3 * torch.randn_like(parameter))
    voxels = torch.randn(CLIPS, VOXELS)
    code = model.ridge.linears[0](voxels)
    backbone_tokens, tokens = model.backbone(code[:, None])
    noise = torch.randn(STEPS - 1, CLIPS, TOKENS, TOKEN_WIDTH)
    draws = mock.Mock(side_effect=list(noise))
    with mock.patch("torch.randn", draws), mock.patch("torch.randn_like", draws):
        sample = model.diffusion_prior.p_sample_loop_ddim(noise[0].shape, {"text_embed": tokens}, timesteps=STEPS)
    assert draws.call_count == len(noise)
    out = {"code": code, "backbone_tokens": backbone_tokens, "tokens": tokens, "noise": noise, "sample": sample}
    out |= {f"source.{name}": value for name, value in model.state_dict().items()}
    save_file(
        {name: value.clone().contiguous() for name, value in out.items()},
        Path(__file__).parent / "mindeye2_reference.safetensors",
    )


if __name__ == "__main__":
    main()
