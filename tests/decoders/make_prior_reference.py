"""Writes ``prior_reference.safetensors``: what dalle2-pytorch computes with MindEye2's arrangement of its parts.

The library supplies every part: time embedding, blocks, norms, noise schedule and sampler. MindEye2 changed their
arrangement, which is restated here: as many condition tokens as noisy ones, a learned position added to the noisy
tokens, attention that is not causal, and the last tokens as output. All axes differ in size, and gains are random.

Run it in an environment of its own, since the library wants packages that this one does not:

    pip install dalle2-pytorch==1.15.6 rotary-embedding-torch==0.5.3 safetensors
    python tests/decoders/make_prior_reference.py
"""

from pathlib import Path
from unittest import mock

import torch
from dalle2_pytorch.dalle2_pytorch import MLP, CausalTransformer, DiffusionPrior, RelPosBias, SinusoidalPosEmb
from safetensors.torch import save_file
from torch import nn

CLIPS, TOKENS, WIDTH, DEPTH, HEADS, HEAD_WIDTH, TIMESTEPS, STEPS = 3, 5, 16, 2, 4, 34, 100, 20


class ArrangedNetwork(nn.Module):
    """The library's parts in MindEye2's order: condition, time, noisy tokens with position."""

    self_cond = False
    dim = WIDTH

    def __init__(self):
        super().__init__()
        self.pos = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.null_brain = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.null_image = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.sinusoid, self.mlp = SinusoidalPosEmb(WIDTH), MLP(WIDTH, WIDTH)
        self.transformer = CausalTransformer(dim=WIDTH, depth=DEPTH, dim_head=HEAD_WIDTH, heads=HEADS)
        for attention, _ in self.transformer.layers:
            attention.causal = False

    def forward(self, noisy, t, *, text_embed, drop_condition=None, drop_noisy=None, self_cond=None):
        none = torch.zeros(len(noisy), dtype=torch.bool)
        condition = torch.where(
            (none if drop_condition is None else drop_condition)[:, None, None], self.null_brain, text_embed
        )
        noisy = torch.where((none if drop_noisy is None else drop_noisy)[:, None, None], self.null_image, noisy)
        time = self.mlp(self.sinusoid(t.float()))[:, None]
        return self.transformer(torch.cat((condition, time, noisy + self.pos), dim=1))[:, -TOKENS:]

    def forward_with_cond_scale(self, noisy, t, *, cond_scale, **condition):
        x0, dropped = self(noisy, t, **condition), torch.ones(len(noisy), dtype=torch.bool)
        null = self(noisy, t, drop_condition=dropped, drop_noisy=dropped, **condition)
        return x0 if cond_scale == 1 else null + cond_scale * (x0 - null)

    def renamed(self):
        """Weights under the names of ``neuroclips.decoders.prior.PriorNetwork``."""
        ours = {"pos": self.pos, "null_brain": self.null_brain, "null_image": self.null_image}
        for ours_i, theirs in (("0", self.mlp.net[0][0]), ("2", self.mlp.net[1][0]), ("4", self.mlp.net[2])):
            ours |= {f"time.{ours_i}.weight": theirs.weight, f"time.{ours_i}.bias": theirs.bias}
        ours["rel.weight"] = self.transformer.rel_pos_bias.relative_attention_bias.weight
        for i, (attention, feed_forward) in enumerate(self.transformer.layers):
            ours |= {
                f"blocks.{i}.null_kv": attention.null_kv,
                f"blocks.{i}.norm_attn": attention.norm.g,
                f"blocks.{i}.q.weight": attention.to_q.weight,
                f"blocks.{i}.kv.weight": attention.to_kv.weight,
                f"blocks.{i}.out.weight": attention.to_out[0].weight,
                f"blocks.{i}.norm_out": attention.to_out[1].g,
                f"blocks.{i}.norm_ff": feed_forward[0].g,
                f"blocks.{i}.up.weight": feed_forward[1].weight,
                f"blocks.{i}.down.weight": feed_forward[5].weight,
            }
        return ours | {"norm": self.transformer.norm.g, "proj.weight": self.transformer.project_out.weight}


@torch.no_grad()
def main():
    torch.manual_seed(0)
    network = ArrangedNetwork().eval()
    for name, parameter in network.named_parameters():
        if name.endswith(".g"):
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
    network.transformer.project_out.weight.mul_(2)  # outputs of order 1
    shape = (CLIPS, TOKENS, WIDTH)
    prior = DiffusionPrior(network, image_embed_dim=WIDTH, timesteps=TIMESTEPS, condition_on_text_encodings=False)
    condition, noisy, tokens = torch.randn(3, *shape)
    t = torch.tensor([0, 37, 99])
    some, other = torch.tensor([True, False, True]), torch.tensor([False, True, True])
    noise = torch.randn(STEPS - 1, *shape)
    out = {
        "condition": condition,
        "noisy": noisy,
        "t": t,
        "x0": network(noisy, t, text_embed=condition),
        "drop_condition": some,
        "drop_noisy": other,
        "x0_dropped": network(noisy, t, text_embed=condition, drop_condition=some, drop_noisy=other),
        "tokens": tokens,
        "noised": prior.noise_scheduler.q_sample(tokens, t, noise[0]),
        "alphas_cumprod": prior.noise_scheduler.alphas_cumprod,
        "buckets": RelPosBias._relative_position_bucket(-torch.arange(514)),
        "noise": noise,
    }
    for name, arguments in (
        ("sample", {}),
        ("sample_guided", {"cond_scale": 1.5}),
        ("sample_eta", {"eta": 0.5}),
    ):
        draws = mock.Mock(side_effect=list(noise))
        with mock.patch("torch.randn", draws), mock.patch("torch.randn_like", draws):
            out[name] = prior.p_sample_loop_ddim(shape, {"text_embed": condition}, timesteps=STEPS, **arguments)
        assert draws.call_count == len(noise)
    out |= {f"network.{name}": weight for name, weight in network.renamed().items()}
    save_file(
        {name: value.contiguous() for name, value in out.items()}, Path(__file__).parent / "prior_reference.safetensors"
    )


if __name__ == "__main__":
    main()
