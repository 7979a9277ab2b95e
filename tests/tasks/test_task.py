import dataclasses

import pytest

from coadapt._errors import InputError
from coadapt.tasks import AssetSource, FileSource, HubSource, Task, TaskSuite, check_task_name

DATA = FileSource(path="x.csv")


def make_task(**fields) -> Task:
    return Task(**{"name": "a", "kind": "classification", "data": DATA} | fields)


@pytest.mark.parametrize("name", ["a", "sst2", "a.b-c_d", "2024", "x" * 100, "-", "_"])
def test_names_that_do(name):
    check_task_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "../x",
        "a/b",
        "/abs",
        "a\\b",
        "x" * 101,
        "x" * 300,
        "a b",
        "ä",
        "a\n",
    ],
)
def test_names_that_do_not(name):
    with pytest.raises(InputError, match=r"task name .* cannot be used; take 1 to 100") as error:
        make_task(name=name)
    assert f"({len(name)} characters)" in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metrics": ("acuracy",)}, "task 'a': unknown metric 'acuracy'; did you mean 'accuracy'?"),
        ({"metrics": ("pearson",)}, "'pearson' does not score classification; use accuracy, f1"),
        ({"kind": "regression", "metrics": ("f1",)}, "'f1' does not score regression; use pearson"),
        ({"kind": "regression", "labels": ("x", "y")}, "a regression has no labels; remove"),
        ({"labels": ("x",)}, "task 'a': one label 'x' only; give two or more"),
        ({"labels": ("x", 1, "1")}, "the label '1' is declared twice; remove one"),
        ({"labels": ("x", "")}, "an empty label is declared; remove it"),
        ({"text": ("x", "y", "z")}, "text names 3 columns; give one or two"),
        ({"num_shots": 0}, "num_shots is 0; give 1 or more"),
        ({"kind": "regression", "num_shots": 3}, "num_shots counts rows of a class; use max_rows"),
        ({"num_shots": 3, "max_rows": 4}, "num_shots and max_rows both limit training; give one"),
        ({"max_rows": 0}, "max_rows is 0 for train; give 1 or more"),
        ({"max_rows": {"tst": 3}}, "max_rows of unknown split 'tst'; did you mean 'test'?"),
        ({"unit": (0.0, 1.0)}, "'unit' is for a regression, not a classification; remove it"),
        ({"kind": "regression", "unit": (1.0, 0.0)}, "unit is [1.0, 0.0]; give a center"),
        ({"kind": "regression", "unit": (float("nan"), 1.0)}, "unit is [nan, 1.0]"),
    ],
)
def test_task_refuses(fields, message):
    with pytest.raises(InputError) as error:
        make_task(**fields)
    assert message in str(error.value)


def test_sources_refuse():
    with pytest.raises(InputError, match="unknown data asset 'trec5'; did you mean 'trec50'"):
        AssetSource(name="trec5")
    with pytest.raises(InputError, match="unknown split 'dev'; known: train, validation, test"):
        FileSource(path={"dev": "x"})
    with pytest.raises(InputError, match="neither 'train' nor 'test' among the splits validation"):
        HubSource(path="x", splits={"validation": "test"})


def test_defaults():
    task = make_task(labels=("no", "yes", 3))
    assert (task.metrics, task.score_metric, task.num_outputs) == (("accuracy",), "accuracy", 3)
    assert task.columns == ("text",)
    regression = make_task(kind="regression", text=("one", "two"))
    assert (regression.score_metric, regression.num_outputs) == ("pearson", 1)
    assert regression.metrics == ("pearson", "spearman")
    assert regression.columns == ("one", "two")
    with pytest.raises(InputError, match="no labels yet; load_suite reads them"):
        _ = make_task().num_outputs


def test_label_id_takes_text_and_numbers():
    task = make_task(labels=("no", 1, "2"))
    assert [task.label_id(label) for label in ("no", 1, "1", 2, "2")] == [0, 1, 1, 2, 2]
    with pytest.raises(
        InputError, match="label 'noo' is not one of the declared ones; did you mean 'no'"
    ):
        task.label_id("noo")


def test_tasks_are_values():
    assert make_task() == make_task()
    assert hash(make_task()) == hash(make_task())
    assert dataclasses.replace(make_task(), num_shots=3) != make_task()


def test_suite_names_tasks():
    suite = TaskSuite(tasks=(make_task(name="one"), make_task(name="two")))
    assert suite.names == ("one", "two")
    assert suite.task("two").name == "two"
    with pytest.raises(InputError, match="has no task 'tow'; did you mean 'two'"):
        suite.task("tow")
    with pytest.raises(InputError, match="has no task 'tow'"):
        suite.subset(["one", "tow"])
    with pytest.raises(InputError, match="two tasks are called 'one'; rename one"):
        TaskSuite(tasks=(make_task(name="one"), make_task(name="one")))
    with pytest.raises(InputError, match="has no tasks"):
        TaskSuite(tasks=())
    with pytest.raises(InputError, match="suite 'suite': max_rows is -1 for test"):
        TaskSuite(tasks=(make_task(),), max_rows={"test": -1})
