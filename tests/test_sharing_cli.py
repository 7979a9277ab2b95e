"""`coadapt diagnose`: what it prints and writes, and how it refuses; the help; ready suites."""

import json
import shutil
from typing import Any

import pytest

import coadapt
from coadapt.config import dump_yaml
from coadapt.diagnosis import diagnose, diagnose_adapters, diagnose_run, load_diagnosis
from coadapt.reporting import collect, render
from tests.invoking import invoke, refuse, succeed
from tests.reporting.pages import check
from tests.small import randomize
from tests.toy_runs import content_of, model_of, train_toy

TASKS = ("sentiment", "topic", "same", "degree")
# As little as the settings allow: what is measured is tested elsewhere.
LITTLE: dict[str, Any] = {"num_probes": 1, "num_bootstrap": 20, "num_permutations": 19}
LESS = [word for key, value in LITTLE.items() for word in ("--set", f"{key}={value}")]
TINY = [
    *("--set", "model.dtype=float32", "--set", "model.max_length=64"),
    *("--set", "model.backbone_dropout=false"),
]
SPLIT = {"validation": 0.75, "test": 0.05}  # so that each task has rows to judge a run by


@pytest.fixture(scope="module")
def folder(tiny_bert, toy_suite_files, tmp_path_factory):
    """The toy suite as a file, runs of it, an export, and diagnoses; not to be changed."""
    folder = tmp_path_factory.mktemp("sharing")
    (folder / "toy.yaml").write_text(dump_yaml(toy_suite_files), encoding="utf-8")
    half = {**toy_suite_files, "seed": 1, "split": SPLIT}
    options = {"budget": 4}
    run = train_toy(tiny_bert, half, folder / "run", "private", **options)
    train_toy(tiny_bert, half, folder / "teacher", "private", seed=1, **options)
    randomize(run.model).eval()  # two steps leave an adapter without rows at zero
    run.export(folder / "out")
    words = ("diagnose", folder / "toy.yaml", "--model", tiny_bert, *TINY, *LESS)
    printed = succeed(*words, "-o", folder / "d.json")
    (folder / "printed.txt").write_text(printed, encoding="utf-8")
    return folder


# diagnose SUITE ----------------------------------------------------------------------------------


def test_diagnose_writes_what_the_library_finds(folder, tiny_bert, toy_suite_dict):
    found = diagnose(model_of(tiny_bert), toy_suite_dict, **LITTLE).to_plain()
    written = json.loads((folder / "d.json").read_text(encoding="utf-8"))
    for plain in (found, written):
        del plain["seconds"]
    assert written == found


def test_diagnose_prints_tables_and_what_to_do_next(folder):
    printed = (folder / "printed.txt").read_text(encoding="utf-8")
    assert all(task in printed for task in TASKS)
    for words in ("gradient similarity", "reliability", "spectral entropy", "suite toy: by task"):
        assert words in printed
    last = printed.splitlines()[-1]
    path = folder / "d.json"
    assert last == (
        f"written to {path}; plan by it with: coadapt plan {path} --budget 8 -o plan.yaml"
    )


def test_the_command_that_it_names_works(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = (folder / "printed.txt").read_text().splitlines()[-1].partition("coadapt ")[2]
    succeed(*command.split())
    assert (tmp_path / "plan.yaml").is_file()


def test_diagnose_as_json(folder, tiny_bert, tmp_path):
    words = ("diagnose", folder / "toy.yaml", "--model", tiny_bert, *LESS, *TINY, "--json")
    found = json.loads(succeed(*words, "-o", tmp_path / "d.json"))
    assert found["tasks"] == list(TASKS)
    assert found["kind"] == "diagnosis"
    written = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert written == found
    again = json.loads(succeed(*words, "--seed", 0))
    assert again["pairs"] == found["pairs"]
    other = json.loads(succeed(*words, "--seed", 1))
    assert other["settings"]["seed"] == 1
    assert other["pairs"] != found["pairs"]


def test_set_reaches_the_settings_the_model_and_the_suite(folder, tiny_bert):
    found = json.loads(
        succeed(
            *("diagnose", folder / "toy.yaml", "--model", tiny_bert, *LESS, *TINY, "--json"),
            *("--set", "max_rows=20", "--set", "model.pooling=mean", "--set", "rank=3"),
            *("--set", "suite.tasks.topic.max_rows=17", "--set", "suite.name=mine"),
        )
    )
    assert found["settings"]["model"]["pooling"] == "mean"
    assert found["settings"]["rank"] == 3
    assert found["rows"] == {"sentiment": 20, "topic": 17, "same": 20, "degree": 20}
    assert found["of"].endswith("suite mine")


def test_data_root_replaces_the_sources(folder, tiny_bert, toy_suite_dict, tmp_path):
    for task, fields in toy_suite_dict["tasks"].items():
        (tmp_path / "data" / task).mkdir(parents=True)
        with open(fields["data"], encoding="utf-8") as file:
            lines = file.readlines()
        (tmp_path / "data" / task / "train.jsonl").write_text("".join(lines[:32]))
        (tmp_path / "data" / task / "test.jsonl").write_text("".join(lines[32:]))
    words = ("diagnose", folder / "toy.yaml", "--model", tiny_bert, *LESS, *TINY, "--json")
    found = json.loads(succeed(*words, "--data-root", tmp_path / "data"))
    rows = coadapt.load_suite(toy_suite_dict).rows("topic", "train")
    assert found["rows"]["topic"] != len(rows)
    (tmp_path / "data" / "same" / "train.jsonl").unlink()
    assert "task 'same'" in refuse(*words, "--data-root", tmp_path / "data")


# diagnose --run ----------------------------------------------------------------------------------


def test_diagnose_a_run(folder, tmp_path):
    path = tmp_path / "r.json"
    printed = succeed("diagnose", folder / "run", "--run", "-o", path)
    assert "temperature" in printed
    assert "capacity proxy" in printed
    assert printed.splitlines()[-1] == f"written to {path}"
    wanted = diagnose_run(folder / "run").to_plain()
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(wanted))


def test_a_run_s_diagnosis_lies_where_its_report_looks(folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    printed = succeed("diagnose", run, "--run")
    path = run / "analysis/diagnosis.json"
    assert printed.splitlines()[-1] == f"written to {path}; show it with: coadapt report {run}"
    data = collect(run)
    titles = [section["title"] for section in data["sections"]]
    assert "Coupling and capacity" in titles
    assert "How the tasks relate" not in titles
    page = check(render(data)).of("main")[0]["text"]
    found = load_diagnosis(path)
    assert all(note in page for note in found.notes)  # each assumption
    assert f"{found.tables['update'].values.sum(axis=0)[0]:.1f}" in page


def test_teachers_and_reference_of_a_run(folder):
    found = json.loads(
        succeed(
            *("diagnose", folder / "run", "--run", "--json", "--seed", 3),
            *("--set", "max_pool=4", "--teacher", folder / "teacher", "--teacher", folder / "run"),
            *("--reference", folder / "teacher"),
        )
    )
    assert found["settings"] == {
        "split": "validation",
        "max_pool": 4,
        "seed": 3,
        "teachers": [str(folder / "teacher"), str(folder / "run")],
        "reference": str(folder / "teacher"),
    }
    # The second teacher is the run itself, but the first one is what it is compared with.
    assert {"delta_teacher: all tasks", "placebo: all tasks"} <= set(
        found["tables"]["coupling"]["rows"]
    )


# diagnose --adapters -----------------------------------------------------------------------------


def test_diagnose_adapters(folder, tmp_path):
    folders = sorted((folder / "out" / "adapters").iterdir())
    path = tmp_path / "a.json"
    printed = succeed("diagnose", "--adapters", *folders, "-o", path)
    assert "4 adapters: by task" in printed
    assert "cosine of the updates" in printed
    assert printed.splitlines()[-1] == f"written to {path}"
    wanted = diagnose_adapters(folders).to_plain()
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(wanted))
    assert json.loads(succeed("diagnose", "--adapters", *folders, "--json")) == json.loads(
        path.read_text(encoding="utf-8")
    )


# Refusals of diagnose ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("toy.yaml",), "name the base model, such as --model asset:minilm"),
        (("toy.yaml", "run", "--model", "x"), "a suite takes one argument, not 2: toy.yaml, run"),
        (("run", "toy.yaml", "--run"), "--run takes one argument, not 2"),
        (("run", "--run", "--adapters"), "give --run or --adapters, not both"),
        (("toy.yaml", "--model", "x", "--teacher", "run"), "--teacher is for --run; drop it"),
        (("toy.yaml", "--model", "x", "--reference", "run"), "--reference is for --run; drop"),
        (("run", "--run", "--model", "x"), "--model is for a suite; drop it"),
        (("run", "--run", "--data-root", "."), "--data-root is for a suite; drop it"),
        (("out", "out", "--adapters", "--model", "x"), "--model is for a suite; drop it"),
        (("out", "out", "--adapters", "--seed", "0"), "--seed is for a suite or --run; drop it"),
        (("out", "out", "--adapters", "--set", "a=1"), "--set is for a suite or --run; drop it"),
        (("out", "--adapters"), "give two adapter folders or more to compare, not 1"),
        (("out", "run", "--adapters"), "out is no PEFT adapter: it has no adapter_config.json"),
        (("out", "--run"), "out is no run: it has no config.yaml"),
        (("run", "--run", "--set", "splt=test"), "unknown key 'splt'; did you mean 'split'"),
        (("run", "--run", "--set", "teachers=[run]"), "unknown key 'teachers'"),
        (("run", "--run", "--set", "suite.max_rows=3"), "unknown key 'suite'"),
        (("toy.yaml", "--model", "x", "--set", "max_row=3"), "'max_row'; did you mean 'max_rows'"),
        (("toy.yaml", "--model", "x", "--set", "num_folds=1"), "num_folds must be at least 2"),
        (("toy.yaml", "--model", "x", "--set", "max_rows"), "write key=value"),
        (("dmo", "--model", "x"), "did you mean 'demo'"),
        (("none.yaml", "--model", "x"), "none.yaml"),
        (("toy.yaml", "--model", "x", "-o", "no/d.json"), "no is no folder; make it, or choose"),
        (("run", "--run", "-o", "no/d.json"), "no is no folder; make it, or choose another"),
        (("run", "--run", "-o", "out"), "out is a folder; --output is a file to write"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_diagnose_refuses_before_it_works(words, message, folder, monkeypatch):
    monkeypatch.chdir(folder)

    def work(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr("coadapt.diagnosis.trained.predict_outputs", work)
    monkeypatch.setattr("coadapt.diagnosis.diagnosing._collect", work)
    before = content_of(folder)
    assert message in refuse("diagnose", *words)
    assert content_of(folder) == before


# Help and ready suites ---------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["diagnose", "plan"])
def test_help_fits_a_terminal_and_names_every_option(verb):
    result = invoke(verb, "--help")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    options = {
        "diagnose": ("--model", "--output", "--run", "--adapters", "--teacher", "--reference"),
        "plan": ("--budget", "--sharing", "--clusters", "--distance", "--ranks", "--tasks"),
    }[verb]
    assert all(option in result.stdout for option in (*options, "--set", "--json"))


def test_verbs_are_listed_in_the_order_of_the_work():
    shown = invoke("--help").stdout
    work = ("diagnose", "plan", "train", "evaluate", "predict", "export", "study", "compare")
    places = [shown.index(f"│ {verb} ") for verb in ("methods", "demo", *work)]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["glue5", "glue_local"])
def test_ready_suites_load_and_take_files(name, tmp_path):
    suite = coadapt.load_suite(name)
    assert len(suite.tasks) == {"glue5": 5, "glue_local": 6}[name]
    for task in suite.tasks:
        (tmp_path / task.name).mkdir()
        rows = [
            {column: f"{column} {index}" for column in task.columns}
            | {"label": index % 2 if task.kind == "classification" else index / 10}
            for index in range(40)
        ]
        for split, part in (("train", rows[:30]), ("test", rows[30:])):
            text = "".join(json.dumps(row) + "\n" for row in part)
            (tmp_path / task.name / f"{split}.jsonl").write_text(text, encoding="utf-8")
    local = coadapt.load_suite(name, data_root=tmp_path)
    for task in local.tasks:
        assert len(local.rows(task.name, "test")) == 10
        assert len(local.rows(task.name, "train")) > 15
