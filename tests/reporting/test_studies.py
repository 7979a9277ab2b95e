"""The report of a study: what it answers first, which sections there are, what it survives."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from coadapt import InputError
from coadapt._files import read_json
from coadapt.diagnosis import Diagnosis, PairMeasure
from coadapt.reporting import collect, render, write_report
from tests.invoking import refuse, succeed
from tests.reporting.pages import check

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
SHARING = RESULTS / "sharing"
EVIL = "<script>alert('ä')</script> & $x_1$ 任务"


def write_study(folder: Path, *, tasks=None, seeds=3, tables=1, **changes) -> Path:
    """Write a folder in the form of the committed study, with tables of its first setting."""
    study, summary = (read_json(SHARING / name) for name in ("study.json", "summary.json"))
    shown = copy.deepcopy(summary["tables"][:tables])
    for table in shown:
        if tasks is not None:
            first = table["tasks"][0]
            table["tasks"] = list(tasks)
            for arm in table["arms"]:
                arm["tasks"] = dict.fromkeys(tasks, arm["tasks"][first])
                marks = arm.get("task_differences")
                if marks:
                    arm["task_differences"] = dict.fromkeys(tasks, marks[first])
        if seeds == 1:
            for arm in table["arms"]:
                arm["seeds"], arm["low"], arm["high"] = [0], None, None
                for found in (arm.get("difference"), *arm["tasks"].values()):
                    if found:
                        found.update(low=None, high=None)
                if arm.get("difference"):
                    arm["difference"].update(p_holm=None, rows=None, outcome="tie")
    summary = {**summary, "seeds": list(range(seeds)), "tables": shown, **changes}
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def write_cell(folder: Path, *, seed: int = 0, inference=None, **run) -> None:
    """Write one committed cell's record into a study, with some of its run's fields replaced."""
    name = f"cells/lora-R8-n30/final_seed{seed}.json"
    record = read_json(SHARING / name)
    record["run"] |= run
    if inference is not None:
        record["inference"] = inference
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture(scope="module")
def committed():
    data = collect(SHARING)
    return data, check(render(data))


def test_a_committed_study_s_page(committed):
    data, page = committed
    assert (data["kind"], data["status"]) == ("study", "finished")
    assert data["answer"][0] == (
        "Shown to beat **lora**: **clustered-families** in 1, **private** in 1 of 8 settings. "
        "In the others nothing is; there, ship **lora**."
    )
    assert page.titles == [
        "Setting by setting",
        "Scores",
        "By task",
        "Score against rank budget",
        "Score against rows",
        "What it took",
        "Configuration",
        "Made with",
    ]
    # A picture of differences for each of the eight settings, four of budgets, two of rows.
    assert len(page.of("svg")) == 8 + 4 + 2
    assert "±0.003" in page.of("main")[0]["text"]


def test_charts_say_in_words_what_they_show(committed):
    _, page = committed
    alts = [e["text"] for e in page.of("title") if "svg" in e["within"]]
    assert any("clustered-families +0.020" in alt for alt in alts)
    assert all(alt.endswith(".") for alt in alts)


def test_what_is_shown_is_not_told_by_color_alone(committed):
    data, page = committed
    svgs = {title["text"]: title for title in page.of("title") if "svg" in title["within"]}
    assert len(svgs) == 14
    legends = {text["text"] for text in page.of("text")}
    assert {"better", "worse", "not shown"} <= legends
    start = "300 training rows a task, 7 tasks, rank budget 8: test score by task"
    found = [part for section in data["sections"] for part in section["parts"]]
    (marked,) = [part for part in found if part.get("title", "").startswith(start)]
    assert any(cell.endswith(" +") for row in marked["rows"] for cell in row)


@pytest.mark.parametrize("index", range(8))
def test_verdicts_are_those_of_the_intervals(index, tmp_path):
    """What is shipped has an interval that excludes 0 and a p-value that bears correction."""
    table = read_json(SHARING / "summary.json")["tables"][index]
    folder = write_study(tmp_path / "study")
    summary = read_json(folder / "summary.json") | {"tables": [table]}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    told = collect(folder)["answer"][0]
    shown = [
        arm["arm"].removesuffix(f"-R{table['budget']}")
        for arm in table["arms"]
        if arm.get("difference")
        and arm["difference"]["outcome"] == "win"
        and arm["difference"]["p_holm"] < 0.05
    ]
    drawn = [
        p
        for sec in collect(folder)["sections"]
        for p in sec["parts"]
        if p.get("form") == "intervals"
    ]
    assert [row["name"] for row in drawn[0]["rows"] if row["mark"] == "win"] == shown
    if shown:
        assert f"ship **{shown[0]}**" in told
        assert told.endswith("shown.")
    else:
        assert "nothing is shown to beat **lora**" in told


def test_a_hundred_tasks_with_names_of_any_kind(tmp_path):
    names = [EVIL, *(f"task_{index}" for index in range(99))]
    folder = write_study(tmp_path / "study", tasks=names, tables=2)
    html = render(collect(folder))
    page = check(html)
    assert "<script>alert" not in html
    heads = {e["text"] for e in page.of("th") if "tbody" in e["within"]}
    assert set(names) <= heads
    assert "88 further tasks are in the tables." in page.of("main")[0]["text"]


def test_a_hundred_tasks_with_a_diagnosis_stay_small(tmp_path):
    names = [f"task_{index}" for index in range(100)]
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, (100, 100))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1.0)
    measure = PairMeasure(title="similarity", reading="made up.", values=values)
    pairs = {"similarity": measure, "representation": measure}
    found = Diagnosis(tasks=tuple(names), of="nothing", rows=dict.fromkeys(names, 9), pairs=pairs)
    folder = write_study(tmp_path / "study", tasks=names, tables=2)
    found.save(folder / "diagnosis.json")
    check(render(collect(folder)))


def test_a_p_value_of_zero_is_the_surest(tmp_path):
    folder = write_study(tmp_path / "study")
    summary = read_json(folder / "summary.json")
    [arm] = [a for a in summary["tables"][0]["arms"] if a["arm"] == "private-R8"]
    arm["mean"] = 0.9
    arm["difference"] |= {"outcome": "win", "p_holm": 0.0, "mean": 0.2, "low": 0.1, "high": 0.3}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert "ship **private**" in collect(folder)["answer"][0]


def test_one_seed_shows_nothing(tmp_path):
    folder = write_study(tmp_path / "study", seeds=1)
    data = collect(folder)
    assert any("One seed" in line and "nothing can be shown" in line for line in data["answer"])
    assert "nothing is shown to beat" in data["answer"][0]
    check(render(data))


def test_one_task(tmp_path):
    page = check(render(collect(write_study(tmp_path / "study", tasks=["only"], tables=8))))
    assert "Score against rank budget" in page.titles


def test_a_failed_cell_has_its_place(tmp_path):
    missing = {"private-R8-n30/final_seed1": "failed: <b>out of memory</b>"}
    folder = write_study(tmp_path / "study", missing=missing)
    write_cell(folder, status="failed", error="<b>out of memory</b>")
    data = collect(folder)
    page = check(render(data))
    assert data["status"] == "with cells that failed"
    assert page.of("div")[0]["class"] == "answer bad"
    assert "What failed" in page.titles
    assert "<b>out of memory</b>" in page.of("main")[0]["text"]


def test_what_inference_took_is_told_by_arm(tmp_path):
    folder = write_study(tmp_path / "study")
    for seed, seconds in enumerate((4.0, 2.0)):
        tasks = {
            "a": {"rows": 30, "seconds": seconds / 2, "batch": "64 rows"},
            "b": {"rows": 10, "seconds": seconds / 2, "batch": "16 rows"},
        }
        took = {"tasks": tasks, "dtype": "float32", "device": "a machine", "peak_memory_mib": 700.4}
        write_cell(folder, seed=seed, inference={"test": took})
    write_cell(folder, seed=2)  # from before it was measured
    found = [part for section in collect(folder)["sections"] for part in section["parts"]]
    (table,) = [p for p in found if p.get("title", "").startswith("what inference took")]
    assert table["rows"] == [
        ["lora-R8-n30", "test", "40", "64 rows, 16 rows", "20", "700", "float32", "a machine"]
    ]
    assert "Of several passes of one arm the fastest." in table["notes"]


def test_nothing_has_finished(tmp_path):
    folder = write_study(tmp_path / "study")
    (folder / "summary.json").unlink()
    data = collect(folder)
    page = check(render(data))
    assert data["status"] == "unfinished"
    assert "--resume" in data["answer"][1]
    assert page.titles == ["Configuration"]


def test_plans_among_random_ones_and_a_diagnosis(tmp_path):
    """The null of a plan, and the benefit of sharing against similarity."""
    tasks = read_json(RESULTS / "demo_diagnosis.json")["tasks"]
    groups = [[["trec6", "trec50"], ["spam", "tweets", "amazon", "movie", "nyt"]],
              [["spam", "trec50"], ["trec6", "tweets", "amazon", "movie", "nyt"]],
              [["spam", "nyt"], ["trec6", "tweets", "amazon", "movie", "trec50"]]]  # fmt: skip
    drawn = [
        {"clusters": g, "scores": dict.fromkeys(tasks, 0.5 + i / 9)} for i, g in enumerate(groups)
    ]
    found = {"plan": "families", "score": 0.6, "null": [0.5, 0.55], "existing": 21, "p_value": 0.33,
             "z": 1.5, "sd_partitions": 0.02, "sd_seeds": 0.01, "drawn": drawn}  # fmt: skip
    folder = write_study(tmp_path / "study")
    summary = read_json(folder / "summary.json")
    summary["tables"][0]["partitions"] = [found]
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    shutil.copy(RESULTS / "demo_diagnosis.json", folder / "diagnosis.json")
    page = check(render(collect(folder)))
    assert {"Plans against chance", "How the tasks relate", "Benefit of sharing"} <= set(
        page.titles
    )
    alts = " ".join(e["text"] for e in page.of("title") if "svg" in e["within"])
    assert "2 others 0.500 to 0.550; p 0.330 by rank" in alts
    assert "Highest: trec6 and trec50, 0.76" in alts
    assert "Mantel" in alts


def test_the_command_writes_page_and_data(tmp_path):
    folder = write_study(tmp_path / "study")
    told = succeed("report", folder)
    assert "report.html" in told.replace("\n", "")
    html = (folder / "report.html").read_text(encoding="utf-8")
    data = read_json(folder / "report.json")
    assert data == json.loads(json.dumps(collect(folder)))
    assert html == render(data)  # the file of data is all that the page is made of
    before = html
    assert write_report(folder).read_text(encoding="utf-8") == before
    other = tmp_path / "new" / "x.html"
    succeed("report", folder, "--output", other)
    assert other.read_text(encoding="utf-8") == html


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "gone is no folder"),
        ([".", "--output", "x.pdf"], "written as .html"),
        (["."], "has no runs in it"),
        (
            [str(SHARING), "--diagnosis", "gone.json", "--output", "x.html"],
            "gone.json does not exist",
        ),
    ],
    ids=["gone", "ending", "nothing", "diagnosis"],
)
def test_what_cannot_be(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refuse("report", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no run"):
        collect(tmp_path)
