"""Base models whose linear maps are packed in four or eight bits by bitsandbytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from coadapt._errors import InputError
from coadapt.adapters.quantized import misread_on_cpu, settle, unpack

METHOD = "bitsandbytes"


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the linear maps of a frozen base model are packed; the words of ``BitsAndBytesConfig``.

    What computes is ``model.dtype``; embeddings, norms and the vocabulary's head stay as they are.

    Args:
        load_in_4bit: sixteen values with a scale a block of 64 entries (QLoRA, arXiv 2305.14314).
        load_in_8bit: whole numbers with a scale a row (LLM.int8(), arXiv 2208.07339). What a map
            reads is packed too, on accelerators always, on a CPU in evaluation.
        bnb_4bit_quant_type: which sixteen values. transformers would take ``fp4``; ``nf4`` is the
            paper's, for weights that look normally distributed.
        bnb_4bit_use_double_quant: pack the blocks' scales as well, 0.37 bits a weight less.
        llm_int8_threshold: columns of a map's input with a larger absolute entry are not packed.
        llm_int8_skip_modules: names of maps that are left as they are, of either width; None for
            the vocabulary's head.
        quant_method: the one method that there is.
    """

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: tuple[str, ...] | None = None
    quant_method: Literal["bitsandbytes"] = METHOD

    def __post_init__(self) -> None:
        """Check that one width is asked for, and nothing that the other one has."""
        if self.load_in_4bit == self.load_in_8bit:
            found = "both" if self.load_in_4bit else "neither"
            raise InputError(
                f"quantization has {found} of load_in_4bit and load_in_8bit; set one to true"
            )
        if self.load_in_8bit and (
            self.bnb_4bit_use_double_quant or self.bnb_4bit_quant_type != "nf4"
        ):
            raise InputError("quantization: bnb_4bit_* have no effect with load_in_8bit; drop them")
        if self.load_in_4bit and self.llm_int8_threshold != 6.0:
            raise InputError(
                "quantization: llm_int8_threshold has no effect with load_in_4bit; drop it"
            )
        if not self.llm_int8_threshold >= 0:
            raise InputError(
                "quantization: llm_int8_threshold must be at least 0 (0 packs all columns), not "
                f"{self.llm_int8_threshold}"
            )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``transformers.BitsAndBytesConfig``."""
        skipped = self.llm_int8_skip_modules
        common = {"llm_int8_skip_modules": None if skipped is None else list(skipped)}
        if self.load_in_8bit:
            return {"load_in_8bit": True, "llm_int8_threshold": self.llm_int8_threshold, **common}
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.bnb_4bit_quant_type,
            "bnb_4bit_use_double_quant": self.bnb_4bit_use_double_quant,
            **common,
        }


def quantized_arguments(
    wanted: Quantization | None, hf_config: Any, name: str
) -> dict[str, Any] | None:
    """Return what ``from_pretrained`` takes for a packed model, or None for a plain one.

    The weights are read in float32, so that what they are packed into depends on the checkpoint
    alone and not on the dtype that a machine computes in.

    Args:
        wanted: what the configuration asks for.
        hf_config: the model's own configuration.
        name: the model's, for errors.

    Raises:
        InputError: if the model is packed already and more is asked for, or in a way that is not
            known here; or if bitsandbytes is not there.
    """
    found = getattr(hf_config, "quantization_config", None)
    if wanted is None and found is None:
        return None
    if found is not None:
        plain = found if isinstance(found, dict) else found.to_dict()
        method = str(plain.get("quant_method", "no method that is named"))
        if method != METHOD:
            raise InputError(
                f"model '{name}' is quantised in its own folder by {method}, and coadapt reads "
                f"weights that {METHOD} packed; take the model in full precision, and set "
                "model.quantization: {load_in_4bit: true}"
            )
        if wanted is not None:
            width = 4 if plain.get("load_in_4bit") else 8
            raise InputError(
                f"model '{name}' is quantised in its own folder ({width} bits by {method}); drop "
                "model.quantization, or take the model in full precision"
            )
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"a quantised model ('{name}') needs {METHOD}: pip install 'coadapt[quantized]'"
        )
    arguments: dict[str, Any] = {"dtype": torch.float32}
    if wanted is not None:
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(**wanted.arguments())
    return arguments


def settle_model(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Bring a packed model that was read in float32 to the dtype that it is to compute in.

    Args:
        model: as transformers loaded it by :func:`quantized_arguments`.
        dtype: bfloat16 or float32.

    Raises:
        InputError: if bitsandbytes would compute something else than what it packed.
    """
    if wrong := misread_on_cpu(model):
        maps = sorted({name.rpartition(".")[2] for name in wrong})
        raise InputError(
            f"bitsandbytes misreads {len(wrong)} maps of four bits on a CPU, whose number of "
            f"inputs is no multiple of 64 ({', '.join(maps)}); load in 8 bits, or leave them out: "
            f"model.quantization.llm_int8_skip_modules: [lm_head, {', '.join(maps)}]"
        )
    settle(model, dtype)
    for tensor in _unpacked(model):
        tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype


def _unpacked(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield the floats of a checkpoint that were not packed, but for those to keep in float32."""
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    saved = model.state_dict().keys()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name in saved and tensor.is_floating_point() and kept.isdisjoint(name.split(".")):
            yield tensor


def unpack_model(model: PreTrainedModel) -> PreTrainedModel:
    """Make a packed model the plain float32 one of the same numbers, to be saved as any other."""
    unpack(model)
    found: Any = model
    # The marks by which transformers would save it as packed.
    found.hf_quantizer.remove_quantization_config(model)
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if mark in vars(model):
            delattr(model, mark)
    # One that lay packed would be packed again on saving, for which there is no operation.
    conversions = getattr(model, "_weight_conversions", None) or ()
    found._weight_conversions = [one for one in conversions if not _is_packing(one)]
    return model.float()


def _is_packing(conversion: Any) -> bool:
    operations = getattr(conversion, "operations", ())
    return any(type(one).__module__.endswith(".bitsandbytes") for one in operations)
