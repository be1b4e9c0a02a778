import importlib.util
import sys
from pathlib import Path

if "tiny_run" not in sys.modules:  # one run for the whole session, shared with tests/pipeline
    _path = Path(__file__).parents[1] / "pipeline" / "tiny_run.py"
    _spec = importlib.util.spec_from_file_location("tiny_run", _path)
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["tiny_run"] = _module
    _spec.loader.exec_module(_module)

from tiny_run import tiny_run  # noqa: F401
