"""The slow oracles of the terms on factors: the definitions, pair by pair, on whole matrices.

They share no code with the package. Values are tensors, so that autograd gives their gradients.
"""

from itertools import combinations

import torch
from torch import nn

from coadapt.regularizers import Captured, LayerFactors

COOPERATIVE = frozenset({"cooperative"})


def make_layer(
    seed=0, *, ranks=(2, 3, 1), cooperative=2, d_in=5, d_out=6, shared_A=False, dtype=torch.float64
):
    """Return the random factors of a layer with a block a task, and a cooperative one if asked."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    sizes = {f"task{index}": rank for index, rank in enumerate(ranks)}
    if cooperative:
        sizes["cooperative"] = cooperative
    base = nn.Linear(d_in, d_out, bias=False)
    with torch.no_grad():
        base.weight.copy_(torch.randn(d_out, d_in, generator=generator))
    one = drawn(max(sizes.values()), d_in)
    return LayerFactors(
        A={name: one if shared_A else drawn(rank, d_in) for name, rank in sizes.items()},
        B={name: drawn(d_out, len(one) if shared_A else rank) for name, rank in sizes.items()},
        base=base.to(dtype),
        shared_A=shared_A,
        common=COOPERATIVE,
    )


def captured_of(*layers):
    """Return layers as a regularizer gets to see them, with a batch that it does not look at."""
    return Captured(
        task_ids=torch.tensor([0]),
        valid=torch.ones(1, 2, dtype=torch.bool),
        factors={f"module{index}": layer for index, layer in enumerate(layers)},
    )


def leaves(captured):
    """Return what gradients are taken of, each once."""
    found = {}
    for layer in captured.factors.values():
        for part in (*layer.A.values(), *layer.B.values()):
            found[id(part)] = part
    return list(found.values())


def value_and_gradients(loss, captured):
    """Return the loss and its gradients, zeros where there are none."""
    gradients = torch.autograd.grad(loss, leaves(captured), allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in leaves(captured)]
    filled = [z if g is None else g for g, z in zip(gradients, zeros, strict=True)]
    return [loss.detach(), *filled]


def _own_pairs(captured):
    """Yield (layer, name, other name) of every pair of task blocks in every module."""
    for layer in captured.factors.values():
        names = [name for name in layer.B if name != "cooperative"]
        for first, second in combinations(names, 2):
            yield layer, first, second


def spr(captured, *, normalized=False):
    """Return ThanoRA's equation 16, summed over modules."""
    total = torch.zeros((), dtype=torch.float64)
    for layer, t, u in _own_pairs(captured):
        products = [(layer.B[t].T @ layer.B[u], layer.B[t], layer.B[u])]
        if not layer.shared_A:
            products.append((layer.A[t] @ layer.A[u].T, layer.A[t], layer.A[u]))
        for product, of_t, of_u in products:
            norms = (of_t**2).sum() * (of_u**2).sum()
            if normalized and norms == 0:
                continue
            total = total + (product**2).sum() / (norms if normalized else 1)
    return total


def pego(captured, *, orientation="input", preserve=False):
    """Return ThanoRA's equation 18, summed over modules, from the whole updates."""
    total = torch.zeros((), dtype=torch.float64)
    for layer, i, j in _own_pairs(captured):
        first, second = layer.B[i] @ layer.A[i], layer.B[j] @ layer.A[j]
        matrix = first.T @ second if orientation == "input" else first @ second.T
        total = total + matrix.abs().sum()
    for layer in captured.factors.values():
        names = [name for name in layer.B if name != "cooperative"]
        for name in names if preserve and len(names) > 1 else ():
            update = layer.B[name] @ layer.A[name]
            total = total + (layer.base.weight.detach() @ update.T).abs().sum()
    return total


def o_lora(captured):
    """Return the sum of the absolute inner products of rows of different A, one by one."""
    total = torch.zeros((), dtype=torch.float64)
    for layer, t, u in _own_pairs(captured):
        for row in layer.A[t]:
            for other in layer.A[u]:
                total = total + (row * other).sum().abs()
    return total
