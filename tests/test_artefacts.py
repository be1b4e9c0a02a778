import json
import mmap
import subprocess
import sys

import numpy as np
import psutil
import pytest
import safetensors.numpy

from neuroclips.artefacts import (
    ArrayWriter,
    GrowingArrays,
    Rows,
    content_hash,
    file_hash,
    in_parts,
    kept_rows,
    let_go,
    read_arrays,
    read_card,
    rows_written,
    stable_seed,
    write_arrays,
    write_json,
    written_aside,
)
from neuroclips.errors import ArtefactError

ARRAYS = {
    "bold": np.arange(24, dtype=np.float32).reshape(4, 2, 3),
    "frames": np.arange(7, dtype=np.uint8),
    "present": np.array([[True, False], [True, True], [False, False]]),
    "half": np.linspace(0, 1, 5).astype(np.float16),
}


def test_arrays_agree_with_the_safetensors_library_both_ways(tmp_path):
    write_arrays(tmp_path / "ours.safetensors", ARRAYS)
    theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    safetensors.numpy.save_file(ARRAYS, tmp_path / "theirs.safetensors")
    ours = read_arrays(tmp_path / "theirs.safetensors")
    for name, array in ARRAYS.items():
        for copy in (theirs[name], ours[name]):
            assert copy.dtype == array.dtype
            np.testing.assert_array_equal(copy, array)


def test_arrays_are_memory_mapped_and_read_only(tmp_path):
    write_arrays(tmp_path / "a.safetensors", ARRAYS)
    bold = read_arrays(tmp_path / "a.safetensors")["bold"]
    assert isinstance(bold, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        bold[0] = 1


def test_an_interrupted_writer_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"x": np.array([1.0])})
    with pytest.raises(KeyboardInterrupt), ArrayWriter(path, {"x": ((1,), "F64")}) as arrays:
        arrays["x"][0] = 2
        raise KeyboardInterrupt
    assert read_arrays(path)["x"][0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


SPECS = {"bold": ((4, 2, 3), "F32"), "seen": ((4,), "U8")}


def fill(path, parts, stop=None):
    """Write a row a part; returns the parts that were written now. ``stop`` is interrupted in the middle."""
    growing, written = GrowingArrays(path, SPECS), []
    for number, part in enumerate(parts):
        if growing.has(part):
            continue
        with growing.part(part) as arrays:
            arrays["bold"][number] = number + 1
            if part == stop:
                raise KeyboardInterrupt
            arrays["seen"][number] = 1
        written.append(part)
    growing.close()
    return written


def test_rows_are_written_as_they_come(tmp_path):
    arrays = {"bold": ARRAYS["bold"], "number": np.arange(4)}
    with rows_written(tmp_path / "a.safetensors", 4) as write:
        for rows in in_parts(4, 3):
            write(rows, {name: array[rows] for name, array in arrays.items()})
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(KeyboardInterrupt), rows_written(tmp_path / "b.safetensors", 4) as write:
        write(slice(0, 2), {"bold": ARRAYS["bold"][:2]})
        raise KeyboardInterrupt
    with rows_written(tmp_path / "c.safetensors", 4):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="this system cannot let mapped memory go")
def test_memory_of_mapped_files_is_let_go(tmp_path):
    n, process = 16 << 20, psutil.Process()
    with ArrayWriter(tmp_path / "a.safetensors", {"x": ((4, n // 4), "F32")}) as arrays:
        arrays["x"][:] = 3
        before = process.memory_info().rss
        let_go(arrays["x"])
        assert process.memory_info().rss < before - 2 * n  # of 4 n bytes
        assert (arrays["x"] == 3).all()
    mapped = read_arrays(tmp_path / "a.safetensors")["x"]
    assert mapped.sum() == 3 * n
    before = process.memory_info().rss
    let_go(Rows(np.asarray(mapped)[:, None], np.arange(2)), np.ones(3), None)  # a view of a view
    assert process.memory_info().rss < before - 2 * n
    for rows in in_parts(4, 1, mapped):
        before = process.memory_info().rss
        assert mapped[rows].sum() == 3 * n / 4
    assert process.memory_info().rss < before + n  # of the last part alone, or none


def test_rows_are_read_as_if_they_had_been_taken():
    x, order = np.arange(60).reshape(5, 3, 4), np.array([4, 4, 0])
    rows = Rows(x, order)
    assert (len(rows), rows.shape, rows.dtype) == (3, (3, 3, 4), x.dtype)
    for index in (slice(1, 3), 2, (slice(None), 1), (slice(0, 2), slice(1, 3)), (slice(None), slice(None), 2)):
        np.testing.assert_array_equal(rows[index], x[order][index])
    np.testing.assert_array_equal(np.asarray(rows, np.float32), x[order])
    np.testing.assert_array_equal(rows.reshape(3, 12)[:, 5:7], x[order].reshape(3, 12)[:, 5:7])


def test_growing_arrays_go_on_with_the_part_they_were_at(tmp_path):
    path, parts = tmp_path / "deep" / "a.safetensors", ["a", "b", "c", "d"]
    with pytest.raises(KeyboardInterrupt):
        fill(path, parts, stop="c")
    assert not path.exists()  # what is not whole is not visible
    assert all(p.name.startswith(".") for p in path.parent.iterdir())
    assert fill(path, parts) == ["c", "d"]
    found = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(found["bold"], np.arange(1, 5)[:, None, None] * np.ones((4, 2, 3)))
    assert found["seen"].tolist() == [1, 1, 1, 1]
    assert fill(path, parts) == []
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_growing_arrays_of_another_shape_start_anew(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fill(path, ["a", "b"], stop="b")
    growing = GrowingArrays(path, {**SPECS, "seen": ((5,), "U8")})
    assert not growing.has("a")
    whole = GrowingArrays(tmp_path / "b.safetensors", SPECS)
    whole.close()
    assert GrowingArrays(tmp_path / "b.safetensors", SPECS).has("anything")
    (tmp_path / "b.safetensors").write_bytes(b"damaged")
    assert not GrowingArrays(tmp_path / "b.safetensors", SPECS).has("anything")


def test_a_full_disk_is_met_before_anything_is_mapped(tmp_path):
    """Through a memory map it would kill the process; here it is an error, in a process that may write 2 MB."""
    script = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
from pathlib import Path
from neuroclips.artefacts import ArrayWriter, GrowingArrays, write_arrays
from neuroclips.errors import ArtefactError
path, specs = Path({str(tmp_path)!r}) / "a.safetensors", {{"bold": ((1000, 1000), "F32")}}
for make in (lambda: GrowingArrays(path, specs), lambda: ArrayWriter(path, specs).__enter__()):
    try:
        make()
    except ArtefactError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("no room for 0.00 GB of arrays") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 5, 40, -4])
def test_a_truncated_file_is_refused_by_name(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    write_arrays(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArtefactError, match=r"a\.safetensors"):
        read_arrays(path)


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match="'x' has dtype complex128"):
        write_arrays(tmp_path / "a.safetensors", {"x": np.zeros(2, complex)})
    assert not list(tmp_path.iterdir())


def test_json_is_strict_and_atomic(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": np.float32(0.5), "y": tmp_path, "z": np.arange(3)})
    assert json.loads(path.read_text()) == {"x": 0.5, "y": str(tmp_path), "z": [0, 1, 2]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text())["x"] == 0.5


def test_a_damaged_card_names_its_file(tmp_path):
    assert read_card(tmp_path) is None
    (tmp_path / "card.json").write_text('{"stage": ')
    with pytest.raises(ArtefactError, match=r"card\.json"):
        read_card(tmp_path)


def test_written_aside_replaces_only_on_success(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with written_aside(path) as aside:
        aside.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("two")
        raise RuntimeError
    assert path.read_text() == "one"


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1}) != content_hash({"a": 2, "b": 1})


def test_stable_seeds_never_change_and_never_collide():
    assert stable_seed(7, "test1/0004s") == 4046665092042518508
    assert len({stable_seed(s, f"test1/{c:04d}s") for s in range(20) for c in range(100)}) == 2000


def test_kept_rows_are_made_once_and_in_their_own_place(tmp_path):
    asked, seen = [], []

    def make(numbers):
        asked.append(numbers.tolist())
        if 3 in numbers and len(asked) < 4:
            raise KeyboardInterrupt
        return {"square": np.square(numbers).astype(np.float32), "pair": np.stack([numbers, -numbers], axis=1)}

    ids = ["a/0", "a/2", "b/0", "b/2", "b/4"]
    with pytest.raises(KeyboardInterrupt):
        kept_rows(tmp_path, ids, make, batch=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_0.safetensors", "a_2.safetensors"]
    asked.append([])
    found = kept_rows(tmp_path, ids, make, batch=2, progress=lambda done, total: seen.append((done, total)))
    assert asked == [[0, 1], [2, 3], [], [2, 3], [4]]
    assert seen == [(2, 5), (4, 5)]
    assert found["square"].tolist() == [0, 1, 4, 9, 16]
    assert found["pair"].tolist() == [[0, 0], [1, -1], [2, -2], [3, -3], [4, -4]]
    assert isinstance(found["pair"], np.memmap)
    kept_rows(tmp_path, ids, lambda _: pytest.fail("everything is there"), batch=2)
    assert kept_rows(tmp_path, ids[:1], make, batch=2)["pair"].tolist() == [[0, 0]]  # others of the same folder
