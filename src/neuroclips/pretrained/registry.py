"""Where frozen weights are found: shipped with the package, or in a folder of the user's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from neuroclips.errors import ArtefactError


def shipped(kind: str) -> Path:
    """Where the package looks for its own weights of a kind, whether they are there or not."""
    return Path(str(files("neuroclips").joinpath("mini", "weights", kind)))


def resolve(name_or_folder: str | Path, kind: str, holds: str = "config.json") -> Path:
    """The folder that holds a model of ``kind`` ('vae', 'clip', 'video', ...): 'mini', or a local one.

    >>> resolve("mini", "vae").name
    'vae'
    """
    folder = shipped(kind) if str(name_or_folder) == "mini" else Path(name_or_folder)
    if not (folder / holds).exists():
        layout = "" if holds.endswith(".safetensors") else " in diffusers/transformers layout"
        raise ArtefactError(f"{folder}: no {holds}; expected 'mini' or a folder of {kind} weights{layout}")
    return folder


@contextmanager
def quietly() -> Iterator[None]:
    """Load a diffusers pipeline without its bars (of files of a second or two) and its talk of renamed keywords."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
