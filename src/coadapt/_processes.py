"""What the processes of one launch share out among them."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from coadapt._errors import InputError

Item = TypeVar("Item")
Made = TypeVar("Made")


def is_main_process() -> bool:
    """Whether this process writes and prints: the first of a launch, or the only one."""
    return _index_and_number()[0] == 0


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
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # as launchers tell the processes they start
        return 0, 1
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes
