"""What the stages ``films`` and ``prepare`` leave, written by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from neuroclips.artefacts import write_arrays, write_json

FILM = ("frames", "segment", "onset", "scene")


def write_split(run: Path, split: str, arrays: Mapping[str, np.ndarray]) -> None:
    """bold, present and the four of ``FILM`` of one split."""
    name = f"{split}.safetensors"
    still = np.zeros((int(np.max(arrays["segment"], initial=0)) + 1, arrays["bold"].shape[1]), np.int32)
    write_arrays(run / "films" / name, {key: arrays[key] for key in FILM})
    write_arrays(run / "prepare" / name, {key: arrays[key] for key in arrays if key not in FILM} | {"still": still})


def write_names(run: Path, names: Mapping[str, Sequence[str]], *, delay_trs: int, lags: Sequence[int] = (0,)) -> None:
    about = {"t_r": 2.0, "delay_trs": delay_trs, "lags": list(lags), "space": "planted", "films": "../films"}
    write_json(run / "prepare" / "segments.json", about | {"segments": dict(names)})
