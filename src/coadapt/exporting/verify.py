"""Whether what was exported is what was trained."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModel

from coadapt._errors import InputError
from coadapt._files import load_tensors, read_json
from coadapt.backbone import Pooling, pool
from coadapt.evaluation import Encoded, predict_outputs
from coadapt.exporting.layout import ROUTES, load_fresh
from coadapt.model import MultiTaskModel, build_model
from coadapt.tasks.render import Collator

_BATCH_SIZE = 64


def verify_peft(
    model: MultiTaskModel, tokenizer: Any, folder: str | Path, encoded: Mapping[str, Encoded]
) -> dict[str, float]:
    """Load an export with stock PEFT and compare its logits with the model's, in float32.

    Args:
        model: the model that was exported, of any dtype; a float32 copy of it is compared.
        tokenizer: its tokenizer.
        folder: what :func:`export_peft` wrote.
        encoded: rows of each task to compare on, as :func:`coadapt.tasks.render.encode` makes them.

    Returns:
        For each task the largest absolute difference of any logit.

    Raises:
        InputError: if the folder is no PEFT export, or lacks a task.
    """
    folder = Path(folder)
    routes = read_json(folder / ROUTES)["tasks"]
    reference, collate = in_float32(model), Collator(tokenizer)
    differences: dict[str, float] = {}
    loaded: tuple[str | None, nn.Module] | None = None
    for task in sorted(encoded, key=lambda name: str(routes.get(name, {}).get("adapter"))):
        if task not in routes or "head" not in routes[task]:
            raise InputError(f"{folder} has no adapter and head for task '{task}'")
        adapter = routes[task]["adapter"]
        if loaded is None or loaded[0] != adapter:
            loaded = adapter, _stock(model, folder, adapter)
        head = load_tensors(folder / routes[task]["head"])
        stock = _logits(loaded[1], head, collate, encoded[task], model.pooling)
        own = predict_outputs(reference, collate, encoded[task], task)
        differences[task] = float(np.abs(stock - own).max(initial=0.0))
    return {task: differences[task] for task in encoded}


@torch.no_grad()
def _logits(
    stock: nn.Module, head: dict[str, Tensor], collate: Collator, encoded: Encoded, pooling: Pooling
) -> np.ndarray:
    """Return (n, C) logits of a model without head and a head beside it."""
    found = np.zeros((len(encoded), len(head["bias"])))
    for start in range(0, len(encoded), _BATCH_SIZE):
        rows = encoded[start : start + _BATCH_SIZE]
        batch = collate([{**row, "task_id": 0, "label": 0.0} for row in rows])
        del batch["labels"], batch["task_ids"]
        pooled = pool(stock(**batch), batch["attention_mask"], pooling)
        logits = pooled @ head["weight"].T + head["bias"]
        found[start : start + len(rows)] = logits.numpy()
    return found


def _stock(model: MultiTaskModel, folder: Path, adapter: str | None) -> nn.Module:
    base = load_fresh(AutoModel, model.model_config)
    if adapter is None:
        return base
    with warnings.catch_warnings():
        # PEFT asks transformers 5.23 for an attribute under its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return PeftModel.from_pretrained(base, str(folder / adapter)).eval()


def in_float32(model: MultiTaskModel) -> MultiTaskModel:
    """Return the model, or a float32 copy of it on the CPU with a base model of its own."""
    if model.backbone.dtype == torch.float32 and model.device.type == "cpu":
        return model
    copy = build_model(
        replace(model.model_config, dtype="float32"),
        model.tasks,
        model.recipe,
        model.plan,
        loss_mean=model.loss_mean,
        seed=model.seed,
    )
    copy.load_state_tensors(model.state_tensors(), "the model")
    return copy.eval()
