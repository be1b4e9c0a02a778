# mypy: disable-error-code="attr-defined"
# (what DiffusionPipeline inherits is not seen by mypy)
"""The video pipeline: text-to-video diffusion under alpha, beta and gamma guidance (paper section 3.3).

blurry video --alpha--> where denoising starts
keyframes -----beta---> SparseCtrl residuals at their frames      } UNet with motion modules -> video
captions ------gamma--> prompt
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from neuroclips.errors import ArtefactError, NeuroClipsError
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.registry import quietly, resolve
from neuroclips.pretrained.vae import Vae
from neuroclips.shapes import UInt8
from neuroclips.video.alpha import StartMode, at_frames, place
from neuroclips.video.norm import use_frame_norm

Residuals = tuple[list[torch.Tensor], torch.Tensor]
StepEnd = Callable[["NeuroClipsPipeline", int, int, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


class NeuroClipsPipeline(DiffusionPipeline):
    """Generates one video a clip from a blurry video, keyframes and a caption; each may be missing.

    Made of diffusers and transformers parts, so it loads, saves, offloads and moves like any diffusers pipeline. At
    full size: Stable Diffusion 1.5, AnimateDiff v3 and SparseCtrl-RGB (method d.4).

    Parameters
    ----------
    vae, text_encoder, tokenizer : None makes a pipeline that can be saved but not run: its folder then holds none of
        them, and is loaded with those kept elsewhere.
    unet : with motion modules, or an image UNet together with ``motion_adapter``.
    controlnet : SparseCtrl; None where no keyframes are given.
    frame_norm : group statistics of each frame alone, as AnimateDiff's weights were trained. False is diffusers' own,
        which pools all frames: the same weights, another function wherever frames differ.
    steps, guidance_scale, style, negative_prompt : what suits these weights; a call may say otherwise. ``style`` is
        appended to every prompt.
    """

    vae: Any  # of the types below; diffusers is not typed
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    controlnet: Any

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar = ["vae", "text_encoder", "tokenizer", "motion_adapter", "controlnet"]

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: Any | None,
        tokenizer: Any | None,
        unet: UNetMotionModel | UNet2DConditionModel,
        scheduler: Any,
        controlnet: SparseControlNetModel | None = None,
        motion_adapter: MotionAdapter | None = None,
        frame_norm: bool = True,
        steps: int = 25,
        guidance_scale: float | int = 8.5,
        style: str = "",
        negative_prompt: str = "",
    ):
        super().__init__()
        if isinstance(unet, UNet2DConditionModel):
            if motion_adapter is None:
                raise NeuroClipsError("the UNet draws single images; expected motion_adapter with it, or a motion UNet")
            unet = UNetMotionModel.from_unet2d(unet, motion_adapter)
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            controlnet=controlnet, motion_adapter=None,  # its weights are in the UNet now
        )  # fmt: skip
        self.register_to_config(
            frame_norm=frame_norm, steps=steps, guidance_scale=guidance_scale, style=style,
            negative_prompt=negative_prompt,
        )  # fmt: skip
        motion = [self.unet] + [self.controlnet] * (controlnet is not None)
        for part in motion:
            use_frame_norm(part, frame_norm)
        self.most_frames = min(part.config.motion_max_seq_length for part in motion)

    @property
    def reduction(self) -> int:
        """Pixels, along one side, of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path,
        *,
        vae: Vae,
        clip: Clip | None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> NeuroClipsPipeline:
        """Load ``mini`` (shipped with the package) or a folder in diffusers layout; never from the network.

        vae, clip : the run's own; they stand in for a VAE and a text encoder that the folder lacks, in their own
            precision. No CLIP is needed where the folder has its own text encoder (``wants_text``).
        dtype : of the folder's weights; None is float32.
        """
        folder = resolve(name_or_folder, "video", holds="model_index.json")
        shared = {"vae": vae.model}
        if clip is not None:
            shared |= {"text_encoder": clip.model.text_model, "tokenizer": clip.tokenizer}
        given = {name: part for name, part in shared.items() if not (folder / name).is_dir()}
        try:
            with quietly():
                pipeline = cls.from_pretrained(
                    folder, torch_dtype=dtype or torch.float32, local_files_only=True, use_safetensors=True, **given
                )
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{folder}: cannot be read as a video pipeline ({error})") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    @staticmethod
    def wants_text(name_or_folder: str | Path) -> bool:
        """Whether the weights come without a text encoder of their own."""
        folder = resolve(name_or_folder, "video", holds="model_index.json")
        return not ((folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir())

    @torch.inference_mode()
    def __call__(
        self,
        prompts: Sequence[str] | None = None,
        *,
        blurry: torch.Tensor | None = None,
        keyframes: torch.Tensor | None = None,
        generators: Sequence[torch.Generator],
        frames: int = 16,
        size: tuple[int, int] | None = None,
        start: StartMode = "sdedit",
        strength: float | int = 0.7,
        keyframe_indices: Sequence[int] = (0,),
        control_scale: float | int = 1.0,
        steps: int | None = None,
        guidance_scale: float | int | None = None,
        style: str | None = None,
        negative_prompt: str | None = None,
        eta: float | int = 0.0,
        decode_frames: int = 16,
        output: Literal["uint8", "float", "latent"] = "uint8",
        on_step_end: StepEnd | None = None,
    ) -> UInt8[np.ndarray, "B F 3 H W"] | torch.Tensor:
        """Videos of B clips, S of each.

        Parameters
        ----------
        prompts : B captions; None is an empty prompt for all (gamma off).
        blurry : (B, f, 3, h, w) in [0, 1], any f and size; None starts from pure noise (alpha off).
        keyframes : (B, n, 3, h, w) in [0, 1], at the n ``keyframe_indices`` of the video (negative ones count from its
            end); None leaves SparseCtrl out (beta off).
        generators : B * S, clip by clip: all randomness of a video comes from its own generator, so neither batch
            size nor order matters. With S > 1 all seeds of a clip share prompt, keyframe condition and SparseCtrl.
        frames, size : of the videos; size (height, width) in pixels defaults to the UNet's.
        start, strength : how the blurry video enters, see ``alpha``.
        eta : of DDIM; 0 is deterministic after the start. decode_frames : frames decoded at a time; bounds memory.
        on_step_end : called with (pipeline, step, timestep, {"latents": ...}) after each step; may return new latents.

        Returns
        -------
        uint8 array (B * S, frames, 3, height, width); with ``output`` "float" a tensor in [0, 1], with "latent" the
        scaled latents (B * S, C, frames, h, w).

        Raises ``NeuroClipsError`` for inputs of wrong shape, range, number or index, before any work.
        """
        # 1. Check inputs.
        steps = self.config.steps if steps is None else steps
        guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        height, width = size or (self.unet.config.sample_size * self.reduction,) * 2
        clips = self._check(prompts, blurry, keyframes, generators, frames, (height, width), keyframe_indices, steps)
        device, seeds, guided = self._execution_device, len(generators) // clips, guidance_scale > 1

        # 2. Encode the prompts (gamma): negative ones first, as everywhere below.
        ending = self.config.style if style is None else style
        negative = self.config.negative_prompt if negative_prompt is None else negative_prompt
        texts = [""] * clips if prompts is None else [prompt + ending for prompt in prompts]
        text = self._encode_prompts([negative] * clips * guided + texts, device)  # (2 B, words, D)

        # 3. Encode the keyframes (beta).
        condition = None if keyframes is None else self._condition(keyframes, keyframe_indices, frames, height, width)

        # 4. Place the blurry latents (alpha).
        self.scheduler.set_timesteps(steps, device=device)
        shape = (clips * seeds, self.unet.config.in_channels, frames, height // self.reduction, width // self.reduction)
        noise = randn_tensor(shape, generator=list(generators), device=device)  # float32; drawn where generators are
        if blurry is None:
            timesteps, latents = self.scheduler.timesteps, noise * self.scheduler.init_noise_sigma
        else:
            begin = place(self.scheduler, strength, start)
            shown = self._encode_frames(resized(at_frames(blurry, frames), height, width), device)
            shown = shown.transpose(1, 2).repeat_interleave(seeds, dim=0)
            timesteps, latents = begin.timesteps, begin.signal * shown + begin.noise * noise

        # 5. Denoise.
        words = text.repeat_interleave(seeds, dim=0).repeat_interleave(frames, dim=0)
        words_of_clips = text.repeat_interleave(frames, dim=0)
        extra = self._step_arguments(list(generators), eta)
        for number, t in enumerate(self.progress_bar(timesteps)):
            x = self.scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), t)
            control = self._control(x[::seeds], t, words_of_clips, condition, control_scale, seeds)
            out = self.unet(x.to(self.unet.dtype), t, encoder_hidden_states=words, **control).sample.float()
            if guided:
                without, with_text = out.chunk(2)
                out = without + guidance_scale * (with_text - without)
            latents = self.scheduler.step(out, t, latents, **extra).prev_sample
            if on_step_end is not None:
                latents = (on_step_end(self, number, int(t), {"latents": latents}) or {}).get("latents", latents)

        # 6. Decode.
        found = latents if output == "latent" else self._decode(latents, decode_frames)
        self.maybe_free_model_hooks()
        if output == "uint8":
            return (found * 255).round().to(torch.uint8).cpu().numpy()
        return found

    def _check(
        self,
        prompts: Sequence[str] | None,
        blurry: torch.Tensor | None,
        keyframes: torch.Tensor | None,
        generators: Sequence[torch.Generator],
        frames: int,
        size: tuple[int, int],
        indices: Sequence[int],
        steps: int,
    ) -> int:
        """The number of clips, if all inputs fit together."""
        given = {"prompts": prompts, "blurry": blurry, "keyframes": keyframes}
        counts = {name: len(part) for name, part in given.items() if part is not None}
        clips = next(iter(counts.values()), len(generators))
        if isinstance(prompts, str):
            raise NeuroClipsError("prompts is one string; expected a list of one caption a clip")
        if len(set(counts.values())) > 1 or clips == 0:
            raise NeuroClipsError(f"numbers of clips differ: {counts}; expected one entry a clip in each, at least one")
        if len(generators) == 0 or len(generators) % clips:
            raise NeuroClipsError(
                f"{len(generators)} generators for {clips} clips; expected one a clip, or the same number for each"
            )
        if not 1 <= frames <= self.most_frames:
            raise NeuroClipsError(f"frames is {frames}; expected 1 to {self.most_frames}, all that these weights know")
        levels = 2 ** (len(self.unet.config.block_out_channels) - 1)
        if any(side <= 0 or side % (self.reduction * levels) for side in size):
            raise NeuroClipsError(f"size is {size}; expected multiples of {self.reduction * levels} pixels")
        if steps < 1:
            raise NeuroClipsError(f"steps is {steps}; expected at least 1")
        for name, images in (("blurry", blurry), ("keyframes", keyframes)):
            if images is not None:
                _check_images(name, images)
        if keyframes is not None:
            if self.controlnet is None:
                raise NeuroClipsError("keyframes were given, but this pipeline has no controlnet (SparseCtrl)")
            if keyframes.shape[1] != len(indices):
                raise NeuroClipsError(
                    f"{keyframes.shape[1]} keyframes a clip for {len(indices)} keyframe_indices {list(indices)}; "
                    "expected the same number"
                )
            wrong = [i for i in indices if not -frames <= i < frames]
            if wrong or len({i % frames for i in indices}) < len(indices):
                raise NeuroClipsError(
                    f"keyframe_indices {list(indices)}: expected different frames of 0 to {frames - 1}"
                )
        return clips

    def _encode_prompts(self, texts: list[str], device: torch.device) -> torch.Tensor:
        """Hidden states (n, words, D) of the text encoder; a text that occurs twice is encoded once."""
        distinct = list(dict.fromkeys(texts))
        longest = self.tokenizer.model_max_length
        batch = self.tokenizer(
            distinct, padding="max_length", max_length=longest, truncation=True, return_tensors="pt",
        )  # fmt: skip
        whole = self.tokenizer(distinct, truncation=False, verbose=False).input_ids
        for text, ids in zip(distinct, whole, strict=True):
            if len(ids) > longest:
                cut = self.tokenizer.decode(ids[longest - 1 : -1]).strip()
                warnings.warn(
                    f"prompt has {len(ids)} tokens, CLIP reads {longest}: {cut!r} at its end is not seen ({text!r})",
                    stacklevel=3,
                )
        states = self.text_encoder(batch.input_ids.to(device))[0]
        return states[[distinct.index(text) for text in texts]].to(self.unet.dtype)

    def _condition(
        self, keyframes: torch.Tensor, indices: Sequence[int], frames: int, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What SparseCtrl sees: latents (or pixels) at the keyframes' places, zeros elsewhere; and their mask."""
        device, dtype = self._execution_device, self.controlnet.dtype
        images = resized(keyframes, height, width)
        if self.controlnet.use_simplified_condition_embedding:
            images = self._encode_frames(images, device)
        clips, _, channels, *sides = images.shape
        condition = torch.zeros(clips, channels, frames, *sides, device=device, dtype=dtype)
        mask = torch.zeros(clips, 1, frames, *sides, device=device, dtype=dtype)
        condition[:, :, list(indices)] = images.transpose(1, 2).to(condition)
        mask[:, :, list(indices)] = 1
        return condition, mask

    def _control(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        words: torch.Tensor,
        condition: tuple[torch.Tensor, torch.Tensor] | None,
        scale: float | int,
        seeds: int,
    ) -> dict[str, Any]:
        """SparseCtrl's residuals as arguments of the UNet. It never sees the noisy video, so seeds share them."""
        if condition is None or scale == 0:
            return {}
        frames, halves = x.shape[2], len(x) // len(condition[0])
        images, mask = (part.repeat(halves, 1, 1, 1, 1) for part in condition)
        down, middle = self.controlnet(
            x.to(images), t, encoder_hidden_states=words, controlnet_cond=images, conditioning_mask=mask,
            conditioning_scale=float(scale), return_dict=False,
        )  # fmt: skip

        def every_seed(residual: torch.Tensor) -> torch.Tensor:
            by_clip = residual.unflatten(0, (-1, frames)).repeat_interleave(seeds, dim=0)
            return by_clip.flatten(0, 1).to(self.unet.dtype)

        return {
            "down_block_additional_residuals": [every_seed(residual) for residual in down],
            "mid_block_additional_residual": every_seed(middle),
        }

    def _encode_frames(self, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Scaled latents (B, F, C, h, w), the posterior's mode, of images (B, F, 3, H, W) in [0, 1]."""
        flat = (images.flatten(0, 1) * 2 - 1).to(device, self.vae.dtype)
        modes = [self.vae.encode(part).latent_dist.mode() for part in flat.split(16)]
        return (torch.cat(modes).float() * self.vae.config.scaling_factor).unflatten(0, images.shape[:2])

    def _decode(self, latents: torch.Tensor, at_a_time: int) -> torch.Tensor:
        """Frames (B, F, 3, H, W) in [0, 1] of scaled latents (B, C, F, h, w)."""
        flat = (latents.transpose(1, 2).flatten(0, 1) / self.vae.config.scaling_factor).to(self.vae.dtype)
        images = torch.cat([self.vae.decode(part).sample.float() for part in flat.split(at_a_time)])
        return ((images + 1) / 2).clamp(0, 1).unflatten(0, (len(latents), latents.shape[2]))

    def _step_arguments(self, generators: list[torch.Generator], eta: float | int) -> dict[str, Any]:
        """``eta`` and the generators, for schedulers that take them."""
        taken = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in (("eta", eta), ("generator", generators)) if name in taken}


def _check_images(name: str, images: torch.Tensor) -> None:
    if images.ndim != 5 or images.shape[2] != 3 or 0 in images.shape:
        raise NeuroClipsError(f"{name} has shape {tuple(images.shape)}; expected (clips, frames, 3, height, width)")
    if not images.is_floating_point():
        raise NeuroClipsError(f"{name} is {images.dtype}; expected floating point in [0, 1]")
    low, high = (float(v) for v in images.aminmax())
    if not (low >= 0 and high <= 1):  # NaN fails too
        raise NeuroClipsError(f"{name} has values from {low:g} to {high:g}; expected [0, 1]")


def resized(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Images (B, F, 3, H, W) at another size, bilinear with antialiasing."""
    if images.shape[-2:] == (height, width):
        return images
    flat = functional.interpolate(images.flatten(0, 1).float(), (height, width), mode="bilinear", antialias=True)
    return flat.clamp(0, 1).unflatten(0, images.shape[:2])
