"""Score anybody's videos: two sets of them are enough, here the blurry and the nearest-clip videos of a finished run.

make smoke                                  # makes runs/smoke
python examples/03_score.py runs/smoke      # seconds
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from neuroclips import load_clips
from neuroclips.data.videos import open_videos
from neuroclips.evaluation.table import rich_table
from neuroclips.folders import Places, ask, score_folders


def main(run: Path) -> None:
    test = load_clips(run / "prepare").test
    with tempfile.TemporaryDirectory() as folder:
        # The film as an array of all clips, (clips, frames, 3, H, W); a folder of MP4s would do as well.
        np.save(Path(folder) / "film.npy", test.frames)
        film = open_videos(Path(folder) / "film.npy")
        methods = {name: open_videos(run / "reconstruct" / name) for name in ("blurry", "nearest")}
        print(f"film: {film.origin}; videos: {methods['blurry'].origin}")

        # Clips of one scene are not independent: say where each lies, and intervals and shuffles respect it.
        places = Places(test.segment, test.onset.astype(np.float64), test.scene, "as prepared")
        scored, _ = score_folders(ask(film, methods), places, draws=200)

    Console().print(rich_table([row for row in scored.scores if not row.control]))
    row = next(s for s in scored.scores if (s.method, s.metric) == ("nearest", "SSIM"))
    print(f"SSIM of the sharp nearest clips {row.value:.3f}, of the mean frame {row.floors['mean frame']:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
