"""One of the processes that `accelerate launch` starts: trains every job of a file of JSON.

A job is the arguments of `coadapt.train`, and with ``stop_at`` a step at which all processes stop
once before they resume; or a ``command`` of the command line, which comes first: then nobody but it
has made the processes known to each other. Next to each output goes a list of what a process other
than the first wrote or made there, and what each was told by a command.
"""

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState
from typer.testing import CliRunner

import coadapt
from coadapt._processes import share_out
from coadapt.cli import app
from coadapt.training import MultiTaskTrainer

_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


class Stopped(BaseException):
    """Stands for whatever ends a training on all machines."""


def watch(folder: Path, seen: list[str]) -> None:
    """Note what this process changes below a folder."""

    def hook(event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if (writes or event in _CHANGES) and str(args[0]).startswith(f"{folder}/"):
            seen.append(f"{event} {Path(args[0]).relative_to(folder)}")

    sys.addaudithook(hook)


def train(job: dict) -> None:
    step = job.pop("stop_at", None)
    if step is not None:
        original = MultiTaskTrainer.compute_loss

        def compute_loss(self, *args, **kwargs):
            if self.state.global_step + 1 == step:
                raise Stopped
            return original(self, *args, **kwargs)

        MultiTaskTrainer.compute_loss = compute_loss
        try:
            coadapt.train(**job)
        except Stopped:
            job["resume"] = True
        finally:
            MultiTaskTrainer.compute_loss = original
        assert job["resume"]
    coadapt.train(**job)


def command(words: list[str], told: Path) -> None:
    """Run a command of the command line and keep what it prints."""
    result = CliRunner().invoke(app, words)
    told.write_text(f"{result.exit_code} {result.output}", encoding="utf-8")


def refused_elsewhere(told: Path) -> None:
    """Share out work of which the second process refuses its part, and keep what is raised."""

    def work(item: str) -> str:
        if item == "second":
            raise coadapt.InputError(f"{item} is refused")
        return item

    try:
        share_out(["first", "second"], work)
    except coadapt.InputError as error:
        told.write_text(str(error), encoding="utf-8")


def main(jobs: Path) -> None:
    rank = os.environ["RANK"]
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        output, seen = Path(job["output"]), []
        if rank != "0":
            watch(output, seen)
        if "command" in job:
            command(job["command"], output.with_name(f"{output.name}.{rank}.txt"))
        else:
            train(job)
        if rank != "0":
            output.with_name(f"{output.name}.seen.json").write_text(json.dumps(seen))
        state = PartialState()
        assert state.num_processes == 2
        state.wait_for_everyone()
    refused_elsewhere(jobs.with_name(f"refused.{rank}.txt"))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
