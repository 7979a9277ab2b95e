"""What the processes of one launch share out among them."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from coadapt._errors import InputError

Item = TypeVar("Item")
Made = TypeVar("Made")

# What torchrun and accelerate set, then what MPI's launchers do: those that accelerate reads.
_NUMBER = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_INDEX = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def num_processes() -> int:
    """Return how many processes were launched together, as their launcher tells them."""
    return _told(_NUMBER, 1)


def is_main_process() -> bool:
    """Whether this process writes and prints: the first of a launch, or the only one."""
    return num_processes() == 1 or _told(_INDEX, 0) == 0


def share_out(items: Sequence[Item], work: Callable[[Item], Made]) -> list[Made]:
    """Return what ``work`` makes of each item, every item done by one process and known to all.

    All processes of the launch must call it with the same items. A single process does them all.

    Raises:
        InputError: on every process, if ``work`` raised one on any.
    """
    index, number = _index_and_number()
    if number == 1:
        return [work(item) for item in items]
    from accelerate.utils import gather_object

    made: dict[int, Any] = {}
    refused: str | None = None
    try:
        for position in range(index, len(items), number):
            made[position] = work(items[position])
    except InputError as error:  # told to the others, who would wait for ever
        refused = str(error)
    everything: dict[int, Any] = {}
    for theirs, error in gather_object([(made, refused)]):
        if error is not None:
            raise InputError(error)
        everything |= theirs
    return [everything[position] for position in range(len(items))]


def _index_and_number() -> tuple[int, int]:
    if num_processes() == 1:
        return 0, 1
    import torch
    from accelerate import PartialState

    # Processes launched on a machine without an accelerator find each other only if told.
    state = PartialState(cpu=not torch.accelerator.is_available())
    return state.process_index, state.num_processes


def _told(names: Sequence[str], otherwise: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), otherwise)
