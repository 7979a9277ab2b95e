"""Worker processes on this machine: warm, guarded, and gone when they should be.

Most tests put a small program in the worker's place, which is there in no time.
"""

import os
import signal
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from coadapt.study import local
from coadapt.study.executor import Job
from coadapt.study.local import Local
from tests.study.inline import numbers_of, run_inline

MIB = 2**20
# Answers as a worker does, and does what it is told to.
PROGRAM = """
import json, os, sys, time
print("ready", file=sys.stderr, flush=True)
for line in sys.stdin:
    job = json.loads(line)
    def tell(kind, **data):
        print(json.dumps({"kind": kind, "data": data}), flush=True)
    if job["do"] == "die":
        print("a library's word", '{"kind": "finished", "da', sep="\\n", end="", flush=True)
        os._exit(3)
    if job["do"] == "wait":
        tell("step", step=1, of=2)
        while not os.path.exists(job["until"]):
            time.sleep(0.005)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    kind = "failed" if job["do"] == "fail" else "finished"
    tell(kind, pid=os.getpid(), **{name: os.environ.get(name) for name in names})
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Let workers be that program."""
    package = tmp_path / "path" / "coadapt" / "study"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "worker.py").write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))


@pytest.fixture
def make(program, tmp_path):
    """Make executors that are closed in the end."""
    made = []

    def make_one(workers=1, threads=1):
        made.append(Local(workers=workers, threads=threads, logs=tmp_path / "logs"))
        return made[-1]

    yield make_one
    for executor in made:
        executor.close()


def job(name, do="finish", *, needs="lora", memory=0, **payload):
    return Job(id=name, payload={"do": do, **payload}, needs=needs, memory=memory)


def wait(executor, *ends, until="end"):
    """Return the events until these jobs have ended, or come to another kind of event."""
    deadline, found, left = time.monotonic() + 30, [], set(ends)
    while left:
        assert time.monotonic() < deadline, (left, found)
        for event in executor.events(timeout=0.1):
            found.append(event)
            if event.is_end if until == "end" else event.kind == until:
                left.discard(event.job)
    return found


def run(executor, *jobs):
    """Run jobs and return how each ended."""
    for one in jobs:
        executor.submit(one)
    return {e.job: e for e in wait(executor, *(one.id for one in jobs)) if e.is_end}


def is_gone(pid):
    """Whether a process has ended; one that nobody has asked for its status may still be listed."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# Jobs and workers --------------------------------------------------------------------------


def test_a_worker_takes_one_job_after_the_other(make, tmp_path):
    executor = make()
    assert executor.num_workers == 1
    (tmp_path / "go").touch()
    executor.submit(job("a", "wait", until=str(tmp_path / "go")))
    executor.submit(job("b"))
    events = wait(executor, "a", "b")
    assert [(e.job, e.kind, e.worker) for e in events] == [
        ("a", "started", 0),
        ("a", "step", 0),
        ("a", "finished", 0),
        ("b", "started", 0),
        ("b", "finished", 0),
    ]
    assert events[1].data == {"step": 1, "of": 2}
    assert events[2].data["pid"] == events[4].data["pid"] != os.getpid()


def test_workers_run_side_by_side(make, tmp_path):
    executor = make(workers=2, threads=3)
    for name in ("a", "b", "c"):
        executor.submit(job(name, "wait", until=str(tmp_path / name)))
    wait(executor, "a", "b", until="step")
    assert not [e for e in executor.events(timeout=0.05) if e.job == "c"]
    (tmp_path / "b").touch()
    events = wait(executor, "b")
    events += wait(executor, "c", until="step")
    b, c = (next(e for e in events if e.job == name) for name in ("b", "c"))
    assert (b.data["OMP_NUM_THREADS"], b.data["MKL_NUM_THREADS"]) == ("3", "3")
    assert c.worker == b.worker
    (tmp_path / "a").touch()
    (tmp_path / "c").touch()
    wait(executor, "a", "c")


def test_failed_job_leaves_its_worker_alone(make):
    ends = run(make(), job("a", "fail"), job("b"))
    assert [end.kind for end in ends.values()] == ["failed", "finished"]
    assert ends["a"].data["pid"] == ends["b"].data["pid"]


def test_dead_worker_is_replaced(make):
    ends = run(make(), job("a"), job("b", "die"), job("c"))
    assert [end.kind for end in ends.values()] == ["finished", "killed", "finished"]
    assert ends["b"].data["error"] == "its process ended with code 3; see the worker's log"
    assert ends["a"].data["pid"] != ends["c"].data["pid"]
    assert {end.worker for end in ends.values()} == {0}


def test_killed_worker_costs_its_job_alone(make, tmp_path):
    executor = make(workers=2)
    for name in ("a", "b"):
        executor.submit(job(name, "wait", until=str(tmp_path / name)))
    wait(executor, "a", "b", until="step")
    worker = next(w for w in executor._workers.values() if w.job and w.job.id == "a")
    os.kill(worker.process.pid, signal.SIGKILL)
    (killed,) = [e for e in wait(executor, "a") if e.is_end]
    assert killed.kind == "killed"
    assert "signal 9" in killed.data["error"]
    (tmp_path / "b").touch()
    ends = run(executor, job("c"))
    assert ends["c"].kind == "finished"
    assert ends["c"].data["pid"] != worker.process.pid


@pytest.mark.parametrize("told", [False, True], ids=["unread", "read"])
def test_worker_that_dies_between_jobs_loses_none(told, make):
    executor = make()
    run(executor, job("a"))
    (worker,) = executor._workers.values()
    os.kill(worker.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while executor._told.empty():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    if told:
        assert executor.events(timeout=0) == []
    ends = run(executor, job("b"))
    assert ends["b"].kind == ("finished" if told else "killed")
    assert run(executor, job("c"))["c"].kind == "finished"


def test_closing_ends_what_runs(make, tmp_path):
    executor = make(workers=2)
    for name in ("a", "b"):
        executor.submit(job(name, "wait", until=str(tmp_path / "never")))
    wait(executor, "a", "b", until="step")
    pids = [worker.process.pid for worker in executor._workers.values()]
    executor.close()
    assert all(is_gone(pid) for pid in pids)
    assert executor.events(timeout=0.05) == []


def test_what_workers_print_is_kept(make, tmp_path):
    for _ in range(2):  # the second time after a resume
        executor = make()
        run(executor, job("a"))
        executor.close()
    assert (tmp_path / "logs" / "worker0.log").read_text() == "ready\nready\n"


@pytest.mark.parametrize(
    ("cores", "threads", "workers"), [(4, 1, 4), (4, 2, 2), (4, 3, 1), (2, 8, 1)]
)
def test_workers_by_default_fill_the_cores(cores, threads, workers, make, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert make(workers=None, threads=threads).num_workers == workers


@pytest.mark.parametrize(("named", "devices"), [(None, ["0", "1"]), ("5,3", ["5", "3"])])
def test_each_worker_has_an_accelerator(named, devices, make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    executor = make(workers=None)
    assert executor.num_workers == 2
    ends = run(executor, job("a"), job("b"))
    assert [ends[name].data["CUDA_VISIBLE_DEVICES"] for name in ("a", "b")] == devices


# Memory ------------------------------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch):
    """Let the machine have ``available`` bytes and each worker hold and have held others."""
    given = SimpleNamespace(available=0, held=0, peak=0)

    def held(self):
        self.peak = max(self.peak, given.peak)
        return given.held

    monkeypatch.setattr(local._Worker, "memory", held)
    monkeypatch.setattr(local.psutil, "virtual_memory", lambda: given)
    return given


def running(executor):
    return {w.job.id for w in executor._workers.values() if w.job is not None}


@pytest.mark.parametrize(("available", "both"), [(1899, False), (1900, True)])
def test_second_job_waits_for_room(available, both, make, memory, tmp_path):
    # 15 % are kept free: the first may grow by 1150 - 400, the second needs 1150.
    memory.available, memory.held = available * MIB, 400 * MIB
    executor = make(workers=2)
    for name in ("a", "b"):
        executor.submit(job(name, "wait", memory=1000 * MIB, until=str(tmp_path / name)))
    assert running(executor) == ({"a", "b"} if both else {"a"})
    executor.events(timeout=0.05)
    assert running(executor) == ({"a", "b"} if both else {"a"})
    (tmp_path / "a").touch()
    wait(executor, "a")  # which makes room
    assert running(executor) == {"b"}
    (tmp_path / "b").touch()
    wait(executor, "b")


def test_waiting_job_starts_when_others_free_memory(make, memory, tmp_path):
    executor = make(workers=2)
    for name in ("a", "b"):
        executor.submit(job(name, "wait", memory=MIB, until=str(tmp_path / name)))
    assert running(executor) == {"a"}
    memory.available = 10 * MIB
    executor.events(timeout=0.01)
    assert running(executor) == {"a", "b"}


def test_one_job_runs_in_any_case(make, memory):
    executor = make(workers=2)
    ends = run(executor, job("a", memory=2**50), job("b", memory=2**50))
    assert [end.kind for end in ends.values()] == ["finished", "finished"]
    assert ends["a"].data["pid"] == ends["b"].data["pid"]


def test_measured_memory_takes_the_place_of_the_guess(make, memory, tmp_path):
    memory.peak = 2000 * MIB
    executor = make(workers=2)
    run(executor, job("a", memory=MIB))
    memory.available = int(2 * 1.15 * 2000 * MIB) - MIB
    # The worker that has run job "a" holds nothing now, so both are to grow to what "a" took.
    executor.submit(job("b", "wait", memory=MIB, until=str(tmp_path / "b")))
    executor.submit(job("c", "wait", memory=MIB, until=str(tmp_path / "c")))
    assert running(executor) == {"b"}
    # Of other jobs there is only the guess.
    (tmp_path / "b").touch()
    (tmp_path / "c").touch()
    wait(executor, "b", "c")
    executor.submit(job("d", "wait", memory=MIB, until=str(tmp_path / "d")))
    executor.submit(job("e", needs="full", memory=MIB))
    wait(executor, "e")
    assert running(executor) == {"d"}


@pytest.mark.parametrize(("available", "both"), [(299, False), (300, True)])
def test_what_a_free_worker_holds_serves_its_next_job(available, both, make, memory, tmp_path):
    executor, memory.available = make(workers=2), 100 * MIB
    for name in ("a", "b", "c", "d"):
        executor.submit(job(name, "wait", needs=name, memory=MIB, until=str(tmp_path / name)))
    for name in ("a", "b"):
        (tmp_path / name).touch()
    wait(executor, "a", "b")
    for name in ("c", "d"):
        (tmp_path / name).touch()
    wait(executor, "c", "d")
    # Both workers are there, and each may grow by 1150 - 1000.
    memory.available, memory.held = available * MIB, 1000 * MIB
    for name in ("e", "f"):
        executor.submit(job(name, "wait", memory=1000 * MIB, until=str(tmp_path / name)))
    assert running(executor) == ({"e", "f"} if both else {"e"})


def test_memory_is_that_of_the_process(make, tmp_path):
    executor = make()
    executor.submit(job("a", "wait", until=str(tmp_path / "a")))
    wait(executor, "a", until="step")
    (worker,) = executor._workers.values()
    assert 3 * MIB < worker.memory() < 300 * MIB
    assert worker.peak >= worker.memory()
    os.kill(worker.process.pid, signal.SIGKILL)
    wait(executor, "a")
    assert worker.memory() == 0
    assert worker.peak > 3 * MIB
    assert executor._seen == {"lora": worker.peak}


# The real worker ---------------------------------------------------------------------------


def test_study_in_a_worker_equals_one_in_this_process(done, tmp_path, monkeypatch):
    made = []

    def popen(words, **options):
        made.append(words)
        return original(words, **options)

    original = local.subprocess.Popen
    monkeypatch.setattr(local.subprocess, "Popen", popen)
    executor = Local(workers=1, threads=1, logs=tmp_path / "logs")
    assert run_inline(done.grid, tmp_path / "study", executor) == {}
    assert numbers_of(tmp_path / "study") == numbers_of(done.folder)
    assert made == [[sys.executable, "-m", "coadapt.study.worker"]]  # once for eight cells
    assert executor._workers == {}
    assert min(executor._seen.values()) > 200 * MIB
