"""The story: film from brain activity, top to bottom.

voxels --perception--> latents of F frames: the blurry video (colour, layout)
voxels --motion------> coarse optical flow, along which the blurry video moves
voxels --semantics---> CLIP tokens -> keyframe -> caption (what it is)
Guidance(latents, flow, tokens, keyframe, caption) --generator--> video
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neuroclips.artefacts import in_parts, read_arrays, read_json, write_arrays, write_json
from neuroclips.data.clips import Clips, Targets, TrainingClips, ValidationClips, refuse_test_clips
from neuroclips.decoders import Decoders
from neuroclips.decoders.code import InputLayer, solve_input_layer
from neuroclips.decoders.ridge import RidgeDecoders
from neuroclips.errors import ArtefactError, NeuroClipsError
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.vae import Vae
from neuroclips.recipe import KEYFRAME, VideoRecipe
from neuroclips.shapes import Float, Float32, UInt8
from neuroclips.training.decoders import NeuralDecoders
from neuroclips.training.end_to_end import EndToEndDecoders
from neuroclips.video.baselines import BlurryGenerator, NearestGenerator
from neuroclips.video.generator import NeuroClipsGenerator
from neuroclips.video.guidance import Guidance, VideoGenerator
from neuroclips.video.motion import CELLS, coarse_flow
from neuroclips.video.neuroclips_pipeline import NeuroClipsPipeline

DECODERS: dict[str, type[Decoders]] = {d.name: d for d in (RidgeDecoders, NeuralDecoders, EndToEndDecoders)}

CLIPS_AT_ONCE = 256  # of the paper's tokens 0.4 GB in float32
PARTS = ("latents", "tokens", "prior_tokens", "flow")  # of guidance, that are decoded


def keyframe_of(n_frames: int) -> int:
    """The frame that stands for a clip of so many frames."""
    return min(KEYFRAME, n_frames - 1)


def see(
    vae: Vae, clip: Clip, frames: UInt8[np.ndarray, "B F 3 H W"], keyframes: Sequence[int] | None = None
) -> Targets:
    """What frozen networks see in clips: VAE latents of every frame and CLIP tokens of the keyframe, float16.

    keyframes : whose tokens are the candidates; ascending, with the one that stands for a clip in the middle.
    """
    latents = vae.encode(frames).astype(np.float16)
    chosen = [keyframe_of(frames.shape[1])] if keyframes is None else list(keyframes)
    seen, _ = clip.images(np.asarray(frames[:, chosen]).reshape(-1, *frames.shape[2:]))
    tokens = seen.astype(np.float16).reshape(len(frames), len(chosen), *seen.shape[1:])
    if keyframes is None:
        return Targets(latents, tokens[:, 0])
    return Targets.of({"latents": latents, "candidates": tokens})


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
        parts = [see(vae, clip, clips.frames[rows]) for rows in in_parts(len(clips), CLIPS_AT_ONCE, clips.frames)]
        return Targets(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("latents", "tokens")))

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
            flow = coarse_flow(train.frames)
            flow -= flow.mean(axis=0)  # what all clips share is no message of the brain: told nothing, nothing moves
            self.motion_ = solve_input_layer(self.decoders.inputs(train), flow.reshape(len(flow), -1), train.segment)
        self._training: Callable[[], tuple[np.ndarray, np.ndarray]] = lambda: (targets.tokens, train.frames)
        return self

    @property
    def training_tokens_(self) -> Float[np.ndarray, "T K D"]:
        """Tokens of the training clips."""
        return self._training()[0]

    # 3. Decode: voxels to guidance.
    def decode(self, inputs: Float32[np.ndarray, "B X"], ids: list[str]) -> Guidance:
        """Everything that the brain says about each clip, from ``decoders.inputs`` of the clips."""
        whole: dict[str, Any] = {}
        for rows, found in self.decoded(inputs, ids):
            for name in PARTS:
                part = getattr(found, name)
                if part is not None and name not in whole:
                    whole[name] = np.empty((len(ids), *part.shape[1:]), part.dtype)
                if part is not None:
                    whole[name][rows] = part
        return Guidance(ids, **whole)

    def decoded(self, inputs: Float32[np.ndarray, "B X"], ids: list[str]) -> Iterator[tuple[slice, Guidance]]:
        """``decode``, some clips at a time: tokens of the paper's test set are 2 GB, and the prior's as much again."""
        for rows in in_parts(len(ids), CLIPS_AT_ONCE):
            x = inputs[rows]
            found = self.decoders.decode(x, ids[rows])
            flow = None if self.motion_ is None else self.motion_(x).reshape(len(x), 2, CELLS, CELLS)
            yield (
                rows,
                Guidance(
                    ids[rows], latents=found.latents, tokens=found.tokens, prior_tokens=found.prior_tokens, flow=flow
                ),
            )

    # 4. Show: guidance to video.
    def generator(self, name: str, settings: VideoRecipe | None = None) -> VideoGenerator:
        """The generator called ``neuroclips``, ``blurry`` or ``nearest``.

        ``neuroclips`` draws a keyframe from the tokens, writes its caption, and generates the video under alpha
        (blurry video), beta (keyframe) and gamma (caption) guidance; ``settings`` say which and how strong.
        """
        if name == "nearest":
            return NearestGenerator(*self._training())
        vae = Vae.load(self.vae, device=self.device)
        if name == "blurry":
            return BlurryGenerator(vae)
        if name == "neuroclips":
            return self.neuroclips(settings or VideoRecipe())
        raise NeuroClipsError(f"no generator {name!r}; there are neuroclips, blurry and nearest")

    def neuroclips(self, settings: VideoRecipe) -> NeuroClipsGenerator:
        """The generator called ``neuroclips``, whose keyframes and captions can be had one by one."""
        clip = Clip.load(self.clip, device=self.device) if NeuroClipsPipeline.wants_text(settings.video) else None
        return NeuroClipsGenerator(settings, Vae.load(self.vae, device=self.device), clip, device=self.device)

    def reconstruct(
        self,
        clips: Clips,
        generator: str = "blurry",
        n_repeats: int | None = None,
        seed: int = 0,
        settings: VideoRecipe | None = None,
    ) -> UInt8[np.ndarray, "B F 3 H W"]:
        """Video of each clip from the mean of its first ``n_repeats`` repeats (all by default)."""
        made = self.generator(generator, settings)
        parts = self.decoded(self.decoders.inputs(clips, n_repeats), clips.ids)
        return np.concatenate([made.generate(guidance, seed=seed) for _, guidance in parts])

    def save(self, directory: str | Path, *, films: Path | None = None, targets: Path | None = None) -> dict[str, Any]:
        """Write everything that ``reconstruct`` needs except the frozen networks; returns a summary.

        films, targets : files of a run that hold the training clips' frames and targets already. Only their places are
            written then, seen from ``directory``; else a copy of frames and tokens, which "nearest" shows.
        """
        directory = Path(directory)
        places = None
        if films is not None and targets is not None:
            places = {name: os.path.relpath(path, directory) for name, path in (("films", films), ("targets", targets))}
        else:
            tokens, frames = self._training()
            write_arrays(directory / "training.safetensors", {"tokens": tokens, "frames": frames})
        if self.motion_ is not None:
            motion = {"weight": self.motion_.weight, "bias": self.motion_.bias}
            write_arrays(directory / "motion.safetensors", motion)
        about: dict[str, Any] = {"vae": str(self.vae), "clip": str(self.clip), **self.decoders.save(directory)}
        about["training_clips"] = places
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
        reconstructor._training = partial(_training_clips, directory, about["training_clips"])
        return reconstructor


def _training_clips(directory: Path, places: dict[str, str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and frames of the clips that a saved reconstructor was fitted to, memory-mapped."""
    if places is None:
        found = read_arrays(directory / "training.safetensors")
        return found["tokens"], found["frames"]
    paths = {name: directory / place for name, place in places.items()}
    for path in paths.values():
        if not path.exists():
            raise ArtefactError(
                f"{path}: not there; the training clips of {directory} are in that file. Keep the folders of a run "
                "together, or fit again"
            )
    return Targets.of(read_arrays(paths["targets"])).tokens, read_arrays(paths["films"])["frames"]
