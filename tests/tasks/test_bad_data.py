import json

import pytest

from coadapt._errors import InputError
from coadapt.tasks.split import SplitFractions, split_of, text_key
from tests.tasks.toy_rows import ROWS, WORDS, suite_of, write_jsonl

# Data that cannot be used. ROWS stand before, so that the bad row is line 41.


def bad_row(**row):
    return lambda tmp: write_jsonl(tmp / "x.jsonl", [*ROWS, {"text": "t", "label": "no"} | row])


def file_with(name, content):
    def write(tmp):
        (tmp / name).write_bytes(content)
        return str(tmp / name)

    return write


JSON_ROWS = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV_ROWS = b"text,label\n" + b"".join(b"t %d,%d\n" % (i, i % 2) for i in range(40))


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (
            bad_row(text=None),
            {},
            "x.jsonl, line 41: task 'a': column 'text' holds None; give a text",
        ),
        (bad_row(text=float("nan")), {}, "line 41: task 'a': column 'text' holds nan; give a text"),
        (bad_row(text=3), {}, "line 41: task 'a': column 'text' holds 3; give a text"),
        (bad_row(text="\ud800"), {}, "line 41: task 'a': the text holds an unpaired surrogate"),
        (bad_row(label=None), {}, "line 41: task 'a': column 'label' holds None; give a label"),
        (bad_row(label=""), {}, "line 41: task 'a': column 'label' holds ''; give a label"),
        (
            bad_row(label=float("nan")),
            {},
            "line 41: task 'a': column 'label' holds nan; give a label",
        ),
        (bad_row(label=0.5), {}, "line 41: task 'a': column 'label' holds 0.5; give a label"),
        (bad_row(label=["no"]), {}, "line 41: task 'a': column 'label' holds ['no']; give a label"),
        (
            bad_row(label="yess"),
            {"labels": ["no", "yes"]},
            "line 41: task 'a': label 'yess' is not one of the declared labels; did you mean",
        ),
        (
            bad_row(),
            {"text": "txt"},
            "x.jsonl, line 1: task 'a': no column 'txt'; did you mean 'text'?",
        ),
        (bad_row(), {"label": "score"}, "line 1: task 'a': no column 'score'; known: text, label"),
        (
            file_with("x.jsonl", JSON_ROWS + b'{"text": "a"}\n'),
            {},
            "line 41: task 'a': no column 'label'",
        ),
        (
            file_with("x.jsonl", JSON_ROWS + b'\n{"text": \n'),
            {},
            "line 42: task 'a': not JSON (Expecting value",
        ),
        (
            file_with("x.jsonl", JSON_ROWS + b"[1]\n"),
            {},
            "line 41: task 'a': found a list; write one object",
        ),
        (
            file_with("x.jsonl", JSON_ROWS + b'{"text": "caf\xe9"}'),
            {},
            f"x.jsonl, line 41: not UTF-8 at byte offset {len(JSON_ROWS) + 13} (0xe9); save",
        ),
        (
            file_with("x.csv", CSV_ROWS + b"a,b,c\n"),
            {},
            "x.csv, line 42: task 'a': 3 fields, but the header has 2",
        ),
        (
            file_with("x.csv", CSV_ROWS + b'"a,1\n'),
            {},
            "x.csv, line 42: task 'a': unexpected end of data",
        ),
        (
            file_with("x.csv", CSV_ROWS + b",1\n"),
            {},
            "line 42: task 'a': column 'text' holds None; give a text",
        ),
        (
            file_with("x.csv", CSV_ROWS + b"a,\n"),
            {},
            "line 42: task 'a': column 'label' holds None; give",
        ),
        (
            file_with("x.csv", CSV_ROWS + b'"two\nlines",1\nx,n/a\n'),
            {"kind": "regression"},
            "x.csv, line 44: task 'a': column 'label' holds 'n/a'; give a finite number",
        ),
        (
            file_with("x.csv", b"text,text,label\na,b,1\n"),
            {},
            "line 1: task 'a': column 'text' stands twice",
        ),
        (
            file_with("x.csv", b"txt,label\n"),
            {},
            "x.csv, line 1: task 'a': no column 'text'; did you mean 'txt'?",
        ),
        (
            file_with("x.csv", b"text,label\n"),
            {},
            "task 'a': the train split is empty; give more rows",
        ),
        (file_with("x.csv", b""), {}, "task 'a': the train split is empty"),
        (file_with("x.parquet", b"PAR1 or not"), {}, "x.parquet: not a whole Parquet file"),
        (
            file_with("x.xlsx", b"x"),
            {},
            "x.xlsx: unknown file format '.xlsx'; use .jsonl, .json, .csv",
        ),
        (
            bad_row(),
            {"kind": "regression"},
            "line 1: task 'a': column 'label' holds 'no'; give a finite number",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_cannot_be_used(tmp_path, make, fields, message):
    path = make(tmp_path)
    with pytest.raises(InputError) as error:
        suite_of(path, **fields).rows("a", "train")
    assert message in str(error.value)


@pytest.mark.parametrize("value", ["3", True, float("inf"), float("nan"), None])
def test_values_that_are_no_numbers(tmp_path, value):
    rows = [{"text": text, "label": i} for i, text in enumerate(WORDS)]
    path = write_jsonl(tmp_path / "x.jsonl", [*rows, {"text": "last", "label": value}])
    with pytest.raises(InputError, match=r"line 41: .* holds .*; give a finite number"):
        suite_of(path, kind="regression").rows("a", "train")


def test_missing_file(tmp_path, rows_file):
    with pytest.raises(
        InputError, match=r"task 'a': .*row\.jsonl: no such file; did you mean 'rows\.jsonl'"
    ):
        suite_of(str(tmp_path / "row.jsonl"))
    with pytest.raises(InputError, match=r"no such file; check the path"):
        suite_of(str(tmp_path / "none" / "row.jsonl"))


def test_a_label_that_training_lacks(tmp_path):
    held_out = next(t for t in WORDS if split_of(text_key([t]), SplitFractions(), 0) == "test")
    rows = [row | ({"label": "rare"} if row["text"] == held_out else {}) for row in ROWS]
    with pytest.raises(
        InputError, match=r"line \d+: task 'a': label 'rare' is not a label of the train split"
    ):
        suite_of(write_jsonl(tmp_path / "x.jsonl", rows))


def test_one_class(tmp_path):
    rows = [row | {"label": "yes"} for row in ROWS]
    with pytest.raises(InputError, match="task 'a': every training row has the label 'yes'"):
        suite_of(write_jsonl(tmp_path / "x.jsonl", rows))


def test_empty_splits(tmp_path, rows_file):
    with pytest.raises(InputError, match="task 'a': the test split is empty"):
        suite_of(rows_file, suite={"split": {"test": 0}})
    # Everything that is trained on is tested on.
    with pytest.raises(InputError, match="task 'a': the train split is empty"):
        suite_of({"kind": "file", "path": {"train": rows_file, "test": rows_file}})


def test_unknown_split_and_task(rows_file):
    suite = suite_of(rows_file)
    with pytest.raises(InputError, match="unknown split 'dev'; known: train, validation, test"):
        suite.rows("a", "dev")
    with pytest.raises(InputError, match="has no task 'b'"):
        suite.rows("b", "train")
