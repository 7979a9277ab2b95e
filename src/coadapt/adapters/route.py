"""The tasks of the rows of the forward that is running, which every layer can look at."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from coadapt._errors import InputError

Watched = Mapping[str, Collection[str]]
MadeT = TypeVar("MadeT")


def join(parts: Sequence[Tensor]) -> Tensor:
    """Return tensors one above the other; a single one as it is."""
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


class Route:
    """The tasks of the rows of the forward that is running; one object, held by every layer.

    It is set once a forward and stays valid until the next one, so a layer that is run again by
    gradient checkpointing during the backward pass sees the same rows.
    """

    def __init__(self) -> None:
        self.task_ids: Tensor | None = None
        self.present: tuple[int, ...] = ()
        self.every_block = True
        self.fixed: tuple[float, ...] | None = None
        self.bare = False
        self._memo: dict[object, Tensor] = {}
        self._lasting: dict[object, Any] | None = None
        self._watched: Watched = {}
        self._noted: dict[str, dict[str, Tensor]] = {}

    def set(self, task_ids: Tensor) -> None:
        """Declare the rows of the coming forward.

        With gradients enabled every block takes part, so that each parameter is in the graph on
        every rank of a distributed run. Without, only the blocks of the tasks at hand do: it is
        cheaper, and a task's output does not depend, even in the last bit, on which others exist.

        Args:
            task_ids: (B,) indices of the rows' tasks; (1, S) those of a packed row's positions.
        """
        self.task_ids = task_ids
        before, self.present = self.present, tuple(torch.unique(task_ids).tolist())
        if self._lasting and self.present != before:  # or every set of tasks would leave a copy
            self._lasting.clear()
        # Decided here and not in the layer: re-entrant checkpointing runs a layer's first pass
        # without gradients, and both passes must take the same path.
        self.every_block = torch.is_grad_enabled()
        self._memo = {}

    @contextmanager
    def fixing(self, values: Sequence[float] | None) -> Iterator[None]:
        """Give every row these values of the blocks' gates, (K,), whatever its task; None: do not.

        For rows of a task that no block was trained for.
        """
        before, self.fixed = self.fixed, None if values is None else tuple(values)
        try:
            yield
        finally:
            self.fixed = before

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Let the rows go through the base model alone, with task-gated blocks and prompts off."""
        before, self.bare = self.bare, True
        try:
            yield
        finally:
            self.bare = before

    @contextmanager
    def noting(self, watched: Watched) -> Iterator[dict[str, dict[str, Tensor]]]:
        """Keep what layers note of themselves while the forward runs, by kind and module.

        A layer that activation checkpointing runs again in the backward pass notes nothing: the
        first pass's tensors are in the graph already.

        Args:
            watched: the modules to listen to, by kind of note.
        """
        self._watched, self._noted = watched, {kind: {} for kind in watched}
        try:
            yield self._noted
        finally:
            self._watched, self._noted = {}, {}

    def note(self, kind: str, module: str, value: Tensor) -> None:
        """Keep ``value`` if :meth:`noting` listens to this module.

        Raises:
            InputError: if the value has no graph to send gradients through.
        """
        if not self.listens(kind, module):
            return
        if not torch.is_grad_enabled():
            raise InputError(
                "a regularizer's gradients cannot pass re-entrant activation checkpointing; set "
                "training.activation_checkpointing_kwargs to {use_reentrant: false}"
            )
        self._noted[kind][module] = value

    def listens(self, kind: str, module: str) -> bool:
        """Whether a note of this kind by this module would be kept."""
        watched = self._watched.get(
            kind
        )  # where nobody listens compiled code does not ask for names
        return bool(watched) and module in watched and self.every_block

    def rows(self, num_rows: int) -> Tensor:
        """Return the task ids, refusing a batch that is not the one they were set for."""
        if self.task_ids is None or len(self.task_ids) != num_rows:
            found = "none" if self.task_ids is None else str(len(self.task_ids))
            raise RuntimeError(
                f"a task-gated layer got {num_rows} rows but task ids for {found}; "
                "call the MultiTaskModel with task_ids rather than its backbone"
            )
        return self.task_ids

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Let layers keep what they make of their factors alone, while gradients are off.

        For forwards between which no factor changes. It costs the memory of a copy of the factors,
        until the end or until other tasks come.
        """
        before, self._lasting = self._lasting, {}
        try:
            yield
        finally:
            self._lasting = before

    @property
    def lasts(self) -> bool:
        """Whether factors are as they were in the last forward; see :meth:`lasting`."""
        if self._lasting is None or torch.is_grad_enabled():
            return False
        return not torch.compiler.is_compiling()

    def keep(self, key: object, make: Callable[[], MadeT]) -> MadeT:
        """Return what ``make`` returned for the key before, if it :attr:`lasts`.

        Args:
            key: of a layer and what is made of its factors.
            make: makes it of the factors alone.
        """
        if self._lasting is None or not self.lasts:
            return make()
        if key not in self._lasting:
            self._lasting[key] = make()
        return self._lasting[key]

    def joined(self, parameters: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
        """Return them one above the other, in ``dtype`` if they last, else in their own."""
        parameters = list(parameters)
        if not self.lasts:
            return join(parameters)
        key = ("joined", dtype, *map(id, parameters))
        return self.keep(key, lambda: join(parameters).to(dtype))

    def remember(self, key: object, value: Tensor) -> Tensor:
        """Keep a value that all layers share until the next forward."""
        self._memo[key] = value
        return value

    def recall(self, key: object) -> Tensor | None:
        """Return what :meth:`remember` kept under ``key`` in this forward, if anything."""
        return self._memo.get(key)
