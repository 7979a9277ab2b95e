"""Tasks of lm-evaluation-harness: found, loaded, and matched with ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yaml import YAMLError

from coadapt._errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class HarnessTask:
    """A task, group or tag of lm-evaluation-harness, loaded and ready to run.

    Args:
        asked: as the user wrote it: a name, or a YAML file.
        name: the harness's name for it.
        task: the task of ours that was said to be the same one; None if none was said.
        loaded: the harness's own objects, by name.
    """

    asked: str
    name: str
    task: str | None
    loaded: Any


def load_harness_tasks(
    asked: Sequence[str], folder: Path | None, known: Sequence[str]
) -> tuple[HarnessTask, ...]:
    """Load tasks of the harness.

    Args:
        asked: ``NAME`` of a task, group or tag, or a task's YAML file; ``TASK=NAME`` says that it
            is the same task as ``TASK`` of ours, so that its blocks serve it.
        folder: of YAML files, looked through before the harness's own tasks.
        known: our tasks' names. A harness's task with such a name is taken to be the same one.

    Raises:
        InputError: if lm-evaluation-harness is not installed, or a task is not known or cannot be
            loaded.
    """
    require_lm_eval()
    pairs = [_pair(text, known) for text in asked]
    if not pairs:
        raise InputError("--lm-eval names no task")
    if folder is not None and not folder.is_dir():
        raise InputError(f"--lm-eval-path {folder} is no folder")
    manager = _manager([name for _, name in pairs], folder)
    found = tuple(_load(manager, task, name, known) for task, name in pairs)
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--lm-eval names '{twice[0]}' more than once; score one at a time")
    return found


def require_lm_eval() -> None:
    """Refuse to go on without lm-evaluation-harness, which takes a second to import."""
    if find_spec("lm_eval") is None:
        raise InputError('--lm-eval needs lm-evaluation-harness: pip install "coadapt[lm-eval]"')


def _pair(text: str, known: Sequence[str]) -> tuple[str | None, str]:
    """Return our task, if one is said, and the harness's."""
    task, separator, name = text.partition("=")
    if not separator:
        return None, text
    if not name:
        raise InputError(f"--lm-eval '{text}' names no task of the harness: TASK=NAME")
    if task not in known:
        raise InputError(f"--lm-eval '{text}': there is no task '{task}'{nearest(task, known)}")
    return task, name


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """Return the harness's index, without its own thousands of tasks where they are not asked for.

    A group may have parts among the harness's own, so only tasks are enough.
    """
    from lm_eval.tasks import TaskManager

    local = TaskManager(include_path=folder, include_defaults=False)
    if all(_is_file(name) or name in local.all_subtasks for name in names):
        return local
    return TaskManager(include_path=folder)


def _load(manager: Any, task: str | None, asked: str, known: Sequence[str]) -> HarnessTask:
    if _is_file(asked):
        if not Path(asked).is_file():
            raise InputError(f"--lm-eval: there is no file {asked}")
    elif asked not in manager.all_tasks:
        raise InputError(
            f"lm-evaluation-harness knows no task '{asked}'{nearest(asked, manager.all_tasks)}; "
            "for one of your own give its YAML file, or their folder as --lm-eval-path"
        )
    from jinja2 import TemplateError  # the harness brings it

    try:
        loaded = manager.load([asked])
    # What a task file may raise: missing data (OSError), no YAML, wrong templates and fields.
    except (
        OSError,
        YAMLError,
        TemplateError,
        ValueError,
        KeyError,
        TypeError,
        ImportError,
    ) as error:
        raise InputError(f"lm-evaluation-harness cannot load '{asked}': {brief(error)}") from error
    # A file's task has a name of its own; groups and tags hold several.
    name = next(iter(loaded["tasks"])) if _is_file(asked) else asked
    if task is None and name in known:
        task = name
    return HarnessTask(asked=asked, name=name, task=task, loaded=loaded)


def brief(error: Exception) -> str:
    """Return what an error says in one line; another library's may go on for pages."""
    told = " ".join(str(error).split())
    return (told[:300] + ("..." if len(told) > 300 else "")) or type(error).__name__
