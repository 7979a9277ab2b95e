"""Whether tasks' blocks came to use one subspace, and whether their sum lost directions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coadapt._errors import InputError
from coadapt._files import is_whole, load_tensors
from coadapt._sheet import Sheet, missing
from coadapt.analysis._representations import opened, start_of
from coadapt.analysis._subspace_pairs import Factors, measure, random_overlap
from coadapt.checkpoints import MODEL, check_checkpoint
from coadapt.loading import Loader
from coadapt.planning import COOPERATIVE, Plan
from coadapt.runs import ADAPTER, Run
from coadapt.saving import read_adapter, saved_form

Array = NDArray[np.float64]
Tensors = Mapping[str, Tensor]

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
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
        told = "; ".join(
            (
                f"mean squared cosine of B: {_told(columns)} (random {middle(self.random_columns):.3f})",
                f"of A: {_told(rows)} (random {middle(self.random_rows):.3f})",
                f"effective rank of the sum: {_told(rank, '.1f')}",
            )
        )
        return f"{told}: {_verdict(columns, rows, rank)}"

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

    with orthonormal bases Q of the column spaces of B (and of the row spaces of A): the mean squared
    cosine of the principal angles, and the share of a block's energy that lies in another's space.
    Random subspaces of dimension d have max(r_t, r_u) / d and r_u / d. ThanoRA (arXiv 2505.18640,
    section 3.3) calls it subspace collapse when they come together; it shows scores alone.

    Blocks that overlap may still add up to as many directions as before: a shared space is no loss.
    So the effective rank, the exponential of the entropy of the singular values, of the whole sum
    is given beside. Neither says that a task is served better or worse.

    Args:
        run: a finished run, or its folder. Its steps are those of the checkpoints in it
            (``save_strategy: steps``; ``save_total_limit`` removes some), its start and its end.
        checkpoints: folders named ``checkpoint-STEP`` in place of those in the run's.
        loader: keeps what several runs share. A start that is not frozen in the adapter is built
            anew, which loads the base model.

    Raises:
        InputError: if the run has no two blocks of tasks, or a checkpoint is of another run.
    """
    loader = loader or Loader()
    found = opened(run, loader)
    structure, plan = saved_form(found.path / ADAPTER)
    if structure.multiplies or plan is None:
        raise InputError(
            f"run {found.path} has structure '{structure.kind}', whose blocks are no task's own; "
            "head_similarity compares heads and experts"
        )
    own = _own_blocks(plan)
    if len(own) < 2:
        raise InputError(
            f"run {found.path} has {len(own)} block of a task ({', '.join(plan.blocks)}); an overlap "
            "is between two or more, as of recipes 'thanora' and 'private'"
        )
    adapter = read_adapter(found.path / ADAPTER)
    modules = tuple(dict.fromkeys(name.split("/")[1] for name in adapter if name.endswith("/A")))
    start, notes = _start(found, adapter, loader)
    steps: list[int] = []
    measured: dict[str, list[Any]] = {}
    for step, tensors, where in _moments(found, adapter, start, checkpoints):
        steps.append(step)
        each = []
        for module in modules:
            before = None if start is None else _factors(start, plan, module, where)
            now = _factors(tensors, plan, module, where)
            each.append(measure(now, [list(plan.blocks).index(name) for name in own], before))
        for key in each[0]:
            measured.setdefault(key, []).append([one[key] for one in each])
    arrays = {key: np.array(values, dtype=np.float64) for key, values in measured.items()}
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
    series = (found.columns, found.rows, found.effective_rank, found.added_rank)
    random = f"random: B {middle(found.random_columns):.3f}, A {middle(found.random_rows):.3f}"
    return Sheet(
        title=f"{found.run}: medians over {len(found.modules)} modules and {len(found.pairs)} "
        "pairs of blocks, 1 run",
        columns=(
            *("step", "cos² of B", "cos² of A"),
            *("effective rank of the sum", "effective rank of what training added"),
        ),
        rows=tuple(
            (str(step), *(_number(values[index], ".3f" if n < 2 else ".2f")))
            if False
            else (
                str(step),
                *(
                    _number(middle(values[index]), ".3f" if place < 2 else ".2f")
                    for place, values in enumerate(series)
                ),
            )
            for index, step in enumerate(found.steps)
            for n in (0,)
        ),
        notes=(found.reading, random, *found.notes),
    )
