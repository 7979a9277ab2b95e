"""The adapter folder of a run: what training changed, and what it was trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from coadapt._errors import InputError
from coadapt._files import (
    MANIFEST,
    check_manifest,
    load_tensors,
    new_folder,
    read_json,
    save_tensors,
    write_json,
)
from coadapt.config import parse, to_plain
from coadapt.model import MultiTaskModel
from coadapt.planning import Plan
from coadapt.structures import Structure
from coadapt.tasks import Task

FORMAT = 1

_PARTS = ("blocks", "heads", "backbone")


@dataclass(frozen=True, kw_only=True)
class _Form:
    structure: Structure
    plan: Plan | None = None


def save_adapter(model: MultiTaskModel, folder: Path) -> None:
    """Write ``folder``: blocks, heads and a trained backbone as safetensors, the rest as JSON.

    Tensors keep every bit. The folder appears whole or not at all.
    """
    by_part: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for name, tensor in model.state_tensors().items():
        part = name.split("/", 1)[0]
        by_part[part if part in ("heads", "backbone") else "blocks"][name] = tensor
    with new_folder(folder) as temporary:
        for part, tensors in by_part.items():
            if tensors:
                save_tensors(temporary / f"{part}.safetensors", tensors)
        write_json(temporary / "adapter.json", describe(model))


def describe(model: MultiTaskModel) -> dict[str, Any]:
    """Return what a reader of the adapter folder needs to know."""
    return {
        "format": FORMAT,
        "base": model.model_config.name,
        "base_fingerprint": model.base_fingerprint,
        "structure": to_plain(model.recipe.structure),
        # Said by the structure; for readers, such as the report, that do not import it.
        "ships_as": model.recipe.structure.ships_as,
        "plan": to_plain(model.plan) if model.plan else None,
        "pooling": model.pooling,
        "target_modules": list(model.attached.modules),
        "tasks": {task.name: _describe_task(task) for task in model.tasks},
    }


def _describe_task(task: Task) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": task.kind, "labels": list(task.labels)}
    return told | ({"unit": list(task.unit)} if task.unit else {})


def saved_form(folder: Path) -> tuple[Structure, Plan | None]:
    """Return the structure and plan of an adapter folder.

    They are those of the configuration, but where training found ranks or merged blocks.

    Raises:
        InputError: if the folder is damaged.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is no whole adapter folder (no {MANIFEST}); train again")
    check_manifest(folder, only="adapter.json")
    told = read_json(folder / "adapter.json")
    form = {"structure": told["structure"], "plan": told["plan"]}
    found = parse(_Form, form, str(folder / "adapter.json"))
    return found.structure, found.plan


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of an adapter folder.

    Raises:
        InputError: if a file is missing, truncated or not the one that was written.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is no whole adapter folder (no {MANIFEST}); train again")
    check_manifest(folder)
    tensors: dict[str, Tensor] = {}
    for part in _PARTS:
        if (folder / f"{part}.safetensors").is_file():
            tensors |= load_tensors(folder / f"{part}.safetensors")
    return tensors


def load_adapter(model: MultiTaskModel, folder: Path) -> None:
    """Copy an adapter folder's tensors into a model built from the same configuration.

    Raises:
        InputError: if the folder is damaged, or was trained on another base model.
    """
    tensors = read_adapter(folder)
    told = read_json(folder / "adapter.json")
    trained_on = told["base_fingerprint"]
    if trained_on != model.base_fingerprint:
        raise InputError(
            f"{folder} was trained on another base model (fingerprint {trained_on}) than "
            f"'{model.model_config.name}' is now ({model.base_fingerprint})"
        )
    for task in model.tasks:
        mine = list(task.unit or (0.0, 1.0))
        unit = told["tasks"].get(task.name, {}).get("unit", [0.0, 1.0])
        if mine != unit:
            raise InputError(
                f"{folder}: {task} was trained with its labels in the unit {unit}, the "
                f"configuration says {mine}; set the task's unit to {unit} in config.yaml"
            )
    model.load_state_tensors(tensors, str(folder))
