"""A tiny data set in the CC2017 layout, as real CIFTI and MP4, with planted answers."""

from fractions import Fraction
from pathlib import Path

import av
import nibabel as nib
import numpy as np
from nibabel.cifti2 import cifti2_axes

N_CORTEX, N_ALL = 59_412, 91_282
SUBJECT = 3
DELAY = 2  # TRs between film and response


def write_film(path: Path, frames, fps=30, codec_options=None, times=None, container_format=None):
    """Write RGB frames (H, W, 3); ``times`` in seconds makes the frame rate variable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.pix_fmt = "yuv420p"
        stream.options = codec_options or {"preset": "ultrafast", "crf": "12"}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def grayordinates(left=29_696, right=29_716, subcortex=N_ALL - N_CORTEX):
    """The standard axis: cortex left, cortex right, then voxels."""
    axis = cifti2_axes.BrainModelAxis.from_surface(np.arange(left), 32_492, "CortexLeft")
    axis += cifti2_axes.BrainModelAxis.from_surface(np.arange(right), 32_492, "CortexRight")
    places = np.stack(np.unravel_index(np.arange(subcortex), (91, 109, 91)), axis=1)
    axis += cifti2_axes.BrainModelAxis(
        "CIFTI_STRUCTURE_THALAMUS_LEFT", voxel=places, affine=np.eye(4), volume_shape=(91, 109, 91)
    )
    return axis


_STANDARD = grayordinates()
_STANDARD_MAP = _STANDARD.to_mapping(1)  # slow to make, and the same in every file


def write_run(path: Path, cortex: np.ndarray, axis=None, t_r=2.0, unit="SECOND"):
    """Write (volumes, 59412) as a dense time series with the subcortex at zero."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grayordinate_map = _STANDARD_MAP if axis is None else axis.to_mapping(1)
    values = np.zeros((len(cortex), N_ALL if axis is None else len(axis)), np.float32)
    values[:, : cortex.shape[1]] = cortex
    matrix = nib.cifti2.Cifti2Matrix()
    matrix.append(cifti2_axes.SeriesAxis(0, t_r, len(cortex), unit).to_mapping(0))
    matrix.append(grayordinate_map)
    image = nib.Cifti2Image(values, nib.Cifti2Header(matrix))
    image.nifti_header.set_intent("ConnDenseSeries")
    image.to_filename(path)
    return path


def run_path(root: Path, segment: str, repeat: int) -> Path:
    return root / f"subject{SUBJECT}/fmri/{segment}/cifti/{segment}_{repeat}_Atlas.dtseries.nii"


def make_dataset(root: Path, segments: dict[str, tuple[int, int]], planted: np.ndarray, seed=0):
    """Films of 2 x 2 coloured blocks that change every 2 s, and scans of ``{name: (n_trs, repeats)}``.

    The ``planted`` voxels mix the block colours of 2 TRs ago with some noise; the other voxels are slow drift and
    noise; voxel 5 is constant. Returns the block colours of each segment, (T, 2, 2, 3).
    """
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(12, len(planted)))
    colours = {}
    for number, (name, (n_trs, repeats)) in enumerate(segments.items()):
        lead = 1 + number % 2
        blocks = rng.integers(20, 236, (n_trs, 2, 2, 3), dtype=np.uint8)
        colours[name] = blocks
        still = (np.kron(b, np.ones((32, 40, 1), np.uint8)) for b in blocks)  # 64 high, 80 wide
        write_film(root / "stimuli" / f"{name}.mp4", (frame for frame in still for _ in range(60)))
        volumes = n_trs + lead + 4
        features = np.zeros((volumes, 12))
        features[lead + DELAY : lead + DELAY + n_trs] = blocks.reshape(n_trs, 12) / 60.0
        drift = np.linspace(-1, 1, volumes)[:, None] ** 3 * 40
        for repeat in range(1, repeats + 1):
            cortex = 9000 + drift + rng.standard_normal((volumes, N_CORTEX), np.float32)
            cortex[:, planted] += 3 * features @ weights
            cortex[:, 5] = 7000
            write_run(run_path(root, name, repeat), cortex)
    return colours
