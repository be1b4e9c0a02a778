"""What goes wrong silently with the published weights: the right number beside the one that the wrong handling gives.

Elsewhere: group statistics of each frame in ``tests/video/test_norm.py``; that no spacing of diffusers gives the
released timesteps, and the released sampler as a whole, in ``test_keyframe.py``; the prior's sampler beside the library
in ``tests/decoders/test_prior.py``; attention as convolutions, and the adapter added to the right UNet, in
``test_convert.py``.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, MotionAdapter, SparseControlNetModel
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPModel

from neuroclips.decoders.prior import DiffusionPrior, PriorNetwork, cosine_alphas_cumprod
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.clip import SQUEEZED_MEAN, SQUEEZED_STD, image_tokens, pixels
from neuroclips.pretrained.convert import animatediff, clip, unclip
from neuroclips.pretrained.convert.names import converted, meta, unconverted

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- CLIP: activation, last norm, range of images ---

VISION = dict(
    hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=3, image_size=12, patch_size=4,
    hidden_act="gelu", layer_norm_eps=1e-5, projection_dim=10,
)  # fmt: skip
TEXT = dict(
    hidden_size=16, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, vocab_size=19,
    max_position_embeddings=7, hidden_act="gelu", projection_dim=10, bos_token_id=17, eos_token_id=18, pad_token_id=18,
)  # fmt: skip


@pytest.fixture(scope="module")
def recorded():
    """What open_clip computed; see ``make_open_clip_reference.py``."""
    return load_file(HERE / "open_clip_reference.safetensors")


def tower(recorded, vision=VISION):
    """open_clip's weights in a model of these settings."""
    model = CLIPModel(CLIPModel.config_class(vision_config=vision, text_config=TEXT, projection_dim=10)).eval()
    source = {name.removeprefix("source."): value for name, value in recorded.items() if "source." in name}
    model.load_state_dict(converted(source, model.state_dict(), clip.of_open_clip)[0])
    return model


def distance(a, b):
    return ((a - b).square().mean() / b.square().mean()).sqrt().item()


@torch.no_grad()
def test_bigg_computes_gelu_and_transformers_default_is_another_function(recorded):
    x = pixels(recorded["images"], 12)
    assert distance(image_tokens(tower(recorded), x)[0], recorded["tokens"]) < 1e-6
    default = {name: value for name, value in VISION.items() if name != "hidden_act"}
    assert distance(image_tokens(tower(recorded, default), x)[0], recorded["tokens"]) > 0.003
    for part in ("vision_config", "text_config"):
        assert clip.BIGG[part]["hidden_act"] == "gelu"


@torch.no_grad()
def test_every_token_goes_through_the_last_norm_and_transformers_norms_one(recorded):
    model, x = tower(recorded), pixels(recorded["images"], 12)
    without = model.vision_model(pixel_values=x).last_hidden_state[:, 1:]
    assert distance(without, recorded["tokens"]) > 0.2
    assert distance(image_tokens(model, x)[0], recorded["tokens"]) < 1e-5


@torch.no_grad()
def test_mindeye2_takes_tokens_of_images_squeezed_into_the_upper_half(recorded):
    model = tower(recorded)
    squeezed = image_tokens(model, pixels(recorded["images"], 12, SQUEEZED_MEAN, SQUEEZED_STD))[0]
    assert distance(squeezed, recorded["tokens_squeezed"]) < 1e-5
    assert distance(image_tokens(model, pixels(recorded["images"], 12))[0], recorded["tokens_squeezed"]) > 0.2


# --- prior: the library's shift of the noise schedule, epsilon of norms in half precision ---


class Constant(PriorNetwork):
    """Predicts the same number everywhere, so that one step shows its coefficients."""

    def __init__(self, x0):
        super().__init__(tokens=1, width=2, depth=0, heads=1, head_width=2)
        self.x0 = x0

    def forward(self, noisy, t, condition, *, drop_condition=None, drop_noisy=None):
        return torch.full_like(noisy, self.x0)


@pytest.mark.parametrize(
    ("t", "schedule", "expected"),
    [
        (94, "library", (0.171, 0.828, 0.534)), (94, "textbook", (0.155, 0.857, 0.491)),
        (9, "library", (0.997, 0.065, 0.036)), (9, "textbook", (0.996, 0.076, 0.047)),
    ],
)  # fmt: skip
def test_the_priors_sampler_moves_between_shifted_noise_levels(t, schedule, expected):
    """Shares of x0, fresh noise and old noise in a step of five: the library's, and those of the book."""
    after, abar = t - 5, cosine_alphas_cumprod(100).tolist()

    def step(x0, old, fresh):
        prior = DiffusionPrior(Constant(x0), schedule=schedule)
        noisy = math.sqrt(abar[t]) * x0 + math.sqrt(1 - abar[t]) * old
        shaped = [torch.full((1, 1, 2), float(value)) for value in (noisy, x0, fresh)]
        return prior._step(*shaped, t, after, 1.0)[0, 0, 0].item()

    found = [step(1, 0, 0), step(0, 0, 1), step(0, 1, 0)]
    np.testing.assert_allclose(found, expected, atol=6e-4)
    level = [1.0, *abar] if schedule == "library" else abar
    a, a_after = level[t], level[after]
    fresh = math.sqrt((1 - a / a_after) * (1 - a_after) / (1 - a))
    closed = [math.sqrt(a_after), fresh, math.sqrt(1 - a_after - fresh**2)]
    np.testing.assert_allclose(found, closed, atol=1e-6)


def test_norms_of_the_prior_keep_their_epsilon_in_half_precision(monkeypatch):
    """The library takes 1e-3 instead of 1e-5 for halves, which counts where numbers are small: after attention."""
    torch.manual_seed(0)
    network = PriorNetwork(tokens=3, width=16, depth=2, heads=2, head_width=34).eval()
    with torch.no_grad():
        for block in network.blocks:
            block.out.weight.mul_(0.05)  # as small as a trained layer's outputs may be
        inputs = torch.randn(2, 3, 16), torch.tensor([3, 90]), torch.randn(2, 3, 16)
        whole = network(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(*inputs)
        original = F.layer_norm
        monkeypatch.setattr(F, "layer_norm", lambda x, shape, weight: original(x, shape, weight, eps=1e-3))
        wrong = network(*inputs)
    assert distance(half, whole) < 0.1
    assert distance(wrong, whole) > 3 * distance(half, whole)


# --- keyframes ---


def test_timesteps_of_the_keyframe_generator_reach_the_highest_noise():
    """Euler from 999 starts at 14.6146 times the image; 'leading' spacing, also in the file's settings, from less."""
    scheduler = EulerDiscreteScheduler(**unclip.SCHEDULER)
    scheduler.set_timesteps(timesteps=unclip.SETTINGS["timesteps"])
    np.testing.assert_allclose(scheduler.sigmas[[0, -2, -1]], [14.6146, 0.1580, 0], atol=5e-5)
    assert len(scheduler.sigmas) == 39
    scheduler.set_timesteps(38)
    assert scheduler.sigmas[0] < 12.5


def test_pixels_of_the_keyframe_generator_already_lie_in_the_upper_half():
    gain, offset = unclip.SETTINGS["pixel_gain"], unclip.SETTINGS["pixel_offset"]
    decoded = np.array([-0.25, 0, 0.5, 1])
    np.testing.assert_allclose(gain * decoded + offset, [0, 0.2, 0.6, 1], atol=1e-12)
    assert np.abs(gain * decoded + offset - (decoded + 1) / 2).max() > 0.3


# --- video ---

WIDTHS = [8, 16]
CONTROL = animatediff.SPARSECTRL | dict(
    block_out_channels=WIDTHS, norm_num_groups=4, cross_attention_dim=6, attention_head_dim=2, layers_per_block=1,
    motion_num_attention_heads=2, motion_max_seq_length=9,
    down_block_types=["CrossAttnDownBlockMotion", "DownBlockMotion"],
)  # fmt: skip


@pytest.fixture(scope="module")
def control():
    torch.manual_seed(0)
    made = SparseControlNetModel(**CONTROL).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "controlnet_" in name or "proj_out" in name:  # zero at the start of training
                parameter.normal_(std=0.3)
            if "attn2.to_" in name:
                parameter.mul_(5)
    return made


@torch.no_grad()
def test_the_mask_is_the_last_of_five_channels(control):
    """What the first layer reads is, for each frame, the four channels of latents and then the mask."""
    latents, mask = torch.randn(1, 4, 3, 8, 8), torch.zeros(1, 1, 3, 8, 8)
    mask[:, :, 1] = 1
    layer, seen = control.controlnet_cond_embedding, []
    hook = layer.register_forward_hook(lambda _, given, made: seen.append(made))
    control(
        torch.zeros(1, 4, 3, 8, 8), 5, torch.zeros(3, 2, 6), controlnet_cond=latents, conditioning_mask=mask,
        return_dict=False,
    )  # fmt: skip
    hook.remove()
    last, first = (torch.cat(parts, dim=1)[0].transpose(0, 1) for parts in ([latents, mask], [mask, latents]))
    torch.testing.assert_close(seen[0], layer(last))
    assert distance(layer(first), seen[0]) > 0.5


@torch.no_grad()
def test_words_are_repeated_frame_by_frame_and_not_clip_by_clip(control):
    """Each of two clips must hear its own words in all frames; tiling gives every other frame the neighbour's."""
    frames, words = 3, torch.randn(2, 4, 6)
    pictures, mask = torch.randn(2, 4, frames, 8, 8), torch.ones(2, 1, frames, 8, 8)

    def residual(clips, text):
        rest = dict(controlnet_cond=pictures[clips], conditioning_mask=mask[clips], return_dict=False)
        return control(torch.zeros(len(text) // frames, 4, frames, 8, 8), 5, text, **rest)[1]

    both, alone = slice(0, 2), torch.cat([residual(slice(i, i + 1), words[[i] * frames]) for i in range(2)])
    torch.testing.assert_close(residual(both, words.repeat_interleave(frames, dim=0)), alone, rtol=0, atol=1e-3)
    assert distance(residual(both, words.repeat(frames, 1, 1)), alone) > 0.01


MOTION = animatediff.MOTION | dict(
    block_out_channels=WIDTHS, motion_num_attention_heads=2, motion_norm_num_groups=4, motion_max_seq_length=9
)


@pytest.fixture(scope="module")
def motion_file():
    torch.manual_seed(0)
    return unconverted(MotionAdapter(**MOTION).state_dict(), animatediff.of_motion(attentions=2))


def test_version_3_has_no_motion_in_the_middle_and_diffusers_would_make_some(motion_file):
    animatediff.motion(motion_file, MOTION)[2].check("v3_sd15_mm.ckpt", "motion modules")
    default = {name: value for name, value in MOTION.items() if name != "use_motion_mid_block"}
    assert any(name.startswith("mid_block") for name in meta(lambda: MotionAdapter(**default)).state_dict())
    with pytest.raises(ArtefactError, match=r"keys missing \(mid_block\.motion_modules"):
        animatediff.motion(motion_file, default)[2].check("v3_sd15_mm.ckpt", "motion modules")


def test_motion_modules_of_another_version_are_told_by_their_table_of_positions(motion_file):
    """Version 1 knows 24 frames where version 3 knows 32; here 7 where 9 are expected."""
    older = {name: value[:, :7] if name.endswith(".pe") else value for name, value in motion_file.items()}
    with pytest.raises(ArtefactError, match=r"pos_encoder\.pe 1x7x8 instead of 1x9x8"):
        animatediff.motion(older, MOTION)[2].check("mm_sd_v14.ckpt", "motion modules")


def test_the_video_schedule_is_linear_and_stable_diffusions_leaves_another_start():
    scheduler = DDIMScheduler(**animatediff.SCHEDULER)
    scheduler.set_timesteps(25)
    assert scheduler.timesteps.tolist() == list(range(961, 0, -40))
    assert scheduler.alphas_cumprod[961].sqrt().item() == pytest.approx(0.0498, abs=5e-5)
    scaled = DDIMScheduler(**animatediff.SCHEDULER | {"beta_schedule": "scaled_linear"})
    assert scaled.alphas_cumprod[961].sqrt().item() > 0.07


def test_clip_of_stable_diffusion_computes_quick_gelu():
    """The other way round than for ViT-bigG: OpenAI's towers were trained with the approximation."""
    x = torch.linspace(-3, 3, 13)
    assert animatediff.CONFIGS["text_encoder"]["hidden_act"] == "quick_gelu"
    assert (x * torch.sigmoid(1.702 * x) - F.gelu(x)).abs().max() > 0.01
