"""What the neural decoders owe to what, on validation clips of finished runs; the test split is not read.

    python benchmarks/decoders.py runs/seed7 runs/seed11 runs/seed12 runs/seed13
    python benchmarks/decoders.py --alone runs/demo      # with networks trained on this subject alone (minutes)

Top-1 and pairwise: identification among the validation clips from tokens. Agreement: correlation with the true tokens.
Pixel correlation and motion direction: of the blurry video. Means over runs.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from neuroclips.artefacts import read_arrays
from neuroclips.data.clips import Targets
from neuroclips.data.prepared import load_clips
from neuroclips.decoders.ridge import ALPHAS, RidgeDecoders, solve_ridge_cv
from neuroclips.evaluation.identification import candidate_pool, correlation_scores, identify
from neuroclips.evaluation.motion import motion_direction
from neuroclips.evaluation.pixels import pixel_correlation
from neuroclips.pretrained.vae import Vae
from neuroclips.training.decoders import PRIOR_SHARE, NeuralDecoders

COLUMNS = ("top-1", "pairwise", "agreement", "pixel correlation", "motion direction")


def rows(run: Path, alone: bool) -> Iterator[tuple[str, list[float]]]:
    """(what, its values) for every variant on one run."""
    prepared, vae = load_clips(run / "prepare"), Vae.load("mini")
    train, seen = prepared.train, prepared.validation
    known, true = (
        Targets(**read_arrays(run / "targets" / f"{split}.safetensors")) for split in ("train", "validation")
    )
    mean = np.asarray(known.tokens, np.float32).mean(axis=0)
    pool = candidate_pool(seen.segment, seen.onset, 10.0)

    def scored(tokens: np.ndarray, latents: np.ndarray | None = None) -> list[float]:
        similarity = correlation_scores(tokens, true.tokens, mean)
        found = identify(similarity, pool).values
        values = [found["top-1"].mean(), found["pairwise"].mean(), np.diagonal(similarity).mean()]
        if latents is not None:
            video = vae.decode(latents)
            values += [
                metric(video, np.asarray(seen.frames)).mean() for metric in (pixel_correlation, motion_direction)
            ]
        return [float(v) for v in values]

    ridge = RidgeDecoders().fit(train, known)
    decoded = ridge.decode(ridge.inputs(seen), seen.ids)
    yield "ridge, one volume", scored(decoded.tokens, decoded.latents)
    neural = NeuralDecoders().fit(train, known)
    x, y = neural.inputs(train), np.asarray(known.tokens, np.float32).reshape(len(train), -1)
    dual, _ = solve_ridge_cv(x - x.mean(axis=0), y - y.mean(axis=0), train.segment, ALPHAS, 4096)
    kernel = (neural.inputs(seen) - x.mean(axis=0)) @ (x - x.mean(axis=0)).T / x.shape[1]
    yield "ridge, two volumes", scored((kernel @ dual + y.mean(axis=0)).reshape(true.tokens.shape).astype(np.float32))
    decoded = neural.decode(neural.inputs(seen), seen.ids)
    yield "neural", scored(decoded.tokens, decoded.latents)
    change = (decoded.prior_tokens - decoded.tokens) / PRIOR_SHARE
    for share in (0.25, 0.5, 0.75, 1.0):
        yield f"prior, a share of {share:g}", scored(decoded.tokens + share * change)
    if alone:
        neural = NeuralDecoders(None, seed=1).fit(train, known, seen, true)
        decoded = neural.decode(neural.inputs(seen), seen.ids)
        yield "neural, trained on this subject alone", scored(decoded.tokens, decoded.latents)
        yield "the same, prior", scored(decoded.prior_tokens)


def main(arguments: list[str]) -> None:
    alone, runs = "--alone" in arguments, [Path(a) for a in arguments if a != "--alone"]
    tables = [dict(rows(run, alone)) for run in runs]
    print(f"{len(runs)} runs.\n\n| what | {' | '.join(COLUMNS)} |\n|{' --- |' * (1 + len(COLUMNS))}")
    for what in tables[0]:
        values = np.mean([table[what] for table in tables], axis=0)
        cells = [f"{v:.3f}" for v in values] + ["–"] * (len(COLUMNS) - len(values))
        print(f"| {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
