r"""The products of a low-rank update, without the passes over memory that autograd adds to them.

For rows x (n, in) of a frozen map W and factors A (R, in), B (out, R):

.. math:: y = x W^T + b, \quad z = x A^T, \qquad y \leftarrow y + s\, h B^T

    dx = dy\, W + dz\, A, \quad dA = dz^T x, \qquad dh = s\, dy\, B, \quad dB = s\, dy^T h

Autograd would make dy W and dz A apart and add them in a further pass over dx, once for each map
that reads x. Here every product is added to what is there already. What has R columns is kept
transposed, (R, n), and B as (R, out): products of few columns run up to five times faster so on a
processor (`benchmarks/step.py`), and no slower elsewhere.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def is_plain(base: nn.Module, x: Tensor) -> bool:
    """Whether ``base`` does with x what :func:`read` does, and nobody watches it do so."""
    if type(base) is not nn.Linear or "forward" in vars(base):
        return False
    watched = base._forward_hooks or base._forward_pre_hooks
    watched = watched or base._backward_hooks or base._backward_pre_hooks
    weight = base.weight
    # A quantised weight is a Parameter of a type of its own.
    ordinary = type(weight) is nn.Parameter and weight.dtype == x.dtype
    return ordinary and not (watched or weight.requires_grad or _changes(x.device.type))


def _changes(device: str) -> bool:
    """Whether what runs is not what is written: dtypes are chosen, or code is made of it."""
    if torch.compiler.is_compiling():
        return True
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def read(x: Tensor, bases: Sequence[nn.Module], A: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return what several maps, and A, make of x; gradients go to x and A.

    Args:
        x: (..., in).
        bases: frozen maps that :func:`is_plain`.
        A: (R, in).

    Returns:
        each map's (n, out), for n rows of x in all, which :func:`add_update` may write to, and
        A x, (..., R).
    """
    flat = x.reshape(-1, x.shape[-1])
    weights = [base.get_parameter("weight") for base in bases]
    biases = [getattr(base, "bias", None) for base in bases]
    if torch.is_grad_enabled():
        *ys, z_t = _Read.apply(flat, A, weights, biases)
    else:
        *ys, z_t = _products(flat, A.to(x.dtype), weights, biases)
    return ys, z_t.t().view(*x.shape[:-1], len(A))


def add_update(y: Tensor, h: Tensor, B: Tensor, scale: float, *, into: bool = False) -> Tensor:
    """Return y + s B h in the dtype of y, for y (..., out), h (..., R) and B (out, R).

    Args:
        y: what is added to.
        h: gated and dropped entries.
        B: the upper factors.
        scale: s.
        into: write into y, (n, out), which :func:`read` has just made.
    """
    if torch.compiler.is_compiling():
        flat, up = y.reshape(-1, y.shape[-1]), B.to(y.dtype)
        return torch.addmm(flat, h.reshape(-1, h.shape[-1]).to(y.dtype), up.t(), alpha=scale).view(
            y.shape
        )
    flat = y if into else y.reshape(-1, y.shape[-1])
    columns = h.reshape(-1, h.shape[-1]).to(y.dtype)
    if torch.is_grad_enabled():
        return _Add.apply(flat, columns, B.t(), scale, into).view(y.shape)
    up = B.t().to(y.dtype).contiguous()
    return torch.addmm(flat, columns, up, alpha=scale, out=flat if into else None).view(y.shape)


def _products(
    x: Tensor, A: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Return x W' + b of several maps, and A x' (R, n)."""
    ys = [
        torch.mm(x, W.t()) if b is None else torch.addmm(b, x, W.t())
        for W, b in zip(weights, biases, strict=True)
    ]
    return (*ys, torch.mm(A, x.t()))


class _Read(Function):
    """x W' + b of several frozen maps, and A x' (R, n)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        down = A.to(x.dtype)
        ctx.save_for_backward(x, down, *weights)
        ctx.dtype = A.dtype
        return _products(x, down, weights, biases)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, down, *weights = ctx.saved_tensors
        *dys, dz_t = grads
        dx = dA = None
        if dz_t is not None and ctx.needs_input_grad[1]:
            dA = torch.mm(dz_t, x).to(ctx.dtype)
        if ctx.needs_input_grad[0]:
            pairs = [(dy, W) for dy, W in zip(dys, weights, strict=True) if dy is not None]
            pairs += [] if dz_t is None else [(dz_t.t(), down)]
            for d, factor in pairs:
                dx = torch.mm(d, factor) if dx is None else torch.addmm(dx, d, factor, out=dx)
        return dx, dA, None, None


class _Add(Function):
    """y + s h B', given B' (R, out)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, h: Tensor, up: Tensor, scale: float, into: bool) -> Tensor:
        narrow = up.to(y.dtype).contiguous()
        ctx.save_for_backward(h, narrow)
        ctx.scale, ctx.dtype = scale, up.dtype
        if into:
            ctx.mark_dirty(y)
            return torch.addmm(y, h, narrow, alpha=scale, out=y)
        return torch.addmm(y, h, narrow, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, ...]:
        h, narrow = ctx.saved_tensors
        dh = d_up = None
        if ctx.needs_input_grad[1]:
            dh = torch.mm(narrow, dy.t()).mul_(ctx.scale).t()
        if ctx.needs_input_grad[2]:
            d_up = torch.mm(h.t(), dy).mul_(ctx.scale).to(ctx.dtype)
        return dy, dh, d_up, None, None
