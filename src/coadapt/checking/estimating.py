"""What a run will take, from a few of its own steps."""

import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from transformers import TrainerCallback

from coadapt._files import read_json
from coadapt.arguments import training_arguments
from coadapt.fitting import fit
from coadapt.settings import RunConfig
from coadapt.tasks import TaskSuite

STEPS = 8  # of the run's own that are trained; the first is warm-up and is not counted


class _Clock(TrainerCallback):
    """Notes how long each step took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._begun)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What training will take on this machine; evaluation and saving come on top.

    Attributes:
        steps: of the whole run.
        seconds_a_step: the median of a few of the run's own steps.
        memory_mib: the peak of this process while it trained.
    """

    steps: int
    seconds_a_step: float
    memory_mib: float

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.steps * self.seconds_a_step


def estimate(config: RunConfig, suite: TaskSuite) -> Estimate:
    """Train a few steps in a temporary folder, and scale up to the run's.

    Steps differ by the length of their texts, and the machine may do other work: take it for the
    order of magnitude.

    Args:
        config: of the run.
        suite: its tasks.

    Raises:
        InputError: as training would.
    """
    clock = _Clock()
    training = {
        **config.training,
        "max_steps": STEPS,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "load_best_model_at_end": False,
        "disable_tqdm": True,
    }
    with tempfile.TemporaryDirectory(prefix="coadapt-check-") as scratch:
        folder = Path(scratch) / "run"
        fit(replace(config, training=training, best=None), suite, folder, callbacks=[clock])
        told = read_json(folder / "result.json")["train"]
        arguments = training_arguments(config, suite, Path(scratch) / "arguments")
    rows = sum(told["rows_an_epoch"].values())
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
    whole = arguments.max_steps
    if whole <= 0:
        whole = math.ceil(arguments.num_train_epochs * math.ceil(rows / batch))
    seconds = median(clock.seconds[1:] or clock.seconds)
    return Estimate(steps=whole, seconds_a_step=seconds, memory_mib=float(told["peak_memory_mib"]))
