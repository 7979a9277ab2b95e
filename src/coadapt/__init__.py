"""Adapt one foundation model to many tasks at once.

Example:
    >>> import coadapt
    >>> suite = coadapt.load_suite("demo")
    >>> plan = coadapt.Plan.shared(suite.names, budget=8)
    >>> plan.budget
    8
"""

from typing import TYPE_CHECKING

from coadapt._errors import InputError
from coadapt._lazy import lazy_names
from coadapt._version import __version__

if TYPE_CHECKING:
    from coadapt.adapting import adapt
    from coadapt.backbone import ModelConfig
    from coadapt.diagnosis import (
        Diagnosis,
        diagnose,
        diagnose_adapters,
        diagnose_run,
        load_diagnosis,
    )
    from coadapt.fitting import train
    from coadapt.planners import plan
    from coadapt.planning import Block, Plan
    from coadapt.recipe import Recipe
    from coadapt.recipes import RECIPES, list_methods
    from coadapt.runs import Run, load_run
    from coadapt.study import compare, run_study
    from coadapt.tasks import (
        AssetSource,
        FileSource,
        HubSource,
        LlamaFactorySource,
        Task,
        TaskSuite,
        load_suite,
    )

# torch takes seconds to import; `coadapt --help` and a bad file's error should not wait for it.
_HOME = {
    "AssetSource": "tasks",
    "Block": "planning",
    "Diagnosis": "diagnosis",
    "FileSource": "tasks",
    "HubSource": "tasks",
    "LlamaFactorySource": "tasks",
    "ModelConfig": "backbone",
    "Plan": "planning",
    "RECIPES": "recipes",
    "Recipe": "recipe",
    "Run": "runs",
    "Task": "tasks",
    "TaskSuite": "tasks",
    "adapt": "adapting",
    "diagnose": "diagnosis",
    "diagnose_adapters": "diagnosis",
    "diagnose_run": "diagnosis",
    "load_diagnosis": "diagnosis",
    "plan": "planners",
    "compare": "study",
    "list_methods": "recipes",
    "load_run": "runs",
    "load_suite": "tasks",
    "run_study": "study",
    "train": "fitting",
}

__all__ = [
    "RECIPES",
    "AssetSource",
    "Block",
    "Diagnosis",
    "FileSource",
    "HubSource",
    "InputError",
    "LlamaFactorySource",
    "ModelConfig",
    "Plan",
    "Recipe",
    "Run",
    "Task",
    "TaskSuite",
    "__version__",
    "adapt",
    "compare",
    "diagnose",
    "diagnose_adapters",
    "diagnose_run",
    "list_methods",
    "load_diagnosis",
    "load_run",
    "load_suite",
    "plan",
    "run_study",
    "train",
]

__getattr__ = lazy_names(__name__, _HOME)
