"""The demo on a tiny model and toy tasks; the real one is run by `make demo`."""

import io
import json

import pytest
from rich.console import Console

from coadapt import demo
from coadapt.config import load_yaml
from coadapt.diagnosis import load_diagnosis
from coadapt.tasks import load_suite


@pytest.fixture
def small_demo(monkeypatch, tiny_bert, toy_suite_dict):
    suite = load_suite(toy_suite_dict)
    monkeypatch.setattr(demo, "BACKBONE", {"name": str(tiny_bert), "max_length": 32})
    monkeypatch.setattr(demo, "load_suite", lambda *_, **__: suite)
    entries = [
        demo.Entry(recipe="frozen", learning_rate=1e-2, epochs=2),
        demo.Entry(recipe="lora", learning_rate=1e-3, epochs=2),
        demo.Entry(recipe="private", learning_rate=1e-3, epochs=2),
        demo.Entry(recipe="clustered", learning_rate=1e-3, epochs=2),
    ]
    monkeypatch.setattr(demo, "ENTRIES", entries)
    return suite


def test_demo_compares_exports_and_checks(small_demo, tmp_path):
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    demo.run_demo(tmp_path / "demo", quick=False, seed=0, console=console)
    text = printed.getvalue()
    for word in [*small_demo.names, "frozen", "lora", "private", "clustered", "updates/adapter"]:
        assert word in text
    assert "meaningless" not in text
    written = json.loads((tmp_path / "demo/demo.json").read_text())
    assert set(written["mean_test_score"]) == {"frozen", "lora", "private", "clustered"}
    assert max(written["export_max_difference"].values()) < 1e-4
    updates = written["runs"]["private"]["train"]["updates"]
    assert all(updates[task] > 0 for task in small_demo.names)


def test_the_demo_diagnoses_and_plans_first(small_demo, tmp_path):
    printed = io.StringIO()
    written = demo.run_demo(
        tmp_path / "demo", quick=False, seed=0, console=Console(file=printed, width=80)
    )
    text = printed.getvalue()
    assert text.index("diagnose") < text.index("plan: ") < text.index("frozen")
    found = load_diagnosis(tmp_path / "demo/diagnosis.json")
    assert found.tasks == small_demo.names
    trained = load_yaml(tmp_path / "demo/clustered/plan.yaml")
    assert trained == load_yaml(tmp_path / "demo/plan.yaml") == written["plan"]
    assert 1 < len(trained["blocks"]) < len(small_demo.names)
    assert sum(block["rank"] for block in trained["blocks"].values()) == demo.BUDGET


def test_a_second_demo_takes_the_finished_runs(small_demo, tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=80)
    first = demo.run_demo(tmp_path / "demo", quick=True, seed=0, console=console)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("demo/quick/*/adapter/*.safetensors")}
    assert stamps
    second = demo.run_demo(tmp_path / "demo", quick=True, seed=0, console=console)
    assert first["mean_test_score"] == second["mean_test_score"]
    assert stamps == {
        p: p.stat().st_mtime_ns for p in tmp_path.glob("demo/quick/*/adapter/*.safetensors")
    }


def test_entries_are_what_the_demo_promises():
    by_name = {entry.recipe: entry for entry in demo.ENTRIES}
    assert list(by_name) == ["frozen", "lora", "private", "clustered"]
