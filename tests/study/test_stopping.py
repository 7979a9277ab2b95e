"""Cells that fail, studies that are stopped, disks that are full."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from tests.study.inline import (
    Inline,
    grid_of,
    numbers_of,
    records_of,
    run_inline,
    scored,
    statuses_of,
)
from tests.toy_runs import content_of

CELLS = ["trial0_seed0", "trial1_seed0", "final_seed0", "final_seed1"]
LORA = [f"lora-R8-n8/{cell}" for cell in CELLS]
PRIVATE = [f"private-R8-n8/{cell}" for cell in CELLS]


@pytest.fixture
def grid(done):
    return done.grid


def one_ends(cell, kind):
    """Let every job end well without training, but for one."""

    def end(job):
        if job.id == cell:
            return {"kind": kind, "data": {"error": "OutOfMemory: it was too much"}}
        return scored(job, 0.6 if "trial1" in job.id else 0.5)

    return end


# Cells that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["failed", "killed"])
def test_failed_trial_holds_back_its_group_alone(kind, grid, tmp_path):
    folder, whole = tmp_path / "study", tmp_path / "whole"
    first = Inline(one_ends(LORA[0], kind))
    assert run_inline(grid, folder, first) == {LORA[0]: "OutOfMemory: it was too much"}
    assert first.ran == [*LORA[:2], *PRIVATE]
    assert first.closed
    assert statuses_of(folder) == {LORA[0]: kind, **dict.fromkeys([LORA[1], *PRIVATE], "finished")}
    record = records_of(folder)[LORA[0]]
    assert record["run"]["error"] == "OutOfMemory: it was too much"
    assert record["train"] is None
    again = Inline(one_ends(None, kind))
    assert run_inline(grid, folder, again, resume=True) == {}
    assert again.ran == [LORA[0], *LORA[2:]]
    run_inline(grid, whole, Inline(one_ends(None, kind)))
    assert numbers_of(folder) == numbers_of(whole)


def test_failed_final_costs_no_other(grid, tmp_path):
    folder = tmp_path / "study"
    first = Inline(one_ends(LORA[2], "failed"))
    assert list(run_inline(grid, folder, first)) == [LORA[2]]
    assert first.ran == [*LORA, *PRIVATE]
    again = Inline(one_ends(None, "failed"))
    assert run_inline(grid, folder, again, resume=True) == {}
    assert again.ran == [LORA[2]]


def test_diverged_final_is_reported_and_not_run_again(grid, tmp_path):
    folder = tmp_path / "study"
    failed = run_inline(grid, folder, Inline(one_ends(LORA[3], "diverged")))
    assert failed == {LORA[3]: "OutOfMemory: it was too much"}
    again = Inline(one_ends(None, "failed"))
    run_inline(grid, folder, again, resume=True)
    assert again.ran == []


def test_worker_may_be_gone_before_it_starts(grid, tmp_path):
    class Dead(Inline):
        def events(self, timeout):
            return [event for event in super().events(timeout) if event.kind != "started"]

    failed = run_inline(grid, tmp_path / "study", Dead(one_ends(LORA[0], "killed")))
    assert list(failed) == [LORA[0]]
    assert statuses_of(tmp_path / "study")[LORA[0]] == "killed"


def test_cell_that_really_fails_says_why(grid, copied, bench, monkeypatch):
    before = numbers_of(copied)
    remove(copied, LORA[3])
    monkeypatch.setattr("coadapt.study.worker.fit", lambda *a, **k: {}["weights"])
    failed = run_inline(grid, copied, Inline(bench=bench), resume=True)
    assert failed == {LORA[3]: "KeyError: 'weights'"}
    assert records_of(copied)[LORA[3]]["run"]["error"] == "KeyError: 'weights'"
    monkeypatch.undo()
    again = Inline(bench=bench)
    assert run_inline(grid, copied, again, resume=True) == {}
    assert again.ran == [LORA[3]]
    assert numbers_of(copied) == before


# A study that is stopped -------------------------------------------------------------------


def remove(folder, cell):
    """Remove a cell's record and run, as if it had never been."""
    record = records_of(folder)[cell]["cell"]
    (folder / "cells" / f"{cell}.json").unlink()
    shutil.rmtree(
        folder / "runs" / record["group"] / f"trial{record['trial']}_seed{record['seed']}"
    )


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError], ids=["ctrl-c", "broken"])
def test_stopped_study_marks_what_ran(stop, grid, tmp_path):
    folder = tmp_path / "study"

    def end(job):
        if job.id == LORA[1]:
            raise stop
        return scored(job, 0.5)

    executor = Inline(end, num_workers=3)
    with pytest.raises(stop):
        run_inline(grid, folder, executor)
    assert executor.closed
    # A third cell was waiting for its turn: it has no record.
    assert statuses_of(folder) == {LORA[0]: "finished", LORA[1]: "cancelled"}
    assert records_of(folder)[LORA[1]]["run"]["error"] == "the study was stopped"
    again = Inline(lambda job: scored(job, 0.5))
    assert run_inline(grid, folder, again, resume=True) == {}
    assert again.ran == [*LORA[1:], *PRIVATE]


def test_stopping_keeps_what_waiting_cells_had_before(grid, tmp_path):
    folder = tmp_path / "study"
    run_inline(grid, folder, Inline(one_ends(LORA[1], "failed")))
    remembered = records_of(folder)[LORA[1]]
    (folder / "cells" / f"{LORA[0]}.json").unlink()

    def end(job):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_inline(grid, folder, Inline(end, num_workers=2), resume=True)
    assert statuses_of(folder)[LORA[0]] == "cancelled"
    assert records_of(folder)[LORA[1]] == remembered


def test_stopping_on_a_full_disk_is_still_stopping(grid, tmp_path, monkeypatch):
    def end(job):
        full_disk(monkeypatch, "trial0_seed0.json")
        raise KeyboardInterrupt

    executor = Inline(end)
    with pytest.raises(KeyboardInterrupt):
        run_inline(grid, tmp_path / "study", executor)
    assert executor.closed


def test_stopped_cell_goes_on_from_its_checkpoint(toy_study, tmp_path, bench):
    toy_study["training"] |= {"save_strategy": "steps", "save_steps": 3}
    toy_study["recipes"] = {"lora": None}
    toy_study["trials"] = toy_study["trials"][1:]
    grid, cell = grid_of(tmp_path, toy_study), "lora-R8-n8/trial0_seed0"
    whole = Inline(bench=bench)
    assert run_inline(grid, tmp_path / "whole", whole) == {}
    assert whole.steps[cell] == 8

    def stop(job, step):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_inline(grid, tmp_path / "study", Inline(bench=bench, on_step=stop))
    assert statuses_of(tmp_path / "study") == {cell: "cancelled"}
    again = Inline(bench=bench)
    assert run_inline(grid, tmp_path / "study", again, resume=True) == {}
    assert again.steps[cell] == 5  # steps 4 to 8
    assert numbers_of(tmp_path / "study") == numbers_of(tmp_path / "whole")


# A full disk -------------------------------------------------------------------------------


def full_disk(patch, name, *, call=1):
    """Let a file be written by half only, at one writing of it; nothing more goes in then."""
    calls = []

    def write_text(self, text, *args, **kwargs):
        if name in self.name:
            calls.append(self)
            if len(calls) == call:
                original(self, text[: len(text) // 2], *args, **kwargs)
                raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return original(self, text, *args, **kwargs)

    original = Path.write_text
    patch.setattr(Path, "write_text", write_text)


def full_for_tensors(patch):
    """Let a file of tensors be written by half only, once."""
    calls = []

    def save_file(tensors, path):
        original(tensors, path)
        if not calls:
            calls.append(path)
            Path(path).write_bytes(Path(path).read_bytes()[:50])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    original = safetensors.torch.save_file
    patch.setattr(safetensors.torch, "save_file", save_file)


FULL = {
    "run-config": lambda patch: full_disk(patch, "config.yaml"),
    "run-plan": lambda patch: full_disk(patch, "plan.yaml"),
    "checkpoint": full_for_tensors,
    "run-result-at-start": lambda patch: full_disk(patch, "result.json"),
    "run-predictions": lambda patch: full_disk(patch, "predictions-test.json"),
    "run-scores": lambda patch: full_disk(patch, "result.json", call=3),
    "predictions": lambda patch: full_disk(patch, "final_seed1.predictions"),
    "record": lambda patch: full_disk(patch, "final_seed1.json", call=2),
}


@pytest.mark.parametrize("fill", FULL.values(), ids=FULL.keys())
def test_full_disk_costs_one_cell(fill, grid, copied, bench, monkeypatch):
    wanted = numbers_of(copied)
    remove(copied, LORA[3])
    (copied / "cells" / f"{PRIVATE[0]}.json").unlink()  # comes after the one that fails
    (copied / "cells" / f"{LORA[3]}.predictions.json").unlink()
    others = content_of(copied / "cells")
    with monkeypatch.context() as patch:
        fill(patch)
        failed = run_inline(grid, copied, first := Inline(bench=bench), resume=True)
    assert first.ran == [LORA[3], PRIVATE[0]]
    assert list(failed) == [LORA[3]]
    assert "No space left" in failed[LORA[3]] or "could not be written" in failed[LORA[3]]
    assert_nothing_half(copied / "cells")
    assert statuses_of(copied)[LORA[3]] != "finished"
    assert statuses_of(copied)[PRIVATE[0]] == "finished"
    assert others.items() <= content_of(copied / "cells").items()
    again = Inline(bench=bench)
    assert run_inline(grid, copied, again, resume=True) == {}
    assert again.ran == [LORA[3]]
    assert_nothing_half(copied)
    assert numbers_of(copied) == wanted


def assert_nothing_half(folder):
    """Assert that no file is left that was not written to its end, whatever its name."""
    for path in folder.rglob("*"):
        assert not path.name.startswith("tmp-")
        assert not path.name.startswith(".") or path.name.endswith(".lock"), path
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def test_record_that_says_running_is_not_worth_a_cell(grid, copied, bench, monkeypatch):
    wanted = numbers_of(copied)
    (copied / "cells" / f"{LORA[3]}.json").unlink()
    full_disk(monkeypatch, "final_seed1.json")
    assert run_inline(grid, copied, Inline(bench=bench), resume=True) == {}
    assert numbers_of(copied) == wanted


def test_trial_without_a_record_is_no_choice(grid, tmp_path, monkeypatch, caplog):
    full_disk(monkeypatch, "trial1_seed0.json", call=2)
    executor = Inline(lambda job: scored(job, 0.5))
    failed = run_inline(grid, tmp_path / "study", executor)
    assert failed == {LORA[1]: "its result could not be written"}
    assert executor.ran == [*LORA[:2], *PRIVATE]
    assert "No space left on device" in caplog.text
