from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from neuroclips.data.clips import Targets
from neuroclips.decoders import Decoders
from neuroclips.errors import ArtefactError, DataError, SplitLeakError
from neuroclips.recipe import NetworksRecipe
from neuroclips.training.end_to_end import (
    EndToEndDecoders,
    build_networks,
    load_initial,
    single_trials,
)
from neuroclips.training.switches import switches

MIXING = np.random.default_rng(7)
TO_TOKENS, TO_LATENTS = (MIXING.normal(size=(5, n)).astype(np.float32) for n in (4 * 16, 3 * 2 * 4 * 8))
TINY = dict(width=48, hidden=32, channels=(16, 8), prior_depth=1, prior_heads=2, prior_head_width=34)


def planted_targets(features, noise=0.0):
    """Targets that the planted features of ``make_clips`` fix: 4 tokens of 16, 3 frames of 2 x 4 x 8."""
    n = len(features)
    tokens = (features @ TO_TOKENS).reshape(n, 4, 16)
    return Targets((features @ TO_LATENTS).reshape(n, 3, 2, 4, 8), tokens + noise)


@pytest.fixture
def study(make_clips):
    parts = [make_clips("train", n_segments=5), make_clips("validation", 2, seed=1), make_clips("test", 3, seed=2)]
    return [(clips, planted_targets(features)) for clips, features in parts]


def fitted(study, networks=(), **options):
    (train, targets), (validation, seen), _ = study
    changes = {
        "mixup_share_of_training": 0,
        "semantics_learning_rate": 3e-3,
        "prior_learning_rate": 2e-3,
        "perception_learning_rate": 3e-3,
    }  # so that a hundred steps are enough
    settings = {"epochs": 12, "seed": 4, "device": "cpu", "prior_draws": 2, "changes": changes} | options
    decoders = EndToEndDecoders(NetworksRecipe(**{**TINY, **dict(networks)}), **settings)
    return decoders.fit(train, targets, validation, seen)


def top1(found, true):
    """Share of clips whose truth correlates best with what was found."""
    a, b = ((x - true.mean(axis=0)).reshape(len(x), -1) for x in (found, true))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return float(((a @ b.T).argmax(axis=1) == np.arange(len(a))).mean())


def test_decodes_what_was_planted_and_nothing_from_shuffled_training(study):
    test, true = study[2]
    decoders = fitted(study, epochs=40)
    assert isinstance(decoders, Decoders)
    found = decoders.decode(decoders.inputs(test), test.ids)
    assert found.latents.shape == true.latents.shape
    assert found.prior_tokens.shape == true.tokens.shape
    assert top1(found.tokens, true.tokens) > 0.3  # of 39; chance is 0.03
    assert top1(found.latents, true.latents) > 0.2
    assert top1(found.prior_tokens, true.tokens) > 0.2
    train, targets = study[0]
    order = np.random.default_rng(0).permutation(len(train))
    shuffled = [(train, Targets(targets.latents[order], targets.tokens[order])), *study[1:]]
    decoders = fitted(shuffled, epochs=40)
    assert top1(decoders.decode(decoders.inputs(test), test.ids).tokens, true.tokens) < 0.2


def test_saved_and_loaded_decodes_the_same_and_batches_do_not_matter(study, tmp_path):
    test, true = study[2]
    decoders = fitted(study, epochs=1)
    about = decoders.save(tmp_path)
    assert about["decoders"] == "end-to-end"
    assert set(about["training"]) == {"semantics", "prior", "perception"}
    loaded = EndToEndDecoders.load(tmp_path, device="cpu")
    inputs = decoders.inputs(test)
    order = np.array([30, 3, 17])
    whole, again = (d.decode(inputs, test.ids) for d in (decoders, loaded))
    part = loaded.decode(inputs[order], [test.ids[i] for i in order])
    for name in vars(whole):
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[order], atol=1e-4)
    for pathway in ("semantics", "perception"):
        np.testing.assert_array_equal(decoders.first_layer(pathway).goal(true), loaded.first_layer(pathway).goal(true))


def test_a_killed_training_goes_on_to_the_same_weights(study, tmp_path):
    """Killed while the prior trains: semantics is not trained again, and the result is the same to the bit."""

    class Killed(Exception):
        pass

    def kill(done, total, what):
        if what.startswith("prior") and done == 2:
            raise Killed

    test, _ = study[2]
    whole = fitted(study, epochs=3)
    with pytest.raises(Killed):
        fitted(study, epochs=3, checkpoints=tmp_path, progress=kill)
    assert (tmp_path / ".semantics.checkpoint.pt").exists()
    resumed = fitted(study, epochs=3, checkpoints=tmp_path)
    assert not (tmp_path / ".conditions.npy").exists()
    first, second = (d.decode(d.inputs(test), test.ids) for d in (whole, resumed))
    for name in vars(first):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_the_first_layer_reads_what_the_network_makes_of_voxels(study):
    """Its output is the part of the prediction that is linear in voxels: where the network is linear, all of it."""
    (train, targets), _, (test, _) = study
    decoders = fitted(study, networks={"mixer": "identity"})
    network = decoders.networks_.semantics
    with torch.no_grad():  # the residual projector is left out: head(input(x)) is all there is
        for parameter in network.projector[-1].parameters():
            parameter.zero_()
    x = decoders.inputs(train)
    decoders.readouts_["semantics"] = decoders._readout("semantics", x, targets.tokens, lambda m, x: m(x).tokens)
    layer = decoders.first_layer("semantics")
    made = decoders.decode(decoders.inputs(test), test.ids, prior=False)
    seen = Targets(made.latents, made.tokens)
    np.testing.assert_allclose(layer.output(decoders.inputs(test)), layer.goal(seen), rtol=0.05, atol=0.2)
    columns = np.array([7, 0, 31])
    only = np.zeros_like(x[:1])
    only[0, columns] = [2, -1, 3]
    change = layer.output(only) - layer.output(np.zeros_like(only))
    np.testing.assert_allclose(change[0], np.array([2, -1, 3]) @ layer.rows(columns), rtol=1e-4, atol=1e-4)


def test_candidates_are_drawn_as_keyframes(study):
    """With the third frame's tokens the same and the fourth's nonsense, training on both is worse than on one."""
    (train, targets), validation, (test, true) = study
    nonsense = 3 * np.random.default_rng(3).normal(size=targets.tokens.shape).astype(np.float32)
    both = Targets.of({"latents": targets.latents, "candidates": np.stack([targets.tokens, nonsense], axis=1)})
    np.testing.assert_array_equal(both.tokens, targets.tokens)
    found = [fitted([(train, t), validation, (test, true)], epochs=30).decode(
        EndToEndDecoders().inputs(test), test.ids, prior=False).tokens for t in (targets, both)]  # fmt: skip
    errors = [float(np.square(f - true.tokens).mean()) for f in found]
    assert errors[1] > 1.2 * errors[0]


def test_the_prior_is_sampled_in_the_papers_way(study):
    decoders = fitted(study, epochs=1, preset="paper", networks={"prior_steps": 3})
    test, _ = study[2]
    found = decoders.decode(decoders.inputs(test), test.ids)
    condition = torch.from_numpy((found.tokens[:2] - decoders.prior_mean_) / decoders.prior_sd_)
    from neuroclips.artefacts import stable_seed

    draws = [torch.Generator().manual_seed(stable_seed(4, "prior", clip)) for clip in test.ids[:2]]
    sample = decoders.networks_.prior.sample(condition, draws, steps=3)[:, 0].numpy()
    np.testing.assert_allclose(
        found.prior_tokens[:2], sample * decoders.prior_sd_ + decoders.prior_mean_, rtol=1e-4, atol=1e-4
    )


def test_without_a_prior_tokens_are_all_there_is(study, tmp_path):
    decoders = fitted(study, epochs=1, networks={"prior_depth": 0})
    decoders.save(tmp_path)
    loaded, (test, _) = EndToEndDecoders.load(tmp_path, device="cpu"), study[2]
    assert set(loaded.curves_) == {"semantics", "perception"}
    assert loaded.decode(loaded.inputs(test), test.ids).prior_tokens is None


def test_starts_from_initial_weights_and_says_what_did_not_fit(study, tmp_path):
    first = fitted(study, epochs=1)
    folder = tmp_path / "initial"
    first.save(folder)
    arrays = {name: value.numpy() for name, value in first.networks_.semantics.state_dict().items()}
    kept = {name: value for name, value in arrays.items() if name.startswith(("head.", "projector."))}
    wrong = {"projector.8.bias": np.zeros(3, np.float32), "mixer.weight": np.ones(2, np.float32)}
    save_file({**kept, **wrong}, folder / "semantics.safetensors")
    decoders = fitted(study, networks={"initial": str(folder)}, epochs=1)
    said = decoders.initial_["semantics"]
    assert said["skipped"] == {
        "mixer.weight": "no such parameter here", "projector.8.bias": "shape (3,); expected (16,)"
    }  # fmt: skip
    assert said["loaded"] == sum(v.size for name, v in kept.items() if name != "projector.8.bias")
    assert {"input.weight", "input.bias", "projector.8.bias"} <= set(said["left random"])
    assert decoders.initial_["prior"]["random"] == 0
    assert not decoders.networks_.semantics.residual  # the projector is the published one
    assert decoders.networks_.prior.schedule == "library"
    assert decoders.prior_sd_ == 1  # published weights know raw tokens
    with pytest.raises(ArtefactError, match=r"none of its 3 arrays fits; first: \('last.bias', 'no such"):
        save_file({f"{part}.bias": np.zeros(5, np.float32) for part in ("head", "input", "last")}, tmp_path / "none")
        load_initial(decoders.networks_.semantics, tmp_path / "none")


def test_text_projectors_are_loaded_or_refused(study, tmp_path):
    (train, targets), validation, test = study
    text = np.random.default_rng(2).normal(size=(len(train), 6)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    captioned = [(train, replace(targets, text=text)), validation, test]
    save_file({"weight": np.ones((6, 16), np.float32)}, tmp_path / "projector.safetensors")
    decoders = fitted(captioned, networks={"text_projector": str(tmp_path)}, epochs=1)
    assert "text" in decoders.curves_["semantics"]["curve"][0]
    assert "text" in decoders.curves_["prior"]["curve"][0]
    save_file({"weight": np.ones((7, 16), np.float32)}, tmp_path / "projector.safetensors")
    with pytest.raises(ArtefactError, match=r"a text projector of \(7, 16\); expected \(6, 16\)"):
        fitted(captioned, networks={"text_projector": str(tmp_path)}, epochs=1)


def test_single_trials_follow_lags(make_clips):
    clips, _ = make_clips("train", n_segments=2)
    assert single_trials(clips) is clips.bold
    found = single_trials(replace(clips, lags=(0, 2)))
    assert found.shape == (len(clips), clips.bold.shape[1], 2 * clips.n_voxels)
    np.testing.assert_array_equal(found[0, 1], np.concatenate([clips.bold[0, 1], clips.bold[clips.neighbour(2)[0], 1]]))


@pytest.mark.usefixtures("unchecked_types")
def test_refusals(study):
    (train, targets), (validation, seen), (test, true) = study
    networks = NetworksRecipe(**TINY)
    with pytest.raises(SplitLeakError):
        EndToEndDecoders(networks).fit(test, true, validation, seen)
    with pytest.raises(SplitLeakError):
        EndToEndDecoders(networks).fit(train, targets, test, true)
    with pytest.raises(DataError, match="needs validation clips"):
        EndToEndDecoders(networks).fit(train, targets)
    with pytest.raises(DataError, match="tokens of all training clips are the same"):
        alike = replace(targets, tokens=np.ones_like(targets.tokens))
        EndToEndDecoders(networks).fit(train, alike, validation, seen)
    with pytest.raises(DataError, match="40 columns; these decoders were fitted on 41: scans of another subject"):
        decoders = fitted(study, epochs=1)
        decoders.decode(np.zeros((2, 40), np.float32), test.ids[:2])


# --- the paper's sizes ------------------------------------------------------------------------------------------------

VOXELS = {1: 13_447, 2: 14_828, 3: 9_114}


def count(module):
    return sum(p.numel() for p in module.parameters())


def at_paper_size(voxels=13_447, preset="corrected", **networks):
    with torch.device("meta"):
        return build_networks(NetworksRecipe(**networks), voxels, (256, 1664), (6, 4, 28, 28), switches(preset))


@pytest.mark.parametrize(("voxels", "expected"), [(13_447, 55_083_008), (14_828, 60_739_584), (9_114, 37_335_040)])
def test_each_subjects_layer_has_the_papers_size(voxels, expected):
    assert count(at_paper_size(voxels).semantics.input) == expected
    assert count(at_paper_size(voxels).perception.input) == expected


def test_networks_have_the_papers_sizes():
    """Method, "Reference numbers for tests"; the mixers, which cannot learn, have no twin here."""
    networks = at_paper_size()
    assert count(networks.semantics.head) == 1_745_256_448
    assert count(networks.semantics.projector) == 8_321_664
    assert count(networks.prior) == 259_865_216 - 16  # rotary frequencies are no parameters here
    assert count(networks.perception.to_grid) == 12_848_192
    assert count(networks.perception.decoder) == 2_166_443
    identity = at_paper_size(mixer="identity").semantics
    assert count(identity) == 55_083_008 + 1_745_256_448 + 8_321_664
    assert count(networks.semantics) - count(identity) == 4 * (2 * 4096 + 4096 * 1024 + 1024 + 1024 * 4096 + 4096)


@pytest.mark.parametrize(("voxels", "expected"), [(13_447, 24_244_270), (14_828, 26_727_308), (9_114, 16_453_536)])
def test_the_released_expansion_has_the_papers_size(voxels, expected):
    """But for the mixer's half that acts over a sequence of one: LayerNorm(1) and Linear(1, 1), 4 numbers."""
    inception = at_paper_size(voxels, "released", expansion="inception").perception.inception
    assert count(inception) == expected - 4
