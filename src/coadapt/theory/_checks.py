"""Checks of the numbers and matrices that theory is given."""

import math

import numpy as np
from numpy.typing import NDArray

from coadapt._errors import InputError
from coadapt._linalg import Matrix

_INDEFINITE = 1e-8  # relative to the largest eigenvalue: what float32 sums may have left


def finite(value: float, name: str) -> float:
    """Return ``value`` as a finite float.

    Raises:
        InputError: if it is NaN or infinite.
    """
    if not math.isfinite(value):
        raise InputError(f"{name} is {value}, not a finite number")
    return float(value)


def at_least_zero(value: float, name: str) -> float:
    """Return ``value`` as a finite float of at least 0.

    Raises:
        InputError: if it is not.
    """
    if finite(value, name) < 0:
        raise InputError(f"{name} must be 0 or more, not {value}")
    return float(value)


def above_zero(value: float, name: str) -> float:
    """Return ``value`` as a finite float above 0.

    Raises:
        InputError: if it is not.
    """
    if finite(value, name) <= 0:
        raise InputError(f"{name} must be above 0, not {value}")
    return float(value)


def whole(value: int, name: str, *, least: int) -> int:
    """Return ``value`` as an int of at least ``least``.

    Raises:
        InputError: if it is not.
    """
    if not math.isfinite(value) or int(value) != value or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value}")
    return int(value)


def semidefinite(eigenvalues: NDArray[np.floating], name: str) -> NDArray[np.float64]:
    """Return a covariance's eigenvalues with those below 0 by rounding set to 0.

    Raises:
        InputError: if one is further below 0 than that.
    """
    eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
    smallest, largest = eigenvalues.min(initial=0.0), np.abs(eigenvalues).max(initial=0.0)
    if smallest < -_INDEFINITE * largest:
        raise InputError(
            f"{name} is no covariance: it has a negative eigenvalue, {smallest / largest:.2g} of "
            "the largest"
        )
    return np.maximum(eigenvalues, 0.0)


def psd_root(matrix: Matrix, name: str) -> Matrix:
    """Return L with L L' = ``matrix``, which is exactly symmetric and may be singular.

    Raises:
        InputError: if it has a negative eigenvalue beyond rounding.
    """
    # Scaled to a unit diagonal first, so that what is zero by rounding does not depend on units.
    scales = np.sqrt(np.maximum(np.diag(matrix), 0.0))
    scales[scales == 0] = 1.0
    eigenvalues, vectors = np.linalg.eigh(matrix / np.outer(scales, scales))
    eigenvalues = semidefinite(eigenvalues, name)
    rounding = 4 * len(matrix) * np.finfo(np.float64).eps * eigenvalues.max(initial=0.0)
    eigenvalues[eigenvalues <= rounding] = 0.0
    return scales[:, None] * vectors * np.sqrt(eigenvalues)
