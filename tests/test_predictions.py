"""What a run predicted, written and read back."""

import json

import numpy as np
import pytest

from coadapt import InputError, load_run
from coadapt.predictions import predictions_file, read_predictions, write_predictions
from tests.toy_runs import train_toy


def test_predictions_come_back_to_the_bit(tmp_path):
    path = tmp_path / predictions_file("test")
    labels = {"b": np.array([0, 2, 1]), "a": np.array([0.1, -1e-300, 1 / 3])}
    predicted = {"a": np.array([2.5, np.float64(np.float32(0.1)), -0.0]), "b": np.array([0, 0, 1])}
    write_predictions(path, labels, predicted)
    found = read_predictions(path)
    assert list(found) == ["b", "a"]
    for task in labels:
        for value, wanted in zip(found[task], (labels[task], predicted[task]), strict=True):
            assert value.dtype.kind == wanted.dtype.kind
            assert value.tobytes() == wanted.tobytes()


def test_file_is_json_with_a_task_a_line(tmp_path):
    path = tmp_path / predictions_file("validation")
    assert path.name == "predictions-validation.json"
    tasks = {"a": np.array([1, 0]), 'q"': np.array([2])}
    write_predictions(path, tasks, {'q"': np.array([0.5]), "a": np.array([1, 1])})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {
        "a": {"labels": [1, 0], "predicted": [1, 1]},
        'q"': {"labels": [2], "predicted": [0.5]},
    }
    assert len(text.splitlines()) == 4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ('{"a": {"labels": [1', "is not readable JSON"),
        ('{"a": {"labels": [1]}}', "is no file of predictions; evaluate the run again"),
        ('{"a": [1, 2]}', "is no file of predictions"),
        ("[1, 2]", "is no file of predictions"),
        ("3", "is no file of predictions"),
    ],
    ids=["missing", "half", "no-predicted", "lists", "a-list", "a-number"],
)
def test_other_files_are_refused(text, message, tmp_path):
    path = tmp_path / "predictions-test.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as raised:
        read_predictions(path)
    assert str(path) in str(raised.value)


def test_evaluating_a_run_writes_what_it_predicted(tiny_bert, toy_suite_dict, tmp_path):
    run = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run")
    for split in ("validation", "test"):
        scores = run.evaluate(split, num_resamples=0)
        found = read_predictions(tmp_path / "run" / predictions_file(split))
        assert list(found) == ["sentiment", "topic", "same", "degree"]
        for task, (labels, predicted) in found.items():
            assert np.array_equal(labels, run.suite.rows(task, split).labels)
            score = next(iter(scores[task].metrics.items()))
            if task == "degree":
                assert score[0] == "pearson"
                assert score[1].value == pytest.approx(np.corrcoef(labels, predicted)[0, 1])
            else:
                assert predicted.dtype.kind == "i"
                assert score[1].value == np.mean(labels == predicted)
    before = (tmp_path / "run" / "predictions-test.json").read_bytes()
    load_run(tmp_path / "run").evaluate("test", num_resamples=0)
    assert (tmp_path / "run" / "predictions-test.json").read_bytes() == before
