"""The stage ``curves`` on a planted brain: tokens are linear in 5 features of a clip, and so is the response to it."""

import io

import numpy as np
import pytest
from planted_run import write_names, write_split
from rich.console import Console

from neuroclips import curves, pipeline
from neuroclips.artefacts import read_arrays, write_arrays, write_json
from neuroclips.data.cc2017 import N_CORTEX
from neuroclips.data.clips import Targets, TestClips, TrainingClips, ValidationClips
from neuroclips.data.prepared import load_clips
from neuroclips.decoders.ridge import RidgeDecoder, RidgeDecoders
from neuroclips.errors import ArtefactError
from neuroclips.evaluation import curves as evaluation_curves
from neuroclips.evaluation.floors import shuffled_orders
from neuroclips.evaluation.scores import score_identification
from neuroclips.recipe import load_recipe
from neuroclips.reconstructor import Reconstructor

VOXELS, TOKENS, DELAY = 41, (3, 8), 2
SIGNAL = np.random.default_rng(1).normal(size=(5, VOXELS)) / np.sqrt(5)
MEANING = np.random.default_rng(2).normal(size=(5, *TOKENS)) * np.array([3.0, 2.5, 2, 1.5, 1])[:, None, None]
KINDS = {"train": TrainingClips, "validation": ValidationClips, "test": TestClips}


def plant(
    folder,
    *,
    segments=(8, 2, 4),
    clips=(16, 7, 14),
    repeats=(2, 2, 3),
    signal=1.0,
    noise=0.8,
    more=0.0,
    late=0,
    lags=(0,),
    changes=None,
):
    """A finished run up to ``reconstruct``, with ridge only.

    noise : of a presentation; every second test scene has so much ``more``. late : TRs that responses come too late.
    """
    rng, about = np.random.default_rng(5), {}
    for number, (split, s, b, r) in enumerate(zip(KINDS, segments, clips, repeats)):
        features = rng.normal(size=(s, b + late, 5))
        shown, answered = features[:, late:].reshape(-1, 5), features[:, :b].reshape(-1, 5)
        scene = np.arange(s * b) // 4
        level = noise + more * (scene % 2) * (split == "test")
        bold = signal * (answered @ SIGNAL)[:, None] + level[:, None, None] * rng.normal(size=(s * b, r, VOXELS))
        arrays = {
            "bold": bold.astype(np.float32), "present": np.ones((s * b, r), bool),
            "frames": np.zeros((s * b, 2, 3, 32, 32), np.uint8), "segment": np.repeat(np.arange(s), b),
            "onset": np.tile(2.0 * np.arange(b), s), "scene": 1000 * number + scene,
        }  # fmt: skip
        write_split(folder, split, arrays)
        tokens = np.einsum("bf,fkd->bkd", shown, MEANING) + 4
        about[split] = Targets(np.zeros((s * b, 2, 4, 5, 6), np.float16), tokens.astype(np.float16))
        seen = {"latents": about[split].latents, "tokens": about[split].tokens}
        write_arrays(folder / "targets" / f"{split}.safetensors", seen)
    mask = np.arange(N_CORTEX) < VOXELS
    voxels = {"mask": mask, "p": mask * 0.1, "t": mask.astype(np.float32), "reliability": np.float32(0.4) * mask}
    write_arrays(folder / "prepare" / "voxels.safetensors", voxels)
    names = {split: [f"{split}{i}" for i in range(s)] for split, s in zip(KINDS, segments)}
    write_names(folder, names, delay_trs=DELAY, lags=lags)
    recipe = load_recipe(
        "smoke", {"decoders.methods": ["ridge"], "generate.video": None, "evaluate.shuffles": 3, **(changes or {})}
    )
    prepared = load_clips(folder / "prepare")
    reconstructor = Reconstructor(decoders=RidgeDecoders(recipe.ridge.alphas))
    reconstructor.fit(prepared.train, targets=about["train"]).save(folder / "fit" / "ridge")
    decoded = reconstructor.decoders.decode(prepared.test.inputs(), prepared.test.ids)
    write_arrays(folder / "reconstruct" / f"ridge-{repeats[2]}.safetensors", {"tokens": decoded.tokens})
    return folder, recipe


def draw(run, recipe):
    console = Console(record=True, file=io.StringIO(), width=200)
    (run / "curves").mkdir()
    return curves.curves(run, run / "curves", recipe, console), console.export_text().strip()


def by_x(points, curve):
    return {p.x: p.score.value for p in points if p.curve == curve}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    run, recipe = plant(tmp_path_factory.mktemp("planted"), noise=2.0)
    return run, recipe, *draw(run, recipe)


@pytest.fixture(scope="module")
def scored(planted):
    return curves.score_curves(*planted[:2])


def test_files_hold_every_point_that_the_recipe_asks_for(planted):
    run, _, said, printed = planted
    tokens, samples = (read_arrays(run / "curves" / f"{name}.safetensors") for name in ("tokens", "samples"))
    minutes = [f"minutes-{n * 16 * 2 / 60:.4g}" for n in (2, 4, 8)]  # an eighth would be one segment
    components = [f"components-{k}" for k in (1, 2, 5, 10, 20, 24)]  # 24 numbers are 3 tokens of 8
    lags = [f"lag-{lag}" for lag in (1, 2, 3, 4)]
    assert list(tokens) == said["points"] == minutes + components + lags
    assert {a.shape for a in tokens.values()} == {(56, *TOKENS)}
    assert samples["samples"].shape == (said["samples"], 56, *TOKENS) == (3, 56, *TOKENS)
    assert (said["too_little_data_for"], printed) == ([], "")
    inside = (np.arange(56) % 14 >= 1) & (np.arange(56) % 14 < 12)
    for name, array in tokens.items():
        finite = np.isfinite(array).reshape(56, -1)
        assert (finite == (inside[:, None] if name.startswith("lag") else True)).all(), name


def test_the_last_points_are_the_ridge_of_the_run(planted):
    run, *_ = planted
    expected = read_arrays(run / "reconstruct" / "ridge-3.safetensors")["tokens"]
    found = read_arrays(run / "curves" / "tokens.safetensors")
    for name in (f"minutes-{8 * 16 * 2 / 60:.4g}", "components-24"):
        np.testing.assert_array_equal(found[name], expected.astype(np.float16))


def test_fewer_minutes_are_whole_segments_spread_over_all(planted):
    run, recipe, *_ = planted
    train, test = load_clips(run / "prepare").train, load_clips(run / "prepare").test
    rows = np.flatnonzero(np.isin(train.segment, [2, 6]))
    tokens = read_arrays(run / "targets" / "train.safetensors")["tokens"][rows]
    ridge = RidgeDecoder(recipe.ridge.alphas).fit(train.take(rows), tokens)
    found = read_arrays(run / "curves" / "tokens.safetensors")["minutes-1.067"]
    np.testing.assert_array_equal(found, ridge.predict(test.responses()).astype(np.float16))


def test_curves_show_what_was_planted(scored):
    lag, minutes, components = (by_x(scored[0], name) for name in ("lag", "training minutes", "components"))
    assert max(lag, key=lag.get) == DELAY
    assert max(value for x, value in lag.items() if x != DELAY) < 0.15  # features are new in every clip
    assert minutes[1.067] + 0.1 < minutes[4.267]
    assert 0 < components[1] < components[2] < components[5]
    assert components[5] == pytest.approx(components[24], abs=0.1)  # five features were planted


def test_the_lag_curve_finds_responses_that_come_late(tmp_path):
    run, recipe = plant(tmp_path, late=1)
    draw(run, recipe)
    points, _ = curves.score_curves(run, recipe)
    lag = by_x(points, "lag")
    assert max(lag, key=lag.get) == DELAY + 1
    assert lag[DELAY + 1] > 0.6
    assert max(value for x, value in lag.items() if x != DELAY + 1) < 0.15
    assert max(by_x(points, "training minutes").values()) < 0.15  # at the recipe's own delay nothing can be read


def test_the_lag_curve_is_of_single_volumes_where_decoders_see_several(tmp_path):
    run, recipe = plant(tmp_path, late=1, lags=(0, 1, 2))
    draw(run, recipe)
    points, _ = curves.score_curves(run, recipe)
    lag = by_x(points, "lag")
    assert max(lag, key=lag.get) == DELAY + 1
    assert max(value for x, value in lag.items() if x != DELAY + 1) < 0.15
    assert max(by_x(points, "training minutes").values()) > 0.4  # the late volume is among those that are seen


def test_bottleneck_is_the_best_of_its_rank(make_clips):
    train, features = make_clips(n_segments=4)
    tokens = np.einsum("bf,fkd->bkd", features, MEANING) + np.random.default_rng(4).normal(4, 2, (52, *TOKENS))
    ridge = RidgeDecoder((0.1, 1.0)).fit(train, tokens)
    responses = make_clips("test", seed=3)[0].responses()
    through, whole = curves.bottleneck(ridge, responses), ridge.predict(responses)
    known = (ridge.predict(train.responses()) - ridge.y_mean_.reshape(TOKENS)).reshape(len(train), -1)
    *_, directions = np.linalg.svd(known.astype(np.float64), full_matrices=False)
    for k in (1, 2, 5, 9):
        span = directions[:k].T @ directions[:k]
        expected = (whole.reshape(len(whole), -1) - ridge.y_mean_) @ span + ridge.y_mean_
        np.testing.assert_allclose(through(k).reshape(len(whole), -1), expected, atol=2e-3)
        assert np.linalg.matrix_rank(through(k).reshape(len(whole), -1) - ridge.y_mean_, tol=1e-3) == k
    np.testing.assert_allclose(through(24), whole, atol=2e-3)


def test_a_point_agrees_with_the_table_of_scores(planted, scored):
    run, recipe, *_ = planted
    test = load_clips(run / "prepare").test
    known, truth = (read_arrays(run / "targets" / f"{s}.safetensors")["tokens"] for s in ("train", "test"))
    found = np.array(read_arrays(run / "curves" / "tokens.safetensors")["components-5"])
    orders = shuffled_orders(test.scene, recipe.seed, 3)
    expected = score_identification(
        "ridge", found, truth, reference=known.astype(np.float32).mean(axis=0), ids=test.ids, segment=test.segment,
        onset=test.onset, scene=test.scene, floors={"shuffled": [found[order] for order in orders]},
        n_repeats=3, draws=recipe.evaluate.bootstrap, seed=recipe.seed,
    ).scores[0]  # fmt: skip
    point = next(p for p in scored[0] if (p.curve, p.x) == ("components", 5))
    assert point.score == expected


def test_lags_are_compared_on_the_same_clips(scored):
    assert {p.score.n for p in scored[0] if p.curve == "lag"} == {4 * 11}
    assert {p.score.n for p in scored[0] if p.curve != "lag"} == {56}


def test_samples_are_single_presentations_and_absent_ones_are_passed_over(tmp_path):
    run, recipe = plant(tmp_path)
    arrays = {name: np.array(a) for name, a in read_arrays(run / "prepare" / "test.safetensors").items()}
    arrays["present"][28:, 0] = False  # two segments lack their first presentation
    arrays["bold"][28:, 0] = 0
    write_arrays(run / "prepare" / "test.safetensors", arrays)
    assert draw(run, recipe)[0]["samples"] == 2
    samples = read_arrays(run / "curves" / "samples.safetensors")["samples"]
    ridge, test = RidgeDecoder.load(run / "fit" / "ridge" / "semantics"), load_clips(run / "prepare").test
    expected = np.concatenate([arrays["bold"][:28, :2], arrays["bold"][28:, 1:]])
    np.testing.assert_allclose(samples[0], ridge.predict(expected[:, 0]), atol=0.02)  # at unit variance as they are
    np.testing.assert_allclose(samples[1], ridge.predict(expected[:, 1]), atol=0.02)
    assert np.abs(samples[0, 28:] - ridge.predict(test.responses(1))[28:]).max() < 0.02
    assert np.abs(samples[0] - samples[1]).mean() > 0.1


def test_agreement_tells_which_clips_are_found(tmp_path):
    run, recipe = plant(tmp_path, noise=0.7, more=6.0, segments=(8, 2, 6))
    draw(run, recipe)
    confidence = curves.clip_confidence(run)
    noisy = np.arange(84) // 4 % 2 == 1
    assert confidence[noisy].mean() + 0.3 < confidence[~noisy].mean()
    _, found = curves.score_curves(run, recipe)
    assert found.value[3] > found.overall + 0.15
    assert found.area_interval[0] > 0
    assert found.p_value < 0.02
    assert (found.n, found.seed) == (84, recipe.seed)


def test_a_brain_that_did_not_see_the_film(tmp_path):
    run, recipe = plant(tmp_path, signal=0.0)
    draw(run, recipe)
    points, abstention = curves.score_curves(run, recipe)
    assert len(points) == 13
    assert max(p.score.value for p in points) < 0.15
    assert not any(p.score.beats_floors for p in points)
    assert abstention.p_value > 0.01


def test_too_little_data_leaves_points_and_curves_out(tmp_path):
    run, recipe = plant(tmp_path, segments=(2, 2, 2), clips=(5, 3, 3), repeats=(2, 2, 1))
    said, printed = draw(run, recipe)  # lags need volumes of four clips in a row
    assert said["too_little_data_for"] == ["lag"]
    assert "too little data for the curves lag" in printed
    assert [p for p in said["points"] if "minutes" in p] == ["minutes-0.3333"]
    assert said["points"][1:] == ["components-1", "components-2", "components-5", "components-9"]
    assert said["samples"] == 0
    assert not (run / "curves" / "samples.safetensors").exists()
    points, abstention = curves.score_curves(run, recipe)
    assert [p.x for p in points] == [0.3333, 1, 2, 5, 9]
    assert abstention is None


def test_only_what_the_recipe_asks_for(tmp_path):
    changes = {"curves.components": [], "curves.lags": [], "curves.samples": False, "curves.training_shares": [1]}
    run, recipe = plant(tmp_path, changes=changes)
    said, printed = draw(run, recipe)
    assert (said["points"], said["samples"], printed) == ([f"minutes-{8 * 16 * 2 / 60:.4g}"], 0, "")


def test_what_is_written_is_read_back(scored, tmp_path):
    evaluation_curves.write_curves(tmp_path / "curves.json", *scored)
    assert evaluation_curves.read_curves(tmp_path / "curves.json") == scored
    evaluation_curves.write_curves(tmp_path / "curves.json", scored[0], None)
    assert evaluation_curves.read_curves(tmp_path / "curves.json") == (scored[0], None)
    for content in ({"points": []}, {"points": [{"curve": "lag", "x": 1.0, "score": {}}], "abstention": None}, []):
        write_json(tmp_path / "curves.json", content)
        with pytest.raises(ArtefactError, match=r"curves\.json: not readable curves"):
            evaluation_curves.read_curves(tmp_path / "curves.json")


def test_the_stage_is_part_of_a_run_unless_it_is_left_out(tmp_path):
    stages = {s.name: s for s in pipeline.plan(load_recipe("smoke"))}
    assert stages["curves"].parents == ("prepare", "targets", "fit")
    assert "curves" in stages["evaluate"].parents
    without = load_recipe("smoke", {"curves": None})
    assert all("curves" not in (s.name, *s.parents) for s in pipeline.plan(without))
    assert curves.score_curves(tmp_path, without) == ([], None)
