import importlib.util
import sys
from pathlib import Path

# The tests are imported by path (importlib mode), so their helper module is put in place by hand.
_spec = importlib.util.spec_from_file_location("tiny_films", Path(__file__).with_name("tiny_films.py"))
_module = importlib.util.module_from_spec(_spec)
sys.modules["tiny_films"] = _module
_spec.loader.exec_module(_module)
