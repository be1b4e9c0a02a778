"""Intervals that respect scenes: neighbouring clips are not independent, scenes nearly are.

Every interval comes from one set of draws over scenes. Methods, floors and ceilings are resampled by the *same* draws,
so any function of them (a difference, the brain-attributable share) has a paired interval for free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from neuroclips.errors import DataError
from neuroclips.shapes import Float, Int

Statistic = Literal["mean", "median"]


@dataclass(frozen=True)
class Resampled:
    """A statistic over all clips, and over each bootstrap draw of the scenes.

    value : the statistic of the clips as they came.
    draws : (N,) the statistic of each draw; empty when there are fewer than two scenes.
    """

    value: float
    draws: Float[np.ndarray, " N"]


class SceneBootstrap:
    """Resample whole scenes with replacement, the same way for everything that is compared.

    Parameters
    ----------
    scene : (B,) scene number of each clip; equal numbers are one block.
    draws : how many resamples.
    seed : of the draws; equal seeds and scenes give equal draws.

    >>> import numpy as np
    >>> boot = SceneBootstrap(np.array([0, 0, 1, 2]), seed=1)
    >>> boot.of(np.array([1.0, 1.0, 0.0, 0.0])).value, boot.n_scenes
    (0.5, 3)
    """

    def __init__(self, scene: Int[np.ndarray, " B"], draws: int = 1000, seed: int = 0):
        if len(scene) == 0:
            raise DataError("no clips to resample; expected at least one")
        numbers, self.block = np.unique(scene, return_inverse=True)
        self.n_scenes, self.seed = len(numbers), seed
        n_draws = draws if self.n_scenes > 1 else 0  # one scene says nothing about other scenes
        share = np.full(self.n_scenes, 1 / self.n_scenes)
        self.times = np.random.default_rng(seed).multinomial(self.n_scenes, share, size=n_draws)  # (N, scenes)

    def of(self, values: Float[np.ndarray, "*S B"], statistic: Statistic = "mean") -> Resampled:
        """The statistic of per-clip ``values``; several rows (such as several shuffles) are pooled clip by clip.

        The mean of a draw is a ratio of sums, sum of the drawn scenes' values / number of their clips, so long scenes
        weigh as much as they do in the plain mean.
        """
        values = np.atleast_2d(np.asarray(values, np.float64))
        if values.shape[-1] != len(self.block) or not np.isfinite(values).all():
            raise DataError(f"values of shape {values.shape} must be finite, one for each of {len(self.block)} clips")
        if statistic == "mean":
            sums = np.bincount(self.block, values.mean(axis=0), self.n_scenes)
            counts = np.bincount(self.block, minlength=self.n_scenes)
            return Resampled(float(values.mean()), (self.times @ sums) / (self.times @ counts))
        pooled, block = values.ravel(), np.tile(self.block, len(values))
        order = np.argsort(pooled, kind="stable")
        return Resampled(float(np.median(pooled)), _weighted_medians(pooled[order], self.times[:, block[order]]))

    def interval(self, draws: Float[np.ndarray, " N"], level: float = 0.95) -> tuple[float, float] | None:
        """Expanded percentile interval of bootstrap draws; None with fewer than two scenes.

        Plain percentiles are too narrow with few blocks. Hesterberg (2015, The American Statistician 69:371) widens
        the nominal tail to Phi(-sqrt(n / (n - 1)) t_{n-1}), which is exact for means of normal blocks.
        """
        draws = draws[np.isfinite(draws)]
        if len(draws) == 0:
            return None
        n = self.n_scenes
        tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
        low, high = np.quantile(draws, [tail, 1 - tail])
        return float(low), float(high)


def _weighted_medians(ordered: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median of ``ordered`` (M,) with integer ``weights`` (N, M); the mean of the middle two, as ``np.median``."""
    ends = np.cumsum(weights, axis=1)
    total = ends[:, -1:]
    lower = (ends <= (total - 1) // 2).sum(axis=1)
    upper = (ends <= total // 2).sum(axis=1)
    return (ordered[lower] + ordered[upper]) / 2


def n_effective(scene: Int[np.ndarray, " B"]) -> float:
    """Kish's effective number of scenes, (sum n_s)^2 / sum n_s^2.

    It is the number of independent clips that would carry as much information if the clips of a scene were copies of
    each other: the number of scenes when all are equally long, and fewer when a few long scenes dominate.

    >>> n_effective(np.array([0, 0, 1, 1])), n_effective(np.array([0, 0, 0, 1]))
    (2.0, 1.6)
    """
    counts = np.unique(scene, return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())


ENOUGH = 5  # scenes with a success, and as many with a failure, for the bootstrap of a share to be trusted


def rare_share_interval(
    values: Float[np.ndarray, "*S B"], scene: Int[np.ndarray, " B"], level: float = 0.95
) -> tuple[float, float] | None:
    """Wilson's score interval of a share, where successes (or failures) are too rare to resample; None where not.

    A bootstrap of no success at all says [0, 0]. With fewer than ``ENOUGH`` scenes that hold a success, or a failure,
    the share p is taken as that of n independent trials, n being Kish's number of scenes for each of S pooled rows:
    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), Wilson 1927. Rather too wide than too narrow.

    Parameters
    ----------
    values : (B,) or (S, B) in [0, 1]: did a clip succeed, or with what probability.

    >>> low, high = rare_share_interval(np.zeros(30), np.arange(30))
    >>> low, round(high, 3)
    (0.0, 0.114)
    """
    values = np.atleast_2d(values)
    block = np.unique(scene, return_inverse=True)[1]
    held = [len(np.unique(np.tile(block, (len(values), 1))[side])) for side in (values > 0, values < 1)]
    if min(held) >= ENOUGH or block.max(initial=0) == 0:
        return None
    p, n, z = float(values.mean()), n_effective(scene) * len(values), float(stats.norm.isf((1 - level) / 2))
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    low, high = float((middle - half) / scale), float((middle + half) / scale)
    return 0.0 if p == 0 else max(0.0, low), 1.0 if p == 1 else min(1.0, high)
