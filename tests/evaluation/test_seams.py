import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from neuroclips.errors import DataError
from neuroclips.evaluation import seams as seams_module
from neuroclips.evaluation.intervals import SceneBootstrap
from neuroclips.evaluation.seams import (
    PixelDifferenceRule,
    choose_threshold,
    continues_scene,
    decision_scores,
    pixel_difference,
    seam_score,
    seams,
)


def chains(n_segments=20, clips=30, cut_share=0.3, seed=0):
    """(before, scene, segment) of clips in time order."""
    rng = np.random.default_rng(seed)
    segment = np.repeat(np.arange(n_segments), clips)
    first = np.arange(len(segment)) % clips == 0
    before = np.where(first, -1, np.arange(len(segment)) - 1)
    return before, np.cumsum(first | (rng.random(len(segment)) < cut_share)), segment


def film(n_clips=41, seed=0):
    """Clips of 6 frames, 8 x 10 pixels, that brighten by 2 levels a frame, in scenes of 1 to 4 clips: (videos, scene).

    A scene starts with random colours between 20 and 99, so its last frame is below 150.
    """
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(n_clips), rng.integers(1, 5, n_clips))[:n_clips]
    step = np.arange(n_clips) - np.searchsorted(scene, scene)  # number of the clip in its scene
    colours = rng.integers(20, 100, (n_clips, 3, 8, 10))[scene]
    brightness = 2 * (6 * step[:, None] + np.arange(6))  # (B, F)
    return (colours[:, None] + brightness[:, :, None, None, None]).astype(np.uint8), scene


# Truth and thresholds.
def test_truth_is_an_equal_scene_number():
    before, scene = np.array([-1, 0, 1, -1, 3]), np.array([4, 4, 5, 5, 5])
    assert continues_scene(scene, before).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("seed", range(30))
def test_threshold_has_the_highest_balanced_accuracy(seed):
    rng = np.random.default_rng(seed)
    same = np.array([True, False, *(rng.random(29) < 0.6)])
    values = np.round(rng.normal(size=31) + 1.2 * same, 1 + seed % 3)  # rounding makes ties
    fpr, tpr, _ = roc_curve(same, values)  # every threshold there is
    chosen = balanced_accuracy_score(same, values > choose_threshold(values, same))
    assert chosen == pytest.approx(((tpr + 1 - fpr) / 2).max())


def test_threshold_of_two_gaussians_is_where_their_densities_meet():
    rng = np.random.default_rng(0)
    same = rng.random(40_000) < 0.8  # balanced accuracy does not care how rare cuts are
    assert choose_threshold(rng.normal(size=40_000) + 3.0 * same, same) == pytest.approx(1.5, abs=0.1)


def test_equally_good_thresholds():
    same = np.array([False, True, False, True])
    assert choose_threshold(np.array([0.0, 1.0, 2.0, 5.0]), same) == 3.5  # 0.5 and 3.5 are right 3 times of 4
    assert choose_threshold(np.array([0.0, 1.0, 2.0, 3.0]), same) == 0.5
    with_none_before = np.array([np.nan, 0.0, 1.0, 2.0, 5.0])
    assert choose_threshold(with_none_before, np.array([True, *same])) == 3.5


def test_useless_similarity_joins_nothing():
    same = np.array([True, True, False, False])
    assert choose_threshold(np.array([0.1, 0.2, 0.3, 0.4]), same) == 0.4
    assert choose_threshold(np.full(4, 0.2), same) == 0.2


@pytest.mark.parametrize("answer", [True, False])
def test_threshold_needs_cuts_and_continued_scenes(answer):
    with pytest.raises(DataError, match="needs some of both"):
        choose_threshold(np.array([0.3, 0.1, np.nan]), np.array([answer, answer, not answer]))


# Scores of decisions.
def test_scores_agree_with_scikit_learn():
    before, scene, _ = chains(n_segments=7, clips=11)
    same = continues_scene(scene, before)
    joined = same ^ (np.random.default_rng(1).random(77) < 0.2)
    rows = {s.metric: s for s in decision_scores("rule", joined, same, before=before, block=scene)}
    cut, decided = ~same[before >= 0], ~joined[before >= 0]
    assert rows["accuracy"].value == pytest.approx(accuracy_score(cut, decided))
    assert rows["balanced accuracy"].value == pytest.approx(balanced_accuracy_score(cut, decided))
    assert rows["cut precision"].value == pytest.approx(precision_score(cut, decided))
    assert rows["cut recall"].value == pytest.approx(recall_score(cut, decided))
    assert rows["accuracy"].chance == pytest.approx(max(cut.mean(), 1 - cut.mean()))
    assert rows["cut precision"].chance == pytest.approx(cut.mean())
    assert rows["cut recall"].chance == pytest.approx(decided.mean())
    assert all(row.n == 70 and row.ci_low <= row.value <= row.ci_high for row in rows.values())


def test_random_decisions_are_at_chance():
    before, scene, segment = chains(n_segments=25, clips=41)
    same = continues_scene(scene, before)
    joined = np.random.default_rng(2).permutation(same[before >= 0])  # as many cuts, anywhere
    joined = np.insert(joined, np.searchsorted(np.flatnonzero(before >= 0), np.flatnonzero(before < 0)), False)
    for block in (scene, segment):
        for row in decision_scores("shuffled", joined, same, before=before, block=block):
            if row.metric != "accuracy":  # its chance is a constant answer, which random ones do not reach
                assert row.ci_low < row.chance < row.ci_high
    always = {s.metric: s for s in decision_scores("always", before >= 0, same, before=before, block=scene)}
    assert always["accuracy"].value == pytest.approx(always["accuracy"].chance)
    assert always["balanced accuracy"].value == pytest.approx(0.5)
    assert np.isnan(always["cut precision"].value)  # no cut was decided
    assert always["cut precision"].ci_low is None


def test_interval_over_segments_covers_the_truth():
    """Right decisions at a rate that differs from segment to segment; the mean rate is 0.8."""
    rng, covered = np.random.default_rng(3), 0
    for trial in range(200):
        before, scene, segment = chains(n_segments=12, clips=29, seed=trial)
        same = continues_scene(scene, before)
        rate = rng.choice([0.7, 0.9], 12)[segment]
        joined = np.where(rng.random(len(same)) < rate, same, ~same)
        row = decision_scores("rule", joined, same, before=before, block=segment, draws=300, seed=trial)[1]
        assert row.metric == "balanced accuracy"
        covered += row.ci_low <= 0.8 <= row.ci_high
    assert 0.90 <= covered / 200 <= 0.99


def test_paired_difference_of_two_rules():
    before, scene, _ = chains()
    same = continues_scene(scene, before)
    rng = np.random.default_rng(4)
    hard = rng.random(len(same)) < 0.3  # both rules guess there; one errs a little more often
    joined = np.where(hard, rng.random(len(same)) < 0.5, same)
    worse = joined ^ (rng.random(len(same)) < 0.03)
    (row, *_) = decision_scores(
        "rule", joined, same, before=before, block=scene, baselines={"worse": worse, "alike": joined}
    )
    assert row.baselines["worse"] < row.value
    low, high = row.differences["worse"]
    assert 0 < low < row.value - row.baselines["worse"] < high
    assert high - low < row.ci_high - row.ci_low
    assert row.differences["alike"] == (0, 0)


def test_film_without_cuts_has_an_accuracy_only():
    before = np.array([-1, 0, 1, 2])
    rows = decision_scores("rule", before >= 0, before >= 0, before=before, block=np.array([0, 0, 1, 1]))
    assert rows[0].value == 1
    assert all(np.isnan(row.value) and row.ci_low is None for row in rows[1:])
    with pytest.raises(DataError, match="none of 4 clips follows another"):
        decision_scores("rule", before >= 9, before >= 9, before=np.full(4, -1), block=np.arange(4))


# Pictures.
def test_pixel_difference_is_that_of_mean_frames():
    videos, _ = film()
    before = np.array([-1, *range(40)])
    before[7] = 3  # any order
    found = pixel_difference(videos, before)
    assert np.isnan(found[0])
    for i, b in ((1, 0), (7, 3), (40, 39)):
        expected = np.abs(videos[b].mean(axis=0) - videos[i].mean(axis=0)).mean() / 255
        assert found[i] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(pixel_difference((videos / 255).astype(np.float32), before), found, atol=1e-6)


def test_pixel_rule_finds_cuts_of_a_clean_film_and_none_in_noise():
    before = np.array([-1, *range(40)])
    videos, scene = film(seed=0)
    rule = PixelDifferenceRule().fit(videos, before, continues_scene(scene, before))
    assert 12 / 255 < -rule.threshold_ < 25 / 255  # between 6 frames of a scene and a cut
    videos, scene = film(seed=1)
    assert (rule.same_scene(videos, before) == continues_scene(scene, before)).all()
    noise = np.random.default_rng(5).integers(0, 256, (400, 2, 3, 8, 10)).astype(np.uint8)
    scene, before = np.arange(200) // 2, np.arange(200) - 1
    same = continues_scene(scene, before)
    blind = PixelDifferenceRule().fit(noise[:200], before, same).same_scene(noise[200:], before)
    (_, balanced, *_) = decision_scores("noise", blind, same, before=before, block=scene)
    assert balanced.ci_low < 0.5 < balanced.ci_high


def test_seams_of_a_film_are_as_smooth_as_its_clips():
    videos, scene = film()
    before = np.array([-1, *range(40)])
    same = continues_scene(scene, before)
    found = seams(videos, before, same)
    assert found.clip.tolist() == np.flatnonzero(same).tolist()
    np.testing.assert_allclose(found.jump, 2 / 255, atol=1e-6)
    np.testing.assert_allclose(found.within, 2 / 255, atol=1e-6)
    cuts = seams(videos, before, ~same)
    assert cuts.clip.tolist() == np.flatnonzero(~same)[1:].tolist()  # the first clip has none before it
    assert (cuts.jump > 5 * cuts.within).all()


def test_within_is_the_median_step_of_the_two_clips_that_meet():
    videos = np.zeros((3, 4, 3, 8, 10), np.uint8)
    videos[1] = 200  # not one of the two
    videos[0] = np.array([0, 5, 15, 215])[:, None, None, None]  # steps of 5, 10 and a cut
    videos[2] = np.array([0, 20, 50, 90])[:, None, None, None]  # 20, 30, 40
    found = seams(videos, np.array([2, -1, 1]), np.array([True, False, False]))
    np.testing.assert_allclose(found.jump, [90 / 255], atol=1e-6)  # from the end of clip 2 to the start of clip 0
    np.testing.assert_allclose(found.within, [25 / 255], atol=1e-6)


def test_one_frame_has_no_seam():
    with pytest.raises(DataError, match="1 frame"):
        seams(np.zeros((3, 1, 3, 8, 10), np.uint8), np.array([-1, 0, 1]), np.array([False, True, True]))


def test_seam_score_is_the_mean_jump_beside_the_same_joins_made_otherwise():
    rng = np.random.default_rng(0)
    videos = rng.random((7, 3, 3, 4, 5)).astype(np.float32)
    smooth = videos.copy()
    before = np.array([-1, 0, 1, -1, 3, 4, 5])
    joined = np.array([False, True, False, False, True, True, False])
    for clip in np.flatnonzero(joined):
        smooth[clip, 0] = smooth[before[clip], -1] + 0.01
    film = np.zeros((7, 2, 3, 6, 7), np.uint8)
    film[:, -1] = 51  # a jump of 0.2 at every join
    block = np.array([0, 0, 0, 1, 1, 2, 2])
    smooth = np.clip(smooth, 0, 1)
    row = seam_score("fused", smooth, {"alone": videos}, film, before, joined, block=block, draws=300)
    jumps = [np.abs(videos[before[c], -1] - videos[c, 0]).mean() for c in (1, 4, 5)]
    assert row.baselines["alone"] == pytest.approx(np.mean(jumps), rel=1e-5)
    assert row.value == pytest.approx(0.01, rel=0.05)
    assert "2 frames a clip, 0.200" in row.note
    assert row.n == 3
    assert row.differences["alone"][1] < 0
    assert row.beats("alone")
    with pytest.raises(DataError, match="no clips are joined"):
        seam_score("fused", smooth, {}, film, before, ~joined & joined, block=block)


def test_area_under_the_curve_is_sklearns_and_its_draws_are_of_whole_scenes():
    rng = np.random.default_rng(3)
    scene = np.repeat(np.arange(9), rng.integers(2, 6, 9))
    n = len(scene)
    before = np.arange(n) - 1
    same = continues_scene(scene, before)
    evidence = np.round(same + rng.normal(size=n), 1)  # with ties
    evidence[0] = np.nan
    other = -evidence
    joined = evidence > 0.5
    rows = decision_scores(
        "planted", joined, same, before=before, block=scene, baselines={"worse": ~joined}, evidence=evidence,
        baseline_evidence={"worse": other}, draws=400,
    )  # fmt: skip
    (row,) = (r for r in rows if r.metric == "AUC")
    assert row.value == pytest.approx(roc_auc_score(same[1:], evidence[1:]))
    assert row.baselines["worse"] == pytest.approx(1 - row.value)
    assert row.chance == 0.5
    boot = SceneBootstrap(scene[1:], 400, 0)
    by_hand = []
    for times in boot.times[:50]:
        weight = times[boot.block]
        if weight[same[1:]].any() and weight[~same[1:]].any():
            by_hand.append(roc_auc_score(same[1:], evidence[1:], sample_weight=weight))
    draws = seams_module._area_under_curve(boot, evidence[1:], ~same[1:]).draws[:50]
    np.testing.assert_allclose(draws[np.isfinite(draws)], by_hand)
