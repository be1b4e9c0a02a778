from itertools import permutations

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from neuroclips.errors import DataError
from neuroclips.evaluation.motion import (
    direction_agreement,
    end_point_error,
    frame_shuffled,
    frame_similarity,
    frame_similarity_difference,
    optical_flow,
)


def motion_direction(predicted, truth):
    return direction_agreement(optical_flow(predicted), optical_flow(truth))


def flow_error(predicted, truth):
    return end_point_error(optical_flow(predicted), optical_flow(truth))


def drifting(step, n=4, clips=3, seed=0):
    """Smooth random pictures (32 x 48) that move by ``step`` = (x, y) pixels a frame, everywhere alike."""
    rng = np.random.default_rng(seed)
    small = rng.random((clips, 3, 8, 12))
    big = np.kron(small, np.ones((1, 1, 8, 8)))
    for axis in (2, 3):
        big = sum(np.roll(big, k, axis) for k in range(-3, 4)) / 7
    frames = [np.roll(big, (k * step[1], k * step[0]), (2, 3))[..., :32, :48] for k in range(n)]
    return (255 * np.stack(frames, axis=1)).astype(np.uint8)


def test_flow_of_a_drifting_picture_is_its_drift():
    flow = optical_flow(drifting((2, -1)))
    assert flow.shape == (3, 3, 2, 32, 48)
    np.testing.assert_allclose(np.median(flow, axis=(0, 1, 3, 4)), (2, -1), atol=0.3)


def test_directions():
    right, left, down = (drifting(step) for step in ((2, 0), (-2, 0), (0, 2)))
    np.testing.assert_allclose(motion_direction(right, right), 1, atol=1e-4)
    assert (motion_direction(left, right) < -0.8).all()
    assert (np.abs(motion_direction(down, right)) < 0.4).all()
    frozen = np.repeat(right[:, :1], 4, axis=1)
    assert not motion_direction(frozen, right).any()  # a frozen prediction has no direction,
    assert not motion_direction(right, frozen).any()  # and a frozen truth asks for none


def test_agreement_is_the_mean_cosine_of_angles():
    rng = np.random.default_rng(1)
    truth, found = (rng.normal(size=(3, 2, 2, 5, 7)).astype(np.float32) for _ in range(2))
    expected = np.zeros(3)
    for clip in range(3):
        cosines = []
        for frame in range(2):
            for y in range(5):
                for x in range(7):
                    t, f = truth[clip, frame, :, y, x], found[clip, frame, :, y, x]
                    if np.hypot(*t) > 0.5 * 7 / 64:
                        moves = np.hypot(*f) > 0.05 * 7 / 64
                        cosines.append(t @ f / np.hypot(*t) / np.hypot(*f) if moves else 0)
        expected[clip] = np.mean(cosines)
    np.testing.assert_allclose(direction_agreement(found, truth), expected, atol=1e-5)


def test_end_point_error_is_the_mean_length_of_the_difference():
    rng = np.random.default_rng(2)
    truth, found = (rng.normal(size=(3, 4, 2, 5, 7)).astype(np.float32) for _ in range(2))
    expected = np.hypot(*np.moveaxis(truth - found, 2, 0)).mean(axis=(1, 2, 3)) * 64 / 7
    np.testing.assert_allclose(end_point_error(found, truth), expected, rtol=1e-5)


def test_flow_error_of_known_drifts():
    right, left = drifting((2, 0)), drifting((-2, 0))
    speed = 2 * 64 / 48  # pixels at 64 a side
    assert not flow_error(right, right).any()
    frozen = np.repeat(right[:, :1], 4, axis=1)
    np.testing.assert_allclose(flow_error(frozen, right), speed, rtol=0.1)
    np.testing.assert_allclose(flow_error(right, frozen), speed, rtol=0.1)
    np.testing.assert_allclose(flow_error(left, right), 2 * speed, rtol=0.15)


def test_large_frames_are_reduced_and_score_alike():
    def enlarged(videos):
        frames = videos.reshape(-1, 3, 32, 48).transpose(0, 2, 3, 1)
        large = np.stack([cv2.resize(f, (288, 192), interpolation=cv2.INTER_CUBIC) for f in frames])
        return large.transpose(0, 3, 1, 2).reshape(3, -1, 3, 192, 288)

    right, left, up = (drifting(step) for step in ((2, 0), (-2, 0), (0, -2)))
    flow = optical_flow(enlarged(right))
    assert flow.shape == (3, 3, 2, 43, 64)
    np.testing.assert_allclose(np.median(flow, axis=(0, 1, 3, 4)), (2 * 64 / 48, 0), atol=0.3)
    assert (motion_direction(enlarged(left), enlarged(right)) < -0.8).all()
    np.testing.assert_allclose(flow_error(enlarged(up), enlarged(right)), flow_error(up, right), rtol=0.15)


def test_shuffled_frames_have_no_direction_but_show_the_same():
    rng = np.random.default_rng(4)
    videos = drifting((2, 0), n=6, clips=25)
    shuffled = frame_shuffled(videos, rng)
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), np.sort(videos, axis=1))
    assert (shuffled != videos).any(axis=(1, 2, 3, 4)).all()
    directions = motion_direction(shuffled, videos)
    assert abs(directions.mean()) < 4 * directions.std() / 5
    assert abs(directions.mean()) < 0.3
    assert (flow_error(shuffled, videos) > 1).all()
    np.testing.assert_array_equal(frame_shuffled(videos[:, :2], rng), videos[:, 1::-1])


def test_every_other_order_is_equally_likely():
    videos = np.tile(np.arange(4, dtype=np.uint8)[None, :, None, None, None], (2300, 1, 3, 1, 2))
    orders = frame_shuffled(videos, np.random.default_rng(0))[:, :, 0, 0, 0].tolist()
    counts = [orders.count(list(order)) for order in permutations(range(4))]
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > 0.001


def test_frame_similarity_agrees_with_torch_and_is_won_by_a_frozen_frame():
    features = np.random.default_rng(6).normal(size=(3, 6, 11)).astype(np.float32) + 0.5
    tensor = torch.from_numpy(features)
    expected = torch.cosine_similarity(tensor[:, 1:], tensor[:, :-1], dim=2).mean(dim=1).numpy()
    np.testing.assert_allclose(frame_similarity(features), expected, rtol=1e-5)
    frozen = np.repeat(features[:, :1], 6, axis=1)
    np.testing.assert_allclose(frame_similarity(frozen), 1, rtol=1e-6)
    np.testing.assert_allclose(frame_similarity_difference(frozen, features), 1 - expected, rtol=1e-5)
    np.testing.assert_allclose(frame_similarity_difference(features, frozen), 1 - expected, rtol=1e-5)
    assert not frame_similarity_difference(features, features).any()
    assert not frame_similarity(0 * features).any()
    shuffled = frame_shuffled(features, np.random.default_rng(1))
    assert (frame_similarity_difference(shuffled, features) > 1e-3).all()


@pytest.mark.usefixtures("unchecked_types")
def test_refusals():
    with pytest.raises(DataError, match="1 frame"):
        optical_flow(drifting((1, 0), n=1))
    with pytest.raises(DataError, match="expected equal"):
        direction_agreement(np.zeros((3, 2, 2, 5, 7), np.float32), np.zeros((3, 2, 2, 7, 5), np.float32))
    with pytest.raises(DataError, match="expected equal"):
        end_point_error(np.zeros((3, 2, 2, 5, 7), np.float32), np.zeros((2, 2, 2, 5, 7), np.float32))
    with pytest.raises(DataError, match="1 frame"):
        frame_shuffled(drifting((1, 0), n=1), np.random.default_rng(0))
    features = np.ones((3, 6, 11), np.float32)
    with pytest.raises(DataError, match="1 frame"):
        frame_similarity(features[:, :1])
    with pytest.raises(DataError, match="not finite"):
        frame_similarity(features * np.float32(np.nan))
    with pytest.raises(DataError, match="expected equal"):
        frame_similarity_difference(features, features[:, :4])
