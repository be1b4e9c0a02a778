"""Several processes that work on one run, as ``accelerate launch`` starts them: the main one and those that help.

Training is done by all of them together, everything else by the main one while the others wait.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # that helpers wait for the main process, which may prepare data for hours


def join() -> None:
    """Meet the other processes, if there are any."""
    if torch.distributed.is_torchelastic_launched() and not torch.distributed.is_initialized():
        PartialState(timeout=PATIENCE)


def count() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and talks."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def told(value: T) -> T:
    """The main process's value, in every process."""
    return broadcast_object_list([value])[0] if count() > 1 else value


def wait() -> None:
    """Go on when all have come here."""
    if count() > 1:
        torch.distributed.barrier()
