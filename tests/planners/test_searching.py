"""Successive halving: with training that is made up, and with tiny runs."""

import io
import json
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from coadapt import InputError, load_suite
from coadapt.evaluation import Score, TaskScores
from coadapt.planners import SearchConfig, candidates_of, propose_by_search, search
from coadapt.planning import Plan
from coadapt.settings import RunConfig, resolve
from coadapt.tasks import TaskSuite
from coadapt.training import MultiTaskTrainer
from tests.conftest import sentence, sentiment_row
from tests.planners.toy_diagnosis import diagnosis_of, evidence_of, families
from tests.toy_runs import model_of, recipe_of, result_of

NAMES = ("sentiment", "topic", "same", "degree")
SCORES = {1: 0.5, 2: 0.7, 3: 0.8, 4: 0.6}  # of a plan with so many blocks


@dataclass
class Trained:
    """A call of `fit` that trains nothing."""

    config: RunConfig
    output: str
    resume: bool


@pytest.fixture
def base(tiny_bert, toy_suite_dict):
    return config_of(tiny_bert, toy_suite_dict)


def config_of(folder, suite, recipe: Any = "lora", *, pooling="auto", **options):
    training = {
        "use_cpu": True,
        "learning_rate": 1e-2,
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    model = model_of(folder, pooling=pooling)
    data = {"model": model, "recipe": recipe, "training": training, **options}
    return resolve(data, load_suite(suite), where="test")


@pytest.fixture
def toy(toy_suite_dict):
    return load_suite(toy_suite_dict)


@pytest.fixture
def calls(monkeypatch):
    """Every training that a search asks for; a plan scores by the number of its blocks."""
    made = []

    def fit(config, suite, output, *, resume, loader):
        del loader
        made.append(Trained(config, output, resume))
        return FakeRun(config, suite)

    monkeypatch.setattr("coadapt.planners.searching.fit", fit)
    return made


class FakeRun:
    def __init__(self, config, suite):
        self.config, self.suite = config, suite

    def evaluate(self, split, *, num_resamples):
        assert (split, num_resamples) == ("validation", 0)
        # The seeds' mean is what counts: seed 1 adds, seed 2 takes away twice as much.
        value = SCORES[len(self.config.plan.blocks)] + {0: 0, 1: 0.1, 2: -0.2}[self.config.seed]
        score = Score(value=value, low=value, high=value)
        return {name: TaskScores(num_rows=1, metrics={"m": score}) for name in self.suite.names}


def plans(*nums):
    return {f"k{num}": plan_of(num) for num in nums}


def plan_of(num):
    groups = [[name] for name in NAMES[: num - 1]] + [list(NAMES[num - 1 :])]
    return Plan.clustered({f"block{i}": group for i, group in enumerate(groups)}, 8)


# Rounds and cost ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num", "config", "rounds", "cost"),
    [
        (4, {}, [(4, 1), (2, 2)], 8),
        (5, {}, [(5, 1), (3, 2), (2, 4)], 19),
        (5, {"keep": 3}, [(5, 1), (2, 3)], 11),
        (2, {"epochs": 0.5, "seeds": (0, 1, 2)}, [(2, 0.5)], 3),
        (9, {"keep": 3, "epochs": 2, "seeds": (4, 5)}, [(9, 2), (3, 6)], 72),
        (1, {}, [], 0),
    ],
    ids=str,
)
def test_rounds_and_cost_by_hand(num, config, rounds, cost):
    found = SearchConfig(**config)
    assert found.rounds(num) == rounds
    assert found.cost(num) == cost


@settings(deadline=None, max_examples=50)
@given(num=st.integers(2, 40), keep=st.integers(2, 6), epochs=st.floats(0.1, 3))
def test_each_round_keeps_one_in_so_many_and_lasts_so_much_longer(num, keep, epochs):
    rounds = SearchConfig(keep=keep, epochs=epochs).rounds(num)
    assert rounds[0] == (num, epochs)
    for (before, short), (after, long) in pairwise(rounds):
        assert (before - 1) // keep + 1 == after < before
        assert long == pytest.approx(keep * short)
    assert 1 < rounds[-1][0] <= keep


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"epochs": float("nan")}, {"keep": 1}, {"seeds": ()}], ids=str
)
def test_a_search_that_cannot_be_is_refused(options):
    with pytest.raises(InputError, match="a search needs epochs above 0, keep of at least 2"):
        SearchConfig(**options)


# The search --------------------------------------------------------------------------------------


def test_the_best_survives(calls, base, toy, tmp_path):
    told = io.StringIO()
    console = Console(file=told, width=200)
    found = search(base, toy, plans(1, 2, 3, 4), tmp_path, console=console)
    assert (found.name, found.plan) == ("k3", plan_of(3))
    assert found.epochs == 8
    assert found.rounds == (
        {"epochs": 1.0, "scores": {"k3": 0.8, "k2": 0.7, "k4": 0.6, "k1": 0.5}},
        {"epochs": 2.0, "scores": {"k3": 0.8, "k2": 0.7}},
    )
    assert [list(entry["scores"]) for entry in found.rounds] == [
        ["k3", "k2", "k4", "k1"],
        ["k3", "k2"],
    ]
    lengths = [call.config.training["num_train_epochs"] for call in calls]
    assert lengths == [1, 1, 1, 1, 2, 2]
    assert sum(lengths) == found.epochs
    assert told.getvalue().splitlines() == [
        "4 candidates, 8 epochs of the suite in all (2 rounds, 1 seed(s))",
        "1 epochs each: k3 0.800, k2 0.700, k4 0.600, k1 0.500",
        "2 epochs each: k3 0.800, k2 0.700",
    ]
    written = json.loads((tmp_path / "search.json").read_text())
    assert written == {"name": "k3", "epochs": 8.0, "rounds": list(found.rounds)}


def test_scores_are_means_over_the_seeds(calls, base, toy, tmp_path):
    found = search(base, toy, plans(1, 2), tmp_path, config=SearchConfig(seeds=(1, 2)))
    assert found.rounds[0]["scores"] == pytest.approx({"k2": 0.65, "k1": 0.45})
    assert [call.config.seed for call in calls] == [1, 2, 1, 2]
    assert found.epochs == 4
    assert len({call.output for call in calls}) == 4
    assert all(call.resume for call in calls)


@pytest.mark.parametrize("order", [(4, 2, 3), (3, 4, 2)], ids=str)
def test_of_equal_scores_the_fewest_blocks_go_on(order, calls, base, toy, tmp_path, monkeypatch):
    monkeypatch.setitem(SCORES, 2, 0.8)
    monkeypatch.setitem(SCORES, 4, 0.8)
    found = search(base, toy, plans(*order), tmp_path)
    assert found.name == "k2"
    assert list(found.rounds[0]["scores"]) == ["k2", "k3", "k4"]
    assert len(calls) == 5


def test_what_the_candidates_are_trained_by(calls, tiny_bert, toy_suite_dict, toy, tmp_path):
    base = config_of(
        tiny_bert, toy_suite_dict, best="overall", seed=7, mixing={"kind": "uniform"}, budget=3
    )
    search(base, toy, plans(1, 2), tmp_path)
    for call, plan in zip(calls, plans(1, 2).values(), strict=True):
        config = call.config
        assert config.plan == plan
        assert config.recipe_name == "clustered"  # the base's lora has no gate by task
        assert (config.best, config.seed) == (None, 0)
        assert config.mixing == base.mixing
        assert config.training == {
            "use_cpu": True,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "save_steps": 1,  # of no effect then
            "num_train_epochs": 1.0,
        }


def test_a_recipe_with_blocks_by_task_is_kept(calls, tiny_bert, toy_suite_dict, toy, tmp_path):
    recipe = recipe_of("private", scale=3.0)
    base = config_of(tiny_bert, toy_suite_dict, recipe=recipe)
    search(base, toy, plans(1, 2), tmp_path)
    assert [call.config.recipe for call in calls] == [base.recipe] * 2
    assert calls[0].config.recipe.structure.scale == 3.0


@pytest.mark.parametrize("nums", [(), (2,)], ids=["none", "one"])
def test_nothing_to_choose_from_is_refused_before_anything_is_told(
    nums, calls, base, toy, tmp_path
):
    told = io.StringIO()
    with pytest.raises(InputError, match=f"two candidates or more, not {len(nums)}"):
        search(base, toy, plans(*nums), tmp_path / "new", console=Console(file=told))
    assert calls == []
    assert told.getvalue() == ""
    assert not (tmp_path / "new").exists()


def test_a_plan_that_does_not_fit_is_refused_before_any_training(calls, base, toy, tmp_path):
    unfit = {**plans(2), "unfit": Plan.shared(NAMES[:3], 8)}
    with pytest.raises(InputError, match="the plan leaves out task 'degree'"):
        search(base, toy, unfit, tmp_path)
    assert calls == []


# Candidates and the proposal ---------------------------------------------------------------------


def test_candidates_are_the_cuts_that_the_budget_allows():
    evidence = evidence_of(families([2, 2]), tasks=NAMES)
    found = candidates_of(evidence, 8)
    assert list(found) == ["clusters1", "clusters2", "clusters3", "clusters4"]
    assert [len(plan.blocks) for plan in found.values()] == [1, 2, 3, 4]
    assert {b.tasks for b in found["clusters2"].blocks.values()} == {NAMES[:2], NAMES[2:]}
    assert all(plan.budget == 8 for plan in found.values())
    assert list(candidates_of(evidence, 2)) == ["clusters1", "clusters2"]


def test_candidates_follow_distance_and_ranks():
    evidence = evidence_of(families([3, 1], within=-0.8))
    found = candidates_of(evidence, 8, distance="1-s^2", ranks="uniform")["clusters2"]
    assert {b.tasks: b.rank for b in found.blocks.values()} == {("a", "b", "c"): 4, ("d",): 4}
    found = candidates_of(evidence, 8, distance="1-s^2")["clusters2"]
    assert {b.tasks: b.rank for b in found.blocks.values()} == {("a", "b", "c"): 6, ("d",): 2}


@pytest.mark.parametrize(
    ("best", "sharing"), [(1, "shared"), (2, "clustered"), (4, "private")], ids=str
)
def test_the_proposal_says_what_won(best, sharing, calls, base, toy, tmp_path, monkeypatch):
    monkeypatch.setitem(SCORES, best, 0.9)
    found = diagnosis_of(families([2, 2]), tasks=NAMES)
    made = propose_by_search(found, base, toy, tmp_path, budget=8)
    assert (made.sharing, made.recipe) == (sharing, "clustered")
    assert (
        made.plan == candidates_of(evidence_of(families([2, 2]), tasks=NAMES), 8)[f"clusters{best}"]
    )
    assert made.reasons[0] == "the best of 4 cuts by successive halving, 8 epochs in all"
    assert made.reasons[1].startswith(
        f"mean validation scores of the last round: clusters{best} 0.900, clusters"
    )
    assert len(calls) == 6


def test_a_budget_of_one_leaves_nothing_to_search(calls, base, toy, tmp_path):
    found = diagnosis_of(families([2, 2]), tasks=NAMES)
    with pytest.raises(InputError, match="two candidates or more, not 1"):
        propose_by_search(found, base, toy, tmp_path, budget=1)
    assert calls == []


# Tiny runs ---------------------------------------------------------------------------------------


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def at_odds(tmp_path):
    """A task that can be learnt, and one whose large labels are noise that wrecks what it shares.

    The noise's validation labels are all equal, so that it always scores 0: the task decides.
    """
    rng = random.Random(0)
    clean = {split: [sentiment_row(rng, i) for i in range(40)] for split in ("train", "validation")}
    noise = [{"text": sentence(rng), "label": rng.gauss(0, 100)} for _ in range(40)]
    noise = {"train": noise, "validation": [{"text": sentence(rng), "label": 0.0}] * 2}
    tasks = {}
    for name, kind, splits in (("clean", "classification", clean), ("noise", "regression", noise)):
        paths = {s: write_rows(tmp_path / f"{name}.{s}.jsonl", r) for s, r in splits.items()}
        paths["test"] = write_rows(tmp_path / f"{name}.test.jsonl", splits["train"][:2])
        tasks[name] = {"kind": kind, "data": {"kind": "file", "path": paths}}
    return {"tasks": tasks}


def test_tasks_at_odds_are_set_apart_and_finished_runs_are_kept(
    at_odds, tiny_bert, tmp_path, monkeypatch
):
    suite, base = load_suite(at_odds), config_of(tiny_bert, at_odds, pooling="mean")
    candidates = {
        "together": Plan.shared(["clean", "noise"], 4),
        "apart": Plan.private(["clean", "noise"], 4),
    }
    read, trained = set(), []

    def rows(self, task, split):
        read.add(split)
        return original_rows(self, task, split)

    def train(self, *args, **kwargs):
        trained.append(self.args.output_dir)
        return original_train(self, *args, **kwargs)

    original_rows, original_train = TaskSuite.rows, MultiTaskTrainer.train
    monkeypatch.setattr(TaskSuite, "rows", rows)
    monkeypatch.setattr(MultiTaskTrainer, "train", train)
    config = SearchConfig(epochs=16)
    first = search(base, suite, candidates, tmp_path / "runs", config=config)
    assert first.name == "apart"
    scores = first.rounds[0]["scores"]
    assert scores["apart"] > scores["together"] + 0.05
    assert len(trained) == 2
    assert read == {"train", "validation"}
    for name in candidates:
        run = tmp_path / "runs" / "round0" / name / "seed0"
        assert set(result_of(run)["metrics"]) == {"validation"}
        assert result_of(run)["train"]["epochs"] == 16
        assert not list(run.glob("checkpoint-*"))
    again = search(base, suite, candidates, tmp_path / "runs", config=config)
    assert again == first
    assert len(trained) == 2
