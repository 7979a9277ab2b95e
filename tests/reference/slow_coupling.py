"""Slow and plain versions of residual coupling: regressions, loops and orders, none of our code."""

import math
from collections.abc import Iterator, Sequence
from itertools import permutations, product

import numpy as np
from scipy.linalg import fractional_matrix_power
from scipy.special import digamma


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def labels_from(p: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a class id a row, drawn with the row's probabilities."""
    return (p.cumsum(axis=1) < generator.random((len(p), 1))).sum(axis=1)


def coupled_classes(
    n: int, shared: float, generator: np.random.Generator, num_classes: Sequence[int] = (3, 3, 3)
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield predictions and labels of each task; the labels share a factor not predicted from."""
    factor = generator.normal(size=(n, 1))
    for C in num_classes:
        z = 2 * generator.normal(size=(n, C))
        yield softmax(z), labels_from(softmax(z + shared * factor * np.eye(C)[0]), generator)


def paper_delta(residuals: np.ndarray, eps: float) -> float:
    """Return the paper's formula as printed, -1/2 log det(R_e + eps I)."""
    R = np.corrcoef(residuals, rowvar=False)
    return -0.5 * math.log(np.linalg.det(R + eps * np.eye(len(R))))


def coupling_by_regressions(blocks: Sequence[np.ndarray]) -> float:
    """Return the coupling by the chain rule: how much the earlier tasks explain of each task.

    The total correlation is sum_t I(Y_t; Y_1..t-1), and each of these is half the log ratio of the
    generalized variances before and after a regression on the earlier tasks.
    """
    total = 0.0
    for t in range(1, len(blocks)):
        y = blocks[t] - blocks[t].mean(axis=0)
        x = np.column_stack([np.ones(len(y)), *blocks[:t]])
        left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        total += 0.5 * math.log(np.linalg.det(y.T @ y) / np.linalg.det(left.T @ left))
    return total


def coupling_of_covariance(C: np.ndarray, sizes: Sequence[int]) -> float:
    """Return 1/2 [sum_t log det C_tt - log det C], determinants from eigenvalues."""
    within, start = 0.0, 0
    for size in sizes:
        block = C[start : start + size, start : start + size]
        within += np.log(np.linalg.eigvalsh(block)).sum()
        start += size
    return float(0.5 * (within - np.log(np.linalg.eigvalsh(C)).sum()))


def null_by_all_orders(blocks: Sequence[np.ndarray]) -> Iterator[float]:
    """Yield the coupling for every order of the rows of all tasks but the first."""
    rows = list(permutations(range(len(blocks[0]))))
    for orders in product(rows, repeat=len(blocks) - 1):
        moved = [x[list(order)] for x, order in zip(blocks[1:], orders, strict=True)]
        yield coupling_by_regressions([blocks[0], *moved])


def mean_null_of_gaussians(num_tasks: int, n: int) -> float:
    """Return the exact mean of -1/2 log det R for independent Gaussian columns.

    1 - the squared multiple correlation of task t with the t before it is Beta((n-1-t)/2, t/2).
    """
    logs = [digamma((n - 1 - t) / 2) - digamma((n - 1) / 2) for t in range(num_tasks)]
    return float(-0.5 * sum(logs))


def pairwise_by_loops(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Return whitened correlations of each two tasks on the rows without NaN in either."""
    blocks = [
        x @ _inverse_root(np.cov(x[~np.isnan(x[:, 0])], rowvar=False)) if x.shape[1] > 1 else x
        for x in blocks
    ]
    rows_of_blocks = []
    for i, x in enumerate(blocks):
        row = []
        for j, y in enumerate(blocks):
            both = ~np.isnan(x[:, 0]) & ~np.isnan(y[:, 0])
            k = x.shape[1]
            C = np.cov(x[both].T, y[both].T)
            left, right = _inverse_root(C[:k, :k]), _inverse_root(C[k:, k:])
            row.append(np.eye(k) if i == j else left @ C[:k, k:] @ right)
        rows_of_blocks.append(row)
    return np.block(rows_of_blocks)


def _inverse_root(C: np.ndarray) -> np.ndarray:
    return np.real(fractional_matrix_power(C, -0.5))


def teacher_covariance(
    teacher: Sequence[np.ndarray],  # T of (n, C_t)
    student: Sequence[np.ndarray],
) -> np.ndarray:
    """Return the covariance of one-hot labels minus p, last class dropped, summed label by label.

    Labels are drawn from q, each task's by itself, so an input's labels have the product of their
    probabilities. The residuals' mean over inputs is taken off, as an intercept would.
    """
    n = len(teacher[0])
    shift = [(q - p).mean(axis=0) for q, p in zip(teacher, student, strict=True)]
    sizes = [q.shape[1] - 1 for q in teacher]
    C = np.zeros((sum(sizes), sum(sizes)))
    for row in range(n):
        for labels in product(*[range(size + 1) for size in sizes]):
            weight = math.prod(q[row, y] for q, y in zip(teacher, labels, strict=True))
            parts = [
                (np.eye(p.shape[1])[y] - p[row] - s)[:-1]
                for p, y, s in zip(student, labels, shift, strict=True)
            ]
            e = np.concatenate(parts)
            C += weight * np.outer(e, e) / n
    return C


def log_loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Return the mean log-loss of the softmax of logits / temperature, row by row."""
    losses = []
    for z, y in zip(logits / temperature, labels, strict=True):
        top = max(z)
        losses.append(top + math.log(sum(math.exp(value - top) for value in z)) - z[y])
    return sum(losses) / len(losses)
