"""Converters at tiny sizes: there and back, beside the original libraries (recorded) and diffusers' converters."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.loaders.single_file_utils import (
    convert_animatediff_checkpoint_to_diffusers,
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from neuroclips.decoders.prior import DiffusionPrior, PriorNetwork
from neuroclips.decoders.semantics import SemanticsNetwork
from neuroclips.decoders.text import TextProjector
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.clip import Clip, image_tokens, pixels
from neuroclips.pretrained.convert import CONVERTERS, animatediff, mindeye2, stable_diffusion, unclip, vae
from neuroclips.pretrained.convert.names import unconverted, within
from neuroclips.pretrained.keyframe import KeyframeGenerator
from neuroclips.pretrained.vae import Vae
from neuroclips.video.neuroclips_pipeline import NeuroClipsPipeline

HERE = Path(__file__).parent
K, D = 5, 12


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomised(module, seed):
    """Random values everywhere, zero-initialised layers included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            spread = 1.0 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.1
            value = spread * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(value + (1 if "norm" in name and name.endswith("weight") else 0))
    return module.eval()


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def assert_same(state, expected):
    assert set(state) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0, msg=name)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- autoencoder ---

VAE = vae.SIZES | dict(
    block_out_channels=[4, 6], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    norm_num_groups=2, layers_per_block=1, sample_size=16, scaling_factor=0.7,
)  # fmt: skip


@pytest.fixture(scope="module")
def autoencoder():
    return randomised(AutoencoderKL(**VAE), 1)


@pytest.mark.parametrize("layout", ["diffusers", "old diffusers", "latent diffusion"])
def test_an_autoencoder_in_any_layout_paints_the_same(autoencoder, tmp_path, layout):
    rules = {"diffusers": vae.of_diffusers, "old diffusers": vae.of_old_diffusers}
    source = unconverted(autoencoder.state_dict(), rules.get(layout, vae.of_latent_diffusion(levels=2)))
    assert (set(source) == set(autoencoder.state_dict())) == (layout == "diffusers")
    torch.save(source, tmp_path / "autoenc.pth")
    card = CONVERTERS["sd-vae"]({"vae": tmp_path / "autoenc.pth"}, tmp_path / "sd-vae", config=VAE)
    assert card["accounts"] == {"vae": {"loaded": len(source), "dropped": {}}}
    assert card["parameters"] == sum(p.numel() for p in autoencoder.parameters())
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 12, 16), dtype=np.uint8)
    original, loaded = Vae(autoencoder), Vae.load(tmp_path / "sd-vae")
    latents = original.encode(images)
    np.testing.assert_allclose(loaded.encode(images), latents, atol=1e-5)
    assert latents.std() > 0.01
    assert np.abs(loaded.decode(latents).astype(int) - original.decode(latents)).max() <= 1
    assert loaded.model.config.scaling_factor == 0.7


def test_latent_diffusions_autoencoder_is_what_diffusers_reads(autoencoder):
    source = unconverted(autoencoder.state_dict(), within("first_stage_model.", vae.of_latent_diffusion(levels=2)))
    assert_same(convert_ldm_vae_checkpoint(dict(source), VAE), autoencoder.state_dict())


# --- CLIP ---


@pytest.fixture(scope="module")
def recorded_clip():
    return load_file(HERE / "open_clip_reference.safetensors")


CLIP = dict(
    projection_dim=10,
    vision_config=dict(
        hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=3, image_size=12, patch_size=4,
        hidden_act="gelu", layer_norm_eps=1e-5, projection_dim=10,
    ),
    text_config=dict(
        hidden_size=16, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, vocab_size=19,
        max_position_embeddings=7, hidden_act="gelu", layer_norm_eps=1e-5, projection_dim=10, bos_token_id=17,
        eos_token_id=18, pad_token_id=18,
    ),
)  # fmt: skip


def tokenizer():
    words = {word: i for i, word in enumerate([f"w{i}" for i in range(17)] + ["<start>", "<end>"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, words[word]) for word in ("<start>", "<end>")]
    inner.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<end>", unk_token="w0", bos_token="<start>", eos_token="<end>",
        model_max_length=7,
    )  # fmt: skip


@pytest.fixture(scope="module")
def clip_folder(recorded_clip, tmp_path_factory):
    """open_clip's reference weights, converted from a file as training on several devices leaves it."""
    folder = tmp_path_factory.mktemp("clip")
    source = {name.removeprefix("source."): value for name, value in recorded_clip.items() if "source." in name}
    torch.save({"epoch": 3, "state_dict": prefixed("module.", source)}, folder / "open_clip_pytorch_model.bin")
    tokenizer().save_pretrained(folder / "words")
    sources = {"clip": folder / "open_clip_pytorch_model.bin", "tokenizer": folder / "words"}
    card = CONVERTERS["clip-bigg"](sources, folder / "ready", config=CLIP)
    assert card["accounts"]["clip"] == {"loaded": len(source), "dropped": {}}
    return folder / "ready"


def test_clip_computes_what_open_clip_computes(recorded_clip, clip_folder):
    model = CLIPModel.from_pretrained(clip_folder, local_files_only=True).eval()
    with torch.no_grad():
        tokens, pooled = image_tokens(model, pixels(recorded_clip["images"], 12))
        text = model.text_projection(model.text_model(recorded_clip["words"]).pooler_output)
    for found, name in ((tokens, "tokens"), (pooled, "pooled"), (text, "text")):
        torch.testing.assert_close(found, recorded_clip[name], rtol=0, atol=2e-5, msg=name)
        assert found.std() > 0.5


def test_a_clip_folder_is_read_with_its_tokenizer_and_converts_to_itself(recorded_clip, clip_folder, tmp_path):
    clip = Clip.load(clip_folder)
    tokens, _ = clip.images(recorded_clip["images"].numpy())
    np.testing.assert_allclose(tokens, recorded_clip["tokens_squeezed"], atol=2e-5)
    said = torch.nn.functional.normalize(recorded_clip["text"], dim=-1)
    np.testing.assert_allclose(clip.texts(["w3", "w5 w6 w7 w8"]), said, atol=2e-5)
    CONVERTERS["clip-bigg"]({"clip": clip_folder}, tmp_path / "again", config=CLIP)
    assert files(tmp_path / "again") == files(clip_folder)
    assert_same(load_file(tmp_path / "again" / "model.safetensors"), load_file(clip_folder / "model.safetensors"))


# --- MindEye2 ---

SIZES = mindeye2.Sizes(tokens=3, token_width=16, width=12, depth=2, heads=5, head_width=34)


@pytest.fixture(scope="module")
def recorded_mindeye2(tmp_path_factory):
    """What the networks compute, and their checkpoint as training leaves it."""
    recorded = load_file(HERE / "mindeye2_reference.safetensors")
    source = {name.removeprefix("source."): value for name, value in recorded.items() if "source." in name}
    path = tmp_path_factory.mktemp("mindeye2") / "last.pth"
    torch.save({"epoch": 149, "model_state_dict": source, "train_losses": [0.5]}, path)
    return recorded, path


@pytest.mark.parametrize("fold", [True, False])
def test_semantics_and_prior_compute_what_mindeye2_computes(recorded_mindeye2, tmp_path, fold):
    recorded, path = recorded_mindeye2
    card = CONVERTERS["mindeye2"]({"checkpoint": path}, tmp_path / "out", sizes=SIZES, fold=fold)
    assert files(tmp_path / "out") == {"semantics.safetensors", "prior.safetensors", "card.json"}
    assert json.loads((tmp_path / "out" / "card.json").read_text()) == card
    assert card["accounts"]["checkpoint"]["loaded"] == 14 + 14 + 2 * 9 - 2
    assert sum(card["accounts"]["checkpoint"]["dropped"].values()) == 2 + 24 + 24 + 13 + 2
    assert card["beside_the_weights"] == ["epoch", "train_losses"]

    network = SemanticsNetwork(7, tokens=3, token_width=16, width=12, **card["config"]["semantics"])
    missing, unexpected = network.load_state_dict(load_file(tmp_path / "out/semantics.safetensors"), strict=False)
    assert (missing, unexpected) == (["input.weight", "input.bias"], [])
    assert abs(card["mixer_constant"]) > 0.1
    with torch.no_grad():
        out = network.eval().from_code(recorded["code"] + (0 if fold else card["mixer_constant"]))
    torch.testing.assert_close(out.backbone_tokens, recorded["backbone_tokens"], rtol=0, atol=2e-6)
    torch.testing.assert_close(out.tokens, recorded["tokens"], rtol=0, atol=2e-6)

    network = PriorNetwork(tokens=3, width=16, depth=2, heads=5, head_width=34)
    network.load_state_dict(load_file(tmp_path / "out/prior.safetensors"))
    prior = DiffusionPrior(network, **card["config"]["prior"])
    sample = prior.sample(recorded["tokens"], recorded["noise"][:, :, None])[:, 0]
    torch.testing.assert_close(sample, recorded["sample"], rtol=0, atol=1e-4)


def test_text_projector(tmp_path):
    proj = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    torch.save({"proj": proj}, tmp_path / "coco_tokens_avg_proj.pth")
    sources = {"projector": tmp_path / "coco_tokens_avg_proj.pth"}
    CONVERTERS["text-projector"](sources, tmp_path / "out", shape=(10, 16))
    tokens = torch.randn(4, 3, 16)
    found = TextProjector.from_file(tmp_path / "out" / "projector.safetensors")(tokens)
    torch.testing.assert_close(found, tokens.mean(1) @ proj)


# --- keyframes ---

UNET = unclip.UNET | dict(
    sample_size=[8, 12], block_out_channels=[8, 8, 16], norm_num_groups=4, attention_head_dim=[2, 2, 4],
    transformer_layers_per_block=[1, 1, 2], cross_attention_dim=D,
)  # fmt: skip
SETTINGS = unclip.SETTINGS | dict(timesteps=[999, 500, 26])


@pytest.fixture(scope="module")
def keyframes(autoencoder, tmp_path_factory):
    """A generator of random weights, and the checkpoint that sgm would write of it."""
    unet = randomised(UNet2DConditionModel(**UNET), 2)
    generator = KeyframeGenerator(unet, autoencoder, EulerDiscreteScheduler(**unclip.SCHEDULER), **SETTINGS)
    of_unet = stable_diffusion.of_unet(UNET["up_block_types"], UNET["layers_per_block"])
    state = {
        **unconverted(unet.state_dict(), within("model.diffusion_model.", of_unet)),
        **unconverted(autoencoder.state_dict(), within("first_stage_model.", vae.of_latent_diffusion(levels=2))),
        "conditioner.embedders.0.model.visual.proj": torch.zeros(3, 2),
        "conditioner.embedders.0.model.logit_scale": torch.zeros(()),
        "denoiser.sigmas": torch.zeros(1000),
    }
    path = tmp_path_factory.mktemp("unclip") / "unclip6.ckpt"
    torch.save({"epoch": 0, "global_step": 110000, "state_dict": state, "hparams_name": "kwargs"}, path)
    return generator, path, state


def test_keyframes_of_the_converted_checkpoint_are_those_of_its_weights(keyframes, tmp_path):
    generator, path, _ = keyframes
    options = dict(unet_config=UNET, vae_config=VAE, settings=SETTINGS)
    card = CONVERTERS["sdxl-unclip"]({"checkpoint": path}, tmp_path / "out", **options)
    loaded = KeyframeGenerator.load(tmp_path / "out")
    assert {name: loaded.config[name] for name in SETTINGS} == SETTINGS
    tokens = np.random.default_rng(0).normal(size=(2, K, D)).astype(np.float32)
    images = [g.generate(tokens, ["a", "b"], seed=7) for g in (generator, loaded)]
    np.testing.assert_allclose(images[1], images[0], atol=1e-5)
    assert images[0].std() > 0.02
    assert card["accounts"]["rest"]["loaded"] == 0
    assert sum(card["accounts"]["rest"]["dropped"].values()) == 3
    assert card["beside_the_weights"] == ["epoch", "global_step", "hparams_name"]


def test_sgms_unet_is_what_diffusers_reads(keyframes):
    generator, _, state = keyframes
    found = convert_ldm_unet_checkpoint(dict(state), {**UNET, "class_embed_type": None})
    assert_same(found, generator.unet.state_dict())


def test_half_precision_halves_the_unet_and_leaves_the_autoencoder(keyframes, tmp_path):
    options = dict(unet_config=UNET, vae_config=VAE, settings=SETTINGS)
    CONVERTERS["sdxl-unclip"]({"checkpoint": keyframes[1]}, tmp_path / "out", dtype="fp16", **options)
    unet, autoencoder = (
        load_file(tmp_path / "out" / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae")
    )
    assert {value.dtype for value in unet.values()} == {torch.float16}
    assert {value.dtype for value in autoencoder.values()} == {torch.float32}
    assert KeyframeGenerator.load(tmp_path / "out").unet.dtype == torch.float32


# --- video ---

WIDTHS, GROUPS = [8, 8, 16, 16], 4
SMALL = dict(
    unet=stable_diffusion.UNET
    | dict(
        sample_size=8, block_out_channels=WIDTHS, norm_num_groups=GROUPS, cross_attention_dim=D, attention_head_dim=2
    ),
    vae=VAE,
    text_encoder=stable_diffusion.TEXT
    | dict(
        hidden_size=D, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3, vocab_size=19,
        max_position_embeddings=7, bos_token_id=17, eos_token_id=18, pad_token_id=18,
    ),
    motion=animatediff.MOTION
    | dict(
        block_out_channels=WIDTHS, motion_num_attention_heads=2, motion_norm_num_groups=GROUPS, motion_max_seq_length=9
    ),
    sparsectrl=animatediff.SPARSECTRL
    | dict(
        block_out_channels=WIDTHS, norm_num_groups=GROUPS, cross_attention_dim=D, attention_head_dim=2,
        motion_num_attention_heads=2, motion_max_seq_length=9,
    ),
)  # fmt: skip
QUIET = animatediff.SETTINGS | dict(style="", steps=3)


@pytest.fixture(scope="module")
def video(autoencoder, tmp_path_factory):
    """Parts of random weights; the originals' files of them, in the layouts of their authors."""
    folder = tmp_path_factory.mktemp("video")
    unet = randomised(UNet2DConditionModel(**SMALL["unet"]), 3)
    text = randomised(CLIPTextModel(CLIPTextConfig(**SMALL["text_encoder"])), 4)
    motion = randomised(MotionAdapter(**SMALL["motion"]), 5)
    control = randomised(SparseControlNetModel(**SMALL["sparsectrl"]), 6)
    of_unet = stable_diffusion.of_unet(SMALL["unet"]["up_block_types"], 2)
    base = {
        **unconverted(unet.state_dict(), within("model.diffusion_model.", of_unet)),
        **unconverted(autoencoder.state_dict(), within("first_stage_model.", vae.of_latent_diffusion(levels=2))),
        **unconverted(text.state_dict(), within("cond_stage_model.transformer.", stable_diffusion.of_text)),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(7)[None],
        "alphas_cumprod": torch.zeros(1000),
    }
    save_file({name: value.clone().contiguous() for name, value in base.items()}, folder / "realistic.safetensors")
    of_video = unconverted(motion.state_dict(), animatediff.of_motion(attentions=2))
    torch.save({"global_step": 1, "state_dict": prefixed("module.", of_video)}, folder / "v3_sd15_mm.ckpt")
    of_control = unconverted(control.state_dict(), animatediff.of_motion(attentions=1))
    torch.save({"controlnet": of_control, "animatediff_config": {"a": 1}}, folder / "sparsectrl.ckpt")
    generator = torch.Generator().manual_seed(7)
    adapter = {}
    for name, (down, up) in animatediff.adapter_places(unet.state_dict()).items():
        out, into = unet.state_dict()[name].shape
        adapter[down] = torch.randn(3, into, generator=generator) * 0.3
        adapter[up] = torch.randn(out, 3, generator=generator) * 0.3
    torch.save({"state_dict": adapter}, folder / "v3_sd15_adapter.ckpt")
    tokenizer().save_pretrained(folder / "sd15" / "tokenizer")
    for name, part in (("unet", unet), ("vae", autoencoder), ("text_encoder", text)):
        part.save_pretrained(folder / "sd15" / name)
    sources = {
        "base": folder / "realistic.safetensors", "text": folder / "sd15", "motion": folder / "v3_sd15_mm.ckpt",
        "adapter": folder / "v3_sd15_adapter.ckpt", "sparsectrl": folder / "sparsectrl.ckpt",
    }  # fmt: skip
    return sources, dict(unet=unet, text=text, motion=motion, control=control, adapter=adapter, base=base)


@pytest.fixture(scope="module")
def video_folder(video, tmp_path_factory):
    out = tmp_path_factory.mktemp("ready") / "animatediff"
    return out, CONVERTERS["animatediff"](video[0], out, configs=SMALL, settings=QUIET, sample_size=None)


def film(pipeline):
    pictures = torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return pipeline(
        ["w3 w4"], blurry=pictures[:, :3], keyframes=pictures[:, 3:],
        generators=[torch.Generator().manual_seed(1)], frames=5, size=(16, 16), output="float",
    )  # fmt: skip


def adapt_by_hand(unet, adapter):
    """The adapter beside each layer instead of inside it: outputs are W x + up (down x)."""
    for name, (down, up) in animatediff.adapter_places(unet.state_dict()).items():
        layer = unet.get_submodule(name.removesuffix(".weight"))
        factors = adapter[down], adapter[up]
        layer.register_forward_hook(lambda _, x, y, factors=factors: y + x[0] @ factors[0].T @ factors[1].T)


def test_videos_of_the_converted_folder_are_those_of_its_parts(video, video_folder, autoencoder):
    _, parts = video
    unet = UNetMotionModel.from_unet2d(parts["unet"], parts["motion"])
    adapt_by_hand(unet, parts["adapter"])
    scheduler = DDIMScheduler(**animatediff.SCHEDULER)
    original = NeuroClipsPipeline(
        autoencoder, parts["text"], tokenizer(), unet.eval(), scheduler, parts["control"], steps=3
    )
    loaded = NeuroClipsPipeline.load(video_folder[0], vae=Vae.load("mini"), clip=Clip.load("mini"))
    original.set_progress_bar_config(disable=True)
    expected = film(original)
    torch.testing.assert_close(film(loaded), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.02
    assert {name: loaded.config[name] for name in QUIET} == QUIET
    assert loaded.scheduler.config.beta_schedule == "linear"
    assert loaded.most_frames == 9


def test_account_of_the_video_generator(video, video_folder):
    folder, card = video_folder
    accounts = card["accounts"]
    pe, modules = "holds the same as another key", 2 * 4 + 3 * 4
    assert accounts["motion"]["dropped"] == {pe: modules}
    assert accounts["unet"] == {"loaded": len(video[1]["unet"].state_dict()), "dropped": {}}
    assert accounts["text_encoder"]["dropped"] == {"counts from 0, recomputed": 1}
    assert accounts["adapter"]["loaded"] == 256
    assert accounts["rest of base"] == {"loaded": 0, "dropped": {"not of UNet, VAE or text encoder": 1}}
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNetMotionModel"]
    assert index["frame_norm"] is True


def test_a_folder_of_diffusers_gives_the_same_as_one_file(video, video_folder, tmp_path):
    sources = video[0]
    as_folder = {**sources, "base": sources["text"]}
    del as_folder["text"]
    configs = {**SMALL, "unet": {}, "vae": {}, "text_encoder": {}}  # the folder brings its own
    CONVERTERS["animatediff"](as_folder, tmp_path / "out", configs=configs, settings=QUIET, sample_size=4)
    assert files(tmp_path / "out") == files(video_folder[0])
    for file in files(tmp_path / "out"):
        if file.endswith(".safetensors"):
            assert_same(load_file(tmp_path / "out" / file), load_file(video_folder[0] / file))
    sizes = [
        json.loads((folder / "unet" / "config.json").read_text())["sample_size"]
        for folder in (tmp_path / "out", video_folder[0])
    ]
    assert sizes == [4, SMALL["unet"]["sample_size"]]  # as told, and the image model's own


def test_motion_modules_are_what_diffusers_reads(video):
    _, parts = video
    source = unconverted(parts["motion"].state_dict(), animatediff.of_motion(attentions=2))
    tables = {name: value for name, value in parts["motion"].state_dict().items() if name.endswith(".pe")}
    assert_same(convert_animatediff_checkpoint_to_diffusers(source) | tables, parts["motion"].state_dict())


def test_stable_diffusion_in_one_file_is_what_diffusers_reads(video):
    """In its first block upwards no attention stands before the enlargement, unlike in SDXL's."""
    _, parts = video
    config = {**SMALL["unet"], "class_embed_type": None, "addition_embed_type": None}
    assert_same(convert_ldm_unet_checkpoint(dict(parts["base"]), config), parts["unet"].state_dict())
    text = convert_ldm_clip_checkpoint(parts["base"])
    del text["text_model.embeddings.position_ids"]
    assert_same(text, prefixed("text_model.", parts["text"].state_dict()))


def test_copies_of_a_table_that_differ_are_refused(video, tmp_path):
    source = unconverted(video[1]["motion"].state_dict(), animatediff.of_motion(attentions=2))
    name = next(name for name in source if "attention_blocks.1.pos_encoder" in name)
    with pytest.raises(ArtefactError, match=r"attention_blocks\.1\.pos_encoder\.pe differs from .*attention_blocks\.0"):
        animatediff.motion({**source, name: source[name] + 1}, SMALL["motion"])


def test_a_checkpoint_has_no_tokenizer(video, tmp_path):
    sources = {**video[0], "text": tmp_path}
    with pytest.raises(
        ArtefactError, match=r"a checkpoint holds no tokenizer, so take the one of Stable Diffusion 1\.5"
    ):
        CONVERTERS["animatediff"](sources, tmp_path / "out", configs=SMALL)


# --- what is wrong with a file is said ---


@pytest.fixture
def broken(autoencoder, tmp_path):
    """Converts the autoencoder's state after a change."""

    def convert(change, **options):
        state = dict(autoencoder.state_dict())
        change(state)
        torch.save(state, tmp_path / "autoenc.pth")
        return CONVERTERS["sd-vae"]({"vae": tmp_path / "autoenc.pth"}, tmp_path / "out", config=VAE, **options)

    return convert


def test_another_version_of_a_checkpoint_is_refused_by_name_and_shape(broken, tmp_path):
    def change(state):
        del state["encoder.conv_in.bias"]
        state["decoder.conv_in.weight"] = torch.zeros(6, 9, 3, 3)
        state["encoder.extra"] = torch.zeros(2)

    with pytest.raises(ArtefactError) as caught:
        broken(change)
    said = str(caught.value)
    assert "autoenc.pth: not the layout of Stable Diffusion's autoencoder" in said
    assert "1 keys missing (encoder.conv_in.bias 4)" in said
    assert "1 keys of another shape (decoder.conv_in.weight 6x9x3x3 instead of 6x4x3x3)" in said
    assert "1 keys that nothing accounts for (encoder.extra 2)" in said
    assert "another version of the checkpoint" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "options", "said"), [(float("nan"), {}, "torch.float32"), (1e6, {"dtype": "fp16"}, "torch.float16")]
)
def test_weights_are_finite_and_a_failed_conversion_leaves_nothing(broken, tmp_path, value, options, said):
    def change(state):
        state["encoder.conv_in.bias"] = torch.full((4,), value)

    with pytest.raises(ArtefactError, match=rf"encoder\.conv_in\.bias has values that are not finite in {said}"):
        broken(change, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["autoenc.pth"]


def test_nothing_is_overwritten(broken, tmp_path):
    (tmp_path / "out").mkdir()
    broken(lambda state: None)
    before = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    with pytest.raises(ArtefactError, match="out: holds something already"):
        broken(lambda state: None)
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == before


def test_rotary_frequencies_that_were_trained_are_refused(recorded_mindeye2):
    source = torch.load(recorded_mindeye2[1])["model_state_dict"]
    source["diffusion_prior.net.causal_transformer.layers.1.0.rotary_emb.freqs"] *= 1.01
    with pytest.raises(ArtefactError, match=r"layers\.1\.0\.rotary_emb\.freqs is .*: trained\?"):
        mindeye2.networks(source, SIZES)


def test_half_of_an_adapter_is_refused(video):
    unet, adapter = video[1]["unet"].state_dict(), dict(video[1]["adapter"])
    _, up = next(iter(animatediff.adapter_places(unet).values()))
    adapter[up] = adapter[up][:, :2]
    with pytest.raises(ArtefactError, match=r"1 keys of another shape .* changed by 3x8 and 8x2"):
        animatediff.adapted(unet, adapter)[1].check("adapter.ckpt", "an adapter")
    del adapter[up]
    with pytest.raises(ArtefactError, match=r"1 keys missing .*to_q_lora\.up\.weight"):
        animatediff.adapted(unet, adapter)[1].check("adapter.ckpt", "an adapter")
