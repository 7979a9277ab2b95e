"""What the alignments share: which modules, what a sample is, and which pairs of tasks count."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from coadapt._errors import InputError
from coadapt.regularizers.base import AbstractRegularizer, Captured, LayerFactors, Need, Tokens

Pool = Literal["token", "sequence", "last", "position"]
Reduction = Literal["mean", "sum_pairs"]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The tasks' samples, of all modules at once.

    Attributes:
        values: (G, N, R) at least float32, the modules' representations side by side, R the sum of
            their ranks. G is the number of positions that are compared, 1 where that is no matter.
        member: (G, T, N) 1 where a sample is of a task, 0 elsewhere, and for tasks with too few
            samples in the group.
        ranks: of the modules, R in all.
    """

    values: Tensor
    member: Tensor
    ranks: tuple[int, ...]

    @property
    def counts(self) -> Tensor:
        """How many samples a task has, (G, T)."""
        return self.member.sum(dim=-1)

    def pair_weights(self, reduction: Reduction) -> Tensor:
        """Return (G, T, T) what a pair of tasks counts, each pair once: at i < j.

        A pair's groups are averaged, over those in which both tasks are.
        """
        present = self.counts > 0
        pairs = (present[:, :, None] & present[:, None, :]).triu(diagonal=1).to(self.values.dtype)
        groups = pairs.sum(dim=0)
        total = (groups > 0).sum() if reduction == "mean" else 1
        return pairs / (groups * total).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class AbstractAlignment(AbstractRegularizer):
    """A distance between tasks' representations: a mean over modules, over pairs a mean or a sum.

    What a sample is depends on ``pool``: ``token``, each token; ``sequence``, the mean over a row's
    tokens; ``last``, a row's last token; ``position``, a row's token at a position, where tasks are
    compared position by position. Only of the first does a packed batch have samples.

    Args:
        pool: what a sample is.
        tokens: which tokens are looked at; ``prompt`` and ``answer`` need labels that are tokens.
        reduction: over pairs of tasks; the mean does not grow with their number.
        max_modules: of the adapted modules, evenly spread over them; None for all.
        max_tokens: of a task, at least 2, evenly spread over its tokens; None for all. The pools
            that have a sample a row take every row.
        min_count: the samples that a task must have (at a position) to be compared, at least 1.
    """

    needs: ClassVar[Need] = Need.REPRESENTATION
    several_tasks: ClassVar[bool] = True

    pool: Pool = "token"
    tokens: Tokens = "all"
    reduction: Reduction = "mean"
    max_modules: int | None = None
    max_tokens: int | None = None
    min_count: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name, least in (("max_modules", 1), ("max_tokens", 2), ("min_count", 1)):
            found = getattr(self, name)
            if found is not None and found < least:
                raise InputError(f"{name} must be at least {least}, not {found}")

    def check(self, num_tasks: int, layers: Mapping[str, LayerFactors]) -> None:
        if num_tasks < 2:
            warnings.warn(
                "an alignment compares tasks, and there is one: it has no effect", stacklevel=2
            )

    def select(self, modules: Sequence[str]) -> tuple[str, ...]:
        return spread(modules, self.max_modules)

    def loss(self, captured: Captured) -> Tensor:
        # The statistics are matrix products, which autocast would round to half precision.
        with torch.autocast(captured.valid.device.type, enabled=False):
            samples = pool_samples(
                captured,
                pool=self.pool,
                tokens=self.tokens,
                max_tokens=self.max_tokens,
                min_count=self.min_count,
            )
            weights = samples.pair_weights(self.reduction)
            if not weights.any():
                return captured.zero()
            return (weights * self.distances(samples)).sum() / len(samples.ranks)

    @abstractmethod
    def distances(self, samples: Samples) -> Tensor:
        """Return (G, T, T), the distance of each pair of tasks, summed over modules.

        Entries of tasks without samples may be anything finite.
        """


def spread(modules: Sequence[str], limit: int | None) -> tuple[str, ...]:
    """Return at most ``limit`` of ``modules``, evenly spread: first and last, or the middle one.

    >>> spread("abcdefg", 3)
    ('a', 'd', 'g')
    """
    last = len(modules) - 1
    if limit is None or limit > last:
        return tuple(modules)
    if limit == 1:
        return (modules[last // 2],)
    return tuple(modules[index * last // (limit - 1)] for index in range(limit))


def pool_samples(
    captured: Captured,
    *,
    pool: Pool,
    tokens: Tokens,
    max_tokens: int | None,
    min_count: int,
) -> Samples:
    """Return the samples of a batch; what stands in padding has no influence.

    Args:
        captured: of a forward, with one representation at least.
        pool: see `AbstractAlignment`, as for the others.
        tokens: which are looked at.
        max_tokens: of a task, where ``pool`` is ``token``.
        min_count: a task with fewer samples (at a position) is left out (there).

    Raises:
        InputError: if the batch is packed and samples are rows, or if prompts and answers are to
            be told apart where they cannot be.
    """
    if captured.packed and pool != "token":
        raise InputError(
            f"pool: '{pool}' looks at rows, which stand in one another's sequence in a packed "
            "batch; take packing: false, or pool: token"
        )
    chosen = captured.chosen(tokens)
    parts = list(captured.representations.values())
    z_BSR = torch.cat(parts, dim=-1)
    if pool == "position":
        values, member = _by_position(z_BSR, chosen, captured.task_ids)
    else:
        if pool == "sequence":
            values, tasks = _row_means(z_BSR, chosen), captured.task_ids[chosen.any(dim=1)]
        else:
            tasks = captured.position_tasks.flatten()
            index = _last(chosen) if pool == "last" else chosen.flatten().nonzero()[:, 0]
            if pool == "token" and max_tokens is not None:
                index = index[_thinned(tasks[index], max_tokens)]
            values, tasks = _precise(z_BSR.flatten(0, 1).index_select(0, index)), tasks[index]
        values, member = values[None], _one_hot(tasks)[None]
    member = member * (member.sum(dim=-1, keepdim=True) >= min_count)
    compared = member.any(dim=-1).sum(dim=-1) >= 2
    if pool == "position":  # most are padding's, and of no pair
        values, member = values[compared], member[compared]
    member = member[:, member.any(dim=-1).any(dim=0)]
    ranks = tuple(part.shape[-1] for part in parts)
    return Samples(values=values, member=member.to(values.dtype), ranks=ranks)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _one_hot(tasks: Tensor) -> Tensor:
    """Return (T, N), a row for each task that occurs."""
    known, ids = tasks.unique(return_inverse=True)
    return ids == torch.arange(len(known), device=tasks.device)[:, None]


def _by_position(z_BSR: Tensor, chosen: Tensor, task_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return (S, B, R) samples and (S, T, B) whose they are."""
    values = _precise(z_BSR).masked_fill(~chosen[..., None], 0.0)
    member = _one_hot(task_ids) & chosen.t()[:, None, :]
    return values.transpose(0, 1), member


def _row_means(z_BSR: Tensor, chosen: Tensor) -> Tensor:
    """Return (N, R) of the rows with a chosen token."""
    rows = chosen.any(dim=1)
    total = _precise(z_BSR).masked_fill(~chosen[..., None], 0.0).sum(dim=1)
    return total[rows] / chosen.sum(dim=1)[rows, None]


def _last(chosen: Tensor) -> Tensor:
    """Return (N,) where, in the flattened batch, the last chosen token of each row is."""
    places = torch.arange(chosen.numel(), device=chosen.device).view(chosen.shape)
    last = F.pad(places.masked_fill(~chosen, -1), (1, 0), value=-1).amax(dim=1)
    return last[last >= 0]


def _thinned(tasks: Tensor, limit: int) -> Tensor:
    """Return which samples to keep: of each task at most ``limit``, first and last included."""
    _, ids, counts = tasks.unique(return_inverse=True, return_counts=True)
    order, starts = ids.argsort(stable=True), counts.cumsum(dim=0) - counts
    n_T1, step_L = counts[:, None], torch.arange(limit, device=tasks.device)
    offset_TL = torch.where(n_T1 > limit, step_L * (n_T1 - 1) // (limit - 1), step_L)
    return order[(starts[:, None] + offset_TL)[step_L < n_T1]]
