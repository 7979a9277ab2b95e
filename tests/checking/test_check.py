"""Everything that is wrong with data is said at once, with file and line."""

import json
from dataclasses import replace

import pytest

from coadapt.backbone import ModelConfig
from coadapt.checking import check
from coadapt.tasks import declared_suite
from coadapt.tasks.split import split_of, text_key
from tests.invoking import invoke, succeed
from tests.tiny_language import save_model

WORDS = ("apple", "bread", "cat", "dog", "rope", "saw", "soup", "tool", "cup", "sun")
GOOD = [
    (f"the {a} and the {b}", "good" if i % 2 else "bad") for i, a in enumerate(WORDS) for b in WORDS
]


def write(path, rows, newline="\n"):
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    path.write_bytes(newline.join([*lines, ""]).encode())
    return path


def found(tmp_path, data, model=None, **fields):
    tasks = {"a": {"kind": "classification", "data": data, **fields}}
    return check(declared_suite({"name": "s", "tasks": tasks}), model)


def only(checked, what):
    [finding] = [finding for finding in checked.findings if finding.what == what]
    return finding


def test_nothing_is_wrong_with_good_data(tmp_path):
    checked = found(tmp_path, str(write(tmp_path / "a.csv", GOOD)))
    assert checked.findings == ()
    assert checked.can_be_trained
    told = checked.tasks["a"]
    assert sum(told["rows"].values()) == len(GOOD)
    assert sum(told["labels"].values()) == told["rows"]["train"]
    assert checked.shown["a"].startswith("the ")


def test_leaked_text_between_splits_and_tasks(tmp_path):
    train = write(tmp_path / "train.csv", GOOD)
    test = write(tmp_path / "test.csv", [*[(f"new {t}", label) for t, label in GOOD[:20]], GOOD[7]])
    other = write(tmp_path / "other.csv", [(f"else {t}", label) for t, label in GOOD[:20]])
    held = write(tmp_path / "held.csv", [("The  APPLE and the bread", "good"), *GOOD[40:60]])
    paths = {"a": {"train": train, "test": test}, "b": {"train": other, "test": held}}
    tasks = {
        name: {
            "kind": "classification",
            "data": {"kind": "file", "path": {split: str(p) for split, p in mine.items()}},
        }
        for name, mine in paths.items()
    }
    checked = check(declared_suite({"name": "s", "tasks": tasks}))
    assert {finding.what for finding in checked.findings} == {"leak"}  # told once
    leak = only(checked, "leak")
    assert (leak.level, leak.task) == ("warning", "a")
    assert leak.said.startswith("22 of 100 training texts are test texts too")
    assert f"{train}, line 3 is {held}, line 2 (task 'b')" in leak.said  # but for case and space
    assert f"{train}, line 9 is {test}, line 22" in leak.said


def test_leaks_into_rows_that_the_hash_of_their_text_holds_out(tmp_path):
    train = write(tmp_path / "train.csv", GOOD)
    test = write(tmp_path / "test.csv", [(f"new {text}", label) for text, label in GOOD])
    paths = {"train": str(train), "test": str(test)}
    tasks = {
        "split": {"kind": "classification", "data": {"kind": "file", "path": paths}},
        "whole": {"kind": "classification", "data": str(write(tmp_path / "b.csv", GOOD))},
    }
    suite = declared_suite({"name": "s", "tasks": tasks})
    [leak] = [found for found in check(suite).findings if " test texts too" in found.said]
    held = [text for text, _ in GOOD if split_of(text_key([text]), suite.split, 0) == "test"]
    assert leak.task == "split"
    assert leak.said.startswith(f"{len(held)} of 100 training texts are test texts too")
    assert "(task 'whole')" in leak.said


def test_constant_label(tmp_path):
    file = write(tmp_path / "a.csv", [(text, "same") for text, _ in GOOD])
    checked = found(tmp_path, str(file))
    assert only(checked, "label").said == "all 100 rows have the label 'same'"
    assert not checked.can_be_trained


@pytest.mark.parametrize("typo", ["positve", "postiive", "Positive", "positive "])
def test_label_typo(typo, tmp_path):
    rows = [(text, "positive" if label == "good" else "negative") for text, label in GOOD]
    file = tmp_path / "a.jsonl"
    lines = [{"text": text, "label": label} for text, label in [*rows, ("one more", typo)]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    label = only(found(tmp_path, str(file)), "label")
    assert f"'{typo}' is the label of 1, 'positive' of 50 rows: a typing error?" in label.said
    assert f"{file}, line 101" in label.said


@pytest.mark.parametrize(
    "labels", [("cat", "car"), ("1", "11"), ("north", "south"), ("abbreviation", "description")]
)
def test_labels_that_are_only_alike_are_left_alone(labels, tmp_path):
    rows = [(text, labels[0]) for text, _ in GOOD]
    rows[5:9] = [(text, labels[1]) for text, _ in GOOD[5:9]]
    assert found(tmp_path, str(write(tmp_path / "a.csv", rows))).findings == ()


def test_a_label_that_was_not_declared_is_an_error(tmp_path):
    rows = [*GOOD, ("a last one", "goood")]
    checked = found(tmp_path, str(write(tmp_path / "a.csv", rows)), labels=["good", "bad"])
    assert only(checked, "label").level == "error"


def test_empty_rows(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [{"text": text, "label": label} for text, label in [*GOOD, ("  ", "good"), ("", "bad")]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    empty = only(found(tmp_path, str(file)), "empty")
    assert f"an empty text in 2 of 102 rows: {file}, line 101, {file}, line 102" in empty.said


def test_every_row_that_cannot_be_read_is_named(tmp_path):
    file = write(tmp_path / "a.csv", [*GOOD, ("text alone", ""), ("", "good")])
    checked = found(tmp_path, str(file))
    said = [finding.said for finding in checked.findings if finding.level == "error"]
    assert len(said) == 2
    assert said[0].startswith(f"{file}, line 102: ")
    assert said[1].startswith(f"{file}, line 103: ")


def test_overlong_rows(tiny_bert, tmp_path):
    file = write(tmp_path / "a.csv", [*GOOD, (" ".join(["apple"] * 30), "good")])
    rows = [(f"{text} {k}", label) for text, label in GOOD[:10] for k in range(3)]
    file = write(
        tmp_path / "a.csv", [*rows, *((f"{' apple' * 30} {k}", "good") for k in range(20))]
    )
    checked = found(tmp_path, str(file), ModelConfig(name=str(tiny_bert), max_length=16))
    long = only(checked, "long")
    told = checked.tasks["a"]
    assert long.said.startswith("20 of 50 rows are cut, having more than 16 tokens: ")
    assert f"{file}, line " in long.said
    assert told["cut"] == 20
    assert told["tokens"][2] in (33, 34)  # thirty words, a number of one or two digits, specials


def test_a_language_model_s_rows_are_shown_and_counted_as_it_reads_them(tmp_path):
    rows = [*GOOD, *((f"{' apple' * 30} {k}", "good") for k in range(20))]
    file = write(tmp_path / "a.csv", rows)
    llama = save_model(tmp_path / "llama", "llama")
    model = ModelConfig(name=str(llama), max_length=64)
    checked = found(tmp_path, str(file), model, prompt="Is this good: {text}\nAnswer:")
    assert only(checked, "long").said.startswith("20 of 120 rows are cut")
    assert checked.tasks["a"]["tokens"][2] > 30
    assert checked.shown["a"].startswith("Is this good: the ")
    assert checked.shown["a"].endswith(("=>  good", "=>  bad"))
    refused = found(tmp_path, str(file), replace(model, max_length=2))
    assert "does not fit into max_length 2" in only(refused, "read").said


def test_wrong_encoding(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes("text,label\nfine,good\ncafé,bad\n".encode("latin-1"))
    read = only(found(tmp_path, str(file)), "read")
    assert str(file) in read.said
    assert "line 3" in read.said


def test_mixed_newlines(tmp_path):
    file = write(tmp_path / "a.csv", GOOD[:60])
    whole = file.read_bytes() + b"".join(f"{t},{label}\r\n".encode() for t, label in GOOD[60:])
    file.write_bytes(whole)
    newlines = only(found(tmp_path, str(file)), "newlines")
    assert newlines.level == "warning"
    assert "40 end in \\r\\n, 61 end in \\n" in newlines.said
    assert "line 62" in newlines.said
    assert found(tmp_path, str(write(tmp_path / "b.csv", GOOD, "\r\n"))).findings == ()


def test_texts_with_two_labels_and_texts_twice(tmp_path):
    rows = [*GOOD, (GOOD[3][0], "good"), GOOD[4]]
    file = write(tmp_path / "a.csv", rows)
    told = {finding.level: finding.said for finding in found(tmp_path, str(file)).findings}
    assert (
        told["warning"]
        == f"1 of 100 texts stand with different labels: {file}, line 5 and {file}, line 102"
    )
    assert told["note"].startswith("1 of 102 rows repeat a text with its label")


def test_all_tasks_are_looked_at_even_if_the_first_is_wrong(tmp_path):
    good = write(tmp_path / "good.csv", [(text, "same") for text, _ in GOOD])
    tasks = {
        "gone": {"kind": "classification", "data": str(tmp_path / "gone.csv")},
        "constant": {"kind": "classification", "data": str(good)},
    }
    tasks["sound"] = {"kind": "classification", "data": str(write(tmp_path / "c.csv", GOOD))}
    checked = check(declared_suite({"name": "s", "tasks": tasks}))
    assert [finding.task for finding in checked.findings] == ["gone", "constant"]
    assert list(checked.tasks) == ["sound"]  # and what is sound is shown


# The command -------------------------------------------------------------------------------------


@pytest.fixture
def files(tiny_bert, tmp_path):
    write(tmp_path / "a.csv", GOOD)
    write(tmp_path / "b.csv", [(f"is {text}", label) for text, label in GOOD])
    tasks = "".join(f"  {t}: {{kind: classification, data: {t}.csv}}\n" for t in "ab")
    (tmp_path / "suite.yaml").write_text(f"tasks:\n{tasks}")
    (tmp_path / "train.yaml").write_text(
        f"model: {{name: {tiny_bert}, max_length: 32, dtype: float32}}\nsuite: suite.yaml\n"
        "recipe: lora\nbudget: 4\n"
        "training: {num_train_epochs: 3, use_cpu: true, per_device_train_batch_size: 8}\n"
    )
    return tmp_path


def test_a_suite_s_check(files):
    told = succeed("check", files / "suite.yaml")
    assert "nothing was found that is wrong" in told
    assert "as the model sees it" in told
    assert "of training" not in told


def test_a_train_file_s_check_tells_time_and_leaves_nothing(files):
    before = sorted(files.iterdir())
    told = json.loads(succeed("check", files / "train.yaml", "--json"))
    assert sorted(files.iterdir()) == before
    assert told["can_be_trained"]
    rows = sum(task["rows"]["train"] for task in told["tasks"].values())
    assert told["estimate"]["steps"] == 3 * -(-rows // 8)
    assert told["estimate"]["seconds"] > 0
    assert told["tasks"]["a"]["tokens"]
    quick = json.loads(succeed("check", files / "train.yaml", "--json", "--quick"))
    assert quick["estimate"] is None
    assert "steps of" in succeed("check", files / "train.yaml")


def test_errors_end_with_1(files):
    write(files / "b.csv", [(text, "same") for text, _ in GOOD])
    result = invoke("check", files / "train.yaml")
    assert result.exit_code == 1
    assert "all 100 rows have the label 'same'" in result.stdout
