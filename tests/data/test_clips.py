from dataclasses import replace

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from neuroclips.data.clips import neighbour, refuse_test_clips, shifted
from neuroclips.errors import DataError, SplitLeakError


def test_any_number_of_repeats_is_averaged_to_unit_variance(make_clips):
    clips, _ = make_clips(clips=400, repeats=7, signal=0.6)
    for k in (1, 2, 5, 7, None):
        assert clips.responses(k).std() == pytest.approx(1, abs=0.05)  # 0.8 without the correction, at 7 repeats
    np.testing.assert_array_equal(clips.responses(7), clips.responses())


def test_more_repeats_are_closer_to_the_signal(make_clips):
    clips, features = make_clips(clips=400, repeats=7, signal=0.3)
    signal = features @ np.random.default_rng(99).normal(size=(5, 41))
    agreement = [np.corrcoef(clips.responses(k).ravel(), signal.ravel())[0, 1] for k in (1, 2, 7)]
    assert agreement == sorted(agreement)
    assert agreement[2] > 1.3 * agreement[0]


def test_missing_repeats_are_left_out_of_the_mean(make_clips):
    clips, _ = make_clips(repeats=3)
    present = clips.present.copy()
    present[4, 0] = False
    bold = np.where(present[..., None], clips.bold, np.nan).astype(np.float32)
    gappy = replace(clips, present=present, bold=bold)
    r = clips.reliability
    expected = clips.bold[4, 1:].mean(axis=0) / np.sqrt(r + (1 - r) / 2)
    np.testing.assert_allclose(gappy.responses()[4], expected, rtol=1e-5)
    np.testing.assert_allclose(gappy.responses(1)[4], clips.bold[4, 1], rtol=1e-5)
    present[4] = False
    with pytest.raises(DataError, match="train0/0008s has no repeat"):
        replace(clips, present=present).responses()


def test_ids_are_unique_and_readable(make_clips):
    clips, _ = make_clips("test", clips=13)
    assert clips.ids[14] == "test1/0002s"
    assert len(set(clips.ids)) == len(clips)


@pytest.mark.parametrize("t_r", [0.5, 0.72, 1.5, 2.0])
def test_ids_are_unique_at_any_t_r(make_clips, t_r):
    clips, _ = make_clips("test", clips=13)
    clips = replace(clips, onset=clips.onset / 2 * t_r, t_r=t_r)
    assert len(set(clips.ids)) == len(clips)
    assert (
        clips.ids[1] == {0.5: "test0/0000.50s", 0.72: "test0/0000.72s", 1.5: "test0/0001.50s", 2.0: "test0/0002s"}[t_r]
    )


def test_taking_clips_keeps_the_split(make_clips):
    clips, _ = make_clips("test")
    part = clips.take(np.array([3, 5]))
    assert part.ids == [clips.ids[3], clips.ids[5]]
    with pytest.raises(SplitLeakError):
        refuse_test_clips(None, part)


def test_arrays_that_do_not_fit_each_other_are_refused(make_clips):
    clips, _ = make_clips()
    with pytest.raises(TypeCheckError):
        replace(clips, onset=clips.onset[:-1])


@pytest.mark.parametrize("shift", [-3, -1, 0, 1, 2])
def test_neighbours_are_found_by_time_in_any_order(shift):
    segment = np.array([0, 0, 0, 0, 1, 1, 2])
    onset = np.array([1.5, 3.0, 6.0, 7.5, 7.5, 9.0, 10.5])  # a gap at 4.5 s; no clip follows one of another segment
    at = {(s, t): i for i, (s, t) in enumerate(zip(segment, onset))}
    expected = np.array([at.get((s, t + shift * 1.5), -1) for s, t in zip(segment, onset)])
    assert neighbour(segment, onset, 1.5, shift).tolist() == expected.tolist()
    shuffle = np.random.default_rng(0).permutation(7)
    found = neighbour(segment[shuffle], onset[shuffle], 1.5, shift)
    where = np.argsort(shuffle)
    assert found.tolist() == np.where(expected < 0, -1, where[expected])[shuffle].tolist()


def test_neighbours_of_clips_that_start_between_trs():
    onset = np.array([1.0, 3.0, 5.0, 7.0])  # half a TR off: rounding each by itself would pair the wrong ones
    assert neighbour(np.zeros(4, int), onset, 2.0, 1).tolist() == [1, 2, 3, -1]
    assert neighbour(np.zeros(0, int), np.zeros(0), 2.0, 1).tolist() == []


def test_two_clips_at_one_time_are_refused():
    with pytest.raises(DataError, match="segment 3 start at 2 s"):
        neighbour(np.array([3, 3, 3]), np.array([2.0, 4.0, 2.4]), 2.0, -1)


def test_inputs_are_the_responses_at_several_lags(make_clips):
    clips, _ = make_clips(n_segments=3, clips=7)
    own, v = clips.responses(), clips.n_voxels
    np.testing.assert_array_equal(clips.inputs(), own)
    seen = replace(clips, lags=(0, 2, 3)).inputs()
    assert seen.shape == (21, 3 * v)
    np.testing.assert_array_equal(seen[:, :v], own)
    for number, lag in ((1, 2), (2, 3)):
        part = seen[:, number * v : (number + 1) * v]
        np.testing.assert_array_equal(part[: 7 - lag], own[lag:7])
        assert not part[7 - lag : 7].any()  # beyond the end of a run: the mean, not the next segment's start
        assert part[7 : 14 - lag].any()
    order = np.random.default_rng(0).permutation(21)
    np.testing.assert_array_equal(replace(clips, lags=(0, 2, 3)).take(order).inputs(), seen[order])


def test_shifted_rows_stay_in_their_segment():
    segment = np.array([0, 0, 0, 2, 2, 5])
    for shift in range(-4, 5):
        for row, source in enumerate(shifted(segment, shift)):
            other = row + shift
            inside = 0 <= other < 6 and segment[other] == segment[row]
            assert source == (other if inside else -1)
