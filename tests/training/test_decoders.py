from dataclasses import replace

import numpy as np
import pytest

from neuroclips.data.clips import Targets
from neuroclips.decoders import Decoded, Decoders
from neuroclips.decoders.ridge import RidgeDecoders
from neuroclips.errors import DataError, SplitLeakError
from neuroclips.training.decoders import NeuralDecoders

MIXING = np.random.default_rng(7)
TO_TOKENS, TO_LATENTS = (MIXING.normal(size=(5, n)).astype(np.float32) for n in (4 * 16, 3 * 2 * 4 * 6))


def planted_targets(features):
    """Targets that the planted features of ``make_clips`` fix: 4 tokens of 16, 3 frames of 2 x 4 x 6."""
    n = len(features)
    return Targets((features @ TO_LATENTS).reshape(n, 3, 2, 4, 6), (features @ TO_TOKENS).reshape(n, 4, 16))


@pytest.fixture
def study(make_clips):
    parts = [make_clips("train", n_segments=5), make_clips("validation", 2, seed=1), make_clips("test", 3, seed=2)]
    return [(clips, planted_targets(features)) for clips, features in parts]


def fitted(study, **options):
    (train, targets), (validation, seen), _ = study
    decoders = NeuralDecoders(None, **{"epochs": 3, "seed": 4, "device": "cpu", "prior_draws": 2} | options)
    return decoders.fit(train, targets, validation, seen)


def top1(found, true):
    """Share of clips whose truth correlates best with what was found."""
    a, b = ((x - true.mean(axis=0)).reshape(len(x), -1) for x in (found, true))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return float(((a @ b.T).argmax(axis=1) == np.arange(len(a))).mean())


def test_all_decoders_have_one_interface():
    assert isinstance(NeuralDecoders(), Decoders)
    assert isinstance(RidgeDecoders(), Decoders)


def test_decodes_what_was_planted_and_nothing_from_shuffled_training(study):
    test, true = study[2]
    decoders = fitted(study)
    found = decoders.decode(decoders.inputs(test), test.ids)
    assert found.latents.shape == true.latents.shape
    assert found.prior_tokens.shape == true.tokens.shape
    assert top1(found.tokens, true.tokens) > 0.5  # of 39; chance is 0.03
    assert top1(found.latents, true.latents) > 0.5
    assert set(decoders.curves_) == {"semantics", "prior", "perception"}
    order = np.random.default_rng(0).permutation(len(study[0][0]))
    train, targets = study[0]
    shuffled = [(train, Targets(targets.latents[order], targets.tokens[order])), *study[1:]]
    decoders = fitted(shuffled)
    assert top1(decoders.decode(decoders.inputs(test), test.ids).tokens, true.tokens) < 0.2


def test_captions_enter_the_training_of_semantics(study):
    (train, targets), validation, (test, true) = study
    rng = np.random.default_rng(5)
    words = rng.normal(size=(16, 6))  # what a text projector would find: captions tell part of the mean token

    def text(of):
        told = of.tokens.mean(axis=1) @ words
        return (told / np.linalg.norm(told, axis=1, keepdims=True)).astype(np.float32)

    def told(decoders):
        found = decoders.decode(decoders.inputs(test), test.ids).tokens.mean(axis=1) @ words
        return float((found / np.linalg.norm(found, axis=1, keepdims=True) * text(true)).sum(axis=1).mean())

    without = fitted(study)
    captioned = fitted([(train, replace(targets, text=text(targets))), validation, (test, true)])
    assert told(captioned) != told(without)
    assert told(captioned) > 0.8
    unrelated = text(targets)[rng.permutation(len(train))]
    misled = fitted([(train, replace(targets, text=unrelated)), validation, (test, true)])
    assert told(misled) < told(captioned)


def test_predictions_depend_on_neither_batch_nor_order(study):
    test, _ = study[2]
    decoders = fitted(study, epochs=1)
    inputs = decoders.inputs(test)
    whole = decoders.decode(inputs, test.ids)
    order = np.array([30, 3, 17])
    part = decoders.decode(inputs[order], [test.ids[i] for i in order])
    for name in ("latents", "tokens", "prior_tokens"):
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[order], atol=1e-4)


def test_saved_and_loaded_decodes_the_same(study, tmp_path):
    test, _ = study[2]
    decoders = fitted(study, epochs=1)
    assert decoders.save(tmp_path)["decoders"] == "neural"
    loaded = NeuralDecoders.load(tmp_path, device="cpu")
    first, second = (d.decode(d.inputs(test), test.ids) for d in (decoders, loaded))
    for name in vars(first):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=2e-2)  # the basis is in halves


def test_a_killed_training_goes_on_to_the_same_weights(study, tmp_path):
    """Killed while the prior trains: semantics is not trained again, and the result is the same to the bit."""

    class Killed(Exception):
        pass

    def kill(done, total, what):
        if what.startswith("prior") and done == 3:
            raise Killed

    test, _ = study[2]
    whole = fitted(study)
    with pytest.raises(Killed):
        fitted(study, checkpoints=tmp_path, progress=kill)
    resumed = fitted(study, checkpoints=tmp_path)
    first, second = (d.decode(d.inputs(test), test.ids) for d in (whole, resumed))
    for name in vars(first):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.usefixtures("unchecked_types")
def test_refusals(study, make_clips):
    (train, targets), (validation, seen), (test, true) = study
    with pytest.raises(SplitLeakError):
        NeuralDecoders(None).fit(test, true)
    with pytest.raises(SplitLeakError):
        NeuralDecoders(None).fit(train, targets, test, true)
    with pytest.raises(DataError, match="needs validation clips"):
        NeuralDecoders(None).fit(train, targets)
    with pytest.raises(DataError, match=r"tokens of a clip have shape \(4, 16\); this code was made for \(16, 192\)"):
        NeuralDecoders("mini").fit(train, targets, validation, seen)
    decoders = fitted(study, epochs=1)
    with pytest.raises(DataError, match="40 columns; these decoders were fitted on 82"):
        decoders.decode(np.zeros((2, 40), np.float32), test.ids[:2])


def test_shipped_weights_fit_their_networks_and_use_the_subjects_layer(make_clips):
    """A subject whose voxels hold the code itself gets back, through the shipped networks, more than its mean."""
    train, _ = make_clips("train", n_segments=3)
    rng = np.random.default_rng(0)
    targets = Targets(
        rng.normal(size=(39, 6, 16, 8, 8)).astype(np.float32), rng.normal(size=(39, 16, 192)).astype(np.float32)
    )
    decoders = NeuralDecoders("mini", prior_draws=1, device="cpu").fit(train, targets)
    found = decoders.decode(decoders.inputs(train), train.ids)
    assert isinstance(found, Decoded)
    assert found.latents.shape == (39, 6, 16, 8, 8)
    assert all(np.isfinite(getattr(found, name)).all() for name in vars(found))
    silent = decoders.decode(np.zeros_like(decoders.inputs(train)), train.ids)
    assert silent.tokens.std(axis=0).max() < 1e-5  # without fMRI every clip gets the same answer
    assert found.tokens.std(axis=0).max() > 10 * silent.tokens.std(axis=0).max()


def test_volumes_are_found_by_segment_and_onset(make_clips):
    clips, _ = make_clips("train", n_segments=2)
    own = clips.responses()
    found = clips.windows(before=1, after=1)
    np.testing.assert_array_equal(found[:, 1], own)
    np.testing.assert_array_equal(found[:-1, 2][np.arange(25) != 12], own[1:][np.arange(25) != 12])
    assert not found[12, 2].any()  # the end of the first run
    assert not found[13, 0].any()
    order = np.random.default_rng(0).permutation(26)
    shuffled = replace(
        clips, **{n: getattr(clips, n)[order] for n in ("bold", "present", "frames", "segment", "onset", "scene")}
    )
    np.testing.assert_array_equal(shuffled.windows(before=1, after=1), found[order])
