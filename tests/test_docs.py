"""README, docs and examples do what they say."""

import json
import re
import shutil
from pathlib import Path

import pytest
import typer
import yaml

import coadapt
import coadapt.config
from coadapt.cli import app
from coadapt.config import to_plain
from coadapt.planning import Plan
from coadapt.settings import read_train_file
from coadapt.study import Grid, read_study

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_blocks_are_yaml(page: Path):
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("examples/*/train.yaml")), ids=lambda f: f.parent.name
)
def test_examples_load(file: Path):
    config, suite = read_train_file(file)
    for task in suite.names:
        assert len(suite.rows(task, "train")) > 0
        assert len(suite.rows(task, "test")) > 0
    assert config.plan is None or set(config.plan.tasks) == set(suite.names)


def test_the_example_s_study_is_the_page_s_and_can_be_run(tiny_bert):
    file = ROOT / "examples/tickets/study.yaml"
    text = file.read_text(encoding="utf-8").partition("\n")[2]
    assert text == blocks(ROOT / "docs/studies.md", "yaml")[0]
    study, suite = read_study(file, [f"model.name={tiny_bert}", "model.max_length=64"])
    grid = Grid(study, suite, str(file))
    assert {group.recipe for group in grid.groups} == set(study.recipes)
    assert (grid.infeasible, grid.short_tasks()) == ({}, {})


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("benchmarks/studies/*.yaml")), ids=lambda f: f.stem
)
def test_the_benchmarks_studies_are_studies(file: Path):
    study, suite = read_study(file)
    # A language model on two cores takes two seeds and two trials.
    small = suite.name == "commonsense8"
    assert len(study.seeds) >= (2 if small else 3)
    numbers = {len(study.trials_of(name)) for name in study.recipes}
    assert numbers in ([{2}] if small else [{3}, {4}])
    assert len(suite.names) == {"glue_local": 6, "commonsense8": 9, "twins": 4}.get(suite.name, 7)


def test_plan_of_the_docs_is_one():
    plan = yaml.safe_load(next(b for b in blocks(ROOT / "docs/files.md", "yaml") if "rank:" in b))
    parsed = coadapt.config.parse(Plan, plan, "docs/files.md")
    parsed.check(["topic", "urgency", "duplicate"])
    assert parsed.budget == 8


def test_the_readme_s_code_runs(tiny_bert, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "examples/tickets", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    # The same ten lines on a tiny model instead of the asset, for one epoch instead of fifteen.
    code = code.replace('"asset:minilm"', repr({"name": str(tiny_bert), "max_length": 32}))
    code = code.replace('"num_train_epochs": 15', '"num_train_epochs": 1, "disable_tqdm": True')
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert all(task in printed for task in ("topic", "urgency", "duplicate"))
    assert (tmp_path / "shipped/routes.json").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path):
    verbs = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    named = re.findall(r"`coadapt ([a-z]+)", page.read_text(encoding="utf-8"))
    assert set(named) <= set(verbs)


def test_suite_block_of_the_readme_loads(tmp_path):
    shutil.copytree(ROOT / "examples/tickets", tmp_path, dirs_exist_ok=True)
    block = next(b for b in blocks(ROOT / "README.md", "yaml") if "urgency" in b)
    (tmp_path / "suite.yaml").write_text(block, encoding="utf-8")
    suite = coadapt.load_suite(tmp_path / "suite.yaml")
    assert suite.task("urgency").metrics == ("f1", "accuracy")
    assert len(suite.rows("duplicate", "train")) > 0


@pytest.mark.parametrize(("name", "num_trials"), [("sharing", 120), ("number_of_tasks", 30)])
def test_committed_cells_are_those_of_the_study(name, num_trials):
    """A change that moves the hashes would train hundreds of cells anew to print a table."""
    study, suite = read_study(ROOT / f"benchmarks/studies/{name}.yaml")
    grid, folder = Grid(study, suite, name), ROOT / "benchmarks/results" / name
    plain = {"study": to_plain(study, hashed=True), "suite": suite.to_plain(hashed=True)}
    assert json.loads((folder / "study.json").read_text(encoding="utf-8")) == plain
    cells = [cell for group in grid.groups for cell in grid.trials(group)]
    assert len(cells) == num_trials
    for cell in cells:
        kept = json.loads((folder / f"cells/{cell.id}.json").read_text(encoding="utf-8"))
        assert kept["cell"]["hash"] == cell.hash, cell.id
