"""Choosing who shares by trying: successive halving over partitions, with short training runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coadapt._errors import InputError
from coadapt._files import write_json
from coadapt.diagnosis import Diagnosis
from coadapt.evaluation import overall
from coadapt.fitting import fit
from coadapt.loading import Loader
from coadapt.planners.evidence import Evidence, gather
from coadapt.planners.proposing import Proposal, name_clusters
from coadapt.planning import Distance, Plan, agglomerate
from coadapt.recipes import RECIPES
from coadapt.settings import RunConfig
from coadapt.tasks import TaskSuite

if TYPE_CHECKING:
    from rich.console import Console

_SPLIT = "validation"


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How long the candidates are trained.

    Args:
        epochs: of each candidate in the first round.
        keep: 1 in how many goes on to the next round, which is that many times as long; at least 2.
        seeds: that a candidate's score is averaged over.
    """

    epochs: float = 1.0
    keep: int = 2
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.epochs > 0 or self.keep < 2 or not self.seeds:
            raise InputError(
                f"a search needs epochs above 0, keep of at least 2 and a seed, not {self}"
            )

    def rounds(self, num_candidates: int) -> list[tuple[int, float]]:
        """Return the number of candidates and their epochs for each round."""
        found, left, epochs = [], num_candidates, self.epochs
        while left > 1:
            found.append((left, epochs))
            left, epochs = -(-left // self.keep), epochs * self.keep
        return found

    def cost(self, num_candidates: int) -> float:
        """Return the epochs that the whole search trains."""
        return len(self.seeds) * sum(num * epochs for num, epochs in self.rounds(num_candidates))


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search found.

    Attributes:
        plan: of the candidate that was left.
        name: of that candidate.
        epochs: that were trained in all.
        rounds: for each round its epochs and the candidates' mean validation scores, best first.
    """

    plan: Plan
    name: str
    epochs: float
    rounds: tuple[dict[str, Any], ...]


def candidates_of(
    evidence: Evidence,
    budget: int,
    *,
    distance: Distance = "1-s",
    ranks: Literal["by_tasks", "uniform"] = "by_tasks",
) -> dict[str, Plan]:
    """Return the cuts of the tasks' dendrogram from one cluster to as many as the budget allows.

    Args:
        evidence: of a diagnosis.
        budget: the summed rank, the same for each.
        distance: what is close.
        ranks: how the budget is split.
    """
    tree = agglomerate(evidence.similarity, evidence.tasks, distance=distance)
    most = min(len(evidence.tasks), budget)
    return {
        f"clusters{num}": Plan.clustered(name_clusters(tree.cut(num)), budget, rule=ranks)
        for num in range(1, most + 1)
    }


def search(
    base: RunConfig,
    suite: TaskSuite,
    candidates: Mapping[str, Plan],
    output: Path,
    *,
    config: SearchConfig | None = None,
    loader: Loader | None = None,
    console: "Console | None" = None,
) -> Search:
    """Train candidate plans briefly, keep the better part, train those longer, until one is left.

    Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
    optimization", 2016 (arXiv 1502.07943), algorithm 1, with epochs as the resource. Each round
    trains anew, with a learning-rate schedule of its own length. Scores are means over the tasks on
    validation rows; of equal scores the plan with fewer blocks goes on. The winner's score is the
    best of many and too high: judge the plan on test rows.

    Args:
        base: how to train; its plan, seed and epochs are replaced, and its recipe if it has no
            blocks by task.
        suite: the tasks.
        candidates: plans by name, two or more.
        output: a folder for the runs; those that are finished in it are not run again.
        config: how long.
        loader: keeps what the runs share.
        console: where to tell the cost and each round.

    Raises:
        InputError: if there is nothing to choose from, or a plan does not fit the suite.
    """
    config, loader = config or SearchConfig(), loader or Loader()
    if len(candidates) < 2:
        raise InputError(f"a search needs two candidates or more, not {len(candidates)}")
    for plan in candidates.values():
        plan.check(suite.names)
    cost, left = config.cost(len(candidates)), list(candidates)
    if console is not None:
        console.print(
            f"{len(left)} candidates, {cost:g} epochs of the suite in all "
            f"({len(config.rounds(len(left)))} rounds, {len(config.seeds)} seed(s))",
            highlight=False,
        )
    rounds: list[dict[str, Any]] = []
    for number, (_, epochs) in enumerate(config.rounds(len(candidates))):
        scores = {
            name: _score(
                _short(base, candidates[name], epochs),
                suite,
                output / f"round{number}" / name,
                config.seeds,
                loader,
            )
            for name in left
        }
        left.sort(key=lambda name: (-scores[name], len(candidates[name].blocks)))
        rounds.append({"epochs": epochs, "scores": {name: scores[name] for name in left}})
        if console is not None:
            told = ", ".join(f"{name} {scores[name]:.3f}" for name in left)
            console.print(f"{epochs:g} epochs each: {told}", highlight=False)
        left = left[: -(-len(left) // config.keep)]
    found = Search(
        plan=candidates[left[0]],
        name=left[0],
        epochs=cost,
        rounds=tuple(rounds),
    )
    write_json(
        output / "search.json", {"name": found.name, "epochs": found.epochs, "rounds": rounds}
    )
    return found


def propose_by_search(
    found: Diagnosis,
    base: RunConfig,
    suite: TaskSuite,
    output: Path,
    *,
    budget: int,
    config: SearchConfig | None = None,
    distance: Distance = "1-s",
    ranks: Literal["by_tasks", "uniform"] = "by_tasks",
    tasks: Sequence[str] | None = None,
    loader: Loader | None = None,
    console: "Console | None" = None,
) -> Proposal:
    """Return the plan that a search over the cuts of a diagnosis's dendrogram found.

    Args:
        found: the diagnosis.
        base: how to train.
        suite: the tasks, those that are planned for.
        output: a folder for the runs.
        budget: the summed rank.
        config: how long.
        distance: what is close.
        ranks: how the budget is split over clusters.
        tasks: those to plan for; all that were diagnosed if None.
        loader: keeps what the runs share.
        console: where to tell the cost and each round.

    Raises:
        InputError: if the suite's tasks are not those of the diagnosis.
    """
    evidence = gather(found, tasks)
    candidates = candidates_of(evidence, budget, distance=distance, ranks=ranks)
    best = search(base, suite, candidates, output, config=config, loader=loader, console=console)
    how = f"successive halving, {best.epochs:g} epochs in all"
    told = ", ".join(f"{name} {score:.3f}" for name, score in best.rounds[-1]["scores"].items())
    sharing = "shared" if len(best.plan.blocks) == 1 else "clustered"
    if len(best.plan.blocks) == len(evidence.tasks):
        sharing = "private"
    return Proposal(
        plan=best.plan,
        sharing=sharing,
        recipe="clustered",
        reasons=(
            f"the best of {len(candidates)} cuts by {how}",
            f"mean validation scores of the last round: {told}",
        ),
    )


def _short(base: RunConfig, plan: Plan, epochs: float) -> RunConfig:
    """Return the configuration with that plan and length, and nothing kept that is not needed."""
    dropped = ("max_steps", "eval_strategy", "eval_steps", "load_best_model_at_end")
    training = {key: value for key, value in base.training.items() if key not in dropped}
    training |= {"num_train_epochs": epochs, "save_strategy": "no"}
    banked = base.recipe.structure.kind == "bank"
    return replace(
        base,
        # One cluster of all tasks is a shared adapter.
        recipe=base.recipe if banked else RECIPES["clustered"].recipe,
        recipe_name=base.recipe_name if banked else "clustered",
        plan=plan,
        best=None,
        training=training,
    )


def _score(
    config: RunConfig, suite: TaskSuite, folder: Path, seeds: Sequence[int], loader: Loader
) -> float:
    """Return the mean validation score over tasks and seeds."""
    scores = []
    for seed in seeds:
        run = fit(
            replace(config, seed=seed), suite, folder / f"seed{seed}", resume=True, loader=loader
        )
        scores.append(overall(run.evaluate(_SPLIT, num_resamples=0)))
    return sum(scores) / len(scores)
