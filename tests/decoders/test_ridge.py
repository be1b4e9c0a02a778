import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from neuroclips.artefacts import Rows, read_arrays, write_arrays
from neuroclips.decoders.ridge import RidgeDecoder, solve_ridge_cv
from neuroclips.errors import DataError, SplitLeakError


def test_agrees_with_scikit_learn_at_every_alpha(make_clips):
    train, features = make_clips()
    test, _ = make_clips("test", seed=1)
    for alpha in (0.01, 1.0, 100.0):
        ours = RidgeDecoder([alpha]).fit(train, features.reshape(-1, 5, 1)).predict(test.responses())
        x = train.responses()
        theirs = Ridge(alpha * train.n_voxels).fit(x, features).predict(test.responses())
        assert ours.shape == (52, 5, 1)
        np.testing.assert_allclose(ours[..., 0], theirs, atol=2e-4)


def test_alpha_of_each_target_is_the_one_that_a_plain_search_over_runs_finds(make_clips):
    train, features = make_clips(signal=0.3)
    alphas = [0.001, 0.1, 10.0, 1000.0]
    rng = np.random.default_rng(5)
    y = np.concatenate([features, rng.normal(size=(52, 3)).astype(np.float32)], axis=1)  # 3 targets of noise
    y -= y.mean(axis=0)
    x = train.responses()
    x -= x.mean(axis=0)
    _, chosen = solve_ridge_cv(x, y, train.segment, alphas, targets_batch=3)
    errors = np.zeros((len(alphas), y.shape[1]))
    for a, alpha in enumerate(alphas):
        for fit, left in GroupKFold(4).split(x, groups=train.segment):
            model = Ridge(alpha * x.shape[1], fit_intercept=False).fit(x[fit], y[fit])
            errors[a] += ((model.predict(x[left]) - y[left]) ** 2).mean(axis=0)
    np.testing.assert_allclose(chosen, np.array(alphas)[errors.argmin(axis=0)], rtol=1e-5)
    assert (chosen[5:] > 9).all()  # what cannot be predicted is shrunk away


def test_decodes_what_was_planted_and_nothing_from_silence(make_clips):
    test, true = make_clips("test", seed=1)
    train, features = make_clips()
    found = RidgeDecoder().fit(train, features).predict(test.responses())
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.9
    silent, features = make_clips(signal=0.0, n_segments=8)
    test, true = make_clips("test", signal=0.0, seed=1)
    found = RidgeDecoder().fit(silent, features).predict(test.responses())
    assert abs(np.corrcoef(found.ravel(), true.ravel())[0, 1]) < 3 / np.sqrt(true.size)


def test_batches_of_targets_change_nothing(make_clips):
    train, features = make_clips()
    whole = RidgeDecoder(targets_batch=100).fit(train, features)
    parts = RidgeDecoder(targets_batch=2).fit(train, features)
    np.testing.assert_allclose(whole.dual_, parts.dual_, atol=1e-5)


@pytest.mark.parametrize("kept", [False, True])
def test_parts_and_files_change_nothing(make_clips, tmp_path, monkeypatch, kept):
    """Targets in halves from a file, solved a few at a time into a file, against all at once in memory."""
    train, features = make_clips()
    chosen = np.random.default_rng(1).permutation(52)[:39]
    y = (features @ np.random.default_rng(2).normal(size=(5, 3 * 7))).reshape(52, 3, 7).astype(np.float16)
    write_arrays(tmp_path / "targets.safetensors", {"tokens": y})
    whole = RidgeDecoder((0.1, 10.0)).fit(train.take(chosen), y[chosen].astype(np.float32))
    monkeypatch.setattr("neuroclips.decoders.ridge._SOLVED_AT_ONCE", 39 * 4)
    monkeypatch.setattr("neuroclips.decoders.ridge._READ_AT_ONCE", 39 * 5)
    mapped = Rows(read_arrays(tmp_path / "targets.safetensors")["tokens"], chosen)
    parts = RidgeDecoder((0.1, 10.0), keep=tmp_path / "ridge" if kept else None).fit(train.take(chosen), mapped)
    assert isinstance(parts.dual_, np.memmap) == kept
    np.testing.assert_array_equal(parts.alpha_, whole.alpha_)
    np.testing.assert_allclose(parts.dual_, whole.dual_, atol=1e-4)
    x = make_clips("test", seed=1)[0].responses()
    parts.save(tmp_path / "ridge")
    for decoder in (parts, RidgeDecoder.load(tmp_path / "ridge")):
        np.testing.assert_allclose(decoder.predict(x), whole.predict(x), atol=1e-3)
        np.testing.assert_allclose(decoder.weights(), whole.weights(), atol=1e-4)
    assert sorted(p.name for p in (tmp_path / "ridge").iterdir()) == ["decoder.json", "ridge.safetensors"]


def test_weights_give_the_same_predictions(make_clips):
    train, features = make_clips()
    ridge = RidgeDecoder().fit(train, features)
    x = train.responses()
    np.testing.assert_allclose((x - ridge.x_mean_) @ ridge.weights() + ridge.y_mean_, ridge.predict(x), atol=1e-4)


def test_saved_and_loaded_predicts_the_same(make_clips, tmp_path):
    train, features = make_clips()
    ridge = RidgeDecoder().fit(train, features)
    about = ridge.save(tmp_path)
    assert sum(about["alpha_counts"].values()) == 5
    x = train.responses()
    np.testing.assert_array_equal(RidgeDecoder.load(tmp_path).predict(x), ridge.predict(x))


@pytest.mark.usefixtures("unchecked_types")
def test_the_test_split_is_refused(make_clips):
    train, features = make_clips()
    test, true = make_clips("test")
    with pytest.raises(SplitLeakError, match="test0, test1"):
        RidgeDecoder().fit(test, true)
    with pytest.raises(SplitLeakError):
        RidgeDecoder().fit(train, features, validation=test)


def test_refusals(make_clips):
    train, features = make_clips()
    with pytest.raises(DataError, match="52 clips and 51 targets"):
        RidgeDecoder().fit(train, features[:-1])
    with pytest.raises(DataError, match="at least 2 training runs; there is 1"):
        RidgeDecoder().fit(make_clips(n_segments=1)[0], features[:13])
    with pytest.raises(DataError, match="40 voxels; the decoder was fitted on 41"):
        RidgeDecoder().fit(train, features).predict(np.zeros((2, 40), np.float32))
