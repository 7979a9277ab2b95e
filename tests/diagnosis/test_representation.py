"""CKA against d x d covariances, spectral entropy against other singular values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from coadapt._errors import InputError
from coadapt.diagnosis.representation import covariance_gram, spectral_entropy
from coadapt.diagnosis.similarity import cosines


def rng(seed=0):
    return np.random.default_rng(seed)


def cka(first, second):
    """Linear CKA of two (d, n) matrices, d in the place of the examples, as the paper writes it."""
    K, L = first @ first.T, second @ second.T
    return np.sum(K * L) / np.sqrt(np.sum(K * K) * np.sum(L * L))


def judge(pooled, chunks):
    return cosines(
        covariance_gram(pooled, chunks),
        [int(chunk.max()) + 1 for chunk in chunks],
        [f"task{i}" for i in range(len(pooled))],
        num_bootstrap=20,
        generator=rng(),
    )


# --- CKA


def test_gram_is_that_of_the_chunks_covariances():
    pooled = [rng(i).normal(i, 1 + i, size=(n, 5)) for i, n in enumerate((12, 9, 20))]
    chunks = [np.arange(len(x)) % count for x, count in zip(pooled, (3, 2, 4), strict=True)]
    covariances = []
    for x, chunk_of in zip(pooled, chunks, strict=True):
        mean = x.mean(axis=0)
        for chunk in range(chunk_of.max() + 1):
            rows = x[chunk_of == chunk]
            covariances.append(sum(np.outer(r - mean, r - mean) for r in rows) / len(rows))
    expected = [[np.trace(a @ b) for b in covariances] for a in covariances]
    found = covariance_gram(pooled, chunks)
    assert found.shape == (1, 9, 9)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10)


def test_the_cosine_is_cka_of_the_features():
    pooled = [rng(i).normal(size=(24, 6)) * np.arange(1, 7) ** i for i in range(3)]
    found = judge(pooled, [np.arange(24) % 4] * 3)
    centred = [(x - x.mean(axis=0)).T for x in pooled]
    expected = [[cka(a, b) for b in centred] for a in centred]
    np.testing.assert_allclose(found.cosine, expected, rtol=1e-10)


def test_what_cka_is_blind_to():
    pooled = [rng(i).normal(size=(24, 6)) * np.arange(1, 7) for i in range(2)]
    chunks = [np.arange(24) % 4] * 2
    rotation = np.linalg.qr(rng(5).normal(size=(6, 6))).Q
    moved = [100 + 3 * pooled[0] @ rotation, pooled[1] @ rotation - 7]
    expected = judge(pooled, chunks)
    found = judge(moved, chunks)
    np.testing.assert_allclose(found.cosine, expected.cosine, rtol=1e-9)
    np.testing.assert_allclose(found.corrected, expected.corrected, rtol=1e-9)


def test_the_correction_finds_equal_distributions_and_orthogonal_ones():
    """40 rows of 30 features: the plain CKA of two samples of one distribution is far from 1."""
    spread = 1.0 / np.arange(1, 31) ** 0.5
    plain, corrected = [], []
    for seed in range(60):
        pooled = rng(seed).normal(size=(2, 40, 30)) * spread
        found = judge(list(pooled), [np.arange(40) % 8] * 2)
        plain.append(found.cosine[0, 1])
        corrected.append(found.corrected[0, 1])
    assert np.mean(plain) < 0.8
    error = np.std(corrected) / len(corrected) ** 0.5
    assert np.mean(corrected) == pytest.approx(1.0, abs=3 * error + 0.02)
    halves = [np.zeros((40, 30)), np.zeros((40, 30))]
    halves[0][:, :15], halves[1][:, 15:] = rng().normal(size=(2, 40, 15))
    assert judge(halves, [np.arange(40) % 8] * 2).cosine[0, 1] == pytest.approx(0.0, abs=1e-12)


# --- spectral entropy


def test_entropy_of_known_spectra():
    assert spectral_entropy(np.eye(6), np.eye(6), rank=6) == pytest.approx(1.0)
    assert spectral_entropy(np.eye(6), np.eye(6), rank=3) == pytest.approx(1.0)
    rank_one = np.outer(np.arange(1.0, 5), np.arange(1.0, 7))
    assert spectral_entropy(rank_one, np.eye(6), rank=4) == pytest.approx(0.0, abs=1e-10)
    nats = spectral_entropy(np.eye(6), np.diag([4.0, 2, 1, 1, 0, 0]), rank=6, normalised=False)
    assert nats == pytest.approx(1.75 * np.log(2))
    halves = spectral_entropy(np.eye(6), np.diag([4.0, 4, 1, 1, 0, 0]), rank=2, normalised=False)
    assert halves == pytest.approx(np.log(2))


@pytest.mark.parametrize("rank", [2, 5, 8, 100])
@pytest.mark.parametrize("shape", [(8, 12), (20, 12)], ids=str)
def test_entropy_agrees_with_torchs_singular_values(shape, rank):
    weight = rng().normal(size=shape)
    x = rng(1).normal(size=(40, shape[1])) * np.arange(1, shape[1] + 1)
    second = x.T @ x / 40
    values = torch.linalg.svdvals(torch.tensor(weight @ second)).numpy()[:rank]
    found = spectral_entropy(weight, second, rank=rank)
    assert found == pytest.approx(entropy(values / values.sum(), base=len(values)), rel=1e-9)
    nats = spectral_entropy(weight, second, rank=rank, normalised=False)
    assert nats == pytest.approx(entropy(values), rel=1e-9)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6), rank=st.integers(2, 9))
@settings(deadline=None, max_examples=30)
def test_entropy_is_a_share_and_blind_to_scale(seed, scale, rank):
    weight, x = rng(seed).normal(size=(7, 9)), rng(seed + 1).normal(size=(30, 9))
    found = spectral_entropy(weight, x.T @ x, rank=rank)
    assert 0 <= found <= 1 + 1e-12
    assert spectral_entropy(weight, scale * x.T @ x, rank=rank) == pytest.approx(found, rel=1e-9)
    assert spectral_entropy(scale * weight, x.T @ x, rank=rank) == pytest.approx(found, rel=1e-9)


def test_what_has_no_entropy_is_refused():
    with pytest.raises(InputError, match=r"one singular value says nothing: rank is 1"):
        spectral_entropy(np.eye(3), np.eye(3), rank=1)
    with pytest.raises(InputError, match=r"the map's shape \(1, 3\); both must be 2 or more"):
        spectral_entropy(np.ones((1, 3)), np.eye(3), rank=2)
    with pytest.raises(InputError, match="the map is zero on these inputs"):
        spectral_entropy(np.diag([0.0, 1]), np.diag([1.0, 0]), rank=2)
