"""What the stage ``generate`` wrote, as the page shows it: clips, the generator's own limit, and fused scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuroclips.artefacts import read_arrays, read_json
from neuroclips.data.clips import Clips
from neuroclips.evaluation.table import Score, format_value
from neuroclips.report.page import Exhibit, ReportClip, Strip
from neuroclips.shapes import Int, UInt8
from neuroclips.video.fusion import join

CHAINS_SHOWN = 6


@dataclass(frozen=True)
class Generated:
    """What was made of one clip in one condition."""

    keyframe: UInt8[np.ndarray, "3 _ _"]
    caption: str
    video: UInt8[np.ndarray, "F 3 H W"]

    @property
    def text(self) -> str:
        return f"caption written from the keyframe: {self.caption or '(empty)'}"


def read_condition(folder: Path, condition: str) -> dict[str, Generated]:
    """The generated clips of a condition, by clip id; ``folder`` is the stage's."""
    arrays = read_arrays(folder / f"{condition}.safetensors")
    ids, captions = read_json(folder / "clips.json"), read_json(folder / "captions.json")[condition]
    keyframes = [(np.clip(k, 0, 1, dtype=np.float32) * 255).round().astype(np.uint8) for k in arrays["keyframes"]]
    return {clip: Generated(*parts) for clip, *parts in zip(ids, keyframes, captions, arrays["videos"], strict=True)}


def with_generated(clip: ReportClip, made: Generated) -> ReportClip:
    """``clip`` with its caption, keyframe and generated video, which come right after what guided them."""
    first = {name: clip.pictures[name] for name in ("shown", "blurry") if name in clip.pictures}
    pictures = {**first, "keyframe": made.keyframe, "neuroclips": made.video, **clip.pictures}
    return replace(clip, pictures=pictures, text=made.text)


def exhibits(folder: Path, test: Clips, gallery: Sequence[Mapping[str, Any]], scores: Sequence[Score]) -> list[Exhibit]:
    """The generator's limit on the clips of the gallery (see ``percentile_clips``), and fused scenes if there are."""
    found = [_ceiling(folder, test, gallery)]
    if all((folder / f"{name}.safetensors").exists() for name in ("fused", "fusion")):
        found.append(_fused_scenes(folder, test, scores))
    return found


def _ceiling(folder: Path, test: Clips, gallery: Sequence[Mapping[str, Any]]) -> Exhibit:
    made, shown = read_condition(folder, "ceiling"), dict(zip(test.ids, test.frames))
    return Exhibit(
        name="ceiling",
        title="The best the generator can do",
        text=(
            "The same five clips, made from the true latents and tokens of the film in place of decoded ones: this is "
            "the generator's own limit, not decoding."
        ),
        strips=[
            Strip(
                title=clip["label"],
                id=clip["id"],
                pictures={
                    "shown": shown[clip["id"]],
                    "keyframe from the true tokens": made[clip["id"]].keyframe,
                    "video from the true latents and tokens": made[clip["id"]].video,
                },
                text=made[clip["id"]].text,
            )
            for clip in gallery
        ],
    )


def _fused_scenes(folder: Path, test: Clips, scores: Sequence[Score]) -> Exhibit:
    ids, fusion = read_json(folder / "clips.json"), read_arrays(folder / "fusion.safetensors")
    number = {clip: i for i, clip in enumerate(test.ids)}
    rows = np.array([number[clip] for clip in ids])
    videos = {
        "shown": test.frames[rows],
        "without fusion": read_arrays(folder / "decoded.safetensors")["videos"],
        "fused": read_arrays(folder / "fused.safetensors")["videos"],
    }
    found = chains(fusion["before"], fusion["position"])
    chosen = spread_evenly(found, CHAINS_SHOWN)
    said = [
        "Where a scene was judged to go on, a clip starts from the last frame of the clip before it.",
        _decisions(fusion, scores),
    ]
    if len(chosen) < len(found):
        said.append(f"Shown are {len(chosen)} of the {len(found)} longer videos, spread evenly over the film by rule.")
    return Exhibit(
        name="fused",
        title="Longer videos: fused scenes",
        text=" ".join(said),
        strips=[
            Strip(
                title=f"{len(chain)} clips, {len(chain) * test.t_r:g} s",
                id=f"{ids[chain[0]]} to {ids[chain[-1]]}",
                pictures={name: join(made[chain], test.onset[rows[chain]], test.t_r) for name, made in videos.items()},
                seconds=len(chain) * test.t_r,
            )
            for chain in chosen
        ],
    )


def chains(before: Int[np.ndarray, " N"], position: Int[np.ndarray, " N"]) -> list[list[int]]:
    """The clips of every chain of at least two, in order of time; chains in the order of their first clips.

    >>> chains(np.array([-1, 0, 1, -1, 3]), np.array([0, 1, 0, 0, 1]))
    [[0, 1], [3, 4]]
    """
    ending_at: dict[int, list[int]] = {}
    for clip in np.argsort(position, kind="stable").tolist():
        earlier = ending_at.pop(int(before[clip])) if position[clip] else []
        ending_at[clip] = [*earlier, clip]
    return sorted(chain for chain in ending_at.values() if len(chain) > 1)


def spread_evenly(found: Sequence[list[int]], most: int) -> list[list[int]]:
    """At most ``most``, at equal distances from the first to the last."""
    places = np.rint(np.linspace(0, len(found) - 1, min(most, len(found)))).astype(int)
    return [found[place] for place in places]


def _decisions(fusion: Mapping[str, np.ndarray], scores: Sequence[Score]) -> str:
    """How many clips were judged to go on, how many joins that made, and how often the judgement was right."""
    position = fusion["position"]
    pairs, judged, joins = (int(part.sum()) for part in (fusion["before"] >= 0, fusion["joined"], position > 0))
    limit = f" (clips a video: at most {position.max() + 1})" if joins < judged else ""
    said = f"Clips that follow another: {pairs}; judged to go on with its scene: {judged}; joined to it: {joins}{limit}"
    right = next((s for s in scores if (s.space, s.metric) == ("fusion", "accuracy")), None)
    if right is None:
        return f"{said}."
    value, chance = (format_value(v, right.unit) for v in (right.value, right.chance))
    return (
        f"{said}. Of {right.n} judgements on test clips {value} are right; always the more frequent answer would be "
        f"for {chance}."
    )
