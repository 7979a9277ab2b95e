"""Teachers against drawn labels and a closed form; the negative controls."""

import re
from typing import Any

import numpy as np
import pytest

from coadapt._errors import InputError
from coadapt.diagnosis.coupling import class_residuals, delta_hat, regression_residuals
from coadapt.diagnosis.teacher import delta_teacher, null_alignment, teacher_placebo
from tests.reference.slow_coupling import (
    coupling_of_covariance,
    labels_from,
    softmax,
    teacher_covariance,
)

FEW: dict[str, Any] = {"num_permutations": 19, "num_bootstrap": 39}
SOME: dict[str, Any] = {"num_permutations": 99, "num_bootstrap": 199}


def rng(seed=0):
    return np.random.default_rng(seed)


def teachers_and_students(n, generator, num_classes=(2, 3, 2)):
    """Teachers that know the true probabilities, students that miss a factor all tasks use."""
    factor = generator.normal(size=(n, 1))
    for C in num_classes:
        z = generator.normal(size=(n, C))
        yield softmax(z + 2 * factor * np.eye(C)[0]), softmax(z)


def unzip(pairs):
    return tuple(map(list, zip(*pairs, strict=True)))


# --- against the truth


def test_gaussian_teachers_give_the_true_coupling():
    generator = rng(1)
    n, d, T = 10_000, 5, 3
    U, A = 2 * generator.normal(size=(d, T)), generator.normal(size=(2, d))
    X = generator.normal(size=(n, d))
    Z = X @ A.T + 0.5 * generator.normal(size=(n, 2))
    B = np.linalg.solve(A @ A.T + 0.25 * np.eye(2), A @ U)  # E[Y | Z] = Z B
    variances = [1.0, 4.0, 0.5]
    S = U.T @ U - U.T @ A.T @ B + np.diag(variances)  # of Y given Z
    truth = coupling_of_covariance(S, [1, 1, 1])
    teacher, student = list((X @ U).T), list((Z @ B).T)
    found = delta_teacher(teacher, student, residual_variances=variances, generator=rng(), **SOME)
    Y = X @ U + generator.normal(size=(n, T)) * np.sqrt(variances)
    labelled = delta_hat(
        [regression_residuals(p, y) for p, y in zip(student, Y.T, strict=True)],
        generator=rng(),
        **SOME,
    )
    assert truth > 0.25
    assert found.low < truth < found.high
    assert found.value == pytest.approx(truth, abs=0.01)
    assert found.value == pytest.approx(labelled.value, abs=0.02)
    assert found.high - found.low < labelled.high - labelled.low  # drawing labels adds noise
    assert found.bias < labelled.bias
    assert found.p_value == 0.01
    assert found.p_bartlett is None


def test_class_teachers_give_what_many_drawn_labels_give():
    generator = rng(2)
    teacher, student = unzip(teachers_and_students(2000, generator))
    found = delta_teacher(teacher, student, generator=rng(), **SOME)
    drawn = []
    for _ in range(25):  # the same inputs, labels drawn anew
        residuals = [
            class_residuals(p, labels_from(q, generator))
            for q, p in zip(teacher, student, strict=True)
        ]
        drawn.append(delta_hat(residuals, generator=generator, **FEW).value)
    assert found.value == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(25))
    assert found.value > 0.1 > 10 * np.std(drawn) / np.sqrt(25)


def test_formula_equals_a_sum_over_all_labels():
    teacher, student = unzip(teachers_and_students(60, rng(3)))
    found = delta_teacher(teacher, student, shrinkage=1e-12, generator=rng(), **FEW)
    slow = coupling_of_covariance(teacher_covariance(teacher, student), [1, 2, 1])
    assert found.raw == pytest.approx(slow, rel=1e-8)
    assert found.estimator == "delta_teacher"
    assert "independent given the input" in found.assumption


def test_classes_and_regressions_mix():
    generator = rng(4)
    teacher, student = unzip(teachers_and_students(60, generator, num_classes=(2, 2)))
    # A regression on the log-odds' scale of one: its variance is what a label of 0 or 1 would have.
    q, p = teacher[1][:, 0], student[1][:, 0]
    variance = float(np.mean(q * (1 - q)))
    options = {"generator": rng(), "shrinkage": 1e-12, **FEW}
    mixed = delta_teacher(
        [teacher[0], 3 * q],
        [student[0], 3 * p[:, None] + 1],
        residual_variances=[None, 9 * variance],
        **options,
    )
    classes = delta_teacher(teacher, student, **options)
    assert mixed.raw == pytest.approx(classes.raw, rel=1e-8)


def test_interval_is_that_of_a_plain_bootstrap_of_rows():
    generator = rng(9)
    # Products of residuals are the same in all rows, so what varies is how sure the teachers are.
    signs = generator.choice([-1, 1], size=100)
    q = np.where(np.arange(100) < 50, 0.5, 0.1)
    teacher = [np.column_stack([q, 1 - q])] * 2
    student = [np.column_stack([q + 0.1 * signs, 1 - q - 0.1 * signs])] * 2
    found = delta_teacher(
        teacher, student, num_permutations=19, num_bootstrap=1999, generator=generator
    )
    drawn = []
    for _ in range(1999):
        rows = generator.integers(0, 100, size=100)
        shared = 0.01 * signs[rows].var()
        total = shared + np.mean(q[rows] * (1 - q[rows]))
        drawn.append(coupling_of_covariance(np.array([[total, shared], [shared, total]]), [1, 1]))
    width = np.subtract(*np.quantile(drawn, [0.975, 0.025]))
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    middle = (found.low + found.high) / 2 - found.value
    expected = np.quantile(drawn, [0.975, 0.025]).mean() - np.mean(drawn)
    assert middle == pytest.approx(expected, abs=0.1 * width)


def test_which_class_is_dropped_and_which_shift_does_not_matter():
    teacher, student = unzip(teachers_and_students(300, rng(5)))
    found = delta_teacher(teacher, student, generator=rng(), **FEW)
    rolled = [[np.roll(x, 1, axis=1) for x in side] for side in (teacher, student)]
    again = delta_teacher(*rolled, generator=rng(), **FEW)
    names = ("raw", "value", "low", "high", "bias", "p_value", "pairs")
    for name in names:
        np.testing.assert_allclose(getattr(again, name), getattr(found, name), rtol=1e-8, atol=1e-9)


def test_students_that_miss_nothing_shared_have_no_coupling():
    generator, held = rng(6), 0
    for _ in range(20):
        sides = [
            (softmax(z), softmax(z + generator.normal(size=(200, 3))))
            for z in generator.normal(size=(3, 200, 3))
        ]
        found = delta_teacher(*unzip(sides), generator=generator, **FEW)
        held += found.low < 0 < found.high
    assert held >= 19


# --- controls


def seeds(n, shared, generator):
    """Two seeds of teachers whose errors are shared by all tasks in part."""
    truth = generator.normal(size=(3, n, 2))
    for _ in range(2):
        common = generator.normal(size=(n, 2))
        own = generator.normal(size=(3, n, 2))
        yield [
            softmax(z + shared * common + (1 - shared) * e) for z, e in zip(truth, own, strict=True)
        ]


def test_placebo_is_zero_for_errors_of_their_own_and_not_for_shared_ones():
    a, b = seeds(3000, 0.0, rng(7))
    clean = teacher_placebo(a, b, generator=rng(), **SOME)
    assert clean.low < 0 < clean.high
    assert clean.p_value > 0.05
    assert clean.estimator == "placebo"
    a, b = seeds(3000, 0.7, rng(7))
    shared = teacher_placebo(a, b, generator=rng(), **SOME)
    assert shared.low > 0.01
    assert shared.p_value == 0.01
    same = delta_teacher(a, b, generator=rng(), **SOME)
    assert (same.value, same.low, same.bias) == (shared.value, shared.low, shared.bias)
    assert same.assumption != shared.assumption != ""


def test_aligned_rows_of_disjoint_sets_measure_nothing():
    generator = rng(8)
    rho = 0.277  # so is the coupling of five tasks, by chance
    R = np.full((5, 5), rho) + (1 - rho) * np.eye(5)
    truth = -0.5 * np.log(np.linalg.det(R))
    assert truth == pytest.approx(0.277, abs=0.002)
    sets = [generator.multivariate_normal(np.zeros(5), R, size=20_000 + t) for t in range(5)]
    options = {"num_permutations": 39, "num_bootstrap": 39}
    joint = delta_hat(sets[0], generator=rng(), **options)
    assert joint.value == pytest.approx(truth, abs=0.02)
    alone = [x[:, t] for t, x in enumerate(sets)]
    aligned = null_alignment(alone, generator=rng(), **options)
    assert aligned.num_rows == 20_000
    assert aligned.raw < 0.001
    assert abs(aligned.value) < 0.0005
    assert aligned.p_value > 0.05
    assert aligned.estimator == "null_alignment"
    assert "measures nothing" in aligned.assumption
    by_label = null_alignment([np.sort(x) for x in alone], generator=rng(), **options)
    assert by_label.value > 10 * truth
    assert by_label.p_value == 1 / 40


# --- refusals

Q, P = unzip(teachers_and_students(30, rng(), num_classes=(2, 3)))


@pytest.mark.parametrize(
    ("teacher", "student", "variances", "message"),
    [
        (Q, P[:1], None, "must have as many tasks each"),
        (Q, P, [1.0], "must have as many tasks each"),
        (Q[:1], P[:1], None, "1 task"),
        (Q, P[::-1], None, "task 0: teacher has shape (30, 1), student has (30, 2)"),
        ([q[:4] for q in Q], [p[:3] for p in P], None, "shape (4, 1), student has (3, 1)"),
        ([Q[0], Q[1][:9]], [P[0], P[1][:9]], None, "[30, 9] rows"),
        (Q, Q, None, "teacher - student of task 0: column 0 is the same in all rows"),
        ([Q[0].round(), Q[1]], P, None, "teacher[0] are all 0 or 1"),
        (Q, [P[0].round(), P[1]], None, "student[0] are all 0 or 1"),
        (Q, [P[0], P[1] * 2], None, "student[1][0] is"),
        ([q[:3] for q in Q], [p[:3] for p in P], None, "3 rows and 3 columns"),
        (Q, P, [None, 1.0], "teacher[1] must be a matrix of shape any x 1"),
        ([Q[0], Q[1][:, 0]], [P[0], P[1][:, 0]], [None, 0.0], "must be > 0 and finite, not 0.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_teachers(teacher, student, variances, message):
    with pytest.raises(InputError, match=re.escape(message)):
        delta_teacher(teacher, student, residual_variances=variances, generator=rng(), **FEW)


def test_refused_alignments():
    with pytest.raises(InputError, match="1 task"):
        null_alignment([np.arange(9.0)], generator=rng())
    with pytest.raises(InputError, match="2 rows and 2 columns"):
        null_alignment([np.arange(9.0), np.arange(2.0)], generator=rng())
