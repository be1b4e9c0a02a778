"""Train the picture-book judge: a small ``transformers.ResNetForImageClassification`` that names the thing in a frame.

It is an outside judge (``evaluation.judges``): no other network learns from it, and it learns from no other network.
So it may know what they never meet: all things, the held-out ones too, on all grounds. Its scenes are drawn anew from
seeds of its own; no scene of a film recurs.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

from neuroclips.artefacts import stable_seed, write_json
from neuroclips.mini.loop import train
from neuroclips.simulation.grounds import GROUNDS
from neuroclips.simulation.rendering import render
from neuroclips.simulation.scenes import Scene, sample_scene
from neuroclips.simulation.sprites import ATTRIBUTION
from neuroclips.simulation.things import HELD_OUT_THINGS, THINGS, Thing
from neuroclips.training.loop import Batches

SIZE = 64
MEAN, SD = 0.5, 0.25  # of RGB in [0, 1]: what the network's input is normalised by
FRAMES_A_SCENE, SCENES_A_CHUNK = 4, 2048  # 100 MB
DEGRADED, RISES = 0.7, 1500  # share of frames; batches over which it rises: with all at once, nothing was learnt
IN_SIGHT = 0.5  # share of a thing inside the frame from which it can be named
SCORED = 1000  # held-out scenes
BLUR = 1.5  # pixels; standard deviation at which blurred frames are scored
NUMBER = {thing: number for number, thing in enumerate(THINGS)}


def config() -> ResNetConfig:
    """0.23 M parameters, one class a thing."""
    names = {number: thing.name for thing, number in NUMBER.items()}
    return ResNetConfig(
        embedding_size=24, hidden_sizes=[32, 64, 88], depths=[1, 1, 1], layer_type="basic", id2label=names,
        label2id={name: number for number, name in names.items()},
    )  # fmt: skip


def everywhere(thing: Thing) -> tuple[str, ...]:
    """All grounds: the judge knows also the places that other networks' training leaves out."""
    return tuple(GROUNDS)


def room(scene: Scene, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of the frame each thing takes at T times, and the share of each that is in sight: two arrays (A, T)."""
    states = scene.state(times)
    visible = np.stack([state.visible for state in states])
    return visible * np.stack([state.size**2 for state in states]), visible


def sample(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n, 3, H, W) uint8 of a random scene at random times, and their labels (n, M).

    The label of a frame is each thing's share of the room that things take; of two things neither is *the* right one.
    """
    while True:
        scene = sample_scene(rng, things=THINGS, places=everywhere)
        times = rng.uniform(0, scene.duration_s, 3 * frames)
        taken, visible = room(scene, times)
        good = np.flatnonzero(visible.max(axis=0) >= IN_SIGHT)[:frames]
        if len(good) == frames:
            labels = np.zeros((frames, len(THINGS)), np.float32)
            labels[:, [NUMBER[actor.thing] for actor in scene.actors]] = (taken / taken.sum(axis=0))[:, good].T
            return render(scene, times[good], SIZE), labels


def degraded(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A frame (3, H, W) uint8 as a decoder might show it: shifted, blurred, tinted, grainy, compressed."""
    image, chance = np.ascontiguousarray(frame.transpose(1, 2, 0)), rng.random(4)
    zoom, (x, y) = rng.uniform(0.9, 1.1), rng.uniform(-4, 4, 2)
    middle = (1 - zoom) * SIZE / 2
    move = np.array([[zoom, 0, middle + x], [0, zoom, middle + y]])
    image = cv2.warpAffine(image, move, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT)
    if chance[0] < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 2.2))
    x = image.astype(np.float32)
    if chance[1] < 0.6:
        x = x * rng.normal(1, 0.1, 3) + rng.normal(0, 8, 3)
    if chance[2] < 0.4:
        x = x + rng.uniform(0, 14) * rng.standard_normal(x.shape)
    image = np.rint(x.clip(0, 255)).astype(np.uint8)
    if chance[3] < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 80))]
        image = np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR))
    return image.transpose(2, 0, 1)


def normalised(frames: np.ndarray) -> Tensor:
    """The network's input (n, 3, H, W) of uint8 frames."""
    x = (torch.from_numpy(frames).float() / 255 - MEAN) / SD
    return x.contiguous(memory_format=torch.channels_last)  # on a CPU 1.6 x as fast


@functools.lru_cache(maxsize=1)
def chunk(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and labels of many scenes in random order: a scene's frames come cheaper together."""
    rng = np.random.default_rng(stable_seed("outside judge", seed, number))
    frames, labels = zip(*(sample(rng, FRAMES_A_SCENE) for _ in range(SCENES_A_CHUNK)))
    order = rng.permutation(FRAMES_A_SCENE * SCENES_A_CHUNK)
    return np.concatenate(frames)[order], np.concatenate(labels)[order]


def batches(size: int, *, seed: int) -> Batches:
    """``size`` frames and labels by the batch's number: the same number gives the same frames."""
    a_chunk = FRAMES_A_SCENE * SCENES_A_CHUNK // size

    def batch(number: int, _: torch.Generator) -> dict[str, Tensor]:
        rng = np.random.default_rng(stable_seed("outside judge, degraded", seed, number))
        frames, labels = chunk(seed, number // a_chunk)
        rows = slice(number % a_chunk * size, (number % a_chunk + 1) * size)
        share = DEGRADED * min(1.0, number / RISES)
        seen = [degraded(frame, rng) if rng.random() < share else frame for frame in frames[rows]]
        return {"pixels": normalised(np.stack(seen)), "labels": torch.from_numpy(labels[rows])}

    return batch


def loss(model: Any, batch: dict[str, Tensor], _: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy with the shares of the things."""
    logits = model(pixel_values=batch["pixels"]).logits.float()
    right = (logits.argmax(1) == batch["labels"].argmax(1)).float().mean()
    return functional.cross_entropy(logits, batch["labels"]), {"top1": right}


def held_out(n: int, *, seed: int) -> Iterator[tuple[np.ndarray, Scene]]:
    """The middle frame of ``n`` scenes that training did not draw, with the main thing in sight."""
    rng = np.random.default_rng(stable_seed("outside judge, held out", seed))
    while n:
        scene = sample_scene(rng, things=THINGS, places=everywhere)
        middle = np.array([scene.duration_s / 2])
        if room(scene, middle)[1][0, 0] >= IN_SIGHT:
            n -= 1
            yield render(scene, middle, SIZE)[0], scene


@torch.no_grad()
def score(model: Any, *, n: int = SCORED, seed: int = 0) -> dict[str, float]:
    """Shares of held-out scenes whose most probable class is the main thing, or a thing of the scene; also blurred."""
    frames, scenes = zip(*held_out(n, seed=seed))
    main = np.array([NUMBER[scene.main.thing] for scene in scenes])
    alone = np.array([len(scene.actors) == 1 for scene in scenes])
    unseen = np.array([scene.main.thing in HELD_OUT_THINGS for scene in scenes])
    blurred = [cv2.GaussianBlur(frame.transpose(1, 2, 0), (0, 0), BLUR).transpose(2, 0, 1) for frame in frames]
    scores = {"chance": 1 / len(THINGS)}
    for name, seen in (("", frames), ("blurred_", blurred)):
        found = []
        for start in range(0, n, 100):
            x = normalised(np.stack(seen[start : start + 100])).to(model.device)
            found.append(model(pixel_values=x).logits.argmax(1).cpu().numpy())
        said = np.concatenate(found)
        right = said == main
        names_one = [number in {NUMBER[a.thing] for a in scene.actors} for number, scene in zip(said, scenes)]
        scores |= {
            f"{name}top1_main_thing": float(right.mean()),
            f"{name}top1_a_thing_of_the_scene": float(np.mean(names_one)),
            f"{name}top1_of_one_thing": float(right[alone].mean()),
            f"{name}top1_of_one_thing_unseen_elsewhere": float(right[alone & unseen].mean()),
        }
    return scores


def main(out: Path, *, steps: int, minutes: float, batch: int, seed: int, device: str) -> dict:
    """Train, score on held-out scenes, write weights, processor and card to ``out``; returns the card."""
    torch.manual_seed(seed)
    cv2.setNumThreads(1)
    checkpoint = out.with_suffix(".checkpoint.pt")  # beside the weights until they are written
    untrained: Any = ResNetForImageClassification(config())
    untrained.to(memory_format=torch.channels_last)
    model, curve = train(
        untrained, loss, batches(batch, seed=seed), steps=steps, minutes=minutes, learning_rate=6e-3, seed=seed,
        checkpoint=checkpoint, device=device,
    )  # fmt: skip
    card = {
        "what": "picture-book judge: names the thing in a frame of 64 pixels",
        "trained_on": f"picture-book frames, all {len(THINGS)} things on all grounds, clean and degraded",
        "made_by": "python -m neuroclips.mini judge", "seed": seed, "steps": curve[-1]["step"],
        "seconds": curve[-1]["seconds"], "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "frames_a_step": batch, "parameters": sum(p.numel() for p in model.parameters()),
        "scored_scenes": SCORED, "blur_pixels": BLUR, "scores": score(model, seed=seed), "pictures": ATTRIBUTION,
        "curve": curve[:: max(1, len(curve) // 50)],
    }  # fmt: skip
    save(model, out)
    write_json(out / "card.json", card)
    checkpoint.unlink()
    return card


def save(model: Any, out: Path) -> None:
    """Weights in float16 and what the input is, in transformers layout."""
    copy.deepcopy(model).to(memory_format=torch.contiguous_format).half().save_pretrained(out)
    write_json(out / "preprocessor_config.json", {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIZE, "width": SIZE},
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [MEAN] * 3, "image_std": [SD] * 3,
    })  # fmt: skip
