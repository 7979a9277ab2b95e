"""Tasks: what they are, where their rows come from, how they are mixed and scored."""

from coadapt.tasks.load import declared_suite, load_suite, ready_suites
from coadapt.tasks.metrics import METRICS, Metric
from coadapt.tasks.mixing import Mixing, Proportional, StepBatchSampler, Temperature, Uniform
from coadapt.tasks.prompts import Generation
from coadapt.tasks.render import Collator, TaskDataset, encode
from coadapt.tasks.rows import Rows
from coadapt.tasks.sources import AssetSource, FileSource, HubSource, LlamaFactorySource, Source
from coadapt.tasks.split import SPLITS, Split, SplitFractions
from coadapt.tasks.suite import TaskSuite
from coadapt.tasks.task import Task, check_task_name

__all__ = [
    "METRICS",
    "SPLITS",
    "AssetSource",
    "Collator",
    "FileSource",
    "Generation",
    "HubSource",
    "LlamaFactorySource",
    "Metric",
    "Mixing",
    "Proportional",
    "Rows",
    "Source",
    "Split",
    "SplitFractions",
    "StepBatchSampler",
    "Task",
    "TaskDataset",
    "TaskSuite",
    "Temperature",
    "Uniform",
    "check_task_name",
    "declared_suite",
    "encode",
    "load_suite",
    "ready_suites",
]
