"""One GIF for a talk: what was shown, what came from the brain, and what the same generator makes of the truth.

python examples/04_gif.py runs/smoke runs/smoke/clips.gif      # after: neuroclips run smoke

Clips are spread evenly over those that have a generated video, by rule and not by looks.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from neuroclips import load_clips
from neuroclips.artefacts import read_arrays, read_json

CLIPS, SIDE, RIM = 8, 112, 4
ROWS = ("shown", "keyframe", "from the brain", "from the truth")


def main(run: Path, out: Path) -> None:
    ids = read_json(run / "generate" / "clips.json")
    chosen = np.unique(np.linspace(0, len(ids) - 1, CLIPS).round().astype(int))
    decoded, ceiling = (read_arrays(run / "generate" / f"{name}.safetensors") for name in ("decoded", "ceiling"))
    test = load_clips(run / "prepare").test
    shown = np.stack([test.frames[test.ids.index(ids[c])] for c in chosen])
    videos = [np.asarray(made["videos"])[chosen] for made in (decoded, ceiling)]
    n_frames = videos[0].shape[1]
    shown = shown[:, np.arange(n_frames) * shown.shape[1] // n_frames]
    keyframes = (np.asarray(decoded["keyframes"])[chosen] * 255).round().astype(np.uint8)
    rows = [shown, np.repeat(keyframes[:, None], n_frames, axis=1), *videos]

    pictures = []
    for frame in range(n_frames):
        page = Image.new("RGB", (SIDE + len(chosen) * (SIDE + RIM), len(rows) * (SIDE + RIM)), "white")
        for y, (name, row) in enumerate(zip(ROWS, rows)):
            ImageDraw.Draw(page).text((RIM, y * (SIDE + RIM) + SIDE // 2), name, "black", font_size=13)
            for x, video in enumerate(row):
                image = Image.fromarray(video[frame].transpose(1, 2, 0))
                page.paste(
                    image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (SIDE + x * (SIDE + RIM), y * (SIDE + RIM))
                )
        pictures.append(page.quantize(255, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE))
    pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=1000 * test.t_r / n_frames, loop=0)
    print(f"{len(chosen)} clips of {n_frames} frames: {out}, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
