"""Contracts between stages: the clips of a split, and what is decoded from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from neuroclips.errors import DataError, SplitLeakError
from neuroclips.shapes import Bool, Float, Float32, Int, UInt8

T_R = 2.0  # seconds; the CC2017 sampling period and the default everywhere


def neighbour(
    segment: Int[np.ndarray, " B"], onset: Float[np.ndarray, " B"], t_r: float, shift: int
) -> Int[np.ndarray, " B"]:
    """Index of the clip ``shift`` TRs after each clip, in the same segment, or -1. Clips may come in any order.

    Raises ``DataError`` when two clips of a segment start less than half a ``t_r`` apart.

    >>> neighbour(np.array([0, 0, 1, 0]), np.array([2.0, 0.0, 4.0, 6.0]), 2.0, -1).tolist()
    [1, -1, -1, -1]
    """
    order = np.lexsort((onset, segment))
    gap = np.rint(np.diff(onset[order]) / t_r).astype(np.int64)
    alike = np.diff(segment[order]) == 0
    if (alike & (gap == 0)).any():
        first = order[int(np.argmax(alike & (gap == 0)))]
        raise DataError(f"two clips of segment {segment[first]} start at {onset[first]:g} s; expected {t_r:g} s apart")
    apart = abs(shift) + 1  # no shift leads from one segment into another
    number = np.append(0, np.cumsum(np.where(alike, gap, apart)))[: len(order)]  # in TRs, ascending
    place = np.searchsorted(number, number + shift).clip(max=max(len(order) - 1, 0))
    found = np.full(len(order), -1)
    found[order] = np.where(number[place] == number + shift, order[place], -1)
    return found


def shifted(segment: Int[np.ndarray, " B"], shift: int) -> Int[np.ndarray, " B"]:
    """Index of the row ``shift`` rows after each one, in the same segment, or -1. Rows are in order of time.

    >>> shifted(np.array([0, 0, 0, 1]), 1).tolist()
    [1, 2, -1, -1]
    """
    rows = np.arange(len(segment)) + shift
    inside = (rows >= 0) & (rows < len(segment))
    inside[inside] = segment[rows[inside]] == segment[inside]
    return np.where(inside, rows, -1)


@dataclass(frozen=True)
class Clips:
    """Brain activity and film of the clips of one split, one clip per TR. Arrays may be memory-mapped.

    Attributes
    ----------
    bold : (B, R, V) z-scored per run and voxel; repeats that do not exist are zero.
    present : (B, R) which repeats exist.
    frames : (B, F, 3, H, W) uint8 RGB, at equal distances over the clip's ``t_r`` seconds.
    segment : (B,) index into ``segments``.
    onset : (B,) start of the clip within its segment's film, seconds.
    scene : (B,) scene number, unique over all segments; consecutive clips between two cuts share one.
    reliability : (V,) correlation between repeats, measured on the training segments only.
    lags : volumes after each clip's own that decoders see with it, ascending from 0 (``data.delay_trs``).
    """

    split: ClassVar[str] = "any"

    bold: Float[np.ndarray, "B R V"]
    present: Bool[np.ndarray, "B R"]
    frames: UInt8[np.ndarray, "B F 3 H W"]
    segment: Int[np.ndarray, " B"]
    onset: Float[np.ndarray, " B"]
    scene: Int[np.ndarray, " B"]
    segments: tuple[str, ...]
    reliability: Float32[np.ndarray, " V"]
    t_r: float = T_R
    lags: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.onset)

    @property
    def n_voxels(self) -> int:
        return self.bold.shape[2]

    @property
    def n_frames(self) -> int:
        return self.frames.shape[1]

    @property
    def ids(self) -> list[str]:
        """One readable name a clip, such as ``test1/0004s``; seeds and file names are made from it."""
        # Whole seconds where clips start on them (the usual TR of 2 s), hundredths elsewhere: names never collide.
        times = [f"{t:04.0f}s" if float(t).is_integer() else f"{t:07.2f}s" for t in self.onset]
        return [f"{self.segments[s]}/{time}" for s, time in zip(self.segment, times)]

    def responses(self, n_repeats: int | None = None) -> Float32[np.ndarray, "B V"]:
        """Mean over the first ``n_repeats`` existing repeats of each clip (all by default), at unit variance.

        A mean of k repeats of a z-scored voxel with reliability r has variance r + (1 - r) / k. Dividing by its root
        puts single trials, training means and test means on one scale, with training statistics only.
        """
        mean, k = self.means(n_repeats)
        r = np.clip(self.reliability, 0, 1)
        return (mean / np.sqrt(r + (1 - r) / k[:, None])).astype(np.float32)

    def means(self, n_repeats: int | None = None) -> tuple[Float[np.ndarray, "B V"], Int[np.ndarray, " B"]]:
        """Mean over the first ``n_repeats`` existing repeats of each clip, in standard deviations of a single one; and
        how many these were. The film's part of it is the same for any number of repeats, the noise is not."""
        wanted = self.present if n_repeats is None else self.present & (np.cumsum(self.present, axis=1) <= n_repeats)
        k = wanted.sum(axis=1)  # (B,)
        if not k.all():
            raise DataError(f"clip {self.ids[int(np.argmin(k))]} has no repeat to average")
        total = np.zeros((len(self), self.n_voxels), np.float32)
        for r in range(self.bold.shape[1]):  # one repeat at a time: bold may be larger than memory
            total += np.where(wanted[:, r, None], self.bold[:, r], 0)
        return total / k[:, None], k

    def windows(self, n_repeats: int | None = None, *, before: int = 0, after: int = 0) -> Float32[np.ndarray, "B L V"]:
        """``responses`` of the volumes from ``before`` ahead of each clip's own to ``after`` behind it, in time order.

        Neighbours are found by segment and onset, so the order of clips does not matter. A neighbour that is not among
        these clips, such as one beyond the end of a run, is zero: the mean of every voxel.
        """
        own = self.responses(n_repeats)
        found = np.zeros((len(self), before + 1 + after, self.n_voxels), np.float32)
        for place, shift in enumerate(range(-before, after + 1)):
            source = self.neighbour(shift)
            found[source >= 0, place] = own[source[source >= 0]]
        return found

    def inputs(self, n_repeats: int | None = None, lags: tuple[int, ...] | None = None) -> Float32[np.ndarray, "B X"]:
        """What decoders see of each clip: its responses at ``lags`` (by default its own), one after the other.

        X = L V. A response beyond the end of a run is zero, the mean of every voxel.
        """
        chosen = lags or self.lags
        return self.windows(n_repeats, after=chosen[-1])[:, list(chosen)].reshape(len(self), -1)

    def neighbour(self, shift: int) -> Int[np.ndarray, " B"]:
        """Index of the clip ``shift`` TRs after each clip, in the same segment, or -1."""
        return neighbour(self.segment, self.onset, self.t_r, shift)

    def take(self, index: np.ndarray) -> Clips:
        """The clips at ``index``, as the same split."""
        rows: dict[str, Any] = {
            name: np.asarray(getattr(self, name)[index])
            for name in ("bold", "present", "frames", "segment", "onset", "scene")
        }
        return replace(self, **rows)


class TrainingClips(Clips):
    """Clips that models are fitted to."""

    split = "train"


class ValidationClips(Clips):
    """Clips that choices are made on: hyper-parameters, thresholds, early stopping."""

    split = "validation"


class TestClips(Clips):
    """Clips that only evaluation opens. ``refuse_test_clips`` keeps them out of every fit."""

    split = "test"
    __test__ = False  # not a pytest class


def refuse_test_clips(*clip_sets: Clips | None) -> None:
    """Raise SplitLeakError if any set is the test split: the rule that keeps reported scores honest."""
    for clips in clip_sets:
        if isinstance(clips, TestClips):
            raise SplitLeakError(
                f"fit was given the test split ({', '.join(clips.segments)}); expected training or validation clips"
            )


@dataclass(frozen=True)
class Targets:
    """What the decoders predict, computed once from the frames by frozen networks.

    latents : (B, F, C, H, W) scaled VAE latents of the clip's frames.
    tokens : (B, K, D) CLIP image tokens of the keyframe.
    text : (B, P) unit embeddings of the clip's caption, or None without captions.
    candidates : (B, M, K, D) tokens of M frames that training may take as the keyframe; ``tokens`` are those of the
        middle one (the earlier of two). None where there is one keyframe only.
    """

    latents: Float[np.ndarray, "B F C H W"]
    tokens: Float[np.ndarray, "B K D"]
    text: Float[np.ndarray, "B P"] | None = None
    candidates: Float[np.ndarray, "B M K D"] | None = None

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], text: np.ndarray | None = None) -> Targets:
        """From the arrays of a file, which holds ``tokens`` or ``candidates``; memory-mapped ones stay so."""
        candidates = arrays.get("candidates")
        tokens = arrays["tokens"] if candidates is None else candidates[:, (candidates.shape[1] - 1) // 2]
        return cls(arrays["latents"], tokens, text, candidates)

    def arrays(self) -> dict[str, np.ndarray]:
        """What ``of`` takes."""
        if self.candidates is None:
            return {"latents": self.latents, "tokens": self.tokens}
        return {"latents": self.latents, "candidates": self.candidates}
