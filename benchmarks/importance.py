"""Permutation importance of every voxel: the closed form against one forward pass per voxel and permutation.

    python benchmarks/importance.py

A linear layer of 59,412 voxels (all of the cortex), 2 volumes, 384 outputs, 200 clips. The closed form is the mean over
all permutations; the loop takes ``PERMUTATIONS`` of them on ``SAMPLED`` voxels, and its seconds are scaled to all. It
stops if the two disagree by more than five standard errors of the sampling.
"""

from __future__ import annotations

import json
import platform
import resource
import time
from importlib.metadata import version

import numpy as np

from neuroclips.cortex.importance import permutation_importance
from neuroclips.cortex.regions import cortex_regions
from neuroclips.data.cc2017 import N_CORTEX
from neuroclips.decoders import FirstLayer

CLIPS, VOLUMES, OUTPUTS, PERMUTATIONS, SAMPLED, ROUNDS = 200, 2, 384, 10, 12, 3


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((CLIPS, VOLUMES * N_CORTEX), np.float32)
    weight = rng.standard_normal((VOLUMES * N_CORTEX, OUTPUTS), np.float32)
    y = (x @ weight + 300 * rng.standard_normal((CLIPS, OUTPUTS))).astype(np.float32)
    layer = FirstLayer(lambda columns: weight[columns], lambda inputs: inputs @ weight, lambda targets: y)
    regions = cortex_regions(np.ones(N_CORTEX, bool))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        exact = permutation_importance(layer, x, y, regions)
        seconds.append(time.perf_counter() - start)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6

    said, goal = layer.output(x), y - y.mean(axis=0)
    said = said - said.mean(axis=0)
    fit, total = np.vdot(said, goal) / np.vdot(said, said), np.vdot(goal, goal)
    whole = fit * np.vdot(said, goal) / total
    voxels = rng.choice(N_CORTEX, SAMPLED, replace=False)
    losses = np.zeros((SAMPLED, PERMUTATIONS))
    scrambled = x.copy()
    start = time.perf_counter()
    for i, voxel in enumerate(voxels):
        columns = voxel + N_CORTEX * np.arange(VOLUMES)
        for p in range(PERMUTATIONS):
            scrambled[:, columns] = x[rng.permutation(CLIPS)][:, columns]
            losses[i, p] = whole - fit * np.vdot(layer.output(scrambled), goal) / total
        scrambled[:, columns] = x[:, columns]
    loop = (time.perf_counter() - start) * N_CORTEX / SAMPLED
    error = losses.std(axis=1, ddof=1) / np.sqrt(PERMUTATIONS)
    off = (losses.mean(axis=1) - exact.values[voxels]) / error
    if np.abs(off.mean()) > 5 / np.sqrt(SAMPLED) or np.abs(off).max() > 8:
        raise SystemExit(f"the two differ by {off.round(1)} standard errors: the comparison is void")
    print(
        json.dumps(
            {
                "closed form, s": round(min(seconds), 2),
                f"{PERMUTATIONS} permutations, a forward pass each, s (scaled)": round(loop),
                "ratio": round(loop / min(seconds)),
                "memory above the layer and the clips, GB": round(memory, 2),
                "difference, standard errors (mean)": round(float(off.mean()), 2),
                "machine": f"{platform.machine()} {platform.system()}",
                "versions": {name: version(name) for name in ("numpy",)},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
