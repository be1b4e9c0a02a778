"""From fMRI to generated film: keyframe, caption and video of a few clips, with and without the blurry video.

make smoke                                     # makes runs/smoke
python examples/02_generate.py runs/smoke      # half a minute; writes MP4s to runs/smoke/example
"""

import sys
from pathlib import Path

import numpy as np

from neuroclips import Reconstructor, load_clips
from neuroclips.data.frames import write_clip_video
from neuroclips.recipe import VideoRecipe


def main(run: Path) -> None:
    test = load_clips(run / "prepare").test.take(np.arange(0, 12, 4))
    reconstructor = Reconstructor.load(run / "fit" / "neural")
    guidance = reconstructor.decode(reconstructor.decoders.inputs(test, None), test.ids)

    generator = reconstructor.neuroclips(VideoRecipe(steps=8))
    guidance = generator.describe(generator.draw(guidance, seed=7))  # tokens to keyframe, keyframe to caption
    for clip, caption in zip(guidance.ids, guidance.captions):
        print(f"{clip}: {caption}")

    whole = generator.generate(guidance, seed=7)
    generator.settings = VideoRecipe(steps=8, paths=("beta", "gamma"))  # without alpha: the layout is made up
    without = generator.generate(guidance, seed=7)
    print(f"videos {whole.shape}; they differ by {np.abs(whole.astype(int) - without).mean():.1f} of 255 on average")
    for clip, video in zip(guidance.ids, whole):
        write_clip_video(run / "example" / f"{clip.replace('/', '_')}.mp4", video, test.t_r)
    print(f"written to {run / 'example'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
