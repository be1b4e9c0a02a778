"""Keyframes from CLIP tokens: latent diffusion that reads image tokens where others read text (method b.9, d.1)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch.nn import functional

from neuroclips.artefacts import stable_seed
from neuroclips.errors import ArtefactError, DataError
from neuroclips.pretrained.registry import quietly, resolve
from neuroclips.shapes import Float, Float32


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of clips, and the generators that go on where they ended."""

    generators: list[torch.Generator]
    noise: Float32[torch.Tensor, "B C h w"]
    unconditional: Float32[torch.Tensor, "B K D"]
    offset: Float32[torch.Tensor, "B 1 1 1"]


def token_grid(tokens: Float[torch.Tensor, "B K D"], size: Sequence[int]) -> Float[torch.Tensor, "B D h w"]:
    """Patch tokens at their places: a picture of K = g x g cells, row by row, each repeated to fill ``size``.

    Cross-attention alone must first learn where each token belongs; a small network spends itself on that.
    """
    side = math.isqrt(tokens.shape[1])
    if side**2 != tokens.shape[1]:
        raise DataError(f"{tokens.shape[1]} tokens; expected a square number of patches to see them as a picture")
    return functional.interpolate(tokens.mT.unflatten(2, (side, side)), tuple(size), mode="nearest")


class KeyframeGenerator(DiffusionPipeline):
    """Generates one image a clip from CLIP tokens, as image-variation ("unCLIP") models do.

    unet : takes the tokens as ``encoder_hidden_states``. One with ``addition_embed_type="text_time"`` is also told the
        image's height and width and a crop at (0, 0), and no text. One with D more input than output channels sees the
        K tokens also where they belong, as a picture beside the latents (``token_grid``).
    vae : decodes its latents. None makes a generator that can be saved but not run: its folder then holds ``unet/``,
        ``scheduler/`` and ``model_index.json``, and is loaded with a VAE kept elsewhere.
    scheduler : any of diffusers'.

    What follows belongs to the weights as well, and is kept in ``model_index.json``:

    unconditional : what guidance compares with. 'noise': one N(0, 1) draw of the tokens' shape an image, kept for all
        steps (the released weights); 'zeros': tokens of zero.
    offset_noise : deviation of the one number that is added to all of an image's starting noise, as a share of that
        noise's (0.04 for the released weights).
    pixel_gain, pixel_offset : pixels = clamp(gain * decoded + offset, 0, 1). 0.5 and 0.5 undo the usual [-1, 1]; the
        released weights use 0.8 and 0.2, for they were taught with tokens of images squeezed into [0.5, 1].
    timesteps : a schedule of its own, for weights whose list no spacing of diffusers gives; fixes ``steps``.
    steps, guidance_scale : defaults of ``generate``.
    """

    _optional_components: ClassVar[list[str]] = ["vae"]
    unet: Any  # of the types below; diffusers is not typed
    vae: Any
    scheduler: Any
    config: Any

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | None,
        scheduler: SchedulerMixin,
        unconditional: str = "noise",
        offset_noise: float | int = 0,
        pixel_gain: float | int = 0.5,
        pixel_offset: float | int = 0.5,
        timesteps: list[int] | None = None,
        steps: int = 25,
        guidance_scale: float | int = 5,
    ):
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)
        self.register_to_config(
            unconditional=unconditional, offset_noise=offset_noise, pixel_gain=pixel_gain, pixel_offset=pixel_offset,
            timesteps=timesteps, steps=steps if timesteps is None else len(timesteps), guidance_scale=guidance_scale,
        )  # fmt: skip
        if unconditional not in ("noise", "zeros"):
            raise DataError(f"unconditional tokens {unconditional!r}; expected 'noise' or 'zeros'")
        if timesteps is not None and "timesteps" not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise DataError(f"{type(scheduler).__name__} takes no list of timesteps; EulerDiscreteScheduler does")
        channels, width = self.unet.config.out_channels, self.unet.config.cross_attention_dim
        self._reads_grid = self.unet.config.in_channels == channels + width
        if not self._reads_grid and self.unet.config.in_channels != channels:
            raise DataError(
                f"a UNet of {self.unet.config.in_channels} input and {channels} output channels; expected {channels}"
                f" inputs, or {channels + width} to see tokens of {width} as a picture, too"
            )
        if vae is not None and self.vae.config.latent_channels != channels:
            raise DataError(
                f"a VAE of {self.vae.config.latent_channels} latent channels beside a UNet of {channels}; "
                "expected the VAE that the UNet was trained with"
            )

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path,
        *,
        vae: AutoencoderKL | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> KeyframeGenerator:
        """Load ``mini`` (shipped with the package) or a folder in diffusers layout; never from the network.

        vae : used, and moved to ``device``, where the folder has none of its own.
        dtype : of the UNet (None: float32); the VAE stays in float32.
        """
        folder = resolve(name_or_folder, "keyframe", holds="model_index.json")
        own = (folder / "vae").is_dir()
        try:
            with quietly():
                generator = cls.from_pretrained(
                    str(folder), torch_dtype={"unet": dtype or torch.float32, "default": torch.float32},
                    local_files_only=True, use_safetensors=True, **({} if own or vae is None else {"vae": vae}),
                )  # fmt: skip
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{folder}: cannot be read as a keyframe generator ({error})") from error
        if generator.vae is None:
            raise ArtefactError(f"{folder}: no vae/ in it and no VAE given; expected one of them")
        return generator.to(device)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        height, width = self._latent_size
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return height * factor, width * factor

    @property
    def _latent_size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @torch.inference_mode()
    def generate(
        self,
        tokens: Float[np.ndarray, "B K D"],
        ids: list[str],
        *,
        seed: int,
        blurry: Float32[np.ndarray, "B 3 H W"] | None = None,
        strength: float | int = 0.8,
        steps: int | None = None,
        guidance_scale: float | int | None = None,
        batch: int = 16,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Float32[np.ndarray, "B 3 H W"]:
        """Images in [0, 1] of CLIP tokens, one a clip, the same in any batch and order.

        seed : clip i draws from ``stable_seed(seed, "keyframe", ids[i])``.
        blurry : images in [0, 1] to start from, such as the first frames of blurry videos (the paper's figure 1 and
            section 3.3; the released code starts from noise alone).
        strength : with ``blurry``, how much noise replaces it: the last ``round(strength * steps)`` steps are taken
            (Meng et al. 2022, SDEdit). 0 only sends the image through the VAE. The paper gives no value.
        steps, guidance_scale : None takes those of the weights; a scale of 1 runs no unconditional half.
        batch : clips at a time.
        progress : called with (clips done, clips, what) after each batch.

        Guidance acts on the UNet's output: u + scale * (c - u) (Ho & Salimans 2022).

        Raises DataError for tokens, ids, images or settings that do not fit each other or the weights.
        """
        steps = self.config.steps if steps is None else steps
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        self._check(tokens, ids, blurry, strength, steps, scale, batch)
        self.vae.float()  # Stable Diffusion's overflow in half precision
        images = np.empty((len(ids), 3, *self.image_size), np.float32)
        for first in range(0, len(ids), batch):
            part = slice(first, first + batch)
            condition = torch.tensor(tokens[part], dtype=torch.float32, device=self.device)
            draws = self._draw(ids[part], seed, condition.shape[1:])
            timesteps = self._timesteps(steps, 1 if blurry is None else strength)
            if blurry is None:
                latents = self._start_from_noise(draws, timesteps)
            else:
                latents = self._start_from_images(blurry[part], draws, timesteps)
            latents = self._denoise(latents, condition, draws, timesteps, scale)
            images[part] = self._decode(latents)
            if progress is not None:
                progress(first + len(latents), len(ids), "keyframes")
        return images

    def _draw(self, ids: list[str], seed: int, tokens: tuple[int, ...]) -> Draws:
        """Each clip's random numbers, drawn on the CPU in this order: starting noise, unconditional tokens (where they
        are noise), offset; a scheduler that adds noise at each step draws it after them."""
        generators = [torch.Generator().manual_seed(stable_seed(seed, "keyframe", i)) for i in ids]
        noise = [torch.randn(self.unet.config.out_channels, *self._latent_size, generator=g) for g in generators]
        if self.config.unconditional == "noise":
            unconditional = [torch.randn(tokens, generator=g) for g in generators]
        else:
            unconditional = [torch.zeros(tokens)] * len(ids)
        offset = [self.config.offset_noise * torch.randn(1, 1, 1, generator=g) for g in generators]
        stacked = [torch.stack(drawn).to(self.device) for drawn in (noise, unconditional, offset)]
        return Draws(generators, *stacked)

    def _timesteps(self, steps: int, strength: float | int) -> torch.Tensor:
        """Set the scheduler back to its start; the timesteps that are left at ``strength``."""
        if self.config.timesteps is None:
            self.scheduler.set_timesteps(steps, device=self.device)
        else:
            self.scheduler.set_timesteps(timesteps=self.config.timesteps, device=self.device)
        skipped = steps - round(strength * steps)
        return self.scheduler.timesteps[skipped * self.scheduler.order :]

    def _start_from_noise(self, draws: Draws, timesteps: torch.Tensor) -> torch.Tensor:
        """``init_noise_sigma`` times the noise, plus the offset at the noise's level s at the first timestep.

        Euler's schedule (14.6 = s) gives sqrt(1 + s^2) n + 0.04 s o: in law z + s (n + 0.04 o), the released start.
        """
        start = draws.noise * self.scheduler.init_noise_sigma
        offset = draws.offset.expand_as(start)
        return start + self.scheduler.add_noise(torch.zeros_like(start), offset, timesteps[:1].expand(len(start)))

    def _start_from_images(self, images: np.ndarray, draws: Draws, timesteps: torch.Tensor) -> torch.Tensor:
        """The images' scaled latents (posterior mode), noised to the first of ``timesteps``; as they are if none."""
        x = torch.tensor(images, device=self.device)
        x = (x - self.config.pixel_offset) / self.config.pixel_gain  # what decoding undoes
        latents = self.vae.encode(x).latent_dist.mode() * self.vae.config.scaling_factor
        if not len(timesteps):
            return latents
        return self.scheduler.add_noise(latents, draws.noise + draws.offset, timesteps[:1].expand(len(latents)))

    def _denoise(
        self,
        latents: Float32[torch.Tensor, "B C h w"],
        condition: Float32[torch.Tensor, "B K D"],
        draws: Draws,
        timesteps: torch.Tensor,
        scale: float | int,
    ) -> Float32[torch.Tensor, "B C h w"]:
        """Latents without noise. The unconditional half of a batch comes first; a scale of 1 needs none."""
        halves = 1 if scale == 1 else 2
        context = condition if halves == 1 else torch.cat([draws.unconditional, condition])
        context = context.to(self.unet.dtype)
        grid = [token_grid(context, self._latent_size)] if self._reads_grid else []
        size = self._size_condition(len(context))
        noisy = "generator" in inspect.signature(self.scheduler.step).parameters
        own: dict[str, Any] = {"generator": draws.generators} if noisy else {}
        for t in timesteps:
            scaled = self.scheduler.scale_model_input(latents, t).to(self.unet.dtype)
            scaled = torch.cat([torch.cat([scaled] * halves), *grid], dim=1)
            out = self.unet(scaled, t, encoder_hidden_states=context, added_cond_kwargs=size).sample.float()
            if halves == 2:
                unconditional, conditional = out.chunk(2)
                out = unconditional + scale * (conditional - unconditional)
            latents = self.scheduler.step(out, t, latents, **own).prev_sample
        return latents

    def _size_condition(self, rows: int) -> dict[str, torch.Tensor] | None:
        """No text, and original height, width, crop top and left, for UNets that were told the size of images."""
        if self.unet.config.addition_embed_type != "text_time":
            return None
        like = dict(device=self.device, dtype=self.unet.dtype)
        size = torch.tensor([*self.image_size, 0, 0], **like)
        return {"text_embeds": torch.zeros(rows, 0, **like), "time_ids": size.expand(rows, 4)}

    def _decode(self, latents: Float32[torch.Tensor, "B C h w"]) -> Float32[np.ndarray, "B 3 H W"]:
        """Images in [0, 1], decoded one at a time: at full size a batch would outgrow the UNet's memory."""
        decoded = torch.cat([self.vae.decode(z / self.vae.config.scaling_factor).sample for z in latents.split(1)])
        return (self.config.pixel_gain * decoded + self.config.pixel_offset).clamp(0, 1).cpu().numpy()

    def _check(
        self,
        tokens: np.ndarray,
        ids: list[str],
        blurry: np.ndarray | None,
        strength: float | int,
        steps: int,
        scale: float | int,
        batch: int,
    ) -> None:
        if self.vae is None:
            raise ArtefactError("this keyframe generator has no VAE; load it with vae=")
        width = self.unet.config.cross_attention_dim
        if tokens.ndim != 3 or tokens.shape[-1] != width:
            raise DataError(f"tokens of shape {tokens.shape}; expected (clips, tokens, {width}) for this UNet")
        if tokens.dtype.kind != "f" or not np.isfinite(tokens).all():
            raise DataError(f"tokens of type {tokens.dtype}; expected floats, all finite")
        if len(ids) != len(tokens):
            raise DataError(f"{len(ids)} ids for the tokens of {len(tokens)} clips; expected one each")
        if blurry is not None:
            expected = (len(tokens), 3, *self.image_size)
            if blurry.shape != expected or blurry.dtype != np.float32:
                raise DataError(f"blurry images of shape {blurry.shape}, {blurry.dtype}; expected {expected}, float32")
            if not (np.isfinite(blurry).all() and blurry.min() >= 0 and blurry.max() <= 1):
                raise DataError("blurry images with values outside [0, 1]")
        if not 0 <= strength <= 1:
            raise DataError(f"strength {strength}; expected 0 (the image) to 1 (noise)")
        if steps < 1 or batch < 1:
            raise DataError(f"{steps} steps in batches of {batch}; expected 1 or more of both")
        fixed = self.config.timesteps
        if fixed is not None and steps != len(fixed):
            raise DataError(f"{steps} steps; these weights come with a schedule of {len(fixed)}")
        if not np.isfinite(scale):
            raise DataError(f"guidance scale {scale}; expected a finite number")
