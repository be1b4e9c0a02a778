"""Films: facts, frames at exact times, scene cuts, and small clip videos. All through PyAV, a frame at a time."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from neuroclips.artefacts import written_aside
from neuroclips.data.timing import exact
from neuroclips.errors import DataError
from neuroclips.shapes import Int, UInt8

_BEGINNING = Fraction(0)
_LACKING = Fraction(1, 2)  # seconds by which a film may be shorter than its index says: the last frame, rounding


@dataclass(frozen=True)
class FilmInfo:
    """A film of constant frame rate: frame i is shown from ``i / fps`` seconds on."""

    fps: Fraction
    n_frames: int
    height: int
    width: int

    @property
    def length(self) -> Fraction:
        """Seconds, exactly."""
        return self.n_frames / self.fps

    @property
    def seconds(self) -> float:
        return float(self.length)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """The container and its first video stream; whatever FFmpeg refuses becomes a DataError that names the file."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:  # titles are written in many alphabets
            if not container.streams.video:
                raise DataError(f"{path}: no video stream; expected a film")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path}: cannot be decoded as a film ({error})") from error


def film_info(path: Path) -> FilmInfo:
    """Read a film's timing from its packets, without decoding (0.1 s for 8 minutes; an unchanged file is read once).

    Raises
    ------
    DataError
        Not a film, a part of one, fewer than two frames, or a variable frame rate: some frame lies half a frame or more
        from where the constant rate puts it, so that "the frame at time t" would be another one.
    """
    try:
        about = Path(path).stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be decoded as a film ({error})") from error
    return _film_info(Path(path), about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=1024)
def _film_info(path: Path, size: int, changed: int) -> FilmInfo:
    with _opened(path) as (container, stream):
        packets = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.pts is not None and not p.is_discard]
        stamps = np.sort([pts for pts, _ in packets])
        _expect_whole(path, stream, packets)
        n = len(stamps)
        if n < 2:
            raise DataError(f"{path}: {n} video frames; expected a film")
        times = (stamps - stamps[0]) * float(stream.time_base or 0)  # seconds
        measured = Fraction((n - 1) / float(times[-1])).limit_denominator(1001) if times[-1] > 0 else Fraction(0)
        fps = stream.average_rate or measured
        height, width = stream.codec_context.height, stream.codec_context.width
    if fps <= 0:
        raise DataError(f"{path}: its {n} frames have no times; expected a constant frame rate")
    shift = np.abs(times * float(fps) - np.arange(n))
    if shift.max() >= 0.5:
        worst = int(np.argmax(shift >= 0.5))
        raise DataError(
            f"{path}: variable frame rate; frame {worst} is shown at {times[worst]:.3f} s where {float(fps):.6g} "
            f"frames per second put it at {worst / float(fps):.3f} s; expected a constant rate "
            "(ffmpeg -i FILM -fps_mode cfr -r 30 NEW makes one)"
        )
    return FilmInfo(Fraction(fps), n, height, width)


def _expect_whole(path: Path, stream: av.video.stream.VideoStream, packets: list[tuple[int, int]]) -> None:
    """Raise DataError for a film that begins with an index of all its frames, as films for the web do, and lacks some.

    Frames are not counted: films that were trimmed without being written anew have more of them than they show.
    """
    if not (packets and stream.frames and stream.duration and stream.time_base):  # there is no such index
        return
    there = max(pts + duration for pts, duration in packets) - min(pts for pts, _ in packets)
    lacking = (stream.duration - there) * stream.time_base
    if lacking > _LACKING:
        whole = float(stream.duration * stream.time_base)
        raise DataError(f"{path}: truncated; {whole - float(lacking):.3f} s of {whole:.3f} s; fetch it again")


def count_trs(path: Path, info: FilmInfo, t_r: float) -> int:
    """How many TRs a film lasts. It must be a whole number to within a quarter TR, or the pairing with volumes, one
    per clip, is a guess: DataError."""
    n_trs = round(info.seconds / t_r)
    if n_trs < 1 or abs(info.seconds - n_trs * t_r) > t_r / 4:
        raise DataError(
            f"{path}: lasts {info.seconds:.3f} s, {info.seconds / t_r:.2f} TRs of {t_r:g} s; "
            f"expected a whole number of TRs to within {t_r / 4:g} s"
        )
    return n_trs


def frame_indices(
    info: FilmInfo, n_trs: int, t_r: float | int, frames_per_clip: int, start: Fraction = _BEGINNING
) -> np.ndarray:
    """Film frame shown at the time of each clip frame, (T, F): ``round(fps * (start + t_r * (j + f / F)))``, halves
    rounded up.

    Exact: computed in fractions, so that 29.97 frames per second do not drift over a long film.
    """
    step = info.fps * exact(t_r) / frames_per_clip  # film frames per clip frame
    first = info.fps * start + Fraction(1, 2)
    numbers = [math.floor(first + k * step) for k in range(n_trs * frames_per_clip)]
    return np.array(numbers, np.int64).reshape(n_trs, frames_per_clip)


def read_clips(
    path: Path,
    n_trs: int,
    t_r: float | int,
    frames_per_clip: int,
    size: int,
    out: np.ndarray | None = None,
    *,
    start: Fraction = _BEGINNING,
) -> UInt8[np.ndarray, "T F 3 H W"]:
    """The clips of a film: frame f of clip j is the film at ``start + t_r * (j + f / F)`` s, RGB of ``size`` squared.

    The centre square of the picture (as players show it: turned and stretched as the file says) is kept and brought to
    ``size`` by swscale's area averaging (antialiased). The film is decoded once, in order, and only wanted frames are
    converted; memory does not grow with the film beyond the result, which goes into ``out`` (may be memory-mapped).

    Raises
    ------
    DataError
        The film has a variable frame rate, fewer frames per second than the clips, ends before the last clip frame, or
        cannot be decoded.
    """
    path, info = Path(path), film_info(path)
    if info.fps * exact(t_r) < frames_per_clip:
        raise DataError(
            f"{path}: {float(info.fps):.6g} frames per second; expected at least {frames_per_clip / t_r:.6g}, "
            f"for {frames_per_clip} different frames in each clip of {t_r:g} s"
        )
    wanted = frame_indices(info, n_trs, t_r, frames_per_clip, start).ravel()
    if wanted[-1] >= info.n_frames:
        raise DataError(
            f"{path}: {info.n_frames} frames ({info.seconds:.3f} s); expected at least {wanted[-1] + 1}, "
            f"for {n_trs} clips of {t_r:g} s" + (f" from {float(start):.3f} s on" if start else "")
        )
    shape = (n_trs, frames_per_clip, 3, size, size)
    clips = np.empty(shape, np.uint8) if out is None else out
    assert clips.shape == shape
    for done, picture in enumerate(stream_frames(path, wanted, size)):
        clips[divmod(done, frames_per_clip)] = picture
    return clips


def stream_frames(path: Path, wanted: Int[np.ndarray, " n"], size: int) -> Iterator[UInt8[np.ndarray, "3 size size"]]:
    """The frames with the ``wanted`` numbers, ascending (a number may recur), decoded in one pass: centre square,
    RGB. A film that ends before the last one is a DataError."""
    numbers = iter(wanted)
    number = next(numbers)
    with _opened(path) as (container, stream):
        square = _Square(size, stream.sample_aspect_ratio)
        for index, frame in enumerate(container.decode(stream)):
            if index < number:
                continue
            picture = square(frame)
            while number == index:
                yield picture
                following = next(numbers, None)
                if following is None:
                    return
                number = following
    raise DataError(f"{path}: decoding stopped before frame {number}; the film is damaged")


class _Square:
    """Centre square of a frame at ``size`` x ``size``, (3, H, W) uint8 RGB; keeps swscale's tables between frames.

    aspect : width of a pixel over its height, which anamorphic films (DVDs) do not have at 1.
    """

    def __init__(self, size: int, aspect: Fraction | None = None):
        self.size, self.colours, self.scaler = size, VideoReformatter(), VideoReformatter()
        self.aspect = aspect or 1

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if self.aspect == 1:
            shown = self.colours.reformat(frame, format="rgb24")
        else:
            shown = self.colours.reformat(frame, round(frame.width * self.aspect), format="rgb24", interpolation="AREA")
        picture: np.ndarray = shown.to_ndarray()  # (H, W, 3)
        if frame.rotation:  # in degrees, against the clock; phones film like this
            picture = np.rot90(picture, round(frame.rotation / 90))
        height, width, _ = picture.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        if (side, side) != (height, width):
            picture = np.ascontiguousarray(picture[top : top + side, left : left + side])
        if side != self.size:
            whole = av.VideoFrame.from_ndarray(picture, format="rgb24")
            picture = self.scaler.reformat(whole, self.size, self.size, interpolation="AREA").to_ndarray()
        return picture.transpose(2, 0, 1)


def scene_cuts(path: Path, *, sparse: bool = False) -> list[float]:
    """Seconds of the cuts in a film: where PySceneDetect's content or perceptual-hash detector, or both, see one; of
    ``sparse`` frames, the content detector alone (``cuts_between``).

    Chosen by measurement. Of 20 hard cuts in a montage of natural films the hash found 20 and the content detector 19;
    of 15 between flat coloured fields the hash found 7 and the content detector 15. Neither invented one; the histogram
    detector invented four in the montage. A small sample: dissolves and slow fades were not tried. Takes 2.6 s for
    8 minutes at 128 pixels, 1.5 s of it decoding.
    """
    # PySceneDetect imports OpenCV: half a second that only this function should cost.
    from scenedetect import ContentDetector, HashDetector, SceneManager, VideoOpenFailure, open_video

    try:
        film = open_video(str(path))
    except (OSError, VideoOpenFailure) as error:
        raise DataError(f"{path}: cannot be decoded as a film ({error})") from error
    manager = SceneManager()
    manager.add_detector(ContentDetector())
    if not sparse:
        manager.add_detector(HashDetector())
    manager.detect_scenes(film, show_progress=False)
    return [start.get_seconds() for start, _ in manager.get_scene_list()[1:]]


def cuts_between(frames: Iterable[UInt8[np.ndarray, "3 H W"]], fps: Fraction) -> list[float]:
    """Seconds of the cuts in frames that were taken from a film ``fps`` times a second, by ``scene_cuts``.

    Every frame is shown several times: detectors want half a second between cuts, in frames of usual film. Only the
    content detector looks: between frames a third of a second apart the hash sees cuts where things just move. Of 119
    cuts in 16 minutes of picture-book film at 3 frames per second content found 118 and invented 5; with the hash, all
    and 91.
    """
    times = max(1, round(12 / fps))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_video(path, (frame for frame in frames for _ in range(times)), (times * fps).limit_denominator(1001))
        return scene_cuts(path, sparse=True)


def write_video(
    path: Path, frames: Iterable[UInt8[np.ndarray, "3 H W"]], fps: Fraction | int, *, preset: str = "veryfast"
) -> None:
    """Write frames, one at a time, as MP4 (H.264, near-lossless), atomically; height and width must be even."""
    rest = iter(frames)
    first = next(rest)
    _, height, width = first.shape
    if height % 2 or width % 2:
        raise DataError(f"{path}: frames of {height} x {width} pixels; expected even sizes (H.264, yuv420p)")
    with written_aside(Path(path)) as aside, av.open(str(aside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        # One thread and no macroblock tree: else x264 sometimes writes other bytes for the same frames.
        stream.options = {"crf": "10", "preset": preset, "threads": "1", "mbtree": "0"}
        for frame in chain([first], rest):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.transpose(1, 2, 0)), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_clip_video(path: Path, frames: UInt8[np.ndarray, "F 3 H W"], seconds: float) -> None:
    """Write a short clip as MP4 that lasts ``seconds``."""
    write_video(path, frames, Fraction(len(frames) / seconds).limit_denominator(1001))


def read_video(path: Path) -> UInt8[np.ndarray, "F 3 H W"]:
    """All frames of a short video, RGB. Everything is held in memory: for clips, not for films."""
    with _opened(path) as (container, stream):
        frames = [frame.to_ndarray(format="rgb24").transpose(2, 0, 1) for frame in container.decode(stream)]
    if not frames:
        raise DataError(f"{path}: no frame could be decoded; expected a video")
    return np.stack(frames)
