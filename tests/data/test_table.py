"""A table of one's own study: which second of film goes with which volume, computed here once more from the start.

Every voxel is a wave in film time: volume v holds what it was at the film's second shown DELAY volumes before. Where
the film stood at any volume is plain arithmetic, so a response that is a volume off, or a repeat that is placed wrong,
does not fit the wave any more.
"""

import json
import re
from fractions import Fraction

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cc2017_dataset import write_film

from neuroclips.data.prepare import prepare
from neuroclips.data.prepared import load_clips
from neuroclips.data.table import read_presentations, table_source
from neuroclips.errors import DataError
from neuroclips.recipe import DataRecipe

T_R, FPS, DELAY, F, BITS = 1.5, 25, 3, 5, 12
GRID = (6, 7, 8)
INSIDE = np.zeros(GRID, bool)
INSIDE[1:4, 1:6, :] = True
INSIDE[4, 2, :5] = True
V = int(INSIDE.sum())  # 125
RATE = np.random.default_rng(0).uniform(1 / 9, 1 / 5, V)  # of each voxel's wave, Hz
PHASE = np.random.default_rng(1).uniform(0, 2 * np.pi, V)
SECONDS = {"harbour": 18.0, "kite": 18.5, "market": 17.0, "night": 18.6}


def wave(seconds):
    """(T, V) what voxels hold, at some seconds of a film."""
    return np.sin(2 * np.pi * RATE * np.asarray(seconds)[:, None] + PHASE)


def expected_bold(seconds):
    """The same, less a straight line, at mean 0 and standard deviation 1."""
    values, time = wave(seconds), np.arange(len(seconds))
    for voxel in values.T:
        voxel -= np.polyval(np.polyfit(time, voxel, 1), time)
    return values / values.std(axis=0, ddof=1)


def numbered(i):
    """A frame of 48 x 48 that shows ``i`` as 3 x 4 black and white blocks."""
    bits = (i >> np.arange(BITS)) & 1
    return np.repeat(np.kron(bits.reshape(3, 4), np.ones((16, 12)))[:, :, None] * 255, 3, axis=2).astype(np.uint8)


def number_of(frame):
    blocks = frame.mean(axis=0).reshape(3, 16, 4, 12)[:, 4:12, :, 3:9].mean(axis=(1, 3))
    return int(((blocks > 128).ravel() * 2 ** np.arange(BITS)).sum())


def write_volumes(path, values, t_r=T_R):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, np.diag([3.0, 3, 3, 1]))
    if values.ndim == 4:
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = t_r
    image.to_filename(path)


def write_scan(path, shown, n_volumes):
    """A run in which ``shown`` = [(onset, film_start, seconds)]."""
    voxels = np.zeros((n_volumes, V))
    for onset, start, seconds in shown:
        time = (np.arange(n_volumes) - DELAY) * T_R - onset  # since the film came on, DELAY volumes ago
        on = (time > -T_R) & (time < seconds + T_R)
        voxels[on] = wave(time[on] + start)
    values = np.full((*GRID, n_volumes), 900, np.float32)
    values[INSIDE] += 40 * voxels.T
    write_volumes(path, values)


# Two films in a run, in another order in the next; onsets are not multiples of the TR, and shifted by some in repeats.
# film, split, film_start, duration, {run: onset}
SHOWN = [
    ("harbour", "train", 0.0, None, {"1": 4.0, "2": 34.0}),  # 1 s into a volume, in both
    ("kite", "train", 2.0, None, {"1": 30.7, "2": 6.7}),  # 0.7 s
    ("market", "validation", 0.0, 16.2, {"3": 3.0, "4": 27.0}),  # on the grid
    ("night", "test", 0.0, None, {"3": 27.2, "4": 4.7, "5": 4.6, "6": 3.6}),  # the last ones 0.1 s early, 0.4 s late
]


def seconds_of(film, start, duration):
    return duration or SECONDS[film] - start


@pytest.fixture(scope="module")
def table():
    found = []
    for film, split, start, duration, runs in SHOWN:
        for run, onset in runs.items():
            found.append({
                "onset": onset, "run": f"func/run-{run}_bold.nii.gz", "film": f"films/{film}.mp4", "split": split,
                "film_start": start, "duration": duration, "mask": "mask.nii.gz",
                "confounds": f"func/run-{run}_confounds.tsv",
            })  # fmt: skip
    return pd.DataFrame(found)


@pytest.fixture(scope="module")
def study(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("study")
    write_volumes(folder / "mask.nii.gz", INSIDE.astype(np.uint8))
    for film, seconds in SECONDS.items():
        write_film(folder / f"films/{film}.mp4", (numbered(i) for i in range(round(seconds * FPS))), FPS)
    for run in "123456":
        shown = [
            (runs[run], start, seconds_of(film, start, duration))
            for film, _, start, duration, runs in SHOWN
            if run in runs
        ]
        end = max(onset + seconds for onset, _, seconds in shown)
        n_volumes = int(end / T_R) + DELAY + 2
        write_scan(folder / f"func/run-{run}_bold.nii.gz", shown, n_volumes)
        motion = ["n/a", *["0.9" if run == "6" else "0.1"] * (n_volumes - 1)]
        pd.DataFrame({"framewise_displacement": motion}).to_csv(
            folder / f"func/run-{run}_confounds.tsv", sep="\t", index=False
        )
    write(folder, table)
    return folder


def write(folder, table, name="study.tsv"):
    table.to_csv(folder / name, sep="," if name.endswith("csv") else "\t", index=False, na_rep="n/a")
    return folder / name


def recipe(**changes):
    usual = {
        "layout": "table", "t_r": None, "detrend": None, "frames_per_clip": F, "frame_size": 48,
        "selection": {"method": "all"},
    }  # fmt: skip
    return DataRecipe.model_validate({**usual, **changes})


@pytest.fixture(scope="module")
def prepared(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    summary = prepare(study / "study.tsv", recipe(), out)
    return out, summary, load_clips(out / "prepare")


def first_volume(onset):
    """The first volume that starts when the film is on, by trying."""
    return next(v for v in range(999) if v * T_R >= onset - 1e-9)


# ---------------------------------------------------------------- pairing


@pytest.mark.parametrize("shown", SHOWN, ids=[shown[0] for shown in SHOWN])
def test_responses_and_frames_are_those_of_the_second_of_the_film(prepared, shown):
    film, split, start, duration, runs = shown
    clips = getattr(prepared[2], split)
    rows = np.flatnonzero(clips.segment == clips.segments.index(film))
    onsets = list(runs.values())
    first = first_volume(onsets[0])
    seconds = first * T_R - onsets[0] + T_R * np.arange(len(rows))  # since the film came on
    np.testing.assert_allclose(clips.onset[rows], start + seconds, atol=1e-5)
    # Whole clips only, and none is lost that has all its frames.
    length = seconds_of(film, start, duration)
    last = seconds[-1] + T_R * (F - 1) / F
    assert last + 0.5 * T_R / F <= length < last + (0.5 + F) * T_R / F + 1e-9
    for repeat, onset in enumerate(onsets):
        own = min(range(60), key=lambda v: abs(v * T_R - onset - seconds[0]))  # nearest to where the clips are cut
        film_time = own * T_R - onset + start + T_R * np.arange(len(rows))
        assert abs(film_time[0] - clips.onset[rows[0]]) <= T_R / 2
        np.testing.assert_allclose(clips.bold[rows, repeat], expected_bold(film_time), atol=2e-3)
        # A volume earlier or later would be another wave.
        assert np.abs(clips.bold[rows, repeat] - expected_bold(film_time + T_R)).mean() > 0.3
    shown_frames = np.array([[number_of(frame) for frame in clips.frames[row]] for row in rows])
    times = clips.onset[rows][:, None] + T_R * np.arange(F) / F
    assert np.abs(shown_frames / FPS - times).max() <= 0.5 / FPS + 1e-6


def test_what_was_found_is_on_the_card(prepared):
    _, summary, data = prepared
    assert (data.t_r, data.delay_trs, data.lags, data.train.n_voxels) == (T_R, DELAY, (0,), V)
    assert data.space == "volume, mask mask.nii.gz"
    assert data.train.segments == ("harbour", "kite")
    assert data.test.bold.shape[1] == 4
    (night,) = summary["splits"]["test"]["segments"]
    assert [(run["repeat"], run["file"], run["first_volume"]) for run in night["runs"]] == [
        (1, "run-3_bold.nii.gz", 19), (2, "run-4_bold.nii.gz", 4), (3, "run-5_bold.nii.gz", 4),
        (4, "run-6_bold.nii.gz", 3),
    ]  # fmt: skip
    assert [run["motion"]["mean_fd_mm"] for run in night["runs"]] == pytest.approx([0.1, 0.1, 0.1, 0.9])
    # Film time of clip 0 in this run, less that of the first presentation.
    of_first = 19 * T_R - 27.2
    assert [run["misfit"] for run in night["runs"]] == pytest.approx(
        [0, 4 * T_R - 4.7 - of_first, 4 * T_R - 4.6 - of_first, 3 * T_R - 3.6 - of_first]
    )
    assert night["runs"][3]["misfit"] == pytest.approx(-0.4)
    (warning,) = [text for text in summary["warnings"] if "off the grid" in text]
    assert re.search(r"study\.tsv, line 11: repeat 4 of night starts -0\.40 s off the grid .* line 8 gives", warning)
    assert summary["lag_curve"]["best"] in range(6)
    json.dumps(summary)


def test_several_delays_are_seen_side_by_side(study, prepared, tmp_path):
    summary = prepare(study / "study.tsv", recipe(delay_trs=[2, 3, 4], detrend=1), tmp_path)
    clips = load_clips(tmp_path / "prepare").train
    assert (clips.lags, summary["delay_trs"], summary["lags"]) == ((0, 1, 2), 2, [0, 1, 2])
    inputs = clips.inputs(1)
    assert inputs.shape == (len(clips), 3 * V)
    own = clips.responses(1)
    for row, segment in enumerate(clips.segment):
        for lag in (0, 1, 2):
            inside = row + lag < len(clips) and clips.segment[row + lag] == segment
            np.testing.assert_array_equal(
                inputs[row, lag * V : (lag + 1) * V], own[row + lag] if inside else np.zeros(V)
            )
    # The second third holds what a delay of 3 pairs with the clip, cleaned over other volumes.
    usual = prepared[2].train.responses(1)
    rows = np.flatnonzero(clips.segment == 0)[:-1]
    r = [np.corrcoef(inputs[row, V : 2 * V], usual[row])[0, 1] for row in rows]
    assert min(r) > 0.9


# ---------------------------------------------------------------- what the table says


def source(study, table, tmp_path, name="study.tsv", **changes):
    """Opened with the table changed: in a folder beside, with the paths of the study."""
    there = {column: [str(study / path) for path in table[column]] for column in ("run", "film", "mask", "confounds")}
    return table_source(write(tmp_path, table.assign(**there), name), recipe(**changes))


def test_a_shaky_run_is_left_out(study, table, tmp_path):
    found = source(study, table, tmp_path, max_motion=0.5)
    (night,) = found.splits["test"]
    assert list(night.runs) == [1, 2, 3]
    assert re.search(
        r"run-6_bold\.nii\.gz: mean framewise displacement 0\.90 mm; data\.max_motion is 0\.5", night.excluded[4]
    )
    assert any(text.startswith("left out: ") and "run-6" in text for text in found.warnings)
    assert found.splits["test"][0].runs[1].motion["max_fd_mm"] == pytest.approx(0.1)


def test_runs_can_be_left_out_by_name(study, table, tmp_path):
    (night,) = source(study, table, tmp_path, exclude=["night/2"]).splits["test"]
    assert list(night.runs) == [1, 3, 4]
    assert night.excluded[2].endswith("run-4_bold.nii.gz: named in data.exclude")


def test_commas_names_of_segments_repeats_and_subjects(study, table, tmp_path):
    named = table.assign(
        segment=[f"clip {i}" for i in (1, 1, 2, 2, 3, 3, 4, 4, 4, 4)], repeat=[2, 1, 1, 2, 1, 2, 4, 1, 7, 2],
        subject=["sub-01"] * 4 + ["1"] * 6,
    )  # fmt: skip
    others = named.assign(subject="sub-02", run="func/nowhere.nii.gz")  # of no concern to subject 1
    everything = pd.concat([others, named], ignore_index=True)
    there = {column: [str(study / path) for path in everything[column]] for column in ("film", "mask", "confounds")}
    runs = [path if "nowhere" in path else str(study / path) for path in everything["run"]]
    path = write(tmp_path, everything.assign(run=runs, **there), "study.csv")
    splits = table_source(path, recipe()).splits
    assert [[s.name for s in splits[split]] for split in splits] == [["clip 1", "clip 2"], ["clip 3"], ["clip 4"]]
    assert list(splits["test"][0].runs) == [1, 2, 4, 7]
    assert splits["train"][0].runs[2].path.name == "run-1_bold.nii.gz"
    with pytest.raises(DataError, match=r"study\.csv, line 2: run is func/nowhere\.nii\.gz, and there is no file"):
        table_source(path, recipe(subject=2))
    with pytest.raises(DataError, match=r"no row of subject 3; expected one of 1, sub-01, sub-02"):
        read_presentations(path, 3)


def test_splits_of_the_recipe_overrule_those_of_the_table(study, table, tmp_path):
    named = {"train": ["night", "kite"], "validation": ["harbour"], "test": ["market"]}
    splits = source(study, table, tmp_path, **named).splits
    assert {split: [s.name for s in splits[split]] for split in splits} == named
    assert [s.split for s in splits["train"]] == ["train", "train"]
    unsaid = source(study, table.drop(columns="split"), tmp_path, **named).splits
    assert {split: [s.name for s in unsaid[split]] for split in unsaid} == named


def test_empty_lines_do_not_shift_the_line_that_is_named(study, tmp_path):
    lines = (study / "study.tsv").read_text().splitlines()
    path = tmp_path / "study.tsv"
    path.write_text("\n".join([lines[0], "", *lines[1:2], "\t" * 7, "x\t" * 7 + "y", "", ""]))
    with pytest.raises(DataError, match=r"study\.tsv, line 3: film is films/harbour\.mp4, and there is no file"):
        read_presentations(path, 1)


def test_a_byte_order_mark_and_windows_lines_are_read(study, tmp_path):
    text = (study / "study.tsv").read_text().replace("\n", "\r\n")
    (study / "windows.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [row.line for row in read_presentations(study / "windows.tsv", 1)] == list(range(2, 12))


def test_a_film_that_was_on_before_the_scan_is_cut_where_the_scan_begins(study, table, tmp_path):
    early = table.assign(onset=table.onset.where(table.film != "films/market.mp4", [-0.7] * 10))
    (market,) = source(study, early, tmp_path, exclude=["night/2"]).splits["validation"]  # shown later in that run
    assert market.start == Fraction(7, 10)
    assert [scan.first for scan in market.runs.values()] == [0, 0]
    assert market.n_trs == 10  # 15.5 s of 16.2 are left


def test_a_scan_that_ends_a_little_early_costs_the_last_clips(study, table, tmp_path):
    run = study / "func/run-5_bold.nii.gz"
    whole = nib.load(run)
    n_trs = source(study, table, tmp_path).splits["test"][0].n_trs
    n = 4 + DELAY + n_trs - 1  # a volume less than it takes
    short = tmp_path / "short_bold.nii.gz"
    write_volumes(short, np.asarray(whole.dataobj)[..., :n])
    runs = [str(short) if "run-5" in path else path for path in table.run]
    changed = table.assign(run=runs, confounds="n/a")
    there = {column: [str(study / path) for path in changed[column]] for column in ("run", "film", "mask")}
    found = table_source(write(tmp_path, changed.assign(**there)), recipe())
    (night,) = found.splits["test"]
    assert night.n_trs == n_trs - 1
    assert list(night.runs) == [1, 2, 3, 4]
    assert any(re.search(rf"night\.mp4: the last 1 of {n_trs} clips are left out", text) for text in found.warnings)


def test_parts_of_a_film_may_be_in_two_splits_if_they_do_not_overlap(study, table, tmp_path):
    write_film(tmp_path / "long.mp4", (numbered(i) for i in range(33 * FPS)), FPS)
    there = {column: [str(study / path) for path in table[column]] for column in ("run", "film", "mask")}
    rest = table.assign(**there, confounds="n/a", segment=[film.split("/")[1] for film in table.film])
    rest = rest[rest.split != "test"]

    def opened(start, onsets):
        """With a part of the film in training, and one from ``start`` on in testing, in the same runs."""
        runs = [str(study / f"func/run-{run}_bold.nii.gz") for run in (5, 6)]
        one = pd.DataFrame({"run": runs, "onset": [4.6, 3.1], "film_start": 0.0, "segment": "one", "split": "train"})
        two = pd.DataFrame({"run": runs, "onset": onsets, "film_start": start, "segment": "two", "split": "test"})
        parts = pd.concat([one, two]).assign(film="long.mp4", duration=16.5, mask=there["mask"][0], confounds="n/a")
        parts.loc[parts.segment == "one", "run"] = [str(study / f"func/run-{run}_bold.nii.gz") for run in (1, 2)]
        kept = rest[rest.film != there["film"][0]].assign(onset=[30.7, 34.0, *rest.onset[4:]])
        return table_source(write(tmp_path, pd.concat([kept, parts])), recipe())

    found = opened(16.5, [4.6, 3.1])
    assert [s.name for split in found.splits.values() for s in split] == ["kite.mp4", "one", "market.mp4", "two"]
    two = found.splits["test"][0]
    assert two.start == Fraction(33, 2) + Fraction(14, 10)  # volume 4 starts at 6 s, 1.4 s after the onset
    message = r"long\.mp4 from 15\.4 to 16\.4 s is in one \(train\) and in two \(test\); expected film of one sp"
    with pytest.raises(DataError, match=message):
        opened(14.0, [4.6, 3.1])
