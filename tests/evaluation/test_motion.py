import numpy as np
import pytest

from neuroclips.errors import DataError
from neuroclips.evaluation.motion import direction_agreement, motion_direction, optical_flow


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


@pytest.mark.usefixtures("unchecked_types")
def test_refusals():
    with pytest.raises(DataError, match="1 frame"):
        optical_flow(drifting((1, 0), n=1))
    with pytest.raises(DataError, match="expected equal"):
        direction_agreement(np.zeros((3, 2, 2, 5, 7), np.float32), np.zeros((3, 2, 2, 7, 5), np.float32))
