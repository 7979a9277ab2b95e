"""A bad study.yaml is refused whole, with file and place, before anything is written."""

import copy

import pytest

from coadapt import InputError
from coadapt.study import run_study
from tests.study.inline import write_study

PAIRS = {"a": ["sentiment", "degree"], "b": ["topic", "same"]}
ALL = ["sentiment", "topic", "same", "degree"]


def plan(clusters=PAIRS):
    return {"kind": "clusters", "clusters": copy.deepcopy(clusters)}


def random(**keys):
    return {"kind": "random", "like": "pairs", "count": 2, **keys}


def trial(**keys):
    return {"learning_rate": 1e-3, "epochs": 1, **keys}


CLUSTERED = {"lora": None, "clustered": {"plans": ["pairs"]}}
REFUSED = {
    # names of keys
    "top": ({"recpies": {}}, ["unknown key 'recpies'; did you mean 'recipes'?"]),
    "entry-key": (
        {"recipes": {"lora": {"trails": []}}},
        ["unknown key 'recipes.lora.trails'; did you mean 'trials'?"],
    ),
    "trial-key": (
        {"trials": [trial(), {"learning_rate": 1, "epoch": 2}]},
        ["unknown key 'trials.1.epoch'; did you mean 'epochs'?"],
    ),
    "own-trial-key": (
        {"recipes": {"lora": {"trials": [{"learning_rte": 1, "epochs": 2}]}}},
        ["unknown key 'recipes.lora.trials.0.learning_rte'; did you mean 'learning_rate'?"],
    ),
    "plan-key": (
        {"plans": {"pairs": {"kind": "clusters", "cluster": {}}}},
        ["unknown key 'plans.pairs.cluster'; did you mean 'clusters'?"],
    ),
    "plan-kind": (
        {"plans": {"pairs": {"kind": "cluster"}}},
        ["plans.pairs: unknown kind 'cluster'; did you mean 'clusters'?"],
    ),
    "plan-without-kind": ({"plans": {"pairs": {}}}, ["plans.pairs: add 'kind'; known: clusters"]),
    "held_out": (
        {"held_out": {"tset": 4}},
        ["unknown key 'held_out.tset'; did you mean 'test'?"],
    ),
    "held_out-of-train": (
        {"held_out": {"train": 4}},
        ["unknown key 'held_out.train'; known: validation, test"],
    ),
    # recipes
    "recipe": (
        {"recipes": {"lora": None, "x": {"recipe": "privte"}}},
        ["recipes.x: no recipe is named 'privte'; did you mean 'private'?"],
    ),
    "recipe-by-its-own-name": (
        {"recipes": {"lora": None, "privte": None}},
        ["recipes.privte: no recipe is named 'privte'; did you mean 'private'?"],
    ),
    "recipe-in-list": (
        {"recipes": ["lora", "privte"]},
        ["recipes.privte: no recipe is named 'privte'; did you mean 'private'?"],
    ),
    "recipe-twice-in-list": ({"recipes": ["lora", "lora"]}, ["recipes: 'lora' stands twice"]),
    "mapping-in-list": (
        {"recipes": ["lora", {"clustered": {"plans": ["pairs"]}}]},
        ["recipes.1: found {'clustered': ", "a mapping in place of the list"],
    ),
    "number-for-entry": ({"recipes": {"lora": 5}}, ["recipes.lora: found 5; give a mapping"]),
    "part": (
        {"recipes": {"lora": None, "x": {"recipe": {"structure": {"kind": "bnk"}}}}},
        ["recipes.x.recipe.structure: unknown kind 'bnk'; did you mean 'bank'?"],
    ),
    "part-key": (
        {"recipes": {"lora": None, "x": {"recipe": {"structure": {"kind": "bank", "scal": 1}}}}},
        ["unknown key 'recipes.x.recipe.structure.scal'; did you mean 'scale'?"],
    ),
    "baseline": (
        {"baseline": "lroa"},
        ["baseline 'lroa' is not among the recipes; did you mean 'lora'?"],
    ),
    "no-recipes": ({"recipes": {}}, ["at least one recipe, one seed and one budget"]),
    "no-seeds": ({"seeds": []}, ["at least one recipe, one seed and one budget"]),
    "no-budgets": ({"budgets": []}, ["at least one recipe, one seed and one budget"]),
    # trials
    "unequal-trials": (
        {"recipes": {"lora": {"trials": [trial()]}, "private": None}},
        ["every recipe gets the same number of trials", "found lora 1, private 2"],
    ),
    "no-trials": ({"trials": []}, ["one or more; found lora 0, private 0"]),
    "rate-below-0": (
        {"trials": [trial(), trial(learning_rate=-1)]},
        ["trials.1: learning_rate and epochs must be positive", "-1.0"],
    ),
    "endless-rate": ({"trials": [trial(learning_rate=float("inf"))]}, ["trials.0: ", "positive"]),
    "no-epochs": (
        {"recipes": {"lora": {"trials": [trial(epochs=0)]}}},
        ["recipes.lora.trials.0: learning_rate and epochs must be positive"],
    ),
    "no-epochs-at-some-rows": (
        {"trials": [trial(epochs={"8": 0})]},
        ["trials.0: learning_rate and epochs must be positive"],
    ),
    "epochs-for-other-rows": (
        {"rows": [8, 16], "trials": [trial(), trial(epochs={"8": 1})]},
        ["trials.1.epochs: given for 8 rows, not for 16 rows"],
    ),
    "own-epochs-for-other-rows": (
        {"recipes": {"lora": {"trials": [trial(epochs={"9": 1}), trial()]}, "private": None}},
        ["recipes.lora.trials.0.epochs: given for 9 rows, not for 8 rows"],
    ),
    "epochs-by-rows-without-rows": (
        {"rows": [], "trials": [trial(epochs={"8": 1})]},
        ["trials.0.epochs: given for 8 rows, not for a study without rows"],
    ),
    # numbers
    "seeds-twice": ({"seeds": [0, 0]}, ["seeds: a value stands twice in [0, 0]"]),
    "tuning-seeds-twice": ({"tuning_seeds": [1, 1]}, ["tuning_seeds: a value stands twice"]),
    "rows-twice": ({"rows": [8, 8]}, ["rows: a value stands twice"]),
    "budgets-twice": ({"budgets": [8, 8]}, ["budgets: a value stands twice"]),
    "budget-0": ({"budgets": [8, 0]}, ["budgets, rows, held_out and threads must be at least 1"]),
    "rows-below-0": ({"rows": [-8]}, ["rows, held_out and threads must be at least 1"]),
    "held-out-0": ({"held_out": {"test": 0}}, ["held_out and threads must be at least 1"]),
    "threads-0": ({"threads": 0}, ["threads must be at least 1"]),
    "seed-below-0": ({"seeds": [0, -1]}, ["seeds: a seed must be 0 or more", "not -1"]),
    "seed-too-great": ({"tuning_seeds": [2**32]}, ["tuning_seeds: a seed must be", "4294967296"]),
    "seed-as-text": ({"seeds": ["a"]}, ["seeds.0: found 'a'; give a whole number"]),
    "effect": ({"effect": 0}, ["effect must be positive, not 0.0"]),
    # names
    "name": (
        {"recipes": {"my lora": {"recipe": "lora"}}, "baseline": "my lora"},
        ["recipes: 'my lora' cannot be a name", "file names"],
    ),
    "name-of-plan": ({"plans": {"../x": plan()}}, ["plans: '../x' cannot be a name"]),
    "name-of-tasks": ({"tasks": {"a.b": ["topic"]}}, ["tasks: 'a.b' cannot be a name"]),
    "name-too-long": ({"tasks": {"a" * 41: ["topic"]}}, ["tasks: ", "up to 40"]),
    # plans
    "clustered-without-plans": (
        {"recipes": {"lora": None, "clustered": None}, "plans": {"pairs": plan()}},
        ["recipes.clustered needs plans: names under 'plans'; known: pairs"],
    ),
    "parts-without-plans": (
        {"recipes": {"lora": None, "x": {"recipe": {"structure": {"kind": "bank"}}}}},
        ["recipes.x needs plans: names under 'plans', and add it there"],
    ),
    "plans-of-lora": (
        {"recipes": {"lora": {"plans": ["pairs"]}}, "plans": {"pairs": plan()}},
        ["recipes.lora.plans: this recipe makes its plan itself; drop plans"],
    ),
    "plans-of-frozen": (
        {"recipes": {"lora": None, "frozen": {"plans": ["pairs"]}}, "plans": {"pairs": plan()}},
        ["recipes.frozen.plans: this recipe makes its plan itself; drop plans"],
    ),
    "plan": (
        {
            "recipes": {"lora": None, "clustered": {"plans": ["piars"]}},
            "plans": {"pairs": plan()},
        },
        ["recipes.clustered.plans: no plan 'piars'; did you mean 'pairs'?"],
    ),
    "plan-twice": (
        {
            "recipes": {"lora": None, "clustered": {"plans": ["pairs", "pairs"]}},
            "plans": {"pairs": plan()},
        },
        ["recipes.clustered.plans names 'pairs' twice"],
    ),
    "random-like-nothing": (
        {"plans": {"pairs": plan(), "r": random(like="piars")}},
        ["plans.r.like: 'piars' is no plan of kind 'clusters'; did you mean 'pairs'?"],
    ),
    "random-like-random": (
        {"plans": {"pairs": plan(), "q": random(), "r": random(like="q")}},
        ["plans.r.like: 'q' is no plan of kind 'clusters'; known: pairs"],
    ),
    "random-like-overlap": (
        {"plans": {"pairs": plan({"a": ALL, "b": ["topic"]}), "r": random()}},
        ["plans.r.like: 'pairs' has 'topic' in two clusters"],
    ),
    "random-count": (
        {"plans": {"pairs": plan(), "r": random(count=0)}},
        ["plans.r: count must be at least 1, not 0"],
    ),
    "random-seed": (
        {"plans": {"pairs": plan(), "r": random(seed=-1)}},
        ["plans.r: seed must be 0 or more, not -1"],
    ),
    "no-clusters": ({"plans": {"pairs": plan({})}}, ["plans.pairs: clusters: there is none"]),
    "empty-cluster": (
        {"plans": {"pairs": plan({"a": [], "b": ALL})}},
        ["plans.pairs: clusters.a names no task"],
    ),
    "task-twice-in-cluster": (
        {"plans": {"pairs": plan({"a": [*ALL, "topic"]})}},
        ["plans.pairs: clusters.a names task 'topic' twice"],
    ),
    "task-of-cluster": (
        {"plans": {"pairs": plan({"a": [*ALL, "sentimnt"]})}},
        ["plans.pairs.clusters.a: the suite has no task 'sentimnt'; did you mean 'sentiment'?"],
    ),
    "plan-without-a-task": (
        {"recipes": CLUSTERED, "plans": {"pairs": plan({"a": ALL[:3]})}},
        ["plans.pairs: the plan leaves out task 'degree'"],
    ),
    "plan-without-a-task-of-a-subset": (
        {
            "recipes": CLUSTERED,
            "plans": {"pairs": plan({"a": ALL[:3]})},
            "tasks": {"covered": ALL[:2], "not": ALL[2:]},
        },
        ["plans.pairs: the plan leaves out task 'degree'"],
    ),
    "plan-without-gate": (
        {
            "recipes": {
                "lora": None,
                "x": {"recipe": {"structure": {"kind": "single"}}, "plans": ["pairs"]},
            },
            "plans": {"pairs": plan()},
        },
        ["recipes.x: block 'a' serves 2 of 4 tasks, but structure 'single' has no gate"],
    ),
    # tasks
    "task": (
        {"tasks": {"t": ["sentimnt"]}},
        ["tasks.t: the suite has no task 'sentimnt'; did you mean 'sentiment'?"],
    ),
    "no-tasks": ({"tasks": {"t": []}}, ["tasks.t names no task"]),
    "task-twice": ({"tasks": {"t": ["topic", "topic"]}}, ["tasks.t names task 'topic' twice"]),
    # training and run
    "run-best": ({"run": {"best": "overall"}}, ["run.best cannot be set in a study; mixing, "]),
    "run-plan": ({"run": {"plan": {}}}, ["run.plan cannot be set in a study"]),
    "run-value": (
        {"run": {"mixing": {"kind": "temprature"}}},
        ["run: mixing: unknown kind 'temprature'; did you mean 'temperature'?"],
    ),
    "training-key": (
        {"training": {"warmup_setps": 1}},
        [".yaml: unknown key 'training.warmup_setps'; did you mean 'warmup_steps'?"],
    ),
    "training-key-of-one": (
        {"recipes": {"lora": None, "private": {"training": {"warmup_setps": 1}}}},
        ["recipes.private: unknown key 'training.warmup_setps'; did you mean 'warmup_steps'?"],
    ),
    "training-value-of-one": (
        {"recipes": {"lora": None, "private": {"training": {"warmup_steps": "x"}}}},
        ["recipes.private: training.warmup_steps: found 'x'"],
    ),
    # model and suite
    "model-key": ({"model": {"name": "x", "dtyp": 1}}, ["unknown key 'model.dtyp'"]),
    "model": ({"model": "./no/where"}, ["model './no/where' could not be loaded"]),
    "no-suite": ({"suite": None}, ["suite: found None; give a file, a ready suite or a mapping"]),
    "suite-file": ({"suite": "no.yaml"}, ["no.yaml: cannot be read"]),
}
FIXED = ("learning_rate", "num_train_epochs", "max_steps", "seed", "data_seed", "output_dir")


def refuse(folder, study):
    """Run a study that has to be refused before it has a folder, and return the message."""
    path = write_study(folder, study)
    with pytest.raises(InputError) as raised:
        run_study(path, folder / "out")
    assert [file.name for file in folder.iterdir()] == ["study.yaml"]
    assert str(folder) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(("changes", "parts"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_study_is_refused_with_its_place(changes, parts, toy_study, tmp_path):
    message = refuse(tmp_path, {**toy_study, **changes})
    for part in parts:
        assert part in message


@pytest.mark.parametrize("key", FIXED)
def test_what_the_study_decides_is_refused(key, toy_study, tmp_path):
    message = refuse(tmp_path, {**toy_study, "training": {key: 1}})
    assert f": training.{key} is decided by the study" in message
    toy_study["recipes"]["private"] = {"training": {key: 1}}
    assert f": recipes.private.training.{key} is decided" in refuse(tmp_path, toy_study)


@pytest.mark.parametrize("key", ["rows", "held_out"])
@pytest.mark.parametrize("own", ["max_rows", "num_shots"])
def test_limits_that_a_task_would_not_follow_are_refused(key, own, toy_study, tmp_path):
    study = {**toy_study, "rows": [], "held_out": {}, key: toy_study[key]}
    study["suite"]["tasks"]["topic"][own] = 3
    message = refuse(tmp_path, study)
    assert f"{key}: task 'topic' limits its rows itself; drop its max_rows or num_shots" in message


def test_wrong_target_modules_are_refused(toy_study, tmp_path):
    toy_study["model"]["target_modules"] = ["qery"]
    message = refuse(tmp_path, toy_study)
    assert "recipes.lora: target_modules: no linear module is named 'qery'" in message
    assert "did you mean 'query'?" in message


def test_study_without_suite_and_ready_suite_that_is_none(toy_study, tmp_path):
    suiteless = {key: value for key, value in toy_study.items() if key != "suite"}
    assert "'suite' is missing; name a suite file" in refuse(tmp_path, suiteless)
    with pytest.raises(InputError, match=r"'dmo' is neither .*; did you mean 'demo'\?"):
        run_study(write_study(tmp_path, {**toy_study, "suite": "dmo"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
