"""The slow oracle of LoRAHub: dense matrices, double loops, and CMA-ES entry by entry."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.linalg import inv, sqrtm
from torch import Tensor, zeros_like

Factors = tuple[Tensor, Tensor]  # A (r, in), B (out, r)


def dense_of_factors(scale: float, adapters: Sequence[Factors], weights: Sequence[float]) -> Tensor:
    """Return s sum_ij w_i w_j B_i A_j, (out, in); B without the scale."""
    A, B = adapters[0]
    delta = zeros_like(B @ A)
    for w_i, (_, B) in zip(weights, adapters, strict=True):
        for w_j, (A, _) in zip(weights, adapters, strict=True):
            delta = delta + scale * w_i * w_j * (B @ A)
    return delta


def dense_of_deltas(
    scales: Sequence[float], adapters: Sequence[Factors], weights: Sequence[float]
) -> Tensor:
    """Return sum_i w_i s_i B_i A_i, (out, in); B without the scales."""
    A, B = adapters[0]
    delta = zeros_like(B @ A)
    for scale, weight, (A, B) in zip(scales, weights, adapters, strict=True):
        delta = delta + weight * scale * (B @ A)
    return delta


def published_objective(batch_means: Sequence[float], num_examples: int, weights: Sequence[float]):
    """Return what the authors' code minimises: batch means summed, by the examples, plus L1."""
    loss = 0.0
    for mean in batch_means:
        loss += mean
    penalty = 0.0
    for weight in weights:
        penalty += abs(weight) / len(weights)
    return loss / num_examples + 0.05 * penalty


def slow_cma(
    function: Callable[[np.ndarray], float],
    n: int,
    *,
    budget: int,
    low: float,
    high: float,
    sigma: float,
    seed: int,
) -> list[float]:
    """Return the values in the order of evaluation, from the tutorial's algorithm, sum by sum."""
    rng = np.random.default_rng(seed)
    size = 4 + math.floor(3 * math.log(n))
    mu = size // 2
    raw = [math.log((size + 1) / 2) - math.log(i) for i in range(1, mu + 1)]
    w = [value / sum(raw) for value in raw]
    mu_w = 1 / sum(value**2 for value in w)
    c_sigma = (mu_w + 2) / (n + mu_w + 5)
    d_sigma = 1 + 2 * max(0, math.sqrt((mu_w - 1) / (n + 1)) - 1) + c_sigma
    c_c = (4 + mu_w / n) / (n + 4 + 2 * mu_w / n)
    c_1 = 2 / ((n + 1.3) ** 2 + mu_w)
    c_mu = min(1 - c_1, 2 * (1 / 4 + mu_w + 1 / mu_w - 2) / ((n + 2) ** 2 + mu_w))
    expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
    mean, C, p_sigma, p_c = np.zeros(n), np.eye(n), np.zeros(n), np.zeros(n)
    values, generation = [function(mean)], 0
    while len(values) < budget:
        generation += 1
        # The tutorial's root of C, B D; others give the same distribution but not the same points.
        root = _eigen_root(C)
        population = []
        for _ in range(size):
            x = mean + sigma * root @ rng.standard_normal(n)
            x = np.array([min(max(entry, low), high) for entry in x])
            population.append((function(x), x))
        values += [value for value, _ in population]
        population.sort(key=lambda pair: pair[0])
        steps = [(x - mean) / sigma for _, x in population[:mu]]
        step = sum((w_i * y for w_i, y in zip(w, steps, strict=True)), np.zeros(n))
        mean = mean + sigma * step
        inverse_root = np.real(inv(sqrtm(C)))
        p_sigma = (1 - c_sigma) * p_sigma
        p_sigma = p_sigma + math.sqrt(c_sigma * (2 - c_sigma) * mu_w) * inverse_root @ step
        length = math.sqrt(sum(entry**2 for entry in p_sigma))
        stalled = length / math.sqrt(1 - (1 - c_sigma) ** (2 * generation)) >= (
            (1.4 + 2 / (n + 1)) * expected
        )
        sigma = sigma * math.exp(c_sigma / d_sigma * (length / expected - 1))
        p_c = (1 - c_c) * p_c
        if not stalled:
            p_c = p_c + math.sqrt(c_c * (2 - c_c) * mu_w) * step
        new = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                new[i, j] = (1 - c_1 - c_mu * sum(w)) * C[i, j] + c_1 * p_c[i] * p_c[j]
                if stalled:
                    new[i, j] += c_1 * c_c * (2 - c_c) * C[i, j]
                for w_i, y in zip(w, steps, strict=True):
                    new[i, j] += c_mu * w_i * y[i] * y[j]
        C = new
    return values[:budget]


def _eigen_root(C: np.ndarray) -> np.ndarray:
    values, axes = np.linalg.eigh(C)
    return axes @ np.diag(np.sqrt(values))
