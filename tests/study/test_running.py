"""The course of a study: what is run, in which order, what is chosen, what is written."""

import json
from collections import Counter

import numpy as np
import pytest

from coadapt.config import to_plain
from coadapt.predictions import read_predictions
from coadapt.study import running
from coadapt.training import MultiTaskTrainer
from tests.study.inline import (
    Inline,
    grid_of,
    numbers_of,
    records_of,
    run_inline,
    scored,
    study_of,
)

CELLS = ["trial0_seed0", "trial1_seed0", "final_seed0", "final_seed1"]
LORA = [f"lora-R8-n8/{cell}" for cell in CELLS]
PRIVATE = [f"private-R8-n8/{cell}" for cell in CELLS]


# What is written ---------------------------------------------------------------------------


def test_every_cell_has_a_record(done):
    grid, folder, executor, _ = done
    records = records_of(folder)
    assert sorted(records) == sorted(LORA + PRIVATE) == sorted(executor.ran)
    for group in grid.groups:
        trial = records[f"{group.name}/final_seed0"]["cell"]["trial"]
        for cell in [*grid.trials(group), *grid.finals(group, trial)]:
            record = records[cell.id]
            assert record["cell"] == {
                "id": cell.id,
                "role": cell.role,
                "group": group.name,
                "recipe": group.recipe,
                "plan": None,
                "budget": 8,
                "rows": 8,
                "tasks": ["sentiment", "topic", "same", "degree"],
                "trial": cell.trial,
                "seed": cell.seed,
                "hash": cell.hash,
            }
            run = record["run"]
            assert run["config"] == to_plain(cell.config)
            assert (run["seed"], run["status"], run["error"]) == (cell.seed, "finished", None)
            assert run["command"]
            train = record["train"]
            assert train["steps"] == 4 * (cell.trial + 1)
            assert train["rows_an_epoch"] == dict.fromkeys(grid.suite.names, 8)
            assert train["trainable"]["adapters"] == grid.spent[group].trainable
            assert train["tokens"] > 0
            assert train["seconds"] > 0
            assert train["peak_memory_mib"] > 0
            assert record["environment"]["packages"]["torch"]
            assert {"commit", "device"} <= record["environment"].keys()


def test_curve_has_validation_halfway_and_at_the_end(done):
    records = records_of(done[1])
    for record in records.values():
        (halfway, _), (end, _) = record["curve"]
        assert end == record["train"]["steps"]
        assert end / 2 <= halfway <= end / 2 + 1
    trial = records[LORA[0]]
    firsts = [next(iter(t["metrics"].values())) for t in trial["metrics"]["validation"].values()]
    assert trial["curve"][-1][1] == pytest.approx(np.mean([first["value"] for first in firsts]))


def test_a_final_cell_keeps_what_it_predicted(done):
    grid, folder, _, _ = done
    records = records_of(folder)
    kept = sorted((folder / "cells").rglob("*.predictions.json"))
    assert [f"{p.parent.name}/{p.name.partition('.')[0]}" for p in kept] == [
        *LORA[2:],
        *PRIVATE[2:],
    ]
    suite = grid.suite_of(grid.groups[0], 0)
    for path in kept:
        scores = records[f"{path.parent.name}/{path.name.partition('.')[0]}"]["metrics"]["test"]
        for task, (labels, predicted) in read_predictions(path).items():
            assert np.array_equal(labels, suite.rows(task, "test").labels)
            if task != "degree":
                accuracy = scores[task]["metrics"]["accuracy"]["value"]
                assert accuracy == np.mean(labels == predicted)


# What is read ------------------------------------------------------------------------------


def test_trials_know_validation_only_and_finals_test_only(done):
    for name, record in records_of(done[1]).items():
        expected = "test" if "final" in name else "validation"
        assert list(record["metrics"]) == [expected]
        assert list(record["metrics"][expected]) == ["sentiment", "topic", "same", "degree"]


def test_no_test_row_is_read_before_the_choice_is_made(done):
    _, _, executor, read = done
    assert read.pop(None) == {"train"}  # to guess the time left
    assert list(read) == executor.ran
    for job, splits in read.items():
        assert ("test" in splits) == ("final" in job), job


# The order, and what is trained ------------------------------------------------------------


def test_groups_follow_each_other(done):
    assert done[2].ran == [*LORA, *PRIVATE]


def test_final_of_the_tuning_seed_is_not_trained_again(done):
    _, folder, executor, _ = done
    records = records_of(folder)
    for group in ("lora-R8-n8", "private-R8-n8"):
        final, other = (records[f"{group}/final_seed{seed}"] for seed in (0, 1))
        trial = records[f"{group}/trial{final['cell']['trial']}_seed0"]
        assert executor.steps[final["cell"]["id"]] == 0
        assert final["train"] == trial["train"]  # even its seconds
        assert executor.steps[trial["cell"]["id"]] == trial["train"]["steps"] > 0
        assert executor.steps[other["cell"]["id"]] == other["train"]["steps"] > 0
        assert other["cell"]["trial"] == final["cell"]["trial"]


def fair_study(tiny_bert, toy_suite_dict, **keys):
    """One trial of four recipes, so that finals of seed 0 are trials too."""
    return {
        **study_of(tiny_bert, toy_suite_dict),
        "trials": [{"learning_rate": 5e-3, "epochs": 1}],
        "training": {"use_cpu": True, "per_device_train_batch_size": 8, "eval_strategy": "no"},
        "recipes": {
            "lora": None,
            "private": None,
            "clustered": {"plans": ["pairs"]},
            "frozen": None,
        },
        "plans": {
            "pairs": {
                "kind": "clusters",
                "clusters": {"a": ["sentiment", "degree"], "b": ["topic", "same"]},
            }
        },
        **keys,
    }


def test_recipes_share_data_order_and_heads_of_a_seed(
    tiny_bert, toy_suite_dict, tmp_path, bench, monkeypatch
):
    heads, batches = {}, {}

    def go_on(self, checkpoint):
        assert checkpoint is None
        values = [p.detach().clone() for p in self.multi.heads.parameters()]
        heads[self.folder] = [value.tolist() for value in values]
        return original_go_on(self, checkpoint)

    def compute_loss(self, model, inputs, *args, **kwargs):
        seen = (inputs["input_ids"].tolist(), inputs["task_ids"].tolist())
        batches.setdefault(self.folder, []).append(seen)
        return original_loss(self, model, inputs, *args, **kwargs)

    original_go_on, original_loss = MultiTaskTrainer.go_on, MultiTaskTrainer.compute_loss
    monkeypatch.setattr(MultiTaskTrainer, "go_on", go_on)
    monkeypatch.setattr(MultiTaskTrainer, "compute_loss", compute_loss)
    grid = grid_of(tmp_path, fair_study(tiny_bert, toy_suite_dict))
    run_inline(grid, tmp_path / "study", Inline(bench=bench))
    groups = [group.name for group in grid.groups]
    assert len(groups) == 4
    for found in (heads, batches):
        by_seed = [
            [found[tmp_path / "study" / "runs" / name / f"trial0_seed{seed}"] for name in groups]
            for seed in (0, 1)
        ]
        for same in by_seed:
            assert all(value == same[0] for value in same)
        assert by_seed[0][0] != by_seed[1][0]
    assert all(len(steps) == 4 for steps in batches.values())


@pytest.mark.parametrize("redraw", [True, False], ids=["redraw", "keep"])
def test_seeds_draw_training_rows_and_no_others(redraw, tiny_bert, toy_suite_dict, tmp_path):
    grid = grid_of(tmp_path, fair_study(tiny_bert, toy_suite_dict, redraw=redraw))
    group = grid.groups[0]
    zero, one = (grid.suite_of(group, seed) for seed in (0, 1))

    def texts(suite, split):
        return {task: suite.rows(task, split).texts for task in suite.names}

    assert (texts(zero, "train") != texts(one, "train")) == redraw
    assert {len(rows) for rows in texts(one, "train").values()} == {8}
    for split in ("validation", "test"):
        assert texts(zero, split) == texts(one, split)
        assert max(len(rows) for rows in texts(one, split).values()) == 4
    # The cells get these very suites.
    assert grid.cell(group, "final", 0, 1).suite is one


# Going on ----------------------------------------------------------------------------------


def test_resuming_a_finished_study_runs_nothing(done, copied):
    before = {p: p.read_bytes() for p in sorted(copied.rglob("*")) if p.is_file()}
    executor = Inline()
    assert run_inline(done[0], copied, executor, resume=True) == {}
    assert executor.ran == []
    assert executor.closed
    assert {p: p.read_bytes() for p in sorted(copied.rglob("*")) if p.is_file()} == before


def without_metric(text):
    """Return a record in which one task has no metric."""
    record = json.loads(text)
    for scores in record["metrics"].values():
        scores["topic"]["metrics"] = {}
    return json.dumps(record)


DAMAGES = {
    "half": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "other-json": lambda text: "[]",
    "other-hash": lambda text: text.replace('"hash": "', '"hash": "0'),
    "no-run": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "run"}),
    "no-status": lambda text: text.replace('"status"', '"state"'),
    "no-scores": lambda text: json.dumps({**json.loads(text), "metrics": {}}),
    "no-metric": without_metric,
    "text-for-scores": lambda text: json.dumps({**json.loads(text), "metrics": "gone"}),
    "running": lambda text: text.replace('"finished"', '"running"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_record_counts_for_nothing(damage, done, copied, bench):
    before = numbers_of(copied)
    for name in (LORA[1], LORA[3]):
        path = copied / "cells" / f"{name}.json"
        path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    executor = Inline(bench=bench)
    assert run_inline(done[0], copied, executor, resume=True) == {}
    assert executor.ran == [LORA[1], LORA[3]]
    assert set(executor.steps.values()) == {0}  # their runs are whole
    assert numbers_of(copied) == before


def test_changed_cells_run_again_and_no_others(done, copied, toy_study, tmp_path, bench):
    before = records_of(copied)
    toy_study["recipes"]["private"] = {"training": {"weight_decay": 0.5}}
    grid = grid_of(tmp_path, toy_study)
    executor = Inline(bench=bench)
    assert run_inline(grid, copied, executor, resume=True, changed=True) == {}
    assert executor.ran == PRIVATE
    after = records_of(copied)
    assert {name: after[name] for name in LORA} == {name: before[name] for name in LORA}
    for name in PRIVATE:
        assert after[name]["run"]["config"]["training"]["weight_decay"] == 0.5
        assert after[name]["cell"]["hash"] != before[name]["cell"]["hash"]
    del toy_study["recipes"]["lora"]
    alone = grid_of(tmp_path, {**toy_study, "baseline": "private"})
    assert run_inline(alone, tmp_path / "fresh", Inline(bench=bench)) == {}
    assert numbers_of(tmp_path / "fresh").items() <= numbers_of(copied).items()
    assert not list(copied.rglob("tmp-*"))


def test_two_studies_give_identical_numbers(done, tmp_path):
    assert run_inline(done[0], tmp_path / "again", Inline()) == {}
    assert numbers_of(tmp_path / "again") == numbers_of(done[1])


def test_jobs_say_what_they_need(done, tmp_path):
    jobs = []
    run_inline(done[0], tmp_path / "study", Inline(lambda job: jobs.append(job) or scored(job, 1)))
    assert Counter(job.needs for job in jobs) == {"lora": 4, "private": 4}
    for job in jobs:
        json.dumps(job.payload)  # plain data
        assert 900 * 2**20 < job.memory < 2**31
        assert "final" in job.id or job.payload["split"] == "validation"
    assert running.RUNS in jobs[0].payload["folder"]
