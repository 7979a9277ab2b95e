"""Arms' differences to the baseline of their own site."""

import json

import pytest

from coadapt import InputError
from coadapt.analysis import compare_sites, sites_sheet
from tests.analysis.studies import aligned, write_study

RECIPES = {"lora": aligned(None), "align": aligned(0.1), "hydra": aligned(None, scale=8.0)}
SCORES = {"lora": 0.8, "align": 0.85, "hydra": 0.79}


@pytest.fixture
def studies(tmp_path):
    return [
        write_study(
            tmp_path / site,
            recipes,
            SCORES,
            baseline="lora",
            sites=site,
            differences=differences,
            budgets=budgets,
        )
        for site, recipes, differences, budgets in (
            ("attention", RECIPES, {"align": 0.05, "hydra": -0.01}, (8, 32)),
            ("mlp", {**RECIPES, "more": aligned(0.5)}, {"align": -0.04, "hydra": 0.02}, (8,)),
        )
    ]


def test_differences_of_the_arms_that_every_site_has(studies):
    (found,) = compare_sites(studies)
    assert (found.sites, found.baseline) == (("attention", "mlp"), "lora-R8")
    assert found.setting.endswith("rank budget 8")
    assert [(one.arm, one.site, one.mean, one.outcome) for one in found.differences] == [
        ("align-R8", "attention", 0.05, "win"),
        ("align-R8", "mlp", -0.04, "loss"),
        ("hydra-R8", "attention", -0.01, "tie"),
        ("hydra-R8", "mlp", 0.02, "tie"),
    ]
    assert all(one.num_seeds == 3 and one.trainable == 73728 for one in found.differences)


def test_the_sheet(studies):
    sheet = sites_sheet(compare_sites(studies)[0])
    assert sheet.rows[0] == ("align-R8", "attention", "+0.050 ±0.030", "win", "73,728")
    assert "difference to lora-R8 at the same site, ± 95 % over 3 seeds" in sheet.title


def change(folder, edit):
    plain = json.loads((folder / "study.json").read_text())
    edit(plain["study"])
    (folder / "study.json").write_text(json.dumps(plain))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s["model"].update(target_modules="attention"), "site 'attention' is another"),
        (lambda s: s["model"].update(name="asset:other"), "has another model than"),
        (lambda s: s.update(seeds=[0, 1]), "has another seeds than"),
        (lambda s: s.update(baseline="align"), "has another baseline than"),
    ],
    ids=["same-site", "model", "seeds", "baseline"],
)
def test_studies_that_differ_in_more_are_refused(edit, message, studies):
    change(studies[1], edit)
    with pytest.raises(InputError, match=message):
        compare_sites(studies)


def test_one_study_or_nothing_in_common_is_refused(studies, tmp_path):
    with pytest.raises(InputError, match="between two studies or more"):
        compare_sites(studies[:1])
    other = write_study(
        tmp_path / "other", RECIPES, SCORES, baseline="lora", sites=["query"], budgets=(4,)
    )
    with pytest.raises(InputError, match="no number of rows and budget in common"):
        compare_sites([studies[0], other])
    same = write_study(tmp_path / "same", RECIPES, SCORES, baseline="lora", sites=["query"])
    with pytest.raises(InputError, match="no arm was compared with the baseline"):
        compare_sites([same, write_study(tmp_path / "x", RECIPES, SCORES, baseline="lora")])
