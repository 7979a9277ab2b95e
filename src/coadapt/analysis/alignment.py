"""Whether tasks' representations came together, or only shrank."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coadapt._errors import InputError
from coadapt._sheet import Sheet, missing
from coadapt.analysis._representations import Representations, collect, opened
from coadapt.loading import Loader
from coadapt.regularizers import AlignKL, AlignMMD
from coadapt.runs import Run

_FALL = 0.1  # the least share by which a number falls that is read as a fall
_STAYED = 0.005  # a smaller change is none

MEASURES = {
    "kl": "KL (nats)",
    "mmd": "MMD²",
    "norm": "mean norm",
    "effective_rank": "effective rank",
}


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What is said of the representations of one module, or of the mean over modules.

    Attributes:
        kl: mean over pairs of tasks of the symmetrised KL of diagonal Gaussians, in nats.
        mmd: mean over pairs of tasks of the squared MMD.
        norm: mean over tokens of the length of A x.
        effective_rank: see :func:`effective_rank`; NaN where A x is zero.
    """

    kl: float
    mmd: float
    norm: float
    effective_rank: float


@dataclass(frozen=True, kw_only=True)
class AlignmentReport:
    """Distances between tasks, and the size of what is compared, in two runs.

    Attributes:
        runs: before and after.
        tasks: the tasks.
        split: whose rows were read.
        num_rows: by task.
        before: by module.
        after: by module.
    """

    runs: tuple[str, str]
    tasks: tuple[str, ...]
    split: str
    num_rows: dict[str, int]
    before: dict[str, Alignment]
    after: dict[str, Alignment]

    @property
    def mean(self) -> tuple[Alignment, Alignment]:
        """The means over modules, before and after."""
        return _mean(self.before), _mean(self.after)

    @property
    def reading(self) -> str:
        """What became of the four numbers, in a sentence."""
        return _reading(*self.mean, same_run=self.runs[0] == self.runs[1])

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data, null where there is no number."""
        mean = self.mean
        return {
            "runs": list(self.runs),
            "tasks": list(self.tasks),
            "split": self.split,
            "num_rows": dict(self.num_rows),
            "reading": self.reading,
            "mean": {"before": _plain(mean[0]), "after": _plain(mean[1])},
            "modules": {
                name: {"before": _plain(self.before[name]), "after": _plain(self.after[name])}
                for name in self.before
            },
        }


def alignment_report(
    before: str | Path | Run,
    after: str | Path | Run,
    *,
    modules: Sequence[str] | None = None,
    rows: int = 100,
    split: str = "test",
    seed: int = 0,
    kl: AlignKL | None = None,
    mmd: AlignMMD | None = None,
    loader: Loader | None = None,
) -> AlignmentReport:
    """Compare how far apart tasks' representations A x are in two runs, and how large they are.

    The distances are those that alignment trains on (``coadapt.regularizers``), on rows that it may
    not have seen. They fall when tasks come together, but also when there is less of anything: a
    fall of the distance with a falling norm or effective rank is collapse, not alignment. KL does
    not change when A x is scaled, but for the floor of its variances; MMD with bandwidths by the
    median does not either; with the official ones it goes to zero with A.

    That distances are lower says nothing about scores. Two runs differ by seed too: compare several
    of each before saying that a method aligns.

    Args:
        before: a finished run with adapters, or its folder: a LoRA without alignment, or
            ``start_of(after)``.
        after: another on the same base model and tasks.
        modules: names of adapted modules, or their endings; None for all.
        rows: a task, at least 2; all where there are fewer.
        split: whose rows.
        seed: of the draw of rows.
        kl: its samples, tokens and floor; :class:`AlignKL`'s defaults if None.
        mmd: its samples, bandwidths and estimator. If None the unbiased estimator on 256 tokens a
            task, which may be below 0; the biased one that training takes is above 0 for equal
            laws too (on 64 tokens by some 0.01).
        loader: keeps what the runs share.

    Raises:
        InputError: if a run has no adapters or one task, or the two do not read the same rows in
            the same modules of the same base model.
    """
    loader = loader or Loader()
    found = []
    for run in (before, after):
        one = opened(run, loader)
        if len(one.suite.names) < 2:
            raise InputError(f"run {one.path} has one task; alignment is between tasks")
        found.append(collect(one, loader, modules=modules, rows=rows, split=split, seed=seed))
    _check_alike(*found)
    kl = kl or AlignKL()
    mmd = mmd or AlignMMD(max_tokens=256, estimator="unbiased")
    for part in (kl, mmd):
        _check_counts(found[0], part)
    measured = [{module: _measure(one, module, kl, mmd) for module in one.values} for one in found]
    return AlignmentReport(
        runs=(found[0].run, found[1].run),
        tasks=found[0].tasks,
        split=split,
        num_rows={
            task: int((found[0].task_ids == index).sum())
            for index, task in enumerate(found[0].tasks)
        },
        before=measured[0],
        after=measured[1],
    )


def effective_rank(x_Nr: NDArray[np.float64]) -> float:
    r"""Return in how many directions representations spread, from 1 to r; NaN if all are zero.

    .. math:: \exp \Bigl( -\sum_i p_i \log p_i \Bigr), \quad p_i = \sigma_i / \sum_j \sigma_j

    with the singular values of the matrix as it is, not centred (Roy and Vetterli 2007, "The
    effective rank", section 2). A common mean that dwarfs what varies lowers it, as collapse to one
    point does.

    Args:
        x_Nr: a row a token.

    Example:
        >>> round(effective_rank(np.eye(3)), 6), effective_rank(np.zeros((2, 3)))
        (3.0, nan)
    """
    # Of the triangle: the same singular values, and no matrix of N times r more.
    values = np.linalg.svd(np.linalg.qr(x_Nr, mode="r"), compute_uv=False)
    if not values.sum() > 0:
        return float("nan")
    p = values / values.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def _measure(found: Representations, module: str, kl: AlignKL, mmd: AlignMMD) -> Alignment:
    captured, tokens = found.captured(module), found.by_token(module)
    return Alignment(
        kl=float(kl.loss(captured)),
        mmd=float(mmd.loss(captured)),
        norm=float(np.linalg.norm(tokens, axis=1).mean()),
        effective_rank=effective_rank(tokens),
    )


def _check_alike(before: Representations, after: Representations) -> None:
    runs = f"runs {before.run} and {after.run}"
    if before.base != after.base:
        raise InputError(
            f"{runs} are on different base models, whose representations do not compare"
        )
    if before.tasks != after.tasks:
        raise InputError(
            f"{runs} have different tasks: {', '.join(before.tasks)} and {', '.join(after.tasks)}"
        )
    if list(before.values) != list(after.values):
        raise InputError(f"{runs} adapt different modules; name those to compare by modules")
    if before.tokens.shape != after.tokens.shape or not before.tokens.equal(after.tokens):
        raise InputError(f"{runs} read different rows; take runs of one suite and max_length")


def _check_counts(found: Representations, part: AlignKL | AlignMMD) -> None:
    """Refuse samples so few that a term leaves a task out, and is 0 for want of pairs."""
    chosen = found.captured(next(iter(found.values))).chosen(part.tokens)
    for index, task in enumerate(found.tasks):
        mine = chosen[found.task_ids == index]
        count = int(mine.sum() if part.pool == "token" else mine.any(dim=1).sum())
        if part.pool == "token" and part.max_tokens is not None:
            count = min(count, part.max_tokens)
        if count < part.min_count:
            raise InputError(
                f"{part.kind} compares tasks with min_count {part.min_count} samples or more, and "
                f"'{task}' has {count}; take more rows or a lower min_count"
            )


def _mean(modules: dict[str, Alignment]) -> Alignment:
    rows = [asdict(one) for one in modules.values()]
    return Alignment(**{name: float(np.mean([row[name] for row in rows])) for name in MEASURES})


def _reading(before: Alignment, after: Alignment, *, same_run: bool) -> str:
    change = {
        name: (getattr(after, name) - value) / value if value else float("nan")
        for name, value in asdict(before).items()
        if name != "mmd"  # which may be below 0
    }
    told = (
        f"KL {_changed(change['kl'])} ({before.kl:.3g} to {after.kl:.3g}) and MMD² went from "
        f"{before.mmd:.2g} to {after.mmd:.2g}, while the mean norm {_changed(change['norm'])} and "
        f"the effective rank {_changed(change['effective_rank'])} "
        f"({before.effective_rank:.2f} to {after.effective_rank:.2f})"
    )
    shrunk = min(change["norm"], change["effective_rank"]) < -_FALL
    if any(missing(value) for value in change.values()):
        return f"{told}: not to be judged, something is zero"
    if change["kl"] > -_FALL:
        return f"{told}: the tasks did not come together"
    if shrunk:
        hint = "" if same_run else "; see it against its own start"
        return f"{told}: what is compared shrank as well, so this may be collapse{hint}"
    return f"{told}: the tasks came together and the representations kept their size"


def _changed(share: float) -> str:
    if missing(share):
        return "has no change to tell"
    if abs(share) < _STAYED:
        return "stayed"
    return f"{'rose' if share > 0 else 'fell'} by {100 * abs(share):.0f} %"


def _plain(one: Alignment) -> dict[str, float | None]:
    return {name: None if missing(value) else value for name, value in asdict(one).items()}


def alignment_sheet(found: AlignmentReport) -> Sheet:
    """Return the four numbers by module, before and after, their means first."""
    before, after = found.mean
    lines = [("mean", before, after)]
    short = _short_names(list(found.before))
    lines += [(short[name], found.before[name], found.after[name]) for name in found.before]
    rows = ", ".join(f"{task} {num}" for task, num in found.num_rows.items())
    return Sheet(
        title=f"{found.runs[0]} -> {found.runs[1]}: distances between tasks by module, 1 run each",
        columns=("module", *MEASURES.values()),
        rows=tuple(
            (name, *(_pair(getattr(a, key), getattr(b, key), key) for key in MEASURES))
            for name, a, b in lines
        ),
        notes=(found.reading, f"{found.split} rows: {rows}"),
    )


def _pair(before: float, after: float, name: str) -> str:
    digits = {"norm": ".3g", "effective_rank": ".2f"}.get(name, ".2g")
    told = ["-" if missing(value) else format(value, digits) for value in (before, after)]
    return " -> ".join(told)


def _short_names(modules: Sequence[str]) -> dict[str, str]:
    """Return modules' names without the parts that all have in common at a place."""
    parts = [module.split(".") for module in modules]
    if len(modules) < 2 or len({len(one) for one in parts}) > 1:
        return {module: module for module in modules}
    told = [place for place, found in enumerate(zip(*parts, strict=True)) if len(set(found)) > 1]
    return {
        module: ".".join(one[place] for place in told)
        for module, one in zip(modules, parts, strict=True)
    }
