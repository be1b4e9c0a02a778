"""The networks of a recipe without their weights, and what each takes: those that are trained, and the frozen ones.

Sizes of frozen networks are read from their folders where they are here, and known for those of ``neuroclips models``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neuroclips.artefacts import read_json
from neuroclips.decoders.text import TextProjector
from neuroclips.errors import ArtefactError, RecipeError
from neuroclips.planning.ghost import PRECISIONS, Cost, count, ghost, inference_cost, like, training_cost
from neuroclips.pretrained.catalogue import published
from neuroclips.pretrained.registry import resolve
from neuroclips.recipe import NetworksRecipe
from neuroclips.training.decoders import AT_ONCE
from neuroclips.training.end_to_end import build_networks
from neuroclips.training.objectives import (
    PerceptionBatch,
    PerceptionObjective,
    PriorBatch,
    PriorObjective,
    SemanticsBatch,
    SemanticsObjective,
)
from neuroclips.training.switches import Switches

Trained = Literal["semantics", "prior", "perception"]
VAE_BATCH, CLIP_BATCH, CAPTIONS, WORDS = (
    64,
    128,
    32,
    30,
)  # pictures at a time, and words of a caption, as the classes have
FUSED_FROM = 50_000_000  # parameters from which AdamW is the fused one on a CPU, too


@dataclass(frozen=True)
class Sizes:
    """Shapes of a run. voxels : X, all lags together. tokens (K, D); latents (F, C, h, w); text : width of captions'
    embeddings, None without captions; frame : pixels."""

    voxels: int
    tokens: tuple[int, int]
    latents: tuple[int, int, int, int]
    text: int | None
    frame: int


# --- networks that are trained ----------------------------------------------------------------------------------------


_OF_PRIOR = {"prior_depth", "prior_heads", "prior_head_width", "prior_steps", "checkpoint_activations"}
_OF_ALL = {"initial", "precision", "accumulate"}


def own_settings(part: Trained, networks: NetworksRecipe) -> NetworksRecipe:
    """The settings that change a part; the others at their defaults, so that it is walked through once."""
    kept = _OF_ALL | (_OF_PRIOR if part == "prior" else set(NetworksRecipe.model_fields) - _OF_PRIOR)
    return NetworksRecipe(**networks.model_dump(include=kept))


@cache
def training(part: Trained, networks: NetworksRecipe, sizes: Sizes, chosen: Switches, batch: int, gpu: bool) -> Cost:
    """An optimiser step of one of the three networks on ``batch`` clips, inputs included."""
    module = _built(part, networks, sizes, chosen)
    objective, given = _batch(part, sizes, chosen, batch, like)
    inner = getattr(module, "network", module)
    if hasattr(inner, "checkpoint_activations"):
        inner.checkpoint_activations = networks.checkpoint_activations
    return training_cost(
        module, lambda: objective.loss(module, given, torch.Generator())[0], batch, precision=networks.precision,
        given=given, parts=networks.accumulate, like_a_gpu=gpu, fused_adamw=gpu or count(module) >= FUSED_FROM,
    )  # fmt: skip


def real_step(
    part: Trained, networks: NetworksRecipe, sizes: Sizes, chosen: Switches, batch: int, device: str
) -> tuple[nn.Module, tuple[Callable[[], None], Callable[[], None]]]:
    """The network with random weights, and two calls: forward and backward of a random batch, and AdamW."""
    with torch.device(device):
        module = getattr(build_networks(networks, sizes.voxels, sizes.tokens, sizes.latents, chosen), part)
        objective, given = _batch(part, sizes, chosen, batch, lambda *shape: torch.randn(shape, device=device))
    optimizer, kind = torch.optim.AdamW(module.parameters(), fused=True), PRECISIONS[networks.precision]

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        module.zero_grad()
        with torch.autocast(device, kind, enabled=kind != torch.float32):
            loss = objective.loss(module, given, torch.Generator())[0]
        loss.backward()
        wait()

    def update() -> None:
        optimizer.step()
        wait()

    return module, (forward, update)


def _batch(part: Trained, sizes: Sizes, chosen: Switches, batch: int, make: Callable[..., Tensor]) -> tuple[Any, Any]:
    """An objective without data, for its loss alone, and a batch for it."""
    (k, d), text = sizes.tokens, None
    objective = object.__new__(_OBJECTIVES[part])
    objective.switches, objective.codes, objective.variance, objective.projector = chosen, False, 1.0, None
    objective.mean, objective.sd, objective.released = torch.zeros(()), 1.0, False
    if sizes.text is not None and part != "perception":
        text, objective.projector = make(batch, sizes.text), TextProjector(d, sizes.text).requires_grad_(False)
    if part == "semantics":
        return objective, SemanticsBatch(make(batch, sizes.voxels), make(batch, k, d), text, None)
    if part == "prior":
        return objective, PriorBatch(make(batch, k, d), make(batch, k, d), text)
    return objective, PerceptionBatch(make(batch, sizes.voxels), make(batch, *sizes.latents), None, None)


@cache
def decoding(part: Trained, networks: NetworksRecipe, sizes: Sizes, chosen: Switches, draws: int, gpu: bool) -> Cost:
    """What a trained network takes to decode ``AT_ONCE`` clips in float32; the prior has ``draws`` of each."""
    module = _built(part, networks, sizes, chosen)
    if part == "prior":
        rows = AT_ONCE * draws
        t = torch.zeros(rows, dtype=torch.long)
        return inference_cost(
            module, lambda: module.network(like(rows, *sizes.tokens), t, like(rows, *sizes.tokens)), AT_ONCE,
            like_a_gpu=gpu,
        )  # fmt: skip
    return inference_cost(module, lambda: module(like(AT_ONCE, sizes.voxels)), AT_ONCE, like_a_gpu=gpu)


def _built(part: Trained, networks: NetworksRecipe, sizes: Sizes, chosen: Switches) -> Any:
    return ghost(lambda: getattr(build_networks(networks, sizes.voxels, sizes.tokens, sizes.latents, chosen), part))


_OBJECTIVES: dict[str, Any] = {
    "semantics": SemanticsObjective, "prior": PriorObjective, "perception": PerceptionObjective,
}  # fmt: skip


# --- frozen networks --------------------------------------------------------------------------------------------------


def is_here(name: str, kind: str, holds: str = "config.json") -> bool:
    """Whether the weights of a frozen network are here."""
    try:
        resolve(name, kind, holds=holds)
    except ArtefactError:
        return False
    return True


@cache
def config(name: str, kind: str, part: str = "") -> dict[str, Any]:
    """Sizes of a frozen network, by the words of diffusers or transformers.

    Raises ``RecipeError`` for one that is neither here nor known.
    """
    holds = "config.json" if kind in ("vae", "clip", "caption") else "model_index.json"
    try:
        path = resolve(name, kind, holds=holds) / part / "config.json"
        if path.exists():
            return read_json(path)
        if part:
            return {}
    except ArtefactError as error:
        if name not in published():
            raise RecipeError(f"targets and generate: {error}") from error
    return _known().get((name, part), {})


def _known() -> dict[tuple[str, str], dict[str, Any]]:
    from neuroclips.pretrained.convert import animatediff, clip, stable_diffusion, unclip, vae

    opt = dict(
        model_type="opt", hidden_size=2560, num_hidden_layers=32, ffn_dim=10240, num_attention_heads=32,
        vocab_size=50304, word_embed_proj_dim=2560,
    )  # fmt: skip
    git = dict(
        vision_config=dict(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
            patch_size=14,
        )
    )  # fmt: skip
    return {
        ("sd-vae", ""): vae.STABLE_DIFFUSION, ("clip-bigg", ""): {"model_type": "clip", **clip.BIGG},
        ("sdxl-unclip", "unet"): unclip.UNET, ("sdxl-unclip", "vae"): unclip.VAE,
        ("animatediff", "unet"): {**stable_diffusion.UNET, "sample_size": 32, "motion": animatediff.MOTION},
        ("animatediff", "controlnet"): animatediff.SPARSECTRL, ("animatediff", "vae"): stable_diffusion.VAE,
        ("animatediff", "text_encoder"): stable_diffusion.TEXT,
        ("blip2", ""): {"model_type": "blip-2", "text_config": opt}, ("git-large", ""): {"model_type": "git", **git},
    }  # fmt: skip


def token_shape(clip: str) -> tuple[int, int]:
    """(K, D) of a CLIP."""
    vision = config(clip, "clip")["vision_config"]
    return (vision.get("image_size", 224) // vision["patch_size"]) ** 2, vision["hidden_size"]


def latent_shape(vae: str, frame: int) -> tuple[int, int, int]:
    """(C, h, w) of a VAE's latents."""
    about = config(vae, "vae")
    side = frame // 2 ** (len(about["block_out_channels"]) - 1)
    return about["latent_channels"], side, side


def _diffusers(name: str, about: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    import diffusers

    kept = {key: value for key, value in about.items() if not key.startswith("_")}
    return ghost(lambda: getattr(diffusers, name)(**kept), dtype)


@cache
def vae(name: str, kind: str, direction: Literal["encode", "decode"], frame: int, batch: int, precision: str,
        gpu: bool) -> Cost:  # fmt: skip
    """An autoencoder on ``batch`` pictures of ``frame`` pixels. kind : of the folder that it is in."""
    about = config(name, kind, "" if kind == "vae" else "vae")
    model, dtype = _diffusers("AutoencoderKL", about, PRECISIONS[precision]), PRECISIONS[precision]
    side = frame // 2 ** (len(about["block_out_channels"]) - 1)
    if direction == "encode":
        return inference_cost(model, lambda: model.encode(like(batch, 3, frame, frame, dtype=dtype)).latent_dist.mode(),
                              batch, like_a_gpu=gpu)  # fmt: skip
    z = like(batch, about["latent_channels"], side, side, dtype=dtype)
    return inference_cost(model, lambda: model.decode(z).sample, batch, like_a_gpu=gpu)


@cache
def clip(name: str, batch: int, precision: str, gpu: bool) -> Cost:
    """CLIP's image tower on ``batch`` pictures; weights are those of both towers."""
    from transformers import CLIPConfig, CLIPModel

    about = {key: value for key, value in config(name, "clip").items() if key != "model_type"}
    dtype, side = PRECISIONS[precision], about["vision_config"].get("image_size", 224)
    model: Any = ghost(lambda: CLIPModel(CLIPConfig(**about)), dtype)
    x = like(batch, 3, side, side, dtype=dtype)
    return inference_cost(model, lambda: model.vision_model(pixel_values=x), batch, like_a_gpu=gpu)


@cache
def captioner(name: str, precision: str, gpu: bool) -> Cost:
    """A captioner on ``CAPTIONS`` pictures: its image tower, and ``WORDS`` words written on top of the picture's."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    dtype, about = PRECISIONS[precision], dict(config(name, "caption"))
    settings = AutoConfig.for_model(about.pop("model_type"), **about)
    model: Any = ghost(lambda: AutoModelForImageTextToText.from_config(settings), dtype)
    seen = settings.vision_config
    tower = model.vision_model if hasattr(model, "vision_model") else model.git.image_encoder
    x = like(CAPTIONS, 3, seen.image_size, seen.image_size, dtype=dtype)
    cost = inference_cost(model, lambda: tower(pixel_values=x), CAPTIONS, like_a_gpu=gpu)
    writing = 2.0 * (cost.parameters - count(tower)) * CAPTIONS * (WORDS + 32)
    return Cost(cost.parameters, 0, cost.weights, cost.peak, cost.flops + writing, CAPTIONS)


@cache
def keyframes(name: str, vae_name: str, batch: int, precision: str, gpu: bool) -> tuple[Cost, int]:
    """The keyframe generator on ``batch`` clips, and how many steps it takes; flops are of all steps and decoding."""
    about, dtype = config(name, "keyframe", "unet"), PRECISIONS[precision]
    unet = _diffusers("UNet2DConditionModel", about, dtype)
    own = ("keyframe", name) if config(name, "keyframe", "vae") else ("vae", vae_name)
    factor = 2 ** (len(config(own[1], own[0], "vae" if own[0] == "keyframe" else "")["block_out_channels"]) - 1)
    side, width, rows = about["sample_size"], about["cross_attention_dim"], 2 * batch
    words = token_count(name, about)
    added = None
    if about.get("addition_embed_type") == "text_time":
        added = {"text_embeds": like(rows, 0, dtype=dtype), "time_ids": like(rows, 4, dtype=dtype)}
    x = like(rows, about["in_channels"], side, side, dtype=dtype)
    step = inference_cost(
        unet, lambda: unet(x, torch.tensor(1), encoder_hidden_states=like(rows, words, width, dtype=dtype),
                           added_cond_kwargs=added).sample, batch, like_a_gpu=gpu,
    )  # fmt: skip
    paint = vae(own[1], own[0], "decode", side * factor, 1, "no", gpu)  # in float32, one at a time
    steps = _setting(name, "keyframe", "steps", 38)
    flops = steps * step.flops + batch * paint.flops
    weights = step.weights + (paint.weights if own[0] == "keyframe" else 0)
    peak = weights + max(step.activations, paint.activations)
    return Cost(step.parameters + paint.parameters, 0, weights, peak, flops, batch), steps


def token_count(name: str, about: dict[str, Any]) -> int:
    """Tokens that a keyframe generator reads."""
    return 256 if about["cross_attention_dim"] == 1664 else 16


def _setting(name: str, kind: str, key: str, published_value: int) -> int:
    try:
        return read_json(resolve(name, kind, holds="model_index.json") / "model_index.json").get(key) or published_value
    except ArtefactError:
        return published_value


@cache
def video(
    name: str, vae_name: str, batch: int, frames: int, precision: str, gpu: bool, offload: bool
) -> tuple[Cost, int]:
    """The video generator on ``batch`` clips under guidance, and its steps; flops are of one step, and decoding in
    ``items`` frames is not among them."""
    from neuroclips.video.norm import use_frame_norm

    dtype, about = PRECISIONS[precision], dict(config(name, "video", "unet"))
    motion = about.pop("motion", None)
    if motion is not None:  # an image UNet, and the motion modules that go into it
        kinds = {"CrossAttnDownBlock2D": "CrossAttnDownBlockMotion", "DownBlock2D": "DownBlockMotion",
                 "CrossAttnUpBlock2D": "CrossAttnUpBlockMotion", "UpBlock2D": "UpBlockMotion"}  # fmt: skip
        for key in ("down_block_types", "up_block_types"):
            about[key] = tuple(kinds[kind] for kind in about[key])
        about |= {"num_attention_heads": about.pop("attention_head_dim"), "use_motion_mid_block": False,
                  "motion_num_attention_heads": motion["motion_num_attention_heads"]}  # fmt: skip
    unet = _diffusers("UNetMotionModel", about, dtype)
    control = _diffusers("SparseControlNetModel", config(name, "video", "controlnet"), dtype)
    for part in (unet, control):
        use_frame_norm(part)
    side, channels, width = unet.config.sample_size, unet.config.in_channels, unet.config.cross_attention_dim
    x, seen = like(2 * batch, channels, frames, side, side, dtype=dtype), control.config.conditioning_channels
    words = like(2 * batch * frames, 77, width, dtype=dtype)
    own = bool(config(name, "video", "vae"))
    where = (name, "video") if own else (vae_name, "vae")
    factor = 2 ** (len(config(*where, "vae" if own else "")["block_out_channels"]) - 1)
    pixels = side if control.config.get("use_simplified_condition_embedding", True) else side * factor

    def step() -> Any:
        shown = like(2 * batch, seen, frames, pixels, pixels, dtype=dtype)
        mask = like(2 * batch, 1, frames, pixels, pixels, dtype=dtype)
        down, middle = control(x, torch.tensor(1), encoder_hidden_states=words, controlnet_cond=shown,
                               conditioning_mask=mask, return_dict=False)  # fmt: skip
        return unet(x, torch.tensor(1), encoder_hidden_states=words, down_block_additional_residuals=down,
                    mid_block_additional_residual=middle).sample  # fmt: skip

    one = inference_cost(unet, step, batch, like_a_gpu=gpu)
    paint = vae(*where, "decode", side * factor, 16, precision if own else "no", gpu)
    text = config(name, "video", "text_encoder")
    parts = {"unet": one.weights, "control": _bytes(control), "vae": paint.weights * own,
             "text": _text_bytes(text, dtype) if text else 0}  # fmt: skip
    resident = parts["unet"] + parts["control"] if offload else sum(parts.values())
    peak = max(resident + one.activations, (paint.weights if offload else resident) + paint.activations)
    parameters = one.parameters + count(control) + paint.parameters * own
    steps = _setting(name, "video", "steps", 25)
    return Cost(parameters, 0, resident, peak, one.flops, batch), steps


def _bytes(module: nn.Module) -> int:
    return sum(p.untyped_storage().nbytes() for p in module.parameters())


def _text_bytes(about: dict[str, Any], dtype: torch.dtype) -> int:
    from transformers import CLIPTextConfig, CLIPTextModel

    return _bytes(ghost(lambda: CLIPTextModel(CLIPTextConfig(**about)), dtype))


def initial_bytes(name: str | None) -> int:
    """Size of a folder of weights that is here, or about its size when published; 0 for none."""
    if name is None:
        return 0
    if name in published():
        return published()[name].ready or published()[name].size or 0
    folder = Path(name)
    return sum(p.stat().st_size for p in folder.glob("*.safetensors")) if folder.is_dir() else 0
