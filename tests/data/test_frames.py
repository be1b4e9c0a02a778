"""Films: every frame carries its number in black and white blocks, so a wrong one is seen."""

from fractions import Fraction

import numpy as np
import pytest
from cc2017_dataset import write_film

from neuroclips.data.frames import (
    FilmInfo,
    count_trs,
    film_info,
    frame_indices,
    read_clips,
    read_video,
    scene_cuts,
    write_clip_video,
)
from neuroclips.errors import DataError

BITS = 12


def numbered(i):
    """A frame of 48 x 64 whose centre square shows ``i`` as 3 x 4 blocks, and whose sides are grey."""
    bits = (i >> np.arange(BITS)) & 1
    frame = np.full((48, 80, 3), 128, np.uint8)
    frame[:, 16:64] = np.kron(bits.reshape(3, 4), np.ones((16, 12)))[:, :, None] * 255
    return frame


def number_of(frame):
    """Read the number back from (3, 48, 48)."""
    blocks = frame.mean(axis=0).reshape(3, 16, 4, 12)[:, 4:12, :, 3:9].mean(axis=(1, 3))
    return int(((blocks > 128).ravel() * 2 ** np.arange(BITS)).sum())


@pytest.mark.parametrize("fps", ["30", "24", "25", "30000/1001", "6/2"])
def test_frames_are_those_of_their_exact_times(tmp_path, fps):
    path, n_trs, f = tmp_path / "film.mp4", 4, 6
    rate = Fraction(fps)
    write_film(path, (numbered(i) for i in range(round(2 * n_trs * rate))), fps)
    info = film_info(path)
    assert (info.fps, info.height, info.width) == (rate, 48, 80)
    assert count_trs(path, info, 2.0) == n_trs
    clips = read_clips(path, n_trs, 2.0, f, size=48)
    assert clips.shape == (n_trs, f, 3, 48, 48)
    shown = [[number_of(frame) for frame in clip] for clip in clips]
    expected = [[int(float(rate) * 2 * (j + k / f) + 0.5) for k in range(f)] for j in range(n_trs)]
    assert shown == expected


def test_thirty_frames_a_second_use_every_tenth_frame():
    info = FilmInfo(Fraction(30), 14_400, 48, 80)
    np.testing.assert_array_equal(frame_indices(info, 240, 2.0, 6).ravel(), np.arange(0, 14_400, 10))


def test_result_can_be_written_in_place(tmp_path):
    path = tmp_path / "film.mp4"
    write_film(path, (numbered(i) for i in range(60)))
    out = np.zeros((1, 3, 3, 48, 48), np.uint8)
    assert read_clips(path, 1, 2.0, 3, 48, out=out) is out
    assert number_of(out[0, 2]) == 40


def test_crop_is_central_and_resize_averages_areas(tmp_path):
    rng = np.random.default_rng(0)
    square = np.kron(rng.integers(0, 256, (16, 16, 1)), np.ones((4, 4, 3))).astype(np.uint8)  # 64 x 64, grey
    frame = np.full((64, 100, 3), 255, np.uint8)
    frame[:, 18:82] = square
    path = tmp_path / "film.mp4"
    write_film(path, [frame] * 12, fps=6, codec_options={"crf": "1"})
    small = read_clips(path, 1, 2.0, 6, size=32)[0, 0]
    expected = square.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(small.astype(float) - expected).max() <= 6


def test_fine_stripes_do_not_alias(tmp_path):
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    path = tmp_path / "film.mp4"
    write_film(path, [stripes] * 12, fps=6, codec_options={"crf": "1"})
    assert np.abs(read_clips(path, 1, 2.0, 6, size=32)[0].astype(float) - 127.5).max() < 8


def test_too_short_film_is_refused(tmp_path):
    path = tmp_path / "short.mp4"
    write_film(path, (numbered(i) for i in range(110)))
    message = r"short.mp4: 110 frames \(3.667 s\); expected at least 111, for 2 clips of 2 s"
    with pytest.raises(DataError, match=message):
        read_clips(path, 2, 2.0, 6, 48)
    with pytest.raises(DataError, match=r"short.mp4: lasts 3.300 s, 1.65 TRs of 2 s; expected a whole .* within 0.5 s"):
        count_trs(path, FilmInfo(Fraction(30), 99, 48, 80), 2.0)


def test_too_slow_film_is_refused(tmp_path):
    path = tmp_path / "slow.mp4"
    write_film(path, (numbered(i) for i in range(8)), fps=2)
    with pytest.raises(DataError, match=r"slow.mp4: 2 frames per second; expected at least 3, for 6 different frames"):
        read_clips(path, 2, 2.0, 6, 48)


def test_variable_frame_rate_is_refused(tmp_path):
    path = tmp_path / "variable.mp4"
    times = np.cumsum(np.where(np.arange(90) < 45, 1 / 30, 1 / 15))
    write_film(path, (numbered(i) for i in range(90)), fps=30, times=times)
    with pytest.raises(DataError, match=r"variable.mp4: variable frame rate; frame \d+ is shown at .* s where"):
        film_info(path)


def test_millisecond_timestamps_are_a_constant_rate(tmp_path):
    path = tmp_path / "film.mkv"
    write_film(path, (numbered(i) for i in range(90)), fps=30, times=np.arange(90) / 30)
    assert float(film_info(path).fps) == pytest.approx(30, abs=0.02)


def test_damaged_films_are_refused(tmp_path):
    path = tmp_path / "film.mp4"
    write_film(path, (numbered(i) for i in range(90)))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[:2000])
    text = tmp_path / "text.mp4"
    text.write_text("not found " * 99)
    for broken in (cut, text):
        for read in (film_info, read_video, scene_cuts):
            with pytest.raises(DataError, match=rf"{broken.name}: cannot be decoded as a film"):
                read(broken)


def test_scene_cuts_are_found(tmp_path):
    rng = np.random.default_rng(1)
    scenes = [np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8) for _ in range(3)]
    path = tmp_path / "film.mp4"
    lengths = (60, 100, 80)
    write_film(path, [scene for scene, n in zip(scenes, lengths) for _ in range(n)])
    np.testing.assert_allclose(scene_cuts(path), [60 / 30, 160 / 30], atol=1e-3)


def test_clip_videos_come_back(tmp_path):
    rng = np.random.default_rng(2)
    coarse = rng.integers(30, 226, (6, 3, 5, 7))
    frames = np.kron(coarse, np.ones((1, 1, 8, 8))).astype(np.uint8)  # 40 high, 56 wide
    path = tmp_path / "new" / "clip.mp4"
    write_clip_video(path, frames, seconds=2.0)
    info = film_info(path)
    assert (info.n_frames, info.seconds, info.height, info.width) == (6, 2.0, 40, 56)
    back = read_video(path)
    assert back.shape == frames.shape
    # Inside the blocks; at their edges yuv420p halves the colour resolution.
    inner = np.abs(back.astype(int) - frames).reshape(6, 3, 5, 8, 7, 8)[:, :, :, 3:5, :, 3:5]
    assert inner.mean() < 4
    assert list(path.parent.iterdir()) == [path]


def test_odd_clip_videos_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"odd\.mp4: frames of 33 x 40 pixels; expected even sizes"):
        write_clip_video(tmp_path / "odd.mp4", np.zeros((2, 3, 33, 40), np.uint8), 2.0)
    assert not list(tmp_path.iterdir())
