"""Plans made from a diagnosis and a rank budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coadapt._errors import InputError, nearest
from coadapt._files import write_text
from coadapt.config import dump_yaml, to_plain
from coadapt.diagnosis import Diagnosis, load_diagnosis
from coadapt.planners.auto import MIN_STABILITY, advise, fewest_stable
from coadapt.planners.evidence import Evidence, gather
from coadapt.planning import Distance, Plan, agglomerate
from coadapt.planning.ranks import refuse_infeasible

Wanted = Literal["shared", "private", "clustered", "auto"]

_RECIPES = {"shared": "lora", "private": "private", "clustered": "clustered"}
_LONGEST = 60  # characters of a block's name made of its tasks


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A plan, what to train it with, and why.

    Attributes:
        plan: who shares, with ranks.
        sharing: which kind of plan it is.
        recipe: the recipe that trains it.
        reasons: sentences with the numbers that decided.
    """

    plan: Plan
    sharing: Literal["shared", "private", "clustered"]
    recipe: str
    reasons: tuple[str, ...]


def plan(
    found: Diagnosis | str | Path,
    *,
    budget: int,
    sharing: Wanted = "auto",
    num_clusters: int | None = None,
    distance: Distance = "1-s",
    ranks: Literal["by_tasks", "uniform"] = "by_tasks",
    tasks: Sequence[str] | None = None,
) -> Plan:
    """Return a plan; :func:`propose` also says why.

    Args:
        found: a diagnosis, or its file.
        budget: the summed rank R.
        sharing: ``auto`` weighs the evidence; the others do as they are told.
        num_clusters: K of ``clustered``; chosen by stability if None.
        distance: what is close: ``1-s``, or ``1-s^2`` by which opposed tasks are close too.
        ranks: how the budget is split over clusters: ``by_tasks`` or ``uniform``.
        tasks: those to plan for; all that were diagnosed if None.

    Raises:
        InputError: if an argument does not fit the diagnosis.
        InfeasibleBudget: if the budget has no rank for each block.

    Example:
        ``plan = coadapt.plan("diagnosis.json", budget=8)``
    """
    loaded = found if isinstance(found, Diagnosis) else load_diagnosis(found)
    return propose(
        loaded,
        budget=budget,
        sharing=sharing,
        num_clusters=num_clusters,
        distance=distance,
        ranks=ranks,
        tasks=tasks,
    ).plan


def propose(
    found: Diagnosis,
    *,
    budget: int,
    sharing: Wanted = "auto",
    num_clusters: int | None = None,
    distance: Distance = "1-s",
    ranks: Literal["by_tasks", "uniform"] = "by_tasks",
    tasks: Sequence[str] | None = None,
) -> Proposal:
    """Return a plan with its reasons, see :func:`plan`."""
    for name, value, known in (
        ("sharing", sharing, ["shared", "private", "clustered", "auto"]),
        ("distance", distance, ["1-s", "1-s^2"]),
        ("ranks", ranks, ["by_tasks", "uniform"]),
    ):
        if value not in known:
            raise InputError(f"unknown {name} '{value}'{nearest(value, known)}")
    if num_clusters is not None and sharing != "clustered":
        raise InputError(f"num_clusters is for sharing 'clustered', not for '{sharing}'; drop it")
    evidence = gather(found, tasks)
    if sharing == "auto":
        advice = advise(evidence, budget, distance=distance)
        return _proposal(advice.sharing, advice.clusters, budget, ranks, advice.reasons)
    if sharing == "clustered":
        clusters, reason = _clusters(evidence, num_clusters, budget, distance)
        return _proposal("clustered", clusters, budget, ranks, (reason,))
    whole = (evidence.tasks,)
    clusters = whole if sharing == "shared" else tuple((task,) for task in evidence.tasks)
    return _proposal(sharing, clusters, budget, ranks, (f"'{sharing}' was asked for",))


def write_plan(proposal: Proposal, path: Path) -> None:
    """Write a plan that ``coadapt train`` takes, the reasons as comments above it."""
    lines = [f"# sharing: {proposal.sharing}; train it with recipe: {proposal.recipe}"]
    lines += [f"# - {reason}" for reason in proposal.reasons]
    write_text(path, "\n".join(lines) + "\n" + dump_yaml(to_plain(proposal.plan)))


def name_clusters(clusters: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return clusters by name: their tasks joined by '+', or a number where that gets long."""
    joined = {"+".join(tasks): tuple(tasks) for tasks in clusters}
    if max(map(len, joined)) <= _LONGEST and len(joined) == len(clusters):
        return joined
    return {f"cluster{number}": tuple(tasks) for number, tasks in enumerate(clusters, start=1)}


def _clusters(
    evidence: Evidence, num_clusters: int | None, budget: int, distance: Distance
) -> tuple[tuple[tuple[str, ...], ...], str]:
    """Return the clusters, K given or chosen, and a sentence on that."""
    num = len(evidence.tasks)
    if num_clusters is not None:
        if not 1 <= num_clusters <= num:
            raise InputError(f"num_clusters must be 1 to {num}, not {num_clusters}")
        tree = agglomerate(evidence.similarity, evidence.tasks, distance=distance)
        return tree.cut(num_clusters), f"{num_clusters} clusters were asked for"
    if num < 3:
        raise InputError("two tasks have no number of clusters to choose; give num_clusters")
    refuse_infeasible(budget, 2)
    best, reason = fewest_stable(evidence, budget, distance=distance)
    if best.stability < MIN_STABILITY:
        reason += f", below {MIN_STABILITY}: noise draws them"
    return best.clusters, reason


def _proposal(
    sharing: Literal["shared", "private", "clustered"],
    clusters: Sequence[Sequence[str]],
    budget: int,
    ranks: Literal["by_tasks", "uniform"],
    reasons: tuple[str, ...],
) -> Proposal:
    if sharing == "shared":
        made = Plan.shared(clusters[0], budget)
    else:
        made = Plan.clustered(name_clusters(clusters), budget, rule=ranks)
    return Proposal(plan=made, sharing=sharing, recipe=_RECIPES[sharing], reasons=reasons)
