"""Plans: their shapes, what a plan refuses, and how tasks come and go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coadapt import InputError
from coadapt.config import dump_yaml, load_yaml, parse, to_plain
from coadapt.planning import Block, InfeasibleBudget, Plan

TASKS = ("sst2", "cola", "mrpc")


# Budgets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Plan.private, Plan.shared_private], ids=["private", "both"])
def test_a_budget_below_the_number_of_blocks_is_infeasible(make):
    with pytest.raises(InfeasibleBudget, match=r"budget of 2 is smaller than the [34] blocks"):
        make(TASKS, 2)


def test_the_infeasible_budgets_message_names_budget_and_blocks():
    with pytest.raises(InfeasibleBudget, match=r"budget of 0 .* 1 blocks"):
        Plan.shared(TASKS, 0)


@pytest.mark.parametrize("clusters", [{"empty": []}, {"full": ["a"], "empty": []}, {}], ids=str)
def test_a_cluster_without_tasks_is_refused(clusters):
    with pytest.raises(InputError, match="task"):
        Plan.clustered(clusters, 8)


# Shapes ------------------------------------------------------------------------------------------


def ranks_of(plan):
    return {name: block.rank for name, block in plan.blocks.items()}


def test_the_four_shapes():
    shared = Plan.shared(TASKS, 8)
    assert shared.blocks == {"shared": Block(rank=8, tasks=TASKS)}
    private = Plan.private(TASKS, 8)
    assert ranks_of(private) == {"sst2": 3, "cola": 3, "mrpc": 2}
    assert all(block.tasks == (name,) for name, block in private.blocks.items())
    clustered = Plan.clustered({"pairs": ["mrpc"], "single": ["sst2", "cola"]}, 6)
    assert ranks_of(clustered) == {"pairs": 2, "single": 4}
    both = Plan.shared_private(TASKS, 9)
    assert ranks_of(both) == {"shared": 5, "sst2": 2, "cola": 1, "mrpc": 1}
    assert both.blocks["shared"].tasks == TASKS
    for plan in (shared, private, clustered, both):
        assert set(plan.tasks) == set(TASKS)
        plan.check(TASKS)
    assert [plan.budget for plan in (shared, private, clustered, both)] == [8, 8, 6, 9]


@given(st.integers(1, 8), st.integers(1, 30))
def test_shared_private_keeps_the_budget_and_a_rank_for_each(num_tasks, spare):
    tasks = [f"t{i}" for i in range(num_tasks)]
    plan = Plan.shared_private(tasks, num_tasks + spare)
    assert plan.budget == num_tasks + spare
    assert list(plan.blocks) == ["shared", *tasks]
    assert plan.blocks["shared"].rank == min((num_tasks + spare + 1) // 2, spare)


def test_shared_private_refuses_a_task_called_shared():
    with pytest.raises(InputError, match="no task may be named 'shared'"):
        Plan.shared_private(["shared", "other"], 8)


def test_blocks_of_a_task():
    plan = Plan.shared_private(TASKS, 8)
    assert plan.blocks_of("cola") == ("shared", "cola")
    assert plan.blocks_of("nothing") == ()


# Errors ------------------------------------------------------------------------------------------


def test_an_unknown_task_is_named_with_its_nearest():
    plan = Plan.private(("sst2", "cola", "mrcp"), 6)
    with pytest.raises(InputError, match=r"names task 'mrcp', which .* did you mean 'mrpc'"):
        plan.check(TASKS)


def test_a_task_left_out_is_named():
    with pytest.raises(InputError, match="leaves out task 'mrpc'; add it to a block"):
        Plan.private(TASKS[:2], 6).check(TASKS)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(InputError, match=f"at least 1, not {rank}"):
        Block(rank=rank, tasks=TASKS)


def test_a_task_listed_twice_is_refused():
    with pytest.raises(InputError, match="twice: cola, cola"):
        Block(rank=1, tasks=("cola", "cola"))


@pytest.mark.parametrize("name", ["", "a/b", "heads", "backbone", "n" * 101], ids=repr)
def test_a_block_name_that_would_hurt_a_file_is_refused(name):
    with pytest.raises(InputError, match=f"cannot be named '{name}'"):
        Plan(blocks={name: Block(rank=1, tasks=TASKS)})


# Tasks that come and go --------------------------------------------------------------------------


def test_a_new_task_gets_a_block_of_its_own():
    plan = Plan.private(TASKS, 6).with_task("rte", rank=4)
    assert plan.blocks["rte"] == Block(rank=4, tasks=("rte",))
    assert plan.without_task("rte") == Plan.private(TASKS, 6)
    assert list(plan.blocks) == [*TASKS, "rte"]


def test_a_new_task_joins_the_common_block():
    old = Plan.shared_private(TASKS, 8)
    plan = old.with_task("rte", rank=2)
    assert plan.blocks_of("rte") == ("shared", "rte")
    assert plan.blocks["shared"] == Block(rank=4, tasks=(*TASKS, "rte"))
    assert plan.without_task("rte") == old
    assert Plan.shared(TASKS, 8).with_task("rte", rank=2) == Plan.shared((*TASKS, "rte"), 8)


def test_a_task_taken_away_takes_only_its_own_blocks():
    plan = Plan.clustered({"one": TASKS[:1], "rest": TASKS[1:]}, 6)
    assert plan.without_task("cola").blocks["rest"] == Block(rank=4, tasks=("mrpc",))
    assert list(plan.without_task("sst2").blocks) == ["rest"]
    assert "shared" in Plan.shared_private(TASKS, 8).without_task("cola").blocks


def test_errors_of_tasks_that_come_and_go():
    plan = Plan.clustered({"rte": TASKS[:1], "rest": TASKS[1:]}, 6)
    with pytest.raises(InputError, match="has task 'cola' already"):
        plan.with_task("cola", rank=1)
    with pytest.raises(InputError, match="has a block named 'rte' already"):
        plan.with_task("rte", rank=1)
    with pytest.raises(InputError, match="no task 'colla'; did you mean 'cola'"):
        plan.without_task("colla")


# Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        Plan.shared(TASKS, 8),
        Plan.clustered({"one": TASKS[:1], "1e3": TASKS[1:2], "no": TASKS[2:]}, 7),
        Plan.shared_private(TASKS, 8),
    ],
    ids=["shared", "clustered", "shared_private"],
)
def test_a_plan_comes_back_from_yaml(plan, tmp_path):
    assert parse(Plan, to_plain(plan), "here") == plan
    file = tmp_path / "plan.yaml"
    file.write_text(dump_yaml(to_plain(plan)), encoding="utf-8")
    back = parse(Plan, load_yaml(file), str(file))
    assert back == plan
    assert list(back.blocks) == list(plan.blocks)  # their order is the rank axis


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"blocks": {"a": {"rank": 0, "tasks": ["t"]}}}, r"blocks\.a.*at least 1, not 0"),
        ({"blocks": {"a": {"rank": 1.5, "tasks": ["t"]}}}, r"blocks\.a\.rank.*found 1\.5"),
        ({"blocks": {"a": {"ranks": 1, "tasks": ["t"]}}}, r"blocks\.a\.ranks.*mean 'rank'"),
        ({"blocks": {"a": {"rank": 1}}}, r"blocks\.a\.tasks.*missing"),
        ({"block": {}}, r"'block'; did you mean 'blocks'"),
    ],
    ids=["rank_0", "rank_1.5", "unknown_key", "no_tasks", "no_blocks"],
)
def test_a_bad_plan_file_is_refused_with_the_place(plain, message):
    with pytest.raises(InputError, match=rf"plan\.yaml.*{message}"):
        parse(Plan, plain, "plan.yaml")
