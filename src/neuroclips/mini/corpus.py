"""Endless training data for the mini networks: picture-book scenes made on the fly, and natural film frames.

No scene of a demo film can recur: seeds come from a stream of their own, and held-out things and places are left out.
Generators learn from what frozen networks make of scenes: ``encode``, ``tokens``, ``text_states``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from neuroclips.artefacts import stable_seed
from neuroclips.data.frames import film_info, read_clips
from neuroclips.pretrained.clip import Clip, image_tokens, pixels
from neuroclips.pretrained.vae import Vae
from neuroclips.simulation.film import familiar_places
from neuroclips.simulation.rendering import render
from neuroclips.simulation.scenes import Scene, sample_scene
from neuroclips.simulation.things import TRAINING_THINGS, Thing

CLIP_FRAMES, CLIP_FPS = 16, 9.0  # 6 frames at 3 a second, with two more between neighbours


class Scenes(IterableDataset):
    """Endless (frames, caption) pairs: ``frames`` frames (n, 3, H, W) uint8 of one random scene.

    They are at random times, or with ``fps`` at that rate from a random time.
    """

    def __init__(self, *, size: int, frames: int, seed: int, fps: float | None = None):
        self.size, self.frames, self.seed, self.fps = size, frames, seed, fps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, str]]:
        worker = get_worker_info()
        rng = np.random.default_rng(stable_seed("mini corpus", self.seed, worker.id if worker else 0))
        while True:
            scene = sample_scene(rng, things=TRAINING_THINGS, places=familiar_places)
            if self.fps is None:
                times = np.sort(rng.uniform(0, scene.duration_s, self.frames))
            else:
                within = np.arange(self.frames) / self.fps
                times = rng.uniform(0, scene.duration_s - within[-1]) + within
            yield torch.from_numpy(render(scene, times, self.size)), scene.caption


def scene_batches(
    *, size: int, frames: int, scenes: int, seed: int, workers: int, fps: float | None = None
) -> Iterator:
    """Endless batches: frames (scenes, frames, 3, H, W) uint8 and the list of captions."""
    if workers:
        cv2.setNumThreads(1)  # here, too: workers that are forked from a process with OpenCV's threads hang
    loader = DataLoader(
        Scenes(size=size, frames=frames, seed=seed, fps=fps), batch_size=scenes, num_workers=workers,
        prefetch_factor=4 if workers else None, persistent_workers=workers > 0, worker_init_fn=_one_thread,
    )  # fmt: skip
    return iter(loader)


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)


def replay(
    fresh: Iterator[dict[str, torch.Tensor]], *, uses: int, kept: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of rows drawn at random from the last ``kept`` fresh batches; each row comes ``uses`` times.

    A diffusion model that meets a row again meets it at another time, in other noise; rendering then costs less.
    Fresh batches are dictionaries of tensors with the same number of rows.
    """
    generator = torch.Generator().manual_seed(stable_seed("mini replay", seed))
    pool: dict[str, torch.Tensor] = {}
    for number in range(10**12):
        if number % uses == 0:
            batch = next(fresh)
            rows = len(next(iter(batch.values())))
            pool = pool or {name: v.new_empty(kept * rows, *v.shape[1:]) for name, v in batch.items()}
            slot = number // uses % kept
            for name, value in batch.items():
                pool[name][slot * rows : (slot + 1) * rows] = value
            filled = rows * min(number // uses + 1, kept)
        chosen = torch.randperm(filled, generator=generator)[:rows]
        yield {name: value[chosen.to(value.device)] for name, value in pool.items()}


def sample_held_out(n: int, *, seed: int, things: Sequence[Thing] = TRAINING_THINGS) -> list[Scene]:
    """``n`` scenes with different captions, for scoring."""
    rng = np.random.default_rng(stable_seed("mini held out", seed))
    scenes: dict[str, Scene] = {}
    while len(scenes) < n:
        scene = sample_scene(rng, things=things, places=familiar_places)
        scenes.setdefault(scene.caption, scene)
    return list(scenes.values())


def held_out_scenes(
    n: int, *, size: int, seed: int, things: Sequence[Thing] = TRAINING_THINGS
) -> tuple[np.ndarray, list[str]]:
    """One middle frame (n, 3, H, W) uint8 and the caption of ``n`` scenes with different captions, for scoring."""
    scenes = sample_held_out(n, seed=seed, things=things)
    frames = [render(scene, np.array([scene.duration_s / 2]), size)[0] for scene in scenes]
    return np.stack(frames), [scene.caption for scene in scenes]


def held_out_clips(n: int, *, size: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """A clip (n, CLIP_FRAMES, 3, H, W) uint8 from the middle on, and the caption, of ``n`` scenes, for scoring."""
    scenes = sample_held_out(n, seed=seed)
    within = np.arange(CLIP_FRAMES) / CLIP_FPS
    frames = [render(scene, scene.duration_s / 2 + within, size) for scene in scenes]
    return np.stack(frames), [scene.caption for scene in scenes]


def half(device: str | torch.device) -> AbstractContextManager:
    """Frozen networks compute in bfloat16 on an accelerator."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind != "cpu")


@torch.no_grad()
def encode(vae: Vae, frames: torch.Tensor) -> torch.Tensor:
    """Scaled latents (n, C, h, w), float32, of uint8 frames (n, 3, H, W), on the network's device."""
    x = frames.to(vae.device, non_blocking=True).float() / 127.5 - 1
    with half(vae.device):
        latents = vae.model.encode(x.to(memory_format=torch.channels_last)).latent_dist.mode()
    return latents.float().contiguous() * vae.model.config.scaling_factor


@torch.no_grad()
def tokens(clip: Clip, frames: torch.Tensor) -> torch.Tensor:
    """Image tokens (n, K, D), float32, of uint8 frames (n, 3, H, W)."""
    x = pixels(frames.to(clip.device, non_blocking=True), clip.model.config.vision_config.image_size)
    with half(clip.device):
        return image_tokens(clip.model, x)[0].float()


@torch.no_grad()
def text_states(clip: Clip, captions: Sequence[str]) -> torch.Tensor:
    """Last hidden states (n, words, D), float32, of captions padded to full length without a mask, as pipelines do."""
    batch = clip.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").to(clip.device)
    with half(clip.device):
        return clip.model.text_model(input_ids=batch["input_ids"]).last_hidden_state.float()


def natural_frames(folder: Path, *, size: int, fps: float = 3.0) -> dict[str, np.ndarray]:
    """Frames (n, 3, size, size) uint8 at ``fps`` of every MP4 in a folder, by file name."""
    found = {}
    for path in sorted(Path(folder).glob("*.mp4")):
        seconds = int(film_info(path).seconds * fps) / fps
        found[path.stem] = read_clips(path, 1, seconds, round(seconds * fps), size)[0]
    return found
