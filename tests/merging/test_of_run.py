"""LoRAHub on finished runs: another run, in which one task is served by a composition."""

import json
from dataclasses import replace

import pytest
import torch

from coadapt._errors import InputError
from coadapt.fitting import train
from coadapt.merging import LoraHub, compose_deltas, compose_run
from coadapt.recipe import Recipe
from coadapt.runs import load_run
from coadapt.structures import Bank, Single
from coadapt.tasks import FileSource, Task
from tests.merging.tiny import OURS, SCALE, assert_same, changed_blocks, tensors_of
from tests.reference.slow_hub import dense_of_factors
from tests.tiny_language import save_model, write_jsonl
from tests.toy_runs import content_of, recipe_of, result_of, train_toy


@pytest.fixture(scope="module")
def trained(tiny_bert, toy_suite_files, tmp_path_factory):
    """A run of private adapters of rank 2 that moved away from zero."""
    return train_toy(
        tiny_bert,
        toy_suite_files,
        tmp_path_factory.mktemp("hub") / "run",
        recipe_of("private", scale=SCALE),
        budget=8,
        training={"max_steps": 4, "learning_rate": 3e-2, "use_cpu": True},
    )


def test_a_run_is_composed_into_another(trained, tmp_path):
    files, tensors = content_of(trained.path), tensors_of(trained.model)
    hub = LoraHub(budget=15, compose="deltas", **OURS)
    run = compose_run(trained, "topic", tmp_path / "composed", hub=hub, seed=5)
    assert content_of(trained.path) == files
    assert_same(tensors_of(trained.model), tensors)
    result = result_of(run.path)
    found = result["composition"]
    assert list(found["weights"]) == ["sentiment", "same", "degree"]
    assert (found["hub"]["compose"], found["hub"]["budget"], found["seed"]) == ("deltas", 15, 5)
    assert found["loss"] <= found["base_loss"]
    assert "composed" in result["run"]["derived"]
    assert result["run"]["config_hash"] != result_of(trained.path)["run"]["config_hash"]
    assert (result["train"], result["metrics"]) == (None, {})
    assert changed_blocks(run.model, tensors) == {"topic"}
    pool = [trained.model.fold(name) for name in found["weights"]]
    wanted = compose_deltas(pool, list(found["weights"].values()), rank=2)
    for name, (A, B) in run.model.fold("topic").items():
        torch.testing.assert_close(
            B @ A, wanted.factors[name][1] @ wanted.factors[name][0], rtol=1e-4, atol=1e-6
        )
    assert wanted.error == pytest.approx(found["error"])
    assert run.evaluate().keys() == set(trained.suite.names)


def test_runs_that_cannot_be_composed_are_refused(trained, tmp_path):
    new = replace(trained.suite.task("topic"), name="new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for message, task, folder in (
        ("did you mean 'topic'", "topics", "a"),
        ("is there already", "topic", "full"),
        ("the run has a task 'topic'", trained.suite.task("topic"), "a"),
        ("no task 'new' and so no head", new, "a"),
    ):
        with pytest.raises(InputError, match=message):
            compose_run(trained, task, tmp_path / folder, hub=LoraHub(**OURS))
    assert not (tmp_path / "a").exists()


QUESTIONS = [
    {"q": f"Which animal barks {n}?", "options": ["dog", "cat"], "key": n % 2} for n in range(30)
]
SAYINGS = [{"text": f"Say {n}.", "answer": ("yes", "no")[n % 2]} for n in range(30)]


def language_task(folder, name, rows, **fields):
    path = write_jsonl(folder / f"{name}.jsonl", rows)
    return Task(name=name, data=FileSource(path=str(path)), **fields)


def test_a_new_task_is_added_to_a_run_with_its_composition(tmp_path):
    fields = {"kind": "generation", "label": "answer", "generation": {"max_new_tokens": 2}}
    first, second = (
        {"data": str(write_jsonl(tmp_path / f"{name}.jsonl", SAYINGS[start:])), **fields}
        for name, start in (("first", 0), ("second", 5))
    )
    run = train(
        {
            "name": str(save_model(tmp_path / "llama", "llama")),
            "dtype": "float32",
            "max_length": 64,
        },
        {"name": "toy", "tasks": {"first": first, "second": second}},
        recipe_of("private"),
        output=tmp_path / "run",
        budget=4,
        training={"max_steps": 2, "learning_rate": 3e-2, "use_cpu": True},
    )
    new = language_task(
        tmp_path, "animals", QUESTIONS, kind="choice", prompt="{q}", options="options", label="key"
    )
    folds = [run.model.fold(name) for name in run.suite.names]
    composed = compose_run(run, new, tmp_path / "more", hub=LoraHub(budget=8, **OURS))
    assert composed.suite.names == ("first", "second", "animals")
    again = load_run(tmp_path / "more")
    found = json.loads((tmp_path / "more/result.json").read_text())["composition"]
    weights = [found["weights"][name] for name in ("first", "second")]
    for name, (A, B) in again.model.fold("animals").items():
        pairs = [fold[name] for fold in folds]
        torch.testing.assert_close(B @ A, dense_of_factors(1.0, pairs, weights))
    with pytest.raises(InputError, match="the run has a task 'first'"):
        compose_run(run, run.suite.task("first"), tmp_path / "other", hub=LoraHub(**OURS))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"budget": 9}, "factors of one rank, and the tasks' are .* 3, .* 2"),
        ({"budget": 8, "recipe": {"shots": 1000}}, "rows to draw 1000 shots from"),
    ],
    ids=["ranks", "rows"],
)
def test_what_cannot_be_composed_is_refused_before_training(
    tiny_bert, toy_suite_dict, tmp_path, options, told
):
    hub = LoraHub(**options.pop("recipe", {}))
    recipe = Recipe(structure=Bank(), compose=hub, sharing="private")
    with pytest.raises(InputError, match=told):
        train(
            {"name": str(tiny_bert), "dtype": "float32", "max_length": 32},
            toy_suite_dict,
            recipe,
            output=tmp_path / "run",
            training={"max_steps": 1, "use_cpu": True, "disable_tqdm": True},
            **options,
        )
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_composition_without_a_lora_a_task_is_no_recipe():
    with pytest.raises(InputError, match="take 'bank'"):
        Recipe(structure=Single(), compose=LoraHub())
