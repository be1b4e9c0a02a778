import importlib.util
import sys
from pathlib import Path

import pytest
from diffusers import DDIMScheduler

from neuroclips.video.neuroclips_pipeline import NeuroClipsPipeline

# The tests are imported by path (importlib mode), so their helper modules are put in place by hand.
_here = Path(__file__).parent
for _path in (_here / "tiny_video.py", _here.parent / "pipeline" / "tiny_generators.py"):
    if _path.stem not in sys.modules:
        _spec = importlib.util.spec_from_file_location(_path.stem, _path)
        _module = importlib.util.module_from_spec(_spec)
        sys.modules[_path.stem] = _module
        _spec.loader.exec_module(_module)

from tiny_video import DDIM, parts  # noqa: E402


@pytest.fixture
def make_pipeline():
    """``make_pipeline(scheduler=..., frame_norm=...)``: parts are shared between tests, so leave them as they are."""

    def make(scheduler=None, **settings):
        scheduler = DDIMScheduler(**DDIM) if scheduler is None else scheduler
        settings = {"steps": 4, "guidance_scale": 2.0, **settings}
        pipeline = NeuroClipsPipeline(**{**parts(), **settings}, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make
