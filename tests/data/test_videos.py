"""Anyone's videos: what is read back is what was written, and what is unclear is refused with one clear sentence."""

import os
import pickle
import tracemalloc

import av
import cv2
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from neuroclips.artefacts import write_arrays
from neuroclips.data.frames import write_video
from neuroclips.data.videos import open_videos
from neuroclips.errors import DataError

B, F, H, W = 4, 6, 40, 56
NAMES = ["clip1", "clip2", "clip10", "clip11"]  # in natural order; as text, clip10 comes second


@pytest.fixture(scope="module")
def videos():
    """(B, F, 3, H, W): blocks of 8 pixels, so that films keep their colours; all extremes occur."""
    coarse = np.random.default_rng(0).integers(0, 256, (B, F, 3, H // 8, W // 8), dtype=np.uint8)
    coarse[0, 0, 0, 0, :2] = 0, 255
    return coarse.repeat(8, axis=-2).repeat(8, axis=-1)


def save_frames(folder, video, suffix=".png"):
    folder.mkdir(parents=True)
    for i, frame in enumerate(video):
        Image.fromarray(frame.transpose(1, 2, 0)).save(folder / f"frame{i + 5}{suffix}")  # 5 ... 10: natural order


def save_film(path, video, codec="libx264", **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options)
        stream.height, stream.width, stream.pix_fmt = *video.shape[-2:], "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in video.transpose(0, 2, 3, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def save_gif(path, video, **options):
    first, *rest = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in video]
    first.save(path, save_all=True, append_images=rest, **options)


def inside_blocks(found, videos):
    """Absolute error in the middle of the blocks of 8: at their edges, yuv420p halves the resolution of colour."""
    error = np.abs(found.astype(int) - videos)
    return error.reshape(*error.shape[:-2], H // 8, 8, W // 8, 8)[..., 3:5, :, 3:5]


# ---------------------------------------------------------------- what was written is read


@pytest.mark.parametrize(
    ("suffix", "codec", "kind"),
    [
        (".mp4", "libx264", "MP4"),
        (".mov", "libx264", "MOV"),
        (".MKV", "libx264", "MKV"),
        (".webm", "libvpx-vp9", "WebM"),
        (".avi", "mpeg4", "AVI"),
    ],
)
def test_films_come_back_in_natural_order(tmp_path, videos, suffix, codec, kind):
    for name, video in zip(NAMES, videos):
        save_film(tmp_path / f"{name}{suffix}", video, codec)
    source = open_videos(tmp_path)
    assert (source.names, source.shape, source.named) == (NAMES, (B, F, 3, H, W), True)
    assert (source.origin, source.warnings) == (f"4 {kind} files", [])
    assert inside_blocks(source[:], videos).mean() < 8
    assert inside_blocks(source[:], videos[::-1]).mean() > 60  # the measure tells clips apart


def test_films_by_our_own_writer_of_any_frame_rate_come_back(tmp_path, videos):
    for rate, (name, video) in enumerate(zip(NAMES, videos), start=3):
        write_video(tmp_path / f"{name}.mp4", video, rate)
    assert inside_blocks(open_videos(tmp_path)[1:3], videos[1:3]).mean() < 4


def test_frame_times_do_not_matter(tmp_path, videos):
    path = tmp_path / "clip1.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "8"})
        stream.height, stream.width, stream.pix_fmt = H, W, "yuv420p"
        for time, image in zip((0, 1, 2, 30, 31, 90), videos[0]):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image.transpose(1, 2, 0)), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert inside_blocks(open_videos(tmp_path)[:], videos[:1]).mean() < 4


def test_frames_that_an_edit_list_cuts_off_do_not_count(tmp_path, videos):
    with av.open(str(tmp_path / "a.mp4"), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("libx264", rate=8, options={"bf": "0", "crf": "8"})
        stream.height, stream.width, stream.pix_fmt = H, W, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(f.transpose(1, 2, 0))) for f in videos[0]]
        for packet in [packet for frame in (*frames, None) for packet in stream.encode(frame)]:
            packet.pts -= round(2 / 8 / packet.time_base)
            packet.dts = packet.pts
            container.mux(packet)
    source = open_videos(tmp_path)
    assert source.shape == (1, F - 2, 3, H, W)
    assert inside_blocks(source[:], videos[:1, 2:]).mean() < 4


def test_png_frames_come_back_exactly(tmp_path, videos):
    for name, video in zip(NAMES, videos):
        save_frames(tmp_path / name, video)
    source = open_videos(tmp_path)
    assert (source.names, source.origin, source.warnings) == (NAMES, "4 folders of PNG frames", [])
    np.testing.assert_array_equal(source[:], videos)
    np.testing.assert_array_equal(source[np.array([2, 0, 2])], videos[[2, 0, 2]])
    assert source[3:3].shape == (0, F, 3, H, W)


def test_jpeg_frames_come_back(tmp_path, videos):
    save_frames(tmp_path / "a", videos[0, :4], ".jpg")
    save_frames(tmp_path / "b", videos[1, :4], ".JPEG")
    source = open_videos(tmp_path)
    assert source.origin == "2 folders of JPEG frames"
    assert inside_blocks(source[:], videos[:2, :4]).mean() < 8


def test_gifs_come_back_with_a_warning(tmp_path, videos):
    for name, video in zip(NAMES, videos):  # 35 colours a frame: the palette holds them all
        save_gif(tmp_path / f"{name}.gif", video)
    source = open_videos(tmp_path)
    assert (source.names, source.shape) == (NAMES, (B, F, 3, H, W))
    assert len(source.warnings) == 1
    assert "at most 256 colours" in source.warnings[0]
    np.testing.assert_array_equal(source[1:], videos[1:])


def test_grey_palette_and_opaque_images_become_rgb(tmp_path, videos):
    image = Image.fromarray(videos[0, 0].transpose(1, 2, 0))
    modes = {"grey": "L", "opaque": "RGBA", "palette": "P", "two": "1", "grey-opaque": "LA"}
    for name, mode in modes.items():
        (tmp_path / name).mkdir()
        image.convert(mode).save(tmp_path / name / "1.png")
    source = open_videos(tmp_path)
    found = dict(zip(source.names, source[:]))
    np.testing.assert_array_equal(found["opaque"][0], videos[0, 0])
    for name in ("grey", "grey-opaque"):
        np.testing.assert_array_equal(found[name][0], np.stack([np.asarray(image.convert("L"))] * 3))
    assert set(np.unique(found["two"])) == {0, 255}
    palette = np.asarray(image.convert("P").convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(found["palette"][0], palette)


LAYOUTS = {"BFCHW": (0, 1, 2, 3, 4), "BCFHW": (0, 2, 1, 3, 4), "BFHWC": (0, 1, 3, 4, 2)}
AS_FLOAT = {"uint8": (np.uint8, 1), "unit": (np.float32, 1 / 255), "half": (np.float16, 1 / 255), "255": (float, 1)}


@pytest.mark.parametrize("values", AS_FLOAT)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".npy", ".pt", ".pth", ".safetensors"])
def test_arrays_come_back_exactly(tmp_path, videos, suffix, layout, values):
    dtype, unit = AS_FLOAT[values]
    array = np.ascontiguousarray((videos * (dtype(unit))).astype(dtype).transpose(LAYOUTS[layout]))
    path = tmp_path / f"all{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".safetensors":
        write_arrays(path, {"other": np.zeros(2), "videos": array})
    else:
        torch.save(torch.from_numpy(array), path)
    for given in (path, tmp_path):
        source = open_videos(given)
        assert (source.names, source.named) == (["0000", "0001", "0002", "0003"], False)
        assert source.shape == (B, F, 3, H, W)
        span = 1 if values in ("unit", "half") else 255
        assert source.origin == f"array {array.shape} of {array.dtype}, values in [0, {span}]"
        np.testing.assert_array_equal(source[1:], videos[1:])
        np.testing.assert_array_equal(source[np.array([3, 0])], videos[[3, 0]])


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 3, 1)])
def test_one_npy_a_clip_comes_back_exactly(tmp_path, videos, axes):
    for name, video in zip(NAMES, videos):
        np.save(tmp_path / f"{name}.npy", (video / 255).transpose(axes))
    source = open_videos(tmp_path)
    assert (source.names, source.named) == (NAMES, True)
    assert source.origin.startswith("4 arrays (")
    np.testing.assert_array_equal(source[:], videos)


def test_one_range_holds_for_all_clips(tmp_path, videos):
    dim = videos.astype(np.float32)
    dim[2] /= 255  # as if saved in [0, 1] among clips in [0, 255]
    np.save(tmp_path / "all.npy", dim)
    source = open_videos(tmp_path)
    assert source[2:3].max() == 1
    assert "1 clips, such as 0002, have no value above 1 where others reach 255" in source.warnings[0]


def test_values_are_rounded_and_little_excess_is_cut(tmp_path):
    array = np.zeros((2, 1, 3, 5, 4), np.float32)
    array[1, 0, 0, 0] = [-0.0005, 1.0005, 100.4 / 255, 100.6 / 255]
    np.save(tmp_path / "all.npy", array)
    assert open_videos(tmp_path)[1:][0, 0, 0, 0].tolist() == [0, 255, 100, 101]


def test_three_frames_need_a_layout(tmp_path, videos):
    three = videos[:, :3]
    torch.save(torch.from_numpy(three.transpose(0, 2, 1, 3, 4).copy()), tmp_path / "all.pt")
    with pytest.raises(DataError, match=r"all.pt: clips of shape \(3, 3, 40, 56\) may be BFCHW or BCFHW; say which"):
        open_videos(tmp_path)
    np.testing.assert_array_equal(open_videos(tmp_path, layout="BCFHW")[:], three)
    np.testing.assert_array_equal(open_videos(tmp_path, layout="BFCHW")[:], three.transpose(0, 2, 1, 3, 4))
    with pytest.raises(DataError, match=r"all.pt: 56 channels in a clip of shape \(3, 3, 40, 56\), layout BFHWC"):
        open_videos(tmp_path, layout="BFHWC")


def test_what_is_skipped_is_told(tmp_path, videos):
    for name, video in zip(NAMES, videos):
        write_video(tmp_path / f"{name}.mp4", video, 8)
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / ".clip3.mp4").write_text("half a file")
    (tmp_path / "README").write_text("x")
    (tmp_path / "scores.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    source = open_videos(tmp_path)
    assert source.names == NAMES
    (warning,) = source.warnings
    assert warning.endswith("skipped what is no video: .clip3.mp4, .DS_Store, README, and 2 more")


def test_what_is_skipped_among_frames_is_told(tmp_path, videos):
    save_frames(tmp_path / "a", videos[0])
    (tmp_path / "a" / "caption.txt").write_text("x")
    assert open_videos(tmp_path).warnings[0].endswith("skipped what is no video: a/caption.txt")


# ---------------------------------------------------------------- lazy, and safe


def test_a_damaged_film_is_only_met_when_it_is_read(tmp_path, videos):
    for name, video in zip(NAMES, videos):
        write_video(tmp_path / f"{name}.mp4", video, 8)
    damaged = tmp_path / "clip2.mp4"
    content = bytearray(damaged.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 3000] = b"\xff" * len(content[start : start + 3000])
    damaged.write_bytes(content)
    source = open_videos(tmp_path)
    assert inside_blocks(source[:1], videos[:1]).mean() < 4
    assert inside_blocks(source[2:], videos[2:]).mean() < 4
    with pytest.raises(DataError, match=r"clip2.mp4: "):
        source[:]


def test_a_film_with_other_frames_than_announced_is_refused(tmp_path, videos):
    path = tmp_path / "a.mp4"
    write_video(path, videos[0], 8)
    source = open_videos(tmp_path)
    for other, came in ((videos[0, :5], "5 frames of 40 x 56"), (videos[0, ..., :32], "6 frames of 40 x 32")):
        write_video(path, other, 8)
        with pytest.raises(DataError, match=rf"a.mp4: {came} pixels came, where its header announced 6 frames of 40 x"):
            source[:]


def test_a_truncated_image_is_only_met_when_it_is_read(tmp_path, videos):
    for name, video in zip(NAMES, videos):
        save_frames(tmp_path / name, video)
    cut = tmp_path / "clip10" / "frame7.png"
    cut.write_bytes(cut.read_bytes()[:-150])
    source = open_videos(tmp_path)
    np.testing.assert_array_equal(source[:2], videos[:2])
    with pytest.raises(DataError, match=r"clip10/frame7.png: cannot be read as a PNG \(OSError"):
        source[2:3]


def test_npy_is_not_loaded(tmp_path):
    shape = (40, 6, 3, 640, 360)  # 166 MB, of which one clip is 4
    np.lib.format.open_memmap(tmp_path / "all.npy", mode="w+", dtype=np.uint8, shape=shape)[39, 5] = 7
    tracemalloc.start()
    clip = open_videos(tmp_path)[39:]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (clip[0, 5] == 7).all()
    assert peak < 10e6


def test_tensors_are_mapped(tmp_path, monkeypatch):
    calls, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: calls.append(options) or load(*args, **options))
    path = tmp_path / "all.pt"
    torch.save(torch.zeros((40, 6, 3, 640, 360), dtype=torch.uint8), path)  # 166 MB
    process = psutil.Process()
    before = process.memory_info().rss
    source = open_videos(path)
    grown = []
    for start in range(0, 40, 4):
        assert source[start : start + 4].shape == (4, 6, 3, 640, 360)
        grown.append(process.memory_info().rss - before)
    assert max(grown) < 60e6  # what was read does not stay
    assert {(options["mmap"], options["weights_only"]) for options in calls} == {(True, True)}
    assert source.warnings == []


def test_tensors_in_the_old_format_are_read_with_a_warning(tmp_path, videos):
    path = tmp_path / "old.pt"
    torch.save(torch.from_numpy(videos), path, _use_new_zipfile_serialization=False)
    source = open_videos(path)
    np.testing.assert_array_equal(source[:], videos)
    assert "old format, which is read into memory as a whole" in source.warnings[0]


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["torch", "torch-old", "pickle.pt", "pickle.npy", "npy"])
def test_hostile_files_are_refused_and_not_executed(tmp_path, how, protocol):
    target = tmp_path / "made-by-the-file"
    path = tmp_path / ("all.npy" if how.endswith("npy") else "all.pt")
    if how == "npy":
        np.save(path, np.array([Hostile(target)], dtype=object), allow_pickle=True)
    elif how.startswith("pickle"):
        path.write_bytes(pickle.dumps(Hostile(target), protocol=protocol))
    else:
        content = {"videos": torch.zeros(2), "more": Hostile(target)}
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(DataError, match=rf"{path.name}: (not a plain tensor but .*that may run|cannot be read)"):
        open_videos(path)
    assert not target.exists()
    if how.startswith("pickle"):  # the file does what it was made for
        pickle.loads(path.read_bytes())
        assert target.exists()


# ---------------------------------------------------------------- what is refused


def planted(case, root, videos):
    """Make one bad input below ``root``; returns what to open."""
    a, b = videos[0], videos[1]
    folder = root / "in"
    folder.mkdir()

    def array(values, name="all.npy"):
        np.save(folder / name, values)

    match case:
        case "missing":
            return root / "nowhere"
        case "empty":
            pass
        case "only text":
            (folder / "README.md").write_text("x")
        case "one film":
            write_video(folder / "film.mp4", a, 8)
            return folder / "film.mp4"
        case "npz":
            np.savez(folder / "all.npz", videos)
            return folder / "all.npz"
        case "films and arrays":
            write_video(folder / "a.mp4", a, 8)
            array(videos)
        case "films and frames":
            write_video(folder / "a.mp4", a, 8)
            save_frames(folder / "b", b)
        case "films of two kinds":
            save_film(folder / "a.mp4", a)
            save_film(folder / "b.mov", b)
        case "frames of two kinds":
            save_frames(folder / "a", a)
            save_frames(folder / "b", b, ".jpg")
        case "two kinds in one clip":
            save_frames(folder / "a", a)
            Image.new("RGB", (W, H)).save(folder / "a" / "cover.jpg")
        case "frames without folders":
            save_frames(folder / "x", a)
            return folder / "x"
        case "clip without frames":
            save_frames(folder / "a", a)
            (folder / "b").mkdir()
        case "nested":
            (folder / "sub").mkdir()
            (folder / "logs").mkdir()
            write_video(folder / "sub" / "a.mp4", a, 8)
        case "nested frames":
            save_frames(folder / "sub" / "a", a)
        case "nested twice":
            for name in ("full", "shuffled"):
                save_frames(folder / name / "a", a)
        case "one name twice":
            write_video(folder / "a.mp4", a, 8)
            write_video(folder / "a.MP4", b, 8)
        case "fewer frames":
            for name, video in zip(NAMES, (a, b, videos[2, :5])):
                write_video(folder / f"{name}.mp4", video, 8)
        case "other size":
            save_frames(folder / "a", a)
            save_frames(folder / "b", b[..., :32])
        case "frames of two sizes":
            save_frames(folder / "a", a)
            Image.new("RGB", (H, W)).save(folder / "a" / "frame11.png")
        case "text as film":
            (folder / "a.mp4").write_text("no film " * 99)
        case "empty film":
            (folder / "a.mp4").write_bytes(b"")
        case "sound":
            with av.open(str(folder / "a.mp4"), "w") as container:
                stream = container.add_stream("aac", rate=8000)
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                sound.rate = 8000
                container.mux(stream.encode(sound))
                container.mux(stream.encode())
        case "text as image":
            (folder / "a").mkdir()
            (folder / "a" / "1.png").write_text("no image")
        case "16 bits":
            (folder / "a").mkdir()
            cv2.imwrite(str(folder / "a" / "1.png"), a[0].transpose(1, 2, 0).astype(np.uint16) * 257)
        case "16 bits grey":
            (folder / "a").mkdir()
            cv2.imwrite(str(folder / "a" / "1.png"), a[0, 0].astype(np.uint16) * 257)
        case "four inks":
            (folder / "a").mkdir()
            Image.new("CMYK", (W, H)).save(folder / "a" / "1.jpg")
        case "GIF that lost a repeated frame":
            save_gif(folder / "a.gif", a)
            save_gif(folder / "b.gif", b[[0, 1, 1, 2, 3, 4]])
        case "cut npy":
            array(videos)
            (folder / "all.npy").write_bytes((folder / "all.npy").read_bytes()[:-999])
        case "cut pt":
            torch.save(torch.from_numpy(videos), folder / "all.pt")
            (folder / "all.pt").write_bytes((folder / "all.pt").read_bytes()[:-999])
        case "cut safetensors":
            write_arrays(folder / "all.safetensors", {"videos": videos})
            (folder / "all.safetensors").write_bytes((folder / "all.safetensors").read_bytes()[:-999])
        case "text as pt":
            (folder / "all.pt").write_text("no tensor")
        case "dictionary":
            torch.save({"recon": torch.zeros(2), "epoch": 3}, folder / "all.pt")
        case "two tensors":
            for name in ("a.pt", "b.pth"):
                torch.save(torch.from_numpy(videos), folder / name)
        case "unnamed arrays":
            write_arrays(folder / "all.safetensors", {"ours": videos, "theirs": videos})
        case "two arrays of many clips":
            array(videos, "a.npy")
            array(videos, "b.npy")
        case "odd array":
            array(a, "a.npy")
            array(b[:5], "b.npy")
        case "four axes":
            torch.save(torch.from_numpy(a), folder / "all.pt")
        case "three axes":
            array(a[0])
        case "no clips":
            array(videos[:0])
        case "four channels":
            array(np.concatenate([videos, videos[:, :, :1]], axis=2))
        case "whole numbers":
            array(videos.astype(np.int64))
        case "minus one to one":
            array(videos / np.float32(127.5) - 1)
        case "up to 1.5":
            array(videos / np.float32(170))
        case "up to 300":
            array(videos * np.float32(300 / 255))
        case "NaN" | "infinite":
            values = videos / np.float32(255)
            values[2, 3, 1, 4, 5] = np.nan if case == "NaN" else np.inf
            array(values)
        case "NaN in the third file":
            for name, video in zip(NAMES, videos):
                array(video / np.where((video == b).all(), 1, 255) * (np.nan if name == "clip10" else 1), f"{name}.npy")
        case _:
            raise AssertionError(case)
    return folder


REFUSED = {
    "missing": r"nowhere: no such file or folder; expected a folder of films",
    "empty": r"in: holds no videos; expected a folder of films",
    "only text": r"in: holds no videos, only README.md; expected",
    "one film": r"film.mp4: one .mp4 file; expected a folder",
    "npz": r"all.npz: one .npz file; expected",
    "films and arrays": r"in: holds 1 NPY files \(all.npy\) and 1 MP4 files \(a.mp4\)|in: holds 1 MP4 .* 1 NPY files",
    "films and frames": r"in: holds 1 MP4 files \(a.mp4\) and 1 folders of frames \(b\); expected videos of one kind",
    "films of two kinds": r"in: holds 1 MP4 files \(a.mp4\) and 1 MOV files \(b.mov\); expected",
    "frames of two kinds": r"in: holds folders of PNG and of JPEG frames; expected videos of one kind",
    "two kinds in one clip": r"in/a: holds JPEG and PNG files; expected the frames of a clip",
    "frames without folders": r"x: holds PNG files itself; expected a folder of frames for each clip",
    "clip without frames": r"in/b: holds no frames; expected the frames of a clip",
    "nested": r"in: holds no videos, but .*/in/sub does: give that",
    "nested frames": r"in: holds no videos, but .*/in/sub does: give that",
    "nested twice": r"in: holds no videos, but .*/in/full, .*/in/shuffled do: give one",
    "one name twice": r"in: two clips are called 'a'; expected different names",
    "fewer frames": r"clip10.mp4: 5 frames of 40 x 56 pixels, where clip1.mp4 has 6 frames of 40 x 56 pixels; expected",
    "other size": r"in/b: 6 frames of 40 x 32 pixels, where a has 6 frames of 40 x 56 pixels; expected clips of one",
    "frames of two sizes": r"frame11.png: 56 x 40 pixels, where frame5.png has 40 x 56; expected frames of one size",
    "text as film": r"a.mp4: cannot be read as a film \(InvalidDataError",
    "empty film": r"a.mp4: cannot be read as a film \(",
    "sound": r"a.mp4: no video stream; expected a film",
    "text as image": r"1.png: cannot be read as a PNG \(UnidentifiedImageError",
    "16 bits": r"1.png: an image of 16 bits a channel; expected RGB or grey of 8 bits",
    "16 bits grey": r"1.png: an image of 16 bits a channel; expected RGB or grey of 8 bits",
    "four inks": r"1.jpg: an image of mode CMYK; expected RGB or grey",
    "GIF that lost a repeated frame": r"b.gif: 5 frames .* a.gif has 6 frames .* \(writers of GIF drop frames",
    "cut npy": r"all.npy: cannot be read as a .npy array \(ValueError",
    "cut pt": r"all.pt: truncated, its end is missing after \d+ bytes",
    "cut safetensors": r"all.safetensors: array 'videos' of shape .* is truncated",
    "text as pt": r"all.pt: (cannot be read as a .pt array|not a plain tensor)",
    "dictionary": r"all.pt: holds a dict with the keys recon, epoch; expected one tensor",
    "two tensors": r"in: holds 2 PT files \(a.pt, b.pth\); give one of them",
    "unnamed arrays": r"all.safetensors: holds the arrays ours, theirs; expected one, or 'videos'",
    "two arrays of many clips": r"in: holds 2 arrays of many clips \(a.npy, b.npy\); give one of them",
    "odd array": r"b.npy: uint8 of shape \(5, 3, 40, 56\), where a.npy has uint8 of shape \(6, 3, 40, 56\)",
    "four axes": r"all.pt: an array of shape \(6, 3, 40, 56\); expected 5 axes: clips, frames, 3, H, W",
    "three axes": r"all.npy: an array of shape \(3, 40, 56\); expected 5 axes",
    "no clips": r"all.npy: an array of shape \(0, 6, 3, 40, 56\); expected at least one clip",
    "four channels": r"all.npy: clips of shape \(6, 4, 40, 56\); expected 3 channels, as in BFCHW, BCFHW, BFHWC",
    "whole numbers": r"all.npy: an array of int64; expected uint8 or floating point",
    "minus one to one": r"in: values from -1 to 1; expected \[0, 1\], or \[0, 255\] with some above 2",
    "up to 1.5": r"in: values from 0 to 1.5; expected \[0, 1\], or \[0, 255\] with some above 2",
    "up to 300": r"in: values from 0 to 300; expected \[0, 1\], or \[0, 255\]",
    "NaN": r"in: clip 0002 holds values that are not finite; expected",
    "infinite": r"in: clip 0002 holds values that are not finite; expected",
    "NaN in the third file": r"in: clip clip10 holds values that are not finite; expected",
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_on_opening_by_one_sentence(tmp_path, videos, case):
    with pytest.raises(DataError if case != "cut safetensors" else ValueError, match=REFUSED[case]) as caught:
        open_videos(planted(case, tmp_path, videos))
    assert "\n" not in str(caught.value)


def test_transparent_images_are_refused_on_reading(tmp_path, videos):
    rgba = np.concatenate([videos[0, 0], np.full((1, H, W), 255, np.uint8)]).transpose(1, 2, 0)
    rgba[3, 4, 3] = 254
    (tmp_path / "a").mkdir()
    Image.fromarray(rgba).save(tmp_path / "a" / "1.png")
    with pytest.raises(DataError, match=r"a/1.png: partly transparent; expected an opaque image"):
        open_videos(tmp_path)[:]


def test_a_transparent_gif_is_refused_on_reading(tmp_path, videos):
    pictures = [Image.fromarray(frame.transpose(1, 2, 0)).convert("P") for frame in videos[0]]
    hole = pictures[0].getpixel((0, 0))
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], transparency=hole, disposal=2)
    with pytest.raises(DataError, match=r"a.gif: partly transparent"):
        open_videos(tmp_path)[:]


def test_a_large_file_in_the_old_format_is_refused(tmp_path, videos, monkeypatch):
    monkeypatch.setattr("neuroclips.data.tensor_file._WHOLE_BYTES", 1000)
    torch.save(torch.from_numpy(videos), tmp_path / "new.pt")
    assert len(open_videos(tmp_path / "new.pt")) == B
    torch.save(torch.from_numpy(videos), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"old.pt: 0.0 GB in PyTorch's old format, which cannot be read in parts; save"):
        open_videos(tmp_path / "old.pt")


@pytest.mark.usefixtures("unchecked_types")
def test_single_numbers_are_refused(tmp_path, videos):
    np.save(tmp_path / "all.npy", videos)
    with pytest.raises(TypeError, match="by a slice or an array of clip numbers, not by 2"):
        open_videos(tmp_path)[2]
