"""Export as stock PEFT folders: the adapters that a server swaps, heads beside them."""

import hashlib
import itertools
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from coadapt._errors import InputError
from coadapt._files import new_folder, write_json, write_text
from coadapt.exporting.card import export_card, part_card
from coadapt.exporting.layout import (
    ADAPTERS,
    CARD,
    check_target,
    route_of,
    save_head,
    write_routes,
)
from coadapt.exporting.peft_format import Factors, rank_of, write_lora
from coadapt.exporting.report import ExportReport
from coadapt.exporting.vllm import VLLM_FILE, served_rank, vllm_findings
from coadapt.model import MultiTaskModel


def export_peft(
    model: MultiTaskModel, folder: str | Path, *, card_config: str, check_vllm: bool = False
) -> ExportReport:
    """Write one stock PEFT LoRA folder for each distinct update, and every task's head.

    ``folder`` then holds ``adapters/<name>/``, ``heads/<task>.safetensors``, ``routes.json`` (task
    to adapter and head) and a model card at the top and in each adapter. Tasks whose update is the
    same share a folder, named after their blocks (joined by ``+``), or after the task where there
    is one only. A structure that trains heads alone gives heads alone: ``"adapter": null``.

    Args:
        model: the trained model.
        folder: new, empty, or an earlier export, which is replaced.
        card_config: the resolved configuration as YAML, for the model card.
        check_vllm: report what a vLLM server would refuse, in the report and ``vllm.json``, and pad
            each rank to one that it takes.

    Raises:
        InputError: if the structure has no exact LoRA form, or the folder holds something else.
    """
    _refuse_other_forms(model)
    folder = check_target(Path(folder))
    with new_folder(folder) as temporary:
        adapters, ranks = _write_adapters(model, temporary, fit_server=check_vllm)
        routes: dict[str, dict[str, Any]] = {}
        for task in model.tasks:
            head = save_head(model, task.name, temporary)
            routes[task.name] = {
                "adapter": adapters.get(task.name),
                "head": head,
                **route_of(model, task),
            }
        findings = vllm_findings(model, ranks) if check_vllm else ()
        if check_vllm:
            write_json(temporary / VLLM_FILE, [asdict(finding) for finding in findings])
        write_text(temporary / CARD, export_card(model, routes, card_config))
        for name, rank in ranks.items():
            card = part_card(model, name, routes, card_config, rank=rank)
            write_text(temporary / name / CARD, card)
        write_routes(temporary, model, routes)
    tasks = {task: route["adapter"] for task, route in routes.items()}
    return ExportReport(folder=folder, format="peft", tasks=tasks, ranks=ranks, findings=findings)


def _refuse_other_forms(model: MultiTaskModel) -> None:
    structure = model.recipe.structure
    if structure.mergeable or structure.ships_as == "none":
        return
    instead = "use --format merged"
    if structure.ships_as != "merged":
        instead = "keep the run itself: coadapt.load_run(...).predict(...)"
    raise InputError(
        f"structure '{structure.kind}' ships as '{structure.ships_as}' and depends on "
        f"{structure.depends_on}: it has no exact LoRA, so neither PEFT nor vLLM can load it; "
        f"{instead}"
    )


def _write_adapters(
    model: MultiTaskModel, folder: Path, *, fit_server: bool
) -> tuple[dict[str, str], dict[str, int]]:
    """Write each distinct update once; return task -> folder and folder -> rank."""
    if not model.recipe.structure.mergeable:
        return {}, {}
    same: dict[str, list[str]] = {}
    for task in model.task_names:
        same.setdefault(_digest(model.fold(task)), []).append(task)
    adapters: dict[str, str] = {}
    ranks: dict[str, int] = {}
    for tasks in same.values():
        name = _unused(_group_name(model, tasks), adapters.values())
        factors = {key: (A.cpu(), B.cpu()) for key, (A, B) in model.fold(tasks[0]).items()}
        rank = rank_of(factors)
        ranks[name] = served_rank(rank) if fit_server else rank
        base = model.model_config.name
        write_lora(folder / name, factors, ranks[name], base=base, backbone=model.backbone)
        adapters |= dict.fromkeys(tasks, name)
    return adapters, ranks


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
    ids = {model.task_id(task) for task in tasks}
    attached = model.attached
    common = [
        block
        for block, owners in zip(attached.blocks, attached.owners, strict=True)
        if ids <= set(owners)
    ]
    return "+".join(common or tasks)


def _unused(name: str, taken: Iterable[str]) -> str:
    """Make a folder's name of it: a block may be called anything, and systems ignore case."""
    safe = re.sub(r"[^A-Za-z0-9_.+-]", "_", name).lstrip(".")[:100] or "adapter"
    folded = {path.casefold() for path in taken}
    numbered = (f"{ADAPTERS}/{safe}-{number}" for number in itertools.count(2))
    return next(
        path
        for path in itertools.chain([f"{ADAPTERS}/{safe}"], numbered)
        if path.casefold() not in folded
    )
