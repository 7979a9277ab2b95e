"""The report of one run, and of runs beside each other."""

import json
import shutil

import pytest

from coadapt import InputError
from coadapt._files import read_json
from coadapt.reporting import collect, render
from tests.reporting.pages import check
from tests.toy_runs import TRAINING, train_toy


@pytest.fixture(scope="module")
def runs(tiny_bert, toy_suite_files, tmp_path_factory):
    """A folder with a scored run of private adapters, exported, and one of LoRA."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"eval_strategy": "steps", "eval_steps": 6, "num_train_epochs": 2}
    run = train_toy(
        tiny_bert, toy_suite_files, folder / "private", "private", budget=8,
        training={**TRAINING, **options},
    )  # fmt: skip
    run.evaluate()
    run.export(folder / "private" / "shipped")
    train_toy(tiny_bert, toy_suite_files, folder / "lora").evaluate()
    return folder


@pytest.fixture
def copied(runs, tmp_path):
    return shutil.copytree(runs, tmp_path / "runs")


def test_a_run_s_page(runs):
    data = collect(runs / "private")
    page = check(render(data))
    scores = read_json(runs / "private/result.json")["metrics"]["test"]
    first = [next(iter(found["metrics"].values()))["value"] for found in scores.values()]
    assert f"**{sum(first) / len(first):.3f}** on average over 4 tasks" in data["answer"][0]
    assert "`coadapt export private` writes stock PEFT LoRA folders" in data["answer"][-1]
    assert page.titles == [
        "Scores", "Who shares", "Training", "What it took", "Serving", "Configuration", "Made with",
    ]  # fmt: skip
    text = page.of("main")[0]["text"]
    assert all(task in text for task in scores)
    assert "adapters/sentiment" in text
    panels = {e["text"] for e in page.of("text")}
    assert {"training loss by task", "validation score by task", "step"} <= panels


def test_what_inference_took(runs):
    """The rows a second are those of the times that scoring measured."""
    result = read_json(runs / "private/result.json")
    took, scores = result["inference"]["test"], result["metrics"]["test"]
    tasks = took["tasks"]
    assert {task: one["rows"] for task, one in tasks.items()} == {
        task: one["num_rows"] for task, one in scores.items()
    }
    assert {one["batch"] for one in tasks.values()} == {"64 rows"}
    assert took["dtype"] == "float32"
    assert took["peak_memory_mib"] > 50  # an interpreter with torch
    number, seconds = (sum(one[key] for one in tasks.values()) for key in ("rows", "seconds"))
    (table,) = tables(collect(runs / "private"), "what inference took")
    cells = dict(zip(table["columns"], table["rows"][0], strict=True))
    assert cells["rows"] == str(number)
    assert cells["rows/s"] == f"{number / seconds:,.0f}"
    assert cells["machine"] == result["environment"]["device"]
    (both,) = tables(collect(runs), "what inference took")
    assert [row[0] for row in both["rows"]] == ["lora", "private"]
    assert any("Compare speeds only" in note for note in both["notes"])


def test_of_a_run_scored_before_it_was_measured_no_speed_is_told(copied):
    for name in ("lora", "private"):
        file = copied / name / "result.json"
        result = read_json(file)
        del result["inference"]
        file.write_text(json.dumps(result), encoding="utf-8")
    assert tables(collect(copied), "what inference took") == []


def tables(data, start):
    return [
        part
        for section in data["sections"]
        for part in section["parts"]
        if part["kind"] == "table" and part["title"].startswith(start)
    ]


def test_runs_beside_each_other(runs):
    data = collect(runs)
    page = check(render(data))
    assert data["kind"] == "runs"
    assert "One seed each: this does not show which is better" in data["answer"][1]
    heads = [e["text"] for e in page.of("th") if "thead" in e["within"]]
    assert heads[:3] == ["task", "lora", "private"]


def test_ranks_by_layer(copied):
    plan = read_json_yaml(copied / "private/plan.yaml")
    modules = [f"encoder.layer.{i}.attention.self.{m}" for i in (0, 1) for m in ("query", "value")]
    blocks = list(plan["blocks"])
    plan["ranks"] = {
        module: {block: 1 + (index + place) % 3 for place, block in enumerate(blocks)}
        for index, module in enumerate(modules)
    }
    (copied / "private/plan.yaml").write_text(json.dumps(plan), encoding="utf-8")
    page = check(render(collect(copied / "private")))
    alts = " ".join(e["text"] for e in page.of("title") if "svg" in e["within"])
    assert "rank by layer" in alts


def read_json_yaml(path):
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("status", ["failed", "unfinished", "unscored"])
def test_runs_that_did_not_come_to_an_end(status, copied):
    folder = copied / "private"
    result = read_json(folder / "result.json")
    if status == "failed":
        result["run"] |= {"status": "failed", "error": "RuntimeError: <i>no memory</i>"}
        result["train"], result["metrics"] = None, {}
    if status == "unscored":
        result["metrics"] = {}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    if status == "unfinished":
        (folder / "result.json").unlink()
        (folder / "metrics.jsonl").unlink()
    data = collect(folder)
    page = check(render(data))
    told = " ".join(data["answer"])
    assert {"failed": "--resume", "unfinished": "--resume", "unscored": "coadapt evaluate"}[
        status
    ] in told
    assert "Scores" not in page.titles
    assert ("What went wrong" in page.titles) == (status == "failed")
    if status == "failed":
        assert "<i>no memory</i>" in page.of("main")[0]["text"]
    # Beside a run that has been scored it is named.
    assert any("private is" in line for line in collect(copied)["answer"]) == (status != "unscored")


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(copied):
    with (copied / "private/metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 99, "loss_topic": 0.')
    assert "Training" in check(render(collect(copied / "private"))).titles


def test_a_log_that_is_damaged_is_told_with_its_line(copied):
    file = copied / "private/metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([lines[0], '{"step": 2, "loss": }', *lines[1:]]), encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2: not JSON"):
        collect(copied / "private")


def test_losses_that_are_no_numbers_are_left_out(copied):
    with (copied / "private/metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 99, "loss_topic": NaN}\n{"epoch": 1}\n')
    data = collect(copied / "private")
    assert "NaN" not in json.dumps(data)
    check(render(data))


def test_a_run_that_is_not_scored_shows_its_validation_curves(copied):
    result = read_json(copied / "private/result.json")
    result["metrics"] = {}
    (copied / "private/result.json").write_text(json.dumps(result), encoding="utf-8")
    page = check(render(collect(copied / "private")))
    assert "validation score by task" in {e["text"] for e in page.of("text")}


def test_pictures_that_were_drawn_of_a_run_are_shown(copied):
    folder = copied / "private/analysis"
    folder.mkdir()
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><title>Heads, by module.</title></svg>'
    (folder / "head_similarity.svg").write_text(svg, encoding="utf-8")
    page = check(render(collect(copied / "private")))
    assert "Looking inside" in page.titles
    (shown,) = page.of("img")
    assert shown["alt"] == "Heads, by module."
