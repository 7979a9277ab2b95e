"""What behaves like a linear map, and the matrix that it stands for."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from coadapt.adapters.quantized import dequantized_weight, is_quantized


@runtime_checkable
class LinearLike(Protocol):
    """A module that maps (..., in_features) to (..., out_features), quantised ones included."""

    in_features: int
    out_features: int


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (in, out) of a module that behaves like ``nn.Linear``, or None for any other."""
    if _is_transposed(module):
        size_in, size_out = module.get_parameter("weight").shape
        return size_in, size_out
    if isinstance(module, LinearLike):
        return module.in_features, module.out_features
    return None


def linear_weight(module: nn.Module) -> Tensor:
    """Return the (out, in) weight of a module that behaves like ``nn.Linear``.

    Of one that bitsandbytes packed it is the float32 matrix that the packed weight stands for.
    """
    if is_quantized(module):
        return dequantized_weight(module)
    weight = module.get_parameter("weight").detach()
    return weight.T if _is_transposed(module) else weight


def _is_transposed(module: nn.Module) -> bool:
    """Whether it is GPT-2's linear map, whose weight is (in, out)."""
    from transformers.pytorch_utils import Conv1D  # takes long, and the table of methods needs none

    return isinstance(module, Conv1D)
