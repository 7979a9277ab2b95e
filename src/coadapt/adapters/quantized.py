"""Weights as bitsandbytes packs them, and the numbers that they stand for."""

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn

# By the parameter's class, so that the package is imported only where it has been used already.
_FOUR_BITS, _EIGHT_BITS = "Params4bit", "Int8Params"
_TALKS = "bitsandbytes.autograd._functions"


def is_quantized(module: nn.Module) -> bool:
    """Return whether a map's weight is packed by bitsandbytes in four or eight bits."""
    return _kind(module) in (_FOUR_BITS, _EIGHT_BITS)


def _kind(module: nn.Module) -> str:
    # Its own parameter: an adapted layer shows its base map's weight as an attribute.
    return type(module._parameters.get("weight")).__name__


@torch.no_grad()
def dequantized_weight(module: nn.Module) -> Tensor:
    r"""Return the float32 (out, in) matrix that a packed weight stands for.

    Four bits: the code's value times its block's largest absolute entry (QLoRA, arXiv 2305.14314,
    section 2). Eight bits: :math:`W_{ij} = q_{ij} s_i / 127` with s_i the largest absolute entry of
    row i (LLM.int8(), arXiv 2208.07339, section 2). It is made anew at each call and not kept.

    PEFT's ``dequantize_module_weight`` is not used: on a CPU it replaces an eight-bit weight by one
    without its row scales (PEFT 0.21), and four bits come in the dtype that the map computes in.

    Args:
        module: for which :func:`is_quantized` holds.
    """
    weight: Any = module.weight
    if _kind(module) == _FOUR_BITS:
        from bitsandbytes.functional import dequantize_4bit

        # Its dtype is that of the result, not of what is kept.
        state = copy.copy(weight.quant_state)
        state.dtype = torch.float32
        return dequantize_4bit(weight.data, state)
    found: Any = module
    # Where the row scales are depends on whether the map has run.
    scales = weight.SCB if weight.SCB is not None else found.state.SCB
    return weight.data.float() * (scales.float() / 127.0).unsqueeze(1)


@torch.no_grad()
def unpack(root: nn.Module) -> None:
    """Replace every packed map below ``root`` by a plain one of the same numbers, in float32.

    Each is of the class that it was before it was packed, ``nn.Linear`` or GPT-2's ``Conv1D``.
    """
    for name, module in list(root.named_modules()):
        if is_quantized(module):
            root.set_submodule(name, _plain(module))


def _plain(module: nn.Module) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    weight, bias = dequantized_weight(module), getattr(module, "bias", None)
    num_outputs, num_inputs = weight.shape
    with torch.device("meta"):
        if getattr(module, "source_cls", nn.Linear) is Conv1D:
            plain: nn.Module = Conv1D(num_outputs, num_inputs)
            weight = weight.T.contiguous()
        else:
            plain = nn.Linear(num_inputs, num_outputs, bias=bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
    return plain.train(module.training)


def packed_tensors(root: nn.Module) -> list[Tensor]:
    """Return the tensors of packed maps below ``root`` that are no parameter and no buffer."""
    states: list[Any] = [getattr(module, "state", None) for module in _packed(root, _EIGHT_BITS)]
    return [t for state in states for t in (state.CB, state.SCB) if t is not None]


@torch.no_grad()
def settle(root: nn.Module, dtype: torch.dtype) -> None:
    """Make packed maps below ``root`` compute in a dtype, and alike in training and evaluation.

    Four bits: on processors with AVX512-BF16 a map without gradients would repack its weight, with
    block scales rounded to bfloat16; it would stay so, and the kernel for it has no backward pass
    (bitsandbytes 0.50). Eight bits: the row scales lie with the parameter until the map first runs,
    and then with the map, so that a second map on the same parameter would find none and take the
    codes for weights. Here each map takes them at once.

    Args:
        root: a model as transformers loaded it.
        dtype: that the maps compute in.
    """
    for module in _packed(root, _FOUR_BITS):
        module.compute_dtype, module.compute_type_is_set = dtype, True
        module.support_avx512bf16_for_cpu = False
        module.weight.quant_state.dtype = dtype
    for module in _packed(root, _EIGHT_BITS):
        logging.getLogger(_TALKS).addFilter(_tells_more)  # a second time does nothing
        if module.weight.CB is not None:
            module.init_8bit_state()


def _tells_more(record: logging.LogRecord) -> bool:
    """Leave out what an eight-bit map would say in every forward: that it rounds what it reads."""
    return "inputs will be cast from" not in record.getMessage()


def misread_on_cpu(root: nn.Module) -> list[str]:
    """Return the names of four-bit maps that bitsandbytes computes wrongly where they lie.

    On a CPU its kernel takes each row for a whole number of blocks (0.50.2, AVX512): the values of
    other blocks' scales come out where the inputs are no multiple of a block's 64 entries.
    """
    return [
        name
        for name, module in root.named_modules()
        if _kind(module) == _FOUR_BITS and _is_misread(module)
    ]


def _is_misread(module: Any) -> bool:
    weight = module.weight
    return weight.device.type == "cpu" and module.in_features % weight.quant_state.blocksize != 0


def _packed(root: nn.Module, kind: str) -> list[Any]:
    return [module for module in root.modules() if _kind(module) == kind]
