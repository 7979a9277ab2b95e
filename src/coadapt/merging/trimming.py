"""Keeping the entries of greatest magnitude: exactly as many as asked for, in little memory."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

_HALF = 16  # bits: a magnitude's 32 are looked at in two halves


@dataclass(frozen=True, kw_only=True)
class Cutoff:
    """The magnitude down to which entries are kept.

    Args:
        bits: the magnitude, as the integer that float32's bits are; they are in the same order.
        ties: how many of the entries that have exactly this magnitude are kept; the first ones.
    """

    bits: int
    ties: int


def num_kept(density: float, num_entries: int) -> int:
    """Return how many entries a density keeps: all but floor((1 - density) n), at least one.

    Example:
        >>> num_kept(0.1, 10), num_kept(0.9, 10), num_kept(0.5, 3)
        (1, 9, 2)
    """
    # As the decimal number that was written: in binary, 10 (1 - 0.9) is below 1.
    return math.ceil(Fraction(str(density)) * num_entries)


def find_cutoff(tensors: Callable[[], Iterable[Tensor]], kept: int) -> Cutoff:
    """Return where to cut so that ``kept`` entries of all tensors together are left.

    The magnitudes' upper and then their lower bits are counted, so that the answer is exact and
    nothing but two short histograms is held.

    Args:
        tensors: gives float32 tensors, the same ones whenever it is called.
        kept: from 1 to the number of entries.

    Example:
        >>> found = find_cutoff(lambda: [torch.tensor([1.0, -3.0]), torch.tensor([2.0, 2.0])], 2)
        >>> torch.tensor(found.bits, dtype=torch.int32).view(torch.float32).item(), found.ties
        (2.0, 1)
    """
    high, above = _bin_of(kept, (_bits(tensor) >> _HALF for tensor in tensors()))
    of_bin = (bits[bits >> _HALF == high] for bits in map(_bits, tensors()))
    low, between = _bin_of(kept - above, (bits & (2**_HALF - 1) for bits in of_bin))
    return Cutoff(bits=(high << _HALF) + low, ties=kept - above - between)


def trim(tensor: Tensor, cutoff: Cutoff) -> tuple[Tensor, Cutoff]:
    """Return a tensor with zeros below the cutoff, and the cutoff for what comes after it.

    Args:
        tensor: float32, of those that the cutoff was found for, and in their order.
        cutoff: with the ties that are left to keep.
    """
    bits = _bits(tensor)
    ties = bits == cutoff.bits
    if int(ties.sum()) > cutoff.ties:
        ties &= ties.cumsum(0) <= cutoff.ties
    keep = ((bits > cutoff.bits) | ties).view(tensor.shape)
    left = replace(cutoff, ties=cutoff.ties - int(ties.sum()))
    return torch.where(keep, tensor, torch.zeros_like(tensor)), left


def _bits(tensor: Tensor) -> Tensor:
    """Return magnitudes as (n,) integers in the same order; float32's sign bit is 0 there."""
    assert tensor.dtype == torch.float32, "the bits of other types are others"
    return tensor.abs().flatten().view(torch.int32)


def _bin_of(kept: int, parts: Iterable[Tensor]) -> tuple[int, int]:
    """Return the ``kept``-th greatest of the values, and how many are greater than it."""
    counts = torch.zeros(2**_HALF, dtype=torch.int64)
    for values in parts:
        counts += torch.bincount(values, minlength=len(counts)).cpu()
    down_to = counts.flip(0).cumsum(0).flip(0)  # how many are of a bin or a higher one
    found = int((down_to >= kept).sum()) - 1
    return found, int(down_to[found] - counts[found])
