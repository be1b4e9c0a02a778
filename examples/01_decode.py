"""Decode a film in a dozen lines: fit on training clips, decode the test clips, and ask how much came from the brain.

    make smoke                                   # under a minute on two cores; makes runs/smoke
    python examples/01_decode.py runs/smoke      # then this takes about half a minute

With runs/demo the scores are worth reading, and the frozen networks take a minute or two.
"""

import sys
from pathlib import Path

import numpy as np

from neuroclips import Reconstructor, load_clips, score_identification
from neuroclips.evaluation.floors import shuffle_across_scenes


def main(run: Path) -> None:
    data = load_clips(run / "prepare")
    print(f"training: {len(data.train)} clips, {data.train.bold.shape[1]} repeats, {data.train.n_voxels} voxels")

    reconstructor = Reconstructor().fit(data.train)  # the mini networks that ship with the package, and ridge
    test = data.test
    videos = reconstructor.reconstruct(test, generator="blurry")
    print(f"videos:   {videos.shape} {videos.dtype}, (clips, frames, RGB, height, width)")

    # The same fMRI, but every clip gets that of another scene: what the pipeline makes up without the brain.
    inputs = reconstructor.decoders.inputs(test)  # one row a clip
    guidance = reconstructor.decode(inputs, test.ids)
    other = shuffle_across_scenes(test.scene, np.random.default_rng(0))
    shuffled = reconstructor.decode(inputs[other], test.ids)
    print(f"guidance: latents {guidance.latents.shape}, tokens {guidance.tokens.shape}")

    scored = score_identification(
        "ridge",
        guidance.tokens,
        reconstructor.targets(test).tokens,
        reference=reconstructor.training_tokens_.astype(np.float32).mean(axis=0),
        ids=test.ids,
        segment=test.segment,
        onset=test.onset,
        scene=test.scene,
        floors={"shuffled": shuffled.tokens},
    )
    for score in scored.scores:
        if score.control:  # the shuffled floor has a row of its own, with its interval
            continue
        interval = f"[{score.ci_low:.3f}, {score.ci_high:.3f}]" if score.ci_low is not None else "[no interval]"
        print(
            f"{score.metric:12} {score.value:7.3f} {interval:18} shuffled {score.floors['shuffled']:7.3f}   "
            f"chance {score.chance:7.3f}   n {score.n}, effectively {score.n_effective:.0f}"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
