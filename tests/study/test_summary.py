"""Every number of a study's summary, against a slow oracle, on cells that were written by hand."""

import copy
import math

import pytest

from coadapt._stats import num_partitions
from coadapt.study import summarize
from coadapt.study.comparison import finite
from tests.reference import slow_summary as slow
from tests.study.fake_cells import (
    A_RANK,
    EFFECT,
    METRICS,
    NUM_RESAMPLES,
    WITH_F1,
    all_sheets,
    arm_of,
    assert_same,
    table_of,
)
from tests.toy_runs import content_of

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture(scope="module")
def fake(fake_of):
    return fake_of(first="f1")


@pytest.fixture(scope="module")
def summary(fake):
    return summarize(fake.grid, fake.folder)


def wanted_table(fake, arms, random=(), *, budget, fixed=("lora", "private")):
    """Return a table of the summary, from what was written and by the slow oracle."""
    by_arm = {f"{arm.name}": arm for arm in fake.arms.values()}
    end = f"-R{budget}"
    base, tasks = by_arm[f"lora{end}"], list(WITH_F1)
    found = slow.compare(
        [by_arm[name] for name in arms if name != base.name],
        base,
        WITH_F1,
        effect=EFFECT,
        num_resamples=NUM_RESAMPLES,
    )
    words = {"lora": "always shared", "private": "always private"}
    policies = {words[name]: slow.mean_score(by_arm[f"{name}{end}"], tasks) for name in fixed}
    rows = []
    for name in arms:
        recipe, _, rest = name.removesuffix(end).partition("-")
        group = fake.group(f"{name}-n8")
        trained = fake.trained[group.name].values()
        updates = [n for t in trained for k, n in t["updates"].items() if k != "heads/topic"]
        divides = recipe != "frozen"
        rows.append(
            {
                "recipe": recipe,
                "plan": rest or None,
                **slow.describe(by_arm[name], tasks),
                "trainable": A_RANK * budget if divides else 0,
                "allowed": A_RANK * budget if divides else None,
                "rank": None,  # of heads or experts, which this study has none of
                "scale": 2.0 if divides else None,
                "chosen": 1,
                "tried": [
                    {
                        "trial": trial, "seed": seed, "learning_rate": (5e-3, 2e-2)[trial],
                        "epochs": float(trial + 1), "status": "finished",
                        "halfway": fake.validation[group.name, trial, seed][0],
                        "validation": fake.validation[group.name, trial, seed][1],
                    }
                    for trial in (0, 1) for seed in (0, 1)
                ],
                **{k: slow.mean([t[k] for t in trained]) for k in ("steps", "tokens", "seconds")},
                "updates": [min(updates), max(updates)] if updates else None,
                **found.get(name, {}),
                "regret": slow.regret(slow.mean_score(by_arm[name], tasks), policies),
            }
        )  # fmt: skip
    return {
        "rows": 8,
        "tasks": tasks,
        "subset": None,
        "budget": budget,
        "baseline": base.name,
        "arms": rows,
        "partitions": [
            slow.against_null(
                by_arm[f"clustered-pairs{end}"], [by_arm[n] for n in random], tasks, 3
            )
        ]
        if random
        else [],
    }


def test_every_number_of_the_tables_is_the_oracle_s(fake, summary):
    wanted = []
    for budget in (8, 4):
        arms = ["lora-R#", "frozen", "private-R#", "clustered-pairs-R#"]
        arms += ["shared_private-R#"] if budget == 8 else []
        arms = [name.replace("#", str(budget)) for name in arms]
        random = [f"clustered-chance.{i}-R{budget}" for i in (0, 1)]
        wanted.append(wanted_table(fake, arms, random, budget=budget))
    tables = copy.deepcopy(summary["tables"])
    for table in tables:
        for found in table["partitions"]:
            drawn = found.pop("drawn")
            assert [d["clusters"] for d in drawn[1:]] != [drawn[0]["clusters"]] * 2
            assert slow.mean(list(drawn[0]["scores"].values())) == pytest.approx(found["score"])
            means = [slow.mean(list(d["scores"].values())) for d in drawn[1:]]
            assert means == pytest.approx(found["null"])
    assert_same(tables, wanted)
    # What was drawn shows all that can happen, or the oracle would prove little.
    rows = [row for table in summary["tables"] for row in table["arms"] if "difference" in row]
    outcomes = [d["outcome"] for row in rows for d in row["task_differences"].values()]
    assert {"win", "tie", "loss"} <= set(outcomes)
    assert {row["difference"]["outcome"] for row in rows} >= {"win", "loss"}
    assert any(row["difference"]["p_holm"] > row["difference"]["p_value"] for row in rows)
    assert any((row["seeds_needed"] or 0) > 2 for row in rows)
    assert all(table["partitions"][0]["all"] for table in summary["tables"])


def test_what_stands_beside_the_tables(summary):
    assert (summary["study"], summary["baseline"], summary["effect"]) == ("toy", "lora", EFFECT)
    assert (summary["seeds"], summary["tuning_seeds"]) == ([0, 1, 2], [0, 1])
    assert (summary["missing"], summary["over_tasks"]) == ({}, [])
    assert list(summary["infeasible"]) == ["shared_private-R4-n8"]
    assert "smaller than the 5 blocks" in summary["infeasible"]["shared_private-R4-n8"]


def test_a_summary_is_the_same_each_time_and_changes_no_file(fake_of):
    small = fake_of(recipes=["lora", "private"], plans={}, budgets=[8])
    before = content_of(small.folder)
    first, second = (summarize(small.grid, small.folder) for _ in range(2))
    assert first == second
    assert content_of(small.folder) == before


# Policies, partitions, sets of tasks --------------------------------------------------------


def test_a_plan_among_some_of_the_partitions(fake_of):
    clusters = {"a": ["sentiment", "degree"], "b": ["topic"], "c": ["same"]}
    plans = {
        "pairs": {"kind": "clusters", "clusters": clusters},
        "chance": {"kind": "random", "like": "pairs", "count": 4},
    }
    fake = fake_of(plans=plans, budgets=[8])
    random = [fake.arms[f"clustered-chance.{i}-R8-n8"] for i in range(4)]
    observed, tasks = fake.arms["clustered-pairs-R8-n8"], list(METRICS)
    (found,) = table_of(fake)["partitions"]
    drawn = found.pop("drawn")
    assert [len(d["clusters"]) for d in drawn] == [3] * 5
    assert drawn[0]["clusters"] == [list(tasks) for tasks in clusters.values()]
    assert len({str(d["clusters"]) for d in drawn}) == 5
    for partition, arm in zip(drawn, [observed, *random], strict=True):
        for task in tasks:
            scores = [arm.scores[seed][task] for seed in arm.scores]
            assert partition["scores"][task] == pytest.approx(slow.mean(scores))
    assert_same(found, slow.against_null(observed, random, tasks, num_partitions([2, 1, 1])))
    assert (found["existing"], found["all"]) == (6, False)
    # A partition that was not run is no part of the null; one alone has no spread.
    for index in (0, 1, 3):
        for seed in (0, 1, 2):
            (fake.folder / f"cells/clustered-chance.{index}-R8-n8/final_seed{seed}.json").unlink()
    (found,) = table_of(fake)["partitions"]
    assert len(found.pop("drawn")) == 2
    assert_same(found, slow.against_null(observed, random[2:3], tasks, 6))
    assert math.isnan(found["z"])
    assert "| 1 of 5 | " in all_sheets(fake)
    for seed in (0, 1, 2):
        (fake.folder / f"cells/clustered-chance.2-R8-n8/final_seed{seed}.json").unlink()
    assert table_of(fake)["partitions"] == []


def test_regret_is_against_the_policies_that_were_run(fake_of):
    fake = fake_of(recipes={"lora": None, "frozen": None}, plans={}, budgets=[8])
    rows = table_of(fake)["arms"]
    shared, frozen = (
        slow.mean_score(fake.arms[n], list(METRICS)) for n in ("lora-R8-n8", "frozen-n8")
    )
    assert_same([row["regret"] for row in rows], [
        {"always shared": 0.0, "best": 0.0},
        {"always shared": shared - frozen, "best": shared - frozen},
    ])  # fmt: skip
    assert shared > frozen
    alone = fake_of(recipes={"frozen": None}, plans={}, baseline="frozen")
    (row,) = table_of(alone)["arms"]
    assert "regret" not in row


def test_tables_come_by_rows_and_tasks_with_their_own_arms(fake_of):
    sets = {"three": ["topic", "same", "sentiment"], "all": list(METRICS)}
    recipes = {"lora": None, "frozen": None, "clustered": {"plans": ["pairs", "chance"]}}
    fake = fake_of(rows=[8, 12], tasks=sets, recipes=recipes, budgets=[2, 8])
    summary = summarize(fake.grid, fake.folder)
    heads = [(t["rows"], t["subset"], t["budget"], t["tasks"]) for t in summary["tables"]]
    assert heads == [(n, s, r, sets[s]) for n in (8, 12) for s in ("three", "all") for r in (2, 8)]
    for table in summary["tables"]:
        frozen = arm_of(table, "frozen")
        wanted = slow.describe(
            fake.arms[f"frozen-n{table['rows']}-{table['subset']}"], table["tasks"]
        )
        assert_same({key: frozen[key] for key in wanted}, wanted)
        assert frozen["difference"]["num"] == 3
        assert [found["existing"] for found in table["partitions"]] == [3]
    # The same arm on growing sets, scored on what is in all of them; no random partitions.
    arms = ["lora-R2", "lora-R8", "frozen", "clustered-pairs-R2", "clustered-pairs-R8"]
    series = summary["over_tasks"]
    assert {(s["arm"], s["rows"]) for s in series} == {(a, n) for a in arms for n in (8, 12)}
    for found in series:
        small, large = (fake.arms[f"{found['arm']}-n{found['rows']}-{s}"] for s in sets)
        small, large = (copy.copy(arm) for arm in (small, large))
        small.name, large.name = sets
        metrics = {task: METRICS[task] for task in METRICS if task in sets["three"]}
        difference = slow.compare(
            [large], small, metrics, effect=EFFECT, num_resamples=NUM_RESAMPLES
        )
        assert found["tasks"] == list(metrics)
        described = [slow.describe(arm, list(metrics)) for arm in (small, large)]
        assert_same(found["points"], [
            {"set": "three", "num_tasks": 3, **described[0]},
            {"set": "all", "num_tasks": 4, **described[1], **difference["all"]},
        ])  # fmt: skip


def test_numbers_that_are_none_become_null_wherever_they_stand():
    nan, inf = float("nan"), float("inf")
    found = finite({"a": [nan, (1.5, -inf)], "b": {"c": inf, "d": "nan"}, "e": None, "f": 3})
    assert found == {"a": [None, [1.5, None]], "b": {"c": None, "d": "nan"}, "e": None, "f": 3}
