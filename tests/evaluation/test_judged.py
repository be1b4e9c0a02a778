import numpy as np
import pytest

from neuroclips.evaluation.distribution import frechet_distance
from neuroclips.evaluation.judged import score_judged
from neuroclips.evaluation.judges import Seen
from neuroclips.evaluation.motion import frame_similarity

B, LOOKS, D, M = 40, 3, 12, 64
SCENE = np.repeat(np.arange(20), 2)
PLACED = {"ids": [f"c{b}" for b in range(B)], "scene": SCENE, "segment": np.zeros(B, int), "onset": np.arange(B) * 2.0}
ROWS = [
    "top-1", "top-5", "pairwise", "median rank", "2-way", "50-way", "2-way, any of 3", "50-way, any of 3",
    "frame similarity difference", "Fréchet distance",
]  # fmt: skip


def seen(rng, like: Seen | None = None, noise: float = 1.0) -> Seen:
    """A judge's view: of anything, or of something like ``like``."""
    features, logits = rng.normal(size=(B, LOOKS, D)), rng.normal(size=(B, LOOKS, M))
    if like is not None:
        features = like.features + noise * features
        logits = np.log(like.classes) + noise * logits
    classes = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return Seen(features.astype(np.float32), classes.astype(np.float32))


@pytest.fixture
def views():
    rng = np.random.default_rng(0)
    truth = seen(rng)
    shuffled = [seen(rng) for _ in range(2)]
    return truth, seen(rng, truth, 1.5), shuffled


def rows_of(scored, method="ours"):
    return {s.metric: s for s in scored.scores if s.method == method}


def judged(views, **more):
    truth, near, shuffled = views
    return score_judged(
        "ours", near, truth, judge="EfficientNet", reference=np.zeros(D, np.float32), floors={"shuffled": shuffled},
        ceiling=truth, consecutive=True, draws=200, **PLACED, **more,
    )  # fmt: skip


def test_a_planted_likeness_beats_the_shuffled_floor_in_every_row(views):
    rows = rows_of(judged(views))
    assert list(rows) == ROWS
    assert all(s.space == "EfficientNet" for s in rows.values())
    for name in ("top-1", "pairwise", "2-way", "50-way", "2-way, any of 3"):
        assert rows[name].beats_floors, name
        assert rows[name].ceiling == pytest.approx(1)
    control = rows_of(judged(views), "ours, shuffled")
    for name in ("2-way", "50-way", "2-way, any of 3", "50-way, any of 3"):
        assert control[name].value == pytest.approx(control[name].chance, abs=0.06), name
        assert rows[name].chance == control[name].chance


def test_the_fields_variant_is_easier(views):
    rows = rows_of(judged(views))
    for n in (2, 50):
        assert rows[f"{n}-way, any of 3"].value > rows[f"{n}-way"].value
        assert rows[f"{n}-way, any of 3"].chance > rows[f"{n}-way"].chance


def test_frechet_distance_is_that_of_the_mean_features(views):
    truth, near, shuffled = views
    row = rows_of(judged(views))["Fréchet distance"]
    mean = [s.features.mean(axis=1).astype(float) for s in (near, truth, *shuffled)]
    assert row.value == pytest.approx(frechet_distance(mean[0], mean[1]))
    assert row.floors["shuffled"] == pytest.approx(np.mean([frechet_distance(x, mean[1]) for x in mean[2:]]))
    assert row.ceiling == pytest.approx(0, abs=1e-6)
    assert not row.higher_is_better


def test_frame_similarity_stands_beside_the_films(views):
    truth, near, _ = views
    own, film = (frame_similarity(s.features) for s in (near, truth))
    rows = rows_of(judged(views, legacy=True))
    assert rows["frame similarity difference"].value == pytest.approx(np.abs(own - film).mean(), abs=1e-6)
    assert rows["frame similarity"].value == pytest.approx(own.mean(), abs=1e-6)
    assert f"the film itself: {film.mean():.3f}" in rows["frame similarity"].note
    assert rows["frame similarity"].ceiling is None
    x, y = (s.features.mean(axis=1) for s in (near, truth))
    likeness = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert 0 < (likeness <= 0.6).sum() < B
    expected = np.where(likeness > 0.6, own, 0).mean()
    assert rows["frame similarity, thresholded"].value == pytest.approx(expected, abs=1e-6)


def test_without_classes_or_neighbouring_frames_those_rows_are_left_out(views):
    truth, near, shuffled = (
        [Seen(s.features, None) for s in v] if isinstance(v, list) else Seen(v.features, None) for v in views
    )
    scored = score_judged(
        "ours", near, truth, judge="CLIP", reference=np.zeros(D, np.float32), floors={"shuffled": shuffled}, draws=200,
        **PLACED,
    )  # fmt: skip
    assert list(rows_of(scored)) == ["top-1", "top-5", "pairwise", "median rank", "Fréchet distance"]
