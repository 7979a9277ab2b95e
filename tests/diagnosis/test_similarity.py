"""Cosines of gradients against loops, and against true cosines under simulated noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt._errors import InputError
from coadapt.diagnosis.collect import ProbeGradients
from coadapt.diagnosis.similarity import cosines, gram_of
from tests.reference.slow_diagnosis import (
    cosines_by_loops,
    fisher_weights_by_loops,
    gram_by_loops,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def probe_gradients(generator, num_chunks):
    """Random gradients of two maps of 4 and 3 outputs, for 2 probes."""
    shapes = {"first": (4, 2), "second": (3, 2)}
    return ProbeGradients(
        chunks={
            name: generator.normal(size=(num_chunks, *shape)).astype(np.float32)
            for name, shape in shapes.items()
        },
        squares={name: generator.gamma(0.5, size=shape) for name, shape in shapes.items()},
    )


def gram_by_einsum(gradients):
    """Return (P, N, N) of tasks' gradients, (C, P, D) each."""
    every = np.concatenate(gradients)
    return np.einsum("apd,bpd->pab", every, every)


def judge(gradients, *, num_bootstrap=20, seed=0, paired=False, floor=0.1):
    return cosines(
        gram_by_einsum(gradients),
        [len(task) for task in gradients],
        [f"task{i}" for i in range(len(gradients))],
        num_bootstrap=num_bootstrap,
        generator=rng(seed),
        paired=paired,
        floor=floor,
    )


def simulated(generator, *, cosine, reliability, chunks=24, size=200, probes=1, shared=0.0):
    """Two tasks' gradients (C, P, D): true ones of that cosine, and noise that may be shared.

    The noise of a chunk has the variance with which the mean gradient has that reliability.
    """
    true = np.zeros((2, probes, size))
    true[:, :, 0] = [[1.0], [cosine]]
    true[1, :, 1] = np.sqrt(1 - cosine**2)
    noise = generator.normal(size=(2, chunks, probes, size))
    noise[1] = shared * noise[0] + np.sqrt(1 - shared**2) * noise[1]
    scale = np.sqrt(chunks * (1 / reliability - 1) / size)
    return list(true[:, None] + scale * noise)


# --- against loops


@pytest.mark.parametrize("fisher", [False, True], ids=["plain", "fisher"])
def test_gram_agrees_with_loops(fisher):
    tasks = [probe_gradients(rng(seed), num) for seed, num in enumerate((3, 1, 2))]
    weights = fisher_weights_by_loops([task.squares for task in tasks], 0.1) if fisher else None
    slow = gram_by_loops([task.chunks for task in tasks], weights)
    found = gram_of(tasks, fisher=fisher)
    assert found.shape == (2, 6, 6)
    np.testing.assert_allclose(found, slow, rtol=1e-6, atol=1e-6)
    assert found.dtype == np.float64


def test_fisher_weighs_a_task_by_its_shape_not_its_size():
    tasks = [probe_gradients(rng(seed), 2) for seed in (0, 1)]
    louder = ProbeGradients(
        chunks=tasks[1].chunks, squares={n: 1e4 * s for n, s in tasks[1].squares.items()}
    )
    expected = gram_of(tasks, fisher=True)
    np.testing.assert_allclose(gram_of([tasks[0], louder], fisher=True), expected, rtol=1e-9)


@pytest.mark.parametrize("paired", [False, True], ids=["own rows", "paired"])
def test_statistics_agree_with_loops(paired):
    counts = (4, 4, 4) if paired else (4, 3, 6)
    common = rng(9).normal(size=(1, 2, 5))
    gradients = [common + 0.5 * rng(i).normal(size=(c, 2, 5)) for i, c in enumerate(counts)]
    cosine, reliability, corrected = cosines_by_loops(gradients, paired=paired)
    found = judge(gradients, paired=paired)
    np.testing.assert_allclose(found.cosine, cosine, rtol=1e-10)
    np.testing.assert_allclose(found.reliability, reliability, rtol=1e-10)
    np.testing.assert_allclose(found.corrected, corrected, rtol=1e-10)


# --- known values


def test_noise_takes_from_a_cosine_and_the_correction_gives_it_back():
    generator = rng(1)
    for cosine, reliability in ((0.6, 0.5), (-0.3, 0.8), (0.0, 0.6)):
        draws = [
            judge(
                simulated(generator, cosine=cosine, reliability=reliability, chunks=6),
                num_bootstrap=1,
            )
            for _ in range(150)
        ]
        plain = [draw.cosine[0, 1] for draw in draws]
        corrected = [draw.corrected[0, 1] for draw in draws]
        known = [draw.reliability for draw in draws]
        for values, expected in (
            (plain, cosine * reliability),
            (corrected, cosine),
            (np.mean(known, axis=1), reliability),
        ):
            error = np.std(values) / np.sqrt(len(values))
            assert np.mean(values) == pytest.approx(expected, abs=3 * error + 0.01)


def test_shared_noise_is_taken_out_where_chunks_are_paired():
    generator = rng(2)
    pairs = [
        simulated(generator, cosine=0.3, reliability=0.6, chunks=6, shared=0.9) for _ in range(80)
    ]
    values = [judge(pair, paired=True, num_bootstrap=1).corrected[0, 1] for pair in pairs]
    error = np.std(values) / np.sqrt(len(values))
    assert np.mean(values) == pytest.approx(0.3, abs=3 * error + 0.01)
    # As if the rows were others, noise in common counts as likeness.
    naive = [judge(pair, num_bootstrap=1).corrected[0, 1] for pair in pairs]
    assert np.mean(naive) > 0.8


@pytest.mark.parametrize(
    ("reliability", "chunks", "paired"),
    [(0.8, 20, False), (0.3, 12, False), (0.5, 8, False), (0.5, 12, True)],
    ids=["reliable", "noisy", "few chunks", "paired"],
)
def test_intervals_cover(reliability, chunks, paired):
    """Of the plain cosine its expectation, of the corrected one the true cosine."""
    generator, cosine, shared = rng(3), 0.4, 0.5 * paired
    about = {"cosine": cosine, "reliability": reliability, "chunks": chunks, "shared": shared}
    draws = [
        judge(simulated(generator, **about), num_bootstrap=80, paired=paired, seed=i)
        for i in range(100)
    ]
    plain = np.array([draw.cosine[0, 1] for draw in draws])
    expected = reliability * cosine + shared * (1 - reliability)
    assert plain.mean() == pytest.approx(expected, abs=0.015)
    covered = [draw.low[0, 1] <= plain.mean() <= draw.high[0, 1] for draw in draws]
    assert 0.9 <= np.mean(covered) <= 0.99
    told = np.mean([draw.samples[:, 0, 1].std() for draw in draws])
    assert 0.85 < told / plain.std() < 1.4  # a jackknife errs upwards
    corrected = np.array([(draw.corrected_low[0, 1], draw.corrected_high[0, 1]) for draw in draws])
    corrected = corrected[np.isfinite(corrected).all(axis=1)]
    assert len(corrected) > 60
    assert np.mean((corrected[:, 0] <= cosine) & (cosine <= corrected[:, 1])) >= 0.9


def test_more_probes_tell_more():
    def spread(probes):
        about = {"cosine": 0.4, "reliability": 0.6, "chunks": 4, "probes": probes}
        draws = [simulated(rng(seed), **about) for seed in range(60)]
        return np.std([judge(draw, num_bootstrap=1).cosine[0, 1] for draw in draws])

    assert spread(8) < 0.6 * spread(1)  # the probes' noise is independent here: a factor of 0.35


# --- what holds always


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6), paired=st.booleans())
@settings(deadline=None, max_examples=15)
def test_scale_and_rotation_change_nothing(seed, scale, paired):
    gradients = [rng(seed).normal(size=(6, 2, 8)), 0.5 + rng(seed + 1).normal(size=(6, 2, 8))]
    rotation = np.linalg.qr(rng(seed).normal(size=(8, 8))).Q
    moved = [scale * gradients[0] @ rotation, gradients[1] @ rotation]
    found, other = (judge(tasks, paired=paired) for tasks in (gradients, moved))
    for field in ("cosine", "low", "high", "samples", "reliability", "corrected"):
        expected = getattr(found, field)
        np.testing.assert_allclose(getattr(other, field), expected, rtol=1e-6, atol=1e-9)


@given(seed=st.integers(0, 10_000), paired=st.booleans())
@settings(deadline=None, max_examples=15)
def test_symmetric_with_ones_and_in_range(seed, paired):
    gradients = [rng(seed + i).normal(size=(5, 2, 6)) + 0.3 * i for i in range(3)]
    found = judge(gradients, paired=paired)
    for matrix in (found.cosine, found.low, found.high, *found.samples):
        np.testing.assert_array_equal(matrix.diagonal(), 1.0)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        assert np.abs(matrix).max() <= 1
    assert (found.low <= found.high).all()
    assert (found.reliability <= 1 + 1e-12).all()
    np.testing.assert_allclose(found.corrected, found.corrected.T)
    unknown = ~(found.reliability > 0.1)
    np.testing.assert_array_equal(np.isnan(found.corrected), unknown[:, None] | unknown[None, :])
    for ends in (found.corrected_low, found.corrected_high):
        assert np.isnan(ends[np.isnan(found.corrected)]).all()


def test_identical_tasks_have_a_cosine_of_one():
    gradients = 1.0 + rng().normal(size=(6, 2, 8))
    apart = judge([gradients, 3.0 * gradients])
    assert apart.cosine[0, 1] == pytest.approx(1.0, abs=1e-12)
    paired = judge([gradients, 3.0 * gradients], paired=True)
    assert paired.cosine[0, 1] == pytest.approx(1.0, abs=1e-12)
    assert paired.corrected[0, 1] == pytest.approx(1.0, abs=1e-12)
    # Drawn together they stay identical, and the interval has no width.
    assert paired.high[0, 1] - paired.low[0, 1] == pytest.approx(0.0, abs=1e-9)
    assert apart.high[0, 1] - apart.low[0, 1] > 0.01
    opposite = judge([gradients, -gradients], paired=True)
    assert opposite.corrected[0, 1] == pytest.approx(-1.0, abs=1e-12)


def test_replicates_are_centred_on_the_cosine():
    gradients = simulated(rng(5), cosine=0.5, reliability=0.6)
    found = judge(gradients, num_bootstrap=50)
    assert found.samples.shape == (50, 2, 2)
    assert found.samples.mean(axis=0)[0, 1] == pytest.approx(found.cosine[0, 1], abs=1e-9)
    assert found.low[0, 1] == pytest.approx(np.quantile(found.samples[:, 0, 1], 0.025))
    assert found.high[0, 1] == pytest.approx(np.quantile(found.samples[:, 0, 1], 0.975))


def test_the_same_generator_gives_the_same():
    gradients = simulated(rng(6), cosine=0.5, reliability=0.6)
    first, same, other = (judge(gradients, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.samples, same.samples)
    assert (first.samples[:, 0, 1] != other.samples[:, 0, 1]).any()
    np.testing.assert_array_equal(first.cosine, other.cosine)


# --- what is not known


def test_a_task_of_one_chunk_has_a_cosine_but_no_certainty():
    gradients = [1 + rng(i).normal(size=(c, 2, 8)) for i, c in enumerate((1, 6, 6))]
    found = judge(gradients)
    assert np.isfinite(found.cosine).all()
    assert np.isnan(found.reliability).tolist() == [True, False, False]
    lost = np.array([[True] * 3, [True, False, False], [True, False, False]])
    for matrix in (found.low, found.high, found.corrected):
        np.testing.assert_array_equal(np.isnan(matrix), lost)


def test_a_task_of_mere_noise_has_no_corrected_cosine():
    noise = rng(8).normal(size=(12, 2, 50))
    gradients = [noise - noise.mean(axis=0) + 1e-3, 1 + 0.1 * rng(1).normal(size=(12, 2, 50))]
    found = judge(gradients)
    assert found.reliability[0] < 0 < 0.9 < found.reliability[1]
    assert np.isnan(found.corrected).tolist() == [[True, True], [True, False]]
    assert np.isfinite(found.cosine).all()
    assert np.isfinite([found.low, found.high]).all()


@pytest.mark.parametrize(("floor", "known"), [(0.3, True), (0.99, False)], ids=str)
def test_the_floor_is_the_reliability_needed(floor, known):
    gradients = simulated(rng(7), cosine=0.5, reliability=0.7)
    found = judge(gradients, floor=floor)
    assert np.isfinite(found.corrected).all() == known
    if known:
        assert np.isfinite(found.corrected_low).all()


def test_a_zero_gradient_is_refused():
    gradients = [rng().normal(size=(4, 2, 5)), np.zeros((4, 2, 5))]
    with pytest.raises(InputError, match="task 'task1': its mean gradient is zero"):
        judge(gradients)
    gradients[1][:, 1] = 1.0  # with one of the two probes
    with pytest.raises(InputError, match="task 'task1': its mean gradient is zero"):
        judge(gradients)
