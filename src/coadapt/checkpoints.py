"""Training state on disk: safetensors and JSON, whole or not there."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coadapt._errors import InputError
from coadapt._files import (
    check_manifest,
    is_whole,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "training_state.json"

_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(run: Path) -> Path | None:
    """Return the newest whole checkpoint of a run; what a kill left unfinished is ignored."""
    if not run.is_dir():
        return None
    numbered = [(int(m[1]), p) for p in run.iterdir() if (m := _NAME.fullmatch(p.name))]
    return next((p for _, p in sorted(numbered, reverse=True) if is_whole(p)), None)


def save_state(folder: Path, optimizer: Any, scheduler: Any, plain: dict[str, Any]) -> None:
    """Write the state of an optimizer and a learning-rate scheduler, and plain data beside them.

    Raises:
        InputError: if one of them keeps something that is neither a tensor nor plain data.
    """
    data = {
        **plain,
        "optimizer": _take_apart(folder, optimizer.state_dict()),
        "scheduler": _as_json(scheduler.state_dict(), "learning-rate scheduler"),
    }
    write_json(folder / STATE, data)


def load_state(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Restore the optimizer and the scheduler of :func:`save_state`."""
    plain = read_json(folder / STATE)
    optimizer.load_state_dict(_put_together(folder, plain["optimizer"]))
    scheduler.load_state_dict(plain["scheduler"])


def _take_apart(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Write an optimizer's tensors and return the rest of its state as plain data."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{key}"] = value
            else:
                numbers[f"{index}/{key}"] = value
    save_tensors(folder / OPTIMIZER, tensors)
    plain = {"numbers": numbers, "param_groups": state["param_groups"]}
    return _as_json(plain, "optimizer")


def _put_together(folder: Path, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict that :func:`_take_apart` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**load_tensors(folder / OPTIMIZER), **plain["numbers"]}.items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": plain["param_groups"]}


def _as_json(data: Any, what: str) -> Any:
    try:
        return json.loads(json.dumps(data))
    except TypeError as error:
        raise InputError(
            f"the {what}'s state cannot be saved as safetensors and JSON ({error}); use another one"
        ) from error


def save_random_state(folder: Path, rank: int) -> None:
    """Write the state of Python's, NumPy's and torch's global generators of one process."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda/{index}"] = state
    save_tensors(folder / f"random_{rank}.safetensors", tensors)
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  (transformers seeds it)
    numpy_state = [name, np.asarray(keys).tolist(), position, has_gauss, cached]
    write_json(folder / f"random_{rank}.json", {"python": random.getstate(), "numpy": numpy_state})


def load_random_state(folder: Path, rank: int) -> None:
    """Restore what :func:`save_random_state` wrote.

    Raises:
        InputError: if the checkpoint is of a run with fewer processes.
    """
    path = folder / f"random_{rank}.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no random state of process {rank}; resume on as many processes"
        )
    tensors, plain = load_tensors(folder / f"random_{rank}.safetensors"), read_json(path)
    version, keys, gauss = plain["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(plain["numpy"]))  # noqa: NPY002
    torch.set_rng_state(tensors["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(
            [tensors[f"cuda/{i}"] for i in range(torch.cuda.device_count())]
        )


def check_checkpoint(folder: Path) -> None:
    """Raise InputError unless the folder is a whole checkpoint with unchanged files."""
    if not is_whole(folder):
        raise InputError(f"{folder} is no whole checkpoint")
    check_manifest(folder)
