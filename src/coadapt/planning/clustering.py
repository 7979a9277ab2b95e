"""Which tasks go together: average linkage on their similarities, and how stable its cuts are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coadapt._errors import InputError
from coadapt._linalg import Matrix, symmetric

Distance = Literal["1-s", "1-s^2"]
Clusters = tuple[tuple[str, ...], ...]

_ROUNDING = 1e-8  # by how much a cosine may exceed 1, from sums in float32
_TIE = 1e-12  # distances this far apart are equal; they are at most 2
_NEAR = 0.02  # stabilities this far apart are not told apart by some hundred replicates


class Merge(NamedTuple):
    """Two clusters that become one, ``left`` with the earlier first member, at their distance."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    height: float


@dataclass(frozen=True, kw_only=True)
class Dendrogram:
    """The order in which tasks merge, the most alike first.

    Args:
        names: of the T tasks.
        merges: T - 1 of them; their heights never fall.
    """

    names: tuple[str, ...]
    merges: tuple[Merge, ...]

    def cut(self, num_clusters: int) -> Clusters:
        """Return the clusters after T - K merges, by first member, members in task order.

        Args:
            num_clusters: K, from 1 to T.

        Raises:
            InputError: if there cannot be K clusters.
        """
        num_tasks = len(self.names)
        if not 1 <= num_clusters <= num_tasks:
            raise InputError(f"num_clusters must be from 1 to {num_tasks}, not {num_clusters}")
        place = {name: index for index, name in enumerate(self.names)}
        clusters: dict[str, tuple[str, ...]] = {name: (name,) for name in self.names}
        for left, right, _ in self.merges[: num_tasks - num_clusters]:
            del clusters[right[0]]  # each has its first member's place
            clusters[left[0]] = tuple(sorted(left + right, key=place.__getitem__))
        return tuple(clusters.values())


@dataclass(frozen=True, kw_only=True)
class ClusterCandidate:
    """A cut and what speaks for it.

    Args:
        num_clusters: K.
        clusters: of the estimate's dendrogram cut at K.
        stability: mean adjusted Rand index between it and the replicates' cuts at K; 1 if all
            agree, about 0 for chance.
        separation: mean of 1 - d, so s or s^2, of pairs within clusters less that of the others.
        fit: correlation over pairs of 1 - d and being together; 0 if all are equally close.
    """

    num_clusters: int
    clusters: Clusters
    stability: float
    separation: float
    fit: float


@dataclass(frozen=True, kw_only=True)
class ClusterChoice:
    """The chosen cut among all that were looked at.

    Args:
        chosen: the candidate taken.
        stable: whether its stability is enough; if not, the noise decides which tasks go together.
        candidates: one for each K from 2 to T - 1.
    """

    chosen: ClusterCandidate
    stable: bool
    candidates: tuple[ClusterCandidate, ...]

    def fewest(self, min_stability: float, most: int) -> ClusterCandidate:
        """Return the stable cut with the fewest clusters; if none is, the most stable one.

        Args:
            min_stability: from which on a cut counts as stable.
            most: clusters that a cut may have, at least 2.
        """
        possible = [c for c in self.candidates if c.num_clusters <= most]
        stable = [c for c in possible if c.stability >= min_stability]
        return stable[0] if stable else max(possible, key=lambda c: c.stability)


def agglomerate(
    similarity: ArrayLike, names: Sequence[str], *, distance: Distance = "1-s"
) -> Dendrogram:
    r"""Return the average-linkage (UPGMA) dendrogram of the tasks.

    .. math:: D(a, b) = \frac{1}{|a| |b|} \sum_{i \in a} \sum_{j \in b} d_{ij}, \quad
        d_{ij} = \max(0, 1 - s_{ij}) \text{ or } 1 - s_{ij}^2

    Sokal and Michener, "A statistical method for evaluating systematic relationships", 1958; for
    tasks with 1 - s, Khan, "Capacity and redundancy trade-offs in multi-task learning", section
    S4.1. Of pairs at equal distance the one whose first members come first merges first.

    The distances differ on opposed tasks: s = -1 is farthest under 1 - s, since one update would
    hurt the other, and nearest under 1 - s^2, since each says all about the other.

    Not for a cosine corrected for noise, which may have gaps and exceed 1: clip it first.

    Args:
        similarity: s, (T, T), symmetric, from -1 to 1; its diagonal has no effect.
        names: of the T tasks, distinct, at least one.
        distance: d as a function of s.

    Raises:
        InputError: if the matrix is not symmetric, finite and within [-1, 1], or the names do not
            fit it.

    Example:
        >>> similarity = [[1.0, 0.1, 0.7], [0.1, 1.0, 0.2], [0.7, 0.2, 1.0]]
        >>> dendrogram = agglomerate(similarity, ["qqp", "sst2", "mrpc"])
        >>> dendrogram.cut(2)
        (('qqp', 'mrpc'), ('sst2',))
        >>> round(dendrogram.merges[-1].height, 3)
        0.85
    """
    return _tree(_checked(similarity, "similarity", names), names, distance)


def co_clustering(
    similarities: ArrayLike, names: Sequence[str], num_clusters: int, *, distance: Distance = "1-s"
) -> NDArray[np.float64]:
    """Return the share of replicates in which each pair of tasks is in one cluster, (T, T).

        F_ij = 1/N sum_b 1[i and j in one cluster of the cut of replicate b at K]

    After Monti et al., "Consensus clustering", 2003, with replicates in place of samples of items.

    Not for whether training a pair together helps: it says how well the noise parts the two.

    Args:
        similarities: N replicates, (N, T, T), at least one, see :func:`agglomerate`.
        names: of the T tasks.
        num_clusters: K, from 1 to T.
        distance: see :func:`agglomerate`.

    Raises:
        InputError: see :func:`agglomerate`; or if there is no replicate, or K does not fit.

    Example:
        >>> replicates = [[[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]] * 3
        >>> replicates += [[[1, 0, 0.9], [0, 1, 0], [0.9, 0, 1]]]
        >>> co_clustering(replicates, ["a", "b", "c"], 2)[0]
        array([1.  , 0.75, 0.25])
    """
    trees = _replicated(similarities, "similarities", names, distance)
    labels = np.array([_labels(tree.cut(num_clusters), names) for tree in trees])
    return (labels[:, :, None] == labels[:, None, :]).mean(axis=0)


def choose_num_clusters(
    similarity: ArrayLike,  # (T, T)
    bootstraps: ArrayLike,  # (N, T, T)
    names: Sequence[str],
    *,
    distance: Distance = "1-s",
    min_stability: float = 0.8,
) -> ClusterChoice:
    r"""Choose the number of clusters whose cut the noise in the similarities moves least.

    .. math:: \text{stability}_K = \frac1N \sum_b
        \mathrm{ARI}(\mathrm{cut}_K(\hat s), \mathrm{cut}_K(s_b))

    after Ben-Hur et al., "A stability based method for discovering structure in clustered data",
    PSB 2002, with the adjusted Rand index of Hubert and Arabie, "Comparing partitions", 1985.

    The rule: of the K whose stability is within 0.02 of the largest the one of the best fit, and
    of equal fits the smallest K. Stability alone cannot choose where the noise is small: every cut
    of a tree without ties is stable then, and the smallest K would merge clear clusters. The fit is
    the point-biserial correlation, see Milligan, "A Monte Carlo study of thirty internal criterion
    measures for cluster analysis", 1981.

    Of matrices without structure (equal similarities and noise, 3 to 12 tasks) at most one in ten
    comes out as stable at 0.8. Not for whether training by the clusters pays off: a stable choice
    is no accident of the noise that the replicates show, and no more.

    Args:
        similarity: the estimate, see :func:`agglomerate`.
        bootstraps: N replicates of it, some hundred.
        names: of the T tasks, at least 3; one cluster and T clusters are stable whatever s is.
        distance: see :func:`agglomerate`.
        min_stability: from which on the choice counts as stable.

    Raises:
        InputError: see :func:`agglomerate`; or with fewer than 3 tasks, or without replicates.

    Example:
        >>> s = np.kron(np.eye(2), np.full((2, 2), 0.6)) + 0.4 * np.eye(4)
        >>> noise = np.random.default_rng(0).normal(scale=0.1, size=(100, 4, 4))
        >>> choice = choose_num_clusters(s, np.clip(s + noise + noise.mT, -1, 1), "abcd")
        >>> choice.chosen.clusters, choice.stable
        ((('a', 'b'), ('c', 'd')), True)
    """
    s = _checked(similarity, "similarity", names)
    if len(names) < 3:
        raise InputError(f"names has {len(names)} tasks; a choice of clusters takes at least 3")
    tree = _tree(s, names, distance)
    trees = _replicated(bootstraps, "bootstraps", names, distance)
    closeness = _closeness(s, distance)
    candidates = tuple(_candidate(num, tree, trees, closeness) for num in range(2, len(names)))
    best = max(candidate.stability for candidate in candidates)
    near = [candidate for candidate in candidates if candidate.stability >= best - _NEAR]
    chosen = max(near, key=lambda candidate: (candidate.fit, -candidate.num_clusters))
    stable = chosen.stability >= min_stability
    return ClusterChoice(chosen=chosen, stable=stable, candidates=candidates)


def _tree(s: Matrix, names: Sequence[str], distance: Distance) -> Dendrogram:
    sums = 1.0 - _closeness(s, distance)  # of the distances between two clusters' members
    sizes = np.ones(len(names))
    members: list[tuple[int, ...]] = [(index,) for index in range(len(names))]
    is_open = np.triu(np.ones(sums.shape, dtype=bool), k=1)
    merges: list[Merge] = []
    for _ in range(len(names) - 1):
        means = np.where(is_open, sums / np.outer(sizes, sizes), np.inf)
        # Row by row, so the first within rounding of the smallest is the first by index.
        i, j = divmod(int((means <= means.min() + _TIE).argmax()), len(names))
        left, right = (tuple(names[t] for t in members[cluster]) for cluster in (i, j))
        merges.append(Merge(left, right, float(means[i, j])))
        members[i] = tuple(sorted(members[i] + members[j]))  # keeps the first member's place
        sizes[i] += sizes[j]
        sums[i] += sums[j]
        sums[:, i] += sums[:, j]
        is_open[j] = is_open[:, j] = False
    for earlier, later in pairwise(merges):
        assert later.height >= earlier.height - 2 * _TIE, "average linkage has no inversions"
    return Dendrogram(names=tuple(names), merges=tuple(merges))


def _closeness(s: Matrix, distance: Distance) -> Matrix:
    """Return 1 - d, with d = 0 on the diagonal and never below."""
    if distance not in ("1-s", "1-s^2"):
        raise InputError(f"distance must be 1-s or 1-s^2, not '{distance}'")
    closeness = np.minimum(1.0, s if distance == "1-s" else s**2)
    np.fill_diagonal(closeness, 1.0)
    return closeness


def _candidate(
    num: int, tree: Dendrogram, trees: Sequence[Dendrogram], closeness: Matrix
) -> ClusterCandidate:
    from sklearn.metrics import adjusted_rand_score  # takes a second, which plans need not wait for

    own = _labels(tree.cut(num), tree.names)
    total = sum(
        count * adjusted_rand_score(own, _labels(cut, tree.names))
        for cut, count in Counter(other.cut(num) for other in trees).items()
    )
    pairs = np.triu_indices(len(own), k=1)
    values, together = closeness[pairs], (own[:, None] == own)[pairs]
    separation = values[together].mean() - values[~together].mean()
    varies = np.ptp(values) > _TIE
    return ClusterCandidate(
        num_clusters=num,
        clusters=tree.cut(num),
        stability=float(total / len(trees)),
        separation=float(separation),
        # The correlation with a 0/1 variable is the difference of the means in units of spreads.
        fit=float(separation * together.std() / values.std()) if varies else 0.0,
    )


def _replicated(
    replicates: ArrayLike, what: str, names: Sequence[str], distance: Distance
) -> list[Dendrogram]:
    matrices = np.asarray(replicates, dtype=np.float64)
    if matrices.ndim != 3 or len(matrices) == 0:
        raise InputError(f"{what} must be of shape (N, T, T), N at least 1, not {matrices.shape}")
    return [
        _tree(_checked(matrix, f"{what}[{index}]", names), names, distance)
        for index, matrix in enumerate(matrices)
    ]


def _labels(clusters: Clusters, names: Sequence[str]) -> NDArray[np.int64]:
    label_of = {name: label for label, cluster in enumerate(clusters) for name in cluster}
    return np.array([label_of[name] for name in names])


def _checked(similarity: ArrayLike, what: str, names: Sequence[str]) -> Matrix:
    s = symmetric(similarity, what)
    if len(names) == 0 or len(names) != len(s) or len(set(names)) != len(names):
        raise InputError(
            f"names must be distinct, one for each of the {len(s)} tasks, at least one; "
            f"found {list(names)}"
        )
    largest = np.abs(s).max()
    if largest > 1 + _ROUNDING:
        raise InputError(f"{what} must lie in [-1, 1], but an entry is {largest:.6g} in size")
    return s
