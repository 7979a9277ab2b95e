"""The diagnosis of tiny runs: two tasks on the same texts, one on others."""

import json
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import coadapt
from coadapt import InputError, load_diagnosis, load_run, load_suite
from coadapt.diagnosis import diagnose_run
from coadapt.diagnosis.residuals import calibrate, coupling_table, shared_coupling
from coadapt.diagnosis.trained import RunDiagnosisConfig, _judge, _some, _span
from coadapt.loading import Loader
from coadapt.runs import RESULT
from tests.conftest import BAD, GOOD, TOPICS, sentence
from tests.diagnosis.judged import rng
from tests.toy_runs import train_toy

TASKS = ("mood", "echo", "topic")
SPLIT = {"validation": 0.5, "test": 0.05}
POOL: dict[str, Any] = {"max_pool": 60}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def suite(folder):
    """``echo`` repeats the labels of ``mood`` but for one in ten; ``topic`` is on other texts."""
    numbers = random.Random(0)
    moods, echoes, topics = [], [], []
    for index in range(280):
        label = index % 2
        text = sentence(numbers, numbers.choice((BAD, GOOD)[label]))
        moods.append({"text": text, "label": ("bad", "good")[label]})
        heard = label if numbers.random() < 0.9 else 1 - label
        echoes.append({"text": text, "label": ("low", "high")[heard]})
        topic = list(TOPICS)[index % 2]
        topics.append({"text": sentence(numbers, TOPICS[topic][index % 6]), "label": topic})
    tasks = {
        name: {"kind": "classification", "data": write(folder / f"{name}.jsonl", rows)}
        for name, rows in zip(TASKS, (moods, echoes, topics), strict=True)
    }
    return {"name": "toy", "tasks": tasks, "split": SPLIT}


@pytest.fixture(scope="module")
def run(tiny_bert, suite, folder):
    return train_toy(tiny_bert, suite, folder / "run", budget=2).path


@pytest.fixture(scope="module")
def teachers(tiny_bert, suite, folder):
    """Two runs of private adapters, of different seeds and training rows."""
    return [
        train_toy(
            tiny_bert,
            {**suite, "max_rows": 60, "draw": draw},
            folder / f"teacher{draw}",
            "private",
            seed=draw,
        ).path
        for draw in (1, 2)
    ]


@pytest.fixture(scope="module")
def loader():
    """Keeps the base model and the rows for all diagnoses."""
    return Loader()


@pytest.fixture(scope="module")
def plain(run, loader):
    return diagnose_run(run, loader=loader)


@pytest.fixture(scope="module")
def taught(run, teachers, loader):
    return diagnose_run(run, teachers=teachers, loader=loader, **POOL)


def rows_of(found, table="coupling"):
    measure = found.tables[table]
    return {
        row: dict(zip(measure.columns, values, strict=True))
        for row, values in zip(measure.rows, measure.values, strict=True)
    }


# Coupling ----------------------------------------------------------------------------------------


def test_only_tasks_on_the_same_texts_are_coupled(plain):
    assert plain.tasks == TASKS
    assert list(plain.pairs) == ["coupling of mood, echo"]
    values = plain.pair("coupling of mood, echo").values
    known = ~np.isnan(values)
    assert known.tolist() == [[True, True, False], [True, True, False], [False, False, False]]
    assert list(rows_of(plain)) == ["delta_hat: mood, echo", "null_alignment: unrelated rows"]
    coupling = rows_of(plain)["delta_hat: mood, echo"]
    # Labels that agree in 9 of 10 rows correlate by 0.8 at most, which an untrained model leaves.
    assert coupling["low"] < -0.5 * np.log(1 - 0.8**2) < coupling["high"]
    assert coupling["p"] == 0.001
    assert values[0, 1] == pytest.approx(coupling["value"], abs=1e-4)
    null = rows_of(plain)["null_alignment: unrelated rows"]
    assert null["low"] < 0 < null["high"]
    assert null["value"] < 0.1


def test_the_numbers_are_those_of_the_parts(run, plain, loader):
    opened = load_run(run)
    judged = _judge(opened, loader, "validation")
    assert [len(task.rows) for task in judged] == list(plain.rows.values())
    assert plain.rows == {name: len(opened.suite.rows(name, "validation")) for name in TASKS}
    heads = [calibrate(task) for task in judged]
    found, _ = shared_coupling(judged, heads, RunDiagnosisConfig().generator("shared"))
    table = coupling_table({"it": found["mood", "echo"]})["coupling"]
    assert [*rows_of(plain)["delta_hat: mood, echo"].values()] == table.values[0].tolist()
    temperatures = [head.temperature for head in heads]
    assert plain.by_task["temperature"].values.tolist() == temperatures
    furthest = max(heads, key=lambda head: abs(np.log(head.temperature)))
    assert furthest.task.name in plain.by_task["temperature"].reading


def test_a_run_may_be_open_already_and_the_seed_decides(run, plain):
    again = diagnose_run(load_run(run), seed=0)
    assert again.to_plain()["tables"] == plain.to_plain()["tables"]
    other = rows_of(diagnose_run(run, seed=1))["delta_hat: mood, echo"]
    mine = rows_of(plain)["delta_hat: mood, echo"]
    assert other["low"] != mine["low"]
    assert other["value"] == pytest.approx(mine["value"], abs=0.02)


def test_the_split_is_the_one_asked_for(run):
    # 14 rows or so a task: too few to cut in two.
    with pytest.raises(InputError, match=r"task 'mood' has \d+ rows to judge residuals by"):
        diagnose_run(run, split="test")


# Teachers ----------------------------------------------------------------------------------------


def test_two_teachers_give_all_pairs_and_a_placebo(taught, plain):
    assert list(taught.pairs) == ["coupling of mood, echo", "teacher"]
    assert np.isfinite(taught.pair("teacher").values).all()
    rows = rows_of(taught)
    sources = ("all tasks", *(f"texts of {task}" for task in TASKS))
    assert list(rows) == [
        "delta_hat: mood, echo",
        *(f"{kind}: {source}" for source in sources for kind in ("delta_teacher", "placebo")),
        "null_alignment: unrelated rows",
    ]
    assert rows["delta_hat: mood, echo"] == rows_of(plain)["delta_hat: mood, echo"]
    assert rows["delta_teacher: all tasks"]["rows"] == 180
    assert rows["placebo: texts of topic"]["rows"] == 60
    assert sum("Assumes that labels are independent" in note for note in taught.notes) == 1
    assert sum("teachers with teachers" in note for note in taught.notes) == 1


def test_each_source_is_judged_on_its_own_texts(run, teachers, loader, monkeypatch):
    tokenizer = load_run(run).tokenizer
    topics = set(tokenizer.convert_tokens_to_ids([w for words in TOPICS.values() for w in words]))

    def predict(model, _, encoded, __):
        # All tasks alike: the teacher is sure of texts with topics, the student of nothing.
        rows = [set(row["input_ids"]) for row in encoded]
        z = np.array([3.0 * (-1) ** max(row & topics) if row & topics else 0.3 for row in rows])
        if model.seed == 0:
            z = 0.01 * np.arange(len(z)) / len(z)
        return np.column_stack([np.zeros(len(z)), z])

    monkeypatch.setattr("coadapt.diagnosis.trained.predict_outputs", predict)
    rows = rows_of(diagnose_run(run, teachers=teachers[:1], loader=loader, **POOL))
    coupled = {task: rows[f"delta_teacher: texts of {task}"]["value"] for task in TASKS}
    assert coupled["topic"] > 0.1
    assert max(abs(coupled["mood"]), abs(coupled["echo"])) < 0.01
    assert coupled["topic"] > rows["delta_teacher: all tasks"]["value"] > 0.01


def test_a_run_as_its_own_teacher_is_a_note(run, loader):
    found = diagnose_run(run, teachers=[run], loader=loader, **POOL)
    assert "teacher" not in found.pairs
    told = [note for note in found.notes if note.startswith("no delta_teacher on ")]
    assert len(told) == 1
    assert told[0].startswith("no delta_teacher on all tasks, texts of mood, texts of echo, texts")


def test_one_teacher_gives_no_placebo_and_too_small_a_pool_is_a_note(run, teachers, loader):
    found = diagnose_run(run, teachers=teachers[:1], loader=loader, max_pool=3)
    assert not any(name.startswith("placebo") for name in rows_of(found))
    assert found.settings["teachers"] == [str(teachers[0])]
    assert rows_of(found)["delta_teacher: all tasks"]["rows"] == 9
    told = [note for note in found.notes if note.startswith("no delta_teacher on ")]
    assert len(told) == 1
    assert "texts of mood, texts of echo, texts of topic: " in told[0]
    assert "at least 4 rows" in told[0]


def test_the_rows_of_a_source_lie_together_in_the_pool():
    pool = {"a": [{}] * 3, "b": [{}] * 5, "c": [{}]}
    assert [_span(pool, task) for task in pool] == [slice(0, 3), slice(3, 8), slice(8, 9)]


def test_some_rows_are_drawn_in_order():
    rows = [{"input_ids": [index]} for index in range(50)]
    drawn = [row["input_ids"][0] for row in _some(rows, 10, rng())]
    assert len(drawn) == 10
    assert all(before < after for before, after in pairwise(drawn))
    assert drawn[-1] > 10
    assert _some(rows, 99, rng()) == rows


# Capacities --------------------------------------------------------------------------------------


def test_capacities_by_block(plain, taught, run):
    layers = tuple(load_run(run).model.attached.layers)
    for name in ("capacity", "update", "bounds"):
        assert plain.tables[name].rows == layers
    assert plain.tables["capacity"].columns == ("shared",)
    assert sum("this run's own" in note for note in plain.notes) == 1
    assert plain.settings["reference"] == str(run)
    # Two directions of equal power on average: at most 2 * log(2) / 2 a module.
    capacity = plain.tables["capacity"].values
    assert ((capacity > 0) & (capacity <= np.log(2))).all()
    np.testing.assert_array_equal(taught.tables["capacity"].values, capacity)


def test_a_reference_sets_the_noise(run, teachers, loader, plain):
    found = diagnose_run(run, reference=teachers[0], loader=loader)
    assert found.settings["reference"] == str(teachers[0])
    assert not any("this run's own" in note for note in found.notes)
    assert not np.allclose(found.tables["capacity"].values, plain.tables["capacity"].values)
    np.testing.assert_array_equal(found.tables["update"].values, plain.tables["update"].values)


def test_a_recipe_without_layers_has_no_capacities(tiny_bert, suite, tmp_path, loader):
    frozen = train_toy(tiny_bert, suite, tmp_path / "frozen", "frozen")
    found = diagnose_run(frozen, loader=loader)
    assert list(found.tables) == ["coupling"]
    assert "recipe 'frozen' adapts no layer: no capacities" in found.notes


# Files -------------------------------------------------------------------------------------------


def test_a_diagnosis_comes_back_from_its_file(taught, tmp_path):
    taught.save(tmp_path / "d.json")
    back = load_diagnosis(tmp_path / "d.json")
    assert back.to_plain() == taught.to_plain()
    with pytest.raises(InputError, match="does not say how well its similarities are known"):
        coadapt.plan(back, budget=8)


# Refusals ----------------------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch):
    """Fail if any row runs through a model: refusals come first."""

    def predict(*_, **__):
        raise AssertionError("rows were run through the model")

    monkeypatch.setattr("coadapt.diagnosis.trained.predict_outputs", predict)


@pytest.mark.usefixtures("no_work")
def test_three_teachers_are_refused(run, teachers):
    with pytest.raises(InputError, match="one teacher, or two for a placebo, not 3"):
        diagnose_run(run, teachers=[*teachers, run])


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    "change",
    [
        lambda suite: {**suite, "seed": 5},
        lambda suite: {**suite, "split": {**SPLIT, "validation": 0.4}},
        lambda suite: {**suite, "tasks": {**suite["tasks"], "more": suite["tasks"]["topic"]}},
        lambda suite: {**suite, "tasks": dict(reversed(suite["tasks"].items()))},
    ],
    ids=["seed", "split", "tasks", "order"],
)
def test_a_teacher_of_another_suite_is_refused(change, run, suite, tiny_bert, tmp_path):
    teacher = train_toy(tiny_bert, change(suite), tmp_path / "other").path
    with pytest.raises(InputError, match=r"other has other tasks, labels or splits than .*run"):
        diagnose_run(run, teachers=[teacher])


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("role", ["teachers", "reference"])
def test_another_base_model_is_refused(role, run, suite, tiny_bert, tmp_path):
    (tmp_path / "copy").symlink_to(tiny_bert)
    other = train_toy(tmp_path / "copy", suite, tmp_path / "other").path
    options: dict[str, Any] = {role: [other] if role == "teachers" else other}
    with pytest.raises(InputError, match=rf"{role.removesuffix('s')} .*other has another base"):
        diagnose_run(run, **options)


@pytest.mark.usefixtures("no_work")
def test_one_task_is_refused(suite, tiny_bert, tmp_path):
    alone = load_suite(suite).subset(["mood"])
    one = train_toy(tiny_bert, alone.to_plain(), tmp_path / "one").path
    with pytest.raises(InputError, match="has one task; residual coupling is between tasks"):
        diagnose_run(one)


@pytest.mark.usefixtures("no_work")
def test_an_unfinished_run_is_refused(run, teachers, tmp_path):
    for name, source in (("run", run), ("teacher", teachers[0])):
        (tmp_path / name).mkdir()
        for file in ("config.yaml", "plan.yaml", RESULT):
            (tmp_path / name / file).write_bytes((source / file).read_bytes())
        result = json.loads((tmp_path / name / RESULT).read_text())
        result["run"]["status"] = "failed"
        (tmp_path / name / RESULT).write_text(json.dumps(result))
    with pytest.raises(InputError, match=r"run .*run is marked 'failed'; finish it with"):
        diagnose_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"run .*teacher is marked 'failed'"):
        diagnose_run(run, teachers=[tmp_path / "teacher"])
    with pytest.raises(InputError, match="is no run: it has no config"):
        diagnose_run(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "train"}, "split must be validation or test, not 'train'"),
        ({"max_pool": 0}, "max_pool must be at least 1, not 0"),
        ({"max_pol": 5}, "unknown key 'max_pol'; did you mean 'max_pool'"),
        ({"seed": "one"}, "seed: found 'one'; give a whole number"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("no_work")
def test_bad_options_are_named(options, message, run):
    with pytest.raises(InputError, match=message):
        diagnose_run(run, **options)


@pytest.mark.usefixtures("no_work")
def test_a_split_without_rows_is_named(tiny_bert, suite, tmp_path):
    bare = {**suite, "split": {"validation": 0.0, "test": 0.3}}
    run = train_toy(tiny_bert, bare, tmp_path / "bare").path
    with pytest.raises(InputError, match="task 'mood' has no validation rows to judge the run by"):
        diagnose_run(run)
