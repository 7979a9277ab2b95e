"""From files to a run in four commands; and what is guessed of a file."""

import json
import random

import pytest
import yaml

from coadapt import InputError
from coadapt.drafting import guess, write_files
from coadapt.tasks import load_suite
from tests.invoking import refuse, succeed

WORDS = ("apple", "bread", "cat", "dog", "rope", "saw", "soup", "tool", "cup", "sun")
TEXTS = [f"the {a} and the {b}" for a in WORDS for b in WORDS]


def write(path, rows):
    """Write rows by the file's ending."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    names = list(rows[0])
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def labelled(label, values, texts=TEXTS, text="text"):
    return [{text: t, label: values[i % len(values)]} for i, t in enumerate(texts)]


PAIRS = [
    {"id": i, "premise": t, "hypothesis": t[::-1], "label": i % 2} for i, t in enumerate(TEXTS)
]
OPTIONS = [{"q": t, "options": ["one", "two"], "answer": "one"} for t in TEXTS]
ONE, CLASSES, VALUES = ("text",), "classification", "regression"
CASES = {
    "classes": (labelled("label", ["yes", "no"]), CLASSES, ONE, "label"),
    "unnamed": (labelled("flag", ["x", "y"], text="body"), CLASSES, ("body",), "flag"),
    "numbers_few": (labelled("stars", [1, 2, 3, 4, 5]), CLASSES, ONE, "stars"),
    "numbers_many": (labelled("price", [i * 3 for i in range(25)]), VALUES, ONE, "price"),
    "fractions": (labelled("score", [0.5, 1.25, 3.0]), VALUES, ONE, "score"),
    "answers": (labelled("answer", [f"it is {t}" for t in TEXTS]), "generation", ONE, "answer"),
    "pair": (PAIRS, CLASSES, ("premise", "hypothesis"), "label"),
    "choice": (OPTIONS, "choice", ("q",), "answer"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_guessed(name, tmp_path):
    rows, kind, texts, label = CASES[name]
    found = guess(write(tmp_path / f"{name}.jsonl", rows))
    assert (found.kind, found.texts, found.label) == (kind, texts, label)
    assert found.rows == 100
    assert all(found.reasons)
    write_files([found], tmp_path / "out")
    suite = load_suite(tmp_path / "out/suite.yaml")
    assert suite.task(name).kind == kind
    assert sum(len(suite.rows(name, split)) for split in ("train", "validation", "test")) == 100
    model = yaml.safe_load((tmp_path / "out/train.yaml").read_text())["model"]["name"]
    heads = kind in ("classification", "regression")
    assert model == ("asset:minilm" if heads else "asset:smollm2")


def test_uneven_labels_are_scored_by_f1(tmp_path):
    rows = labelled("label", ["no"] * 9 + ["yes"])
    write_files([guess(write(tmp_path / "a.csv", rows))], tmp_path / "out")
    assert load_suite(tmp_path / "out/suite.yaml").task("a").metrics == ("f1", "accuracy")


def test_names_that_yaml_would_misread(tmp_path):
    rows = labelled("yes: no", ["on", "off"], text="# text")
    found = guess(write(tmp_path / "1e3.jsonl", rows))
    write_files([found], tmp_path / "out", model="a: 'b'")
    task = load_suite(tmp_path / "out/suite.yaml").task("1e3")
    assert (task.columns, task.label) == (("# text",), "yes: no")
    train = yaml.safe_load((tmp_path / "out/train.yaml").read_text())
    assert train["model"]["name"] == "a: 'b'"


def test_from_seven_files_to_adapters_in_four_commands(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    files = []
    for index in range(7):
        texts = [f"{t} {index}" for t in rng.sample(TEXTS, 40)]
        rows = labelled("label", ["yes", "no"] if index else ["a", "b", "c"], texts)
        files.append(write(tmp_path / f"task{index}.csv", rows).name)
    told = succeed("init", *files, "--output", "mine", "--model", tiny_bert)
    assert told.count("classification, 40 rows") == 7
    assert "next: coadapt check mine/train.yaml" in told
    assert "nothing was found that is wrong" in succeed("check", "mine/train.yaml", "--quick")
    few = ["--set", "training.max_steps=2"]
    succeed("train", "mine/train.yaml", "--output", "runs/first", *few)
    succeed("export", "runs/first", "--output", "shipped")
    assert len(json.loads((tmp_path / "shipped/routes.json").read_text())["tasks"]) == 7


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "one", "label": "x"}], "rows: 1; at least 2"),
        ([{"one": f"a {i}", "two": f"b {i}"} for i in range(9)], "no column looks like a label"),
        ([{"label": i % 2, "n": i} for i in range(9)], "no column looks like text"),
    ],
    ids=["few", "label", "text"],
)
def test_files_that_tell_nothing(rows, message, tmp_path):
    with pytest.raises(InputError, match=message) as raised:
        guess(write(tmp_path / "a.csv", rows))
    assert str(tmp_path / "a.csv") in str(raised.value)


def test_a_column_of_nan_holds_no_numbers(tmp_path):
    rows = [{"text": t, "label": v} for t, v in zip(TEXTS, ["nan", "inf"] * 50, strict=True)]
    assert guess(write(tmp_path / "a.csv", rows)).kind == CLASSES


def test_nothing_is_overwritten_and_names_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", labelled("label", ["x", "y"]))
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "a.csv", labelled("label", ["x", "y"]))
    assert "two tasks would be named 'a'" in refuse("init", "a.csv", "b/a.csv", "--output", "out")
    assert not (tmp_path / "out").exists()
    succeed("init", "a.csv", "--output", "out")
    before = (tmp_path / "out/suite.yaml").read_text()
    assert "is there already" in refuse("init", "b/a.csv", "--output", "out")
    assert (tmp_path / "out/suite.yaml").read_text() == before
    told = refuse("init", "gone.csv", "a.csv", "lost.csv", "--output", "new")
    assert "gone.csv" in told
    assert "lost.csv" in told  # all at once
