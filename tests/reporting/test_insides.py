"""What lies in a run's folder ``analysis``, on the report's page."""

import json

import numpy as np
import pytest

from coadapt import InputError
from coadapt.diagnosis import Diagnosis, PairMeasure, TableMeasure, TaskMeasure
from coadapt.reporting import collect, render
from tests.reporting.pages import check

MODULES = tuple(f"encoder.layer.{i}.self.{m}" for i in (0, 1) for m in ("query", "value"))
ASSUMED = ("delta_teacher: assumes that the teacher is right", "the noise is this run's own")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "mine"
    (folder / "analysis").mkdir(parents=True)
    (folder / "config.yaml").write_text("recipe_name: lora\n", encoding="utf-8")
    return folder


def table(title, rows, columns, values):
    return TableMeasure(
        title=title, reading="read it so", rows=rows, columns=columns, values=np.array(values)
    )


def diagnosis():
    """Of two tasks, one block a task, four maps in two layers."""
    columns = ("value", "low", "high", "p", "bias", "rows")
    estimates = {
        "delta_hat: a, b": [0.25, 0.1, 0.4, 0.001, 0.02, 90],
        "null_alignment: unrelated rows": [-0.01, -0.05, 0.03, 0.6, 0.02, 90],
    }
    blocks = ("a", "b")
    tables = {
        "coupling": table("residual coupling", tuple(estimates), columns, [*estimates.values()]),
        "capacity": table("proxy", MODULES, blocks, [[1, 5], [3, 5], [2, 6], [4, 6]]),
        "update": table("update", MODULES, blocks, [[1, 2]] * 4),
        "bounds": table(
            "together", MODULES, ("proxy", "water-filling", "bound"), [[5.0, 10.0, 20.0]] * 4
        ),
        "sweep": table(
            "noises", ("0.1 x unit SNR", "1 x unit SNR"), blocks, [[30.0, 60.0], [10.0, 22.0]]
        ),
    }
    pair = PairMeasure(title="each two", reading="r", values=np.array([[0, 0.25], [0.25, 0]]))
    return Diagnosis(
        tasks=blocks,
        of="run mine",
        rows={"a": 90, "b": 120},
        settings={"split": "validation"},
        pairs={"coupling of a, b": pair},
        by_task={
            "temperature": TaskMeasure(title="of heads", reading="r", values=np.array([1.5, 0.5]))
        },
        tables=tables,
        notes=ASSUMED,
    )


def parts_of(data, title):
    (section,) = [one for one in data["sections"] if one["title"] == title]
    return section["parts"]


def test_coupling_and_capacity_with_what_they_assume(run):
    diagnosis().save(run / "analysis/diagnosis.json")
    data = collect(run)
    page = check(render(data))
    parts = parts_of(data, "Coupling and capacity")
    text = page.of("main")[0]["text"]
    assert "Measured of run mine, on 90 to 120 validation rows a task." in text
    assert all(sentence in text for sentence in ASSUMED)
    (drawn,) = [part for part in parts if part.get("form") == "intervals"]
    # By p, not by where the interval lies; and in words in the picture's legend.
    assert [row["mark"] for row in drawn["rows"]] == ["win", "tie"]
    assert "0.250 (0.100 to 0.400), more than chance gives" in drawn["alt"]
    told = {e["text"] for e in page.of("text")}
    assert {"more than chance gives", "no more than chance gives"} <= told
    estimates, heads, totals, bounds = (part for part in parts if part["kind"] == "table")
    row = ["delta_hat: a, b", "0.250", "0.100 to 0.400", "0.001", "0.020", "90"]
    assert estimates["rows"][0] == row
    assert heads["rows"] == [["a", "1.50"], ["b", "0.50"]]
    assert totals["rows"] == [["a", "4.0", "30.0", "10.0"], ["b", "8.0", "60.0", "22.0"]]
    assert bounds["rows"] == [
        ["proxy", "20.0", "100 %"], ["water-filling", "40.0", "200 %"], ["bound", "80.0", "400 %"]
    ]  # fmt: skip
    (curves,) = [part for part in parts if part.get("form") == "lines"]
    first = curves["panels"][0]["series"]
    assert [(s["name"], s["x"], s["y"]) for s in first] == [
        ("a", [0, 1], [2.0, 3.0]), ("b", [0, 1], [5.0, 6.0])
    ]  # fmt: skip
    assert [
        note for note in estimates["notes"] if note.startswith(("delta", "null", "placebo"))
    ] == [
        "delta_hat: of the labels of tasks on the same texts.",
        "null_alignment: of rows that have nothing to do with each other; what chance looks like.",
    ]
    # Of two tasks there is one number, which the table has.
    assert not [part for part in parts if part.get("form") == "heat"]


def test_coupling_by_pair_is_of_the_tasks_that_have_some(run):
    whole = diagnosis()
    values = np.full((4, 4), np.nan)
    values[:3, :3] = [[0, 0.004, 0.02], [0.004, 0, -0.001], [0.02, -0.001, 0]]
    names = ("a", "b", "c", "elsewhere")
    three = Diagnosis(
        tasks=names,
        of="run mine",
        rows={},
        pairs={"coupling": PairMeasure(title="each two", reading="r", values=values)},
        by_task={"temperature": TaskMeasure(title="of heads", reading="r", values=np.ones(4))},
        tables={"coupling": whole.tables["coupling"]},
    )
    three.save(run / "analysis/diagnosis.json")
    data = collect(run)
    shown = {e["text"] for e in check(render(data)).of("text")}
    (pairs,) = [
        part for part in parts_of(data, "Coupling and capacity") if part.get("form") == "heat"
    ]
    assert pairs["names"] == ["a", "b", "c"]
    assert not pairs["tree"]  # nats are no distances
    assert "Highest: a and c, 0.020; lowest: b and c, -0.001." in pairs["alt"]
    assert {".004", ".020", "-.001"} <= {text.replace("\N{MINUS SIGN}", "-") for text in shown}


def test_a_given_diagnosis_leaves_the_run_s_own(run, tmp_path):
    diagnosis().save(run / "analysis/diagnosis.json")
    measure = PairMeasure(title="similarity", reading="r", values=np.eye(2))
    by_task = {"rows": TaskMeasure(title="rows", reading="r", values=np.array([9.0, 9.0]))}
    given = Diagnosis(
        tasks=("a", "b"), of="all", rows={}, pairs={"similarity": measure}, by_task=by_task
    )
    given.save(tmp_path / "given.json")
    titles = [section["title"] for section in collect(run, [tmp_path / "given.json"])["sections"]]
    assert titles[:2] == ["How the tasks relate", "Coupling and capacity"]
    # Of several runs each is named.
    titles = [section["title"] for section in collect(run.parent)["sections"]]
    assert "Coupling and capacity: mine" in titles


def test_many_blocks_are_in_the_table(run):
    blocks = tuple(f"block{index}" for index in range(50))
    values = np.arange(200.0).reshape(4, 50)
    tables = {name: table(name, MODULES, blocks, values) for name in ("capacity", "update")}
    tables["bounds"] = diagnosis().tables["bounds"]
    tables["sweep"] = table("noises", ("1 x unit SNR",), blocks, [values.sum(axis=0)])
    whole = diagnosis()
    many = Diagnosis(
        tasks=whole.tasks, of="run mine", rows={}, by_task=whole.by_task, tables=tables
    )
    many.save(run / "analysis/diagnosis.json")
    data = collect(run)
    text = check(render(data)).of("main")[0]["text"]
    assert "36 further blocks are in the table." in text
    parts = parts_of(data, "Coupling and capacity")
    (curves,) = [part for part in parts if part.get("form") == "lines"]
    assert "block13 " in curves["alt"]
    assert "block14 " not in curves["alt"]
    assert any(
        row[0] == "block49" for part in parts if part["kind"] == "table" for row in part["rows"]
    )


def test_without_estimates_or_adapters_there_is_what_there_is(run):
    whole = diagnosis()
    bare = Diagnosis(
        tasks=whole.tasks, of="run mine", rows={}, by_task=whole.by_task, notes=("no capacities",)
    )
    bare.save(run / "analysis/diagnosis.json")
    data = collect(run)
    check(render(data))
    kinds = [part["kind"] for part in parts_of(data, "Coupling and capacity")]
    assert kinds == ["text", "table", "text", "points", "fold"]


def heads(**changes):
    raw = dict(zip(MODULES, (0.1, 0.3, 0.2, 0.5), strict=True))
    moved = dict(zip(MODULES, (0.9, 0.7, None, 0.8), strict=True))
    plain = {"kind": "head_similarity", "compared": "B", "num_heads": 3, "raw": raw, "moved": moved}
    return {**plain, "notes": ["in 1 of 4 modules training added nothing"], **changes}


def write(run, plain):
    file = run / "analysis" / f"{plain['kind']}.json"
    file.write_text(json.dumps(plain), encoding="utf-8")


def test_similarity_of_heads(run):
    write(run, heads())
    data = collect(run)
    text = check(render(data)).of("main")[0]["text"]
    chart, sheet = parts_of(data, "Looking inside")
    as_they_are, added = (panel["series"] for panel in chart["panels"])
    assert [(s["name"], s["y"]) for s in as_they_are] == [
        ("query", [0.1, 0.2]),
        ("value", [0.3, 0.5]),
    ]
    assert [(s["name"], s["x"], s["y"]) for s in added] == [
        ("query", [0], [0.9]), ("value", [0, 1], [0.7, 0.8])
    ]  # fmt: skip
    assert sheet["rows"] == [
        ["all maps", "0.25", "0.80", "4"],
        ["query", "0.15", "0.90", "2"],
        ["value", "0.40", "0.75", "2"],
    ]
    assert "training added nothing" in text


def test_heads_without_any_cosine(run):
    nothing = dict.fromkeys(MODULES)
    write(run, heads(raw=nothing, moved=nothing))
    data = collect(run)
    check(render(data))
    (sheet,) = parts_of(data, "Looking inside")
    assert sheet["rows"][0] == ["all maps", "-", "-", "4"]


def representations(num_tasks=2, **changes):
    points = {f"task{i}": [[i, 1.0], [i, 3.0]] for i in range(num_tasks)}
    plain = {"kind": "representation_map", "method": "pca", "split": "test", "points": points}
    return {**plain, "modules": list(MODULES), "explained": [0.5, 0.25], **changes}


def test_a_map_of_rows(run):
    write(run, representations())
    data = collect(run)
    page = check(render(data))
    chart, centres = parts_of(data, "Looking inside")
    assert (chart["x_title"], chart["y_title"]) == ("component 1 (50 %)", "component 2 (25 %)")
    assert "75 % of it" in chart["caption"]
    assert centres["rows"][1] == ["task1", "2", "1.00", "2.00", "1.00"]
    assert {"task0", "task1"} <= {e["text"] for e in page.of("text")}


def test_a_map_by_t_sne_says_that_distances_mean_little(run):
    write(run, representations(method="tsne", explained=None))
    assert "distances mean little" in render(collect(run))


def test_more_tasks_than_colors_have_looks_of_their_own(run):
    write(run, representations(num_tasks=20))
    page = check(render(collect(run)))
    named = {e["text"] for e in page.of("text")}
    assert {"task0", "task13"} <= named
    assert "task14" not in named  # it is in the table
    assert "task19" in page.of("main")[0]["text"]


def test_a_damaged_file_is_named(run):
    plain = heads()
    del plain["raw"]
    write(run, plain)
    with pytest.raises(
        InputError, match=r"head_similarity.json is no whole head_similarity: .*raw"
    ):
        collect(run)


def test_other_files_are_left_alone(run):
    (run / "analysis/mine.json").write_text("[1]", encoding="utf-8")
    assert [section["title"] for section in collect(run)["sections"]] == ["Configuration"]
