"""Generated video: the stage ``generate``, and long videos of whole segments.

Every condition goes through the same keyframe generator, captioner and video model: what the brain said (``decoded``),
the truth's own latents and tokens (``ceiling``), the brain's answer to another scene (``shuffled-0``, ...), what the
brain said with parts of the guidance left out (``ABLATIONS``), and, with fusion, ``fused``. Finished clips are kept one
by one, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch.nn.functional import interpolate

from neuroclips.artefacts import (
    content_hash,
    in_parts,
    kept_rows,
    read_json,
    rows_written,
    write_arrays,
    write_json,
)
from neuroclips.data.clips import Clips, TestClips
from neuroclips.data.frames import write_clip_video, write_video
from neuroclips.data.prepared import load_clips
from neuroclips.errors import RecipeError
from neuroclips.evaluation.floors import shuffled_orders
from neuroclips.evaluation.seams import PixelDifferenceRule
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.registry import resolve, weights_of
from neuroclips.pretrained.vae import Vae
from neuroclips.recipe import KEYFRAME, FusionRecipe, Recipe, VideoRecipe
from neuroclips.reconstructor import CLIPS_AT_ONCE, Reconstructor
from neuroclips.shapes import Float, Float32, Int
from neuroclips.stages import ABLATIONS, load_targets, progress_bar
from neuroclips.training.decoders import pick_device
from neuroclips.video.fusion import SCENE_RULES, KnownScenes, SceneRule, chain_positions, fuse, join
from neuroclips.video.generator import NeuroClipsGenerator
from neuroclips.video.guidance import Guidance

Report = Callable[[int, int, str], None]


def chosen_clips(test: Clips, video: VideoRecipe) -> Int[np.ndarray, " N"]:
    """The test clips that get a generated video: the first ``video.clips`` of every segment, in order of time."""
    order = np.lexsort((test.onset, test.segment))
    segment = test.segment[order]
    place = np.arange(len(order)) - np.searchsorted(segment, segment)
    return order if video.clips is None else order[place < video.clips]


def video_weights(recipe: Recipe) -> dict[str, str]:
    """Hashes of the generators' weights: new weights make old videos stale."""
    video, hashes = recipe.generate.video, dict[str, str]()
    assert video is not None
    for kind, holds in (("video", "model_index.json"), ("keyframe", "model_index.json"), ("caption", "config.json")):
        folder = resolve(getattr(video, kind), kind, holds=holds)
        hashes |= {f"{kind}/{name}": found for name, found in weights_of(folder).items()}
    return hashes


def generate(run: Path, own: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Keyframes, captions and videos of the chosen test clips, in every condition.

    CONDITION.safetensors : videos (N, F, 3, H, W) uint8, and keyframes (N, 3, H, W) in [0, 1], float16, where they were
        drawn for this condition: ablations and fusion have those of ``decoded``.
    captions.json : of each condition. clips.json : the ids of the N clips. CONDITION/CLIP.mp4 : to watch, of what was
        decoded.
    fusion.safetensors : for each of the N clips, the clip before it (or -1), whether it was judged to continue that
        clip's scene, and its place in its chain. decisions.safetensors : the judgements on all test clips that could be
        judged (``clip``, their numbers), and what the pixels of the blurry videos say.
    """
    video = recipe.generate.video
    assert video is not None
    prepared = load_clips(run / "prepare")
    chosen = chosen_clips(prepared.test, video)
    test = prepared.test.take(chosen)
    reconstructor = Reconstructor.load(run / "fit" / recipe.decoders.methods[-1], device=str(pick_device(video.device)))
    generator = reconstructor.neuroclips(video)
    kept, inputs = own / ".kept", reconstructor.decoders.inputs(prepared.test, None)
    with progress_bar(console) as report:

        def make(name: str, guidance: Guidance) -> tuple[Guidance, np.ndarray]:
            """``guidance`` with keyframes and captions, and its videos; all but the captions' words are written."""
            made = imagine(generator, guidance, kept / name, recipe.seed, report, name)
            write_json(kept / f"{name}.json", made.captions)
            videos = show(generator, made, kept / name, recipe.seed, report, name)
            assert made.keyframes is not None
            _write(own / f"{name}.safetensors", keyframes=made.keyframes, videos=videos)
            return made, videos

        everything = reconstructor.decode(inputs, prepared.test.ids)
        is_chosen = np.array_equal(chosen, np.arange(len(everything)))
        decoded, alone = make("decoded", everything if is_chosen else everything.take(chosen))
        everything = _with_mean_tokens(everything)
        others = _others(run, recipe, reconstructor, inputs, prepared.test, chosen)
        for name, guidance in others.items():
            if not (own / f"{name}.safetensors").exists():  # a run that was killed has not finished it
                make(name, guidance())
                shutil.rmtree(kept / name)
        for name, changes in ABLATIONS.items() if video.ablations else ():
            if not (own / f"{name}.safetensors").exists():
                generator.settings = video.model_copy(update=changes)
                videos = show(generator, decoded, kept / name, recipe.seed, report, name)
                _write(own / f"{name}.safetensors", videos=videos)
                shutil.rmtree(kept / name)
        generator.settings = video
        if video.fusion is not None:
            scenes = learn_scenes(run, recipe, reconstructor, generator, kept, report)
            scenes.rule.save(own)
            judged = scenes.judge(decoded, test)
            before, joined = judged["before"], judged["joined"]
            positions = chain_positions(joined, before, video.fusion.limit)
            write_arrays(own / "fusion.safetensors", {"before": before, "joined": joined, "position": positions})
            # Tokens are there for every test clip, keyframes for the chosen ones.
            all_of_them = video.fusion.compare == "tokens"
            numbers = np.arange(len(prepared.test)) if all_of_them else chosen
            judged = scenes.judge(everything if all_of_them else decoded, prepared.test.take(numbers))
            write_arrays(own / "decisions.safetensors", {"clip": numbers, **judged})
            known = _Known(generator, dict(zip(test.ids, alone)), kept / "fused", report)
            fused = fuse(known, decoded, positions, before, seed=recipe.seed)
            _write(own / "fused.safetensors", videos=fused)
    conditions = ["decoded", *others]
    write_json(own / "captions.json", {name: read_json(kept / f"{name}.json") for name in conditions})
    write_json(own / "clips.json", test.ids)
    for clip, shown in zip(test.ids, alone):
        write_clip_video(own / "decoded" / f"{clip.replace('/', '_')}.mp4", shown, test.t_r)
    shutil.rmtree(kept)
    return {"clips": len(test), "conditions": conditions, "weights": video_weights(recipe)}


def _others(
    run: Path, recipe: Recipe, reconstructor: Reconstructor, inputs: np.ndarray, test: TestClips, chosen: np.ndarray
) -> dict[str, Callable[[], Guidance]]:
    """The guidance of the chosen clips in every condition but the decoded one, made when asked for: full-size tokens
    of one condition are 2 GB, or twice as much with a prior."""
    assert recipe.generate.video is not None
    ids, true = [test.ids[clip] for clip in chosen], load_targets(run, "test")

    def told() -> Guidance:
        latents, tokens = (np.asarray(part[chosen], np.float32) for part in (true.latents, true.tokens))
        return Guidance(ids, latents=latents, tokens=tokens)

    found: dict[str, Callable[[], Guidance]] = {"ceiling": told}
    for s, order in enumerate(shuffled_orders(test.scene, recipe.seed, recipe.generate.video.shuffles)):
        found[f"shuffled-{s}"] = partial(reconstructor.decode, inputs[order][chosen], ids)
    return found


def _with_mean_tokens(guidance: Guidance) -> Guidance:
    """``guidance`` when its keyframes are drawn: of the tokens their mean is left, by which scenes are compared."""
    if guidance.tokens is None:
        return guidance
    return replace(guidance, tokens=mean_tokens(guidance.tokens)[:, None], prior_tokens=None)


def mean_tokens(tokens: Float[np.ndarray, "B K D"]) -> Float32[np.ndarray, "B D"]:
    """The mean token of each clip; some clips at a time."""
    found = np.empty(tokens.shape[::2], np.float32)
    for rows in in_parts(len(tokens), CLIPS_AT_ONCE, tokens):
        found[rows] = np.asarray(tokens[rows], np.float32).mean(axis=1)
    return found


def imagine(
    generator: NeuroClipsGenerator, guidance: Guidance, kept: Path, seed: int, report: Report, what: str
) -> Guidance:
    """``guidance`` with keyframes and captions, and no tokens but their mean: keyframes are drawn from tokens, and what
    follows looks at keyframes. These are memory-mapped."""

    def draw(rows: np.ndarray) -> dict[str, np.ndarray]:
        keyframes = generator.draw(guidance.take(rows), seed=seed).keyframes
        assert keyframes is not None
        return {"keyframe": keyframes}

    done = kept_rows(
        kept / "keyframes", guidance.ids, draw, batch=generator.settings.batch,
        progress=lambda done, total: report(done, total, f"keyframes, {what}"),
    )  # fmt: skip
    keyframes, captions = done["keyframe"], list[str]()
    for rows in in_parts(len(guidance), CLIPS_AT_ONCE, keyframes):
        report(rows.start, len(guidance), f"captions, {what}")
        shown = Guidance(guidance.ids[rows], keyframes=np.array(keyframes[rows]))
        captions += generator.describe(shown).captions or []
    return replace(_with_mean_tokens(guidance), keyframes=keyframes, captions=captions)


def show(
    generator: NeuroClipsGenerator, guidance: Guidance, kept: Path, seed: int, report: Report, what: str
) -> np.ndarray:
    """Videos (N, F, 3, H, W) uint8, memory-mapped."""
    done = kept_rows(
        kept / "videos", guidance.ids,
        lambda rows: {"video": generator.generate(guidance.take(rows), seed=seed)}, batch=generator.settings.batch,
        progress=lambda done, total: report(done, total, f"videos, {what}"),
    )  # fmt: skip
    return done["video"]


class _Known:
    """The generator again, for fusion: what a clip looks like by itself is known already."""

    name = NeuroClipsGenerator.name

    def __init__(self, generator: NeuroClipsGenerator, videos: dict[str, np.ndarray], kept: Path, report: Report):
        self.generator, self.videos, self.kept, self.report = generator, videos, kept, report

    def generate(self, guidance: Guidance, *, seed: int) -> np.ndarray:
        if guidance.first_frames is None:
            return np.stack([self.videos[clip] for clip in guidance.ids])
        return show(self.generator, guidance, self.kept, seed, self.report, "fused")


@dataclass(frozen=True)
class Scenes:
    """Judges whether scenes go on, from what was decoded; ``pixel_rule`` is what the rule must beat."""

    rule: SceneRule
    pixel_rule: PixelDifferenceRule
    compare: Literal["tokens", "keyframes"]
    clip: Clip
    vae: Vae

    def embed(self, guidance: Guidance) -> Float[np.ndarray, "N P"]:
        """What two clips are compared by."""
        if self.compare == "tokens":
            assert guidance.tokens is not None
            return mean_tokens(guidance.tokens)
        assert guidance.keyframes is not None
        return self.clip.images((guidance.keyframes * 255).round().astype(np.uint8))[1]

    def judge(self, guidance: Guidance, clips: Clips) -> dict[str, np.ndarray]:
        """Of each clip: the clip ``before`` it or -1; whether it is ``joined`` to it, and from which ``evidence``.

        ``joined_by_pixels`` and ``pixel_evidence`` are the pixel rule's.
        """
        before = clips.neighbour(-1)
        assert guidance.latents is not None
        blurry, embeddings = self.vae.decode(guidance.latents), self.embed(guidance)
        return {
            "before": before,
            "joined": self.rule.same_scene(embeddings, before),
            "evidence": self.rule.evidence(embeddings, before),
            "joined_by_pixels": self.pixel_rule.same_scene(blurry, before),
            "pixel_evidence": self.pixel_rule.evidence(blurry, before),
        }


def learn_scenes(
    run: Path, recipe: Recipe, reconstructor: Reconstructor, generator: NeuroClipsGenerator, kept: Path, report: Report
) -> Scenes:
    """Rules learnt from the training film, with thresholds from what was decoded of the validation fMRI."""
    assert recipe.generate.video is not None
    settings = recipe.generate.video.fusion or FusionRecipe()
    prepared = load_clips(run / "prepare")
    train, validation = prepared.train, prepared.validation
    seen = reconstructor.decode(reconstructor.decoders.inputs(validation, None), validation.ids)
    if settings.compare == "keyframes":
        seen = imagine(generator, seen, kept / "validation", recipe.seed, report, "validation")
        shown = np.asarray(train.frames[:, min(KEYFRAME, train.n_frames - 1)], np.float32) / 255
        film = Guidance(train.ids, keyframes=shown)
    else:
        seen = _with_mean_tokens(seen)
        film = Guidance(train.ids, tokens=mean_tokens(load_targets(run, "train").tokens)[:, None])
    scenes = Scenes(
        SCENE_RULES[settings.rule](), PixelDifferenceRule(), settings.compare,
        Clip.load(reconstructor.clip, device=reconstructor.device), generator.vae,
    )  # fmt: skip
    known = KnownScenes.of(validation, scenes.embed(seen))
    scenes.rule.fit(KnownScenes.of(train, scenes.embed(film)), known)
    assert seen.latents is not None
    scenes.pixel_rule.fit(generator.vae.decode(seen.latents), known.before, known.same)
    return scenes


def continuous(run: Path, recipe: Recipe, segment: str, console: Console) -> Path:
    """One long video of a whole test segment, ``continuous/SEGMENT.mp4``: every scene as one chain of clips.

    Beside it ``SEGMENT-beside.mp4``: the film that was shown, the blurry video, and the reconstruction. Needs the
    stages up to ``fit``; a killed call goes on where it stopped.
    """
    video = recipe.generate.video
    assert video is not None
    prepared = load_clips(run / "prepare")
    test = prepared.test
    if segment not in test.segments:
        raise RecipeError(f"no test segment {segment!r}; there are {', '.join(test.segments)}")
    clips = np.flatnonzero(test.segment == test.segments.index(segment))
    clips = clips[np.argsort(test.onset[clips])]
    reconstructor = Reconstructor.load(run / "fit" / recipe.decoders.methods[-1], device=str(pick_device(video.device)))
    generator = reconstructor.neuroclips(video)
    inputs = reconstructor.decoders.inputs(test, None)
    guidance = reconstructor.decode(inputs[clips], [test.ids[c] for c in clips])
    own = run / "continuous"
    # Settings, weights and decoder decide what is kept: another of them starts anew.
    key = content_hash(
        [video.model_dump(mode="json"), video_weights(recipe), read_json(run / "fit" / "card.json")["content"]]
    )
    kept = own / ".kept" / f"{segment}-{key[:16]}"
    with progress_bar(console) as report:
        scenes = learn_scenes(run, recipe, reconstructor, generator, kept, report)
        guidance = imagine(generator, guidance, kept / segment, recipe.seed, report, segment)
        judged = scenes.judge(guidance, test.take(clips))
        before, joined = judged["before"], judged["joined"]
        alone = show(generator, guidance, kept / segment, recipe.seed, report, segment)
        known = _Known(generator, dict(zip(guidance.ids, alone)), kept / "fused", report)
        videos = fuse(known, guidance, chain_positions(joined, before, None), before, seed=recipe.seed)
    film = join(videos, test.onset[clips], test.t_r)
    fps = Fraction(len(film) / (len(clips) * test.t_r)).limit_denominator(1001)
    path = own / f"{segment}.mp4"
    write_video(path, film, fps)
    blurry = reconstructor.generator("blurry").generate(guidance, seed=recipe.seed)
    parts = [np.asarray(test.frames[clips]), blurry]
    size = film.shape[-1]
    beside = [join(_at(part, videos.shape[1], size), test.onset[clips], test.t_r) for part in parts]
    write_video(own / f"{segment}-beside.mp4", np.concatenate([*beside, film], axis=-1), fps)
    shutil.rmtree(kept)
    return path


def _at(videos: np.ndarray, frames: int, size: int) -> np.ndarray:
    """Videos with as many frames as wanted, each the nearest in time, at ``size`` pixels."""
    nearest = np.rint(np.linspace(0, videos.shape[1] - 1, frames)).astype(int)
    chosen = torch.from_numpy(np.ascontiguousarray(videos[:, nearest])).flatten(0, 1)
    scaled = interpolate(chosen, (size, size), mode="bilinear", antialias=True)
    return scaled.unflatten(0, (len(videos), frames)).numpy()


def _write(path: Path, *, videos: np.ndarray, keyframes: np.ndarray | None = None) -> None:
    """Write a condition's videos, and keyframes in halves, some clips at a time."""
    with rows_written(path, len(videos)) as write:
        for rows in in_parts(len(videos), CLIPS_AT_ONCE, videos, keyframes):
            drawn = {} if keyframes is None else {"keyframes": keyframes[rows].astype(np.float16)}
            write(rows, {**drawn, "videos": videos[rows]})
