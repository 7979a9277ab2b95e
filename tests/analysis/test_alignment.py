"""Distances between tasks against densities and loops, and telling alignment from collapse."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from torch.distributions import Independent, Normal, kl_divergence

from coadapt import InputError
from coadapt.analysis import (
    Alignment,
    AlignmentReport,
    alignment_report,
    alignment_sheet,
    effective_rank,
    start_of,
)
from coadapt.analysis._representations import collect
from coadapt.loading import Loader
from coadapt.regularizers import AlignKL, AlignMMD
from tests.analysis.toys import fill, reopened
from tests.toy_runs import model_of

TRAIN = {"rows": 20, "split": "train"}


@pytest.fixture(scope="session")
def lora(make_run):
    return fill(reopened(make_run("lora")))


def changed(make_run, change):
    """The same run with every A changed."""
    run = fill(reopened(make_run("lora")))
    with torch.no_grad():
        for layer in run.model.attached.layers.values():
            layer.A[0].copy_(change(layer.A[0]))
    return run


# --- effective rank


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 2.0, 2.0, 2.0], 4.0),
        ([5.0, 0.0, 0.0], 1.0),
        ([3.0, 1.0], np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))),
    ],
    ids=["all-alike", "one", "three-to-one"],
)
def test_known_effective_ranks(values, expected):
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.normal(size=(9, len(values))))[0]
    right = np.linalg.qr(generator.normal(size=(len(values), len(values))))[0]
    assert effective_rank(left * values @ right) == pytest.approx(expected)


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_an_effective_rank_lies_between_one_and_the_rank(seed, rows, r):
    x = np.random.default_rng(seed).normal(size=(rows, r))
    found = effective_rank(x)
    assert 1 - 1e-9 <= found <= min(rows, r) + 1e-9
    assert effective_rank(1e-3 * x) == pytest.approx(found)
    p = np.linalg.svd(x, compute_uv=False)
    assert found == pytest.approx(np.prod((p / p.sum()) ** -(p / p.sum())))


# --- the four numbers


@pytest.mark.parametrize("side", ["before", "after"])
def test_the_numbers_of_a_module(side, lora, make_run):
    other = fill(reopened(make_run("lora")), seed=7)
    kl, mmd = AlignKL(floor=0.0), AlignMMD(max_tokens=None)
    report = alignment_report(lora, other, **TRAIN, kl=kl, mmd=mmd)
    run = {"before": lora, "after": other}[side]
    found = collect(run, Loader(), modules=None, **TRAIN, seed=0)
    for module, told in getattr(report, side).items():
        values = found.values[module].double()
        tasks = [values[found.task_ids == t][found.valid[found.task_ids == t]] for t in (0, 1)]
        laws = [
            Independent(Normal(x.mean(0), (x.var(0, correction=0) + 1e-6).sqrt()), 1) for x in tasks
        ]
        there, back = (float(kl_divergence(*pair)) for pair in (laws, laws[::-1]))
        assert told.kl == pytest.approx((there + back) / 2, rel=1e-4)
        assert told.mmd == pytest.approx(slow_mmd(*(x.numpy() for x in tasks)), rel=1e-3)
        every = torch.cat(tasks)
        assert told.norm == pytest.approx(np.mean([float(row.norm()) for row in every]), rel=1e-6)
        assert told.effective_rank == pytest.approx(effective_rank(every.numpy()))


def slow_mmd(x, y):
    """Squared MMD by a mean over kernels around the median of squared distances, biased."""
    median = np.quantile(pdist(np.concatenate([x, y]), "sqeuclidean"), 0.5, method="lower")
    total = 0.0
    for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
        means = [
            np.exp(-cdist(a, b, "sqeuclidean") / (2 * factor * median)).mean()
            for a, b in ((x, x), (y, y), (x, y))
        ]
        total += means[0] + means[1] - 2 * means[2]
    return total / 5


def test_a_run_against_itself(lora):
    report = alignment_report(lora, lora, **TRAIN)
    assert report.before == report.after
    assert report.num_rows == {"sentiment": 20, "topic": 20}
    assert "KL stayed" in report.reading
    assert report.reading.endswith("the tasks did not come together")


def test_a_smaller_A_is_no_alignment(lora, make_run):
    """KL and MMD by the median do not see it, the norm does."""
    first = ["0.attention.self.query", "0.attention.self.value"]  # deeper ones read another x
    small = changed(make_run, lambda A: 0.5 * A)
    report = alignment_report(lora, small, **TRAIN, modules=first, kl=AlignKL(floor=0.0))
    before, after = report.mean
    assert after.kl == pytest.approx(before.kl, rel=1e-3)
    assert after.mmd == pytest.approx(before.mmd, rel=1e-3)
    assert after.norm == pytest.approx(before.norm / 2)
    assert report.reading.endswith("the tasks did not come together")


def test_official_bandwidths_fall_with_A_and_that_reads_as_collapse(lora, make_run):
    mmd = AlignMMD(bandwidths="official")
    small = changed(make_run, lambda A: 1e-4 * A)
    report = alignment_report(lora, small, **TRAIN, mmd=mmd, kl=AlignKL(floor=0.0))
    before, after = report.mean
    assert after.mmd < 0.8 * before.mmd
    assert after.kl < before.kl  # the floor of its variances
    assert report.reading.endswith("so this may be collapse")  # of one folder: its own start


def test_one_direction_left_is_an_effective_rank_of_one(lora, make_run):
    report = alignment_report(lora, changed(make_run, lambda A: A[:1].expand(3, -1)), **TRAIN)
    assert report.mean[1].effective_rank == pytest.approx(1.0, abs=1e-3)
    assert report.mean[0].effective_rank > 1.5


def test_nothing_left_has_no_effective_rank(lora, make_run):
    report = alignment_report(lora, changed(make_run, torch.zeros_like), **TRAIN)
    assert np.isnan(report.mean[1].effective_rank)
    assert report.reading.endswith("not to be judged, something is zero")
    assert report.to_plain()["mean"]["after"]["effective_rank"] is None
    assert alignment_sheet(report).rows[0][-1].endswith("-> -")


def test_against_its_own_start_and_for_some_modules(make_run):
    run = make_run("align_kl")
    report = alignment_report(start_of(run), run, modules=["value"], **TRAIN)
    assert list(report.before) == [n for n in run.model.attached.layers if n.endswith("value")]
    assert report.runs == (str(run.path), str(run.path))
    assert report.before != report.after


def test_a_language_model_s_answers(make_run, tiny_decoder, language_suite):
    model = {"name": str(tiny_decoder), "dtype": "float32", "max_length": 96}
    run = fill(reopened(make_run("lora", "spoken", suite=language_suite, model=model)))
    whole = alignment_report(run, run, **TRAIN)
    answers = alignment_report(run, run, **TRAIN, kl=AlignKL(tokens="answer", min_count=1))
    assert whole.mean[0].kl > 0
    assert whole.mean[0].mmd == answers.mean[0].mmd
    unbiased = AlignMMD(max_tokens=256, estimator="unbiased")
    assert alignment_report(run, run, **TRAIN, mmd=unbiased) == whole
    assert whole.mean[0].kl != answers.mean[0].kl


def test_the_same_twice_and_json(lora, make_run):
    other = make_run("lora").path
    first, second = (alignment_report(lora, other, **TRAIN) for _ in range(2))
    assert first == second
    plain = json.loads(json.dumps(first.to_plain()))
    assert plain["reading"] == first.reading
    module = next(iter(first.after))
    assert plain["modules"][module]["after"]["kl"] == first.after[module].kl


# --- the reading

BEFORE = Alignment(kl=0.5, mmd=0.1, norm=2.0, effective_rank=3.0)


def report_of(after):
    return AlignmentReport(
        runs=("runs/a", "runs/b"),
        tasks=("x", "y"),
        split="test",
        num_rows={"x": 5, "y": 6},
        before={"layer.0.query": BEFORE},
        after={"layer.0.query": after},
    )


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (
            {"kl": 0.2, "mmd": -0.05, "norm": 1.94},
            "KL fell by 60 % (0.5 to 0.2) and MMD² went from 0.1 to -0.05, while the mean "
            "norm fell by 3 % and the effective rank stayed (3.00 to 3.00): the tasks came "
            "together and the representations kept their size",
        ),
        ({"kl": 0.2, "norm": 1.0}, "norm fell by 50 % and the effective rank stayed (3.00 to 3.00)"
         ": what is compared shrank as well, so this may be collapse"),
        ({"kl": 0.2, "effective_rank": 1.2}, "(3.00 to 1.20): what is compared shrank as well, so "
         "this may be collapse"),
        ({"kl": 0.9, "norm": 1.0}, "(3.00 to 3.00): the tasks did not come together"),
        ({"kl": 0.4999}, "KL stayed (0.5 to 0.5)"),
        ({"kl": 0.46}, "(3.00 to 3.00): the tasks did not come together"),
    ],
    ids=["alignment", "smaller", "fewer-directions", "apart", "the-same", "hardly"],
)  # fmt: skip
def test_what_is_said_of_the_numbers(after, said):
    report = report_of(replace(BEFORE, **after))
    assert said in report.reading
    sheet = alignment_sheet(report)
    assert sheet.notes == (report.reading, "test rows: x 5, y 6")
    assert sheet.rows[0][1] == sheet.rows[1][1] == f"0.5 -> {after['kl']:.2g}"
    assert sheet.rows[0][-1].startswith("3.00 -> ")


# --- refused


def test_runs_that_do_not_compare_are_refused(lora, make_run, tiny_bert, toy_suite_files):
    tasks = toy_suite_files["tasks"]
    others = {
        "one task": ({"topic": tasks["topic"]}, {}),
        "different tasks": ({"sentiment": tasks["sentiment"], "degree": tasks["degree"]}, {}),
        "different modules": (None, {"target_modules": ["query"]}),
        "different rows": (None, {"max_length": 6}),
    }
    for told, (chosen, config) in others.items():
        suite = chosen and {"name": "other", "tasks": chosen}
        run = make_run("lora", told, suite=suite, model=model_of(tiny_bert, **config))
        with pytest.raises(InputError, match=told):
            alignment_report(lora, run, **TRAIN)
    frozen = make_run("frozen", "refused-frozen", budget=None)
    with pytest.raises(InputError, match="has no adapters to look at"):
        alignment_report(lora, frozen)


def test_another_base_model_is_refused(lora, make_run):
    run = reopened(make_run("lora"))
    run.model.base_fingerprint = "another"
    with pytest.raises(InputError, match="are on different base models"):
        alignment_report(lora, run, **TRAIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl": AlignKL(min_count=21, pool="sequence")}, "align_kl compares .* min_count 21 .* 20"),
        ({"mmd": AlignMMD(min_count=65)}, "align_mmd compares .* 'sentiment' has 64; take more"),
        ({"kl": AlignKL(tokens="answer")}, "tells prompts and answers apart, which an encoder"),
    ],
    ids=["rows", "tokens", "no-answers"],
)
def test_settings_that_compare_nothing_are_refused(options, message, lora):
    with pytest.raises(InputError, match=message):
        alignment_report(lora, lora, **TRAIN, **options)


def test_every_pair_counts_once(make_run, toy_suite_files):
    """Of three tasks the mean over pairs is that of three reports of two."""
    names = ("sentiment", "topic", "degree")
    three = {name: toy_suite_files["tasks"][name] for name in names}
    run = fill(reopened(make_run("lora", "three", suite={"name": "three", "tasks": three})))
    found = collect(run, Loader(), modules=["query"], **TRAIN, seed=0)
    whole = alignment_report(run, run, modules=["query"], **TRAIN, kl=AlignKL(floor=0.0))
    for module, told in whole.before.items():
        pairs = []
        for pair in combinations(range(3), 2):
            rows = torch.isin(found.task_ids, torch.tensor(pair))
            some = replace(
                found,
                task_ids=found.task_ids[rows],
                valid=found.valid[rows],
                values={module: found.values[module][rows]},
            )
            pairs.append(float(AlignKL(floor=0.0).loss(some.captured(module))))
        assert told.kl == pytest.approx(np.mean(pairs), rel=1e-4)


def test_two_runs_that_shrank_are_to_be_seen_against_the_start():
    smaller = replace(BEFORE, kl=0.2, norm=1.0)
    two, one = report_of(smaller), replace(report_of(smaller), runs=("runs/a", "runs/a"))
    assert two.reading.endswith("this may be collapse; see it against its own start")
    assert one.reading.endswith("this may be collapse")


def test_a_table_leaves_out_what_all_modules_are_called():
    report = report_of(BEFORE)
    names = ["layer.0.attention.query", "layer.1.attention.query", "layer.1.attention.value"]
    many = dict.fromkeys(names, BEFORE)
    sheet = alignment_sheet(replace(report, before=many, after=many))
    assert [row[0] for row in sheet.rows] == ["mean", "0.query", "1.query", "1.value"]
    uneven = dict.fromkeys(["wte", "layer.1.query"], BEFORE)
    sheet = alignment_sheet(replace(report, before=uneven, after=uneven))
    assert [row[0] for row in sheet.rows] == ["mean", "wte", "layer.1.query"]
    assert alignment_sheet(report).rows[1][0] == "layer.0.query"
