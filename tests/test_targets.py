"""What frozen networks see, written once: the same from any number of processes, and after a kill."""

import numpy as np
import pytest

from neuroclips import targets
from neuroclips.artefacts import read_arrays, read_json, write_arrays, write_json
from neuroclips.data.clips import Targets
from neuroclips.pretrained.clip import Clip
from neuroclips.pretrained.vae import Vae
from neuroclips.recipe import TargetsRecipe

SIZES = {"train": 7, "validation": 3, "test": 5}


def silent(done, total, what):
    pass


@pytest.fixture
def films(tmp_path):
    rng = np.random.default_rng(3)
    for split, n in SIZES.items():
        frames = rng.integers(0, 256, (n, 4, 3, 64, 64), dtype=np.uint8)
        write_arrays(tmp_path / "films" / f"{split}.safetensors", {"frames": frames})
    return tmp_path / "films"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(targets, "CHUNK", 2)


def test_every_clip_is_seen_as_by_the_networks_themselves(films, tmp_path):
    shapes = targets.write_targets(films, tmp_path / "out", TargetsRecipe(), silent)
    vae, clip = Vae.load("mini"), Clip.load("mini")
    for split, n in SIZES.items():
        found = read_arrays(tmp_path / "out" / f"{split}.safetensors")
        frames = np.array(read_arrays(films / f"{split}.safetensors")["frames"])
        assert {name: array.shape for name, array in found.items()} == shapes[split]
        assert found["tokens"].shape[0] == n
        for k in range(n):  # one clip at a time: rows depend on their clip alone
            np.testing.assert_allclose(found["latents"][k], vae.encode(frames[k]), atol=4e-3, rtol=2e-3)
            np.testing.assert_allclose(found["tokens"][k], clip.images(frames[k, 2:3])[0][0], atol=4e-3, rtol=2e-3)
    assert not (tmp_path / "out" / "captions.json").exists()


def test_training_clips_have_candidates(films, tmp_path):
    shapes = targets.write_targets(films, tmp_path / "out", TargetsRecipe(keyframes=(1, 2, 3)), silent)
    assert shapes["train"]["candidates"] == (7, 3, 16, 192)
    assert set(shapes["test"]) == {"latents", "tokens"}
    found = Targets.of(read_arrays(tmp_path / "out" / "train.safetensors"))
    frames = np.array(read_arrays(films / "train.safetensors")["frames"])
    clip = Clip.load("mini")
    for m, frame in enumerate((1, 2, 3)):
        np.testing.assert_allclose(found.candidates[5, m], clip.images(frames[5, [frame]])[0][0], atol=4e-3, rtol=2e-3)
    np.testing.assert_array_equal(found.tokens, found.candidates[:, 1])


def test_two_processes_write_what_one_does(films, tmp_path, monkeypatch):
    monkeypatch.undo()  # processes of their own do not see the small chunks
    for n in (1, 2):
        targets.write_targets(films, tmp_path / str(n), TargetsRecipe(processes=n), silent)
    for split in SIZES:
        one, two = (read_arrays(tmp_path / str(n) / f"{split}.safetensors") for n in (1, 2))
        for name in ("latents", "tokens"):
            np.testing.assert_allclose(one[name], two[name], atol=2e-3)
            assert np.abs(np.asarray(one[name], np.float32)).max() > 0.1


def test_a_killed_one_goes_on_with_the_chunk_it_was_at(films, tmp_path):
    def killed(done, total, what):
        if done == 4:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        targets.write_targets(films, out, TargetsRecipe(), killed)
    assert not list(out.glob("[!.]*"))
    seen = []
    targets.write_targets(films, out, TargetsRecipe(), lambda done, total, what: seen.append((done, total)))
    assert seen[0] == (5, 9)  # the chunk that was finished when the kill came stands, too
    targets.write_targets(films, tmp_path / "whole", TargetsRecipe(), silent)
    for split in SIZES:
        assert (out / f"{split}.safetensors").read_bytes() == (tmp_path / "whole" / f"{split}.safetensors").read_bytes()


def test_captions_are_written_once_with_their_embeddings(films, tmp_path, monkeypatch):
    out = tmp_path / "out"
    targets.write_targets(films, out, TargetsRecipe(captions="mini"), silent)
    captions, text = read_json(out / "captions.json"), read_arrays(out / "text.safetensors")
    clip = Clip.load("mini")
    for split, n in SIZES.items():
        assert len(captions[split]) == n
        assert all(isinstance(sentence, str) and sentence for sentence in captions[split])
        np.testing.assert_allclose(np.linalg.norm(text[split], axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(text[split][-1], clip.texts(captions[split][-1:])[0], atol=1e-5)


def test_captions_that_came_with_the_data_are_used_without_asking(films, tmp_path):
    given = {split: [f"{split} number {k}" for k in range(n)] for split, n in SIZES.items()}
    write_json(films / "captions.json", given)
    targets.write_targets(films, tmp_path / "ours", TargetsRecipe(), silent)
    assert read_json(tmp_path / "ours" / "captions.json") == given
    assert read_arrays(tmp_path / "ours" / "text.safetensors")["test"].shape[0] == 5
    vectors = {split: np.full((n, 9), k + 1, np.float32) for k, (split, n) in enumerate(SIZES.items())}
    write_arrays(films / "text.safetensors", vectors)
    targets.write_targets(films, tmp_path / "theirs", TargetsRecipe(), silent)
    found = read_arrays(tmp_path / "theirs" / "text.safetensors")
    for split, array in vectors.items():
        np.testing.assert_allclose(found[split], array / 3 / (array[0, 0]), atol=1e-6)  # of unit length: 9 equal parts
