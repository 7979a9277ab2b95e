"""Runs that gain and lose tasks, and what leaves them."""

import json

import pytest
import torch
from typer.testing import CliRunner

from coadapt import InputError, Run, load_run, load_suite
from coadapt.cli import app
from coadapt.tasks import FileSource, Task
from tests.toy_runs import train_toy


@pytest.fixture
def run(tiny_bert, toy_suite_dict, tmp_path) -> Run:
    trained = train_toy(tiny_bert, load_suite(toy_suite_dict), tmp_path / "run", "private")
    with torch.no_grad():  # two steps leave B near zero: a block's share must show in the output
        for layer in trained.model.attached.layers.values():
            for B in layer.B:
                B.normal_(generator=torch.Generator().manual_seed(len(B)))
    return trained


def language(tmp_path) -> Task:
    source = FileSource(path=str(tmp_path / "language.csv"))
    (tmp_path / "language.csv").write_text("text,label\n" + "ja,de\nyes,en\n" * 20)
    return Task(name="language", kind="classification", data=source, labels=("de", "en"))


def predictions(run: Run, names) -> dict[str, list]:
    found = {}
    for name in names:
        width = len(run.suite.task(name).columns)
        texts = ["good", "bad film"] if width == 1 else [("good", "bad"), ("a", "b")]
        found[name] = run.predict(texts, task=name)
    return found


def test_a_task_comes_and_goes_and_the_others_stay_to_the_bit(run, tmp_path):
    names = run.suite.names
    before = predictions(run, names)
    more = run.add_task(language(tmp_path), tmp_path / "more")
    assert predictions(more, names) == before
    assert more.predict(["ja"], task="language")[0]["label"] in ("de", "en")
    reopened = load_run(tmp_path / "more")
    assert predictions(reopened, names) == before
    assert reopened.config.plan is not None
    assert reopened.config.plan.blocks_of("language") == ("language",)
    less = reopened.remove_task(names[0], tmp_path / "less")
    assert predictions(less, names[1:]) == {name: before[name] for name in names[1:]}
    assert names[0] not in load_run(tmp_path / "less").suite.names
    derived = json.loads((tmp_path / "less/result.json").read_text())["run"]["derived"]
    assert derived == f"task '{names[0]}' removed from {tmp_path / 'more'}"


def test_a_derived_run_needs_a_new_folder(run, tmp_path):
    with pytest.raises(InputError, match="is there already; choose another output"):
        run.add_task(language(tmp_path), run.path)
    with pytest.raises(InputError, match=r"has task .* already"):
        run.add_task(run.suite.tasks[0], tmp_path / "twice")
    assert not (tmp_path / "twice").exists()
    assert predictions(run, run.suite.names[:1])  # a refused call leaves the run usable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "perft"}, r"unknown export format 'perft'; did you mean 'peft'\?"),
        ({"check": "vlm"}, r"unknown export check 'vlm'; did you mean 'vllm'\?"),
        ({"format": "merged", "check": "vllm"}, "drop check"),
    ],
    ids=str,
)
def test_export_names_what_it_knows(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run.export(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_export_from_the_command_line(run, tmp_path):
    out = tmp_path / "out"
    shown = CliRunner().invoke(app, ["export", str(run.path), "-o", str(out), "--check", "vllm"])
    assert shown.exit_code == 0, shown.output
    routes = json.loads((out / "routes.json").read_text())["tasks"]
    assert list(routes) == list(run.suite.names)
    assert (out / "vllm.json").is_file()
    refused = CliRunner().invoke(app, ["export", str(run.path), "-o", str(run.path)])
    assert refused.exit_code == 2
    assert "error:" in refused.stderr
