"""Residual coupling of tasks of a run, on outputs and labels whose coupling is known."""

import numpy as np
import pytest
from scipy.special import softmax

from coadapt import InputError
from coadapt.diagnosis.residuals import (
    MIN_PAIRS,
    Judged,
    calibrate,
    residuals_of,
    shared_coupling,
)
from coadapt.tasks import Task
from tests.diagnosis.judged import (
    NOWHERE,
    classes,
    coupled,
    estimated,
    independent,
    is_fitted,
    logits,
    rng,
    rows_of,
    texts_of,
    values,
)

# Calibration -------------------------------------------------------------------------------------


def test_the_halves_are_told_by_the_text_alone():
    texts = texts_of(60)
    shouted = tuple(f"  {text.upper()} " for text in reversed(texts))
    one = calibrate(independent("a", texts, 1))
    other = calibrate(independent("b", shouted, 2))
    kept = [texts[row] for row in one.rows]
    assert kept == [text for text in texts if not is_fitted(text)]
    assert sorted(shouted[row].strip().lower() for row in other.rows) == sorted(kept)
    assert 15 < len(kept) < 45


def test_pairs_of_texts_are_told_by_both():
    texts = ("same",) * 60
    seconds = texts_of(60)
    task = Task(name="p", kind="regression", data=NOWHERE, text=("first", "second"))
    judged = Judged(
        task=task,
        rows=rows_of(texts, rng().normal(size=60), pairs=seconds),
        outputs=np.zeros((60, 1)),
    )
    kept = [seconds[row] for row in calibrate(judged).rows]
    assert kept == [second for second in seconds if not is_fitted("same", second)]


def test_a_head_that_is_too_sure_is_cooled():
    num, generator = 6000, rng(3)
    p = generator.uniform(0.02, 0.98, size=num)
    labels = generator.random(num) < p
    found = calibrate(classes("a", texts_of(num), labels, 3 * logits(p)))
    # The standard error of log T is about 1 / sqrt(n Var(z) p (1 - p)), n being half of the rows.
    assert found.temperature == pytest.approx(3.0, rel=0.12)
    assert found.variance is None
    outputs = generator.normal(size=(5, 2))
    wanted = softmax(outputs / found.temperature, axis=1)
    np.testing.assert_allclose(found.predicted(outputs), wanted, rtol=1e-12)
    assert np.isfinite(found.predicted(outputs * 1e5)).all()


def test_the_temperature_is_fitted_on_the_other_half():
    num, texts = 400, texts_of(400)
    labels = rng(4).random(num) < 0.5
    sure = np.where(labels, 0.9, 0.1)
    unsure = [is_fitted(text) for text in texts]
    # Right on 9 in 10 where the fit looks, wrong everywhere else.
    flipped = np.where(unsure, np.where(rng(5).random(num) < 0.9, sure, 1 - sure), 1 - sure)
    found = calibrate(classes("a", texts, labels, logits(flipped)))
    assert found.temperature == pytest.approx(1.0, abs=0.35)


def test_a_regression_keeps_its_values_and_tells_their_variance():
    texts, generator = texts_of(80), rng(6)
    labels, outputs = generator.normal(size=80), generator.normal(size=80)
    found = calibrate(values("v", texts, labels, outputs))
    errors = [y - z for y, z, text in zip(labels, outputs, texts, strict=True) if is_fitted(text)]
    mean = sum(errors) / len(errors)
    assert found.variance == pytest.approx(sum((e - mean) ** 2 for e in errors) / len(errors))
    assert found.temperature == 1.0
    np.testing.assert_array_equal(found.predicted(outputs[:, None]), outputs[:, None])


def test_residuals_are_those_of_the_rows_that_were_not_fitted_on():
    a, _ = coupled(200, 0.5)
    found = calibrate(a)
    p = softmax(a.outputs / found.temperature, axis=1)
    wanted = [
        (a.rows.labels[row] == 0) - p[row, 0]
        for row in range(200)
        if not is_fitted(a.rows.texts[row])
    ]
    np.testing.assert_allclose(residuals_of(a, found), np.reshape(wanted, (-1, 1)), rtol=1e-12)


@pytest.mark.parametrize("num", [0, 1, 12], ids="{} rows".format)
def test_too_few_rows_to_cut_are_named(num):
    with pytest.raises(InputError, match=rf"task 'a' has {num} rows .* 10 each are needed"):
        calibrate(independent("a", texts_of(num), 0))


# Shared texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9], ids=str)
def test_the_coupling_is_recovered(share):
    found, notes = estimated(*coupled(2000, share, seed=7))
    assert notes == []
    (estimate,) = found.values()
    assert list(found) == [("a", "b")]
    assert estimate.estimator == "delta_hat"
    delta = -0.5 * np.log(1 - share**2)
    assert estimate.low <= delta <= estimate.high
    assert estimate.value == pytest.approx(delta, abs=0.15 * delta + 0.004)
    assert (estimate.p_value < 0.05) == (share > 0)


def test_tasks_on_other_texts_take_no_part():
    a, b = coupled(300, 0.8)
    c = independent("c", texts_of(300, start=1000), 1)
    found, notes = estimated(a, c, b)
    assert list(found) == [("a", "b")]
    assert notes == []


def test_the_order_of_rows_does_not_matter():
    a, b = coupled(300, 0.8)
    order = rng(8).permutation(300)
    shuffled = classes(
        "b", [b.rows.texts[row] for row in order], b.rows.labels[order], b.outputs[order]
    )
    assert estimated(a, shuffled)[0]["a", "b"].raw == pytest.approx(
        estimated(a, b)[0]["a", "b"].raw, rel=1e-9
    )


def test_a_text_that_a_task_has_twice_counts_once_with_its_first_label():
    a, b = coupled(300, 0.8)
    again = classes(
        "b",
        [*b.rows.texts, *b.rows.texts[:100]],
        np.concatenate([b.rows.labels, 1 - b.rows.labels[:100]]),
        np.concatenate([b.outputs, b.outputs[:100]]),
    )
    heads = [calibrate(a), calibrate(b)]
    with_again = calibrate(again)
    # The same temperature: the point is which rows meet.
    object.__setattr__(with_again, "temperature", heads[1].temperature)
    found, _ = shared_coupling([a, again], [heads[0], with_again], rng())
    wanted, _ = shared_coupling([a, b], heads, rng())
    assert found["a", "b"].raw == pytest.approx(wanted["a", "b"].raw, rel=1e-9)
    assert found["a", "b"].num_rows == wanted["a", "b"].num_rows


def test_tasks_that_share_some_texts_are_estimated_on_those():
    a, b = coupled(600, 0.8)
    part = classes("b", b.rows.texts[:400], b.rows.labels[:400], b.outputs[:400])
    found, notes = estimated(a, part)
    assert notes == []
    estimate = found["a", "b"]
    assert estimate.estimator == "delta_partial"
    kept = sum(not is_fitted(text) for text in b.rows.texts[:400])
    assert estimate.num_rows == kept
    assert estimate.pair_counts is not None
    assert estimate.pair_counts[0, 1] == kept
    assert estimate.low <= -0.5 * np.log(1 - 0.64) <= estimate.high


def test_every_pair_that_shares_texts_is_in_a_group():
    # b shares with a and d, and with c, which shares nothing with those.
    b = independent("b", texts_of(600), 1)
    a = independent("a", texts_of(300), 2)
    c = independent("c", texts_of(300, start=300), 3)
    d = independent("d", texts_of(300), 4)
    assert list(estimated(a, b, c, d)[0]) == [("a", "b", "d"), ("b", "c")]


def test_two_groups():
    a, b = coupled(300, 0.8)
    far = texts_of(300, start=1000)
    c, d = coupled(300, 0.0, seed=1, texts=far, names=("c", "d"))
    found, _ = estimated(a, c, b, d)
    assert list(found) == [("a", "b"), ("c", "d")]
    assert found["a", "b"].value > 0.2 > found["c", "d"].value


def test_too_few_shared_texts_are_told():
    # 80 in common, but about half of them go into the temperatures.
    a = independent("a", texts_of(200), 1)
    b = independent("b", texts_of(200, start=120), 2)
    kept = sum(not is_fitted(text) for text in texts_of(80, start=120))
    assert kept < MIN_PAIRS
    found, notes = estimated(a, b)
    assert found == {}
    assert len(notes) == 1
    assert "no two tasks share 50 texts besides those that temperatures are fitted on" in notes[0]
    assert "--teacher" in notes[0]


def test_a_group_that_cannot_be_estimated_is_a_note():
    a, b = coupled(300, 0.8)
    far = texts_of(300, start=1000)
    labels = rng(9).normal(size=300)
    perfect = values("perfect", far, labels, labels)
    other = values("other", far, labels, np.zeros(300))
    found, notes = estimated(perfect, a, other, b)
    assert list(found) == [("a", "b")]
    assert len(notes) == 1
    assert notes[0].startswith("no residual coupling of perfect, other: ")
    assert "the same in all rows" in notes[0]


def test_regressions_and_classes_together():
    a, b = coupled(2000, 0.0, seed=10)
    noise = rng(11).normal(size=2000)
    # The error of a value that moves with the label's: correlation r with y - p.
    p = softmax(a.outputs, axis=1)[:, 1]
    e = (a.rows.labels - p) / np.sqrt(np.mean(p * (1 - p)))
    value = values("v", a.rows.texts, 0.6 * e + 0.8 * noise, np.zeros(2000))
    found, _ = estimated(a, b, value)
    estimate = found["a", "b", "v"]
    assert estimate.low <= -0.5 * np.log(1 - 0.36) <= estimate.high
    pairs = estimate.pairs
    assert pairs[0, 2] == pytest.approx(-0.5 * np.log(1 - 0.36), abs=0.05)
    assert abs(pairs[0, 1]) < 0.01
    assert abs(pairs[1, 2]) < 0.01
