"""The arms by the number of training rows: one sheet for each budget and set of tasks."""

from coadapt.study.overview import overview_sheets
from tests.study.test_tables import arm_of, difference, summary_of, table_of


def tables_at(*rows, **keys):
    return [table_of(rows=number, **keys) for number in rows]


def test_one_amount_of_data_needs_no_overview():
    assert overview_sheets(summary_of(table_of())) == []
    both = summary_of(table_of(budget=8), table_of(budget=32))
    assert overview_sheets(both) == []


def test_a_sheet_for_each_budget_and_set_with_a_column_an_amount():
    summary = summary_of(*tables_at(30, 100, budget=8), *tables_at(30, 100, budget=32))
    first, second = overview_sheets(summary)
    assert first.columns == second.columns == ("", "30 rows", "100 rows")
    assert "rank budget 8" in first.title
    assert "rank budget 32" in second.title
    assert "3 seeds" in first.title
    assert [row[0] for row in first.rows][:2] == ["lora", "private"]


def test_the_baseline_shows_its_score_and_the_others_their_difference():
    won = arm_of("private", difference=difference("win", mean=0.05, low=0.02, high=0.08))
    arms = [arm_of("lora", base=True), won]
    summary = summary_of(table_of(arms, rows=30), *tables_at(100))
    (sheet,) = overview_sheets(summary)
    found = {row[0]: row[1:] for row in sheet.rows}
    assert found["lora"][0] == "0.811 ±0.021"
    assert found["private"] == ("+0.050 ±0.030 +", "+0.012 ±0.043")
    assert found["frozen"] == ("-", "+0.012 ±0.043")  # not run with 30 rows


def test_a_baseline_that_has_not_been_run_leaves_dashes():
    base = arm_of("lora", base=True, seeds=[], mean=float("nan"), low=None, high=None)
    arms = [base, arm_of("private", base=True)]
    (sheet,) = overview_sheets(summary_of(table_of(arms, rows=30), *tables_at(100)))
    found = {row[0]: row[1:] for row in sheet.rows}
    assert (found["lora"][0], found["private"][0]) == ("-", "-")
    assert "over 0 or 3 seeds" in sheet.title


def test_without_a_baseline_scores_stand_alone():
    arms = [arm_of("lora", base=True), arm_of("private", base=True)]
    summary = summary_of(*(table_of(arms, rows=n, baseline=None) for n in (30, 100)))
    (sheet,) = overview_sheets(summary)
    assert "difference" not in sheet.title
    assert sheet.rows[1] == ("private", "0.811 ±0.021", "0.811 ±0.021")
