"""Export as complete stock models, nothing left to apply.

Of an encoder a sequence classifier a task; of a language model a model for each distinct update.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coadapt._errors import InputError
from coadapt._files import new_folder, write_text
from coadapt.backbone import quiet_loading
from coadapt.exporting.card import export_card, part_card
from coadapt.exporting.grouping import group_tasks
from coadapt.exporting.layout import (
    CARD,
    MODELS,
    check_target,
    load_fresh,
    plain_head,
    route_of,
    stock_class,
    write_routes,
)
from coadapt.exporting.report import ExportReport
from coadapt.exporting.verify import answer_logits, in_float32
from coadapt.model import MultiTaskModel
from coadapt.modes import evaluating
from coadapt.processors import load_processor
from coadapt.tasks import Rows, Task
from coadapt.tasks.language import IGNORED, LanguageCollator
from coadapt.tasks.render import Collator, encode

TOLERANCE = 1e-4
_PROBE = ("one", "a second text, longer than the first", "the third one; 3 of 3?")
_INSTEAD = "or export with --format peft"


def export_merged(
    model: MultiTaskModel, tokenizer: Any, folder: str | Path, *, card_config: str
) -> ExportReport:
    """Write complete stock models, which ``routes.json`` and model cards tell the tasks of.

    Each is the float32 base model with the task's update added to its weights (or with the weights
    that full fine-tuning left), and the tokenizer. The weights of a quantised base model are the
    numbers that it packed, not those of the checkpoint that it was packed from. An encoder gives an
    ``AutoModelForSequenceClassification`` folder a task, with the task's head as its classifier. A
    language model gives an ``AutoModelForCausalLM`` or ``AutoModelForSeq2SeqLM`` folder for each
    distinct update, with the base model's generation settings; tasks whose update is the same
    share it. Before a folder is written, its outputs are compared with the model's.

    Args:
        model: the trained model.
        tokenizer: its tokenizer, saved with every task.
        folder: new, empty, or an earlier export, which is replaced.
        card_config: the resolved configuration as YAML, for the model card.

    Raises:
        InputError: if backbone, pooling and head do not have the form of such a model, naming what
            to change; or the folder holds something else.
    """
    _refuse_other_forms(model)
    folder = check_target(Path(folder))
    reference = in_float32(model)
    folders = {f"{MODELS}/{task}": [task] for task in model.task_names}
    if model.is_language_model:
        folders = group_tasks(model, MODELS)
    model_of = {task: name for name, tasks in folders.items() for task in tasks}
    routes = {
        task.name: {"model": model_of[task.name], **route_of(model, task)} for task in model.tasks
    }
    with new_folder(folder) as temporary:
        for name, tasks in folders.items():
            task = model.tasks[model.task_id(tasks[0])]
            merged = merge_task(reference, task)
            _check_same(reference, merged, tokenizer, task)
            with quiet_loading():  # its progress bar would interrupt whoever draws another
                merged.save_pretrained(temporary / name)
            tokenizer.save_pretrained(temporary / name)
            if model.kind == "image-text":
                load_processor(model.model_config).save_pretrained(temporary / name)
            write_text(temporary / name / CARD, part_card(model, name, routes, card_config))
        write_text(temporary / CARD, export_card(model, routes, card_config))
        write_routes(temporary, model, routes)
    tasks = {task: route["model"] for task, route in routes.items()}
    return ExportReport(folder=folder, format="merged", tasks=tasks)


def _refuse_other_forms(model: MultiTaskModel) -> None:
    structure = model.recipe.structure
    if not structure.mergeable and structure.ships_as not in ("dora", "merged", "none"):
        raise InputError(
            f"structure '{structure.kind}' ships as '{structure.ships_as}' and depends on "
            f"{structure.depends_on}: no single model equals it; keep the run itself, "
            "coadapt.load_run(...).predict(...), or train a recipe that merges (coadapt methods), "
            "such as m_lora or lora"
        )
    if model.is_language_model:
        return
    if model.pooling != "pooler":
        raise InputError(
            f"a merged model needs model.pooling 'pooler' (it classifies the pooler's output), but "
            f"this one pools by '{model.pooling}'; set model.pooling to pooler and train again, "
            f"{_INSTEAD}"
        )
    known = AutoModelForSequenceClassification._model_mapping
    if type(model.backbone.config) not in known:
        kind = model.backbone.config.model_type
        raise InputError(
            f"transformers has no sequence classifier for model type '{kind}'; {_INSTEAD[3:]}"
        )


@torch.no_grad()
def merge_task(model: MultiTaskModel, task: Task) -> PreTrainedModel:
    """Return a stock float32 model that computes what ``model`` does for ``task``.

    Raises:
        InputError: if the stock class has a head of another form.
    """
    if model.is_language_model:
        base = merged = load_fresh(stock_class(model.kind), model.model_config)
    else:
        auto_class = AutoModelForSequenceClassification
        merged = load_fresh(auto_class, model.model_config, **_head_config(task))
        _set_head(model, merged, task)
        base = merged.base_model
    if model.recipe.structure.trains_backbone:
        base.load_state_dict(model.backbone.state_dict())
    for name, layer in model.attached.layers.items():
        _add(base.get_submodule(name), layer.delta(model.task_id(task.name)))
    return merged


def _set_head(model: MultiTaskModel, merged: PreTrainedModel, task: Task) -> None:
    weight, bias = plain_head(model, task).values()
    classifier = getattr(merged, "classifier", None)
    if not isinstance(classifier, nn.Linear) or classifier.weight.shape != weight.shape:
        raise InputError(
            f"{type(merged).__name__} has no single linear 'classifier' on the pooler's output, "
            f"which is what a coadapt head is; {_INSTEAD[3:]}"
        )
    classifier.weight.copy_(weight)
    classifier.bias.copy_(bias)


def _head_config(task: Task) -> dict[str, Any]:
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    names = [str(label) for label in task.labels]
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }


def _add(module: nn.Module, update: Tensor) -> None:
    weight = module.get_parameter("weight")
    weight += update.T if isinstance(module, Conv1D) else update


@torch.no_grad()
def _check_same(model: MultiTaskModel, merged: PreTrainedModel, tokenizer: Any, task: Task) -> None:
    """Compare on a few texts: a class may do more than its parts show."""
    compare = _answers_of_both if model.is_language_model else _classes_of_both
    found, own = compare(model, merged, tokenizer, task)
    difference = float((found - own).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(own.abs().max())):
        raise InputError(
            f"{type(merged).__name__} does not compute what the run does for task '{task.name}' "
            f"(logits differ by {difference:.2g}); {_INSTEAD[3:]}"
        )


def _classes_of_both(
    model: MultiTaskModel, merged: PreTrainedModel, tokenizer: Any, task: Task
) -> tuple[Tensor, Tensor]:
    pairs = _PROBE[::-1] if task.is_pair else None
    rows = Rows(texts=_PROBE, pairs=pairs, labels=torch.zeros(len(_PROBE)).numpy())
    encoded = encode(tokenizer, rows, min(model.model_config.max_length, 32))
    index = model.task_id(task.name)
    batch = Collator(tokenizer)([{**row, "task_id": index, "label": 0.0} for row in encoded])
    del batch["labels"]
    with evaluating(model):
        own = model(**batch)["outputs"][:, : task.num_outputs]
    del batch["task_ids"]
    return merged(**batch).logits, own


def _answers_of_both(
    model: MultiTaskModel, merged: PreTrainedModel, tokenizer: Any, task: Task
) -> tuple[Tensor, Tensor]:
    ids = [tokenizer(text, return_attention_mask=False)["input_ids"] for text in _PROBE]
    batch = LanguageCollator(0)([{"input_ids": row, "labels": row, "task_id": 0} for row in ids])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if model.kind == "encoder-decoder":  # which stock models shift for themselves
        inputs["labels"] = batch["labels"]
    found = merged(**inputs).logits[batch["labels"] != IGNORED]
    return found, answer_logits(model, batch, task.name)
