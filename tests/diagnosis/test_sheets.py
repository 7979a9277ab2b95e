"""A diagnosis in a terminal of 80 columns: every number whole, with many tasks and long names."""

import io
import math
import re

import numpy as np
import pytest
from rich.console import Console

from coadapt._errors import InputError
from coadapt._sheet import to_markdown
from coadapt.diagnosis import Diagnosis, PairMeasure, TableMeasure, TaskMeasure
from coadapt.diagnosis.sheets import pair_sheet, sheets


def make(num, name="task{}", module="encoder.layer.{}.attention.self.query"):
    rng = np.random.default_rng(num)
    values = rng.uniform(-1, 1, size=(num, num))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1.0)
    partly = values.copy()
    partly[0, 1] = partly[1, 0] = math.nan
    names = tuple(name.format(i) for i in range(num))

    def pair(title, array, **others):
        return PairMeasure(title=title, reading=f"reading of {title}", values=array, **others)

    return Diagnosis(
        tasks=names,
        of="model m, suite s",
        rows=dict.fromkeys(names, 100),
        pairs={
            "similarity": pair("similarity", values, low=values - 0.1, high=values + 0.1),
            "absolute": pair("absolute", abs(values)),
            "corrected": pair("corrected", partly, low=partly - 0.2, high=partly + 0.3),
            "representation": pair("representation", partly),
            "redundancy": pair("redundancy", partly, p_value=abs(partly)),
        },
        by_task={
            "rows": TaskMeasure(title="rows looked at", reading="r", values=np.full(num, 100.0)),
            "reliability": TaskMeasure(
                title="reliability", reading="r", values=np.full(num, math.nan)
            ),
        },
        tables={
            "entropy": TableMeasure(
                title="entropy",
                reading="reading of entropy",
                rows=tuple(module.format(i) for i in range(4)),
                columns=names,
                values=rng.uniform(size=(4, num)),
            )
        },
        notes=("a note",),
    )


def printed(found):
    file = io.StringIO()
    console = Console(file=file, width=80)
    for sheet in sheets(found):
        console.print(sheet.to_rich())
    return file.getvalue()


SHAPES = {
    "two": (2, "task{}"),
    "seven": (7, "task{}"),
    "eight of middling names": (8, "task_number_{}"),
    "twelve": (12, "task{}"),
    "four of 50 letters": (4, "x" * 49 + "{}"),
    "twelve of 100 letters": (12, "x" * 98 + "{}"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_line_fits_and_every_number_is_whole(shape):
    found = make(*SHAPES[shape])
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    words = text.split()
    for sheet in sheets(found):
        for row in sheet.rows:
            for word in " ".join(row[1:]).split():
                assert word in words, (sheet.title, word)
    for said in ("a note", "reading of similarity", "absolute: reading of absolute"):
        assert said in text


@pytest.mark.parametrize("shape", SHAPES)
def test_names_are_told_in_full(shape):
    found = make(*SHAPES[shape])
    letters = re.sub(r"\s", "", printed(found))
    # A long name goes over lines, other cells of the row between its parts.
    assert all(name[:20] in letters for name in found.tasks)


def test_few_tasks_make_a_matrix():
    sheet = pair_sheet(make(3), "similarity")
    values = make(3).pair("similarity").values
    assert sheet.columns == ("", "task0", "task1", "task2")
    assert [row[0] for row in sheet.rows] == ["task0", "task1", "task2"]
    for i, row in enumerate(sheet.rows):
        for j, cell in enumerate(row[1:]):
            assert cell == ("" if i == j else f"{values[i, j]:.2f} ±0.10")
    assert sheet.notes == ("reading of similarity; ± half of the 95 % bootstrap interval",)


def test_cells_without_a_value_or_an_interval():
    found = make(3)
    values = found.pair("representation").values
    assert pair_sheet(found, "representation").rows[0] == ("task0", "", "-", f"{values[0, 2]:.2f}")
    told = pair_sheet(found, "redundancy")
    assert told.rows[0][3] == f"{values[0, 2]:.2f} p={abs(values[0, 2]):.2f}"
    assert "p by permutation" in told.notes[0]
    assert "without interval" in pair_sheet(found, "absolute").notes[0]
    assert pair_sheet(found, "corrected").rows[0][3].endswith("±0.25")


def test_many_tasks_list_the_pairs_at_the_ends():
    found = make(12)
    sheet = pair_sheet(found, "representation")
    values = found.pair("representation").values
    upper = values[np.triu_indices(12, k=1)]
    ranked = np.sort(upper[~np.isnan(upper)])[::-1]
    told = [float(row[1]) for row in sheet.rows]
    np.testing.assert_allclose(told, [*ranked[:10], *ranked[-10:]], atol=0.005)
    for pair, value in sheet.rows:
        first, second = pair.split(", ")
        i, j = found.tasks.index(first), found.tasks.index(second)
        assert i < j
        assert value == f"{values[i, j]:.2f}"
    assert "20 of 65 pairs" in sheet.notes[0]


def test_wide_tables_are_told_in_parts():
    parts = [sheet for sheet in sheets(make(12)) if sheet.title.startswith("entropy")]
    assert [sheet.title for sheet in parts] == ["entropy (1 of 2)", "entropy (2 of 2)"]
    assert [name for sheet in parts for name in sheet.columns[1:]] == list(make(12).tasks)
    for part in parts:
        assert [row[0] for row in part.rows] == ["0", "1", "2", "3"]  # what the names differ in
    values = np.array([[float(c) for part in parts for c in part.rows[m][1:]] for m in range(4)])
    np.testing.assert_allclose(values, make(12).tables["entropy"].values, rtol=0.006)
    assert parts[0].notes == ()
    assert parts[1].notes[0] == "reading of entropy"
    assert parts[1].notes[-1] == "a note"


def test_module_names_lose_what_all_have_in_common():
    (table,) = (sheet for sheet in sheets(make(2)) if sheet.title == "entropy")
    assert [row[0] for row in table.rows] == ["0", "1", "2", "3"]
    found = make(2, module="block{}.query")
    assert [row[0] for row in sheets(found)[-1].rows] == [f"block{i}" for i in range(4)]


def test_a_diagnosis_without_pairs_or_tables_has_its_notes():
    found = Diagnosis(
        tasks=("a", "b"),
        of="run r",
        rows={"a": 1, "b": 2},
        by_task={"rows": TaskMeasure(title="rows", reading="1 to 2", values=np.array([1.0, 2.0]))},
        notes=("why there is no more",),
    )
    (sheet,) = sheets(found)
    assert sheet.rows == (("a", "1"), ("b", "2"))
    assert sheet.notes == ("rows: 1 to 2", "why there is no more")


def test_markdown_has_the_same_cells():
    text = to_markdown(sheets(make(3)))
    for sheet in sheets(make(3)):
        assert f"**{sheet.title}**" in text
        for row in sheet.rows:
            assert "| " + " | ".join(row) + " |" in text


def test_an_unknown_measure_is_refused():
    with pytest.raises(InputError, match="no 'fisher' by pair"):
        pair_sheet(make(2), "fisher")
