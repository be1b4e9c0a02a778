"""The population and the training of shared networks, whole, at the smallest size: real films, brains and networks."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from neuroclips.artefacts import read_arrays, read_json
from neuroclips.data.clips import Targets
from neuroclips.decoders import pretrained
from neuroclips.decoders.code import Basis
from neuroclips.mini import population, train_decoders
from neuroclips.training.decoders import NeuralDecoders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """4 films of two subjects; input layers are solved on 2 of them."""
    folder = tmp_path_factory.mktemp("population")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(population, "LAYER_FILMS", 2)
        patch.setattr(population, "BASIS_FILMS", 3)
        patch.setattr(population, "P", 0.05)  # two films cannot pass a test over the whole cortex
        population.make_population(folder, films=4, subjects=[901, 902], workers=2)
    return folder


def test_films_are_drawn_alike_again_and_differ(folder, tmp_path):
    population.make_film(2, tmp_path)
    again, made, other = (read_arrays(population.film_path(f, n)) for f, n in ((tmp_path, 2), (folder, 2), (folder, 3)))
    for name, array in made.items():
        np.testing.assert_array_equal(again[name], array)
    assert (np.asarray(made["frames"]) != np.asarray(other["frames"])).mean() > 0.5


def test_volumes_end_with_their_film():
    responses = np.arange(2 * population.CLIPS * 3, dtype=np.float32).reshape(-1, 3) + 1
    found = population.volumes_of(responses)
    assert found.shape == (100, 6)
    np.testing.assert_array_equal(found[:, :3], responses)
    np.testing.assert_array_equal(found[:49, 3:], responses[1:50])
    assert not found[[49, 99], 3:].any()


def test_codes_of_films_that_the_layer_never_saw_hold_their_layout(folder):
    basis = Basis.load(folder / "basis.safetensors")
    agreement = []
    for subject in (901, 902):
        arrays = read_arrays(population.codes_path(folder, subject))
        assert len(set(arrays["film"])) == 2  # two of four
        true = basis.encode(population.read_targets(folder, [int(n) for n in arrays["film"]]))
        first = basis.n_tokens  # the strongest component of the latents: how light the picture is
        agreement.append(np.corrcoef(np.asarray(arrays["codes"])[..., first].ravel(), true[:, first])[0, 1])
    assert min(agreement) > 0.2  # 100 clips of training; no relation would give 0 +- 0.1


def test_training_writes_weights_that_decode(folder, tmp_path, monkeypatch, make_clips):
    monkeypatch.setattr(train_decoders, "HELD_OUT_FILMS", 2)
    basis = Basis.load(folder / "basis.safetensors")
    sizes = replace(pretrained.SIZES, width=basis.width, hidden=32, channels=(16, 8), prior_depth=1)
    monkeypatch.setattr(train_decoders, "SIZES", sizes)
    read = train_decoders.read_pairs  # films are few: all take part, to learn from and to choose by
    monkeypatch.setattr(train_decoders, "read_pairs", lambda f, subjects, films, on: read(f, subjects, range(4), on))
    card = train_decoders.main(folder, tmp_path, subjects=[901], held_out=902, films=4, device="cpu", scale=0.002)
    assert read_json(tmp_path / "card.json") == card
    assert set(card["training"]) == {"semantics-early", "semantics-late", "semantics", "prior", "perception"}
    assert not list(tmp_path.glob("*.pt"))
    monkeypatch.setattr("neuroclips.training.decoders._sizes", lambda tokens, latents, width: sizes)
    train, _ = make_clips("train", n_segments=3)
    rng = np.random.default_rng(0)
    targets = Targets(rng.normal(size=(39, 6, 16, 8, 8)).astype("f4"), rng.normal(size=(39, 16, 192)).astype("f4"))
    decoders = NeuralDecoders(tmp_path, prior_draws=1, device="cpu").fit(train, targets)
    found = decoders.decode(decoders.inputs(train), train.ids)
    assert all(np.isfinite(part).all() for part in vars(found).values())


def test_every_subject_has_a_brain_of_its_own(folder):
    basis = Basis.load(folder / "basis.safetensors")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(population, "LAYER_FILMS", 2)
        patch.setattr(population, "P", 0.05)
        first, second = (population.make_subject(seed, folder, 4, basis, pool) for seed in (901, 902))
    assert first.selected.sum() != second.selected.sum()
    assert not np.array_equal(first.tuning.voxel, second.tuning.voxel) or not np.allclose(
        first.tuning.colour, second.tuning.colour
    )
