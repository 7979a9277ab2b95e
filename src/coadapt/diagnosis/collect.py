"""What passes through a frozen backbone: features, second moments of inputs, probe gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coadapt._errors import InputError
from coadapt._seeds import named_generator
from coadapt.adapters.linear import linear_shape
from coadapt.backbone import Pooling, pool
from coadapt.moments import InputMoments, Moments, watching
from coadapt.tasks.render import Collator

Encoded = Sequence[dict[str, list[int]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What a forward pass over the rows of a task gave.

    Attributes:
        pooled: (n, d) the rows' vectors that heads read.
        moments: of each distinct input of the adapted maps, by the first map that has it.
        source: for each adapted map the key of its input in ``moments``.
    """

    pooled: NDArray[np.float64]
    moments: dict[str, Moments]
    source: dict[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeGradients:
    """Gradients of one task's loss with respect to B of rank-1 probes at B = 0.

    Attributes:
        chunks: by module, (C, out, P) float32: means over the rows of each chunk.
        squares: by module, (out, P) float64: mean over the rows of the squared entries.
    """

    chunks: dict[str, NDArray[np.float32]]
    squares: dict[str, NDArray[np.float64]]

    @property
    def num_chunks(self) -> int:
        """C."""
        return len(next(iter(self.chunks.values())))


@dataclass(kw_only=True)
class Collector:
    """Runs rows through a backbone and watches the linear maps that would be adapted.

    Args:
        backbone: a transformers model without head, frozen; put into evaluation mode.
        pooling: how its output becomes a vector.
        collate: pads rows into a batch.
        modules: full names of the maps to watch.
        batch_size: rows a forward.
        tick: called with the number of rows done, for a progress bar.
        before: called with the number of rows before each forward, to say whose they are.
    """

    backbone: nn.Module
    pooling: Pooling
    collate: Collator
    modules: Sequence[str]
    batch_size: int = 32
    tick: Callable[[int], None] = field(default=lambda _: None)
    before: Callable[[int], None] = field(default=lambda _: None)

    def __post_init__(self) -> None:
        """Keep dropout off: a diagnosis is about the model that is there."""
        self.backbone.eval()

    @torch.no_grad()
    def features(self, encoded: Encoded, *, moments: bool = True) -> Features:
        """Run rows forward once.

        Args:
            encoded: tokenised rows.
            moments: whether to sum the moments of the maps' inputs over the valid tokens.

        Raises:
            InputError: if the backbone's output is not finite.
        """
        found = InputMoments()
        pooled = None
        with watching(self.backbone, self.modules, found if moments else None):
            for rows, batch in self._batches(encoded):
                found.begin(batch["attention_mask"])
                vectors = self._pooled(batch).double().cpu().numpy()
                if pooled is None:
                    pooled = np.zeros((len(encoded), vectors.shape[1]))
                pooled[rows] = vectors
                self.tick(len(rows))
        assert pooled is not None, "the caller has refused a task without rows"
        if not np.isfinite(pooled).all():
            raise InputError("the backbone's output is not finite; try model.dtype: float32")
        return Features(pooled=pooled, moments=found.sums, source=found.source)

    def gradients(
        self,
        encoded: Encoded,
        grad_pooled: NDArray[np.float64],  # (n, d)
        chunk_of: NDArray[np.int64],  # (n,)
        *,
        num_probes: int,
        seed: int,
    ) -> ProbeGradients:
        r"""Run rows forward and back, and return the gradients of rank-1 probes.

        With y = W x + B a'x and B = 0 the gradient with respect to the probe's a is exactly zero;
        what is left is

        .. math:: \partial \ell / \partial B = \sum_{tokens} (\partial \ell / \partial y)\, (a'x)

        Args:
            encoded: tokenised rows.
            grad_pooled: gradient of each row's loss with respect to its pooled vector.
            chunk_of: the chunk that each row's gradient is averaged in, 0 to C - 1.
            num_probes: P, how many directions a are drawn, each U(-1/sqrt(in), 1/sqrt(in)).
            seed: of the probes, together with the module's name.

        Raises:
            InputError: if a gradient is not finite.
        """
        num_chunks = int(chunk_of.max()) + 1
        device = next(self.backbone.parameters()).device
        totals: dict[str, Tensor] = {}
        squares: dict[str, Tensor] = {}
        probes = {name: self._probes(name, num_probes, seed).to(device) for name in self.modules}
        current = torch.zeros(0, dtype=torch.long)

        def watch(name: str, x: Tensor, y: Tensor) -> None:
            z = torch.nn.functional.linear(x.detach().float(), probes[name])  # (B, S, P)

            def collect(dy: Tensor) -> None:
                rows = torch.einsum("bso,bsp->bop", dy.float(), z)
                if name not in totals:
                    totals[name] = rows.new_zeros(num_chunks, *rows.shape[1:])
                    squares[name] = torch.zeros_like(rows[0], dtype=torch.float64)
                totals[name].index_add_(0, current.to(rows.device), rows)
                squares[name] += rows.double().square().sum(dim=0)

            y.register_hook(collect)

        with watching(self.backbone, self.modules, watch), self._differentiable():
            for rows, batch in self._batches(encoded):
                current = torch.from_numpy(chunk_of[rows])
                pooled = self._pooled(batch)
                pooled.backward(torch.from_numpy(grad_pooled[rows]).to(pooled))
                self.tick(len(rows))
        if not all(torch.isfinite(total).all() for total in totals.values()):
            raise InputError("the backbone's gradients are not finite; try model.dtype: float32")
        sizes = np.bincount(chunk_of, minlength=num_chunks).reshape(-1, 1, 1)
        return ProbeGradients(
            chunks={
                name: (total.cpu().numpy() / sizes).astype(np.float32)
                for name, total in totals.items()
            },
            squares={name: (s / len(encoded)).cpu().numpy() for name, s in squares.items()},
        )

    def _probes(self, module: str, num: int, seed: int) -> Tensor:
        """Return (P, in) directions, drawn as a LoRA's A is."""
        shape = linear_shape(self.backbone.get_submodule(module))
        assert shape is not None, "targets are linear maps"
        drawn = torch.rand(num, shape[0], generator=named_generator(seed, "probe", module))
        return (2 * drawn - 1) / shape[0] ** 0.5

    def _batches(self, encoded: Encoded) -> Iterator[tuple[NDArray[np.int64], dict[str, Tensor]]]:
        """Yield rows of like length together, with their places."""
        device = next(self.backbone.parameters()).device
        order = np.argsort([len(row["input_ids"]) for row in encoded], kind="stable")
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = self.collate([{**encoded[row], "task_id": 0, "label": 0.0} for row in rows])
            kept = {k: v.to(device) for k, v in batch.items() if k not in ("task_ids", "labels")}
            yield rows, kept

    def _pooled(self, batch: dict[str, Tensor]) -> Tensor:
        self.before(len(batch["input_ids"]))
        return pool(self.backbone(**batch), batch["attention_mask"], self.pooling)

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Let gradients flow through a backbone whose weights are all frozen."""

        def ask(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return output.detach().requires_grad_()

        handle = self._embeddings().register_forward_hook(ask)
        try:
            with torch.enable_grad():
                yield
        finally:
            handle.remove()

    def _embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()  # pyright: ignore[reportCallIssue]
