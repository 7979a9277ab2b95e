"""What trackers are told, read back from their own files."""

import json

import pytest

from coadapt import InputError, arguments
from tests.toy_runs import train_toy

EVERY_STEP = {
    "max_steps": 2,
    "use_cpu": True,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
}
TASKS = ("sentiment", "topic", "same", "degree")


def train(tiny_bert, suite, output, tracker):
    return train_toy(tiny_bert, suite, output, training={**EVERY_STEP, "report_to": tracker})


def expected(run):
    """Return what metrics.jsonl says by the names that trackers show: step, value."""
    found: dict[str, list] = {}
    for line in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines()):
        step = line.pop("step")
        for key, value in line.items():
            name = f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"
            found.setdefault(name, []).append((step, value))
    return found


def check(found, run):
    wanted = expected(run)
    # By hand, so that a change of names is seen.
    always = {"train/loss", "train/learning_rate", "train/padding", "eval/overall"}
    always |= {name for task in TASKS for name in (f"train/loss_{task}", f"eval/{task}")}
    assert always | {"eval/topic_accuracy", "eval/degree_spearman"} <= wanted.keys()
    for name in wanted.keys() - {"train/epoch", "eval/epoch"}:
        if name in found:
            steps, values = zip(*found[name], strict=True)
            wanted_steps, wanted_values = zip(*wanted[name], strict=True)
            assert steps == wanted_steps, name
            assert values == pytest.approx(wanted_values, rel=1e-6, nan_ok=True), name
    assert always <= found.keys()


def test_tensorboard(tiny_bert, toy_suite_files, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tiny_bert, toy_suite_files, tmp_path / "run", "tensorboard")
    (folder,) = {path.parent for path in (run.path / "runs").rglob("events.*")}
    events = EventAccumulator(str(folder)).Reload()
    found = {
        name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]
    }
    check(found, run)


def test_mlflow(tiny_bert, toy_suite_files, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    store = (tmp_path / "mlruns").as_uri()  # a data base asks for all of MLflow
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    try:
        run = train(tiny_bert, toy_suite_files, tmp_path / "run", "mlflow")
        client = mlflow.MlflowClient(store)
        (one,) = client.search_runs(["0"])
        history = {
            name: [(m.step, m.value) for m in client.get_metric_history(one.info.run_id, name)]
            for name in one.data.metrics
        }
    finally:
        mlflow.set_tracking_uri(before)
    # It keeps the names of metrics.jsonl.
    check(
        {f"eval/{k[5:]}" if k[:5] == "eval_" else f"train/{k}": v for k, v in history.items()}, run
    )
    assert one.info.status == "FINISHED"


def test_absent_tracker_names_its_extra(tiny_bert, toy_suite_files, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", list)
    with pytest.raises(InputError, match=r'mlflow.*pip install "coadapt\[trackers\]"'):
        train(tiny_bert, toy_suite_files, tmp_path / "run", "mlflow")
    with pytest.raises(InputError, match=r"'mlfow' is no tracker.*mlflow"):
        train(tiny_bert, toy_suite_files, tmp_path / "run", "mlfow")
