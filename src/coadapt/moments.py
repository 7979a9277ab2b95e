"""First and second moments of what linear maps read, summed while a backbone runs."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from coadapt._errors import InputError

_BLOCK = 192  # columns that are multiplied at once; a third of the work is saved at 1536 in all

Watch = Callable[[str, Tensor, Tensor], None]  # module, input (B, S, in), output (B, S, out)


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """First and second moments of a linear map's input over the valid tokens.

    Attributes:
        sum: (d,) float64 sum of x.
        products: (d, d) float64 sum of x x'.
        num_tokens: how many were summed.
    """

    sum: NDArray[np.float64]
    products: NDArray[np.float64]
    num_tokens: int

    @property
    def second(self) -> NDArray[np.float64]:
        """The uncentred second moment, E x x'."""
        return self.products / self.num_tokens

    @property
    def covariance(self) -> NDArray[np.float64]:
        """The covariance, E x x' - E x E x'."""
        mean = self.sum / self.num_tokens
        return self.second - np.outer(mean, mean)

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments over the tokens of both."""
        return Moments(
            sum=self.sum + other.sum,
            products=self.products + other.products,
            num_tokens=self.num_tokens + other.num_tokens,
        )


class InputMoments:
    """Sums the moments of the inputs of the maps that :func:`watching` shows it.

    Maps that read one tensor, such as query, key and value, are summed once, under the name of the
    first of them.

    Args:
        only: the first maps whose inputs are summed; None for all.

    Attributes:
        sums: by the first map that reads an input.
        source: for each map that was seen the key of its input in ``sums``.
        width: of each input.
    """

    def __init__(self, only: Collection[str] | None = None) -> None:
        self._only = only
        self._seen: dict[int, tuple[str, Tensor]] = {}  # holding the tensor keeps its id its own
        self._mask: Tensor | None = None
        self.sums: dict[str, Moments] = {}
        self.source: dict[str, str] = {}
        self.width: dict[str, int] = {}

    def begin(self, mask: Tensor | None) -> None:
        """Prepare for a forward of which (B, S) ``mask`` says what is no padding; None: all."""
        self._seen.clear()
        self._mask = mask

    def __call__(self, name: str, x: Tensor, _: Tensor) -> None:
        """Add a map's input."""
        first, _ = self._seen.setdefault(id(x), (name, x))
        self.source[name] = first
        if first != name:
            return
        self.width[name] = x.shape[-1]
        if self._only is None or name in self._only:
            self._add(name, *_sums_of(x, self._mask, name))

    def _add(self, name: str, total: Tensor, products: Tensor, num_tokens: int) -> None:
        if name not in self.sums:
            self.sums[name] = _moments(total, products, num_tokens)
            return
        kept = self.sums[name]
        # In place: of a batch of few rows the sums are larger than all that was read.
        np.add(kept.products, products.cpu().numpy(), out=kept.products)
        self.sums[name] = Moments(
            sum=kept.sum + total.cpu().numpy(),
            products=kept.products,
            num_tokens=kept.num_tokens + num_tokens,
        )


def moments_of(x: Tensor, mask: Tensor | None, name: str = "") -> Moments:
    """Return the moments of x (B, S, d) over the positions where ``mask`` (B, S) is true.

    Products are of float32, sums of float64.

    Raises:
        InputError: naming the module, if its input is not one vector a position.
    """
    return _moments(*_sums_of(x, mask, name))


def _moments(total: Tensor, products: Tensor, num_tokens: int) -> Moments:
    return Moments(
        sum=total.cpu().numpy(), products=products.double().cpu().numpy(), num_tokens=num_tokens
    )


def _sums_of(x: Tensor, mask: Tensor | None, name: str) -> tuple[Tensor, Tensor, int]:
    """Return the sum of x in float64, that of x x' in float32, and of how many."""
    valid = x.detach()
    if mask is not None:
        if x.shape[:-1] != mask.shape:
            raise InputError(
                f"module '{name}' reads a tensor of shape {tuple(x.shape)} where the rows' "
                f"positions are {tuple(mask.shape)}, so its padding is not known; leave the module "
                "out of target_modules"
            )
        valid = valid[mask.bool()]
    valid = valid.reshape(-1, x.shape[-1]).float()  # (tokens, d)
    return valid.sum(dim=0, dtype=torch.float64), _products(valid), len(valid)


def _products(x: Tensor) -> Tensor:
    """Return x' x, (d, d), for x (n, d): the blocks below the diagonal are those above it."""
    width = x.shape[1]
    found = x.new_empty(width, width)
    for start in range(0, width, _BLOCK):
        rows = slice(start, start + _BLOCK)
        product = x[:, rows].T @ x[:, start:]
        found[rows, start:], found[start:, rows] = product, product.T
    return found


@contextmanager
def watching(backbone: nn.Module, modules: Sequence[str], watch: Watch | None) -> Iterator[None]:
    """Show ``watch`` what each module reads and returns while the backbone runs."""
    handles: list[RemovableHandle] = []
    for name in modules if watch is not None else ():

        def hook(_: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
            assert watch is not None
            watch(name, args[0], output)

        handles.append(backbone.get_submodule(name).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
