"""docs/claims.md: every verdict is an allowed one, is counted, and points to what exists."""

import re
from collections import Counter
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
VERDICTS = (
    "supported",
    "supported in part",
    "not supported",
    "false as stated",
    "cannot be told here",
    "not measured yet",
)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def tables() -> dict[str, list[list[str]]]:
    """Rows of each section's table, without its head and rule."""
    found = {}
    for section in re.split(r"^## ", (DOCS / "claims.md").read_text(encoding="utf-8"), flags=re.M):
        rows = [line for line in section.splitlines() if line.startswith("|")]
        if rows:
            found[section.splitlines()[0]] = [cells(row) for row in rows[2:]]
    return found


TABLES = tables()
SUMMARY = TABLES.pop("Summary")
ROWS = [row for table in TABLES.values() for row in table]


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])
def test_each_claim_has_a_verdict_and_a_file_that_shows_it(row):
    _claim, verdict, shown = row
    assert verdict in VERDICTS
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", shown)
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
    assert links or tests
    for link in links:
        assert (DOCS / link).resolve().is_file(), link
    for path, name in tests:
        assert f"\ndef {name}(" in (DOCS.parent / path).read_text(encoding="utf-8"), name


def test_the_summary_counts_the_verdicts():
    counted = {
        paper: [str(Counter(row[1] for row in rows)[verdict]) for verdict in VERDICTS]
        for paper, rows in TABLES.items()
    }
    assert {row[0]: row[1:] for row in SUMMARY} == counted
