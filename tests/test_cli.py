"""The command line, in process: what it writes, what it prints, and how it refuses."""

import json
import os
import subprocess
import sys
from typing import get_args

import pytest
import yaml

import coadapt
from coadapt.adapters import DependsOn
from coadapt.config import dump_yaml
from coadapt.structures.base import ShipsAs
from coadapt.verbs.running import _blocks_of
from tests.invoking import invoke, refuse, succeed
from tests.toy_runs import QUICK, content_of, model_of, result_of, tensors_of

TASKS = ("sentiment", "topic", "same", "degree")


@pytest.fixture
def files(tiny_bert, toy_suite_dict, tmp_path):
    """A folder with train.yaml, and suites/toy.yaml that it names."""
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "toy.yaml").write_text(dump_yaml(toy_suite_dict), encoding="utf-8")
    write(tmp_path / "train.yaml", tiny_bert)
    return tmp_path


def write(path, folder, **keys):
    """Write a train.yaml with some keys of its own."""
    data = {
        "model": model_of(folder),
        "suite": "suites/toy.yaml",
        "recipe": "lora",
        "training": QUICK,
        **keys,
    }
    path.write_text(dump_yaml({k: v for k, v in data.items() if v is not None}), encoding="utf-8")


def config_of(run):
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tiny_bert, toy_suite_files, tmp_path_factory):
    """The folder of a run that the command line trained."""
    folder = tmp_path_factory.mktemp("cli")
    write(folder / "train.yaml", tiny_bert, suite=toy_suite_files, recipe="private")
    text = succeed("train", folder / "train.yaml", "--output", folder / "run")
    (folder / "printed.txt").write_text(text, encoding="utf-8")
    return folder / "run"


# train -------------------------------------------------------------------------------------


def test_train_writes_a_run_and_says_what_it_did(run):
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "plan.yaml",
        "metrics.jsonl",
        "adapter",
        "result.json",
    }
    assert result_of(run)["run"]["status"] == "finished"
    printed = (run.parent / "printed.txt").read_text(encoding="utf-8")
    assert "private: 2 steps" in printed
    for task in TASKS:
        assert f"{task} (2, " in printed  # its block of rank 2
    assert f"coadapt evaluate {run}\n" in printed


def test_train_equals_the_library(files, tiny_bert, run, toy_suite_dict):
    coadapt.train(
        model_of(tiny_bert), toy_suite_dict, "private", output=files / "api", training=QUICK
    )
    ours, theirs = tensors_of(run / "adapter"), tensors_of(files / "api" / "adapter")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_set_reaches_every_part(files):
    succeed(
        *("train", files / "train.yaml", "-o", files / "run", "--seed", 7),
        *("--set", "training.learning_rate=1e-3", "--set", "training.max_steps=1"),
        *("--set", "recipe.structure.dropout=0.1", "--set", "mixing.kind=uniform"),
        *("--set", "suite.tasks.topic.max_rows=5", "--set", "budget=3"),
        *("--set", "model.pooling=mean", "--set", "best=topic"),
    )
    config = config_of(files / "run")
    assert config["training"]["learning_rate"] == 0.001
    assert config["recipe"]["structure"] == {
        "kind": "single",
        "scale": 2.0,
        "dropout": 0.1,
        "dropout_at": "z",
        "dropout_samples": 1,
    }
    assert config["recipe_name"] == "lora"
    assert config["mixing"] == {"kind": "uniform"}
    assert config["plan"]["blocks"]["shared"]["rank"] == 3
    assert config["model"]["pooling"] == "mean"
    assert (config["seed"], config["best"]) == (7, "topic")
    assert config["suite"]["tasks"]["topic"]["max_rows"] == 5
    done = result_of(files / "run")
    assert done["train"]["steps"] == 1
    assert done["run"]["seed"] == 7


def test_seed_decides_the_adapters(files):
    for seed in (1, 2):
        succeed("train", files / "train.yaml", "-o", files / str(seed), "--seed", seed)
    first, second = (tensors_of(files / seed / "adapter") for seed in ("1", "2"))
    drawn = [name for name in first if name.endswith(("/A", "/weight"))]
    assert drawn
    assert not any(first[name].equal(second[name]) for name in drawn)


def test_resume_of_a_finished_run_leaves_it(files):
    words = ("train", files / "train.yaml", "--output", files / "run")
    succeed(*words)
    before = content_of(files / "run")
    assert "holds another run" in refuse(*words)
    assert "2 steps" in succeed(*words, "--resume")
    assert content_of(files / "run") == before
    message = refuse(*words, "--resume", "--set", "training.max_steps=3", "--seed", 1)
    assert "another configuration (changed: seed, training.max_steps)" in message
    assert content_of(files / "run") == before


def test_plan_file_and_suite_lie_beside_the_file(files, tiny_bert, monkeypatch, tmp_path_factory):
    blocks = {"texts": {"rank": 3, "tasks": ["sentiment", "topic", "degree"]}}
    blocks["pairs"] = {"rank": 1, "tasks": ["same"]}
    (files / "plan.yaml").write_text(dump_yaml({"blocks": blocks}), encoding="utf-8")
    write(files / "train.yaml", tiny_bert, recipe="clustered", plan="plan.yaml")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    succeed("train", files / "train.yaml", "--output", files / "run")
    assert config_of(files / "run")["plan"] == {"blocks": blocks, "ranks": {}}
    written = yaml.safe_load((files / "run" / "plan.yaml").read_text(encoding="utf-8"))
    assert written == {"blocks": blocks, "ranks": {}}


def test_data_root_replaces_the_sources(files, toy_suite_dict):
    for task, fields in toy_suite_dict["tasks"].items():
        folder = files / "data" / task
        folder.mkdir(parents=True)
        with open(fields["data"], encoding="utf-8") as file:
            lines = file.readlines()
        (folder / "train.jsonl").write_text("".join(lines[:28]), encoding="utf-8")
        (folder / "test.jsonl").write_text("".join(lines[28:]), encoding="utf-8")
    words = ("train", files / "train.yaml", "-o", files / "run", "--data-root", files / "data")
    succeed(*words)
    data = config_of(files / "run")["suite"]["tasks"]["topic"]["data"]
    assert data["path"]["train"] == str(files / "data" / "topic" / "train.jsonl")
    (files / "data" / "same" / "train.jsonl").unlink()
    words = ("train", files / "train.yaml", "-o", files / "new", "--data-root", files / "data")
    assert "task 'same'" in refuse(*words)


# evaluate ----------------------------------------------------------------------------------


def test_evaluate_prints_a_table(run):
    printed = succeed("evaluate", run)
    assert all(task in printed for task in TASKS)
    assert "95 %" in printed
    assert "spearman" in printed


@pytest.mark.parametrize("split", ["test", "validation"])
def test_evaluate_prints_json(split, run):
    found = json.loads(succeed("evaluate", run, "--json", "--split", split, "--dtype", "float32"))
    assert found["split"] == split
    assert list(found["tasks"]) == list(TASKS)
    for scores in found["tasks"].values():
        for score in scores["metrics"].values():
            assert score.keys() == {"value", "low", "high"}
    assert result_of(run)["metrics"][split] == found["tasks"]


# predict -----------------------------------------------------------------------------------


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_predict_texts(run):
    rows = lines_of(
        succeed("predict", run, "--task", "topic", "--text", "a dog", "--text", "bread")
    )
    assert [row["label"] in ("animal", "food", "tool") for row in rows] == [True, True]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "stdin"])
def test_predict_files(kind, run, tmp_path):
    texts = ["the good dog", "awful soup", "größer"]
    if kind == "jsonl":
        raw = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    else:
        raw = "\n".join(texts) + "\n"
    path = tmp_path / f"in.{kind}"
    path.write_text(raw, encoding="utf-8")
    source = "-" if kind == "stdin" else path
    words = ("predict", run, "--task", "sentiment", "--input", source)
    printed = succeed(*words, stdin=raw.encode() if kind == "stdin" else None)
    assert lines_of(printed) == coadapt.load_run(run).predict(texts, task="sentiment")


def test_predict_writes_jsonl(run, tmp_path):
    words = ("predict", run, "--task", "degree", "--text", "good", "--text", "bad")
    assert succeed(*words, "--output", tmp_path / "out.jsonl") == ""
    rows = lines_of((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert [row.keys() for row in rows] == [{"value"}, {"value"}]
    assert "cannot be written" in refuse(*words, "--output", tmp_path / "no" / "out.jsonl")


def test_predict_pairs(run, tmp_path):
    rows = [{"first": "a dog", "second": "a cat"}, {"first": "a dog", "second": "a saw"}]
    raw = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "in.jsonl").write_text(raw, encoding="utf-8")
    words = ("predict", run, "--task", "same", "--input")
    found = lines_of(succeed(*words, tmp_path / "in.jsonl"))
    assert [row["label"] in ("other", "same") for row in found] == [True, True]
    assert lines_of(succeed(*words, "-", stdin=raw.encode())) == found
    (tmp_path / "in.txt").write_text("\na dog\n", encoding="utf-8")
    assert "in.txt, line 2: task 'same' takes first, second; give JSONL" in refuse(
        *words, tmp_path / "in.txt"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "topci", "--text", "a"), "no task 'topci'; did you mean 'topic'?"),
        (("--task", "topic"), "give either --text or --input"),
        (("--task", "topic", "--text", "a", "--input", "b"), "give either --text or --input"),
        (("--task", "topic", "--input", "no.txt"), "no.txt does not exist"),
        (("--task", "same", "--text", "a"), "row 1: task 'same' takes a pair of texts"),
    ],
    ids=["task", "neither", "both", "no-file", "pair"],
)
def test_predict_refuses(words, message, run):
    assert message in refuse("predict", run, *words)


# methods -----------------------------------------------------------------------------------


def test_methods_as_json():
    rows = json.loads(succeed("methods", "--json"))
    assert [row["name"] for row in rows] == list(coadapt.RECIPES)
    keys = {"name", "paper", "summary", "depends_on", "ships_as", "mergeable"}
    for row in rows:
        assert row.keys() == keys
        assert row["depends_on"] in get_args(DependsOn) == ("nothing", "task", "token")
        assert row["ships_as"] in get_args(ShipsAs)
        assert set(get_args(ShipsAs)) == {"lora", "dora", "merged", "runtime", "none"}
        exact = row["ships_as"] == "lora" and row["depends_on"] != "token"
        assert row["mergeable"] is exact
        assert row["paper"]
        assert row["summary"]
    by_name = {row["name"]: (row["depends_on"], row["ships_as"]) for row in rows}
    assert by_name["lora"] == ("nothing", "lora")
    assert by_name["private"] == by_name["shared_private"] == ("task", "lora")
    assert by_name["frozen"] == ("nothing", "none")


def test_methods_as_a_table():
    printed = succeed("methods")
    assert all(name in printed for name in ("full", "lora", "private"))


# Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["recipe=lorra"], "no recipe is named 'lorra'; did you mean 'lora'?"),
        (["batchs=mixed"], "unknown key 'batchs'; did you mean 'batches'?"),
        (["model.poling=mean"], "unknown key 'model.poling'; did you mean 'pooling'?"),
        (["recipe.structure.kind=singel"], "unknown kind 'singel'; did you mean 'single'?"),
        (["recipe.structure.scal=1"], "unknown key 'recipe.structure.scal'"),
        (["training.learnin_rate=1"], "unknown key 'training.learnin_rate'; did you mean"),
        (['model.target_modules=["querry"]'], "is named 'querry'; did you mean 'query'?"),
        (["suite.tasks.topic.metrics=[acuracy]"], "unknown metric 'acuracy'; did you mean"),
        (["suite.tasks.topic.kindd=x"], "unknown key 'tasks.topic.kindd'; did you mean 'kind'?"),
        (["best=topci"], "best: 'topci' is neither 'overall' nor a task; did you mean 'topic'?"),
        (["mixing.kind=unifrom"], "unknown kind 'unifrom'; did you mean 'uniform'?"),
        (["budget=eight"], "budget must be a whole number, not 'eight'"),
        (["seed=zero"], "seed: found 'zero'; give a whole number"),
        (["=1"], "--set =1: write key=value"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_train_refuses_what_it_does_not_know(settings, message, files):
    words = [word for text in settings for word in ("--set", text)]
    before = content_of(files)
    assert message in refuse("train", files / "train.yaml", "-o", files / "run", *words)
    assert content_of(files) == before


def test_errors_name_the_file(files):
    (files / "train.yaml").write_text("model: x\nsuite: demo\nrecipe: lora\nrecipe: full\n")
    message = refuse("train", files / "train.yaml", "-o", files / "run")
    assert f"{files / 'train.yaml'}, line 4: the key 'recipe' stands in line 3 too" in message
    assert "missing.yaml: cannot be read" in refuse(
        "train", files / "missing.yaml", "-o", files / "run"
    )


@pytest.mark.parametrize("verb", [("evaluate",), ("predict", "--task", "topic", "--text", "a")])
def test_folder_that_is_no_run_is_refused(verb, files):
    assert "is no run: it has no config.yaml" in refuse(verb[0], files, *verb[1:])


def test_diverged_training_ends_without_a_traceback(files, monkeypatch):
    from coadapt._errors import TrainingDiverged
    from coadapt.training import MultiTaskTrainer

    def compute_loss(*_, **__):
        raise TrainingDiverged("the loss of task topic is not finite at step 1")

    monkeypatch.setattr(MultiTaskTrainer, "compute_loss", compute_loss)
    result = invoke("train", files / "train.yaml", "-o", files / "run")
    assert result.exit_code == 2
    assert "error: the loss of task topic is not finite" in result.stderr
    assert "Traceback" not in result.output


# Fresh processes ---------------------------------------------------------------------------


def test_version_in_a_fresh_process():
    done = subprocess.run(
        [sys.executable, "-m", "coadapt", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"coadapt {coadapt.__version__}"


def test_help_does_not_wait_for_torch():
    code = """
import sys
from typer.testing import CliRunner
from coadapt.cli import app
shown = CliRunner().invoke(app, ["--help"])
assert shown.exit_code == 0, shown.output
assert all(verb in shown.output for verb in ("train", "evaluate", "predict", "methods"))
slow = {"torch", "transformers", "peft", "datasets", "sklearn"} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr


# Heads, experts and compositions ------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "told"),
    [("hydra_lora", "head0 to head3 (8 each, 2)"), ("lora_moe", "expert0 to expert7 (8 each, 2)")],
)
def test_heads_and_experts_are_trained_told_of_and_not_exported(files, tiny_bert, recipe, told):
    write(files / "train.yaml", tiny_bert, recipe=recipe)
    succeed("train", files / "train.yaml", "-o", files / "run")
    assert _blocks_of(coadapt.load_run(files / "run"), "topic") == [told]
    succeed("evaluate", files / "run")
    for form in ("peft", "merged"):
        message = refuse("export", files / "run", "-o", files / "out", "--format", form)
        assert "keep the run itself" in message
    assert not (files / "out").exists()


def test_compose_writes_a_run_that_is_served_by_the_others_adapters(run, tmp_path):
    printed = succeed(
        *("compose", run, "--task", "topic", "-o", tmp_path / "composed"),
        *("--set", "budget=6", "--set", "compose=deltas"),
    )
    assert "topic: composed by" in printed
    assert "at zero weights" in printed
    found = result_of(tmp_path / "composed")["composition"]
    assert set(found["weights"]) == set(TASKS) - {"topic"}
    assert len(found["history"]) == 6
    succeed("evaluate", tmp_path / "composed")
    as_json = json.loads(
        succeed("compose", run, "--task", "topic", "-o", tmp_path / "again", "--json")
    )
    assert as_json["task"] == "topic"


def test_compose_says_what_is_wrong(run, files, tiny_bert):
    wrong = refuse("compose", run, "--task", "topc", "-o", files / "composed")
    assert "did you mean 'topic'" in wrong
    wrong = refuse("compose", run, "--task", "topic", "-o", files / "c", "--set", "shot=3")
    assert "unknown key 'shot'; did you mean 'shots'?" in wrong
    succeed("train", files / "train.yaml", "-o", files / "run")
    wrong = refuse("compose", files / "run", "--task", "topic", "-o", files / "c")
    assert "train with recipe private" in wrong
    assert not (files / "c").exists()
