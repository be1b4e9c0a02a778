"""Train the mini video model in three legs, as AnimateDiff and SparseCtrl were: image, motion, control.

    image    UNet2DConditionModel       captions -> single frames
    motion   UNetMotionModel            and motion modules: captions -> clips of 16 frames, 9 a second
    control  and SparseControlNetModel  keyframes, given as latents of one or two frames of the clip

At this size later legs go on training everything. Motion modules normalise per frame (``video.norm``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, MotionAdapter, SparseControlNetModel, UNet2DConditionModel, UNetMotionModel
from torch import Tensor, nn

from neuroclips.artefacts import read_json, stable_seed, write_json
from neuroclips.mini.corpus import (
    CLIP_FPS,
    CLIP_FRAMES,
    encode,
    held_out_clips,
    held_out_scenes,
    replay,
    scene_batches,
    text_states,
)
from neuroclips.mini.loop import forget_folders, train
from neuroclips.mini.train_keyframe import identified, pixel_scores, v_loss
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.vae import Vae
from neuroclips.video.neuroclips_pipeline import NeuroClipsPipeline
from neuroclips.video.norm import use_frame_norm

SIZE = 64
LEGS = ("image", "motion", "control")
WIDTH, GROUPS, HEADS = 128, 16, 4
UNET: dict[str, Any] = dict(
    sample_size=8, in_channels=16, out_channels=16, block_out_channels=[WIDTH], layers_per_block=1,
    down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"],
    attention_head_dim=HEADS, norm_num_groups=GROUPS, cross_attention_dim=128,
)  # fmt: skip
MOTION: dict[str, Any] = dict(
    block_out_channels=[WIDTH], motion_layers_per_block=1, motion_num_attention_heads=HEADS,
    motion_norm_num_groups=GROUPS, motion_max_seq_length=32, use_motion_mid_block=False,
)  # fmt: skip
CONTROL: dict[str, Any] = dict(
    in_channels=16, conditioning_channels=16, down_block_types=["CrossAttnDownBlockMotion"],
    block_out_channels=[WIDTH], layers_per_block=1, attention_head_dim=HEADS, norm_num_groups=GROUPS,
    cross_attention_dim=128, motion_num_attention_heads=HEADS, motion_max_seq_length=32,
)  # fmt: skip
SCHEDULE: dict[str, Any] = dict(
    beta_schedule="linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction", steps_offset=1,
    clip_sample=False,
)  # fmt: skip
SHARES = {"image": 0.25, "motion": 0.25, "control": 0.5}  # of the time
RATES = {"image": 1e-3, "motion": 7e-4, "control": 6e-4}
FRAMES_A_SCENE = 4  # of the image leg
UNCONDITIONAL = 0.1  # share of empty captions
NO_CONTROL, TWO_KEYFRAMES, KEYFRAMES = 0.15, 0.2, (0, 6)  # the keyframe is at one of these in two clips of three
KEYFRAME_NOISE = 0.3  # of generated keyframes; up to so many deviations
STEPS, SCALE = 20, 2.0  # of sampling, for scoring
SCORED = 100  # held-out scenes


class Controlled(nn.Module):
    """The two networks of the control leg."""

    def __init__(self, unet: Any, controlnet: Any):
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def forward(
        self, x: Tensor, step: Tensor, text: Tensor, keyframes: Tensor, mask: Tensor, used: Tensor
    ) -> Tensor:  # fmt: skip
        """v of noisy latents x (B, C, F, h, w), as a pipeline computes it.

        ``text`` (B * F, words, D); ``keyframes`` (B, C, F, h, w), zero but where ``mask`` (B, 1, F, h, w) is 1;
        ``used`` (B,): weight of the control.
        """
        down, mid = self.controlnet(
            x, step, encoder_hidden_states=text, controlnet_cond=keyframes, conditioning_mask=mask, return_dict=False
        )
        weight = used.repeat_interleave(x.shape[2]).view(-1, 1, 1, 1)
        return self.unet(
            x, step, encoder_hidden_states=text,
            down_block_additional_residuals=tuple(r * weight for r in down),
            mid_block_additional_residual=mid * weight,
        ).sample  # fmt: skip


def build_image() -> Any:
    return UNet2DConditionModel(**UNET)


def build_motion(image: UNet2DConditionModel) -> Any:
    """The image network with motion modules that do nothing yet, normalised per frame."""
    unet: Any = UNetMotionModel.from_unet2d(image, MotionAdapter(**MOTION))
    for block in [*unet.down_blocks, *unet.up_blocks]:
        for module in block.motion_modules:
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    use_frame_norm(unet)
    return unet


def build_control(unet: Any) -> Any:
    """SparseCtrl that starts as the network's first half, its outputs at zero.

    ``SparseControlNetModel.from_unet`` takes image networks only, changes their configuration, and leaves the motion
    modules at random.
    """
    controlnet: Any = SparseControlNetModel(**CONTROL)
    for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
        getattr(controlnet, name).load_state_dict(getattr(unet, name).state_dict(), strict=False)
    use_frame_norm(controlnet)
    return controlnet


@dataclass
class ImageLoss:
    """The v objective on single frames; a tenth of the captions is empty."""

    alphas: Tensor
    empty: Tensor

    def __call__(self, unet: Any, batch: Mapping[str, Tensor], _: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        text = without_some(batch["text"].float(), self.empty)
        return v_loss(lambda x, step: unet(x, step, text).sample, batch["latents"].float(), self.alphas), {}


@dataclass
class MotionLoss:
    """The v objective on clips; a tenth of the captions is empty."""

    alphas: Tensor
    empty: Tensor

    def __call__(self, unet: Any, batch: Mapping[str, Tensor], _: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        text = without_some(batch["text"].float(), self.empty).repeat_interleave(CLIP_FRAMES, dim=0)
        latents = batch["latents"].float().transpose(1, 2)
        return v_loss(lambda x, step: unet(x, step, text).sample, latents, self.alphas), {}


@dataclass
class ControlLoss:
    """The v objective on clips of which one or two frames are given, a little noisy; in some the control is off."""

    alphas: Tensor
    empty: Tensor

    def __call__(self, both: Any, batch: Mapping[str, Tensor], _: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        text = without_some(batch["text"].float(), self.empty).repeat_interleave(CLIP_FRAMES, dim=0)
        latents = batch["latents"].float().transpose(1, 2)
        mask = given_frames(len(latents), latents.device)
        noise = KEYFRAME_NOISE * torch.rand(len(latents), 1, 1, 1, 1, device=latents.device)
        keyframes = (latents + noise * torch.randn_like(latents)) * mask
        used = (torch.rand(len(latents), device=latents.device) >= NO_CONTROL).float()
        return v_loss(lambda x, step: both(x, step, text, keyframes, mask, used), latents, self.alphas), {}


def given_frames(n: int, device: torch.device) -> Tensor:
    """Mask (n, 1, F, 1, 1) broadcast to 8 x 8: which frames are given. A third is 0, a third is 6, the rest is any."""
    any_frame = torch.randint(CLIP_FRAMES, (2, n), device=device)
    kind = torch.randint(3, (n,), device=device)
    first = torch.where(kind == 0, KEYFRAMES[0], torch.where(kind == 1, KEYFRAMES[1], any_frame[0]))
    second = torch.where(torch.rand(n, device=device) < TWO_KEYFRAMES, any_frame[1], first)
    mask = torch.zeros(n, CLIP_FRAMES, device=device)
    mask = mask.scatter(1, first[:, None], 1).scatter(1, second[:, None], 1)
    return mask.view(n, 1, CLIP_FRAMES, 1, 1).expand(-1, -1, -1, UNET["sample_size"], UNET["sample_size"])


def without_some(text: Tensor, empty: Tensor) -> Tensor:
    """Text states (n, words, D), a tenth of them replaced by the empty caption's."""
    dropped = torch.rand(len(text), device=text.device) < UNCONDITIONAL
    return torch.where(dropped[:, None, None], empty, text)


def batches(vae: Vae, clip: Clip, scenes: int, *, leg: str, seed: int, workers: int) -> Iterator[dict[str, Tensor]]:
    """Endless latents and text states: (n, C, h, w) of 4 frames of each scene, or (n, F, C, h, w) of a clip of each."""
    image = leg == "image"
    for frames, captions in scene_batches(
        size=SIZE, frames=FRAMES_A_SCENE if image else CLIP_FRAMES, fps=None if image else CLIP_FPS, scenes=scenes,
        seed=stable_seed("mini video", leg, seed), workers=workers,
    ):  # fmt: skip
        latents = encode(vae, frames.flatten(0, 1)).half()
        text = text_states(clip, captions).half()
        if image:
            yield {"latents": latents, "text": text.repeat_interleave(FRAMES_A_SCENE, dim=0)}
        else:
            yield {"latents": latents.unflatten(0, (-1, CLIP_FRAMES)), "text": text}


# --- scores -----------------------------------------------------------------------------------------------------------


def generate_clips(
    network: Any, vae: Vae, clip: Clip, captions: list[str], *, keyframe: tuple[np.ndarray, int] | None = None,
    seed: int = 0, batch: int = 25,
) -> np.ndarray:  # fmt: skip
    """A clip (n, F, 3, H, W) uint8 of each caption; ``keyframe``: frames (n, 3, H, W) uint8 and where they stand."""
    found = pipeline(network, vae.model, clip.model.text_model, clip.tokenizer)
    found.set_progress_bar_config(disable=True)
    made = []
    for start in range(0, len(captions), batch):
        rows = slice(start, start + batch)
        given: dict[str, Any] = {}
        if keyframe is not None:
            images = torch.from_numpy(keyframe[0][rows]).float() / 255
            given = {"keyframes": images[:, None], "keyframe_indices": [keyframe[1]]}
        seeds = [stable_seed("mini video", seed, caption) for caption in captions[rows]]
        made.append(
            found(
                captions[rows], generators=[torch.Generator().manual_seed(s) for s in seeds], size=(SIZE,) * 2, **given
            )
        )
    return np.concatenate(made)


@torch.no_grad()
def held_out_loss(network: Any, objective: Any, batch: dict[str, Tensor], seed: int) -> float:
    """The objective at fixed noise."""
    device = batch["latents"].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return float(objective(network, batch, torch.Generator())[0])


def clip_scores(made: np.ndarray, true: np.ndarray, clip: Clip, captions: list[str]) -> dict[str, float]:
    """Of generated clips: whether the middle frame finds its caption, likeness to the true frames, amount of motion."""
    middle = CLIP_FRAMES // 2

    def change(frames: np.ndarray) -> float:
        return float(np.abs(np.diff(frames.astype(np.float32), axis=1)).mean())

    return {
        "caption_top1_of_100": identified(clip.images(made[:, middle])[1], clip.texts(captions)),
        **pixel_scores(made.reshape(-1, *made.shape[2:]), true.reshape(-1, *true.shape[2:])),
        "change_from_frame_to_frame": change(made),
    }


def score(leg: str, network: Any, objective: Any, vae: Vae, clip: Clip, *, n: int | None = None, seed: int = 0) -> dict:
    """Loss at fixed noise on held-out scenes, and what generated clips look like."""
    n = n or SCORED
    if leg == "image":
        images, captions = held_out_scenes(n, size=SIZE, seed=seed)
        batch = {"latents": encode(vae, torch.from_numpy(images)), "text": text_states(clip, captions)}
        return {"loss": held_out_loss(network, objective, batch, seed)}
    frames, captions = held_out_clips(n, size=SIZE, seed=seed)
    latents = encode(vae, torch.from_numpy(frames).flatten(0, 1)).unflatten(0, (-1, CLIP_FRAMES))
    batch = {"latents": latents, "text": text_states(clip, captions)}
    other = {"latents": latents, "text": batch["text"].roll(1, dims=0)}
    still = np.abs(np.diff(frames.astype(np.float32), axis=1)).mean()
    scores = {
        "loss": held_out_loss(network, objective, batch, seed),
        "loss_with_other_captions": held_out_loss(network, objective, other, seed),
        "true_change_from_frame_to_frame": float(still),
    }
    ways: dict[str, Any] = {"caption_only": {}}
    if leg == "control":
        ways |= {f"keyframe_{k}": {"keyframe": (frames[:, k], k)} for k in KEYFRAMES}
    for what, how in ways.items():
        made = generate_clips(network, vae, clip, captions, **how, seed=seed)
        scores |= {f"{what}_{name}": v for name, v in clip_scores(made, frames, clip, captions).items()}
    return scores


# --- training ---------------------------------------------------------------------------------------------------------


def load(leg: str, start: Path | None) -> Any:
    """The network of a leg: from the folder of this leg, to go on; or of the one before."""
    if start is None:
        if leg != "image":
            raise ValueError(f"leg {leg!r} needs the folder of the leg before to start from")
        return build_image()
    kind = read_json(start / "unet" / "config.json")["_class_name"]
    if leg == "image" or kind == "UNet2DConditionModel":
        image: Any = UNet2DConditionModel.from_pretrained(start, subfolder="unet", torch_dtype=torch.float32)
        if leg == "image":
            return image
        unet = build_motion(image)
    else:
        unet = UNetMotionModel.from_pretrained(start, subfolder="unet", torch_dtype=torch.float32)
        use_frame_norm(unet)
    if leg == "motion":
        return unet
    if not (start / "controlnet").exists():
        return Controlled(unet, build_control(unet))
    controlnet = SparseControlNetModel.from_pretrained(start, subfolder="controlnet", torch_dtype=torch.float32)
    use_frame_norm(controlnet)
    return Controlled(unet, controlnet)


def parts(network: Any) -> dict[str, Any]:
    """The networks of a leg by the names of their folders."""
    if isinstance(network, Controlled):
        return {"unet": network.unet, "controlnet": network.controlnet}
    return {"unet": network}


def scheduler() -> Any:
    return DDIMScheduler(**SCHEDULE)


def pipeline(network: Any, vae: Any, text_encoder: Any, tokenizer: Any) -> Any:
    """The network as it is used; without autoencoder and text encoder it can be saved."""
    own = {"controlnet": None, **parts(network)}
    return NeuroClipsPipeline(
        vae, text_encoder, tokenizer, scheduler=scheduler(), steps=STEPS, guidance_scale=SCALE, **own
    )


def save(network: Any, out: Path) -> None:
    """Weights in float16 and the scheduler, in diffusers layout; autoencoder and text encoder are elsewhere."""
    half: Any = copy.deepcopy(network).half()
    if not isinstance(half, (UNetMotionModel, Controlled)):  # the image leg's network is no video model yet
        half.save_pretrained(out / "unet")
    else:
        pipeline(half, None, None, None).save_pretrained(out)
    forget_folders(out)


def train_leg(
    leg: str, out: Path, *, start: Path | None, steps: int, minutes: float, scenes: int, workers: int, seed: int,
    device: str, fast: bool = False,
) -> dict:  # fmt: skip
    """Train one leg, score it, write weights and card to ``out``; returns the card, which keeps earlier legs'.

    Parameters
    ----------
    start : folder of this leg, to go on at half the rate, or of the one before; may be ``out``.
    scenes : clips a step; the image leg takes four frames of each of twice as many scenes.
    fast : compile the network; worth it on a GPU for long runs.
    """
    torch.manual_seed(seed)
    checkpoint = out.with_name(f"{out.name}-{leg}.checkpoint.pt")  # beside the weights until they are written
    legs = {} if start is None else dict(read_json(start / "card.json")["legs"])
    before = legs.get(leg)
    network = load(leg, start)
    if fast:
        network.compile()
    vae, clip = Vae.load("mini", device=device), Clip.load("mini", device=device)
    alphas = scheduler().alphas_cumprod.to(device)
    kinds: dict[str, Any] = {"image": ImageLoss, "motion": MotionLoss, "control": ControlLoss}
    objective = kinds[leg](alphas, text_states(clip, [""]))
    rows = 2 * scenes if leg == "image" else scenes
    stream = replay(batches(vae, clip, rows, leg=leg, seed=seed, workers=workers), uses=2, kept=16, seed=seed)
    network, curve = train(
        network, objective, stream, steps=steps, minutes=minutes,
        learning_rate=RATES[leg] * (1 if before is None else 0.5), seed=seed, checkpoint=checkpoint, device=device,
    )  # fmt: skip
    network = copy.deepcopy(network)  # the copy is not compiled
    save(network, out)
    legs[leg] = {
        "seed": seed,
        "steps": curve[-1]["step"],
        "seconds": curve[-1]["seconds"],
        "frames_a_step": rows * (FRAMES_A_SCENE if leg == "image" else CLIP_FRAMES),
        "continued_from": before,
        "scores": score(leg, network, objective, vae, clip, seed=seed),
        "curve": curve[:: max(1, len(curve) // 50)],
    }
    card = {
        "what": "mini video model: text, motion modules and SparseCtrl, picture-book world, 16 frames of 64 pixels",
        "made_by": "python -m neuroclips.mini video",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts(network).items()},
        "sampling_of_scores": {"steps": STEPS, "scale": SCALE},
        "legs": legs,
    }
    write_json(out / "card.json", card)
    checkpoint.unlink()
    return card


def main(out: Path, *, leg: str, start: Path | None, minutes: float, **how: Any) -> dict:
    """Train one leg, or "all" in turn: those that ``out``, or else ``start``, does not hold, for shares of the time."""
    if leg != "all":
        return train_leg(leg, out, start=start, minutes=minutes, **how)
    source = out if (out / "card.json").exists() else start
    card = {"legs": {}} if source is None else read_json(source / "card.json")
    left = [each for each in LEGS if each not in card["legs"]]
    for each in left:
        share = SHARES[each] / sum(SHARES[other] for other in left)
        card = train_leg(each, out, start=source, minutes=share * minutes, **how)
        source = out
    return card
