"""From what the brain says to video: keyframe, caption, then diffusion under alpha, beta and gamma guidance."""

# mypy: disable-error-code="attr-defined"
# (what the pipeline inherits from diffusers is not seen by mypy)
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from neuroclips.artefacts import stable_seed
from neuroclips.errors import NeuroClipsError
from neuroclips.pretrained.caption import Captioner
from neuroclips.pretrained.clip import DTYPES, Clip
from neuroclips.pretrained.keyframe import KeyframeGenerator
from neuroclips.pretrained.vae import Vae
from neuroclips.recipe import VideoRecipe
from neuroclips.shapes import Float32, UInt8
from neuroclips.video.guidance import Guidance
from neuroclips.video.motion import moved
from neuroclips.video.neuroclips_pipeline import NeuroClipsPipeline, resized


class NeuroClipsGenerator:
    """The method's generator (paper section 3.3): 16 frames a clip from tokens and a blurry video.

    Parameters
    ----------
    settings : which weights, which guidance, how strong.
    vae, clip : the run's own: ``vae`` turns decoded latents into the blurry video, and both stand in for parts that
        the weights' folders lack. ``clip`` is None where none does (``NeuroClipsPipeline.wants_text``).
    """

    name = "neuroclips"

    def __init__(self, settings: VideoRecipe, vae: Vae, clip: Clip | None, *, device: str = "cpu"):
        self.settings, self.vae = settings, vae
        dtype = DTYPES[settings.dtype]
        self.keyframes = KeyframeGenerator.load(settings.keyframe, vae=vae.model, device=device, dtype=dtype)
        self.captioner = Captioner.load(settings.caption, device=device, dtype=dtype)
        self.pipeline = NeuroClipsPipeline.load(settings.video, vae=vae, clip=clip, device=device, dtype=dtype)
        if settings.offload:
            self.pipeline.enable_model_cpu_offload(device=device)

    def draw(self, guidance: Guidance, *, seed: int) -> Guidance:
        """``guidance`` with keyframes, drawn from the tokens.

        From the prior's where there are some: keyframe generators were taught with tokens of images.
        """
        tokens = guidance.prior_tokens if guidance.prior_tokens is not None else guidance.tokens
        if tokens is None:
            raise NeuroClipsError("keyframes are drawn from tokens; this guidance has none")
        chosen = self.settings
        keyframes = self.keyframes.generate(
            tokens, guidance.ids, seed=seed, strength=chosen.keyframe_strength, batch=chosen.batch,
            blurry=self._blurry(guidance)[:, 0] if chosen.keyframe_strength < 1 else None,
            steps=chosen.keyframe_steps, guidance_scale=chosen.keyframe_guidance_scale,
        )  # fmt: skip
        return replace(guidance, keyframes=keyframes)

    def describe(self, guidance: Guidance) -> Guidance:
        """``guidance`` with captions of its keyframes."""
        assert guidance.keyframes is not None, "draw the keyframes first"
        return replace(guidance, captions=self.captioner.captions(guidance.keyframes))

    def generate(self, guidance: Guidance, *, seed: int) -> UInt8[np.ndarray, "B F 3 H W"]:
        """Videos of the clips. Keyframes and captions are made first where ``guidance`` has none of them."""
        chosen = self.settings
        if guidance.keyframes is None:
            guidance = self.draw(guidance, seed=seed)
        if guidance.captions is None:
            guidance = self.describe(guidance)
        videos = []
        for start in range(0, len(guidance), chosen.batch):
            part = guidance.take(np.arange(start, min(start + chosen.batch, len(guidance))))
            # A frame handed over by the clip before (fusion) stands at the beginning, in the keyframe's place.
            handed = part.first_frames is not None
            keyframes = part.first_frames if handed else part.keyframes
            videos.append(
                self.pipeline(
                    part.captions if "gamma" in chosen.paths else None,
                    blurry=torch.from_numpy(self._start(part)) if "alpha" in chosen.paths else None,
                    keyframes=torch.from_numpy(keyframes)[:, None] if "beta" in chosen.paths else None,
                    keyframe_indices=[0 if handed else chosen.keyframe_at],
                    generators=[torch.Generator().manual_seed(stable_seed(seed, "video", i)) for i in part.ids],
                    frames=chosen.frames, start=chosen.start, strength=chosen.strength, steps=chosen.steps,
                    control_scale=chosen.control_scale, guidance_scale=chosen.guidance_scale, style=chosen.style,
                    negative_prompt=chosen.negative_prompt,
                )
            )  # fmt: skip
        return np.concatenate(videos)

    def _start(self, guidance: Guidance) -> Float32[np.ndarray, "B F 3 H W"]:
        """The video in [0, 1] that denoising starts from: the blurry one, moving along the decoded flow.

        A blur shows no motion. So ``keyframe_share`` of it is the keyframe, which moves along, too.
        """
        blurry, chosen = self._blurry(guidance), self.settings
        if guidance.flow is None:
            return blurry
        video = moved(blurry, guidance.flow, gain=chosen.motion_gain)
        if "beta" not in chosen.paths or chosen.keyframe_share == 0:
            return video
        assert guidance.keyframes is not None
        keyframe = resized(torch.from_numpy(guidance.keyframes)[:, None], *video.shape[-2:]).numpy()
        still = keyframe.repeat(video.shape[1], axis=1)
        place = chosen.keyframe_at / max(chosen.frames - 1, 1) * (video.shape[1] - 1)
        moving = moved(still, guidance.flow, still=place, gain=chosen.motion_gain)
        return (1 - chosen.keyframe_share) * video + chosen.keyframe_share * moving

    def _blurry(self, guidance: Guidance) -> Float32[np.ndarray, "B F 3 H W"]:
        """The blurry video in [0, 1]."""
        if guidance.latents is None:
            raise NeuroClipsError("alpha guidance needs the blurry video's latents; this guidance has none")
        return self.vae.decode(guidance.latents).astype(np.float32) / 255
