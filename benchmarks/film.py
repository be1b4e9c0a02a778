"""How fast the picture-book film is drawn, written and read, beside a plain renderer in the same run.

    python benchmarks/film.py

The plain renderer makes the same pictures the obvious way: a PIL image per frame, the drawing resized, turned and
pasted each time. The ratios are what carries over between machines; the milliseconds are this machine's.
"""

import platform
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image, ImageFilter

from neuroclips.simulation.film import Scene, familiar_places, plan_segment, render, sample_scene, write_film
from neuroclips.simulation.grounds import GROUNDS, LIGHTS, VARIANTS, layers
from neuroclips.simulation.sprites import sprite
from neuroclips.simulation.things import TRAINING_THINGS

SCENES, FRAMES, FPS = 40, 30, 30


def paste_with_pil(scene: Scene, times_s: np.ndarray, size: int) -> np.ndarray:
    """The same scene with PIL alone: whole-pixel positions, everything redone every frame."""
    rng = np.random.default_rng(scene.seed)
    canvases = [Image.fromarray(layer.canvas) for layer in layers(scene.ground, int(rng.integers(VARIANTS)), size)]
    shadow, light = GROUNDS[scene.ground].shadow, LIGHTS[scene.light]
    states, frames = scene.state(times_s), []
    for k in range(len(times_s)):
        frame = canvases[0].crop((0, 0, size, size))
        for canvas in canvases[1:]:
            part = canvas.crop((0, 0, size, size))
            frame.paste(part, (0, 0), part)
        for actor, state in zip(scene.actors[::-1], states[::-1]):
            side = max(round(size * state.size[k]), 1)
            picture = Image.fromarray(sprite(actor.thing)).resize((side, side), Image.Resampling.LANCZOS)
            picture = picture.rotate(-np.degrees(state.rotation[k]), Image.Resampling.BILINEAR, expand=True)
            left = round(size * state.x[k] - picture.width / 2), round(size * state.y[k] - picture.height / 2)
            dark = picture.getchannel("A").filter(ImageFilter.GaussianBlur(side / 24)).point(lambda v: int(v * shadow))
            frame.paste((0, 0, 0), left, dark)
            frame.paste(picture, left, picture)
        seen = np.asarray(frame) / 255 * light.gain + light.haze
        frames.append(np.rint(seen.clip(0, 1) * 255).astype(np.uint8).transpose(2, 0, 1))
    return np.stack(frames)


def milliseconds_a_frame(draw, scenes: list[Scene], times_s: np.ndarray, size: int) -> float:
    for scene in scenes:
        draw(scene, times_s[:1], size)  # draws grounds and pictures, which stay in the process
    start = time.perf_counter()
    for scene in scenes:
        draw(scene, times_s, size)
    return 1e3 * (time.perf_counter() - start) / (len(scenes) * len(times_s))


def main() -> None:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, things=TRAINING_THINGS, places=familiar_places) for _ in range(SCENES)]
    clip, single = np.arange(FRAMES) / FPS, np.array([0.7])
    print(f"{platform.machine()}, Python {platform.python_version()}, OpenCV {cv2.__version__}, one thread")
    print("draw       clip ms/frame   single ms/frame   PIL ms/frame   PIL : ours")
    for size in (64, 128, 256):
        ours, plain = (milliseconds_a_frame(draw, scenes, clip, size) for draw in (render, paste_with_pil))
        alone = milliseconds_a_frame(render, scenes, single, size)
        print(f"{size:4d} px {ours:14.2f} {alone:17.2f} {plain:14.2f} {plain / ours:12.1f}")
    segment = plan_segment(rng, 30.0, things=TRAINING_THINGS, places=familiar_places)
    print("file       write frames/s   read frames/s   MB a minute")
    with tempfile.TemporaryDirectory() as folder:
        for size in (64, 128):
            path = Path(folder) / f"{size}.mp4"
            start = time.perf_counter()
            count = len(write_film(path, segment, size=size, fps=FPS))
            written = time.perf_counter()
            with av.open(str(path)) as file:
                read = sum(frame.to_ndarray(format="rgb24").shape[0] == size for frame in file.decode(video=0))
            done = time.perf_counter()
            assert read == count
            rates = count / (written - start), count / (done - written)
            print(f"{size:4d} px {rates[0]:14.0f} {rates[1]:15.0f} {path.stat().st_size / 5e5:13.1f}")


if __name__ == "__main__":
    main()
