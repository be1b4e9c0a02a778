"""The video pipeline: equal to upstream where both can run, and every path of guidance by itself."""

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffSparseControlNetPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
)
from tiny_video import DDIM, LATENTS, parts, randomised

from neuroclips.errors import NeuroClipsError
from neuroclips.video.neuroclips_pipeline import NeuroClipsPipeline

PROMPTS = ["a red fish swims", "a car stops here", "a blue fish"]
FRAMES, SIZE = 5, (16, 24)


def seeded(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    return {
        "blurry": torch.rand(3, 6, 3, *SIZE, generator=generator),
        "keyframes": torch.rand(3, 1, 3, *SIZE, generator=generator),
    }


@pytest.fixture
def run(make_pipeline, given):
    """Float videos (3, 5, 3, 16, 24) of three clips; keywords change the call, ``pipeline=`` the pipeline."""

    def run(pipeline=None, prompts=PROMPTS, seeds=(1, 2, 3), **changes):
        pipeline = pipeline or make_pipeline()
        call = {**given, "frames": FRAMES, "size": SIZE, "output": "float", "strength": 0.7, **changes}
        return pipeline(prompts, generators=seeded(*seeds), **call)

    return run


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
@pytest.mark.parametrize("negative", ["", "a car now"])
def test_without_blurry_video_and_with_stock_norm_it_equals_upstream(make_pipeline, kind, negative):
    own = {**parts(), "vae": copy.deepcopy(parts()["vae"])}
    # Upstream samples the keyframe's posterior; ours takes its mode. Without variance there is no difference.
    torch.nn.init.zeros_(own["vae"].quant_conv.weight[LATENTS:])
    torch.nn.init.constant_(own["vae"].quant_conv.bias[LATENTS:], -30.0)
    settings = {k: v for k, v in DDIM.items() if kind is DDIMScheduler or k != "clip_sample"}
    ours = make_pipeline(scheduler=kind(**settings), vae=own["vae"], frame_norm=False)
    image = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    call = dict(guidance_scale=3.0, negative_prompt=negative)
    found = ours([PROMPTS[0]], keyframes=image[None], keyframe_indices=[2], generators=seeded(9), frames=FRAMES,
                 size=SIZE, steps=6, output="float", **call)  # fmt: skip
    upstream = AnimateDiffSparseControlNetPipeline(**own, scheduler=kind(**settings), motion_adapter=None)
    upstream.set_progress_bar_config(disable=True)
    upstream.check_image = lambda *_: None
    expected = upstream(
        PROMPTS[0], height=SIZE[0], width=SIZE[1], num_frames=FRAMES, num_inference_steps=6,
        conditioning_frames=image, controlnet_frame_indices=[2], generator=seeded(9)[0], output_type="pt", **call,
    ).frames  # fmt: skip
    assert found.std() > 0.05
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=2e-5)


def test_both_norms_run_and_differ_on_frames_that_differ(make_pipeline, run):
    per_frame = run(make_pipeline())
    stock = run(make_pipeline(frame_norm=False))
    assert (per_frame - stock).abs().max() > 0.01


# --- alpha ------------------------------------------------------------------------------------------------------------


def test_no_strength_returns_the_round_trip_of_the_blurry_video(make_pipeline, run, given):
    vae = make_pipeline().vae
    with torch.no_grad():
        trip = vae.decode(vae.encode(given["blurry"].flatten(0, 1) * 2 - 1).latent_dist.mode()).sample
    expected = ((trip + 1) / 2).clamp(0, 1).unflatten(0, (3, 6))
    torch.testing.assert_close(run(strength=0, frames=6), expected, rtol=0, atol=1e-5)


def test_distance_from_the_blurry_video_grows_with_strength(make_pipeline, run):
    made = [run(strength=s, steps=10, keyframes=None, output="latent") for s in (0, 0.2, 0.5, 0.8, 1)]
    distances = [float((video - made[0]).pow(2).mean()) for video in made]
    assert distances[0] == 0
    assert all(low < 0.95 * high for low, high in itertools.pairwise(distances))


def test_released_ignores_strength_and_the_others_do_not(run):
    for start, same in (("released", True), ("paper", False), ("sdedit", False)):
        low, high = (run(start=start, strength=s, keyframes=None, output="latent") for s in (0.3, 0.8))
        assert torch.equal(low, high) == same, start


# --- each path by itself ----------------------------------------------------------------------------------------------


def test_each_path_changes_the_video_and_only_its_own_clip(run, given):
    before = run()
    for name, part in given.items():
        changed = part.clone()
        changed[1] = 1 - changed[1]
        after = run(**{name: changed})
        assert (after[1] - before[1]).abs().max() > 0.01, name
        torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=1e-5)
    after = run(prompts=[PROMPTS[0], "blue blue now", PROMPTS[2]])
    assert (after[1] - before[1]).abs().max() > 1e-3
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=1e-5)


def test_a_path_that_is_off_has_no_say(make_pipeline, run, given):
    """Off is the same as absent: beta at scale 0, gamma with empty prompts, alpha at start from noise."""
    torch.testing.assert_close(run(control_scale=0), run(keyframes=None), rtol=0, atol=0)
    assert torch.equal(run(prompts=None), run(prompts=["", "", ""]))
    without = NeuroClipsPipeline(**{**parts(), "controlnet": None}, scheduler=DDIMScheduler(**DDIM), steps=4,
                                 guidance_scale=2.0)  # fmt: skip
    without.set_progress_bar_config(disable=True)
    assert torch.equal(run(without, keyframes=None), run(keyframes=None))
    noise = run(blurry=None, output="latent")
    assert not torch.allclose(noise, run(output="latent"))
    assert torch.equal(noise, run(blurry=None, strength=0.1, output="latent"))


def test_prompt_only_guidance_one_needs_one_half(run):
    """At guidance scale 1 the negative prompt has no say."""
    one = run(guidance_scale=1, negative_prompt="a")
    assert torch.equal(one, run(guidance_scale=1, negative_prompt="blue car"))
    assert not torch.allclose(run(negative_prompt="a"), run(negative_prompt="blue car"))


def test_keyframes_act_at_their_indices(run, given):
    keyframes = torch.cat([given["keyframes"], 1 - given["keyframes"]], dim=1)
    both = run(keyframes=keyframes, keyframe_indices=(0, 3))
    swapped = run(keyframes=keyframes.flip(1), keyframe_indices=(3, 0))
    torch.testing.assert_close(both, swapped, rtol=0, atol=1e-5)
    assert (both - run(keyframes=keyframes, keyframe_indices=(3, 0))).abs().max() > 0.01
    torch.testing.assert_close(both, run(keyframes=keyframes, keyframe_indices=(0, -2)), rtol=0, atol=1e-5)


def test_style_is_appended_and_long_prompts_are_named(run):
    assert torch.equal(run(prompts=["a car", "a fish", "red"], style=" here"), run(prompts=["a car here", "a fish here",
                                                                                           "red here"]))  # fmt: skip
    long = "a red fish swims here now blue car"
    with pytest.warns(UserWarning, match=r"10 tokens, CLIP reads 7: 'now blue car' at its end is not seen"):
        run(prompts=[long, "a", "a"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(prompts=["a red fish swims now", "a", "a"])  # exactly 7


# --- batches, seeds, schedulers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerAncestralDiscreteScheduler])
def test_neither_batch_size_nor_order_matters(make_pipeline, run, given, kind):
    settings = {k: v for k, v in DDIM.items() if kind is DDIMScheduler or k != "clip_sample"}
    pipeline = make_pipeline(scheduler=kind(**settings))
    together = run(pipeline, eta=0.5)
    for clips in ([0], [1, 2], [2, 0, 1]):
        rows = {name: part[clips] for name, part in given.items()}
        found = run(pipeline, [PROMPTS[c] for c in clips], [c + 1 for c in clips], eta=0.5, **rows)
        torch.testing.assert_close(found, together[clips], rtol=0, atol=1e-5)
    assert (run(pipeline, seeds=(1, 2, 4), eta=0.5)[2] - together[2]).abs().max() > 0.01


def test_seeds_of_a_clip_share_what_does_not_change(make_pipeline, run, given):
    pipeline, calls = make_pipeline(), {"control": 0, "text": 0, "vae": 0}
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
        for name, module in (("control", pipeline.controlnet), ("text", pipeline.text_encoder))
    ]
    sizes = []
    hooks.append(pipeline.controlnet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0]))))
    together = run(pipeline, seeds=(1, 11, 2, 12, 3, 13), output="latent")
    for hook in hooks:
        hook.remove()
    assert set(sizes) == {2 * 3}  # clips in both halves, not clips times seeds
    assert calls["text"] == 1
    first, second = (run(pipeline, seeds=s, output="latent") for s in ((1, 2, 3), (11, 12, 13)))
    torch.testing.assert_close(together[0::2], first, rtol=0, atol=1e-4)
    torch.testing.assert_close(together[1::2], second, rtol=0, atol=1e-4)


def test_equal_prompts_are_encoded_once(make_pipeline, run):
    pipeline, sizes = make_pipeline(), []
    hook = pipeline.text_encoder.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[0]))
    run(pipeline, prompts=["a car", "a car", "a fish"], negative_prompt="now")
    hook.remove()
    assert sizes == [3]


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_any_scheduler_from_any_start(make_pipeline, run, kind):
    settings = {k: v for k, v in DDIM.items() if k != "clip_sample"}
    pipeline = make_pipeline(scheduler=kind(**settings))
    made = [run(pipeline, strength=s, steps=10, output="latent") for s in (0.3, 1.0)]
    ddim = [run(strength=s, steps=10, output="latent") for s in (0.3, 1.0)]
    for a, b in zip(made, ddim):  # one ODE, another solver
        assert np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.95


def test_a_callback_sees_and_may_change_every_step(run):
    seen = []
    plain = run(on_step_end=lambda pipe, i, t, tensors: seen.append((i, t, tensors["latents"].shape)))
    assert [s[0] for s in seen] == [0, 1, 2]
    assert [s[1] for s in seen] == [501, 251, 1]
    assert seen[0][2] == (3, LATENTS, FRAMES, 8, 12)
    changed = run(on_step_end=lambda pipe, i, t, tensors: {"latents": 0 * tensors["latents"]})
    assert not torch.allclose(plain, changed)
    assert (changed[0] - changed[1]).abs().max() < 1e-6


def test_outputs_agree(run):
    video = run()
    assert video.dtype == torch.float32
    assert tuple(video.shape) == (3, FRAMES, 3, *SIZE)
    assert np.array_equal(run(output="uint8"), (video * 255).round().to(torch.uint8).numpy())
    torch.testing.assert_close(run(decode_frames=2), video, rtol=0, atol=1e-5)
    assert run(output="latent").shape == (3, LATENTS, FRAMES, 8, 12)


def test_half_precision_stays_near(make_pipeline, run):
    half = make_pipeline(**{n: copy.deepcopy(parts()[n]) for n in ("vae", "unet", "controlnet", "text_encoder")})
    half.to(torch.bfloat16)
    assert np.corrcoef(run(half).flatten(), run().flatten())[0, 1] > 0.98


# --- parts, saving, errors --------------------------------------------------------------------------------------------


def test_saving_and_loading(make_pipeline, run, tmp_path):
    pipeline = make_pipeline(style=" now", guidance_scale=3.0, negative_prompt="a")
    pipeline.save_pretrained(tmp_path)
    again = NeuroClipsPipeline.from_pretrained(tmp_path, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert again.config.style == " now"
    assert torch.equal(run(again), run(pipeline))


def test_an_image_unet_needs_its_motion_adapter(run):
    image_unet = UNet2DConditionModel(
        sample_size=8, in_channels=LATENTS, out_channels=LATENTS, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12, layers_per_block=1, attention_head_dim=2,
    )  # fmt: skip
    others = {**parts(), "unet": randomised(image_unet, 8), "controlnet": None, "scheduler": DDIMScheduler(**DDIM)}
    with pytest.raises(NeuroClipsError, match="expected motion_adapter"):
        NeuroClipsPipeline(**others)
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=4,
        motion_max_seq_length=7, use_motion_mid_block=False,
    )  # fmt: skip
    pipeline = NeuroClipsPipeline(**others, motion_adapter=randomised(adapter, 9), steps=3)
    pipeline.set_progress_bar_config(disable=True)
    assert run(pipeline, keyframes=None).shape == (3, FRAMES, 3, *SIZE)
    assert pipeline.most_frames == 7


def test_sparse_control_of_pixels(make_pipeline, run, given):
    control = SparseControlNetModel(
        in_channels=LATENTS, conditioning_channels=3, motion_max_seq_length=9, motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), norm_num_groups=4, cross_attention_dim=12,
        layers_per_block=1, block_out_channels=(8, 16), attention_head_dim=2,
        use_simplified_condition_embedding=False, conditioning_embedding_out_channels=(4, 6),
    )  # fmt: skip
    pipeline = make_pipeline(controlnet=randomised(control, 7))
    assert (run(pipeline) - run(pipeline, keyframes=1 - given["keyframes"])).abs().max() > 1e-3


WRONG = {
    "numbers of clips differ: {'prompts': 3, 'blurry': 2": {"blurry": torch.rand(2, 4, 3, *SIZE)},
    r"4 generators for 3 clips": {"seeds": (1, 2, 3, 4)},
    r"0 generators for 3 clips": {"seeds": ()},
    r"frames is 10; expected 1 to 9": {"frames": 10},
    r"frames is 0; expected 1 to 9": {"frames": 0},
    r"size is \(16, 25\); expected multiples of 4 pixels": {"size": (16, 25)},
    r"steps is 0; expected at least 1": {"steps": 0},
    r"strength is -0.1; expected 0": {"strength": -0.1},
    r"blurry has shape \(3, 4, 16, 24, 3\); expected \(clips, frames, 3, height, width\)": {
        "blurry": torch.rand(3, 4, 16, 24, 3)
    },
    r"keyframes is torch.uint8; expected floating point": {"keyframes": torch.zeros(3, 1, 3, 8, 8, dtype=torch.uint8)},
    r"blurry has values from 0 to 255; expected \[0, 1\]": {
        "blurry": torch.linspace(0, 255, 288).reshape(3, 1, 3, 4, 8)
    },
    r"blurry has values from nan": {"blurry": torch.full((3, 4, 3, *SIZE), torch.nan)},
    r"1 keyframes a clip for 2 keyframe_indices \[0, 1\]": {"keyframe_indices": (0, 1)},
    r"keyframe_indices \[5\]: expected different frames of 0 to 4": {"keyframe_indices": (5,)},
    r"keyframe_indices \[0, -5\]: expected different": {
        "keyframes": torch.rand(3, 2, 3, *SIZE), "keyframe_indices": (0, -5)
    },
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_gets_one_clear_error(run, unchecked_types, message):
    with pytest.raises(NeuroClipsError, match=message):
        run(**WRONG[message])


def test_one_string_and_a_missing_part(run, make_pipeline, unchecked_types):
    with pytest.raises(NeuroClipsError, match="prompts is one string; expected a list"):
        run(prompts="a car")
    with pytest.raises(NeuroClipsError, match="has no controlnet"):
        run(make_pipeline(controlnet=None))
