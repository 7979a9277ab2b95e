"""Which tasks have the same update, and what its folder is called."""

import hashlib
import itertools
import re
from collections.abc import Iterable

from torch import Tensor

from coadapt.exporting.peft_format import Factors
from coadapt.model import MultiTaskModel


def group_tasks(model: MultiTaskModel, parent: str) -> dict[str, list[str]]:
    """Return folder -> tasks: a folder in ``parent`` for each distinct update of the backbone.

    A folder is named after the blocks of its tasks (joined by ``+``), after the task where there is
    one only, and ``all`` where there are no blocks.
    """
    if model.recipe.structure.depends_on == "nothing":
        tasks = list(model.task_names)
        return {_unused(_group_name(model, tasks), parent, ()): tasks}
    same: dict[str, list[str]] = {}
    for task in model.task_names:
        same.setdefault(_digest(model.fold(task)), []).append(task)
    folders: dict[str, list[str]] = {}
    for tasks in same.values():
        folders[_unused(_group_name(model, tasks), parent, folders)] = tasks
    return folders


def _digest(factors: Factors) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, pair in factors.items():
        digest.update(name.encode())
        for factor in pair:
            digest.update(_bytes(factor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def _group_name(model: MultiTaskModel, tasks: list[str]) -> str:
    if len(tasks) == 1:
        return tasks[0]
    if model.recipe.structure.multiplies and model.plan is not None:
        return "+".join(model.plan.blocks)  # its heads have no names of the user's
    ids = {model.task_id(task) for task in tasks}
    attached = model.attached
    if not attached.blocks:
        return "all"
    common = [
        block
        for block, owners in zip(attached.blocks, attached.owners, strict=True)
        if ids <= set(owners)
    ]
    return "+".join(common or tasks)


def _unused(name: str, parent: str, taken: Iterable[str]) -> str:
    """Make a folder's name of it: a block may be called anything, and systems ignore case."""
    safe = re.sub(r"[^A-Za-z0-9_.+-]", "_", name).lstrip(".")[:100] or "adapter"
    folded = {path.casefold() for path in taken}
    numbered = (f"{parent}/{safe}-{number}" for number in itertools.count(2))
    return next(
        path
        for path in itertools.chain([f"{parent}/{safe}"], numbered)
        if path.casefold() not in folded
    )
