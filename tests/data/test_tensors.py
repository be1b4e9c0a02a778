"""The published tensors: what is read back is what was written, faults are named, and nothing in a file is executed."""

import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import psutil
import pytest
import torch
from scipy import stats

from neuroclips.data import tensor_file, tensors
from neuroclips.data.tensors import open_tensors, tensor_files
from neuroclips.errors import DataError

T, V, F, H, W, P, D = 7, 11, 4, 8, 10, 6, 9
SEGMENTS, REPEATS = {"train": 3, "test": 2}, {"train": 2, "test": 5}
N = {split: T * n for split, n in SEGMENTS.items()}
SUBJECT = 2
PROJ = "coco_tokens_avg_proj.pth"


def z_scored(rng, segments, repeats, n_trs=T, voxels=V):
    """(N, R, V) with mean 0 and sample deviation 1 over each segment and repeat."""
    raw = rng.normal(3, 5, (segments, n_trs, repeats, voxels))
    return stats.zscore(raw, axis=1, ddof=1).reshape(segments * n_trs, repeats, voxels).astype(np.float32)


def dump(folder, name, content, **options):
    content = torch.from_numpy(content) if isinstance(content, np.ndarray) and content.dtype.kind != "U" else content
    torch.save(content, folder / name, **options)


@pytest.fixture(scope="module")
def truth():
    """Everything that is published, by file name; frames as whole numbers, in [0, 1] on disk."""
    rng = np.random.default_rng(0)
    content = {PROJ: rng.normal(size=(D, P)).astype(np.float32)}
    for split in N:
        content[f"subj02_{split}_fmri.pt"] = z_scored(rng, SEGMENTS[split], REPEATS[split])
        content[f"GT_{split}_3fps.pt"] = rng.integers(0, 256, (N[split], F, 3, H, W), dtype=np.uint8)
        content[f"GT_{split}_caption.pt"] = np.array([f"a {split} of clip {n} " + "é" * n for n in range(N[split])])
        content[f"GT_{split}_caption_emb.pt"] = rng.normal(size=(N[split], P)).astype(np.float32)
    return content


@pytest.fixture(scope="module")
def published(tmp_path_factory, truth):
    folder = tmp_path_factory.mktemp("published")
    for name, content in truth.items():
        if "3fps" in name:
            content = content / np.float32(255)
        dump(folder, name, {"proj": torch.from_numpy(content)} if name == PROJ else content)
    return folder


@pytest.fixture
def folder(tmp_path, published):
    """A copy to plant faults in."""
    return shutil.copytree(published, tmp_path / "cc2017")


def opened(folder):
    return open_tensors(folder, SUBJECT, trs_per_segment=T)


def rewrite(folder, name, change):
    """Rewrite a file with its tensor changed in place by ``change``, or replaced by what that returns."""
    array = torch.load(folder / name).numpy().copy()
    changed = change(array)
    dump(folder, name, array if changed is None else changed)


# ---------------------------------------------------------------- what was written is read


def test_everything_comes_back(published, truth):
    found = opened(published)
    assert (found.folder, found.subject) == (published, SUBJECT)
    for split in ("train", "test"):
        part = getattr(found, split)
        np.testing.assert_array_equal(part.bold, truth[f"subj02_{split}_fmri.pt"])
        assert part.bold.dtype == np.float32
        assert part.frames.shape == (N[split], F, 3, H, W)
        assert len(part.frames) == N[split]
        np.testing.assert_array_equal(part.frames.read(slice(None)), truth[f"GT_{split}_3fps.pt"])
        np.testing.assert_array_equal(part.text, truth[f"GT_{split}_caption_emb.pt"])
        assert part.captions == list(truth[f"GT_{split}_caption.pt"])
    np.testing.assert_array_equal(found.projector, truth[PROJ].T)


def test_some_clips_come_in_the_order_asked_for(published, truth):
    frames, written = opened(published).test.frames, truth["GT_test_3fps.pt"]
    np.testing.assert_array_equal(frames.read(np.array([5, 0, 5, -1])), written[[5, 0, 5, -1]])
    np.testing.assert_array_equal(frames.read(slice(3, 9, 2)), written[3:9:2])
    assert frames.read(slice(4, 4)).shape == (0, F, 3, H, W)
    with pytest.raises(IndexError):
        frames.read(np.array([N["test"]]))


def test_what_was_found_is_told(published):
    about = opened(published).about
    assert json.loads(json.dumps(about, allow_nan=False)) == about
    assert set(about["files"]) == set(tensor_files(published, SUBJECT))
    assert about["files"]["test fmri"] == {
        "name": "subj02_test_fmri.pt", "bytes": (published / "subj02_test_fmri.pt").stat().st_size,
        "dtype": "float32", "shape": [N["test"], REPEATS["test"], V],
    }  # fmt: skip
    assert about["files"]["train captions"]["dtype"].startswith("<U")
    assert about["files"]["projector"]["shape"] == [D, P]
    assert (about["files"]["train frames"]["span"], about["files"]["train frames"]["sampled"]) == ([0, 1], [0, 1])
    assert (about["missing"], about["warnings"], about["missing_repeats"], about["duplicates"]) == ([], [], [], [])
    for split in ("train", "test"):
        facts = about[split]
        assert (facts["segments"], facts["repeats"], facts["voxels"]) == (SEGMENTS[split], REPEATS[split], V)
        assert facts["z_scored_per_segment"]
        assert facts["max_abs_mean"] < 1e-6
        np.testing.assert_allclose(facts["sd"], 1, atol=1e-6)
        assert (facts["constant_voxels"], facts["sometimes_constant_voxels"]) == (0, 0)


@pytest.mark.parametrize(
    ("dtype", "span"),
    [(np.uint8, 255), *((dtype, span) for dtype in (np.float16, np.float32, float) for span in (1, 255))],
)
def test_frames_of_any_unit_and_precision_come_back(folder, truth, dtype, span):
    for split in ("train", "test"):
        frames = truth[f"GT_{split}_3fps.pt"]
        dump(folder, f"GT_{split}_3fps.pt", frames if dtype == np.uint8 else (frames * (span / 255)).astype(dtype))
    found = opened(folder)
    assert (found.train.frames.dtype, found.train.frames.span) == (dtype, span)
    assert found.about["files"]["test frames"]["span"] == [0, span]
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(found, split).frames.read(slice(None)), truth[f"GT_{split}_3fps.pt"])


def test_values_between_bytes_are_rounded_and_little_excess_is_cut(folder):
    def change(frames):
        frames[3, 0, 0, 0, :4] = [-0.0005, 1.0005, 100.4 / 255, 100.6 / 255]

    rewrite(folder, "GT_test_3fps.pt", change)
    assert opened(folder).test.frames.read(np.array([3]))[0, 0, 0, 0, :4].tolist() == [0, 255, 100, 101]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_responses_of_other_precision_come_as_stored(folder, truth, dtype):
    for split in ("train", "test"):
        dump(folder, f"subj02_{split}_fmri.pt", truth[f"subj02_{split}_fmri.pt"].astype(dtype))
    found = opened(folder)
    assert found.test.bold.dtype == dtype
    np.testing.assert_array_equal(found.test.bold, truth["subj02_test_fmri.pt"].astype(dtype))
    assert found.about["train"]["z_scored_per_segment"]


def test_captions_embeddings_and_projector_may_be_missing(folder):
    optional = ["train captions", "test text", "projector"]
    for role in optional:
        tensor_files(folder, SUBJECT)[role].unlink()
    found = opened(folder)
    assert sorted(found.about["missing"]) == sorted(optional)
    assert found.train.captions is found.test.text is found.projector is None
    assert found.test.captions is not None
    assert found.train.text is not None


def test_files_are_listed_by_role(published):
    files = tensor_files(published, SUBJECT)
    assert {role: path.name for role, path in files.items()} == {
        "train fmri": "subj02_train_fmri.pt", "test fmri": "subj02_test_fmri.pt", "projector": PROJ,
        "train frames": "GT_train_3fps.pt", "test frames": "GT_test_3fps.pt",
        "train captions": "GT_train_caption.pt", "test captions": "GT_test_caption.pt",
        "train text": "GT_train_caption_emb.pt", "test text": "GT_test_caption_emb.pt",
    }  # fmt: skip
    assert "test fmri" not in tensor_files(published, 1)
    assert "test frames" in tensor_files(published, 1)


def test_progress_is_told(published):
    calls = []
    open_tensors(published, SUBJECT, trs_per_segment=T, progress=lambda *call: calls.append(call))
    assert calls == [(n, 3, "subj02_train_fmri.pt") for n in (1, 2, 3)] + [
        (n, 2, "subj02_test_fmri.pt") for n in (1, 2)
    ]


# ---------------------------------------------------------------- captions, as numpy of either age wrote them


def rename_numpy(path):
    """Make a caption file name numpy's function as numpy 1 did. A GLOBAL of protocol 2 is text that ends in a newline,
    so that its length may change."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    (pickled,) = (name for name in entries if name.endswith("/data.pkl"))
    new, old = b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\n_reconstruct\n"
    assert entries[pickled].count(new) == 1
    entries[pickled] = entries[pickled].replace(new, old)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("age", ["numpy 1", "numpy 2"])
def test_captions_of_old_and_new_numpy_come_back(folder, truth, age):
    path = folder / "GT_train_caption.pt"
    if age == "numpy 1":
        rename_numpy(path)
    allowed = torch.serialization.get_safe_globals()
    with pytest.raises(pickle.UnpicklingError, match=r"multiarray\._reconstruct"):  # it needs the allow-list
        torch.load(path, weights_only=True)
    assert opened(folder).train.captions == list(truth[path.name])
    assert torch.serialization.get_safe_globals() == allowed
    with pytest.raises(pickle.UnpicklingError):  # which is gone
        torch.load(path, weights_only=True)


def test_strings_are_not_allowed_where_tensors_are_expected(folder):
    shutil.copy(folder / "GT_train_caption.pt", folder / "GT_train_caption_emb.pt")
    with pytest.raises(DataError, match=r"caption_emb.pt: not a plain tensor but objects \(numpy\..*that may run code"):
        opened(folder)


# ---------------------------------------------------------------- safe


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("how", ["alone", "beside", "in an array", "as a key", "protocol 4", "old format", "pickle"])
@pytest.mark.parametrize("name", ["subj02_test_fmri.pt", "GT_train_3fps.pt", "GT_test_caption.pt", PROJ])
def test_hostile_files_are_refused_and_not_executed(folder, tmp_path, name, how):
    target, path = tmp_path / "made-by-the-file", folder / name
    hostile = Hostile(target)
    content = {
        "in an array": np.array(["a", hostile], dtype=object),
        "beside": {"proj": torch.zeros(D, P), "more": hostile},
        "as a key": {hostile: torch.zeros(D, P)},
    }.get(how, hostile)
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        old, protocol = how == "old format", 4 if how == "protocol 4" else 2
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    named = how in {"alone", "beside", "in an array", "as a key"}  # where the names can be listed
    with pytest.raises(DataError, match=rf"{name}: not .* but objects .*{'posix.system.*' if named else ''}not loaded"):
        opened(folder)
    assert not target.exists()
    if how == "pickle":  # the file does what it was made for
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.exists()


def test_arrays_of_objects_are_refused(folder):
    torch.save(np.array(["a"] * N["train"], dtype=object), folder / "GT_train_caption.pt")
    with pytest.raises(DataError, match=r"caption.pt: not plain strings but .*expected a numpy array of strings \(not"):
        opened(folder)


def test_an_array_of_objects_without_their_type_in_the_pickle_is_refused(folder):
    class Sly:
        def __reduce__(self):
            return np._core.multiarray._reconstruct, (np.ndarray, (N["train"],), "O")

    torch.save(Sly(), folder / "GT_train_caption.pt")
    with pytest.raises(DataError, match=r"caption.pt: an array of object, shape \(21,\); expected one axis of strings"):
        opened(folder)


# ---------------------------------------------------------------- mapped


def place_of(path, array):
    """Where in a file the values of its tensor begin."""
    start = path.read_bytes().find(np.ascontiguousarray(array).tobytes())
    assert start > 0
    return start


def test_responses_are_mapped_and_read_only(folder, truth):
    path = folder / "subj02_train_fmri.pt"
    start = place_of(path, truth[path.name])
    bold = opened(folder).train.bold
    with path.open("r+b") as file:
        file.seek(start + 4 * (REPEATS["train"] * V * 2 + V + 3))
        file.write(np.float32(77).tobytes())
    assert bold[2, 1, 3] == 77
    with pytest.raises(ValueError, match="read-only"):
        bold[0, 0, 0] = 1


def test_frames_are_read_when_asked_for(folder, truth):
    path = folder / "GT_test_3fps.pt"
    start = place_of(path, truth[path.name] / np.float32(255))
    frames = opened(folder).test.frames
    with path.open("r+b") as file:
        file.seek(start)
        file.write(np.float32(1 / 255).tobytes())
    assert frames.read(slice(0, 1))[0, 0, 0, 0, 0] == 1


def test_large_files_do_not_fill_memory(folder, monkeypatch):
    rng = np.random.default_rng(0)
    segments = {"train": 4, "test": 1}
    for split, n in segments.items():
        wide = z_scored(rng, n, 2, 240, 200)
        dump(folder, f"subj02_{split}_fmri.pt", np.tile(wide, (1, 1, 50)))  # 77 MB, a block is 10
        frames = np.full((n * 240, F, 3, 64, 64), 0.5, np.float32)  # 189 MB
        dump(folder, f"GT_{split}_3fps.pt", frames)
        for name in ("caption", "caption_emb"):
            (folder / f"GT_{split}_{name}.pt").unlink()
    monkeypatch.setattr(tensors, "_SAMPLE", 8)
    del frames, wide
    process, grown = psutil.Process(), []
    before = process.memory_info().rss
    found = open_tensors(folder, SUBJECT, progress=lambda *_: grown.append(process.memory_info().rss - before))
    for start in range(0, 960, 60):
        assert (found.train.frames.read(slice(start, start + 60)) == 128).all()
        grown.append(process.memory_info().rss - before)
    assert max(grown) < 70e6
    assert found.about["train"]["z_scored_per_segment"]


# ---------------------------------------------------------------- measured facts


def test_a_crop_of_other_length_shows(folder, truth):
    rewrite(folder, "subj02_train_fmri.pt", lambda bold: np.roll(bold, 2, axis=0))
    about = opened(folder).about
    assert not about["train"]["z_scored_per_segment"]
    assert about["test"]["z_scored_per_segment"]
    rolled = np.roll(truth["subj02_train_fmri.pt"], 2, axis=0).reshape(SEGMENTS["train"], T, REPEATS["train"], V)
    deviations = rolled.astype(float).std(axis=1, ddof=1)
    np.testing.assert_allclose(about["train"]["sd"], [deviations.min(), deviations.max()])
    np.testing.assert_allclose(about["train"]["max_abs_mean"], np.abs(rolled.astype(float).mean(axis=1)).max())
    (warning,) = about["warnings"]
    assert "subj02_train_fmri.pt: not z-scored per segment of 7 rows" in warning


def test_deviations_with_divisor_n_are_told_apart(folder):
    rewrite(folder, "subj02_test_fmri.pt", lambda bold: bold * np.float32(np.sqrt(T / (T - 1))))
    np.testing.assert_allclose(opened(folder).about["test"]["sd"], np.sqrt(T / (T - 1)), rtol=1e-6)


def test_missing_repeats_are_found(folder):
    def change(bold):
        bold[T:, 3] = 0  # in segment 1
        bold[:3, 4] = 0  # some rows only
        bold[-T:, 1, 5] = 0

    rewrite(folder, "subj02_test_fmri.pt", change)
    about = opened(folder).about
    assert about["missing_repeats"] == [["test", 1, 3]]
    assert (about["test"]["constant_voxels"], about["test"]["sometimes_constant_voxels"]) == (0, 1)
    assert "3 of 7 rows of test segment 0, repeat 4 are all zero" in about["warnings"][0]
    assert about["duplicates"] == []


def test_a_segment_without_responses_is_told(folder):
    def change(bold):
        bold[T : 2 * T] = 0

    rewrite(folder, "subj02_train_fmri.pt", change)
    about = opened(folder).about
    assert about["missing_repeats"] == [["train", 1, 0], ["train", 1, 1]]
    assert about["warnings"] == [f"{folder / 'subj02_train_fmri.pt'}: no responses in segment 1; all repeats are zero"]
    assert about["train"]["z_scored_per_segment"]  # of what is there


def test_constant_voxels_are_counted(folder):
    def change(bold):
        bold[:, :, 2] = 0
        bold[:, :, 8] = 3.5

    rewrite(folder, "subj02_train_fmri.pt", change)
    about = opened(folder).about
    assert about["train"]["constant_voxels"] == 2
    assert about["train"]["z_scored_per_segment"]


def test_copies_are_found_within_and_across_splits(folder, truth):
    train = truth["subj02_train_fmri.pt"]

    def change(bold):
        bold[:T, 4] = bold[:T, 1]
        bold[T:, 2] = train[:T, 1]

    rewrite(folder, "subj02_test_fmri.pt", change)
    about = opened(folder).about
    assert about["duplicates"] == [[["test", 0, 4], ["test", 0, 1]], [["test", 1, 2], ["train", 0, 1]]]
    (warning,) = about["warnings"]
    assert "test segment 0, repeat 4 equals test segment 0, repeat 1; test segment 1, repeat 2 equals train" in warning


def test_frames_of_two_sizes_are_told(folder):
    rewrite(folder, "GT_test_3fps.pt", lambda frames: np.ascontiguousarray(frames[..., :6]))
    assert "training frames have 8 x 10 pixels and test frames 8 x 6" in opened(folder).about["warnings"][0]


def test_the_old_format_is_told_and_large_ones_refused(folder, truth, monkeypatch):
    path = folder / "subj02_train_fmri.pt"
    dump(folder, path.name, truth[path.name], _use_new_zipfile_serialization=False)
    found = opened(folder)
    np.testing.assert_array_equal(found.train.bold, truth[path.name])
    assert found.about["warnings"] == [f"{path}: PyTorch's old format, which is read into memory as a whole"]
    monkeypatch.setattr(tensor_file, "_WHOLE_BYTES", 1000)
    with pytest.raises(
        DataError, match=r"train_fmri.pt: 0.0 GB in PyTorch's old format, which cannot be read in parts"
    ):
        opened(folder)


# ---------------------------------------------------------------- frames are checked as they are read


@pytest.mark.parametrize(("value", "message"), [
    (np.nan, r"clip 5 holds values that are not finite"),
    (-np.inf, r"clip 5 holds values that are not finite"),
    (1.01, r"clip 5 has values from 0 to 1.01; expected \[0, 1\]"),
    (-0.2, r"clip 5 has values from -0.2 to 1; expected \[0, 1\]"),
    (200, r"clip 5 has values from 0 to 200; expected \[0, 1\]"),
])  # fmt: skip
def test_bad_frames_beyond_the_sample_are_met_on_reading(folder, monkeypatch, value, message):
    def change(frames):
        frames[5] = np.linspace(0, 1, frames[5].size).reshape(frames[5].shape)
        frames[5, 2, 1, 3, 4] = value

    rewrite(folder, "GT_train_3fps.pt", change)
    monkeypatch.setattr(tensors, "_SAMPLE", 3)  # clips 0, 10, 20
    frames = opened(folder).train.frames
    assert frames.read(slice(0, 5)).shape[0] == 5
    with pytest.raises(DataError, match=rf"GT_train_3fps.pt: {message}"):
        frames.read(slice(3, 8))


def test_frames_that_change_under_the_reader_are_refused(folder):
    frames = opened(folder).train.frames
    rewrite(folder, "GT_train_3fps.pt", lambda array: array[:, :2].copy())
    with pytest.raises(DataError, match=r"where float32 of shape \(21, 4, 3, 8, 10\) was opened"):
        frames.read(slice(0, 2))


@pytest.mark.usefixtures("unchecked_types")
def test_single_numbers_are_refused(published):
    with pytest.raises(TypeError, match="by a slice or an array of clip numbers, not by 2"):
        opened(published).train.frames.read(2)


# ---------------------------------------------------------------- what is refused on opening


def cut(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])


def compress(path):
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def plant(case, folder):
    """Make one fault in a folder that is otherwise sound."""
    fmri, frames = folder / "subj02_test_fmri.pt", folder / "GT_train_3fps.pt"
    captions, text = folder / "GT_test_caption.pt", folder / "GT_train_caption_emb.pt"

    def bold(change):
        rewrite(folder, fmri.name, change)

    def put(array, index, value):
        array[index] = value

    def film(change):
        rewrite(folder, frames.name, change)

    match case:
        case "no folder":
            shutil.rmtree(folder)
        case "other subject":
            for split in ("train", "test"):
                (folder / f"subj02_{split}_fmri.pt").rename(folder / f"subj03_{split}_fmri.pt")
            (folder / "subj01_train_fmri.pt").touch()
        case "no subject":
            for split in ("train", "test"):
                (folder / f"subj02_{split}_fmri.pt").unlink()
        case "half a subject":
            fmri.unlink()
        case "no frames":
            frames.unlink()
            (folder / "GT_test_3fps.pt").unlink()
        case "git-LFS":
            frames.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 15606743960\n")
        case "web page":
            fmri.write_text("\n<!DOCTYPE html><html><head><title>Sign in</title>" + "x" * 999)
        case "text":
            captions.write_text("Entry not found")
        case "empty":
            text.write_bytes(b"")
        case "a folder":
            frames.unlink()
            frames.mkdir()
        case "truncated":
            cut(frames, 0.7)
        case "beginning only":
            cut(captions, 0.1)
        case "start missing":
            fmri.write_bytes(fmri.read_bytes()[500:])
        case "old format cut":
            dump(folder, fmri.name, torch.load(fmri), _use_new_zipfile_serialization=False)
            cut(fmri, 0.6)
        case "damaged directory":
            fmri.write_bytes(fmri.read_bytes().replace(b"PK\1\2", b"PK\1\7"))
        case "compressed":
            compress(frames)
        case "pickle in the zip damaged":
            content = fmri.read_bytes()
            fmri.write_bytes(content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"))
        case "bfloat16":
            dump(folder, fmri.name, torch.load(fmri).bfloat16())
        case "sparse":
            dump(folder, fmri.name, torch.load(fmri).to_sparse())
        case "dictionary":
            dump(folder, frames.name, {"frames": torch.zeros(2), "fps": 3})
        case "whole numbers":
            bold(lambda array: array.astype(np.int16))
        case "repeats averaged":
            bold(lambda array: array.mean(axis=1))
        case "no voxels":
            bold(lambda array: array[..., :0])
        case "other voxels":
            bold(lambda array: array[..., :9].copy())
        case "not whole segments":
            bold(lambda array: array[:-1].copy())
        case "NaN":
            bold(lambda array: put(array, (9, 3, 4), np.nan))
        case "infinite":
            bold(lambda array: put(array, ([8, 6], 0, 10), -np.inf))
        case "repeat of NaN":
            bold(lambda array: put(array, (slice(T), 2), np.nan))
        case "all zero":
            bold(np.zeros_like)
        case "all constant":
            bold(lambda array: np.broadcast_to(array[:1], array.shape).copy())
        case "fewer frames":
            film(lambda array: array[:-T].copy())
        case "four axes":
            film(lambda array: array[:, 0].copy())
        case "channels last":
            film(lambda array: array.transpose(0, 1, 3, 4, 2).copy())
        case "four channels":
            film(lambda array: np.concatenate([array, array[:, :, :1]], axis=2))
        case "frames of other length":
            film(lambda array: array[:, :3].copy())
        case "frames as int64":
            film(lambda array: (array * 255).astype(np.int64))
        case "frames of -1 to 1":
            film(lambda array: array * 2 - 1)
        case "frames up to 1.5":
            film(lambda array: array * np.float32(1.5))
        case "frames up to 300":
            film(lambda array: array * 300)
        case "frames with NaN":
            film(lambda array: put(array, (4, 1, 2, 3, 5), np.nan))
        case "frames cast to bytes":
            film(lambda array: array.astype(np.uint8))
        case "frames divided twice":
            film(lambda array: array / np.float32(255))
        case "black frames":
            film(np.zeros_like)
        case "fewer captions":
            dump(folder, captions.name, np.array(["a", "bc"]))
        case "captions in two axes":
            dump(folder, captions.name, np.array([["a", "bc"]] * N["test"]))
        case "captions in a list":
            dump(folder, captions.name, ["a"] * N["test"])
        case "fewer embeddings":
            rewrite(folder, text.name, lambda array: array[1:].copy())
        case "embeddings of tokens":
            rewrite(folder, text.name, lambda array: np.stack([array, array], axis=1))
        case "embeddings with NaN":
            rewrite(folder, text.name, lambda array: put(array, ([3, 7], 1), np.nan))
        case "narrower embeddings":
            rewrite(folder, "GT_test_caption_emb.pt", lambda array: array[:, :4].copy())
        case "another projector":
            dump(folder, PROJ, {"proj": torch.zeros(P, D)})
        case "projector without a name":
            dump(folder, PROJ, torch.zeros(D, P))
        case "projector of another name":
            dump(folder, PROJ, {"weight": torch.zeros(D, P), "epoch": 3})
        case "projector with infinity":
            dump(folder, PROJ, {"proj": torch.full((D, P), torch.inf)})
        case _:
            raise AssertionError(case)


REFUSED = {
    "no folder": r"cc2017: no such folder; expected the published CC2017 tensors",
    "other subject": r"cc2017: no responses of subject 2, it holds subjects 1, 3; expected subj02_train",
    "no subject": r"cc2017: no responses of subject 2, it holds no subject's; expected subj02_train_fmri.pt",
    "half a subject": r"cc2017: lacks subj02_test_fmri.pt; expected responses and frames of both splits",
    "no frames": r"cc2017: lacks GT_train_3fps.pt, GT_test_3fps.pt; expected",
    "git-LFS": r"GT_train_3fps.pt: a git-LFS pointer of 1\d\d bytes; expected the file itself: run `git lfs pull`",
    "web page": r"test_fmri.pt: a web page of \d+ bytes; expected what torch.save.*: download it again",
    "text": r"GT_test_caption.pt: not plain strings but text, 'Entry not found'; expected a numpy array of strings",
    "empty": r"GT_train_caption_emb.pt: not a plain tensor but an empty file; expected",
    "a folder": r"cc2017: lacks GT_train_3fps.pt; expected",
    "truncated": r"GT_train_3fps.pt: truncated, its end is missing after \d+ bytes; download it again",
    "beginning only": r"GT_test_caption.pt: truncated, its end is missing",
    "start missing": r"test_fmri.pt: (cannot be read|not a plain tensor but objects that may run .*or damaged)",
    "old format cut": r"test_fmri.pt: (cannot be read|not a plain tensor but objects that may run .*or damaged)",
    "damaged directory": r"test_fmri.pt: cannot be read as a .pt array \(BadZipFile",
    "compressed": r"GT_train_3fps.pt: a compressed archive, which cannot be mapped; expected what torch.save",
    "pickle in the zip damaged": r"test_fmri.pt: not a plain tensor but objects \(torch._utils._rebuild_tensor_v9\)",
    "bfloat16": r"test_fmri.pt: a tensor of bfloat16 \(strided\); expected a dense one of a type that numpy has",
    "sparse": r"test_fmri.pt: a tensor of float32 \(sparse_coo\); expected a dense one",
    "dictionary": r"GT_train_3fps.pt: holds a dict with the keys frames, fps; expected one tensor",
    "whole numbers": r"test_fmri.pt: int16 of shape \(14, 5, 11\); expected floating point of 3 axes",
    "repeats averaged": r"test_fmri.pt: float32 of shape \(14, 11\); expected .* 3 axes: clips, repeats, voxels",
    "no voxels": r"test_fmri.pt: float32 of shape \(14, 5, 0\); expected",
    "other voxels": r"test_fmri.pt: 9 voxels, where subj02_train_fmri.pt has 11; expected as many",
    "not whole segments": r"test_fmri.pt: 13 clips; expected a multiple of 7, whole segments",
    "NaN": r"test_fmri.pt: 1 values of test segment 1, repeat 3 are .* \(first: nan at clip 9, repeat 3, voxel 4\)",
    "infinite": r"1 values of test segment 0, repeat 0 are not finite \(first: -inf at clip 6, repeat 0, voxel 10\)",
    "repeat of NaN": r"test_fmri.pt: nothing is finite in test segment 0, repeat 2; expected finite values, or zeros",
    "all zero": r"test_fmri.pt: all 11 voxels are constant within every segment; expected responses",
    "all constant": r"test_fmri.pt: all 11 voxels are constant within every segment; expected responses",
    "fewer frames": r"GT_train_3fps.pt: 14 clips, where subj02_train_fmri.pt has 21; expected the same clips",
    "four axes": r"GT_train_3fps.pt: shape \(21, 3, 8, 10\); expected 5 axes: clips, frames, 3, H, W",
    "channels last": r"GT_train_3fps.pt: 8 channels in shape \(21, 4, 8, 10, 3\); .* 3, H, W, not channels last",
    "four channels": r"GT_train_3fps.pt: 4 channels in shape \(21, 4, 4, 8, 10\); expected clips, frames, 3, H, W$",
    "frames of other length": r"GT_test_3fps.pt: 4 frames a clip, where GT_train_3fps.pt has 3; expected as many",
    "frames as int64": r"GT_train_3fps.pt: values of int64; expected uint8 or floating point",
    "frames of -1 to 1": r"GT_train_3fps.pt: values from -1 to 1 in 21 clips; expected \[0, 1\], or \[0, 255\]",
    "frames up to 1.5": r"GT_train_3fps.pt: values from 0 to 1.5 in 21 clips; expected \[0, 1\], or .* some above 2",
    "frames up to 300": r"GT_train_3fps.pt: values from 0 to 300 in 21 clips; expected",
    "frames with NaN": r"GT_train_3fps.pt: clip 4 holds values that are not finite; expected \[0, 1\] or \[0, 255\]",
    "frames cast to bytes": r"values of uint8 up to 1 in 21 clips, black to the eye; expected some above 1 \(were they",
    "frames divided twice": r"values of float32 up to 0.00392157 in 21 clips, black to the eye; expected some above",
    "black frames": r"GT_train_3fps.pt: values of float32 up to 0 in 21 clips, black to the eye",
    "fewer captions": r"GT_test_caption.pt: 2 clips, where subj02_test_fmri.pt has 14; expected the same clips",
    "captions in two axes": r"GT_test_caption.pt: an array of <U2, shape \(14, 2\); expected one axis of strings",
    "captions in a list": r"GT_test_caption.pt: holds a list; expected a numpy array of strings",
    "fewer embeddings": r"train_caption_emb.pt: 20 clips, where subj02_train_fmri.pt has 21; expected the same clips",
    "embeddings of tokens": r"caption_emb.pt: float32 of shape \(21, 2, 6\); expected .* 2 axes: clips, embedding",
    "embeddings with NaN": r"GT_train_caption_emb.pt: 2 of 21 rows hold values that are not finite \(first: row 3\)",
    "narrower embeddings": r"GT_test_caption_emb.pt: 4 numbers an embedding, where GT_train_caption_emb.pt has 6",
    "another projector": r"avg_proj.pth: 9 numbers an embedding, where GT_train_caption_emb.pt has 6; expected as many",
    "projector without a name": r"avg_proj.pth: holds a Tensor; expected a dictionary with the tensor 'proj'",
    "projector of another name": r"avg_proj.pth: holds a dict with the keys weight, epoch; expected a dictionary with",
    "projector with infinity": r"avg_proj.pth: 9 of 9 rows hold values that are not finite",
}


@pytest.mark.parametrize("case", REFUSED)
def test_faults_are_refused_by_one_sentence(folder, case):
    plant(case, folder)
    with pytest.raises(DataError, match=REFUSED[case]) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
