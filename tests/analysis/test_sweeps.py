"""Which arms of a study belong to a sweep over a setting, and pictures of sweeps."""

import json
from pathlib import Path
from typing import Any

import pytest

from coadapt import InputError
from coadapt._files import read_json, write_json
from coadapt.analysis import draw_sweeps, sweep, sweeps_sheet, weight_sweep
from coadapt.config import to_plain
from coadapt.study import read_study
from tests.analysis.studies import SHARING, aligned, write_study

FILE = Path(__file__).parents[2] / "benchmarks/studies/thanora_sweeps.yaml"


def thanora(tau=0.2, scale=5.0, weight: float | None = 1e-4, **more: Any) -> dict[str, Any]:
    parts = [{"kind": "spr", "weight": weight}] if weight is not None else []
    recipe = {
        "structure": {"kind": "single", "scale": scale},
        "init": {"kind": "hasi", "temperature": tau},
        "regularizers": parts,
        "sharing": "cooperative",
    }
    return {
        "recipe": recipe,
        "recipe_name": None,
        "plans": [],
        "trials": [],
        "training": {},
        **more,
    }


RECIPES = {
    "lora": aligned(None),
    "thanora": thanora(),
    "thanora_tau_1": thanora(tau=1.0),
    "thanora_tau_005": thanora(tau=0.05),
    "thanora_scale_1": thanora(scale=1),
    "thanora_spr_0": thanora(weight=None),
    "thanora_spr_01": thanora(weight=0.1),
    "other": thanora(tau=3.0, training={"warmup_steps": 5}),
    "never": thanora(tau=9.0),
}
SCORES = {name: 0.7 + 0.02 * place for place, name in enumerate(RECIPES) if name != "never"}


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "swept", RECIPES, SCORES, baseline="lora", budgets=(8, 32))


def pairs(found):
    return [(point.value, point.arm) for point in found.points]


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("init.temperature",
         [(0.05, "thanora_tau_005-R8"), (0.2, "thanora-R8"), (1.0, "thanora_tau_1-R8")]),
        ("structure.scale", [(1.0, "thanora_scale_1-R8"), (5.0, "thanora-R8")]),
        ("regularizers.spr.weight",
         [(0.0, "thanora_spr_0-R8"), (1e-4, "thanora-R8"), (0.1, "thanora_spr_01-R8")]),
    ],
    ids=["tau", "gamma", "lambda"],
)  # fmt: skip
def test_arms_that_differ_in_one_setting(key, wanted, study):
    at_8, at_32 = sweep(study, key)
    assert pairs(at_8) == wanted
    assert [point.value for point in at_32.points] == [value for value, _ in wanted]
    assert (at_8.label, at_8.key, at_8.study) == ("thanora", key, "swept")
    assert at_8.baseline is not None
    assert (at_8.baseline.arm, at_8.baseline.value) == ("lora-R8", None)
    by_arm = {f"{name}-R8": score for name, score in SCORES.items()}
    assert all(point.mean == by_arm[point.arm] for point in at_8.points)
    assert [one.setting.rpartition(", ")[2] for one in (at_8, at_32)] == [
        "rank budget 8", "rank budget 32",
    ]  # fmt: skip


def test_defaults_that_a_study_leaves_out_count(tmp_path):
    recipes = {"plain": thanora(), "named": thanora(tau=0.5)}
    del recipes["plain"]["recipe"]["init"]["temperature"]
    recipes["named"]["recipe"]["init"]["rounding"] = "exact"
    folder = write_study(tmp_path / "s", recipes, dict.fromkeys(recipes, 0.5), baseline="plain")
    (found,) = sweep(folder, "init.temperature")
    assert [point.value for point in found.points] == [0.2, 0.5]
    assert found.baseline is None


def test_settings_that_are_no_numbers(tmp_path):
    recipes = {"one": thanora(), "two": thanora()}
    recipes["two"]["recipe"]["init"]["entropy"] = "raw"
    folder = write_study(tmp_path / "s", recipes, dict.fromkeys(recipes, 0.5), baseline="one")
    (found,) = sweep(folder, "init.entropy")
    assert (found.values, found.geometric) == (("normalised", "raw"), False)


def test_a_sweep_over_budgets_is_a_line_a_recipe(study):
    summary = read_json(study / "summary.json")
    for arm in summary["tables"][1]["arms"]:
        if arm["mean"] is not None:
            arm["mean"] += 0.1
    write_json(study / "summary.json", summary)
    found = sweep(study, "budget")
    assert [one.label for one in found] == list(SCORES)
    for one in found:
        score = SCORES[one.label]
        assert [(p.value, p.mean) for p in one.points] == [(8.0, score), (32.0, score + 0.1)]
        assert (one.baseline, one.setting) == (None, "30 rows a task, 7 tasks")


def test_a_committed_study_s_budgets():
    found = sweep(SHARING, "budget")
    tables = read_json(SHARING / "summary.json")["tables"]
    lines = {(one.label, one.setting): one for one in found}
    assert len(lines) == len(found)
    for table in tables:
        (arm,) = (arm for arm in table["arms"] if arm["recipe"] == "lora")
        line = lines["lora", f"{table['rows']} rows a task, 7 tasks"]
        assert arm["mean"] in [p.mean for p in line.points if p.value == table["budget"]]


def test_weights_are_those_of_a_weight_sweep(tmp_path):
    recipes = {"off": aligned(None), "zero": aligned(0.0, pool="sequence"), "a": aligned(0.1),
               "b": aligned(0.3), "rows": aligned(0.1, pool="sequence")}  # fmt: skip
    scores = {name: 0.1 * place for place, name in enumerate(recipes)}
    folder = write_study(tmp_path / "s", recipes, scores, baseline="off")
    points = [
        sorted([(p.arm, p.mean) for p in one.points] for one in found)
        for found in (
            sweep(folder, "regularizers.align_kl.weight"),
            weight_sweep(folder, "align_kl"),
        )
    ]
    assert points[0] == points[1]
    assert len(points[0]) == 2


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("init.temprature", "has a setting 'init.temprature'; did you mean 'init.temperature'"),
        ("regularizers.align_kl.weight", "has a setting 'regularizers.align_kl.weight'"),
        ("regularizers.spr", "has a setting 'regularizers.spr'"),
        ("structure.scale.deep", "has a setting 'structure.scale.deep'"),
        ("init.rows", "has no two finished arms that differ in nothing but 'init.rows'$"),
    ],
)
def test_a_key_that_is_not_swept_is_refused(key, message, study):
    with pytest.raises(InputError, match=message):
        sweep(study, key)


@pytest.mark.parametrize(
    ("values", "geometric"),
    [
        ((16.0, 32.0, 64.0), True),
        ((1.0, 2.0, 3.0), False),
        ((0.0, 1.0, 10.0), False),
        ((1.0, 10.0), False),
        ((0.05, 0.2, 1.0), True),
    ],
)
def test_values_that_go_by_factors(values, geometric, tmp_path):
    recipes = {f"t_{place}": thanora(weight=value) for place, value in enumerate(values)}
    folder = write_study(tmp_path / "s", recipes, dict.fromkeys(recipes, 0.5), baseline="t_0")
    (found,) = sweep(folder, "regularizers.spr.weight")
    assert found.values == values
    assert found.geometric is geometric


def test_the_reading_the_sheet_and_the_plain_data(study):
    found = sweep(study, "init.temperature")[:1]
    assert found[0].reading == (
        "thanora over 3 values of init.temperature: from 0.720 at 0.2 to 0.760 at 0.05; "
        "3 of 3 above lora-R8 (0.700), 1 of them with intervals that do not touch"
    )
    sheet = sweeps_sheet(found)
    assert sheet.rows[0] == (
        "thanora", "init.temperature", "0.05", "thanora_tau_005-R8", "0.760 ±0.020",
    )  # fmt: skip
    assert sheet.rows[-1][2:] == ("", "lora-R8 (baseline)", "0.700 ±0.020")
    assert sheet.title == "swept: mean test score by setting, ± 95 % over 3 seeds"
    assert sheet.notes == (found[0].reading,)
    assert json.loads(json.dumps(found[0].to_plain()))["points"][0]["value"] == 0.05


def test_settings_and_budgets_in_a_picture(study, tmp_path):
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    keys = ("regularizers.spr.weight", "init.temperature", "budget")
    found = [one for key in keys for one in sweep(study, key)]
    told = [draw_sweeps(found, file) for file in files]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert all(one.reading in told[0] for one in found)
    with pytest.raises(InputError, match="nothing to draw"):
        draw_sweeps([], files[0])


def test_the_benchmarks_sweeps_have_three_settings(tmp_path):
    study, _ = read_study(FILE)
    recipes = to_plain(study, hashed=True)["recipes"]
    folder = write_study(
        tmp_path / "s", recipes, dict.fromkeys(recipes, 0.5), baseline=study.baseline
    )
    swept = {}
    for key in ("regularizers.spr.weight", "structure.scale", "init.temperature"):
        (found,) = sweep(folder, key)
        assert found.baseline is not None
        swept[key] = found.values
    assert swept["regularizers.spr.weight"] == (0.0, 1e-5, 1e-4, 1e-3)
    assert swept["structure.scale"] == (1.0, 2.0, 5.0, 10.0)
    assert swept["init.temperature"] == (0.05, 0.2, 1.0)
    assert {len(study.trials_of(name)) for name in recipes} == {3}
