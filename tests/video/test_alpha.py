"""Where denoising starts: closed-form coefficients, for several families of schedulers."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from neuroclips.errors import NeuroClipsError
from neuroclips.video.alpha import at_frames, place

PAPER = dict(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
ABAR = np.cumprod(1 - np.linspace(0.00085, 0.012, 1000))  # of the paper's schedule, in float64


def ddim(steps=25):
    scheduler = DDIMScheduler(**PAPER, steps_offset=1, clip_sample=False)
    scheduler.set_timesteps(steps)
    return scheduler


def test_the_released_start_has_the_published_coefficients():
    for strength in (0, 0.3, 1):
        start = place(ddim(), strength, "released")
        assert (start.signal, start.noise) == pytest.approx((0.0498, 0.9988), abs=5e-5)
        assert start.timesteps.tolist() == list(range(961, 0, -40))


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.5, 0.96, 1.0])
def test_the_kept_steps_and_their_noise_follow_the_strength(strength):
    start = place(ddim(), strength)
    kept = int(np.floor(25 * strength + 0.5))
    first = 1 + 40 * (kept - 1)
    assert start.timesteps.tolist() == list(range(first, 0, -40))
    assert start.signal == pytest.approx(math.sqrt(ABAR[first]), rel=1e-4)
    assert start.noise == pytest.approx(math.sqrt(1 - ABAR[first]), rel=1e-4)


def test_no_strength_keeps_the_blurry_video():
    start = place(ddim(), 0)
    assert (start.signal, start.noise, len(start.timesteps)) == (1, 0, 0)


def test_equation_5():
    start = place(ddim(), 0.3, "paper")
    assert start.signal == pytest.approx(math.sqrt(ABAR[961] / ABAR[300]), rel=1e-4)
    assert start.signal == pytest.approx(0.073, abs=5e-4)
    assert start.signal**2 + start.noise**2 == pytest.approx(1)
    assert len(start.timesteps) == 25
    assert place(ddim(), 0, "paper").signal < start.signal < place(ddim(), 0.9, "paper").signal
    assert place(ddim(), 1, "paper").signal == pytest.approx(1)


def test_equation_5_at_the_last_training_step():
    scheduler = DDIMScheduler(**PAPER, timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    assert scheduler.timesteps[0] == 999
    assert place(scheduler, 0.3, "paper").signal == pytest.approx(0.058, abs=5e-4)


@pytest.mark.parametrize("mode", ["sdedit", "paper", "released"])
def test_schedulers_that_count_in_sigmas_start_from_the_same_video_scaled(mode):
    euler = EulerDiscreteScheduler(**PAPER, steps_offset=1, timestep_spacing="leading")
    euler.set_timesteps(25)
    start, same = place(euler, 0.6, mode), place(ddim(), 0.6, mode)
    assert start.timesteps.tolist() == same.timesteps.tolist()
    scale = math.sqrt(ABAR[int(start.timesteps[0])])
    assert start.signal * scale == pytest.approx(same.signal, rel=1e-3)
    assert start.noise * scale == pytest.approx(same.noise, rel=1e-3)


def test_second_order_schedulers_start_at_a_whole_step():
    heun = HeunDiscreteScheduler(**PAPER)
    heun.set_timesteps(10)  # 19 entries
    assert len(heun.timesteps) == 19
    start = place(heun, 0.5)
    assert len(start.timesteps) == 9
    assert start.timesteps[0] == heun.timesteps[10] != heun.timesteps[11]


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_a_perfect_denoiser_recovers_its_video_from_any_start(kind):
    """Steps from the middle need the scheduler's own counter set: a wrong start would not arrive."""
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    e = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    for strength in (0.3, 0.7, 1.0):
        scheduler = kind(**PAPER, **({"clip_sample": False} if kind is DDIMScheduler else {}))
        scheduler.set_timesteps(20)
        start = place(scheduler, strength)
        x = start.signal * z + start.noise * e
        for t in start.timesteps:
            seen = scheduler.scale_model_input(x, t)
            abar = ABAR[round(float(t))]
            x = scheduler.step((seen - abar**0.5 * z) / (1 - abar) ** 0.5, t, x).prev_sample
        assert (x - z).abs().max() < 2e-2, strength


def test_wrong_settings(unchecked_types):
    with pytest.raises(NeuroClipsError, match=r"strength is 1\.2; expected 0"):
        place(ddim(), 1.2)
    with pytest.raises(NeuroClipsError, match="nan"):
        place(ddim(), math.nan)
    with pytest.raises(NeuroClipsError, match="start is 'sde'; expected one of sdedit, paper, released"):
        place(ddim(), 0.5, "sde")


def test_equation_5_needs_signal_power():
    flow = FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(5)
    flow.add_noise = lambda x, noise, t: x  # not what is tested
    with pytest.raises(NeuroClipsError, match="not defined for FlowMatchEulerDiscreteScheduler"):
        place(flow, 0.5, "paper")


def test_six_frames_become_sixteen_by_two_blends_between_neighbours():
    video = torch.rand(2, 6, 3, 4, 5)
    found = at_frames(video, 16)
    assert torch.equal(found[:, ::3], video)
    torch.testing.assert_close(found[:, 1], video[:, 0] * 2 / 3 + video[:, 1] / 3)
    torch.testing.assert_close(found[:, 14], video[:, 4] / 3 + video[:, 5] * 2 / 3)


@pytest.mark.parametrize("frames", [1, 4, 7, 31])
def test_any_number_of_frames(frames):
    ramp = torch.arange(5.0).reshape(1, 5, 1).expand(2, 5, 3)
    torch.testing.assert_close(at_frames(ramp, frames)[1, :, 2], torch.linspace(0, 4, frames))
    assert torch.equal(at_frames(ramp[:, 3:4], frames), torch.full((2, frames, 3), 3.0))
