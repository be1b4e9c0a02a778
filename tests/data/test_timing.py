"""Which film second belongs to which volume, for any TR, onset, delay, frame rate and length of film.

Checked against first principles: positions in seconds, computed here in fractions without the module's formulas.
"""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neuroclips.data.frames import FilmInfo, frame_indices
from neuroclips.data.timing import check_delays, clips_in_film, clips_in_run, cut, default_delay, exact, place
from neuroclips.errors import DataError

T_R = st.sampled_from([0.72, 0.8, 1.0, 1.3, 1.5, 2.0, 2.2, 3.0]) | st.integers(400, 3500).map(lambda ms: ms / 1000)
ONSET = st.integers(-60_000, 600_000).map(lambda ms: ms / 1000)
FPS = st.sampled_from([Fraction(24), Fraction(25), Fraction(30), Fraction(24000, 1001), Fraction(30000, 1001)])
pytestmark = pytest.mark.usefixtures("unchecked_types")  # types are checked elsewhere; here thousands of calls count
settings.register_profile("timing", deadline=None, max_examples=300, derandomize=True)
settings.load_profile("timing")


@given(ONSET, T_R)
@example(4.0, 2.0)
@example(-0.001, 2.0)
@example(4.500001, 1.5)
def test_clip_0_is_the_first_whole_volume_of_film(onset, t_r):
    placed, start = cut(onset, t_r)
    shown, period = exact(onset), exact(t_r)
    assert shown + start == placed.first * period  # the film's second `start` is on when volume `first` begins
    assert placed.first >= 0
    assert start >= 0
    # No earlier volume began with the film running: it would be a clip that is thrown away.
    assert placed.first == 0 or (placed.first - 1) * period < shown
    assert placed.misfit == 0


@given(ONSET.filter(lambda s: s >= 0), ONSET, T_R)
def test_another_presentation_is_placed_at_the_nearest_volume(onset, other, t_r):
    _, start = cut(onset, t_r)
    placed = place(other, t_r, start)
    period = exact(t_r)
    film_second = placed.first * period - exact(other)  # of the film, when that volume begins
    assert placed.misfit == film_second - start
    if placed.first > 0:
        assert abs(placed.misfit) <= period / 2
        for volume in (placed.first - 1, placed.first + 1):
            assert abs(placed.misfit) <= abs(volume * period - exact(other) - start)
    assert place(onset, t_r, start).misfit == 0


@given(T_R, FPS, st.integers(1, 12), st.integers(1, 20_000), st.integers(0, 3000))
@example(2.0, Fraction(30), 6, 14_400, 0)  # CC2017: 480 s at 30 frames per second
@example(2.0, Fraction(3), 6, 720, 0)  # as many frames as the clips have
def test_every_clip_frame_is_the_film_frame_of_its_moment(t_r, fps, per_clip, n_frames, milliseconds):
    start, info = Fraction(milliseconds, 1000), FilmInfo(fps, n_frames, 48, 80)
    n = clips_in_film(info.length, start, t_r, per_clip)
    period = exact(t_r)
    if fps * period <= per_clip:  # refused by read_clips: frames would recur, or be missing by a rounding
        return
    # As many clips as fit, and no more: the last clip frame is on for half of its share at least.
    assert start + period * (n - Fraction(1, 2 * per_clip)) < info.length or n == 0
    assert start + period * (n + 1 - Fraction(1, 2 * per_clip)) >= info.length
    some = np.unique([0, n // 2, n - 1])
    frames = frame_indices(info, n, t_r, per_clip, start)
    assert frames.shape == (n, per_clip)
    for j in some[(some >= 0) & (some < n)]:
        for f in range(per_clip):
            moment = start + period * (int(j) + Fraction(f, per_clip))
            frame = int(frames[j, f])
            assert abs(frame / fps - moment) <= 1 / (2 * fps)  # the nearest one, never more than half a frame away
            assert 0 <= frame < n_frames
    assert (np.diff(frames.ravel()) > 0).all()  # in order, none twice


@given(st.integers(0, 400), st.integers(0, 100), st.integers(0, 12), ONSET.filter(lambda s: s >= 0), T_R)
def test_a_clips_response_lies_in_its_run_and_the_delay_after_it(n_volumes, first, delay, onset, t_r):
    n = clips_in_run(n_volumes, first, delay)
    last = first + delay + n - 1
    assert n == 0 or last == n_volumes - 1
    assert n > 0 or first + delay >= n_volumes
    # In seconds: the paired volume begins exactly `delay` volumes after the clip's film begins.
    placed, start = cut(onset, t_r)
    clip = 3
    film_begins = exact(onset) + start + clip * exact(t_r)
    assert (placed.first + delay + clip) * exact(t_r) - film_begins == delay * exact(t_r)


@given(st.floats(0.3, 4.0))
def test_the_usual_delay_is_the_whole_number_of_trs_nearest_to_4_seconds(t_r):
    delay = default_delay(t_r)
    assert all(abs(delay * t_r - 4) <= abs(other * t_r - 4) + 1e-9 for other in range(20))


def test_cc2017_by_hand():
    """245 volumes: one spare, 480 s of film, four spares; 246: two spares (method a.2)."""
    for spare in (1, 2):
        placed, start = cut(2.0 * spare, 2.0)
        assert (placed.first, start) == (spare, 0)
        assert clips_in_run(244 + spare, placed.first, 4) == 240
        assert clips_in_run(244 + spare, placed.first, 5) == 239
    assert clips_in_film(Fraction(480), Fraction(0), 2.0, 6) == 240
    assert default_delay(2.0) == 2
    info = FilmInfo(Fraction(30), 14_400, 768, 1024)
    assert frame_indices(info, 240, 2.0, 6)[7].tolist() == [420, 430, 440, 450, 460, 470]


@pytest.mark.parametrize("delays", [(), (3, 2), (2, 2), (-1, 2), (2, 11)])
def test_delays_out_of_order_or_reach_are_refused(delays):
    with pytest.raises(DataError, match=r"delay_trs is .* at a TR of 2 s; expected ascending numbers .* 0 to 10"):
        check_delays(delays, 2.0)
