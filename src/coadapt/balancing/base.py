"""What a balancing is.

Training without one minimizes the mean over the tasks of a step of their mean losses. So a task's
gradient is that of its own mean loss, and the mean of the rows of the Jacobian is the direction of
training without balancing. Every balancing here is scaled to be comparable to that mean.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Generator, Tensor

# What a balancing remembers from step to step: float64 on the CPU, saved in checkpoints.
State = dict[str, Tensor]


class AbstractBalancing(ABC):
    """How the tasks' losses become one step on the shared parameters.

    A task that is absent from a step contributes nothing, and what is remembered of it stays.

    Attributes:
        needs_jacobian: whether it is given the tasks' gradients (:meth:`combine`) or their losses
            alone (:meth:`weights`). The other of the two methods must not be called.
    """

    needs_jacobian: ClassVar[bool]

    @abstractmethod
    def start(self, num_tasks: int) -> State:
        """Return the state before the first step, empty where nothing is remembered.

        Raises:
            InputError: if a package it needs is missing.
        """

    @abstractmethod
    def weights(self, state: State, losses: Tensor, present: Tensor) -> Tensor:
        """Return the factors of this step's losses and move ``state``, in place, to the next step.

        The factors depend on the state as it was and on ``present``, not on these losses.

        Args:
            state: of :meth:`start`.
            losses: (T,) mean losses by task, detached; anything where a task is absent.
            present: (T,) bool, which tasks the step has, at least one.

        Returns:
            (T,) of the losses' type and device, 0 for absent tasks. The loss of the step is the
            mean over present tasks of factor times loss.
        """

    @abstractmethod
    def combine(
        self,
        state: State,
        jacobian: Tensor,
        losses: Tensor,
        present: Tensor,
        generator: Generator,
    ) -> Tensor:
        """Return the direction of this step and move ``state``, in place, to the next step.

        Args:
            state: of :meth:`start`.
            jacobian: (P, n) gradients of the mean losses of the P present tasks, in task order.
            losses: (T,) mean losses by task, detached; anything where a task is absent.
            present: (T,) bool, which tasks the step has, at least one.
            generator: of the CPU, for what is drawn.

        Returns:
            (n,) of the Jacobian's type and device, in the place of the gradient.
        """


class AbstractLossBalancing(AbstractBalancing):
    """A balancing that sees the losses: one backward pass for all tasks, as without."""

    needs_jacobian: ClassVar[bool] = False

    def combine(
        self,
        state: State,
        jacobian: Tensor,
        losses: Tensor,
        present: Tensor,
        generator: Generator,
    ) -> Tensor:
        """Fail: it asks for no gradients."""
        raise AssertionError(f"{type(self).__name__} weighs losses; call weights")


class AbstractGradientBalancing(AbstractBalancing):
    """A balancing that sees the gradients: a backward pass a task, and room for them all."""

    needs_jacobian: ClassVar[bool] = True

    def weights(self, state: State, losses: Tensor, present: Tensor) -> Tensor:
        """Fail: losses alone do not do."""
        raise AssertionError(f"{type(self).__name__} takes gradients; call combine")
