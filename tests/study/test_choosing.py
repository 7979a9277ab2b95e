"""Which trial of a group is run for every seed: the best on validation."""

import itertools

import numpy as np
import pytest

from tests.study.inline import Inline, grid_of, records_of, run_inline, scored, statuses_of


@pytest.fixture
def three(toy_study, tmp_path):
    """A grid with three trials on two tuning seeds, none of which is really run."""
    toy_study["trials"] = [{"learning_rate": rate, "epochs": 1} for rate in (1e-3, 2e-3, 3e-3)]
    toy_study["tuning_seeds"] = [0, 1]
    toy_study["seeds"] = [0, 1, 2]
    toy_study["recipes"] = {"lora": None}
    return grid_of(tmp_path, toy_study)


def run_scored(grid, folder, scores, **options):
    """Run a study whose trials end with these scores by trial and tuning seed; None: diverged."""

    def end(job):
        name = job.id.rpartition("/")[2]
        if name.startswith("final"):
            return scored(job, 0.5)
        score = scores[int(name[5])][int(name[-1])]
        if score is None:
            return {"kind": "diverged", "data": {"error": "not finite"}}
        return scored(job, score)

    executor = Inline(end)
    return run_inline(grid, folder, executor, **options), executor


def chosen_in(folder):
    """Return the trial of every final record; there is no other."""
    found = {r["cell"]["trial"] for n, r in records_of(folder).items() if "/final" in n}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.1, 0.1), (0.9, 0.9), (0.5, 0.5)], 1),
        ([(0.2, 0.9), (0.7, 0.6), (1.0, 0.0)], 1),  # the mean over seeds counts
        ([(0.5, 0.5), (0.6, 0.8), (0.8, 0.6)], 1),  # the first of equals
        ([(-0.5, -0.5), (-0.9, -0.9), (-0.2, -0.2)], 2),
        ([(0.3, 0.3), (None, 0.9), (0.4, 0.4)], 2),  # a trial that diverged for a seed is out
        ([(0.0, 0.0), (None, None), (None, 0.9)], 0),
    ],
    ids=["best", "mean", "tie", "negative", "diverged-once", "one-left"],
)
def test_best_trial_on_validation_is_chosen(scores, best, three, tmp_path):
    failed, executor = run_scored(three, tmp_path / "study", scores)
    assert failed == {}
    assert chosen_in(tmp_path / "study") == best
    assert executor.ran == [
        *(f"lora-R8-n8/trial{t}_seed{s}" for t, s in itertools.product(range(3), (0, 1))),
        *(f"lora-R8-n8/final_seed{seed}" for seed in (0, 1, 2)),
    ]


def test_choice_uses_each_tasks_first_metric_alone(three, tmp_path):
    def end(job):
        found = scored(job, 0.5 if "trial1" in job.id else 0.4)
        for task in found["data"]["metrics"].get("validation", {}).values():
            task["metrics"]["second"] = {"value": 9.0 if "trial2" in job.id else 0.0}
        return found

    run_inline(three, tmp_path / "study", Inline(end))
    assert chosen_in(tmp_path / "study") == 1


def test_choice_follows_from_the_records(done):
    records = records_of(done[1])
    for group in ("lora-R8-n8", "private-R8-n8"):
        scores = [records[f"{group}/trial{trial}_seed0"]["curve"][-1][1] for trial in (0, 1)]
        assert scores[0] != scores[1]
        assert records[f"{group}/final_seed1"]["cell"]["trial"] == int(np.argmax(scores))


def test_diverging_learning_rate_is_out_and_not_tried_again(toy_study, tmp_path, bench):
    toy_study["trials"] = [{"learning_rate": rate, "epochs": 1} for rate in (1e30, 1e-9)]
    toy_study["recipes"] = {"lora": None}
    grid, folder = grid_of(tmp_path, toy_study), tmp_path / "study"
    assert run_inline(grid, folder, Inline(bench=bench)) == {}
    record = records_of(folder)["lora-R8-n8/trial0_seed0"]
    assert record["run"]["status"] == "diverged"
    assert "not finite" in record["run"]["error"]
    assert chosen_in(folder) == 1
    again = Inline(bench=bench)
    assert run_inline(grid, folder, again, resume=True) == {}
    assert again.ran == []


def test_all_trials_diverging_is_said(three, tmp_path):
    folder = tmp_path / "study"
    for resume in (False, True):
        failed, executor = run_scored(three, folder, [(None, None)] * 3, resume=resume)
        assert failed == {"lora-R8-n8": "every trial diverged; give lower learning rates"}
        assert len(executor.ran) == (0 if resume else 6)
    assert set(statuses_of(folder).values()) == {"diverged"}
