import json

import numpy as np
import pytest
import safetensors.numpy

from neuroclips.artefacts import (
    ArrayWriter,
    content_hash,
    file_hash,
    kept_rows,
    read_arrays,
    read_card,
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
    kept_rows(tmp_path, ids, lambda _: pytest.fail("everything is there"), batch=2)
