"""Which arms of a study belong to a sweep over a regularizer's weight."""

import pytest

from coadapt import InputError
from coadapt._files import read_json
from coadapt.analysis import sweep_sheet, weight_sweep
from tests.analysis.studies import SHARING, aligned, write_study

FAMILY = {
    "plain": aligned(None),
    "a_1": aligned(1.0),
    "a_01": aligned(0.1),
    "a_03": aligned(0.3),
}
OTHERS = {
    "lora": aligned(None, scale=4.0),  # the baseline: another scale
    "rows": aligned(0.1, pool="sequence"),
    "longer": {**aligned(0.2), "training": {"warmup_steps": 5}},
}
SCORES = {"plain": 0.80, "a_1": 0.79, "a_01": 0.82, "a_03": 0.81, "lora": 0.78, "rows": 0.9}


def test_arms_that_differ_in_the_weight_alone(tmp_path):
    recipes = {**OTHERS, **FAMILY}
    folder = write_study(tmp_path / "sweep", recipes, SCORES, baseline="lora")
    by_token, by_row = sorted(weight_sweep(folder, "align_kl"), key=lambda one: -len(one.points))
    assert [(p.weight, p.mean) for p in by_token.points] == [
        (0.0, 0.80), (0.1, 0.82), (0.3, 0.81), (1.0, 0.79),
    ]  # fmt: skip
    assert [(p.weight, p.mean) for p in by_row.points] == [(0.0, 0.80), (0.1, 0.9)]
    assert by_token.baseline is not None
    assert (by_token.baseline.arm, by_token.baseline.weight) == ("lora-R8", None)
    assert (by_token.points[0].low, by_token.points[0].num_seeds) == (pytest.approx(0.78), 3)
    assert by_token.setting == "30 rows a task, 7 tasks, rank budget 8"


def test_a_baseline_of_the_family_is_a_point(tmp_path):
    folder = write_study(tmp_path / "sweep", FAMILY, SCORES, baseline="plain", budgets=(8, 32))
    found = weight_sweep(folder, "align_kl")
    assert [one.setting.rpartition(", ")[2] for one in found] == ["rank budget 8", "rank budget 32"]
    assert all(one.baseline is None and len(one.points) == 4 for one in found)


def test_an_explicit_weight_of_zero_and_unfinished_arms(tmp_path):
    recipes = {"off": aligned(0.0, pool="sequence"), "on": aligned(0.5), "never": aligned(2.0)}
    scores = {"off": 0.7, "on": 0.71}
    (found,) = weight_sweep(
        write_study(tmp_path / "sweep", recipes, scores, baseline="off"), "align_kl"
    )
    assert [p.weight for p in found.points] == [0.0, 0.5]


def test_the_sheet(tmp_path):
    folder = write_study(tmp_path / "sweep", {**OTHERS, **FAMILY}, SCORES, baseline="lora")
    found = max(weight_sweep(folder, "align_kl"), key=lambda one: len(one.points))
    sheet = sweep_sheet(found)
    assert sheet.rows[1] == ("0.1", "a_01-R8", "0.820 ±0.020")
    assert sheet.rows[-1] == ("", "lora-R8 (baseline)", "0.780 ±0.020")
    assert sheet.title.startswith("sweep, 30 rows a task")
    assert sheet.title.endswith("± 95 % over 3 seeds")


def test_the_committed_study_has_no_regularizers():
    assert "regularizers" not in read_json(SHARING / "study.json")["study"]["recipes"]["lora"]
    with pytest.raises(InputError, match="has no two finished arms that differ in nothing but"):
        weight_sweep(SHARING, "align_kl")


@pytest.mark.parametrize(
    ("kind", "hint"),
    [("align_kll", "did you mean 'align_kl'"), ("align_kl", "the weight of 'align_kl'$")],
)
def test_a_study_without_a_sweep_is_refused(kind, hint, tmp_path):
    recipes = {"one": aligned(0.1), "other": aligned(None, scale=4.0)}
    folder = write_study(tmp_path / "none", recipes, dict.fromkeys(recipes, 0.5), baseline="one")
    with pytest.raises(InputError, match=hint):
        weight_sweep(folder, kind)


def test_a_folder_that_is_no_finished_study_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is no study: it has no study\.json"):
        weight_sweep(tmp_path, "align_kl")
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no summary\.json; finish the study"):
        weight_sweep(tmp_path, "align_kl")
