"""Checked linear algebra in float64 for what is computed from covariances and similarities."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cholesky

from coadapt._errors import InputError

_ASYMMETRY = 1e-8  # relative to the largest entry: what float32 sums or JSON may have left

Matrix = NDArray[np.float64]


def finite_matrix(values: ArrayLike, name: str, *, shape: tuple[int | None, int | None]) -> Matrix:
    """Return ``values`` as a finite float64 matrix of that shape, None meaning any size.

    Raises:
        InputError: naming the matrix and what was found.
    """
    matrix = np.asarray(values, dtype=np.float64)
    wanted = " x ".join("any" if size is None else str(size) for size in shape)
    fits = matrix.ndim == 2 and all(
        size is None or size == found for size, found in zip(shape, matrix.shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name} must be a matrix of shape {wanted}, not {matrix.shape}")
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0].tolist()
        raise InputError(f"{name}[{row}, {column}] is {matrix[row, column]}, not a finite number")
    return matrix


def symmetric(values: ArrayLike, name: str) -> Matrix:
    """Return ``values`` as a finite, exactly symmetric float64 matrix.

    Raises:
        InputError: if it is not square, not finite, or differs from its transpose by more than
            rounding.
    """
    matrix = finite_matrix(values, name, shape=(None, None))
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{name} must be square, not of shape {matrix.shape}")
    gap = np.abs(matrix - matrix.T)
    if gap.size and gap.max() > _ASYMMETRY * np.abs(matrix).max():
        row, column = np.unravel_index(gap.argmax(), gap.shape)
        raise InputError(
            f"{name} is not symmetric: [{row}, {column}] is {matrix[row, column]:.6g} but "
            f"[{column}, {row}] is {matrix[column, row]:.6g}"
        )
    return (matrix + matrix.T) / 2


def log_det(values: ArrayLike, name: str) -> float:
    """Return log det of a symmetric positive definite matrix, in nats, by Cholesky; 0 if empty.

    Raises:
        InputError: if it is not symmetric, or singular or indefinite up to rounding.
    """
    matrix = symmetric(values, name)
    if matrix.size == 0:
        return 0.0
    # Scaled to a unit diagonal first: variables in different units are no ill-conditioning.
    variances = np.diag(matrix)
    if variances.min() <= 0:
        index = int(variances.argmin())
        raise InputError(
            f"{name}[{index}, {index}] is {variances[index]:.6g}; variances must be > 0"
        )
    deviations = np.sqrt(variances)
    try:
        factor = cholesky(matrix / np.outer(deviations, deviations), lower=True)
    except LinAlgError as error:
        raise InputError(_singular(name)) from error
    pivots = np.diag(factor)
    if pivots.min() ** 2 <= len(matrix) * np.finfo(np.float64).eps:
        raise InputError(_singular(name))
    return float(2 * np.log(pivots).sum() + np.log(variances).sum())


def _singular(name: str) -> str:
    return f"{name} is singular: some variable is a linear function of the others; drop it"
