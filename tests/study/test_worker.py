"""What a worker does with a job, and keeps for the next."""

import io
import json
import os
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from coadapt import loading
from coadapt._errors import TrainingDiverged
from coadapt.study import worker
from coadapt.study.worker import Bench, attempt
from tests.study.inline import Inline, run_inline, scored
from tests.toy_runs import content_of, result_of


def no_tell(step, of):
    """Nobody is told."""


@pytest.fixture
def payloads(done, tmp_path):
    """The jobs of the toy study in the order in which they come, in the test's own folder."""
    jobs = []
    run_inline(done.grid, tmp_path / "jobs", Inline(lambda j: jobs.append(j) or scored(j, 1.0)))
    for job in jobs:
        name = "-".join(job.payload["folder"].split("/")[-2:])
        job.payload["folder"] = str(tmp_path / "runs" / name)
    return {job.id: job.payload for job in jobs}


@pytest.fixture
def trial(payloads):
    return payloads["lora-R8-n8/trial0_seed0"]


def test_a_job_is_trained_and_scored(trial, bench, done):
    told = []
    found = bench.run_job(trial, lambda step, of: told.append((step, of)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.keys() >= {"train", "curve", "metrics", "environment"}
    json.dumps(found, allow_nan=False)
    assert list(found["metrics"]) == ["validation"]
    for task in found["metrics"]["validation"].values():
        for score in task["metrics"].values():
            assert score["low"] == score["value"] == score["high"]  # no resampling here
    steps = [step for step, _ in found["curve"]]
    assert steps == [3, 4]


def test_a_job_done_before_is_only_scored(trial, bench):
    first = bench.run_job(trial, no_tell)
    told = []
    again = bench.run_job({**trial, "split": "test"}, lambda *step: told.append(step))
    assert told == []
    assert again["train"] == first["train"]
    assert again["curve"] == first["curve"]
    assert list(again["metrics"]) == ["test"]


def test_worker_stays_warm(payloads, monkeypatch):
    calls = []

    def counted(module, name):
        original = getattr(module, name)

        def call(*args, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in ("load_backbone", "load_tokenizer", "encode"):
        counted(loading, name)
    counted(worker, "load_suite")
    bench = Bench()
    bench.run_job(payloads["lora-R8-n8/trial0_seed0"], no_tell)
    assert sorted(set(calls)) == ["encode", "load_backbone", "load_suite", "load_tokenizer"]
    assert calls.count("encode") == 8  # training and validation rows of four tasks
    del calls[:]
    bench.run_job(payloads["private-R8-n8/trial0_seed0"], no_tell)
    assert calls == []
    # Another seed has other training rows, and here the rows of test are new.
    bench.run_job(payloads["lora-R8-n8/final_seed1"], no_tell)
    assert sorted(calls) == ["encode"] * 12 + ["load_suite"]


def test_only_the_last_suites_are_kept(trial, monkeypatch):
    def load_suite(plain):
        loaded.append(plain["name"])
        return original(plain)

    loaded, original = [], worker.load_suite
    monkeypatch.setattr(worker, "load_suite", load_suite)
    bench = Bench()
    suites = [{**trial["suite"], "name": f"s{i}"} for i in range(9)]
    for suite in [*suites, suites[8], suites[1], suites[0]]:
        assert bench._suite(suite, trial["tasks"]).name == suite["name"]
    assert loaded == [*(f"s{i}" for i in range(9)), "s0"]


def test_subset_has_the_rows_of_the_whole(trial, bench):
    whole = bench._suite(trial["suite"], trial["tasks"])
    some = bench._suite(trial["suite"], ["same", "topic"])
    assert some.names == ("same", "topic")
    assert some.whole is whole
    assert some.rows("topic", "train").texts == whole.rows("topic", "train").texts


def test_run_of_another_configuration_makes_way(trial, bench, tmp_path):
    bench.run_job(trial, no_tell)
    changed = json.loads(json.dumps(trial))
    changed["config"]["training"]["num_train_epochs"] = 2
    left = tmp_path / "runs" / "tmp-old-lora-R8-n8-trial0_seed0"  # of a worker that was killed
    left.mkdir()
    (left / "big").write_text("...")
    assert bench.run_job(changed, no_tell)["train"]["steps"] == 8
    assert not left.exists()
    assert not any("checkpoint-4" in name for name in content_of(tmp_path / "runs"))
    assert result_of(Path(trial["folder"]))["train"]["steps"] == 8


def test_a_run_has_one_worker_at_a_time(trial, bench, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    lock = FileLock(folder / ".lora-R8-n8-trial0_seed0.lock", thread_local=False)
    lock.acquire()
    freed = []

    def free():
        time.sleep(0.3)
        assert sorted(path.name for path in folder.iterdir()) == [".lora-R8-n8-trial0_seed0.lock"]
        freed.append(time.monotonic())
        lock.release()

    thread = threading.Thread(target=free)
    thread.start()
    found = bench.run_job(trial, lambda *_: freed[0])  # raises before it is free
    thread.join()
    assert found["train"]["steps"] == 4


# What is answered --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (TrainingDiverged("not finite"), {"kind": "diverged", "data": {"error": "not finite"}}),
        (OSError(28, "full"), {"kind": "failed", "data": {"error": "OSError: [Errno 28] full"}}),
        (KeyError("x"), {"kind": "failed", "data": {"error": "KeyError: 'x'"}}),
    ],
    ids=["diverged", "disk", "bug"],
)
def test_whatever_goes_wrong_is_answered(error, answer, bench, monkeypatch):
    def run_job(self, payload, tell):
        raise error

    monkeypatch.setattr(Bench, "run_job", run_job)
    assert attempt(bench, {}, no_tell) == answer


def test_diverging_is_told_from_failing(trial, bench):
    trial["config"]["training"]["learning_rate"] = 1e30
    answer = attempt(bench, trial, no_tell)
    assert answer["kind"] == "diverged"
    assert "not finite" in answer["data"]["error"]
    assert result_of(Path(trial["folder"]))["run"]["status"] == "failed"


def test_answers_are_not_mixed_with_what_libraries_print(monkeypatch, capfd):
    def run_job(self, payload, tell):
        if payload["number"] == 2:
            raise SystemExit
        os.write(1, b"a library says hello\n")
        for step in (1, 2, 3):
            tell(step, 3)
        return {"number": payload["number"]}

    monkeypatch.setattr(worker.time, "monotonic", lambda: 100.0)  # all of it at one moment
    monkeypatch.setattr(Bench, "run_job", run_job)
    monkeypatch.setattr(worker.os, "_exit", lambda code: None)  # when the input ends
    lines = [json.dumps({"number": number}) for number in range(3)]
    monkeypatch.setattr(worker.sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    kept = os.dup(1)
    try:
        with pytest.raises(SystemExit):
            worker.main()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    printed = capfd.readouterr()
    assert printed.err.count("a library says hello") == 2
    found = [json.loads(line) for line in printed.out.splitlines()]
    first, last = ({"kind": "step", "data": {"step": step, "of": 3}} for step in (1, 3))
    assert found == [
        first,
        last,
        {"kind": "finished", "data": {"number": 0}},
        last,
        {"kind": "finished", "data": {"number": 1}},
    ]


def test_worker_ends_with_its_input(monkeypatch):
    ended = []
    monkeypatch.setattr(worker.os, "_exit", ended.append)
    monkeypatch.setattr(worker.sys, "stdin", io.StringIO('{"a": 1}\n'))
    jobs = worker.queue.SimpleQueue()
    worker._read(jobs)
    assert jobs.get_nowait() == '{"a": 1}\n'
    assert ended == [0]


def test_worker_reads_the_rows_of_the_cell(done, payloads):
    cell = done.grid.cell(done.grid.groups[0], "final", 0, 1)
    payload = json.loads(json.dumps(payloads[cell.id]))
    suite = Bench()._suite(payload["suite"], payload["tasks"])
    assert suite == cell.suite
    for split in ("train", "validation", "test"):
        assert suite.rows("topic", split).texts == cell.suite.rows("topic", split).texts
