"""The page's code on ThanoRA runs, on toy runs and studies under the names that it uses."""

import re
import textwrap
from pathlib import Path

import pytest

from tests.analysis.studies import write_study
from tests.analysis.test_subspaces import HASI, STEPS
from tests.analysis.test_sweeps import RECIPES, SCORES
from tests.toy_runs import train_toy

PAGE = Path(__file__).parents[2] / "docs/analysis.md"


def indented_code():
    """The indented blocks that begin with an import."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"(?<=\n\n)    from coadapt.*?(?=\n\n\S)", text, re.DOTALL)
    return [textwrap.dedent(block) for block in found]


@pytest.fixture
def folders(tiny_bert, toy_suite_files, tmp_path, monkeypatch):
    for name, parts in (("thanora", [{"kind": "spr", "weight": 1e-4}]), ("hasi", [])):
        recipe = {**HASI, "regularizers": parts}
        folder = tmp_path / "runs" / name
        train_toy(tiny_bert, toy_suite_files, folder, recipe, budget=20, training=STEPS)
    for name, budgets in (("thanora_sweeps", (32,)), ("thanora_ranks", (16, 32, 64))):
        write_study(tmp_path / "runs" / name, RECIPES, SCORES, baseline="lora", budgets=budgets)
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_runs(folders, capsys):
    from rich import print

    names = {"pictures": Path("pictures"), "print": print}
    code = indented_code()
    assert len(code) == 2
    for block in code:
        exec(compile(block, str(PAGE), "exec"), names)
    drawn = {path.stem for path in (folders / "pictures").iterdir()}
    assert drawn == {"ranks", "entropies", "overlap", "sensitivity", "budgets"}
    printed = capsys.readouterr().out
    for told in ("rank by module and block", "effective rank: sum", "thanora_tau_1-R32"):
        assert told in printed
