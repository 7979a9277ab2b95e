"""The page's code runs, on toy runs and studies under the names that it uses."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from coadapt.recipes import RECIPES
from coadapt.study.spec import parse_study
from coadapt.tasks import load_suite
from tests.analysis.studies import aligned, write_study

PAGE = Path(__file__).parents[2] / "docs/analysis.md"


def blocks(language):
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def folders(make_run, tmp_path, monkeypatch):
    for name, recipe in (("lora", "lora"), ("align", "align_kl"), ("heads", "m_lora")):
        shutil.copytree(make_run(recipe).path, tmp_path / "runs" / name)
    recipes = {"lora": aligned(None), "a_01": aligned(0.1), "a_03": aligned(0.3)}
    how = {"baseline": "lora", "differences": {"a_01": 0.1, "a_03": -0.1}}
    for name, site in (("weights", "attention"), ("attention", "attention"), ("mlp", "mlp")):
        scores = dict.fromkeys(recipes, 0.5)
        write_study(tmp_path / "runs" / name, recipes, scores, sites=site, **how)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_runs(folders, capsys):
    names: dict = {}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), names)
    pictures = ("heads", "maps", "alignment", "weights", "sites")
    assert all((folders / f"pictures/{name}.svg").is_file() for name in pictures)
    printed = capsys.readouterr().out
    for told in ("mean cosine between 5 heads", "effective rank", "a_03-R8", "0.4108 0.3858"):
        assert told in printed


def test_the_recipes_of_the_sweep_differ_in_the_weight_alone(toy_suite_dict):
    (block,) = (yaml.safe_load(text) for text in blocks("yaml"))
    plain = {
        "model": "nowhere",
        "suite": "toy",
        "baseline": "weight_0",
        "trials": [{"learning_rate": 1e-3, "epochs": 1}],
        **block,
    }
    del plain["suite"]
    study = parse_study(plain, load_suite(toy_suite_dict), "docs/analysis.md")
    found = [entry.recipe for entry in study.recipes.values()]
    assert [sum(p.weight for p in recipe.regularizers) for recipe in found] == [0, 0.03, 0.1]
    assert found[2] == RECIPES["align_kl"].recipe
    assert {recipe.structure for recipe in found} == {found[0].structure}
