"""Low-rank updates added up with weights: as factors (LoRAHub) or as updates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coadapt._errors import InputError, nearest
from coadapt.lora_hub import Form

Folds = Mapping[str, tuple[Tensor, Tensor]]
Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Composed:
    """An update made of others.

    Args:
        factors: ``{module: (A, B)}``, A (r, in) and B (out, r) in float32, the scale in B.
        error: what a lower rank cost, ``|kept - whole| / |whole|`` in the Frobenius norm over all
            modules; 0 where nothing was cut.
    """

    factors: Factors
    error: float = 0.0


def compose_factors(folds: Sequence[Folds], weights: Sequence[float]) -> Composed:
    r"""Return the update whose factors are the weighted sums of the adapters' factors.

    .. math:: \hat A = \sum_i w_i A_i, \quad \hat B = \sum_i w_i B_i, \quad
        \Delta = s \hat B \hat A = s \sum_{ij} w_i w_j B_i A_j

    Huang et al., "LoraHub: efficient cross-task generalization via dynamic LoRA composition",
    arXiv 2307.13269, section 3.2. A fold's B is s B_i, so the sum of the folds' B is s B-hat and s
    enters once, as it must; with scales that differ there is no s of the sum.

    It is no sum of updates: an adapter's B meets every other's A, w and -w give the same update,
    and a single adapter with weight w acts as w^2 times its update. The update is thus quadratic in
    w, and flat at w = 0. See :func:`compose_deltas` for the sum of updates.

    Args:
        folds: K of them, each ``{module: (A, B)}``, A (r, in) and B (out, r) in float32 with s in
            B, as :meth:`coadapt.model.MultiTaskModel.fold` returns them; same modules, shapes, s.
        weights: (K,).

    Raises:
        InputError: if folds and weights differ in number, or the folds in modules or shapes.

    Example:
        >>> fold = {"query": (torch.eye(2, 4), torch.ones(3, 2))}
        >>> A, B = compose_factors([fold], [0.5]).factors["query"]
        >>> torch.equal(B @ A, 0.25 * torch.ones(3, 2) @ torch.eye(2, 4))
        True
    """
    _check_numbers(folds, weights)
    check_composable(folds, _numbered(folds))
    return Composed(
        factors={
            name: (
                _weighted([fold[name][0] for fold in folds], weights),
                _weighted([fold[name][1] for fold in folds], weights),
            )
            for name in folds[0]
        }
    )


def compose_deltas(
    folds: Sequence[Folds], weights: Sequence[float], rank: int | None = None
) -> Composed:
    r"""Return the weighted sum of the adapters' updates, whole or cut to a rank.

    .. math:: \Delta = \sum_i w_i B_i A_i
        = [w_1 B_1, \dots, w_K B_K] \, [A_1; \dots; A_K]

    Exact at rank r_1 + ... + r_K. With ``rank`` it is the nearest update of that rank in the
    Frobenius norm (Eckart and Young): the singular value decomposition of the product through the
    QR decompositions of its factors, so that no (out, in) matrix is formed. An update of less rank
    is exact, with zero rows for the rest. This is task arithmetic on updates (Ilharco et al., arXiv
    2212.04089), not LoRAHub.

    Args:
        folds: see :func:`compose_factors`; ranks and scales may differ.
        weights: (K,).
        rank: of the result in every module, at least 1; the summed rank if None.

    Raises:
        InputError: if folds and weights differ in number, the folds in modules or in what the
            modules map, or ``rank`` is below 1.

    Example:
        >>> fold = {"query": (torch.eye(2, 4), torch.eye(3, 2))}
        >>> round(compose_deltas([fold, fold], [1.0, -0.5], rank=1).error, 4)
        0.7071
    """
    _check_numbers(folds, weights)
    check_composable(folds, _numbered(folds), compose="deltas")
    if rank is not None and rank < 1:
        raise InputError(f"rank must be at least 1, not {rank}")
    factors: Factors = {}
    lost = whole = 0.0
    for name in folds[0]:
        A = torch.cat([fold[name][0] for fold in folds])
        pairs = zip(folds, weights, strict=True)
        B = torch.cat([weight * fold[name][1] for fold, weight in pairs], dim=1)
        if rank is not None:
            A, B, dropped, total = _cut(A, B, rank)
            lost, whole = lost + dropped, whole + total
        factors[name] = A, B
    return Composed(factors=factors, error=math.sqrt(lost / whole) if whole else 0.0)


def check_composable(
    folds: Sequence[Folds],
    names: Sequence[str],
    *,
    scales: Sequence[float] | None = None,
    compose: Form = "factors",
) -> None:
    """Refuse adapters that cannot be added up.

    The sum of factors needs the same modules, rank, shapes and scale; the sum of updates the same
    modules and what they map.

    Args:
        folds: see :func:`compose_factors`.
        names: of the adapters, for the error.
        scales: s of each adapter, which a fold does not show; not looked at if None.
        compose: how they are to be added up.

    Raises:
        InputError: naming the first two adapters that differ, and where.
    """
    if not folds:
        raise InputError("there is no adapter to compose; give at least one")
    what = "take compose='deltas', which adds up updates of any rank and scale"
    for index in range(1, len(folds)):
        a, b = names[0], names[index]
        _check_modules(folds[0], folds[index], a, b)
        for name, (A, B) in folds[0].items():
            shapes = (B.shape[0], A.shape[1]), tuple(_mapped(folds[index][name]))
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"module '{name}' is a map of shape {shapes[0]} in '{a}' and {shapes[1]} in "
                    f"'{b}'; adapters of different base models cannot be composed"
                )
            ranks = A.shape[0], folds[index][name][0].shape[0]
            if compose == "factors" and ranks[0] != ranks[1]:
                raise InputError(
                    f"module '{name}' has rank {ranks[0]} in '{a}' and {ranks[1]} in '{b}'; sums "
                    f"of factors need one rank: train with equal ranks, or {what}"
                )
        if compose == "factors" and scales is not None and scales[0] != scales[index]:
            raise InputError(
                f"'{a}' has scale {scales[0]} and '{b}' {scales[index]}; sums of factors need one "
                f"scale: train with equal lora_alpha / r, or {what}"
            )


def _check_modules(first: Folds, other: Folds, a: str, b: str) -> None:
    for here, there, has, lacks in ((first, other, a, b), (other, first, b, a)):
        for name in here:
            if name not in there:
                raise InputError(
                    f"'{has}' adapts module '{name}', which '{lacks}' does not"
                    f"{nearest(name, there)}; compose adapters with the same target_modules"
                )


def _check_numbers(folds: Sequence[Folds], weights: Sequence[float]) -> None:
    if len(folds) != len(weights):
        raise InputError(f"there are {len(folds)} adapters but {len(weights)} weights")


def _numbered(folds: Sequence[Folds]) -> list[str]:
    return [f"adapter {index}" for index in range(len(folds))]


def _mapped(pair: tuple[Tensor, Tensor]) -> tuple[int, int]:
    """Return (out, in)."""
    return pair[1].shape[0], pair[0].shape[1]


def _weighted(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight)
    return total


def _cut(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """Return factors of the nearest update of ``rank``, and the squared norms lost and whole."""
    dtype = A.dtype
    Q_out, R_out = torch.linalg.qr(B.double())
    Q_in, R_in = torch.linalg.qr(A.double().T)
    U, s, Vt = torch.linalg.svd(R_out @ R_in.T, full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    new_A, new_B = A.new_zeros(rank, A.shape[1]), B.new_zeros(B.shape[0], rank)
    new_A[:kept] = (root[:, None] * (Vt[:kept] @ Q_in.T)).to(dtype)
    new_B[:, :kept] = (Q_out @ U[:, :kept] * root).to(dtype)
    return new_A, new_B, float((s[kept:] ** 2).sum()), float((s**2).sum())
