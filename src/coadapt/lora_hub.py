"""LoRAHub's search as a part of a recipe: what is minimised, and how."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from coadapt._errors import InputError, nearest

Form = Literal["factors", "deltas"]
Pool = Literal["others", "all"]
Method = Literal["auto", "nevergrad", "cobyla", "built_in"]


@dataclass(frozen=True, kw_only=True)
class LoraHub:
    r"""What is minimised over the weights of K adapters, and how.

    .. math:: \min_{w \in [-b, b]^K} \; \frac{1}{n} \sum_{i=1}^{n} \ell_i(w)
        + \lambda \, \frac{1}{K} \sum_{k=1}^{K} |w_k|

    over n examples of the task, \ell_i the loss of a row under the composed adapter. Huang et al.,
    "LoraHub", arXiv 2307.13269; the numbers are those of the authors' code
    (github.com/sail-sg/lorahub). That code divides the mean loss by n once more, which makes the
    second term n times stronger than the formula says; see ``official_norm``.

    With ``compose="factors"`` the update is quadratic in w. So at w = 0 the loss has no slope, and
    the second term makes it a local minimum: a search must take steps that are not small.

    Not for a task with many labelled rows, on which an adapter of its own can be trained.

    Args:
        compose: ``factors``, as published (:func:`coadapt.merging.compose_factors`), or ``deltas``,
            sums of updates cut to the rank of the task's block
            (:func:`coadapt.merging.compose_deltas`).
        pool: whose adapters are composed: ``others``, all tasks' but the one searched for, which
            is the paper's setting, or ``all``.
        budget: evaluations of the objective, at least 1.
        shots: n, rows of the task, at least 1.
        l1: lambda, at least 0, in nats or squared units of a regression.
        official_norm: divide the mean loss by n, as the authors' code does.
        bounds: b, above 0.
        method: of the search, see :func:`coadapt.merging.minimize`.
    """

    kind: Literal["lora_hub"] = "lora_hub"
    compose: Form = "factors"
    pool: Pool = "others"
    budget: int = 40
    shots: int = 5
    l1: float = 0.05
    official_norm: bool = False
    bounds: float = 1.5
    method: Method = "auto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in (("budget", self.budget), ("shots", self.shots)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        for name, text, known in (
            ("compose", self.compose, get_args(Form)),
            ("pool", self.pool, get_args(Pool)),
        ):
            if text not in known:
                raise InputError(f"unknown {name} '{text}'{nearest(text, known)}")
        if not 0 <= self.l1 < math.inf:
            raise InputError(f"l1 must be at least 0, not {self.l1}")
        if not 0 < self.bounds < math.inf:
            raise InputError(f"bounds must be above 0, not {self.bounds}")

    def objective(self, loss: float, weights: Sequence[float]) -> float:
        """Return what is minimised, of the mean loss over the examples and the weights."""
        penalty = self.l1 * float(np.mean(np.abs(weights)))
        return (loss / self.shots if self.official_norm else loss) + penalty
