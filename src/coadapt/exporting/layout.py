"""The files of an export, and the base model they are for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from coadapt._errors import InputError
from coadapt._files import MANIFEST, read_json, save_tensors, write_json
from coadapt._version import __version__
from coadapt.assets import resolve_model
from coadapt.backbone import ModelConfig, ModelKind, quiet_loading
from coadapt.config import to_plain
from coadapt.heads import without_unit
from coadapt.model import MultiTaskModel
from coadapt.quantization import quantized_arguments, unpack_model
from coadapt.tasks import Task

ROUTES = "routes.json"
CARD = "README.md"
ADAPTERS = "adapters"
HEADS = "heads"
MODELS = "models"
FORMAT = 1

# The class of transformers that loads a base model as this package does.
AUTO_CLASSES: dict[ModelKind, str] = {
    "encoder": "AutoModel",
    "decoder": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "image-text": "AutoModelForImageTextToText",
}


def check_target(folder: Path) -> Path:
    """Return the absolute folder to write; it must be new, empty or an earlier export.

    Raises:
        InputError: if it is a file, or holds anything that no export wrote.
    """
    folder = folder.resolve()
    if not folder.exists():
        return folder
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another output")
    if not any(folder.iterdir()):
        return folder
    if not (folder / ROUTES).is_file() or not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is not empty and no export of coadapt; choose another output")
    written = {*read_json(folder / MANIFEST), MANIFEST}
    for path in folder.rglob("*"):
        if path.is_file() and str(path.relative_to(folder)) not in written:
            raise InputError(
                f"{folder} would be replaced, but {path} in it is no part of the earlier export; "
                "move it away or choose another output"
            )
    return folder


def route_of(model: MultiTaskModel, task: Task) -> dict[str, Any]:
    """Return what a server needs to know about a task besides where its weights are.

    Of every task ``model_kind``, ``kind``, ``labels``, ``text_columns``, ``prompt`` (a template, or
    null where the columns are the texts), ``pooling`` and ``max_length``. Of a language model's
    also ``chat``, ``system``, ``messages``, ``delimiter`` (as it is between prompt and answer, if
    the prompt does not end in white space), ``options``, ``words`` (of each label) and
    ``generation``; null or empty where there is no such thing; and ``image``, the column of the
    picture, where there is one.
    """
    config = model.model_config
    route = {
        "model_kind": model.kind,
        "kind": task.kind,
        "labels": list(task.labels),
        "text_columns": list(task.columns),
        "prompt": task.prompt,
        "pooling": model.pooling,
        "max_length": config.max_length,
    }
    if not model.is_language_model:
        return route
    words = task.words or tuple(str(label) for label in task.labels)
    plain = "\n".join(f"{{{column}}}" for column in task.columns)
    return {
        **route,
        **({"image": task.image} if task.image else {}),
        "prompt": None if task.messages else task.prompt or plain,
        "chat": config.chat,
        "system": task.system,
        "messages": task.messages,
        "delimiter": "" if config.chat or model.kind == "encoder-decoder" else task.delimiter,
        "options": to_plain(task.options) or None,
        "words": list(words) if task.kind == "classification" else [],
        "generation": to_plain(task.generation) if task.kind == "generation" else None,
    }


def write_routes(folder: Path, model: MultiTaskModel, routes: Mapping[str, dict[str, Any]]) -> None:
    """Write routes.json: which task goes where, and on which base model."""
    data = {
        "format": FORMAT,
        "coadapt": __version__,
        "base": model.model_config.name,
        "base_fingerprint": model.base_fingerprint,
        "tasks": dict(routes),
    }
    write_json(folder / ROUTES, data)


def save_head(model: MultiTaskModel, task: str, folder: Path) -> str:
    """Write a task's head, ``weight`` (C, d) and ``bias`` (C,); return its path in ``folder``."""
    (folder / HEADS).mkdir(exist_ok=True)
    head = plain_head(model, model.tasks[model.task_id(task)])
    save_tensors(folder / HEADS / f"{task}.safetensors", head)
    return f"{HEADS}/{task}.safetensors"


def plain_head(model: MultiTaskModel, task: Task) -> dict[str, Tensor]:
    """Return a head in float32, weight (C, d) and bias (C,), in the labels' own unit."""
    state = model.state_tensors()
    weight, bias = (state[f"heads/{task.name}/{key}"].float() for key in ("weight", "bias"))
    return without_unit(task, weight, bias)


def stock_class(kind: ModelKind) -> Any:
    """Return the class that loads a base model of a kind."""
    return getattr(transformers, AUTO_CLASSES[kind])


def load_fresh(auto_class: Any, config: ModelConfig, **kwargs: Any) -> PreTrainedModel:
    """Load the base model anew, in float32, with its own dropout and in evaluation mode.

    A quantised one becomes the plain model of the numbers that its packed weights stand for.

    Args:
        auto_class: one of transformers' auto classes.
        config: names the model.
        kwargs: for its ``from_pretrained``.
    """
    # What the checkpoint lacks (a head, a pooler) is drawn at random, and replaced or not used.
    path, trust = resolve_model(config.name), config.trust_remote_code
    hf_config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    quantized = quantized_arguments(config.quantization, hf_config, config.name)
    plain = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": trust}
    with quiet_loading(), torch.random.fork_rng(devices=[]):
        model = auto_class.from_pretrained(path, **plain | (quantized or {}), **kwargs)
    if quantized is not None:
        unpack_model(model)
    return model.eval()
