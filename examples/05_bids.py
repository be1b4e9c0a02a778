"""A study like your own to practise on: fMRIPrep's files, a TR of 1.5 s, films at 25 frames a second, odd onsets.

python examples/05_bids.py runs/bids/study      # under a minute on two cores, 90 MB

A simulated subject watches 22 short films, in 4 mm volumes. Nothing in the study says where the brain responds; what is
true of it lies in truth/, for you to look up afterwards. With --cortex the scans are CIFTI instead (600 MB).
"""

import sys
from pathlib import Path

from neuroclips.simulation.bids import simulate_bids_study


def show(done: int, total: int, what: str) -> None:
    print(f"\r{done:3}/{total} {what:60.60}", end="", file=sys.stderr, flush=True)


def main(out: Path, space: str) -> None:
    made = simulate_bids_study(out, space=space, progress=show)
    print(file=sys.stderr)
    print(
        f"{made['films']} films, shown {made['presentations']} times in {made['runs']} runs ({made['minutes']:g} min)"
    )
    print(
        f"{made['voxels']} voxels, of which {made['driven_voxels']} respond; "
        f"their repeats correlate at {made['median_ceiling']:.2f} (median)"
    )
    print("\nnow:")
    print(f"  neuroclips prepare table {made['study']} -o {out.parent}")
    print(f"  neuroclips run table {made['study']} -o {out.parent}")


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if argument != "--cortex"]
    if len(folders) != 1:
        sys.exit(__doc__)
    main(Path(folders[0]), "cortex" if "--cortex" in sys.argv else "volume")
