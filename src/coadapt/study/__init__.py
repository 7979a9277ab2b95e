"""Studies: fair grids of runs, and the statistics that make them believable."""

from coadapt.study.comparing import compare
from coadapt.study.comparison import Arm, compare_arms
from coadapt.study.executor import AbstractExecutor, Event, Job
from coadapt.study.grid import Cell, Grid, Group
from coadapt.study.spec import (
    Clusters,
    Entry,
    RandomPartitions,
    Study,
    Trial,
    parse_study,
    read_study,
)
from coadapt.study.starting import run_study
from coadapt.study.summary import summarize

__all__ = [
    "AbstractExecutor",
    "Arm",
    "Cell",
    "Clusters",
    "Entry",
    "Event",
    "Grid",
    "Group",
    "Job",
    "RandomPartitions",
    "Study",
    "Trial",
    "compare",
    "compare_arms",
    "parse_study",
    "read_study",
    "run_study",
    "summarize",
]
