"""Export as stock PEFT folders: the adapters that a server swaps, heads beside them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coadapt._errors import InputError
from coadapt._files import new_folder, write_json, write_text
from coadapt.exporting.card import export_card, part_card
from coadapt.exporting.grouping import group_tasks
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
    """Write one stock PEFT LoRA or DoRA folder for each distinct update, and every task's head.

    ``folder`` then holds ``adapters/<name>/``, ``heads/<task>.safetensors``, ``routes.json`` (task
    to adapter and head, see :func:`coadapt.exporting.layout.route_of`) and a model card at the top
    and in each adapter. Tasks whose update is the same share a folder, named after their blocks
    (joined by ``+``), or after the task where there is one only. A structure that trains heads
    alone gives heads alone: ``"adapter": null``. A language model's tasks have no heads:
    ``"head": null``.

    Args:
        model: the trained model.
        folder: new, empty, or an earlier export, which is replaced.
        card_config: the resolved configuration as YAML, for the model card.
        check_vllm: report what a vLLM server would refuse, in the report and ``vllm.json``, and pad
            each rank to one that it takes.

    Raises:
        InputError: if the structure ships as neither LoRA nor DoRA, or the folder holds something
            else.
    """
    _refuse_other_forms(model)
    folder = check_target(Path(folder))
    with new_folder(folder) as temporary:
        adapters, ranks = _write_adapters(model, temporary, fit_server=check_vllm)
        routes: dict[str, dict[str, Any]] = {}
        for task in model.tasks:
            head = None if model.is_language_model else save_head(model, task.name, temporary)
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
    if structure.mergeable or structure.ships_as in ("dora", "none"):
        return
    instead = "use --format merged"
    if structure.ships_as != "merged":
        instead = (
            "keep the run itself, coadapt.load_run(...).predict(...), or train a recipe that "
            "merges (coadapt methods), such as m_lora or lora"
        )
    raise InputError(
        f"structure '{structure.kind}' ships as '{structure.ships_as}' and depends on "
        f"{structure.depends_on}: it has no exact LoRA, so neither PEFT nor vLLM can load it; "
        f"{instead}"
    )


def _write_adapters(
    model: MultiTaskModel, folder: Path, *, fit_server: bool
) -> tuple[dict[str, str], dict[str, int]]:
    """Write each distinct update once; return task -> folder and folder -> rank."""
    if not model.attached.layers:
        return {}, {}
    adapters: dict[str, str] = {}
    ranks: dict[str, int] = {}
    for name, tasks in group_tasks(model, ADAPTERS).items():
        factors, magnitudes = _parts(model, tasks[0])
        rank = rank_of(factors)
        ranks[name] = served_rank(rank) if fit_server else rank
        base = model.model_config.name
        write_lora(
            folder / name,
            factors,
            ranks[name],
            base=base,
            backbone=model.backbone,
            kind=model.kind,
            magnitudes=magnitudes,
        )
        adapters |= dict.fromkeys(tasks, name)
    return adapters, ranks


@torch.no_grad()
def _parts(model: MultiTaskModel, task: str) -> tuple[Factors, dict[str, Tensor]]:
    """Return a task's factors by module, the scale in B, and DoRA's magnitudes (out,)."""
    if model.recipe.structure.mergeable:
        return {name: (A.cpu(), B.cpu()) for name, (A, B) in model.fold(task).items()}, {}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    magnitudes: dict[str, Tensor] = {}
    for name, layer in model.attached.layers.items():
        ((A, B),) = layer.blocks()
        assert layer.m is not None, "what ships as DoRA has magnitudes"
        factors[name] = A.float().cpu(), layer.scale * B.float().cpu()
        magnitudes[name] = layer.m.float().flatten().cpu()
    return factors, magnitudes
