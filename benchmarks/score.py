"""What it costs to score a full test set: ``neuroclips score`` on 1,200 clips of 16 frames at 256 pixels.

    python benchmarks/score.py                      # writes 7.6 GB of arrays to a temporary folder first
    python benchmarks/score.py --clips 150          # an eighth of it

Pixel, motion and exact N-way scores (of class scores that are given), their floors, and the bootstrap of all of them.
Wall time of each stage and the highest memory that this process held for itself (files that are mapped do not count).
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from numpy.lib.format import open_memmap

from neuroclips.data.videos import open_videos
from neuroclips.evaluation.nway import n_way
from neuroclips.evaluation.scores import MetricValues, score_metrics
from neuroclips.folders import Places, ask, score_folders


def made(path: Path, clips: int, seed: int) -> None:
    """Coarse pictures that drift, with noise: not film, but as many bytes."""
    rng = np.random.default_rng(seed)
    array = open_memmap(path, mode="w+", dtype=np.uint8, shape=(clips, 16, 3, 256, 256))
    for clip in range(clips):
        picture = np.kron(rng.integers(0, 256, size=(3, 16, 16), dtype=np.uint8), np.ones((16, 16), np.uint8))
        for frame in range(16):
            array[clip, frame] = np.roll(picture, 2 * frame, axis=-1) // 2 + rng.integers(0, 99, size=(3, 1, 256))
    array.flush()


class Peak:
    """The highest memory of this process that is not a mapped file, sampled ten times a second, in GB."""

    def __enter__(self) -> "Peak":
        self.highest, self.stop = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        me = psutil.Process()
        while not self.stop.wait(0.1):
            memory = me.memory_info()
            self.highest = max(self.highest, (memory.rss - memory.shared) / 1e9)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1200)
    clips = parser.parse_args().clips
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(("truth", "mine")):
            made(Path(folder) / f"{name}.npy", clips, seed)
        scene = np.arange(clips) // 4
        places = Places(np.arange(clips) // 240, np.arange(clips) % 240 * 2.0, scene, "given")
        rows = []
        with Peak() as peak:
            sources = [open_videos(Path(folder) / f"{name}.npy") for name in ("truth", "mine")]
            scored, stages = score_folders(ask(sources[0], {"mine": sources[1]}), places, shuffles=1)
            rows += [(stage.name, stage.seconds) for stage in stages]
            rng = np.random.default_rng(2)
            classes = rng.normal(size=(2, clips, 6, 1000))
            began, values = time.perf_counter(), {}
            for accept in (1, 3):
                for n in (2, 50):
                    values[n, accept] = n_way(*classes, n, accept=accept).mean(axis=-1)
            rows.append(("exact N-way, four variants, 6 frames, 1,000 classes", time.perf_counter() - began))
            began = time.perf_counter()
            metrics = [MetricValues(f"{n}-way of {a}", v, {"shuffled": v[::-1]}, unit="share")
                       for (n, a), v in values.items()]  # fmt: skip
            ids = [str(clip) for clip in range(clips)]
            score_metrics("mine", "classes", metrics, ids, scene, "shuffled", [], None, 1000, 0)
            rows.append(("intervals and tests, N-way", time.perf_counter() - began))
    print(
        f"{clips} clips x 16 frames x 256 x 256, {len(scored.scores) + 8} rows\n\n| stage | seconds |\n| --- | ---: |"
    )
    for name, seconds in rows:
        print(f"| {name} | {seconds:.1f} |")
    print(f"| **all** | **{sum(seconds for _, seconds in rows):.1f}** |\n\nhighest memory {peak.highest:.2f} GB")


if __name__ == "__main__":
    main()
