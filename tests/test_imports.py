"""Importing the package stays quick: what is heavy is imported by whoever needs it."""

import json
import subprocess
import sys

HEAVY = ("torch", "diffusers", "transformers", "nibabel", "pandas", "himalaya", "cv2")


def loaded_after(statement: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import neuroclips") == set()
    assert loaded_after("import neuroclips.cli") == set()


def test_preparing_data_needs_no_networks():
    loaded = loaded_after("import neuroclips.data.prepare")
    assert "nibabel" in loaded
    assert not loaded & {"torch", "diffusers", "transformers", "himalaya", "cv2"}


def test_the_check_above_can_fail():
    assert "torch" in loaded_after("from neuroclips import Reconstructor")


def test_every_public_name_resolves():
    code = (
        "import neuroclips\n"
        "for name in neuroclips.__all__: assert getattr(neuroclips, name) is not None, name\n"
        "try: neuroclips.nosuch\n"
        "except AttributeError as error: assert 'nosuch' in str(error)\n"
        "else: raise SystemExit('an unknown name resolved')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
