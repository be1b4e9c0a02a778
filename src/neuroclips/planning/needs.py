"""What every stage of a recipe takes: parameters, memory of the GPU and of the machine, disk, arithmetic.

Networks are walked through (``networks``); arrays are counted from their shapes. Where a stage's own memory could not
be counted so, a constant was fitted to measured runs, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from neuroclips.planning import networks as of
from neuroclips.planning.counts import Counts
from neuroclips.planning.ghost import Cost
from neuroclips.pretrained.catalogue import published
from neuroclips.recipe import Recipe
from neuroclips.reconstructor import CLIPS_AT_ONCE
from neuroclips.stages import ABLATIONS
from neuroclips.targets import CHUNK
from neuroclips.training.decoders import AT_ONCE, VALIDATIONS, without_teacher
from neuroclips.training.end_to_end import READOUT
from neuroclips.training.objectives import epoch_length
from neuroclips.training.switches import Switches

BASE = (
    0.45e9  # Python with torch, diffusers, transformers and the rest, when a run begins; pages of files are not in it
)
SOLVED_AT_ONCE, READ_AT_ONCE = 1 << 28, 1 << 26  # numbers, as ridge has them
F32, F16, U8 = 4, 2, 1  # bytes


@dataclass(frozen=True)
class Need:
    """What one part of a stage takes; bytes are decimal-free whole ones.

    frozen, trained : parameters.  device : bytes where networks run.  host : bytes of the machine's memory beside that.
    disk : bytes that stay.  scratch : bytes that are there while it runs.  flops : of its networks.  kind : of work, by
    which speed is known.  moved : trained parameters times steps, which is AdamW's work.
    rough : memory is fitted to runs rather than counted.
    """

    stage: str
    what: str
    frozen: int = 0
    trained: int = 0
    device: float | int = 0
    host: float | int = BASE
    disk: float | int = 0
    scratch: float | int = 0
    flops: float | int = 0
    kind: str = ""
    moved: float | int = 0
    seconds: float | int | None = None
    rough: bool = False


@dataclass(frozen=True)
class Job:
    """A recipe with its counts and sizes, and whether its networks run on a GPU."""

    recipe: Recipe
    counts: Counts
    sizes: of.Sizes
    gpu: bool

    @classmethod
    def made(cls, recipe: Recipe, counts: Counts, gpu: bool) -> Job:
        data, chosen = recipe.data, recipe.targets
        lags = max(1, len(data.delays))
        c, h, w = of.latent_shape(chosen.vae, data.frame_size)
        text = None
        if chosen.captions is not None or data.layout == "tensors":  # published tensors come with captions
            text = of.config(chosen.clip, "clip").get("projection_dim", 512)
        sizes = of.Sizes(
            counts.voxels * lags, of.token_shape(chosen.clip), (data.frames_per_clip, c, h, w), text, data.frame_size
        )
        return cls(recipe, counts, sizes, gpu)

    @property
    def units(self) -> tuple[int, int]:
        """Numbers of a clip's tokens, and of its latents."""
        (k, d), (f, c, h, w) = self.sizes.tokens, self.sizes.latents
        return k * d, f * c * h * w

    @property
    def film(self) -> int:
        """Bytes of a clip's frames."""
        return self.recipe.data.frames_per_clip * 3 * self.sizes.frame**2

    @property
    def chosen(self) -> Switches:
        return without_teacher(self.recipe.decoders.preset, self.recipe.decoders.switches)

    @property
    def names(self) -> tuple[of.Trained, ...]:
        """The networks that are trained end to end."""
        return ("semantics", "prior", "perception") if self.recipe.decoders.networks.prior_depth else (
            "semantics", "perception",
        )  # fmt: skip

    def train(self, part: of.Trained) -> Cost:
        whole, _ = self.steps(part)
        batch = -(-whole // self.recipe.decoders.networks.accumulate)
        networks = of.own_settings(part, self.recipe.decoders.networks)
        return of.training(part, networks, self.sizes, self.chosen, batch, self.gpu)

    def steps(self, part: of.Trained) -> tuple[int, int]:
        """Clips of a step, and steps of the training."""
        whole = min(getattr(self.chosen, f"{part}_batch"), self.counts.train)
        epochs = self.recipe.decoders.epochs or getattr(self.chosen, f"{part}_epochs")
        return whole, epochs * epoch_length(self.counts.train, whole)

    def decode(self, part: of.Trained) -> Cost:
        networks, expected = self.recipe.decoders.networks, self.chosen.prior_tokens == "expected"
        draws = self.recipe.decoders.prior_draws if expected else 1
        cost = of.decoding(part, of.own_settings(part, networks), self.sizes, self.chosen, draws, self.gpu)
        calls = networks.prior_steps - 1 if part == "prior" and not expected else 1
        return replace(cost, flops=calls * cost.flops)

    @property
    def decoders(self) -> tuple[float | int, float | int, float | int]:
        """Of the method that makes the videos: bytes of weights, bytes at work beside them, and operations a clip."""
        method = self.recipe.decoders.methods[-1]
        if method == "ridge":
            return 0, 0, 0
        if method == "neural":  # of the mini networks' size, whatever the recipe
            return 0.06e9, 0.1e9, 1e9
        costs = [self.decode(part) for part in self.names]
        return (
            sum(c.weights for c in costs), max(c.activations for c in costs),
            sum(c.flops / c.items for c in costs),
        )  # fmt: skip


def needs(job: Job) -> Iterator[Need]:
    """What each part of each stage takes, in their order."""
    recipe = job.recipe
    if recipe.film is not None:
        yield _simulate(job)
    yield from _data(job)
    yield from targets(job)
    yield from fit(job)
    yield reconstruct(job)
    if recipe.generate.video is not None:
        yield generate(job)
    if recipe.curves is not None:
        yield _curves(job)
    if recipe.maps is not None:
        yield _maps(job)
    if recipe.film is not None:
        b = job.counts.test
        yield Need(
            "observe", "ideal observer", host=BASE + 5 * b * job.counts.voxels * F32, disk=3 * b * b * F32, rough=True
        )
    yield _evaluate(job)


def needs_of(job: Job, stage: str) -> Iterator[Need]:
    """What the parts of one stage take that settings can change."""
    if stage == "targets":
        yield from targets(job)
    elif stage == "fit":
        yield from fit(job)
    elif stage == "reconstruct":
        yield reconstruct(job)
    elif stage == "generate":
        yield generate(job)
    elif stage == "curves":
        yield _curves(job)
    elif stage == "maps":
        yield _maps(job)


# --- film and scans ---------------------------------------------------------------------------------------------------


def _simulate(job: Job) -> Need:
    """Scans of all grayordinates in float32; memory is that of the demo."""
    scans = job.counts.presentations * 91_282 * F32 * 1.15  # and the volumes before and after a film
    return Need("simulate", "film, brain and scanner", host=BASE + 1.05e9, disk=scans, rough=True)


def _data(job: Job) -> Iterator[Need]:
    """One film or scan is in memory at a time; the lag curve holds 11 arrays of at most 1,000 clips by voxels. Seconds
    are those of the demo on two cores, by clip and by volume."""
    counts, trained = job.counts, job.counts.segments[0]
    a_film, a_scan = counts.train // max(1, trained), counts.train // max(1, trained) * counts.space * 8
    yield Need("films", "clips", host=BASE + 0.4e9 + 2 * a_film * job.film, disk=counts.clips * (job.film + 12),
               seconds=0.018 * counts.clips, rough=True)  # fmt: skip
    if job.recipe.data.layout != "tensors":
        yield Need("reliability", "repeats compared", host=BASE + 4 * a_scan, disk=trained * counts.space * 8,
                   seconds=0.0026 * counts.train * counts.repeats, rough=True)  # fmt: skip
    bold = counts.presentations * counts.voxels * F32
    yield Need("prepare", "voxels selected, scans cleaned", disk=bold + 17 * counts.space, rough=True,
               host=BASE + max(4 * a_scan, 11 * min(counts.train, 1000) * counts.voxels * F32),
               seconds=0.0034 * counts.presentations)  # fmt: skip


# --- targets ----------------------------------------------------------------------------------------------------------


def targets(job: Job) -> Iterator[Need]:
    """Chunks of clips; weights pass through the machine's memory on their way to a GPU. Processes have their own."""
    recipe, counts = job.recipe.targets, job.counts
    encode = of.vae(recipe.vae, "vae", "encode", job.sizes.frame, of.VAE_BATCH, "no", job.gpu)
    clip = of.clip(recipe.clip, of.CLIP_BATCH, recipe.dtype, job.gpu)
    tokens, latents = job.units
    candidates = len(recipe.keyframes or (0,))
    pictures = counts.train * candidates + counts.validation + counts.test
    chunk = CHUNK * (2 * job.film + (tokens * candidates + latents) * (F32 + F16))
    processes = recipe.processes
    weights = encode.weights + clip.weights
    flops = counts.clips * job.recipe.data.frames_per_clip * encode.flops / of.VAE_BATCH
    yield Need(
        "targets", "autoencoder and CLIP", encode.parameters + clip.parameters,
        device=processes * (weights + max(encode.activations, clip.activations)),
        host=BASE + processes * (chunk + (clip.weights if job.gpu else 0)) + (processes > 1) * processes * BASE,
        disk=(pictures * tokens + counts.clips * latents) * F16 + counts.clips * (job.sizes.text or 0) * F32,
        flops=flops + pictures * clip.flops / of.CLIP_BATCH, kind="frozen",
    )  # fmt: skip
    if recipe.captions is not None and job.recipe.data.layout != "tensors":
        written = of.captioner(recipe.captions, recipe.dtype, job.gpu)
        yield Need(
            "targets", "captions", written.parameters, device=written.peak,
            host=BASE + (written.weights if job.gpu else 0) + CHUNK * 3 * job.sizes.frame**2 * 5,
            flops=counts.clips * written.flops / written.items, kind="captions",
        )  # fmt: skip


# --- fit --------------------------------------------------------------------------------------------------------------


def fit(job: Job) -> Iterator[Need]:
    """Ridge, then the networks one after the other."""
    for method in job.recipe.decoders.methods:
        if method == "ridge":
            yield ridge(job)
        elif method == "neural":
            yield _neural(job)
        else:
            yield from end_to_end(job)


def ridge(job: Job) -> Need:
    """Part by part of the targets: values, dual weights and himalaya's copies of them (3.7 in all, as measured); for
    each alpha a matrix of clips by clips and ``targets_batch`` targets; four copies of responses, three kernels."""
    b, x, settings = job.counts.train, job.sizes.voxels, job.recipe.ridge
    part = min(max(job.units), SOLVED_AT_ONCE // b)
    at_once = min(settings.targets_batch, part)
    refit = len(settings.alphas) * b * (b + at_once) * F32
    host = BASE + 4 * b * x * F32 + 3.7 * b * part * F32 + refit + 3 * b * b * 8
    return Need("fit", "ridge", host=host, disk=(sum(job.units) + 2 * x) * b * F32 + _motion(job))


def _motion(job: Job) -> float | int:
    """Bytes of the layer from voxels to flow."""
    return job.sizes.voxels * 128 * F32


def _neural(job: Job) -> Need:
    """The subject's own layer by ridge, from two volumes; shared networks stay as they are. Networks that are trained
    here are of the mini size."""
    b, x = job.counts.train, 2 * job.counts.voxels
    host = BASE + 4 * b * x * F32 + 3 * b * job.units[0] * F32 + 6 * b * b * 8
    return Need("fit", "neural: the subject's layer", 10_000_000, x * 384, host=host, rough=True,
                disk=(x * 384 + 10_000_000) * F32 + _motion(job) * 2)  # fmt: skip


def end_to_end(job: Job) -> Iterator[Need]:
    """Three trainings. While one is on the GPU, the others' weights are in the machine's memory.

    Checkpoints have 12 bytes a parameter and are written beside the last one; the best weights have 4, likewise. They
    stay until all is fitted, as do the prior's conditions until it is trained.
    """
    counts, (tokens, latents) = job.counts, job.units
    costs = {part: job.train(part) for part in job.names}
    weights = {part: cost.trained * F32 for part, cost in costs.items()}
    kept, held = 0.0, counts.validation * job.sizes.voxels * F32 * 2
    conditions = counts.train * counts.repeats * tokens * F16
    largest = weights["semantics"] if job.recipe.decoders.networks.initial else 0  # is read before it is copied
    for part in job.names:
        cost, (whole, steps) = costs[part], job.steps(part)
        batch = whole * (job.sizes.voxels + (latents if part == "perception" else 2 * tokens)) * F32
        others = sum(weights.values()) - weights[part]
        host = BASE + others + held + 2 * batch * job.gpu
        if part == "semantics" and job.gpu:  # before it is on the GPU
            host = max(host, BASE + sum(weights.values()) + largest)
        if part == "prior":
            host += 2 * counts.validation * tokens * F16
        scratch = kept + 2 * (12 + 4) * cost.trained + (conditions if part == "prior" else 0)
        kept += (12 + 4) * cost.trained
        looked = VALIDATIONS * counts.validation * job.decode(part).flops / AT_ONCE
        yield Need(
            "fit", part, cost.parameters - cost.trained, cost.trained, device=cost.peak, host=host,
            disk=cost.trained * F32, scratch=scratch, flops=steps * cost.flops + looked, kind=part,
            moved=float(steps) * cost.trained,
        )  # fmt: skip
    read = counts.train * max(tokens, latents)
    columns = 2 * counts.train * min(max(tokens, latents), 1 << 14) * F32
    axes = READOUT * tokens * (F32 + F16)
    decode = job.decode("semantics")
    yield Need(
        "fit", "reading out the networks", sum(c.trained for c in costs.values()), device=decode.peak,
        host=BASE + sum(weights.values()) - weights["semantics"] + read * F32 + axes + columns
        + 4 * counts.train**2 * 8 + 3 * counts.train * job.sizes.voxels * F32 + 4 * _width(job) ** 2 * 8,
        disk=READOUT * (tokens + latents) * F16 + _motion(job), flops=counts.train * decode.flops / AT_ONCE,
        kind="semantics", scratch=kept,
    )  # fmt: skip


def _width(job: Job) -> int:
    return job.recipe.decoders.networks.width


# --- decoding and generating ------------------------------------------------------------------------------------------


def reconstruct(job: Job) -> Need:
    """``CLIPS_AT_ONCE`` clips at a time: what is decoded of them and its copies, and their pictures as bytes and as
    floats, where they are moved."""
    recipe, counts, (tokens, latents) = job.recipe, job.counts, job.units
    methods, generators = recipe.decoders.methods, recipe.generate.generators
    repeats = len({k for k in recipe.generate.test_repeats if k < counts.test_repeats} | {counts.test_repeats})
    floors = 1 + (recipe.data.wrong_subject is not None)
    sets = len(methods) * (repeats + floors)
    has_prior = methods[-1] != "ridge"
    stored = counts.test * F32 * (repeats + floors) * sum(
        latents + tokens * (1 + (method != "ridge")) for method in methods
    )  # fmt: skip
    videos = (2 + floors) * len(generators) + ("ridge" in methods[:-1]) * ("blurry" in generators)
    paint = of.vae(recipe.targets.vae, "vae", "decode", job.sizes.frame, of.VAE_BATCH, "no", job.gpu)
    weights, at_work, a_clip = job.decoders
    at_once = min(CLIPS_AT_ONCE, counts.test)
    decoded = at_once * ((1 + has_prior) * tokens * (2 * F32 + F16) + latents * 3 * F32)
    pictures = at_once * job.film * (2 * U8 + F32)
    blurry = ("blurry" in generators) * (2 + floors + 1) * counts.test * recipe.data.frames_per_clip
    return Need(
        "reconstruct", "decoding, blurry videos and floors", paint.parameters,
        device=weights + paint.weights + max(at_work, paint.activations),
        host=BASE + decoded + pictures + 3 * counts.test * job.sizes.voxels * F32,
        disk=stored + videos * counts.test * job.film, rough=True, kind="frozen",
        flops=sets * counts.test * a_clip + blurry * paint.flops / of.VAE_BATCH,
    )  # fmt: skip


def generate(job: Job) -> Need:
    """Decoders, autoencoder, keyframe generator, captioner and video generator are loaded together, and CLIP where the
    video weights have no text encoder of their own; the largest step of any of them comes on top. Keyframes and videos
    of a condition are there twice while they are made."""
    recipe, counts, (tokens, latents) = job.recipe, job.counts, job.units
    video = recipe.generate.video
    assert video is not None
    clips = counts.test if video.clips is None else min(counts.test, video.clips * len(recipe.data.test or (0,)))
    vae, clip = recipe.targets.vae, recipe.targets.clip
    batch = min(video.batch, clips)
    weights, at_work, a_clip = job.decoders
    drawn, steps_key = of.keyframes(video.keyframe, vae, batch, video.dtype, job.gpu)
    shown, steps_video = of.video(video.video, vae, batch, video.frames, video.dtype, job.gpu, video.offload)
    words = of.captioner(video.caption, video.dtype, job.gpu)
    seen = of.clip(clip, 1, "fp32", job.gpu)
    paint = of.vae(vae, "vae", "decode", job.sizes.frame, of.VAE_BATCH, "no", job.gpu)
    text = 0 if video.video in published() or (Path(video.video) / "text_encoder").is_dir() else seen.weights
    resident = weights + drawn.weights + words.weights + text + paint.weights
    if not video.offload:
        resident += shown.weights
    step = max(at_work, drawn.activations, words.activations, paint.activations,
               shown.peak if video.offload else shown.activations)  # fmt: skip
    conditions = 2 + video.shuffles
    videos = conditions + video.ablations * len(ABLATIONS) + (video.fusion is not None)
    keyframe, film = _keyframe_bytes(job), video.frames * 3 * _video_size(job) ** 2
    per_step = drawn.flops / batch * ((video.keyframe_steps or steps_key) / steps_key)
    moving = shown.flops / batch * (video.steps or steps_video) * (video.strength if "alpha" in video.paths else 1)
    everything = counts.test * (2 * tokens + latents) * F32
    return Need(
        "generate", "keyframes, captions and videos",
        drawn.parameters + shown.parameters + words.parameters + seen.parameters * (text > 0), device=resident + step,
        host=BASE + 2 * everything + 2 * batch * (film * 5 + keyframe)
        + (shown.weights if video.offload else max(drawn.weights, words.weights, text)) * job.gpu,
        disk=conditions * clips * keyframe / 2 + videos * clips * film, scratch=2 * clips * (keyframe + film),
        flops=clips * (conditions * (a_clip + per_step + words.flops / words.items) + videos * moving), kind="video",
        rough=True,
    )  # fmt: skip


def _keyframe_bytes(job: Job) -> int:
    """Of one keyframe in float32."""
    video = job.recipe.generate.video
    assert video is not None
    about = of.config(video.keyframe, "keyframe", "unet")
    side = about["sample_size"] * job.sizes.frame // job.sizes.latents[2]
    return 3 * side**2 * F32


def _video_size(job: Job) -> int:
    video = job.recipe.generate.video
    assert video is not None
    about = of.config(video.video, "video", "unet")
    return about["sample_size"] * job.sizes.frame // job.sizes.latents[2]


# --- scores and maps --------------------------------------------------------------------------------------------------


def _curves(job: Job) -> Need:
    """Ridge to tokens again for every point of minutes and lags; one set of dual weights on disk at a time."""
    recipe, counts, tokens = job.recipe, job.counts, job.units[0]
    chosen = recipe.curves
    assert chosen is not None
    points = len(chosen.training_shares) + len(chosen.components) + 1 + len(chosen.lags)
    samples = counts.test_repeats if chosen.samples else 0
    solved = ridge(job)
    return Need("curves", "ridge under other conditions", host=solved.host + 2 * counts.test * tokens * F32,
                disk=(points + samples) * counts.test * tokens * F16, scratch=counts.train * tokens * F32, rough=True,
                device=sum(job.decoders[:2]))  # fmt: skip


def _maps(job: Job) -> Need:
    """Weights of the first layers in parts, encoding models of all voxels, and what is decoded of a lesion. Re-encoding
    looks at decoded film with autoencoder and CLIP, which are on the CPU here."""
    recipe, counts, (tokens, latents) = job.recipe, job.counts, job.units
    assert recipe.maps is not None
    host = BASE + 3 * counts.test * (tokens + latents) * F32 + 2 * counts.test * job.sizes.voxels * F32
    if recipe.maps.encoding:
        paint = of.vae(recipe.targets.vae, "vae", "decode", job.sizes.frame, of.VAE_BATCH, "no", False)
        seen = of.clip(recipe.targets.clip, of.CLIP_BATCH, "no", False)
        features = 200 * 3  # at three delays
        models = 6 * counts.train * counts.voxels * F32 + 4 * features * counts.voxels * F32 + 100 * tokens * F32
        looking = paint.weights + seen.weights + max(paint.activations, seen.activations)
        host = max(host, BASE + models + 8 * counts.train**2 * 8 + looking)
    return Need("maps", "importance, lesions, encoding models", host=host, rough=True, device=_without_prior(job),
                disk=60e6 + len(recipe.generate.generators) * counts.test * counts.voxels * F16)  # fmt: skip


def _without_prior(job: Job) -> float | int:
    """Bytes of decoders that decode without drawing noise."""
    if job.recipe.decoders.methods[-1] != "end-to-end":
        return sum(job.decoders[:2])
    costs = [job.decode(part) for part in job.names if part != "prior"]
    return sum(cost.weights for cost in costs) + max(cost.activations for cost in costs)


def _evaluate(job: Job) -> Need:
    """Features and videos are read in parts; similarities of test clips with each other, and the judges."""
    counts = job.counts
    host = BASE + 1.2e9 + 40 * counts.test**2 * 8 + 3 * counts.test * job.sizes.voxels * F32
    return Need("evaluate", "scores, judges, intervals", host=host, disk=5e6, rough=True)
