import numpy as np
import pytest

from neuroclips import Reconstructor
from neuroclips.artefacts import stable_seed, write_arrays
from neuroclips.data.clips import Targets
from neuroclips.errors import ArtefactError, NeuroClipsError, SplitLeakError
from neuroclips.video.baselines import NearestGenerator
from neuroclips.video.guidance import Guidance


def planted_targets(features: np.ndarray) -> Targets:
    """Latents (B, 6, 16, 4, 4) and tokens (B, 5, 8) that are linear in the planted features."""
    rng = np.random.default_rng(stable_seed("targets"))
    latents = (features @ rng.normal(size=(5, 6 * 16 * 4 * 4))).reshape(-1, 6, 16, 4, 4)
    tokens = (features @ rng.normal(size=(5, 5 * 8))).reshape(-1, 5, 8)
    return Targets(latents.astype(np.float16), tokens.astype(np.float16))


@pytest.fixture
def fitted(make_clips):
    train, features = make_clips()
    return Reconstructor().fit(train, targets=planted_targets(features))


def test_guidance_agrees_with_what_was_planted(fitted, make_clips):
    test, features = make_clips("test", seed=1)
    true = planted_targets(features)
    guidance = fitted.decode(test.responses(), test.ids)
    for found, expected in ((guidance.latents, true.latents), (guidance.tokens, true.tokens)):
        assert found.shape == expected.shape
        assert np.corrcoef(found.ravel(), expected.astype(np.float32).ravel())[0, 1] > 0.85


def test_videos_do_not_depend_on_neighbours_or_order(fitted, make_clips):
    test, _ = make_clips("test", seed=1)
    order = np.random.default_rng(0).permutation(len(test))[:9]
    for generator in ("blurry", "nearest"):
        whole = fitted.reconstruct(test, generator)
        part = fitted.reconstruct(test.take(order), generator)
        assert np.abs(whole[order].astype(int) - part).max() <= 1  # rounding to 8 bits


def test_saved_and_loaded_gives_the_same_videos(fitted, make_clips, tmp_path):
    test, _ = make_clips("test", seed=1)
    fitted.save(tmp_path)
    loaded = Reconstructor.load(tmp_path)
    for generator in ("blurry", "nearest"):
        np.testing.assert_array_equal(loaded.reconstruct(test, generator), fitted.reconstruct(test, generator))


def test_clips_are_decoded_some_at_a_time(fitted, make_clips, monkeypatch):
    test, _ = make_clips("test", seed=1)
    inputs = test.responses()
    order = np.random.default_rng(0).permutation(len(test))
    whole, videos = fitted.decode(inputs, test.ids), fitted.reconstruct(test, "nearest")
    monkeypatch.setattr("neuroclips.reconstructor.CLIPS_AT_ONCE", 7)
    parts, shuffled = fitted.decode(inputs, test.ids), fitted.decode(inputs[order], test.ids)
    assert parts.prior_tokens is None
    for name in ("latents", "tokens", "flow"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-4)
        np.testing.assert_allclose(getattr(shuffled, name), getattr(whole, name)[order], atol=1e-4)
    np.testing.assert_array_equal(fitted.reconstruct(test, "nearest"), videos)
    seen = fitted.targets(test.take(np.arange(9)))
    monkeypatch.setattr("neuroclips.reconstructor.CLIPS_AT_ONCE", 100)
    for name, tokens in vars(fitted.targets(test.take(np.arange(9)))).items():
        if tokens is not None:
            np.testing.assert_allclose(getattr(seen, name), tokens, atol=2e-3)


def test_training_clips_that_lie_in_a_run_are_not_copied(make_clips, tmp_path):
    train, features = make_clips()
    test, _ = make_clips("test", seed=1)
    targets = planted_targets(features)
    run = tmp_path / "run"
    places = {"films": run / "films" / "train.safetensors", "targets": run / "targets" / "train.safetensors"}
    write_arrays(places["films"], {"frames": train.frames})
    two = np.stack([targets.tokens, 0 * targets.tokens], axis=1)  # of two frames, the first is the keyframe
    write_arrays(places["targets"], {"latents": targets.latents, "candidates": two})
    fitted = Reconstructor().fit(train, targets=targets)
    fitted.save(run / "fit" / "ridge", **places)
    assert not (run / "fit" / "ridge" / "training.safetensors").exists()
    run.rename(tmp_path / "moved")
    moved = Reconstructor.load(tmp_path / "moved" / "fit" / "ridge")
    np.testing.assert_array_equal(moved.reconstruct(test, "nearest"), fitted.reconstruct(test, "nearest"))
    np.testing.assert_array_equal(moved.training_tokens_, targets.tokens)
    (tmp_path / "moved" / "films" / "train.safetensors").unlink()
    alone = Reconstructor.load(tmp_path / "moved" / "fit" / "ridge")
    np.testing.assert_array_equal(alone.reconstruct(test, "blurry"), fitted.reconstruct(test, "blurry"))
    with pytest.raises(ArtefactError, match=r"films/train\.safetensors: not there; .* Keep the folders of a run"):
        alone.generator("nearest")


@pytest.mark.usefixtures("unchecked_types")
def test_the_test_split_cannot_be_fitted(make_clips):
    train, features = make_clips()
    test, test_features = make_clips("test")
    with pytest.raises(SplitLeakError):
        Reconstructor().fit(test, targets=planted_targets(test_features))
    with pytest.raises(SplitLeakError):
        Reconstructor().fit(train, test, planted_targets(features), planted_targets(test_features))


def test_refusals(fitted, tmp_path):
    with pytest.raises(NeuroClipsError, match="no generator 'sora'"):
        fitted.generator("sora")
    with pytest.raises(ArtefactError, match=r"reconstructor\.json"):
        Reconstructor.load(tmp_path)
    with pytest.raises(ArtefactError, match=r"no config\.json; expected 'mini' or a folder of vae weights"):
        Reconstructor(vae=tmp_path).generator("blurry")


def test_nearest_finds_the_most_correlated_training_clip():
    rng = np.random.default_rng(3)
    tokens = rng.normal(size=(11, 5, 8)) + 20 * rng.normal(size=(5, 8))  # a large part that all clips share
    frames = rng.integers(0, 256, (11, 6, 3, 8, 8), dtype=np.uint8)
    asked = tokens[[4, 0, 9]] + 0.3 * rng.normal(size=(3, 5, 8))
    centred = [a.reshape(len(a), -1) - tokens.reshape(11, -1).mean(axis=0) for a in (asked, tokens)]
    expected = np.corrcoef(*centred)[:3, 3:].argmax(axis=1)
    generator = NearestGenerator(tokens, frames)
    np.testing.assert_array_equal(generator.find(asked), expected)
    assert expected.tolist() == [4, 0, 9]
    shown = generator.generate(Guidance(["a", "b", "c"], tokens=asked.astype(np.float32)), seed=0)
    np.testing.assert_array_equal(shown, frames[[4, 0, 9]])
