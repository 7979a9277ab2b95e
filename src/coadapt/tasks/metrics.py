"""Scores of a task, all of them better when higher; scikit-learn and SciPy compute them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


def accuracy(y_true: np.ndarray, y_pred: np.ndarray, _num_labels: int | None = None) -> float:
    """Return the share of rows with the right class."""
    return float(np.mean(np.asarray(y_true) == np.asarray(y_pred)))


def f1(y_true: np.ndarray, y_pred: np.ndarray, num_labels: int | None = None) -> float:
    """Return F1: of the second class where there are two, else the mean over classes (macro).

    Classes that occur in neither array do not count in the macro mean; one without a true or a
    predicted row scores 0.

    Args:
        y_true: class ids, shape (N,).
        y_pred: class ids, shape (N,).
        num_labels: how many classes the task has; a resampled or small test set may not show them
            all. The greatest id tells if not given.
    """
    from sklearn.metrics import f1_score

    if num_labels is None:
        num_labels = int(max(np.max(y_true), np.max(y_pred))) + 1
    # `average="binary"` refuses a sample that lacks the positive class; the mean over it does not.
    labels = [1] if num_labels <= 2 else None
    options: dict[str, Any] = {"labels": labels, "average": "macro", "zero_division": 0.0}
    return float(f1_score(y_true, y_pred, **options))


def matthews(y_true: np.ndarray, y_pred: np.ndarray, _num_labels: int | None = None) -> float:
    """Return Matthews' correlation coefficient; 0 where one side is constant."""
    from sklearn.metrics import matthews_corrcoef

    if _is_constant(y_true) or _is_constant(y_pred):
        return 0.0
    return float(matthews_corrcoef(y_true, y_pred))


def pearson(y_true: np.ndarray, y_pred: np.ndarray, _num_labels: int | None = None) -> float:
    """Return Pearson's correlation; 0 where one side is constant, as it is for a single row."""
    from scipy.stats import pearsonr

    if _is_constant(y_true) or _is_constant(y_pred):
        return 0.0
    found = pearsonr(y_true, y_pred)
    return float(found.statistic)  # pyright: ignore[reportAttributeAccessIssue]


def spearman(y_true: np.ndarray, y_pred: np.ndarray, _num_labels: int | None = None) -> float:
    """Return Spearman's rank correlation; 0 where one side is constant."""
    from scipy.stats import spearmanr

    if _is_constant(y_true) or _is_constant(y_pred):
        return 0.0
    found = spearmanr(y_true, y_pred)
    return float(found.statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _is_constant(values: np.ndarray) -> bool:
    """Tell whether a correlation would divide by (nearly) nothing."""
    values = np.asarray(values, dtype=np.float64)
    # SciPy warns of this limit; below it the result is rounding noise.
    return float(np.ptp(values)) <= 1e-13 * max(1e-300, float(np.abs(values).max()))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score and the kinds of task it fits.

    Args:
        name: the name of its row.
        kinds: of task.
        function: ``(y_true, y_pred, num_labels=None) -> float``, from class ids or values of shape
            (N,), N >= 1. Give ``num_labels``, the task's ``num_outputs``, for a resampled or small
            set of rows, which may not show all classes; only `f1` asks for it.
    """

    name: str
    kinds: tuple[str, ...]
    function: Callable[..., float]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="accuracy", kinds=("classification",), function=accuracy),
        Metric(name="f1", kinds=("classification",), function=f1),
        Metric(name="matthews", kinds=("classification",), function=matthews),
        Metric(name="pearson", kinds=("regression",), function=pearson),
        Metric(name="spearman", kinds=("regression",), function=spearman),
    )
}
