from dataclasses import replace

import numpy as np
import pytest

from neuroclips.errors import ArtefactError, DataError, RecipeError, SplitLeakError
from neuroclips.evaluation.seams import continues_scene, decision_scores
from neuroclips.video.fusion import (
    SCENE_RULES,
    KnownScenes,
    SceneClassifier,
    SceneSimilarity,
    chain_positions,
    fuse,
    join,
    load_scene_rule,
    pair_features,
    similarity,
)
from neuroclips.video.guidance import Guidance, VideoGenerator

WIDTH = 23  # P


def planted(n_segments, seed, *, noise=0.5, hidden_code=False, cut_share=0.4, clips=25):
    """Clips, embedded as a code of their scene + noise + a large constant. ``cut_share``: of clips that start a scene.

    ``hidden_code``: only 4 of the 23 numbers tell scenes, the others are large and change from clip to clip, so that
    they drown the cosine.
    """
    rng = np.random.default_rng(seed)
    segment = np.repeat(np.arange(n_segments), clips)
    first = np.arange(len(segment)) % clips == 0
    before = np.where(first, -1, np.arange(len(segment)) - 1)
    scene = np.cumsum(first | (rng.random(len(segment)) < cut_share)) - 1
    told = np.arange(WIDTH) < 4 if hidden_code else np.ones(WIDTH, bool)
    code = rng.choice([-1.0, 1.0], (len(segment), WIDTH))[scene]
    clip = np.where(told, code + noise * rng.normal(size=code.shape), 3 * rng.normal(size=code.shape))
    clip = clip + 10 * np.random.default_rng(99).normal(size=WIDTH)
    unit = (clip / np.linalg.norm(clip, axis=1, keepdims=True)).astype(np.float32)
    return KnownScenes(unit, before, continues_scene(scene, before)), scene


def shuffled(known, seed):
    """The same clips with labels that say nothing."""
    pairs = np.flatnonzero(known.before >= 0)
    same = known.same.copy()
    same[pairs] = np.random.default_rng(seed).permutation(same[pairs])
    return replace(known, same=same)


def balanced_accuracy(rule, known, scene):
    joined = rule.same_scene(known.embeddings, known.before)
    return decision_scores(rule.name, joined, known.same, before=known.before, block=scene)[1]


def test_known_scenes_of_clips(make_clips):
    clips, _ = make_clips("validation", n_segments=3, clips=7)
    embeddings = np.random.default_rng(0).normal(size=(21, WIDTH)).astype(np.float32)
    known = KnownScenes.of(clips, embeddings)
    assert known.before.tolist() == [i - 1 if i % 7 else -1 for i in range(21)]
    assert known.same.tolist() == [bool(i % 7) and i // 4 == (i - 1) // 4 for i in range(21)]
    with pytest.raises(SplitLeakError):
        KnownScenes.of(make_clips("test", n_segments=3, clips=7)[0], embeddings)


# 1. Scene rules.
def test_similarity_is_the_centred_cosine():
    rng = np.random.default_rng(1)
    embeddings, centre = rng.normal(size=(5, WIDTH)) + 7, np.full(WIDTH, 7.0)
    found = similarity(embeddings, np.array([-1, 0, -1, 4, 2]), centre)
    assert np.isnan(found[[0, 2]]).all()
    for i, b in ((1, 0), (3, 4), (4, 2)):
        x, y = embeddings[i] - centre, embeddings[b] - centre
        assert found[i] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    raw = similarity(embeddings, np.array([-1, 0, -1, 4, 2]), np.zeros(WIDTH))
    assert np.nanmin(raw) > 0.9  # what the constant part would hide


def test_features_do_not_depend_on_the_order_of_a_pair():
    embeddings = np.random.default_rng(2).normal(size=(2, WIDTH))
    centre = np.zeros(WIDTH)
    one, other = (pair_features(embeddings, np.array(b), centre) for b in ([-1, 0], [1, -1]))
    assert one.shape == (1, 2 * WIDTH + 1)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rule", [SceneSimilarity(), SceneClassifier()], ids=lambda r: r.name)
def test_rules_find_planted_scenes_and_nothing_in_shuffled_labels(rule):
    (train, _), (validation, _), (test, scene) = planted(16, 1), planted(6, 2), planted(12, 3)
    assert balanced_accuracy(rule.fit(train, validation), test, scene).ci_low > 0.9
    blind = balanced_accuracy(rule.fit(shuffled(train, 4), shuffled(validation, 5)), shuffled(test, 6), scene)
    assert blind.ci_low < 0.5 < blind.ci_high


def test_classifier_learns_what_the_cosine_cannot_see():
    (train, _), (validation, _), (test, scene) = (
        planted(n, s, noise=0.2, hidden_code=True) for n, s in ((40, 1), (8, 2), (12, 3))
    )
    cosine = balanced_accuracy(SceneSimilarity().fit(train, validation), test, scene)
    learnt = balanced_accuracy(SceneClassifier().fit(train, validation), test, scene)
    assert learnt.ci_low > 0.7 > cosine.ci_high


def test_evidence_is_calibrated_as_if_cuts_were_not_rare():
    kind = {"noise": 1.5, "cut_share": 0.15}
    (train, _), (validation, _), (test, _) = planted(60, 1, **kind), planted(20, 2, **kind), planted(80, 3, **kind)
    rule = SceneClassifier().fit(train, validation)
    pairs = test.before >= 0
    evidence, same = rule.evidence(test.embeddings, test.before), test.same[pairs]
    assert np.isnan(evidence[~pairs]).all()
    promised = 1 / (1 + np.exp(-evidence[pairs]))
    weight = np.where(same, 0.5 / same.mean(), 0.5 / (~same).mean())
    for low, high in ((0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)):
        part = (promised > low) & (promised <= high)
        assert np.average(same[part], weights=weight[part]) == pytest.approx(promised[part].mean(), abs=0.12)


def test_classifier_is_deterministic_and_leaves_the_global_generator_alone():
    import torch

    (train, _), (validation, _) = planted(5, 1), planted(3, 2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (SceneClassifier(hidden=7, steps=20, seed=s).fit(train, validation) for s in (3, 3, 4))
    assert torch.rand(1) == expected
    np.testing.assert_array_equal(first.weight_in_, second.weight_in_)
    assert first.threshold_ == second.threshold_
    assert not np.array_equal(first.weight_in_, other.weight_in_)
    assert first.weight_in_.shape == (2 * WIDTH + 1, 7)


@pytest.mark.parametrize("name", SCENE_RULES)
def test_a_saved_rule_decides_alike(name, tmp_path):
    (train, _), (validation, _), (test, _) = planted(6, 1), planted(3, 2), planted(4, 3)
    rule = SCENE_RULES[name]().fit(train, validation)
    about = rule.save(tmp_path)
    assert about["rule"] == name
    assert about["threshold"] == rule.threshold_
    again = load_scene_rule(tmp_path)
    assert type(again) is type(rule)
    assert {s: getattr(again, s) for s in again.settings} == about["settings"]
    evidence = again.evidence(test.embeddings, test.before)
    np.testing.assert_array_equal(evidence, rule.evidence(test.embeddings, test.before))
    decided = again.same_scene(test.embeddings, test.before)
    assert not decided[test.before < 0].any()
    np.testing.assert_array_equal(decided, rule.same_scene(test.embeddings, test.before))


def test_a_file_of_another_rule_is_refused(tmp_path):
    (train, _), (validation, _) = planted(5, 1), planted(3, 2)
    SceneClassifier(steps=3).fit(train, validation).save(tmp_path)
    about = (tmp_path / "scene_rule.json").read_text()
    (tmp_path / "scene_rule.json").write_text(about.replace('"classifier"', '"similarity"'))
    with pytest.raises(ArtefactError, match="'similarity' with arrays bias_in_"):
        load_scene_rule(tmp_path)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("rule", [SceneSimilarity(), SceneClassifier(steps=3)], ids=lambda r: r.name)
def test_rules_refuse_what_they_cannot_learn_from(rule):
    (train, _), (validation, _) = planted(5, 1), planted(3, 2)
    with pytest.raises(DataError, match="both"):
        rule.fit(train, replace(validation, same=validation.before >= 0))
    broken = train.embeddings.copy()
    broken[4, 2] = np.nan
    with pytest.raises(DataError, match="clip 4 is not finite"):
        rule.fit(validation, replace(train, embeddings=broken))
    rule.fit(train, validation)
    with pytest.raises(DataError, match="5 wide; the rule was fitted to 23"):
        rule.same_scene(train.embeddings[:, :5], train.before)


# 2. Chains.
#          segment a: 0 1 2 3 4 5 6, segment b: 7 8 9; clip 3 starts a scene
BEFORE = np.array([-1, 0, 1, 2, 3, 4, 5, -1, 7, 8])
JOINED = np.array([False, True, True, False, True, True, True, False, False, True])


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (2, [0, 1, 0, 0, 1, 0, 1, 0, 0, 1]),
        (3, [0, 1, 2, 0, 1, 2, 0, 0, 0, 1]),
        (None, [0, 1, 2, 0, 1, 2, 3, 0, 0, 1]),
    ],
)
def test_chains(limit, expected):
    assert chain_positions(JOINED, BEFORE, limit).tolist() == expected
    order = np.random.default_rng(3).permutation(10)  # clip order does not matter
    where = np.argsort(order)
    before = np.where(BEFORE < 0, -1, where[BEFORE])[order]
    assert chain_positions(JOINED[order], before, limit).tolist() == np.array(expected)[order].tolist()


def test_unlimited_chains_are_the_runs_of_joined_clips():
    known, scene = planted(9, 4)
    positions = chain_positions(known.same, known.before, None)
    assert (positions == np.arange(len(scene)) - np.searchsorted(scene, scene)).all()


def test_impossible_chains_are_refused():
    with pytest.raises(RecipeError, match="at most 0"):
        chain_positions(JOINED, BEFORE, 0)
    with pytest.raises(DataError, match="clip 7 is joined"):
        chain_positions(JOINED | (np.arange(10) == 7), BEFORE)


# 3. Generation.
class Recorder:
    """Every frame of a clip's video is made from its own id and latents, and from its first frame, one level higher."""

    name = "recorder"

    def __init__(self):
        self.calls = []

    def generate(self, guidance, *, seed):
        self.calls.append((guidance, seed))
        videos = np.empty((len(guidance), 6, 3, 4, 7), np.uint8)
        for i, name in enumerate(guidance.ids):
            start = np.full((3, 4, 7), 10 * int(name) + seed)
            if guidance.first_frames is not None:
                start = np.rint(guidance.first_frames[i] * 255)
            for frame in range(6):
                videos[i, frame] = start + frame
                videos[i, frame, 0, 0, 0] = round(float(guidance.latents[i, frame, 0, 0, 0]))
        return videos


def guidance(n):
    """Parts that all know their clip's number, in the ids of ``planted`` order."""
    number = np.arange(n, dtype=np.float32)
    return Guidance(
        ids=[str(i) for i in range(n)],
        latents=np.broadcast_to(number[:, None, None, None, None], (n, 6, 4, 2, 5)),
        tokens=np.broadcast_to(number[:, None, None], (n, 5, 8)),
        prior_tokens=np.broadcast_to(number[:, None, None] + 100, (n, 5, 8)),
        keyframes=np.broadcast_to(number[:, None, None, None] / n, (n, 3, 4, 7)),
        captions=[f"clip {i}" for i in range(n)],
    )


def test_last_frames_are_handed_over_and_all_else_stays_the_clips_own():
    recorder, given = Recorder(), guidance(10)
    assert isinstance(recorder, VideoGenerator)
    positions = chain_positions(JOINED, BEFORE)
    videos = fuse(recorder, given, positions, BEFORE, seed=3)
    calls = [[int(i) for i in made.ids] for made, _ in recorder.calls]
    assert calls == [[0, 3, 6, 7, 8], [1, 4, 9], [2, 5]]  # one call a position, all chains together
    for index, (made, seed) in zip(calls, recorder.calls):
        assert seed == 3
        assert made.captions == [f"clip {i}" for i in index]
        for part in ("latents", "tokens", "prior_tokens", "keyframes"):
            np.testing.assert_array_equal(getattr(made, part), getattr(given, part)[index])
    assert recorder.calls[0][0].first_frames is None
    for index, (made, _) in zip(calls[1:], recorder.calls[1:]):
        assert made.first_frames.dtype == np.float32
        np.testing.assert_array_equal(made.first_frames, (videos[BEFORE[index], -1] / 255).astype(np.float32))
    # Frame by frame: a chain goes on counting where the clip before stopped; frames in between repeat once.
    counted = videos[:, :, 1, 1, 1]
    for clip in range(10):
        start = 10 * clip + 3 if positions[clip] == 0 else counted[clip - 1, -1]
        assert counted[clip].tolist() == list(range(start, start + 6))
    assert (videos[:, :, 0, 0, 0] == np.arange(10)[:, None]).all()


def test_fusion_does_not_depend_on_the_order_of_clips():
    positions = chain_positions(JOINED, BEFORE)
    expected = fuse(Recorder(), guidance(10), positions, BEFORE, seed=3)
    order = np.random.default_rng(4).permutation(10)
    before = np.where(BEFORE < 0, -1, np.argsort(order)[BEFORE])[order]
    found = fuse(Recorder(), guidance(10).take(order), positions[order], before, seed=3)
    np.testing.assert_array_equal(found, expected[order])


def test_a_limit_of_one_is_no_fusion():
    plain = Recorder().generate(guidance(10), seed=3)
    recorder = Recorder()
    positions = chain_positions(JOINED, BEFORE, 1)
    np.testing.assert_array_equal(fuse(recorder, guidance(10), positions, BEFORE, seed=3), plain)
    assert len(recorder.calls) == 1


def test_positions_that_are_no_chains_are_our_mistake():
    with pytest.raises(AssertionError, match="follows one elsewhere"):
        fuse(Recorder(), guidance(3), np.array([0, 0, 2]), np.array([-1, 0, 1]), seed=3)
    with pytest.raises(AssertionError, match="no clip before it"):
        fuse(Recorder(), guidance(3), np.array([0, 1, 1]), np.array([-1, 0, -1]), seed=3)


# 4. One long video.
def test_join_puts_clips_in_time_order():
    videos = np.random.default_rng(5).integers(0, 256, (4, 6, 3, 5, 7)).astype(np.uint8)
    onset = np.array([7.5, 4.5, 9.0, 6.0])
    film = join(videos, onset, 1.5)
    assert film.shape == (24, 3, 5, 7)
    np.testing.assert_array_equal(film, np.concatenate([videos[i] for i in (1, 3, 0, 2)]))


def test_join_names_what_is_missing():
    videos = np.zeros((4, 6, 3, 5, 7), np.uint8)
    with pytest.raises(DataError, match=r"those at 5 s, 11 s are missing, at none repeated"):
        join(videos, np.array([9.0, 3.0, 7.0, 13.0]), 2.0)
    with pytest.raises(DataError, match=r"those at none are missing, at 5 s repeated"):
        join(videos, np.array([5.0, 3.0, 5.0, 7.0]), 2.0)
