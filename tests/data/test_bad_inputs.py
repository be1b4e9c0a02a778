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
from neuroclips.data.frames import film_info, read_clips

SEGMENTS = {"seg1": (11, 2), "seg2": (12, 2), "seg3": (13, 1), "test2": (10, 1)}  # volumes: n + 5, n + 6, n + 5, n + 6
PLANTED = np.arange(100, 400)
GRID = (7, 8, 6)
FPS = 6
SPLITS = ("data.train=[seg1,seg2]", "data.validation=[seg3]", "data.test=[test2]")
UNSEEN = ("decoders.methods=[ridge]", "evaluate.judges=[]")  # what prepare does not need, and takes time to look at
SMALL = ("data.frame_size=32", "data.selection.method=top", "data.selection.top=200", *UNSEEN)


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


def nothing_is_half_written(run, standing=None):
    """No file beside a missing card, but those of a stage in which they may stand from the last time."""
    for path in run.rglob("*"):
        assert not path.name.endswith(".part")
        stage = run / path.relative_to(run).parts[0]
        if path.is_file() and not path.name.startswith(".") and stage.name != standing:
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
    rng = np.random.default_rng(0)
    make_dataset(root, SEGMENTS, PLANTED)
    for segment, (n_trs, _) in SEGMENTS.items():
        # Smaller films than those: 4 x 5 blocks of 16 pixels, which change every 2 s.
        still = np.kron(rng.integers(0, 256, (n_trs, 4, 5, 3), np.uint8), np.ones((1, 16, 16, 1), np.uint8))
        other_film(np.repeat(still, 2 * FPS, axis=0))(root, segment)
        for repeat in range(1, 5):
            values = rng.normal(900, 40, (*GRID, n_trs + 5)).astype(np.float32)
            write_volumes(mni_path(root, segment, repeat), values)
    inside = np.ones(GRID, np.uint8)
    inside[0] = 0
    write_volumes(root / "mask.nii.gz", inside)
    mni_path(root, "test2", 3).rename(mni_path(root, "test2", 3).with_name("test2_3.mni.nii.gz"))
    first = run_path(root, "test2", 1)
    for name in ("copy of test2_1.dtseries.nii", "test2_3.Atlas.dtseries.nii", "test2_9_Atlas.dtseries.nii"):
        os.link(first, first.with_name(name))
    other_t_r = first.read_bytes().replace(b'SeriesStep="2.0"', b'SeriesStep="1.0"')
    run_path(root, "test2", 5).write_bytes(other_t_r)
    write_run(run_path(root, "test2", 4), cortex_of(first)[:14])
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
    """Do something to a film, that of seg1 by default."""
    return lambda root, segment="seg1": change(root / f"stimuli/{segment}.mp4")


def bytes_of(change):
    return lambda path: replaced(path, change(path.read_bytes()))


def half(content):
    return content[: len(content) // 2]


def nothing(folder):
    """The fault is in the settings."""


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


def other_film(frames, fps=FPS, **options):
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
    Fault("truncated", scan(bytes_of(half)), SCAN
          + r"truncated or damaged; 3,214,\d{3} bytes; its header says 6,428,\d{3}; fetch it again"),
    Fault("header only", scan(bytes_of(lambda whole: whole[:540])), SCAN
          + r"truncated or damaged; 540 bytes; its header says 6,428,\d{3}; fetch it again"),
    Fault("half a header", scan(bytes_of(lambda whole: whole[:300])), SCAN + "cannot be read as a CIFTI dense time s"),
    Fault("web page", scan(bytes_of(lambda _: b"<html>404</html>" * 99)), SCAN + "cannot be read as a CIFTI dense"),
    Fault("empty", scan(bytes_of(lambda _: b"")), SCAN + "cannot be read as a CIFTI dense time series"),
    Fault("not fetched by git-annex", scan(dangling), SCAN + r"cannot be read .*No such file or directory"),
    Fault("NaN", scan(set_to(np.nan)), SCAN + r"1 of 59412 voxels .* not finite \(first: voxel 17\); expected finite"),
    Fault("Inf", scan(set_to(np.inf, (3, slice(4, 9)))), SCAN + r"5 of 59412 .* not finite \(first: voxel 4\); expec"),
    Fault("constant", scan(set_to(9000, slice(None))), SCAN + "no voxel changes in the 11 volumes of the film; "
          r"expected a scan; leave it out \(data\.exclude: \[seg1/1\]\)"),
    Fault("stopped before the film", scan(set_to(9000, slice(2, 15))), SCAN + "no voxel changes in the 11 volumes of"),
    Fault("grayordinates", scan(other_grayordinates), SCAN + r"header has dimensions .*91281\); expected .* 91282\)"),
    Fault("hemispheres", scan(hemispheres_swapped), SCAN + "grayordinates start with CIFTI_STRUCTURE_CORTEX_RIGHT from "
          "0 of 29716, .*; expected CIFTI_STRUCTURE_CORTEX_LEFT from 0 of 29696"),
    Fault("a volume", scan(volume_under_its_name), SCAN + r"(header has dimensions|cannot be read as a CIFTI)"),
    Fault("244 volumes", scan(lambda path: edit(path, lambda values: values[:15])), "segment 'seg1' has 1 usable "
          r"scans; expected at least 2 in the train split\. \S+/seg1_1_Atlas\S+ 15 volumes; expected 16 or 17"),
    Fault("247 volumes", scan(lambda path: edit(path, lambda values: np.r_[values, values[:2]])), "segment 'seg1' has "
          r"1 usable scans; .* \S+/seg1_1_Atlas\S+ 18 volumes; expected 16 or 17"),
    Fault("one repeat", scan(Path.unlink), "segment 'seg1' has 1 usable scans; expected at least 2 in the train sp"),
    Fault("twins", scan(lambda path: os.link(path, path.with_name("seg1_1.Atlas.dtseries.nii"))),
          r"seg1_1_Atlas.dtseries.nii: repeat 1 of seg1 is seg1_1.Atlas.dtseries.nii, too; expected one file each"),
    Fault("all excluded", nothing, r"'seg1' has 0 usable scans; .* named in data.exclude",
          ("data.exclude=[seg1/1,seg1/2]",)),
    # folders
    Fault("no segment", removed(f"{FMRI}/seg1"), rf"{FMRI}/seg1/cifti: no such folder; expected the scans of segment "
          rf"'seg1' of subject {SUBJECT}; .*: seg2, seg3, test2$"),
    Fault("only volumes", cortex_folder_only_of_others, rf"{FMRI}/seg1/cifti: no such folder; .* mni .*data.files"),
    Fault("only cortex", removed(f"{FMRI}/seg1/mni"), rf"{FMRI}/seg1/mni: no such folder; .* cifti .*data.files", MNI),
    Fault("no subject", nothing, r"subject7/fmri/seg1/cifti: no such folder; expected .* subject 7", subject=7),
    Fault("no stimuli", removed("stimuli"), r"stimuli/seg1\.mp4: no such file; expected the film of segment 'seg1'"),
    Fault("empty folder", removed("stimuli", "subject3", "mask.nii.gz"), r"stimuli/seg1\.mp4: no such file; expected"),
    # films
    Fault("no film", film(Path.unlink), FILM + "no such file; expected the film of segment 'seg1'"),
    Fault("film truncated", film(bytes_of(half)), FILM + "cannot be decoded as a film"),
    Fault("film not all downloaded", film(begun_download), FILM + r"truncated; \d+\.\d{3} s of 22\.000 s; fetch it"),
    Fault("film is text", film(bytes_of(lambda _: b"not found " * 99)), FILM + "cannot be decoded as a film"),
    Fault("film is empty", film(bytes_of(lambda _: b"")), FILM + "cannot be decoded as a film"),
    Fault("film is sound", film(sound_only), FILM + "no video stream; expected a film"),
    Fault("film of one frame", other_film(1), FILM + "1 video frames; expected a film"),
    Fault("variable rate", other_film(132, times=np.cumsum(np.where(np.arange(132) % 60 < 30, 1 / 6, 1 / 5))),
          FILM + r"variable frame rate; frame \d+ is shown at .* expected a constant rate"),
    Fault("half the film", other_film(60), "segment 'seg1' has 0 usable scans; .*"
          r"seg1_1_Atlas\S+ 16 volumes; expected 10 or 11, for a film of 5 TRs"),
    Fault("part of a TR", other_film(128), FILM + r"lasts 21\.333 s, 10\.67 TRs of 2 s; expected a whole number"),
    Fault("slow film", other_film(66, fps=3), FILM + "3 frames per second; expected at least 6, for 12 differe",
          ("data.frames_per_clip=12",)),
    # settings
    Fault("unknown area", nothing, r"'V1x' is not known; expected an area of HCP-MMP1 .* did you mean .*V1",
          ("data.selection.rois=[V1x]",)),
    Fault("areas of another mask", mask_file(59_411), r"own\.npy: bool of shape \(59411,\); expected .* \(59412,\)",
          ("data.selection.mask={study}/own.npy",)),
    Fault("no mask there", nothing, r"none\.npy: cannot be read as an array \(.*No such file",
          ("data.selection.mask={study}/none.npy",)),
    Fault("delays descend", nothing, r"delay_trs is \(3, 2\); expected 0 to 4, or several, ascending",
          ("data.delay_trs=[3,2]",)),
    Fault("delay beyond the run", nothing, r"delay_trs is 5; expected 0 to 4", ("data.delay_trs=5",)),
    Fault("two splits", nothing, r"segments seg2 are in two splits", ("data.validation=[seg2]",)),
    Fault("broken setting", nothing, r"--set 'data\.train=\[seg1': the value is not valid YAML",
          ("data.train=[seg1",)),
    Fault("volumes without a mask", nothing, r"files is mni; expected a brain mask", ("data.files=mni",)),
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


# ---------------------------------------------------------------- films that are unusual, and right


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def encode(path, frames, pix_fmt="yuv420p", pixel=None):
    path.unlink()
    height, width, _ = frames[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "12"})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def turn(path, height):
    """Let players turn a film by 90 degrees with the clock, as phones do: a row of pixels becomes a column.

    The matrix of a track header takes (x, y) to (a x + c y + tx, b x + d y + ty): here to (height - y, x).
    """
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    assert content[matrix : matrix + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, height << 16, 0, 1 << 30)
    path.write_bytes(content)


def test_odd_turned_and_stretched_films_show_the_same_picture(study, base, tmp_path):
    odd, turned, stretched = (study / "stimuli" / f"{name}.mp4" for name in ("seg1", "seg2", "seg3"))
    encode(odd, [np.pad(frame, ((0, 1), (0, 1), (0, 0)), "edge") for frame in frames_of(odd)], "yuv444p")
    encode(turned, [np.rot90(frame) for frame in frames_of(turned)])
    turn(turned, height=80)
    encode(stretched, [frame[:, ::2] for frame in frames_of(stretched)], pixel=Fraction(2))
    run = tmp_path / "run"
    assert cc2017(study, run, *volumes(study)) is None
    films = card(run, "films")
    assert {name: (films[name]["height"], films[name]["width"]) for name in ("seg1", "seg2", "seg3")} == {
        "seg1": (65, 81), "seg2": (80, 64), "seg3": (64, 40),
    }  # fmt: skip
    for split in ("train", "validation"):
        found, expected = (inside_blocks(read_arrays(d / f"films/{split}.safetensors")["frames"]) for d in (run, base))
        np.testing.assert_allclose(found, expected, atol=16)
        for other in (expected[..., ::-1, :], expected[..., ::-1]):
            assert np.abs(expected - other).mean() > 40  # turned over would show


def inside_blocks(frames):
    """(B, F, 3, 4, 3) colours in the middle of the blocks that lie whole in the centre square: 8 of its 32 pixels."""
    rows, columns = ((np.array(middles)[:, None] + [-1, 0]).ravel() for middles in ([4, 12, 20, 28], [8, 16, 24]))
    middles = np.asarray(frames, float)[..., rows, :][..., columns]
    return middles.reshape(*middles.shape[:3], 4, 2, 3, 2).mean(axis=(4, 6))


def test_a_film_that_was_trimmed_without_being_written_anew_is_whole(tmp_path):
    """As telephones trim: all frames stay in the file, and its edit list says which are shown."""
    whole, trimmed = tmp_path / "whole.mp4", tmp_path / "trimmed.mp4"
    frames = [np.full((48, 64, 3), 20 + n, np.uint8) for n in range(200)]
    write_film(whole, frames, 25, codec_options={"preset": "medium", "crf": "12"})  # with frames out of order
    content = bytearray(whole.read_bytes())
    edits = content.index(b"elst")
    milliseconds, start = struct.unpack_from(">II", content, edits + 12)
    assert milliseconds == 8000
    struct.pack_into(">II", content, edits + 12, 4000, start + 2 * 12_800)  # 4 s from 2 s on, at 12,800 ticks a second
    trimmed.write_bytes(content)
    info = film_info(trimmed)
    assert (info.n_frames, info.fps) == (100, 25)
    np.testing.assert_array_equal(read_clips(trimmed, 2, 2.0, 5, 32), read_clips(whole, 3, 2.0, 5, 32)[1:])


def test_a_title_in_another_alphabet_does_no_harm(tmp_path):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Gr__n"
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    latin = path.read_bytes()
    assert latin.count(b"Gr__n") == 1
    path.write_bytes(latin.replace(b"Gr__n", "Gr\xfc\xdfn".encode("latin-1")))
    assert film_info(path).n_frames == 50


# ---------------------------------------------------------------- repaired, and gone on with


def volumes(study):
    return ("data.files=mni", f"data.mask={study}/mask.nii.gz")


@pytest.fixture(scope="module")
def plain(pristine, place, base, tmp_path_factory):
    """The run of the undamaged study's volumes."""
    run = tmp_path_factory.mktemp("plain") / "run"
    link(pristine, place)
    shutil.copytree(base / "films", run / "films")
    assert cc2017(place, run, *volumes(place)) is None
    return run


def same_arrays(run, other):
    for stage in ("films", "prepare"):
        for path in sorted((other / stage).glob("*.safetensors")):
            ours, theirs = read_arrays(run / stage / path.name), read_arrays(path)
            assert ours.keys() == theirs.keys()
            for name, array in theirs.items():
                np.testing.assert_array_equal(ours[name], array)


def test_what_is_repaired_is_gone_on_with(pristine, study, plain, tmp_path):
    """One run directory meets a full disk, half a film, a broken training scan and a broken test scan."""
    run = tmp_path / "run"
    shown, first, last = study / "stimuli/seg2.mp4", mni_path(study, "seg2", 1), mni_path(study, "test2", 4)

    def repair(path):
        path.unlink()
        os.link(pristine / path.relative_to(study), path)

    # In a process of its own, with files of 100 kB at most. No signal: Python ignores it, and writing fails.
    words = ["prepare", "cc2017", study, "--subject", SUBJECT, "-o", run, *settings(*SPLITS, *SMALL, *volumes(study))]
    done = subprocess.run(
        [sys.executable, "-c", "from neuroclips.cli import main; main()", *map(str, words)],
        capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    refused(rf"{re.escape(str(run / 'films'))}: no room for 0\.00 GB of arrays, .* free", done.stderr.splitlines()[-1])
    nothing_is_half_written(run)

    bytes_of(half)(shown)
    refused(r"stimuli/seg2\.mp4: cannot be decoded as a film", cc2017(study, run, *volumes(study)))
    nothing_is_half_written(run, "survey")
    repair(shown)

    values = np.asarray(nib.load(first).dataobj)
    values[3, 4, 5, 7] = np.nan
    first.unlink()
    write_volumes(first, values)
    said = r"seg2_1_mni\.nii\.gz: 1 of 288 voxels inside the mask .* not finite \(first: voxel \(3, 4, 5\)"
    refused(said, cc2017(study, run, *volumes(study)))
    nothing_is_half_written(run)
    repair(first)
    films = listed(run / "films")
    assert run / "films/card.json" in films

    bytes_of(half)(last)
    refused(r"test2_4_mni\.nii\.gz: truncated or damaged", cc2017(study, run, *volumes(study)))
    assert not (run / "prepare/card.json").exists()
    assert not (run / "prepare/test.safetensors").exists()
    repair(last)

    assert cc2017(study, run, *volumes(study)) is None
    assert listed(run / "films") == films  # what was finished stood
    same_arrays(run, plain)


def test_a_target_that_cannot_be_written_is_named(study, tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = listed(study)
    refused(r"Not a directory: '\S+/file/run", cc2017(study, tmp_path / "file/run"))
    assert listed(study) == before
    assert (tmp_path / "file").read_text() == "in the way"


# ---------------------------------------------------------------- zips


def make_zip(entries, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in entries.items():
            mode = stat.S_IFLNK | 0o777 if name.endswith("link") else stat.S_IFREG | 0o644
            info = zipfile.ZipInfo(name, (2017, 9, 21, 13, 45, 58))
            info.external_attr, info.compress_type = mode << 16, method
            file.writestr(info, content)
    return buffer.getvalue()


def wrapped(entries):
    """As the repository sends it: a zip of a zip."""
    return make_zip({"10.4231_R7X63K3M/bundle.zip": make_zip(entries), "10.4231_R7X63K3M/README.txt": b"CC0"})


def test_zips_in_zips_give_what_the_folder_gives(study, plain, tmp_path):
    root, into = tmp_path / "downloads", tmp_path / "unpacked"
    root.mkdir()
    content = {
        f"video_fmri_dataset/{path.relative_to(study)}": path.read_bytes()
        for path in sorted(study.rglob("*"))
        if path.suffix == ".mp4" or path.name.endswith("mni.nii.gz")
    }
    stimuli = {name: file for name, file in content.items() if "stimuli" in name}
    (root / "R71Z42KK.zip").write_bytes(wrapped(stimuli))
    (root / "R7J101BV.zip").write_bytes(wrapped({name: content[name] for name in content if name not in stimuli}))
    before = listed(root)
    assert cc2017(root, tmp_path / "run", *volumes(study), f"data.unpack_to={into}") is None
    assert listed(root) == before
    assert {str(p.relative_to(into)): p.read_bytes() for p in into.rglob("*") if p.is_file()} == {
        name.removeprefix("video_fmri_dataset/"): file for name, file in content.items()
    }
    same_arrays(tmp_path / "run", plain)


SCAN_MEMBER = f"video_fmri_dataset/{FMRI}/seg1/cifti/seg1_1_Atlas.dtseries.nii"
ZIPS = {
    "slip": (wrapped({"video_fmri_dataset/stimuli/../../../evil.mp4": b"x"}),
             r"R7\.zip/10\S+bundle\.zip: member 'video\S+evil\.mp4' has a name that could lead out of the folder"),
    "absolute": (make_zip({"/video_fmri_dataset/stimuli/seg1.mp4": b"x"}), r"R7\.zip: .* could lead out of the folder"),
    "bomb": (make_zip({"video_fmri_dataset/stimuli/seg1.mp4": bytes(30 * 2**20)}, zipfile.ZIP_DEFLATED),
             r"R7\.zip: member '\S+seg1\.mp4' claims 31,457,280 bytes from 30,\d+; expected at most 100 times as many"),
    "link": (make_zip({"video_fmri_dataset/stimuli/link": b"/etc/passwd"}), r"R7\.zip: .* is a link or a special file"),
    "truncated": (wrapped({SCAN_MEMBER: bytes(9999)})[:5000], r"R7\.zip: cannot be read as a zip .*download it again"),
    "web page": (b"<html>please log in</html>" * 99, r"R7\.zip: cannot be read as a zip .*download it again"),
    "broken inside": (wrapped({SCAN_MEMBER: bytes(9999)}).replace(bytes(9999), bytes(9998) + b"x"),
                      r"R7\.zip/\S+: member '\S+seg1_1_Atlas\S+' is damaged \(Bad CRC-32.*download it again"),
    "another subject's": (wrapped({SCAN_MEMBER.replace(f"subject{SUBJECT}", "subject1"): bytes(99)}),
                          r"stimuli/seg1\.mp4: no such file; expected the film of segment 'seg1'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ZIPS)
def test_bad_zips_leave_nothing(tmp_path, fault):
    content, said = ZIPS[fault]
    root, into = tmp_path / "downloads", tmp_path / "unpacked"
    root.mkdir()
    (root / "R7.zip").write_bytes(content)
    before = listed(root)
    refused(said, cc2017(root, tmp_path / "run", f"data.unpack_to={into}"))
    assert listed(root) == before
    assert not [path for path in into.rglob("*") if path.is_file()]
    assert not list(tmp_path.rglob("evil*"))
    nothing_is_half_written(tmp_path / "run")


def test_an_unpacking_place_that_cannot_be_written_is_named(study, tmp_path):
    (tmp_path / "downloads").mkdir()
    film = (study / "stimuli/seg1.mp4").read_bytes()
    (tmp_path / "downloads/R7.zip").write_bytes(wrapped({"video_fmri_dataset/stimuli/seg1.mp4": film}))
    (tmp_path / "file").write_text("in the way")
    message = cc2017(tmp_path / "downloads", tmp_path / "run", f"data.unpack_to={tmp_path}/file/unpacked")
    refused(r"file/unpacked: cannot be written to \(Not a directory\); name another folder .* data\.unpack_to", message)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("root", "said"), [("none", "no such folder"), ("file", "no such folder"), ("", "no such file")]
)
def test_a_root_that_is_none_is_named(tmp_path, root, said):
    (tmp_path / "file").write_text("not a folder")
    refused(rf"^error: {re.escape(str(tmp_path / root))}\S*: .*{said}", cc2017(tmp_path / root, tmp_path / "run"))


# ---------------------------------------------------------------- published tensors

T, V, F = 240, 7, 6
ROWS = {"train": 3 * T, "test": T}  # seg1, seg2, seg3; test1


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("published"), np.random.default_rng(0)
    for split, rows in ROWS.items():
        torch.save(torch.from_numpy(rng.normal(size=(rows, 2, V)).astype("f")), folder / f"subj01_{split}_fmri.pt")
        torch.save(torch.from_numpy(rng.integers(0, 256, (rows, F, 3, 8, 8), np.uint8)), folder / f"GT_{split}_3fps.pt")
        torch.save(np.array([f"clip {row}" for row in range(rows)]), folder / f"GT_{split}_caption.pt")
    return folder


class Hostile:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def tensor(change, name="subj01_train_fmri.pt"):
    def plant(folder):
        array = torch.load(folder / name).numpy().copy()
        changed = change(array)
        (folder / name).unlink()
        torch.save(torch.from_numpy(array if changed is None else changed), folder / name)

    return plant


def value(where, number):
    return lambda array: array.__setitem__(where, number)


def content(name, of):
    return lambda folder: replaced(folder / name, of(folder))


def saved(what):
    def of(folder):
        buffer = io.BytesIO()
        torch.save(what(folder), buffer)
        return buffer.getvalue()

    return of


TRAIN = r"^error: \S+/subj01_train_fmri\.pt: "
TENSORS = [
    Fault("objects", content("GT_test_caption.pt", saved(lambda _: np.array(["a", None], object))),
          r"GT_test_caption\.pt: not plain strings but objects .* may run code .* not loaded; expected a numpy array"),
    Fault("hostile", content("subj01_train_fmri.pt", saved(lambda folder: Hostile(folder / "was here"))),
          TRAIN + "not a plain tensor but objects .* that may run code when loaded, .* not loaded; expected what"),
    Fault("hostile, old format", content("subj01_train_fmri.pt", lambda folder: pickle.dumps(Hostile(folder / "here"))),
          TRAIN + "(not a plain tensor|cannot be read)"),
    Fault("git-LFS", content("GT_train_3fps.pt", lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
          r"GT_train_3fps\.pt: a git-LFS pointer of 55 bytes; expected the file itself: run `git lfs pull`"),
    Fault("web page", content("subj01_train_fmri.pt", lambda _: b"<!DOCTYPE html><html></html>"),
          TRAIN + "a web page of 28 bytes; expected what torch.save"),
    Fault("truncated", content("GT_train_3fps.pt", lambda folder: (folder / "GT_train_3fps.pt").read_bytes()[:40_000]),
          r"GT_train_3fps\.pt: truncated, its end is missing after 40000 bytes; download it again"),
    Fault("another subject's", removed("subj01_train_fmri.pt", "subj01_test_fmri.pt"),
          "no responses of subject 1, it holds no subject's; expected subj01_train_fmri.pt and subj01_test_fmri.pt"),
    Fault("no frames", removed("GT_test_3fps.pt"), r"lacks GT_test_3fps\.pt; expected responses and frames of both"),
    Fault("NaN", tensor(value((300, 1, 4), np.nan)), TRAIN + r"1 values of train segment 1, repeat 1 are not finite \("
          "first: nan at clip 300, repeat 1, voxel 4"),
    Fault("Inf", tensor(value((9, 0, 6), -np.inf)), TRAIN + r"1 values of train segment 0, repeat 0 .*first: -inf at"),
    Fault("constant", tensor(lambda array: array[:1].repeat(len(array), 0)), TRAIN + "all 7 voxels are constant w"),
    Fault("axes", tensor(lambda array: array.transpose(1, 0, 2).copy()), TRAIN + "2 clips; expected a multiple of 240"),
    Fault("mean of repeats", tensor(lambda array: array[:, 0].copy()), TRAIN + r"float32 of shape \(720, 7\); expected "
          "floating point of 3 axes: clips, repeats, voxels"),
    Fault("rows", tensor(lambda array: array[:239].copy()), TRAIN + "239 clips; expected a multiple of 240"),
    Fault("voxels", tensor(lambda array: array[:, :, :6].copy()), r"subj01_test_fmri\.pt: 7 voxels, where subj01_train_"
          "fmri.pt has 6; expected as many"),
    Fault("black frames", tensor(lambda array: (array / 255 / 255).astype(np.float32), "GT_test_3fps.pt"),
          r"GT_test_3fps\.pt: values of float32 up to \S+ in 64 clips, black to the eye; expected some above 0\.0039"),
    Fault("channels last", tensor(lambda array: array.transpose(0, 1, 3, 4, 2).copy(), "GT_test_3fps.pt"),
          r"GT_test_3fps\.pt: 8 channels .*; expected clips, frames, 3, H, W, not channels last"),
    Fault("segment that is not there", nothing, r"no segment 'seg4'; expected seg1 to seg3 and test1 to test1",
          ("data.validation=[seg4]",)),
    Fault("areas", nothing, "selection.rois and selection.mask need to know where voxels are; this is a p",
          ("data.selection.rois=[V1]",)),
]  # fmt: skip


@pytest.mark.parametrize("fault", TENSORS, ids=lambda fault: fault.name)
def test_bad_tensors_are_named_and_not_run(published, tmp_path, fault):
    folder = shutil.copytree(published, tmp_path / "tensors", copy_function=os.link)
    fault.plant(folder)
    before = listed(folder)
    splits = ("data.train=[seg1,seg2]", "data.validation=[seg3]", "data.test=[test1]", "data.frame_size=32", *UNSEEN)
    run = tmp_path / "run"
    refused(fault.said, neuroclips("prepare", "tensors", folder, "-o", run, *settings(*splits, *fault.changes)))
    assert listed(folder) == before  # nothing was run that a file asked for
    nothing_is_half_written(run)


def test_tensors_of_another_subject_are_told(published, tmp_path):
    message = neuroclips("prepare", "tensors", published, "--subject", 2, "-o", tmp_path / "run")
    refused(r"no responses of subject 2, it holds subjects 1; expected subj02_train_fmri\.pt and subj02_test", message)


# ---------------------------------------------------------------- tables of any study

FILMS = {"a": "train", "b": "train", "c": "validation", "d": "test"}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Films of 18 s in runs of their own, the first volume of film 3 s into the run, all shown twice."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(1)
    inside = np.zeros(GRID, np.uint8)
    inside[1:6] = 1
    write_volumes(folder / "mask.nii.gz", inside)
    rows = []
    for name, split in FILMS.items():
        frames = np.kron(rng.integers(0, 256, (6, 2, 2, 3), np.uint8), np.ones((1, 24, 32, 1), np.uint8))
        write_film(folder / f"films/{name}.mp4", np.repeat(frames, 75, axis=0), 25)
        for repeat in (1, 2):
            run = f"func/{name}{repeat}_bold.nii.gz"
            write_volumes(folder / run, rng.normal(900, 40, (*GRID, 20)).astype(np.float32), t_r=1.5)
            rows.append({"run": run, "onset": "3", "film": f"films/{name}.mp4", "split": split, "mask": "mask.nii.gz"})
    write_rows(folder, pd.DataFrame(rows))
    return folder


def write_rows(folder, table, name="study.tsv"):
    (folder / name).unlink(missing_ok=True)
    table.to_csv(folder / name, sep="\t", index=False)


def rows(change):
    """Change the table; row n is line n + 2."""

    def plant(folder):
        table = pd.read_csv(folder / "study.tsv", sep="\t", dtype=str, keep_default_na=False)
        changed = change(table)
        write_rows(folder, table if changed is None else changed)

    return plant


def cell(row, column, value):
    def change(table):
        table.loc[row, column] = value
        return table.fillna("")

    return rows(change)


def own_run(name, values, **options):
    def plant(folder):
        (folder / "func" / name).unlink()
        write_volumes(folder / "func" / name, values, **{"t_r": 1.5, **options})

    return plant


def both(*plants):
    return lambda folder: [plant(folder) for plant in plants]


def as_cifti(folder):
    write_run(folder / "func/a1.dtseries.nii", np.ones((20, 9)), axis=grayordinates())
    cell(0, "run", "func/a1.dtseries.nii")(folder)


NOISE = np.random.default_rng(2).normal(900, 40, (*GRID, 20)).astype(np.float32)
TABLE = r"^error: \S+/study\.tsv"
TABLES = [
    Fault("no onset", rows(lambda table: table.drop(columns="onset")), TABLE + ": no column onset; expected run, "
          "onset, film and any of segment, .*, separated by tabs"),
    Fault("unknown column", rows(lambda table: table.assign(trial_type="film")), TABLE + ": unknown column trial_type"),
    Fault("commas", lambda folder: replaced(folder / "study.tsv", b"run,onset,film\nx,1,y\n"),
          TABLE + ": no column run, onset, film; unknown column run,onset,film; expected .* separated by tabs"),
    Fault("empty", lambda folder: replaced(folder / "study.tsv", b""), TABLE + ": cannot be read as a table "),
    Fault("no rows", rows(lambda table: table[:0]), TABLE + ": no rows; expected one for each presentation"),
    Fault("binary", lambda folder: replaced(folder / "study.tsv", (folder / "mask.nii.gz").read_bytes()),
          TABLE + ": cannot be read as a table "),
    Fault("zeros", lambda folder: replaced(folder / "study.tsv", bytes(99)), TABLE + r".*\(its first line is not text"),
    Fault("ragged", lambda folder: replaced(folder / "study.tsv", (folder / "study.tsv").read_bytes() + b"\t" * 9),
          TABLE + r": cannot be read as a table \(.*Expected 5 fields in line 10, saw 10\)"),
    Fault("no table", removed("study.tsv"), TABLE + ": no such file; expected a table of your study"),
    Fault("a folder", both(removed("study.tsv"), lambda folder: (folder / "study.tsv").mkdir()), TABLE + ": a folder"),
    Fault("no such run", cell(3, "run", "func/e1_bold.nii.gz"), TABLE + r", line 5: run is func/e1_bold\.nii\.gz, and "
          r"there is no file \S+/func/e1_bold\.nii\.gz"),
    Fault("no film named", cell(2, "film", ""), TABLE + ", line 4: no film; expected the path of a file, from .* on"),
    Fault("onset text", cell(1, "onset", "soon"), TABLE + ", line 3: onset is 'soon'; expected a number"),
    Fault("onset NaN", cell(1, "onset", "nan"), TABLE + ", line 3: onset is 'nan'; expected a number"),
    Fault("no onset named", cell(1, "onset", "n/a"), TABLE + ", line 3: onset is ''; expected a number"),
    Fault("split typo", cell(0, "split", "trian"), TABLE + ", line 2: split is 'trian'; expected train, validation, t"),
    Fault("split missing", both(cell(0, "split", ""), cell(1, "split", "")), TABLE + ", line 2: segment a has no spli"),
    Fault("two splits", cell(1, "split", "test"), TABLE + ": segment a is in the splits (test, train|train, test); "),
    Fault("film in two splits", both(cell(6, "film", "films/a.mp4"), cell(7, "film", "films/a.mp4"),
          rows(lambda table: table.assign(segment=["a", "a", "b", "b", "c", "c", "d", "d"]))),
          TABLE + r": a\.mp4 from 0 to 18 s is in a \(train\) and in d \(test\); expected film of one split in no"),
    Fault("films at the same time", both(cell(6, "run", "func/a1_bold.nii.gz")),
          TABLE + r": a and d are both shown during the volumes 2 to 13 of a1_bold\.nii\.gz; expected one film at a"),
    Fault("a row twice", cell(1, "run", "func/a1_bold.nii.gz"), TABLE + ": segment a has the same run and onset in t"),
    Fault("a repeat twice", rows(lambda table: table.assign(repeat="1")), TABLE + r": segment a has the repeats \[1, "),
    Fault("repeat 0", cell(0, "repeat", "0"), TABLE + ", line 2: repeat is 0; expected a whole number from 1 to 99"),
    Fault("two films of one name", cell(1, "film", "../own2/films/a.mp4"), TABLE + ", line 3: segment a is another film"
          ", or another part of it, than in line 2; expected the same"),
    Fault("film before the scan", cell(1, "onset", "-4"), r"segment 'a' has 1 usable scans; .* \S+/a2_bold\.nii\.gz: "
          "the film began 4 s before the scan"),
    Fault("run ends too early", own_run("a2_bold.nii.gz", NOISE[..., :14]), r"segment 'a' has 1 usable scans; .* \S+/"
          r"a2_bold\.nii\.gz: 14 volumes; expected at least 17, for the 12 clips of a\.mp4 from 3 s on"),
    Fault("film start beyond the film", both(cell(0, "film_start", "17"), cell(1, "film_start", "17")),
          r"films/a\.mp4: 0 clips of 1\.5 s; expected at least 10"),
    Fault("film start negative", cell(0, "film_start", "-1"), TABLE + ", line 2: film_start is -1; expected 0 or more"),
    Fault("two masks", both(lambda folder: os.link(folder / "mask.nii.gz", folder / "other.nii.gz"),
          cell(0, "mask", "other.nii.gz")), TABLE + r": 2 masks, such as mask\.nii\.gz and other\.nii\.gz; expected"),
    Fault("no mask", rows(lambda table: table.drop(columns="mask")), TABLE + ": NIfTI runs without a mask; expected a"),
    Fault("mask on another grid", lambda folder: (Path.unlink(folder / "mask.nii.gz"),
          write_volumes(folder / "mask.nii.gz", np.ones(GRID, np.uint8), affine=np.diag([2.0, 2, 2, 1]))),
          r"a1_bold\.nii\.gz: grid of \(7, 8, 6\) voxels with affine .*; expected that of the mask \S+/mask\.nii\.gz"),
    Fault("empty mask", lambda folder: (Path.unlink(folder / "mask.nii.gz"),
          write_volumes(folder / "mask.nii.gz", np.zeros(GRID, np.uint8))),
          r"mask\.nii\.gz: 0 of 336 voxels are inside \(not zero\); expected at least 100"),
    Fault("two kinds", as_cifti, TABLE + ": some runs are CIFTI and some NIfTI; expected one kind"),
    Fault("neither kind", cell(0, "run", "films/a.mp4"), r"a\.mp4: expected a scan, \.dtseries\.nii \(CIFTI\), \.nii"),
    Fault("two TRs", own_run("b1_bold.nii.gz", NOISE, t_r=2.0), TABLE + r": b1_bold\.nii\.gz has a TR of 2 s and "
          r"a1_bold\.nii\.gz one of 1\.5 s; expected one TR; give data\.t_r"),
    Fault("no TR", own_run("b1_bold.nii.gz", NOISE, t_r=0.0), r"b1_bold\.nii\.gz: states no usable TR; give data\.t_r"),
    Fault("one volume", own_run("b1_bold.nii.gz", NOISE[..., 0]), r"b1_bold\.nii\.gz: dimensions \(7, 8, 6\); expected "
          "a run"),
    Fault("no such subject", rows(lambda table: table.assign(subject="sub-02")), TABLE + ": no row of subject 1; "
          "expected one of sub-02"),
    Fault("delay of 24 s", nothing, r"delay_trs is \[16\] at a TR of 1\.5 s; expected .* to 13 \(20 s\)",
          ("data.delay_trs=16",)),
    Fault("no such segment", nothing, TABLE + r": no segment e; expected some of a, b, c, d",
          ("data.train=[a,b]", "data.validation=[c]", "data.test=[e]")),
    Fault("film cut short", lambda folder: begun_download(folder / "films/a.mp4"),
          r"films/a\.mp4: truncated; \d+\.\d{3} s of 18\.000 s; fetch it again"),
]  # fmt: skip


@pytest.mark.parametrize("fault", TABLES, ids=lambda fault: fault.name)
def test_a_fault_of_a_table_is_named_in_a_line(own, tmp_path, fault):
    folder = shutil.copytree(own, tmp_path / "own", copy_function=os.link)
    shutil.copytree(own / "films", tmp_path / "own2/films", copy_function=os.link)
    fault.plant(folder)
    before, run = listed(folder), tmp_path / "run"
    words = settings("data.frame_size=32", *UNSEEN, *fault.changes)
    refused(fault.said, neuroclips("prepare", "table", folder / "study.tsv", "-o", run, *words))
    assert listed(folder) == before
    nothing_is_half_written(run)
