"""CLIP from a folder: in its precision, and with images normalised as the folder says."""

import shutil

import numpy as np
import pytest
import torch

from neuroclips.artefacts import write_json
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.clip import CLIP_MEAN, CLIP_STD, SQUEEZED_MEAN, SQUEEZED_STD, Clip, pixels
from neuroclips.pretrained.registry import shipped

IMAGES = np.random.default_rng(5).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)


def test_squeezed_images_are_those_of_the_original_recipe():
    """MindEye2's embedder takes [0, 1] for [-1, 1]: (x + 1) / 2, then CLIP's own normalisation."""
    x = torch.from_numpy(IMAGES).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    expected = ((x + 1) / 2 - mean) / std
    found = pixels(torch.from_numpy(IMAGES), 64, SQUEEZED_MEAN, SQUEEZED_STD)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (pixels(torch.from_numpy(IMAGES), 64) - found).abs().max() > 0.5


def test_a_folder_says_how_images_are_normalised(tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(shipped("clip"), folder)
    plain, _ = Clip.load(folder).images(IMAGES)
    np.testing.assert_array_equal(plain, Clip.load("mini").images(IMAGES)[0])
    write_json(folder / "preprocessor_config.json", {"image_mean": SQUEEZED_MEAN, "image_std": SQUEEZED_STD})
    squeezed, _ = Clip.load(folder).images(IMAGES)
    half = ((IMAGES / 255 + 1) / 2 * 255).round().astype(np.uint8)  # squeezed by hand, to whole bytes
    by_hand, _ = Clip.load("mini").images(half)
    assert np.abs(squeezed - by_hand).mean() < 0.1 * np.abs(squeezed - plain).mean()


def test_halves_are_nearly_the_same(tmp_path):
    tokens, summaries = Clip.load("mini").images(IMAGES)
    halves, close = Clip.load("mini", dtype=torch.bfloat16).images(IMAGES)
    assert halves.dtype == np.float32
    assert np.corrcoef(tokens.ravel(), halves.ravel())[0, 1] > 0.999
    np.testing.assert_allclose(np.linalg.norm(close, axis=1), 1, atol=1e-5)
    assert (summaries * close).sum(axis=1).min() > 0.99


def test_a_broken_folder_is_named(tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(shipped("clip"), folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match=rf"{folder}: cannot be read as a CLIP model"):
        Clip.load(folder)
