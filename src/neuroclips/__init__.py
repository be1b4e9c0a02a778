"""NeuroClips: fMRI in, video out. The public names, loaded on first use so that importing stays quick."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Clips": "data.clips",
    "Guidance": "video.guidance",
    "NeuralDecoders": "training.decoders",
    "NeuroClipsPipeline": "video.neuroclips_pipeline",
    "Reconstructor": "reconstructor",
    "RidgeDecoders": "decoders.ridge",
    "load_clips": "data.prepared",
    "load_recipe": "recipe",
    "prepare": "data.prepare",
    "run": "pipeline",
    "score_identification": "evaluation.scores",
    "score_videos": "evaluation.scores",
}
__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from neuroclips.data.clips import Clips as Clips
    from neuroclips.data.prepare import prepare as prepare
    from neuroclips.data.prepared import load_clips as load_clips
    from neuroclips.decoders.ridge import RidgeDecoders as RidgeDecoders
    from neuroclips.evaluation.scores import score_identification as score_identification
    from neuroclips.evaluation.scores import score_videos as score_videos
    from neuroclips.pipeline import run as run
    from neuroclips.recipe import load_recipe as load_recipe
    from neuroclips.reconstructor import Reconstructor as Reconstructor
    from neuroclips.training.decoders import NeuralDecoders as NeuralDecoders
    from neuroclips.video.guidance import Guidance as Guidance
    from neuroclips.video.neuroclips_pipeline import NeuroClipsPipeline as NeuroClipsPipeline


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"neuroclips.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'neuroclips' has no attribute {name!r}")
