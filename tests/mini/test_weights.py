"""The shipped mini weights do what their cards say, and the code that made them still runs."""

import numpy as np
import pytest
from diffusers import AutoencoderKL
from transformers import CLIPModel

from neuroclips.artefacts import read_arrays, read_card
from neuroclips.mini import train_clip, train_vae
from neuroclips.mini.corpus import held_out_scenes
from neuroclips.mini.train_clip import caption_top1
from neuroclips.mini.train_vae import psnr
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.registry import resolve
from neuroclips.pretrained.vae import Vae

SEED = 1234  # not the cards': other scenes than their scores are from
FOLDERS = {kind: resolve("mini", kind) for kind in ("vae", "clip")}
CARDS = {kind: read_card(folder) for kind, folder in FOLDERS.items()}


@pytest.fixture(scope="module")
def vae():
    return Vae.load("mini")


@pytest.fixture(scope="module")
def clip():
    return Clip.load("mini")


@pytest.fixture(scope="module")
def scenes():
    assert SEED not in {card["seed"] for card in CARDS.values()}
    return held_out_scenes(200, size=64, seed=SEED)


def projector():
    return np.asarray(read_arrays(FOLDERS["clip"] / "projector.safetensors")["weight"], np.float32)


def test_all_weights_together_are_small_enough_to_ship():
    assert sum(p.stat().st_size for folder in FOLDERS.values() for p in folder.iterdir()) <= 40e6


def test_real_classes_with_the_parameters_on_the_cards(vae, clip):
    assert isinstance(vae.model, AutoencoderKL)
    assert isinstance(clip.model, CLIPModel)
    assert sum(p.numel() for p in vae.model.parameters()) == CARDS["vae"]["parameters"]
    assert sum(p.numel() for p in clip.model.parameters()) + projector().size == CARDS["clip"]["parameters"]


def test_round_trips_are_as_good_as_the_card_says(vae, scenes):
    found, said = psnr(vae, scenes[0]), CARDS["vae"]["scores"]["psnr_held_out_scenes"]
    assert found >= 26 - 0.3
    assert found == pytest.approx(said, abs=0.3)


def test_scaled_latents_have_unit_variance(vae, scenes):
    latents = vae.encode(scenes[0])
    assert latents.shape == (200, 16, 8, 8)
    assert latents.std() == pytest.approx(1, abs=0.1)


def test_captions_are_found_from_summaries_and_from_tokens(clip, scenes):
    images, captions = scenes
    found = caption_top1(clip, projector(), images, captions)
    shuffled = caption_top1(clip, projector(), images, [*captions[37:], *captions[:37]])
    for part in ("summary", "tokens"):
        assert found[part] >= 0.5
        said = CARDS["clip"]["scores"][f"caption_top1_of_100_held_out_scenes_from_{part}"]
        assert found[part] == pytest.approx(said, abs=0.05)
        assert shuffled[part] <= 0.04  # chance is 0.01


def test_results_do_not_depend_on_the_batch(vae, clip, scenes):
    images, captions = scenes[0][:7], scenes[1][:7]
    order = [5, 0, 3]
    latents = vae.encode(images)
    np.testing.assert_allclose(vae.encode(images[order]), latents[order], atol=1e-4)
    assert np.abs(vae.decode(latents)[order].astype(int) - vae.decode(latents[order])).max() <= 1  # rounding
    for whole, part in zip(clip.images(images), clip.images(images[order])):
        np.testing.assert_allclose(part, whole[order], atol=1e-4)
    chosen = [captions[i] for i in order]
    np.testing.assert_allclose(clip.texts(chosen), clip.texts(captions)[order], atol=1e-5)


def test_a_small_batch_size_gives_the_same(vae, clip, scenes):
    images = scenes[0][:7]
    np.testing.assert_allclose(Vae(vae.model, batch=3).encode(images), vae.encode(images), atol=1e-4)
    small = Clip(clip.model, clip.tokenizer, batch=3).images(images)
    for one, other in zip(small, clip.images(images)):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.usefixtures("unchecked_types")  # the loop's curve counts steps in int where its annotation says float
@pytest.mark.parametrize("kind", ["vae", "clip"])
def test_training_runs_resumes_and_writes_what_loads(kind, tmp_path, monkeypatch, capsys, scenes):
    """Cut after two steps, before anything is written; the same call goes on to the third."""
    module = {"vae": train_vae, "clip": train_clip}[kind]
    n = {"vae": 3, "clip": 100}[kind]

    def cut(*_, **how):
        raise KeyboardInterrupt

    only_vae = {"movies": None} if kind == "vae" else {}

    def train(steps: int) -> dict:
        return module.main(
            tmp_path / kind, steps=steps, minutes=60.0, scenes=2, workers=0, seed=5, device="cpu", **only_vae
        )

    monkeypatch.setattr(module, "held_out_scenes", cut)
    with pytest.raises(KeyboardInterrupt):
        train(2)
    assert "resuming" not in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [f"{kind}.checkpoint.pt"]
    # Fewer scenes than usual, and the same for both scores: rendering them takes a while.
    monkeypatch.setattr(module, "held_out_scenes", lambda _, **how: (scenes[0][:n], scenes[1][:n]))
    card = train(3)
    assert f"resuming {kind}.checkpoint.pt at step 2" in " ".join(capsys.readouterr().err.split())
    assert [p.name for p in tmp_path.iterdir()] == [kind]  # the checkpoint is cleared
    assert card["parameters"] == CARDS[kind]["parameters"]
    assert set(card["scores"]) <= set(CARDS[kind]["scores"])
    assert all(np.isfinite(value) for value in card["scores"].values())
    assert read_card(tmp_path / kind) == card
    loaded = (Vae if kind == "vae" else Clip).load(tmp_path / kind)
    pictures = np.zeros((2, 3, 64, 64), np.uint8)
    if isinstance(loaded, Vae):
        assert loaded.decode(loaded.encode(pictures)).shape == pictures.shape
    else:
        assert loaded.images(pictures)[0].shape == (2, 16, 192)
        assert loaded.texts(["a dog runs to the left"]).shape == (1, 128)
