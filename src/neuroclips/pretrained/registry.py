"""Where frozen weights are found: shipped with the package, or in a folder of the user's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from neuroclips.errors import ArtefactError


def resolve(name_or_folder: str | Path, kind: str) -> Path:
    """The folder that holds a model of ``kind`` ('vae', 'clip'): 'mini' or a local folder with a ``config.json``.

    >>> resolve("mini", "vae").name
    'vae'
    """
    if str(name_or_folder) == "mini":
        return Path(str(files("neuroclips").joinpath("mini", "weights", kind)))
    folder = Path(name_or_folder)
    if not (folder / "config.json").exists():
        raise ArtefactError(
            f"{folder}: no config.json; expected 'mini' or a {kind} folder in diffusers/transformers layout"
        )
    return folder
