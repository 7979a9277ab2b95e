"""What a recipe does with its trained adapters: compose them, or merge them."""

from typing import Any

from coadapt.config import to_plain
from coadapt.loading import Loader
from coadapt.merge_methods import Merge
from coadapt.merging.hub import check_beforehand, compose_every_task, training_items
from coadapt.merging.of_runs import build_merged, merge_every_task, merged_config
from coadapt.model import MultiTaskModel
from coadapt.settings import RunConfig
from coadapt.tasks import TaskSuite


def check_compose(model: MultiTaskModel, config: RunConfig, suite: TaskSuite) -> None:
    """Refuse before training what could not be composed after it."""
    compose = config.recipe.compose
    if compose is None or isinstance(compose, Merge):
        return
    rows = {task: len(suite.rows(task, "train")) for task in suite.names}
    check_beforehand(model, compose, rows)


def after_training(
    model: MultiTaskModel, config: RunConfig, suite: TaskSuite, loader: Loader
) -> tuple[MultiTaskModel, dict[str, Any]]:
    """Return the model to keep and what is to be told of it in ``result.json``.

    LoRAHub changes the blocks of the model. A merge makes another model of structure ``single``, on
    the same base model and with the same heads.

    Args:
        model: the trained model.
        config: with the recipe.
        suite: the tasks.
        loader: has the rows and the base model.
    """
    compose = config.recipe.compose
    if compose is None:
        return model, {}
    if isinstance(compose, Merge):
        merged = merge_every_task(model, compose, config.seed)
        state = model.state_tensors()
        heads = {name: state[name] for name in state if name.startswith("heads/")}
        whole = build_merged(merged_config(config, suite, merged), suite, merged, heads, loader)
        told = {"method": to_plain(compose), "seed": config.seed, **merged.to_plain()}
        return whole.to(model.device), {"merge": told}
    headed = not model.is_language_model
    found = compose_every_task(
        model,
        lambda task: training_items(loader, config.model, suite, task, headed=headed),
        loader.collator(config.model),
        hub=compose,
        seed=config.seed,
    )
    return model, {"composition": {c.task: c.to_plain() for c in found}}
