"""Each check against what it is made of: closed forms, planted faults, and the limits of its criterion."""

from dataclasses import replace

import numpy as np
import pytest

from neuroclips.data.selection import fisher_z, t_test
from neuroclips.evaluation import audit
from neuroclips.evaluation.audit import FilmPair, Finding, Scan, Timeline

T, V = 60, 37


def smooth(rng, *shape):
    """Noise that neighbouring rows share, as responses do."""
    white = rng.normal(size=(*shape[:-2], shape[-2] + 2, shape[-1]))
    return (white[..., 2:, :] + 1.5 * white[..., 1:-1, :] + white[..., :-2, :]).astype(np.float32)


def scans(rng, segments=("seg1", "seg2", "seg3"), repeats=3, *, split="train", noise=1.5, n=T):
    """One response a segment, with fresh noise in every repeat: pairs of repeats correlate at about 0.6."""
    found = []
    for segment in segments:
        response = smooth(rng, n, V)
        for r in range(repeats):
            values = response + noise * rng.normal(size=(n, V))
            found.append(Scan(split, segment, r + 1, values.astype(np.float32)))
    return found


def changed(all_scans, segment, repeat, values):
    return [replace(s, values=values) if (s.segment, s.repeat) == (segment, repeat) else s for s in all_scans]


def of(findings, check):
    return [f for f in findings if f.check == check]


def only(findings, severity):
    assert [f.severity for f in findings] == [severity]
    return findings[0]


# --- pieces with a closed form ----------------------------------------------------------------------------------------


def test_shifted_correlation_of_rolled_columns():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(400, 5))
    b = np.roll(a, 2, axis=0)  # b at t + 2 is a at t
    curve = audit.shifted_correlation(b, a)
    assert curve.argmax() == audit.MAX_SHIFT + 2
    assert curve[audit.MAX_SHIFT + 2] == pytest.approx(1, abs=0.02)
    expected = np.mean([np.corrcoef(a[:, d], b[:, d])[0, 1] for d in range(5)])
    assert curve[audit.MAX_SHIFT] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(audit.shifted_correlation(a, b), curve[::-1], atol=1e-12)


@pytest.mark.parametrize("top", [-1.7, -0.4, 0.0, 0.3, 1.9])
def test_the_peak_of_a_parabola_is_exact(top):
    curve = 1 - 0.1 * (np.arange(-3, 4) - top) ** 2
    assert audit.peak_position(curve) == pytest.approx(top)


def test_a_peak_at_the_border_or_of_a_flat_curve():
    assert audit.peak_position(np.arange(7.0)) == 3
    assert audit.peak_position(-np.arange(7.0)) == -3
    assert audit.peak_position(np.array([0.0, 1, 1, 1, 0, 0, 0])) == -1.5


def test_autocorrelation_and_effective_n_of_a_first_order_process():
    rng, rho, n = np.random.default_rng(1), 0.6, 4000
    parts = []
    for length in (n // 4, 3 * n // 4):
        x = np.zeros((length, 7))
        for t in range(1, length):
            x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=7)
        parts.append(x)
    found = audit.autocorrelation(parts, 30)
    np.testing.assert_allclose(found[:4], rho ** np.arange(1, 5), atol=0.02)
    assert audit.effective_n(n, found) == pytest.approx(n * (1 - rho) / (1 + rho), rel=0.08)
    assert audit.effective_n(100, rho ** np.arange(1, 80)) == pytest.approx(100 / (1 + 2 * 1.5), rel=0.03)


def test_effective_n_is_the_variance_of_a_mean():
    rng, rho = np.random.default_rng(2), 0.5 ** np.arange(1, 25)
    lag = np.abs(np.subtract.outer(np.arange(25), np.arange(25)))
    rows = rng.multivariate_normal(np.zeros(25), 0.5**lag, size=20000)
    assert audit.effective_n(25, rho) == pytest.approx(1 / rows.mean(axis=1).var(), rel=0.05)
    assert audit.effective_n(25, -rho) == 25


def test_autocorrelation_does_not_cross_parts():
    rng = np.random.default_rng(3)
    parts = [rng.normal(size=(2, 3)) for _ in range(500)]
    parts = [np.stack([p[0], -p[0]]) for p in parts]  # rows of a part are opposite, of neighbours unrelated
    found = audit.autocorrelation(parts, 3)
    assert found[0] == pytest.approx(-1, abs=0.01)
    np.testing.assert_array_equal(found[1:], 0)


def test_likeness_of_frames():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 256, (2, 5, 3, 7, 9), dtype=np.uint8)
    r, difference = audit.frame_likeness(a, b)
    for i in range(5):
        assert r[i] == pytest.approx(np.corrcoef(a[i].ravel(), b[i].ravel())[0, 1])
        assert difference[i] == pytest.approx(np.abs(a[i].astype(int) - b[i].astype(int)).mean())
    faint = (120 + rng.integers(0, 9, (5, 3, 7, 9))).astype(np.uint8)
    assert (audit.frame_likeness(faint, faint)[0] == 0).all()


def test_the_nearest_frame_is_found_wherever_it_is():
    rng = np.random.default_rng(5)
    thumbs, other_thumbs = rng.random((4, 3, 48)), rng.random((6, 3, 48))

    def frames(t):
        return np.rint(255 * t).astype(np.uint8).reshape(*t.shape[:2], 3, 4, 4)

    other_thumbs[5, 1] = thumbs[2, 0]
    other_thumbs[1] = 0.5  # no contrast, near everything
    pairs = audit.nearest_frames(thumbs, frames(thumbs), other_thumbs, frames(other_thumbs))
    assert [p.clip for p in pairs] == [0, 1, 2, 3]
    assert (pairs[2].frame, pairs[2].other, pairs[2].other_frame, pairs[2].difference) == (0, 5, 1, 0)
    assert pairs[2].is_copy
    assert not any(p.is_copy or p.other == 1 for p in pairs[:2] + pairs[3:])


def test_the_worst_of_findings():
    assert audit.worst([]) == "ok"
    assert audit.worst([Finding("a", "warning", ""), Finding("b", "ok", "")]) == "warning"
    assert audit.worst([Finding("a", "warning", ""), Finding("b", "fault", "")]) == "fault"


# --- values -----------------------------------------------------------------------------------------------------------


def z(values):
    return ((values - values.mean(axis=0)) / values.std(axis=0, ddof=1)).astype(np.float32)


def test_sound_values_have_no_finding():
    assert audit.check_values("run", z(np.random.default_rng(0).normal(size=(T, 300)))) == []


def test_each_fault_of_values():
    bold = z(np.random.default_rng(0).normal(size=(T, 300)))
    broken, flat, flatter, scaled = bold.copy(), bold.copy(), bold.copy(), bold.copy()
    broken[3, [8, 11]] = np.inf, np.nan
    flat[:, 4:7], flatter[:, 4:40] = 0, 2.5
    scaled[:, 5:40] *= 1.2
    assert only(audit.check_values("run", broken), "fault").numbers == {"not_finite": 2}
    assert only(audit.check_values("run", flat), "warning").numbers == {"constant": 3}
    assert only(audit.check_values("run", flatter), "fault").numbers == {"constant": 36}
    assert only(audit.check_values("run", scaled), "fault").numbers == pytest.approx({"mean": 0, "sd": 1.2}, abs=1e-4)
    assert only(audit.check_values("run", bold + np.float32(0.2)), "fault").numbers["mean"] == pytest.approx(0.2)
    assert audit.check_values("run", scaled, whole=False) == []
    scaled[:, 8:] = bold[:, 8:]  # three voxels of 300 do not condemn a run
    assert audit.check_values("run", scaled) == []


def test_presence():
    present, filled = np.ones((2, 5, 3), bool)
    assert audit.check_presence("seg1", present, filled) == []
    gone = present.copy()
    gone[:, 1] = False
    assert only(audit.check_presence("seg1", gone, gone), "warning").numbers == {"missing": 1}
    assert only(audit.check_presence("seg1", present, gone), "fault").numbers == {"empty": 1}
    assert only(audit.check_presence("seg1", gone, filled), "fault").numbers == {"hidden": 1}


def test_a_jump_is_seen_in_its_run_only_and_a_cut_of_the_film_is_none():
    rng = np.random.default_rng(6)
    for repeats in (1, 2, 4):
        runs = scans(rng, ["seg1"], repeats)
        assert audit.check_jumps(runs) == []
        moved = runs[-1].values.copy()
        moved[20] += 9 * rng.normal(size=V)
        found = only(audit.check_jumps(changed(runs, "seg1", repeats, moved)), "warning")
        assert found.where == f"seg1, repeat {repeats}"
        assert found.numbers["volumes"] == 2  # there and back
    cut = 9 * rng.normal(size=V)
    shared = [replace(s, values=s.values + np.float32(np.arange(T) == 20)[:, None] * cut) for s in runs]
    assert audit.check_jumps(shared) == []
    assert audit.check_jumps([replace(s, values=s.values[: audit.MIN_TRS - 1]) for s in shared[:1]]) == []


# --- scans beside scans -----------------------------------------------------------------------------------------------


def test_copies_of_scans():
    rng = np.random.default_rng(7)
    runs = scans(rng) + scans(rng, ["a"], split="test", n=T + 4)
    assert only(audit.check_duplicates(runs), "ok").numbers["highest_r"] < 0.8
    copy = only(audit.check_duplicates(changed(runs, "seg3", 1, 5 - -2 * runs[0].values)), "fault")
    assert "seg1, repeat 1 and seg3, repeat 1" in copy.where
    assert copy.numbers["r"] == pytest.approx(1)
    near = runs[0].values + 0.7 * rng.normal(size=(T, V)).astype(np.float32)  # r = 0.95
    assert only(audit.check_duplicates(changed(runs, "seg1", 2, near)), "warning").numbers["r"] < audit.COPY_R
    both = [replace(s, data=name) for name in ("one", "two") for s in scans(np.random.default_rng(1), ["a", "b"])]
    subjects = only(audit.check_duplicates(both), "fault")
    assert subjects.numbers["pairs"] == 6
    assert "one: a, repeat 1 and two: a, repeat 1" in subjects.where


def test_repeats_of_high_quality_are_no_copies():
    assert only(audit.check_duplicates(scans(np.random.default_rng(8), noise=0.3)), "ok").numbers["highest_r"] > 0.9


def test_agreement_and_shift_of_sound_repeats():
    for seed in range(20):
        for repeats in (2, 3, 10):
            found = audit.check_repeats(scans(np.random.default_rng(seed), repeats=repeats))
            assert [f.severity for f in found] == ["ok", "ok"]


@pytest.mark.parametrize("repeats", [2, 3, 5])
@pytest.mark.parametrize("trs", [-3, -1, 1, 2])
def test_a_late_repeat(repeats, trs):
    runs = scans(np.random.default_rng(9), repeats=repeats)
    late = changed(runs, "seg2", 2, np.roll(runs[repeats + 1].values, trs, axis=0))
    found = audit.check_repeats(late)
    assert of(found, "repeats that disagree")[0].severity == "ok"  # late is not wrong
    shifted = only(of(found, "shifted volumes"), "fault")
    assert abs(shifted.numbers["trs"]) == pytest.approx(abs(trs), abs=0.25)
    if repeats == 2:
        first, second = (2, 1) if trs > 0 else (1, 2)
        assert shifted.where == "seg2"
        assert f"repeat {first} answers" in shifted.found
        assert f"later than repeat {second}" in shifted.found
    else:
        assert shifted.where == "seg2, repeat 2"
        assert ("later" if trs > 0 else "earlier") in shifted.found


def test_a_repeat_of_another_film():
    rng = np.random.default_rng(10)
    runs = scans(rng, repeats=3)
    foreign = changed(runs, "seg2", 2, smooth(rng, T, V))
    found = audit.check_repeats(foreign)
    wrong = only(of(found, "repeats that disagree"), "fault")
    assert wrong.where == "seg2, repeat 2"
    assert wrong.numbers["r"] < 0.2
    assert of(found, "shifted volumes")[0].severity == "ok"  # where nothing agrees, a peak means nothing


def test_a_split_of_noise_is_one_warning():
    rng = np.random.default_rng(11)
    runs = scans(rng) + [replace(s, values=rng.normal(size=(T, V))) for s in scans(rng, ["a", "b"], split="test")]
    found = audit.check_repeats(runs)
    noise = only(of(found, "repeats that disagree"), "warning")
    assert noise.where == "the test split"
    assert of(found, "shifted volumes")[0].severity == "ok"


def test_single_presentations_cannot_be_judged():
    found = audit.check_repeats(scans(np.random.default_rng(12), repeats=1))
    assert "not judged" in only(found, "ok").found


@pytest.fixture
def watched():
    """Scans of six training segments and one test segment, and the film features that drive them."""
    rng = np.random.default_rng(13)
    weights = rng.normal(size=(5, V))
    runs, pictures = [], {}
    for split, segment in [("train", f"seg{i}") for i in range(6)] + [("test", "a")]:
        film = smooth(rng, T, 5)
        pictures[split, segment] = film
        runs += [Scan(split, segment, r, film @ weights + 2 * rng.normal(size=(T, V))) for r in (1, 2)]
    return runs, pictures


@pytest.mark.parametrize("segment", ["seg2", "a"])
@pytest.mark.parametrize("trs", [-2, 1, 2])
def test_a_segment_that_answers_its_film_late(watched, segment, trs):
    runs, pictures = watched
    assert only(audit.check_film_shift(runs, pictures), "ok").numbers["judged"] == 14
    late = [replace(s, values=np.roll(s.values, trs, axis=0)) if s.segment == segment else s for s in runs]
    found = only(audit.check_film_shift(late, pictures), "fault")
    assert found.where == f"{segment}, repeat 1, 2"
    assert found.numbers["trs"] == pytest.approx(trs, abs=0.3)


def test_the_film_says_nothing_about_lags_where_it_is_not_decoded(watched):
    runs, pictures = watched
    rng = np.random.default_rng(14)
    noise = [replace(s, values=rng.normal(size=(T, V))) for s in runs]
    assert "too little" in only(audit.check_film_shift(noise, pictures), "ok").found
    short = {key: film[:20] for key, film in pictures.items()}
    brief = [replace(s, values=s.values[:20]) for s in runs]
    assert "below 30 TRs" in only(audit.check_film_shift(brief, short), "ok").found
    assert "fewer than two" in only(audit.check_film_shift(runs[:2], pictures), "ok").found


# --- film and time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r", "difference", "split", "severity"),
    [
        (0.985, 7.9, "test", "fault"), (0.985, 7.9, "validation", "warning"), (0.985, 8.1, "test", "warning"),
        (0.96, 2.0, "test", "warning"), (0.94, 2.0, "test", "ok"),
    ],
)  # fmt: skip
def test_limits_of_copied_film(r, difference, split, severity):
    pairs = [FilmPair(0, 1, 3, 0, 0.5, 40.0), FilmPair(1, 0, 2, 2, r, difference)]
    found = only(audit.check_copies(pairs, ["x", "y"], list("abcd"), split=split, other_split="train"), severity)
    assert found.where == ("" if severity == "ok" else "y and c")
    assert (found.numbers.get("r") or found.numbers.get("highest_r")) == r


def test_test_film_that_returns_to_training_film():
    rng = np.random.default_rng(15)
    places = rng.normal(size=(400, 31))
    train, segment = places[:200], np.repeat(np.arange(5), 40)
    for share, severity in ((0.0, "ok"), (0.1, "ok"), (0.5, "warning")):
        test = places[200:260].copy()
        back = np.arange(60) < 60 * share
        test[back] = train[rng.permutation(200)[: back.sum()]] + 0.3 * rng.normal(size=(back.sum(), 31))
        found = only(
            audit.check_similarity(train, segment, test, "tokens", ids=[f"clip {i}" for i in range(60)]), severity
        )
        assert found.numbers["share"] == pytest.approx(0.8 * share, abs=0.08)  # 1 of 5 segments is left out
        if severity == "warning":
            assert all(int(name.split()[1]) < 30 for name in found.where.split(" and ")[0].split(", "))
    few = audit.check_similarity(train[:60], segment[:60], test, "tokens", ids=[""] * 60)
    assert "not judged" in only(few, "ok").found


def timeline(split, segments, onset, scene):
    n = len(onset)
    return Timeline(split, segments, np.zeros(n, int), np.asarray(onset, float), np.asarray(scene))


@pytest.mark.parametrize(
    ("start", "severity"), [(6.0, "fault"), (8.0, "fault"), (16.0, "fault"), (18.0, "ok"), (40.0, "ok")]
)
def test_the_guard_inside_a_segment(start, severity):
    train = timeline("train", ("seg1",), [0, 2, 4, 6], [0, 0, 1, 1])
    test = timeline("test", ("seg1",), [start, start + 2], [2, 2])  # at 18 s, clips of 8 ... 16 s are left out: 5 TRs
    found = only(audit.check_scenes([train, test], 2.0), severity)
    assert ("same time" in found.found) == (start == 6)


def test_scenes_in_two_splits():
    parts = [timeline("train", ("x",), [0, 2, 4], [0, 1, 1]), timeline("validation", ("y",), [0, 2], [2, 3])]
    assert audit.check_scenes([*parts, timeline("test", ("z",), [0, 2], [4, 5])], 2.0)[0].severity == "ok"
    found = only(audit.check_scenes([*parts, timeline("test", ("z",), [0, 2], [4, 1])], 2.0), "fault")
    assert (found.where, found.numbers) == ("scenes 1", {"scenes": 1})


def test_a_shot_that_runs_on():
    rng = np.random.default_rng(16)
    a, b, c, d = rng.integers(0, 256, (4, 3, 8, 10), dtype=np.uint8)
    ends = [("train", "x", a, b), ("train", "y", b, c), ("test", "z", c, d)]
    found = only(audit.check_joins(ends), "warning")  # x runs on into y as well, in the same split
    assert found.where == "y and z"
    assert only(audit.check_joins(ends[:2]), "ok").where == ""


def test_few_independent_clips():
    rng = np.random.default_rng(17)
    many, responses = np.arange(200) // 2, [rng.normal(size=(100, V)) for _ in range(2)]
    film = [rng.normal(size=(100, 5)) for _ in range(2)]
    ok = only(audit.check_independence(many, responses, film), "ok")
    assert ok.numbers["n_scenes"] == 100
    assert ok.numbers["n_responses"] == pytest.approx(200, rel=0.1)
    slow = [np.repeat(f[:5], 20, axis=0) for f in film]  # five pictures, each for 20 clips
    assert only(audit.check_independence(many, responses, slow), "warning").numbers["n_film"] < 20
    assert only(audit.check_independence(many // 20, responses, film), "warning").numbers["n_scenes"] == 5


# --- voxel selection --------------------------------------------------------------------------------------------------


@pytest.fixture
def selected():
    """Arguments of ``check_selection`` for 50 of 220 voxels, chosen from four training segments."""
    rng = np.random.default_rng(18)
    strength = rng.uniform(0, 0.5, 220)
    r = {split: strength + 0.15 * rng.normal(size=(n, 220)) for split, n in (("train", 4), ("test", 3))}
    t, p = t_test(fisher_z(r["train"]), 1)
    mask = np.zeros(220, bool)
    mask[np.argsort(p)[:50]] = True
    evidence = {"mask": mask, "p": p, "t": t, "reliability": r["train"].mean(axis=0)}
    return r, evidence | {
        "train": r["train"][:, mask], "others": {"test": r["test"][:, mask]}, "usable": np.ones(50, bool),
    }  # fmt: skip


def test_an_honest_selection(selected):
    _, given = selected
    found = only(audit.check_selection(**given), "ok")
    assert found.numbers["reliability_train"] > found.numbers["reliability_test"]  # regression to the mean


def test_evidence_from_test_segments_is_named(selected):
    r, given = selected
    for name, made in (
        ("training and test segments together", np.concatenate([r["train"], r["test"]])),
        ("test segments", r["test"]),
    ):
        t, p = t_test(fisher_z(made), 1)
        mask = np.zeros(220, bool)
        mask[np.argsort(p)[:50]] = True
        stored = {"mask": mask, "p": p, "t": t, "reliability": made.mean(axis=0)}
        again = {"train": r["train"][:, mask], "others": {"test": r["test"][:, mask]}}
        found = only(audit.check_selection(**given | stored | again), "fault")
        assert found.found.endswith(f"it is that of {name}")


def test_honest_reliability_does_not_hide_other_evidence(selected):
    r, given = selected
    t, _ = t_test(fisher_z(np.concatenate([r["train"], r["test"]])), 1)
    assert "t by" in only(audit.check_selection(**given | {"t": t}), "fault").found


def test_a_mask_that_does_not_follow_from_its_evidence(selected):
    _, given = selected
    p = given["p"].copy()
    p[np.flatnonzero(~given["mask"])[:3]] = 0
    found = only(audit.check_selection(**given | {"p": p}), "fault")
    assert found.numbers == {"outside": 3}


def test_voxels_that_are_not_sound_are_not_compared(selected):
    _, given = selected
    train, usable = given["train"].copy(), given["usable"].copy()
    train[:, :5] = 0
    assert only(audit.check_selection(**given | {"train": train}), "fault")
    usable[:5] = False
    assert only(audit.check_selection(**given | {"train": train, "usable": usable}), "ok")
