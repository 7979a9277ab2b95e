"""Where the rows of each task lie among what an adapter's A makes of them, in two dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from coadapt._errors import InputError, nearest
from coadapt._seeds import named_seed
from coadapt.analysis._representations import Representations, collect, opened
from coadapt.loading import Loader
from coadapt.runs import Run

Array = NDArray[np.float64]
Method = Literal["pca", "tsne"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RepresentationMap:
    """Rows of several tasks as points in the plane.

    Attributes:
        run: whose representations.
        method: ``pca`` or ``tsne``.
        split: whose rows.
        modules: that were looked at.
        tasks: their names.
        task_ids: (N,) an index into them a row.
        points: (N, 2).
        explained: the shares of the variance that the two principal components have, in [0, 1];
            None of t-SNE, whose axes mean nothing.
    """

    run: str
    method: Method
    split: str
    modules: tuple[str, ...]
    tasks: tuple[str, ...]
    task_ids: NDArray[np.int64]
    points: Array
    explained: tuple[float, float] | None

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "run": self.run,
            "method": self.method,
            "split": self.split,
            "modules": list(self.modules),
            "explained": None if self.explained is None else list(self.explained),
            "points": {
                task: self.points[self.task_ids == index].tolist()
                for index, task in enumerate(self.tasks)
            },
        }


def representation_map(
    run: str | Path | Run,
    method: Method = "pca",
    *,
    modules: Sequence[str] | None = None,
    rows: int = 100,
    split: str = "test",
    seed: int = 0,
    perplexity: float = 30.0,
    loader: Loader | None = None,
) -> RepresentationMap:
    r"""Map rows of every task by what the adapters' A makes of them.

    A row is the mean of A x over its tokens. Of several modules the means stand side by side, each
    module centred and divided by its standard deviation (the root of its total variance), so that
    all count alike: coordinates of different modules have nothing to do with each other, and their
    mean would cancel what they show. Rotating A changes no picture.

    ``pca`` is linear: what is far apart in it is far apart. It shows the two directions of the
    largest variance, and ``explained`` says how much that leaves out.

    ``tsne`` (van der Maaten and Hinton 2008; figure 5 of "Align, Don't Divide", arXiv 2508.05078)
    keeps near neighbours near. **Distances between its clusters, their sizes and their densities
    mean little**: two tasks that touch may be far apart and the other way round, another seed or
    perplexity gives another picture, and clusters appear in noise. It is no measure of alignment;
    :func:`coadapt.analysis.alignment_report` is.

    Args:
        run: a finished run with adapters, or its folder.
        method: which of the two.
        modules: names of adapted modules, or their endings such as ``query``; None for all.
        rows: a task, at least 2; all where there are fewer.
        split: whose rows.
        seed: of the draw of rows and of t-SNE.
        perplexity: of t-SNE, about the number of neighbours; below the number of points.
        loader: keeps what several runs share.

    Raises:
        InputError: if the run has no adapters, a module or split does not exist, or no row differs
            from another.
    """
    if method not in get_args(Method):
        raise InputError(f"unknown method '{method}'{nearest(method, get_args(Method))}")
    loader = loader or Loader()
    found = collect(opened(run, loader), loader, modules=modules, rows=rows, split=split, seed=seed)
    x_ND = side_by_side(found)
    points, explained = principal(x_ND)
    shares: tuple[float, float] | None = explained
    if method == "tsne":
        shares = None
        points = _tsne(x_ND, points, perplexity, named_seed(seed, "t-SNE") % 2**32)
    return RepresentationMap(
        run=found.run,
        method=method,
        split=split,
        modules=tuple(found.values),
        tasks=found.tasks,
        task_ids=found.task_ids.numpy(),
        points=points,
        explained=shares,
    )


def side_by_side(found: Representations) -> Array:
    """Return (N, sum of r) rows' means, each module centred and of total variance 1.

    Raises:
        InputError: if no module tells two rows apart.
    """
    parts = []
    for module in found.values:
        x_Nr = found.by_row(module)
        x_Nr = x_Nr - x_Nr.mean(axis=0)
        deviation = np.sqrt((x_Nr**2).sum(axis=1).mean())
        if deviation > 0:
            parts.append(x_Nr / deviation)
    if not parts:
        raise InputError(
            f"run {found.run}: A x is the same for all rows in every module looked at, so there is "
            "nothing to map"
        )
    return np.concatenate(parts, axis=1)


def principal(
    x_ND: Array,  # centred
) -> tuple[Array, tuple[float, float]]:
    """Return (N, 2) principal components and the shares of the variance that they have.

    Each has the sign that makes the largest entry of its direction positive.
    """
    U, deviations, V = np.linalg.svd(x_ND, full_matrices=False)
    largest = np.abs(V).argmax(axis=1)
    points = U * deviations * np.sign(V[np.arange(len(V)), largest])
    shares = deviations**2 / (deviations**2).sum()
    missing = max(0, 2 - points.shape[1])  # one module of rank 1
    points = np.pad(points, ((0, 0), (0, missing)))[:, :2]
    first, second = [*shares.tolist(), 0.0][:2]
    return points, (first, second)


def _tsne(x_ND: Array, start_N2: Array, perplexity: float, seed: int) -> Array:
    from sklearn.manifold import TSNE

    if not 1 <= perplexity < len(x_ND):
        raise InputError(
            f"perplexity is {perplexity:g}; with {len(x_ND)} rows in all give 1 or more and less "
            "than that"
        )
    # From the principal components, so that the large directions are where they are.
    start = 1e-4 * start_N2 / start_N2[:, 0].std()
    tsne = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), random_state=seed)
    return np.asarray(tsne.fit_transform(x_ND), dtype=np.float64)
