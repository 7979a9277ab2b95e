"""study.yaml: what a good one means; bad ones are in test_bad_study.py."""

import copy
import dataclasses

import pytest
import yaml

from coadapt.config import dump_yaml, to_plain
from coadapt.recipe import Recipe
from coadapt.recipes import RECIPES
from coadapt.structures import Bank
from coadapt.study import (
    Clusters,
    Entry,
    RandomPartitions,
    Study,
    Trial,
    parse_study,
    read_study,
)
from coadapt.tasks import load_suite
from tests.study.inline import write_study

PAIRS = {"a": ["sentiment", "degree"], "b": ["topic", "same"]}
ALL = ["sentiment", "topic", "same", "degree"]


def plan(clusters=PAIRS):
    return {"kind": "clusters", "clusters": copy.deepcopy(clusters)}


def random(**keys):
    return {"kind": "random", "like": "pairs", "count": 2, **keys}


def trial(**keys):
    return {"learning_rate": 1e-3, "epochs": 1, **keys}


@pytest.fixture
def every_key(toy_study):
    """A study that sets everything, and nothing to what it would be anyway."""
    return {
        **toy_study,
        "recipes": {
            "lora": {"trials": [trial(), trial(epochs={8: 4, 16: 2})]},
            "mine": {
                "recipe": {"structure": {"kind": "bank", "scale": 3.0}, "sharing": "private"},
                "training": {"weight_decay": 0.1},
            },
            "told": {"recipe": "clustered", "plans": ["pairs", "chance"]},
        },
        "plans": {"pairs": plan(), "chance": random(seed=5)},
        "tasks": {"two": ["sentiment", "topic"], "all": ALL},
        "rows": [8, 16],
        "budgets": [4, 6],
        "seeds": [3, 1],
        "tuning_seeds": [7],
        "redraw": False,
        "run": {"batches": "single_task", "mixing": {"kind": "temperature", "temperature": 2.0}},
        "effect": 0.05,
        "threads": 2,
    }


def test_study_with_every_key_means_what_it_says(every_key, tmp_path):
    study, suite = read_study(write_study(tmp_path, every_key))
    usual = Study(
        model=study.model,
        recipes={"mine": study.recipes["mine"]},
        baseline="mine",
        trials=(Trial(learning_rate=1.0, epochs=1.0),),
    )
    for field in dataclasses.fields(Study):
        if field.name not in ("model", "baseline"):
            assert getattr(study, field.name) != getattr(usual, field.name), field.name
    assert suite.names == tuple(ALL)
    assert study.recipes["lora"].recipe == RECIPES["lora"].recipe
    assert study.recipes["lora"].recipe_name == "lora"
    assert study.recipes["mine"] == Entry(
        recipe=Recipe(structure=Bank(scale=3.0), sharing="private"),
        training={"weight_decay": 0.1},
    )
    assert study.recipes["told"].recipe_name == "clustered"
    assert study.recipes["told"].plans == ("pairs", "chance")
    pairs = {name: tuple(tasks) for name, tasks in PAIRS.items()}
    assert study.plans["pairs"] == Clusters(clusters=pairs)
    assert study.plans["chance"] == RandomPartitions(like="pairs", count=2, seed=5)
    assert study.tuned_on == (7,)
    # A recipe's own trials stand in place of the study's; numbers of rows are keys like others.
    own = (
        Trial(learning_rate=1e-3, epochs=1.0),
        Trial(learning_rate=1e-3, epochs={"8": 4.0, "16": 2.0}),
    )
    assert study.trials_of("lora") == own
    assert study.trials_of("mine") == study.trials
    assert [own[1].epochs_at(rows) for rows in (8, 16)] == [4.0, 2.0]
    assert own[0].epochs_at(None) == 1.0


def test_plain_data_lead_back_to_the_study(every_key, tmp_path):
    study, suite = read_study(write_study(tmp_path, every_key))
    plain = to_plain(study)
    again = parse_study(plain, suite, "study.json")
    assert again == study
    assert to_plain(again) == plain
    # And by way of YAML, with numbers for keys.
    path = write_study(tmp_path, {**plain, "suite": every_key["suite"]})
    assert read_study(path) == (study, suite)


def test_whole_numbers_as_keys_of_epochs(toy_study, tmp_path):
    path = tmp_path / "study.yaml"
    text = dump_yaml({**toy_study, "trials": []}).replace(
        "trials: []", "trials:\n- {learning_rate: 1e-3, epochs: {8: 3}}"
    )
    assert yaml.safe_load(text)["trials"][0]["epochs"] == {8: 3}
    path.write_text(text, encoding="utf-8")
    assert read_study(path)[0].trials[0].epochs_at(8) == 3.0


def test_recipes_as_a_list_of_names(toy_study, tmp_path):
    listed = {**toy_study, "recipes": ["lora", "private"]}
    study, _ = read_study(write_study(tmp_path, listed))
    assert study == read_study(write_study(tmp_path, toy_study))[0]
    assert list(study.recipes) == ["lora", "private"]


def test_model_as_a_name_suite_as_a_file_and_overrides(toy_study, tmp_path):
    (tmp_path / "data").mkdir()
    suite = toy_study["suite"]
    (tmp_path / "data" / "toy.yaml").write_text(dump_yaml(suite), encoding="utf-8")
    path = write_study(tmp_path, {**toy_study, "model": "x", "suite": "data/toy.yaml"})
    overrides = ["seeds=[5]", "training.warmup_steps=3", "suite.seed=9", "recipes.frozen=null"]
    study, found = read_study(path, overrides)
    assert study.model.name == "x"
    assert study.seeds == study.tuned_on == (5,)
    assert study.training == {**toy_study["training"], "warmup_steps": 3}
    assert list(study.recipes) == ["lora", "private", "frozen"]
    assert found == load_suite({**suite, "seed": 9})
