"""A Ray cluster: the same worker on other machines, restarted where it dies."""

import io
import logging
import os
import platform
import shutil
import tempfile
import uuid
import zipfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from coadapt._errors import InputError
from coadapt._version import __version__
from coadapt.study.executor import AbstractExecutor, Event, Job
from coadapt.study.worker import Bench, attempt

logger = logging.getLogger(__name__)

_RETRIES = 3  # of a cell whose worker died; one that takes more memory than there is dies each time
_PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate")


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "coadapt": __version__, **found}


class _Remote:
    """What lives in a process of the cluster: a bench and the job that it has.

    Args:
        versions: the driver's.
        threads: of PyTorch.
        mark: a file in the study's folder, by which a worker tells whether it sees the driver's
            disk.
    """

    def __init__(self, versions: Mapping[str, str], threads: int, mark: str) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        torch.set_num_threads(threads)
        self._bench, self._mark = Bench(), Path(mark)
        own = _versions()
        self._unlike = [
            f"{name} {own[name]} on {platform.node()}, {wanted} here"
            for name, wanted in versions.items()
            if own[name] != wanted
        ]
        self._step: tuple[int, int] | None = None

    def unlike(self) -> list[str]:
        """Return what differs from the driver."""
        return self._unlike

    def step(self) -> tuple[int, int] | None:
        """Return the step and the number of steps of the job; None before its first."""
        return self._step

    def run(self, payload: dict[str, Any], there: list[Any]) -> tuple[dict[str, Any], bytes | None]:
        """Run a job.

        Args:
            payload: for `Bench.run_job`; ``folder`` as the driver sees it.
            there: a reference to the packed run that the driver has already, or empty.

        Returns:
            How it ended, and the packed run if the driver cannot see this machine's disk.
        """
        if self._unlike:  # this process took the place of one that died
            error = "other versions than the driver's: " + "; ".join(self._unlike)
            return {"kind": "failed", "data": {"error": error}}, None
        self._step = None
        if self._mark.is_file():
            return attempt(self._bench, payload, self._tell), None
        # The same folder each time, so that a worker which is started anew finds the checkpoint.
        own = Path(tempfile.gettempdir()) / self._mark.name.lstrip(".")
        folder = own.joinpath(*Path(payload["folder"]).parts[-2:])
        if there and not folder.exists():
            import ray

            _unpack(ray.get(there[0]), folder)
        end = attempt(self._bench, {**payload, "folder": str(folder)}, self._tell)
        if end["kind"] != "finished":
            return end, None
        packed = _pack(folder)
        shutil.rmtree(folder)
        return end, packed

    def _tell(self, step: int, of: int) -> None:
        self._step = (step, of)


@dataclass(kw_only=True)
class _Worker:
    """The driver's side of a process in the cluster."""

    index: int
    actor: Any
    job: Job | None = None
    done: Any = None  # reference to the end of the job
    asked: Any = None  # reference to the answer to "which step?"
    step: tuple[int, int] | None = None
    there: list[Any] = field(default_factory=list)  # kept, or Ray would drop what it refers to


class RayCluster(AbstractExecutor):
    """Worker processes on a Ray cluster, each with ``threads`` processors and one accelerator.

    A worker that dies in the middle of a cell is started anew, on another machine if need be, and
    goes on from the cell's last checkpoint if it finds it. Runs of machines that do not share the
    study's folder come back whole.

    Args:
        workers: at a time; None: as many as the cluster's processors, or accelerators, carry.
        threads: of each worker.
        folder: the study's.
        address: ``HOST:PORT`` of the cluster; None: ``RAY_ADDRESS``, else the one on this machine,
            else a new one for as long as the study runs.

    Raises:
        InputError: if Ray is not installed, the cluster cannot be reached or has no room, or its
            Python or packages differ from the driver's, naming them.
    """

    def __init__(
        self, *, workers: int | None, threads: int, folder: Path, address: str | None = None
    ) -> None:
        self._ray = _import_ray()
        self._owns = not self._ray.is_initialized()
        if self._owns:
            _connect(self._ray, address)
        has = self._ray.cluster_resources()
        self._gpus, self._threads = 1 if has.get("GPU", 0) >= 1 else 0, threads
        try:
            self._limit = _room(has, workers, threads)
        except InputError:
            self._leave()
            raise
        self._waiting: deque[Job] = deque()
        self._started: list[Event] = []
        self._mark = folder.resolve() / f".ray-{uuid.uuid4().hex}"
        self._mark.touch()
        self._workers = [_Worker(index=i, actor=self._hire()) for i in range(self._limit)]
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def num_workers(self) -> int:
        """How many jobs run at a time, at most."""
        return self._limit

    def submit(self, job: Job) -> None:
        """Take a job, and start it if a worker is free."""
        self._waiting.append(job)
        self._fill()

    def events(self, timeout: float) -> list[Event]:
        """Return what has happened; jobs that have ended have made room for others."""
        found, self._started = self._started, []
        busy = {worker.done: worker for worker in self._workers if worker.job is not None}
        if busy:
            wait = 0.0 if found else timeout
            ended, _ = self._ray.wait(list(busy), num_returns=1, timeout=wait)
            found += [event for worker in busy.values() if (event := self._ask(worker)) is not None]
            found += [self._end(busy[done]) for done in ended]
        self._fill()
        return found

    def close(self) -> None:
        """Kill the workers, and the cluster if it was started for this."""
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers.clear()
        self._mark.unlink(missing_ok=True)
        self._leave()

    def _leave(self) -> None:
        if self._owns:
            self._ray.shutdown()

    def _hire(self) -> Any:
        remote = self._ray.remote(
            num_cpus=self._threads,
            num_gpus=self._gpus,
            max_restarts=-1,
            max_task_retries=_RETRIES,
            max_concurrency=2,  # one thread trains, the other says how far it is
        )(_Remote)
        return remote.remote(_versions(), self._threads, str(self._mark))

    def _check(self) -> None:
        asked = [worker.actor.unlike.remote() for worker in self._workers]
        if self._ray.wait(asked, num_returns=len(asked), timeout=60)[1]:
            logger.warning("waiting for the Ray cluster to have room for %d workers", len(asked))
        try:
            found = self._ray.get(asked)
        except self._ray.exceptions.RayError as error:
            raise InputError(
                "the cluster's workers cannot start; install the same coadapt on every machine of "
                f"it: {_last_line(error)}"
            ) from error
        unlike = sorted({line for lines in found for line in lines})
        if unlike:
            raise InputError(
                "the Ray cluster has other versions than this machine, and results may depend on "
                f"them; install the same ones: {'; '.join(unlike)}"
            )

    def _fill(self) -> None:
        for worker in self._workers:
            if worker.job is None and self._waiting:
                self._start(worker, self._waiting.popleft())

    def _start(self, worker: _Worker, job: Job) -> None:
        folder = Path(job.payload["folder"]).resolve()
        worker.there = [self._ray.put(_pack(folder))] if folder.is_dir() else []
        payload = {**job.payload, "folder": str(folder)}
        worker.job, worker.step, worker.asked = job, None, None
        worker.done = worker.actor.run.remote(payload, worker.there)
        self._started.append(Event(job=job.id, kind="started", worker=worker.index))

    def _ask(self, worker: _Worker) -> Event | None:
        """Return how far a worker is if it has come further, and ask again."""
        event = None
        if worker.asked is not None:
            if not self._ray.wait([worker.asked], timeout=0)[0]:
                return None
            try:
                step = self._ray.get(worker.asked)
            except self._ray.exceptions.RayError:  # its job will tell
                step = None
            if step is not None and step != worker.step:
                worker.step = step
                data = {"step": step[0], "of": step[1]}
                assert worker.job is not None
                event = Event(job=worker.job.id, kind="step", worker=worker.index, data=data)
        worker.asked = worker.actor.step.options(max_task_retries=0).remote()
        return event

    def _end(self, worker: _Worker) -> Event:
        """Return how a worker's job ended, with the run in its place."""
        job, worker.job = worker.job, None
        assert job is not None
        try:
            end, packed = self._ray.get(worker.done)
            if packed is not None:
                _unpack(packed, Path(job.payload["folder"]))
        except self._ray.exceptions.RayActorError as error:
            self._ray.kill(worker.actor)
            worker.actor = self._hire()
            told = f"its worker died, {_RETRIES + 1} times: {_last_line(error)}"
            end = {"kind": "killed", "data": {"error": told}}
        except (self._ray.exceptions.RayError, OSError) as error:
            told = f"{type(error).__name__}: {_last_line(error)}"
            end = {"kind": "failed", "data": {"error": told}}
        worker.there = []
        return Event(job=job.id, worker=worker.index, **end)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "executor 'ray' needs the package ray, which is not installed: "
            'pip install "coadapt[ray]"'
        ) from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Join a cluster or start one; tell what Ray says of one that cannot be joined."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a study reports to nobody
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            # A cluster that is there has made up its mind about these.
            **({} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}),
        )
    except (RuntimeError, ConnectionError, ValueError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "on this machine"
        raise InputError(
            f"the Ray cluster {where} cannot be used; it needs this machine's versions of Python "
            f"({platform.python_version()}) and Ray ({ray.__version__}): "
            + " ".join(str(error).split())
        ) from error


def _room(has: Mapping[str, float], workers: int | None, threads: int) -> int:
    """Return the number of workers; Ray would wait for ever for room that there is not."""
    room = int(has.get("CPU", 0)) // threads
    if has.get("GPU", 0) >= 1:
        room = min(room, int(has["GPU"]))
    if room < (workers or 1):
        raise InputError(
            f"the Ray cluster has room for {room} workers of {threads} threads, not for "
            f"{workers or 1}; give fewer workers or threads, or add machines"
        )
    return workers or room


def _pack(folder: Path) -> bytes:
    """Return a folder as a zip file."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return target.getvalue()


def _unpack(packed: bytes, folder: Path) -> None:
    """Put a packed folder in the place of one; a kill leaves no half of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f"tmp-new-{folder.name}")
    shutil.rmtree(new, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(new)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _last_line(error: BaseException) -> str:
    return next(iter(reversed(str(error).strip().splitlines())), type(error).__name__)
