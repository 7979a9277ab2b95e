"""A run: a folder that holds a configuration, what training made of it, and its scores."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from coadapt._errors import InputError, nearest
from coadapt._files import read_json, write_json
from coadapt.backbone import load_tokenizer
from coadapt.config import load_yaml
from coadapt.evaluation import TaskScores, evaluate_model
from coadapt.model import MultiTaskModel, build_model
from coadapt.prediction import Text, predict_texts
from coadapt.saving import load_adapter
from coadapt.settings import RunConfig, resolve
from coadapt.tasks import SPLITS, TaskSuite, load_suite
from coadapt.tasks.render import Collator, encode

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
PLAN = "plan.yaml"
RESULT = "result.json"
ADAPTER = "adapter"


class Run:
    """A finished run; its model is loaded when first needed.

    Args:
        path: the run's folder.
        config: what it was asked to do.
        suite: the tasks, with their labels.
        model: the trained model, if it is at hand.
    """

    def __init__(
        self, path: Path, config: RunConfig, suite: TaskSuite, model: MultiTaskModel | None = None
    ) -> None:
        self.path, self.config, self.suite = path, config, suite
        self._model = model

    @property
    def model(self) -> MultiTaskModel:
        """The trained model, in evaluation mode."""
        if self._model is None:
            self._model = build_model(
                self.config.model,
                self.suite.tasks,
                self.config.recipe,
                self.config.plan,
                loss_mean=self.config.loss_mean,
                seed=self.config.seed,
            )
            load_adapter(self._model, self.path / ADAPTER)
        return self._model.eval()

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return load_tokenizer(self.config.model)

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json."""
        return read_json(self.path / RESULT)

    def evaluate(self, split: str = "test", *, num_resamples: int = 1000) -> dict[str, TaskScores]:
        """Score every task on a split and add the scores to result.json.

        Args:
            split: ``test``, ``validation`` or ``train``.
            num_resamples: of the rows, for the 95 % intervals.

        Returns:
            For each task its metrics with bootstrap intervals over the rows.
        """
        if split not in SPLITS:
            raise InputError(f"unknown split '{split}'{nearest(split, SPLITS)}")
        rows = {task: self.suite.rows(task, split) for task in self.suite.names}
        for task, found in rows.items():
            if not len(found):
                raise InputError(f"task '{task}' has no {split} rows to score")
        scores = evaluate_model(
            self.model,
            Collator(self.tokenizer),
            {t: encode(self.tokenizer, r, self.config.model.max_length) for t, r in rows.items()},
            {task: found.labels for task, found in rows.items()},
            num_resamples=num_resamples,
            seed=self.config.seed,
        )
        result = self.result
        result["metrics"][split] = {task: asdict(score) for task, score in scores.items()}
        write_json(self.path / RESULT, result)
        return scores

    def predict(self, texts: Sequence[Text], task: str) -> list[dict[str, Any]]:
        """Return a prediction a text, see :func:`coadapt.prediction.predict_texts`.

        Example:
            ``run.predict(["is it?"], task="trec6")[0]["label"]``
        """
        self.suite.task(task)
        return predict_texts(self.model, self.tokenizer, texts, task)


def load_run(path: str | Path, *, dtype: str | None = None) -> Run:
    """Open a finished run.

    Args:
        path: its folder.
        dtype: replaces the configuration's: ``float32`` to compute in full precision.

    Raises:
        InputError: if the folder is no run, or the run has not finished.
    """
    path = Path(path)
    config, suite = read_config(path)
    status = read_json(path / RESULT)["run"]["status"]
    if status != "finished" or not (path / ADAPTER).is_dir():
        raise InputError(
            f"run {path} is marked '{status}'; finish it with 'coadapt train ... --output {path} "
            "--resume'"
        )
    if dtype is not None:
        plain = load_yaml(path / CONFIG)
        plain["model"]["dtype"] = dtype
        config = resolve(_without_suite(plain), suite, where=str(path / CONFIG))
    return Run(path, config, suite)


def read_config(path: Path) -> tuple[RunConfig, TaskSuite]:
    """Return a run folder's configuration and suite."""
    if not (path / CONFIG).is_file():
        raise InputError(f"{path} is no run: it has no {CONFIG}")
    plain = load_yaml(path / CONFIG)
    if "suite" not in plain:
        raise InputError(f"{path / CONFIG} has no suite; it is no run's configuration")
    suite = load_suite(plain["suite"])
    return resolve(_without_suite(plain), suite, where=str(path / CONFIG)), suite


def _without_suite(plain: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in plain.items() if k not in ("suite", "coadapt_version")}
