"""What `coadapt report --analyses` measures, keeps, and shows."""

import json
import shutil

import pytest

from coadapt import InputError
from coadapt.analysis import head_similarity, look_into, representation_map
from tests.invoking import refuse, succeed
from tests.reporting.pages import check


def test_a_run_of_heads(make_run):
    run = make_run("m_lora")
    looked = look_into(run)
    assert looked.left_out == {}
    kept = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in looked.files}
    wanted = {
        "head_similarity": head_similarity(run),
        "representation_map": representation_map(run),
    }
    for kind, found in wanted.items():
        plain = json.loads(json.dumps(found.to_plain()))
        assert {key: kept[kind][key] for key in plain} == plain
        assert kept[kind]["kind"] == kind


def test_a_run_without_heads_says_so(make_run):
    run = make_run("lora")
    printed = succeed("report", run.path, "--analyses")
    assert f"written: {run.path / 'analysis/representation_map.json'}" in printed
    assert "left out head similarity: " in printed
    assert "which has no heads or experts to compare" in printed
    page = check((run.path / "report.html").read_text(encoding="utf-8"))
    assert "Looking inside" in page.titles
    data = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    forms = [part.get("form") for section in data["sections"] for part in section["parts"]]
    assert "scatter" in forms


def test_a_run_without_adapters_is_refused(make_run):
    with pytest.raises(InputError, match="has no adapters to look at"):
        look_into(make_run("frozen", budget=None))


def test_a_study_is_refused(tmp_path):
    (tmp_path / "study.json").write_text("{}", encoding="utf-8")
    assert "is a study; give one of its runs" in refuse("report", tmp_path, "--analyses")


def test_an_unfinished_run_is_refused_and_among_others_left_out(make_run, tmp_path):
    shown = shutil.ignore_patterns("report.*", "analysis")
    ended = shutil.copytree(make_run("lora").path, tmp_path / "ended", ignore=shown)
    begun = shutil.copytree(ended, tmp_path / "begun")
    (begun / "result.json").unlink()
    assert "is marked 'unfinished'" in refuse("report", begun, "--analyses")
    assert not (begun / "report.html").exists()
    printed = succeed("report", tmp_path, "--analyses")
    assert f"left out {begun}: run {begun} is marked 'unfinished'" in printed
    assert f"written: {ended / 'analysis/representation_map.json'}" in printed
    assert (tmp_path / "report.html").is_file()
