import itertools
import logging
import statistics

import numpy as np
import pytest

from coadapt._errors import InputError
from coadapt.tasks import SPLITS, load_suite
from coadapt.tasks.split import SplitFractions, split_of, text_key
from tests.tasks.toy_rows import ROWS, WORDS, splits_of, suite_of, write_jsonl

# Splits across tasks


def test_a_text_is_in_one_split_in_every_task(tmp_path):
    shouted = [{"text": f"  {r['text'].upper()}\n", "label": len(r["text"])} for r in ROWS[::-1]]
    tasks = {
        name: {"kind": kind, "data": write_jsonl(tmp_path / f"{name}.jsonl", rows)}
        for name, kind, rows in (("a", "classification", ROWS), ("b", "regression", shouted))
    }
    suite = load_suite({"tasks": tasks, "seed": 5})
    for split in SPLITS:
        a, b = (suite.rows(name, split).texts for name in "ab")
        assert {t.strip().lower() for t in b} == set(a)


def test_leaks_are_removed_and_counted(tmp_path, caplog):
    def given(name, **splits):
        paths = {s: write_jsonl(tmp_path / name / f"{s}.jsonl", rows) for s, rows in splits.items()}
        return {"kind": "classification", "data": {"kind": "file", "path": paths}}

    upper = [row | {"text": row["text"].upper()} for row in ROWS]
    a = given("a", train=ROWS[:20], validation=ROWS[18:24], test=ROWS[22:30])
    b = given("b", train=upper[10:40], validation=upper[28:32], test=upper[:4])
    with caplog.at_level(logging.WARNING, logger="coadapt"):
        suite = load_suite({"tasks": {"a": a, "b": b}})
        found = {name: splits_of(suite, name) for name in "ab"}
    # Test: a 22-29, b 0-3. Validation less these: a 18-21, b 30-31.
    assert found["a"]["test"] == WORDS[22:30]
    assert found["a"]["validation"] == WORDS[18:22]
    assert found["a"]["train"] == WORDS[4:18]
    assert [t.lower() for t in found["b"]["test"]] == WORDS[:4]
    assert [t.lower() for t in found["b"]["validation"]] == WORDS[30:32]
    assert [t.lower() for t in found["b"]["train"]] == WORDS[10:18] + WORDS[32:]
    test, validation = "is in a test split of the suite", "is in a validation split of the suite"
    assert caplog.messages == [
        f"task 'a': 4 rows removed from train and 2 from validation, whose text {test}",
        f"task 'b': 8 rows removed from train and 2 from validation, whose text {test}",
        f"task 'a': 2 rows removed from train, whose text {validation}",
        f"task 'b': 6 rows removed from train, whose text {validation}",
    ]


def test_duplicates_collapse_to_the_first(tmp_path):
    again = [{"text": r["text"].upper(), "label": r["label"]} for r in ROWS]
    other = [{"text": ROWS[0]["text"], "label": "yes"}]
    found = splits_of(suite_of(write_jsonl(tmp_path / "x.jsonl", ROWS + again + other)))
    assert sorted(itertools.chain(*found.values())) == sorted([*WORDS, WORDS[0]])


def test_pairs(tmp_path):
    rows = [{"one": WORDS[i], "two": WORDS[-i], "label": i % 2} for i in range(40)]
    suite = suite_of(write_jsonl(tmp_path / "x.jsonl", rows), text=["one", "two"])
    found = suite.rows("a", "train")
    expected = [
        (r["one"], r["two"])
        for r in rows
        if split_of(text_key([r["one"], r["two"]]), SplitFractions(), 0) == "train"
    ]
    assert list(zip(found.texts, found.pairs or (), strict=True)) == expected


# Labels


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["no", "yes", "Mid"], ("Mid", "no", "yes")),
        ([10, 9, 2], (2, 9, 10)),
        (["10", "9", "2"], ("2", "9", "10")),
        ([1.0, 0.0, 2.0], (0, 1, 2)),
        ([True, False], ("false", "true")),
    ],
)
def test_labels_are_inferred_and_saved(tmp_path, values, labels):
    rows = [{"text": text, "label": values[i % len(values)]} for i, text in enumerate(WORDS)]
    suite = suite_of(write_jsonl(tmp_path / "x.jsonl", rows))
    assert suite.task("a").labels == labels
    assert suite.to_plain()["tasks"]["a"]["labels"] == list(labels)


def test_declared_labels_match_text_and_numbers(tmp_path):
    rows = [{"text": text, "label": str(i % 2)} for i, text in enumerate(WORDS)]
    suite = suite_of(write_jsonl(tmp_path / "x.jsonl", rows), labels=[1, 0, "never"])
    texts, labels = suite.rows("a", "test").texts, suite.rows("a", "test").labels
    assert [WORDS.index(t) % 2 for t in texts] == [1 - label for label in labels]


def test_regression(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"{text},{i}e-1\n" for i, text in enumerate(WORDS)))
    suite = suite_of(str(path), kind="regression")
    rows = suite.rows("a", "train")
    assert rows.labels.dtype == np.float64
    values = [WORDS.index(t) / 10 for t in rows.texts]
    assert rows.labels.tolist() == pytest.approx(values)
    # Of the whole training split, so that two draws of it are trained in one unit.
    unit = statistics.fmean(values), statistics.pstdev(values)
    assert suite.task("a").unit == pytest.approx(unit)
    drawn = suite_of(str(path), kind="regression", max_rows=5)
    assert len(drawn.rows("a", "train")) == 5
    assert drawn.task("a").unit == pytest.approx(unit)
    declared = suite_of(str(path), kind="regression", unit=[0, 1])
    assert declared.task("a").unit == (0.0, 1.0)


def test_values_that_are_all_alike_have_a_unit(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"{text},2.5\n" for text in WORDS))
    assert suite_of(str(path), kind="regression").task("a").unit == (2.5, 1.0)


# Limits


def test_limits_are_nested_and_seeded(rows_file):
    def train(seed=0, **fields):
        return list(suite_of(rows_file, suite={"seed": seed}, **fields).rows("a", "train").texts)

    ten, five = train(max_rows=10), train(max_rows=5)
    assert (len(ten), len(five)) == (10, 5)
    assert set(five) < set(ten) < set(train())
    assert ten == [t for t in train() if t in ten]  # in the order of the file
    assert train(max_rows=10_000) == train()
    assert train(max_rows=5, seed=1) != five
    assert train(max_rows={"test": 2}) == train()


def test_limit_of_a_split_and_of_the_suite(rows_file):
    task = {"kind": "classification", "data": rows_file}
    tasks = {"a": task, "b": task | {"max_rows": {"test": 2}}, "c": task | {"num_shots": 2}}
    suite = load_suite({"tasks": tasks, "max_rows": 7})
    sizes = {n: [len(suite.rows(n, s)) for s in ("train", "test")] for n in "abc"}
    full = [len(suite_of(rows_file).rows("a", s)) for s in ("train", "test")]
    assert sizes == {"a": [7, full[1]], "b": [full[0], 2], "c": [4, full[1]]}


def test_num_shots(rows_file):
    two = suite_of(rows_file, num_shots=2).rows("a", "train")
    assert sorted(two.labels) == [0, 0, 1, 1]
    assert set(two.texts) < set(suite_of(rows_file, num_shots=4).rows("a", "train").texts)
    with pytest.raises(
        InputError, match=r"num_shots is 30, but class 'no' has \d+ training rows; lower"
    ):
        suite_of(rows_file, num_shots=30).rows("a", "train")
