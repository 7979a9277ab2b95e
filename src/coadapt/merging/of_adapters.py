"""Merging PEFT LoRA folders that were trained elsewhere; the base model is not needed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from coadapt._errors import InputError
from coadapt._files import new_folder, read_json, save_tensors, write_json
from coadapt.exporting.peft_format import CONFIG_FILE, TENSORS_FILE, pad, rank_of
from coadapt.importing import read_peft_adapter
from coadapt.merge_methods import Merge
from coadapt.merging.combining import Merged, merge_folds

# What has to be told anew of the merged adapter; the rest is as the first one's.
_PLAIN: dict[str, Any] = {
    "lora_dropout": 0.0,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "init_lora_weights": True,
    "eva_config": None,
    "modules_to_save": None,
    "inference_mode": True,
}


def merge_adapters(
    folders: Sequence[str | Path],
    output: str | Path,
    merge: Merge,
    seed: int = 0,
    *,
    names: Sequence[str] | None = None,
) -> Merged:
    """Write a PEFT LoRA folder that is merged of others, for stock PEFT to load.

    Every module has the same rank, zeros fill the smaller ones, and ``lora_alpha`` equals ``r``, so
    the scale is 1. Task arithmetic is PEFT's ``add_weighted_adapter`` with ``cat`` and equal
    weights. Whole modules that were saved beside the factors, such as a classifier, are left out.

    Args:
        folders: each with ``adapter_config.json`` and ``adapter_model.safetensors``.
        output: the new folder.
        merge: how.
        seed: of DARE's masks.
        names: of the adapters, on which the masks depend; the folders' names if None.

    Raises:
        InputError: if the output is not new, a folder holds no plain LoRA, two have one name, or
            they name different base models or adapt different modules.
    """
    paths, output = [Path(folder) for folder in folders], Path(output)
    if not paths:
        raise InputError("there is no adapter to merge; give at least one folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already; choose another output")
    names = [path.resolve().name for path in paths] if names is None else list(names)
    folds = [read_peft_adapter(path, factors_only=True).factors for path in paths]
    configs = [read_json(path / CONFIG_FILE) for path in paths]
    _refuse_other_bases(configs, paths)
    merged = merge_folds(folds, names, merge, seed)
    notes = _notes(configs, names)
    with new_folder(output) as temporary:
        rank = rank_of(merged.factors)
        write_json(temporary / CONFIG_FILE, _config(configs, rank))
        tensors: dict[str, Tensor] = {}
        for module, factors in merged.factors.items():
            key = f"base_model.model.{module}.lora"
            tensors[f"{key}_A.weight"], tensors[f"{key}_B.weight"] = pad(*factors, rank)
        save_tensors(temporary / TENSORS_FILE, tensors)
    return replace(merged, notes=(*merged.notes, *notes))


def _refuse_other_bases(configs: Sequence[dict[str, Any]], paths: Sequence[Path]) -> None:
    known = [
        (config["base_model_name_or_path"], path)
        for config, path in zip(configs, paths, strict=True)
        if config.get("base_model_name_or_path")
    ]
    for base, path in known:
        if base != known[0][0]:
            raise InputError(
                f"{path} was trained on base model '{base}', {known[0][1]} on '{known[0][0]}'; "
                "merge adapters of one base model (if one is a copy of the other, write the same "
                f"base_model_name_or_path into {CONFIG_FILE})"
            )
    layouts = [bool(config.get("fan_in_fan_out")) for config in configs]
    if len(set(layouts)) > 1:
        odd = paths[layouts.index(not layouts[0])]
        raise InputError(
            f"{odd} and {paths[0]} differ in fan_in_fan_out; merge adapters of one base model"
        )


def _config(configs: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
    """Return the first one's configuration, which finds the modules that all of them adapt."""
    config = {**configs[0], **_PLAIN, "r": rank, "lora_alpha": rank}
    named = [c["base_model_name_or_path"] for c in configs if c.get("base_model_name_or_path")]
    config["base_model_name_or_path"] = named[0] if named else None
    # PEFT adds the heads of some types to modules_to_save, and these are not here.
    if _with_modules(configs) or len({c.get("task_type") for c in configs}) > 1:
        config["task_type"] = None
    return config


def _with_modules(configs: Sequence[dict[str, Any]]) -> list[int]:
    return [index for index, config in enumerate(configs) if config.get("modules_to_save")]


def _notes(configs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    notes = []
    if found := _with_modules(configs):
        told = ", ".join(
            f"{names[index]} ({', '.join(configs[index]['modules_to_save'])})" for index in found
        )
        notes.append(f"whole modules were left out: of {told}; take each task's head from its own")
    unnamed = [
        n for n, c in zip(names, configs, strict=True) if not c.get("base_model_name_or_path")
    ]
    if unnamed and len(names) > 1:
        notes.append(f"no base model is named by {', '.join(unnamed)}; it was not compared")
    return notes
