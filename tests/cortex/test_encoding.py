import numpy as np
import pytest
import torch
from himalaya.backend import get_backend
from himalaya.kernel_ridge import MultipleKernelRidgeCV
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from neuroclips.cortex import encoding as module
from neuroclips.cortex.encoding import (
    centred_in_runs,
    contrast_and_change,
    delayed,
    fit_encoding,
    mean_responses,
    principal,
    variance_partition,
)
from neuroclips.errors import DataError
from neuroclips.evaluation.intervals import SceneBootstrap

NOISE = 0.5  # standard deviation, beside a signal of 1
COMMON = 0.6  # correlation of the first three features of the two spaces
DELAYS = (0, 2, -1)
GROUPS = {"low": 9, "semantic": 11, "both": 13, "neither": 17}  # voxels


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices are small: more threads gain nothing, and wait for each other when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def planted(n_runs, clips, seed):
    """Spaces of 5 and 7 Gaussian features, and voxels that are driven by feature 0 and 1 at delay 2, plus noise.

    "low" and "semantic" voxels answer to their space, "both" to the sum of both, "neither" to nothing. Written as loops
    over clips, so that delays and the ends of runs are planted by other means than they are fitted.
    """
    rng = np.random.default_rng(seed)
    n = n_runs * clips
    segment = np.repeat(np.arange(n_runs), clips)
    low = rng.normal(size=(n, 5))
    semantic = rng.normal(size=(n, 7))
    semantic[:, :3] = COMMON * low[:, :3] + np.sqrt(1 - COMMON**2) * semantic[:, :3]
    weights = np.random.default_rng(77).normal(size=(2, sum(GROUPS.values())))
    weights /= np.linalg.norm(weights, axis=0)
    signal, start = np.zeros((n, weights.shape[1])), 0
    for name, voxels in GROUPS.items():
        two = {"low": low[:, :2], "semantic": semantic[:, :2], "neither": np.zeros((n, 2))}
        drives = two["low"] + two["semantic"] if name == "both" else two[name]
        for b in range(n):
            if b % clips >= 2:
                signal[b, start : start + voxels] = drives[b - 2] @ weights[:, start : start + voxels]
        start += voxels
    y = signal + NOISE * rng.normal(size=signal.shape)
    return {"low": low.astype(np.float32), "semantic": semantic.astype(np.float32)}, segment, y.astype(np.float32)


def members(name):
    start = sum(list(GROUPS.values())[: list(GROUPS).index(name)])
    return slice(start, start + GROUPS[name])


@pytest.fixture(scope="module")
def fitted(one_thread):
    """A joint model and one of each space, and held-out clips."""
    spaces, segment, y = planted(10, 60, seed=0)
    joint = fit_encoding(spaces, segment, y, delays=DELAYS, mixtures=5)
    alone = {name: fit_encoding({name: x}, segment, y, delays=DELAYS) for name, x in spaces.items()}
    return joint, alone, planted(8, 60, seed=1)


def test_parts_are_those_that_the_planted_correlations_imply(fitted):
    joint, alone, (spaces, segment, y) = fitted
    found = variance_partition(joint, alone, spaces, segment, y).voxels
    # What one space says of the other: its first features explain COMMON² of the other's.
    n2, c = NOISE**2, COMMON
    expected = {
        "low": {"low": 1 / (1 + n2), "semantic": c**2 / (1 + n2), "total": 1 / (1 + n2)},
        "semantic": {"low": c**2 / (1 + n2), "semantic": 1 / (1 + n2), "total": 1 / (1 + n2)},
        # The sum has variance 2 + 2c, and each side predicts (1 + c) of its own feature.
        "both": dict.fromkeys(("low", "semantic"), (1 + c) ** 2 / (2 + 2 * c + n2))
        | {"total": (2 + 2 * c) / (2 + 2 * c + n2)},
        "neither": dict.fromkeys(("low", "semantic", "total"), 0.0),
    }
    for group, value in expected.items():
        v = members(group)
        shared = value["low"] + value["semantic"] - value["total"]
        assert found.total[v].mean() == pytest.approx(value["total"], abs=0.03), group
        assert found.shared[v].mean() == pytest.approx(shared, abs=0.05), group
        for space, other in (("low", "semantic"), ("semantic", "low")):
            assert found.alone[space][v].mean() == pytest.approx(value[space], abs=0.04), (group, space)
            assert found.unique[space][v].mean() == pytest.approx(value["total"] - value[other], abs=0.04), group
    for space, mine, other in (("low", "low", "semantic"), ("semantic", "semantic", "low")):
        assert found.product[space][members(mine)].min() > 0.6
        assert np.abs(found.product[space][members(other)]).max() < 0.15


def test_every_voxel_adds_up(fitted):
    joint, alone, (spaces, segment, y) = fitted
    found = variance_partition(joint, alone, spaces, segment, y).voxels
    centred = centred_in_runs(y, segment)
    for parts, model in ((found.total, joint), *((found.alone[name], alone[name]) for name in spaces)):
        residual = centred - model.predict(spaces, segment)
        np.testing.assert_allclose(parts, 1 - (residual**2).sum(axis=0) / (centred**2).sum(axis=0), atol=1e-5)
    np.testing.assert_allclose(sum(found.unique.values()) + found.shared, found.total, atol=1e-12)
    np.testing.assert_allclose(sum(found.product.values()), found.total, atol=1e-12)


def test_voxels_without_signal_score_nothing_or_less(fitted):
    joint, alone, (spaces, segment, y) = fitted
    found = variance_partition(joint, alone, spaces, segment, y).voxels
    silent = members("neither")
    for share in (found.total, *found.alone.values()):
        assert share[silent].mean() <= 0
    backwards = variance_partition(joint, alone, spaces, segment, y[::-1]).voxels  # other film's responses
    assert backwards.total[members("both")].max() < 0.1


def test_the_planted_delay_carries_the_weights(fitted):
    joint, alone, _ = fitted
    for name, n_features in (("low", 5), ("semantic", 7)):
        for model in (joint, alone[name]):
            size = np.abs(model.weights[name][:, members(name)]).reshape(len(DELAYS), n_features, -1)
            assert size[1, :2].mean() > 10 * max(size[0].mean(), size[2].mean(), size[1, 2:].mean())
    early, segment, y = planted(10, 60, seed=0)
    wrong = fit_encoding({"low": early["low"]}, segment, y, delays=(0, 1))
    spaces, segment, y = planted(8, 60, seed=1)
    assert np.corrcoef(wrong.predict(spaces, segment)[:, 0], y[:, 0])[0, 1] < 0.2


def test_a_space_that_says_nothing_is_shrunk_away(fitted):
    joint, _, _ = fitted
    assert joint.mixture["low"][members("low")].min() > 0.5
    assert joint.mixture["semantic"][members("semantic")].min() > 0.5
    np.testing.assert_allclose(sum(joint.mixture.values()), 1, rtol=1e-6)


def test_areas_are_sums_over_their_voxels_and_clips(fitted):
    joint, alone, (spaces, segment, y) = fitted
    areas = np.zeros((3, y.shape[1]), bool)
    areas[0, members("low")] = areas[1, members("both")] = areas[1, members("low")] = areas[2] = True
    found = variance_partition(joint, alone, spaces, segment, y, areas)
    squares = centred_in_runs(y, segment) ** 2
    assert found.squares.shape == (480, 3)
    np.testing.assert_allclose(found.squares[:, 1], squares[:, areas[1]].sum(axis=1), rtol=1e-4)
    for a in range(3):
        weight = squares.sum(axis=0)[areas[a]]
        for per_clip, per_voxel in (
            (found.explained.total, found.voxels.total),
            (found.explained.shared, found.voxels.shared),
            (found.explained.unique["low"], found.voxels.unique["low"]),
            (found.explained.product["semantic"], found.voxels.product["semantic"]),
        ):
            share = per_clip[:, a].sum() / found.squares[:, a].sum()
            assert share == pytest.approx(np.average(per_voxel[areas[a]], weights=weight), abs=1e-4)
    boot = SceneBootstrap(np.arange(480) // 12, draws=200)
    unique, whole = (boot.of(x[:, 0]) for x in (found.explained.unique["low"], found.squares))
    low, high = boot.interval(unique.draws / whole.draws)
    assert low < unique.value / whole.value < high
    assert low > 0.4  # the true share is 0.51


def test_voxels_at_a_time_change_nothing(fitted):
    joint, alone, (spaces, segment, y) = fitted
    whole, parts = (variance_partition(joint, alone, spaces, segment, y, voxels_batch=n) for n in (99, 7))
    np.testing.assert_allclose(whole.voxels.shared, parts.voxels.shared, atol=1e-6)
    np.testing.assert_allclose(whole.explained.shared, parts.explained.shared, atol=1e-3)
    np.testing.assert_allclose(joint.predict(spaces, segment)[:, 8:23], joint.predict(spaces, segment, slice(8, 23)))
    spaces, segment, y = planted(3, 20, seed=2)
    whole, parts = (fit_encoding(spaces, segment, y, mixtures=4, voxels_batch=n) for n in (99, 7))
    np.testing.assert_array_equal(whole.alpha, parts.alpha)
    for name in spaces:
        np.testing.assert_allclose(whole.weights[name], parts.weights[name], atol=1e-5)


def test_one_space_is_scikit_learns_kernel_ridge():
    spaces, segment, y = planted(4, 30, seed=3)
    alphas = [0.01, 1.0, 100.0]
    model = fit_encoding({"low": spaces["low"]}, segment, y, delays=(0, 1), alphas=alphas)
    x, y = np.zeros((120, 10)), centred_in_runs(y, segment)
    for run in range(4):
        rows = slice(30 * run, 30 * run + 30)
        own = spaces["low"][rows] - spaces["low"][rows].mean(axis=0)
        x[rows, :5], x[30 * run + 1 : 30 * run + 30, 5:] = own, own[:-1]
        x[rows] -= x[rows].mean(axis=0)
    kernel = x @ x.T / np.square(x).sum(axis=1).mean()
    errors = np.zeros((3, y.shape[1]))
    for fit, held in GroupKFold(4).split(x, groups=segment):
        for a, alpha in enumerate(alphas):
            ridge = KernelRidge(alpha=alpha, kernel="precomputed").fit(kernel[np.ix_(fit, fit)], y[fit])
            errors[a] += np.square(ridge.predict(kernel[np.ix_(held, fit)]) - y[held]).mean(axis=0)
    np.testing.assert_allclose(model.alpha, np.array(alphas)[errors.argmin(axis=0)], rtol=1e-5)
    expected = KernelRidge(alpha=model.alpha, kernel="precomputed").fit(kernel, y).predict(kernel)
    np.testing.assert_allclose(model.predict(spaces, segment), expected, atol=1e-4)


def test_several_spaces_are_himalayas_estimator():
    spaces, segment, y = planted(4, 30, seed=4)
    model = fit_encoding(spaces, segment, y, delays=DELAYS, alphas=(0.1, 1.0, 10.0), mixtures=6, seed=5)
    designs = [centred_in_runs(delayed(centred_in_runs(x, segment), segment, DELAYS), segment) for x in spaces.values()]
    kernels = np.stack([x @ x.T / np.square(x).sum(axis=1).mean() for x in designs])
    tried = module._mixtures(2, 6, 5)
    np.testing.assert_allclose(tried[:3], [[0.5, 0.5], [1, 0], [0, 1]])
    assert len(np.unique(tried, axis=0)) == 6
    solver = {"n_iter": tried, "alphas": np.array([0.1, 1, 10], np.float32), "progress_bar": False}
    folds = list(GroupKFold(4).split(y, groups=segment))
    theirs = MultipleKernelRidgeCV(kernels="precomputed", solver="random_search", solver_params=solver, cv=folds)
    with np.errstate(divide="ignore"):
        theirs.fit(kernels, centred_in_runs(y, segment))
    np.testing.assert_allclose(model.predict(spaces, segment), theirs.predict(kernels), atol=2e-4)
    parts = model.contributions(spaces, segment)
    np.testing.assert_allclose(list(parts.values()), theirs.predict(kernels, split=True), atol=2e-4)


def test_runs_are_never_split_and_the_backend_is_left_as_it_was(monkeypatch):
    spaces, segment, y = planted(7, 12, seed=5)
    seen, solve = [], module.solve_multiple_kernel_ridge_random_search

    def watched(*args, cv, **kwargs):
        seen.extend(cv)
        assert get_backend().name == "torch"
        return solve(*args, cv=cv, **kwargs)

    monkeypatch.setattr(module, "solve_multiple_kernel_ridge_random_search", watched)
    assert get_backend().name == "numpy"
    fit_encoding(spaces, segment, y, mixtures=3)
    assert get_backend().name == "numpy"
    assert len(seen) == 5
    assert all(not set(segment[fit]) & set(segment[held]) for fit, held in seen)
    assert sorted(np.concatenate([held for _, held in seen])) == list(range(84))


def test_the_level_of_a_run_is_no_part_of_anything(fitted):
    joint, alone, (spaces, segment, y) = fitted
    level = np.random.default_rng(6).normal(size=8)[segment][:, None].astype(np.float32)
    raised = {name: x + 3 * level for name, x in spaces.items()}
    np.testing.assert_allclose(joint.predict(raised, segment), joint.predict(spaces, segment), atol=1e-4)
    before, after = (
        variance_partition(joint, alone, s, segment, z).voxels.total for s, z in ((spaces, y), (raised, y - level))
    )
    np.testing.assert_allclose(before, after, atol=1e-4)


def test_a_voxel_that_never_changes_is_unknown(fitted):
    joint, alone, (spaces, segment, y) = fitted
    y = y.copy()
    y[:, 4] = 2.5
    found = variance_partition(joint, alone, spaces, segment, y)
    assert np.flatnonzero(np.isnan(found.voxels.total)).tolist() == [4]
    assert np.isfinite(found.explained.total).all()


def test_delays_look_back_and_stop_at_the_ends_of_a_run():
    features = np.random.default_rng(7).normal(size=(11, 3)).astype(np.float32)
    segment = np.repeat([4, 2], [6, 5])
    found = delayed(features, segment, (-2, 0, 1, 7)).reshape(11, 4, 3)
    for b in range(11):
        for place, delay in enumerate((-2, 0, 1, 7)):
            inside = 0 <= b - delay < 11 and segment[b - delay] == segment[b]
            np.testing.assert_array_equal(found[b, place], features[b - delay] if inside else 0)


def test_components_are_scikit_learns_and_those_of_the_training_clips():
    rng = np.random.default_rng(8)
    train = (rng.normal(size=(60, 4, 6)) * np.arange(1, 7) + 3).astype(np.float32)
    other = rng.normal(size=(9, 4, 6)).astype(np.float32)
    ours, theirs = principal(train, 5), PCA(5, svd_solver="full").fit(train.reshape(60, 24))
    scale = np.sqrt(np.square(theirs.transform(train.reshape(60, 24))).sum(axis=1).mean())
    expected = theirs.transform(other.reshape(9, 24)) / scale
    sign = np.sign((ours.encode(other) * expected).sum(axis=0))
    np.testing.assert_allclose(ours.encode(other) * sign, expected, atol=1e-3)
    assert np.square(ours.encode(train)).sum(axis=1).mean() == pytest.approx(1, rel=1e-5)
    assert principal(train[:7], 99).axes.shape == (6, 24)
    with pytest.raises(DataError, match="a clip has 20 features; these components were made for 24"):
        ours.encode(other[:, :, :5])
    assert not principal(np.ones((4, 3)), 2).encode(np.ones((2, 3))).any()  # nothing varies


def test_contrast_and_change_of_parts_of_the_picture():
    rng = np.random.default_rng(9)
    videos = rng.integers(0, 256, (3, 6, 3, 40, 56), dtype=np.uint8)
    found = contrast_and_change(videos, cells=8).reshape(3, 2, 8, 8)
    grey = np.einsum("bfchw,c->bfhw", videos / 255, [0.299, 0.587, 0.114])
    contrast = grey.reshape(3, 6, 8, 5, 8, 7).std(axis=(3, 5)).mean(axis=1)
    change = np.abs(np.diff(grey, axis=1)).reshape(3, 5, 8, 5, 8, 7).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(found, np.stack([contrast, change], axis=1), atol=1e-4)
    as_float = contrast_and_change((videos / 255).astype(np.float32), cells=8).reshape(3, 2, 8, 8)
    np.testing.assert_allclose(as_float, found, atol=1e-6)
    grey = np.full((2, 4, 3, 41, 33), 77, np.uint8)  # neither a frame's edge nor a change, in parts of uneven size
    assert contrast_and_change(grey, cells=5).max() < 1e-3
    inverted = contrast_and_change(255 - videos)  # black for white
    np.testing.assert_allclose(inverted, contrast_and_change(videos), atol=1e-3)
    with pytest.raises(DataError, match="videos have 1 frame; change needs at least 2"):
        contrast_and_change(videos[:, :1])


def test_means_of_few_and_of_many_presentations_have_one_unit(make_clips):
    few, features = make_clips(n_segments=60, repeats=2, signal=0.3)
    many, same = make_clips("test", n_segments=60, repeats=9, signal=0.3, seed=1)
    np.testing.assert_allclose(mean_responses(many), many.bold.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(mean_responses(many, 4), many.bold[:, :4].mean(axis=1), atol=1e-6)

    def gain(y, x):
        return np.abs(np.linalg.lstsq(x, y, rcond=None)[0]).mean()

    assert gain(mean_responses(many), same) / gain(mean_responses(few), features) == pytest.approx(1, abs=0.03)
    assert gain(many.responses(), same) / gain(few.responses(), features) > 1.2
    few.present[5, 0] = False
    np.testing.assert_array_equal(mean_responses(few)[5], few.bold[5, 1])
    few.present[5] = False
    with pytest.raises(DataError, match="clip train0/0010s has no repeat to average"):
        mean_responses(few)


@pytest.mark.usefixtures("unchecked_types")
def test_refusals(fitted):
    joint, alone, (spaces, segment, y) = fitted
    with pytest.raises(DataError, match="at least 2 training runs and 1 space; got 1 and 2"):
        fit_encoding(spaces, 0 * segment, y)
    with pytest.raises(DataError, match=r"responses have shape \(479, 50\); expected \(480, ...\)"):
        fit_encoding(spaces, segment, y[1:])
    with pytest.raises(DataError, match="features of low hold values that are not finite"):
        fit_encoding({"low": np.where(np.eye(480, 5) > 0, np.nan, spaces["low"])}, segment, y)
    with pytest.raises(DataError, match="features of low are the same in all clips of a run"):
        fit_encoding({"low": np.ones((480, 5))}, segment, y)
    with pytest.raises(DataError, match="2 mixtures of 2 spaces; expected at least 3"):
        fit_encoding(spaces, segment, y, mixtures=2)
    with pytest.raises(DataError, match="no features of 'semantic' were given; got low"):
        joint.predict({"low": spaces["low"]}, segment)
    with pytest.raises(DataError, match="low has 4 features; the model was fitted on 5"):
        joint.predict({**spaces, "low": spaces["low"][:, 1:]}, segment)
    with pytest.raises(DataError, match="a joint model of two spaces and one of each alone; got low, semantic and low"):
        variance_partition(joint, {"low": alone["low"]}, spaces, segment, y)
    with pytest.raises(DataError, match="areas or models have 50 voxels, measured responses 49; expected as many"):
        variance_partition(joint, alone, spaces, segment, y[:, 1:])


def test_components_found_in_parts_are_those_of_sklearn(monkeypatch):
    values = np.random.default_rng(21).normal(size=(17, 5, 23)) * np.linspace(1, 9, 23)
    values = values.astype(np.float16)
    monkeypatch.setattr(module, "_FEATURES_AT_ONCE", 10)
    found = principal(values, 6)
    flat = values.reshape(17, -1).astype(np.float64)
    reference = PCA(6, svd_solver="full").fit(flat)
    scores = reference.transform(flat)
    length = np.sqrt(np.square(scores).sum() / 17)
    np.testing.assert_allclose(np.abs(found.encode(values)), np.abs(scores) / length, atol=2e-4)
