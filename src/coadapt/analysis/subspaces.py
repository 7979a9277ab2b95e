"""Whether tasks' blocks came to use one subspace, and whether their sum lost directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coadapt._errors import InputError
from coadapt._sheet import Sheet, missing
from coadapt.analysis._representations import opened
from coadapt.analysis._states import factors, moments, start_tensors
from coadapt.analysis._subspace_pairs import measure
from coadapt.loading import Loader
from coadapt.planning import COOPERATIVE, Plan
from coadapt.runs import ADAPTER, Run
from coadapt.saving import read_adapter, saved_form

Array = NDArray[np.float64]
Tensors = Mapping[str, Tensor]

_MOVED = 0.1  # the least share of a number that is read as a rise or fall
_APART = 0.02  # a rise of a mean squared cosine below it is read as none


@dataclass(frozen=True, kw_only=True, eq=False)
class SubspaceOverlap:
    """How tasks' blocks lie to each other over training: S steps, M modules, T blocks, P pairs.

    What is not defined, since a block is zero, is NaN.

    Attributes:
        run: whose.
        blocks: (T) the tasks' own; the cooperative or common one is left out.
        pairs: (P) of them.
        modules: (M) their names.
        steps: (S) ascending; 0 is the start.
        columns: (S, M, P) mean squared cosine between the column spaces of B_t and B_u.
        rows: (S, M, P) the same between the row spaces of A_t and A_u.
        random_columns: (M, P) what random subspaces of these ranks have on average.
        random_rows: (M, P) the same.
        column_share: (S, M, T, T) share of the energy of B_t A_t in the column space of B_u.
        row_share: (S, M, T, T) share of the energy of B_t A_t in the row space of A_u.
        effective_rank: (S, M) of the sum of all blocks B_k A_k, common ones too.
        added_rank: (S, M) of that sum less the one at start: of what training changed.
        notes: what is not known.
    """

    run: str
    blocks: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    modules: tuple[str, ...]
    steps: tuple[int, ...]
    columns: Array
    rows: Array
    random_columns: Array
    random_rows: Array
    column_share: Array
    row_share: Array
    effective_rank: Array
    added_rank: Array
    notes: tuple[str, ...] = field(default=())

    @property
    def reading(self) -> str:
        """What became of overlap and effective rank from the first known step to the last."""
        columns, rows, rank = (
            _ends(self.steps, values) for values in (self.columns, self.rows, self.effective_rank)
        )
        random = [middle(values) for values in (self.random_columns, self.random_rows)]
        return (
            f"mean squared cosine of B: {_told(columns)} (random {random[0]:.3f}); of A: "
            f"{_told(rows)} (random {random[1]:.3f}); effective rank of the sum: "
            f"{_told(rank, '.1f')}: {_verdict(columns, rows, rank)}"
        )

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data, null where a number is not defined."""
        names = ("columns", "rows", "random_columns", "random_rows", "column_share", "row_share")
        return {
            "run": self.run,
            "blocks": list(self.blocks),
            "pairs": [list(pair) for pair in self.pairs],
            "modules": list(self.modules),
            "steps": list(self.steps),
            **{
                name: _plain(getattr(self, name).tolist())
                for name in (*names, "effective_rank", "added_rank")
            },
            "reading": self.reading,
            "notes": list(self.notes),
        }


def subspace_overlap(
    run: str | Path | Run,
    *,
    checkpoints: Sequence[str | Path] | None = None,
    loader: Loader | None = None,
) -> SubspaceOverlap:
    r"""Return how the subspaces of tasks' blocks lie to each other at each kept step of a run.

    .. math:: \frac{\|Q_t^\top Q_u\|_F^2}{\min(r_t, r_u)}, \qquad
        \frac{\|Q_u^\top B_t A_t\|_F^2}{\|B_t A_t\|_F^2}

    with orthonormal bases Q of the column spaces of B (and of the row spaces of A): the mean
    squared cosine of the principal angles, and the share of a block's energy in another's space.
    Random subspaces of dimension d have max(r_t, r_u) / d and r_u / d. ThanoRA (arXiv 2505.18640,
    section 3.3) calls it subspace collapse when they come together; it shows scores alone.

    Blocks that overlap may still add up to as many directions as before: a shared space is no loss.
    So the effective rank, the exponential of the entropy of the singular values, of the whole sum
    is given beside. Neither says that a task is served better or worse.

    Args:
        run: a finished run, or its folder. Its steps are those of the checkpoints in it
            (``save_strategy: steps``; ``save_total_limit`` keeps 1 if not raised), its start and
            its end; an adapter that is the best checkpoint's, not the last step's, has that step.
        checkpoints: folders named ``checkpoint-STEP`` in place of those in the run's.
        loader: keeps what several runs share. A start that is not frozen in the adapter is built
            anew, which loads the base model.

    Raises:
        InputError: if the run has no two blocks of tasks, or a checkpoint is of another run.
    """
    loader = loader or Loader()
    found = opened(run, loader)
    plan, own = _own_blocks(found)
    adapter = read_adapter(found.path / ADAPTER)
    modules = tuple(dict.fromkeys(name.split("/")[1] for name in adapter if name.endswith("/A")))
    start, notes = start_tensors(found, adapter, loader)
    places = [list(plan.blocks).index(name) for name in own]
    steps: list[int] = []
    measured: list[list[dict[str, Array]]] = []
    for step, tensors, where in moments(found, adapter, start, checkpoints):
        steps.append(step)
        each = []
        for module in modules:
            before = None if start is None else factors(start, plan, module, where)
            each.append(measure(factors(tensors, plan, module, where), places, before))
        measured.append(each)
    arrays = {
        key: np.array([[one[key] for one in each] for each in measured]) for key in measured[0][0]
    }
    return SubspaceOverlap(
        run=str(found.path),
        blocks=own,
        pairs=tuple(combinations(own, 2)),
        modules=modules,
        steps=tuple(steps),
        random_columns=_random(adapter, modules, own, "B"),
        random_rows=_random(adapter, modules, own, "A"),
        notes=notes,
        **arrays,
    )


def overlap_sheet(found: SubspaceOverlap) -> Sheet:
    """Return medians over modules and pairs, a row a step."""
    rows = []
    for index, step in enumerate(found.steps):
        cosines = (f"{middle(values[index]):.3f}" for values in (found.columns, found.rows))
        ranks = (f"{middle(v[index]):.2f}" for v in (found.effective_rank, found.added_rank))
        rows.append((str(step), *(told.replace("nan", "-") for told in (*cosines, *ranks))))
    random = ("random", *(f"{middle(v):.3f}" for v in (found.random_columns, found.random_rows)))
    return Sheet(
        title=f"{found.run}: medians over {len(found.modules)} modules and {len(found.pairs)} "
        "pairs of blocks, 1 run",
        columns=("step", "cos² of B", "cos² of A", "effective rank: sum", "what was added"),
        rows=(*rows, (*random, "", "")),
        notes=(found.reading, *found.notes),
    )


def middle(values: Array) -> float:
    """Return the median of what is defined; NaN if nothing is."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")


def _own_blocks(run: Run) -> tuple[Plan, tuple[str, ...]]:
    """Return a run's plan and those of its blocks that are some tasks' own."""
    structure, plan = saved_form(run.path / ADAPTER)
    if structure.multiplies or plan is None:
        raise InputError(
            f"run {run.path} has structure '{structure.kind}', whose blocks are no task's own; "
            "head_similarity compares heads and experts"
        )
    # All but those of every task; where all are of every task, but the one that is named so.
    everyone = {name for name, block in plan.blocks.items() if set(block.tasks) == set(plan.tasks)}
    common = everyone if len(everyone) < len(plan.blocks) else {COOPERATIVE}
    own = tuple(name for name in plan.blocks if name not in common)
    if len(own) < 2:
        raise InputError(
            f"run {run.path} has {len(own)} block of a task ({', '.join(plan.blocks)}); an "
            "overlap is between two or more, as of recipes 'thanora' and 'private'"
        )
    return plan, own


def _random(adapter: Tensors, modules: Sequence[str], own: Sequence[str], side: str) -> Array:
    """Return (M, P) what random subspaces of these ranks have on average."""
    shapes = [[adapter[f"{block}/{module}/{side}"].shape for block in own] for module in modules]
    return np.array(
        [[max(min(t), min(u)) / max(t) for t, u in combinations(of, 2)] for of in shapes]
    )


def _ends(steps: Sequence[int], values: Array) -> tuple[tuple[int, float], ...]:
    """Return the first and the last step at which there is a median, with it."""
    known = [(s, m) for s, v in zip(steps, values, strict=True) if not missing(m := middle(v))]
    return (known[0], known[-1]) if known else ()


def _told(ends: Sequence[tuple[int, float]], digits: str = ".3f") -> str:
    if not ends:
        return "never known, a block is zero"
    (first, before), (last, after) = ends
    if first == last:
        return f"{after:{digits}} at step {last}"
    return f"{before:{digits}} at step {first} to {after:{digits}} at step {last}"


def _verdict(*series: Sequence[tuple[int, float]]) -> str:
    if any(not ends or ends[0][0] == ends[1][0] for ends in series):
        return "not to be judged without two steps"
    columns, rows, rank = ((ends[0][1], ends[1][1]) for ends in series)
    closer = [
        name
        for name, (before, after) in (("B", columns), ("A", rows))
        if after - before > max(_APART, _MOVED * before)
    ]
    fell = rank[1] < (1 - _MOVED) * rank[0]
    if closer:
        told = f"the blocks' {' and '.join(closer)} came together"
        return f"{told} and the sum lost directions" if fell else f"{told}, the sum lost nothing"
    told = "the blocks did not come together"
    return f"{told}, yet the sum lost directions" if fell else told


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if missing(value) else value
