"""LLaMA-Factory's training file as train.yaml and suite.yaml, with what did not carry over."""

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coadapt._errors import InputError
from coadapt._files import write_text
from coadapt.config import dump_yaml, load_yaml

# What LLaMA-Factory takes where a file says nothing, as its arguments' classes have it.
DEFAULTS: dict[str, Any] = {
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_dropout": 0.0,
    "lora_target": "all",
    "cutoff_len": 2048,
    "dataset_dir": "data",
}
_ATTENTION = {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}
# Of running, not of what is trained; `coadapt train` has its own.
_RUNNING = {
    "do_train": "coadapt train trains",
    "do_eval": "coadapt evaluate scores",
    "do_predict": "coadapt predict predicts",
    "predict_with_generate": "the kind of a task decides how it is answered",
    "output_dir": "--output of coadapt train",
    "overwrite_output_dir": "a run's folder is never overwritten; --resume goes on",
    "plot_loss": "coadapt report draws it",
    "overwrite_cache": "nothing is cached",
    "preprocessing_num_workers": "one process reads the data",
}
_OURS = ("output_dir", "seed", "do_train", "do_eval", "do_predict")  # also TrainingArguments'


@dataclass(kw_only=True)
class Conversion:
    """What a file became.

    Attributes:
        train: content of train.yaml.
        suite: content of suite.yaml.
        carried: ``key: value`` of theirs, and ours.
        changed: what is not quite the same, and how.
        left: ``key: value`` that has no counterpart, and why.
    """

    train: dict[str, Any] = field(default_factory=dict)
    suite: dict[str, Any] = field(default_factory=dict)
    carried: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report."""
        told = []
        for title, found in (
            ("carried over", self.carried),
            ("changed", self.changed),
            ("left out", self.left),
        ):
            told += [f"{title}:", *(f"  {line}" for line in found)] if found else []
        return told


def convert(file: Path) -> Conversion:
    """Translate a LLaMA-Factory training file.

    Args:
        file: YAML, as ``llamafactory-cli train`` takes it.

    Raises:
        InputError: if it is no such file, or trains what coadapt does not: preferences, rewards,
            pre-training, frozen layers.
    """
    theirs = load_yaml(file)
    if "model_name_or_path" not in theirs or "dataset" not in theirs:
        raise InputError(
            f"{file}: no 'model_name_or_path' or no 'dataset', so it is no training file of "
            "LLaMA-Factory"
        )
    stage = theirs.get("stage", "sft")
    if stage != "sft":
        raise InputError(
            f"{file}: stage is '{stage}'; coadapt trains supervised tasks (sft) and has neither "
            "preferences nor rewards nor pre-training"
        )
    made, rest = Conversion(), dict(theirs)
    rest.pop("stage", None)
    made.carried.append(f"stage: {stage}")
    _model(made, rest)
    _data(made, rest, file)
    _recipe(made, rest, file)
    _training(made, rest)
    made.left += [
        f"{key}: {value} ({_RUNNING.get(key, 'coadapt has no such option')})"
        for key, value in rest.items()
    ]
    return made


def _take(made: Conversion, rest: dict[str, Any], key: str, ours: str) -> Any:
    """Return a value of theirs, or LLaMA-Factory's own; note where it went."""
    if key in rest:
        value = rest.pop(key)
        made.carried.append(f"{key}: {value} -> {ours}")
        return value
    if key in DEFAULTS:
        made.carried.append(f"{key} is not set: {DEFAULTS[key]}, LLaMA-Factory's own -> {ours}")
        return DEFAULTS[key]
    return None


def _model(made: Conversion, rest: dict[str, Any]) -> None:
    model = {
        "name": _take(made, rest, "model_name_or_path", "model.name"),
        "max_length": _take(made, rest, "cutoff_len", "model.max_length"),
        "trust_remote_code": _take(made, rest, "trust_remote_code", "model.trust_remote_code"),
        "prompt_loss": _take(made, rest, "train_on_prompt", "model.prompt_loss"),
    }
    if rest.get("bf16"):
        model["dtype"] = "bfloat16" if _take(made, rest, "bf16", "model.dtype") else None
    attention = rest.get("flash_attn", "auto")
    if attention in _ATTENTION:
        _take(made, rest, "flash_attn", f"model.attn_implementation: {_ATTENTION[attention]}")
        model["attn_implementation"] = _ATTENTION[attention]
    bits = rest.get("quantization_bit")
    if bits in (4, 8):
        _take(made, rest, "quantization_bit", "model.quantization")
        model["quantization"] = {f"load_in_{bits}bit": True}
    template = rest.pop("template", None)
    model["chat"] = template not in (None, "empty", "default")
    if model["chat"]:
        made.changed.append(
            f"template: {template} -> model.chat: true. The tokenizer's own chat template makes "
            "the prompts, which may differ from LLaMA-Factory's in system text and spaces; "
            "`coadapt check` shows a row as the model sees it"
        )
    made.train["model"] = {key: value for key, value in model.items() if value is not None}


def _data(made: Conversion, rest: dict[str, Any], file: Path) -> None:
    folder = Path(_take(made, rest, "dataset_dir", "tasks.*.data"))
    listed = _take(made, rest, "dataset", "a task each")
    names = listed if isinstance(listed, list) else [n.strip() for n in str(listed).split(",")]
    where = folder if folder.is_absolute() else _beside(folder, file)
    made.suite["tasks"] = {
        re.sub(r"[^A-Za-z0-9_.-]+", "_", name): {
            "kind": "generation",
            "data": f"llama_factory:{where}#{name}",
        }
        for name in names
    }
    made.changed.append(
        "a conversation's last answer is trained on; LLaMA-Factory trains on the earlier ones too, "
        "unless mask_history is set"
    )
    if rest.get("mask_history"):
        _take(made, rest, "mask_history", "as here always")
        made.changed.pop()
    if (rows := _take(made, rest, "max_samples", "suite.max_rows")) is not None:
        made.suite["max_rows"] = rows
    held = rest.pop("val_size", None)
    share = held if isinstance(held, float) and 0 < held < 1 else 0.0
    made.suite["split"] = {"validation": share, "test": 0.1}
    made.changed.append(
        f"val_size: {held} -> split: {{validation: {share}, test: 0.1}}: coadapt scores on test "
        "rows, which are taken out of the data by a hash of the text; give splits of your own "
        "for others"
    )


def _beside(folder: Path, file: Path) -> Path:
    """Return where the data lie: LLaMA-Factory looks from where it is started."""
    for start in (Path.cwd(), file.parent, *file.absolute().parents):
        if (start / folder).is_dir():
            return (start / folder).absolute()
    return (Path.cwd() / folder).absolute()


def _recipe(made: Conversion, rest: dict[str, Any], file: Path) -> None:
    kind = _take(made, rest, "finetuning_type", "recipe")
    if kind == "full":
        made.train["recipe"] = "full"
        return
    if kind != "lora":
        raise InputError(f"{file}: finetuning_type is '{kind}'; coadapt knows lora and full")
    rank = _take(made, rest, "lora_rank", "budget")
    alpha = rest.pop("lora_alpha", None)
    alpha = 2 * rank if alpha is None else alpha
    root = bool(rest.pop("use_rslora", False))
    scale = alpha / rank**0.5 if root else alpha / rank
    told = f"lora_alpha: {alpha}{', use_rslora' if root else ''}"
    made.carried.append(f"{told} -> recipe.structure.scale: {scale:g}")
    dora = bool(rest.pop("use_dora", False))
    structure = {
        "kind": "dora" if dora else "single",
        "scale": scale,
        "dropout": _take(made, rest, "lora_dropout", "recipe.structure.dropout"),
    }
    if dora:
        made.carried.append("use_dora: True -> recipe.structure.kind: dora")
    elif structure["dropout"]:
        structure["dropout_at"] = "x"  # as PEFT has it
    recipe: dict[str, Any] = {"structure": structure, "sharing": "shared"}
    if rest.pop("pissa_init", False):
        made.carried.append("pissa_init: True -> recipe.init.kind: pissa")
        recipe["init"] = {"kind": "pissa"}
    target = _take(made, rest, "lora_target", "model.target_modules")
    named = target if isinstance(target, list) else [t.strip() for t in str(target).split(",")]
    made.train["model"]["target_modules"] = "all-linear" if named == ["all"] else named
    made.train |= {"recipe": recipe, "budget": rank}


def _training(made: Conversion, rest: dict[str, Any]) -> None:
    """Hand over what transformers' TrainingArguments know, which both take."""
    from transformers import TrainingArguments

    known = {f.name for f in dataclasses.fields(TrainingArguments)} - set(_OURS)
    training = {}
    for key in [key for key in rest if key in known and key not in _RUNNING]:
        training[key] = _take(made, rest, key, f"training.{key}")
    if (seed := _take(made, rest, "seed", "seed")) is not None:
        made.train["seed"] = seed
    if packing := _take(made, rest, "packing", "packing"):
        made.train["packing"] = packing
    made.train["training"] = training


def write_conversion(made: Conversion, source: Path, folder: Path) -> list[Path]:
    """Write suite.yaml and train.yaml, the report at the head of the latter.

    Raises:
        InputError: if one is there already.
    """
    paths = [folder / "suite.yaml", folder / "train.yaml"]
    for path in paths:
        if path.exists():
            raise InputError(f"{path} is there already; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    suite = _near(made.suite, folder)
    write_text(paths[0], f"# The data of {source.name}.\n{dump_yaml(suite)}")
    head = "".join(f"# {line}\n" for line in [f"From {source.name}.", *made.lines()])
    write_text(paths[1], head + dump_yaml({"suite": "suite.yaml", **made.train}))
    return paths


def _near(suite: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the suite with paths as seen from its folder, where that is no long way."""
    tasks = {}
    for name, task in suite["tasks"].items():
        where, _, entry = task["data"].removeprefix("llama_factory:").partition("#")
        near = os.path.relpath(where, folder.absolute())
        where = where if near.startswith(os.path.join(*[os.pardir] * 3)) else near
        tasks[name] = {**task, "data": f"llama_factory:{where}#{entry}"}
    return {**suite, "tasks": tasks}
