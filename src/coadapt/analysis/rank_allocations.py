"""What ThanoRA gave each task in each map, and the entropies it gave it by."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coadapt._errors import InputError
from coadapt._files import read_json
from coadapt._sheet import Sheet
from coadapt.analysis._modules import by_kind
from coadapt.loading import Loader
from coadapt.planning import COOPERATIVE
from coadapt.runs import ADAPTER, Run, load_run
from coadapt.saving import saved_form
from coadapt.starting import STATISTICS

_GIVING = "take a run of a recipe whose init gives ranks by module, such as 'thanora'"


@dataclass(frozen=True, kw_only=True)
class RankAllocation:
    """The ranks of a run's blocks, module by module.

    Attributes:
        run: whose.
        blocks: their names, the tasks' own first.
        ranks: by module, a rank a block.
    """

    run: str
    blocks: tuple[str, ...]
    ranks: dict[str, dict[str, int]]

    @property
    def owners(self) -> tuple[str, ...]:
        """The blocks less the cooperative one."""
        return tuple(name for name in self.blocks if name != COOPERATIVE)

    @property
    def reading(self) -> str:
        """What each block has, and which has most in shallow and in deep layers."""
        told = []
        for block in self.blocks:
            ranks = [of[block] for of in self.ranks.values()]
            told.append(f"{block} {np.mean(ranks):.1f} ({min(ranks)} to {max(ranks)})")
        totals = sorted({sum(of.values()) for of in self.ranks.values()})
        budget = " or ".join(map(str, totals))
        shallow, deep = _halves(self.ranks)
        where = ""
        if deep:
            where = (
                f"; most in the first half of the layers: {self._most(shallow)}, in the second: "
                f"{self._most(deep)}"
            )
        return f"mean rank of {budget} a map: {', '.join(told)}{where}"

    def _most(self, modules: list[str]) -> str:
        means = {b: float(np.mean([self.ranks[m][b] for m in modules])) for b in self.owners}
        most = max(means.values())
        if len(means) > 1 and most == min(means.values()):
            return f"none, {most:.1f} each"
        return f"{' and '.join(b for b, mean in means.items() if mean == most)} with {most:.1f}"

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "run": self.run,
            "blocks": list(self.blocks),
            "ranks": {module: dict(of) for module, of in self.ranks.items()},
            "reading": self.reading,
        }


@dataclass(frozen=True, kw_only=True)
class SpectralEntropies:
    r"""Entropies of the leading singular values of W C, module by module.

    Attributes:
        run: whose statistics.
        tasks: their names; one for all tasks where the statistics are pooled.
        normalised: by module and task H / ln R, from 0 to 1.
        raw: the same in nats.
    """

    run: str
    tasks: tuple[str, ...]
    normalised: dict[str, dict[str, float]]
    raw: dict[str, dict[str, float]]

    @property
    def reading(self) -> str:
        """Which tasks have most and least, and how much they differ within a map."""
        values = np.array([list(of.values()) for of in self.normalised.values()])
        means = dict(zip(self.tasks, values.mean(axis=0).tolist(), strict=True))
        if len(means) == 1:
            ((task, mean),) = means.items()
            return f"mean normalised entropy of {task}: {mean:.3f}"
        high, low = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        within = np.ptp(values, axis=1).mean()
        between = np.ptp(values.mean(axis=1))
        return (
            f"mean normalised entropy is highest for {high} ({means[high]:.3f}) and lowest for "
            f"{low} ({means[low]:.3f}); in a map tasks are {within:.3f} apart on average, while "
            f"maps' means are up to {between:.3f} apart"
        )

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "run": self.run,
            "tasks": list(self.tasks),
            "normalised": {module: dict(of) for module, of in self.normalised.items()},
            "raw": {module: dict(of) for module, of in self.raw.items()},
            "reading": self.reading,
        }


def rank_allocation(run: str | Path | Run, *, loader: Loader | None = None) -> RankAllocation:
    """Return the ranks that a run's blocks have in each module.

    ThanoRA (arXiv 2505.18640, equations 6 to 8 and figure 4). A rank is a share of one map's
    budget, given by entropies of *inputs and weights* before training: it says nothing of what
    training made of it, and ranks of two tasks in one map depend on each other.

    Args:
        run: a finished run, or its folder.
        loader: keeps what several runs share.

    Raises:
        InputError: if the run has no plan, or the same ranks in every module by its plan.
    """
    found = run if isinstance(run, Run) else load_run(run, loader=loader)
    plan = saved_form(found.path / ADAPTER)[1]
    if plan is None or not plan.ranks:
        structure, init = found.config.recipe.structure.kind, found.config.recipe.init.kind
        raise InputError(
            f"run {found.path} has no ranks by module (structure '{structure}', init '{init}'); "
            f"{_GIVING}"
        )
    return RankAllocation(
        run=str(found.path),
        blocks=tuple(plan.blocks),
        ranks={module: dict(of) for module, of in plan.ranks.items()},
    )


def spectral_entropies(run: str | Path | Run, *, loader: Loader | None = None) -> SpectralEntropies:
    r"""Return the entropies of W C by module and task, from which a run's ranks came.

    .. math:: H_t = -\sum_{i \le R} p_i \ln p_i, \quad p_i = \sigma_i / \sum_{j \le R} \sigma_j

    ThanoRA (arXiv 2505.18640, equation 5 and figure 1c), over R, the summed rank, so that runs of
    other budgets do not compare. The weight's own spectrum is in it: what differs between maps is
    mostly W, what differs between tasks in one map is their inputs. It is no measure of how hard a
    task is.

    Args:
        run: a finished run, or its folder.
        loader: keeps what several runs share.

    Raises:
        InputError: if the run gathered no statistics.
    """
    found = run if isinstance(run, Run) else load_run(run, loader=loader)
    file = found.path / STATISTICS
    if not file.is_file():
        raise InputError(
            f"run {found.path} has no {STATISTICS} (init '{found.config.recipe.init.kind}'); "
            "take a run whose init gathers statistics, such as one of recipe 'thanora', and not "
            "one made from it"
        )
    modules = read_json(file)["modules"]
    normalised = {module: dict(of["entropy"]) for module, of in modules.items()}
    return SpectralEntropies(
        run=str(found.path),
        tasks=tuple(next(iter(normalised.values()))),
        normalised=normalised,
        raw={module: dict(of["raw_entropy"]) for module, of in modules.items()},
    )


def allocation_sheet(found: RankAllocation) -> Sheet:
    """Return the ranks, a row a module."""
    return Sheet(
        title=f"{found.run}: rank by module and block, 1 run",
        columns=("module", *found.blocks),
        rows=tuple(
            (module, *(str(of[block]) for block in found.blocks))
            for module, of in found.ranks.items()
        ),
        notes=(found.reading,),
    )


def entropies_sheet(found: SpectralEntropies) -> Sheet:
    """Return the normalised entropies, a row a module."""
    return Sheet(
        title=f"{found.run}: normalised spectral entropy by module and task, 1 run",
        columns=("module", *found.tasks),
        rows=tuple(
            (module, *(f"{of[task]:.3f}" for task in found.tasks))
            for module, of in found.normalised.items()
        ),
        notes=(found.reading,),
    )


def _halves(modules: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """Return the modules of the first half of the layers and of the second; it may be empty."""
    placed = [(layer, name) for of in by_kind(modules).values() for layer, name in of.items()]
    layers = sorted({layer for layer, _ in placed})
    first = set(layers[: (len(layers) + 1) // 2])
    shallow = [name for layer, name in placed if layer in first]
    return shallow, [name for layer, name in placed if layer not in first]
