"""Data sets with one planted fault each, written as ``prepare`` writes them: that fault is found, and no other."""

import io
import json
from dataclasses import dataclass

import numpy as np
import pytest
from planted_run import write_names, write_split
from rich.console import Console
from tiny_run import copied
from typer.testing import CliRunner

from neuroclips import auditing, cli
from neuroclips.artefacts import read_arrays, write_arrays
from neuroclips.data.bold import zscore
from neuroclips.data.cc2017 import N_CORTEX
from neuroclips.data.lag import thumbnails
from neuroclips.data.selection import repeat_correlation, select_voxels
from neuroclips.errors import DataError
from neuroclips.evaluation.audit import Finding
from neuroclips.recipe import SelectionRecipe

T, F, H, W, V = 44, 3, 16, 24, 240
SEGMENTS = {"train": ("seg1", "seg2", "seg3", "seg4", "seg5"), "validation": ("seg6",), "test": ("a", "b", "c")}
REPEATS = {"train": 2, "validation": 2, "test": 3}
RESPONSE = (0.3, 0.5, 0.2)  # of a clip, in its own volume and the two after


@dataclass
class World:
    """A small study before it is prepared: by segment, film (T, F, 3, H, W), scans (R, T, V) and scenes (T,)."""

    film: dict[str, np.ndarray]
    scans: dict[str, np.ndarray]
    scene: dict[str, np.ndarray]

    def write(self, run, *, selected_on=SEGMENTS["train"], change=None):
        """Prepare it: z-score, select voxels, write. ``change(arrays by split, voxels)`` plants faults of preparing."""
        bold = {name: np.stack([zscore(scan) for scan in scans]) for name, scans in self.scans.items()}
        r = np.zeros((len(selected_on), N_CORTEX))
        places = np.arange(V) * 200 + 7
        r[:, places] = [repeat_correlation(iter(bold[name])) for name in selected_on]
        selection = select_voxels(r, SelectionRecipe(method="top", top=170))
        kept = np.isin(places, np.flatnonzero(selection.mask))
        arrays = {}
        for split, names in SEGMENTS.items():
            arrays[split] = {
                "bold": np.concatenate([bold[name].transpose(1, 0, 2)[:, :, kept] for name in names]),
                "present": np.ones((T * len(names), REPEATS[split]), bool),
                "frames": np.concatenate([self.film[name] for name in names]),
                "segment": np.repeat(np.arange(len(names), dtype=np.int32), T),
                "onset": np.tile(2 * np.arange(T, dtype=np.float32), len(names)),
                "scene": np.concatenate([self.scene[name] for name in names]).astype(np.int32),
            }
        voxels = {key: getattr(selection, key) for key in ("mask", "p", "t", "reliability")}
        names = dict(SEGMENTS)
        if change is not None:
            change(arrays, voxels, names)
        for split in SEGMENTS:
            write_split(run, split, arrays[split])
        write_arrays(run / "prepare" / "voxels.safetensors", voxels)
        write_names(run, names, delay_trs=2)
        return run


def world(seed, *, film=None, scene=None, change_film=None, signal=1.0):
    """Scenes of 1 to 4 clips, each a coarse random picture that changes from clip to clip; voxels see thumbnails."""
    rng = np.random.default_rng(seed)
    films, scenes, scans, first = {}, {}, {}, 0
    for names in SEGMENTS.values():
        for name in names:
            number = np.repeat(np.arange(T), rng.integers(1, 5, T))[:T]
            coarse = rng.normal(size=(number[-1] + 1, 1, 3, 4, 6))[number] + 0.6 * rng.normal(size=(T, 1, 3, 4, 6))
            coarse = coarse + 0.15 * rng.normal(size=(T, F, 3, 4, 6))
            fine = coarse.repeat(H // 4, axis=-2).repeat(W // 6, axis=-1) + 0.2 * rng.normal(size=(T, F, 3, H, W))
            films[name] = np.clip(128 + 45 * fine, 0, 255).astype(np.uint8)
            scenes[name], first = first + number, first + number[-1] + 1
    if change_film is not None:
        change_film(films, np.random.default_rng(seed + 1))
    weights = rng.normal(size=(192, V)) / np.sqrt(192) * (np.arange(V) < 190) * signal
    for split, names in SEGMENTS.items():
        for name in names:
            features = (thumbnails(films[name]) - 0.5) / 0.2
            response = sum(w * np.pad(features, ((k, 0), (0, 0)))[:T] for k, w in enumerate(RESPONSE)) @ weights
            noise = rng.normal(size=(REPEATS[split], T + 1, V))
            scans[name] = (response + 0.95 * noise[:, 1:] + 0.3 * noise[:, :-1]).astype(np.float32)
    return World(films, scans, scenes)


def audited(*runs, out):
    result = auditing.audit(runs, out, Console(quiet=True))
    return result, {(f.check, f.severity) for f in result.findings if f.severity != "ok"}


def where(result, check):
    return " | ".join(f"{f.where} {f.found}" for f in result.findings if f.check == check and f.severity != "ok")


@pytest.mark.parametrize("seed", range(6))
def test_a_clean_data_set_has_no_fault_and_no_warning(tmp_path, seed):
    result, found = audited(world(seed).write(tmp_path / "run"), out=tmp_path / "out")
    assert found == set()
    assert result.worst == "ok"
    assert len({f.check for f in result.findings}) == 12


def planted_scans(plant):
    """A study whose scans ``plant`` has changed, as files on disk would be."""
    made = world(11)
    plant(made.scans, np.random.default_rng(3))
    return made


def rolled(name, repeat, trs):
    def plant(scans, rng):
        scans[name][repeat] = np.roll(scans[name][repeat], trs, axis=0)

    return plant


def copy_repeat(scans, rng):
    scans["seg2"][1] = scans["seg2"][0]


def copy_rescaled(scans, rng):
    scans["b"][2] = 7 + 3 * scans["b"][0] + 0.1 * rng.normal(size=scans["b"][0].shape)


def copy_reprocessed(scans, rng):
    scans["b"][2] = scans["b"][0] + 0.45 * rng.normal(size=scans["b"][0].shape)


def roll_segment(scans, rng):
    scans["seg3"] = np.roll(scans["seg3"], -2, axis=1)


def swap_repeats(scans, rng):
    scans["a"][1], scans["c"][1] = scans["c"][1].copy(), scans["a"][1].copy()


def jump(scans, rng):
    scans["seg4"][1, 30] += 2 * rng.normal(size=V)


def asleep(scans, rng):
    scans["b"][0] = 0.4 * scans["b"][0] + 1.3 * rng.normal(size=scans["b"][0].shape)


@pytest.mark.parametrize(
    ("plant", "check", "severity", "names"),
    [
        (copy_repeat, "same scan twice", "fault", ["seg2, repeat 1 and seg2, repeat 2"]),
        (copy_rescaled, "same scan twice", "fault", ["b, repeat 1 and b, repeat 3"]),
        (copy_reprocessed, "same scan twice", "warning", ["b, repeat 1 and b, repeat 3"]),
        (rolled("b", 1, 1), "shifted volumes", "fault", ["b, repeat 2", "1.0 TRs later"]),
        (rolled("b", 1, -2), "shifted volumes", "fault", ["b, repeat 2", "TRs earlier than the other repeats"]),
        (rolled("seg2", 0, 2), "shifted volumes", "fault", ["seg2", "TRs later than repeat 2"]),
        (roll_segment, "shifted volumes", "fault", ["seg3, repeat 1, 2", "TRs earlier than other runs"]),
        (swap_repeats, "repeats that disagree", "fault", ["a, repeat 2", "c, repeat 2"]),
        (asleep, "repeats that disagree", "warning", ["b, repeat 1"]),
        (jump, "sudden jumps", "warning", ["seg4, repeat 2", "30"]),
    ],
)  # fmt: skip
def test_a_fault_of_the_scans_is_found_and_no_other(tmp_path, plant, check, severity, names):
    result, found = audited(planted_scans(plant).write(tmp_path / "run"), out=tmp_path / "out")
    assert found == {(check, severity)}
    assert all(name in where(result, check) for name in names), where(result, check)


def test_a_scan_filed_under_two_segments_is_a_copy_and_disagrees(tmp_path):
    def plant(scans, rng):
        scans["seg5"][1] = scans["seg1"][1]

    result, found = audited(planted_scans(plant).write(tmp_path / "run"), out=tmp_path / "out")
    assert found == {("same scan twice", "fault"), ("repeats that disagree", "fault")}
    assert "seg1, repeat 2 and seg5, repeat 2" in where(result, "same scan twice")
    assert "seg5, repeat 1, 2" in where(result, "repeats that disagree")


def test_a_brain_that_saw_nothing_is_a_warning_and_its_lags_mean_nothing(tmp_path):
    for seed in range(3):
        made = world(seed, signal=0.0)
        _, found = audited(made.write(tmp_path / str(seed)), out=tmp_path / "out")
        assert found == {("repeats that disagree", "warning")}


def noisy(frames, rng):
    return np.clip(frames + rng.normal(0, 3, frames.shape), 0, 255).astype(np.uint8)


def copy_film(films, rng):
    films["b"][10:14] = noisy(films["seg4"][20:24], rng)


def late_copy(films, rng):
    films["b"].reshape(-1, 3, H, W)[31:40] = noisy(
        films["seg4"].reshape(-1, 3, H, W)[20:29], rng
    )  # off the clips' grid


def similar_film(films, rng):
    films["b"][10, 1] = np.clip(films["seg4"][20, 1] + rng.normal(0, 14, (3, H, W)), 0, 255)


def copy_into_validation(films, rng):
    films["seg6"][10:14] = noisy(films["seg4"][20:24], rng)


def continue_shot(films, rng):
    films["a"][0, 0] = np.clip(films["seg5"][-1, -1] + rng.normal(0, 19, (3, H, W)), 0, 255)


@pytest.mark.parametrize(
    ("plant", "check", "severity", "names"),
    [
        (copy_film, "film in two splits", "fault", ["b/0020s and seg4/0040s", "4 of 132 test clips"]),
        (late_copy, "film in two splits", "fault", ["b/0024s and seg4/0016s"]),
        (similar_film, "film in two splits", "warning", ["b/0020s and seg4/0040s"]),
        (copy_into_validation, "film in two splits", "warning", ["seg6/0020s and seg4/0040s"]),
        (continue_shot, "shots across segments", "warning", ["seg5 and a"]),
    ],
)
def test_film_in_two_splits_is_found(tmp_path, plant, check, severity, names):
    result, found = audited(world(5, change_film=plant).write(tmp_path / "run"), out=tmp_path / "out")
    assert found == {(check, severity)}
    assert all(name in where(result, check) for name in names), where(result, check)
    if check == "film in two splits":
        page = (tmp_path / "out/audit.html").read_text()
        assert all(name in page for name in names[0].split(" and "))
        assert page.count("data:image/jpeg;base64,") == 2 * auditing.PICTURES


def cut_inside(gap):
    def change(arrays, voxels, names):
        arrays["test"]["onset"][:T] = 2 * (T + gap + np.arange(T))  # segment a goes on where seg5 ends
        names["test"] = ("seg5", "b", "c")

    return change


def one_long_scene(arrays, voxels, names):
    arrays["test"]["scene"][:] = 0  # a film each


def mask_of_other_voxels(arrays, voxels, names):
    mask = voxels["mask"]
    inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask & (voxels["reliability"] != 0))
    voxels["p"][inside[:9]], voxels["p"][outside[:9]] = voxels["p"][outside[:9]], voxels["p"][inside[:9]].copy()
    voxels["t"][inside[:9]], voxels["t"][outside[:9]] = voxels["t"][outside[:9]], voxels["t"][inside[:9]].copy()


def not_a_number(arrays, voxels, names):
    arrays["test"]["bold"][T + 3, 1, 5] = np.nan


def constant(count):
    def change(arrays, voxels, names):
        arrays["train"]["bold"][:T, 1, :count] = 0

    return change


def unscaled(arrays, voxels, names):
    arrays["validation"]["bold"][:T, 1] = 100 + 3 * arrays["validation"]["bold"][:T, 1]


def missing(arrays, voxels, names):
    arrays["test"]["bold"][T : 2 * T, 2], arrays["test"]["present"][T : 2 * T, 2] = 0, False


def empty(arrays, voxels, names):
    arrays["test"]["bold"][T : 2 * T, 2] = 0


def hidden(arrays, voxels, names):
    arrays["test"]["present"][T : 2 * T, 2] = False


@pytest.mark.parametrize(
    ("change", "check", "severity", "names"),
    [
        (cut_inside(-T), "scenes in two splits", "fault", ["seg5", "at the same time"]),
        (cut_inside(4), "scenes in two splits", "fault", ["seg5", "have 4.0 TRs between them"]),
        (cut_inside(5), None, None, []),
        (one_long_scene, "effective n", "warning", ["132 test clips are worth 3 by scenes"]),
        (mask_of_other_voxels, "voxel selection", "fault", ["voxels outside the mask have a smaller p"]),
        (not_a_number, "values", "fault", ["b, repeat 2", "1 of 170 voxels have values that are not finite"]),
        (constant(3), "values", "warning", ["seg1, repeat 2", "3 of 170 voxels never change"]),
        (constant(30), "values", "fault", ["seg1, repeat 2", "30 of 170 voxels never change"]),
        (unscaled, "values", "fault", ["seg6, repeat 2", "mean 100, standard deviation 3"]),
        (missing, "missing repeats", "warning", ["b", "repeats [3] of 3 are missing"]),
        (empty, "missing repeats", "fault", ["b", "repeats [3] are said to exist"]),
        (hidden, "missing repeats", "fault", ["b", "repeats [3] hold values"]),
    ],
)
def test_a_fault_of_preparing_is_found_and_no_other(tmp_path, change, check, severity, names):
    result, found = audited(world(7).write(tmp_path / "run", change=change), out=tmp_path / "out")
    assert found == ({(check, severity)} if check else set())
    assert all(name in where(result, check) for name in names), where(result, check)


@pytest.mark.parametrize(
    ("segments", "named"),
    [
        (SEGMENTS["train"] + SEGMENTS["test"], "it is that of training and test segments together"),
        (SEGMENTS["test"], "it is that of test segments"),
        (SEGMENTS["train"] + SEGMENTS["validation"], "it is that of training and validation segments together"),
        (SEGMENTS["train"][:4], "stored evidence is not that of the training scans"),
    ],
)
def test_voxels_chosen_on_other_scans_are_found(tmp_path, segments, named):
    run = world(7).write(tmp_path / "run", selected_on=segments)
    result, found = audited(run, out=tmp_path / "out")
    assert found == {("voxel selection", "fault")}
    assert named in where(result, "voxel selection")


def test_a_mask_chosen_on_test_scans_beside_honest_evidence_is_found(tmp_path):
    made = world(7)
    made.write(tmp_path / "run", selected_on=SEGMENTS["test"])
    made.write(tmp_path / "honest")
    chosen = read_arrays(tmp_path / "run/prepare/voxels.safetensors")["mask"]
    honest = {k: np.array(a) for k, a in read_arrays(tmp_path / "honest/prepare/voxels.safetensors").items()}
    write_arrays(tmp_path / "run/prepare/voxels.safetensors", honest | {"mask": np.array(chosen)})
    result, found = audited(tmp_path / "run", out=tmp_path / "out")
    assert found == {("voxel selection", "fault")}
    assert "the mask was not made from the stored evidence" in where(result, "voxel selection")


def test_two_subjects_are_compared_at_the_voxels_they_share(tmp_path):
    one, two = world(1), world(1)
    rng = np.random.default_rng(9)
    for scans in two.scans.values():  # another person: the same film, other noise, somewhat other voxels
        scans += rng.normal(size=scans.shape).astype(np.float32)
    runs = [one.write(tmp_path / "one"), two.write(tmp_path / "two")]
    assert audited(*runs, out=tmp_path / "out")[1] == set()
    two.scans["seg4"][0] = one.scans["seg4"][0]
    result, found = audited(runs[0], two.write(tmp_path / "two"), out=tmp_path / "out")
    assert found == {("same scan twice", "fault")}
    assert "one: seg4, repeat 1 and two: seg4, repeat 1" in where(result, "same scan twice")
    with pytest.raises(DataError, match="one is given twice"):
        auditing.audit([runs[0], runs[0]], tmp_path / "out", Console(quiet=True))


def test_a_run_through_the_command_line(tiny_run, tmp_path):
    def call(run):
        return CliRunner().invoke(cli.app, ["audit", str(run), "--out", str(tmp_path / "out")])

    shown = call(tiny_run.directory)
    assert shown.exit_code == 0, shown.output
    assert "Audit: 0 faults" in shown.output
    written = json.loads((tmp_path / "out/audit.json").read_text())
    assert written["worst"] in ("ok", "warning")
    assert {"check", "severity", "found", "where", "do", "numbers", "data"} == set(written["findings"][0])
    assert not (tiny_run.directory / "audit").exists()

    run = tmp_path / "run"
    for stage in ("films", "prepare"):
        copied(tiny_run.directory / stage, run / stage)
    path = run / "prepare" / "test.safetensors"
    arrays = {name: np.array(array) for name, array in read_arrays(path).items()}
    arrays["bold"][:, 1] = arrays["bold"][:, 0]
    write_arrays(path, arrays)
    shown = call(run)
    assert shown.exit_code == 1
    written = json.loads((tmp_path / "out/audit.json").read_text())
    assert {f["check"] for f in written["findings"] if f["severity"] == "fault"} == {"same scan twice"}


def test_a_run_without_prepared_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="no prepared data"):
        auditing.audit([tmp_path], tmp_path / "out", Console(quiet=True))


def test_many_findings_of_one_kind_are_shortened_on_the_terminal():
    many = [Finding("values", "fault", f"odd [{i}]", f"run {i}", "do it", data="one") for i in range(9)]
    console = Console(record=True, file=io.StringIO(), width=100)
    console.print(auditing.rich_table(auditing.Audit([*many, Finding("effective n", "ok", "50")], [])))
    shown = console.export_text()
    assert "Audit: 9 faults, 0 warnings" in shown
    assert "one: run 4: odd [4]" in shown
    assert "run 5" not in shown
    assert "and 4 more" in shown
    assert shown.count("do it") == 1
