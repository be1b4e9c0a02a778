import numpy as np
import pytest

from neuroclips.artefacts import Rows
from neuroclips.errors import DataError
from neuroclips.evaluation.floors import mean_frame_videos, shuffle_across_scenes
from neuroclips.evaluation.identification import candidate_pool, correlation_scores
from neuroclips.evaluation.scores import score_agreement, score_identification, score_videos

B = 60
SCENE = np.repeat(np.arange(20), 3)


@pytest.fixture
def clips():
    return {"ids": [f"test1/{2 * b:04d}s" for b in range(B)], "scene": SCENE}


@pytest.fixture
def placed(clips):
    return clips | {"segment": np.repeat([0, 1], [40, 20]), "onset": np.r_[np.arange(40) * 2.0, np.arange(20) * 2.0]}


def shuffles(predicted, n=5):
    return [predicted[shuffle_across_scenes(SCENE, np.random.default_rng(s))] for s in range(n)]


def by_metric(scored, method):
    return {s.metric: s for s in scored.scores if s.method == method}


def test_a_planted_signal_beats_its_floors_and_the_shuffled_control_does_not(placed):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(B, 5, 8)).astype(np.float32)
    predicted = truth + 3 * rng.normal(size=truth.shape).astype(np.float32)
    scored = score_identification(
        "ridge", predicted, truth, reference=np.zeros((5, 8), np.float32), **placed, n_repeats=10,
        floors={"shuffled": shuffles(predicted), "mean": np.zeros_like(truth)}, ceiling=np.eye(B),
    )  # fmt: skip
    for metric, score in by_metric(scored, "ridge").items():
        assert score.beats_floors, metric
        assert score.beats_chance, metric
        assert score.p_values["other pairings"] == pytest.approx(1 / 1001)
        assert 0 < score.brain_attributable <= 1
        low, high = score.brain_attributable_interval
        assert low <= score.brain_attributable <= high
        assert (score.n, score.n_effective, score.n_repeats) == (B, 20, 10)
    nothing = {metric: s.floors["mean"] for metric, s in by_metric(scored, "ridge").items()}
    size = candidate_pool(placed["segment"], placed["onset"], 10.0).sum(axis=1)
    assert nothing == pytest.approx(
        {
            "top-1": (1 / size).mean(),
            "top-5": (5 / size).mean(),
            "pairwise": 0.5,
            "median rank": np.median(size + 1) / 2,
        }
    )
    control = by_metric(scored, "ridge, shuffled")
    assert all(s.control and not s.beats_chance for s in control.values())
    assert control["pairwise"].ci_low <= 0.5 <= control["pairwise"].ci_high
    assert by_metric(scored, "ridge")["top-1"].ceiling == 1
    assert by_metric(scored, "ridge")["median rank"].ceiling == 1


def test_noise_predictions_are_not_significant(placed):
    rng, small = np.random.default_rng(1), 0
    for _ in range(20):
        predicted, truth = rng.normal(size=(2, B, 9))
        scored = score_identification("noise", predicted, truth, reference=np.zeros(9), **placed, floors={}, draws=200)
        small += by_metric(scored, "noise")["pairwise"].p_values["other pairings"] < 0.05
    assert small <= 4  # P(more) = 0.003 under the null


def test_video_scores_stand_beside_floors_and_ceiling(clips):
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 256, size=(B, 2, 3, 9, 8), dtype=np.uint8)
    noise = rng.integers(0, 256, size=truth.shape, dtype=np.uint8)
    videos = (truth * 0.5 + noise * 0.5).astype(np.uint8)
    floors = {"shuffled": shuffles(videos, 2), "mean frame": mean_frame_videos(noise, B)}
    scored = score_videos("blurry", videos, truth, **clips, floors=floors, ceiling=truth)
    rows = by_metric(scored, "blurry")
    assert set(rows) == {"pixel correlation", "SSIM", "PSNR", "motion direction", "motion error"}
    assert rows["pixel correlation"].ceiling == pytest.approx(1)
    assert rows["pixel correlation"].floors["mean frame"] == pytest.approx(0, abs=0.05)
    assert rows["PSNR"].unit == "dB"
    rows.pop("motion error")  # standing still errs less than noise
    assert all(s.beats_floors for s in rows.values())
    values = scored.per_clip.query("method == 'blurry' and metric == 'SSIM'")
    assert values["clip"].tolist() == clips["ids"]
    assert values["value"].mean() == pytest.approx(rows["SSIM"].value)


def test_differences_are_paired(clips):
    # Clips differ widely in difficulty; the method beats its floor by the same small step on each.
    truth = np.zeros((B, 1, 3, 8, 8), np.float32)
    level = np.linspace(0.1, 0.9, B)[:, None, None, None, None].astype(np.float32)
    floor, better = truth + level, truth + level * np.float32(0.99)
    score = by_metric(score_videos("m", better, truth, **clips, floors={"f": floor}), "m")["PSNR"]
    step = -20 * np.log10(0.99)
    assert score.differences["f"] == pytest.approx((step, step), abs=1e-4)
    assert score.ci_high - score.ci_low > 1


def test_no_brain_share_without_room_below_the_ceiling(clips):
    videos = np.random.default_rng(3).integers(0, 256, size=(B, 1, 3, 8, 8), dtype=np.uint8)
    noise = [np.random.default_rng(s).integers(0, 256, size=videos.shape, dtype=np.uint8) for s in (4, 5)]
    scored = score_videos("m", noise[0], videos, **clips, floors={"shuffled": noise[0]}, ceiling=noise[1])
    assert by_metric(scored, "m")["pixel correlation"].brain_attributable is None


def test_one_scene_gives_values_without_intervals_or_tests(placed):
    placed["scene"] = np.zeros(B, int)
    features = np.random.default_rng(6).normal(size=(B, 7))
    score = score_identification("m", features, features, reference=np.zeros(7), **placed, floors={"f": features})
    top1 = by_metric(score, "m")["top-1"]
    assert (top1.value, top1.ci_low, top1.p_values, top1.differences, top1.n_effective) == (1, None, {}, {}, 1)


def test_lengths_that_differ_are_refused(clips):
    videos = np.zeros((B, 1, 3, 8, 8), np.uint8)
    with pytest.raises(DataError, match="59 ids"):
        score_videos("m", videos, videos, ids=clips["ids"][1:], scene=SCENE, floors={})


def test_agreement_and_error_of_features():
    rng = np.random.default_rng(4)
    true, reference = rng.normal(size=(12, 5, 8)) + 3, np.full((5, 8), 3.0)
    near, nearer = (true + noise * rng.normal(size=true.shape) for noise in (2.0, 0.5))
    scene = np.arange(12) // 2
    found = score_agreement(
        "prior", nearer, true, reference=reference, ids=[f"c{i}" for i in range(12)], scene=scene,
        floors={"before": near, "shuffled": nearer[::-1]}, draws=200,
    )  # fmt: skip
    rows = {s.metric: s for s in found.scores if not s.control}
    flat = [(x - 3).reshape(12, -1) for x in (nearer, true)]
    assert rows["agreement"].value == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*flat)]), abs=1e-5)
    assert rows["error"].value == pytest.approx(((flat[0] - flat[1]) ** 2).sum() / (flat[1] ** 2).sum(), rel=1e-4)
    assert rows["agreement"].differences["before"][0] > 0
    assert rows["error"].differences["before"][1] < 0
    mean = np.broadcast_to(reference, true.shape)
    rows = score_agreement(
        "mean", mean, true, reference=reference, ids=[f"c{i}" for i in range(12)], scene=scene, floors={}, draws=200
    ).scores  # fmt: skip
    assert {s.metric: s.value for s in rows} == pytest.approx({"agreement": 0, "error": 1, "profile correlation": 0})


def test_rows_in_another_order_score_as_copies_do(placed, monkeypatch):
    """Shuffled predictions that are read in order, in small parts, against copies of them in one piece."""
    rng = np.random.default_rng(2)
    true = rng.normal(size=(B, 3, 7)) + 5
    predicted = (true + 2 * rng.normal(size=true.shape)).astype(np.float16)
    orders = [shuffle_across_scenes(SCENE, np.random.default_rng(s)) for s in range(2)]
    mean, sd = true.mean(axis=0), true.std(axis=0)
    where = {k: placed[k] for k in ("ids", "scene")}
    found = {}
    for name, floor in {"copies": [predicted[o] for o in orders], "rows": [Rows(predicted, o) for o in orders]}.items():
        if name == "rows":
            monkeypatch.setattr("neuroclips.evaluation.scores._VALUES_AT_ONCE", 50)
            monkeypatch.setattr("neuroclips.evaluation.agreement._VALUES_AT_ONCE", 50)
            monkeypatch.setattr("neuroclips.evaluation.identification._FEATURES_AT_ONCE", 4)
        shared = {"reference": mean, "floors": {"shuffled": floor}, "draws": 100}
        scores = score_identification("m", predicted, true, **placed, **shared).scores
        found[name] = scores + score_agreement("m", predicted, true, sd=sd, **where, **shared).scores
    assert len(found["rows"]) == 15  # eight metrics, and the controls of all but the profile correlation
    for one, other in zip(found["rows"], found["copies"]):
        assert (one.metric, one.method, one.value) == (other.metric, other.method, pytest.approx(other.value, abs=1e-5))
        assert one.floors == pytest.approx(other.floors, abs=1e-5)
        for name, p in one.p_values.items():
            assert p == pytest.approx(other.p_values[name], abs=1e-3)


def test_a_baseline_is_no_floor():
    """It reads the brain: not beating it is no sign of decoding nothing."""
    rng = np.random.default_rng(5)
    true, scene = rng.normal(size=(12, 40)), np.arange(12) // 2
    good, better, nothing = (true + noise * rng.normal(size=true.shape) for noise in (1.0, 0.3, 50.0))
    (score, *_) = score_agreement(
        "neural", good, true, reference=np.zeros(40), ids=[f"c{i}" for i in range(12)], scene=scene, draws=200,
        floors={"shuffled": nothing}, baselines={"ridge": better},
    ).scores  # fmt: skip
    assert (set(score.floors), set(score.baselines)) == ({"shuffled"}, {"ridge"})
    assert score.beats_floors
    assert score.beats("ridge") is False
    assert score.baselines["ridge"] > score.value


def test_chance_is_that_of_predictions_made_for_other_scenes(placed):
    """Neighbours are left out of a target's pool, so it has no rivals that look like it: 1 / n would be too low."""
    rng = np.random.default_rng(7)
    truth = rng.normal(size=(20, 30))[SCENE] + 0.6 * rng.normal(size=(B, 30))
    predicted = truth + 2.5 * rng.normal(size=truth.shape)
    orders = [shuffle_across_scenes(SCENE, rng) for _ in range(60)]
    found = score_identification(
        "m", predicted, truth, reference=np.zeros(30), **placed, exclude_seconds=8.0, draws=100,
        floors={"shuffled": [predicted[order] for order in orders]},
    )  # fmt: skip
    for metric, control in by_metric(found, "m, shuffled").items():
        assert control.value == pytest.approx(control.chance, rel=0.35), metric  # sixty shuffles of all pairings
        assert control.contains_chance, metric
        assert by_metric(found, "m")[metric].chance == control.chance
    pool = candidate_pool(placed["segment"], placed["onset"], 8.0)
    similarity = correlation_scores(predicted, truth, np.zeros(30))
    by_hand = [
        np.mean([np.argmax(np.where(pool[t], similarity[i], -2)) == t for i in range(B) if SCENE[i] != SCENE[t]])
        for t in range(B)
    ]
    assert by_metric(found, "m")["top-1"].chance == pytest.approx(np.mean(by_hand))


def test_chance_without_neighbours_or_likeness_is_the_analytic_one(placed):
    rng = np.random.default_rng(8)
    predicted, truth = rng.normal(size=(2, B, 9))
    found = score_identification("m", predicted, truth, reference=np.zeros(9), **placed, exclude_seconds=0.0, floors={})
    chance = {metric: s.chance for metric, s in by_metric(found, "m").items()}
    assert chance == pytest.approx({"top-1": 1 / B, "top-5": 5 / B, "pairwise": 0.5, "median rank": 30.5}, rel=0.06)


def test_no_brain_share_where_the_ceiling_is_below_the_floor(clips):
    """Else a method as bad as the ceiling would have all of it."""
    truth = np.random.default_rng(9).integers(0, 256, size=(B, 1, 3, 8, 8), dtype=np.uint8)
    noise = np.random.default_rng(10).integers(0, 256, size=truth.shape, dtype=np.uint8)
    scored = score_videos("m", noise, truth, **clips, floors={"shuffled": truth}, ceiling=noise)
    assert [s.brain_attributable for s in scored.scores] == [None] * len(scored.scores)
