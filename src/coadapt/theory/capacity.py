"""How much a low-rank map can let through: a proxy for LoRA adapters, and its bounds.

Khan, "Capacity and redundancy trade-offs in multi-task learning", section 7 and appendix S3.3.
"""

from math import log1p

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coadapt._errors import InputError
from coadapt._linalg import Matrix, finite_matrix, symmetric
from coadapt.theory._checks import above_zero, at_least_zero, psd_root, semidefinite, whole


def capacity_proxy(A: ArrayLike, cov: ArrayLike, noise: float) -> float:
    r"""Return the capacity of a linear map with noise behind it, in nats.

    .. math:: \hat C = \tfrac12 \log\det\bigl(I_r + A S A^\top / \sigma^2\bigr)

    Khan, equation S3.32. For Gaussian inputs it is I(A phi + n; phi); for others with this
    covariance it is an **upper bound** of that (equation S3.29), so "conservative" means upper.

    Three things to know before comparing two adapters by it. The noise is free and sets the answer:
    fix it once a layer (:func:`unit_snr_noise` at one reference) and sweep it. B is ignored, so c A
    with B / c, the same adapter, has another proxy: see :func:`delta_capacity`. And the sum over
    layers is no capacity of the network, as layers are not independent channels.

    Args:
        A: (r, d) factor that reads the input; r = 0 lets nothing through.
        cov: (d, d) covariance of the input phi, about its mean.
        noise: variance sigma^2 > 0 of each of the r outputs.

    Raises:
        InputError: if a shape does not fit, a number is out of its range, or ``cov`` is no
            covariance in what A reads of it.

    Example:
        >>> round(capacity_proxy([[1.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]], 1.0), 4)
        0.6931
    """
    noise = above_zero(noise, "noise")
    eigenvalues = semidefinite(np.linalg.eigvalsh(_read(A, cov)), "cov")
    return float(0.5 * np.log1p(eigenvalues / noise).sum())


def delta_capacity(
    A: ArrayLike, B: ArrayLike, cov: ArrayLike, noise: float, scale: float = 1.0
) -> float:
    r"""Return the capacity of the whole update s B A with noise on its output, in nats.

    .. math:: \tfrac12 \log\det\bigl(I + s^2\, B A S A^\top B^\top / \sigma_o^2\bigr)

    Unlike :func:`capacity_proxy` it is the same for c A and B / c, and for any other factors of the
    same update. It is ours, not the paper's. It is computed from the r eigenvalues that are not 0,
    never from a matrix of size out x out.

    An upper bound for inputs that are not Gaussian, and the noise sets the answer here too.

    Args:
        A: (r, d) factor that reads the input.
        B: (out, r) factor that writes the output.
        cov: (d, d) covariance of the input, about its mean.
        noise: variance sigma_o^2 > 0 of each output.
        scale: s >= 0, lora_alpha / r.

    Raises:
        InputError: as :func:`capacity_proxy`.

    Example:
        >>> round(delta_capacity([[1.0, 0.0]], [[2.0], [0.0]], np.eye(2), 4.0), 4)
        0.3466
    """
    noise, scale = above_zero(noise, "noise"), at_least_zero(scale, "scale")
    read = _read(A, cov)
    B = finite_matrix(B, "B", shape=(None, len(read)))
    # det(I + B M B') = det(I + L' B'B L) for M = L L', which is r x r.
    root = psd_root(read, "cov")
    eigenvalues = np.linalg.eigvalsh(root.T @ (B.T @ B) @ root)
    return float(0.5 * np.log1p(scale**2 * np.maximum(eigenvalues, 0.0) / noise).sum())


def unit_snr_noise(A: ArrayLike, cov: ArrayLike) -> float:
    r"""Return the noise at which an adapter's mean output has a signal-to-noise ratio of 1.

    .. math:: \sigma^2 = \operatorname{tr}(A S A^\top) / r

    A convention, for one reference adapter a layer; used for each adapter anew it would remove the
    very differences that the proxy should show.

    Args:
        A: (r, d) factor that reads the input, r >= 1.
        cov: (d, d) covariance of the input, about its mean.

    Raises:
        InputError: if a shape does not fit, or A reads nothing of the input.

    Example:
        >>> unit_snr_noise([[1.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]])
        3.0
    """
    read = _read(A, cov)
    power = float(np.trace(read))
    if len(read) == 0 or power <= 0:
        raise InputError(f"A must read some variance of the input, but tr(A cov A') is {power}")
    return power / len(read)


def rank_power_bound(eigenvalues: ArrayLike, power: float, noise: float, rank: int) -> float:
    r"""Return the bound on the proxy by rank and power alone, in nats.

    .. math:: \hat C \le \frac r2 \log\Bigl(1 + \frac{\kappa \lambda_1}{r \sigma^2}\Bigr),
        \qquad \operatorname{tr}(A A^\top) \le \kappa, \; \operatorname{rank} A \le r

    Khan, appendix S3.3. Neither this nor :func:`spectral_bound` is always the smaller one: the
    paper's chain is false.

    Args:
        eigenvalues: lambda of the input's covariance, all or the largest ``rank``, in any order.
        power: kappa >= 0.
        noise: sigma^2 > 0.
        rank: r >= 1, at most the number of eigenvalues.

    Raises:
        InputError: if one is out of its range.

    Example:
        >>> round(rank_power_bound([1.0, 0.0], 1.0, 1.0, 2), 3)
        0.405
    """
    values, power, noise, rank = _spectrum(eigenvalues, power, noise, rank)
    return rank / 2 * log1p(power * values.max() / (rank * noise))


def spectral_bound(eigenvalues: ArrayLike, power: float, noise: float, rank: int) -> float:
    r"""Return the bound on the proxy by the spectrum, as if each direction had all the power.

    .. math:: \hat C \le \tfrac12 \sum_{i \le r} \log\Bigl(1 + \frac{\kappa \lambda_i}{\sigma^2}
        \Bigr), \qquad \operatorname{tr}(A A^\top) \le \kappa, \; \operatorname{rank} A \le r

    Khan, appendix S3.3, in nats.

    Args:
        eigenvalues: as for :func:`rank_power_bound`.
        power: kappa >= 0.
        noise: sigma^2 > 0.
        rank: r >= 1, at most the number of eigenvalues.

    Raises:
        InputError: if one is out of its range.

    Example:
        >>> round(spectral_bound([1.0, 0.0], 1.0, 1.0, 2), 3)
        0.347
    """
    values, power, noise, rank = _spectrum(eigenvalues, power, noise, rank)
    return float(0.5 * np.log1p(power * np.sort(values)[-rank:] / noise).sum())


def capacity_upper_bound(eigenvalues: ArrayLike, power: float, noise: float, rank: int) -> float:
    """Return the smaller of :func:`rank_power_bound` and :func:`spectral_bound`, in nats.

    The largest capacity that can be had is the first value of :func:`water_filling`, which is no
    larger.

    Args:
        eigenvalues: as for :func:`rank_power_bound`.
        power: kappa >= 0.
        noise: sigma^2 > 0.
        rank: r >= 1, at most the number of eigenvalues.

    Raises:
        InputError: if one is out of its range.

    Example:
        >>> round(capacity_upper_bound([1.0, 0.0], 1.0, 1.0, 2), 3)
        0.347
    """
    return min(
        rank_power_bound(eigenvalues, power, noise, rank),
        spectral_bound(eigenvalues, power, noise, rank),
    )


def water_filling(
    eigenvalues: ArrayLike, power: float, noise: float, rank: int
) -> tuple[float, NDArray[np.float64]]:
    r"""Return the largest capacity at this rank and power, in nats, and the powers that give it.

    .. math:: \hat C = \tfrac12 \sum_{i \le r} \log\Bigl(1 + \frac{p_i\lambda_i}{\sigma^2}\Bigr),
        \qquad p_i = \max(0,\; \nu - \sigma^2/\lambda_i), \quad \sum_i p_i = \kappa

    over the r largest eigenvalues (Cover and Thomas, "Elements of information theory", section
    9.4). The map that reaches it has a row sqrt(p_i) q_i' for each eigenvector q_i.

    Args:
        eigenvalues: as for :func:`rank_power_bound`.
        power: kappa >= 0.
        noise: sigma^2 > 0.
        rank: r >= 1, at most the number of eigenvalues.

    Returns:
        The capacity, and a power for each eigenvalue in the order given, 0 beyond the rank. They
        sum to ``power``, unless all eigenvalues are 0, where nothing is gained and none is spent.

    Raises:
        InputError: if one is out of its range.

    Example:
        >>> capacity, powers = water_filling([1.0, 4.0, 0.1], power=2.0, noise=1.0, rank=2)
        >>> round(capacity, 4), powers
        (1.1787, array([0.625, 1.375, 0.   ]))
    """
    values, power, noise, rank = _spectrum(eigenvalues, power, noise, rank)
    order = np.argsort(-values, kind="stable")[:rank]
    order = order[values[order] > 0]
    with np.errstate(over="ignore"):
        floors = noise / values[order]
    order, floors = order[np.isfinite(floors)], floors[np.isfinite(floors)]
    floors = floors - floors.min(initial=np.inf)  # from the lowest, or small powers lose digits
    powers = np.zeros_like(values)
    # The level with the k strongest in use; the largest k whose own floor is below it is the one.
    for k in range(len(order), 0, -1):
        level = (power + floors[:k].sum()) / k
        if level > floors[k - 1]:
            powers[order[:k]] = level - floors[:k]
            break
    return float(0.5 * np.log1p(powers * values / noise).sum()), powers


def _read(A: ArrayLike, cov: ArrayLike) -> Matrix:
    """Return A cov A', (r, r) and exactly symmetric."""
    S = symmetric(cov, "cov")
    A = finite_matrix(A, "A", shape=(None, len(S)))
    read = A @ S @ A.T
    return (read + read.T) / 2


def _spectrum(
    eigenvalues: ArrayLike, power: float, noise: float, rank: int
) -> tuple[NDArray[np.float64], float, float, int]:
    """Return the checked arguments of the bounds."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise InputError(f"eigenvalues must be a list of finite numbers, not {eigenvalues}")
    rank = whole(rank, "rank", least=1)
    if rank > values.size:
        raise InputError(f"rank {rank} needs as many eigenvalues, but there are {values.size}")
    values = semidefinite(values, "what has these eigenvalues")
    return values, at_least_zero(power, "power"), above_zero(noise, "noise"), rank
