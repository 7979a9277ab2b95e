"""Bringing adapters in, and adding and removing tasks, without touching the other tasks."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from coadapt._errors import InputError, nearest
from coadapt._files import load_tensors, read_json
from coadapt.adapters import eject
from coadapt.exporting.peft_format import CONFIG_FILE, KEY, TENSORS_FILE, pad, rank_of
from coadapt.heads import with_unit
from coadapt.inits import Start
from coadapt.model import MultiTaskModel
from coadapt.planning import Block, Plan
from coadapt.tasks import Task

# Keys of adapter_config.json that, where set, make the adapter more or other than B A on a few
# linear maps. PEFT's variants (fields marked `is_lora_variant`) are among them.
_OTHER_FORMS = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in B",
    "modules_to_save": "whole modules beside it",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "factors of plain parameters",
    "alora_invocation_tokens": "activation by tokens",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
}

# Inits that leave the base weight as it is; the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) edit
# it, so that B A on the untouched base is not what was trained.
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """A LoRA from elsewhere.

    Args:
        r: the largest rank of any module.
        factors: ``{module: (A, B)}`` in float32, A (r_m, in) and B (out, r_m), the scale in B.
    """

    r: int
    factors: dict[str, tuple[Tensor, Tensor]]


def read_peft_adapter(folder: str | Path, *, factors_only: bool = False) -> PeftAdapter:
    """Read a folder that PEFT's LoRA wrote, with rsLoRA and rank and alpha patterns.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        factors_only: leave out whole modules that were saved beside the factors, such as the
            classifier of a PEFT model for sequence classification, instead of refusing them.

    Raises:
        InputError: if a file is missing or damaged, or the adapter is not a plain LoRA.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG_FILE)
    beside = factors_only and isinstance(config, dict) and config.get("modules_to_save")
    _refuse_other_forms(config, folder / CONFIG_FILE, allowed={"modules_to_save"} if beside else ())
    path = folder / TENSORS_FILE
    if not path.is_file() and (folder / "adapter_model.bin").is_file():
        raise InputError(
            f"{folder} holds adapter_model.bin, a pickle, which coadapt does not open; load it "
            "with PEFT and save it again: save_pretrained(..., safe_serialization=True)"
        )
    factors = {}
    tensors = load_tensors(path)
    if beside:
        tensors = {key: tensor for key, tensor in tensors.items() if KEY.fullmatch(key)}
    for name, (A, B) in _pairs(tensors, path).items():
        factors[name] = (A.float(), B.float() * _scale(config, name, A.shape[0], folder))
    return PeftAdapter(r=rank_of(factors), factors=factors)


def _refuse_other_forms(config: Any, path: Path, allowed: Collection[str]) -> None:
    if not isinstance(config, dict) or "peft_type" not in config:
        raise InputError(f"{path} is no PEFT adapter's configuration: it has no 'peft_type'")
    if config["peft_type"] != "LORA":
        raise InputError(f"{path}: peft_type is {config['peft_type']!r}; only LORA can be imported")
    for key, what in _OTHER_FORMS.items():
        if config.get(key) and key not in allowed:
            raise InputError(
                f"{path}: the adapter has {what} ({key}), so it is more than a low-rank update; "
                "only a plain LoRA can be imported"
            )
    if config.get("bias", "none") != "none":
        raise InputError(f"{path}: bias is {config['bias']!r}; only 'none' can be imported")
    init = config.get("init_lora_weights", True)
    if init not in _PLAIN_INITS:
        raise InputError(
            f"{path}: init_lora_weights is {init!r}, which edits the base model; convert the "
            "adapter with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )


def _pairs(tensors: dict[str, Tensor], path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return ``{module: (A, B)}`` as stored."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise InputError(f"{path}: '{key}' is no factor of a LoRA on a linear map")
        found.setdefault(match["module"], {})[match["factor"]] = tensor
    if not found:
        raise InputError(f"{path} holds no factors")
    for name, pair in found.items():
        shapes = {factor: tuple(tensor.shape) for factor, tensor in pair.items()}
        fits = len(pair) == 2 and all(len(shape) == 2 for shape in shapes.values())
        if not fits or shapes["A"][0] != shapes["B"][1]:
            raise InputError(
                f"{path}: module '{name}' needs lora_A (r, in) and lora_B (out, r); found {shapes}"
            )
    return {name: (pair["A"], pair["B"]) for name, pair in found.items()}


def _scale(config: dict[str, Any], name: str, rank: int, folder: Path) -> float:
    """Return lora_alpha / r, or / sqrt(r), of a module, as PEFT finds it."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    if "r" not in config or "lora_alpha" not in config:
        raise InputError(f"{folder / CONFIG_FILE} lacks 'r' or 'lora_alpha'")
    declared = ranks.get(get_pattern_key(list(ranks), name), config["r"])
    if declared != rank:
        raise InputError(
            f"{folder}: module '{name}' has rank {rank}, its configuration says {declared}"
        )
    alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def with_task(
    model: MultiTaskModel,
    task: Task,
    *,
    rank: int | None = None,
    adapter: str | Path | None = None,
    head: str | Path | None = None,
) -> MultiTaskModel:
    """Return a model with one task more, on the same backbone; the other tasks' outputs stay.

    Without an adapter the task joins the plan's common block, if there is one, and gets a block of
    its own where others have one. An imported adapter is the task's only block, so that its update
    is exactly the adapter's. The model given has lost its backbone afterwards: use the new one.

    Args:
        model: the model to extend.
        task: with its labels.
        rank: of the task's own block; that of the adapter, or the average of the plan's blocks.
        adapter: a PEFT LoRA folder, see :func:`read_peft_adapter`.
        head: a safetensors file with ``weight`` (C, d) and ``bias`` (C,); a fresh head if None. A
            language model has no heads.

    Raises:
        InputError: if the name is taken, or adapter or head do not fit the model.
    """
    if task.name in model.task_names:
        raise InputError(f"the model has task '{task.name}' already; choose another name")
    _refuse_other_kinds(model, task)
    weights = _read_head(Path(head), model, task) if head is not None else {}
    if adapter is None:
        return _rebuild(model, (*model.tasks, task), _plan_with(model, task.name, rank), weights)
    found = read_peft_adapter(adapter)
    rank = found.r if rank is None else rank
    if rank < found.r:
        raise InputError(f"{adapter} has rank {found.r}, more than rank={rank}; give {found.r}")
    plan = _plan_alone(model, task.name, rank)
    factors = fitting(found, model, str(adapter))
    weights |= block_of(model, task.name, factors, rank)
    return _rebuild(model, (*model.tasks, task), plan, weights)


def _refuse_other_kinds(model: MultiTaskModel, task: Task) -> None:
    """Refuse what such a model does not do, before anything is undone."""
    if not model.is_language_model:
        _ = task.num_outputs  # raises where it has no head, or no labels yet
        return
    if task.kind == "regression":
        raise InputError(f"{task}: a regression needs an encoder; a language model says words")
    if task.kind == "classification" and not task.labels:
        raise InputError(f"{task}: no labels yet; load_suite reads them from the data")


def without_task(model: MultiTaskModel, name: str) -> MultiTaskModel:
    """Return a model without a task and the blocks that only it used, on the same backbone.

    The other tasks' outputs stay. The model given has lost its backbone afterwards.

    Args:
        model: the model to shorten.
        name: the task's name.

    Raises:
        InputError: if there is no such task, or it is the last one.
    """
    if name not in model.task_names:
        raise InputError(f"the model has no task '{name}'{nearest(name, model.task_names)}")
    if len(model.tasks) == 1:
        raise InputError(f"'{name}' is the model's only task; there would be none left")
    plan = model.plan.without_task(name) if model.plan else None
    return _rebuild(model, tuple(task for task in model.tasks if task.name != name), plan, {})


def _plan_with(model: MultiTaskModel, name: str, rank: int | None) -> Plan | None:
    if model.plan is None:
        _warn_unused(rank)
        return None
    average = max(1, model.plan.budget // len(model.plan.blocks))
    plan = model.plan.with_task(name, rank=average if rank is None else rank)
    if name not in plan.blocks:
        _warn_unused(rank)
    elif model.recipe.init.statistics != "none":
        raise InputError(
            f"a fresh block for '{name}' would start from statistics of its rows, which are "
            "gathered when a run is trained; give the task an adapter, or train again with it"
        )
    return plan


def _warn_unused(rank: int | None) -> None:
    if rank is not None:
        warnings.warn(f"rank={rank} has no effect: the task gets no block of its own", stacklevel=4)


def _plan_alone(model: MultiTaskModel, name: str, rank: int) -> Plan:
    structure = model.recipe.structure
    if model.plan is None or structure.depends_on != "task":
        raise InputError(
            f"structure '{structure.kind}' has no blocks of single tasks to import an adapter "
            "into; train with recipe private, clustered or shared_private"
        )
    if name in model.plan.blocks:
        raise InputError(f"the plan has a block named '{name}' already; choose another task name")
    return model.plan.with_block(name, Block(rank=rank, tasks=(name,)))


def _read_head(path: Path, model: MultiTaskModel, task: Task) -> dict[str, Tensor]:
    if model.is_language_model:
        raise InputError(f"{task}: a language model has no heads, so {path} has no place; drop it")
    return head_of(load_tensors(path), model, task, str(path))


def head_of(
    tensors: dict[str, Tensor], model: MultiTaskModel, task: Task, where: str
) -> dict[str, Tensor]:
    """Return a head's tensors, ``weight`` (C, d) and ``bias`` (C,), by a model's names.

    Raises:
        InputError: if one is missing or of another shape.
    """
    classes, width = task.num_outputs, model.backbone.config.get_text_config().hidden_size
    for key, shape in (("weight", (classes, width)), ("bias", (classes,))):
        if key not in tensors:
            raise InputError(f"{where} has no tensor '{key}'; a head holds weight and bias")
        if tuple(tensors[key].shape) != shape:
            raise InputError(
                f"{where}: '{key}' has shape {tuple(tensors[key].shape)}, task '{task.name}' on "
                f"this model needs {shape}"
            )
    head = with_unit(task, tensors["weight"], tensors["bias"])
    return {f"heads/{task.name}/{key}": tensor for key, tensor in head.items()}


def fitting(
    adapter: PeftAdapter, model: MultiTaskModel, source: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the factors under our names; a model with a head puts its backbone's name before."""
    prefix = f"{model.backbone.base_model_prefix}."
    layers, found = model.attached.layers, {}
    for name, (A, B) in adapter.factors.items():
        names = name, name.removeprefix(prefix), prefix + name
        ours = next((known for known in names if known in layers), None)
        if ours is None:
            raise InputError(
                f"{source} adapts module '{name}', which this model does not"
                f"{nearest(name, layers)} (model.target_modules decides)"
            )
        shape = (layers[ours].out_features, layers[ours].in_features)
        if (B.shape[0], A.shape[1]) != shape:
            raise InputError(
                f"{source}: module '{name}' is a map of shape {(B.shape[0], A.shape[1])}, the base "
                f"model's is {shape}; the adapter belongs to another base model"
            )
        found[ours] = A, B
    return found


def block_of(
    model: MultiTaskModel, block: str, factors: dict[str, tuple[Tensor, Tensor]], rank: int
) -> dict[str, Tensor]:
    """Return the new block's tensors by name, such that its fold is the adapter's update."""
    tensors: dict[str, Tensor] = {}
    for name, layer in model.attached.layers.items():
        nothing = torch.zeros(1, layer.in_features), torch.zeros(layer.out_features, 1)
        A, B = pad(*factors.get(name, nothing), rank)
        tensors[f"{block}/{name}/A"], tensors[f"{block}/{name}/B"] = A, B / layer.scale
        tensors[f"{block}/{name}/B0"] = torch.zeros_like(B)  # where the init has an offset
    return tensors


@torch.no_grad()
def _rebuild(
    model: MultiTaskModel, tasks: tuple[Task, ...], plan: Plan | None, given: dict[str, Tensor]
) -> MultiTaskModel:
    """Build anew around the bare backbone; tensors come from ``given``, else from the old model."""
    old = model.state_tensors() | given
    eject(model.backbone, model.attached.layers)
    model.readout.close()
    new = MultiTaskModel(
        model.backbone,
        model.pooling,
        tasks,
        recipe=model.recipe,
        plan=plan,
        config=model.model_config,
        loss_mean=model.loss_mean,
        seed=model.seed,
        start=Start(fills=model.recipe.init.statistics == "none"),
    )
    new.base_fingerprint = model.base_fingerprint  # a backbone that was trained has another now
    if any(layer.A0 for layer in model.attached.layers.values()):
        for layer in new.attached.layers.values():
            if not layer.A0:
                layer.freeze_offset()
    for name, tensor in new.state_tensors().items():
        if name in old:
            tensor.copy_(old[name])
    return new.to(model.device).train(model.training)
