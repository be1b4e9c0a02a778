"""How the mini generators are trained: they learn, their condition matters, and they fit the package."""

import copy

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import GitForCausalLM

from neuroclips.mini import train_caption, train_keyframe, train_video
from neuroclips.mini.corpus import (
    Scenes,
    encode,
    held_out_clips,
    held_out_scenes,
    replay,
    sample_held_out,
    text_states,
    tokens,
)
from neuroclips.mini.train_clip import tokenizer
from neuroclips.pretrained.caption import Captioner
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.keyframe import KeyframeGenerator
from neuroclips.pretrained.registry import shipped
from neuroclips.pretrained.vae import Vae
from neuroclips.simulation.film import place_is_held_out
from neuroclips.simulation.rendering import render
from neuroclips.simulation.things import HELD_OUT_THINGS, TRAINING_THINGS
from neuroclips.video.neuroclips_pipeline import NeuroClipsPipeline

TINY = {"block_out_channels": [16], "norm_num_groups": 4, "attention_head_dim": 2}


@pytest.fixture(scope="module")
def frozen():
    return Vae.load("mini"), Clip.load("mini")


@pytest.fixture
def small(monkeypatch):
    """The same networks, 16 channels wide."""
    monkeypatch.setattr(train_keyframe, "CONFIG", {**train_keyframe.CONFIG, **TINY})
    monkeypatch.setattr(train_video, "UNET", {**train_video.UNET, **TINY})
    control = {**TINY, "motion_num_attention_heads": 2}
    monkeypatch.setattr(train_video, "CONTROL", {**train_video.CONTROL, **control})
    motion = {"block_out_channels": [16], "motion_num_attention_heads": 2, "motion_norm_num_groups": 4}
    monkeypatch.setattr(train_video, "MOTION", {**train_video.MOTION, **motion})


def fitted(network, loss, batch, steps, rate=3e-3):
    """Loss before and after steps on one batch."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    values = []
    for _ in range(steps):
        value, _ = loss(network, batch, torch.Generator())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return np.mean(values[:5]), np.mean(values[-5:])


def at_fixed_noise(network, loss, batch):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        return np.mean([float(loss(network, batch, torch.Generator())[0]) for _ in range(6)])


def test_all_shipped_sizes_fit_the_package():
    image = train_video.build_image()
    motion = train_video.build_motion(image)
    networks = {
        "keyframe": UNet2DConditionModel(**train_keyframe.CONFIG),
        "caption": GitForCausalLM(train_caption.config(tokenizer())),
        "video": motion,
        "control": train_video.build_control(motion),
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in networks.items()}
    assert counts == {"keyframe": 3_323_280, "caption": 1_253_310, "video": 5_075_856, "control": 2_524_032}
    size = sum(path.stat().st_size for path in shipped("clip").parent.rglob("*") if path.is_file())
    assert size < 60e6


def test_training_never_shows_what_is_held_out():
    held_out = {thing.name for thing in HELD_OUT_THINGS}
    scenes = iter(Scenes(size=64, frames=1, seed=0))
    captions = " ".join(next(scenes)[1] for _ in range(300))
    assert not [name for name in held_out if f" {name} " in f" {captions} "]
    assert sum(f" {thing.name} " in f" {captions} " for thing in TRAINING_THINGS) > 100
    assert any(place_is_held_out(thing, "snow") for thing in TRAINING_THINGS)


def test_clips_are_sixteen_moments_on_the_grid_of_the_films_six():
    frames, captions = held_out_clips(3, size=64, seed=4)
    assert frames.shape == (3, 16, 3, 64, 64)
    scene = sample_held_out(3, seed=4)[1]
    at_three_a_second = render(scene, scene.duration_s / 2 + np.arange(6) / 3, 64)
    assert np.array_equal(frames[1, ::3], at_three_a_second)
    assert captions[1] == scene.caption
    streamed = next(iter(Scenes(size=64, frames=16, seed=1, fps=9.0)))[0]
    assert streamed.shape == (16, 3, 64, 64)


def test_replayed_rows_come_from_the_last_fresh_batches():
    fresh = ({"x": torch.full((4, 1), float(n))} for n in range(100))
    drawn = replay(fresh, uses=2, kept=3, seed=0)
    batches = [next(drawn)["x"].ravel().tolist() for _ in range(40)]
    for number, batch in enumerate(batches):
        newest = number // 2
        assert len(batch) == 4
        assert all(max(0, newest - 2) <= x <= newest for x in batch)
    assert len(set(batches[-1])) > 1


def test_a_keyframe_generator_learns_and_needs_its_tokens(frozen, small, tmp_path, monkeypatch):
    vae, clip = frozen
    images, _ = held_out_scenes(6, size=64, seed=1)
    batch = {"latents": encode(vae, torch.from_numpy(images)), "tokens": tokens(clip, torch.from_numpy(images))}
    torch.manual_seed(0)
    unet = train_keyframe.UNet2DConditionModel(**train_keyframe.CONFIG)
    alphas = train_keyframe.EulerDiscreteScheduler(**train_keyframe.SCHEDULE).alphas_cumprod
    for name in ("DEGRADED", "UNCONDITIONAL"):
        monkeypatch.setattr(train_keyframe, name, 0.0)
    loss = train_keyframe.KeyframeLoss(alphas, train_keyframe.TokenStatistics.of(batch["tokens"]))
    before, after = fitted(unet, loss, batch, 150, rate=4e-3)
    assert after < 0.7 * before
    shuffled = {**batch, "tokens": batch["tokens"].roll(1, dims=0)}
    assert at_fixed_noise(unet, loss, shuffled) > 1.05 * at_fixed_noise(unet, loss, batch)
    scheduler = train_keyframe.EulerDiscreteScheduler(**train_keyframe.SCHEDULE)
    train_keyframe.save(unet, scheduler, tmp_path)
    found = KeyframeGenerator.load(tmp_path, vae=vae.model)
    assert (found.config.steps, found.config.unconditional) == (train_keyframe.STEPS, "noise")
    assert found.generate(batch["tokens"].numpy(), list("abcdef"), seed=0).shape == (6, 3, 64, 64)


def test_degraded_tokens_are_calibrated_predictions_with_errors_that_look_like_pictures():
    torch.manual_seed(0)
    x = 2 + 3 * torch.randn(4000, 5, 7) @ torch.diag(torch.tensor([1.0, 0, 2, 1, 1, 1, 1]))
    statistics = train_keyframe.TokenStatistics.of(x)
    share = torch.full((4000,), 0.3)
    quiet = statistics.degrade(x, share, torch.zeros(4000))
    torch.testing.assert_close(quiet, statistics.mean + 0.3 * (x - statistics.mean))
    degraded = statistics.degrade(x, share, torch.ones(4000))
    error, deviation = degraded - quiet, degraded - statistics.mean
    assert float(error.var() / x.var(dim=0).mean()) == pytest.approx(0.3 * 0.7, rel=0.05)
    assert float(error[..., 1].abs().max()) < 1e-4  # what no picture has is in no error
    slope = (deviation * (x - statistics.mean)).sum() / deviation.square().sum()
    assert float(slope) == pytest.approx(1, rel=0.03)  # the best guess of the truth is the prediction itself
    neighbour = ((x.roll(1, 0) - statistics.mean) * error).mean() / (x - statistics.mean).square().mean()
    assert float(neighbour) == pytest.approx((0.3 * 0.7 / 4) ** 0.5, rel=0.1)
    torch.testing.assert_close(statistics.degrade(x, torch.ones(4000), torch.ones(4000)), x)


def test_video_legs_learn_and_hand_over(frozen, small, tmp_path):
    vae, clip = frozen
    frames, captions = held_out_clips(3, size=64, seed=2)
    latents = encode(vae, torch.from_numpy(frames).flatten(0, 1)).unflatten(0, (-1, 16))
    text, empty = text_states(clip, captions), text_states(clip, [""])
    alphas = train_video.scheduler().alphas_cumprod
    torch.manual_seed(0)
    image = train_video.build_image()
    single = {"latents": latents[:, 5], "text": text}
    before, after = fitted(image, train_video.ImageLoss(alphas, empty), single, 60)
    assert after < 0.8 * before
    unet = train_video.build_motion(copy.deepcopy(image))
    clips = {"latents": latents, "text": text}
    with torch.no_grad():  # motion modules start without effect
        x, t = latents.transpose(1, 2), torch.tensor([5, 6, 7])
        words = text.repeat_interleave(16, dim=0)
        one_by_one = image(latents.flatten(0, 1), t.repeat_interleave(16), words).sample.unflatten(0, (3, 16))
        torch.testing.assert_close(unet(x, t, words).sample.transpose(1, 2), one_by_one, rtol=1e-3, atol=1e-4)
    before, after = fitted(unet, train_video.MotionLoss(alphas, empty), clips, 40)
    assert after < 0.95 * before
    both = train_video.Controlled(unet, train_video.build_control(unet))
    with torch.no_grad():  # and so does SparseCtrl
        mask = train_video.given_frames(3, torch.device("cpu"))
        given = both(x, t, words, x * mask, mask, torch.ones(3))
        torch.testing.assert_close(given, unet(x, t, words).sample)
    fitted(both, train_video.ControlLoss(alphas, empty), clips, 3)
    missing = [
        name for name, p in both.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().any())
    ]
    assert missing == ["controlnet.conv_in.weight"]  # SparseCtrl never sees the noisy video
    train_video.save(both, tmp_path)
    (tmp_path / "card.json").write_text("{}")
    again = train_video.load("control", tmp_path)
    train_video.save(again, tmp_path)  # a network that was loaded
    assert not [path for path in tmp_path.rglob("*.json") if str(tmp_path) in path.read_text()]
    assert set(train_video.parts(again)) == {"unet", "controlnet"}
    found = NeuroClipsPipeline.load(tmp_path, vae=vae, clip=clip)
    keyframes = torch.from_numpy(frames[:, 6:7]).float() / 255
    call = dict(generators=[torch.Generator().manual_seed(s) for s in range(3)], size=(64, 64), steps=2)
    assert found(captions, keyframes=keyframes, **call).shape == (3, 16, 3, 64, 64)


def test_given_frames_are_one_or_two():
    torch.manual_seed(0)
    mask = train_video.given_frames(4000, torch.device("cpu"))
    assert mask.shape == (4000, 1, 16, 8, 8)
    assert torch.equal(mask[..., 0, 0], mask[..., 7, 3])
    count = mask[:, 0, :, 0, 0].sum(dim=1)
    assert set(count.tolist()) == {1.0, 2.0}
    share = mask[:, 0, :, 0, 0].mean(dim=0)
    assert float(share[0]) == pytest.approx(float(share[6]), abs=0.04)
    assert float(share[[0, 6]].min()) > 3 * float(share[[1, 3, 9, 15]].max())


def test_a_captioner_learns_words_and_is_read_by_captioner(frozen, tmp_path):
    words = tokenizer()
    images, captions = held_out_scenes(4, size=64, seed=3)
    torch.manual_seed(0)
    config = train_caption.config(words)
    config.vision_config.num_hidden_layers = config.num_hidden_layers = 1
    model = train_caption.GitForCausalLM(config)
    text = words(captions, padding="max_length", truncation=True, return_tensors="pt")
    batch = {
        "pixels": train_caption.pixels(torch.from_numpy(images), 64),
        "input_ids": text["input_ids"],
        "attention_mask": text["attention_mask"],
    }
    before, after = fitted(model, train_caption.loss, batch, 70, rate=2e-3)
    assert after < 0.05 * before
    train_caption.save(model.eval(), words, tmp_path)
    assert Captioner.load(tmp_path).captions(images) == captions


def test_frames_drawn_again_from_their_tokens_are_like_themselves():
    images, _ = held_out_scenes(8, size=64, seed=6)
    drawn = train_caption.redrawn(images, Vae.load("mini"), seed=1)
    assert drawn.shape == images.shape
    own, other = (
        np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(drawn, given)])
        for given in (images, np.roll(images, 1, axis=0))
    )
    assert own > 0.8  # by the shipped generator
    assert other < 0.5
