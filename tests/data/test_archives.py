"""Unpacking downloads: real zips in zips, hostile and damaged ones, and runs that were killed."""

import io
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest

from neuroclips.data import archives
from neuroclips.data.archives import Unpacked, find_archives, unpack
from neuroclips.errors import DataError

DATE = (2017, 9, 21, 13, 45, 58)
TIME = datetime(*DATE, tzinfo=UTC).timestamp()
ATLAS = "subject1/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii"
RAW = "subject1/fmri/seg1/raw/seg1_1.nii.gz"
SIZES = {"stimuli/seg1.mp4": 70_001, ATLAS: 300_007, RAW: 40_009, "subject1/smri/t1w.nii.gz": 11}
INNER = "10.4231_R7X63K3M/bundle.zip"
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def noise(size, seed=0):
    """Bytes that deflate shrinks to some two thirds."""
    return np.random.default_rng([size, seed]).integers(0, 40, size, np.uint8).tobytes()


TRUTH = {path: noise(size) for path, size in SIZES.items()}
KEPT = {path: content for path, content in TRUTH.items() if path != RAW}


def wanted(path):
    assert isinstance(path, PurePosixPath)
    return "raw" not in path.parts


def entry(name, mode=stat.S_IFREG | 0o644, date=DATE, method=DEFLATED):
    info = zipfile.ZipInfo(name, date)
    info.external_attr, info.compress_type = mode << 16, method
    return info


def make_zip(entries):
    """The bytes of a zip of (ZipInfo, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for info, content in entries:
            file.writestr(info, content, info.compress_type)
    return buffer.getvalue()


def bundle(*more, truth=TRUTH, method=DEFLATED):
    return make_zip([(entry(f"video_fmri_dataset/{p}", method=method), c) for p, c in truth.items()] + list(more))


def wrap(content, method=STORED, name=INNER):
    note = (entry("10.4231_R7X63K3M/README.txt"), b"CC0")
    return make_zip([note, (entry(name, method=method), content)])


def patch(content, name, **fields):
    """Change fields of one member, in its local header and in the list of members."""
    places = {"flags": (6, 8, "H"), "method": (8, 10, "H"), "crc": (14, 16, "I"), "packed": (18, 20, "I"),
              "size": (22, 24, "I")}  # fmt: skip
    content = bytearray(content)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        local = file.getinfo(name).header_offset
    listed = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    for field, value in fields.items():
        in_local, in_list, kind = places[field]
        struct.pack_into(f"<{kind}", content, local + in_local, value)
        struct.pack_into(f"<{kind}", content, listed + in_list, value)
    return bytes(content)


def files_under(folder):
    """Everything but folders."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files_under(folder)}


def refused(tmp_path, content, match, name="x.zip"):
    """Unpack ``content`` as a file; it must be refused, and leave no file anywhere."""
    root, into = tmp_path / "root", tmp_path / "away" / "into"
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(content)
    before = files_under(tmp_path)
    with pytest.raises(DataError, match=match):
        unpack(root, into, lambda path: True)
    assert files_under(tmp_path) == before


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("same_folder", [False, True])
def test_a_download_becomes_the_data_set(tmp_path, method, same_folder):
    root = tmp_path / "root"
    into = root if same_folder else tmp_path / "deep" / "into"
    root.mkdir()
    (root / "R7X63K3M.zip").write_bytes(wrap(bundle(), method))
    done = unpack(root, into, wanted)
    size = sum(map(len, KEPT.values()))
    left_out = {"not wanted": 1, "not under video_fmri_dataset": 1}
    assert done == Unpacked(3, 0, size, (f"R7X63K3M.zip/{INNER}",), left_out)
    made = {name: content for name, content in contents(into).items() if name in TRUTH}
    assert made == KEPT
    rest = ({"R7X63K3M.zip"} if same_folder else set()) | {
        name for name in files_under(into) if name.startswith(".unpacked/")
    }
    assert files_under(into) == set(KEPT) | rest
    assert {(into / name).stat().st_mtime for name in KEPT} == {TIME}


@pytest.mark.parametrize("place", ["bundle.zip", "10.4231_R7X63K3M/bundle.zip", "by hand.ZIP"])
def test_zips_unwrapped_by_hand(tmp_path, place):
    root = tmp_path / "root"
    (root / place).parent.mkdir(parents=True)
    (root / place).write_bytes(bundle())
    done = unpack(root, tmp_path / "into", wanted)
    assert (done.written, done.archives, contents(tmp_path / "into")) == (3, (place,), KEPT)


def test_the_data_set_may_lie_deeper_and_under_a_dot(tmp_path):
    (tmp_path / "a.zip").write_bytes(make_zip([(entry("./my//copy/video_fmri_dataset/./stimuli/seg1.mp4"), b"film")]))
    unpack(tmp_path, tmp_path / "into", wanted)
    assert contents(tmp_path / "into") == {"stimuli/seg1.mp4": b"film"}


def test_archives_are_found_in_the_folder_and_one_below(tmp_path):
    for name in ("b.zip", "a.ZIP", "sub/bundle.zip", "sub/deep/c.zip", "a.txt", "._b.zip", "__MACOSX/b.zip",
                 ".unpacking/d.zip", "folder.zip/readme.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_archives(tmp_path) == [tmp_path / name for name in ("a.ZIP", "b.zip", "sub/bundle.zip")]
    with pytest.raises(DataError, match="nowhere: no such folder"):
        find_archives(tmp_path / "nowhere")


def test_without_archives_nothing_happens(tmp_path):
    assert unpack(tmp_path, tmp_path / "into", wanted) == Unpacked(0, 0, 0, (), {})
    assert not (tmp_path / "into").exists()


def test_what_macos_leaves_and_folders_are_passed_over(tmp_path):
    junk = [(entry(name), b"junk") for name in (
        "__MACOSX/video_fmri_dataset/stimuli/._seg1.mp4", "video_fmri_dataset/.DS_Store",
        "video_fmri_dataset/stimuli/._seg1.mp4", "__MACOSX/._bundle.zip",
    )]  # fmt: skip
    folder = (entry("video_fmri_dataset/stimuli/", stat.S_IFDIR | 0o755, method=STORED), b"")
    (tmp_path / "a.zip").write_bytes(wrap(bundle(*junk, folder)))
    done = unpack(tmp_path, tmp_path / "into", wanted)
    assert done.left_out == {"left over by macOS": 4, "not wanted": 1, "not under video_fmri_dataset": 1}
    assert contents(tmp_path / "into") == KEPT


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_a_second_call_writes_nothing_wherever_the_clock_stands(tmp_path, method, monkeypatch):
    (tmp_path / "a.zip").write_bytes(wrap(bundle(), method))
    into = tmp_path / "into"
    first = unpack(tmp_path, into, wanted)

    def state():
        found = {path: path.stat() for path in into.rglob("*")}
        return {path: (facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns) for path, facts in found.items()}

    before = state()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    # Nothing is read but the lists of members, and no right to write is asked for.
    monkeypatch.setattr(archives, "_blocks", None)
    monkeypatch.setattr(archives.tempfile, "TemporaryFile", None)
    again = unpack(tmp_path, into, wanted, lambda *progress: pytest.fail("nothing to tell"))
    monkeypatch.undo()
    time.tzset()
    assert again == Unpacked(0, first.written, 0, first.archives, first.left_out)
    assert state() == before


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_more_may_be_wanted_later(tmp_path, method):
    (tmp_path / "a.zip").write_bytes(wrap(bundle(), method))
    unpack(tmp_path, tmp_path / "into", lambda path: path.parts[0] == "stimuli")
    done = unpack(tmp_path, tmp_path / "into", lambda path: True)
    assert (done.written, done.kept) == (3, 1)
    assert {name: (tmp_path / "into" / name).read_bytes() for name in TRUTH} == TRUTH
    assert not (tmp_path / "into/.unpacking").exists()


def test_what_differs_is_written_anew_and_a_copy_is_kept(tmp_path):
    (tmp_path / "a.zip").write_bytes(wrap(bundle()))
    into = tmp_path / "into"
    unpack(tmp_path, into, wanted)
    short, other, copy = (into / name for name in KEPT)
    short.write_bytes(short.read_bytes()[:-1])
    os.utime(short, (TIME, TIME))
    other.write_bytes(noise(SIZES[ATLAS], seed=1))  # of the right size, with another time
    os.utime(copy)  # as `cp` would
    inode = copy.stat().st_ino
    done = unpack(tmp_path, into, wanted)
    assert (done.written, done.kept) == (2, 1)
    assert contents(into) == KEPT
    assert (copy.stat().st_ino, copy.stat().st_mtime) == (inode, TIME)


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(tmp_path):
    (tmp_path / "a.zip").write_bytes(bundle())
    (tmp_path / "precious").write_bytes(b"mine")
    target = tmp_path / "into/stimuli/seg1.mp4"
    target.parent.mkdir(parents=True)
    target.symlink_to(tmp_path / "precious")
    unpack(tmp_path, tmp_path / "into", wanted)
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert not target.is_symlink()
    assert target.read_bytes() == TRUTH["stimuli/seg1.mp4"]


def test_progress_counts_up_to_the_total_and_names_every_file(tmp_path, monkeypatch):
    truth = {"stimuli/seg1.mp4": noise(5_000_000), "stimuli/seg2.mp4": noise(2_500_000)}
    (tmp_path / "a.zip").write_bytes(bundle(truth=truth, method=STORED))
    monkeypatch.setattr(archives, "_REPORT", 2 * 2**20)
    told = []
    unpack(tmp_path, tmp_path / "into", wanted, lambda *progress: told.append(progress))
    assert told == [(4, 8, "stimuli/seg1.mp4"), (5, 8, "stimuli/seg1.mp4"), (7, 8, "stimuli/seg2.mp4"),
                    (8, 8, "stimuli/seg2.mp4")]  # fmt: skip


def test_zip64_in_the_window(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", DEFLATED) as file:
        for path, content in TRUTH.items():
            with file.open(entry(f"video_fmri_dataset/{path}"), "w", force_zip64=True) as member:
                member.write(content)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("first.txt", "something before it")
        with file.open(entry(INNER, method=STORED), "w", force_zip64=True) as member:
            member.write(inner.getvalue())
    assert (tmp_path / "a.zip").read_bytes().count(b"\x01\x00\x10\x00") == 5  # Zip64 fields: 4 files and the bundle
    unpack(tmp_path, tmp_path / "into", wanted)
    assert contents(tmp_path / "into") == KEPT


def test_a_third_level_of_zips_is_not_opened(tmp_path):
    deep = make_zip([(entry("deep.zip", method=STORED), bundle()), (entry("video_fmri_dataset/a.zip"), b"a file")])
    (tmp_path / "a.zip").write_bytes(wrap(deep))
    done = unpack(tmp_path, tmp_path / "into", wanted)
    assert done.left_out == {"not under video_fmri_dataset": 1, "a zip inside two zips": 1}
    assert contents(tmp_path / "into") == {"a.zip": b"a file"}  # a file of the data set, whatever it is


def test_the_same_file_in_two_archives_is_kept_once(tmp_path):
    (tmp_path / "a.zip").write_bytes(wrap(bundle()))
    (tmp_path / "b").mkdir()
    later = (entry("video_fmri_dataset/stimuli/seg1.mp4", date=(2020, 1, 1, 0, 0, 0)), TRUTH["stimuli/seg1.mp4"])
    (tmp_path / "b/bundle.zip").write_bytes(make_zip([later]))
    done = unpack(tmp_path, tmp_path / "into", wanted)
    assert (done.written, done.left_out["the same in another archive"]) == (3, 1)
    assert contents(tmp_path / "into") == KEPT
    assert (tmp_path / "into/stimuli/seg1.mp4").stat().st_mtime == TIME


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_the_same_download_twice(tmp_path, method):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "download.zip").write_bytes(wrap(bundle(), method))
    for written in (3, 0):
        done = unpack(tmp_path, tmp_path / "into", wanted)
        assert (done.written, done.left_out["the same in another archive"]) == (written, 3)
    assert not (tmp_path / "into/.unpacking").exists()


@pytest.mark.parametrize("name", ["stimuli/seg1.mp4", "Stimuli/SEG1.mp4"])
def test_different_files_of_one_path_are_refused(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    content = noise(SIZES["stimuli/seg1.mp4"], seed=int(name.islower()))
    (root / "b.zip").write_bytes(make_zip([(entry(f"video_fmri_dataset/{name}"), content)]))
    refused(tmp_path, wrap(bundle()), rf"x\.zip/{INNER}/\S+seg1\.mp4 \(70,001 bytes\) and \S+b\.zip/\S+{name} \(70,001")


def test_unwanted_files_may_differ_between_archives(tmp_path):
    (tmp_path / "a.zip").write_bytes(bundle())
    (tmp_path / "b.zip").write_bytes(make_zip([(entry(f"video_fmri_dataset/{RAW}"), b"another")]))
    assert unpack(tmp_path, tmp_path / "into", wanted).left_out == {"not wanted": 2}


def named(name, **more):
    return lambda: bundle((entry(name, **more), b"x"))


def patched(name="video_fmri_dataset/" + ATLAS, **fields):
    return lambda: patch(bundle(), name, **fields)


def duplicate():
    with pytest.warns(UserWarning, match="Duplicate name"):
        return bundle((entry("video_fmri_dataset/stimuli/seg1.mp4"), TRUTH["stimuli/seg1.mp4"]))


def nameless():
    content = bytearray(bundle(truth={"stimuli/seg1.mp4": b"film"}))
    listed = content.index(b"PK\x01\x02")
    length = struct.unpack_from("<H", content, listed + 28)[0]
    struct.pack_into("<3H", content, listed + 28, 0, 0, length)  # what was the name is now a comment
    return bytes(content)


ESCAPE = "could lead out of the folder"
HOSTILE = {
    "up": (named("video_fmri_dataset/../../evil"), ESCAPE),
    "up, outside the data set": (named("../evil"), ESCAPE),
    "absolute": (named("/tmp/video_fmri_dataset/evil"), ESCAPE),
    "backslash": (named("video_fmri_dataset\\..\\evil"), ESCAPE),
    "drive": (named("video_fmri_dataset/C:/evil"), ESCAPE),
    "control character": (named("video_fmri_dataset/a\x1b[2Jb"), "control characters"),
    "NUL": (lambda: bundle((entry("video_fmri_dataset/aNULb"), b"x")).replace(b"NUL", b"\0xx"), "control characters"),
    "no name": (nameless, "member '' has no name"),
    "link": (named("video_fmri_dataset/link", mode=stat.S_IFLNK | 0o777), "a link or a special file"),
    "pipe": (named("video_fmri_dataset/pipe", mode=stat.S_IFIFO | 0o666), "a link or a special file"),
    "zeros": (lambda: bundle((entry("video_fmri_dataset/zeros"), bytes(20 * 2**20))), "claims 20,971,520 bytes from"),
    "twice": (duplicate, "'video_fmri_dataset/stimuli/seg1.mp4' is there twice"),
    "twice, but for case": (named("video_fmri_dataset/Stimuli/SEG1.mp4"), "is there twice"),
    "twice, by two ways": (named("other/video_fmri_dataset/stimuli/seg1.mp4"), "is there twice"),
    "file and folder": (named("video_fmri_dataset/stimuli"), "also that of a folder"),
    "encrypted": (patched(flags=1), "is encrypted"),
    "strongly encrypted": (patched(flags=0x40), "is encrypted"),
    "patch": (patched(flags=0x20), "holds a difference to another file"),
    "bzip2": (named("video_fmri_dataset/b", method=zipfile.ZIP_BZIP2), "by method 12"),
    "unknown method": (patched(method=97), "by method 97; expected 0"),
    "two sizes": (patched(method=STORED), "has two sizes, 300,007 and"),
    "overlapping": (patched(packed=10_000_000), "they overlap"),
}  # fmt: skip


@pytest.mark.parametrize("inside", ["plain", "stored", "deflated"])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_whole(tmp_path, case, inside):
    make, message = HOSTILE[case]
    content = make() if inside == "plain" else wrap(make(), STORED if inside == "stored" else DEFLATED)
    archive = r"x\.zip" if inside == "plain" else rf"x\.zip/{INNER}"
    refused(tmp_path, content, rf"(?s){archive}[:/].*{re.escape(message)}")


def test_a_second_name_is_checked_too():
    info = entry("video_fmri_dataset/stimuli/seg1.mp4")
    assert archives._fault(info, any_size=False) is None
    info.filename = "../evil"  # as newer versions of zipfile take it from an extra field
    assert ESCAPE in archives._fault(info, any_size=False)


def test_one_hostile_archive_stops_the_others_too(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a.zip").write_bytes(bundle())
    refused(tmp_path, wrap(named("../evil")()), r"x\.zip/.*'\.\./evil'")


@pytest.mark.parametrize(
    ("bound", "value", "message"),
    [
        ("_MAX_MEMBERS", 3, "4 members; expected at most 3"),
        ("_MAX_TOTAL", sum(SIZES.values()) - 1, "expected at most 0 GB"),
        ("_MAX_FILE", SIZES[ATLAS] - 1, f"{ATLAS}' claims 0.0 GB"),
        ("_MAX_LIST", 300, "its list of members takes"),
    ],
)
def test_sizes_are_bounded(tmp_path, monkeypatch, bound, value, message):
    (tmp_path / "a.zip").write_bytes(wrap(bundle()))
    monkeypatch.setattr(archives, bound, value + 1)
    if bound != "_MAX_LIST":  # nothing is refused at the bound itself
        assert unpack(tmp_path, tmp_path / "into", wanted).written == 3
    monkeypatch.setattr(archives, bound, value)
    refused(tmp_path, wrap(bundle()), re.escape(message))


def test_a_bundle_may_be_larger_than_any_file(tmp_path, monkeypatch):
    content = bundle(method=STORED)
    assert len(content) > SIZES[ATLAS]
    (tmp_path / "a.zip").write_bytes(wrap(content))
    monkeypatch.setattr(archives, "_MAX_FILE", SIZES[ATLAS])
    assert unpack(tmp_path, tmp_path / "into", wanted).written == 3


def test_a_member_that_holds_more_than_it_says(tmp_path):
    name = "video_fmri_dataset/" + ATLAS
    alone = bundle(truth={ATLAS: TRUTH[ATLAS]})
    refused(tmp_path, patch(alone, name, size=1000), rf"x\.zip: member '{name}' is damaged \(Bad CRC-32")
    # Consistent with itself: then it is a file of 1000 bytes, and no more are written.
    consistent = patch(alone, name, size=1000, crc=zlib.crc32(TRUTH[ATLAS][:1000]))
    (tmp_path / "root/x.zip").write_bytes(consistent)
    unpack(tmp_path / "root", tmp_path / "into", wanted)
    assert contents(tmp_path / "into") == {ATLAS: TRUTH[ATLAS][:1000]}


def test_a_member_that_holds_less_than_it_says(tmp_path):
    name = "video_fmri_dataset/" + ATLAS
    content = patch(bundle(truth={ATLAS: TRUTH[ATLAS]}), name, size=SIZES[ATLAS] + 5)
    refused(tmp_path, content, r"is damaged \(300,007 bytes instead of 300,012\)")


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_a_flipped_byte_is_found(tmp_path, method):
    content = bytearray(wrap(bundle(truth={ATLAS: TRUTH[ATLAS]}, method=method)))
    content[len(content) // 2] ^= 1
    message = (
        rf"x\.zip/{INNER}: member 'video_fmri_dataset/{ATLAS}' is damaged .*; x\.zip \({len(content):,} bytes\) is"
    )
    refused(tmp_path, bytes(content), message)


@pytest.mark.parametrize("inside", ["plain", "stored", "deflated"])
@pytest.mark.parametrize("kept", [0, 3, 0.5, -1])
def test_a_truncated_download_is_named_with_its_size(tmp_path, kept, inside):
    content = bundle() if inside == "plain" else wrap(bundle(), STORED if inside == "stored" else DEFLATED)
    content = content[: int(kept * len(content)) if kept == 0.5 else kept]
    message = rf"x\.zip: cannot be read as a zip .*x\.zip \({len(content):,} bytes\) is damaged or incomplete: download"
    refused(tmp_path, content, message)


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_a_damaged_bundle_in_a_sound_zip(tmp_path, method):
    message = rf"x\.zip/{INNER}: cannot be read as a zip .*; x\.zip \("
    refused(tmp_path, wrap(bundle()[:-30], method), message)
    refused(tmp_path, wrap(b"<html>please log in</html>", method), message)


def test_a_damaged_header_of_a_stored_bundle(tmp_path):
    content = bytearray(wrap(bundle()))
    content[content.index(b"PK\x03\x04", 1)] = 0  # of the second member, the bundle
    refused(tmp_path, bytes(content), rf"x\.zip: member '{INNER}' is damaged \(Bad magic number")


def test_random_damage_is_an_error_or_does_no_harm(tmp_path):
    truth = {"stimuli/seg1.mp4": noise(300), ATLAS: noise(200)}
    sound = wrap(bundle(truth=truth))
    rng = np.random.default_rng(3)
    errors = 0
    for number in range(100):
        content = bytearray(sound)
        for place in rng.integers(0, len(content), 1 + number % 3):
            content[place] = rng.integers(256)
        root, into = tmp_path / f"{number}", tmp_path / f"into{number}"
        root.mkdir()
        (root / "a.zip").write_bytes(content)
        try:
            unpack(root, into, wanted)
        except DataError:
            errors += 1
        assert set(contents(into).values()) <= set(truth.values())
        assert not any(name.endswith(".part") for name in files_under(into))
    assert 30 < errors < 100


def test_a_folder_that_cannot_be_written_to(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.zip").write_bytes(wrap(bundle()))
    (tmp_path / "file").write_bytes(b"mine")
    for into in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            DataError, match=rf"{into}: cannot be written to \(.*name another folder .* data\.unpack_to"
        ):
            unpack(root, into, wanted)
    assert contents(tmp_path) == {"root/a.zip": wrap(bundle()), "file": b"mine"}
    (tmp_path / "into/stimuli/seg1.mp4").mkdir(parents=True)
    with pytest.raises(DataError, match=r"seg1\.mp4: cannot be written \(Is a directory\)"):
        unpack(root, tmp_path / "into", wanted)
    assert files_under(tmp_path / "into") == set()


def test_a_read_only_folder(tmp_path):
    (tmp_path / "a.zip").write_bytes(wrap(bundle()))
    into = tmp_path / "into"
    into.mkdir(mode=0o555)
    if os.access(into, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(DataError, match=r"into: cannot be written to \(Permission denied\)"):
        unpack(tmp_path, into, wanted)


@pytest.mark.parametrize(
    ("method", "free"), [(STORED, 370_018), (DEFLATED, len(bundle()) - 1), (DEFLATED, 370_018)],
    ids=["for the files", "for the bundle", "for the files after the bundle"],
)  # fmt: skip
def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch, method, free):
    assert len(bundle()) < sum(map(len, KEPT.values())) == 370_019
    root, into = tmp_path / "root", tmp_path / "into"
    root.mkdir()
    (root / "a.zip").write_bytes(wrap(bundle(), method))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    message = rf"into: unpacking takes 0\.\d\d\d GB, {free / 1e9:.3f} GB are free; make room, .* data\.unpack_to"
    with pytest.raises(DataError, match=message):
        unpack(root, into, wanted)
    assert files_under(into) == set()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=370_019))
    assert unpack(root, into, wanted).written == 3


def run(code, root, into):
    """Python with its arguments ``root`` and ``into``, in a process of its own that can be killed."""
    start = """
import sys, time
from pathlib import Path
from neuroclips.data import archives
root, into = map(Path, sys.argv[1:])
wanted = lambda path: "raw" not in path.parts
"""
    return subprocess.Popen(
        [sys.executable, "-c", start + code, str(root), str(into)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("method", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_a_full_disk_leaves_only_finished_files(tmp_path, method):
    # The largest file that a process may write stands in for the room on the disk. The first film fits.
    root, into = tmp_path / "root", tmp_path / "into"
    root.mkdir()
    (root / "a.zip").write_bytes(wrap(bundle(), method))
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    archives.unpack(root, into, wanted)
except archives.DataError as error:
    print(error)
"""
    process = run(code, root, into)
    message = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert re.search(r"(dtseries\.nii|\.zip): cannot be written \(File too large\); make room", message)
    assert files_under(into) == ({"stimuli/seg1.mp4"} if method == STORED else set())
    assert unpack(root, into, wanted).written == (2 if method == STORED else 3)


@pytest.mark.parametrize(("method", "during"), [(STORED, ATLAS), (DEFLATED, ATLAS), (DEFLATED, ".unpacking")])
def test_a_killed_run_goes_on_where_it_stopped(tmp_path, method, during):
    root, into = tmp_path / "root", tmp_path / "into"
    root.mkdir()
    (root / "a.zip").write_bytes(wrap(bundle(), method))
    code = f"""
archives._BLOCK = archives._REPORT = 50_000
def progress(done, total, what):
    if what.startswith({during!r}):
        print("here", flush=True)
        time.sleep(60)
archives.unpack(root, into, wanted, progress)
"""
    process = run(code, root, into)
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    left = files_under(into)
    assert [name.endswith(".part") for name in left].count(True) == 1
    assert ATLAS not in left
    told = []
    done = unpack(root, into, wanted, lambda done, total, what: told.append(what))
    assert (done.written, done.kept) == ((3, 0) if during == ".unpacking" else (2, 1))
    assert any(what.startswith(".unpacking") for what in told) == (during == ".unpacking")  # the copy served again
    record = {name for name in files_under(into) if name.startswith(".unpacked/")}
    assert {name: content for name, content in contents(into).items() if name not in record} == KEPT
    assert not (into / ".unpacking").exists()


def test_only_leftovers_of_dead_processes_are_removed(tmp_path):
    (tmp_path / "a.zip").write_bytes(bundle())
    folder = tmp_path / "into/stimuli"
    folder.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {pid: f".seg7.mp4.{pid}.part" for pid in (dead.pid, os.getpid(), os.getppid())}
    for name in (*names.values(), ".mine.part"):
        (folder / name).touch()
    unpack(tmp_path, tmp_path / "into", wanted)
    # This process was not writing yet: its number was another's before, as happens in containers.
    assert files_under(folder) == {"seg1.mp4", names[os.getppid()], ".mine.part"}


def test_a_stopped_run_keeps_its_copy_and_a_failed_one_does_not(tmp_path):
    (tmp_path / "a.zip").write_bytes(wrap(bundle(), DEFLATED))

    def stop(error):
        def progress(done, total, what):
            if what == ATLAS:
                raise error

        return progress

    for error, kept in ((KeyboardInterrupt(), 1), (RuntimeError("a fault of the caller"), 0)):
        with pytest.raises(type(error)):
            unpack(tmp_path, tmp_path / "into", wanted, stop(error))
        assert len([name for name in files_under(tmp_path / "into") if name.startswith(".unpacking")]) == kept
        shutil.rmtree(tmp_path / "into/subject1")


def test_a_strange_record_is_not_believed(tmp_path):
    (tmp_path / "a.zip").write_bytes(wrap(bundle(), DEFLATED))
    into = tmp_path / "into"
    unpack(tmp_path, into, wanted)
    (record,) = (into / ".unpacked").iterdir()
    for text in ("", "[]", '{"members": [["a", 1]], "left_out": {}}', '{"members": 7}'):
        record.write_text(text)
        assert unpack(tmp_path, into, wanted).kept == 3
    (into / ATLAS).unlink()
    assert unpack(tmp_path, into, wanted).written == 1
    assert (into / ATLAS).read_bytes() == TRUTH[ATLAS]


def test_dates_that_do_not_exist(tmp_path):
    content = bytearray(bundle(truth={"stimuli/seg1.mp4": b"film"}))
    listed = content.index(b"PK\x01\x02")
    (tmp_path / "into").mkdir()
    for date in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
        content[listed + 12 : listed + 16] = date
        (tmp_path / "a.zip").write_bytes(content)
        unpack(tmp_path, tmp_path / "into", wanted)
        assert unpack(tmp_path, tmp_path / "into", wanted).kept == 1


def test_paths_may_be_relative(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(wrap(bundle()))
    monkeypatch.chdir(tmp_path)
    assert unpack(Path("."), Path("into"), wanted).archives == (f"a.zip/{INNER}",)
    assert contents(tmp_path / "into") == KEPT
