"""What a whole decoder loses without an area: its voxels get the fMRI of other scenes, all else stays.

Slow, one pass through the decoder a lesion and shuffle, but it sees everything after the first layer, and it sees that
areas stand in for each other: two areas that say the same can each be spared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from neuroclips.cortex.regions import Regions
from neuroclips.decoders import Decoded, Decoders
from neuroclips.shapes import Float, Float32, Int

Scores = Mapping[str, Float[np.ndarray, " B"]]


def lesion_losses(
    decoders: Decoders,
    inputs: Float32[np.ndarray, "B X"],
    ids: list[str],
    score: Callable[[Decoded], Scores],
    regions: Regions,
    chosen: Sequence[int],
    orders: Sequence[Int[np.ndarray, " B"]],
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, Float[np.ndarray, "B N"]]:
    """Score of the intact decoder less that with each of the N ``chosen`` regions scrambled, for every clip and score.

    Parameters
    ----------
    inputs : of the clips, L lags of the regions' V voxels: X = L V. A region loses all its lags together.
    score : what was decoded -> scores of each clip, (B,), higher is better.
    orders : shuffles: whose responses every clip receives (``evaluation.floors.shuffled_orders``); losses are their
        mean.
    """
    lags = inputs.shape[1] // regions.n_voxels
    intact = score(decoders.decode(inputs, ids, prior=False))
    lost = {name: np.zeros((len(inputs), len(chosen))) for name in intact}
    for place, number in enumerate(chosen):
        columns = (regions.voxels(number) + regions.n_voxels * np.arange(lags)[:, None]).ravel()
        for s, order in enumerate(orders):
            progress(place * len(orders) + s, len(chosen) * len(orders), f"without {regions.regions[number].name}")
            scrambled = inputs.copy()
            scrambled[:, columns] = inputs[order][:, columns]
            found = score(decoders.decode(scrambled, ids, prior=False))
            for name, values in intact.items():
                lost[name][:, place] += (values - found[name]) / len(orders)
    return lost
