"""`coadapt compare`: runs paired by seed and test row, studies arm by arm."""

import json
import logging
import os
import shutil

import numpy as np
import pytest

import coadapt
from coadapt import InputError
from coadapt.study import compare, comparison
from tests.reference import slow_summary as slow
from tests.study.fake_cells import METRICS, NUM_RESAMPLES, QUALITY, assert_same, fake_study
from tests.toy_runs import QUICK, content_of, train_toy

TRIAL = {"recipes": {"lora": None, "private": None}, "plans": {}, "budgets": [8]}


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "NUM_RESAMPLES", NUM_RESAMPLES)
        yield


@pytest.fixture(scope="module")
def runs(tiny_bert, toy_suite_files, tmp_path_factory):
    """A folder with runs of two steps, scored on test; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    fast = {**QUICK, "learning_rate": 2e-2}
    two = {**toy_suite_files, "tasks": {t: toy_suite_files["tasks"][t] for t in ("same", "topic")}}
    for name, suite, recipe, options in (
        ("lora0", toy_suite_files, "lora", {}),
        # A study draws other training rows for another seed.
        ("lora1", {**toy_suite_files, "draw": 1}, "lora", {"seed": 1}),
        ("private0", toy_suite_files, "private", {}),
        ("private1", toy_suite_files, "private", {"seed": 1, "training": QUICK}),
        ("fast0", toy_suite_files, "lora", {"training": fast}),
        ("frozen0", two, "frozen", {"training": fast}),
        ("fewer0", {**toy_suite_files, "max_rows": {"test": 3}}, "lora", {}),
    ):
        train_toy(tiny_bert, suite, folder / name, recipe, **options).evaluate(num_resamples=0)
    return folder


def slow_arm(name, folders, tasks=METRICS):
    """Return an arm of runs as it can be read from their files, by seed in order."""
    arm = slow.SlowArm(name=name)
    for seed, folder in enumerate(folders):
        found = json.loads((folder / "predictions-test.json").read_text(encoding="utf-8"))
        arm.predictions[seed] = {t: (found[t]["labels"], found[t]["predicted"]) for t in tasks}
        arm.scores[seed] = {
            t: slow.score(METRICS[t], *both) for t, both in arm.predictions[seed].items()
        }
    return arm


def wanted_table(arms, tasks=METRICS, effect=0.01):
    """Return a table of the arms, the first being the baseline."""
    for arm in arms:
        arm.predictions = {
            seed: {t: (np.array(a), np.array(b)) for t, (a, b) in found.items()}
            for seed, found in arm.predictions.items()
        }
    metrics = {task: METRICS[task] for task in tasks}
    options = {"effect": effect, "num_resamples": NUM_RESAMPLES}
    found = slow.compare(arms[1:], arms[0], metrics, **options)
    table = {
        "rows": None, "subset": None, "budget": None, "tasks": list(tasks),
        "baseline": arms[0].name, "partitions": [],
        "arms": [{**slow.describe(arm, tasks), **found.get(arm.name, {})} for arm in arms],
    }  # fmt: skip
    return none_for_nan(table)


def none_for_nan(value):
    if isinstance(value, dict):
        return {key: none_for_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [none_for_nan(item) for item in value]
    return None if value != value else value


def names_of(found):
    return [row["arm"] for row in found["tables"][0]["arms"]]


def refuse(*paths, **options):
    with pytest.raises(InputError) as raised:
        compare(paths, **options)
    return str(raised.value)


# Runs --------------------------------------------------------------------------------------


def test_runs_of_several_seeds_are_arms_and_equal_the_oracle(runs):
    paths = [runs / name for name in ("private1", "lora0", "private0", "lora1")]
    found = compare(paths, effect=0.3)
    private = slow_arm("private-R8", [runs / "private0", runs / "private1"])
    lora = slow_arm("lora-R8", [runs / "lora0", runs / "lora1"])
    assert_same(found["tables"], [wanted_table([private, lora], effect=0.3)])
    assert found["notes"] == [
        f"private-R8: {runs / 'private1'}, {runs / 'private0'}",
        f"lora-R8: {runs / 'lora0'}, {runs / 'lora1'}",
    ]
    assert found["tables"][0]["arms"][1]["difference"]["num"] == 2


def test_runs_of_one_seed_leave_open_what_seeds_would_do(runs):
    found = compare([str(runs / "lora0"), str(runs / "private0")])
    arms = slow_arm("lora-R8", [runs / "lora0"]), slow_arm("private-R8", [runs / "private0"])
    assert_same(found["tables"], [wanted_table(arms)])
    row = found["tables"][0]["arms"][1]
    assert [row["low"], row["sd"], row["difference"]["p_holm"]] == [None] * 3
    assert len(row["difference"]["rows"]) == 2
    json.dumps(found, allow_nan=False)
    assert coadapt.compare([runs / "lora0", runs / "private0"]) == found


def test_seeds_that_only_one_arm_has_are_not_paired(runs):
    found = compare([runs / name for name in ("lora0", "lora1", "private1")])
    lora, private = found["tables"][0]["arms"]
    assert (lora["seeds"], private["seeds"]) == ([0, 1], [1])
    assert private["difference"]["num"] == 1
    difference = private["scores"][0] - lora["scores"][1]
    assert private["difference"]["mean"] == pytest.approx(difference)


def test_baseline_by_name(runs):
    paths = [runs / "lora0", runs / "private0"]
    found = compare(paths, baseline="private-R8")["tables"][0]
    assert found["baseline"] == "private-R8"
    assert ["difference" in row for row in found["arms"]] == [True, False]
    message = refuse(*paths, baseline="privat-R8")
    assert "no arm is called 'privat-R8'; did you mean 'private-R8'?" in message


def test_arms_of_one_recipe_are_told_apart_by_what_differs(runs, tmp_path):
    found = compare([runs / "fast0", runs / "lora0", runs / "lora1"])
    assert names_of(found) == ["lora-R8", "lora-R8 (learning_rate not set)"]
    found = compare([runs / "lora0", runs / "fast0"])
    assert names_of(found) == ["lora-R8", "lora-R8 (learning_rate=0.02)"]
    other = shutil.copytree(runs / "fast0", tmp_path / "other")
    config = other / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("bucket: 16", "bucket: 1"), encoding="utf-8")
    names = names_of(compare([runs / "lora0", runs / "fast0", other]))
    assert names == [
        "lora-R8",
        "lora-R8 (learning_rate=0.02)",
        "lora-R8 (bucket=1, learning_rate=0.02)",
    ]


def test_runs_of_other_test_rows_are_refused(runs):
    message = refuse(runs / "lora0", runs / "fewer0")
    assert "fewer0 and " in message
    assert "were tested on other rows of task 'sentiment'" in message


def test_runs_are_compared_on_the_tasks_that_all_have(runs):
    found = compare([runs / "lora0", runs / "frozen0"])
    tasks = ["topic", "same"]
    assert found["tables"][0]["tasks"] == tasks
    arms = [
        slow_arm("lora-R8", [runs / "lora0"], tasks),
        slow_arm("frozen", [runs / "frozen0"], tasks),
    ]
    assert_same(found["tables"], [wanted_table(arms, tasks)])
    assert found["notes"][-1] == "left out, since not every run has it: degree, sentiment"


def test_runs_without_a_common_task_are_refused(runs, tiny_bert, toy_suite_dict, tmp_path):
    suite = {**toy_suite_dict, "tasks": {"degree": toy_suite_dict["tasks"]["degree"]}}
    train_toy(tiny_bert, suite, tmp_path / "run")
    assert "no task in common" in refuse(runs / "frozen0", tmp_path / "run")


def test_a_run_that_was_not_scored_is_scored(runs, tmp_path, caplog):
    copy = shutil.copytree(runs / "private0", tmp_path / "copy")
    (copy / "predictions-test.json").unlink()
    with caplog.at_level(logging.WARNING):
        found = compare([runs / "lora0", copy])
    assert f"{copy} has not been scored on test; doing so" in caplog.text
    assert found["tables"] == compare([runs / "lora0", runs / "private0"])["tables"]
    assert (copy / "predictions-test.json").read_bytes() == (
        runs / "private0" / "predictions-test.json"
    ).read_bytes()


def test_comparing_scored_runs_changes_nothing(runs):
    before = content_of(runs)
    compare([runs / "lora0", runs / "lora1", runs / "fast0"])
    assert content_of(runs) == before


def test_folders_that_cannot_be_compared(runs, tmp_path, monkeypatch):
    lora = runs / "lora0"
    assert "give two runs or more, or two studies or more" in refuse(lora)
    assert "give two runs or more" in refuse()
    assert "a folder is named twice" in refuse(lora, lora)
    monkeypatch.chdir(runs)
    assert "a folder is named twice" in refuse(lora, "lora0")
    assert "a folder is named twice" in refuse("private0/../lora0", lora)
    os.symlink(lora, tmp_path / "link")
    assert "a folder is named twice" in refuse(lora, tmp_path / "link")
    shutil.copytree(lora, tmp_path / "copy")
    message = refuse(lora, tmp_path / "copy")
    assert f"the same run stands more than once: {lora}, {tmp_path / 'copy'}" in message
    assert f"{tmp_path} is neither a run (no config.yaml) nor a study" in refuse(lora, tmp_path)
    assert "neither a run" in refuse(lora, "no/such/folder")


def test_a_run_that_has_not_finished_is_refused(runs, tmp_path):
    copy = shutil.copytree(runs / "private0", tmp_path / "copy")
    text = (copy / "result.json").read_text(encoding="utf-8")
    (copy / "result.json").write_text(text.replace('"finished"', '"failed"'), encoding="utf-8")
    message = refuse(runs / "lora0", copy)
    assert f"run {copy} is marked 'failed'; finish it with" in message


# Studies -----------------------------------------------------------------------------------


@pytest.fixture
def make(tiny_bert, toy_suite_files, tmp_path):
    """Returns a study that nobody has run, in a folder of that name."""

    def make(name, **keys):
        (tmp_path / name).mkdir()
        return fake_study(tmp_path / name, tiny_bert, toy_suite_files, **{**TRIAL, **keys})

    return make


def test_studies_are_compared_group_by_group(make):
    old = make("old", recipes=["lora", "private", "frozen"])
    new = make("new", quality={**QUALITY, "lora": 0.95, "private": 0.1}, seeds=[0, 2, 5])
    third = make("third", quality=QUALITY)
    paths = [
        fake.folder.rename(fake.folder.with_name(f"{fake.folder.parent.name}_out"))
        for fake in (old, new, third)
    ]
    found = compare(paths, effect=0.3)
    assert len(found["tables"]) == 2
    for table, group in zip(found["tables"], ("lora-R8-n8", "private-R8-n8"), strict=True):
        arms = [fake.arms[group] for fake in (old, new, third)]
        for arm, path in zip(arms, paths, strict=True):
            arm.name = f"{path.name}: {group}"
        assert_same(table, wanted_table(arms, effect=0.3))
        assert [row["seeds"] for row in table["arms"]] == [[0, 1, 2], [0, 2, 5], [0, 1, 2]]
        assert table["arms"][1]["difference"]["num"] == 2
    assert found["notes"] == ["not in every study: frozen-n8"]
    assert found["tables"][0]["arms"][1]["difference"]["mean"] > 0
    assert found["tables"][1]["arms"][1]["difference"]["mean"] < 0


def test_studies_in_folders_of_the_same_name_are_told_apart(make):
    old, new = make("old"), make("new", quality={**QUALITY, "lora": 0.95})
    assert old.folder.name == new.folder.name
    for table in compare([old.folder, new.folder])["tables"]:
        first, second = table["arms"]
        assert first["arm"] == table["baseline"]
        assert first["arm"].startswith(f"{old.folder}: ")
        assert second["arm"].startswith(f"{new.folder}: ")
        assert "difference" not in first
        assert second["difference"]["num"] == 3


def test_of_a_study_only_finished_cells_count(make):
    old, new = make("old"), make("new")
    path = new.folder / "cells/lora-R8-n8/final_seed1.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["run"]["status"] = "failed"
    path.write_text(json.dumps(record), encoding="utf-8")
    found = compare([old.folder, new.folder])["tables"][0]
    assert [row["seeds"] for row in found["arms"]] == [[0, 1, 2], [0, 2]]
    # What is equal differs by nothing, on all rows and seeds.
    difference = found["arms"][1]["difference"]
    assert [difference[k] for k in ("mean", "low", "high", "p_value")] == [0.0, 0.0, 0.0, 1.0]
    assert difference["rows"] == [0.0, 0.0]
    assert difference["outcome"] == "tie"


def test_studies_that_cannot_be_compared(make, runs):
    old, other = make("old"), make("other", labels_seed=1)
    message = refuse(old.folder, other.folder)
    assert f"{other.folder} and {old.folder} were tested on other rows of task" in message
    frozen = make("frozen", recipes=["frozen"], baseline="frozen")
    message = refuse(old.folder, frozen.folder)
    assert "the studies have no finished group of the same name" in message
    assert "not some of each" in refuse(old.folder, runs / "lora0")
    assert "two studies or more" in refuse(old.folder)
    same = make("same")
    message = refuse(old.folder, same.folder, baseline="lora-R8")
    assert "baseline 'lora-R8': studies are compared with the first one" in message
