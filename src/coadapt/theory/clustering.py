"""What clusters with a representation each gain over one for all tasks, term by term."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from coadapt._errors import InputError
from coadapt.theory.linear_gaussian import LinearGaussian


@dataclass(frozen=True, kw_only=True)
class ClusteringGap:
    """What clusters gain over one representation, and two exact accounts of it, all in nats.

    Attributes:
        gap: G, the information about all tasks that clusters have more; below 0 they have less.
        joint_information_gain: sum_k I(Z_k;Y^{S_k}) - I(Z;Y), of the first account.
        between_redundancy: B(P) >= 0, the redundancy between clusters, which is given up.
        coupling_removed: TC(Y|Z) - sum_k TC(Y^{S_k}|Z_k).
        cluster_information_gains: I(Z_k;Y^{S_k}) - I(Z;Y^{S_k}) of each cluster, of the second.
        cluster_coupling_removed: TC(Y^{S_k}|Z) - TC(Y^{S_k}|Z_k) of each cluster.
    """

    gap: float
    joint_information_gain: float
    between_redundancy: float
    coupling_removed: float
    cluster_information_gains: tuple[float, ...]
    cluster_coupling_removed: tuple[float, ...]

    @property
    def form_1(self) -> float:
        """Joint information gained, less redundancy given up, plus coupling removed: the gap."""
        return self.joint_information_gain - self.between_redundancy + self.coupling_removed

    @property
    def form_2(self) -> float:
        """Information gained and coupling removed, summed over clusters: the gap."""
        return sum(self.cluster_information_gains) + sum(self.cluster_coupling_removed)


def clustering_gap(
    global_: LinearGaussian, clusters: Sequence[tuple[Sequence[int], LinearGaussian]]
) -> ClusteringGap:
    r"""Return what representations Z_k of clusters S_k gain over a representation Z of all tasks.

    .. math::
        G &= \sum_k \sum_{t \in S_k} I(Z_k;Y_t) - \sum_t I(Z;Y_t) \\
        &= \Bigl[\sum_k I(Z_k;Y^{S_k}) - I(Z;Y)\Bigr] - B(P)
            + \Bigl[TC(Y|Z) - \sum_k TC(Y^{S_k}|Z_k)\Bigr] \\
        &= \sum_k \bigl\{ [I(Z_k;Y^{S_k}) - I(Z;Y^{S_k})]
            + [TC(Y^{S_k}|Z) - TC(Y^{S_k}|Z_k)] \bigr\}, \\
        B(P) &= TC(Y) - \sum_k TC(Y^{S_k}) \ge 0

    The abstract of Khan, "Capacity and redundancy trade-offs in multi-task learning", promises such
    a decomposition and the paper has none; these are derived from its identity (equation S1.16).
    G is the drop of the least total log-loss.

    It tells where a gain comes from, not that clusters gain: Z' = (Z_1, ..., Z_K) is one
    representation for all tasks, needs no more information about X than the Z_k together, and tells
    at least as much about every task. Under information budgets alone, clusters never beat the best
    shared representation. Those of trained models come from decoders, optimization or finite data.

    Args:
        global_: all tasks with the shared encoder.
        clusters: for each cluster its tasks, as indices, and the model of all tasks with that
            cluster's encoder; X, U and label noise are those of ``global_``.

    Raises:
        InputError: if the clusters are no partition of the tasks, or a model differs from
            ``global_`` in more than the encoder.

    Example:
        >>> from dataclasses import replace
        >>> shared = LinearGaussian(np.eye(2), np.eye(2), np.full(2, 0.1), np.ones((1, 2)), 0.1)
        >>> private = [([t], replace(shared, A=np.eye(2)[[t]])) for t in (0, 1)]
        >>> found = clustering_gap(shared, private)
        >>> round(found.gap, 3), round(found.form_1, 3), round(found.coupling_removed, 3)
        (1.184, 1.184, 0.437)
    """
    _check(global_, clusters)
    own = [model.subset(tasks) for tasks, model in clusters]  # Z_k and the tasks of S_k
    shared = [global_.subset(tasks) for tasks, _ in clusters]  # Z and the tasks of S_k
    clustered = sum(float(model.task_information.sum()) for model in own)
    return ClusteringGap(
        gap=clustered - float(global_.task_information.sum()),
        joint_information_gain=sum(model.joint_information for model in own)
        - global_.joint_information,
        between_redundancy=global_.total_correlation
        - sum(model.total_correlation for model in own),
        coupling_removed=global_.residual_coupling - sum(model.residual_coupling for model in own),
        cluster_information_gains=tuple(
            theirs.joint_information - ours.joint_information
            for theirs, ours in zip(own, shared, strict=True)
        ),
        cluster_coupling_removed=tuple(
            ours.residual_coupling - theirs.residual_coupling
            for theirs, ours in zip(own, shared, strict=True)
        ),
    )


def _check(
    global_: LinearGaussian, clusters: Sequence[tuple[Sequence[int], LinearGaussian]]
) -> None:
    """Raise InputError unless the clusters share a partition, X and labels."""
    tasks = [list(tasks) for tasks, _ in clusters]
    members = sorted(task for cluster in tasks for task in cluster)
    if members != list(range(global_.num_tasks)) or not all(tasks):
        raise InputError(f"clusters {tasks} are no partition of {global_.num_tasks} tasks")
    encoder = {"A", "encoder_noise"}
    for k, (_, model) in enumerate(clusters):
        for name in [field.name for field in fields(model) if field.name not in encoder]:
            if not np.array_equal(getattr(model, name), getattr(global_, name)):
                raise InputError(f"{name} of cluster {k} differs from that of the global model")
