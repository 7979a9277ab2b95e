"""Merging as a part of a recipe: how the updates of trained adapters become one."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from coadapt._errors import InputError, nearest

MergeMethod = Literal[
    "average", "task_arithmetic", "dare", "dare_task_arithmetic", "ties", "dare_ties"
]
Scope = Literal["global", "tensor"]

_DENSITY = {"ties": 0.2, "dare": 0.9, "dare_task_arithmetic": 0.9, "dare_ties": 0.9}


@dataclass(frozen=True, kw_only=True)
class Merge:
    r"""How the updates :math:`\delta_1, \dots, \delta_T` of adapters become one update.

    .. math:: \text{average: } \frac{\lambda}{T} \sum_t \delta_t, \qquad
        \text{task arithmetic: } \lambda \sum_t \delta_t, \qquad
        \text{DARE: } \tilde\delta_t = m_t \odot \delta_t / q, \; m_t \sim \text{Bernoulli}(q)

    - ``average`` and ``task_arithmetic`` (Ilharco et al., arXiv 2212.04089): as above, exact.
    - ``dare`` (Yu et al., arXiv 2311.03099, equations 1 to 3): entries are dropped at random and
      the others rescaled, then averaged; ``dare_task_arithmetic`` sums them instead. Its mean over
      masks is the average (the sum), its variance an entry and task
      :math:`\delta_t^2 (1 - q) / q`, times :math:`(\lambda / T)^2` (times :math:`\lambda^2`).
    - ``ties`` (Yadav et al., arXiv 2306.01708, section 4): of each update the entries of greatest
      magnitude are kept; an entry's sign is that of the sum over tasks; its value is lambda times
      the mean over the tasks that kept it with that sign.
    - ``dare_ties``: DARE's masks in place of the trimming, then TIES' signs and mean, as PEFT does.

    What the authors' code and PEFT's do differently:

    - The authors' code of DARE (github.com/yule-BUAA/MergeLM) does not rescale unless asked to;
      here it does, as the paper. Its ``dare`` under TIES trims once more after the masks.
    - Where the kept entries sum to zero no sign is elected, and the result is 0; the authors' code
      of TIES takes the sign of the majority of entries, PEFT plus. They are counted.
    - PEFT trims each tensor by itself (``scope="tensor"``), and by default it treats A and B, not
      the update, in this way.

    All but the first two make updates of full rank: an exact LoRA of them is as large as the
    weight, and ``rank`` cuts it. Not for adapters of different base models or modules.

    Args:
        method: see above.
        weight: lambda, not 0; the last factor of every method.
        density: the share of entries that is kept, in (0, 1]: 1 - rho of TIES, q = 1 - p of DARE.
            None takes 0.2 for TIES, its paper's, and 0.9 for DARE, the default of its authors'
            code: LoRA's updates are larger than those of which 90 % may be dropped.
        rescale: whether DARE divides by q.
        scope: whether TIES keeps the greatest entries of all modules of a task (``global``, as its
            authors) or of each module (``tensor``).
        rank: what the result is cut to in every module, at least 1; None keeps it whole.

    Raises:
        InputError: if a value is out of range, or has no effect on the method.

    Example:
        >>> Merge(method="ties").kept
        0.2
    """

    kind: Literal["merge"] = "merge"
    method: MergeMethod = "average"
    weight: float = 1.0
    density: float | None = None
    rescale: bool = True
    scope: Scope = "global"
    rank: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, text, known in (
            ("method", self.method, get_args(MergeMethod)),
            ("scope", self.scope, get_args(Scope)),
        ):
            if text not in known:
                hint = nearest(text, known)
                raise InputError(f"unknown {name} '{text}'{hint}; known: {', '.join(known)}")
        if not math.isfinite(self.weight) or self.weight == 0:
            raise InputError(f"weight must be a finite number other than 0, not {self.weight}")
        if self.density is not None and not 0 < self.density <= 1:
            raise InputError(
                f"density is the share of entries that is kept, above 0 and at most 1, not "
                f"{self.density}"
            )
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank must be at least 1, not {self.rank}")
        for name, given, works, need in (
            ("density", self.density is not None, self.drops or self.trims, "DARE and TIES"),
            ("rescale", not self.rescale, self.drops, "DARE"),
            ("scope", self.scope != "global", self.trims, "method 'ties'"),
        ):
            if given and not works:
                raise InputError(f"{name} is for {need}, not for '{self.method}'; drop it")

    @property
    def kept(self) -> float:
        """The share of entries that is kept; 1 for methods that keep all."""
        return _DENSITY.get(self.method, 1.0) if self.density is None else self.density

    @property
    def drops(self) -> bool:
        """Whether entries are dropped at random."""
        return self.method.startswith("dare")

    @property
    def trims(self) -> bool:
        """Whether the entries of smallest magnitude are dropped."""
        return self.method == "ties"

    @property
    def elects(self) -> bool:
        """Whether the tasks elect an entry's sign."""
        return self.method.endswith("ties")

    @property
    def averages(self) -> bool:
        """Whether the tasks' entries are averaged; they are summed up otherwise."""
        return self.method in ("average", "dare")
