"""How good the generators are when they are told the truth, and how much of that is left when the brain tells them.

    python benchmarks/generators.py runs/seed7 runs/seed11

Of the clips of finished runs that have a generated video, from true latents and tokens (ceiling), decoded ones and
those of another scene (shuffled):

moves the right way : share of the clips that move, in which the mean cosine of the video's and the film's flow is
    above 0; chance 50 %.
frames alike : mean cosine of consecutive frames by the picture-book judge, as a share of the film's.
names a thing : captions that name a thing of the scene, where the captioner has learnt the word; it reads the keyframe.
names the ground : likewise. The run's table of truth is read here, after the fact.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from neuroclips.artefacts import read_arrays, read_json
from neuroclips.data.prepared import load_clips
from neuroclips.evaluation.judges import load_judge
from neuroclips.evaluation.motion import direction_agreement, frame_similarity, optical_flow
from neuroclips.simulation.grounds import GROUNDS
from neuroclips.simulation.things import TRAINING_THINGS

LEARNT = {thing.name for thing in TRAINING_THINGS}


def measure(run: Path) -> dict[str, dict[str, float]]:
    test, made = load_clips(run / "prepare").test, run / "generate"
    ids, captions = read_json(made / "clips.json"), read_json(made / "captions.json")
    rows = np.array([test.ids.index(clip) for clip in ids])
    film, judge = np.asarray(test.frames[rows]), load_judge("picture-book")
    truth = pd.read_parquet(run / "simulate" / "truth" / "scenes.parquet").iloc[test.scene[rows]]
    things = [{a, b} & LEARNT for a, b in zip(truth.thing, truth.second_thing)]
    flow = optical_flow(film)
    moves = direction_agreement(flow, flow) != 0
    alike = frame_similarity(judge.look(film, frames=None).features).mean()
    found = {}
    for condition in ("ceiling", "decoded", "shuffled-0"):
        videos = read_arrays(made / f"{condition}.safetensors")["videos"]
        videos = videos[:, np.rint(np.linspace(0, videos.shape[1] - 1, film.shape[1])).astype(int)]
        right = direction_agreement(optical_flow(videos), flow)
        words = [f" {caption} " for caption in captions[condition]]
        named = [any(f" {name} " in text for name in names) for text, names in zip(words, things) if names]
        grounds = [f" {GROUNDS[ground].phrase} " in text for text, ground in zip(words, truth.ground)]
        found[condition] = {
            "moves the right way": float((right[moves] > 0).mean()),
            "frames alike": float(frame_similarity(judge.look(videos, frames=None).features).mean() / alike),
            "names a thing": float(np.mean(named)),
            "names the ground": float(np.mean(grounds)),
        }
    return found


def main(runs: list[Path]) -> None:
    columns = list((first := measure(runs[0]))["ceiling"])
    print(f"| run | from | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 2)}")
    for run in runs:
        for condition, values in (first if run == runs[0] else measure(run)).items():
            print(
                f"| {run.name} | {condition} | {' | '.join(f'{100 * v:.1f} %' for v in values.values())} |", flush=True
            )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(run) for run in sys.argv[1:]])
