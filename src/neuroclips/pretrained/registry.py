"""Where frozen weights are found: shipped with the package, or in a folder of the user's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from neuroclips.errors import ArtefactError


def resolve(name_or_folder: str | Path, kind: str, holds: str = "config.json") -> Path:
    """The folder that holds a model of ``kind`` ('vae', 'clip', 'decoders'): 'mini', or a local one.

    >>> resolve("mini", "vae").name
    'vae'
    """
    if str(name_or_folder) == "mini":
        return Path(str(files("neuroclips").joinpath("mini", "weights", kind)))
    folder = Path(name_or_folder)
    if not (folder / holds).exists():
        raise ArtefactError(
            f"{folder}: no {holds}; expected 'mini' or a folder of {kind} weights"
            + (" in diffusers/transformers layout" if holds == "config.json" else "")
        )
    return folder
