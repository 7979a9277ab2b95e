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

from coadapt._errors import InputError
from coadapt._files import load_tensors, read_json
from coadapt.backbone import Pooling, is_quantized, pool
from coadapt.evaluation import Encoded, predict_outputs
from coadapt.exporting.layout import ROUTES, load_fresh, stock_class
from coadapt.inits import Start
from coadapt.model import MultiTaskModel, build_model
from coadapt.modes import evaluating
from coadapt.quantization import unpack_model
from coadapt.readouts import LanguageReadout, shifted_right
from coadapt.tasks.language import IGNORED, LanguageCollator
from coadapt.tasks.render import Collator

_BATCH_SIZE = 64
_TEXTS_AT_ONCE = 8  # a stock language model gives logits of the whole vocabulary everywhere


def verify_peft(
    model: MultiTaskModel, tokenizer: Any, folder: str | Path, encoded: Mapping[str, Encoded]
) -> dict[str, float]:
    """Load an export with stock PEFT and compare its logits with the model's, in float32.

    A language model's are compared where the tokens are predicted that it was trained on.

    Args:
        model: the model that was exported, of any dtype; a float32 copy of it is compared.
        tokenizer: its tokenizer.
        folder: what :func:`export_peft` wrote.
        encoded: rows of each task to compare on, as :func:`coadapt.loading.encode_rows` makes them.

    Returns:
        For each task the largest absolute difference of any logit.

    Raises:
        InputError: if the folder is no PEFT export, or lacks a task.
    """
    folder = Path(folder)
    routes = read_json(folder / ROUTES)["tasks"]
    reference = in_float32(model)
    differences: dict[str, float] = {}
    loaded: tuple[str | None, nn.Module] | None = None
    for task in sorted(encoded, key=lambda name: str(routes.get(name, {}).get("adapter"))):
        if task not in routes or "head" not in routes[task]:
            raise InputError(f"{folder} has no adapter and head for task '{task}'")
        adapter = routes[task]["adapter"]
        if loaded is None or loaded[0] != adapter:
            loaded = adapter, _stock(model, folder, adapter)
        if model.pooling is None:
            differences[task] = _difference_of_answers(reference, loaded[1], encoded[task], task)
            continue
        collate, head = Collator(tokenizer), load_tensors(folder / routes[task]["head"])
        stock = _head_logits(loaded[1], head, collate, encoded[task], model.pooling)
        own = predict_outputs(reference, collate, encoded[task], task)
        differences[task] = float(np.abs(stock - own).max(initial=0.0))
    return {task: differences[task] for task in encoded}


@torch.no_grad()
def _difference_of_answers(
    model: MultiTaskModel, stock: nn.Module, encoded: Encoded, task: str
) -> float:
    apart = model.kind == "encoder-decoder"
    collate, largest = LanguageCollator(0, apart=apart), 0.0
    for start in range(0, len(encoded), _TEXTS_AT_ONCE):
        rows = encoded[start : start + _TEXTS_AT_ONCE]
        batch = collate([{**row, "task_id": 0} for row in rows])
        own = answer_logits(model, batch, task)
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "task_ids")}
        if apart:  # which stock models shift for themselves
            inputs["labels"] = batch["labels"]
        found = stock(**inputs).logits[batch["labels"] != IGNORED]
        largest = max(largest, float((found - own).abs().max()))
    return largest


@torch.no_grad()
def answer_logits(model: MultiTaskModel, batch: Mapping[str, Tensor], task: str) -> Tensor:
    """Return (N, V) logits of a language model where a batch has labels, row after row.

    Args:
        model: the model, on the CPU; its mode is restored.
        batch: of :class:`coadapt.tasks.language.LanguageCollator`.
        task: whose blocks to use.
    """
    assert isinstance(model.readout, LanguageReadout)
    inputs: dict[str, Any] = {k: v for k, v in batch.items() if k not in ("labels", "task_ids")}
    if model.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = shifted_right(model.backbone, batch["labels"])
    model.route.set(torch.full((len(batch["labels"]),), model.task_id(task)))
    wanted = batch["labels"] != IGNORED
    with evaluating(model):
        return model.readout.run(model.backbone, {**inputs, "use_cache": False}, wanted)[0]


@torch.no_grad()
def _head_logits(
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
    base = load_fresh(stock_class(model.kind), model.model_config)
    if adapter is None:
        return base
    with warnings.catch_warnings():
        # PEFT asks transformers 5.23 for an attribute under its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return PeftModel.from_pretrained(base, str(folder / adapter)).eval()


def in_float32(model: MultiTaskModel) -> MultiTaskModel:
    """Return the model, or a float32 copy of it on the CPU with a base model of its own.

    The copy of a quantised one is the plain model of the numbers that its packed weights stand for:
    what its run computes, but for the rounding of what an eight-bit map reads.
    """
    quantized = is_quantized(model.model_config)
    if model.backbone.dtype == torch.float32 and model.device.type == "cpu" and not quantized:
        return model
    copy = build_model(
        replace(model.model_config, dtype="float32"),
        model.tasks,
        model.recipe,
        model.plan,
        loss_mean=model.loss_mean,
        seed=model.seed,
        start=Start(fills=False),
    )
    copy.load_state_tensors(model.state_tensors(), "the model")
    if quantized:
        unpack_model(copy.backbone)
    return copy.eval()
