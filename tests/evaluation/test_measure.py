import numpy as np
import pytest

from neuroclips.errors import DataError
from neuroclips.evaluation.measure import measure_videos
from neuroclips.evaluation.motion import direction_agreement, end_point_error, optical_flow
from neuroclips.evaluation.pixels import pixel_correlation, psnr, ssim, ssim_by_columns

B, F, H, W = 11, 4, 24, 32
DIRECT = {
    "pixel correlation": pixel_correlation,
    "SSIM": ssim,
    "PSNR": psnr,
    "SSIM by columns": ssim_by_columns,
    "motion direction": lambda x, y: direction_agreement(optical_flow(x), optical_flow(y)),
    "motion error": lambda x, y: end_point_error(optical_flow(x), optical_flow(y)),
}


class Lazy:
    """Videos that are read when they are indexed, and count what was read."""

    def __init__(self, array):
        self.array, self.shape, self.most = array, array.shape, 0

    def __getitem__(self, index):
        part = self.array[index]
        self.most = max(self.most, len(part))
        return part


@pytest.fixture
def moving():
    """Blobs that move, each clip in its own direction, and a prediction that is near."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(H), np.arange(W), indexing="ij"))
    start, step = rng.uniform(6, 16, (B, 1, 2)), rng.uniform(-2, 2, (B, 1, 2))
    place = start + step * np.arange(F)[:, None]
    distance = np.square(grid - place[..., None, None]).sum(axis=2)  # (B, F, H, W)
    colour = rng.uniform(0.3, 1, (B, 1, 3, 1, 1))
    film = np.exp(-distance / 18)[:, :, None] * colour + 0.1 * rng.random((B, 1, 3, H, W))
    truth = (np.clip(film, 0, 1) * 255).astype(np.uint8)
    near = np.clip(truth + rng.normal(0, 8, truth.shape), 0, 255).astype(np.uint8)
    return truth, near


def test_equals_each_metric_by_itself(moving):
    truth, near = moving
    found = measure_videos({"near": near}, truth, legacy=True)["near"]
    assert set(found.values) == set(DIRECT)
    for name, metric in DIRECT.items():
        np.testing.assert_allclose(found.values[name], metric(near, truth), rtol=1e-5, atol=1e-6, err_msg=name)


def test_truth_is_perfect_and_frozen_frames_do_not_move(moving):
    truth, _ = moving
    frozen = np.repeat(truth[:, :1], F, axis=1)
    found = measure_videos({"truth": truth, "frozen": frozen}, truth)
    assert found["truth"].values["SSIM"] == pytest.approx(np.ones(B), abs=1e-6)
    assert found["truth"].values["motion error"] == pytest.approx(np.zeros(B))
    assert found["truth"].values["motion direction"].max() == pytest.approx(1)
    assert np.abs(found["frozen"].values["motion direction"]).max() < 0.05
    assert (found["frozen"].values["motion error"] > found["truth"].values["motion error"]).all()


def test_other_orders_of_the_frames_lose_motion_only(moving):
    truth, _ = moving
    found = measure_videos({"truth": truth}, truth, frames_shuffled=["truth"])["truth"]
    assert set(found.frames_shuffled) == {"motion direction", "motion error"}
    judged = found.values["motion direction"] > 0  # clips that move
    assert judged.sum() > 5
    assert found.frames_shuffled["motion direction"][judged].mean() < 0.5
    assert (found.frames_shuffled["motion error"][judged] > 0).all()


def test_sources_are_read_a_few_clips_at_a_time_and_batches_do_not_matter(moving):
    truth, near = moving
    lazy = Lazy(near)
    small = measure_videos({"near": lazy}, Lazy(truth), frames_shuffled=["near"], batch=3, seed=5)["near"]
    assert lazy.most == 3
    whole = measure_videos({"near": near}, truth, frames_shuffled=["near"], batch=64, seed=5)["near"]
    for name in whole.values:
        np.testing.assert_allclose(small.values[name], whole.values[name], atol=1e-6)
    for name in whole.frames_shuffled:
        np.testing.assert_allclose(small.frames_shuffled[name], whole.frames_shuffled[name], atol=1e-6)


def test_a_list_is_kept_apart_for_pooling(moving):
    truth, near = moving
    found = measure_videos({"both": [near, truth]}, truth)["both"]
    assert found.values["SSIM"].shape == (2, B)
    assert (found.values["SSIM"][1] > found.values["SSIM"][0]).all()


def test_progress_reaches_the_end_and_one_frame_has_no_motion(moving):
    truth, near = moving
    seen = []
    found = measure_videos(
        {"near": near[:, :1]}, truth[:, :1], batch=4, progress=lambda done, n: seen.append((done, n))
    )
    assert seen == [(4, B), (8, B), (B, B)]
    assert set(found["near"].values) == {"pixel correlation", "SSIM", "PSNR"}


def test_another_shape_is_refused_by_name(moving):
    truth, near = moving
    with pytest.raises(DataError, match="'mine' have shape"):
        measure_videos({"mine": near[:, :3]}, truth)


def test_an_error_while_reading_is_the_users(moving):
    truth, near = moving

    class Broken(Lazy):
        def __getitem__(self, index):
            raise DataError("clip7.mp4: cannot be decoded")

    with pytest.raises(DataError, match=r"clip7\.mp4"):
        measure_videos({"mine": Broken(near)}, truth)
