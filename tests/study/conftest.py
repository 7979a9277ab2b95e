"""What the tests of studies share: a toy study as plain data, and one that has been run."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from coadapt.study import comparison
from coadapt.study.grid import Grid
from coadapt.study.worker import Bench
from coadapt.tasks import TaskSuite
from tests.study.fake_cells import NUM_RESAMPLES, fake_study
from tests.study.inline import Inline, grid_of, run_inline, study_of


@pytest.fixture
def toy_study(tiny_bert, toy_suite_dict) -> dict[str, Any]:
    """Plain data for `read_study`, the test's own copy: two recipes, two trials, two seeds.

    A cell trains on 8 rows a task, four steps an epoch.
    """
    return study_of(tiny_bert, toy_suite_dict)


class Done(NamedTuple):
    """A toy study that has been run in this process."""

    grid: Grid
    folder: Path
    executor: Inline
    read: dict[str | None, set[str]]  # the splits whose rows were looked at, by job


@pytest.fixture(scope="session")
def bench() -> Bench:
    """What studies in this process may share: the model, the rows."""
    return Bench()


@pytest.fixture(scope="session")
def done(tiny_bert, toy_suite_files, tmp_path_factory, bench) -> Done:
    """The toy study, run from its start to its end; not to be changed."""
    folder = tmp_path_factory.mktemp("done")
    grid = grid_of(folder, study_of(tiny_bert, toy_suite_files))
    read: dict[str | None, set[str]] = {}

    def rows(self, task, split):
        read.setdefault(executor.running, set()).add(split)
        return original(self, task, split)

    original, executor = TaskSuite.rows, Inline(bench=bench)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskSuite, "rows", rows)
        assert run_inline(grid, folder / "study", executor) == {}
    return Done(grid, folder / "study", executor, read)


@pytest.fixture
def copied(done, tmp_path) -> Path:
    """The test's own copy of that study's folder."""
    return shutil.copytree(done.folder, tmp_path / "copied")


@pytest.fixture(scope="module")
def few_resamples():
    """As many as the slow oracle can do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "NUM_RESAMPLES", NUM_RESAMPLES)
        yield


@pytest.fixture(scope="module")
def fake_of(tiny_bert, toy_suite_files, tmp_path_factory):
    """Returns a study of hand-written records, with some keys of its own."""

    def make(**keys):
        return fake_study(tmp_path_factory.mktemp("fake"), tiny_bert, toy_suite_files, **keys)

    return make
