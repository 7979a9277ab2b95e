"""The cells of a study: which there are, what each is asked to do, and which cannot be."""

import copy
import itertools
from pathlib import Path

import pytest

from coadapt import InputError
from coadapt.config import to_plain
from coadapt.planning import Plan
from coadapt.recipes import RECIPES
from coadapt.study.grid import TRAINING
from tests.study.inline import grid_of

ALL = ("sentiment", "topic", "same", "degree")
PAIRS = {"a": ["sentiment", "degree"], "b": ["topic", "same"]}
UNEVEN = {"a": ["sentiment", "degree", "topic"], "b": ["same"]}
CLUSTERED = {
    "recipes": {"lora": None, "clustered": {"plans": ["pairs", "chance"]}},
    "plans": {
        "pairs": {"kind": "clusters", "clusters": PAIRS},
        "chance": {"kind": "random", "like": "pairs", "count": 5},
    },
}


@pytest.fixture
def make(toy_study, tmp_path):
    """Returns the grid of the toy study with some keys of its own."""

    def make(**keys):
        return grid_of(tmp_path, {**copy.deepcopy(toy_study), **copy.deepcopy(keys)})

    return make


def names_of(groups):
    return [group.name for group in groups]


def group_of(grid, name):
    return next(group for group in grid.groups if group.name == name)


def rows_of(suite, task, split):
    rows = suite.rows(task, split)
    return list(zip(rows.texts, rows.pairs or rows.texts, rows.labels.tolist(), strict=True))


# Groups ------------------------------------------------------------------------------------


def test_groups_come_by_rows_tasks_recipe_budget_and_plan(make):
    grid = make(
        rows=[16, 8],
        tasks={"two": ["topic", "sentiment"], "all": list(ALL)},
        budgets=[8, 4],
        recipes={"frozen": None, "clustered": {"plans": ["uneven", "pairs"]}, "lora": None},
        plans={
            "pairs": {"kind": "clusters", "clusters": PAIRS},
            "uneven": {"kind": "clusters", "clusters": UNEVEN},
        },
    )
    clustered = ["uneven-R8", "pairs-R8", "uneven-R4", "pairs-R4"]
    arms = ["frozen", *(f"clustered-{plan}" for plan in clustered), "lora-R8", "lora-R4"]
    assert names_of(grid.groups) == [
        f"{arm}-{rows}-{tasks}"
        for rows in ("n16", "n8")
        for tasks in ("two", "all")
        for arm in arms
    ]
    assert [group.arm for group in grid.groups][: len(arms)] == arms
    assert grid.infeasible == {}
    first = grid.groups[0]
    assert (first.recipe, first.plan, first.budget, first.rows, first.tasks) == (
        "frozen", None, None, 16, "two",
    )  # fmt: skip


def test_a_study_without_rows_and_sets_has_short_names(make):
    assert names_of(make(rows=[]).groups) == ["lora-R8", "private-R8"]


def test_every_cell_has_a_name_of_its_own(make):
    grid = make(rows=[8, 16], tasks={"two": ["topic", "same"], "R8": list(ALL)}, **CLUSTERED)
    cells = [
        cell
        for group in grid.groups
        for cell in [*grid.trials(group), *grid.finals(group, 0), *grid.finals(group, 1)]
    ]
    assert len({cell.id.lower() for cell in cells}) == len(cells) - 2 * len(grid.groups)
    assert len(set(names_of(grid.groups))) == len(grid.groups)


def test_what_a_budget_is_too_small_for_is_listed_with_the_reason(make):
    recipes = ["lora", "private", "shared_private", "frozen"]
    grid = make(recipes=recipes, budgets=[3, 4], tasks={"all": list(ALL), "two": ["topic", "same"]})
    assert names_of(grid.groups) == [
        "lora-R3-n8-all", "lora-R4-n8-all", "private-R4-n8-all", "frozen-n8-all",
        *(f"{name}-R{r}-n8-two" for name in ("lora", "private", "shared_private") for r in (3, 4)),
        "frozen-n8-two",
    ]  # fmt: skip
    reasons = {group.name: reason for group, reason in grid.infeasible.items()}
    assert list(reasons) == [
        "private-R3-n8-all",
        "shared_private-R3-n8-all",
        "shared_private-R4-n8-all",
    ]
    assert "budget of 3 is smaller than the 4 blocks" in reasons["private-R3-n8-all"]
    assert "budget of 4 is smaller than the 5 blocks" in reasons["shared_private-R4-n8-all"]
    assert grid.spent.keys() == set(grid.groups)


# Cells -------------------------------------------------------------------------------------


def test_trials_run_with_the_tuning_seeds_and_finals_with_all(make):
    grid = make(seeds=[3, 1], tuning_seeds=[5, 1])
    group = grid.groups[0]
    assert [(c.role, c.trial, c.seed) for c in grid.trials(group)] == [
        ("trial", 0, 5), ("trial", 0, 1), ("trial", 1, 5), ("trial", 1, 1),
    ]  # fmt: skip
    finals = grid.finals(group, 1)
    assert [(c.role, c.trial, c.seed) for c in finals] == [("final", 1, 3), ("final", 1, 1)]
    assert [c.id for c in finals] == ["lora-R8-n8/final_seed3", "lora-R8-n8/final_seed1"]
    assert [c.id for c in grid.trials(group)][1] == "lora-R8-n8/trial0_seed1"
    assert [c.seed for c in make(seeds=[3, 1]).trials(group)] == [3, 3]


def test_a_final_run_may_have_been_trained_as_a_trial(make):
    grid = make()
    group = grid.groups[0]
    trial, final = grid.trials(group)[1], grid.finals(group, 1)[0]
    assert trial.run_id == final.run_id == "lora-R8-n8/trial1_seed0"
    assert trial.config == final.config
    assert trial.id != final.id
    assert trial.hash.partition("-")[0] == final.hash.partition("-")[0]
    assert (trial.hash.partition("-")[2], final.hash.partition("-")[2]) == ("validation", "test")
    other = grid.finals(group, 0)[0]
    assert other.run_id == grid.trials(group)[0].run_id != final.run_id


def test_a_cell_is_asked_for_what_the_study_says(make, tiny_bert):
    grid = make(
        recipes={
            "lora": {"training": {"weight_decay": 0.3, "warmup_steps": 2}},
            "private": {"trials": [{"learning_rate": 0.5, "epochs": {8: 3, 16: 7}}] * 2},
        },
        rows=[8, 16],
        training={"use_cpu": True, "weight_decay": 0.2, "eval_strategy": "epoch"},
        run={"batches": "single_task", "bucket": 1},
    )
    study = {"use_cpu": True, "weight_decay": 0.2, "eval_strategy": "epoch"}
    lora = grid.cell(group_of(grid, "lora-R8-n16"), "trial", 1, 1).config
    assert lora.training == {
        **TRAINING, **study, "weight_decay": 0.3, "warmup_steps": 2,
        "learning_rate": 2e-2, "num_train_epochs": 2,
    }  # fmt: skip
    assert TRAINING["eval_strategy"] == "steps"
    assert (lora.recipe, lora.recipe_name) == (RECIPES["lora"].recipe, "lora")
    assert lora.plan == Plan.shared(ALL, 8)
    assert (lora.seed, lora.batches, lora.bucket, lora.best) == (1, "single_task", 1, None)
    assert to_plain(lora.model)["name"] == str(tiny_bert)
    for rows, epochs in ((8, 3), (16, 7)):
        cell = grid.cell(group_of(grid, f"private-R8-n{rows}"), "final", 0, 0)
        assert cell.config.training == {
            **TRAINING,
            **study,
            "learning_rate": 0.5,
            "num_train_epochs": epochs,
        }
        assert cell.config.plan == Plan.private(ALL, 8)
        assert cell.num_rows == 4 * rows
        assert cell.cost == 4 * rows * epochs


def test_the_hash_holds_what_decides_the_result_and_nothing_else(make, toy_study):
    def hash_of(role="trial", trial=0, seed=0, group=None, **keys):
        grid = make(**keys)
        found = group_of(grid, group) if group else grid.groups[0]
        return grid.cell(found, role, trial, seed).hash

    first, second = toy_study["trials"]
    plans = {"pairs": {"kind": "clusters", "clusters": PAIRS}}
    same = [
        {"name": "other"}, {"effect": 0.5}, {"threads": 2}, {"seeds": [0, 7]}, {"plans": plans},
        {"tuning_seeds": [0, 2]}, {"budgets": [8, 4]}, {"rows": [8, 12]}, {"baseline": "private"},
        {"recipes": ["lora", "frozen"]}, {"redraw": False}, {"trials": [first]},
        {"recipes": {"mine": {"recipe": "lora"}}, "baseline": "mine"},
        {"recipes": {"lora": {"trials": [first] * 2}, "private": None}},
        {"tasks": {"every": list(ALL)}},
        {"trials": [second, first], "trial": 1},
    ]  # fmt: skip
    whole = hash_of()
    assert {hash_of(**keys) for keys in same} == {whole}
    model, suite = toy_study["model"], toy_study["suite"]
    other = [
        {"trial": 1}, {"seed": 1}, {"role": "final"}, {"group": "private-R8-n8"},
        {"budgets": [4]}, {"rows": [12]}, {"held_out": {"validation": 4, "test": 3}},
        {"trials": [{**first, "epochs": 3}]}, {"trials": [{**first, "learning_rate": 4e-3}]},
        {"training": {**toy_study["training"], "weight_decay": 0.5}},
        {"recipes": {"lora": {"training": {"weight_decay": 0.6}}, "private": None}},
        {"run": {"batches": "single_task"}}, {"model": {**model, "max_length": 32}},
        {"suite": {**suite, "seed": 1}}, {"tasks": {"two": ["topic", "same"]}},
        {"seed": 1, "redraw": False}, {"seed": 1, "role": "final"},
    ]  # fmt: skip
    hashes = [whole, *(hash_of(**keys) for keys in other)]
    assert len(set(hashes)) == len(hashes)


# Plans -------------------------------------------------------------------------------------


def clusters_of(grid, name):
    """Return the blocks of a group's cell, as a set of sets of tasks."""
    plan = grid.cell(group_of(grid, name), "final", 0, 0).config.plan
    return frozenset(frozenset(block.tasks) for block in plan.blocks.values())


def partitions_of(grid):
    names = [g.name for g in grid.groups if (g.plan or "").startswith("chance.")]
    return [clusters_of(grid, name) for name in names]


def test_random_partitions_are_all_others_of_the_same_sizes_if_they_are_few(make):
    grid = make(**CLUSTERED)
    assert names_of(grid.groups)[1:] == [
        f"clustered-{plan}-R8-n8" for plan in ("pairs", "chance.0", "chance.1")
    ]
    pairs = [
        frozenset(map(frozenset, [p, set(ALL) - set(p)])) for p in itertools.combinations(ALL, 2)
    ]
    proposed = clusters_of(grid, "clustered-pairs-R8-n8")
    assert proposed == frozenset(map(frozenset, PAIRS.values()))
    assert set(partitions_of(grid)) == set(pairs) - {proposed}


def test_random_partitions_are_distinct_and_drawn_by_their_seed(make):
    uneven = {"a": ["sentiment", "degree"], "b": ["topic"], "c": ["same"]}
    drawn = []
    for seed in (0, 0, 1, 2, 3):
        plans = {
            "pairs": {"kind": "clusters", "clusters": uneven},
            "chance": {"kind": "random", "like": "pairs", "count": 3, "seed": seed},
        }
        found = partitions_of(make(recipes=CLUSTERED["recipes"], plans=plans))
        assert len(set(found)) == len(found) == 3
        for partition in found:
            assert sorted(map(len, partition)) == [1, 1, 2]
            assert set().union(*partition) == set(ALL)
            assert partition != frozenset(map(frozenset, uneven.values()))
        drawn.append(found)
    assert drawn[0] == drawn[1]
    assert any(found != drawn[0] for found in drawn[2:])


def test_a_set_of_tasks_has_what_is_left_of_the_clusters(make):
    grid = make(
        tasks={"three": ["topic", "sentiment", "same"], "all": list(ALL), "one": ["topic", "same"]},
        **CLUSTERED,
    )
    three = grid.cell(group_of(grid, "clustered-pairs-R8-n8-three"), "final", 0, 0)
    assert three.suite.names == ("topic", "sentiment", "same")
    assert {name: (b.rank, b.tasks) for name, b in three.config.plan.blocks.items()} == {
        "a": (3, ("sentiment",)),
        "b": (5, ("topic", "same")),
    }
    lora = grid.cell(group_of(grid, "lora-R8-n8-three"), "final", 0, 0)
    assert lora.config.plan == Plan.shared(("topic", "sentiment", "same"), 8)
    # Chance deals the set's own tasks in the sizes that are left: two and one.
    dealt = {
        clusters_of(grid, g.name)
        for g in grid.groups
        if g.tasks == "three" and (g.plan or "").startswith("chance.")
    }
    assert dealt == {
        frozenset({frozenset({"topic", "sentiment"}), frozenset({"same"})}),
        frozenset({frozenset({"sentiment", "same"}), frozenset({"topic"})}),
    }
    # Of one cluster with everything there is no other partition; that is said.
    assert {g.name: reason for g, reason in grid.infeasible.items()} == {
        "clustered-chance-R8-n8-one": "no other partition of the tasks has these sizes"
    }


def test_a_set_has_the_rows_that_its_tasks_have_in_the_whole_suite(make):
    grid = make(tasks={"two": ["same", "topic"], "all": list(ALL)})
    two = grid.suite_of(group_of(grid, "lora-R8-n8-two"), 1)
    whole = grid.suite_of(group_of(grid, "lora-R8-n8-all"), 1)
    for task in two.names:
        for split in ("train", "validation", "test"):
            assert rows_of(two, task, split) == rows_of(whole, task, split)


# Rows --------------------------------------------------------------------------------------


def test_each_seed_draws_training_rows_and_keeps_the_held_out_ones(make):
    grid = make(rows=[8, 16])
    for rows in (8, 16):
        group = group_of(grid, f"lora-R8-n{rows}")
        first, second = grid.suite_of(group, 0), grid.suite_of(group, 1)
        for task in ALL:
            assert len(rows_of(first, task, "train")) == rows
            assert rows_of(first, task, "train") != rows_of(second, task, "train")
            for split, number in (("validation", 4), ("test", 4)):
                assert rows_of(first, task, split) == rows_of(second, task, split)
                assert len(rows_of(first, task, split)) <= number
    # The recipe makes no difference, and a smaller number of rows is part of a greater one.
    for seed in (0, 1):
        small = grid.suite_of(group_of(grid, "private-R8-n8"), seed)
        large = grid.suite_of(group_of(grid, "lora-R8-n16"), seed)
        assert grid.suite_of(group_of(grid, "lora-R8-n8"), seed) is small
        for task in ALL:
            assert set(rows_of(small, task, "train")) < set(rows_of(large, task, "train"))
            assert rows_of(small, task, "test") == rows_of(large, task, "test")


def test_without_redraw_every_seed_has_the_same_rows(make):
    grid = make(redraw=False)
    group = grid.groups[0]
    assert grid.suite_of(group, 1) is grid.suite_of(group, 0)
    first = make().suite_of(group, 0)
    assert rows_of(first, "topic", "train") == rows_of(grid.suite_of(group, 1), "topic", "train")


def test_the_suite_s_own_limits_hold_where_the_study_sets_none(make, toy_study):
    suite = {**toy_study["suite"], "max_rows": {"train": 5, "test": 2}}
    grid = make(suite=suite, rows=[], held_out={"validation": 3})
    counts = {
        split: len(rows_of(grid.suite_of(grid.groups[0], 0), "topic", split))
        for split in ("train", "validation", "test")
    }
    assert counts == {"train": 5, "validation": 3, "test": 2}
    plain = make(suite={**toy_study["suite"], "max_rows": 6}, rows=[], held_out={})
    assert len(rows_of(plain.suite_of(plain.groups[0], 0), "topic", "train")) == 6
    fewer = make(suite=suite, rows=[], held_out={"test": 1})
    assert len(rows_of(fewer.suite_of(fewer.groups[0], 0), "topic", "test")) == 1
    more = make(suite=suite, rows=[7])
    assert len(rows_of(more.suite_of(more.groups[0], 0), "topic", "train")) == 7


def test_tasks_with_fewer_rows_than_asked_are_told(make):
    assert make(rows=[8, 16]).short_tasks() == {}
    grid = make(rows=[8, 1000])
    there = {task: len(grid.suite_of(grid.groups[-1], 0).rows(task, "train")) for task in ALL}
    assert grid.short_tasks() == there
    assert all(16 < number < 40 for number in there.values())
    assert make(rows=[]).short_tasks() == {}


def test_a_task_without_rows_to_choose_by_is_refused(make, toy_study, tmp_path):
    task = toy_study["suite"]["tasks"]["topic"]
    rows = Path(task["data"]).read_text(encoding="utf-8").splitlines()
    # Of the rows to choose by, all are test rows too, and are dropped.
    for split, part in (("train", rows[:30]), ("validation", rows[30:35]), ("test", rows[30:])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
    files = {s: str(tmp_path / f"{s}.jsonl") for s in ("train", "validation", "test")}
    suite = copy.deepcopy(toy_study["suite"])
    suite["tasks"]["topic"]["data"] = {"kind": "file", "path": files}
    with pytest.raises(InputError, match=r"study.yaml: task 'topic' has no validation rows"):
        make(suite=suite)
