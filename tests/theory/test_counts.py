"""Counts against loops over rows, scikit-learn, and exact null distributions."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats.contingency import crosstab
from sklearn.metrics import mutual_info_score

from coadapt._errors import InputError
from coadapt.theory import contingency_table, total_correlation_counts
from tests.reference.slow_theory import columns_of, counted_correlation

rows_of_labels = st.integers(1, 4).flatmap(
    lambda T: st.lists(st.tuples(*[st.integers(-1, 2)] * T), min_size=1, max_size=30)
)


def rng(seed=0):
    return np.random.default_rng(seed)


@given(rows_of_labels)
@settings(deadline=None, max_examples=50)
def test_both_estimators_are_those_of_a_loop(rows):
    table = contingency_table(rows)
    plugin = total_correlation_counts(table, force=True)
    corrected = total_correlation_counts(table, method="miller_madow", force=True)
    assert plugin.value == pytest.approx(counted_correlation(rows), abs=1e-12)
    expected = counted_correlation(rows, corrected=True)
    assert corrected.value == pytest.approx(expected, abs=1e-12)
    assert plugin.n == len(rows)
    assert plugin.p_value is plugin.null_mean is plugin.null_std is None


def test_of_two_labels_it_is_their_mutual_information():
    labels = rng().integers(0, 3, size=(200, 2))
    labels[:80, 1] = labels[:80, 0]
    expected = mutual_info_score(labels[:, 0], labels[:, 1])
    assert total_correlation_counts(contingency_table(labels)).value == pytest.approx(expected)


def test_tables_are_those_of_scipy():
    labels = rng(1).integers(-2, 2, size=(50, 3))
    np.testing.assert_array_equal(contingency_table(labels), crosstab(*labels.T).count)


def test_values_that_never_occur_change_nothing():
    table = np.zeros((4, 3, 2))
    table[:2, ::2] = [[[9, 1], [2, 8]], [[3, 7], [9, 4]]]
    squeezed = table[:2, ::2]
    for method in ("plugin", "miller_madow"):
        values = [
            total_correlation_counts(t, method=method, force=True).value for t in (table, squeezed)
        ]
        assert values[0] == pytest.approx(values[1], abs=1e-12)


def test_constant_and_copied_labels():
    assert total_correlation_counts([[30, 20]]).value == pytest.approx(0, abs=1e-15)
    assert total_correlation_counts([30, 20]).value == 0
    copied = np.zeros((2, 2, 2))
    copied[0, 0, 0] = copied[1, 1, 1] = 20
    assert total_correlation_counts(copied).value == pytest.approx(2 * np.log(2))


def test_bias_under_independence_is_as_told_and_mostly_removed():
    sizes, n = (3, 2, 4), 240
    draws = [
        contingency_table(np.stack([generator.integers(0, m, size=n) for m in sizes], axis=1))
        for generator in map(np.random.default_rng, range(300))
    ]
    told = ((24 - 1) - (2 + 1 + 3)) / (2 * n)
    found = [total_correlation_counts(table).value for table in draws]
    error = stats.sem(found)
    assert np.mean(found) == pytest.approx(told, abs=4 * error + 0.05 * told)
    corrected = [total_correlation_counts(t, method="miller_madow").value for t in draws]
    assert abs(np.mean(corrected)) < 4 * error + 0.05 * told
    assert min(corrected) < 0


def test_null_of_a_two_by_two_table_is_hypergeometric():
    table = np.array([[14, 6], [7, 13]])
    n, row, column = table.sum(), table[0].sum(), table[:, 0].sum()
    cells = np.arange(max(0, row + column - n), min(row, column) + 1)
    chances = stats.hypergeom.pmf(cells, n, row, column)
    tables = [np.array([[c, row - c], [column - c, n - row - column + c]]) for c in cells]
    values = np.array([mutual_info_score(None, None, contingency=t) for t in tables])
    num = 4000
    found = total_correlation_counts(table, num_permutations=num, generator=rng(5))
    assert found.p_value is not None
    assert found.null_std is not None
    p = chances[values >= found.value - 1e-12].sum()
    assert found.p_value == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / num))
    mean = chances @ values
    std = np.sqrt(chances @ (values - mean) ** 2)
    assert found.null_mean == pytest.approx(mean, abs=4 * std / np.sqrt(num))
    assert found.null_std == pytest.approx(std, rel=0.15)
    # Of two permutations, mean and standard deviation give both values back.
    two = total_correlation_counts(table, num_permutations=2, generator=rng(0))
    assert two.null_mean is not None
    assert two.null_std is not None
    assert two.null_std > 0
    for sign in (-1, 1):
        value = two.null_mean + sign * two.null_std / np.sqrt(2)
        assert np.abs(values - value).min() < 1e-12


def test_null_shuffles_every_label_on_its_own():
    rows = [(0, 0, 0), (0, 0, 0), (1, 1, 1), (1, 1, 0), (0, 1, 1)]
    columns = columns_of(rows)
    values = np.array(
        [
            counted_correlation(list(zip(columns[0], second, third, strict=True)))
            for second in permutations(columns[1])
            for third in permutations(columns[2])
        ]
    )
    num = 3000
    found = total_correlation_counts(
        contingency_table(rows), num_permutations=num, generator=rng(6), force=True
    )
    p = (values >= found.value - 1e-12).mean()
    assert 0.1 < p < 0.9
    assert found.null_mean == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(num))
    assert found.p_value == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / num))


def test_p_values_are_never_zero_and_repeat_with_the_generator():
    table = [[200, 1], [1, 200]]
    first, second = (
        total_correlation_counts(table, num_permutations=99, generator=rng(7)) for _ in range(2)
    )
    assert first == second
    assert first.p_value == 1 / 100
    flat = total_correlation_counts([[50, 50], [50, 50]], num_permutations=9, generator=rng())
    assert flat.p_value == 1.0


def test_the_null_uses_the_same_estimator():
    table = rng(8).integers(5, 20, size=(3, 4))
    plugin, corrected = (
        total_correlation_counts(table, method=method, num_permutations=200, generator=rng(9))
        for method in ("plugin", "miller_madow")
    )
    assert plugin.null_mean is not None
    assert corrected.null_mean is not None
    bias = (11 - 2 - 3) / (2 * table.sum())
    assert plugin.null_mean == pytest.approx(bias, rel=0.3)
    assert corrected.null_mean == pytest.approx(plugin.null_mean - bias, abs=0.1 * bias)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[1, 2], [3, 4]], "10 rows in 4 cells are too few, 5 a cell are the least"),
        ([[0.5, 0.5], [0.0, 0.0]], "counts must be whole numbers"),
        ([[-1, 50], [50, 50]], "counts must be whole numbers of at least 0"),
        ([[np.nan, 50]], "counts must be a table of finite numbers"),
        ([[0, 0], [0, 0]], "counts are all 0"),
        (50, "counts must be a table"),
    ],
    ids=["few", "shares", "negative", "nan", "empty", "scalar"],
)
def test_bad_counts_are_refused(counts, message):
    with pytest.raises(InputError, match=message):
        total_correlation_counts(counts)


def test_few_rows_are_accepted_by_force_or_when_just_enough():
    assert total_correlation_counts([[1, 2], [3, 4]], force=True).n == 10
    assert total_correlation_counts([[5, 5], [5, 5]]).n == 20


def test_bad_options_are_refused():
    table = [[50, 50], [50, 50]]
    with pytest.raises(InputError, match="method must be one of"):
        total_correlation_counts(table, method="jackknife")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="num_permutations must be a whole number of at least 0"):
        total_correlation_counts(table, num_permutations=-1)
    with pytest.raises(InputError, match="num_permutations must be 0 or at least 2, not 1"):
        total_correlation_counts(table, num_permutations=1, generator=rng())
    with pytest.raises(InputError, match="generator must be given"):
        total_correlation_counts(table, num_permutations=10)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0.5, 1.0]], r"labels must be \(n, T\) whole numbers, not float64"),
        ([0, 1], r"not int64 of shape \(2,\)"),
        (np.zeros((0, 2), dtype=int), r"shape \(0, 2\)"),
        (np.arange(60).reshape(2, 30), "cells: take fewer labels"),
    ],
    ids=["fractions", "vector", "empty", "huge"],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        contingency_table(labels)
