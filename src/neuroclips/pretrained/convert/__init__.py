"""Published checkpoints into folders that diffusers and transformers load: every key accounted for.

``CONVERTERS[name](sources, out)`` reads the original files of a model of the catalogue and writes the folder ``out``,
which appears when it is whole. It returns what the model's card should say: what became of every key of every source
(``names.Account``), the classes, and the number of parameters. ``dtype="fp16"`` halves the file where rounding is safe.

Nothing of a source is executed, and no source is ever in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

Sources = Mapping[str, Path]


class Converter(Protocol):
    """From the source files, by role, to a folder that does not exist yet; returns what its card should say."""

    def __call__(self, sources: Sources, out: Path, **options: Any) -> dict[str, Any]: ...


def write_sd_vae(sources: Sources, out: Path, **options: Any) -> dict[str, Any]:
    """``vae``: ``sd_image_var_autoenc.pth``, or any Stable Diffusion VAE file. See ``convert.vae``."""
    from neuroclips.pretrained.convert.vae import convert

    return convert(sources, out, **options)


def write_clip_bigg(sources: Sources, out: Path, **options: Any) -> dict[str, Any]:
    """``clip``: an open_clip file of ViT-bigG-14, or a folder of transformers. See ``convert.clip``."""
    from neuroclips.pretrained.convert.clip import convert

    return convert(sources, out, **options)


def write_sdxl_unclip(sources: Sources, out: Path, **options: Any) -> dict[str, Any]:
    """``checkpoint``: ``unclip6_epoch0_step110000.ckpt``. See ``convert.unclip``."""
    from neuroclips.pretrained.convert.unclip import convert

    return convert(sources, out, **options)


def write_animatediff(sources: Sources, out: Path, **options: Any) -> dict[str, Any]:
    """``base``, ``text``, ``motion``, ``adapter``, ``sparsectrl``. See ``convert.animatediff``."""
    from neuroclips.pretrained.convert.animatediff import convert

    return convert(sources, out, **options)


def write_mindeye2(sources: Sources, out: Path, **options: Any) -> dict[str, Any]:
    """``checkpoint``: MindEye2's ``last.pth``. See ``convert.mindeye2``."""
    from neuroclips.pretrained.convert.mindeye2 import convert

    return convert(sources, out, **options)


def write_text_projector(sources: Sources, out: Path, **options: Any) -> dict[str, Any]:
    """``projector``: ``coco_tokens_avg_proj.pth``. See ``convert.text``."""
    from neuroclips.pretrained.convert.text import convert

    return convert(sources, out, **options)


CONVERTERS: dict[str, Converter] = {
    "sd-vae": write_sd_vae, "clip-bigg": write_clip_bigg, "sdxl-unclip": write_sdxl_unclip,
    "animatediff": write_animatediff, "mindeye2": write_mindeye2,
    "text-projector": write_text_projector,
}  # fmt: skip
