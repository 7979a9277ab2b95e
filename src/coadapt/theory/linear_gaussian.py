"""The linear-Gaussian multi-task model, in which every information has a closed form."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coadapt._errors import InputError
from coadapt._linalg import Matrix, finite_matrix, log_det, symmetric
from coadapt.theory._checks import above_zero, psd_root
from coadapt.theory.correlation import total_correlation

_RANK = 1e-12  # relative; a direction measured less than this is one by rounding


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    r"""Labels and representation that are noisy linear measurements of one Gaussian input.

    .. math::
        X \sim N(0, S_x), \quad Y_t = u_t^\top X + e_t, \quad Z = A X + n,
        \quad e_t \sim N(0, \sigma_t^2), \quad n \sim N(0, \sigma_z^2 I_m)

    with all noises independent. Khan, "Capacity and redundancy trade-offs in multi-task learning",
    equations S2.19 to S2.22. All informations are in nats. They obey the identity

    .. math:: \sum_t I(Z;Y_t) = I(Z;Y) + TC(Y) - \Delta, \qquad \Delta = TC(Y|Z) \ge 0

    Departures from the paper, each with a counterexample in ``tests/theory/test_claims.py``: the
    slack of the bound C + TC is not ``residual_coupling`` alone, residual coupling does not vanish
    when A spans the tasks, and ``explained_dependence`` may be below 0.

    Not a model of a trained network: there, these are bounds or proxies at best.

    Args:
        cov_x: (d, d) covariance S_x, symmetric positive semi-definite.
        U: (d, T) a column u_t for each task.
        label_noise: (T,) variances sigma_t^2 > 0, in the labels' units squared.
        A: (m, d) encoder; m = 0 is a representation that knows nothing.
        encoder_noise: variance sigma_z^2 > 0.

    Raises:
        InputError: if a shape does not fit, a number is not finite, a variance is not above 0, or
            ``cov_x`` is no covariance.

    Example:
        >>> model = LinearGaussian(
        ...     cov_x=np.eye(2), U=np.eye(2), label_noise=np.full(2, 0.01),
        ...     A=np.ones((1, 2)), encoder_noise=0.01,
        ... )
        >>> round(model.total_correlation, 2), round(model.residual_coupling, 2)
        (0.0, 1.43)
        >>> round(model.slack, 2), round(model.unused_capacity, 2)
        (1.97, 0.55)
    """

    cov_x: Matrix
    U: Matrix
    label_noise: NDArray[np.float64]
    A: Matrix
    encoder_noise: float

    def __post_init__(self) -> None:
        """Check the parts and keep read-only copies in float64."""
        cov_x = symmetric(self.cov_x, "cov_x")
        d = len(cov_x)
        U = finite_matrix(self.U, "U", shape=(d, None))
        A = finite_matrix(self.A, "A", shape=(None, d))
        if d == 0 or U.shape[1] == 0:
            raise InputError(f"U must have at least one row and one task, not shape {U.shape}")
        noise = np.array(self.label_noise, dtype=np.float64)
        if noise.shape != (U.shape[1],):
            raise InputError(
                f"label_noise must be a variance for each of {U.shape[1]} tasks, "
                f"not of shape {noise.shape}"
            )
        for task, variance in enumerate(noise.tolist()):
            above_zero(variance, f"label_noise[{task}]")
        arrays = {"cov_x": cov_x, "U": U.copy(), "label_noise": noise, "A": A.copy()}
        for name, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "encoder_noise", above_zero(self.encoder_noise, "encoder_noise"))
        _ = self._root  # refuses what is no covariance

    def __repr__(self) -> str:
        """Return the sizes."""
        (m, d), T = self.A.shape, self.num_tasks
        return f"LinearGaussian(d={d}, tasks={T}, m={m})"

    @property
    def num_tasks(self) -> int:
        """T."""
        return self.U.shape[1]

    @cached_property
    def label_covariance(self) -> Matrix:
        """S_Y = U' S_x U + diag(sigma_t^2), (T, T)."""
        signal = self.U.T @ self._root
        return signal @ signal.T + np.diag(self.label_noise)

    @cached_property
    def residual_covariance(self) -> Matrix:
        """S_{Y|Z} = U' S_{X|Z} U + diag(sigma_t^2), (T, T): what of the labels Z leaves open."""
        # S_{X|Z} = L (I + L'A'A L / s^2)^-1 L', the same as S_x - S_x A'(A S_x A' + s^2 I)^-1 A S_x
        # without the difference, which loses all digits where Z knows X well.
        gains, directions = self._channel
        left = 1 - 1 / np.sqrt(1 + gains**2)
        root = self._root - (self._root @ directions.T * left) @ directions
        signal = self.U.T @ root
        return signal @ signal.T + np.diag(self.label_noise)

    @property
    def capacity(self) -> float:
        """C = I(Z;X) = 1/2 log det(I + A S_x A' / sigma_z^2), equation S2.21."""
        return float(0.5 * np.log1p(self._channel[0] ** 2).sum())

    @property
    def total_correlation(self) -> float:
        """TC(Y), the redundancy of the labels, equation S2.22."""
        return total_correlation(self.label_covariance)

    @property
    def residual_coupling(self) -> float:
        """Delta = TC(Y|Z), what dependence of the labels Z leaves or creates."""
        return total_correlation(self.residual_covariance)

    @property
    def explained_dependence(self) -> float:
        """TC(Y) - Delta; below 0 where Z couples labels that were less coupled before."""
        return self.total_correlation - self.residual_coupling

    @property
    def signal_shares(self) -> NDArray[np.float64]:
        """R_t^2 = u_t' S_x u_t / S_Y,tt in [0, 1), (T,)."""
        return 1 - self.label_noise / np.diag(self.label_covariance)

    @property
    def task_information(self) -> NDArray[np.float64]:
        """I(Z;Y_t) = 1/2 log(S_Y,tt / S_{Y|Z},tt), (T,)."""
        ratios = np.diag(self.label_covariance) / np.diag(self.residual_covariance)
        return 0.5 * np.log(ratios)

    @property
    def joint_information(self) -> float:
        """I(Z;Y) = 1/2 (log det S_Y - log det S_{Y|Z})."""
        before = log_det(self.label_covariance, "the labels' covariance")
        return 0.5 * (before - log_det(self.residual_covariance, "the residual covariance"))

    @property
    def unused_capacity(self) -> float:
        """C - I(Z;Y) >= 0, what Z tells of X that is about no label."""
        return self.capacity - self.joint_information

    @property
    def slack(self) -> float:
        """C + TC(Y) - sum_t I(Z;Y_t) = unused capacity + residual coupling."""
        return self.capacity + self.total_correlation - float(self.task_information.sum())

    @property
    def identity_gap(self) -> float:
        """sum_t I(Z;Y_t) - [I(Z;Y) + TC(Y) - Delta], 0 up to rounding.

        The informations come from joint covariances of (Z, Y_t) and (Z, Y) here, TC and Delta from
        those of Y and Y|Z, so that a wrong conditional covariance shows.
        """
        m, T = len(self.A), self.num_tasks
        readings = np.vstack(
            [self.A / np.sqrt(self.encoder_noise), (self.U / np.sqrt(self.label_noise)).T]
        )
        # With unit noises; I(a;b) = h(a) + h(b) - h(a, b) is the same for scaled variables.
        cov = readings @ self.cov_x @ readings.T + np.eye(m + T)
        z, y = list(range(m)), list(range(m, m + T))

        def half_log_det(indices: list[int]) -> float:
            return 0.5 * float(np.linalg.slogdet(cov[np.ix_(indices, indices)])[1])

        of_tasks = [half_log_det(z) + half_log_det([t]) - half_log_det([*z, t]) for t in y]
        joint = half_log_det(z) + half_log_det(y) - half_log_det([*z, *y])
        return sum(of_tasks) - (joint + self.explained_dependence)

    def subset(self, tasks: Sequence[int]) -> "LinearGaussian":
        """Return the model of some of the tasks, in that order, with the same X and Z.

        Args:
            tasks: distinct indices, at least one.

        Raises:
            InputError: if they are not.

        Example:
            >>> model = LinearGaussian(np.eye(2), np.eye(2), np.array([1.0, 2.0]), np.eye(2), 1.0)
            >>> model.subset([1]).label_noise
            array([2.])
        """
        chosen = list(tasks)
        valid = all(0 <= task < self.num_tasks for task in chosen)
        if not chosen or not valid or len(set(chosen)) < len(chosen):
            raise InputError(
                f"tasks must be distinct indices below {self.num_tasks}, at least one, not {chosen}"
            )
        return replace(self, U=self.U[:, chosen], label_noise=self.label_noise[chosen])

    def given(self, W: ArrayLike) -> "LinearGaussian":
        r"""Return the model once W X is known: every information is then conditional on it.

        .. math:: S_{x|W} = S_x - S_x W^\top (W S_x W^\top)^+ W S_x

        It does not depend on what value was measured. The measurements are noiseless, so the new
        ``cov_x`` is singular. They may repeat each other. Khan, theorem 6.2.

        Args:
            W: (k, d) a row for each measurement; k = 0 changes nothing.

        Raises:
            InputError: if the shape does not fit or a number is not finite.

        Example:
            >>> model = LinearGaussian(np.eye(2), np.eye(2), np.ones(2), np.eye(2)[:1], 1.0)
            >>> round(model.capacity, 4), round(model.given([[1.0, 0.0]]).capacity, 4)
            (0.3466, 0.0)
        """
        measured = finite_matrix(W, "W", shape=(None, len(self.cov_x)))
        rows = measured @ self._root
        lengths = np.linalg.norm(rows, axis=1)
        # Units of a measurement do not matter, and one of what is known already is none.
        telling = lengths > _RANK * np.linalg.norm(measured, axis=1) * np.linalg.norm(self._root)
        rows = rows[telling] / lengths[telling, None]
        _, singular_values, directions = np.linalg.svd(rows, full_matrices=False)
        known = directions[singular_values > _RANK * len(rows)]
        root = self._root - (self._root @ known.T) @ known
        return replace(self, cov_x=root @ root.T)

    @cached_property
    def _root(self) -> Matrix:
        """L with S_x = L L', (d, d)."""
        return psd_root(self.cov_x, "cov_x")

    @cached_property
    def _channel(self) -> tuple[NDArray[np.float64], Matrix]:
        """Singular values of A L / sigma_z, and its right singular vectors as rows."""
        scaled = self.A @ self._root / np.sqrt(self.encoder_noise)
        _, gains, directions = np.linalg.svd(scaled, full_matrices=False)
        return gains, directions
