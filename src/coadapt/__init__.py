"""Adapt one foundation model to many tasks at once.

Example:
    >>> import coadapt
    >>> suite = coadapt.load_suite("demo")
    >>> plan = coadapt.Plan.shared(suite.names, budget=8)
    >>> plan.budget
    8
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coadapt._errors import InputError
from coadapt._version import __version__

if TYPE_CHECKING:
    from coadapt.backbone import ModelConfig
    from coadapt.fitting import train
    from coadapt.planning import Block, Plan
    from coadapt.recipe import RECIPES, Recipe, list_methods
    from coadapt.runs import Run, load_run
    from coadapt.study import compare, run_study
    from coadapt.tasks import AssetSource, FileSource, HubSource, Task, TaskSuite, load_suite

# torch takes seconds to import; `coadapt --help` and a bad file's error should not wait for it.
_HOME = {
    "AssetSource": "tasks",
    "Block": "planning",
    "FileSource": "tasks",
    "HubSource": "tasks",
    "ModelConfig": "backbone",
    "Plan": "planning",
    "RECIPES": "recipe",
    "Recipe": "recipe",
    "Run": "runs",
    "Task": "tasks",
    "TaskSuite": "tasks",
    "compare": "study",
    "list_methods": "recipe",
    "load_run": "runs",
    "load_suite": "tasks",
    "run_study": "study",
    "train": "fitting",
}

__all__ = [
    "RECIPES",
    "AssetSource",
    "Block",
    "FileSource",
    "HubSource",
    "InputError",
    "ModelConfig",
    "Plan",
    "Recipe",
    "Run",
    "Task",
    "TaskSuite",
    "__version__",
    "compare",
    "list_methods",
    "load_run",
    "load_suite",
    "run_study",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _HOME:
        return getattr(import_module(f"coadapt.{_HOME[name]}"), name)
    raise AttributeError(f"module 'coadapt' has no attribute '{name}'")
