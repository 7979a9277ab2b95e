"""What no representation of limited capacity can exceed, as numbers."""

from collections.abc import Sequence
from itertools import combinations
from math import log

from scipy.special import entr

from coadapt._errors import InputError
from coadapt.theory._checks import at_least_zero, finite, whole
from coadapt.theory.linear_gaussian import LinearGaussian

MAX_TASKS = 15  # of subset_bounds: 32767 subsets take seconds

_ROUNDING = 1e-9  # relative; of an entropy that should be log m


def cr_bound(capacity: float, total_correlation: float) -> float:
    r"""Return the capacity-redundancy bound on the information about all tasks, in nats.

    .. math:: \sum_t I(Z;Y_t) \le C + TC(Y), \qquad I(Z;X) \le C

    Khan, theorem 3.2. For labels given W, take C and TC given W (theorem 6.2).

    How far the sum stays below it is unused capacity C - I(Z;Y) and residual coupling together; it
    is not a measure of either.

    Args:
        capacity: C >= 0, in nats.
        total_correlation: TC(Y) >= 0, in nats.

    Raises:
        InputError: if one is below 0 or not finite.

    Example:
        >>> cr_bound(2.0, 0.5)
        2.5
    """
    redundancy = at_least_zero(total_correlation, "total_correlation")
    return at_least_zero(capacity, "capacity") + redundancy


def average_bound(capacity: float, total_correlation: float, num_tasks: int) -> float:
    r"""Return the bound on the mean information a task, which some task cannot exceed either.

    .. math:: \min_t I(Z;Y_t) \le \frac1T \sum_t I(Z;Y_t) \le \frac{C + TC(Y)}{T}

    Khan, corollary 4.1. Of equation S1.18 this leaves: some task has
    H(Y_t) - I(Z;Y_t) >= mean_t H(Y_t) - (C + TC) / T.

    Args:
        capacity: C >= 0, in nats.
        total_correlation: TC(Y) >= 0, in nats.
        num_tasks: T >= 1.

    Raises:
        InputError: if one is out of its range.

    Example:
        >>> average_bound(2.0, 0.5, 5)
        0.5
    """
    return cr_bound(capacity, total_correlation) / whole(num_tasks, "num_tasks", least=1)


def linear_capacity_bound(
    information_per_task: float, num_tasks: int, total_correlation: float
) -> float:
    r"""Return the least capacity that tells so much about every task, in nats.

    .. math:: \min_t I(Z;Y_t) \ge b \;\Rightarrow\; C \ge \max(0,\; T b - TC(Y))

    Khan, corollary 4.2. It is necessary; whether it is enough it does not say.

    Args:
        information_per_task: b >= 0, in nats.
        num_tasks: T >= 1.
        total_correlation: TC(Y) >= 0, in nats, or an upper bound of it.

    Raises:
        InputError: if one is out of its range.

    Example:
        >>> linear_capacity_bound(0.5, 10, 1.0)
        4.0
    """
    total = whole(num_tasks, "num_tasks", least=1) * at_least_zero(
        information_per_task, "information_per_task"
    )
    return max(0.0, total - at_least_zero(total_correlation, "total_correlation"))


def shared_private_bound(
    shared_capacity: float, private_capacities: Sequence[float], total_correlation: float
) -> float:
    r"""Return the bound for a shared representation with private ones beside it, in nats.

    .. math::
        \sum_t I((Z_s, Z_t); Y_t) \le C_s + \sum_t C_t + TC(Y),
        \qquad I(Z_s;X) \le C_s, \quad I(Z_t;X|Z_s) \le C_t \text{ or } I(Z_t;X) \le C_t

    Khan, theorem 5.1 (equation 9). With the first budget, that of equation 8, it holds as it
    stands: I(Z_s, Z_t; Y_t) <= I(Z_s;Y_t) + I(Z_t;X|Z_s). With the second one, that of theorem
    S3.2, it needs what the paper does not state: Z_t - X - Z_s is Markov, as with separate noises.
    That all representations together have at most C_s + sum_t C_t of information about X, as the
    paper's proof says, needs more: Z_t - X - (Z_s, other Z) is Markov.

    It does not say that private features decouple the labels: the paper's Delta_sp <= Delta_s is
    false, TC(Y|.) is not monotone in what is known.

    Args:
        shared_capacity: C_s >= 0, in nats.
        private_capacities: (T,) C_t >= 0, in nats.
        total_correlation: TC(Y) >= 0, in nats.

    Raises:
        InputError: if one is below 0 or not finite.

    Example:
        >>> shared_private_bound(2.0, [0.25, 0.25], 0.5)
        3.0
    """
    private = [
        at_least_zero(capacity, f"private_capacities[{t}]")
        for t, capacity in enumerate(private_capacities)
    ]
    return cr_bound(at_least_zero(shared_capacity, "shared_capacity"), total_correlation) + sum(
        private
    )


def log_loss_bound(joint_entropy: float, capacity: float, residual_coupling: float) -> float:
    r"""Return what the log-losses of any predictors from Z, one a task, sum to at least, in nats.

    .. math:: \sum_t E[-\log q_t(Y_t|Z)] \ge \sum_t H(Y_t|Z) = H(Y|Z) + \Delta \ge H(Y) - C + \Delta

    Khan, theorem 4.3 (equation 7).

    Args:
        joint_entropy: H(Y) of all labels together, in nats; of continuous labels the differential
            entropy, which may be below 0.
        capacity: C >= 0, in nats.
        residual_coupling: Delta = TC(Y|Z) >= 0, in nats.

    Raises:
        InputError: if one is out of its range.

    Example:
        >>> log_loss_bound(3.0, 2.0, 0.5)
        1.5
    """
    left = finite(joint_entropy, "joint_entropy") - at_least_zero(capacity, "capacity")
    return left + at_least_zero(residual_coupling, "residual_coupling")


def fano_error(conditional_entropy: float, num_classes: int) -> float:
    r"""Return the least error rate with which a label of this conditional entropy can be told.

    .. math:: \min \{ p \in [0, 1 - 1/m] : h_b(p) + p \log(m - 1) \ge H(Y_t|Z) \}

    Fano's inequality as it is (Cover and Thomas, "Elements of information theory", section 2.10),
    by bisection. The weak form (H - 1) / log m, Khan's equation S1.17, is in bits, and for two
    classes never above 0.

    Not for an estimated entropy without its error: it is steep near 0 and near log m.

    Args:
        conditional_entropy: H(Y_t|Z) in [0, log m], in nats.
        num_classes: m >= 2.

    Raises:
        InputError: if one is out of its range.

    Example:
        >>> round(fano_error(0.5, 2), 4)
        0.1997
        >>> fano_error(0.0, 3)
        0.0
    """
    m = whole(num_classes, "num_classes", least=2)
    entropy = at_least_zero(conditional_entropy, "conditional_entropy")
    if entropy > log(m) * (1 + _ROUNDING):
        raise InputError(
            f"conditional_entropy must be at most log {m} = {log(m):.6g} nats, not {entropy}"
        )
    if entropy == 0:
        return 0.0
    low, high = 0.0, 1 - 1 / m
    while low < (middle := (low + high) / 2) < high:
        if entr(middle) + entr(1 - middle) + middle * log(m - 1) < entropy:
            low = middle
        else:
            high = middle
    return high


def subset_bounds(model: LinearGaussian) -> dict[tuple[int, ...], tuple[float, float]]:
    r"""Return the information about every subset of the tasks, and its bound, in nats.

    .. math:: \sum_{t \in S} I(Z;Y_t) \le C + TC(Y^S)

    Khan, corollary 6.1. All of them hold; together they are tighter than the one for all tasks.

    Args:
        model: of at most 15 tasks.

    Returns:
        ``{tasks: (sum of informations, bound)}``, tasks as ascending indices, small subsets first.

    Raises:
        InputError: if there are more tasks.

    Example:
        >>> import numpy as np
        >>> model = LinearGaussian(np.eye(2), np.eye(2), np.ones(2), np.eye(2)[:1], 1.0)
        >>> for tasks, (total, bound) in subset_bounds(model).items():
        ...     print(tasks, round(total, 3), round(bound, 3))
        (0,) 0.144 0.347
        (1,) 0.0 0.347
        (0, 1) 0.144 0.347
    """
    T = model.num_tasks
    if T > MAX_TASKS:
        raise InputError(f"model has {T} tasks, {2**T - 1} subsets; at most {MAX_TASKS} will do")
    information, capacity = model.task_information, model.capacity
    return {
        tasks: (
            float(information[list(tasks)].sum()),
            cr_bound(capacity, model.subset(tasks).total_correlation),
        )
        for size in range(1, T + 1)
        for tasks in combinations(range(T), size)
    }
