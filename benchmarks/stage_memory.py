"""Memory and disk of the stages after targets, at any number of clips with targets of the paper's shapes.

    python benchmarks/stage_memory.py FOLDER                              # 360 + 60 + 120 clips
    python benchmarks/stage_memory.py FOLDER --clips 3600 720 1200        # the paper's
    python benchmarks/stage_memory.py FOLDER --stages fit reconstruct     # again, of what was planted

A run is planted: random films, and scans and targets that follow 16 numbers a clip, so that scores are not chance.
Ridge alone decodes; the frozen VAE is narrow, but has the real one's latents. Every stage has a process of its own.
Memory is the highest resident memory (Linux), mapped files included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from neuroclips.artefacts import in_parts, read_arrays, remove_tree, rows_written, write_arrays, write_json
from neuroclips.pipeline import plan
from neuroclips.recipe import Recipe, load_recipe

SPLITS, SEGMENT, SCENE, FACTORS = ("train", "validation", "test"), 20, 4, 16
FRAMES, LATENTS = 6, (6, 4, 28, 28)
STAGES = ("fit", "reconstruct", "curves", "evaluate", "maps", "report")


def plant(run: Path, asked: dict[str, Any]) -> None:
    """What the stages ``films``, ``prepare`` and ``targets`` leave, and a VAE."""
    from diffusers import AutoencoderKL

    clips, tokens, voxels, size = asked["clips"], tuple(asked["tokens"]), asked["voxels"], asked["pixels"]
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((FACTORS, voxels), np.float32) / np.sqrt(FACTORS)
    meaning = {"tokens": tokens, "latents": LATENTS}
    axes = {name: rng.standard_normal((FACTORS, int(np.prod(shape))), np.float32) for name, shape in meaning.items()}
    for split, n in zip(SPLITS, clips):
        features, r = rng.standard_normal((n, FACTORS), np.float32), asked["repeats"] if split == "test" else 2
        segment, onset = np.divmod(np.arange(n), SEGMENT)
        place = {"segment": segment, "onset": 2.0 * onset, "scene": np.arange(n) // SCENE}
        with (
            rows_written(run / "films" / f"{split}.safetensors", n) as film,
            rows_written(run / "prepare" / f"{split}.safetensors", n) as scans,
            rows_written(run / "targets" / f"{split}.safetensors", n) as targets,
        ):
            for rows in in_parts(n, 60):
                x = features[rows]
                small = rng.integers(0, 256, (len(x), FRAMES, 3, size // 16, size // 16), np.uint8)
                film(rows, {"frames": small.repeat(16, 3).repeat(16, 4), **{k: v[rows] for k, v in place.items()}})
                noise = 2 * rng.standard_normal((len(x), r, voxels), np.float32)
                bold = ((x @ signal)[:, None] + noise) / np.float32(np.sqrt(5))
                scans(rows, {"bold": bold, "present": np.ones((len(x), r), bool)})
                said = {name: x @ axes[name] + rng.standard_normal((len(x), axes[name].shape[1]), np.float32) + 1
                        for name in meaning}  # fmt: skip
                targets(rows, {k: v.reshape(len(x), *meaning[k]).astype(np.float16) for k, v in said.items()})
        path = run / "prepare" / f"{split}.safetensors"
        still = np.zeros((int(segment.max()) + 1, r), np.int32)
        write_arrays(path, {**{k: np.array(v) for k, v in read_arrays(path).items()}, "still": still})
    ones = np.ones(voxels, np.float32)
    all_of_them = {"mask": ones > 0, "p": 0.0 * ones, "t": ones, "reliability": 0.2 * ones}
    write_arrays(run / "prepare" / "voxels.safetensors", all_of_them)
    names = {split: [f"{split}{i}" for i in range(-(-n // SEGMENT))] for split, n in zip(SPLITS, clips)}
    about = {"t_r": 2.0, "delay_trs": 2, "lags": [0], "space": "planted", "films": "../films", "segments": names}
    write_json(run / "prepare" / "segments.json", about)
    vae: Any = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 8], layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=224,
    )  # fmt: skip
    vae.save_pretrained(run / "vae")


def recipe_of(run: Path, asked: dict[str, Any]) -> Recipe:
    changes = {
        "decoders.methods": ["ridge"], "targets.vae": str(run / "vae"), "generate.video": None, "evaluate.judges": [],
        "generate.test_repeats": sorted({1, asked["repeats"]}), "evaluate.shuffles": 2, "maps.lesions": None,
        "generate.generators": asked["generators"], "curves": {} if "curves" in asked["stages"] else None,
        "ridge.alphas": np.logspace(-3, 3, asked["alphas"]).tolist(),
    }  # fmt: skip
    return load_recipe("smoke", changes)


def measured(run: Path, name: str, queue: multiprocessing.Queue) -> None:
    """Run one stage; seconds and highest resident memory in GB."""
    asked, own, began = json.loads((run / "asked.json").read_text()), run / name, time.monotonic()
    recipe = recipe_of(run, asked)
    remove_tree(own)
    own.mkdir()
    if name == "plant":
        plant(run, asked)
    else:
        next(stage for stage in plan(recipe) if stage.name == name).work(run, own, recipe, Console(quiet=True))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    queue.put((time.monotonic() - began, int(status["VmHWM"].split()[0]) / 1e6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, nargs=3, default=(360, 60, 120), metavar=("TRAIN", "VALIDATION", "TEST"))
    parser.add_argument("--tokens", type=int, nargs=2, default=(256, 1664))
    parser.add_argument("--voxels", type=int, default=13_447)
    parser.add_argument("--repeats", type=int, default=10, help="presentations of every test clip")
    parser.add_argument("--pixels", type=int, default=224, help="of the films, a side; the VAE makes 224")
    parser.add_argument(
        "--alphas", type=int, default=13, help="of ridge; fewer cost less time, and a little less memory"
    )
    parser.add_argument("--generators", nargs="*", default=("blurry", "nearest"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=("fit", "reconstruct", "curves", "evaluate"))
    asked = parser.parse_args()
    asked.run.mkdir(parents=True, exist_ok=True)
    write_json(asked.run / "asked.json", vars(asked))
    context = multiprocessing.get_context("spawn")
    print("| stage | seconds | peak memory, GB | files, GB |\n| --- | ---: | ---: | ---: |")
    planted = (asked.run / "prepare").exists()
    for name in asked.stages if planted else ("plant", *asked.stages):
        queue = context.Queue()
        process = context.Process(target=measured, args=(asked.run, name, queue))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{name} failed")
        seconds, memory = queue.get()
        folders = ("films", "prepare", "targets") if name == "plant" else (name,)
        files = sum(p.stat().st_size for folder in folders for p in (asked.run / folder).rglob("*") if p.is_file())
        print(f"| {name} | {seconds:.0f} | {memory:.2f} | {files / 1e9:.2f} |", flush=True)


if __name__ == "__main__":
    main()
