"""What tells cuts best in what was decoded: the AUC of each kind of evidence that a scene goes on.

    python benchmarks/fusion.py runs/seed7 runs/seed11 runs/seed12 runs/seed13

On the validation clips of finished runs; the test split is not read. ``generate.video.fusion.compare`` was chosen here.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from neuroclips.data.prepared import load_clips
from neuroclips.evaluation.seams import continues_scene, pixel_difference
from neuroclips.pretrained.clip import Clip
from neuroclips.recipe import VideoRecipe
from neuroclips.reconstructor import KEYFRAME, Reconstructor
from neuroclips.stages import load_targets
from neuroclips.video.fusion import similarity


def evidence(run: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """For the clips that follow another: evidence (N,) of each kind, and whether they continue its scene."""
    data = load_clips(run / "prepare")
    clips, reconstructor, clip = data.validation, Reconstructor.load(run / "fit" / "neural"), Clip.load("mini")
    generator = reconstructor.neuroclips(VideoRecipe())
    guidance = reconstructor.decode(reconstructor.decoders.inputs(clips, None), clips.ids)
    keyframes = (generator.draw(guidance, seed=7).keyframes * 255).round().astype(np.uint8)
    film = clip.images(np.asarray(data.train.frames[:, KEYFRAME]))[1]
    tokens = np.asarray(load_targets(run, "train").tokens, np.float32).mean(axis=1)
    before = clips.neighbour(-1)
    found = {
        "tokens": similarity(guidance.tokens.mean(axis=1), before, tokens.mean(axis=0)),
        "keyframes": similarity(clip.images(keyframes)[1], before, film.mean(axis=0)),
        "pixels of the blurry video": -pixel_difference(generator.vae.decode(guidance.latents), before),
    }
    follows = before >= 0
    return {name: values[follows] for name, values in found.items()}, continues_scene(clips.scene, before)[follows]


def main(runs: list[Path]) -> None:
    table = []
    for run in runs:
        found, same = evidence(run)
        table.append({name: float(roc_auc_score(same, values)) for name, values in found.items()})
    print(f"| evidence | {' | '.join(run.name for run in runs)} | mean |\n|{' --- |' * (len(runs) + 2)}")
    for name in table[0]:
        values = [row[name] for row in table]
        print(f"| {name} | {' | '.join(f'{v:.3f}' for v in values)} | {np.mean(values):.3f} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(run) for run in sys.argv[1:]])
