"""A planted brain: voxels that carry the picture, voxels that carry meaning, and voxels that carry others' noise."""

from dataclasses import dataclass

import numpy as np
import pytest

from neuroclips.data.clips import Clips, Targets, TestClips, TrainingClips

KINDS = {"picture": 37, "meaning": 31, "both": 11, "noise": 13}  # voxels of each kind, in this order


@dataclass(frozen=True)
class Planted:
    train: TrainingClips
    test: TestClips
    train_targets: Targets
    test_targets: Targets
    kind: np.ndarray  # (V,) index into KINDS

    def tuned(self, pathway: str) -> np.ndarray:
        return np.isin(self.kind, [0, 2] if pathway == "perception" else [1, 2])


def plant(signal: float = 1.0, seed: int = 0) -> Planted:
    """Latents (2, 3, 2, 2) from 4 numbers of a clip, tokens (3, 4) from 5 others. In each presentation every voxel that
    is tuned hears the film plus something of the brain's own; voxels of the last kind hear the brain's own alone: a
    decoder that subtracts it does better."""
    rng = np.random.default_rng(99)
    kind = np.repeat(np.arange(len(KINDS)), list(KINDS.values()))
    v = len(kind)
    low, high = rng.normal(size=(4, v)) * np.isin(kind, [0, 2]), rng.normal(size=(5, v)) * np.isin(kind, [1, 2])
    to_latents, to_tokens = rng.normal(size=(4, 24)), rng.normal(size=(5, 12))
    own = np.concatenate([low, high]) + rng.normal(size=(9, v)) * (kind == 3)
    rng = np.random.default_rng(seed)

    def clips(cls: type[Clips], n_segments: int, each: int, repeats: int) -> tuple[Clips, Targets]:
        n = n_segments * each
        film = rng.normal(size=(n, 9))
        response = signal * (film[:, :4] @ low + film[:, 4:] @ high)
        noise = rng.normal(size=(n, repeats, 9)) @ own
        bold = response[:, None] + noise + np.where(kind == 3, 0.3, 1.0) * rng.normal(size=noise.shape)
        bold = ((bold - bold.mean(axis=(0, 1))) / bold.std(axis=(0, 1))).astype(np.float32)
        made = cls(
            bold=bold, present=np.ones((n, repeats), bool), frames=np.zeros((n, 2, 3, 8, 8), np.uint8),
            segment=np.repeat(np.arange(n_segments), each), onset=np.tile(np.arange(each) * 2.0, n_segments),
            scene=np.arange(n) // 3, segments=tuple(f"{cls.split}{i}" for i in range(n_segments)),
            reliability=np.full(v, 0.3, np.float32),
        )  # fmt: skip
        latents = (film[:, :4] @ to_latents).reshape(n, 2, 3, 2, 2)
        tokens = (film[:, 4:] @ to_tokens).reshape(n, 3, 4)
        return made, Targets(latents.astype(np.float32), tokens.astype(np.float32))

    train, train_targets = clips(TrainingClips, 6, 40, 2)
    test, test_targets = clips(TestClips, 3, 35, 4)
    return Planted(train, test, train_targets, test_targets, kind)


@pytest.fixture(scope="session")
def planted():
    return plant()
