"""`coadapt study` and `coadapt compare`: what they print and write, and how they refuse."""

import copy
import json
import shutil

import pytest
from typer.testing import CliRunner

import coadapt.study
from coadapt.cli import app
from coadapt.study import Grid, compare, comparison, read_study, summarize
from coadapt.study.comparison import finite
from tests.study.fake_cells import assert_same
from tests.study.inline import study_of, write_study
from tests.toy_runs import content_of

GROUPS = ("lora-R8-n8", "private-R8-n8")
CELLS = sorted(
    f"{group}/{cell}.json"
    for group in GROUPS
    for cell in (
        "trial0_seed0", "final_seed0", "final_seed1",
        "final_seed0.predictions", "final_seed1.predictions",
    )
)  # fmt: skip


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refuse(*words) -> str:
    """Run a command that has to end with a mendable error, and return the error."""
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr[result.stderr.index("error: ") :].strip()


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "NUM_RESAMPLES", 25)
        yield


@pytest.fixture(scope="module")
def file(tiny_bert, toy_suite_files, tmp_path_factory):
    """The file of a study of six cells, of which two are trained as others are."""
    study = study_of(tiny_bert, copy.deepcopy(toy_suite_files))
    study["trials"] = study["trials"][1:]
    return write_study(tmp_path_factory.mktemp("cli"), study)


@pytest.fixture(scope="module")
def first(file):
    """What came of running it, in a folder beside it; not to be changed."""
    result = invoke("study", file, "--output", file.parent / "out", "--workers", "2")
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def folder(file, first, tmp_path):
    """The test's own copy of the study's folder."""
    return shutil.copytree(file.parent / "out", tmp_path / "copy")


def tables_in(text):
    """Return what is printed after the last cell and before the folder is named."""
    start = text.index("8 training rows a task, 4 tasks, rank budget 8: mean test score")
    return text[start : text.index("cells, summary.json and tables.md")]


# coadapt study -----------------------------------------------------------------------------


def test_study_says_what_it_does(file, first):
    text = first.stdout
    budget, _, rest = text.partition("2 groups: 2 trials on validation, 4 final runs on test\n")
    assert "budget of study 'toy', 2 seeds" in budget
    assert "100.0 %" in budget
    lines = rest.splitlines()
    ended = sorted(line.partition(":")[0].partition(" ")[2] for line in lines[:6])
    assert ended == sorted(
        f"{group}/{cell}"
        for group in GROUPS
        for cell in ("trial0_seed0", "final_seed0", "final_seed1")
    )
    assert [line.partition(" ")[0] for line in lines[:6]] == [f"{i}/6" for i in range(1, 7)]
    assert all(": finished in " in line for line in lines[:6])
    shown = tables_in(text)
    assert "less lora" in shown
    assert "± 95 % over 2 seeds" in " ".join(shown.split())
    assert "…" not in text
    out = file.parent / "out"
    assert text.endswith(f"cells, summary.json and tables.md (more tables) are in {out}\n")


def test_study_writes_its_cells_summary_and_tables(file, first):
    out = file.parent / "out"
    cells = sorted(
        path.relative_to(out / "cells").as_posix() for path in (out / "cells").rglob("*.json")
    )
    assert cells == CELLS
    names = {path.name for path in out.iterdir()}
    assert names >= {"study.json", "cells", "runs", "logs", "summary.json", "tables.md"}

    def refuse_constant(name):
        raise AssertionError(name)

    summary = json.loads((out / "summary.json").read_text("utf-8"), parse_constant=refuse_constant)
    grid = Grid(*read_study(file), str(file))
    assert summary == finite(summarize(grid, out))
    assert summary["missing"] == {}
    text = (out / "tables.md").read_text(encoding="utf-8")
    for title in ("budget of study", "mean test score", "what it took", "test score by task"):
        assert title in text
    # The first seed's final run was trained as a trial; the other one anew.
    for group in GROUPS:
        runs = sorted(path.name for path in (out / "runs" / group).iterdir() if path.is_dir())
        assert runs == ["trial0_seed0", "trial0_seed1"]


def test_study_is_not_run_over_another(file, first):
    out = file.parent / "out"
    before = content_of(out)
    error = refuse("study", file, "--output", out)
    assert f"{out} holds a study; go on with it (--resume) or choose another output" in error
    assert content_of(out) == before


def test_resuming_a_study_that_is_done_prints_the_same_tables(file, first, folder):
    before = content_of(folder)
    result = invoke("study", file, "--output", folder, "--resume")
    assert result.exit_code == 0, result.output
    assert "finished in" not in result.stdout
    assert tables_in(result.stdout) == tables_in(first.stdout)
    assert content_of(folder) == before


def test_study_with_missing_cells_ends_with_1_and_lists_them(file, folder):
    path = folder / "cells/private-R8-n8/trial0_seed0.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["run"] |= {"status": "diverged", "error": "loss is nan"}
    path.write_text(json.dumps({**record, "metrics": {}}), encoding="utf-8")
    shutil.rmtree(folder / "runs")
    result = invoke("study", file, "--output", folder, "--resume")
    assert result.exit_code == 1, result.output
    assert "private-R8-n8: no final runs: every trial diverged" in result.stdout
    assert "cells without a result" in result.stdout
    shown = " ".join(result.stdout.split())
    for part in ("private-R8-n8/final_seed0, ", "private-R8-n8/final_seed1 ", "not run: every"):
        assert part in shown
    assert "error" not in result.stderr
    assert not (folder / "runs").exists()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["missing"]) == {f"private-R8-n8/final_seed{seed}" for seed in (0, 1)}


def test_study_that_has_changed_is_refused_unless_told(file, folder):
    words = ("study", file, "--output", folder, "--resume", "--set", "effect=0.5")
    error = refuse(*words)
    assert f"the study has changed since it was started in {folder}: study.effect" in error
    assert "--changed" in error
    result = invoke(*words, "--changed")
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "summary.json").read_text("utf-8"))["effect"] == 0.5


def test_what_cannot_be_is_said_before_anything_starts(file, tmp_path):
    out = tmp_path / "out"
    result = refuse("study", file, "-o", out, "--set", "recipes.x={recipe: privte}")
    assert result == (
        f"error: {file}: recipes.x: no recipe is named 'privte'; did you mean 'private'?"
    )
    assert "'seeds' is 5" not in refuse("study", file, "-o", out, "--set", "seeds=5")
    assert "cannot be read" in refuse("study", tmp_path / "no.yaml", "-o", out)
    assert "--set seeds: write key=value" in refuse("study", file, "-o", out, "--set", "seeds")
    data = refuse("study", file, "-o", out, "--data-root", tmp_path)
    assert f"{tmp_path}/sentiment/train.jsonl: no such file" in data
    assert not out.exists()


def test_what_is_left_out_is_said(file, folder):
    words = ("--set", "budgets=[8, 3]", "--set", "rows=[8]", "--resume", "--changed")
    # The baseline of the new budget would have to run; it diverges here before it starts.
    study, suite = read_study(file, ["budgets=[8, 3]"])
    grid = Grid(study, suite, str(file))
    for group in grid.groups:
        if group.budget == 3:
            comes = {"cell": {"hash": grid.trials(group)[0].hash}, "metrics": {}, "curve": []}
            run = {"run": {"status": "diverged", "error": "loss is nan"}}
            path = folder / "cells" / f"{grid.trials(group)[0].id}.json"
            path.parent.mkdir()
            path.write_text(json.dumps({**comes, **run}), encoding="utf-8")
    result = invoke("study", file, "--output", folder, *words)
    assert result.exit_code == 1, result.output
    left_out = "left out: private-R3-n8: a rank budget of 3 is smaller than the 4 blocks"
    assert left_out in result.stdout
    assert "not possible within the budget" in result.stdout


def test_study_hands_its_options_on(monkeypatch, tmp_path, file):
    told = {}

    def run_study(*args, **options):
        told.update(options, args=args)
        return {"tables": [], "over_tasks": [], "missing": {}, "infeasible": {}, "seeds": [0]}

    monkeypatch.setattr(coadapt.study, "run_study", run_study)
    words = ["--set", "a=1", "--set", "b=2", "--resume", "--changed", "--workers", 3]
    result = invoke("study", file, "-o", tmp_path, *words, "--data-root", tmp_path / "d")
    assert result.exit_code == 0, result.output
    assert [str(arg) for arg in told["args"]] == [str(file), str(tmp_path)]
    assert (told["resume"], told["changed"], told["workers"]) == (True, True, 3)
    assert (told["overrides"], told["data_root"]) == (["a=1", "b=2"], tmp_path / "d")
    invoke("study", file, "-o", tmp_path)
    assert (told["resume"], told["changed"], told["workers"]) == (False, False, None)
    assert (list(told["overrides"]), told["data_root"]) == ([], None)


def test_study_that_is_stopped_says_how_to_go_on(monkeypatch, tmp_path, file):
    def run_study(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(coadapt.study, "run_study", run_study)
    result = invoke("study", file, "--output", tmp_path)
    assert result.exit_code == 130
    assert "stopped; go on with --resume; finished cells are in" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_workers_are_a_number(workers, tmp_path):
    result = invoke("study", "s.yaml", "--output", tmp_path / "x", "--workers", workers)
    assert result.exit_code == 2
    assert "--workers" in result.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("study", ["--output", "--set", "--resume", "--changed", "--workers", "--data-root"]),
        ("compare", ["--baseline", "--json", "folders"]),
    ],
)
def test_help_names_the_options(command, words):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    for word in words:
        assert word in result.stdout.lower()


# coadapt compare ---------------------------------------------------------------------------


def test_compare_prints_runs_and_equals_the_library(file, first):
    runs = file.parent / "out" / "runs"
    paths = [runs / group / f"trial0_seed{seed}" for group in GROUPS for seed in (0, 1)]
    result = invoke("compare", *paths)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "4 tasks: mean test score over the tasks, ± 95 % over 2 seeds" in shown
    assert "test score by task, 2 seeds" in shown
    assert f"private-R8: {paths[2]}, {paths[3]}" in result.stdout.splitlines()[-1]
    printed = invoke("compare", *paths, "--json")
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == compare(paths)
    # They are the study's own numbers.
    (ours,) = compare(paths)["tables"]
    (whole,) = json.loads((runs.parent / "summary.json").read_text(encoding="utf-8"))["tables"]
    for key in ("mean", "low", "difference", "task_differences", "win", "tie", "loss", "sd"):
        assert_same(ours["arms"][1][key], whole["arms"][1][key], key)


def test_compare_writes_json_without_nan(file, first):
    runs = file.parent / "out" / "runs"
    paths = [runs / group / "trial0_seed0" for group in GROUPS]
    result = invoke("compare", *paths, "--json", "--baseline", "private-R8")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
    assert found == compare(paths, baseline="private-R8")
    assert found["tables"][0]["arms"][0]["difference"]["p_value"] is None


def test_compare_studies(file, first, folder):
    out = file.parent / "out"
    result = invoke("compare", out, folder)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "copy: lora-R8-n8" in shown
    assert "+0.000 ±0.000" in shown
    found = invoke("compare", out, folder, "--json").stdout
    assert json.loads(found) == compare([out, folder])


def test_compare_refuses_what_it_cannot(file, first, tmp_path):
    out = file.parent / "out"
    run = out / "runs" / GROUPS[0] / "trial0_seed0"
    assert "give two runs or more" in refuse("compare", run)
    assert "not some of each" in refuse("compare", run, out)
    assert "neither a run" in refuse("compare", run, tmp_path)
    other = out / "runs" / GROUPS[1] / "trial0_seed0"
    error = refuse("compare", run, other, "--baseline", "privat-R8")
    assert error == "error: no arm is called 'privat-R8'; did you mean 'private-R8'?"
    assert invoke("compare").exit_code == 2
