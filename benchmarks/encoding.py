"""Banded ridge from two feature spaces to every voxel: few mixtures against many, all voxels against one by one.

    python benchmarks/encoding.py            # 8,000 voxels, then all 59,412 of the cortex: about 10 minutes
    python benchmarks/encoding.py --small    # without the cortex

The size of the demo: 18 runs of 50 clips, two spaces of 200 features, 3 delays, 11 alphas, 5 folds of whole runs. Ours
tries 10 mixtures of the spaces; himalaya's default is 100. "Voxel by voxel" is the same on ``SAMPLED`` voxels, one
after the other, scaled to all. It stops if 10 mixtures explain less of 4 held-out runs, or a voxel by itself is
predicted differently. Ratios of processor seconds carry over between machines, the seconds do not.
"""

from __future__ import annotations

import argparse
import json
import platform
import threading
import time
from importlib.metadata import version

import numpy as np
import psutil

from neuroclips.cortex.encoding import MIXTURES, EncodingModel, centred_in_runs, delayed, fit_encoding
from neuroclips.data.cc2017 import N_CORTEX

RUNS, HELD, CLIPS, FEATURES, VOXELS, SAMPLED, MANY = 18, 4, 50, 200, 8_000, 4, 100
Spaces = dict[str, np.ndarray]


def planted(voxels: int, runs: int, seed: int) -> tuple[Spaces, np.ndarray, np.ndarray]:
    """Two spaces with falling spectra, and voxels that follow one, the other or both, at delays 0 and 1, with noise."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(99)
    n, segment = runs * CLIPS, np.repeat(np.arange(runs), CLIPS)
    fall = (1 / np.arange(1, FEATURES + 1)).astype(np.float32)
    spaces = {name: rng.standard_normal((n, FEATURES), np.float32) * fall for name in ("low-level", "semantic")}
    y = rng.standard_normal((n, voxels), np.float32)
    for features in spaces.values():
        x = delayed(features, segment, (0, 1))
        gain = truth.uniform(0, 1, voxels) * (truth.random(voxels) < 0.6)
        y += x @ (truth.standard_normal((x.shape[1], voxels)) * gain).astype(np.float32)
    return spaces, segment, y


def share(model: EncodingModel, spaces: Spaces, segment: np.ndarray, y: np.ndarray) -> float:
    """Mean R² over voxels."""
    y = centred_in_runs(y, segment)
    return float(np.mean(1 - np.square(y - model.predict(spaces, segment)).sum(axis=0) / np.square(y).sum(axis=0)))


class Peak:
    """The highest resident memory of this process above what it had, sampled twenty times a second, in GB."""

    def __enter__(self) -> Peak:
        self.process, self.stop = psutil.Process(), threading.Event()
        self.before = self.highest = self.process.memory_info().rss
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.stop.wait(0.05):
            self.highest = max(self.highest, self.process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()
        self.gigabytes = round((self.highest - self.before) / 1e9, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="without the whole cortex")
    small = parser.parse_args().small
    spaces, segment, y = planted(VOXELS, RUNS, 0)
    held = planted(VOXELS, HELD, 1)
    seconds, explained, memory, models = {}, {}, {}, {}
    for mixtures in (MIXTURES, MANY):
        start = time.process_time()
        with Peak() as peak:
            models[mixtures] = fit_encoding(spaces, segment, y, mixtures=mixtures)
        seconds[mixtures], memory[mixtures] = time.process_time() - start, peak.gigabytes
        explained[mixtures] = share(models[mixtures], *held)
    if explained[MIXTURES] < explained[MANY] - 0.002:
        raise SystemExit(f"held-out shares {explained}: {MIXTURES} mixtures are too few, the comparison is void")

    predicted = models[MIXTURES].predict(spaces, segment)
    start = time.process_time()
    for v in np.linspace(0, VOXELS - 1, SAMPLED).astype(int):
        alone = fit_encoding(spaces, segment, y[:, v : v + 1]).predict(spaces, segment)
        if np.abs(alone[:, 0] - predicted[:, v]).max() > 1e-3 * predicted.std():
            raise SystemExit(f"voxel {v} by itself is predicted differently: the comparison is void")
    single = (time.process_time() - start) * VOXELS / SAMPLED
    found = {
        "voxels": VOXELS,
        f"{MIXTURES} mixtures, processor s": round(seconds[MIXTURES], 1),
        f"{MIXTURES} mixtures, GB above the data": memory[MIXTURES],
        f"{MIXTURES} mixtures, held-out R²": round(explained[MIXTURES], 4),
        f"{MANY} mixtures, processor s": round(seconds[MANY], 1),
        f"{MANY} mixtures, held-out R²": round(explained[MANY], 4),
        f"{MANY} : {MIXTURES}": round(seconds[MANY] / seconds[MIXTURES], 1),
        "voxel by voxel, processor s (scaled)": round(single),
        "voxel by voxel : ours": round(single / seconds[MIXTURES]),
    }
    if not small:
        spaces, segment, y = planted(N_CORTEX, RUNS, 0)
        start, wall = time.process_time(), time.perf_counter()
        with Peak() as peak:
            fit_encoding(spaces, segment, y)
        found |= {
            "cortex, voxels": N_CORTEX,
            "cortex, processor s": round(time.process_time() - start, 1),
            "cortex, wall s": round(time.perf_counter() - wall, 1),
            "cortex, GB above the data": peak.gigabytes,
            "the data, GB": round(y.nbytes / 1e9, 2),
        }
    found["machine"] = f"{platform.machine()} {platform.system()}, Python {platform.python_version()}"
    found["versions"] = {name: version(name) for name in ("numpy", "torch", "himalaya")}
    print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
