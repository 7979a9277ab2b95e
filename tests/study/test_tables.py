"""Tables: what stands in them, in a terminal of 80 columns and as Markdown."""

import io
import re

import pytest
from rich.console import Console

from coadapt._sheet import Sheet, to_markdown
from coadapt.study import tables
from tests.study.inline import grid_of

NAMES = ("lora", "private", "clustered-families", "clustered-sources", "shared_private", "frozen")
PAIRS = {"a": ["sentiment", "same"], "b": ["topic", "degree"]}
TASKS = ("trec6", "trec50", "spam", "tweets", "amazon", "movie", "nyt")


def difference(outcome="tie", **keys):
    return {
        "mean": 0.012, "low": -0.031, "high": 0.055, "p_value": 0.1, "num": 3,
        "rows": [-0.021, 0.031], "outcome": outcome, "p_holm": 0.123, **keys,
    }  # fmt: skip


def arm_of(name, *, base=False, **keys):
    """Return an arm's row of a summary with numbers of the usual size."""
    mark = "" if name == "frozen" else "-R8"
    compared = {
        "difference": difference(), "sd": 0.01, "seeds_needed": 12, "win": 1, "tie": 5, "loss": 1,
        "task_differences": {
            task: difference({"spam": "win", "nyt": "loss"}.get(task, "tie")) for task in TASKS
        },
    }  # fmt: skip
    return {
        "arm": name + mark, "recipe": name.partition("-")[0], "plan": None, "seeds": [0, 1, 2],
        "mean": 0.811, "low": 0.79, "high": 0.832, "scores": [0.8, 0.81, 0.82],
        "tasks": {task: {"mean": 0.7 + i / 100} for i, task in enumerate(TASKS)},
        "trainable": 147456 if mark else 0, "allowed": 147456 if mark else None,
        "scale": 2.0 if mark else None, "chosen": 1,
        "tried": [
            {"trial": t, "seed": s, "learning_rate": 2e-3 * (t + 1), "epochs": 8.0 * (t + 1),
             "status": "finished", "halfway": 0.1 * t + 0.01 * s, "validation": 0.5 + 0.1 * t}
            for t in (0, 1) for s in (0, 1)
        ],
        "steps": 100.0, "tokens": 123456.0, "seconds": 61.2,
        "updates": ([40, 40] if name == "lora" else [12, 1040]) if mark else None,
        "regret": {"always shared": 0.0, "always private": -0.0123, "best": 0.004},
        **({} if base else compared), **keys,
    }  # fmt: skip


def table_of(arms=None, **keys):
    return {
        "rows": 100, "tasks": list(TASKS), "subset": "seven", "budget": 8, "baseline": "lora-R8",
        "arms": arms or [arm_of(name, base=name == "lora") for name in NAMES],
        "partitions": [
            {"plan": "clustered-families-R8", "score": 0.811, "null": [0.79, 0.823, 0.80],
             "existing": 106, "all": False, "p_value": 0.048, "z": -1.23,
             "sd_partitions": 0.0123, "sd_seeds": 0.0045}
        ],
        **keys,
    }  # fmt: skip


def summary_of(*found, **keys):
    points = [
        {"set": "two", "num_tasks": 2, "seeds": [0, 1, 2], "mean": 0.9, "low": 0.88, "high": 0.92},
        {**arm_of("lora"), "set": "seven", "num_tasks": 7},
    ]
    series = {"arm": "lora-R8", "rows": 100, "tasks": ["trec6", "amazon"], "points": points}
    return {
        "study": "toy", "baseline": "lora", "seeds": [0, 1, 2], "tuning_seeds": [0],
        "effect": 0.01, "tables": list(found or [table_of()]), "over_tasks": [series],
        "missing": {}, "infeasible": {}, **keys,
    }  # fmt: skip


def printed(sheet, width=80):
    file = io.StringIO()
    Console(width=width, file=file).print(sheet.to_rich())
    return file.getvalue()


def cells_of(sheet, name):
    return next(row for row in sheet.rows if row[0] == name)


# What stands in them -----------------------------------------------------------------------


def test_scores_and_differences():
    sheet = tables.main_sheets(summary_of())[0]
    assert sheet.title == (
        "100 training rows a task, seven, 7 tasks, rank budget 8: mean test score over the tasks, "
        "± 95 % over 3 seeds"
    )
    assert sheet.columns == ("", "score", "less lora", "other rows", "p (Holm)", "w/t/l")
    assert [row[0] for row in sheet.rows] == list(NAMES)
    assert sheet.rows[0] == ("lora", "0.811 ±0.021", "", "", "", "")
    row = ("private", "0.811 ±0.021", "+0.012 ±0.043", "-0.021 +0.031", "0.123", "1/5/1")
    assert sheet.rows[1] == row


@pytest.mark.parametrize(("outcome", "mark"), [("win", " +"), ("loss", " -"), ("tie", "")])
def test_wins_and_losses_are_marked(outcome, mark):
    arms = [arm_of("lora", base=True), arm_of("private", difference=difference(outcome))]
    sheet = tables.main_sheets(summary_of(table_of(arms)))[0]
    assert cells_of(sheet, "private")[2] == f"+0.012 ±0.043{mark}"


def test_wins_and_losses_by_task_are_marked_and_explained():
    (sheet,) = tables.detail_sheets(summary_of())[1:]
    assert sheet.title.endswith(": test score by task, 3 seeds")
    assert sheet.columns == ("", *TASKS, "mean")
    plain = ("0.700", "0.710", "0.720", "0.730", "0.740", "0.750", "0.760", "0.811")
    assert sheet.rows[0] == ("lora", *plain)
    assert sheet.rows[1] == ("private", *plain[:2], "0.720 +", *plain[3:6], "0.760 -", "0.811")
    assert "better or worse than lora-R8" in sheet.notes[0]
    alone = tables.detail_sheets(summary_of(table_of(baseline=None)))[1]
    assert alone.notes == ()


def test_what_it_took():
    sheet = tables.detail_sheets(summary_of())[0]
    assert sheet.title.endswith(": what it took (means of 3 seeds)")
    lora, private = (
        dict(zip(sheet.columns, cells_of(sheet, name), strict=True))
        for name in ("lora-R8", "private-R8")
    )
    assert lora == {
        "": "lora-R8", "trained values": "147,456", "scale": "2",
        "chosen of the trials": "0.004 x 16", "validation halfway, end": "0.105, 0.600",
        "updates an adapter": "40", "tokens": "123,456", "seconds": "61",
        "regret: always shared": "+0.000", "regret: always private": "-0.012",
        "regret: best": "+0.004", "seeds to show 0.01": "-",
    }  # fmt: skip
    assert private["updates an adapter"] == "12 to 1,040"
    assert private["seeds to show 0.01"] == "12"
    frozen = dict(zip(sheet.columns, cells_of(sheet, "frozen"), strict=True))
    assert (frozen["scale"], frozen["updates an adapter"]) == ("-", "-")


def test_a_plan_among_partitions():
    sheet = tables.main_sheets(summary_of())[1]
    assert sheet.title.endswith("a plan among random ones of the same sizes, 3 seeds")
    assert dict(zip(sheet.columns, sheet.rows[0], strict=True)) == {
        "plan": "clustered-families-R8", "score": "0.811", "random": "0.790 to 0.823",
        "tried": "3 of 105", "p (rank)": "0.048", "z": "-1.2", "sd plans, seeds": "0.012, 0.004",
    }  # fmt: skip


def test_scores_over_sets_of_tasks():
    sheet = tables.main_sheets(summary_of())[-1]
    assert sheet.title == (
        "lora-R8 as more tasks share it, 100 training rows a task: mean test score over trec6, "
        "amazon, ± 95 % over 3 seeds"
    )
    assert sheet.columns[3] == "less two"
    assert sheet.rows == (
        ("two", "2", "0.900 ±0.020", "", "", "", ""),
        ("seven", "7", "0.811 ±0.021", "+0.012 ±0.043", "-0.021 +0.031", "0.123", "1/5/1"),
    )


@pytest.mark.parametrize("none", [None, float("nan")], ids=["null", "nan"])
def test_where_no_number_can_be_told_there_is_a_dash(none):
    nothing = difference(low=none, high=none, p_holm=none, rows=None)
    arms = [
        arm_of("lora", base=True, low=none, high=none, seeds=[0]),
        arm_of("private", mean=none, low=none, high=none, seeds=[0], difference=nothing,
               seeds_needed=None, chosen=None, tokens=None, seconds=None, updates=None, regret={}),
    ]  # fmt: skip
    summary = summary_of(table_of(arms))
    summary["tables"][0]["partitions"][0] |= {"z": none, "sd_partitions": none}
    main, partitions, _ = tables.main_sheets(summary)
    costs = tables.detail_sheets(summary)[0]
    assert "± 95 % over 1 seeds" in main.title
    assert main.rows == (
        ("lora", "0.811", "", "", "", ""),
        ("private", "-", "+0.012", "-", "-", "1/5/1"),
    )
    assert partitions.rows[0][-2:] == ("-", "-, 0.004")
    assert cells_of(costs, "private-R8")[3:] == ("-",) * 9


def test_arms_with_other_numbers_of_seeds():
    arms = [arm_of("lora", base=True), arm_of("private", seeds=[0]), arm_of("frozen", seeds=[])]
    for sheet in tables.main_sheets(summary_of(table_of(arms)))[:2]:
        assert "0 or 1 or 3 seeds" in sheet.title


def test_every_title_has_the_number_of_seeds(toy_study, tmp_path):
    summary = summary_of(missing={"a": "not run"}, infeasible={"b": "too small"})
    sheets = [
        *tables.main_sheets(summary),
        *tables.detail_sheets(summary),
        *tables.cells_sheets(summary),
        *tables.compared_sheets(summary),
    ]
    assert len(sheets) == 9
    assert all(re.search(r"\b3 seeds", sheet.title) for sheet in sheets)
    grid = grid_of(tmp_path, {**toy_study, "seeds": [0, 4, 5]})
    assert "3 seeds" in tables.plan_sheet(grid).title


def test_what_a_study_will_spend(toy_study, tmp_path):
    toy_study["recipes"] = {
        "lora": None,
        "frozen": None,
        "clustered": {"plans": ["pairs", "chance"]},
        "mine": {"recipe": {"structure": {"kind": "bank", "scale": 0.5}, "sharing": "private"}},
    }
    toy_study["plans"] = {
        "pairs": {"kind": "clusters", "clusters": PAIRS},
        "chance": {"kind": "random", "like": "pairs", "count": 2},
    }  # fmt: skip
    toy_study |= {"budgets": [8, 2], "rows": [8, 12]}
    sheet = tables.plan_sheet(grid_of(tmp_path, toy_study))
    assert sheet.columns == ("", "rank", "scale", "trained values", "of a plain LoRA's", "trials")
    assert sheet.rows == (
        ("lora-R8", "8", "2", "2,048", "100.0 %", "2"),
        ("lora-R2", "2", "2", "512", "100.0 %", "2"),
        ("frozen", "-", "-", "0", "outside (no rank axis)", "2"),
        ("clustered-pairs-R8", "8", "2", "2,048", "100.0 %", "2"),
        ("clustered-pairs-R2", "2", "2", "512", "100.0 %", "2"),
        ("mine-R8", "8", "0.5", "2,048", "100.0 %", "2"),
    )


def test_what_could_not_run_is_listed_by_reason():
    missing = {f"g/final_seed{i}": "failed: OSError: full" for i in range(6)}
    summary = summary_of(
        missing={**missing, "h/trial0_seed0": "not run"},
        infeasible={"private-R2": "too small", "private-R3": "too small"},
    )
    infeasible, lost = tables.cells_sheets(summary)
    assert infeasible.title == "not possible within the budget, of a study with 3 seeds"
    assert infeasible.rows == (("private-R2, private-R3", "too small"),)
    assert lost.title.startswith("cells without a result")
    some = ", ".join(f"g/final_seed{i}" for i in range(4))
    assert lost.rows == (
        (f"{some} and 2 more", "failed: OSError: full"),
        ("h/trial0_seed0", "not run"),
    )
    assert tables.cells_sheets(summary_of()) == []


def test_compared_runs_have_two_tables_each():
    table = table_of(rows=None, subset=None, budget=None)
    sheets = tables.compared_sheets({"tables": [table, table], "notes": []})
    assert [sheet.title.partition(":")[0] for sheet in sheets] == ["7 tasks"] * 4
    assert sheets[0].rows[1][0] == "private-R8"
    assert sheets[1].columns[1:-1] == TASKS


# How they look -----------------------------------------------------------------------------


def test_six_arms_fit_a_terminal_of_80_columns():
    wins = [arm_of(name, base=name == "lora", difference=difference("win")) for name in NAMES]
    del wins[0]["difference"]
    for sheet in tables.main_sheets(summary_of(table_of(wins))):
        text = printed(sheet)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
        for row in sheet.rows if sheet.columns[0] != "plan" else ():
            line = next(line for line in text.splitlines() if line.startswith(row[0] + " "))
            assert line.split() == " ".join(row).split()  # the row is one line
    by_task = printed(tables.detail_sheets(summary_of(table_of([wins[0]])))[1])
    assert "…" not in by_task


def test_a_narrow_terminal_folds_and_loses_nothing():
    for sheet in [*tables.main_sheets(summary_of()), *tables.detail_sheets(summary_of())]:
        assert "…" not in printed(sheet, width=60)


def test_brackets_and_colons_are_no_markup():
    sheet = Sheet(
        title="[bold]t[/bold] :smile:",
        columns=("[red]a", "b"),
        rows=(("[/data/x]", "found ['a']; [/] :warning:"),),
        notes=("[i]n",),
    )
    text = printed(sheet)
    for part in ("[bold]t[/bold] :smile:", "[red]a", "[/data/x]", "[/] :warning:", "[i]n"):
        assert part in text


def cells_in(line):
    """Return a Markdown row's cells, as a reader of GitHub's dialect cuts them."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    return [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_has_the_same_cells_in_every_row():
    bad = {"a|b": "failed: ValueError: x | y\nand\n\n| more", "c": "not run"}
    summary = summary_of(missing=bad)
    sheets = [
        *tables.main_sheets(summary),
        *tables.detail_sheets(summary),
        *tables.cells_sheets(summary),
    ]
    blocks = to_markdown(sheets).split("**\n\n")[1:]
    assert len(blocks) == len(sheets)
    for sheet, block in zip(sheets, blocks, strict=True):
        lines = block.split("\n\n")[0].strip().splitlines()
        found = [cells_in(line) for line in lines]
        assert found[0] == list(sheet.columns)
        assert found[1] == ["---"] * len(sheet.columns)
        assert found[2:] == [[" ".join(cell.split()) for cell in row] for row in sheet.rows]
    assert "a\\|b" in blocks[-1]


def test_markdown_of_a_sheet():
    sheet = Sheet(
        title="t, 3 seeds", columns=("", "x"), rows=(("a", "1"), ("b", "2")), notes=("n",)
    )
    rows = "**t, 3 seeds**\n\n|  | x |\n| --- | --- |\n| a | 1 |\n| b | 2 |\n"
    assert sheet.to_markdown() == f"{rows}\nn\n"
    bare = Sheet(title="t, 3 seeds", columns=("", "x"), rows=sheet.rows)
    assert bare.to_markdown() == rows
    assert to_markdown([bare, sheet]) == f"{rows}\n{rows}\nn\n"
