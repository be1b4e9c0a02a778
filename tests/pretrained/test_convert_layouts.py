"""Every key of the published files, at their real sizes: layouts derived from the target classes, without a number.

Each target class is built at paper size on the meta device, and the rules are read backwards: that is the layout which
the original file must have. Layouts of the published files had been derived another way, by building the original
modules (and fit the files' sizes to the byte, or nearly). Here is a digest of each: the number of keys, the number of
elements, and the SHA-256 of the sorted lines "key shape", joined by newlines, a shape as '320x4x3x3' and of a scalar
as nothing. So no key of a source is unaccounted for and no parameter of a target unset.
"""

import hashlib
import math

import pytest
import torch
from diffusers import AutoencoderKL, MotionAdapter, SparseControlNetModel, UNet2DConditionModel, UNetMotionModel
from diffusers.models.autoencoders.vae import Decoder
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as Tower

from neuroclips.decoders.prior import PriorNetwork
from neuroclips.decoders.semantics import SemanticsNetwork
from neuroclips.pretrained.convert import animatediff, clip, mindeye2, stable_diffusion, unclip, vae
from neuroclips.pretrained.convert.names import meta, unconverted, within


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def layout(state, rule):
    return shapes(unconverted(state, rule))


def digest(shapes):
    lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
    elements = sum(math.prod(shape) for shape in shapes.values())
    return len(shapes), elements, hashlib.sha256("\n".join(lines).encode()).hexdigest()


def prefixed(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def tower():
    return meta(lambda: Tower(CLIPVisionConfig(**clip.BIGG["vision_config"])))


@pytest.fixture(scope="module")
def image_unet():
    return meta(lambda: UNet2DConditionModel(**stable_diffusion.UNET))


def test_openclip_bigg(tower):
    found = layout(tower.state_dict(), clip.of_open_clip)
    assert {name.partition(".")[0] for name in found} == {"visual"}
    assert digest({name.removeprefix("visual."): shape for name, shape in found.items()}) == (
        584, 1_844_907_264, "cc9cf21a326ec37311f23c7d3c3c37d5be86fae3cb0f24feb99e48be7cb4af00",
    )  # fmt: skip
    assert parameters(tower) == 1_844_907_264
    whole = layout(meta(lambda: CLIPModel(CLIPConfig(**clip.BIGG))).state_dict(), clip.of_open_clip)
    assert {name: shape for name, shape in whole.items() if name.startswith("visual.")} == found
    text = {name for name in whole if not name.startswith(("visual.", "transformer.resblocks."))}
    assert text == {
        "positional_embedding", "token_embedding.weight", "ln_final.weight", "ln_final.bias", "text_projection",
        "logit_scale",
    }  # fmt: skip
    assert len(whole) == 584 + 6 + 32 * 12


def test_unclip(tower):
    unet, autoencoder = meta(lambda: UNet2DConditionModel(**unclip.UNET)), meta(lambda: AutoencoderKL(**unclip.VAE))
    of_unet = stable_diffusion.of_unet(unclip.UNET["up_block_types"], unclip.UNET["layers_per_block"])
    found = {
        **layout(unet.state_dict(), within(stable_diffusion.UNET_AT, of_unet)),
        **layout(autoencoder.state_dict(), within(stable_diffusion.VAE_AT, vae.of_latent_diffusion(levels=4))),
        **layout(tower.state_dict(), within(unclip.CLIP_AT, clip.of_open_clip)),
        **prefixed(unclip.CLIP_AT, {
            "positional_embedding": (77, 1280), "text_projection": (1280, 1280), "logit_scale": (),
            "token_embedding.weight": (49408, 1280), "ln_final.weight": (1280,), "ln_final.bias": (1280,),
        }),
        "denoiser.sigmas": (1000,),
    }  # fmt: skip
    assert digest(found) == (
        2519, 4_494_816_212, "bae8c359944c8093e602bdd611ba7be11ff58fbcaf27d7f87b155e7129f55117",
    )  # fmt: skip
    assert (parameters(unet), parameters(autoencoder)) == (2_501_272_324, 83_653_863)
    source = {name: torch.empty(shape, device="meta") for name, shape in found.items()}
    parts = unclip.networks(source, unclip.UNET, unclip.VAE)
    accounts = [account.check("unclip6.ckpt", name) for name, (_, _, account) in parts.items()]
    assert [len(account.loaded) for account in accounts] == [1680, 248, 0]
    assert len(accounts[2].dropped) == 584 + 6 + 1
    assert shapes(parts["unet"][1]) == shapes(unet.state_dict())
    assert shapes(parts["vae"][1]) == shapes(autoencoder.state_dict())


def test_animatediff_motion_and_sparse_control(image_unet):
    adapter = meta(lambda: MotionAdapter(**animatediff.MOTION))
    found = layout(adapter.state_dict(), animatediff.of_motion(attentions=2))
    assert digest(found) == (
        560, 418_264_000, "440d37a66eb079331b72780b5eee1bf7f3124208e7358046a3dc999f0f32accc",
    )  # fmt: skip
    assert parameters(adapter) == 417_137_600
    assert not any("mid_block" in name for name in found)
    control = meta(lambda: SparseControlNetModel(**animatediff.SPARSECTRL))
    found = layout(control.state_dict(), animatediff.of_motion(attentions=1))
    assert digest(found) == (
        486, 496_956_160, "3099311c8a1af6e6249afabccc78f2b5e71cf4b683d56681d459562ab59a10e0",
    )  # fmt: skip
    assert parameters(control) == 496_730_880
    video = meta(lambda: UNetMotionModel.from_unet2d(image_unet, adapter))
    assert set(video.state_dict()) == set(image_unet.state_dict()) | set(adapter.state_dict())


def test_animatediff_adapter(image_unet):
    state = image_unet.state_dict()
    found = {}
    for name, (down, up) in animatediff.adapter_places(state).items():
        out, into = state[name].shape
        found |= {down: (128, into), up: (out, 128)}
    assert digest(found) == (
        256, 25_509_888, "5f6a69c576e68152270f33c37255ff813bfb0476f53eca1a011da676aa6c0a10",
    )  # fmt: skip


def test_mindeye2():
    ridge = {"ridge.linears.0.weight": (4096, 15724), "ridge.linears.0.bias": (4096,)}
    sizes = mindeye2.PUBLISHED
    target = sizes.semantics() | {f"prior.{name}": value for name, value in sizes.prior().items()}
    found = layout(target, mindeye2.rule) | ridge | left_out(sizes)
    assert digest(found) == (
        249, 2_227_296_224, "caade3274a13a0d2f9cbdc89b03310aa5d64c42bd4f628bcec7e391a837b758f",
    )  # fmt: skip
    semantics, prior, account = mindeye2.networks(
        {name: torch.empty(shape, device="meta") for name, shape in found.items()}, sizes, fold=False
    )
    account.check("last.pth", "MindEye2's networks")
    assert (len(account.loaded), len(account.dropped)) == (80, 169)
    network = meta(lambda: SemanticsNetwork(15724, blocks=0, projector="mlp"))
    own = {name: value for name, value in network.state_dict().items() if not name.startswith("input.")}
    assert shapes(semantics) == shapes(own)
    assert shapes(prior) == shapes(meta(PriorNetwork).state_dict())
    assert sum(value.numel() for value in prior.values()) + 16 == 259_865_216  # with the rotary frequencies


def left_out(sizes):
    """Names and shapes of what MindEye2's checkpoint holds and nothing here needs."""
    width, channels = sizes.width, [32, 64, 128]
    mixers = {}
    for block in range(4):
        for kind, d in (("1", width), ("2", 1)):
            at = f"backbone.mixer_blocks{kind}.{block}"
            mixers |= {f"{at}.{i}.weight": s for i, s in (("0", (d,)), ("1.0", (d, d)), ("1.3", (d, d)))}
            mixers |= {f"{at}.{i}.bias": (d,) for i in ("0", "1.0", "1.3")}
    decoder = meta(
        lambda: Decoder(
            64, 4, ("UpDecoderBlock2D",) * 3, tuple(channels), layers_per_block=1, mid_block_add_attention=True
        )
    )
    maps = {"0.weight": (512, 64, 1, 1), "3.weight": (512, 512, 1, 1), "6.weight": (512, 512, 1, 1)}
    maps |= {f"{i}.{kind}": (512,) for i in (1, 4) for kind in ("weight", "bias")} | {"6.bias": (512,)}
    schedule = (
        "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
        "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
        "p2_loss_weight",
    )  # fmt: skip
    at = "diffusion_prior.net.causal_transformer.layers"
    return {
        **mixers,
        "backbone.blin1.weight": (64 * 49, width), "backbone.blin1.bias": (64 * 49,),
        "backbone.bnorm.weight": (64,), "backbone.bnorm.bias": (64,),
        **prefixed("backbone.bupsampler.", shapes(decoder.state_dict())),
        **prefixed("backbone.b_maps_projector.", maps),
        **{f"diffusion_prior.noise_scheduler.{name}": (100,) for name in schedule},
        **{f"{at}.{i}.0.rotary_emb.freqs": (16,) for i in range(sizes.depth)},
    }  # fmt: skip


def test_stable_diffusion(image_unet):
    """No table is published of single files; their layout is that of diffusers' own converters (``test_convert``)."""
    autoencoder = meta(lambda: AutoencoderKL(**stable_diffusion.VAE))
    text = meta(lambda: CLIPTextModel(CLIPTextConfig(**stable_diffusion.TEXT)))
    assert (len(image_unet.state_dict()), parameters(image_unet)) == (686, 859_520_964)
    assert (len(autoencoder.state_dict()), parameters(autoencoder)) == (248, 83_653_863)
    assert (len(text.state_dict()), parameters(text)) == (196, 123_060_480)
    # diffusers' converter takes an enlargement wherever it stands; the files have it behind the attention, if any
    of_unet = stable_diffusion.of_unet(stable_diffusion.UNET["up_block_types"], 2)
    enlargements = {name for name in layout(image_unet.state_dict(), of_unet) if name.endswith(".conv.weight")}
    assert enlargements == {f"output_blocks.{at}.conv.weight" for at in ("2.1", "5.2", "8.2")}
    # what half precision makes of these is the size of RealisticVision's file, but for its header
    together = 2 * sum(map(parameters, (image_unet, autoencoder, text)))
    assert 0 < 2_132_625_894 - together < 200_000
