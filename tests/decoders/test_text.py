"""The text projector against a planted matrix, scikit-learn's ridge and the shipped file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import neuroclips.mini
from neuroclips.artefacts import write_arrays
from neuroclips.decoders.losses import info_nce
from neuroclips.decoders.text import TextProjector, fit_text_projector
from neuroclips.errors import ArtefactError, DataError

N, HELD, K, D, P = 400, 100, 3, 24, 16


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def planted(seed=0, noise=0.1):
    """Tokens (N + HELD, K, D), unit texts (N + HELD, P) of their mean, and the matrix between."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((P, D)).astype(np.float32)
    scale = np.logspace(0, -1, D, dtype=np.float32)  # of features: no direction is like another
    tokens = rng.standard_normal((N + HELD, K, D), np.float32) * scale
    text = tokens.mean(axis=1) @ matrix.T
    text += noise * text.std() * rng.standard_normal(text.shape, np.float32)
    return tokens, text / np.linalg.norm(text, axis=1, keepdims=True), matrix


def top1(projector, tokens, text):
    with torch.no_grad():
        predicted = torch.nn.functional.normalize(projector(torch.from_numpy(tokens)), dim=1)
    return (predicted @ torch.from_numpy(text).T).argmax(1).eq(torch.arange(len(text))).float().mean().item()


def loss(projector, tokens, text):
    with torch.no_grad():
        return info_nce(projector(torch.from_numpy(tokens)), torch.from_numpy(text)).item()


def test_paper_size():
    with torch.device("meta"):
        projector = TextProjector()
    assert sum(p.numel() for p in projector.parameters()) == 2_129_920


def test_projection_is_a_matrix_times_the_mean_token():
    tokens, _, matrix = planted()
    projector = TextProjector(D, P)
    projector.load_state_dict({"weight": torch.from_numpy(matrix)})
    expected = np.stack([matrix @ sum(clip) / K for clip in tokens])
    np.testing.assert_allclose(projector(torch.from_numpy(tokens)).detach().numpy(), expected, atol=1e-5)


def test_a_planted_matrix_is_found_and_shuffled_pairs_give_chance():
    tokens, text, matrix = planted()
    projector = fit_text_projector(tokens[:N], text[:N])
    assert top1(projector, tokens[N:], text[N:]) > 0.95
    with torch.no_grad():
        found = torch.nn.functional.normalize(projector(torch.from_numpy(tokens[N:])), dim=1)
    true = tokens[N:].mean(axis=1) @ matrix.T
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    assert (found.numpy() * true).sum(axis=1).mean() > 0.9  # the loss sees no length, and spreads directions apart
    shuffled = fit_text_projector(tokens[:N], np.roll(text[:N], 7, axis=0))
    assert top1(shuffled, tokens[N:], text[N:]) < 0.06  # chance is 0.01


def test_it_starts_at_ridge_and_gets_better_at_its_loss():
    tokens, text, _ = planted(noise=0.5)
    start = fit_text_projector(tokens[:N], text[:N], alpha=0.1, steps=0)
    mean = tokens[:N].mean(axis=1)
    alpha = 0.1 * np.square(mean).sum(axis=0).mean()
    ridge = Ridge(alpha, fit_intercept=False).fit(mean, text[:N])
    np.testing.assert_allclose(start.weight.detach().numpy(), ridge.coef_, atol=1e-5)
    fitted = fit_text_projector(tokens[:N], text[:N], alpha=0.1)
    assert loss(fitted, tokens[N:], text[N:]) < loss(start, tokens[N:], text[N:])


def test_the_seed_decides_and_torch_and_numpy_are_alike():
    tokens, text, _ = planted()
    options = dict(steps=20, batch=64)
    first = fit_text_projector(tokens, text, **options).weight
    torch.manual_seed(1)
    assert torch.equal(fit_text_projector(tokens, text, **options).weight, first)
    other = fit_text_projector(tokens, text, **options, seed=1).weight
    assert not torch.equal(other, first)
    as_torch = fit_text_projector(torch.from_numpy(tokens), torch.from_numpy(text), **options).weight
    torch.testing.assert_close(as_torch, first, atol=1e-4, rtol=1e-3)


def test_files(tmp_path):
    shipped = Path(neuroclips.mini.__file__).parent / "weights" / "clip" / "projector.safetensors"
    projector = TextProjector.from_file(shipped)
    assert projector(torch.randn(2, 5, 192)).shape == (2, 128)
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_arrays(tmp_path / "own.safetensors", {"weight": weight})
    np.testing.assert_array_equal(TextProjector.from_file(tmp_path / "own.safetensors").weight.detach(), weight)
    write_arrays(tmp_path / "other.safetensors", {"proj": weight})
    with pytest.raises(ArtefactError, match=r"holds proj \(2, 3\); a text projector is one array `weight`"):
        TextProjector.from_file(tmp_path / "other.safetensors")


@pytest.mark.usefixtures("unchecked_types")
def test_pairs_are_needed():
    with pytest.raises(DataError, match="tokens of 5 images and 4 texts"):
        fit_text_projector(np.zeros((5, K, D), np.float32), np.zeros((4, P), np.float32))
