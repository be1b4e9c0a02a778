import importlib.util
import sys
from pathlib import Path

# The tests are imported by path (importlib mode), so their helper modules are put in place by hand.
for _name in ("tiny_run", "tiny_generators", "planted_run"):
    if _name not in sys.modules:
        _spec = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(f"{_name}.py"))
        _module = importlib.util.module_from_spec(_spec)
        sys.modules[_name] = _module
        _spec.loader.exec_module(_module)

from tiny_run import tiny_run  # noqa: E402, F401
