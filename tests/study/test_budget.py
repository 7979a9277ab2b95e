"""What a recipe trains is counted as it is when the model is built, and held to the budget."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from coadapt import InputError
from coadapt.adapters import ConstantGate
from coadapt.config import parse
from coadapt.model import build_model
from coadapt.planning import Block, Plan
from coadapt.recipe import Recipe
from coadapt.recipes import RECIPES
from coadapt.settings import ModelConfig
from coadapt.structures._partition import AbstractPartitioned
from coadapt.structures.base import Attached, Site
from coadapt.study import Entry, Grid, read_study
from coadapt.study.budget import Counter, Spent
from coadapt.tasks import load_suite
from tests.study.inline import write_study
from tests.toy_runs import model_of

ALL = ("sentiment", "topic", "same", "degree")
PLANS = {
    "lora": Plan.shared(ALL, 7),
    "private": Plan.private(ALL, 7),
    "clustered": Plan.clustered({"a": ALL[:3], "b": ALL[3:]}, 7),
    "shared_private": Plan.shared_private(ALL, 7),
    "full": None,
    "frozen": None,
}


@dataclass(frozen=True, kw_only=True)
class Greedy(AbstractPartitioned):
    """A LoRA that takes more of the rank axis than its plan says."""

    kind: Literal["greedy"] = "greedy"
    extra: int = 0

    depends_on = "nothing"

    def attach(self, site: Site) -> Attached:
        assert site.plan is not None
        blocks = {n: replace(b, rank=b.rank + self.extra) for n, b in site.plan.blocks.items()}
        gate = ConstantGate(len(blocks))
        return self._attach_blocks(site, blocks, lambda *_: gate)


@pytest.mark.parametrize("targets", ["attention", "all-linear", ["query"]], ids=str)
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("pooling", ["mean", "pooler"])  # with the first the pooler is left out
def test_count_is_that_of_the_model(pooling, name, targets, tiny_bert, toy_suite_dict):
    data = model_of(tiny_bert, target_modules=targets, pooling=pooling)
    config = parse(ModelConfig, data, "test")
    recipe, plan = RECIPES[name].recipe, PLANS[name]
    model = build_model(config, load_suite(toy_suite_dict).tasks, recipe, plan)
    counter = Counter(config)
    spent = counter.spent(recipe, ALL, plan)
    assert spent.trainable == sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
    assert spent.trainable == model.num_trainable["adapters"]
    assert spent.fits
    if plan is None:
        assert (spent.allowed, spent.scale) == (None, None)
        assert spent.trainable == (counter.num_weights if name == "full" else 0)
    else:
        # Two layers of 32 dimensions and 64 within: R (in + out) a map.
        attention = {"attention": 2, "all-linear": 4}.get(str(targets), 1) * (32 + 32)
        within = 2 * (32 + 64) if targets == "all-linear" else 0
        assert spent.trainable == spent.allowed == 7 * 2 * (attention + within)
        assert spent.scale == 2.0


def test_counting_needs_no_weights_and_leaves_nothing_behind(tiny_bert, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_bert / "config.json").read_bytes())
    config = parse(ModelConfig, model_of(tmp_path), "test")
    counter = Counter(config)
    recipe = RECIPES["lora"].recipe
    found = [counter.spent(recipe, ALL, Plan.shared(ALL, rank)).trainable for rank in (2, 4, 2)]
    assert found == [2 * 2 * 2 * 64, 4 * 2 * 2 * 64, 2 * 2 * 2 * 64]
    assert counter.spent(RECIPES["frozen"].recipe, ALL, None).trainable == 0


def test_only_a_recipe_with_adapters_asks_where_they_go(tiny_bert):
    counter = Counter(parse(ModelConfig, model_of(tiny_bert, target_modules="nothing"), "test"))
    assert counter.spent(RECIPES["frozen"].recipe, ALL, None).trainable == 0
    with pytest.raises(InputError, match="target_modules 'nothing' matches no linear module"):
        counter.spent(RECIPES["lora"].recipe, ALL, PLANS["lora"])


@pytest.mark.parametrize(
    ("trainable", "allowed", "fits"),
    [(100, 100, True), (102, 100, True), (103, 100, False), (98, 100, True), (97, 100, False)],
)
def test_two_percent_more_or_less_are_allowed(trainable, allowed, fits):
    assert Spent(trainable=trainable, allowed=allowed, scale=1.0).fits is fits


def test_what_stands_outside_the_budget_always_fits():
    assert Spent(trainable=10**9, allowed=None, scale=None).fits


def test_a_recipe_that_trains_too_much_is_listed_and_the_others_run(toy_study, tmp_path):
    path = write_study(tmp_path, {**toy_study, "budgets": [8, 64]})
    study, suite = read_study(path)
    structure: Any = Greedy(extra=1)
    greedy = Recipe(structure=structure, sharing="shared")
    study = replace(study, recipes={**study.recipes, "greedy": Entry(recipe=greedy)})
    # One more rank is 12.5 % of 8 and 1.6 % of 64; only what fits is asked what it trains with.
    with pytest.raises(InputError, match="unknown kind 'greedy'"):
        Grid(study, suite, str(path))
    grid = Grid(replace(study, budgets=(8,)), suite, str(path))
    assert [group.name for group in grid.groups] == ["lora-R8-n8", "private-R8-n8"]
    assert {group.name: reason for group, reason in grid.infeasible.items()} == {
        "greedy-R8-n8": "it trains 2,304 values where rank 8 allows 2,048 (2 % more or less); "
        "change its ranks"
    }


def test_block_ranks_follow_the_budget(toy_study, tmp_path):
    path = write_study(tmp_path, {**toy_study, "budgets": [6], "recipes": ["lora", "private"]})
    grid = Grid(*read_study(path), str(path))
    private = grid.cell(grid.groups[1], "trial", 0, 0).config.plan
    assert private is not None
    assert [block.rank for block in private.blocks.values()] == [2, 2, 1, 1]
    assert private.blocks["topic"] == Block(rank=2, tasks=("topic",))
    assert {spent.trainable for spent in grid.spent.values()} == {6 * 2 * 2 * 64}
