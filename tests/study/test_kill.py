"""A study that is killed, again and again, ends like one that nobody disturbed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.study.inline import Inline, numbers_of, run_inline, scored, study_of, write_study
from tests.toy_runs import content_of

KILLS = 10
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server():
    """A process that forks studies, see _study_worker.py."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.study._study_worker"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield process
    process.kill()
    process.communicate()


def start(server, do, **job) -> int:
    """Start a job and return its process id."""
    server.stdin.write(json.dumps({"do": do, **job}) + "\n")
    server.stdin.flush()
    return answer(server)


def answer(server) -> int:
    """Return the server's next word: a process id, then that process's exit status."""
    return int(server.stdout.readline())


@pytest.fixture
def study(tiny_bert, toy_suite_files, tmp_path):
    """The file of a study whose cells write a checkpoint every other step."""
    plain = study_of(tiny_bert, toy_suite_files)
    plain["training"] |= {"save_strategy": "steps", "save_steps": 2}
    return write_study(tmp_path, plain)


def num_finished(folder: Path) -> int:
    """Return how many cells have a result."""
    records = (folder / "cells").rglob("*.json")
    return sum('"status": "finished"' in record.read_text() for record in list(records))


def wait_until(what, seconds=60.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def statistics_of(folder: Path) -> dict[str, Any]:
    """Return summary.json without what was measured by the clock."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: strip(v)
                for k, v in value.items()
                if not re.search("seconds|timing|inference", k)
            }
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def assert_same_study(found: Path, wanted: Path) -> None:
    """Assert that two studies ended with the same results."""
    numbers = numbers_of(found)
    assert {record["run"]["status"] for n, record in numbers.items() if n[-4:] != "json"} == {
        "finished"
    }
    assert numbers == numbers_of(wanted)
    summary = statistics_of(found)
    assert summary == statistics_of(wanted)
    assert summary["missing"] == {}
    for path in found.rglob("*"):  # nothing half, whatever was being written
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def test_study_killed_ten_times_ends_like_an_undisturbed_one(server, study, tmp_path):
    job = {"do": "run_study", "file": str(study)}
    start(server, **job, output=str(tmp_path / "whole"))
    assert answer(server) == 0
    folder, rng, killed = tmp_path / "killed", random.Random(0), 0
    for kill in range(KILLS):
        pid = start(server, **job, output=str(folder))
        wait_until(lambda kill=kill: num_finished(folder) >= kill * 8 // KILLS)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        killed += answer(server) == signal.SIGKILL
    assert killed >= KILLS - 2
    start(server, **job, output=str(folder))
    assert answer(server) == 0
    assert_same_study(folder, tmp_path / "whole")


def test_killed_study_leaves_no_worker_behind(server, done, tmp_path):
    jobs = []
    run_inline(done.grid, tmp_path / "jobs", Inline(lambda j: jobs.append(j) or scored(j, 1.0)))
    payload = {**jobs[0].payload, "folder": str(tmp_path / "run")}
    payload["config"]["training"] |= {"num_train_epochs": 10**6, "eval_strategy": "no"}
    pid = start(server, "keep_worker", payload=payload, output=str(tmp_path / "logs"))
    said = tmp_path / "logs" / "pid"
    wait_until(lambda: said.is_file() and said.read_text(), seconds=120)
    worker = psutil.Process(int(said.read_text()))
    assert worker.is_running()
    os.kill(pid, signal.SIGKILL)
    assert answer(server) == signal.SIGKILL
    wait_until(lambda: not worker.is_running() or worker.status() == "zombie", seconds=20)
    before = content_of(tmp_path / "run")
    time.sleep(0.2)
    assert content_of(tmp_path / "run") == before


@pytest.mark.slow
def test_command_killed_ten_times_ends_like_an_undisturbed_one(study, tmp_path):
    """The whole of it: two workers, which outlive the study for a moment."""
    words = [sys.executable, "-m", "coadapt", "study", str(study), "--workers", "2"]
    folder, rng, killed = tmp_path / "killed", random.Random(1), 0
    subprocess.run([*words, "-o", str(tmp_path / "whole")], check=True, capture_output=True)
    for kill in range(KILLS):
        command = [*words, "-o", str(folder), "--resume"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            wait_until(lambda kill=kill: num_finished(folder) >= kill * 8 // KILLS, seconds=120)
            time.sleep(rng.uniform(0, 8))
            process.kill()
            killed += process.wait() == -signal.SIGKILL
    assert killed >= KILLS - 3
    subprocess.run([*words, "-o", str(folder), "--resume"], check=True, capture_output=True)
    assert_same_study(folder, tmp_path / "whole")
