"""Does ``neuroclips plan`` say what a run takes? Memory of real trainings and decodings beside what it says.

    python benchmarks/plan.py                  # three widths, trained and decoded: minutes, 7 GB of memory and of disk
    python benchmarks/plan.py --only 128       # one of them
    python benchmarks/plan.py --cards runs/demo     # a finished run beside its plan, from its cards; nothing is run

Networks have the paper's tokens (256 x 1664) and latents, are narrower, and learn from random numbers; each
configuration runs in a process of its own, on the CPU. Its memory is looked at 50 times a second: resident memory less
what is shared with files (``rss - shared`` of psutil), for pages of mapped files belong to the system's cache. Exit
status 1 if any figure is off by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil

TOLERANCE = 0.1
TOKENS, LATENTS = (256, 1664), (6, 4, 28, 28)
TRAIN, VALIDATION, VOXELS = 16, 8, 3000
WIDTHS = (128, 256, 512)


def recipe_of(width: int) -> Any:
    from neuroclips.recipe import load_recipe

    networks = dict(width=width, hidden=128, prior_depth=1, prior_heads=4, prior_head_width=52, channels=[32, 32, 32])
    return load_recipe("demo", {"decoders.methods": ["end-to-end"], "decoders.networks": networks, "decoders.epochs": 2,
                                "decoders.prior_draws": 1, "decoders.device": "cpu"})  # fmt: skip


def planned(width: int) -> tuple[float, float]:
    """Bytes of memory that the plan says, for the fit and for decoding alone."""
    from neuroclips.planning.counts import Counts
    from neuroclips.planning.needs import BASE, Job, end_to_end
    from neuroclips.planning.networks import Sizes

    counts = Counts(TRAIN, VALIDATION, VALIDATION, 2, 2, VOXELS, VOXELS, (4, 6), "made")
    job = Job(recipe_of(width), counts, Sizes(VOXELS, TOKENS, LATENTS, None, 224), gpu=False)
    weights, at_work, _ = job.decoders
    return max(need.host + need.device for need in end_to_end(job)), BASE + weights + at_work


class Peak:
    """The highest anonymous memory of this process while the block lasts, in bytes."""

    def __enter__(self) -> Peak:
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.02):
            found = me.memory_info()
            self.bytes = max(self.bytes, found.rss - found.shared)


def work(width: int, folder: Path, what: str) -> None:
    """Fit, or decode with what was fitted; says the highest memory as the last line of output."""
    with Peak() as peak:
        _fit(width, folder) if what == "fit" else _decode(folder)
    print(peak.bytes)


def _clips(kind: Any, n: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return kind(
        bold=rng.standard_normal((n, 2, VOXELS), np.float32), present=np.ones((n, 2), bool),
        frames=np.zeros((n, 6, 3, 8, 8), np.uint8), segment=np.repeat(np.arange(4), n // 4).astype(np.int32),
        onset=np.tile(np.arange(n // 4) * 2.0, 4).astype(np.float32), scene=np.arange(n, dtype=np.int32),
        segments=("a", "b", "c", "d"), reliability=np.full(VOXELS, 0.5, np.float32),
    )  # fmt: skip


def _targets(folder: Path, n: int, seed: int) -> Any:
    """Random targets in a file, as a run has them."""
    from neuroclips.artefacts import read_arrays, write_arrays
    from neuroclips.data.clips import Targets

    path, rng = folder / f"targets-{seed}.safetensors", np.random.default_rng(seed)
    shapes = {"latents": (n, *LATENTS), "tokens": (n, *TOKENS)}
    write_arrays(
        path, {name: rng.standard_normal(shape, np.float32).astype(np.float16) for name, shape in shapes.items()}
    )
    return Targets.of(read_arrays(path))


def _fit(width: int, folder: Path) -> None:
    from neuroclips import pipeline  # noqa: F401  what a run has in memory, too
    from neuroclips.data.clips import TrainingClips, ValidationClips
    from neuroclips.training.end_to_end import EndToEndDecoders

    chosen = recipe_of(width).decoders
    decoders = EndToEndDecoders(chosen.networks, epochs=chosen.epochs, prior_draws=1, device="cpu", checkpoints=folder)
    train, validation = _clips(TrainingClips, TRAIN, 1), _clips(ValidationClips, VALIDATION, 2)
    decoders.fit(train, _targets(folder, TRAIN, 1), validation, _targets(folder, VALIDATION, 2))
    decoders.save(folder / "fitted")


def _decode(folder: Path) -> None:
    from neuroclips import pipeline  # noqa: F401
    from neuroclips.training.end_to_end import EndToEndDecoders

    decoders = EndToEndDecoders.load(folder / "fitted", device="cpu")
    rng = np.random.default_rng(3)
    decoders.decode(rng.standard_normal((64, VOXELS), np.float32), [f"clip {i}" for i in range(64)])


def measured(width: int, folder: Path, what: str) -> float:
    done = subprocess.run(
        [sys.executable, __file__, "--work", str(width), str(folder), what], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"width {width}, {what}: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def compare(widths: list[int]) -> bool:
    print(
        "| configuration | what | planned, GB | measured, GB | planned : measured |\n| --- | --- | ---: | ---: | ---: |"
    )
    good = True
    for width in widths:
        fit, decode = planned(width)
        with tempfile.TemporaryDirectory() as name:
            for what, said in (("fit", fit), ("decode", decode)):
                found = measured(width, Path(name), what)
                good = good and abs(said / found - 1) <= TOLERANCE
                print(
                    f"| width {width} | {what} | {said / 1e9:.2f} | {found / 1e9:.2f} | {said / found:.2f} |",
                    flush=True,
                )
    return good


def compare_cards(run: Path) -> None:
    """A finished run beside its plan: memory of cards is resident memory of one process that does stage after stage, so
    what a stage leaves behind and pages of mapped files are in it."""
    from neuroclips import planning
    from neuroclips.artefacts import read_card
    from neuroclips.planning.hardware import this_machine
    from neuroclips.recipe import Recipe

    cards = {path.parent.name: json.loads(path.read_text()) for path in run.glob("*/card.json")}
    recipe = Recipe.model_validate((read_card(run / "prepare") or {})["recipe"])
    found = planning.plan(recipe, run, this_machine(run).with_gpu("none"))
    print("| stage | memory planned, GB | card | disk planned, GB | card |\n| --- | ---: | ---: | ---: | ---: |")
    for stage in dict.fromkeys(row.need.stage for row in found.rows):
        rows = [row for row in found.rows if row.need.stage == stage]
        if stage in cards:
            disk = sum(about["bytes"] for about in cards[stage]["files"].values()) / 1e9
            print(f"| {stage} | {max(row.ram for row in rows) / 1e9:.2f} | {cards[stage]['peak_memory_gb']:.2f} | "
                  f"{sum(row.need.disk for row in rows) / 1e9:.3f} | {disk:.3f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", choices=WIDTHS, default=WIDTHS)
    parser.add_argument("--cards", type=Path, help="a finished run")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(int(given.work[0]), Path(given.work[1]), given.work[2])
    elif given.cards:
        compare_cards(given.cards)
    elif not compare(list(given.only)):
        raise SystemExit(f"off by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
