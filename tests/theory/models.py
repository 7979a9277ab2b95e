"""Random linear-Gaussian models, the degenerate ones among them."""

import numpy as np
from hypothesis import strategies as st

from coadapt.theory import LinearGaussian


def low_rank(generator, rows, columns, rank):
    return generator.normal(size=(rows, rank)) @ generator.normal(size=(rank, columns))


def random_model(seed=0, *, d=4, T=3, m=2, rank_x=None, rank_a=None):
    """Return a model with noises in [0.1, 1] and the ranks asked for, full by default."""
    generator = np.random.default_rng(seed)
    root = low_rank(generator, d, d, d if rank_x is None else rank_x) / np.sqrt(d)
    A = low_rank(generator, m, d, min(m, d) if rank_a is None else rank_a)
    return LinearGaussian(
        cov_x=root @ root.T,
        U=generator.normal(size=(d, T)),
        label_noise=generator.uniform(0.1, 1, size=T),
        A=A,
        encoder_noise=float(generator.uniform(0.1, 1)),
    )


def invertible(seed, d):
    """Return a (d, d) matrix with singular values in [0.5, 2]."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.normal(size=(d, d)))[0] for _ in range(2))
    return left * generator.uniform(0.5, 2, size=d) @ right


@st.composite
def models(draw, max_tasks=4):
    """Draw models with T = 1, m = 0, cov_x and A of any rank, 0 too, among them."""
    d = draw(st.integers(1, 5))
    m = draw(st.integers(0, 6))
    return random_model(
        draw(st.integers(0, 10_000)),
        d=d,
        T=draw(st.integers(1, max_tasks)),
        m=m,
        rank_x=draw(st.integers(0, d)),
        rank_a=draw(st.integers(0, min(m, d))),
    )


def equicorrelated(cosine, T, *, encoder_noise=0.25, label_noise=0.01, d=20):
    """Return unit tasks at one pairwise cosine, read by an orthonormal basis of their span."""
    root = np.linalg.cholesky(np.full((T, T), cosine) + (1 - cosine) * np.eye(T))
    U = np.zeros((d, T))
    U[:T] = root.T
    return LinearGaussian(np.eye(d), U, np.full(T, label_noise), np.eye(d)[:T], encoder_noise)
