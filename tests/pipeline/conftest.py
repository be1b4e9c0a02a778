import importlib.util
import sys
from pathlib import Path

# The tests are imported by path (importlib mode), so their helper module is put in place by hand.
if "tiny_run" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("tiny_run", Path(__file__).with_name("tiny_run.py"))
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["tiny_run"] = _module
    _spec.loader.exec_module(_module)

from tiny_run import tiny_run  # noqa: F401
