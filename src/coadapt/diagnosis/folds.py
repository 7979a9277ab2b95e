"""How alike trained adapters are: the direction of their updates and the subspaces these use.

An adapter is given by its folds, ``{module: (A, B)}`` with A (r, in) and B (out, r), everything
folded in: the update of the module's weight is B A.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from coadapt._errors import InputError
from coadapt._linalg import finite_matrix

Array = NDArray[np.float64]
Folds = Mapping[str, tuple[Any, Any]]
Side = Literal["in", "out"]

# Relative to an update's largest singular value: less is what factors rounded to float32 may leave.
_RANK = float(np.finfo(np.float32).eps)
# Relative to the norms of the factors: less is what their product in float64 may leave of zero.
_ZERO = 8 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class FoldCosine:
    """The cosine of two adapters' updates.

    Args:
        total: of all modules' updates as one vector.
        by_module: of each that either adapts, in order of mention; NaN where an update is zero.
    """

    total: float
    by_module: dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class PrincipalAngles:
    """The angles between the subspaces that two adapters' updates use.

    Args:
        cosines: of the principal angles, by module that both update, largest first; as many as the
            smaller of the two ranks.
    """

    cosines: dict[str, Array]

    @cached_property
    def overlap_by_module(self) -> dict[str, float]:
        """Mean squared cosine, from 0 (orthogonal) to 1 (one subspace holds the other)."""
        return {name: float((values**2).mean()) for name, values in self.cosines.items()}

    @property
    def overlap(self) -> float:
        """The mean over modules."""
        return float(np.mean(list(self.overlap_by_module.values())))


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterSimilarity:
    """How alike T adapters are in M modules.

    Args:
        names: of the adapters.
        modules: that any of them adapts, in order of mention.
        matrices: (T, T) ``cosine``, see :func:`fold_cosine`, and ``overlap_in`` and
            ``overlap_out``, see :func:`principal_angles`.
        by_module: the same by module, (M, T, T); NaN where an update is zero.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]
    matrices: dict[str, Array]
    by_module: dict[str, Array]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Update:
    """B A = U diag(s) V' with orthonormal columns, without singular values that are zero.

    Args:
        U: (out, k).
        s: (k,), largest first.
        V: (in, k).
        rank: how many of the k are more than float32 factors leave by rounding.
    """

    U: Array
    s: Array
    V: Array
    rank: int

    def basis(self, side: Side) -> Array:
        """Return an orthonormal basis of the row or column space of the update."""
        return (self.V if side == "in" else self.U)[:, : self.rank]


def fold_cosine(folds_a: Folds, folds_b: Folds) -> FoldCosine:
    r"""Return the cosine of two adapters' updates, all modules as one vector.

    .. math:: \cos = \frac{\sum_m \langle B_1 A_1, B_2 A_2 \rangle_F}
        {\|\Delta_1\| \, \|\Delta_2\|}, \quad
        \langle B_1 A_1, B_2 A_2 \rangle_F = \sum (B_1^\top B_2) \circ (A_1 A_2^\top)

    Task arithmetic compares fine-tuned models so: Ilharco et al., "Editing models with task
    arithmetic", ICLR 2023, figure 5. It is computed from thin singular value decompositions of the
    r x r cores, which keeps its digits where blocks of a fold nearly cancel, and out x in matrices
    are never formed. It does not change when (A, B) becomes (M A, B M^-1).

    Not for adapters of different base models. Nor for how related the tasks are, unless the
    adapters started from the same A: two runs on one task with different A may have 0 as well.

    Args:
        folds_a: ``{module: (A, B)}``, A (r, in) and B (out, r), tensors or arrays. A module that is
            missing has an update of zero.
        folds_b: likewise; the ranks may differ.

    Raises:
        InputError: if an update is zero in all modules, no module is in both, factors do not fit
            each other or the other adapter's, or a value is not finite.

    Example:
        >>> A, B = np.eye(2, 5), np.ones((3, 2))
        >>> round(fold_cosine({"query": (A, B)}, {"query": (A[:1], -B[:, :1])}).total, 4)
        -0.7071
    """
    found = adapter_similarity({"folds_a": folds_a, "folds_b": folds_b})
    values = found.by_module["cosine"][:, 0, 1].tolist()
    return FoldCosine(
        total=float(found.matrices["cosine"][0, 1]),
        by_module=dict(zip(found.modules, values, strict=True)),
    )


def principal_angles(folds_a: Folds, folds_b: Folds, side: Side = "in") -> PrincipalAngles:
    r"""Return the cosines of the principal angles between two adapters' subspaces, by module.

    .. math:: \cos \theta_i = \sigma_i(Q_1^\top Q_2), \quad
        \text{overlap} = \frac{1}{\min(r_1, r_2)} \|Q_1^\top Q_2\|_F^2 \in [0, 1]

    with Q orthonormal bases of what the updates read (their row spaces, ``"in"``) or write (their
    column spaces, ``"out"``). Bjorck and Golub, "Numerical methods for computing angles between
    linear subspaces", Mathematics of Computation 1973; the overlap is that of Hu et al., "LoRA",
    section 7.2, at full rank. The ranks r are those of the updates, not of the factors: directions
    below 1.2e-7 of an update's largest singular value are taken for rounding.

    Two random subspaces of R^d have an overlap of max(r_1, r_2) / d on average: compare with that.
    Not for the weight of the directions, all of which count alike, nor for their sign.

    Args:
        folds_a: see :func:`fold_cosine`.
        folds_b: likewise.
        side: "in" for row spaces in R^in, "out" for column spaces in R^out.

    Raises:
        InputError: see :func:`fold_cosine`; or if no module is updated by both.

    Example:
        >>> A, B = np.eye(2, 5), np.eye(3, 2)
        >>> found = principal_angles({"query": (A, B)}, {"query": (A[:, ::-1], B)}, side="out")
        >>> found.cosines["query"], found.overlap
        (array([1., 1.]), 1.0)
    """
    if side not in ("in", "out"):
        raise InputError(f"side must be in or out, not '{side}'")
    first, second = _updates({"folds_a": folds_a, "folds_b": folds_b})
    cosines = {}
    for name in first:
        if name in second and first[name].rank and second[name].rank:
            product = first[name].basis(side).T @ second[name].basis(side)
            cosines[name] = np.minimum(1.0, np.linalg.svd(product, compute_uv=False))
    return PrincipalAngles(cosines=cosines)


def adapter_similarity(folds: Mapping[str, Folds]) -> AdapterSimilarity:
    """Return how alike adapters are, each with each, in direction and in subspaces.

    Args:
        folds: of each adapter by its name, see :func:`fold_cosine`. A PEFT folder's are the
            ``factors`` of :func:`coadapt.importing.read_peft_adapter`.

    Raises:
        InputError: see :func:`principal_angles`; or if there is no adapter.

    Example:
        >>> A, B = np.eye(2, 5), np.eye(3, 2)
        >>> folds = {"sst2": {"query": (A, B)}, "mrpc": {"query": (A[:1], B[:, 1:])}}
        >>> found = adapter_similarity(folds)
        >>> [(name, float(matrix[0, 1])) for name, matrix in found.matrices.items()]
        [('cosine', 0.0), ('overlap_in', 1.0), ('overlap_out', 1.0)]
    """
    updates = _updates(folds)
    modules = tuple(dict.fromkeys(name for update in updates for name in update))
    inner = np.zeros((len(modules), len(updates), len(updates)))
    overlaps = {
        "overlap_in": np.full_like(inner, np.nan),
        "overlap_out": np.full_like(inner, np.nan),
    }
    for m, i, j in np.ndindex(inner.shape):
        if i > j or not (modules[m] in updates[i] and modules[m] in updates[j]):
            continue
        a, b = updates[i][modules[m]], updates[j][modules[m]]
        products = {"in": a.V.T @ b.V, "out": a.U.T @ b.U}
        inner[m, i, j] = inner[m, j, i] = a.s @ (products["in"] * products["out"]) @ b.s
        if a.rank and b.rank:
            for side, product in products.items():
                share = (product[: a.rank, : b.rank] ** 2).sum() / min(a.rank, b.rank)
                overlaps[f"overlap_{side}"][m, [i, j], [j, i]] = min(1.0, share)
    matrices = {"cosine": _cosines(inner.sum(axis=0))}
    matrices |= {name: np.nanmean(values, axis=0) for name, values in overlaps.items()}
    return AdapterSimilarity(
        names=tuple(folds),
        modules=modules,
        matrices=matrices,
        by_module={"cosine": _cosines(inner), **overlaps},
    )


def _cosines(inner: Array) -> Array:
    """Return inner products (..., T, T) over the norms, NaN for vectors of zero."""
    norms = np.sqrt(np.diagonal(inner, axis1=-2, axis2=-1))
    with np.errstate(invalid="ignore"):
        cosines = inner / (norms[..., :, None] * norms[..., None, :])
    return np.clip(cosines, -1.0, 1.0)


def _updates(folds: Mapping[str, Folds]) -> list[dict[str, _Update]]:
    """Return each adapter's updates, of adapters that can be compared."""
    if not folds:
        raise InputError("folds holds no adapter")
    updates = [
        {module: _update(*pair, f"{name}['{module}']") for module, pair in adapter.items()}
        for name, adapter in folds.items()
    ]
    for name, update in zip(folds, updates, strict=True):
        if not any(u.rank for u in update.values()):
            raise InputError(
                f"adapter '{name}': the update is zero in each of its {len(update)} modules, so it "
                "has no direction to compare"
            )
    names = list(folds)
    for j, second in enumerate(updates):
        for i, first in enumerate(updates[:j]):
            _refuse_strangers(first, second, names[i], names[j])
    return updates


def _refuse_strangers(
    a: Mapping[str, _Update], b: Mapping[str, _Update], name_a: str, name_b: str
) -> None:
    for module in a:
        if module in b:
            shapes = [(len(update.U), len(update.V)) for update in (a[module], b[module])]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"module '{module}' is a map of shape {shapes[0]} for {name_a}, but "
                    f"{shapes[1]} for {name_b}: they belong to different base models"
                )
    if not any(module in b and a[module].rank and b[module].rank for module in a):
        raise InputError(
            f"{name_a} and {name_b} update no module in common ('{next(iter(a))}' ... against "
            f"'{next(iter(b))}' ...): one may have been saved from a model with a head, whose "
            "names start with the base model's"
        )


def _update(A: Any, B: Any, name: str) -> _Update:
    """Return B A in its thin singular value decomposition, by way of an r x r core."""
    A, B = (
        finite_matrix(_array(A), f"A of {name}", shape=(None, None)),
        finite_matrix(_array(B), f"B of {name}", shape=(None, None)),
    )
    if len(A) != B.shape[1]:
        raise InputError(
            f"{name} needs A (r, in) and B (out, r), but they are {A.shape} and {B.shape}"
        )
    Q_out, R_out = np.linalg.qr(B)
    Q_in, R_in = np.linalg.qr(A.T)
    U, s, Vt = np.linalg.svd(R_out @ R_in.T, full_matrices=False)
    kept = s > _ZERO * np.linalg.norm(A) * np.linalg.norm(B)
    U, s, V = Q_out @ U[:, kept], s[kept], Q_in @ Vt[kept].T
    rank = int((s > _RANK * s.max(initial=0.0)).sum())
    return _Update(U=U, s=s, V=V, rank=rank)


def _array(factor: Any) -> Any:
    """Return a tensor as an array, from any device, in float64, which bfloat16 needs."""
    if isinstance(factor, torch.Tensor):
        return factor.detach().to("cpu", torch.float64).numpy()
    return factor
