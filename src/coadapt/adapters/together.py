"""Layers that read one and the same tensor, as query, key and value do: one product with all A."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from coadapt.adapters.products import read
from coadapt.adapters.route import Route

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reader(Protocol):
    """A layer whose products can be made with those of others.

    Attributes:
        base: the frozen map.
        route: the one of all layers.
    """

    base: nn.Module
    route: Route

    def asks(self, x: Tensor) -> list[Tensor] | None:
        """Return what x is to be multiplied with beside ``base``; None if only the layer can."""


ReaderT = TypeVar("ReaderT", bound=Reader)
Made = tuple[Tensor, Tensor]


class Together(Generic[ReaderT]):
    """What several layers make of one tensor, computed when the first of them is run.

    That they read the same tensor is checked in every forward: one that gets another makes its own
    products. Nothing is kept once all have taken theirs.

    Args:
        layers: at least two.
    """

    def __init__(self, layers: Sequence[ReaderT]) -> None:
        self._layers = tuple(layers)
        self._made: dict[int, Made] = {}
        self._of: Callable[[], Tensor | None] = lambda: None
        self._state: object = None

    def take(self, layer: ReaderT, x: Tensor) -> Made | None:
        """Return W x + b and the products that ``layer`` asks for, or None: it makes its own."""
        # A tensor that was written to, or read with gradients before, is another one.
        state = (torch.is_grad_enabled(), None if x.is_inference() else x._version)
        if self._of() is x and self._state == state and id(layer) in self._made:
            return self._made.pop(id(layer))
        self._made.clear()
        asked = [other.asks(x) for other in self._layers]
        if any(parts is None for parts in asked):
            return None
        self._of, self._state = weakref.ref(x), state
        parts = [part for each in asked for part in each or ()]
        A = self._layers[0].route.joined(parts, x.dtype)
        ys, z = read(x, [other.base for other in self._layers], A)
        widths = [sum(map(len, each or ())) for each in asked]
        for other, *made in zip(self._layers, ys, z.split(widths, dim=-1), strict=True):
            self._made[id(other)] = made[0], made[1]
        return self._made.pop(id(layer))


@torch.no_grad()
def readers_of_one_input(backbone: nn.Module, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the modules that read one tensor one after the other, found by running two tokens.

    By running and not by their names, which differ from family to family.

    Args:
        backbone: a transformers model; of any other module nothing is known, so it has none.
        names: of linear maps in it.
    """
    from transformers import PreTrainedModel

    plain = [n for n in names if type(backbone.get_submodule(n)) is nn.Linear]
    if len(plain) < 2 or not isinstance(backbone, PreTrainedModel):
        return []
    if backbone.device.type == "meta":  # shapes alone: nothing can be run
        return []
    seen: list[tuple[str, int]] = []
    kept: list[Tensor] = []  # so that no two have one identity

    def watch(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            kept.append(inputs[0])
            seen.append((name, id(inputs[0])))

        return note

    handles = [backbone.get_submodule(n).register_forward_pre_hook(watch(n)) for n in plain]
    try:
        with _as_evaluated(backbone):
            backbone(**_two_tokens(backbone))
    finally:
        for handle in handles:
            handle.remove()
    runs = (tuple(name for name, _ in run) for _, run in groupby(seen, key=lambda pair: pair[1]))
    return [run for run in runs if len(run) > 1 and len(set(run)) == len(run)]


def _two_tokens(backbone: "PreTrainedModel") -> dict[str, Tensor]:
    ids = torch.zeros(1, 2, dtype=torch.long, device=backbone.device)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if backbone.config.is_encoder_decoder:
        found["decoder_input_ids"] = ids
    return found


@contextmanager
def _as_evaluated(backbone: nn.Module) -> Iterator[None]:
    """Run as when scoring, so that nothing is drawn."""
    training = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
