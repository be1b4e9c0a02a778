import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from neuroclips.errors import DataError
from neuroclips.evaluation.pixels import pixel_correlation, psnr, ssim


@pytest.fixture
def pair():
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 256, size=(19, 2, 3, 12, 17), dtype=np.uint8)  # more clips than are taken at once
    noise = rng.integers(-60, 60, size=truth.shape)
    return np.clip(truth + noise, 0, 255).astype(np.uint8), truth


def per_frame(metric, predicted, truth):
    return [np.mean([metric(p / 255, t / 255) for p, t in zip(ps, ts)]) for ps, ts in zip(predicted, truth)]


def test_ssim_agrees_with_scikit_image(pair):
    def reference(x, y):
        return structural_similarity(x, y, channel_axis=0, data_range=1.0)

    np.testing.assert_allclose(ssim(*pair), per_frame(reference, *pair), atol=2e-6)


def test_psnr_agrees_with_scikit_image(pair):
    def reference(x, y):
        return peak_signal_noise_ratio(y, x, data_range=1.0)

    np.testing.assert_allclose(psnr(*pair), per_frame(reference, *pair), rtol=1e-5)


def test_pixel_correlation_agrees_with_numpy(pair):
    def reference(x, y):
        return np.corrcoef(x.ravel(), y.ravel())[0, 1]

    np.testing.assert_allclose(pixel_correlation(*pair), per_frame(reference, *pair), atol=1e-6)


def test_perfect_and_constant_predictions(pair):
    _, truth = pair
    np.testing.assert_allclose(ssim(truth, truth), 1, atol=1e-6)
    np.testing.assert_allclose(pixel_correlation(truth, truth), 1, atol=1e-6)
    np.testing.assert_allclose(psnr(truth, truth), 10 * np.log10(12 * 255**2), rtol=1e-6)
    assert not pixel_correlation(np.full(truth.shape, 0.3, np.float32), truth).any()


def test_uint8_and_unit_float_score_the_same(pair):
    predicted, truth = pair
    for metric in (ssim, psnr, pixel_correlation):
        np.testing.assert_allclose(metric(predicted / np.float32(255), truth), metric(predicted, truth), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, 2.0, -1.0])
def test_other_ranges_are_refused(pair, value):
    _, truth = pair
    with pytest.raises(DataError, match=r"expected finite values in \[0, 1\]"):
        psnr(np.full(truth.shape, value, np.float32), truth)


@pytest.mark.usefixtures("unchecked_types")
def test_small_frames_and_unequal_shapes_are_refused(pair):
    predicted, truth = pair
    with pytest.raises(DataError, match="at least 7 x 7"):
        ssim(predicted[..., :5, :5], truth[..., :5, :5])
    with pytest.raises(DataError, match="expected equal"):
        psnr(predicted[:, :1], truth)
