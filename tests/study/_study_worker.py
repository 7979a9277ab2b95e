"""A server that forks a process for each study, or executor, that it is told of.

A job is a line of JSON on standard input. Answered are the process's id at once, and its exit
status when it has ended. See tests/_train_worker.py for why.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from coadapt.study import starting
from coadapt.study.executor import Job
from coadapt.study.local import Local
from tests.study.inline import Inline


def run_study(file: str, output: str) -> None:
    """Run a study in this process, or go on with it."""
    starting.Local = lambda **_: Inline()  # pyright: ignore[reportAttributeAccessIssue]
    starting.run_study(file, output, resume=True)


def keep_worker(payload: dict[str, Any], output: str) -> None:
    """Hand a job to a worker, write the worker's id when it has taken a step, and wait."""
    executor = Local(workers=1, threads=1, logs=Path(output))
    executor.submit(Job(id="a", payload=payload, needs="a", memory=0))
    while not any(event.kind == "step" for event in executor.events(timeout=60)):
        pass
    (worker,) = executor._workers.values()
    (Path(output) / "pid").write_text(str(worker.process.pid))
    time.sleep(600)


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            silence = os.open(os.devnull, os.O_RDWR)
            os.dup2(silence, 0)
            os.dup2(silence, 1)
            globals()[job.pop("do")](**job)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
