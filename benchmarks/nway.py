"""N-way classification: the exact probability of winning against 100 sampled trials a frame, as the field draws them.

    python benchmarks/nway.py

1,200 clips x 6 frames x 1,000 classes, 50-way, both variants. The field's loop (a draw without replacement, then the
best class, trial by trial) is measured on ``SAMPLED`` frames and its seconds are scaled to all 7,200; ours is measured
on all, best of ``ROUNDS``. It stops if the two disagree by more than five standard errors of the sampling.
"""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version

import numpy as np

from neuroclips.evaluation.nway import n_way

CLIPS, FRAMES, CLASSES, N, TRIALS, SAMPLED, ROUNDS = 1200, 6, 1000, 50, 100, 120, 5


def sampled(predicted: np.ndarray, truth: np.ndarray, accept: int, rng: np.random.Generator) -> np.ndarray:
    """(rows,) share of the trials won."""
    wins = np.zeros(len(truth))
    for row, (x, y) in enumerate(zip(predicted, truth)):
        true = np.argsort(y)[-accept:]
        others = np.setdiff1d(np.arange(len(y)), true)
        for _ in range(TRIALS):
            wins[row] += x[rng.choice(others, N - 1, replace=False)].max() < x[true].max()
    return wins / TRIALS


def main() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((CLIPS, FRAMES, CLASSES), np.float32)
    predicted = (0.6 * truth + rng.standard_normal(truth.shape, np.float32)).astype(np.float32)
    few = np.linspace(0, CLIPS * FRAMES - 1, SAMPLED).astype(int)
    few_predicted, few_truth = (side.reshape(-1, CLASSES)[few] for side in (predicted, truth))
    result: dict[str, object] = {}
    for accept in (1, 3):
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            exact = n_way(predicted, truth, N, accept=accept)
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        drawn = sampled(few_predicted, few_truth, accept, rng)
        field = (time.perf_counter() - start) * CLIPS * FRAMES / SAMPLED
        expected = exact.ravel()[few]
        noise = np.sqrt((expected * (1 - expected)).sum() / TRIALS) / SAMPLED
        difference = float(drawn.mean() - expected.mean())
        if abs(difference) > 5 * noise:
            raise SystemExit(f"means differ by {difference}, {noise} is noise: the comparison is void")
        result[f"{N}-way, {accept} true"] = {
            "exact_s": round(min(seconds), 3),
            "sampled_s, scaled": round(field, 1),
            "ratio": round(field / min(seconds)),
            "mean": round(float(exact.mean()), 4),
            "difference, in standard errors": round(difference / float(noise), 2),
        }
    result["machine"] = f"{platform.machine()} {platform.system()}"
    result["versions"] = {name: version(name) for name in ("numpy", "scipy")}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
