"""A server that forks a process for each training it is told of.

A job is a line of JSON on standard input, the arguments of `coadapt.train`; the step whose
checkpoint is to be the best is an argument of the server. Answered are the process's id at once,
and its exit status when it has ended. Importing torch takes seconds; a fork is there at once, and
is killed like any other process.
"""

import json
import os
import sys

import pytest

import coadapt
from tests.toy_runs import prefer_step


def main(best: int) -> None:
    prefer_step(pytest.MonkeyPatch(), best)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            silence = os.open(os.devnull, os.O_RDWR)
            os.dup2(silence, 0)
            os.dup2(silence, 1)
            coadapt.train(**json.loads(line))
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
