"""Who shares an adapter, and at what rank: data, not code.

A plan is a set of named blocks of the rank axis, each with its rank and the tasks that use it.
Shared, private, clustered and shared + private are four shapes of the same object, and a user may
write a fifth by hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from coadapt._errors import InputError, nearest
from coadapt.config import LATER
from coadapt.planning.ranks import allocate_ranks, refuse_infeasible

SHARED_BLOCK = "shared"
COOPERATIVE = "cooperative"
_RESERVED = ("heads", "backbone")  # what lies beside blocks in a saved adapter

Sharing = Literal["shared", "private", "clustered", "shared_private", "cooperative"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of the rank axis: its rank and the tasks whose rows use it."""

    rank: int
    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.rank < 1:
            raise InputError(f"a block's rank must be at least 1, not {self.rank}")
        if len(set(self.tasks)) != len(self.tasks):
            raise InputError(f"a block lists a task twice: {', '.join(self.tasks)}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Named blocks in the order in which they lie on the rank axis.

    Example:
        >>> plan = Plan.clustered({"questions": ["trec6", "trec50"], "spam": ["spam"]}, budget=6)
        >>> {name: block.rank for name, block in plan.blocks.items()}
        {'questions': 4, 'spam': 2}

    Attributes:
        blocks: by name.
        ranks: where ranks differ from layer to layer: by module's full name every block's rank
            there, in place of its own.
    """

    blocks: dict[str, Block]
    ranks: dict[str, dict[str, int]] = field(default_factory=dict, metadata=LATER)

    def __post_init__(self) -> None:
        """Check the names, which become parts of tensor names."""
        for module, ranks in self.ranks.items():
            if ranks.keys() != self.blocks.keys() or min(ranks.values()) < 1:
                raise InputError(
                    f"ranks of module '{module}' must give each of the blocks "
                    f"{', '.join(self.blocks)} a rank of at least 1, not {ranks}"
                )
        for name in self.blocks:
            if not name or len(name) > 100 or "/" in name or name in _RESERVED:
                raise InputError(
                    f"a block cannot be named '{name}'; take 1 to 100 characters without '/', "
                    f"and not {' or '.join(_RESERVED)}"
                )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks named, in order of first mention."""
        return tuple(dict.fromkeys(t for block in self.blocks.values() for t in block.tasks))

    @property
    def budget(self) -> int:
        """The summed rank R = r_1 + ... + r_K."""
        return sum(block.rank for block in self.blocks.values())

    def ranks_in(self, module: str) -> tuple[int, ...]:
        """Return the blocks' ranks in a module."""
        found = self.ranks.get(module)
        return tuple(b.rank if found is None else found[n] for n, b in self.blocks.items())

    def blocks_of(self, task: str) -> tuple[str, ...]:
        """Return the names of the blocks that ``task`` uses."""
        return tuple(name for name, block in self.blocks.items() if task in block.tasks)

    def check(self, tasks: Sequence[str]) -> None:
        """Raise InputError unless the plan names exactly the suite's tasks.

        Args:
            tasks: the names of the suite's tasks.
        """
        for task in self.tasks:
            if task not in tasks:
                hint = nearest(task, tasks)
                raise InputError(f"the plan names task '{task}', which the suite lacks{hint}")
        for task in tasks:
            if task not in self.tasks:
                raise InputError(f"the plan leaves out task '{task}'; add it to a block")

    def with_task(self, task: str, *, rank: int) -> "Plan":
        """Return the plan with ``task`` in a block of its own, and in the common block if any.

        A block that serves every task of the plan is common, and where all blocks are, nothing
        but the list of its tasks changes.
        """
        if task in self.tasks:
            raise InputError(f"the plan has task '{task}' already")
        blocks = {
            name: Block(rank=b.rank, tasks=(*b.tasks, task))
            if set(b.tasks) == set(self.tasks)
            else b
            for name, b in self.blocks.items()
        }
        if any(set(b.tasks) != set(self.tasks) for b in self.blocks.values()) or not blocks:
            if task in blocks:
                raise InputError(f"the plan has a block named '{task}' already")
            return replace(self, blocks=blocks).with_block(task, Block(rank=rank, tasks=(task,)))
        return replace(self, blocks=blocks)

    def with_block(self, name: str, block: Block) -> "Plan":
        """Return the plan with one block more, of the same rank in every module."""
        assert name not in self.blocks
        ranks = {module: {**found, name: block.rank} for module, found in self.ranks.items()}
        return Plan(blocks={**self.blocks, name: block}, ranks=ranks)

    def without_task(self, task: str) -> "Plan":
        """Return the plan without ``task`` and without the blocks that only it used."""
        if task not in self.tasks:
            raise InputError(f"the plan has no task '{task}'{nearest(task, self.tasks)}")
        kept = {
            name: Block(rank=b.rank, tasks=tuple(t for t in b.tasks if t != task))
            for name, b in self.blocks.items()
        }
        kept = {name: block for name, block in kept.items() if block.tasks}
        ranks = {
            module: {name: rank for name, rank in found.items() if name in kept}
            for module, found in self.ranks.items()
        }
        return Plan(blocks=kept, ranks=ranks)

    @classmethod
    def shared(cls, tasks: Sequence[str], budget: int) -> "Plan":
        """One block of rank ``budget`` for all tasks."""
        refuse_infeasible(budget, 1)
        return cls(blocks={SHARED_BLOCK: Block(rank=budget, tasks=tuple(tasks))})

    @classmethod
    def private(cls, tasks: Sequence[str], budget: int) -> "Plan":
        """A block a task, the budget split evenly."""
        return cls.clustered({task: [task] for task in tasks}, budget)

    @classmethod
    def clustered(
        cls,
        clusters: Mapping[str, Sequence[str]],
        budget: int,
        *,
        rule: Literal["by_tasks", "uniform"] = "by_tasks",
    ) -> "Plan":
        """A block a cluster, its rank by default proportional to the number of its tasks."""
        ranks = allocate_ranks(budget, [len(tasks) for tasks in clusters.values()], rule)
        return cls(
            blocks={
                name: Block(rank=rank, tasks=tuple(tasks))
                for (name, tasks), rank in zip(clusters.items(), ranks, strict=True)
            }
        )

    @classmethod
    def shared_private(cls, tasks: Sequence[str], budget: int) -> "Plan":
        """A common block of half the budget, rounded up while room is left, and a block a task."""
        refuse_infeasible(budget, len(tasks) + 1)
        common = min((budget + 1) // 2, budget - len(tasks))
        private = cls.private(tasks, budget - common)
        if SHARED_BLOCK in private.blocks:
            raise InputError(f"with shared + private blocks no task may be named '{SHARED_BLOCK}'")
        return cls(blocks={SHARED_BLOCK: Block(rank=common, tasks=tuple(tasks)), **private.blocks})

    @classmethod
    def cooperative(cls, tasks: Sequence[str], budget: int) -> "Plan":
        """A block named after each task and a cooperative one, all of them used by every task.

        ThanoRA (arXiv 2505.18640, equations 7 and 8): the cooperative block has rank
        floor(R / (T + 1)), the tasks' share the rest, here evenly.
        """
        refuse_infeasible(budget, len(tasks) + 1)
        if COOPERATIVE in tasks:
            raise InputError(f"with task blocks no task may be named '{COOPERATIVE}'")
        common = budget // (len(tasks) + 1)
        ranks = allocate_ranks(budget - common, [1] * len(tasks), "uniform")
        blocks = dict(zip([*tasks, COOPERATIVE], [*ranks, common], strict=True))
        return cls(blocks={n: Block(rank=rank, tasks=tuple(tasks)) for n, rank in blocks.items()})
