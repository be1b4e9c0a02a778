"""Bad inputs, given to ``neuroclips prepare`` as a user gives them: one line that says what came and what was expected,
nothing half-written, nothing of the user's changed. And what is odd in real downloads: read, and said."""

import io
import json
import os
import pickle
import re
import resource
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from cc2017_dataset import N_ALL, N_CORTEX, SUBJECT, grayordinates, make_dataset, run_path, write_film, write_run

from neuroclips import cli
from neuroclips.artefacts import read_arrays

SEGMENTS = {"seg1": (11, 2), "seg2": (12, 2), "seg3": (13, 2), "test2": (10, 5)}  # volumes: n + 5, n + 6, n + 5, n + 6
PLANTED = np.arange(100, 400)
GRID = (7, 8, 6)
SPLITS = ("data.train=[seg1,seg2]", "data.validation=[seg3]", "data.test=[test2]")
SMALL = ("data.frame_size=32", "data.selection.method=top", "data.selection.top=200")


def settings(*changes):
    return [word for change in changes for word in ("-s", change)]


def neuroclips(*words):
    """Call the command line as a user does; what it says when it fails, or None."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["neuroclips", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
    if isinstance(left.value.code, str):  # the interpreter prints it and leaves with 1
        return left.value.code
    assert left.value.code == 0, "a mistake in this test's own words"
    return None


def cc2017(root, out, *changes, subject=SUBJECT):
    words = settings(*SPLITS, *SMALL, *changes)
    return neuroclips("prepare", "cc2017", root, "--subject", subject, "-o", out, *words)


def listed(folder):
    """Every file under a folder, so that a touched one shows."""
    about = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    return {path: (facts.st_ino, facts.st_size, facts.st_mtime_ns) for path, facts in about.items()}


def refused(said, message):
    """The message is one line, of the file and of what was expected."""
    assert message is not None, f"expected a refusal: {said}"
    assert message.startswith("error: ")
    assert "\n" not in message
    assert re.search(said, message), message


def nothing_is_half_written(run):
    for path in run.rglob("*"):
        assert not path.name.endswith(".part")
        stage = run / path.relative_to(run).parts[0]
        if path.is_file() and not path.name.startswith("."):
            assert (stage / "card.json").exists(), f"{path} in a stage that is not finished"


def replaced(path, content):
    """Put other bytes in the place of a file that is a hard link."""
    path.unlink()
    path.write_bytes(content)


def write_volumes(path, values, t_r=2.0, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, np.diag([3.0, 3, 3, 1]) if affine is None else affine)
    if values.ndim == 4:
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = t_r
    image.to_filename(path)
    return path


# ---------------------------------------------------------------- CC2017: the folder, and what is odd in it


def mni_path(root, segment, repeat):
    return root / f"subject{SUBJECT}/fmri/{segment}/mni/{segment}_{repeat}_mni.nii.gz"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A study with what is odd in the download: a misnamed scan, a missing, a short and a suspect one, another TR in a
    header, a file that is no scan of the segment, and the same scans as volumes beside those on the cortex."""
    root = tmp_path_factory.mktemp("pristine")
    make_dataset(root, SEGMENTS, PLANTED)
    rng = np.random.default_rng(0)
    for segment, (n_trs, repeats) in SEGMENTS.items():
        for repeat in range(1, repeats + 1):
            values = rng.normal(900, 40, (*GRID, n_trs + 5)).astype(np.float32)
            write_volumes(mni_path(root, segment, repeat), values)
    inside = np.ones(GRID, np.uint8)
    inside[0] = 0
    write_volumes(root / "mask.nii.gz", inside)
    run_path(root, "test2", 2).rename(run_path(root, "test2", 9))
    for path, name in (
        (run_path(root, "test2", 3), "test2_3.Atlas.dtseries.nii"), (mni_path(root, "test2", 3), "test2_3.mni.nii.gz"),
    ):  # fmt: skip
        path.rename(path.with_name(name))
    edit(run_path(root, "test2", 4), lambda values: values[:14])
    edit(run_path(root, "test2", 5), lambda values: values, t_r=1.0)
    shutil.copyfile(run_path(root, "test2", 1), run_path(root, "test2", 1).with_name("copy of test2_1.dtseries.nii"))
    return root


def cortex_of(path):
    return np.array(nib.Nifti2Image.from_filename(path).dataobj[0, 0, 0, 0, :, :N_CORTEX], np.float32)


def edit(path, change, **options):
    """Change the values of a scan, volumes by vertices."""
    values = cortex_of(path)
    changed = change(values)
    path.unlink()
    write_run(path, values if changed is None else changed, **options)


def link(pristine, study):
    """The study again, always in the same place, of hard links."""
    shutil.rmtree(study, ignore_errors=True)
    shutil.copytree(pristine, study, copy_function=os.link)
    return study


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place") / "study"


@pytest.fixture(scope="module")
def base(pristine, place, tmp_path_factory):
    """The run of the undamaged study."""
    run = tmp_path_factory.mktemp("base") / "run"
    before = listed(link(pristine, place))
    assert cc2017(place, run) is None
    assert listed(place) == before
    return run


@pytest.fixture
def study(pristine, place):
    """To plant faults in: replace a file before it is damaged."""
    return link(pristine, place)


@pytest.fixture
def run(base, tmp_path):
    """A run whose films are done: they take longest."""
    shutil.copytree(base / "films", tmp_path / "run" / "films")
    return tmp_path / "run"


def card(run, stage="prepare"):
    return json.loads((run / stage / "card.json").read_text())["summary"]


def test_what_is_odd_in_the_download_is_read_and_said(base):
    summary = card(base)
    (test2,) = summary["splits"]["test"]["segments"]
    assert (test2["repeats"], test2["missing"]) == ([1, 3, 5], [2, 4])
    assert {run["repeat"]: (run["file"], run["volumes"], run["first_volume"]) for run in test2["runs"]} == {
        1: ("test2_1_Atlas.dtseries.nii", 16, 2), 3: ("test2_3.Atlas.dtseries.nii", 16, 2),
        5: ("test2_5_Atlas.dtseries.nii", 16, 2),
    }  # fmt: skip
    volumes = {s["name"]: [run["volumes"] for run in s["runs"]] for s in summary["splits"]["train"]["segments"]}
    assert volumes == {"seg1": [11 + 5] * 2, "seg2": [12 + 6] * 2}
    assert re.search(r"test2_4_Atlas.* 14 volumes; expected 15 or 16, for a film of 10 TRs", test2["excluded"]["4"])
    assert re.search(r"test2_9_Atlas.*leaves this repeat out as damaged; data.exclude: \[\] ", test2["excluded"]["9"])
    said = "\n".join(summary["warnings"])
    for text in (
        r"test2_3\.Atlas\.dtseries\.nii: misnamed; read as repeat 3 of test2 \(expected test2_3_Atlas\.dtseries\.nii\)",
        r"copy of test2_1\.dtseries\.nii: not read; expected test2_REPEAT_Atlas\.dtseries\.nii",
        r"test2_5_Atlas\.dtseries\.nii: its header states a TR of 1 s; the recipe's 2 s is used for all scans",
        r"left out: .*test2_4_Atlas.* 14 volumes",
        r"left out: .*test2_9_Atlas",
    ):
        assert re.search(text, said), text


def test_the_suspect_repeat_is_read_when_asked(study, base, tmp_path):
    run = shutil.copytree(base, tmp_path / "run")
    assert cc2017(study, run, "data.exclude=[]") is None
    (test2,) = card(run)["splits"]["test"]["segments"]
    assert (test2["repeats"], test2["missing"], set(test2["excluded"])) == ([1, 3, 5, 9], [2, 4, 6, 7, 8], {"4"})
    assert read_arrays(run / "prepare/test.safetensors")["present"][0].nonzero()[0].tolist() == [0, 2, 4, 8]


# ---------------------------------------------------------------- CC2017: faults


@dataclass(frozen=True)
class Fault:
    """What is planted in the study, and what must be said of it."""

    name: str
    plant: Any
    said: str
    changes: tuple[str, ...] = ()
    subject: int = SUBJECT


def scan(change):
    """Do something to the first scan of seg1."""
    return lambda root: change(run_path(root, "seg1", 1))


def film(change):
    return lambda root: change(root / "stimuli/seg1.mp4")


def bytes_of(change):
    return lambda path: replaced(path, change(path.read_bytes()))


def set_to(value, where=(slice(None), 17)):
    def change(values):
        values[where] = value

    return lambda path: edit(path, change)


def dangling(path):
    path.unlink()
    path.symlink_to(".git/annex/objects/XY/MD5E-s6.nii/MD5E-s6.nii")


def hemispheres_swapped(path):
    values = cortex_of(path)
    axis = grayordinates()
    left, right, rest = (part for _, _, part in axis.iter_structures())
    path.unlink()
    write_run(path, values, axis=right + left + rest)


def other_grayordinates(path):
    values = cortex_of(path)
    path.unlink()
    write_run(path, values, axis=grayordinates(subcortex=N_ALL - N_CORTEX - 1))


def volume_under_its_name(path):
    path.unlink()
    aside = write_volumes(path.with_name("a.nii"), np.ones((*GRID, 16), np.float32))
    aside.rename(path)


def other_film(frames, fps=30, **options):
    """In the place of the film, ``frames`` of a size, or of random grey ones if they are a number."""

    def change(path):
        path.unlink()
        shown = frames
        if isinstance(frames, int):
            shown = [np.full((64, 80, 3), 40 + n % 200, np.uint8) for n in range(frames)]
        write_film(path, shown, fps, **options)

    return film(change)


def begun_download(path):
    """A film made for the web, its index before its pictures, of which half are there."""
    aside = path.with_name("aside.mp4")
    with av.open(str(path)) as source, av.open(str(aside), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole = aside.read_bytes()
    aside.unlink()
    assert whole.index(b"moov") < whole.index(b"mdat")
    replaced(path, whole[: len(whole) // 2])


def sound_only(path):
    path.unlink()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def removed(*paths):
    def plant(root):
        for path in paths:
            (shutil.rmtree if (root / path).is_dir() else Path.unlink)(root / path)

    return plant


def added(name, content):
    return lambda root: (root / name).write_bytes(content)


def mask_file(length):
    def plant(root):
        np.save(root / "own.npy", np.ones(length, bool))

    return plant


def cortex_folder_only_of_others(root):
    shutil.rmtree(run_path(root, "seg1", 1).parent)


FMRI = f"subject{SUBJECT}/fmri"
SCAN, FILM = r"^error: \S+/seg1_1_Atlas\.dtseries\.nii: ", r"^error: \S+/stimuli/seg1\.mp4: "
MNI = ("data.files=mni", "data.mask={study}/mask.nii.gz")

FAULTS = [
    # scans
    Fault("truncated", scan(bytes_of(lambda whole: whole[: len(whole) // 2])), SCAN
          + r"truncated or damaged; 2,\d{3},\d{3} bytes; its header says 5,\d{3},\d{3}; fetch it again"),
    Fault("header only", scan(bytes_of(lambda whole: whole[:540])), SCAN
          + r"truncated or damaged; 540 bytes; its header says 5,\d{3},\d{3}; fetch it again"),
    Fault("half a header", scan(bytes_of(lambda whole: whole[:300])), SCAN + "cannot be read as a CIFTI dense time s"),
    Fault("web page", scan(bytes_of(lambda _: b"<html>404</html>" * 99)), SCAN + "cannot be read as a CIFTI dense"),
    Fault("empty", scan(bytes_of(lambda _: b"")), SCAN + "cannot be read as a CIFTI dense time series"),
    Fault("not fetched by git-annex", scan(dangling), SCAN + r"cannot be read .*No such file or directory"),
    Fault("NaN", scan(set_to(np.nan)), SCAN + r"1 of 59412 voxels .* not finite \(first: voxel 17\); expected finite"),
    Fault("Inf", scan(set_to(np.inf, (3, slice(4, 9)))), SCAN + r"5 of 59412 .* not finite \(first: voxel 4\); expec"),
    Fault("constant", scan(set_to(9000, slice(None))), SCAN + r"no voxel changes in the 11 volumes of the film; expected a scan; .*seg1/1"),
    Fault("stopped before the film", scan(set_to(9000, slice(2, 15))), SCAN + "no voxel changes in the 11 volumes of the film; exp"),
    Fault("grayordinates", scan(other_grayordinates), SCAN + r"header has dimensions .*91281\); expected .* 91282\)"),
    Fault("hemispheres", scan(hemispheres_swapped), SCAN + "grayordinates start with CIFTI_STRUCTURE_CORTEX_RIGHT from "
          "0 of 29716, .*; expected CIFTI_STRUCTURE_CORTEX_LEFT from 0 of 29696"),
    Fault("a volume", scan(volume_under_its_name), SCAN + r"(header has dimensions|cannot be read as a CIFTI)"),
    Fault("244 volumes", scan(lambda path: edit(path, lambda values: values[:15])), "segment 'seg1' has 1 usable scans; "
          r"expected at least 2 in the train split\. \S+/seg1_1_Atlas\S+ 15 volumes; expected 16 or 17"),
    Fault("247 volumes", scan(lambda path: edit(path, lambda values: np.r_[values, values[:2]])), "segment 'seg1' has 1 "
          r"usable scans; .* \S+/seg1_1_Atlas\S+ 18 volumes; expected 16 or 17"),
    Fault("one repeat", scan(Path.unlink), r"segment 'seg1' has 1 usable scans; expected at least 2 in the train split"),
    Fault("twins", scan(lambda path: os.link(path, path.with_name("seg1_1.Atlas.dtseries.nii"))),
          r"seg1_1_Atlas.dtseries.nii: repeat 1 of seg1 is seg1_1.Atlas.dtseries.nii, too; expected one file each"),
    Fault("all excluded", lambda root: None, r"'seg1' has 0 usable scans; .* named in data.exclude",
          ("data.exclude=[seg1/1,seg1/2]",)),
    # folders
    Fault("no segment", removed(f"{FMRI}/seg1"), rf"{FMRI}/seg1/cifti: no such folder; expected the scans of segment "
          rf"'seg1' of subject {SUBJECT}; .*: seg2, seg3, test2$"),
    Fault("only volumes", cortex_folder_only_of_others, rf"{FMRI}/seg1/cifti: no such folder; .* mni .*data.files"),
    Fault("only cortex", removed(f"{FMRI}/seg1/mni"), rf"{FMRI}/seg1/mni: no such folder; .* cifti .*data.files", MNI),
    Fault("no subject", lambda root: None, r"subject7/fmri/seg1/cifti: no such folder; expected .* subject 7", subject=7),
    Fault("no stimuli", removed("stimuli"), r"stimuli/seg1\.mp4: no such file; expected the film of segment 'seg1'"),
    Fault("empty folder", removed("stimuli", "subject3", "mask.nii.gz"), r"stimuli/seg1\.mp4: no such file; expected"),
    # films
    Fault("no film", film(Path.unlink), FILM + "no such file; expected the film of segment 'seg1'"),
    Fault("film truncated", film(bytes_of(lambda whole: whole[: len(whole) // 2])), FILM + "cannot be decoded as a film"),
    Fault("film not all downloaded", film(begun_download), FILM + r"\d+ frames \(\S+ s\); expected at least 651, for 11 clips"),
    Fault("film is text", film(bytes_of(lambda _: b"not found " * 99)), FILM + "cannot be decoded as a film"),
    Fault("film is empty", film(bytes_of(lambda _: b"")), FILM + "cannot be decoded as a film"),
    Fault("film is sound", film(sound_only), FILM + "no video stream; expected a film"),
    Fault("film of one frame", other_film(1), FILM + "1 video frames; expected a film"),
    Fault("variable rate", other_film(660, times=np.cumsum(np.where(np.arange(660) % 99 < 50, 1 / 30, 1 / 25))),
          FILM + r"variable frame rate; frame \d+ is shown at .* expected a constant rate"),
    Fault("half the film", other_film(300), "segment 'seg1' has 0 usable scans; .*"
          r"seg1_1_Atlas\S+ 16 volumes; expected 10 or 11, for a film of 5 TRs"),
    Fault("part of a TR", other_film(640), FILM + r"lasts 21\.333 s, 10\.67 TRs of 2 s; expected a whole number of TRs"),
    Fault("slow film", other_film(66, fps=3), FILM + "3 frames per second; expected at least 6, for 12 different frames",
          ("data.frames_per_clip=12",)),
    # settings
    Fault("unknown area", lambda root: None, r"'V1x' is not known; expected an area of HCP-MMP1 .* did you mean .*V1",
          ("data.selection.rois=[V1x]",)),
    Fault("areas of another mask", mask_file(59_411), r"own\.npy: bool of shape \(59411,\); expected .* \(59412,\)",
          ("data.selection.mask={study}/own.npy",)),
    Fault("no mask there", lambda root: None, r"none\.npy: cannot be read as an array \(.*No such file",
          ("data.selection.mask={study}/none.npy",)),
    Fault("delays descend", lambda root: None, r"delay_trs is \(3, 2\); expected 0 to 4, or several, ascending",
          ("data.delay_trs=[3,2]",)),
    Fault("delay beyond the run", lambda root: None, r"delay_trs is 5; expected 0 to 4", ("data.delay_trs=5",)),
    Fault("two splits", lambda root: None, r"segments seg2 are in two splits", ("data.validation=[seg2]",)),
    Fault("broken setting", lambda root: None, r"--set 'data\.train=\[seg1': the value is not valid YAML",
          ("data.train=[seg1",)),
    Fault("volumes without a mask", lambda root: None, r"files is mni; expected a brain mask", ("data.files=mni",)),
    Fault("mask on another grid", lambda root: write_volumes(root / "own.nii", np.ones((7, 8, 5), np.uint8)),
          r"seg1_1_mni\.nii\.gz: grid of \(7, 8, 6\) voxels .*; expected that of the mask \S+own\.nii, \(7, 8, 5\)",
          ("data.files=mni", "data.mask={study}/own.nii")),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_in_a_line(study, run, fault):
    fault.plant(study)
    before = listed(study)
    message = cc2017(study, run, *(c.format(study=study) for c in fault.changes), subject=fault.subject)
    refused(fault.said, message)
    assert listed(study) == before
    nothing_is_half_written(run)
