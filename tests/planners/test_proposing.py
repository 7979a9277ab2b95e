"""Plans from constructed diagnoses: who shares, the ranks, the file, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coadapt
from coadapt import InputError
from coadapt.config import dump_yaml, load_yaml, parse
from coadapt.diagnosis import Diagnosis, PairMeasure
from coadapt.planners import plan, propose, write_plan
from coadapt.planners.proposing import name_clusters
from coadapt.planning import InfeasibleBudget, Plan
from coadapt.settings import read_train_file
from tests.planners.toy_diagnosis import diagnosis_of, families
from tests.toy_runs import QUICK, model_of, train_toy

FIVE = diagnosis_of(families([3, 2]), tasks=("sst2", "cola", "rte", "mrpc", "qqp"))

TWO = {"sharing": "clustered", "num_clusters": 2}


def ranks_of(made: Plan):
    return {name: block.rank for name, block in made.blocks.items()}


# Who shares --------------------------------------------------------------------------------------


def test_shared():
    made = propose(FIVE, budget=8, sharing="shared")
    assert made.plan == Plan.shared(FIVE.tasks, 8)
    assert (made.sharing, made.recipe, made.reasons) == (
        "shared",
        "lora",
        ("'shared' was asked for",),
    )


def test_private():
    made = propose(FIVE, budget=8, sharing="private")
    assert made.plan == Plan.private(FIVE.tasks, 8)
    assert (made.sharing, made.recipe) == ("private", "private")


def test_clusters_of_a_number_that_was_asked_for():
    made = propose(FIVE, budget=10, sharing="clustered", num_clusters=2)
    assert ranks_of(made.plan) == {"sst2+cola+rte": 6, "mrpc+qqp": 4}
    assert made.plan.blocks["mrpc+qqp"].tasks == ("mrpc", "qqp")
    assert (made.sharing, made.recipe) == ("clustered", "clustered")
    assert made.reasons == ("2 clusters were asked for",)


@pytest.mark.parametrize("num", [1, 5])
def test_one_cluster_and_as_many_as_tasks(num):
    made = plan(FIVE, budget=8, sharing="clustered", num_clusters=num)
    tasks = {block.tasks for block in made.blocks.values()}
    assert tasks == ({FIVE.tasks} if num == 1 else {(task,) for task in FIVE.tasks})


def test_clusters_of_a_number_that_is_chosen_by_stability():
    made = propose(FIVE, budget=10, sharing="clustered")
    assert list(made.plan.blocks) == ["sst2+cola+rte", "mrpc+qqp"]
    assert made.reasons[0].startswith("2 clusters (sst2, cola, rte; mrpc, qqp): resampling")
    assert "noise" not in made.reasons[0]


def test_clusters_that_noise_draws_are_made_but_told():
    found = diagnosis_of(families([1] * 4, between=0.2), noise=0.3)
    made = propose(found, budget=8, sharing="clustered")
    assert made.sharing == "clustered"
    assert made.reasons[0].endswith(", below 0.6: noise draws them")


def test_by_default_the_evidence_is_weighed():
    weighed = propose(FIVE, budget=10)
    assert weighed.plan == propose(FIVE, budget=10, sharing="clustered").plan
    assert weighed.reasons[-1].startswith("data are scarce (100 rows")
    assert propose(diagnosis_of(families([3, 2]), reliability=0.2), budget=8).sharing == "shared"


def test_two_unlike_tasks_get_adapters_of_their_own():
    found = diagnosis_of(families([1, 1], between=-0.5), tasks=("spam", "nyt"))
    made = propose(found, budget=5)
    assert (made.sharing, made.recipe) == ("private", "private")
    assert ranks_of(made.plan) == {"spam": 3, "nyt": 2}


def test_opposed_tasks_are_far_or_close_as_asked():
    found = diagnosis_of(families([2, 2], within=-0.8, between=0.1))
    clusters = {
        distance: {b.tasks for b in plan(found, budget=8, distance=distance, **TWO).blocks.values()}
        for distance in ("1-s", "1-s^2")
    }
    assert clusters["1-s^2"] == {("a", "b"), ("c", "d")}
    assert ("a", "b") not in clusters["1-s"]
    assert ("c", "d") not in clusters["1-s"]


# Ranks -------------------------------------------------------------------------------------------


def test_both_rules_for_ranks():
    found = diagnosis_of(families([4, 1]))
    assert list(ranks_of(plan(found, budget=8, **TWO)).values()) == [6, 2]
    assert list(ranks_of(plan(found, budget=8, ranks="uniform", **TWO)).values()) == [4, 4]
    weighed = propose(found, budget=8, ranks="uniform")
    assert list(ranks_of(weighed.plan).values()) == [4, 4]


@settings(deadline=None, max_examples=30)
@given(
    budget=st.integers(1, 40),
    sharing=st.sampled_from(["shared", "private", "clustered", "auto"]),
    ranks=st.sampled_from(["by_tasks", "uniform"]),
    noise=st.sampled_from([0.02, 0.5]),
)
def test_the_budget_is_spent_exactly_or_refused(budget, sharing, ranks, noise):
    found = diagnosis_of(families([2, 1, 1]), noise=noise)
    least = {"shared": 1, "private": 4, "clustered": 2, "auto": 1}[sharing]
    if budget < least:
        with pytest.raises(InfeasibleBudget, match=f"a rank budget of {budget} is smaller"):
            plan(found, budget=budget, sharing=sharing, ranks=ranks)
        return
    made = plan(found, budget=budget, sharing=sharing, ranks=ranks)
    assert made.budget == budget
    made.check(found.tasks)
    assert all(len(made.blocks_of(task)) == 1 for task in found.tasks)


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({"sharing": "shared"}, 0),
        ({"sharing": "auto"}, 0),
        ({"sharing": "private"}, 4),
        ({"sharing": "clustered"}, 1),
        ({"sharing": "clustered", "num_clusters": 3}, 2),
    ],
    ids=str,
)
def test_a_budget_without_a_rank_for_each_block_is_infeasible(options, budget):
    with pytest.raises(InfeasibleBudget, match=f"a rank budget of {budget} is smaller than the"):
        plan(FIVE, budget=budget, **options)


# Some of the tasks -------------------------------------------------------------------------------


def test_a_plan_for_some_of_the_tasks():
    made = plan(FIVE, budget=6, tasks=["qqp", "mrpc", "sst2"], **TWO)
    # In the diagnosis's order, with the similarities of these tasks.
    assert ranks_of(made) == {"sst2": 2, "mrpc+qqp": 4}
    assert propose(FIVE, budget=6, tasks=["sst2", "cola"]).plan == Plan.shared(["sst2", "cola"], 6)


def test_rows_and_reliability_are_those_of_the_tasks_asked_for():
    found = diagnosis_of(
        families([2, 2]), reliability=[0.9, 0.1, 0.9, 0.1], rows=[900, 10, 700, 20]
    )
    made = propose(found, budget=4, tasks=["a", "c"])
    assert "median reliability of 0.90 (0.90 to 0.90" in made.reasons[0]
    assert "every task has 700 rows or more" in made.reasons[1]


def test_replicates_are_those_of_the_tasks_asked_for():
    similarity = families([1, 1, 2], within=0.3)
    found = diagnosis_of(similarity, noise=0.01)
    assert (
        "similarity is 0.30, at most 0.3" in propose(found, budget=4, tasks=["c", "d"]).reasons[1]
    )
    assert propose(found, budget=4, tasks=["a", "d"]).sharing == "private"


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharing": "privat"}, "unknown sharing 'privat'; did you mean 'private'"),
        ({"distance": "1-s2"}, r"unknown distance '1-s2'; did you mean '1-s\^2'"),
        ({"ranks": "by_task"}, "unknown ranks 'by_task'; did you mean 'by_tasks'"),
        ({"num_clusters": 2}, "num_clusters is for sharing 'clustered', not for 'auto'"),
        ({"sharing": "private", "num_clusters": 2}, "not for 'private'; drop it"),
        ({**TWO, "num_clusters": 0}, "num_clusters must be 1 to 5, not 0"),
        ({**TWO, "num_clusters": 6}, "num_clusters must be 1 to 5, not 6"),
        ({**TWO, "num_clusters": 4, "tasks": ["rte", "qqp", "cola"]}, "must be 1 to 3, not 4"),
        ({"tasks": ["rte", "colla"]}, "is not about task 'colla'; did you mean 'cola'"),
        ({"tasks": ["rte"]}, "a plan needs two tasks or more"),
        ({"tasks": []}, "a plan needs two tasks or more"),
        ({"sharing": "clustered", "tasks": ["rte", "qqp"]}, "two tasks have no number of clusters"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(InputError, match=message):
        plan(FIVE, budget=8, **options)


@pytest.mark.parametrize("pairs", ["cosine", "similarity"])
@pytest.mark.parametrize("sharing", ["auto", "shared"])
def test_a_diagnosis_of_adapters_is_no_evidence(sharing, pairs):
    measure = PairMeasure(title="cosine", reading="", values=np.eye(2))
    found = Diagnosis(tasks=("a", "b"), of="2 adapters", rows={}, pairs={pairs: measure})
    with pytest.raises(
        InputError, match=r"diagnosis of 2 adapters does not say how .* suite\.yaml"
    ):
        plan(found, budget=8, sharing=sharing)


def test_a_plan_for_another_suite_does_not_train(tiny_bert, toy_suite_dict, tmp_path):
    made = plan(FIVE, budget=8, sharing="shared")
    with pytest.raises(InputError, match="the plan names task 'sst2', which the suite lacks"):
        train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", plan=made)


# Names of blocks ---------------------------------------------------------------------------------


def test_names_of_clusters_say_their_tasks_while_that_is_short():
    assert name_clusters([("a", "b"), ("c",)]) == {"a+b": ("a", "b"), "c": ("c",)}
    sixty = ("a" * 30, "b" * 29)
    assert list(name_clusters([sixty, ("c",)])) == ["a" * 30 + "+" + "b" * 29, "c"]
    longer = ("a" * 30, "b" * 30)
    assert name_clusters([longer, ("c",)]) == {"cluster1": longer, "cluster2": ("c",)}


def test_a_task_called_like_a_joined_cluster_gets_numbers():
    assert name_clusters([("a", "b"), ("a+b",)]) == {"cluster1": ("a", "b"), "cluster2": ("a+b",)}


def test_long_names_make_a_plan_all_the_same():
    tasks = [f"{letter * 50}" for letter in "abcde"]
    found = diagnosis_of(families([3, 2]), tasks=tasks)
    made = plan(found, budget=8)
    assert {name: block.tasks for name, block in made.blocks.items()} == {
        "cluster1": tuple(tasks[:3]),
        "cluster2": tuple(tasks[3:]),
    }


# Files -------------------------------------------------------------------------------------------


def test_a_diagnosis_may_be_a_file(tmp_path):
    FIVE.save(tmp_path / "d.json")
    for found in (FIVE, tmp_path / "d.json", str(tmp_path / "d.json")):
        assert coadapt.plan(found, budget=10) == propose(FIVE, budget=10).plan
    with pytest.raises(InputError, match="does not exist"):
        coadapt.plan(tmp_path / "none.json", budget=10)


@pytest.mark.parametrize("sharing", ["shared", "private", "clustered", "auto"])
def test_a_written_plan_is_what_train_reads(sharing, tiny_bert, toy_suite_dict, tmp_path):
    names = list(toy_suite_dict["tasks"])
    made = propose(diagnosis_of(families([2, 2]), tasks=names), budget=8, sharing=sharing)
    write_plan(made, tmp_path / "plan.yaml")
    train = {"model": model_of(tiny_bert), "suite": toy_suite_dict, "training": QUICK}
    train |= {"recipe": made.recipe, "plan": "plan.yaml"}
    (tmp_path / "train.yaml").write_text(dump_yaml(train), encoding="utf-8")
    config, suite = read_train_file(tmp_path / "train.yaml")
    assert config.plan is not None
    assert config.plan == made.plan
    assert list(config.plan.blocks) == list(made.plan.blocks)  # their order is the rank axis
    assert list(suite.names) == names
    comments = comments_of(tmp_path / "plan.yaml")
    assert comments[0] == f"sharing: {made.sharing}; train it with recipe: {made.recipe}"
    assert comments[1:] == [f"- {reason}" for reason in made.reasons]


def test_names_that_yaml_would_take_for_something_else(tmp_path):
    names = ("no", "1e3", "null", "0x10")
    found = diagnosis_of(families([1] * 4), tasks=names)
    made = propose(found, budget=8, sharing="private")
    write_plan(made, tmp_path / "plan.yaml")
    assert parse(Plan, load_yaml(tmp_path / "plan.yaml"), "plan.yaml") == made.plan


def comments_of(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in lines if line.startswith("#")]
