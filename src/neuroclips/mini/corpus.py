"""Endless training data for the mini networks: picture-book scenes made on the fly, and natural film frames.

No scene of a demo film can recur: seeds come from a stream of their own, and held-out things and places are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from neuroclips.artefacts import stable_seed
from neuroclips.data.frames import film_info, read_clips
from neuroclips.simulation.film import familiar_places
from neuroclips.simulation.rendering import render
from neuroclips.simulation.scenes import sample_scene
from neuroclips.simulation.things import TRAINING_THINGS, Thing


class Scenes(IterableDataset):
    """Endless (frames, caption) pairs: ``frames`` random frames (n, 3, H, W) uint8 of one random scene."""

    def __init__(self, *, size: int, frames: int, seed: int):
        self.size, self.frames, self.seed = size, frames, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, str]]:
        worker = get_worker_info()
        rng = np.random.default_rng(stable_seed("mini corpus", self.seed, worker.id if worker else 0))
        while True:
            scene = sample_scene(rng, things=TRAINING_THINGS, places=familiar_places)
            times = np.sort(rng.uniform(0, scene.duration_s, self.frames))
            yield torch.from_numpy(render(scene, times, self.size)), scene.caption


def scene_batches(*, size: int, frames: int, scenes: int, seed: int, workers: int) -> Iterator:
    """Endless batches: frames (scenes, frames, 3, H, W) uint8 and the list of captions."""
    loader = DataLoader(
        Scenes(size=size, frames=frames, seed=seed), batch_size=scenes, num_workers=workers,
        prefetch_factor=4 if workers else None, persistent_workers=workers > 0,
    )  # fmt: skip
    return iter(loader)


def held_out_scenes(
    n: int, *, size: int, seed: int, things: Sequence[Thing] = TRAINING_THINGS
) -> tuple[np.ndarray, list[str]]:
    """One middle frame (n, 3, H, W) uint8 and the caption of ``n`` scenes with different captions, for scoring."""
    rng = np.random.default_rng(stable_seed("mini held out", seed))
    frames: dict[str, np.ndarray] = {}
    while len(frames) < n:
        scene = sample_scene(rng, things=things, places=familiar_places)
        frames.setdefault(scene.caption, render(scene, np.array([scene.duration_s / 2]), size)[0])
    return np.stack(list(frames.values())), list(frames)


def natural_frames(folder: Path, *, size: int, fps: float = 3.0) -> dict[str, np.ndarray]:
    """Frames (n, 3, size, size) uint8 at ``fps`` of every MP4 in a folder, by file name."""
    found = {}
    for path in sorted(Path(folder).glob("*.mp4")):
        seconds = int(film_info(path).seconds * fps) / fps
        found[path.stem] = read_clips(path, 1, seconds, round(seconds * fps), size)[0]
    return found
