import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from neuroclips.data.clips import Targets
from neuroclips.decoders.code import Basis, InputLayer, read_rounded, solve_input_layer, write_rounded
from neuroclips.decoders.pretrained import Sizes, attach, build_perception, build_semantics
from neuroclips.errors import DataError

SIZES = Sizes(tokens=(5, 16), latents=(3, 4, 6, 8), width=12, hidden=9, grid=3, channels=(8, 6), dropout=0.0)


def planted(n=40, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 7)).astype(np.float32)
    tokens = hidden @ rng.normal(size=(7, 80)).astype(np.float32) + 2
    latents = hidden @ rng.normal(size=(7, 3 * 4 * 6 * 8)).astype(np.float32) - 1
    return Targets(latents.reshape(n, 3, 4, 6, 8), tokens.reshape(n, 5, 16))


def test_codes_are_scikit_learns_components_at_unit_variance():
    targets = planted()
    basis = Basis.fit(targets, 5, 7)
    code = basis.encode(targets)
    theirs = PCA(5).fit_transform(targets.tokens.reshape(40, -1))
    theirs /= theirs.std(axis=0)
    assert code.shape == (40, 12)
    np.testing.assert_allclose(np.abs((code[:, :5] * theirs).mean(axis=0)), 1, atol=1e-3)
    np.testing.assert_allclose(code.std(axis=0), 1, atol=1e-3)


def test_rounded_arrays_come_back_within_half_a_step_of_their_row(tmp_path):
    rng = np.random.default_rng(3)
    large = (rng.normal(size=(150, 120)) * np.geomspace(1e-4, 10, 150)[:, None]).astype(np.float32)
    large[7] = 0
    arrays = {"large": large, "small": rng.normal(size=(9, 5)).astype(np.float16), "bias": np.float32([1e-6, 2])}
    write_rounded(tmp_path / "rounded.safetensors", arrays)
    found = read_rounded(tmp_path / "rounded.safetensors")
    assert set(found) == set(arrays)
    assert all(array.dtype == np.float32 for array in found.values())
    assert (np.abs(found["large"] - large).max(axis=1) <= np.abs(large).max(axis=1) / 253).all()
    np.testing.assert_array_equal(found["small"], arrays["small"])
    np.testing.assert_array_equal(found["bias"], arrays["bias"])
    assert (tmp_path / "rounded.safetensors").stat().st_size < 1.1 * large.size + 2000


def test_saved_basis_is_the_same_to_half_precision(tmp_path):
    targets = planted()
    basis = Basis.fit(targets, 5, 7)
    basis.save(tmp_path / "basis.safetensors")
    np.testing.assert_allclose(
        Basis.load(tmp_path / "basis.safetensors").encode(targets), basis.encode(targets), atol=0.02
    )


@pytest.mark.usefixtures("unchecked_types")
def test_targets_of_another_shape_are_refused():
    targets = planted()
    basis = Basis.fit(targets, 5, 7)
    with pytest.raises(DataError, match=r"latents of a clip have shape \(2, 4, 6, 8\).*made for \(3, 4, 6, 8\)"):
        basis.encode(Targets(targets.latents[:, :2], targets.tokens))


def test_input_layer_is_ridge_and_held_out_codes_come_from_other_runs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 33)).astype(np.float32)
    code = (x @ rng.normal(size=(33, 4)) + 2 * rng.normal(size=(60, 4))).astype(np.float32)
    runs = np.repeat(np.arange(4), 15)
    layer = solve_input_layer(x, code, runs, alphas=[0.3], held_out=True)
    theirs = Ridge(0.3 * 33).fit(x, code)
    np.testing.assert_allclose(layer(x), theirs.predict(x), atol=1e-3)
    # A code that only one run has cannot be learnt from the others: held out it is nothing, in sample it is fitted.
    odd = np.where(runs == 2, rng.normal(size=60), 0)[:, None].astype(np.float32)
    layer = solve_input_layer(x, odd, runs, alphas=[0.01], held_out=True)
    here = runs == 2
    assert np.corrcoef(layer(x)[here, 0], odd[here, 0])[0, 1] > 0.8
    assert np.abs(layer.held_out[here]).max() < 1e-5


def test_networks_start_as_the_basis_own_way_back():
    """With an input layer in, an untrained network predicts what the code says of tokens and latents."""
    targets = planted()
    basis = Basis.fit(targets, 5, 7)
    x = np.random.default_rng(2).normal(size=(4, 11)).astype(np.float32)
    layer = InputLayer(np.random.default_rng(3).normal(size=(11, 12)).astype(np.float32), np.ones(12, np.float32))
    code = layer(x) * basis.scale
    with torch.no_grad():
        semantics = attach(build_semantics(SIZES, basis, 11), layer).eval()(torch.from_numpy(x)).tokens.numpy()
        perception = attach(build_perception(SIZES, basis, 11), layer).eval()(torch.from_numpy(x)).latents.numpy()
    tokens = (code[:, :5] @ basis.tokens_axes).reshape(4, 5, 16) + basis.tokens_mean
    latents = (code[:, 5:] @ basis.latents_axes).reshape(4, 3, 4, 6, 8) + basis.latents_mean
    assert np.corrcoef(semantics.ravel(), tokens.ravel())[0, 1] > 0.95  # small residual blocks and projector on top
    np.testing.assert_allclose(perception, latents, atol=0.1 * latents.std())
