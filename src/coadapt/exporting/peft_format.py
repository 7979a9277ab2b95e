"""One adapter as a stock PEFT LoRA (or DoRA) folder that the plainest reader gets right.

Servers read ``r`` and ``lora_alpha`` and little else, and ignore rank and alpha patterns without a
word. So every module has the same rank (zeros fill the smaller ones) and ``lora_alpha == r``: the
scale is 1, whatever a reader makes of it, and B holds the rest.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft import LoraConfig, TaskType
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from coadapt._files import save_tensors
from coadapt.adapters import AbstractAdapted
from coadapt.backbone import ModelKind

KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

Factors = Mapping[str, tuple[Tensor, Tensor]]

# By which PEFT chooses the class that an adapter is loaded into.
_TASK_TYPES: dict[ModelKind, TaskType] = {
    "encoder": TaskType.FEATURE_EXTRACTION,
    "decoder": TaskType.CAUSAL_LM,
    "encoder-decoder": TaskType.SEQ_2_SEQ_LM,
    "image-text": TaskType.CAUSAL_LM,
}


def pad(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors with zeros up to ``rank``; the product ``B A`` stays what it was.

    Args:
        A: (r, in), r <= rank.
        B: (out, r).
        rank: of the result.
    """
    missing = rank - A.shape[0]
    assert missing >= 0, "a rank is never cut"
    return F.pad(A, (0, 0, 0, missing)), F.pad(B, (0, missing))


def rank_of(factors: Factors) -> int:
    """Return the largest rank of any module."""
    return max(A.shape[0] for A, _ in factors.values())


def write_lora(
    folder: Path,
    factors: Factors,
    rank: int,
    *,
    base: str,
    backbone: nn.Module,
    kind: ModelKind,
    magnitudes: Mapping[str, Tensor] | None = None,
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        folder: to write in.
        factors: ``{module: (A, B)}`` in float32 with everything folded in.
        rank: of every module in the file.
        base: the base model's name.
        backbone: the model that the names refer to, with or without adapters.
        kind: of the backbone.
        magnitudes: of DoRA, ``{module: (out,)}``.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        use_dora=bool(magnitudes),
        fan_in_fan_out=_is_transposed(backbone, factors),
        task_type=_TASK_TYPES[kind],
        base_model_name_or_path=base,
        inference_mode=True,
    )
    # Set afterwards: the constructor makes a set of a list, whose order differs from run to run.
    config.target_modules = target_modules(backbone, list(factors))
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, (A, B) in factors.items():
        key = f"base_model.model.{name}.lora"
        tensors[f"{key}_A.weight"], tensors[f"{key}_B.weight"] = pad(A, B, rank)
        if magnitudes:
            tensors[f"{key}_magnitude_vector"] = magnitudes[name]
    save_tensors(folder / TENSORS_FILE, tensors)


def target_modules(backbone: nn.Module, names: Sequence[str]) -> list[str] | str:
    """Return full names, or a regular expression where PEFT would take a name for more modules.

    PEFT takes every module whose name is one of the list or ends in ``.`` and one of the list.
    """
    wanted = set(names)
    endings = tuple(f".{name}" for name in names)
    others = (name for name, _ in backbone.named_modules() if name not in wanted)
    if any(name.endswith(endings) for name in others):
        return "|".join(re.escape(name) for name in names)
    return list(names)


def _is_transposed(backbone: nn.Module, names: Mapping[str, object]) -> bool:
    return any(isinstance(_base_of(backbone.get_submodule(name)), Conv1D) for name in names)


def _base_of(module: nn.Module) -> nn.Module:
    return module.base if isinstance(module, AbstractAdapted) else module
