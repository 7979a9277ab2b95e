"""How alike the heads over one A, or the experts of a mixture, have become."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coadapt._errors import InputError
from coadapt._sheet import Sheet, missing
from coadapt.analysis._representations import opened, start_of
from coadapt.loading import Loader
from coadapt.runs import Run

Array = NDArray[np.float64]
What = Literal["B", "BA"]
Factors = list[tuple[Tensor, Tensor]]  # (A, B) of each block


@dataclass(frozen=True, kw_only=True)
class HeadSimilarity:
    """Mean cosines between the heads of each adapted module.

    Attributes:
        run: whose.
        structure: its kind.
        num_heads: N, heads or experts.
        compared: ``B``, the heads; ``BA``, the experts' products.
        raw: by module the mean cosine over pairs; NaN where a head is zero.
        moved: the same of what training added, B_i - B_i(0) or B_i A_i - B_i(0) A_i(0).
        notes: which have no cosine: those that are zero, or alone in their module.
    """

    run: str
    structure: str
    num_heads: int
    compared: What
    raw: dict[str, float]
    moved: dict[str, float]
    notes: tuple[str, ...] = field(default=())

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data, null where there is no cosine."""
        return {
            "run": self.run,
            "structure": self.structure,
            "num_heads": self.num_heads,
            "compared": self.compared,
            "raw": {name: None if missing(v) else v for name, v in self.raw.items()},
            "moved": {name: None if missing(v) else v for name, v in self.moved.items()},
            "notes": list(self.notes),
        }


def head_similarity(run: str | Path | Run, *, loader: Loader | None = None) -> HeadSimilarity:
    r"""Return by module the mean cosine between a run's heads, as they are and as they moved.

    .. math:: \frac{2}{N(N-1)} \sum_{i<j}
        \frac{\langle V_i, V_j \rangle_F}{\|V_i\|_F \|V_j\|_F}, \qquad
        V_i = B_i \text{ or } B_i - B_i(0)

    "Align, Don't Divide" (arXiv 2508.05078), section 3.2 and figure 2, for heads over one A, with
    or without a router. Of experts, which have an A each, V_i is the product B_i A_i: its factors
    alone can be rotated without changing it.

    Heads that start at random points of their own and hardly move are unlike *because they were
    drawn so*; heads that start at zero and get the same gradients are alike because they must be.
    Compare ``moved`` before saying that training made heads alike or unlike, and keep in mind
    that without a router all heads' gradients are equal up to dropout masks.

    It is no measure of what heads do for a token: that depends on the router too.

    Args:
        run: a finished run, or its folder.
        loader: keeps what several runs share. The start is built anew, which loads the base model.

    Raises:
        InputError: if the run has no heads or experts, or one alone.
    """
    loader = loader or Loader()
    found = opened(run, loader)
    structure = found.config.recipe.structure
    if not structure.multiplies:
        raise InputError(
            f"run {found.path} has structure '{structure.kind}', which has no heads or experts to "
            "compare; take a run of heads or experts, such as recipe 'm_lora' or 'lora_moe'"
        )
    layers = found.model.attached.layers
    num = max(len(layer.B) for layer in layers.values())
    if num < 2:
        raise InputError(f"run {found.path} has {num} head; a similarity is between two or more")
    starts = start_of(found, loader=loader).model.attached.layers
    raw, moved = {}, {}
    for name, layer in layers.items():
        if len(layer.B) > 1:
            what: What = "B" if layer.shared_A else "BA"
            grams = _grams(layer.blocks(), starts[name].blocks(), what)
            raw[name], moved[name] = (mean_cosine(gram) for gram in grams)
    return HeadSimilarity(
        run=str(found.path),
        structure=structure.kind,
        num_heads=num,
        compared="B" if any(layer.shared_A for layer in layers.values()) else "BA",
        raw=raw,
        moved=moved,
        notes=tuple(_notes(list(layers), raw, moved)),
    )


def _notes(modules: list[str], raw: dict[str, float], moved: dict[str, float]) -> Iterator[str]:
    """Say in which modules there is no cosine, and why."""
    for told, lacking in (
        ("a head is zero, which has no cosine", [m for m in raw if missing(raw[m])]),
        ("training added nothing to a head: no cosine", [m for m in moved if missing(moved[m])]),
        ("there is one block alone, left out here", [m for m in modules if m not in raw]),
    ):
        if lacking:
            some = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
            yield f"in {len(lacking)} of {len(modules)} modules {told}: {some}"


def mean_cosine(
    gram: Array,  # (N, N)
) -> float:
    """Return the mean off-diagonal cosine of vectors from their inner products; NaN if one is 0."""
    lengths = np.sqrt(np.diag(gram))
    if not lengths.all():
        return float("nan")
    cosines = gram / lengths[:, None] / lengths[None, :]
    return float(np.clip(cosines[np.triu_indices(len(gram), 1)], -1.0, 1.0).mean())


def product_gram(factors: Factors) -> Array:
    r"""Return (N, N) inner products of the products B_i A_i, without making one of them.

    .. math:: \langle B_i A_i, B_j A_j \rangle_F = \operatorname{tr}[(B_i' B_j)(A_j A_i')]
    """
    A = torch.stack([A.detach().double() for A, _ in factors])  # (N, r, in)
    B = torch.stack([B.detach().double() for _, B in factors])  # (N, out, r)
    ups = torch.einsum("ior,jos->ijrs", B, B)
    downs = torch.einsum("ird,jsd->ijrs", A, A)
    return _clean((ups * downs).sum(dim=(-2, -1)))


def _grams(now: Factors, then: Factors, compared: What) -> tuple[Array, Array]:
    """Return the inner products of a layer's heads, and of what training added to them."""
    if compared == "B":
        return _flat_gram([B for _, B in now]), _flat_gram(
            [B.double() - B0.double() for (_, B), (_, B0) in zip(now, then, strict=True)]
        )
    # B A - B0 A0 = (B - B0) A + B0 (A - A0): no digits are lost where little has moved.
    added = [
        (
            torch.cat([A.double(), A.double() - A0.double()]),
            torch.cat([B.double() - B0.double(), B0.double()], dim=1),
        )
        for (A, B), (A0, B0) in zip(now, then, strict=True)
    ]
    return product_gram(now), product_gram(added)


def _flat_gram(heads: list[Tensor]) -> Array:
    flat = torch.stack([B.detach().double().flatten() for B in heads])
    return _clean(flat @ flat.T)


def _clean(gram: Tensor) -> Array:
    found = gram.cpu().numpy()
    np.fill_diagonal(found, np.maximum(np.diag(found), 0.0))  # below 0 by rounding alone
    return found


def similarity_sheet(found: HeadSimilarity) -> Sheet:
    """Return the cosines by module; before them median and mean over the modules that have one."""
    known = [[v for v in values.values() if not missing(v)] for values in (found.raw, found.moved)]
    rows = [
        (told, *(_cosine(float(reduce(values)) if values else None) for values in known))
        for told, reduce in (("median", np.median), ("mean", np.mean))
    ]
    rows += [(name, _cosine(found.raw[name]), _cosine(found.moved[name])) for name in found.raw]
    what = "B_i" if found.compared == "B" else "B_i A_i"
    return Sheet(
        title=f"{found.run}: mean cosine between {found.num_heads} heads ({found.structure})",
        columns=("module", what, "since the start"),
        rows=tuple(rows),
        notes=found.notes,
    )


def _cosine(value: float | None) -> str:
    return "-" if value is None or missing(value) else f"{round(value, 2) + 0.0:.2f}"
