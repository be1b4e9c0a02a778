"""What the frozen networks see in every clip, computed once and kept: latents, tokens, captions, their embeddings.

Clips go through the networks ``CHUNK`` at a time. Every finished chunk stands when a run is killed; chunks may be
shared by several processes, a GPU each. At full size (4,320 training and 1,200 test clips) tokens take 4.7 GB in half
precision, so they are read memory-mapped and never held.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from neuroclips.artefacts import GrowingArrays, read_arrays, read_json, write_arrays, write_json
from neuroclips.data.source import SPLITS
from neuroclips.pretrained.caption import Captioner
from neuroclips.pretrained.clip import DTYPES, Clip
from neuroclips.pretrained.vae import Vae
from neuroclips.recipe import TargetsRecipe
from neuroclips.reconstructor import keyframe_of, see

CHUNK = 128  # clips

Report = Callable[[int, int, str], None]


def write_targets(films: Path, out: Path, recipe: TargetsRecipe, report: Report) -> dict[str, Any]:
    """SPLIT.safetensors in ``out`` of the frames in ``films``: latents (B, F, C, h, w) and tokens (B, K, D), float16;
    of training clips with ``recipe.keyframes`` candidates (B, M, K, D) in place of tokens.

    With captions (published ones, or written by ``recipe.captions``) also captions.json and text.safetensors, one unit
    embedding (B, P) a clip. Returns the shapes by split.
    """
    frames = {split: read_arrays(Path(films) / f"{split}.safetensors")["frames"] for split in SPLITS}
    jobs = [(split, start) for split in SPLITS for start in range(0, len(frames[split]), CHUNK)]
    device = device_of(recipe.device, 0)
    vae, clip = Vae.load(recipe.vae, device=device), Clip.load(recipe.clip, device=device, dtype=DTYPES[recipe.dtype])
    growing, shapes = {}, {}
    for split in SPLITS:
        first = see(vae, clip, np.asarray(frames[split][:1]), _keyframes(recipe, split)).arrays()
        shapes[split] = {name: (len(frames[split]), *array.shape[1:]) for name, array in first.items()}
        specs = {name: (shape, "F16") for name, shape in shapes[split].items()}
        growing[split] = GrowingArrays(Path(out) / f"{split}.safetensors", specs)
    del vae, clip  # workers load their own
    left = [job for job in jobs if not growing[job[0]].has(str(job[1]))]
    done = len(jobs) - len(left)
    for split, start in _filled(left, Path(films), {s: g.growing for s, g in growing.items()}, recipe):
        growing[split].finish(str(start))
        report(done, len(jobs), f"{split}, clip {start}")
        done += 1
    for arrays in growing.values():
        arrays.close()
    _write_captions(Path(films), frames, Path(out), recipe, report)
    return shapes


def _filled(jobs: list[tuple[str, int]], films: Path, files: dict[str, Path], recipe: TargetsRecipe):
    """Fill in the rows of every chunk, here or in several processes; yields each chunk when it is on disk."""
    n = min(recipe.processes, len(jobs))
    if n <= 1:
        worker = _Worker(films, files, recipe, 0)
        yield from map(worker, jobs)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    numbers = context.Queue()
    for number in range(n):
        numbers.put(number)
    with context.Pool(n, _begin, (films, files, recipe, numbers)) as pool:
        yield from pool.imap_unordered(_work, jobs)


class _Worker:
    """The frozen networks of one process."""

    def __init__(self, films: Path, files: dict[str, Path], recipe: TargetsRecipe, number: int):
        device = device_of(recipe.device, number)
        self.films, self.files, self.recipe = films, files, recipe
        self.vae = Vae.load(recipe.vae, device=device)
        self.clip = Clip.load(recipe.clip, device=device, dtype=DTYPES[recipe.dtype])

    def __call__(self, job: tuple[str, int]) -> tuple[str, int]:
        split, start = job
        rows = slice(start, start + CHUNK)
        frames = np.asarray(read_arrays(self.films / f"{split}.safetensors")["frames"][rows])
        found = see(self.vae, self.clip, frames, _keyframes(self.recipe, split)).arrays()
        with GrowingArrays.opened(self.files[split]) as arrays:
            for name, array in found.items():
                arrays[name][rows] = array
        return job


def _keyframes(recipe: TargetsRecipe, split: str) -> tuple[int, ...] | None:
    return recipe.keyframes if split == "train" else None


_worker: _Worker


def _begin(films: Path, files: dict[str, Path], recipe: TargetsRecipe, numbers: Any) -> None:
    global _worker
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // recipe.processes))
    _worker = _Worker(films, files, recipe, numbers.get())


def _work(job: tuple[str, int]) -> tuple[str, int]:
    return _worker(job)


def device_of(device: str, number: int) -> str:
    """The device of a process: GPUs in turn where there are any."""
    import torch

    if device != "auto":
        return device
    return f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def _write_captions(
    films: Path, frames: dict[str, np.ndarray], out: Path, recipe: TargetsRecipe, report: Report
) -> None:
    """captions.json: a sentence for each clip, by split; text.safetensors: their unit embeddings, by split."""
    published = films / "captions.json"
    if (out / "text.safetensors").exists() or (recipe.captions is None and not published.exists()):
        return
    if published.exists():
        captions = read_json(published)
    else:
        assert recipe.captions is not None
        captioner = Captioner.load(recipe.captions, device=device_of(recipe.device, 0), dtype=DTYPES[recipe.dtype])
        captions = {}
        for split in SPLITS:
            captions[split] = []
            for start in range(0, len(frames[split]), CHUNK):
                report(len(captions[split]), len(frames[split]), f"captions, {split}")
                shown = np.asarray(frames[split][start : start + CHUNK, keyframe_of(frames[split].shape[1])])
                captions[split] += captioner.captions(shown)
    write_json(out / "captions.json", captions)
    if (films / "text.safetensors").exists():
        text = {split: np.asarray(array) for split, array in read_arrays(films / "text.safetensors").items()}
    else:
        clip = Clip.load(recipe.clip, device=device_of(recipe.device, 0), dtype=DTYPES[recipe.dtype])
        text = {
            split: np.concatenate([clip.texts(sentences[i : i + CHUNK]) for i in range(0, len(sentences), CHUNK)])
            for split, sentences in captions.items()
        }
    write_arrays(out / "text.safetensors", {split: _unit(vectors) for split, vectors in text.items()})


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
