"""The keyframe generator beside a restatement of the released sampler, laws of its noise, and diffusers' own files."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DConditionModel,
)

from neuroclips.artefacts import stable_seed
from neuroclips.errors import ArtefactError, DataError
from neuroclips.pretrained.keyframe import KeyframeGenerator, token_grid

B, K, D = 3, 5, 8
C, h, w = 2, 8, 12
H, W = 16, 24
IDS = ["test1/clip0", "test1/clip1", "test2/clip0"]
SIZE = dict(addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=1024)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
LEGACY = [int(999 * (1 - i / 38)) for i in range(38)]  # the released sampler's timesteps
FEW = [999, 700, 301, 26]
EULER = dict(BETAS, timestep_spacing="leading", steps_offset=0)
RELEASED = dict(offset_noise=0.04, pixel_gain=0.8, pixel_offset=0.2, timesteps=FEW, guidance_scale=5)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_unet(**options):
    """Random, with outputs of about unit variance that depend on the tokens."""
    torch.manual_seed(0)
    sizes = dict(
        sample_size=(h, w), in_channels=C, out_channels=C, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=2, cross_attention_dim=D,
    )  # fmt: skip
    unet = UNet2DConditionModel(**sizes | options).eval()
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2.to_" in name or "add_embedding" in name:
                weight *= 4
    return unet


def make_vae(channels=C):
    torch.manual_seed(1)
    return AutoencoderKL(
        latent_channels=channels, block_out_channels=(4, 8), norm_num_groups=2, sample_size=H, scaling_factor=0.7,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def make(scheduler=None, size=False, **options):
    unet = make_unet(**(SIZE if size else {}))
    return KeyframeGenerator(unet, make_vae(), scheduler or EulerDiscreteScheduler(**EULER), **options)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(2).normal(size=(B, K, D)).astype(np.float32)


@pytest.fixture(scope="module")
def blurry():
    return np.random.default_rng(3).uniform(size=(B, 3, H, W)).astype(np.float32)


def started(generator, ids=IDS, images=None, strength=1.0):
    """What the network sees first."""
    draws = generator._draw(ids, 7, (K, D))
    timesteps = generator._timesteps(generator.config.steps, strength)
    if images is None:
        return generator._start_from_noise(draws, timesteps), draws
    return generator._start_from_images(images, draws, timesteps), draws


def test_the_released_schedule_and_no_spacing_of_diffusers_gives_it():
    assert LEGACY[:3] == [999, 972, 946]
    assert LEGACY[-2:] == [52, 26]
    generator = make(timesteps=LEGACY)
    assert generator.config.steps == 38
    assert generator._timesteps(38, 1).tolist() == LEGACY
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)
    sigmas = np.append(np.sqrt((1 - abar) / abar)[LEGACY], 0)
    np.testing.assert_allclose(generator.scheduler.sigmas, sigmas, rtol=1e-4)
    np.testing.assert_allclose(sigmas[[0, -2, -1]], [14.6146, 0.1580, 0], atol=5e-5)
    for spacing in ("leading", "linspace", "trailing"):
        scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing=spacing)
        scheduler.set_timesteps(38)
        assert np.abs(scheduler.timesteps.numpy() - LEGACY).max() > 0.5


@pytest.mark.parametrize("size", [False, True])
@pytest.mark.parametrize("scale", [5, 1])
def test_released_sampler_restated(tokens, size, scale):
    """The released form: guidance on the denoised latents, and a slope towards them."""
    generator = make(size=size, **RELEASED)
    images = generator.generate(tokens, IDS, seed=7, guidance_scale=scale)
    unet, vae = generator.unet, generator.vae
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    sigmas = np.append(np.sqrt(1 / np.cumprod(1 - betas) - 1)[FEW], 0)
    for row, name in enumerate(IDS):
        random = torch.Generator().manual_seed(stable_seed(7, "keyframe", name))
        noise = torch.randn(C, h, w, generator=random)
        nothing = torch.randn(K, D, generator=random)
        offset = torch.randn(1, 1, 1, generator=random)
        added = dict(text_embeds=torch.zeros(1, 0), time_ids=torch.tensor([[H, W, 0.0, 0.0]])) if size else None
        x = noise * np.sqrt(1 + sigmas[0] ** 2) + 0.04 * sigmas[0] * offset

        def denoised(x, sigma, t, condition, added=added):
            with torch.no_grad():
                scaled = (x / np.sqrt(1 + sigma**2))[None].float()
                return x - sigma * unet(scaled, t, condition[None], added_cond_kwargs=added).sample[0]

        for t, sigma, after in zip(FEW, sigmas[:-1], sigmas[1:]):
            with_tokens = denoised(x, sigma, t, torch.tensor(tokens[row]))
            without = denoised(x, sigma, t, nothing)
            target = without + scale * (with_tokens - without)
            x = x + (after - sigma) * (x - target) / sigma
        with torch.no_grad():
            expected = (0.8 * vae.decode(x[None].float() / 0.7).sample[0] + 0.2).clamp(0, 1)
        np.testing.assert_allclose(images[row], expected, atol=2e-4)
    assert images.shape == (B, 3, H, W)
    assert images.std() > 0.02


def test_law_of_the_released_start():
    """z + s (n + 0.04 o): variances 1 + s^2 within an image and (0.04 s)^2 more between images."""
    generator = make(offset_noise=0.4, timesteps=FEW)  # ten times, to be seen among 192 numbers an image
    x, _ = started(generator, ids=[f"clip{i}" for i in range(2000)])
    sigma = 14.6146
    x = x.double()
    np.testing.assert_allclose(x.var(dim=(1, 2, 3)).mean(), 1 + sigma**2, rtol=0.01)
    between = (0.4 * sigma) ** 2 + (1 + sigma**2) / (C * h * w)
    np.testing.assert_allclose(x.mean(dim=(1, 2, 3)).var(), between, rtol=0.1)
    np.testing.assert_allclose(make(timesteps=FEW, offset_noise=0.0).scheduler.init_noise_sigma, 14.649, atol=1e-3)


def test_law_of_the_start_of_ddim():
    """Noise of variance 1, the offset at sqrt(1 - abar) of the first timestep."""
    generator = make(DDIMScheduler(**BETAS, timestep_spacing="trailing"), offset_noise=0.3, steps=4)
    x, draws = started(generator)
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[999]
    np.testing.assert_allclose(x, draws.noise + np.sqrt(1 - abar) * draws.offset, atol=1e-5)
    assert draws.offset.shape == (B, 1, 1, 1)


def test_no_strength_sends_images_through_the_vae_and_more_takes_them_away(tokens, blurry):
    generator = make(steps=20, offset_noise=0.04, pixel_gain=0.8, pixel_offset=0.2)
    with torch.no_grad():
        latents = generator.vae.encode((torch.tensor(blurry) - 0.2) / 0.8).latent_dist.mode()
        there_and_back = (0.8 * generator.vae.decode(latents).sample + 0.2).clamp(0, 1).numpy()
    none = generator.generate(tokens, IDS, seed=7, blurry=blurry, strength=0)
    np.testing.assert_allclose(none, there_and_back, atol=1e-5)
    distances = []
    for strength in (0.1, 0.3, 0.6, 1.0):
        images = generator.generate(tokens, IDS, seed=7, blurry=blurry, strength=strength, guidance_scale=1)
        distances.append(np.sqrt(((images - none) ** 2).mean()))
    assert np.all(np.diff([0, *distances]) > 0.001)


def test_images_are_noised_to_the_first_timestep_that_is_left(blurry):
    generator = make(steps=10, offset_noise=0.04)
    with torch.no_grad():
        x, draws = started(generator, images=blurry, strength=0.3)
        latents = 0.7 * generator.vae.encode(torch.tensor(blurry) * 2 - 1).latent_dist.mode()
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    sigma = np.sqrt(1 / abar[200] - 1)  # of 900, ..., 200, 100, 0, three are left
    assert generator._timesteps(10, 0.3).tolist() == [200, 100, 0]
    np.testing.assert_allclose(x, latents + sigma * (draws.noise + draws.offset), atol=1e-5)


def test_schedulers_of_second_order_take_as_many_steps():
    generator = make(HeunDiscreteScheduler(**BETAS), steps=4)
    every = generator._timesteps(4, 1).unique()
    assert len(every) == 4
    assert generator._timesteps(4, 0.5).unique().tolist() == every[:2].tolist()


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (EulerDiscreteScheduler(**EULER), {"timesteps": FEW, "offset_noise": 0.04}),
        (DDIMScheduler(**BETAS, clip_sample=False), {"steps": 4, "unconditional": "zeros"}),
        (EulerAncestralDiscreteScheduler(**BETAS), {"steps": 4}),
        (HeunDiscreteScheduler(**BETAS), {"steps": 4}),
    ],
    ids=["euler", "ddim", "ancestral", "heun"],
)
def test_results_do_not_depend_on_batches_or_order(tokens, blurry, scheduler, options):
    generator = make(scheduler, **options)
    for given in ({}, {"blurry": blurry, "strength": 0.5}):
        together = generator.generate(tokens, IDS, seed=7, **given)
        assert np.isfinite(together).all()
        alone = generator.generate(tokens, IDS, seed=7, batch=1, **given)
        np.testing.assert_allclose(alone, together, atol=1e-4)
        order = np.array([2, 0, 1])
        ordered = {**given, "blurry": blurry[order]} if given else {}
        turned = generator.generate(tokens[order], [IDS[i] for i in order], seed=7, batch=2, **ordered)
        np.testing.assert_allclose(turned, together[order], atol=1e-4)


def test_the_image_follows_tokens_clip_and_seed(tokens):
    generator = make(timesteps=FEW)
    images = generator.generate(tokens, IDS, seed=7)
    np.testing.assert_array_equal(generator.generate(tokens, IDS, seed=7), images)

    def differ(**changed):
        arguments = {"tokens": tokens, "ids": IDS, "seed": 7} | changed
        return np.abs(generator.generate(**arguments) - images).max(axis=(1, 2, 3)) > 0.01

    assert differ(seed=8).all()
    assert differ(ids=["a", "b", "c"]).all()
    assert differ(tokens=tokens[[1, 0, 2]]).tolist() == [True, True, False]
    assert differ(guidance_scale=2).all()


def counted(generator):
    """Rows, tokens and sizes that the UNet is called with."""
    calls = []
    generator.unet.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    return calls


def test_unconditional_half_is_kept_for_all_steps_and_left_out_at_a_scale_of_one(tokens):
    generator = make(timesteps=FEW)
    calls = counted(generator)
    generator.generate(tokens, IDS, seed=7)
    contexts = torch.stack([kwargs["encoder_hidden_states"] for _, kwargs in calls])
    assert contexts.shape == (4, 2 * B, K, D)
    assert (contexts == contexts[0]).all()
    np.testing.assert_array_equal(contexts[0, B:], tokens)
    assert len(contexts[0, :B].unique()) == B * K * D
    calls.clear()
    generator.generate(tokens, IDS, seed=7, guidance_scale=1)
    assert [len(args[0]) for args, _ in calls] == [B] * 4
    assert all(kwargs["added_cond_kwargs"] is None for _, kwargs in calls)
    zeros = make(timesteps=FEW, unconditional="zeros")
    calls = counted(zeros)
    zeros.generate(tokens, IDS, seed=7)
    assert not calls[0][1]["encoder_hidden_states"][:B].any()


def test_networks_that_were_told_sizes_are_told_height_width_and_no_crop(tokens):
    """At the released sizes: a vector of 1024, four numbers of 256 sinusoids each, cosines first."""
    generator = make(size=True, timesteps=FEW)
    seen = []
    generator.unet.add_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    generator.generate(tokens, IDS, seed=7)
    frequencies = 10000.0 ** (-np.arange(128) / 128)
    expected = [[f(value * frequencies) for f in (np.cos, np.sin)] for value in (H, W, 0, 0)]
    assert len(seen) == 4
    assert seen[0].shape == (2 * B, 1024)
    np.testing.assert_allclose(seen[0], np.tile(np.ravel(expected), (2 * B, 1)), atol=1e-4)


def test_progress_counts_clips(tokens):
    told = []
    make(timesteps=FEW).generate(tokens, IDS, seed=7, batch=2, progress=lambda *said: told.append(said))
    assert told == [(2, 3, "keyframes"), (3, 3, "keyframes")]
    assert make(timesteps=FEW).generate(tokens[:0], [], seed=7).shape == (0, 3, H, W)


@pytest.mark.parametrize("with_vae", [True, False])
def test_saved_and_loaded_generators_agree(tmp_path, tokens, with_vae):
    made = make(size=True, **RELEASED)
    images = made.generate(tokens, IDS, seed=7)
    if with_vae:
        made.save_pretrained(tmp_path)
        made_elsewhere = make_vae(3)  # a decoder of something else: the folder's own is used
    else:
        KeyframeGenerator(made.unet, None, made.scheduler, **RELEASED).save_pretrained(tmp_path)
        made_elsewhere = made.vae
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["model_index.json", "scheduler", "unet"] + ["vae"] * with_vae
    )
    loaded = KeyframeGenerator.load(tmp_path, vae=made_elsewhere)
    np.testing.assert_allclose(loaded.generate(tokens, IDS, seed=7), images, atol=1e-6)
    assert loaded.config.timesteps == FEW
    if with_vae:
        np.testing.assert_allclose(KeyframeGenerator.load(tmp_path).generate(tokens, IDS, seed=7), images, atol=1e-6)


def test_half_precision_is_for_the_unet_alone(tmp_path, tokens):
    made = make(size=True, **RELEASED)
    made.save_pretrained(tmp_path)
    loaded = KeyframeGenerator.load(tmp_path, dtype=torch.bfloat16)
    assert loaded.unet.dtype == torch.bfloat16
    assert loaded.vae.dtype == torch.float32
    images = made.generate(tokens, IDS, seed=7)
    coarse = loaded.generate(tokens.astype(np.float16), IDS, seed=7)
    assert coarse.dtype == np.float32
    assert np.corrcoef(coarse.ravel(), images.ravel())[0, 1] > 0.98


def test_folders_that_hold_no_generator_are_refused(tmp_path):
    with pytest.raises(ArtefactError, match=r"no model_index\.json; expected 'mini' or a folder of keyframe"):
        KeyframeGenerator.load(tmp_path / "nowhere")
    made = make(**RELEASED)
    KeyframeGenerator(made.unet, None, made.scheduler).save_pretrained(tmp_path / "bare")
    with pytest.raises(ArtefactError, match="bare: no vae/ in it and no VAE given"):
        KeyframeGenerator.load(tmp_path / "bare")
    with pytest.raises(ArtefactError, match=r"bare: .*3 latent channels beside a UNet of 2"):
        KeyframeGenerator.load(tmp_path / "bare", vae=make_vae(3))
    with pytest.raises(ArtefactError, match="no VAE"):
        KeyframeGenerator(made.unet, None, made.scheduler).generate(np.zeros((1, K, D), np.float32), ["a"], seed=0)
    weights = tmp_path / "bare" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))  # pickles are never read
    with pytest.raises(ArtefactError, match="bare: cannot be read as a keyframe generator"):
        KeyframeGenerator.load(tmp_path / "bare", vae=made.vae)
    index = tmp_path / "bare" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unconditional": "nothing"}))
    weights.with_suffix(".bin").rename(weights)
    with pytest.raises(ArtefactError, match=r"bare: .*'nothing'; expected 'noise' or 'zeros'"):
        KeyframeGenerator.load(tmp_path / "bare", vae=made.vae)


def test_schedules_that_a_scheduler_cannot_follow_are_refused():
    with pytest.raises(DataError, match="DDIMScheduler takes no list of timesteps"):
        make(DDIMScheduler(**BETAS), timesteps=FEW)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokens": np.zeros((B, K, D + 1), np.float32)}, r"\(3, 5, 9\); expected \(clips, tokens, 8\)"),
        ({"tokens": np.zeros((B, D), np.float32)}, r"\(3, 8\); expected"),
        ({"tokens": np.zeros((B, K, D), int)}, "tokens of type int64"),
        ({"tokens": np.full((B, K, D), np.nan)}, "all finite"),
        ({"ids": IDS[:2]}, "2 ids for the tokens of 3 clips"),
        ({"blurry": np.zeros((B, 3, H, H), np.float32)}, r"\(3, 3, 16, 16\), float32; expected \(3, 3, 16, 24\)"),
        ({"blurry": np.zeros((B, 3, H, W), np.uint8)}, "uint8; expected"),
        ({"blurry": np.full((B, 3, H, W), 1.5, np.float32)}, r"outside \[0, 1\]"),
        ({"blurry": np.full((B, 3, H, W), np.nan, np.float32)}, r"outside \[0, 1\]"),
        ({"strength": -0.1}, "strength -0.1"),
        ({"strength": float("nan")}, "strength nan"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 5}, "5 steps; these weights come with a schedule of 4"),
        ({"batch": 0}, "batches of 0"),
        ({"guidance_scale": float("inf")}, "guidance scale inf"),
    ],
)
def test_what_does_not_fit_is_refused(tokens, changed, said):
    arguments = {"tokens": tokens, "ids": IDS, "seed": 7} | changed
    with pytest.raises(DataError, match=said):
        make(timesteps=FEW).generate(**arguments)


def test_the_grid_shows_every_token_at_its_place():
    numbers = torch.arange(2 * 9 * 5, dtype=torch.float32).view(2, 9, 5)
    grid = token_grid(numbers, (6, 12))
    assert grid.shape == (2, 5, 6, 12)
    for row in range(6):
        for column in range(12):
            assert torch.equal(grid[:, :, row, column], numbers[:, 3 * (row // 2) + column // 4])
    with pytest.raises(DataError, match="5 tokens; expected a square number"):
        token_grid(numbers[:, :5], (6, 12))


def test_a_unet_with_channels_for_it_sees_the_grid():
    """Tokens that trade places are the same to cross-attention, and another picture to a network that sees them."""
    rng = np.random.default_rng(4)
    tokens = rng.normal(size=(B, 4, D)).astype(np.float32)
    traded = tokens[:, [3, 1, 2, 0]]
    drawn = {}
    for channels in (C, C + D):
        unet = make_unet(in_channels=channels)
        generator = KeyframeGenerator(unet, make_vae(), EulerDiscreteScheduler(**EULER), "zeros")
        drawn[channels] = [generator.generate(t, IDS, seed=7, steps=3) for t in (tokens, traded)]
    np.testing.assert_allclose(*drawn[C], atol=1e-5)
    difference = np.abs(drawn[C + D][0] - drawn[C + D][1]).mean(axis=(0, 1))
    assert difference[: H // 2, : W // 2].mean() > 1e-3
    with pytest.raises(DataError, match=r"a UNet of 7 input and 2 output channels; expected 2 inputs, or 10"):
        KeyframeGenerator(make_unet(in_channels=7), make_vae(), EulerDiscreteScheduler(**EULER))
