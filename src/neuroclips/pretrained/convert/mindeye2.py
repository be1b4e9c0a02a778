"""MindEye2's checkpoint into weights that semantics and prior start from.

What is taken: the map from the 4096 numbers of a subject's layer to tokens, the projector behind it, and the prior. The
subject's own layer and the branch for blurry images are left. So are the mixers between: at a sequence of one, as
everybody runs them, half of each block has no effect, and the other half adds one constant to all 4096 numbers (method
b.2), which is added to the bias of the map instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroclips.artefacts import write_json
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.checkpoints import read_checkpoint
from neuroclips.pretrained.convert.folders import Dtype, folder_aside, parameters, write_weights
from neuroclips.pretrained.convert.names import Account, Place, converted, dropping, renamed


@dataclass(frozen=True)
class Sizes:
    """Of MindEye2's networks; the defaults are the published ones. width : of the code that a subject's layer gives."""

    tokens: int = 256
    token_width: int = 1664
    width: int = 4096
    depth: int = 6
    heads: int = 32
    head_width: int = 52

    def semantics(self) -> dict[str, Tensor]:
        """Names and shapes of ``decoders.semantics.SemanticsNetwork`` behind its ``input`` and without blocks."""
        k, d = self.tokens, self.token_width
        gains = {f"projector.{i}.weight": (d,) for i in (0, 3, 6)}  # layer norms
        weights = {f"projector.{i}.weight": (d, d) for i in (2, 5, 8)}
        biases = {f"projector.{i}.bias": (d,) for i in (0, 2, 3, 5, 6, 8)}
        return _empty({"head.weight": (k * d, self.width), "head.bias": (k * d,), **gains, **weights, **biases})

    def prior(self) -> dict[str, Tensor]:
        """Names and shapes of ``decoders.prior.PriorNetwork``."""
        d, inner, heads = self.token_width, 2 * self.token_width, self.heads * self.head_width
        block = {
            "null_kv": (2, self.head_width), "norm_attn": (d,), "q.weight": (heads, d),
            "kv.weight": (2 * self.head_width, d), "out.weight": (d, heads), "norm_out": (d,), "norm_ff": (d,),
            "up.weight": (8 * d, d), "down.weight": (d, 4 * d),
        }  # fmt: skip
        return _empty(
            {
                **dict.fromkeys(("pos", "null_brain", "null_image"), (self.tokens, d)),
                "time.0.weight": (inner, d), "time.0.bias": (inner,), "time.2.weight": (inner, inner),
                "time.2.bias": (inner,), "time.4.weight": (d, inner), "time.4.bias": (d,),
                "rel.weight": (32, self.heads), "norm": (d,), "proj.weight": (d, d),
                **{f"blocks.{i}.{name}": shape for i in range(self.depth) for name, shape in block.items()},
            }
        )  # fmt: skip


def _empty(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


PUBLISHED = Sizes()
SEMANTICS = renamed((r"^head\.", "backbone.backbone_linear."), (r"^projector\.", "backbone.clip_proj."))
PRIOR = renamed(
    (r"^pos$", "learned_query"), (r"^null_brain$", "null_brain_embeds"), (r"^null_image$", "null_image_embed"),
    (r"^time\.0\.", "to_time_embeds.0.1.net.0.0."), (r"^time\.2\.", "to_time_embeds.0.1.net.1.0."),
    (r"^time\.4\.", "to_time_embeds.0.1.net.2."),
    (r"^rel\.weight$", "causal_transformer.rel_pos_bias.relative_attention_bias.weight"),
    (r"^norm$", "causal_transformer.norm.g"), (r"^proj\.", "causal_transformer.project_out."),
    (r"^blocks\.(\d+)\.", r"causal_transformer.layers.\1."),
    (r"\.norm_attn$", ".0.norm.g"), (r"\.norm_out$", ".0.to_out.1.g"), (r"\.norm_ff$", ".1.0.g"),
    (r"\.null_kv$", ".0.null_kv"), (r"\.(q|kv)\.weight$", r".0.to_\1.weight"),
    (r"\.out\.weight$", ".0.to_out.0.weight"), (r"\.up\.weight$", ".1.1.weight"),
    (r"\.down\.weight$", ".1.5.weight"), (r"^", "diffusion_prior.net."),
)  # fmt: skip
_DROP = dropping(
    (r"ridge\.", "the layer of another study's subjects"),
    (r"backbone\.mixer_blocks1\.", "no effect on a sequence of one"),
    (r"backbone\.mixer_blocks2\.", "one constant, added to the map's bias (or left, as asked)"),
    (r"backbone\.(blin1|bnorm|bdropout|bupsampler|b_maps_projector)\.", "MindEye2's branch for blurry images"),
    (r"diffusion_prior\.noise_scheduler\.", "noise schedule, recomputed"),
    (r"diffusion_prior\.net\..*\.rotary_emb\.freqs$", "rotary frequencies, recomputed"),
)


def rule(name: str) -> Place:
    """Where MindEye2 keeps a parameter of semantics or, with 'prior.' before it, of the prior."""
    return Place(PRIOR(name.removeprefix("prior.")) if name.startswith("prior.") else SEMANTICS(name))


def constant(source: Mapping[str, Tensor]) -> float:
    """What the mixers add to every number of the code: the sum over blocks of w2 gelu(w1 beta + b1) + b2.

    beta is the bias of a layer norm over one number, which is its output whatever comes in.
    """
    total, block = 0.0, 0
    while f"backbone.mixer_blocks2.{block}.0.bias" in source:
        at = f"backbone.mixer_blocks2.{block}"
        beta, w1, b1, w2, b2 = (
            source[f"{at}.{name}"].double().squeeze()
            for name in ("0.bias", "1.0.weight", "1.0.bias", "1.3.weight", "1.3.bias")
        )
        total += float(w2 * F.gelu(w1 * beta + b1) + b2)
        block += 1
    return total


def _check_rotary(source: Mapping[str, Tensor]) -> None:
    """Frequencies are parameters there, though never trained: 10000^(-2 i / width) of pair i. Ours are constants."""
    for name, value in source.items():
        if name.endswith("rotary_emb.freqs") and not value.is_meta:
            expected = 10_000.0 ** (-torch.arange(len(value)) / len(value))
            if not torch.allclose(value.float(), expected, atol=1e-3):
                raise ArtefactError(
                    f"{name} is {value[:3].tolist()} ...; expected {expected[:3].tolist()} ...: trained?"
                )


def networks(
    source: Mapping[str, Tensor], sizes: Sizes, *, fold: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor], Account]:
    """Parameters of semantics and of the prior, and the account of all keys.

    fold : add the mixers' constant, through the map, to its bias: bias + c * row sums of the weight.
    """
    _check_rotary(source)
    target = sizes.semantics() | {f"prior.{name}": value for name, value in sizes.prior().items()}
    state, account = converted(source, target, rule, drop=_DROP)
    if fold and state:
        weight, bias = state["head.weight"], state["head.bias"]
        rows = torch.cat([part.double().sum(1) for part in weight.split(4096)])  # some MB at a time
        state["head.bias"] = (bias.double() + constant(source) * rows).to(bias.dtype)
    prior = {name.removeprefix("prior."): value for name, value in state.items() if name.startswith("prior.")}
    semantics = {name: value for name, value in state.items() if not name.startswith("prior.")}
    return semantics, prior, account


def convert(
    sources: Mapping[str, Path], out: Path, *, sizes: Sizes = PUBLISHED, fold: bool = True, dtype: Dtype = "fp32"
) -> dict[str, Any]:
    """Write ``sources["checkpoint"]`` as ``semantics.safetensors`` and ``prior.safetensors``, with a card.

    The first fits ``SemanticsNetwork(..., blocks=0, projector="mlp")``, but for ``input``; the second ``PriorNetwork``.
    fold : see ``networks``. dtype : of semantics; the prior stays in float32, which its layer norms need.
    Raises ArtefactError for another layout, or rotary frequencies that are not the usual ones.
    """
    file = read_checkpoint(sources["checkpoint"])
    semantics, prior, account = networks(file.tensors, sizes, fold=fold)
    account.check(file.path, "MindEye2's networks")
    card = {
        "class": {
            "semantics": "neuroclips.decoders.semantics.SemanticsNetwork",
            "prior": "neuroclips.decoders.prior.PriorNetwork",
        },
        "config": {"semantics": {"blocks": 0, "projector": "mlp"}, "prior": {"schedule": "library"}},
        "parameters": {"semantics": parameters(semantics.values()), "prior": parameters(prior.values())},
        "dtype": dtype,
        "accounts": {"checkpoint": account.card()},
        "mixer_constant": constant(file.tensors),
        "folded": fold,
        "beside_the_weights": list(file.beside),
        "inert_names": list(file.inert),
    }
    with folder_aside(out) as folder:
        write_weights(folder / "semantics.safetensors", semantics, dtype)
        write_weights(folder / "prior.safetensors", prior)
        write_json(folder / "card.json", card)
    return card
