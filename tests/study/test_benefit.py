"""Benefit of sharing by pair, against a diagnosis."""

import json
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from coadapt import InputError
from coadapt._folders import SUMMARY
from coadapt.cli import app
from coadapt.diagnosis import Diagnosis, PairMeasure
from coadapt.study.benefit import benefit_sheet, draw_benefit, relate

TASKS: tuple[str, ...] = ("a", "b", "c", "d")
PAIRS = list(combinations(TASKS, 2))
# Every partition of four tasks into groups of 2, 1 and 1: each pair is together in one of them.
DRAWN = [[list(pair), *([task] for task in TASKS if task not in pair)] for pair in PAIRS]


def diagnosis_of(similarity):
    measure = PairMeasure(title="similarity", reading="made up", values=similarity)
    rows = dict.fromkeys(TASKS, 100)
    return Diagnosis(tasks=TASKS, of="made up", rows=rows, pairs={"similarity": measure})


def similarity_of(values):
    found = np.eye(len(TASKS))
    for (one, other), value in zip(PAIRS, values, strict=True):
        i, j = TASKS.index(one), TASKS.index(other)
        found[i, j] = found[j, i] = value
    return found


@pytest.fixture
def study(tmp_path):
    """A study in which sharing gives the pair's two tasks a bonus, and the others nothing."""
    bonus = dict(zip(PAIRS, (0.06, 0.05, 0.04, 0.03, 0.02, 0.01), strict=True))
    drawn = [
        {"clusters": clusters, "scores": {t: 0.5 + (t in pair) * bonus[pair] for t in TASKS}}
        for pair, clusters in zip(PAIRS, DRAWN, strict=True)
    ]
    table = {"rows": 30, "tasks": list(TASKS), "budget": 8}
    partitions = [{"plan": "clustered-found-R8", "drawn": drawn}]
    summary = {"tables": [{**table, "partitions": partitions}]}
    (tmp_path / SUMMARY).write_text(json.dumps(summary))
    return tmp_path


def test_benefit_and_its_correlation_by_hand(study):
    values = [0.9, 0.8, 0.1, 0.2, 0.3, -0.1]
    (found,) = relate(study, diagnosis_of(similarity_of(values)))
    bonus = np.array([0.06, 0.05, 0.04, 0.03, 0.02, 0.01])
    # Together in one partition, apart in five; a bonus is for two of the four tasks.
    wanted = [b / 2 - (bonus.sum() - b) / 2 / 5 for b in bonus]
    assert [pair["benefit"] for pair in found["pairs"]] == pytest.approx(wanted)
    assert [(pair["together"], pair["apart"]) for pair in found["pairs"]] == [(1, 5)] * 6
    result = found["correlations"]["all"]["pearson"]
    assert result["correlation"] == pytest.approx(np.corrcoef(values, wanted)[0, 1])
    assert (result["num_permutations"], result["exact"]) == (24, True)
    rank = found["correlations"]["all"]["spearman"]["correlation"]
    ranks = stats.rankdata(values), stats.rankdata(wanted)
    assert rank == pytest.approx(np.corrcoef(*ranks)[0, 1])
    # For the two tasks alone: a and b have .56 together; apart, the bonus of whom they are with.
    apart = [(0.05 + 0.5 - 0.5) / 2, 0.04 / 2, 0.03 / 2, 0.02 / 2, 0.0]
    assert found["pairs"][0]["local"] == pytest.approx(0.06 - np.mean(apart))


def test_the_order_of_the_diagnosis_does_not_matter(study):
    similarity = similarity_of([0.9, 0.8, 0.1, 0.2, 0.3, -0.1])
    (found,) = relate(study, diagnosis_of(similarity))
    order = [2, 0, 3, 1]
    turned = PairMeasure(title="s", reading="r", values=similarity[np.ix_(order, order)])
    names = tuple(TASKS[i] for i in order)
    other = Diagnosis(tasks=names, of="x", rows={}, pairs={"similarity": turned})
    assert relate(study, other) == [found]


def test_no_spread_is_told_not_raised(study):
    (found,) = relate(study, diagnosis_of(similarity_of([0.5] * 6)))
    assert "error" in found["correlations"]["all"]["pearson"]
    assert "pearson, mean over all tasks: " in "".join(benefit_sheet(found).notes)


def test_bad_input(study, tmp_path):
    similarity = similarity_of([0.1] * 6)
    strange = diagnosis_of(similarity)
    other = Diagnosis(tasks=("a", "b", "c", "x"), of="x", rows={}, pairs=strange.pairs)
    with pytest.raises(InputError, match="not about d"):
        relate(study, other)
    with pytest.raises(InputError, match="no 'cosines' by pair"):
        relate(study, strange, measure="cosines")
    table = {"rows": 30, "tasks": list(TASKS), "budget": 8, "partitions": []}
    (tmp_path / SUMMARY).write_text(json.dumps({"tables": [table]}))
    with pytest.raises(InputError, match="no random partitions"):
        relate(tmp_path, strange)
    with pytest.raises(InputError, match="has not finished"):
        relate(tmp_path / "nowhere", strange)


def test_the_picture_has_every_pair_and_is_the_same_each_time(study, tmp_path):
    related = relate(study, diagnosis_of(similarity_of([0.9, 0.8, 0.1, 0.2, 0.3, -0.1])))
    draw_benefit(related, tmp_path / "one.svg")
    draw_benefit(related, tmp_path / "two.svg")
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert text.count("<use ") >= 2 * len(PAIRS)


def test_compare_relates_a_study_to_a_diagnosis(study, tmp_path):
    file = tmp_path / "diagnosis.json"
    diagnosis_of(similarity_of([0.9, 0.8, 0.1, 0.2, 0.3, -0.1])).save(file)
    figure = tmp_path / "pairs.svg"
    command = ["compare", str(study), "--diagnosis", str(file), "--figure", str(figure)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert "a, b" in done.output
    assert "Mantel" in done.output
    assert figure.is_file()
    done = CliRunner().invoke(app, [*command[:4], "--json"])
    assert len(json.loads(done.stdout)[0]["pairs"]) == len(PAIRS)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--figure", "x.svg"], "goes with --diagnosis"),
        (["--diagnosis", "x.json", "--baseline", "lora"], "one study and no --baseline"),
    ],
)
def test_options_without_effect_are_refused(study, options, told):
    done = CliRunner().invoke(app, ["compare", str(study), *options])
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())
