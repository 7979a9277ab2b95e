"""One update of several: average, task arithmetic, DARE and TIES, on updates and never on factors.

The sum of factors has terms that mix one adapter's B with another's A; what is merged here is each
adapter's whole update ``delta = B A``, with its scale, module by module in float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coadapt._errors import InputError
from coadapt._seeds import named_generator
from coadapt.merge_methods import Merge
from coadapt.merging.composing import Factors, Folds, check_composable, compose_deltas
from coadapt.merging.trimming import Cutoff, find_cutoff, num_kept, trim

# Singular values whose root sum of squares is this share of all are rounding of a float32 product.
_ROUNDING = 1e-6
# Up to about here DARE's paper finds that most entries may be dropped.
_DARE_LIMIT = 0.002


@dataclass(frozen=True, kw_only=True, eq=False)
class Merged:
    """An update merged of others.

    Args:
        factors: ``{module: (A, B)}``, A (r, in) and B (out, r) in float32, with the scale in them.
        error: what was cut off, ``|kept - whole| / |whole|`` in the Frobenius norm over all
            modules; below 1e-6 where no rank was given.
        largest: by adapter max ``|delta|``, on which DARE's success depends.
        no_sign: the share of entries that some adapter keeps but whose sum is zero, so that no
            sign is elected and they are 0; None where no sign is elected.
        notes: what has to be known of the result.
    """

    factors: Factors
    error: float
    largest: dict[str, float]
    no_sign: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def ranks(self) -> dict[str, int]:
        """The rank by module."""
        return {name: A.shape[0] for name, (A, _) in self.factors.items()}

    def to_plain(self) -> dict[str, Any]:
        """Return everything but the factors as plain data."""
        ranks = sorted(self.ranks.values())
        return {
            "ranks": [ranks[0], ranks[-1]],
            "error": self.error,
            "largest": dict(self.largest),
            "no_sign": self.no_sign,
            "notes": list(self.notes),
        }


@torch.no_grad()
def merge_folds(
    folds: Sequence[Folds], names: Sequence[str], method: Merge, seed: int = 0
) -> Merged:
    """Return the merged update of adapters, see :class:`coadapt.merge_methods.Merge`.

    The sum and the average are their exact factors side by side (PEFT's ``cat``), the others a
    dense matrix a module, whose singular value decomposition :math:`U S V^T` gives
    :math:`B = U S^{1/2}` and :math:`A = S^{1/2} V^T`. ``rank`` cuts either to the nearest update of
    that rank. A mask depends on the seed, the adapter's name and the module, so the result is the
    same to the bit whatever the adapters' order.

    Args:
        folds: T >= 1 of them, each ``{module: (A, B)}``, A (r, in) and B (out, r) in float32 with
            the scale in B, as :meth:`coadapt.model.MultiTaskModel.fold` returns them; ranks may
            differ.
        names: of the adapters, all different.
        method: what to do with them.
        seed: of DARE's masks.

    Raises:
        InputError: if folds and names differ in number, a name stands twice, the folds adapt other
            modules or maps of other shapes, or one is not finite.

    Example:
        >>> a = {"query": (torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0], [0.0]]))}
        >>> b = {"query": (torch.tensor([[1.0, 1.0]]), torch.tensor([[-1.0], [0.0]]))}
        >>> merged = merge_folds([a, b], ["a", "b"], Merge(method="ties", density=1.0))
        >>> A, B = merged.factors["query"]
        >>> (B @ A)[0].round(decimals=4).tolist()
        [2.0, -1.0]
    """
    _check_names(folds, names)
    check_composable(folds, names, compose="deltas")
    order = sorted(range(len(names)), key=names.__getitem__)
    folds, names = [folds[index] for index in order], [names[index] for index in order]
    largest = {name: _largest(fold, name) for fold, name in zip(folds, names, strict=True)}
    if method.drops or method.elects:
        return _merge_dense(folds, names, method, seed, largest)
    each = method.weight / len(folds) if method.averages else method.weight
    exact = max(sum(fold[module][0].shape[0] for fold in folds) for module in folds[0])
    rank = None if method.rank is None or method.rank >= exact else method.rank
    found = compose_deltas(folds, [each] * len(folds), rank)
    return Merged(
        factors=found.factors,
        error=found.error,
        largest=largest,
        notes=_notes(method, largest, None, found.error),
    )


def refactor(delta: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, float, float]:
    """Return factors of a matrix by its singular values, and the squared norms lost and whole.

    Args:
        delta: (out, in).
        rank: at most this; None leaves out nothing but rounding.

    Returns:
        A (r, in) and B (out, r) in float32, r >= 1; ``|delta - B A|^2`` and ``|delta|^2``.
    """
    U, s, Vt = torch.linalg.svd(delta.double(), full_matrices=False)
    tails = (s**2).flip(0).cumsum(0).flip(0)  # what is lost by keeping 0, 1, ... values
    needed = int((tails > _ROUNDING**2 * tails[0]).sum())
    kept = max(1, needed if rank is None else min(needed, rank))
    root = s[:kept].sqrt()
    lost = float(tails[kept]) if kept < len(s) else 0.0
    A, B = root[:, None] * Vt[:kept], U[:, :kept] * root
    return A.float(), B.float(), lost, float(tails[0])


def _merge_dense(
    folds: Sequence[Folds],
    names: Sequence[str],
    method: Merge,
    seed: int,
    largest: dict[str, float],
) -> Merged:
    """Merge entry by entry, a module at a time."""
    cutoffs = [_cutoff_of_all(fold, method) for fold in folds]
    factors: Factors = {}
    lost = whole = 0.0
    num_entries = num_without = 0
    for module in folds[0]:
        deltas: list[Tensor] = []
        for index, (fold, name) in enumerate(zip(folds, names, strict=True)):
            delta = _delta(fold, module)
            if method.drops:
                delta = _drop(delta, method, named_generator(seed, "dare", name, module))
            elif method.scope == "tensor":
                delta = _trim_alone(delta, method.kept)
            elif (cutoff := cutoffs[index]) is not None:
                delta, cutoffs[index] = trim(delta, cutoff)
            deltas.append(delta)
        total = torch.zeros_like(deltas[0], dtype=torch.float64)
        for delta in deltas:
            total += delta
        if method.elects:
            total, without = _disjoint_mean(deltas, total.sign())
            num_entries, num_without = num_entries + total.numel(), num_without + without
        elif method.averages:
            total /= len(deltas)
        A, B, dropped, norm = refactor(method.weight * total, method.rank)
        lost, whole = lost + dropped, whole + norm
        factors[module] = A, B
    error = math.sqrt(lost / whole) if whole else 0.0
    no_sign = num_without / num_entries if method.elects else None
    return Merged(
        factors=factors,
        error=error,
        largest=largest,
        no_sign=no_sign,
        notes=_notes(method, largest, no_sign, error),
    )


def _drop(delta: Tensor, method: Merge, generator: torch.Generator) -> Tensor:
    """Keep each entry with the probability ``method.kept``."""
    keep = torch.rand(delta.shape, generator=generator) < method.kept
    kept = torch.where(keep.to(delta.device), delta, torch.zeros_like(delta))
    return kept / method.kept if method.rescale else kept


def _cutoff_of_all(fold: Folds, method: Merge) -> Cutoff | None:
    """Return the cutoff of all of an adapter's modules together, if there is one."""
    if not method.trims or method.scope != "global":
        return None
    size = sum(B.shape[0] * A.shape[1] for A, B in fold.values())
    kept = num_kept(method.kept, size)
    if kept == size:
        return None
    return find_cutoff(lambda: (_delta(fold, module) for module in fold), kept)


def _trim_alone(delta: Tensor, density: float) -> Tensor:
    kept = num_kept(density, delta.numel())
    if kept == delta.numel():
        return delta
    return trim(delta, find_cutoff(lambda: [delta], kept))[0]


def _disjoint_mean(deltas: Sequence[Tensor], sign: Tensor) -> tuple[Tensor, int]:
    """Return the mean of the entries that have the elected sign, and how many have none to have."""
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    anything = torch.zeros_like(sign, dtype=torch.bool)
    for delta in deltas:
        agrees = delta * sign > 0
        total += torch.where(agrees, delta, torch.zeros_like(delta))
        count += agrees
        anything |= delta != 0
    return total / count.clamp_min(1), int((anything & (sign == 0)).sum())


def _delta(fold: Folds, module: str) -> Tensor:
    A, B = fold[module]
    return B.float() @ A.float()


def _largest(fold: Folds, name: str) -> float:
    """Return the greatest magnitude of an adapter's updates."""
    found = 0.0
    for module in fold:
        value = float(_delta(fold, module).abs().max())
        if not math.isfinite(value):
            raise InputError(f"'{name}' has values in module '{module}' that are not finite")
        found = max(found, value)
    return found


def _notes(
    method: Merge, largest: dict[str, float], no_sign: float | None, error: float
) -> tuple[str, ...]:
    notes = []
    if method.drops and method.kept < 1 and max(largest.values()) > _DARE_LIMIT:
        told = ", ".join(f"{name} {value:.2g}" for name, value in largest.items())
        notes.append(
            f"largest |delta|: {told}; DARE drops most entries safely up to about {_DARE_LIMIT}"
        )
    if no_sign:
        notes.append(f"{100 * no_sign:.2g} % of the entries cancel to no sign, and are 0")
    if method.rank is not None and error > _ROUNDING:
        notes.append(f"cut to rank {method.rank}, with a relative error of {error:.3g}")
    return tuple(notes)


def _check_names(folds: Sequence[Folds], names: Sequence[str]) -> None:
    if len(folds) != len(names):
        raise InputError(f"there are {len(folds)} adapters but {len(names)} names")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"two of the adapters are called '{name}'; rename one")
