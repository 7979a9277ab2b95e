"""Runs of the toy suite on the tiny BERT of conftest.py, and how two of them are compared."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from coadapt.config import to_plain
from coadapt.fitting import train
from coadapt.recipes import RECIPES
from coadapt.runs import Run
from coadapt.training import MultiTaskTrainer

# The Trainer collects garbage when it starts, which takes as long as the training of a toy.
gc.freeze()

# Eight steps an epoch; nothing falls together: neither saves nor log lines with an epoch's end.
TRAINING = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 7,
    "gradient_accumulation_steps": 2,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 3,
    "logging_steps": 5,
    "save_strategy": "steps",
    "save_steps": 3,
    "use_cpu": True,
}
QUICK = {"max_steps": 2, "use_cpu": True}
# Of what `train` in result.json holds, all that is no measurement of the machine.
EXACT = ("steps", "epochs", "tokens", "trainable", "updates", "rows_an_epoch", "padding")


def model_of(folder: Any, **config: Any) -> dict[str, Any]:
    """Return the configuration of the tiny BERT, in float32."""
    return {
        "name": str(folder),
        "dtype": "float32",
        "max_length": 64,
        "backbone_dropout": False,
        **config,
    }


def recipe_of(name: str, **structure: Any) -> dict[str, Any]:
    """Return a recipe's plain data with some fields of its structure replaced."""
    recipe = to_plain(RECIPES[name].recipe)
    return {**recipe, "structure": {**recipe["structure"], **structure}}


def train_toy(model: Any, suite: Any, output: Path, recipe: Any = "lora", **options: Any) -> Run:
    """Train a model, or the one in a folder, in two steps unless told otherwise."""
    model = model if isinstance(model, dict) else model_of(model)
    return train(model, suite, recipe, output=output, **{"training": QUICK, **options})


def train_well(folder: Any, suite: Any, output: Path, **structure: Any) -> Run:
    """Train private adapters until every task has learnt its training rows, mostly."""
    return train(
        model_of(folder, pooling="mean"),
        suite,
        recipe_of("private", **structure),
        output=output,
        budget=16,
        training={"max_steps": 80, "learning_rate": 3e-2, "use_cpu": True},
    )


def prefer_step(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let checkpoints count as the better the nearer they are to a step, whatever they score."""

    def evaluate(self: MultiTaskTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = original(self, *args, **kwargs)
        return {**metrics, "eval_overall": -abs(self.state.global_step - step)}

    original = MultiTaskTrainer.evaluate
    patch.setattr(MultiTaskTrainer, "evaluate", evaluate)


def log_of(run: Path, key: str = "loss") -> dict[int, dict[str, Any]]:
    """Return the lines of metrics.jsonl that have ``key``, by step; none may come twice."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if key in line]
    by_step = {line["step"]: line for line in found}
    assert len(by_step) == len(found)
    return by_step


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a folder's safetensors files."""
    return {
        f"{path.name}/{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_tensors(found: Path, wanted: Path, *, tolerance: float = 0.0) -> None:
    """Assert that two adapter folders hold the same, to the bit if nothing else is said."""
    a, b = tensors_of(found), tensors_of(wanted)
    assert a
    assert a.keys() == b.keys()
    for name, tensor in b.items():
        if tolerance:
            torch.testing.assert_close(a[name], tensor, rtol=0, atol=tolerance, msg=name)
        else:
            assert torch.equal(a[name], tensor), name


def assert_same_run(found: Path, wanted: Path) -> None:
    """Assert that two runs ended the same to the bit and logged the same."""
    assert_same_tensors(found / "adapter", wanted / "adapter")
    a, b = result_of(found), result_of(wanted)
    assert a["run"]["status"] == "finished"
    for key in (*EXACT, "best_checkpoint"):
        assert a["train"][key] == b["train"][key], key
    assert log_of(found) == log_of(wanted)
    assert log_of(found, "eval_overall") == log_of(wanted, "eval_overall")


def result_of(run: Path) -> dict[str, Any]:
    """Return the content of result.json."""
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def content_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, to see that nothing in it changed."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
