"""A model as it answers, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coadapt.model import MultiTaskModel


@contextmanager
def evaluating(model: "MultiTaskModel") -> Iterator[None]:
    """Put a model into evaluation mode, and back into the one it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def answering(model: "MultiTaskModel") -> Iterator[None]:
    """Put a model into evaluation mode while no factor of it changes, and back.

    What layers make of their factors alone, such as a copy in the dtype of the products, is made
    once: a step of writing token by token costs little more than reading the weights.
    """
    with evaluating(model), model.route.lasting():
        yield
