"""What a run's blocks start from, and the ranks that follow from it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coadapt._files import write_json, write_text
from coadapt.config import dump_yaml, to_plain
from coadapt.inits import AbstractStatisticalInit, Start
from coadapt.layer_similarity import LayerSimilarity, find_last_layers
from coadapt.loading import Loader
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.runs import PLAN
from coadapt.settings import RunConfig
from coadapt.spectra import spectral_entropy_of
from coadapt.statistics import Request, gather_spectra
from coadapt.structures import TaskPrompt
from coadapt.tasks import TaskSuite

STATISTICS = "statistics.json"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run's model is built from.

    Attributes:
        recipe: with the layers that were found, where it asks for some to be.
        plan: with the ranks that followed from the statistics, if any.
        start: what the init fills blocks from.
        layers: what the choice of layers rests on.
    """

    recipe: Recipe
    plan: Plan | None
    start: Start = Start()
    layers: LayerSimilarity | None = None


def prepare_start(
    config: RunConfig, suite: TaskSuite, folder: str | Path, loader: Loader, *, quiet: bool
) -> Prepared:
    """Return what a run's model is built from, after gathering what its recipe asks for.

    Args:
        config: of the run.
        suite: its tasks.
        folder: where what is gathered lies, or will.
        loader: keeps what several runs share.
        quiet: whether to show no bar.
    """
    recipe, plan = config.recipe, config.plan
    init, structure = recipe.init, recipe.structure
    if isinstance(structure, TaskPrompt) and structure.layers == "similarity":
        found = find_last_layers(config, suite, loader)
        recipe = replace(recipe, structure=replace(structure, layers=found.chosen))
        return Prepared(recipe=recipe, plan=plan, layers=found)
    if not isinstance(init, AbstractStatisticalInit):
        return Prepared(recipe=recipe, plan=plan)
    assert plan is not None, "a recipe with such an init divides the rank axis"
    request = Request(model=config.model, init=init, rank=plan.budget, seed=config.seed)
    how = [to_plain(config.model), init.identity(), plan.budget, config.seed]
    spectra = loader.keep(
        [how, suite.whole.to_plain(), list(suite.names)],
        lambda: gather_spectra(request, suite, folder, loader=loader, quiet=quiet),
    )
    return Prepared(recipe=recipe, plan=init.refine(plan, spectra), start=Start(spectra=spectra))


def describe_start(plan: Plan, start: Start) -> dict[str, Any]:
    """Return, by module, each task's spectral entropy and each block's rank.

    Args:
        plan: with the ranks by module.
        start: with the spectra.
    """
    return {
        "modules": {
            module: {
                "entropy": {
                    task: spectral_entropy_of(s.sigma[: plan.budget]) for task, s in of.items()
                },
                "raw_entropy": {
                    task: spectral_entropy_of(s.sigma[: plan.budget], normalised=False)
                    for task, s in of.items()
                },
                "ranks": dict(zip(plan.blocks, plan.ranks_in(module), strict=True)),
            }
            for module, of in start.spectra.items()
        },
        "largest_residual": max(s.residual for of in start.spectra.values() for s in of.values()),
    }


def write_start(output: Path, config: RunConfig, plan: Plan | None, prepared: Prepared) -> None:
    """Write the plan that a run was trained with, and what its ranks or layers came from.

    Args:
        output: the run's folder.
        config: with the plan that was asked for.
        plan: that was taken.
        prepared: with the spectra or the layers' similarity.
    """
    start, layers = prepared.start, prepared.layers
    if layers is not None:
        similarity = {stack: values.tolist() for stack, values in layers.matrices.items()}
        told = {"interlayer_similarity": similarity, "layers": list(layers.chosen)}
        write_json(output / STATISTICS, told)
    if plan is not None and plan != config.plan:
        write_text(output / PLAN, dump_yaml(to_plain(plan)))
    if plan is not None and start.spectra:
        write_json(output / STATISTICS, describe_start(plan, start))
