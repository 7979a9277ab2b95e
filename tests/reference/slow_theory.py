"""The slow oracles of ``coadapt.theory``: loops, samples and whole joint covariances.

They share no code with the package, and none of its formulas for conditional covariances.
"""

from collections import Counter
from collections.abc import Sequence
from math import log

import numpy as np
from scipy.stats import multivariate_normal


def joint_covariance(model, extra=()):
    """Return the covariance of (Y, Z, extra rows times X), entry by entry.

    Args:
        model: a LinearGaussian.
        extra: (k, d) noiseless measurements.
    """
    readings = [*model.U.T, *model.A, *np.asarray(extra)]
    noises = [*model.label_noise, *([model.encoder_noise] * len(model.A)), *([0.0] * len(extra))]
    cov = np.empty((len(readings), len(readings)))
    for i, first in enumerate(readings):
        for j, second in enumerate(readings):
            cov[i, j] = sum(
                first[a] * model.cov_x[a, b] * second[b]
                for a in range(len(first))
                for b in range(len(second))
            )
        cov[i, i] += noises[i]
    return cov


def half_log_det(cov, indices: Sequence[int]) -> float:
    """Return 1/2 log det of a part of ``cov``: the entropy up to a constant a variable."""
    return 0.5 * float(np.linalg.slogdet(cov[np.ix_(indices, indices)])[1])


def information(cov, a: Sequence[int], b: Sequence[int], given: Sequence[int] = ()) -> float:
    """Return I(a;b|given) of a Gaussian, from four entropies."""
    a, b, w = list(a), list(b), list(given)
    return (
        half_log_det(cov, a + w)
        + half_log_det(cov, b + w)
        - half_log_det(cov, w)
        - half_log_det(cov, a + b + w)
    )


def correlation_given(cov, labels: Sequence[int], given: Sequence[int] = ()) -> float:
    """Return TC(labels|given) of a Gaussian by the chain rule: sum_t I(Y_t; Y_1..t-1 | given)."""
    return sum(
        information(cov, [labels[t]], list(labels[:t]), given) for t in range(1, len(labels))
    )


def sample(model, num: int, generator):
    """Return draws of X (num, d), Y (num, T) and Z (num, m)."""
    d = len(model.cov_x)
    x = generator.multivariate_normal(np.zeros(d), model.cov_x, size=num, method="svd")
    y = x @ model.U + generator.normal(size=(num, model.num_tasks)) * np.sqrt(model.label_noise)
    z = x @ model.A.T + generator.normal(size=(num, len(model.A))) * np.sqrt(model.encoder_noise)
    return x, y, z


def entropy(cov) -> float:
    """Return the differential entropy of a Gaussian, in nats, as SciPy finds it."""
    return float(multivariate_normal(np.zeros(len(cov)), cov).entropy())


def sampled(*terms) -> tuple[float, float]:
    """Return a signed sum of mean log densities of draws, and its standard error.

    ``sampled((1, both), (-1, a), (-1, b))`` is I(a;b). The densities are Gaussians with the draws'
    own second moments, so no formula of a model is in it. Fitting k moments adds some k / num,
    which is far below the standard error.

    Args:
        terms: (sign, (num, k) draws) of one and the same num samples.
    """
    ratios = np.zeros(len(terms[0][1]))
    for sign, draws in terms:
        cov = draws.T @ draws / len(draws)
        ratios += sign * multivariate_normal(np.zeros(draws.shape[1]), cov).logpdf(draws)
    return float(ratios.mean()), float(ratios.std(ddof=1) / np.sqrt(len(ratios)))


def counted_entropy(rows: Sequence[tuple[int, ...]], *, corrected: bool = False) -> float:
    """Return the entropy of what occurs, in nats, by counting."""
    counts, n = Counter(rows), len(rows)
    plugin = -sum(count / n * log(count / n) for count in counts.values())
    return plugin + (len(counts) - 1) / (2 * n) * corrected


def columns_of(rows):
    return list(zip(*rows, strict=True))


def counted_correlation(rows: Sequence[tuple[int, ...]], *, corrected: bool = False) -> float:
    """Return the total correlation of the columns, in nats, by counting."""
    columns = [counted_entropy([(v,) for v in c], corrected=corrected) for c in columns_of(rows)]
    return sum(columns) - counted_entropy(rows, corrected=corrected)
