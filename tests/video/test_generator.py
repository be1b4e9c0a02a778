"""The method's generator: what each part of the guidance goes to, and what is switched off."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_generators import write_generators

from neuroclips.errors import NeuroClipsError
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.vae import Vae
from neuroclips.recipe import VideoRecipe
from neuroclips.video.generator import NeuroClipsGenerator
from neuroclips.video.guidance import Guidance
from neuroclips.video.motion import moved


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_generators(tmp_path_factory.mktemp("generators"))


@pytest.fixture(scope="module")
def make(weights):
    def make(**changes):
        settings = VideoRecipe(**{**weights, "frames": 5, "batch": 2, **changes})
        return NeuroClipsGenerator(settings, Vae.load("mini"), Clip.load("mini"))

    return make


@pytest.fixture(scope="module")
def guidance():
    rng = np.random.default_rng(0)
    return Guidance(
        [f"test1/{2 * i:04d}s" for i in range(3)],
        latents=rng.normal(size=(3, 6, 16, 4, 4)).astype(np.float32),
        tokens=rng.normal(size=(3, 16, 192)).astype(np.float32),
        prior_tokens=rng.normal(size=(3, 16, 192)).astype(np.float32),
    )


def changed(a, b):
    """Which clips differ."""
    return np.flatnonzero((a != b).any(axis=tuple(range(1, a.ndim)))).tolist()


def test_everything_that_is_missing_is_made_on_the_way(make, guidance):
    generator = make()
    videos = generator.generate(guidance, seed=3)
    assert videos.shape == (3, 5, 3, 32, 32)
    drawn = generator.draw(guidance, seed=3)
    assert drawn.keyframes.shape == (3, 3, 32, 32)
    told = generator.describe(drawn)
    assert len(told.captions) == 3
    assert np.array_equal(generator.generate(told, seed=3), videos)
    assert changed(generator.generate(told, seed=4), videos) == [0, 1, 2]


def test_batches_and_order_leave_videos_as_they_are(make, guidance):
    videos = make().generate(guidance, seed=3).astype(int)
    order = np.array([2, 0, 1])
    again = make(batch=3).generate(guidance.take(order), seed=3).astype(int)
    assert np.abs(again - videos[order]).max() <= 1


def test_keyframes_come_from_the_priors_tokens_if_there_are_some(make, guidance):
    generator = make()
    drawn = generator.draw(guidance, seed=0).keyframes
    without = dataclasses.replace(guidance, prior_tokens=None)
    assert changed(generator.draw(without, seed=0).keyframes, drawn) == [0, 1, 2]
    swapped = dataclasses.replace(guidance, tokens=guidance.prior_tokens, prior_tokens=None)
    assert np.array_equal(generator.draw(swapped, seed=0).keyframes, drawn)


def test_the_papers_keyframe_starts_from_the_first_blurry_frame(make, guidance):
    first, later = guidance.latents.copy(), guidance.latents.copy()
    first[1, 0] += 1
    later[1, 1:] += 1
    start = make(keyframe_strength=0.5).draw(guidance, seed=0).keyframes
    for latents, differ in ((first, [1]), (later, [])):
        found = make(keyframe_strength=0.5).draw(dataclasses.replace(guidance, latents=latents), seed=0).keyframes
        assert changed(found, start) == differ
    assert changed(make().draw(guidance, seed=0).keyframes, start) == [0, 1, 2]


@pytest.mark.parametrize("path", ["alpha", "beta", "gamma"])
def test_a_path_that_is_off_has_no_say_and_one_that_is_on_has(make, guidance, path):
    given = dataclasses.replace(
        make().draw(guidance, seed=0), captions=["a fish stays still", "a car spins", "a taxi bounces"]
    )
    other = {
        "alpha": {"latents": given.latents + np.array([0, 1, 0], np.float32)[:, None, None, None, None]},
        "beta": {"keyframes": np.stack([given.keyframes[0], 1 - given.keyframes[1], given.keyframes[2]])},
        "gamma": {"captions": [given.captions[0], "an eagle in the night sky", given.captions[2]]},
    }[path]
    for paths, differ in ((("alpha", "beta", "gamma"), [1]), (tuple({"alpha", "beta", "gamma"} - {path}), [])):
        generator = make(paths=paths)
        a = generator.generate(given, seed=1).astype(int)
        b = generator.generate(dataclasses.replace(given, **other), seed=1).astype(int)
        assert np.flatnonzero(np.abs(a - b).max(axis=(1, 2, 3, 4)) > 1).tolist() == differ


def test_a_frame_that_is_handed_over_takes_the_keyframes_place_at_the_beginning(make, guidance):
    given = make().describe(make().draw(guidance, seed=0))
    handed = dataclasses.replace(given, first_frames=given.keyframes)
    at_start, in_the_middle = make(keyframe_index=0), make(keyframe_index=3)
    assert np.array_equal(at_start.generate(handed, seed=0), at_start.generate(given, seed=0))
    assert np.array_equal(in_the_middle.generate(handed, seed=0), at_start.generate(given, seed=0))
    assert changed(in_the_middle.generate(given, seed=0), at_start.generate(given, seed=0)) == [0, 1, 2]


def test_parts_that_a_path_needs_are_named(make, guidance):
    with pytest.raises(NeuroClipsError, match="keyframes are drawn from tokens; this guidance has none"):
        make().generate(Guidance(guidance.ids, latents=guidance.latents), seed=0)
    with pytest.raises(NeuroClipsError, match="alpha guidance needs the blurry video's latents"):
        make().generate(dataclasses.replace(guidance, latents=None), seed=0)


def test_the_shared_autoencoder_stays_in_its_own_precision(make, guidance):
    generator = make(dtype="bf16")
    assert generator.pipeline.unet.dtype == torch.bfloat16
    assert generator.vae.model.dtype == torch.float32
    half, full = (g.generate(guidance, seed=0).astype(float) for g in (generator, make()))
    assert np.corrcoef(half.ravel(), full.ravel())[0, 1] > 0.95


@pytest.fixture(scope="module")
def moving(make, guidance):
    """With keyframes and captions, and a flow to the right: the first clip fast, the last not at all."""
    flow = np.zeros((3, 2, 4, 4), np.float32)
    flow[:, 0] = np.array([0.06, 0.03, 0])[:, None, None]
    return dataclasses.replace(make().describe(make().draw(guidance, seed=0)), flow=flow)


def test_denoising_starts_from_the_moving_blurry_video_and_keyframe(make, moving):
    blurry = make().vae.decode(moving.latents).astype(np.float32) / 255
    alone = make(keyframe_share=0)._start(moving)
    np.testing.assert_allclose(alone, moved(blurry, moving.flow), atol=1e-6)
    keyframe = make(keyframe_share=1, keyframe_index=2)._start(moving)  # of 5 frames: the blurry video's third of 6
    still = np.repeat(moving.keyframes[:, None], 6, axis=1)
    np.testing.assert_allclose(keyframe, moved(still, moving.flow, still=2.5), atol=1e-6)
    both = make(keyframe_share=0.25, keyframe_index=2)._start(moving)
    np.testing.assert_allclose(both, 0.75 * alone + 0.25 * keyframe, atol=1e-6)


def test_the_moving_keyframe_stands_still_where_it_belongs(make, moving):
    start = make(keyframe_share=1, keyframe_index=0)._start(moving)
    np.testing.assert_array_equal(start[:, 0], moving.keyframes)
    assert changed(start[:, 1], start[:, 0]) == [0, 1]
    at_the_end = make(keyframe_share=1, keyframe_index=-1)._start(moving)
    np.testing.assert_array_equal(at_the_end[:, -1], moving.keyframes)


def test_without_flow_or_gain_or_beta_the_start_is_the_papers(make, moving):
    blurry = make().vae.decode(moving.latents).astype(np.float32) / 255
    np.testing.assert_array_equal(make()._start(dataclasses.replace(moving, flow=None)), blurry)
    np.testing.assert_array_equal(make(motion_gain=0, keyframe_share=0)._start(moving), blurry)
    np.testing.assert_allclose(make(paths=("alpha",))._start(moving), moved(blurry, moving.flow), atol=1e-6)


def test_decoded_motion_reaches_the_video(make, moving):
    videos = make(strength=0).generate(moving, seed=0)  # no denoising: what it starts from, at 5 moments
    still = make(strength=0, motion_gain=0).generate(moving, seed=0)
    assert changed(videos, still) == [0, 1]
