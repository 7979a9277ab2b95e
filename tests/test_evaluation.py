"""Scores: of the right rows, with intervals, the same for the same seed."""

import numpy as np
import pytest

from coadapt import InputError, load_run
from coadapt.evaluation import (
    Score,
    TaskScores,
    decide,
    evaluate_model,
    flatten,
    overall,
    predict_outputs,
    score_task,
)
from coadapt.tasks import Collator, Task, encode
from tests.small import NOWHERE
from tests.toy_runs import result_of, train_toy, train_well

TASKS = ("sentiment", "topic", "same", "degree")
CLASSES = Task(name="three", kind="classification", data=NOWHERE, labels=("a", "b", "c"))


@pytest.fixture(scope="module")
def trained(tiny_bert, toy_suite_files, tmp_path_factory):
    """A run that has learnt its tasks, with dropout."""
    return train_well(
        tiny_bert, toy_suite_files, tmp_path_factory.mktemp("runs") / "run", dropout=0.1
    )


@pytest.fixture
def run(trained):
    return load_run(trained.path)


def encoded_of(run, task, split="train"):
    return encode(run.tokenizer, run.suite.rows(task, split), 64)


@pytest.mark.parametrize("task", TASKS)
def test_outputs_come_in_the_order_of_the_rows(task, run):
    rows, collate = encoded_of(run, task), Collator(run.tokenizer)
    lengths = [len(row["input_ids"]) for row in rows]
    assert lengths != sorted(lengths)
    batched = predict_outputs(run.model, collate, rows, task, batch_size=7)
    single = [predict_outputs(run.model, collate, [row], task)[0] for row in rows]
    assert batched.shape == (len(rows), run.suite.task(task).num_outputs)
    np.testing.assert_allclose(batched, np.stack(single), rtol=0, atol=1e-5)


def test_outputs_of_no_rows(run):
    assert predict_outputs(run.model, Collator(run.tokenizer), [], "topic").shape == (0, 3)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_mode_of_the_model_is_restored_and_dropout_is_off(training, run):
    rows, collate = encoded_of(run, "topic"), Collator(run.tokenizer)
    model = run.model.train(training)
    first = predict_outputs(model, collate, rows, "topic")
    assert np.array_equal(first, predict_outputs(model, collate, rows, "topic"))
    assert model.training is training


def test_scores_are_those_of_the_outputs(run):
    scores = run.evaluate("train", num_resamples=0)
    assert list(scores) == list(TASKS)
    for task in run.suite.tasks:
        rows = run.suite.rows(task.name, "train")
        outputs = predict_outputs(
            run.model, Collator(run.tokenizer), encoded_of(run, task.name), task.name
        )
        assert scores[task.name].num_rows == len(rows)
        if task.kind == "classification":
            value = np.mean(outputs.argmax(axis=1) == rows.labels)
        else:
            value = np.corrcoef(outputs[:, 0], rows.labels)[0, 1]
        assert scores[task.name].score.value == pytest.approx(value)
    assert min(task.score.value for task in scores.values()) > 0.7


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_intervals_bracket_the_value(split, run):
    scores = run.evaluate(split, num_resamples=300)
    found = [score for task in scores.values() for score in task.metrics.values()]
    assert len(found) == 5  # Pearson and Spearman for `degree`
    assert all(score.low <= score.value <= score.high for score in found)
    # What has no wrong row has no width; correlations always have some.
    assert all(score.low < score.high for score in scores["degree"].metrics.values())


def test_no_resamples_leave_the_value_alone(run):
    for task in run.evaluate("test", num_resamples=0).values():
        assert all(s.low == s.value == s.high for s in task.metrics.values())


def noisy(seed=0, size=60):
    """Return class ids and outputs that find most of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size)
    return labels, np.eye(3)[labels] + rng.normal(0, 0.7, (size, 3))


def test_intervals_are_those_of_the_seed():
    task = Task(name="value", kind="regression", data=NOWHERE)
    labels, outputs = noisy()
    first, again, other = (score_task(task, labels, outputs[:, 0], seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.score.value == other.score.value
    assert (first.score.low, first.score.high) != (other.score.low, other.score.high)


def test_intervals_are_as_wide_as_the_binomial_says():
    labels, outputs = noisy(size=400)
    score = score_task(CLASSES, labels, outputs.argmax(1), num_resamples=2000).score
    half = 1.96 * np.sqrt(score.value * (1 - score.value) / 400)
    assert score.high - score.low == pytest.approx(2 * half, rel=0.1)
    narrow = score_task(CLASSES, labels, outputs.argmax(1), num_resamples=2000, level=0.5).score
    assert narrow.high - narrow.low == pytest.approx(2 * half * 0.6745 / 1.96, rel=0.15)


def test_decisions():
    value = Task(name="value", kind="regression", data=NOWHERE)
    outputs = np.array([[0.1, 0.7, 0.2], [0.9, 0.0, 0.1]])
    assert decide(CLASSES, outputs).tolist() == [1, 0]
    assert decide(value, outputs[:, :1]).tolist() == [0.1, 0.9]


def test_overall_is_the_plain_mean_of_the_first_metrics():
    def scores(rows, *values):
        names = ("accuracy", "f1", "matthews")
        return TaskScores(
            num_rows=rows,
            metrics={
                name: Score(value=value, low=0.0, high=1.0)
                for name, value in zip(names, values, strict=False)
            },
        )

    found = {"large": scores(1000, 0.9, 0.1), "small": scores(10, 0.5)}
    assert overall(found) == pytest.approx(0.7)
    flat = flatten(found)
    assert flat == {
        "eval_overall": pytest.approx(0.7),
        "eval_large": 0.9,
        "eval_large_accuracy": 0.9,
        "eval_large_f1": 0.1,
        "eval_small": 0.5,
        "eval_small_accuracy": 0.5,
    }
    # A task may be called what another one's metric is called: the task is what counts.
    assert flatten({"large_f1": scores(1, 0.3), **found})["eval_large_f1"] == 0.3


def test_only_the_tasks_given_are_scored(run):
    rows = run.suite.rows("topic", "test")
    scores = evaluate_model(
        run.model,
        Collator(run.tokenizer),
        {"topic": encoded_of(run, "topic", "test")},
        {"topic": rows.labels},
        num_resamples=10,
    )
    assert list(scores) == ["topic"]


def test_scores_of_each_split_are_kept_with_the_run(run):
    before = result_of(run.path)
    test, validation = run.evaluate("test"), run.evaluate("validation")
    after = result_of(run.path)
    assert after["metrics"].keys() >= {"test", "validation"}
    for split, scores in (("test", test), ("validation", validation)):
        for task, found in scores.items():
            kept = after["metrics"][split][task]
            assert kept["num_rows"] == found.num_rows
            for name, score in found.metrics.items():
                assert kept["metrics"][name] == {
                    "value": score.value,
                    "low": score.low,
                    "high": score.high,
                }
    assert after["inference"].keys() == after["metrics"].keys()
    added = ("metrics", "inference")
    assert {k: v for k, v in after.items() if k not in added} == {
        k: v for k, v in before.items() if k not in added
    }


def test_unknown_split_is_refused(run):
    with pytest.raises(InputError, match=r"unknown split 'tset'; did you mean 'test'\?"):
        run.evaluate("tset")


def test_empty_split_is_refused(tiny_bert, toy_suite_dict, tmp_path):
    toy_suite_dict["split"] = {"validation": 0.0, "test": 0.3}
    run = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run")
    before = result_of(run.path)
    with pytest.raises(InputError, match="task 'sentiment' has no validation rows to score"):
        run.evaluate("validation")
    assert result_of(run.path) == before
