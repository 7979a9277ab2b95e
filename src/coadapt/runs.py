"""A run: a folder that holds a configuration, what training made of it, and its scores."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from coadapt._environment import describe_environment
from coadapt._errors import InputError, nearest
from coadapt._files import read_json, write_json, write_text
from coadapt._folders import CONFIG, require_run
from coadapt._version import __version__
from coadapt.config import dump_yaml, load_yaml, to_plain
from coadapt.evaluation import TaskScores, predict_measured, score_tasks
from coadapt.exporting import ExportReport, export_merged, export_peft
from coadapt.importing import with_task, without_task
from coadapt.inits import Start
from coadapt.loading import Loader
from coadapt.model import MultiTaskModel, build_model
from coadapt.prediction import Text, predict_texts
from coadapt.predictions import predictions_file, write_predictions
from coadapt.recipe import Recipe
from coadapt.saving import load_adapter, save_adapter, saved_form
from coadapt.settings import RunConfig, resolve
from coadapt.tasks import SPLITS, Task, TaskSuite, check_task_name, load_suite
from coadapt.unseen import UnseenScores, evaluate_unseen

logger = logging.getLogger(__name__)

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
        loader: what loads the base model and the rows, and may have them already.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        suite: TaskSuite,
        model: MultiTaskModel | None = None,
        loader: Loader | None = None,
    ) -> None:
        self.path, self.config, self.suite = path, config, suite
        self._model = model
        self._loader = loader or Loader()

    @property
    def model(self) -> MultiTaskModel:
        """The trained model, in evaluation mode."""
        if self._model is None:
            structure, plan = saved_form(self.path / ADAPTER)
            recipe = self.config.recipe
            model = build_model(
                self.config.model,
                self.suite.tasks,
                recipe if recipe.structure == structure else Recipe(structure=structure),
                plan,
                loss_mean=self.config.loss_mean,
                seed=self.config.seed,
                loader=self._loader,
                start=Start(fills=False),
            )
            load_adapter(model, self.path / ADAPTER)
            self._model = model  # not before: an adapter that is refused leaves no model
        return self._model.eval()

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return self._loader.tokenizer(self.config.model)

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json."""
        return read_json(self.path / RESULT)

    def evaluate(self, split: str = "test", *, num_resamples: int = 1000) -> dict[str, TaskScores]:
        """Score every task on a split and add the scores to result.json.

        What was predicted is written beside it, row by row, for paired comparisons.

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
        labels = {task: found.labels for task, found in rows.items()}
        predicted, took = predict_measured(
            self.model,
            self._loader.collator(self.config.model),
            {
                task: self._loader.encoded(self.config.model, self.suite, task, split)
                for task in rows
            },
            tokenizer=self.tokenizer,
            seed=self.config.seed,
        )
        scores = score_tasks(
            self.suite.tasks,
            labels,
            predicted,
            num_resamples=num_resamples,
            seed=self.config.seed,
        )
        write_predictions(self.path / predictions_file(split), labels, predicted)
        result = self.result
        result["metrics"][split] = {task: asdict(score) for task, score in scores.items()}
        result.setdefault("inference", {})[split] = took
        write_json(self.path / RESULT, result)
        return scores

    def evaluate_unseen(
        self,
        suite: TaskSuite,
        *,
        rule: str | None = None,
        split: str = "test",
        num_resamples: int = 1000,
    ) -> UnseenScores:
        """Score tasks that the run was not trained on, and add the scores to result.json.

        Args:
            suite: the tasks; a classification needs its labels declared.
            rule: which blocks serve a task: ``shared``, ``mean``, ``nearest`` or ``task:NAME``, see
                :func:`coadapt.unseen.serve`.
            split: of that suite.
            num_resamples: of the rows, for the 95 % intervals.
        """
        check_task_name(suite.name, "suite")  # it becomes the name of a file
        found = evaluate_unseen(
            self.model,
            self._loader,
            self.suite,
            suite,
            rule=rule,
            split=split,
            num_resamples=num_resamples,
            seed=self.config.seed,
        )
        file = predictions_file(f"{suite.name}-{split}")
        write_predictions(self.path / file, found.labels, found.predicted)
        result = self.result
        result.setdefault("unseen", {})[suite.name] = {
            "rule": found.rule,
            "split": split,
            "served": found.served,
            "tasks": {task: asdict(score) for task, score in found.tasks.items()},
        }
        write_json(self.path / RESULT, result)
        return found

    def predict(self, texts: Sequence[Text], task: str) -> list[dict[str, Any]]:
        """Return a prediction a text, see :func:`coadapt.prediction.predict_texts`.

        Example:
            ``run.predict(["is it?"], task="trec6")[0]["label"]``
        """
        self.suite.task(task)
        return list(self.predict_stream(texts, task))

    def predict_stream(self, texts: Sequence[Text], task: str) -> Iterator[dict[str, Any]]:
        """Yield what :meth:`predict` returns, each prediction as soon as it is made."""
        self.suite.task(task)
        seed = self.config.seed
        return predict_texts(self.model, self.tokenizer, texts, task, seed=seed)

    def export(
        self, folder: str | Path, format: str = "peft", *, check: str | None = None
    ) -> ExportReport:
        """Write what stock PEFT, transformers or a server can load.

        Args:
            folder: new, empty, or an earlier export, which is replaced.
            format: ``peft``: LoRA folders, heads and ``routes.json``; ``merged``: a complete
                classifier a task, or a complete language model for each distinct update.
            check: ``vllm``: report what such a server refuses, and pad ranks to what it takes.

        Raises:
            InputError: if the recipe, backbone or pooling has no such form, naming what to change.
        """
        for name, value, known in (
            ("format", format, ["peft", "merged"]),
            ("check", check, [None, "vllm"]),
        ):
            if value not in known:
                hint = nearest(str(value), [k for k in known if k])
                raise InputError(f"unknown export {name} '{value}'{hint}")
        card = (self.path / CONFIG).read_text(encoding="utf-8")
        if format == "peft":
            return export_peft(self.model, folder, card_config=card, check_vllm=check is not None)
        if check is not None:
            raise InputError("a merged model is served as it is; drop check")
        return export_merged(self.model, self.tokenizer, folder, card_config=card)

    def add_task(
        self,
        task: Task,
        output: str | Path,
        *,
        rank: int | None = None,
        adapter: str | Path | None = None,
        head: str | Path | None = None,
    ) -> "Run":
        """Write a run with one task more; the others' outputs stay bit for bit.

        Args:
            task: with its labels declared.
            output: the new run's folder.
            rank: of the task's own block, where it gets one.
            adapter: a PEFT LoRA folder that becomes the task's block; a fresh block if None.
            head: a safetensors file with ``weight`` and ``bias``; a fresh head if None.
        """
        output = new_folder(output)
        model = with_task(self._handed_over(), task, rank=rank, adapter=adapter, head=head)
        return self._derive(model, output, f"task '{task.name}' added to {self.path}")

    def remove_task(self, name: str, output: str | Path) -> "Run":
        """Write a run without a task and the blocks only it used; the others' outputs stay."""
        output = new_folder(output)
        model = without_task(self._handed_over(), name)
        return self._derive(model, output, f"task '{name}' removed from {self.path}")

    def _handed_over(self) -> MultiTaskModel:
        """Return the model for good: what is made from it takes its backbone."""
        model, self._model = self.model, None
        return model

    def _derive(self, model: MultiTaskModel, output: Path, origin: str) -> "Run":
        suite = replace(self.suite, tasks=model.tasks)
        config = replace(self.config, plan=model.plan)
        run = {**self.result["run"], "config_hash": config.hash(suite), "derived": origin}
        output.mkdir(parents=True, exist_ok=True)
        save_adapter(model, output / ADAPTER)
        environment = describe_environment()
        result = {"run": run, "train": None, "metrics": {}, "environment": environment}
        write_json(output / RESULT, result)
        write_config(output, config, suite)
        return Run(output, config, suite, model)


def new_folder(output: str | Path) -> Path:
    """Return the path of a run's folder, which has to be new or empty.

    Raises:
        InputError: if something is there.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already; choose another output")
    return output


def write_config(output: Path, config: RunConfig, suite: TaskSuite) -> None:
    """Write the configuration, by which a folder is a run, and the plan in a file of its own."""
    plain = {"coadapt_version": __version__, **to_plain(config), "suite": suite.to_plain()}
    write_text(output / CONFIG, dump_yaml(plain))
    if config.plan is not None:
        write_text(output / PLAN, dump_yaml(to_plain(config.plan)))


def load_run(path: str | Path, *, dtype: str | None = None, loader: Loader | None = None) -> Run:
    """Open a finished run.

    Args:
        path: its folder.
        dtype: replaces the configuration's: ``float32`` to compute in full precision.
        loader: keeps what several runs share.

    Raises:
        InputError: if the folder is no run, or the run has not finished.
    """
    path = Path(path)
    config, suite = read_config(path)
    status = read_status(path)
    if status != "finished" or not (path / ADAPTER).is_dir():
        raise InputError(
            f"run {path} is marked '{status}'; finish it with 'coadapt train ... --output {path} "
            "--resume'"
        )
    if dtype is not None:
        plain = load_yaml(path / CONFIG)
        plain["model"]["dtype"] = dtype
        config = resolve(_without_suite(plain), suite, where=str(path / CONFIG))
    return Run(path, config, suite, loader=loader)


def read_status(path: Path) -> str:
    """Return a run's status; ``unfinished`` if it was stopped before it could write one."""
    return read_json(path / RESULT)["run"]["status"] if (path / RESULT).is_file() else "unfinished"


def read_config(path: Path) -> tuple[RunConfig, TaskSuite]:
    """Return a run folder's configuration and suite."""
    require_run(path)
    plain = load_yaml(path / CONFIG)
    if "suite" not in plain:
        raise InputError(f"{path / CONFIG} has no suite; it is no run's configuration")
    suite = load_suite(plain["suite"])
    return resolve(_without_suite(plain), suite, where=str(path / CONFIG)), suite


def _without_suite(plain: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in plain.items() if k not in ("suite", "coadapt_version")}
