"""This machine: worker processes that stay warm, as many as its cores and memory carry."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psutil
import torch

from coadapt.study.executor import AbstractExecutor, Event, EventKind, Job

_SPARE = 1.15  # memory is kept free for what was measured, and a little more


class _Worker:
    """One process and the job it has."""

    def __init__(self, index: int, threads: int, log: Path, told: "_Told") -> None:
        self.index, self.job = index, cast("Job | None", None)
        self.peak = 0
        self._told = told
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if torch.cuda.is_available():  # a worker each, so that none takes them all
            environment["CUDA_VISIBLE_DEVICES"] = _visible()[index % len(_visible())]
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "coadapt.study.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                text=True,
                encoding="utf-8",
                # Ctrl-C is for the study, which decides what becomes of its workers.
                start_new_session=True,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, job: Job) -> None:
        """Hand a job over."""
        self.job = job
        assert self.process.stdin is not None
        self._put("started", {})
        # If it died while it had no job, that is on its way to be told.
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job.payload) + "\n")
            self.process.stdin.flush()

    def memory(self) -> int:
        """Return the bytes that the process holds, and remember the most."""
        try:
            held = psutil.Process(self.process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            held = 0
        self.peak = max(self.peak, held)
        return held

    def stop(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # a job that it did not take any more
            self.process.stdin.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                # Half a line of a process that was killed, or what a library says when imported.
                with suppress(json.JSONDecodeError):
                    found: dict[str, Any] = json.loads(line)
                    self._put(found["kind"], found["data"])
        code = self.process.wait()
        self._put("killed", {"error": _death(code)})

    def _put(self, kind: EventKind, data: dict[str, Any]) -> None:
        self._told.put((self, kind, data))


# With the worker itself: its place may have been taken by another one when this is read. Which job
# it is about only the reader can tell: a process may die just when it is given one.
_Told = queue.Queue[tuple[_Worker, EventKind, dict[str, Any]]]


class Local(AbstractExecutor):
    """Worker processes on this machine.

    A job starts when a worker is free and the machine has the memory that jobs of its kind were
    seen to need, or are guessed to; one job runs in any case.

    Args:
        workers: processes; None: a core for each thread of a worker, or one an accelerator.
        threads: of each worker.
        logs: a folder for what the workers print.
    """

    def __init__(self, *, workers: int | None, threads: int, logs: Path) -> None:
        self._limit = workers or _default_workers(threads)
        self._threads, self._logs = threads, logs
        self._told: _Told = queue.Queue()
        self._workers: dict[int, _Worker] = {}
        self._waiting: deque[Job] = deque()
        self._seen: dict[str, int] = {}
        logs.mkdir(parents=True, exist_ok=True)

    @property
    def num_workers(self) -> int:
        """How many jobs run at a time, at most."""
        return self._limit

    def submit(self, job: Job) -> None:
        """Take a job, and start it if there is room."""
        self._waiting.append(job)
        self._fill()

    def events(self, timeout: float) -> list[Event]:
        """Return what has happened; jobs that have ended have made room for others."""
        found = []
        try:
            found.append(self._told.get(timeout=timeout))
            while True:
                found.append(self._told.get_nowait())
        except queue.Empty:
            pass
        events = [event for told in found if (event := self._take(*told)) is not None]
        self._fill()
        return events

    def close(self) -> None:
        """Kill the workers."""
        for worker in self._workers.values():
            worker.stop()
        self._workers.clear()

    def _take(self, worker: _Worker, kind: EventKind, data: dict[str, Any]) -> Event | None:
        """Keep account of what a worker told; return it if it is about a job."""
        if self._workers.get(worker.index) is not worker:
            return None  # of a worker that has been given up already
        worker.memory()
        if kind == "killed":
            self._workers.pop(worker.index).stop()
        job = worker.job
        if job is None:
            return None
        event = Event(job=job.id, kind=kind, worker=worker.index, data=data)
        if event.is_end:
            self._seen[job.needs] = max(self._seen.get(job.needs, 0), worker.peak)
            worker.job = None
        return event

    def _fill(self) -> None:
        while self._waiting:
            job = self._waiting[0]
            busy = [worker for worker in self._workers.values() if worker.job is not None]
            free = [worker for worker in self._workers.values() if worker.job is None]
            if len(busy) >= self._limit:
                return
            growth = sum(self._growth(worker, worker.job) for worker in busy)
            growth += self._growth(free[0] if free else None, job)
            if busy and growth > psutil.virtual_memory().available:
                return
            worker = free[0] if free else self._hire()
            worker.start(self._waiting.popleft())

    def _growth(self, worker: _Worker | None, job: Job | None) -> int:
        """Return the bytes that a worker, or a new one, may still ask for with a job."""
        if job is None:
            return 0
        needed = int(_SPARE * self._seen.get(job.needs, job.memory))
        return max(0, needed - (worker.memory() if worker is not None else 0))

    def _hire(self) -> _Worker:
        index = next(i for i in range(self._limit) if i not in self._workers)
        log = self._logs / f"worker{index}.log"
        self._workers[index] = _Worker(index, self._threads, log, self._told)
        return self._workers[index]


def _default_workers(threads: int) -> int:
    if torch.cuda.is_available():
        return len(_visible())
    return (
        max(1, len(os.sched_getaffinity(0)) // threads) if hasattr(os, "sched_getaffinity") else 1
    )


def _visible() -> list[str]:
    """Return the names of the accelerators that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def _death(code: int) -> str:
    if code == -9:
        return "its process was killed (signal 9), as a system does that is out of memory"
    return f"its process ended with code {code}; see the worker's log"
