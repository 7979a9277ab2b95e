"""Studies on a Ray cluster: the numbers of this machine's, whoever dies on the way."""

import signal
import sys

import psutil
import pytest

from coadapt._errors import InputError
from coadapt.study import cluster
from coadapt.study.cluster import RayCluster
from tests.study.inline import Inline, grid_of, numbers_of, run_inline, statuses_of

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def joined():
    """A cluster of this machine for all tests here."""
    cluster._connect(ray, None)
    yield
    ray.shutdown()


@pytest.fixture
def make(joined, tmp_path):
    """Returns an executor of one worker on the cluster."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def make_one(kind=RayCluster, workers=1):
        return kind(workers=workers, threads=1, folder=disk)

    return make_one


class Stopped(RayCluster):
    """Is interrupted when the third cell has ended."""

    ended = 0

    def events(self, timeout):
        found = super().events(timeout)
        self.ended += sum(event.is_end for event in found)
        if self.ended == 3:
            raise KeyboardInterrupt
        return found


def test_stopped_study_goes_on_where_no_disk_is_shared(done, make, tmp_path):
    folder = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        run_inline(done.grid, folder, make(Stopped))
    statuses = statuses_of(folder)
    assert list(statuses.values()).count("finished") == 2
    apart = make()
    apart._mark.unlink()  # what the worker would see, or not, on another machine
    assert run_inline(done.grid, folder, apart, resume=True) == {}
    assert numbers_of(folder) == numbers_of(done.folder)
    assert not list(tmp_path.glob("disk/*"))


def remotes():
    """Return the processes that run a cell."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if p.name().startswith("ray::_Remote")]


def test_killed_worker_is_started_anew(toy_study, make, tmp_path, bench):
    toy_study["training"] |= {"save_strategy": "steps", "save_steps": 20}
    toy_study |= {"recipes": {"lora": None}, "seeds": [0]}
    toy_study["trials"] = [{"learning_rate": 5e-3, "epochs": 60}]
    grid, executor, killed = grid_of(tmp_path, toy_study), make(), []
    take = executor.events

    def events(timeout):
        found = take(timeout=0.05)
        if not killed and any(e.kind == "step" and e.data["step"] > 20 for e in found):
            (worker,) = remotes()
            worker.send_signal(signal.SIGKILL)
            killed.append(worker.pid)
        elif killed and not after:
            after.extend(e.data["step"] for e in found if e.kind == "step")
        return found

    after: list[int] = []
    executor.events = events
    assert run_inline(grid, tmp_path / "study", executor) == {}
    assert killed
    assert run_inline(grid, tmp_path / "whole", Inline(bench=bench)) == {}
    assert numbers_of(tmp_path / "study") == numbers_of(tmp_path / "whole")
    assert after[0] > 20  # from the checkpoint, not from the start


def test_other_versions_are_told(make, monkeypatch):
    here = {**cluster._versions(), "torch": "1.13", "peft": "0.2"}
    monkeypatch.setattr(cluster, "_versions", lambda: here)
    with pytest.raises(InputError, match=r"peft .* on .*, 0\.2 here; torch .* on .*, 1\.13 here"):
        make()


def test_room_that_is_not_there_is_not_waited_for(make):
    with pytest.raises(InputError, match=r"room for \d+ workers of 1 threads, not for 1000"):
        make(workers=1000)


def test_cluster_that_refuses_says_what_it_needs(monkeypatch):
    def init(**kwargs):
        assert kwargs["address"] == "head:6379"
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Python: 3.9.1")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        InputError, match=r"cluster head:6379 .*versions.*Python: 3\.9\.1"
    ) as caught:
        cluster._connect(ray, "head:6379")
    assert ray.__version__ in str(caught.value)


def test_missing_package_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "coadapt\[ray\]"'):
        RayCluster(workers=1, threads=1, folder=tmp_path)
