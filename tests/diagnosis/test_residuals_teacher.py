"""The control, teachers in the place of labels, and what is told of estimates."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from coadapt.diagnosis.residuals import (
    assumptions,
    calibrate,
    control,
    coupling_by_pair,
    coupling_table,
    teacher_coupling,
)
from coadapt.diagnosis.teacher import delta_teacher, teacher_placebo
from tests.diagnosis.judged import classes, coupled, estimated, logits, rng, texts_of, values

# The control -------------------------------------------------------------------------------------


def controlled(*judged):
    return control(judged, [calibrate(task) for task in judged], rng(12))


def test_the_control_sees_nothing_on_the_same_texts():
    judged = coupled(600, 0.9)
    found, notes = controlled(*judged)
    assert notes == []
    assert found is not None
    assert found.estimator == "null_alignment"
    assert abs(found.value) < 0.02
    assert found.p_value > 0.01
    assert estimated(*judged)[0]["a", "b"].value > 0.5


def test_the_control_sees_the_order_of_rows_that_share_no_text():
    # Sorted by the residual, as a file with sorted labels is.
    num = 400
    labels = np.sort(rng(13).normal(size=num))
    a = values("a", texts_of(num), labels, np.zeros(num))
    b = values("b", texts_of(num, start=num), labels, np.zeros(num))
    found, _ = controlled(a, b)
    assert found is not None
    assert found.value > 0.5
    cut = min(len(calibrate(a).rows), len(calibrate(b).rows))
    assert found.num_rows == cut


def test_a_control_that_cannot_be_is_a_note():
    labels = rng(14).normal(size=60)
    a = values("a", texts_of(60), labels, labels)
    b = values("b", texts_of(60, start=60), labels, np.zeros(60))
    found, notes = controlled(a, b)
    assert found is None
    assert len(notes) == 1
    assert notes[0].startswith("no null control: ")


# Teachers ----------------------------------------------------------------------------------------


def heads_of(*judged, temperature=1.0):
    heads = [calibrate(task) for task in judged]
    for head in heads:
        object.__setattr__(head, "temperature", temperature)
    return heads


def test_a_teacher_gives_the_closed_form():
    # A student that knows nothing: r = q - 1/2, C_ij = Var q, C_tt = m (1 - m) with m the mean.
    num, generator = 500, rng(15)
    q = expit(generator.normal(size=num))
    student = {name: np.zeros((num, 2)) for name in "ab"}
    heads = heads_of(*coupled(100, 0.0))
    found, placebo = teacher_coupling(
        student, [{name: logits(q) for name in "ab"}], heads, [heads], rng()
    )
    correlation = q.var() / (q.mean() * (1 - q.mean()))
    assert found.estimator == "delta_teacher"
    assert found.raw == pytest.approx(-0.5 * np.log(1 - correlation**2), rel=1e-3)
    assert found.num_rows == num
    assert placebo is None


def test_each_model_has_temperatures_of_its_own_and_two_teachers_give_a_placebo():
    num, generator = 300, rng(16)
    outputs = [{n: generator.normal(size=(num, 2)) for n in "ab"} for _ in range(3)]
    heads = [heads_of(*coupled(100, 0.0), temperature=t) for t in (2.0, 0.5, 4.0)]
    p, q, other = (
        [softmax(found[name] / t, axis=1) for name in "ab"]
        for found, t in zip(outputs, (2.0, 0.5, 4.0), strict=True)
    )
    found, placebo = teacher_coupling(outputs[0], outputs[1:], heads[0], heads[1:], rng(17))
    generator = rng(17)
    wanted = delta_teacher(q, p, generator=generator)
    assert (found.raw, found.low, found.p_value) == (wanted.raw, wanted.low, wanted.p_value)
    assert placebo is not None
    assert placebo.estimator == "placebo"
    assert placebo.raw == teacher_placebo(q, other, generator=generator).raw


def test_a_regressions_noise_is_that_around_the_teacher():
    num, generator = 400, rng(18)
    shared = generator.normal(size=num)
    labels = generator.normal(size=100)
    student = heads_of(*(values(n, texts_of(100), labels, np.zeros(100)) for n in "ab"))
    teacher = heads_of(*(values(n, texts_of(100), 2 * labels, np.zeros(100)) for n in "ab"))
    variance = teacher[0].variance
    assert variance is not None
    found, _ = teacher_coupling(
        {name: np.zeros((num, 1)) for name in "ab"},
        [dict.fromkeys("ab", shared[:, None])],
        student,
        [teacher],
        rng(),
    )
    correlation = shared.var() / (shared.var() + variance)
    assert found.raw == pytest.approx(-0.5 * np.log(1 - correlation**2), rel=1e-3)


# What is told ------------------------------------------------------------------------------------


def test_an_estimate_as_measures():
    found, _ = estimated(*coupled(300, 0.8))
    estimate = found["a", "b"]
    pair = coupling_by_pair(("x", "b", "a"), ("a", "b"), estimate)
    assert "delta_hat of each two of a, b alone" in pair.title
    assert np.isnan(pair.values[0]).all()
    # Two tasks alone are the whole.
    assert pair.values[1, 2] == pair.values[2, 1] == pytest.approx(estimate.value, rel=1e-9)
    assert f"together {estimate.value:.3f} nats" in pair.reading
    assert "more than chance gives" in pair.reading
    table = coupling_table({"it": estimate})["coupling"]
    assert table.rows == ("it",)
    assert dict(zip(table.columns, table.values[0], strict=True)) == pytest.approx(
        {
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "p": estimate.p_value,
            "bias": estimate.bias,
            "rows": estimate.num_rows,
        },
        abs=5e-5,
    )
    assert coupling_table({}) == {}


def test_a_coupling_that_chance_gives_is_called_so():
    estimate = estimated(*coupled(300, 0.0, seed=1))[0]["a", "b"]
    assert estimate.p_value > 0.05
    assert "no more than chance gives" in coupling_by_pair("ab", "ab", estimate).reading


def test_assumptions_are_told_once():
    a, b = coupled(600, 0.5)
    part = classes("b", b.rows.texts[:400], b.rows.labels[:400], b.outputs[:400])
    partial = estimated(a, part)[0]["a", "b"]
    whole = estimated(a, b)[0]["a", "b"]
    one = assumptions({"partial: a, b": partial, "whole": whole})
    assert one == [f"partial: a, b: {partial.assumption}"]
    two = assumptions({"partial: a, b": partial, "whole": whole, "partial: c, d": partial})
    assert two == [f"delta_partial: {partial.assumption}"]
