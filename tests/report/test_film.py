import io

import av
import cv2
import numpy as np
import pytest

from neuroclips.artefacts import read_arrays
from neuroclips.errors import DataError
from neuroclips.report.film import encode_jpeg, encode_mp4


def decode(content):
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate)


@pytest.mark.parametrize(("n_frames", "height", "width"), [(6, 64, 48), (1, 33, 64), (5, 181, 200)])
def test_frames_colours_and_rate_come_back(n_frames, height, width):
    hue = np.linspace(30, 220, n_frames)[:, None, None, None] * np.array([1, 0.4, 0.7])[:, None, None]
    video = np.broadcast_to(hue, (n_frames, 3, height, width)).astype(np.uint8)
    frames, rate = decode(encode_mp4(video, seconds=2.0))
    scale = 2 if max(height, width) <= 160 else 1
    assert frames.shape == (n_frames, scale * height // 2 * 2, scale * width // 2 * 2, 3)
    assert rate == pytest.approx(n_frames / 2)
    assert np.abs(frames.mean(axis=(1, 2)) - video.mean(axis=(2, 3))).max() < 6


def test_same_frames_give_the_same_bytes(tiny_run):
    videos = np.concatenate(list(read_arrays(tiny_run.directory / "reconstruct" / "videos.safetensors").values()))
    first = [encode_mp4(video, 2.0) for video in videos]
    for _ in range(2):  # others lie between: what an encoder finds in memory is not what it found before
        assert [encode_mp4(video, 2.0) for video in videos] == first


def test_nothing_to_encode_is_refused():
    with pytest.raises(DataError, match="0 frames"):
        encode_mp4(np.zeros((0, 3, 8, 8), np.uint8), 2.0)


@pytest.mark.parametrize(("height", "width"), [(33, 64), (181, 200)])
def test_a_still_comes_back_with_its_colours_in_place(height, width):
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))
    image = np.stack([ramp, 240 - ramp, 0 * ramp + 77]).astype(np.uint8)
    found = cv2.imdecode(np.frombuffer(encode_jpeg(image), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].transpose(2, 0, 1)
    scale = 2 if max(height, width) <= 160 else 1
    assert found.shape == (3, scale * height, scale * width)
    assert np.abs(found[:, ::scale, ::scale].astype(int) - image).max() < 8
    assert encode_jpeg(image) == encode_jpeg(image)
