"""Ridge with an alpha for every target, chosen across runs: ours (himalaya's dual solver) against scikit-learn.

    python benchmarks/ridge.py                 # the size of the demo: six minutes of processor time, most for `Ridge`
    python benchmarks/ridge.py --targets 256   # half of that

All sides get the same arrays in this process: 15 runs of 50 clips, 9,254 voxels, 3,072 targets, 13 alphas, 5 folds of
whole runs. It stops if ours and the references that do the same thing disagree. "times ours" compares processor time,
which a busy machine disturbs less than wall time; it carries over between machines, the seconds do not.

    Ridge        the obvious loop: ``sklearn.linear_model.Ridge`` for every fold and alpha, best alpha per target
    KernelRidge  the same in the dual with one kernel for all, which is how one would tune scikit-learn
    RidgeCV      ``RidgeCV(alpha_per_target=True)``: leave-one-out instead of whole runs, so another choice of alpha
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from importlib.metadata import version

import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GroupKFold

from neuroclips.decoders.ridge import ALPHAS, MAX_FOLDS, solve_ridge_cv

RUNS, CLIPS, TEST_CLIPS, VOXELS, RANK = 15, 50, 200, 9_254, 60
ROUNDS = 3  # of ours, the quickest counts; the others are timed once, in this order


def planted(targets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x (750, V), y (750, Y), the run of each clip, and x of 200 test clips: few shared causes, and much noise."""
    rng = np.random.default_rng(0)
    n = RUNS * CLIPS
    causes = rng.standard_normal((n + TEST_CLIPS, RANK), np.float32)
    x = causes @ rng.standard_normal((RANK, VOXELS), np.float32) / np.sqrt(RANK)
    x += rng.standard_normal(x.shape, np.float32)
    strength = rng.uniform(0, 1, targets).astype(np.float32)  # from targets without signal to easy ones
    y = strength * (causes[:n] @ rng.standard_normal((RANK, targets), np.float32)) / np.sqrt(RANK)
    y += rng.standard_normal(y.shape, np.float32)
    x_mean = x[:n].mean(axis=0)
    return x[:n] - x_mean, y - y.mean(axis=0), np.repeat(np.arange(RUNS), CLIPS), x[n:] - x_mean


def ours(x: np.ndarray, y: np.ndarray, runs: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dual, alpha = solve_ridge_cv(x, y, runs, ALPHAS, 4096)
    return test @ x.T / x.shape[1] @ dual, alpha


def with_ridge(x: np.ndarray, y: np.ndarray, runs: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    errors = np.zeros((len(ALPHAS), y.shape[1]))
    for fit, held in GroupKFold(MAX_FOLDS).split(x, groups=runs):
        for k, alpha in enumerate(ALPHAS):
            model = Ridge(alpha * x.shape[1], fit_intercept=False).fit(x[fit], y[fit])
            errors[k] += np.square(model.predict(x[held]) - y[held]).mean(axis=0)
    best = np.array(ALPHAS)[errors.argmin(axis=0)]
    model = Ridge(best * x.shape[1], fit_intercept=False).fit(x, y)  # one alpha a target
    return model.predict(test), best


def with_kernel_ridge(
    x: np.ndarray, y: np.ndarray, runs: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    kernel, test_kernel = x @ x.T / x.shape[1], test @ x.T / x.shape[1]
    errors = np.zeros((len(ALPHAS), y.shape[1]))
    for fit, held in GroupKFold(MAX_FOLDS).split(x, groups=runs):
        for k, alpha in enumerate(ALPHAS):
            model = KernelRidge(alpha=alpha, kernel="precomputed").fit(kernel[np.ix_(fit, fit)], y[fit])
            errors[k] += np.square(model.predict(kernel[np.ix_(held, fit)]) - y[held]).mean(axis=0)
    best = np.array(ALPHAS)[errors.argmin(axis=0)]
    predicted = np.empty((len(test), y.shape[1]), np.float32)
    for alpha in np.unique(best):  # KernelRidge with an alpha a target would solve every target alone
        chosen = best == alpha
        model = KernelRidge(alpha=alpha, kernel="precomputed").fit(kernel, y[:, chosen])
        predicted[:, chosen] = model.predict(test_kernel)
    return predicted, best


def with_ridge_cv(x: np.ndarray, y: np.ndarray, runs: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = np.array(ALPHAS) * x.shape[1]
    # With an intercept, though x and y are centred: without one, the constant direction that centring empties makes
    # leave-one-out errors vanish as alpha does, and the smallest alpha always wins.
    model = RidgeCV(scaled, alpha_per_target=True).fit(x, y)
    return model.predict(test), model.alpha_ / x.shape[1]


def timed(solve, rounds: int, *arrays: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Wall and processor seconds of the quickest round (by processor), and its result."""
    found = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        predicted, alpha = solve(*arrays)
        found.append((time.process_time() - cpu, time.perf_counter() - wall, predicted, alpha))
    cpu, wall, predicted, alpha = min(found, key=lambda f: f[0])
    return wall, cpu, predicted, alpha


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, default=3072)
    arrays = planted(parser.parse_args().targets)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {version('numpy')}, "
        f"scikit-learn {version('scikit-learn')}, himalaya {version('himalaya')}; {arrays[0].shape[0]} clips x "
        f"{arrays[0].shape[1]} voxels -> {arrays[1].shape[1]} targets"
    )
    wall, cpu, predicted, alpha = timed(ours, ROUNDS, *arrays)
    print("solver       wall, s  processor, s  times ours  same alpha  median correlation of predictions")
    print(f"ours        {wall:8.2f} {cpu:13.2f} {1.0:11.1f}", flush=True)
    for name, solve, must_agree in (
        ("KernelRidge", with_kernel_ridge, True),
        ("RidgeCV", with_ridge_cv, False),
        ("Ridge", with_ridge, True),
    ):
        other_wall, other_cpu, other, other_alpha = timed(solve, 1, *arrays)
        same = np.isclose(alpha, other_alpha, rtol=1e-3)
        r = np.median([np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, other.T)])
        ratio = other_cpu / cpu
        print(f"{name:11} {other_wall:8.2f} {other_cpu:13.2f} {ratio:11.1f} {same.mean():11.1%} {r:10.6f}", flush=True)
        if must_agree:
            # Neighbouring alphas can tie to rounding, so a few targets may choose differently; the rest must match.
            error = np.abs(predicted - other)[:, same].max() / predicted.std()
            if same.mean() < 0.99 or error > 1e-3:
                raise SystemExit(f"{name}: alphas agree on {same.mean():.2%}, predictions to {error:.1e}: void")


if __name__ == "__main__":
    main()
