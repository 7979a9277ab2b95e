"""How far a study is, as a terminal and a log see it."""

import io

import pytest
from rich.console import Console

from coadapt.study import watching
from coadapt.study.watching import ConsoleWatcher, Estimate
from tests.study.inline import Inline, run_inline, scored


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to: a list with the time."""
    now = [100.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lora(done):
    """The cells of a group: trials of 4 and 8 steps, finals as long as the first."""
    group = done.grid.groups[0]
    return [*done.grid.trials(group), *done.grid.finals(group, 0)]


@pytest.fixture
def private(done):
    """The cells of another recipe, of the same costs."""
    group = done.grid.groups[1]
    return [*done.grid.trials(group), *done.grid.finals(group, 0)]


def take(watcher, cell, clock, seconds):
    """Let a cell take its time."""
    watcher.started(cell)
    clock[0] += seconds
    return watcher.ended(cell)


# The estimate ------------------------------------------------------------------------------


def test_nothing_is_guessed_before_a_cell_has_ended(lora, clock):
    estimate = Estimate(1)
    for cell in lora:
        estimate.expect(cell, cost=cell.cost)
    estimate.started(lora[0])
    clock[0] += 5
    assert estimate.seconds_left is None


@pytest.mark.parametrize("num_workers", [1, 2])
def test_time_left_follows_from_rows_and_recipes(num_workers, lora, private, clock):
    short, long, *_ = lora
    assert (short.cost, long.cost) == (32, 64)  # 4 tasks of 8 rows, in one and two epochs
    estimate = Estimate(num_workers)
    for cell in (short, long, *private[:2]):
        estimate.expect(cell, cost=cell.cost)
    assert take(estimate, short, clock, 10) == 10
    # Twice the rows of the same recipe, and, by the same rate, 96 rows of one that is not known.
    assert estimate.seconds_left == pytest.approx((20 + 30) / num_workers)
    take(estimate, private[0], clock, 40)
    assert estimate.seconds_left == pytest.approx((20 + 80) / num_workers)
    estimate.drop(long)
    assert estimate.seconds_left == pytest.approx(80 / num_workers)
    take(estimate, private[1], clock, 80)
    assert estimate.seconds_left == 0


def test_cell_that_has_only_to_be_scored_tells_nothing_of_training(lora, clock):
    trial, other, scored_only, final = lora
    estimate = Estimate(1)
    for cell in lora:
        estimate.expect(cell, cost=0.0 if cell is scored_only else cell.cost)
    take(estimate, trial, clock, 10)
    estimate.started(scored_only)
    assert estimate.seconds_left == pytest.approx(30)  # of `other` and `final`
    clock[0] += 0.1
    estimate.ended(scored_only)
    assert estimate.seconds_left == pytest.approx(30, rel=0.02)
    estimate.drop(other)
    assert estimate.seconds_left == pytest.approx(10, rel=0.02)
    assert final.cost == trial.cost


def test_final_counts_with_the_epochs_of_the_chosen_trial(done, lora, clock):
    estimate = Estimate(1)
    take(estimate, lora[0], clock, 10)
    expected, started = lora[3], done.grid.finals(lora[0].group, 1)[1]
    assert (expected.id, started.cost) == (started.id, 2 * expected.cost)
    estimate.expect(expected, cost=expected.cost)
    estimate.started(started)
    assert estimate.seconds_left == pytest.approx(20)


def test_group_that_gave_up_is_no_work(lora, private, clock):
    estimate = Estimate(1)
    for cell in (*lora, private[3]):
        estimate.expect(cell, cost=cell.cost)
    take(estimate, lora[0], clock, 10)
    estimate.drop_finals(lora[0].group)
    assert estimate.seconds_left == pytest.approx(20 + 10)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min")],
)
def test_durations_are_short(seconds, text):
    assert watching._duration(seconds) == text


# A log -------------------------------------------------------------------------------------


def watch(done, folder, clock, *, terminal, ends, **options):
    """Run the toy study with a clock that goes 7 seconds a job; return what the console shows."""

    def end(job):
        clock[0] += 7
        return ends(job)

    console = Console(file=io.StringIO(), force_terminal=terminal, width=200, _environ={})
    executor = Inline(end)
    with ConsoleWatcher(console, executor.num_workers) as watcher:
        run_inline(done.grid, folder, executor, watcher=watcher, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_log_has_a_line_a_cell(done, tmp_path, clock):
    def end(job):
        if job.id == "lora-R8-n8/trial1_seed0":
            return {"kind": "failed", "data": {"error": "OutOfMemory: [too much]"}}
        return scored(job, 0.5)

    text = watch(done, tmp_path / "study", clock, terminal=False, ends=end)
    # Of each group 32, 64, 0 and 32 rows; those of lora's final runs are no work any more.
    assert text.splitlines() == [
        "1/8 lora-R8-n8/trial0_seed0: finished in 7 s, about 49 s left",
        "2/8 lora-R8-n8/trial1_seed0: failed in 7 s: OutOfMemory: [too much]",
        "lora-R8-n8: no final runs: lora-R8-n8/trial1_seed0 has no result",
        "3/8 private-R8-n8/trial0_seed0: finished in 7 s, about 21 s left",
        "4/8 private-R8-n8/trial1_seed0: finished in 7 s, about 5 s left",
        "5/8 private-R8-n8/final_seed0: finished in 7 s, about 7 s left",
        "6/8 private-R8-n8/final_seed1: finished in 7 s, about 0 s left",
    ]
    text = watch(
        done, tmp_path / "study", clock, terminal=False, ends=lambda j: scored(j, 1), resume=True
    )
    assert text.splitlines()[0].startswith("6/8 lora-R8-n8/trial1_seed0: finished in 7 s")
    assert text.splitlines()[-1] == "8/8 lora-R8-n8/final_seed1: finished in 7 s, about 0 s left"


def test_group_without_a_trial_is_told(done, tmp_path, clock):
    text = watch(
        done,
        tmp_path / "study",
        clock,
        terminal=False,
        ends=lambda job: {"kind": "diverged", "data": {"error": "not finite"}},
    )
    line = "lora-R8-n8: no final runs: every trial diverged; give lower learning rates"
    assert text.splitlines()[2] == line


# A terminal --------------------------------------------------------------------------------


def test_terminal_shows_counts_and_what_each_worker_does(done, tmp_path, clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={})
    shown = []

    class Watcher(ConsoleWatcher):
        def tick(self):
            super().tick()
            with console.capture() as capture:
                console.print(self._progress.get_renderable())
            shown.append([line.rstrip() for line in capture.get().splitlines()])

    def end(job):
        clock[0] += 7
        if job.id == "private-R8-n8/trial1_seed0":
            return {"kind": "failed", "data": {"error": "OutOfMemory"}}
        return scored(job, 0.5)

    executor = Inline(end)
    with Watcher(console, executor.num_workers) as watcher:
        run_inline(done.grid, tmp_path / "study", executor, watcher=watcher)
    plain = ["\n".join(strip(line) for line in lines) for lines in shown]
    assert "0/8" in plain[0]
    assert "lora-R8-n8/trial0_seed0" in plain[0]
    assert "1/8" in plain[1]
    assert "about 49 s left" in plain[1]
    assert "lora-R8-n8/trial1_seed0" in plain[2]
    assert "6/8" in plain[-1]
    assert "1 failed" in plain[-1]
    assert isinstance(console.file, io.StringIO)
    printed = [strip(line) for line in console.file.getvalue().splitlines()]
    assert any("private-R8-n8/trial1_seed0: failed in 7 s: OutOfMemory" in line for line in printed)
    assert not any("finished in" in line for line in printed)


def test_terminal_shows_steps(lora, clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={})
    with ConsoleWatcher(console, 1) as watcher:
        watcher.expect(lora[0].group, lora[:2], lora[2:])
        watcher.stepped(lora[0], 0, 1, 4)  # before it has started: nothing to show it on
        watcher.started(lora[0], 0)
        watcher.stepped(lora[0], 0, 3, 4)
        assert [(t.completed, t.total) for t in watcher._progress.tasks[1:]] == [(3, 4)]
        watcher.ended(lora[0], 0, "finished", None)
        watcher.started(lora[1], 0)
        watcher.started(lora[2], 1)
        tasks = watcher._progress.tasks[1:]
        assert [task.description.strip() for task in tasks] == [lora[1].id, lora[2].id]
        assert tasks[0].completed == 0


def strip(text):
    """Return a line without its colours."""
    from rich.text import Text

    return Text.from_ansi(text).plain.rstrip()
