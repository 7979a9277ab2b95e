"""The summary of a study of which something is missing."""

import json
import math

import numpy as np
import pytest

from coadapt.study import summarize
from coadapt.study.comparison import finite
from tests.reference import slow_summary as slow
from tests.study.fake_cells import (
    EFFECT,
    METRICS,
    NUM_RESAMPLES,
    all_sheets,
    arm_of,
    assert_same,
    table_of,
    write_cell,
)

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture
def small(fake_of):
    """The test's own, of two recipes and one budget."""
    return fake_of(recipes={"lora": None, "private": None}, plans={}, budgets=[8], tuning_seeds=[0])


def test_missing_cells_are_told_and_seeds_paired_without_them(small):
    private = "private-R8-n8"
    write_cell(small.folder, small.final(private, 0), status="failed", error="ValueError: boom")
    del small.arms[private].scores[0]
    (small.folder / "cells/lora-R8-n8/final_seed2.json").unlink()
    lora, arm = small.arms["lora-R8-n8"], small.arms[private]
    del lora.scores[2]
    summary = summarize(small.grid, small.folder)
    assert summary["missing"] == {
        "lora-R8-n8/final_seed2": "not run",
        "private-R8-n8/final_seed0": "failed: ValueError: boom",
    }
    table = summary["tables"][0]
    assert [row["seeds"] for row in table["arms"]] == [[0, 1], [1, 2]]
    wanted = slow.compare([arm], lora, METRICS, effect=EFFECT, num_resamples=NUM_RESAMPLES)
    row = arm_of(table, "private-R8")
    assert row["difference"]["num"] == 1
    assert_same({key: row[key] for key in wanted["private-R8"]}, wanted["private-R8"])
    # One pair bounds nothing over seeds; rows alone decide, and how many it takes is open.
    assert row["seeds_needed"] is None
    assert math.isnan(row["difference"]["low"])
    assert row["difference"]["rows"][0] > 0
    assert row["difference"]["outcome"] == "win"
    text = all_sheets(small)
    assert "over 2 seeds" in text
    assert "| private-R8-n8/final_seed0 | failed: ValueError: boom |" in text


@pytest.mark.parametrize("status", ["running", "killed", "cancelled", "diverged"])
def test_a_final_cell_that_has_not_finished_does_not_count(status, small):
    cell = small.final("private-R8-n8", 1)
    # Its old predictions are still there, and scores might be.
    write_cell(small.folder, cell, status=status, scores=dict.fromkeys(METRICS, 1.0))
    summary = summarize(small.grid, small.folder)
    assert summary["missing"] == {cell.id: status}
    assert arm_of(summary["tables"][0], "private-R8")["seeds"] == [0, 2]
    assert "over 2 or 3 seeds" in all_sheets(small)


def test_a_cell_of_another_configuration_does_not_count(small):
    path = small.folder / "cells/private-R8-n8/final_seed1.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["cell"]["hash"] = record["cell"]["hash"].replace("-test", "-validation")
    path.write_text(json.dumps(record), encoding="utf-8")
    summary = summarize(small.grid, small.folder)
    assert summary["missing"] == {"private-R8-n8/final_seed1": "not run"}


def test_a_trial_that_diverged_is_out_and_not_missing(small):
    group = small.group("private-R8-n8")
    write_cell(small.folder, small.grid.trials(group)[1], status="diverged", error="nan")
    summary = summarize(small.grid, small.folder)
    row = arm_of(summary["tables"][0], "private-R8")
    assert row["chosen"] == 0
    assert [t["status"] for t in row["tried"]] == ["finished", "diverged"]
    assert (row["tried"][1]["halfway"], row["tried"][1]["validation"]) == (None, None)
    # The final cells there are of the other trial.
    assert row["seeds"] == []
    assert set(summary["missing"]) == {f"private-R8-n8/final_seed{seed}" for seed in (0, 1, 2)}


def test_nothing_is_chosen_before_all_trials_are_done(small):
    group = small.group("private-R8-n8")
    write_cell(small.folder, small.grid.trials(group)[0], status="failed", error="boom")
    summary = summarize(small.grid, small.folder)
    row = arm_of(summary["tables"][0], "private-R8")
    assert row["chosen"] is None
    assert row["seeds"] == []
    # The old final runs may turn out to be of the wrong trial.
    finals = {
        f"private-R8-n8/final_seed{seed}": "not run: a trial has no result" for seed in range(3)
    }
    assert summary["missing"] == {"private-R8-n8/trial0_seed0": "failed: boom", **finals}
    assert [t["status"] for t in row["tried"]] == ["failed", "finished"]


def test_an_arm_without_any_final_run_has_dashes(small):
    for seed in (0, 1, 2):
        (small.folder / f"cells/private-R8-n8/final_seed{seed}.json").unlink()
    row = arm_of(table_of(small), "private-R8")
    assert math.isnan(row["mean"])
    assert not {"difference", "regret", "win"} & row.keys()
    assert all(row[key] is None for key in ("steps", "tokens", "seconds", "updates"))
    text = all_sheets(small)
    assert "| private | - |  |  |  |  |" in text
    assert "| private | - | - | - | - | - |" in text
    assert "over 0 or 3 seeds" in text
    assert arm_of(finite(table_of(small)), "private-R8")["mean"] is None


def test_without_the_baseline_scores_stand_alone(small):
    for seed in (0, 1, 2):
        (small.folder / f"cells/lora-R8-n8/final_seed{seed}.json").unlink()
    table = table_of(small)
    assert table["baseline"] == "lora-R8"
    assert not any("difference" in row for row in table["arms"])
    private = arm_of(table, "private-R8")
    assert private["regret"] == {"always private": 0.0, "best": 0.0}
    text = all_sheets(small)
    assert f"| private | {private['mean']:.3f} ±" in text
    assert "| less lora |" in text
    assert "|  |  |  |  |\n" in text


def test_where_the_baseline_cannot_be_there_is_none(fake_of):
    fake = fake_of(
        recipes={"lora": None, "private": None, "frozen": None}, plans={},
        baseline="private", budgets=[8, 3],
    )  # fmt: skip
    summary = summarize(fake.grid, fake.folder)
    assert [table["baseline"] for table in summary["tables"]] == ["private-R8", None]
    assert [row["arm"] for row in summary["tables"][1]["arms"]] == ["lora-R3", "frozen"]
    assert not any("difference" in row for row in summary["tables"][1]["arms"])
    assert set(summary["tables"][1]["arms"][0]["regret"]) == {"always shared", "best"}
    assert "|  | score |\n" in all_sheets(fake)


def test_one_seed_bounds_nothing(fake_of):
    fake = fake_of(recipes={"lora": None, "private": None}, plans={}, budgets=[8], seeds=[4])
    table = table_of(fake)
    row = arm_of(table, "private-R8")
    assert math.isnan(row["low"])
    assert math.isnan(row["difference"]["p_holm"])
    assert row["seeds_needed"] is None
    plain = json.loads(json.dumps(finite(table), allow_nan=False))
    row = arm_of(plain, "private-R8")
    assert [row["low"], row["high"], row["sd"]] == [None] * 3
    assert [row["difference"][key] for key in ("low", "high", "p_value", "p_holm")] == [None] * 4
    assert row["difference"]["num"] == 1
    text = all_sheets(fake)
    assert "± 95 % over 1 seeds" in text
    assert "±0." not in text


def test_without_all_predictions_seeds_alone_decide(small):
    (small.folder / "cells/private-R8-n8/final_seed1.predictions.json").unlink()
    arm, lora = small.arms["private-R8-n8"], small.arms["lora-R8-n8"]
    del arm.predictions[1]
    wanted = slow.compare([arm], lora, METRICS, effect=EFFECT, num_resamples=NUM_RESAMPLES)
    row = arm_of(table_of(small), "private-R8")
    assert_same({key: row[key] for key in wanted["private-R8"]}, wanted["private-R8"])
    assert row["difference"]["rows"] is None
    assert row["difference"]["outcome"] == "win"
    assert " + | - | " in all_sheets(small)


def test_seeds_that_no_one_could_run_are_not_told(fake_of):
    keys = {"recipes": {"lora": None, "private": None}, "plans": {}, "budgets": [8]}
    assert arm_of(table_of(fake_of(**keys, effect=1e-6)), "private-R8")["seeds_needed"] is None
    assert arm_of(table_of(fake_of(**keys, effect=9.0)), "private-R8")["seeds_needed"] == 2


def test_where_every_trial_diverged_no_final_run_counts(small):
    for cell in small.grid.trials(small.group("private-R8-n8")):
        write_cell(small.folder, cell, status="diverged", error="loss is nan")
    summary = summarize(small.grid, small.folder)
    assert summary["missing"] == {
        f"private-R8-n8/final_seed{seed}": "not run: every trial diverged" for seed in range(3)
    }
    assert arm_of(summary["tables"][0], "private-R8")["seeds"] == []


def test_a_win_asks_that_other_rows_agree_too(small):
    """One row of sixteen makes the difference for every seed; it may not be among other rows."""
    for name, wrong in (("lora-R8-n8", 1), ("private-R8-n8", 0)):
        for seed in (0, 1, 2):
            found = dict(small.arms[name].predictions[seed])
            labels = small.labels["topic"]
            found["topic"] = labels, np.concatenate([(labels[:wrong] + 1) % 3, labels[wrong:]])
            scores = {**small.arms[name].scores[seed], "topic": 1 - wrong / len(labels)}
            train = small.trained[name][seed]
            cell = small.final(name, seed)
            write_cell(small.folder, cell, scores=scores, train=train, predictions=found)
    row = arm_of(table_of(small), "private-R8")["task_differences"]["topic"]
    assert row["mean"] == row["low"] == 1 / 16
    assert row["rows"][0] == 0
    assert row["outcome"] == "tie"
