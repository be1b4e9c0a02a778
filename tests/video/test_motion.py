"""Flow of planted drifts, and pictures that move along it; judged by another optical flow than the one decoded."""

import cv2
import numpy as np
import pytest

from neuroclips import Reconstructor
from neuroclips.data.clips import Targets
from neuroclips.errors import DataError
from neuroclips.evaluation.motion import direction_agreement, optical_flow
from neuroclips.pretrained.vae import Vae
from neuroclips.video.baselines import BlurryGenerator
from neuroclips.video.guidance import Guidance
from neuroclips.video.motion import CELLS, coarse_flow, moved


def texture(rng, h, w):
    noise = rng.normal(size=(h, w, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def drifting(rng, speeds, frames=5, h=48, w=64, scale=1):
    """Clips of a texture that moves by (x, y) pixels a frame."""
    clips = []
    for dx, dy in speeds:
        wide = texture(rng, h + 60, w + 60)
        cut = [
            cv2.warpAffine(wide, np.float32([[1, 0, dx * f - 30], [0, 1, dy * f - 30]]), (w, h)) for f in range(frames)
        ]
        clips.append(np.stack([cv2.resize(c, (scale * w, scale * h)) for c in cut]).transpose(0, 3, 1, 2))
    return np.stack(clips).round().astype(np.uint8)


@pytest.mark.parametrize("scale", [1, 3])
def test_flow_finds_planted_drifts_at_any_size(scale):
    speeds = np.array([(2, 0), (-1.5, 1), (0, -2), (0, 0)], np.float32)
    flow = coarse_flow(drifting(np.random.default_rng(0), speeds, scale=scale))
    assert flow.shape == (4, 2, CELLS, CELLS)
    inner = flow[:, :, 1:-1, 1:-1].mean(axis=(2, 3)) * (64, 48)
    np.testing.assert_allclose(inner, speeds, atol=0.2)


def test_flow_keeps_places_apart():
    rng = np.random.default_rng(1)
    left, right = drifting(rng, [(2, 0), (0, 2)], w=32)
    flow = coarse_flow(np.concatenate([left, right], axis=3)[None])[0] * np.array([64, 48])[:, None, None]
    np.testing.assert_allclose(flow[:, 1:3, 0].mean(axis=1), (2, 0), atol=0.5)
    np.testing.assert_allclose(flow[:, 1:3, 3].mean(axis=1), (0, 2), atol=0.5)


def test_a_cut_does_not_outweigh_the_motion_around_it():
    rng = np.random.default_rng(2)
    clip = drifting(rng, [(2, 0)], frames=6)
    clip[0, 5] = drifting(rng, [(0, 0)])[0, 0]
    assert abs(coarse_flow(clip)[0, :, 1:-1, 1:-1].mean(axis=(1, 2)) * (64, 48)).max() < 4


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_still_picture_moves_along_the_flow(dtype):
    rng = np.random.default_rng(3)
    speeds = np.array([(2, 0), (-1, 1)], np.float32)
    picture = drifting(rng, np.zeros((2, 2)), frames=1)
    still = np.repeat(picture, 5, axis=1).astype(dtype)
    if dtype == np.float32:
        still /= 255
    flow = np.broadcast_to((speeds / (64, 48))[:, :, None, None], (2, 2, CELLS, CELLS)).astype(np.float32)
    videos = moved(still, flow, gain=1)
    assert videos.shape == still.shape
    assert videos.dtype == dtype
    np.testing.assert_array_equal(videos[:, 2], still[:, 2])  # the middle stays
    np.testing.assert_array_equal(moved(still, flow, still=1, gain=1)[:, 1], still[:, 1])
    np.testing.assert_array_equal(moved(still, flow, gain=0), still)
    inside = (slice(None),) * 3 + (slice(8, -8), slice(8, -8))
    shifted = np.roll(still[0, 0], 2 * 2, axis=-1)  # two frames after the middle
    np.testing.assert_allclose(videos[0, 4][inside[2:]], shifted[inside[2:]], atol=1e-3 if dtype == np.float32 else 1)
    found = optical_flow(videos)[..., 8:-8, 8:-8].mean(axis=(1, 3, 4))
    np.testing.assert_allclose(found, speeds, atol=0.3)
    if dtype == np.float32:
        assert videos.min() >= 0
        assert videos.max() <= 1


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_flow_is_refused():
    videos = np.zeros((2, 3, 3, 16, 24), np.uint8)
    with pytest.raises(DataError, match=r"clips have 1 frame; motion needs at least 2"):
        coarse_flow(videos[:, :1])
    with pytest.raises(DataError, match=r"\(3, 2, 4, 4\) for 2 videos"):
        moved(videos, np.zeros((3, 2, 4, 4), np.float32))


def test_the_blurry_video_moves_along_the_decoded_flow():
    rng = np.random.default_rng(4)
    vae = Vae.load("mini")
    latents = np.repeat(vae.encode(drifting(rng, [(0, 0), (0, 0)], h=64)[:, :1]), 6, axis=1)
    speeds = np.array([(1, 0), (0, -1)], np.float32) / 64
    flow = np.broadcast_to(speeds[:, :, None, None], (2, 2, CELLS, CELLS)).astype(np.float32)
    generator = BlurryGenerator(vae)
    still = generator.generate(Guidance(["a", "b"], latents=latents), seed=0)
    videos = generator.generate(Guidance(["a", "b"], latents=latents, flow=flow), seed=0)
    truth = optical_flow(moved(still, flow))
    assert direction_agreement(optical_flow(videos), truth).min() > 0.9
    assert direction_agreement(optical_flow(still), truth).max() < 0.1
    assert direction_agreement(optical_flow(videos[::-1]), truth).max() < 0.5


def test_a_reconstructor_decodes_planted_motion_and_chance_from_shuffled_scans(make_clips, tmp_path):
    """Responses are linear in where the film goes; nothing else about the film is in them."""
    rng = np.random.default_rng(5)
    train, features = make_clips()
    test, test_features = make_clips("test", seed=1)
    for clips, seen in ((train, features), (test, test_features)):
        object.__setattr__(clips, "frames", drifting(rng, np.clip(seen[:, :2], -3, 3), frames=clips.n_frames))
    n = len(train)
    targets = Targets(
        rng.normal(size=(n, 5, 16, 4, 4)).astype(np.float16), rng.normal(size=(n, 5, 8)).astype(np.float16)
    )
    fitted = Reconstructor().fit(train, targets=targets)
    fitted.save(tmp_path)
    loaded = Reconstructor.load(tmp_path)
    true = coarse_flow(test.frames)
    order = np.random.default_rng(0).permutation(len(test))
    for x, low, high in ((test.responses(), 0.7, 1), (test.responses()[order], -0.3, 0.3)):
        found = loaded.decode(x, test.ids).flow
        np.testing.assert_array_equal(found, fitted.decode(x, test.ids).flow)
        assert low < np.corrcoef(found.ravel(), true.ravel())[0, 1] < high
