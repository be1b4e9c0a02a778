"""The story: film from brain activity, top to bottom.

voxels --perception--> latents of F frames: the blurry video (colour, layout)
voxels --motion------> coarse optical flow, along which the blurry video moves
voxels --semantics---> CLIP tokens -> keyframe -> caption (what it is)
Guidance(latents, flow, tokens, keyframe, caption) --generator--> video
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neuroclips.artefacts import read_arrays, read_json, write_arrays, write_json
from neuroclips.data.clips import Clips, Targets, TrainingClips, ValidationClips, refuse_test_clips
from neuroclips.decoders import Decoders
from neuroclips.decoders.code import InputLayer, solve_input_layer
from neuroclips.decoders.ridge import RidgeDecoders
from neuroclips.errors import NeuroClipsError
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.vae import Vae
from neuroclips.recipe import VideoRecipe
from neuroclips.shapes import Float32, UInt8
from neuroclips.training.decoders import NeuralDecoders
from neuroclips.video.baselines import BlurryGenerator, NearestGenerator
from neuroclips.video.generator import NeuroClipsGenerator
from neuroclips.video.guidance import Guidance, VideoGenerator
from neuroclips.video.motion import CELLS, coarse_flow

KEYFRAME = 2  # of 6 frames: the frame that stands for a clip (method a.6)
DECODERS: dict[str, type[Decoders]] = {"ridge": RidgeDecoders, "neural": NeuralDecoders}


def keyframe_of(n_frames: int) -> int:
    """The frame that stands for a clip of so many frames."""
    return min(KEYFRAME, n_frames - 1)


def see(vae: Vae, clip: Clip, frames: UInt8[np.ndarray, "B F 3 H W"]) -> Targets:
    """What frozen networks see in clips: VAE latents of every frame and CLIP tokens of the keyframe, float16."""
    latents = vae.encode(frames)
    tokens, _ = clip.images(np.asarray(frames[:, keyframe_of(frames.shape[1])]))
    return Targets(latents.astype(np.float16), tokens.astype(np.float16))


class Reconstructor:
    """Learns from (brain, film) pairs, then turns brain activity into film.

    Parameters
    ----------
    vae, clip : frozen networks: ``"mini"`` or a folder in diffusers/transformers layout.
    decoders : of latents and tokens; ``RidgeDecoders()`` by default, or ``NeuralDecoders()``.
    device : where frozen networks run.

    Example
    -------
    >>> from neuroclips import Reconstructor, load_clips            # doctest: +SKIP
    >>> data = load_clips("runs/demo/prepare")                      # doctest: +SKIP
    >>> reconstructor = Reconstructor().fit(data.train)             # doctest: +SKIP
    >>> videos = reconstructor.reconstruct(data.test)               # doctest: +SKIP
    """

    def __init__(
        self,
        vae: str | Path = "mini",
        clip: str | Path = "mini",
        decoders: Decoders | None = None,
        device: str = "cpu",
    ):
        self.vae, self.clip, self.device = vae, clip, device
        self.decoders = RidgeDecoders() if decoders is None else decoders

    # 1. What the frozen networks see in the film: the targets of both decoders.
    def targets(self, clips: Clips) -> Targets:
        """VAE latents of every frame and CLIP tokens of the keyframe, float16."""
        vae, clip = Vae.load(self.vae, device=self.device), Clip.load(self.clip, device=self.device)
        return see(vae, clip, clips.frames)

    # 2. Learn: voxels to latents, voxels to tokens, voxels to motion.
    def fit(
        self,
        train: TrainingClips,
        validation: ValidationClips | None = None,
        targets: Targets | None = None,
        validation_targets: Targets | None = None,
    ) -> Reconstructor:
        """Fit the decoders. Targets are computed when not given. Raises SplitLeakError for test clips."""
        refuse_test_clips(train, validation)
        targets = self.targets(train) if targets is None else targets
        if validation is not None and validation_targets is None:
            validation_targets = self.targets(validation)
        self.decoders.fit(train, targets, validation, validation_targets)
        self.motion_ = None
        if train.n_frames > 1:
            flow = coarse_flow(np.asarray(train.frames))
            flow -= flow.mean(axis=0)  # what all clips share is no message of the brain: told nothing, nothing moves
            self.motion_ = solve_input_layer(self.decoders.inputs(train), flow.reshape(len(flow), -1), train.segment)
        self.training_tokens_, self.training_frames_ = targets.tokens, np.asarray(train.frames)
        return self

    # 3. Decode: voxels to guidance.
    def decode(self, inputs: Float32[np.ndarray, "B X"], ids: list[str]) -> Guidance:
        """Everything that the brain says about each clip, from ``decoders.inputs`` of the clips."""
        found = self.decoders.decode(inputs, ids)
        flow = None if self.motion_ is None else self.motion_(inputs).reshape(len(inputs), 2, CELLS, CELLS)
        return Guidance(ids, latents=found.latents, tokens=found.tokens, prior_tokens=found.prior_tokens, flow=flow)

    # 4. Show: guidance to video.
    def generator(self, name: str, settings: VideoRecipe | None = None) -> VideoGenerator:
        """The generator called ``neuroclips``, ``blurry`` or ``nearest``.

        ``neuroclips`` draws a keyframe from the tokens, writes its caption, and generates the video under alpha
        (blurry video), beta (keyframe) and gamma (caption) guidance; ``settings`` say which and how strong.
        """
        if name == "nearest":
            return NearestGenerator(self.training_tokens_, self.training_frames_)
        vae = Vae.load(self.vae, device=self.device)
        if name == "blurry":
            return BlurryGenerator(vae)
        if name == "neuroclips":
            return self.neuroclips(settings or VideoRecipe())
        raise NeuroClipsError(f"no generator {name!r}; there are neuroclips, blurry and nearest")

    def neuroclips(self, settings: VideoRecipe) -> NeuroClipsGenerator:
        """The generator called ``neuroclips``, whose keyframes and captions can be had one by one."""
        vae, clip = Vae.load(self.vae, device=self.device), Clip.load(self.clip, device=self.device)
        return NeuroClipsGenerator(settings, vae, clip, device=self.device)

    def reconstruct(
        self,
        clips: Clips,
        generator: str = "blurry",
        n_repeats: int | None = None,
        seed: int = 0,
        settings: VideoRecipe | None = None,
    ) -> UInt8[np.ndarray, "B F 3 H W"]:
        """Video of each clip from the mean of its first ``n_repeats`` repeats (all by default)."""
        guidance = self.decode(self.decoders.inputs(clips, n_repeats), clips.ids)
        return self.generator(generator, settings).generate(guidance, seed=seed)

    def save(self, directory: str | Path) -> dict[str, Any]:
        """Write everything that ``reconstruct`` needs except the frozen networks; returns a summary."""
        directory = Path(directory)
        write_arrays(
            directory / "training.safetensors", {"tokens": self.training_tokens_, "frames": self.training_frames_}
        )
        if self.motion_ is not None:
            motion = {"weight": self.motion_.weight, "bias": self.motion_.bias}
            write_arrays(directory / "motion.safetensors", motion)
        about: dict[str, Any] = {"vae": str(self.vae), "clip": str(self.clip), **self.decoders.save(directory)}
        write_json(directory / "reconstructor.json", about)
        return about

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> Reconstructor:
        """A saved reconstructor, ready to decode."""
        directory = Path(directory)
        about = read_json(directory / "reconstructor.json")
        decoders = DECODERS[about["decoders"]].load(directory)
        reconstructor = cls(about["vae"], about["clip"], decoders, device=device)
        motion = directory / "motion.safetensors"
        reconstructor.motion_ = InputLayer(**read_arrays(motion)) if motion.exists() else None
        training = read_arrays(directory / "training.safetensors")
        reconstructor.training_tokens_, reconstructor.training_frames_ = training["tokens"], training["frames"]
        return reconstructor
