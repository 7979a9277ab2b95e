"""Studies: fair grids of runs, and the statistics that make them believable."""

from typing import TYPE_CHECKING

from coadapt._lazy import lazy_names

if TYPE_CHECKING:
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

# To read what a study came to takes no torch.
_HOME = {
    "AbstractExecutor": "executor",
    "Arm": "comparison",
    "Cell": "grid",
    "Clusters": "spec",
    "Entry": "spec",
    "Event": "executor",
    "Grid": "grid",
    "Group": "grid",
    "Job": "executor",
    "RandomPartitions": "spec",
    "Study": "spec",
    "Trial": "spec",
    "compare": "comparing",
    "compare_arms": "comparison",
    "parse_study": "spec",
    "read_study": "spec",
    "run_study": "starting",
    "summarize": "summary",
}

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

__getattr__ = lazy_names(__name__, _HOME)
