"""OpenCLIP's towers into ``transformers.CLIPModel``.

The model expects what ViT-bigG-14 was trained with: GELU (transformers' default is an approximation of it), 16 heads in
the image tower and 20 in the text tower. Its tokenizer is not in a checkpoint.

MindEye2's weights were taught with tokens of images squeezed into [0.5, 1], (x + 1) / 2, so the folder's
``preprocessor_config.json`` says to squeeze, as means and deviations that do it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuroclips.artefacts import write_json
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.checkpoints import read_checkpoint
from neuroclips.pretrained.clip import CLIP_MEAN, CLIP_STD, SQUEEZED_MEAN, SQUEEZED_STD
from neuroclips.pretrained.convert.folders import Dtype, folder_aside, parameters, write_config, write_weights
from neuroclips.pretrained.convert.names import Place, best, converted, dropping, meta, renamed

BIGG: dict[str, Any] = dict(
    projection_dim=1280,
    vision_config=dict(
        hidden_size=1664, intermediate_size=8192, num_hidden_layers=48, num_attention_heads=16, image_size=224,
        patch_size=14, hidden_act="gelu", layer_norm_eps=1e-5, projection_dim=1280,
    ),
    text_config=dict(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, vocab_size=49408,
        max_position_embeddings=77, hidden_act="gelu", layer_norm_eps=1e-5, projection_dim=1280, bos_token_id=49406,
        eos_token_id=49407, pad_token_id=49407,
    ),
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")

_LAYERS = (
    (r"encoder\.layers\.(\d+)", r"transformer.resblocks.\1"), (r"layer_norm([12])", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"), (r"self_attn\.out_proj", "attn.out_proj"),
    (r"self_attn\.[qkv]_proj\.(weight|bias)", r"attn.in_proj_\1"),
)  # fmt: skip
_VISION = renamed(
    (r"^vision_model\.", "visual."), (r"embeddings\.class_embedding", "class_embedding"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"embeddings\.patch_embedding", "conv1"), (r"pre_layrnorm", "ln_pre"), (r"post_layernorm", "ln_post"),
    (r"^visual_projection\.weight", "visual.proj"), *_LAYERS,
)  # fmt: skip
_TEXT = renamed(
    (r"^text_model\.", ""), (r"embeddings\.token_embedding", "token_embedding"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"), (r"final_layer_norm", "ln_final"),
    (r"^text_projection\.weight", "text_projection"), *_LAYERS,
)  # fmt: skip


def of_open_clip(name: str) -> Place:
    """Where open_clip keeps a parameter of a ``CLIPModel``: q, k and v in one matrix, projections transposed."""
    rename = _VISION if name.startswith(("vision_model.", "visual_projection.")) else _TEXT
    if "_projection." in name:
        return Place(rename(name), "transposed")
    attention = name.partition("self_attn.")[2]
    if attention[:1] in tuple("qkv") and attention[1:].startswith("_proj"):
        return Place(rename(name), "third", "qkv".index(attention[0]))
    return Place(rename(name))


def of_transformers(name: str) -> Place:
    """transformers' own names."""
    return Place(name)


def convert(
    sources: Mapping[str, Path],
    out: Path,
    *,
    config: Mapping[str, Any] = BIGG,
    squeeze: bool = True,
    dtype: Dtype = "fp32",
) -> dict[str, Any]:
    """Write ``sources["clip"]``, a file of open_clip or a folder of transformers, as ``pretrained.clip.Clip`` reads it.

    The tokenizer's files come from the folder ``sources["tokenizer"]``, or from where the file lies; without any, the
    folder encodes no captions, and the card says so.

    config : arguments of ``CLIPConfig``; the default is ViT-bigG-14. It is written whatever a folder says: the heads
        and activations of the public one were reported wrong.
    squeeze : normalise images as MindEye2 did; False is as CLIP was trained.
    Raises ArtefactError for another layout.
    """
    from transformers import CLIPConfig, CLIPModel

    path = sources["clip"]
    model = meta(lambda: CLIPModel(CLIPConfig(**config)))
    tensors = _tensors(path)
    target = model.state_dict()
    rule = best(tensors, target, [of_open_clip, of_transformers])
    drop = dropping((r".*\.position_ids$", "counts from 0, recomputed"), (r"^attn_mask$", "causal mask, recomputed"))
    state, account = converted(tensors, target, rule, drop=drop)
    account.check(path, "the CLIP model that is written")
    beside = sources.get("tokenizer", path if path.is_dir() else path.parent)
    with folder_aside(out) as folder:
        write_weights(write_config(folder, model), state, dtype)
        mean, std = (SQUEEZED_MEAN, SQUEEZED_STD) if squeeze else (CLIP_MEAN, CLIP_STD)
        write_json(folder / "preprocessor_config.json", {"image_mean": mean, "image_std": std})
        copied = [name for name in TOKENIZER_FILES if (beside / name).is_file()]
        for name in copied:
            shutil.copyfile(beside / name, folder / name)
    return {
        "class": "transformers.CLIPModel", "parameters": parameters(model.parameters()), "dtype": dtype,
        "accounts": {"clip": account.card()}, "images": "squeezed into [0.5, 1]" if squeeze else "as CLIP expects",
        "tokenizer": f"copied from {beside.name}/" if copied else "none was found: put tokenizer.json beside the model",
    }  # fmt: skip


def _tensors(path: Path) -> dict[str, Any]:
    """Of one file, or of all shards in a folder."""
    if not path.is_dir():
        return read_checkpoint(path).tensors
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise ArtefactError(f"{path}: no model.safetensors; expected a folder of transformers, or a file of open_clip")
    return {name: value for file in files for name, value in read_checkpoint(file).tensors.items()}
