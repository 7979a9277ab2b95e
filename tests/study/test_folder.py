"""Whose folder it is: one study at a time, the same one, and nothing else."""

import json
import os
import signal
import subprocess
import sys

import pytest

from coadapt import InputError
from coadapt.study import running
from coadapt.study.running import claim
from tests.study.inline import Inline, grid_of, numbers_of, run_inline, scored
from tests.toy_runs import content_of


@pytest.fixture
def grid(done):
    return done.grid


@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resume"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("mine"), "is a file; choose another output"),
        (
            lambda path: (path.mkdir(), (path / "config.yaml").write_text("mine")),
            "is not empty and no study; choose another output",
        ),
    ],
    ids=["file", "not-empty"],
)
def test_what_is_no_study_is_left_alone(make, message, resume, grid, tmp_path):
    make(tmp_path / "study")
    before = content_of(tmp_path)
    with pytest.raises(InputError, match=message) as raised:
        run_inline(grid, tmp_path / "study", Inline(), resume=resume)
    assert str(tmp_path / "study") in str(raised.value)
    assert content_of(tmp_path) == before


def test_study_that_is_there_asks_for_resume(grid, copied):
    before = content_of(copied)
    with pytest.raises(InputError, match=r"holds a study; go on with it \(--resume\)"):
        run_inline(grid, copied, Inline())
    assert content_of(copied) == before


def test_new_and_empty_folders_will_do(grid, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / ".lock").touch()  # of a study that was killed before it had begun
    for folder in (tmp_path / "a" / "b", tmp_path / "empty", tmp_path / "locked"):
        with claim(folder, grid, resume=folder.name == "b", changed=False):
            assert json.loads((folder / "study.json").read_text())["study"]["name"] == "toy"


def test_one_study_at_a_time(grid, copied):
    with claim(copied, grid, resume=True, changed=False):
        before = content_of(copied)
        with (
            pytest.raises(InputError, match=f"another study is writing to {copied}"),
            claim(copied, grid, resume=True, changed=True),
        ):
            raise AssertionError
        assert content_of(copied) == before
    with pytest.raises(ZeroDivisionError), claim(copied, grid, resume=True, changed=False):
        raise ZeroDivisionError
    with claim(copied, grid, resume=True, changed=False):
        pass


def test_killed_study_holds_nothing(grid, copied):
    code = (
        "import sys, filelock; l = filelock.FileLock(sys.argv[1]); l.acquire(); print(1); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(copied / running._LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(InputError, match="another study is writing"):
            run_inline(grid, copied, Inline(), resume=True)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert run_inline(grid, copied, Inline(), resume=True) == {}


CHANGES = {
    "rate": (lambda d: d["trials"][1].update(learning_rate=1e-4), ["study.trials"]),
    "model": (lambda d: d["model"].update(max_length=32), ["study.model.max_length"]),
    "seeds": (lambda d: d.update(seeds=[0, 1, 2]), ["study.seeds"]),
    "recipe": (lambda d: d["recipes"].pop("private"), ["study.recipes.private"]),
    "two": (
        lambda d: (d.update(effect=0.5), d["suite"].update(seed=1)),
        # Another seed splits otherwise, so the values' mean and deviation are others too.
        ["study.effect", "suite.seed", "suite.tasks.degree.unit"],
    ),
}


@pytest.mark.parametrize(("change", "keys"), CHANGES.values(), ids=CHANGES.keys())
def test_changed_study_is_refused_with_its_keys(change, keys, copied, toy_study, tmp_path):
    change(toy_study)
    grid, before = grid_of(tmp_path, toy_study), content_of(copied)
    with pytest.raises(InputError, match="the study has changed since it was started") as raised:
        run_inline(grid, copied, Inline(), resume=True)
    named = str(raised.value).partition(f"in {copied}: ")[2].partition(". ")[0]
    assert sorted(named.split(", ")) == sorted(keys)
    assert "--changed" in str(raised.value)
    assert content_of(copied) == before


def test_told_so_a_changed_study_goes_on(copied, toy_study, tmp_path, bench):
    before = numbers_of(copied)
    toy_study["seeds"] = [0, 1, 2]
    grid = grid_of(tmp_path, toy_study)
    executor = Inline(lambda job: scored(job, 0.5), bench)
    assert run_inline(grid, copied, executor, resume=True, changed=True) == {}
    assert executor.ran == ["lora-R8-n8/final_seed2", "private-R8-n8/final_seed2"]
    assert before.items() <= numbers_of(copied).items()
    # The file is now that of the changed study, which is no change any more.
    assert run_inline(grid, copied, Inline(), resume=True) == {}


def test_study_file_that_is_no_json_is_refused(grid, copied):
    (copied / "study.json").write_text("{half")
    with pytest.raises(InputError, match=r"study\.json is not readable JSON"):
        run_inline(grid, copied, Inline(), resume=True)
