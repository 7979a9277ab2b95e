"""Redundancy of labels against entropies that are known."""

import numpy as np
import pytest
from scipy.stats import kstest

from coadapt.diagnosis.redundancy import MIN_SHARED, label_redundancy
from coadapt.tasks import load_suite
from tests.tasks.toy_rows import write_jsonl

CLASSES = {"kind": "classification", "labels": [0, 1, 2, 3]}
TEXTS = [f"text number {i}" for i in range(300)]


def suite_of(folder, tasks):
    """A suite of tasks given by their rows: (text, label) or (first, second, label)."""
    fields = {}
    for name, rows in tasks.items():
        columns = ("text", "label") if len(rows[0]) == 2 else ("first", "second", "label")
        train = write_jsonl(
            folder / name / "train.jsonl", [dict(zip(columns, row, strict=True)) for row in rows]
        )
        held = [dict(zip(columns, (*(f"{name} {c}" for c in columns[:-1]), 0), strict=True))]
        paths = {
            split: write_jsonl(
                folder / name / f"{split}.jsonl",
                [{k: f"{v} {split}" if k != "label" else v for k, v in held[0].items()}],
            )
            for split in ("validation", "test")
        }
        fields[name] = {
            **CLASSES,
            "text": list(columns[:-1]) if len(columns) == 3 else "text",
            "data": {"kind": "file", "path": {"train": train, **paths}},
        }
    return load_suite({"tasks": fields})


def judge(suite, *, num_permutations=99, seed=0):
    generator = np.random.default_rng(seed)
    return label_redundancy(suite, num_permutations=num_permutations, generator=generator)


def drawn(seed, num=300):
    return np.random.default_rng(seed).integers(0, 4, size=num).tolist()


def test_a_copys_labels_say_all_and_others_nothing(tmp_path):
    labels = drawn(0)
    recoded = [(3, 1, 0, 2)[label] for label in labels]
    found = judge(
        suite_of(
            tmp_path,
            {
                "a": list(zip(TEXTS, labels, strict=True)),
                "recoded": list(zip(TEXTS[::-1], recoded[::-1], strict=True)),
                "other": list(zip(TEXTS, drawn(1), strict=True)),
                "elsewhere": [
                    (f"other {text}", label) for text, label in zip(TEXTS, labels, strict=True)
                ],
            },
        )
    )
    shares = np.bincount(labels) / len(labels)
    entropy = -(shares * np.log(shares)).sum()
    bias = 3 * 3 / (2 * len(labels))  # of the plug-in mutual information of independent labels
    assert found.values[0, 1] == pytest.approx(entropy - bias, abs=0.01)
    assert found.p_value[0, 1] == 1 / 100
    assert abs(found.values[0, 2]) < 0.04
    assert found.p_value[0, 2] > 0.02
    np.testing.assert_array_equal(found.values, found.values.T)
    np.testing.assert_array_equal(found.p_value, found.p_value.T)
    assert np.isnan(found.values.diagonal()).all()
    assert np.isnan(found.values[3]).all()
    assert np.isnan(found.p_value[3]).all()
    np.testing.assert_array_equal(found.num_shared[0, 1:], [300, 300, 0])


def test_unrelated_labels_have_uniform_p_values_and_no_redundancy(tmp_path):
    tasks = {f"t{i}": list(zip(TEXTS[:80], drawn(i, 80), strict=True)) for i in range(12)}
    found = judge(suite_of(tmp_path, tasks), num_permutations=39)
    upper = np.triu_indices(12, k=1)
    p_values, values = found.p_value[upper], found.values[upper]
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(values) == pytest.approx(0.0, abs=3 * values.std() / len(values) ** 0.5)


def test_too_few_shared_texts_say_nothing(tmp_path):
    for num, known in ((MIN_SHARED - 1, False), (MIN_SHARED, True)):
        tasks = {
            "a": list(zip(TEXTS[:100], drawn(0, 100), strict=True)),
            "b": list(zip(TEXTS[100 - num : 200 - num], drawn(1, 100), strict=True)),
        }
        found = judge(suite_of(tmp_path / str(num), tasks))
        assert found.num_shared[0, 1] == num
        assert np.isfinite(found.values[0, 1]) == known


def test_pairs_are_shared_only_as_pairs(tmp_path):
    labels = drawn(0, 60)
    pairs = [(text, f"and {text}", label) for text, label in zip(TEXTS[:60], labels, strict=True)]
    swapped = [(second, first, label) for first, second, label in pairs]
    single = [(first, label) for first, _, label in pairs]
    tasks = {"pairs": pairs, "same": pairs, "swapped": swapped, "single": single}
    found = judge(suite_of(tmp_path, tasks))
    np.testing.assert_array_equal(found.num_shared[0], [0, 60, 0, 0])
    assert found.values[0, 1] > 1


def test_a_repeated_text_counts_once_with_its_first_label(tmp_path):
    labels = drawn(0, 40)
    rows = list(zip(TEXTS[:40], labels, strict=True))
    again = list(zip(TEXTS[:40], drawn(1, 40), strict=True))
    found = judge(suite_of(tmp_path, {"a": rows + again, "b": rows}))
    assert found.num_shared[0, 1] == 40
    assert found.values[0, 1] > 1


def test_regressions_take_no_part(toy_suite_dict):
    suite = load_suite(toy_suite_dict)
    found = judge(suite)
    degree = suite.names.index("degree")
    assert np.isnan(found.values[degree]).all()
    assert (found.num_shared[degree] == 0).all()


def test_the_same_generator_gives_the_same(tmp_path):
    tasks = {f"t{i}": list(zip(TEXTS[:60], drawn(i, 60), strict=True)) for i in range(2)}
    suite = suite_of(tmp_path, tasks)
    first, same, other = (judge(suite, seed=seed).values[0, 1] for seed in (0, 0, 1))
    assert first == same != other
