"""Tiny films for the simulated subject: moving bars and noise, written with PyAV."""

import av
import numpy as np
import pandas as pd


def write_bars(path, seconds, seed, size=64, fps=20):
    """Bars of random colour that sweep at random angles, a new one every 3 s, over noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for n in range(seconds * fps):
            if n % (3 * fps) == 0:
                angle, colour, ground = rng.uniform(0, 2 * np.pi), rng.uniform(0, 255, 3), rng.uniform(60, 190, 3)
            along = np.cos(angle) * x + np.sin(angle) * y - (n % (3 * fps)) / (3 * fps) + 0.5
            frame = np.where((np.abs(along) < 0.15)[..., None], colour, ground) + rng.normal(0, 8, (size, size, 3))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame.clip(0, 255).astype(np.uint8), format="rgb24")))
        file.mux(stream.encode())
    return path


def truth_table(seconds, seed, fps=20):
    """A frame table like ``write_film``'s: one or two actors, a new scene every 4 s."""
    from neuroclips.simulation.grounds import GROUNDS, LIGHTS
    from neuroclips.simulation.scenes import MOTIONS
    from neuroclips.simulation.things import TRAINING_THINGS

    rng = np.random.default_rng(seed)
    parts = []
    for scene in range(-(-seconds // 4)):
        n = min(4, seconds - 4 * scene) * fps
        columns = {"scene": scene, "ground": rng.choice(list(GROUNDS)), "light": rng.choice(list(LIGHTS))}
        for role in ("main", "second")[: 1 + scene % 2]:
            columns |= {
                f"{role}_thing": TRAINING_THINGS[rng.integers(len(TRAINING_THINGS))].name,
                f"{role}_motion": rng.choice(MOTIONS),
                f"{role}_x": np.linspace(*rng.uniform(0.2, 0.8, 2), n),
                f"{role}_y": np.full(n, rng.uniform(0.3, 0.7)),
                f"{role}_size": np.full(n, rng.uniform(0.3, 0.6)),
                f"{role}_visible": np.ones(n),
            }
        parts.append(pd.DataFrame(columns, index=range(n)))
    return pd.concat(parts, ignore_index=True)
