"""Who runs the cells: a small interface, so that a cluster may take the place of this machine."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

EventKind = Literal["started", "step", "finished", "diverged", "failed", "killed"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell as it is handed over: plain data.

    Attributes:
        id: the cell's.
        payload: what :func:`coadapt.study.worker.run_job` takes.
        needs: what jobs of equal memory have in common.
        memory: bytes that it is guessed to need, until a job of the same needs has told.
    """

    id: str
    payload: dict[str, Any]
    needs: str
    memory: int


@dataclass(frozen=True, kw_only=True)
class Event:
    """What became of a job.

    Attributes:
        job: its id.
        kind: ``started``; ``step`` (``data`` has ``step`` and ``of``); or how it ended:
            ``finished`` (``data`` is its result), ``diverged`` or ``failed`` (``data`` has
            ``error``), ``killed`` (its process is gone).
        worker: which one.
    """

    job: str
    kind: EventKind
    worker: int
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def is_end(self) -> bool:
        """Whether the job is over."""
        return self.kind not in ("started", "step")


class AbstractExecutor(ABC):
    """Runs jobs, several at a time, in about the order in which they come.

    Jobs may be submitted while others run. A job that fails, or whose process dies, ends with an
    event; the others go on.
    """

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """How many jobs run at a time, at most."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a job."""

    @abstractmethod
    def events(self, timeout: float) -> list[Event]:
        """Return what has happened, after waiting ``timeout`` seconds at most for something to."""

    @abstractmethod
    def close(self) -> None:
        """End what still runs, at once."""
