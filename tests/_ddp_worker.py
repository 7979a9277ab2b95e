"""One of the processes that `accelerate launch` starts: trains every job of a file of JSON.

A job is the arguments of `coadapt.train`, and with ``stop_at`` a step at which all processes stop
once before they resume; or a ``command`` of the command line. Next to each run goes a list of what
a process other than the first wrote or made there.
"""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from typer.testing import CliRunner

import coadapt
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


def main(jobs: Path) -> None:
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        output, seen = Path(job["output"]), []
        if not state.is_main_process:
            watch(output, seen)
        if "command" in job:
            command(job["command"], output.with_name(f"{output.name}.{state.process_index}.txt"))
        else:
            train(job)
        if not state.is_main_process:
            output.with_name(f"{output.name}.seen.json").write_text(json.dumps(seen))
        state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
