"""A recipe: the complete description of a run, read from YAML. Unknown keys are refused.

``neuroclips run demo`` reads the recipe of that name that ships with the package; a path works too, and single
values can be changed on the command line (``--set brain.signal=0.5``). ``scale: paper`` lays a recipe over
``recipes/scales/paper.yaml``, which names the paper's networks in place of the small ones that ship.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from neuroclips.errors import RecipeError

KEYFRAME = 2  # of 6 frames: the frame that stands for a clip (method a.6)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FilmRecipe(_Part):
    """The film that the simulated subject watches."""

    movies: Path | None = Field(None, description="folder of films to use instead of the picture-book world")
    train_segments: int = Field(18, ge=2, description="seg1, seg2, ...")
    test_segments: int = Field(5, ge=1, description="test1, test2, ...")
    train_seconds: int = Field(480, ge=20, multiple_of=2)
    test_seconds: int = Field(480, ge=20, multiple_of=2)
    size: int = Field(128, ge=64, le=512, multiple_of=16, description="pixels, square")
    unseen_things: float = Field(0.25, ge=0, le=1, description="share of test scenes with a thing never seen before")
    new_places: float = Field(0.25, ge=0, le=1, description="share of test scenes with a known thing in a new place")

    @model_validator(mode="after")
    def _shares_fit_into_one(self) -> FilmRecipe:
        if self.unseen_things + self.new_places > 1:
            raise ValueError(
                f"unseen_things {self.unseen_things:g} and new_places {self.new_places:g} are shares of the same test "
                "scenes; expected at most 1 together"
            )
        return self


class BrainRecipe(_Part):
    """The simulated subject and scanner."""

    subject: int = Field(1, ge=1)
    signal: float = Field(1.0, ge=0, le=10, description="signal strength; 0 is a brain that did not see the film")
    train_repeats: int = Field(2, ge=2, le=10)
    test_repeats: int = Field(10, ge=1, le=10)


class SelectionRecipe(_Part):
    """Which voxels are kept, from the training segments' repeats alone (method a.3), and from anatomy."""

    method: Literal["bonferroni", "fdr", "top", "all"] = Field(
        "bonferroni", description="family-wise error, false discovery rate (Benjamini-Hochberg), the best, or no test"
    )
    p: float = Field(0.05, gt=0, lt=1, description="error rate over all voxels that are asked")
    sides: Literal[1, 2] = Field(1, description="1: repeats agree; 2: they agree or oppose each other")
    top: int = Field(4500, ge=1, description="with method 'top': how many voxels, by smallest p")
    rois: tuple[str, ...] = Field((), description="only voxels of these areas: HCP-MMP1 names, or those of the atlas")
    hemisphere: Literal["both", "left", "right"] = Field("both", description="of the areas on the cortex")
    atlas: Path | None = Field(None, description="for volumes: a NIfTI image of area numbers")
    atlas_labels: Path | None = Field(None, description="for volumes: a table (.tsv) with columns index and name")
    mask: Path | None = Field(None, description="only voxels of this file: CIFTI, NIfTI or .npy, nonzero is in")

    @model_validator(mode="after")
    def _atlas_has_rois(self) -> SelectionRecipe:
        if self.atlas is not None and not self.rois:
            raise ValueError("atlas is given, but no rois; expected names of its areas")
        return self


Layout = Literal["cc2017", "tensors", "table"]


class DataRecipe(_Part):
    """From scans and films to arrays."""

    layout: Layout = Field("cc2017", description="what root is: CC2017's folder, its published tensors, or a table")
    root: Path | None = Field(None, description="a folder, or a table of your study; None takes the simulated subject")
    unpack_to: Path | None = Field(None, description="where zips in root are unpacked; null: into root")
    files: Literal["cifti", "mni"] = Field("cifti", description="which of CC2017's scans; mni needs mask")
    mask: Path | None = Field(None, description="brain mask of scans in NIfTI; a table may name its own")
    subject: int = Field(1, ge=1)
    wrong_subject: int | None = Field(
        None,
        ge=1,
        description="another subject of the folder, whose test scans are a floor",
    )
    train: tuple[str, ...] = Field((), description="segments; a table may have its own column split")
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    exclude: tuple[str, ...] | None = Field(
        None, description="runs to leave out, SEGMENT/REPEAT such as test2/9; null: those known to be bad"
    )
    max_motion: float | None = Field(None, gt=0, description="mean framewise displacement (mm) that leaves a run out")
    t_r: float | None = Field(2.0, gt=0, description="seconds; null: what the scans say")
    delay_trs: int | tuple[int, ...] | None = Field(
        None, description="volumes between a clip and its response; several are seen together; null: nearest to 4 s"
    )
    stored_delay_trs: int | None = Field(
        None, ge=0, le=8, description="of published tensors: the delay that is already inside; null: measured"
    )
    detrend: int | None = Field(
        4, ge=1, le=12, description="degree of the polynomial in time that is removed; null: 1, and 1 more every 150 s"
    )
    frames_per_clip: int = Field(6, ge=1, le=60)
    frame_size: int = Field(64, ge=32, le=512, multiple_of=8)
    selection: SelectionRecipe = SelectionRecipe()

    @model_validator(mode="after")
    def _segments_appear_once(self) -> DataRecipe:
        names = self.train + self.validation + self.test
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"segments {', '.join(twice)} are in two splits; every segment belongs to exactly one")
        if not (self.train and self.validation and self.test) and (names or self.layout != "table"):
            raise ValueError(
                "train, validation and test name the segments of each split; expected all three"
                + (", or none where the table has a column split" if self.layout == "table" else "")
            )
        delays = list(self.delays)
        latest = 4 if self.layout == "cc2017" else 40  # the volumes that CC2017 has after a film
        if delays != sorted(set(delays)) or (delays and not 0 <= delays[0] <= latest) or self.delay_trs == ():
            raise ValueError(f"delay_trs is {self.delay_trs}; expected 0 to {latest}, or several, ascending")
        if self.wrong_subject == self.subject:
            raise ValueError(f"wrong_subject is {self.subject}, the subject itself; expected another one")
        if self.wrong_subject is not None and self.layout != "cc2017":
            raise ValueError("wrong_subject compares the same vertices of two brains; expected layout cc2017")
        if self.files == "mni" and self.mask is None:
            raise ValueError("files is mni; expected a brain mask on the grid of these scans in mask")
        return self

    @property
    def delays(self) -> tuple[int, ...]:
        """``delay_trs`` as a tuple; empty where it is null."""
        given = self.delay_trs
        return () if given is None else (given,) if isinstance(given, int) else given


class TargetsRecipe(_Part):
    """The frozen networks whose spaces are decoded: 'mini', a name of ``neuroclips models list``, or a local folder in
    diffusers/transformers layout."""

    vae: str = "mini"
    clip: str = "mini"
    captions: str | None = Field(None, description="captioner of the keyframes, likewise; null writes none")
    keyframes: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="frames of a training clip that training draws its keyframe from; null: the third"
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of CLIP and captioner; the VAE has fp32")
    processes: int = Field(1, ge=1, description="that share the clips, a GPU each where there are several")
    device: str = "auto"


class RidgeRecipe(_Part):
    """himalaya ridge; alphas are chosen per target by run-wise cross-validation."""

    alphas: tuple[Annotated[float, Field(gt=0)], ...] = tuple(10 ** (e / 2) for e in range(-6, 7))
    targets_batch: int = Field(4096, ge=1, description="targets solved at a time; bounds memory")


class NetworksRecipe(_Part):
    """Networks that are trained end to end, from voxels, on one subject; the defaults are the paper's sizes."""

    width: int = Field(4096, ge=8, description="of the code between the subject's layer and the rest; memory's knob")
    mixer: Literal["residual", "identity"] = Field(
        "residual", description="in place of the released mixers, which cannot learn: blocks that can, or nothing"
    )
    hidden: int = Field(1024, ge=8, description="inner width of residual blocks")
    dropout: float = Field(0.15, ge=0, lt=1)
    expansion: Literal["code", "inception"] = Field(
        "code", description="how a scan becomes frames: a code changed for each, or patterns of voxels as released"
    )
    grid: int | None = Field(
        None, ge=1, description="rows of perception's coarse map; null: a quarter of the latents', as in the paper"
    )
    channels: tuple[Annotated[int, Field(ge=8)], ...] = Field((128, 64, 32), description="of perception's decoder")
    prior_depth: int = Field(6, ge=0, description="blocks; with 0 there is no prior: keyframes are drawn from tokens")
    prior_heads: int = Field(32, ge=1)
    prior_head_width: int = Field(52, ge=8, multiple_of=2)
    prior_steps: int = Field(20, ge=2, le=100, description="of the prior's sampler, where tokens are drawn")
    initial: str | None = Field(
        None, description="folder that semantics and prior start from: 'mindeye2' or another; null starts at random"
    )
    text_projector: str | None = Field(
        None, description="folder of projector.safetensors: 'text-projector'; null fits one on the training captions"
    )
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="of training's forward pass; weights have fp32")
    accumulate: int = Field(1, ge=1, description="parts that a batch is divided into; less memory, but fewer contrasts")
    checkpoint_activations: bool = Field(False, description="prior: compute activations twice, to keep fewer of them")


class DecodersRecipe(_Part):
    """Which decoders are fitted side by side, and how the neural ones come to their weights."""

    methods: tuple[Literal["ridge", "neural", "end-to-end"], ...] = Field(
        ("ridge", "neural"),
        min_length=1,
        description="the last one makes the videos; ridge beside it is its baseline. 'neural': ridge to a code, then "
        "networks that subjects share; 'end-to-end': all of it trained on this subject, as in the paper",
    )
    pretrained: str | None = Field(
        "mini", description="what subjects share: 'mini', a folder of such weights, or null to train on this subject"
    )
    preset: Literal["corrected", "paper", "released"] = Field(
        "corrected", description="how to train where pretrained is null: our recommendation, the paper, or its code"
    )
    switches: dict[str, Any] = Field({}, description="single switches of the preset, changed (docs/decoders.md)")
    epochs: int | None = Field(None, ge=1, description="visits of every clip, in place of the preset's")
    prior_draws: int = Field(4, ge=1, description="noise draws that the prior's expected tokens are averaged over")
    networks: NetworksRecipe = NetworksRecipe()
    device: str = "auto"

    @model_validator(mode="after")
    def _methods_appear_once(self) -> DecodersRecipe:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods {', '.join(self.methods)}: every method is fitted once")
        return self


class FusionRecipe(_Part):
    """Multi-fMRI fusion: consecutive clips of one scene become one longer video (paper section 3.4)."""

    compare: Literal["tokens", "keyframes"] = Field(
        "tokens", description="what two clips are compared by: decoded tokens, or CLIP summaries of their keyframes"
    )
    rule: Literal["similarity", "classifier"] = Field("similarity", description="what decides that a scene goes on")
    limit: int | None = Field(3, ge=1, description="clips a chain (3 in the paper: 6 s); null joins whole scenes")


class VideoRecipe(_Part):
    """Generated video: keyframe, caption, and text-to-video diffusion under alpha, beta and gamma guidance.

    None takes what suits the weights, from the configuration saved with them.
    """

    video: str = Field(
        "mini", description="'mini', a name of `neuroclips models list`, or a folder in diffusers layout"
    )
    keyframe: str = Field("mini", description="keyframe generator, likewise")
    caption: str = Field("mini", description="captioner, likewise, in transformers layout")
    paths: tuple[Literal["alpha", "beta", "gamma"], ...] = Field(
        ("alpha", "beta", "gamma"), description="which guidance is on: blurry video, keyframe, caption"
    )
    start: Literal["sdedit", "paper", "released"] = Field("sdedit", description="how the blurry video enters")
    strength: float = Field(0.5, ge=0, le=1, description="share of the noise schedule; 0 keeps the blurry video")
    keyframe_index: int | None = Field(
        None, description="the frame of the video at which the keyframe stands; null: the moment that was decoded"
    )
    control_scale: float = Field(1.0, ge=0, description="weight of SparseCtrl")
    motion_gain: float = Field(2.0, ge=0, description="how far the blurry video moves along the decoded flow; 0: not")
    keyframe_share: float = Field(
        0.5, ge=0, le=1, description="share of the moving keyframe in what denoising starts from; in the paper 0"
    )
    frames: int = Field(16, ge=1, le=32)
    steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=1)
    style: str | None = Field(None, description="appended to every caption")
    negative_prompt: str | None = None
    keyframe_steps: int | None = Field(None, ge=1)
    keyframe_guidance_scale: float | None = Field(None, ge=1)
    keyframe_strength: float = Field(
        1.0, ge=0, le=1, description="below 1 the keyframe starts from the first blurry frame, as in the paper"
    )
    clips: int | None = Field(None, ge=1, description="first clips of each test segment get a video; null is all")
    shuffles: int = Field(1, ge=1, description="shuffled-fMRI controls that get videos")
    ablations: bool = Field(False, description="also without each part of the guidance, and without any (no brain)")
    batch: int = Field(8, ge=1, description="clips at a time")
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = "auto"
    offload: bool = Field(False, description="keep only the model at work on the GPU")
    fusion: FusionRecipe | None = None

    @model_validator(mode="after")
    def _keyframe_is_in_the_video(self) -> VideoRecipe:
        if self.keyframe_index is not None and not -self.frames <= self.keyframe_index < self.frames:
            raise ValueError(f"keyframe_index {self.keyframe_index}; expected a frame of 0 to {self.frames - 1}")
        return self

    @property
    def keyframe_at(self) -> int:
        """The frame of the video at which the keyframe stands; tokens are of the third of a clip's six frames."""
        if self.keyframe_index is None:
            return round(2 / 5 * (self.frames - 1))
        return self.keyframe_index % self.frames


class GenerateRecipe(_Part):
    """Which generators turn guidance into videos, from how many averaged test repeats."""

    generators: tuple[Literal["blurry", "nearest"], ...] = ("blurry", "nearest")
    test_repeats: tuple[int, ...] = (1, 2, 5, 10)
    video: VideoRecipe | None = Field(None, description="null generates no video by diffusion")


class EvaluateRecipe(_Part):
    """Scores and their intervals."""

    exclude_seconds: float = Field(10.0, ge=0, description="neighbours of the target this near are left out")
    bootstrap: int = Field(1000, ge=100, description="scene-bootstrap draws for the 95 % intervals")
    shuffles: int = Field(5, ge=1, description="fMRI shuffles across scenes, through the whole frozen pipeline")
    judges: tuple[str, ...] = Field(
        ("EfficientNet-Lite0",), description="outside networks that look at videos: names, or folders; [] for none"
    )


class CurvesRecipe(_Part):
    """Ridge to tokens again, under other conditions: what its result depends on. An empty list leaves a curve out."""

    training_shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.125, 0.25, 0.5, 1.0), description="of the training segments, at least two of them"
    )
    components: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 5, 10, 20, 50, 100),
        description="numbers that a clip's response is squeezed into; beside the whole ridge",
    )
    lags: tuple[Annotated[int, Field(ge=-4, le=4)], ...] = Field((-1, 0, 1, 2), description="TRs after data.delay_trs")
    samples: bool = Field(True, description="also decode every presentation by itself: do they agree?")


class MapsRecipe(_Part):
    """Which voxels mattered: maps on the cortex, or in the volume (docs/maps.md)."""

    method: Literal["ridge", "neural", "end-to-end"] | None = Field(
        None, description="whose maps; null: the last of decoders.methods, which makes the videos"
    )
    lesions: Literal["streams", "areas"] | None = Field(
        "streams", description="what is scrambled to see what the whole decoder loses; null: nothing"
    )
    shuffles: int = Field(2, ge=1, description="shuffles across scenes, of lesions")
    encoding: bool = Field(True, description="also variance partition, and re-encoding of decoded video")


class Recipe(_Part):
    """One complete run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    description: str = ""
    scale: Literal["mini", "paper"] = Field("mini", description="which networks a recipe starts from")
    seed: int = Field(7, ge=0)
    film: FilmRecipe | None = Field(None, description="None: nothing is simulated, data.root has the scans")
    brain: BrainRecipe = BrainRecipe()
    data: DataRecipe
    targets: TargetsRecipe = TargetsRecipe()
    ridge: RidgeRecipe = RidgeRecipe()
    decoders: DecodersRecipe = DecodersRecipe()
    generate: GenerateRecipe = GenerateRecipe()
    curves: CurvesRecipe | None = Field(None, description="null draws no curves")
    maps: MapsRecipe | None = Field(None, description="null draws no maps; `neuroclips maps RUN` does so later")
    evaluate: EvaluateRecipe = EvaluateRecipe()

    @model_validator(mode="after")
    def _keyframes_are_frames(self) -> Recipe:
        frames, count = self.targets.keyframes, self.data.frames_per_clip
        if frames is None:
            return self
        if list(frames) != sorted(set(frames)) or not frames or frames[-1] >= count:
            raise ValueError(f"targets.keyframes is {list(frames)}; expected frames of 0 to {count - 1}, ascending")
        own = min(KEYFRAME, count - 1)
        if frames[(len(frames) - 1) // 2] != own:  # where ``training.objectives`` looks for it
            raise ValueError(
                f"targets.keyframes is {list(frames)}; expected frame {own}, which stands for a clip, in the middle, or"
                " as the earlier one there"
            )
        return self

    @model_validator(mode="after")
    def _data_come_from_somewhere(self) -> Recipe:
        if self.film is None and self.data.root is None:
            what = {"table": "the table of your study"}.get(self.data.layout, "the folder of your data")
            raise ValueError(f"which data? Give {what}, as the word after the recipe's name or as data.root")
        if self.film is not None and self.data.root is not None:
            raise ValueError("give either 'film' (a simulated subject) or 'data.root' (your scans), not both")
        if self.film is not None and self.brain.subject != self.data.subject:
            raise ValueError(
                f"brain.subject {self.brain.subject} is simulated but data.subject {self.data.subject} is prepared; "
                "expected the same number"
            )
        return self


def describe_recipe(name: str) -> str:
    """What a shipped recipe says about itself; recipes that want data of yours are not complete without them."""
    return yaml.safe_load(files("neuroclips").joinpath("recipes", f"{name}.yaml").read_text())["description"]


def _overlaid(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` laid over ``base``, group by group; a group that is null in ``changes`` is left out."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlaid(merged[key], value) if both else value
    return merged


def named_recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in files("neuroclips").joinpath("recipes").iterdir()
                  if p.name.endswith(".yaml"))  # fmt: skip


def load_recipe(name_or_path: str | Path, changes: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe by name or path, with ``changes`` such as ``{"film.size": 64}`` laid over it.

    Raises
    ------
    RecipeError
        The recipe does not exist, is not YAML, or has an unknown or wrong key; each fault is named with its place.
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.exists():
            raise RecipeError(f"{path}: no such recipe file")
        text = path.read_text()
    elif str(name_or_path) in named_recipes():
        text = files("neuroclips").joinpath("recipes", f"{name_or_path}.yaml").read_text()
    else:
        raise RecipeError(f"no recipe {str(name_or_path)!r}; shipped are {', '.join(named_recipes())}, or give a .yaml")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {name_or_path}: not valid YAML ({error})") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {name_or_path}: expected a mapping of settings, found {type(content).__name__}")
    for key, value in (changes or {}).items():
        *parents, leaf = key.split(".")
        part = content
        for parent in parents:
            part[parent] = part.get(parent) or {}
            part = part[parent]
            if not isinstance(part, dict):
                raise RecipeError(f"recipe {name_or_path}: cannot set {key!r}, {parent!r} is not a group of settings")
        part[leaf] = value
    scale = content.get("scale")
    if scale == "paper":
        text = files("neuroclips").joinpath("recipes", "scales", f"{scale}.yaml").read_text()
        content = _overlaid(yaml.safe_load(text), content)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        said = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
        faults = "; ".join(f"{place}: {text}" if place else text for place, text in said)
        raise RecipeError(f"recipe {name_or_path}: {faults}") from error
