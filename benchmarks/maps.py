"""Do maps find what was planted? Maps of finished runs against the truth of their simulated subjects.

    neuroclips fit demo -o runs/whole -s data.selection.method=all     # every voxel of the cortex, tuned or not
    neuroclips maps runs/whole
    python benchmarks/maps.py runs/whole

Tuned: voxels that the film drives, through colour, contrast or motion (perception) or through meaning (semantics);
untuned: voxels that nothing drives, and, beside them, voxels that are driven otherwise. AUC is the chance that a tuned
voxel has the larger value, 0.5 if a map says nothing. Rank correlation with the planted strength is over tuned voxels.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, spearmanr

from neuroclips.artefacts import read_arrays
from neuroclips.cortex.results import MapResults


def auc(values: np.ndarray, tuned: np.ndarray, untuned: np.ndarray) -> float:
    ranks, n = rankdata(np.r_[values[tuned], values[untuned]]), np.count_nonzero(tuned)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * np.count_nonzero(untuned)))


def main() -> None:
    for run in map(Path, sys.argv[1:]):
        results, brain = MapResults.read(run / "maps"), read_arrays(run / "simulate" / "truth" / "brain.safetensors")
        strength = np.asarray(brain["strength"])
        driven = np.zeros(len(strength), bool)
        driven[np.asarray(brain["driven"])] = True
        planted = {"low": np.linalg.norm(strength[:, :3], axis=1), "meaning": strength[:, 3]}
        print(f"{run}\n| map | planted | tuned | untuned | AUC | not through it | AUC | rank correlation |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for each in results.every:
            if each.name.endswith(("-best", "-median", "-worst")):  # of a single clip
                continue
            seen = np.isfinite(each.values)
            for name, of in planted.items():
                tuned = seen & driven & (of > 0)
                cells = []
                for other in (seen & ~driven, seen & driven & (of == 0)):
                    n = np.count_nonzero(other)
                    cells += [f"{n:,}", f"{auc(each.values, tuned, other):.3f}" if n >= 50 else "–"]
                r = spearmanr(each.values[tuned], of[tuned])[0]
                row = [each.name, name, f"{np.count_nonzero(tuned):,}", *cells, f"{r:.2f}"]
                print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
