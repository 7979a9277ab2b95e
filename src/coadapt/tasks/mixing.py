"""How tasks are mixed over an epoch, and which rows make up each optimizer step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from coadapt._errors import InputError
from coadapt.tasks.split import generator


@dataclass(frozen=True, kw_only=True)
class Proportional:
    """Each row once an epoch."""

    kind: Literal["proportional"] = "proportional"

    def quotas(self, sizes: Sequence[int]) -> list[int]:
        """Return how many rows of each task an epoch draws: all of them."""
        return list(sizes)


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Each task equally often; an epoch has as many draws as there are rows."""

    kind: Literal["uniform"] = "uniform"

    def quotas(self, sizes: Sequence[int]) -> list[int]:
        """Return how many rows of each task an epoch draws: as equal as whole numbers allow."""
        return _apportion([1.0] * len(sizes), sum(sizes))


@dataclass(frozen=True, kw_only=True)
class Temperature:
    r"""Task t with probability :math:`p_t \propto n_t^{1/T}`, n_t being its number of rows.

    Between proportional (T = 1) and uniform (T -> infinity).

    Args:
        temperature: T, above 0.
    """

    kind: Literal["temperature"] = "temperature"
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}; give a number above 0")

    def quotas(self, sizes: Sequence[int]) -> list[int]:
        """Return how many rows of each task an epoch draws."""
        # Relative to the largest task, in logarithms: n^(1/T) overflows for a small T.
        largest = math.log(max(sizes))
        weights = [math.exp((math.log(n) - largest) / self.temperature) for n in sizes]
        return _apportion(weights, sum(sizes))


Mixing = Proportional | Uniform | Temperature

Composition = Literal["mixed", "balanced", "single_task"]


def _apportion(weights: Sequence[float], total: int) -> list[int]:
    """Divide a whole number by weights; what rounding leaves goes to the largest remainders."""
    shares = np.asarray(weights) / np.sum(weights) * total
    quotas = np.floor(shares).astype(np.int64)
    order = np.argsort(quotas - shares, kind="stable")
    quotas[order[: total - quotas.sum()]] += 1
    return quotas.tolist()


class StepBatchSampler(Sampler[list[int]]):
    """Micro-batches for one rank, cut out of *step batches*: the rows of an optimizer step.

    A step batch has S = per_device_batch_size x gradient_accumulation_steps x world_size rows, and
    depends on (seed, epoch, S) alone: 8 rows at once, one row eight times accumulated, or four rows
    on each of two ranks are the same step. An epoch draws each task's quota from its endless
    stream of permutations, seeded by the task's *name*: under proportional mixing each row comes
    once, and a task's order does not depend on which other tasks there are. The draws are shuffled,
    cut into windows of ``bucket`` step batches, sorted by length within a window, cut into
    step batches, and these are shuffled.

    Each step batch yields exactly ``gradient_accumulation_steps`` micro-batches, of which some are
    smaller or empty if it is short (the last one of an epoch, or of a task): the Trainer counts
    micro-batches, so fewer would shift every later step.

    Args:
        lengths: tokens of each row, shape (N,).
        task_ids: position of each row's task in ``task_names``, shape (N,).
        task_names: the tasks, each with at least one row.
        mixing: the quotas of an epoch.
        per_device_batch_size: rows a micro-batch and rank.
        gradient_accumulation_steps: micro-batches a step.
        world_size: number of ranks.
        rank: which of them this is.
        composition: ``mixed`` step batches hold rows as they come; ``balanced`` ones, and each of
            their micro-batches, as many of every task as whole numbers allow, whatever the mixing;
            ``single_task`` ones rows of one task only, a task's being those it has when it is
            alone.
        packed: whether a micro-batch's rows stand in one sequence, so that none is padded.
        bucket: step batches a window, at most a quarter of the epoch's; 1 leaves the order random
            and pads most.
        seed: decides, with the epoch, everything that is random.

    Raises:
        InputError: for a size below 1 or a task without rows.
    """

    def __init__(
        self,
        *,
        lengths: np.ndarray,
        task_ids: np.ndarray,
        task_names: Sequence[str],
        mixing: Mixing,
        per_device_batch_size: int,
        gradient_accumulation_steps: int = 1,
        world_size: int = 1,
        rank: int = 0,
        composition: Composition = "mixed",
        bucket: int = 16,
        packed: bool = False,
        seed: int,
    ) -> None:
        for name, value in (
            ("per_device_batch_size", per_device_batch_size),
            ("gradient_accumulation_steps", gradient_accumulation_steps),
            ("bucket", bucket),
        ):
            if value < 1:
                raise InputError(f"{name} is {value}; give 1 or more")
        assert 0 <= rank < world_size
        self._lengths = np.asarray(lengths)
        self._names = tuple(task_names)
        self._task_ids = np.asarray(task_ids)
        self._rows = [np.flatnonzero(self._task_ids == task) for task in range(len(self._names))]
        for name, rows in zip(self._names, self._rows, strict=True):
            if not len(rows):
                raise InputError(f"task '{name}' has no training rows; add some or remove it")
        mixing = Uniform() if composition == "balanced" else mixing
        self._quotas = mixing.quotas([len(rows) for rows in self._rows])
        self._accumulation = gradient_accumulation_steps
        self._world_size = world_size
        self._rank = rank
        self._step = per_device_batch_size * gradient_accumulation_steps * world_size
        self._composition: Composition = composition
        self._bucket, self._packed = bucket, packed
        self._seed = seed
        self._epoch = 0
        self._cut: tuple[int, list[np.ndarray]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self._epoch = epoch

    def __len__(self) -> int:
        sizes = self._quotas if self._composition == "single_task" else [sum(self._quotas)]
        return self._accumulation * sum(math.ceil(size / self._step) for size in sizes)

    def __iter__(self) -> Iterator[list[int]]:
        for ranks in self._micro_batches():
            yield ranks[self._rank].tolist()

    def counts(self) -> dict[str, int]:
        """Return how many rows of each task the current epoch draws."""
        drawn = np.concatenate(self._step_batches())
        counts = np.bincount(self._task_ids[drawn], minlength=len(self._names))
        return dict(zip(self._names, counts.tolist(), strict=True))

    def padding_share(self) -> float:
        """Return the share of padding among the tokens of the current epoch, over all ranks."""
        if self._packed:
            return 0.0
        padded = real = 0
        for ranks in self._micro_batches():
            for rows in ranks:
                if len(rows):
                    padded += int(self._lengths[rows].max()) * len(rows)
                    real += int(self._lengths[rows].sum())
        return 1 - real / padded

    def _micro_batches(self) -> Iterator[list[np.ndarray]]:
        """Yield each micro-batch of the epoch, dealt to the ranks."""
        for step in self._step_batches():
            for micro_batch in np.array_split(step, self._accumulation):
                yield np.array_split(micro_batch, self._world_size)

    def _step_batches(self) -> list[np.ndarray]:
        if self._cut is None or self._cut[0] != self._epoch:  # asked for by every line of a log
            self._cut = self._epoch, self._cut_epoch()
        return self._cut[1]

    def _cut_epoch(self) -> list[np.ndarray]:
        draws = [self._draws(task) for task in range(len(self._names))]
        if self._composition == "balanced":
            return self._shuffled(self._balanced(draws), "steps", self._seed, self._epoch)
        if self._composition == "mixed":
            shuffle = generator("draws", self._seed, self._epoch)
            batches = self._bucketed(shuffle.permutation(np.concatenate(draws)))
            return self._shuffled(batches, "steps", self._seed, self._epoch)
        queues = [
            iter(self._shuffled(self._bucketed(rows), "steps", self._seed, name, self._epoch))
            for name, rows in zip(self._names, draws, strict=True)
        ]
        lots = [math.ceil(len(rows) / self._step) for rows in draws]
        turns = np.repeat(np.arange(len(lots)), lots)
        order = generator("turns", self._seed, self._epoch).permutation(turns)
        return [next(queues[task]) for task in order]

    def _draws(self, task: int) -> np.ndarray:
        """Take the epoch's quota from the task's endless stream of permutations."""
        rows, quota = self._rows[task], self._quotas[task]
        first = self._epoch * quota
        passes = range(first // len(rows), -(-(first + quota) // len(rows)))
        stream = [
            generator("pass", self._seed, self._names[task], number).permutation(rows)
            for number in passes
        ]
        start = first - (passes.start * len(rows))
        return np.concatenate([rows[:0], *stream])[start : start + quota]

    def _bucketed(self, draws: np.ndarray) -> list[np.ndarray]:
        """Cut draws into step batches of similar lengths; only the last one may be short."""
        # At least four windows: sorting the whole of a small epoch would put the same rows, often
        # of the same task, together every time.
        window = self._step * max(1, min(self._bucket, len(draws) // self._step // 4))
        batches = []
        for start in range(0, len(draws), window):
            rows = draws[start : start + window]
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            batches += [rows[i : i + self._step] for i in range(0, len(rows), self._step)]
        return batches

    def _balanced(self, draws: list[np.ndarray]) -> list[np.ndarray]:
        """Cut draws into step batches with equal shares of every task, in turn within each."""
        steps = math.ceil(sum(map(len, draws)) / self._step)
        window = math.ceil(self._step / len(draws)) * max(1, min(self._bucket, steps // 4))
        queues = []
        for rows in draws:
            parts = [rows[i : i + window] for i in range(0, len(rows), window)]
            ordered = [p[np.argsort(self._lengths[p], kind="stable")] for p in parts]
            queues.append(np.concatenate([rows[:0], *ordered]))
        longest = max(map(len, queues))
        # Row by row through the tasks, so that any cut of the line has nearly equal shares.
        line = [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
        return [np.array(line[i : i + self._step]) for i in range(0, len(line), self._step)]

    def _shuffled(self, batches: list[np.ndarray], *key: str | int) -> list[np.ndarray]:
        """Shuffle step batches; a short one stays last."""
        full = [batch for batch in batches if len(batch) == self._step]
        order = generator(*key).permutation(len(full))
        return [full[i] for i in order] + batches[len(full) :]
