"""Films of one's own: dealt to training or test, cut to whole clips, every frame the one its time asks for."""

import itertools

import av
import numpy as np
import pytest

from neuroclips.data.frames import film_info, stream_frames
from neuroclips.errors import DataError
from neuroclips.recipe import FilmRecipe
from neuroclips.simulation.movies import FPS, Shot, plan_movies, write_movie

LEVELS, STEP = 27, 8  # frame i has brightness 20 + 8 (i mod 27), far enough apart to survive H.264
HEIGHT, WIDTH = 48, 66


def write_counting_film(path, seconds, fps):
    """A film whose brightness counts its frames."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.options = {"crf": "4", "preset": "ultrafast"}
        for i in range(round(seconds * fps)):
            picture = np.full((HEIGHT, WIDTH, 3), 20 + STEP * (i % LEVELS), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def counts(path, size):
    """The brightness counter of every frame of a film."""
    n = film_info(path).n_frames
    means = np.array([frame.mean() for frame in stream_frames(path, np.arange(n), size)])
    found = np.rint((means - 20) / STEP).astype(int)
    assert np.abs(means - 20 - STEP * found).max() < STEP / 2 - 1
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven films of 13 or 17 s at 24, 25 and 30 frames a second, and a file that is no film."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(7):
        write_counting_film(folder / f"film{number}.mp4", (13, 17)[number % 2], (24, 25, 30)[number % 3])
    (folder / "notes.txt").write_text("not a film")
    return folder


def recipe(**changes):
    usual = {"train_segments": 3, "train_seconds": 46, "test_segments": 2, "test_seconds": 20, "size": 64}
    return FilmRecipe.model_validate({**usual, **changes})


@pytest.mark.parametrize("seed", range(5))
def test_no_film_is_in_training_and_test(folder, seed):
    plan = plan_movies(folder, recipe(), seed)
    assert list(plan) == ["seg1", "seg2", "seg3", "test1", "test2"]
    films = {kind: {s.path for name, shots in plan.items() if name.startswith(kind) for s in shots}
             for kind in ("seg", "test")}  # fmt: skip
    assert not films["seg"] & films["test"]
    assert len(films["seg"]) + len(films["test"]) == 7
    assert all(path.suffix == ".mp4" for path in films["seg"] | films["test"])
    assert plan == plan_movies(folder, recipe(), seed)


def test_another_seed_deals_other_films(folder):
    tests = {frozenset(s.path for s in plan_movies(folder, recipe(), seed)["test1"]) for seed in range(5)}
    assert len(tests) > 1


@pytest.mark.parametrize("asked", [12, 20, 400])
def test_segments_last_whole_clips_and_test_film_is_shown_once(folder, asked):
    plan = plan_movies(folder, recipe(test_seconds=max(20, asked)), 1)
    for name, shots in plan.items():
        seconds = sum(shot.seconds for shot in shots)
        assert seconds / 2 == pytest.approx(round(seconds / 2), abs=1e-6)
        assert all(shot.seconds > 0 for shot in shots)
        if name.startswith("seg"):
            assert seconds == pytest.approx(46)
        for shot in shots:
            assert shot.start >= 0
            assert shot.start + shot.seconds <= film_info(shot.path).seconds + 1e-6
    shown = sorted((s.path, s.start, s.seconds) for name, shots in plan.items() if name.startswith("test")
                   for s in shots)  # fmt: skip
    for (path, start, seconds), (following, later, _) in itertools.pairwise(shown):
        assert path != following or start + seconds <= later + 1e-6


@pytest.mark.parametrize("fps", [24, 25, 30])
def test_a_written_frame_is_what_its_film_shows_at_that_time(tmp_path, fps):
    source = write_counting_film(tmp_path / "source.mp4", 8, fps)
    shots = [Shot(source, 0.0, 2.5), Shot(source, 4.0, 1.5), Shot(source, 6.5, 1.0)]
    write_movie(tmp_path / "film.mp4", shots, 64)
    info = film_info(tmp_path / "film.mp4")
    assert (info.n_frames, info.fps, info.height, info.width) == (round(5.0 * FPS), FPS, 64, 64)
    within = np.concatenate([shot.start + np.arange(round(shot.seconds * FPS)) / FPS for shot in shots])
    expected = np.floor(within * fps + 1e-6).astype(int) % LEVELS
    np.testing.assert_array_equal(counts(tmp_path / "film.mp4", 64), expected)


def test_shots_shorter_than_a_frame_are_passed_over(tmp_path):
    source = write_counting_film(tmp_path / "source.mp4", 3, 24)
    write_movie(tmp_path / "film.mp4", [Shot(source, 0.0, 1.0), Shot(source, 2.0, 0.004), Shot(source, 1.0, 0.996)], 64)
    assert film_info(tmp_path / "film.mp4").n_frames == 60


def test_too_little_film_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        plan_movies(tmp_path / "nowhere", recipe(), 0)
    for number in range(3):
        write_counting_film(tmp_path / f"short{number}.mp4", 2, 24)
    with pytest.raises(DataError, match=r": 3 films \(.*\.mp4.*\); expected at least 4"):
        plan_movies(tmp_path, recipe(), 0)
    write_counting_film(tmp_path / "short3.mp4", 2, 24)
    with pytest.raises(DataError, match=r"4 s of test film for 2 test segments; expected at least 10 s each"):
        plan_movies(tmp_path, recipe(), 0)
    (tmp_path / "short1.mp4").write_bytes(b"not a film")
    with pytest.raises(DataError, match=r"short1\.mp4: cannot be decoded as a film"):
        plan_movies(tmp_path, recipe(), 0)
