"""Where frozen weights are found: shipped with the package, pulled by name, or in a folder of the user's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from neuroclips.artefacts import file_hash, read_card
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.catalogue import Model, in_words, models_home, published, ready_folder, state_of


def shipped(kind: str) -> Path:
    """Where the package looks for its own weights of a kind, whether they are there or not."""
    return Path(str(files("neuroclips").joinpath("mini", "weights", kind)))


def resolve(name_or_folder: str | Path, kind: str, holds: str = "config.json") -> Path:
    """The folder that holds a model of ``kind`` ('vae', 'clip', 'video', ...): 'mini', a published one, or a local one.

    Names of ``neuroclips models list`` come before folders of the same name. Nothing is downloaded here.

    >>> resolve("mini", "vae").name
    'vae'
    """
    if model := published().get(str(name_or_folder)):
        return _published(model, kind, holds)
    folder = shipped(kind) if str(name_or_folder) == "mini" else Path(name_or_folder)
    if not (folder / holds).exists():
        layout = "" if holds.endswith(".safetensors") else " in diffusers/transformers layout"
        raise ArtefactError(f"{folder}: no {holds}; expected 'mini' or a folder of {kind} weights{layout}")
    return folder


def _published(model: Model, kind: str, holds: str) -> Path:
    """The folder of a published model, if it serves and is here."""
    if model.serves != kind:
        fitting = [other.name for other in published().values() if other.serves == kind]
        others = f"; {' or '.join(fitting)} would do" if fitting else ""
        raise ArtefactError(f"{model.name}: weights of kind {model.serves}, where {kind} is wanted{others}")
    state, folder = state_of(model), ready_folder(model)
    if state.name == "broken" or (state.name == "ready" and not (folder / holds).exists()):
        reason = state.reason or f"no {holds}"
        raise ArtefactError(f"{folder}: broken ({reason}); `neuroclips models pull {model.name} --again` makes it anew")
    if state.name != "ready":
        raise ArtefactError(
            f"{model.name}: not here; `neuroclips models pull {model.name}` fetches {in_words(model.size)} (licence: "
            f"{model.licence}), or `neuroclips models import {model.name}` takes files you have"
        )
    return folder


def refuse_absent(names: Iterable[str | None]) -> None:
    """ArtefactError that lists every published model of ``names`` that is not here, and the one command for all."""
    wanted = [published()[name] for name in dict.fromkeys(names) if name is not None and name in published()]
    absent = [model for model in wanted if state_of(model).name not in ("ready", "broken")]
    if len(absent) > 1:  # of one, ``resolve`` says it
        size = in_words(sum(model.size or 0 for model in absent))
        words = " ".join(model.name for model in absent)
        raise ArtefactError(
            f"{len(absent)} of {len(wanted)} models that this recipe names are not here; `neuroclips models pull "
            f"{words}` fetches {size}, or `neuroclips models import NAME` takes files you have. `--set scale=mini`"
            " needs none"
        )


def weights_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of weights in a folder, by its path there.

    Of a published model they are read from its card, where sizes agree: to read tens of gigabytes in every run would
    take minutes (``neuroclips models verify`` does it).
    """
    known = (read_card(folder) or {}).get("files", {}) if folder.parent == models_home() else {}
    hashes = {}
    for path in sorted(folder.rglob("*.safetensors")):
        name = str(path.relative_to(folder))
        said = known.get(name, {})
        hashes[name] = said["sha256"] if said.get("bytes") == path.stat().st_size else file_hash(path)
    return hashes


@contextmanager
def quietly() -> Iterator[None]:
    """Load a diffusers pipeline without its bars (of files of a second or two) and its talk of renamed keywords."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
