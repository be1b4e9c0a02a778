import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from neuroclips.errors import DataError
from neuroclips.evaluation.pixels import pixel_correlation, psnr, ssim, ssim_by_columns


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


def pictures(kind, rng, shape=(2, 3, 3, 61, 80)):
    """Videos in [0, 1] that try a sum of squares: noise, flat frames, nearly flat bright ones, and 1/f spectra."""
    if kind == "random":
        return rng.random(shape, np.float32)
    if kind == "flat":
        return np.broadcast_to(rng.random((*shape[:3], 1, 1), np.float32), shape).copy()
    if kind == "bright":
        return (0.99 + 0.01 * rng.random(shape)).astype(np.float32)
    frequency = np.hypot(np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1]))
    spectrum = np.fft.rfft2(rng.normal(size=shape)) / np.maximum(frequency, 1 / shape[-1])
    image = np.fft.irfft2(spectrum, s=shape[-2:])
    low, high = (f(axis=(-2, -1), keepdims=True) for f in (image.min, image.max))
    return ((image - low) / (high - low)).astype(np.float32)


@pytest.mark.parametrize("kind", ["random", "flat", "bright", "natural"])
def test_ssim_agrees_with_scikit_image_on_all_kinds_of_pictures(kind):
    rng = np.random.default_rng(8)
    predicted, truth = pictures(kind, rng), pictures(kind, rng)
    expected = [
        np.mean([structural_similarity(x, y, channel_axis=0, data_range=1.0) for x, y in zip(xs, ys)])
        for xs, ys in zip(predicted.astype(np.float64), truth.astype(np.float64))
    ]
    np.testing.assert_allclose(ssim(predicted, truth), expected, atol=1e-5)
    np.testing.assert_allclose(ssim(truth, truth), 1, atol=1e-6)


def test_frozen_frames_and_other_clips():
    truth = pictures("natural", np.random.default_rng(9), (9, 4, 3, 30, 40))
    frozen, other = np.repeat(truth[:, :1], 4, axis=1), np.roll(truth, 1, axis=0)
    for metric, best in ((ssim, 1), (pixel_correlation, 1), (psnr, 10 * np.log10(12 * 255**2))):
        alone = np.mean([metric(frozen[:, k : k + 1], truth[:, k : k + 1]) for k in range(1, 4)], axis=0)
        np.testing.assert_allclose(metric(frozen, truth), (best + 3 * alone) / 4, rtol=1e-5)  # right in one of four
        assert (metric(other, truth) < metric(frozen, truth)).all()
    assert abs(pixel_correlation(other, truth).mean()) < 0.1


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


def test_ssim_by_columns_agrees_with_scikit_image(pair):
    def reference(x, y):
        x, y = (np.einsum("chw,c->hw", side, [0.299, 0.587, 0.114]) for side in (x, y))
        return structural_similarity(x, y, channel_axis=-1, data_range=1.0)

    np.testing.assert_allclose(ssim_by_columns(*pair), per_frame(reference, *pair), atol=1e-5)
