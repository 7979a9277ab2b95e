"""Linear heads on frozen features, and the gradients of losses with respect to those features."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import pairwise_distances

from coadapt._errors import InputError
from coadapt.tasks import Task

Array = NDArray[np.float64]

_PENALTY = 5.0  # lambda of `fit_head`; chosen by the gradients' reliability on the demo's tasks
_MAX_STEPS = 200  # of the solver; a direction is wanted, not the last digit of a likelihood
_MIN_ROWS = 4  # of a chunk, where there are so many: its labels are to be a fair sample
_CONSTANT = 1e-6  # spread of a feature, relative to its size, that is float32's rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A fitted linear head: outputs = W x + b.

    Attributes:
        weight: (C, d); rows of classes that were not seen are 0.
        bias: (C,); -inf for classes that were not seen.
        regression: whether its output is a value, not class scores.
    """

    weight: Array
    bias: Array
    regression: bool

    def outputs(self, features: Array) -> Array:
        """Return (n, C) class scores, or (n, 1) values."""
        return features @ self.weight.T + self.bias

    def probabilities(self, features: Array) -> Array:
        """Return (n, C) class probabilities."""
        scores = self.outputs(features)
        scores -= scores.max(axis=1, keepdims=True)
        odds = np.exp(scores)
        return odds / odds.sum(axis=1, keepdims=True)

    def gradient(self, features: Array, targets: Array) -> Array:
        r"""Return (n, d) gradients of the rows' losses with respect to their features.

        Cross-entropy in nats: :math:`W'(p - y)`; half the squared error: :math:`w (\hat y - y)`.

        Args:
            features: (n, d).
            targets: (n,) class indices or values, or (n, C) class probabilities.
        """
        if self.regression:
            return (self.outputs(features) - targets.reshape(-1, 1)) @ self.weight
        if targets.ndim == 1:
            targets = np.eye(len(self.bias))[targets.astype(int)]
        return (self.probabilities(features) - targets) @ self.weight


def fit_head(task: Task, features: Array, labels: Array) -> Head:
    r"""Fit a task's head on frozen features: logistic regression, or ridge for a regression.

    .. math:: \min_{W, b} \frac1n \sum_i \ell(W x_i + b, y_i) + \frac\lambda2 \|W\|^2

    with features scaled to mean 0 and variance 1 (folded into W and b afterwards; one that is
    constant takes no part), the loss as in :meth:`Head.gradient`, and a strong penalty, lambda = 5.
    Of two classes it is the difference of their rows of W that is penalised. Such a head points
    where the classes differ and leaves most of its loss standing, as the heads of a run do early
    on; one that fits its rows as well as it can has residuals, and a gradient, that are mostly
    noise.

    Args:
        task: whose classes are fitted.
        features: (n, d).
        labels: (n,) class indices or values.

    Raises:
        InputError: if all labels are equal.
    """
    if len(np.unique(labels)) < 2:
        what = "values" if task.kind == "regression" else "classes"
        raise InputError(
            f"task '{task.name}': all {len(labels)} rows that a head is fitted on have the same "
            f"label; give rows of two {what} or more"
        )
    spread = features.std(axis=0)
    # A constant's spread is rounding, or 0: divided by it, rounding would outweigh all the rest.
    varies = spread > _CONSTANT * np.abs(features).max(axis=0)
    scale = np.where(varies, spread, 1.0)
    centre = features.mean(axis=0)
    scaled = np.where(varies, features - centre, 0.0) / scale
    if task.kind == "regression":
        model = Ridge(alpha=_PENALTY * len(labels)).fit(scaled, labels)
        weight, bias = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    else:
        weight, bias = _fit_classes(scaled, labels.astype(int), task.num_outputs)
    weight = weight / scale
    return Head(weight=weight, bias=bias - weight @ centre, regression=task.kind == "regression")


def _fit_classes(
    features: Array, labels: NDArray[np.int_], num_classes: int
) -> tuple[Array, Array]:
    strength = 1.0 / (_PENALTY * len(labels))  # scikit-learn weighs the summed loss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # see _MAX_STEPS
        warnings.filterwarnings("ignore", "The number of unique classes")  # few rows of many
        model = LogisticRegression(C=strength, max_iter=_MAX_STEPS).fit(features, labels)
    weight, bias = np.zeros((num_classes, features.shape[1])), np.full(num_classes, -np.inf)
    coef, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives the second class's log odds alone
        coef, intercept = np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight[model.classes_], bias[model.classes_] = coef, intercept
    return weight, bias


def folds_of(
    task: Task, labels: Array, num_folds: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return (n,) a fold for each row, classes spread evenly over the folds.

    Raises:
        InputError: if there are fewer than eight rows a fold, or than two classes of two rows.
    """
    needed = 2 * _MIN_ROWS * num_folds
    if len(labels) < needed:
        raise InputError(
            f"task '{task.name}' has {len(labels)} training rows, too few for a diagnosis; it "
            f"needs {needed} at least"
        )
    counts = np.unique_counts(labels).counts
    if task.kind == "classification" and (counts >= 2).sum() < 2:
        raise InputError(
            f"task '{task.name}': its {len(labels)} training rows hold {len(counts)} classes, of "
            f"which {(counts >= 2).sum()} with two rows or more; a diagnosis needs two such classes"
        )
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # like labels beside each other
    folds = np.empty(len(labels), np.int64)
    folds[order] = _dealt(len(labels), num_folds, ordered=task.kind == "regression")
    return folds


def chunks_of(
    labels: Array,
    folds: NDArray[np.int64],
    num_chunks: int,
    generator: np.random.Generator,
    *,
    ordered: bool = False,
) -> NDArray[np.int64]:
    """Return (n,) a chunk for each row: inside a fold, of at least four rows, labels spread evenly.

    A chunk's rows have one head in common, and about the whole's share of each label: with a
    head that is right on average, the labels' shares are most of what a few rows' mean gradient
    varies by, and the whole task's gradient does not vary by them.

    Args:
        labels: (n,) class indices or values.
        folds: (n,) of :func:`folds_of`.
        num_chunks: of all folds together, at most.
        generator: of the ties' order.
        ordered: whether labels are values, of which no chunk is to have the lower throughout.
    """
    chunks = np.empty(len(labels), np.int64)
    found = np.unique(folds)
    start = 0
    for fold in found:
        rows = generator.permutation(np.flatnonzero(folds == fold))
        rows = rows[np.argsort(labels[rows], kind="stable")]
        count = max(1, min(num_chunks // len(found), len(rows) // _MIN_ROWS))
        chunks[rows] = start + _dealt(len(rows), count, ordered=ordered)
        start += count
    return chunks


def _dealt(num: int, num_groups: int, *, ordered: bool) -> NDArray[np.int64]:
    """Return groups for rows in the order of their labels: in turn, or there and back if ordered.

    In turn, a class has as many rows in each group, up to one. Values would be lower in the first
    group than in the last: groups would differ by more than noise, and the reliability be too low.
    """
    place = np.arange(num) % (2 * num_groups if ordered else num_groups)
    return np.minimum(place, 2 * num_groups - 1 - place)


def crossfit_gradients(
    task: Task, features: Array, labels: Array, folds: NDArray[np.int64]
) -> Array:
    """Return (n, d) gradients with respect to each row's features, by a head fitted without it.

    With random heads the gradients' directions are set by the heads, whatever the tasks have in
    common; with heads fitted on the same rows the residuals are too small where it overfits.

    Args:
        task: whose head is fitted, once a fold, on the rows outside it.
        features: (n, d).
        labels: (n,) class indices or values.
        folds: (n,) of :func:`folds_of`.
    """
    gradients = np.zeros_like(features)
    for fold in np.unique(folds):
        inside = folds == fold
        head = fit_head(task, features[~inside], labels[~inside])
        gradients[inside] = head.gradient(features[inside], labels[inside])
    return gradients


def pool_gradients(task: Task, features: Array, labels: Array, pool: Array) -> Array:
    """Return (m, d) gradients with respect to the features of rows that need no labels.

    The labels are a teacher's: a kernel ridge regression on the one-hot labels, or the values,
    with a Gaussian kernel of the median distance. It is fitted on the rows that the head is fitted
    on, and sees what a linear head cannot.

    Args:
        task: whose head and teacher are fitted.
        features: (n, d) of the task's own rows.
        labels: (n,) class indices or values.
        pool: (m, d) features of the rows in question.

    Raises:
        InputError: if most of the rows are the same text.
    """
    head = fit_head(task, features, labels)
    classes = task.kind == "classification"
    targets = np.eye(task.num_outputs)[labels.astype(int)] if classes else labels[:, None]
    distance = np.median(pairwise_distances(features)[~np.eye(len(features), dtype=bool)])
    mean = targets.mean(axis=0)
    if not distance > 0:
        raise InputError(
            f"task '{task.name}': most of its {len(features)} rows are alike to the model, which "
            "leaves a teacher nothing to learn from; give rows of more texts, or leave out pool"
        )
    teacher = KernelRidge(alpha=1, kernel="rbf", gamma=0.5 / distance**2)
    found = teacher.fit(features, targets - mean).predict(pool) + mean
    if not classes:
        return head.gradient(pool, found[:, 0])
    found = np.clip(found, 0.0, None)
    return head.gradient(pool, found / found.sum(axis=1, keepdims=True))
