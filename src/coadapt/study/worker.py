"""A process that runs one cell after the other and keeps what they share.

Jobs come as lines of JSON on standard input; events go as lines of JSON to what was standard output
when the process started. When the input ends, so does the process, in the middle of a cell if need
be: a study that was killed leaves nobody behind who writes into its folder.
"""

import json
import logging
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import TrainerCallback

from coadapt._errors import TrainingDiverged
from coadapt._folders import CONFIG
from coadapt.config import parse
from coadapt.fitting import fit
from coadapt.loading import Loader
from coadapt.runs import Run, read_config
from coadapt.settings import RunConfig
from coadapt.tasks import TaskSuite, load_suite
from coadapt.training import METRICS_FILE

Tell = Callable[[int, int], None]


class Bench:
    """What a worker keeps between jobs: suites with their rows, the base model, tokenised rows."""

    def __init__(self) -> None:
        self._loader = Loader()
        self._suites: dict[str, TaskSuite] = {}

    def run_job(self, payload: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        """Train a cell's run, or go on with it, and score it.

        Args:
            payload: ``config``, ``suite`` (of which ``tasks`` are taken), ``folder`` of the run,
                and ``split`` to score.
            tell: called with the step and the number of steps.

        Returns:
            ``train``, ``curve``, ``metrics``, ``inference``, ``environment`` and ``timing``
            (seconds) for the cell's record.
        """
        began = time.perf_counter()
        folder = Path(payload["folder"])
        folder.parent.mkdir(parents=True, exist_ok=True)
        config = parse(RunConfig, payload["config"], payload["folder"])
        suite = self._suite(payload["suite"], payload["tasks"])
        # A worker of a study that was killed may need a moment to notice.
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=60):
            _clear(folder, config, suite)
            run = fit(
                config,
                suite,
                folder,
                resume=True,
                loader=self._loader,
                callbacks=(_Told(tell),),
            )
            trained = time.perf_counter()
            run.evaluate(payload["split"], num_resamples=0)
        ended, result = time.perf_counter(), run.result
        return {
            "train": result["train"],
            "curve": _curve(run),
            "metrics": {payload["split"]: result["metrics"][payload["split"]]},
            "inference": result["inference"],
            "environment": result["environment"],
            "timing": {"job": ended - began, "scoring": ended - trained},
        }

    def _suite(self, plain: dict[str, Any], tasks: list[str]) -> TaskSuite:
        key = json.dumps(plain, sort_keys=True)
        if key not in self._suites:
            if len(self._suites) >= 8:
                self._suites.pop(next(iter(self._suites)))
            self._suites[key] = load_suite(plain)
        whole = self._suites[key]
        return whole if tuple(tasks) == whole.names else whole.subset(tasks)


def _clear(folder: Path, config: RunConfig, suite: TaskSuite) -> None:
    """Remove a run of another configuration: the study has changed since it was started."""
    if not (folder / CONFIG).is_file():
        return
    there, there_suite = read_config(folder)
    if there.hash(there_suite) != config.hash(suite):
        old = folder.with_name(f"tmp-old-{folder.name}")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)  # first, so that a kill leaves no half of a run
        shutil.rmtree(old)


class _Told(TrainerCallback):
    """Passes the step on."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state.global_step, state.max_steps)


def _curve(run: Run) -> list[tuple[int, float]]:
    """Return step and mean validation score, wherever it was scored while training."""
    lines = (run.path / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [(line["step"], line["eval_overall"]) for line in found if "eval_overall" in line]


def main() -> None:
    """Run the jobs that come in until none can come any more."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    bench = Bench()
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as out:
        os.dup2(2, 1)  # what libraries print goes to the log

        told = 0.0

        def tell(step: int, of: int) -> None:
            nonlocal told
            if step == of or time.monotonic() - told > 0.2:  # as often as a display is drawn
                told = time.monotonic()
                out.write(json.dumps({"kind": "step", "data": {"step": step, "of": of}}) + "\n")

        while True:
            event = attempt(bench, json.loads(jobs.get()), tell)
            out.write(json.dumps(event) + "\n")


def attempt(bench: Bench, payload: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Run a job; whatever goes wrong is its own, the next one gets its turn."""
    try:
        return {"kind": "finished", "data": bench.run_job(payload, tell)}
    except TrainingDiverged as error:
        return {"kind": "diverged", "data": {"error": str(error)}}
    except Exception as error:
        logging.exception("cell failed")
        return {"kind": "failed", "data": {"error": f"{type(error).__name__}: {error}"}}


def _read(jobs: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
