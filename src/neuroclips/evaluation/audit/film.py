"""Checks of film and scenes: is something of the test film, or nearly it, in training?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

from neuroclips.evaluation.audit.finding import Finding, Severity, or_ok, several
from neuroclips.shapes import Float, Int, UInt8

COPY_FRAME_R, COPY_FRAME_DIFFERENCE = 0.98, 8.0  # correlation of pixels at least, mean difference of 255 at most
SIMILAR_FRAME_R = 0.95  # worth a look
SAME_SHOT_R, SAME_SHOT_DIFFERENCE = 0.9, 16.0  # last frame of one segment and first of another, a fraction later
MIN_CONTRAST = 10.0  # standard deviation, of 255: black, white and faded frames are alike without being copies
NEAR_QUANTILE, NEAR_SHARE = 0.95, 0.25  # 5 % of test clips pass this quantile of training clips by luck, not 25 %
NEAR_CLIPS = 100  # training clips that such a quantile needs
GUARD_TRS = 5  # between clips of two splits in one run: the haemodynamic response is over after about 10 s


@dataclass(frozen=True)
class FilmPair:
    """Two clips of different splits that look alike: a held-out one and the one of another split nearest to it.

    clip, other : clip numbers. frame, other_frame : the frames that are most alike.
    r : correlation of their pixels. difference : their mean absolute difference, of 255.
    """

    clip: int
    frame: int
    other: int
    other_frame: int
    r: float
    difference: float

    @property
    def is_copy(self) -> bool:
        return self.r >= COPY_FRAME_R and self.difference <= COPY_FRAME_DIFFERENCE


def frame_likeness(
    a: UInt8[np.ndarray, "N 3 H W"], b: UInt8[np.ndarray, "N 3 H W"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Of N pairs of frames: correlation of their pixels, and mean absolute difference (of 255). r = 0 where one of the
    two is faint, with a standard deviation of its pixels below 10 of 255."""
    x, y = (f.reshape(len(f), -1).astype(np.float64) for f in (a, b))
    difference = np.abs(x - y).mean(axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    faint = np.minimum(x.std(axis=1), y.std(axis=1)) < MIN_CONTRAST
    norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.where(faint, 0, (x * y).sum(axis=1) / np.maximum(norm, 1e-9)), difference


def nearest_frames(
    thumbs: Float[np.ndarray, "B F D"],
    frames: UInt8[np.ndarray, "B F 3 H W"],
    other_thumbs: Float[np.ndarray, "N F D"],
    other_frames: UInt8[np.ndarray, "N F 3 H W"],
) -> list[FilmPair]:
    """For every clip the most similar frame pair of another split: found by thumbnails, measured at full size.

    thumbs : every frame at few pixels. frames : may be memory-mapped; only the frames of the best pairs are read.
    """

    def unit(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)

    d, f, n = thumbs.shape[-1], thumbs.shape[1], other_thumbs.shape[1]
    theirs = unit(other_thumbs).reshape(-1, d)
    theirs[other_thumbs.reshape(-1, d).std(axis=1) < MIN_CONTRAST / 255] = 0  # faint frames resemble each other
    pairs, block = [], 64
    for start in range(0, len(thumbs), block):
        near = (unit(thumbs[start : start + block]).reshape(-1, d) @ theirs.T).argmax(axis=1).reshape(-1, f)
        for clip, found in enumerate(near, start):
            others, places = np.divmod(found, n)
            r, difference = frame_likeness(frames[clip], np.stack([other_frames[c, i] for c, i in zip(others, places)]))
            best = int(np.argmax(r))
            at = clip, best, int(others[best]), int(places[best])
            pairs.append(FilmPair(*at, r=float(r[best]), difference=float(difference[best])))
    return pairs


def check_copies(
    pairs: Sequence[FilmPair], ids: Sequence[str], other_ids: Sequence[str], *, split: str, other_split: str
) -> list[Finding]:
    """Film of one split that is in another, from ``nearest_frames``.

    Fault (test clips) or warning (validation clips): frames with a pixel correlation of at least 0.98 and a mean
    difference of at most 8 of 255. Warning: a correlation of at least 0.95.
    """
    check, found = "film in two splits", list[Finding]()
    ordered = sorted(pairs, key=lambda pair: -pair.r)
    if not ordered:
        return [Finding(check, "ok", f"no {split} clips")]
    copies = [p for p in ordered if p.is_copy]
    alike = [p for p in ordered if p.r >= SIMILAR_FRAME_R and not p.is_copy]
    leave = "Leave these segments out of one of the splits: what was trained on cannot be tested."
    look = "Look at the pictures; the same shot must not be in two splits."
    for group, what, do in ((copies, "nearly identical frames", leave), (alike, "very similar frames", look)):
        if group:
            severity: Severity = "fault" if group is copies and split == "test" else "warning"
            where = several([f"{ids[p.clip]} and {other_ids[p.other]}" for p in group])
            text = (
                f"{len(group)} of {len(pairs)} {split} clips have {what} in the {other_split} split: r up to "
                f"{group[0].r:.3f}, mean difference {group[0].difference:.1f} of 255"
            )
            found.append(Finding(check, severity, text, where, do, {"clips": len(group), "r": group[0].r}))
    text = f"no {split} clip is in the {other_split} film; most similar frames: r = {ordered[0].r:.2f}"
    return or_ok(check, found, text, {"highest_r": ordered[0].r})


def check_similarity(
    train: Float[np.ndarray, "N D"],
    segment: Int[np.ndarray, " N"],
    test: Float[np.ndarray, "B D"],
    space: str,
    *,
    ids: Sequence[str],
) -> list[Finding]:
    """Is the test film nearer to the training film than the training film's own segments are to each other?

    Parameters
    ----------
    train, test : embeddings of clips; cosines are taken after the training mean is subtracted.
    segment : of the training clips. space : what the embedding is, for the text.

    Each training clip's nearest clip *of another segment* gives a distribution of cosines. Warning: more than 25 %
    of test clips have a nearest training clip beyond its 95th percentile (5 % would by chance); for them, too, one
    training segment is left out, each in turn, and the shares averaged. Expected in films that
    come back to the same places; such a score says less about new film.
    """
    check = "test film like training film"
    parts = np.unique(segment)
    if len(parts) < 2 or len(train) < NEAR_CLIPS:
        text = f"not judged: {len(train)} training clips of {len(parts)} segments, fewer than {NEAR_CLIPS} of 2"
        return [Finding(check, "ok", text)]
    centred = (train - train.mean(axis=0), test - train.mean(axis=0))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in centred)
    by_segment = [np.stack([(x @ a[segment == s].T).max(axis=1) for s in parts]) for x in (a, b)]  # (S, N), (S, B)
    without = [[np.delete(best, i, axis=0).max(axis=0) for i in range(len(parts))] for best in by_segment]
    own = np.concatenate([best[segment == s] for best, s in zip(without[0], parts)])
    nearest = np.stack(without[1])  # (S, B): as for training clips, one segment is left out, each in turn
    near = nearest > np.quantile(own, NEAR_QUANTILE)
    usual = {"median_test": float(np.median(nearest)), "median_train": float(np.median(own))}
    text = (
        f"{near.mean():.1%} of test clips are nearer to a training clip ({space}, cosine) than 95 % of training clips "
        f"are to another segment; medians {usual['median_test']:.2f} and {usual['median_train']:.2f}"
    )
    numbers = usual | {"share": float(near.mean())}
    if near.mean() <= NEAR_SHARE:
        return [Finding(check, "ok", text, numbers=numbers)]
    closest = several([ids[i] for i in np.argsort(-by_segment[1].max(axis=0))[: int(near.any(axis=0).sum())]])
    do = "Say so beside the scores, and report clips of new content separately."
    return [Finding(check, "warning", text, closest, do, numbers)]


@dataclass(frozen=True)
class Timeline:
    """Where the clips of one split lie: ``segments`` names, and per clip (B,) segment number, onset (s) and scene."""

    split: str
    segments: tuple[str, ...]
    segment: Int[np.ndarray, " B"]
    onset: Float[np.ndarray, " B"]
    scene: Int[np.ndarray, " B"]


def check_scenes(timelines: Sequence[Timeline], t_r: float | int) -> list[Finding]:
    """Scenes and moments that are in two splits.

    Fault: a scene number in two splits; clips of two splits at the same time of the same segment (less than a TR
    apart); clips of two splits in one segment with less than 5 TRs between them.
    """
    check, found = "scenes in two splits", list[Finding]()
    for a, b in combinations(timelines, 2):
        both = f"the {a.split} and the {b.split} split"
        shared = np.intersect1d(a.scene, b.scene)
        if len(shared):
            where, do = several([str(s) for s in shared]), "Split between scenes, or better between segments."
            text = f"{len(shared)} scenes are in {both}"
            found.append(Finding(check, "fault", text, f"scenes {where}", do, {"scenes": len(shared)}))
        for name in sorted(set(a.segments) & set(b.segments)):
            one, two = (t.onset[t.segment == t.segments.index(name)] for t in (a, b))
            apart = float(np.abs(one[:, None] - two[None, :]).min(initial=np.inf) / t_r)  # 1: neighbours
            if apart < 1 - 1e-6:
                text, do = f"clips of {both} are at the same time of one segment", "Give every segment to one split."
            elif apart - 1 < GUARD_TRS - 1e-6:
                text = f"clips of {both} have {apart - 1:.1f} TRs between them"
                do = f"Leave {GUARD_TRS} TRs out between them, as long as responses last."
            else:
                continue
            found.append(Finding(check, "fault", text, name, do, {"trs_apart": apart}))
    n = len(np.unique(np.concatenate([t.scene for t in timelines])))
    return or_ok(check, found, f"{n} scenes, each in one split")


def check_joins(ends: Sequence[tuple[str, str, np.ndarray, np.ndarray]]) -> list[Finding]:
    """A shot that runs on from one segment into another of a different split.

    ends : (split, segment, first frame, last frame), frames (3, H, W) uint8. Warning: the last frame of one and the
    first of the other have a pixel correlation of at least 0.9 and a mean difference of at most 16 of 255.
    """
    check, found, top = "shots across segments", list[Finding](), 0.0
    for (split, segment, _, last), (other_split, other, first, _) in permutations(ends, 2):
        if split == other_split:
            continue
        r, difference = (float(value[0]) for value in frame_likeness(last[None], first[None]))
        top = max(top, r)
        if r >= SAME_SHOT_R and difference <= SAME_SHOT_DIFFERENCE:
            text = (
                f"the {split} segment {segment} ends as the {other_split} segment {other} begins: r = {r:.3f}, mean "
                f"difference {difference:.1f} of 255"
            )
            do = "Look at both films; leave the clips at the join out, or put both segments in one split."
            found.append(Finding(check, "warning", text, f"{segment} and {other}", do, {"r": r}))
    return or_ok(check, found, f"no segment begins as one of another split ends; most similar: r = {top:.2f}")
