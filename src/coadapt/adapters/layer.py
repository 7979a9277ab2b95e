"""One layer behind every LoRA-family structure: a LoRA whose rank axis is cut into gated blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coadapt.adapters.adapted import AbstractAdapted
from coadapt.adapters.gate import AbstractGate
from coadapt.adapters.products import add_update, is_plain, read
from coadapt.adapters.route import join
from coadapt.adapters.together import Together


class PartitionedLinear(AbstractAdapted[AbstractGate]):
    r"""A frozen linear map plus a low-rank update whose rank axis is cut into gated blocks.

    .. math:: z = A x, \quad h = g \odot z, \quad y = W x + b + s B h

    with A: (R, in), B: (out, R), R = r_1 + ... + r_K and one gate value a block, repeated over the
    block's ranks (LoRA, arXiv 2106.09685, equation 3, is K = 1 and g = 1). With one A for all
    blocks (heads), A: (r, in) and z is repeated K times. However many blocks there are, a batch of
    rows of any tasks costs the two matrix products of one LoRA; a router's logits, and the frozen
    start of a block that does not start at zero, are more rows of the first of them.

    Each block's factors are parameters of their own, so that an optimizer can skip those of a task
    that a step did not see. They stay in float32 and are cast to the dtype of ``x``.

    Attributes:
        together: the layers that read the same x, whose products are made at once, if any.
    """

    together: "Together[PartitionedLinear] | None" = None

    def forward(self, x: Tensor) -> Tensor:
        """Return y (B, ..., out) for x (B, ..., in)."""
        blocks = self.gate.blocks(self.route)
        if not blocks:  # every gate is at zero
            return self.base(x)
        own = self._own(x)
        if own is not None:
            return self._by_row(x, self.base(x), blocks, own)
        y, products, into = self._read(x, blocks)
        z, z0, logits = self._divided(products, blocks)
        h = self._gated(z, z0, logits)
        y = add_update(y, h, self._ups(blocks, y.dtype), self.scale, into=into)
        return y.view(*x.shape[:-1], self.out_features)

    def _own(self, x: Tensor) -> Tensor | None:
        """Return the entries of the rank axis that each row uses, if only these are computed."""
        if self._drops_x or self.route.listens("representation", self.name):
            return None
        return self.gate.own(x, self.route)

    def _by_row(self, x: Tensor, y: Tensor, blocks: Sequence[int], own: Tensor) -> Tensor:
        """Return y + s B h with the entries that each row uses, as products of a batch."""
        a = self._rows([self.A[k] for k in blocks], own, x.dtype)
        b, drops = self._rows([self.B[k] for k in blocks], own, x.dtype, up=True), self.training
        if fixed := self._fixed(blocks):
            down = self._rows([self.A0[k] for k in fixed], own, x.dtype)
            up = self._rows([self.B0[k] for k in fixed], own, x.dtype, up=True)
            a, b = torch.cat([a, down], dim=1), torch.cat([b, -up], dim=1)
        rows = x.reshape(len(x), -1, self.in_features)
        z = torch.bmm(rows, a.to(x.dtype).transpose(1, 2))
        if drops and self.dropout.p > 0:
            mine, start = z.split([own.shape[1], z.shape[2] - own.shape[1]], dim=2)
            z = torch.cat([self.dropout.drop(mine), start], dim=2)
        flat = y.reshape(len(y), -1, self.out_features)
        # Without a graph y is the base map's output and nobody else's.
        into = None if torch.is_grad_enabled() or not is_plain(self.base, x) else flat
        return torch.baddbmm(flat, z, b.to(y.dtype), alpha=self.scale, out=into).view(y.shape)

    def _rows(
        self, parts: Sequence[Tensor], own: Tensor, dtype: torch.dtype, *, up: bool = False
    ) -> Tensor:
        """Return (B, r, d) what each row uses of A, or of the transposed B; past it are zeros."""

        def table() -> Tensor:
            lines = [part.t() for part in parts] if up else list(parts)
            whole = torch.cat([*lines, lines[0].new_zeros(1, lines[0].shape[1])])
            # In the parameters' own dtype, so that gradients of rows that share one are added up
            # in it.
            return whole.to(dtype) if self.route.lasts else whole

        return F.embedding(own, self.route.keep(("rows", dtype, *map(id, parts)), table))

    def _read(self, x: Tensor, blocks: Sequence[int]) -> tuple[Tensor, Tensor, bool]:
        """Return W x + b, the products with :meth:`_downs`, and whether the first is ours alone."""
        if self.together is not None and not torch.compiler.is_compiling():
            found = self.together.take(self, x)
            if found is not None:
                return *found, True
        A = self.route.joined(self._downs(blocks), x.dtype)
        if self._drops_x:
            width = self._widths(blocks)[0]
            products = [F.linear(self.dropout.drop(x), A[:width].to(x.dtype))]
            products += [F.linear(x, A[width:].to(x.dtype))] if len(A) > width else []
            return self.base(x), torch.cat(products, dim=-1), False
        if is_plain(self.base, x):
            (y,), products = read(x, [self.base], A)
            return y, products, True
        return self.base(x), F.linear(x, A.to(x.dtype)), False

    def asks(self, x: Tensor) -> list[Tensor] | None:
        """Return what x is to be multiplied with beside ``base``; None if only the layer can."""
        blocks = self.gate.blocks(self.route)
        if not blocks or self._drops_x or not is_plain(self.base, x) or self._own(x) is not None:
            return None
        return self._downs(blocks)

    @property
    def _drops_x(self) -> bool:
        return self.dropout.at == "x" and self.training and self.dropout.p > 0

    def _downs(self, blocks: Sequence[int]) -> list[Tensor]:
        """Return A of the blocks, A0 of the frozen start and the router, where there are such."""
        parts = list(self.A) if self.shared_A else [self.A[block] for block in blocks]
        parts += [self.A0[block] for block in self._fixed(blocks)]
        return parts if self.gate.router is None else [*parts, self.gate.router]

    def _widths(self, blocks: Sequence[int]) -> list[int]:
        """Return how many rows of :meth:`_downs` are of A, of A0 and of the router."""
        rank = len(self.A[0]) if self.shared_A else sum(self.B[k].shape[1] for k in blocks)
        widths = [rank, rank] if self._fixed(blocks) else [rank]
        return widths if self.gate.router is None else [*widths, len(self.gate.router)]

    def _divided(
        self, products: Tensor, blocks: Sequence[int]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return A x, A0 x of the frozen start and the router's logits."""
        z, *rest = products.split(self._widths(blocks), dim=-1)
        self.route.note("representation", self.name, z)
        start = rest.pop(0) if self._fixed(blocks) else None
        return z, start, rest.pop() if rest else None

    def _gated(self, z: Tensor, z0: Tensor | None, logits: Tensor | None) -> Tensor:
        """Return what B is multiplied with: gated and dropped entries, then those of the start."""
        drops = self.training and self.dropout.at == "z"
        if self.shared_A:
            if drops and not self.dropout.each_head:
                z, drops = self.dropout.drop(z), False
            z = z.repeat(*[1] * (z.dim() - 1), len(self.B))
        gate = self.gate(z, self.route, logits)
        if gate is not None:
            z = z * gate
            if z0 is not None and self.gate.depends_on == "task":
                z0 = z0 * gate
        if drops:
            z = self.dropout.drop(z)
        return z if z0 is None else torch.cat([z, z0], dim=-1)

    def _ups(self, blocks: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return (out, R) the blocks' B side by side, then those of the frozen start negated."""

        def up_t() -> Tensor:
            ups = [self.B[block] for block in blocks] + [-self.B0[k] for k in self._fixed(blocks)]
            whole = join([up.t() for up in ups])
            return whole.to(dtype).contiguous() if self.route.lasts else whole

        # Transposed it lies in memory as the product wants it.
        return self.route.keep((id(self), "up", dtype, *blocks), up_t).t()

    def _fixed(self, blocks: Sequence[int]) -> Sequence[int]:
        """Return which blocks of the frozen start take part; heads have a single one together."""
        if not self.A0:
            return ()
        return (0,) if self.shared_A else blocks

    @torch.no_grad()
    def freeze_offset(self) -> None:
        """Subtract from now on what the current factors add, so that the layer starts as ``base``.

        For inits away from zero. Under a gate on the task the frozen copies are gated alike; where
        the gate looks at the token, they keep its value at zero logits, and the function at start
        is that of ``base`` if the router starts at zero. Cost and fold have rank 2R (heads: R + r).
        """
        ups = list(self.B)
        if self.gate.depends_on == "token":
            gates = self.gate.constants(0)
            ups = [gate * B for gate, B in zip(gates, ups, strict=True)]
        if self.shared_A:
            ups = [torch.stack(ups).sum(dim=0)]
        self.A0 = nn.ParameterList(nn.Parameter(a.clone(), requires_grad=False) for a in self.A)
        self.B0 = nn.ParameterList(nn.Parameter(b.clone(), requires_grad=False) for b in ups)

    @torch.no_grad()
    def fold(self, task: int) -> tuple[Tensor, Tensor]:
        """Return float32 (A, B) with ``B A`` the whole update for rows of ``task``.

        Scale, gate and offset are folded in: A is (r, in), B is (out, r), r the summed rank of the
        blocks that the task uses (of heads over one A: its rank), twice that with an offset.

        Raises:
            ValueError: if the gate depends on the token, so that no such factors exist.
        """
        if self.gate.depends_on == "token":
            raise ValueError("a token-gated layer has no exact LoRA form; keep the run itself")
        gates = self.gate.constants(task)
        used = [block for block, value in enumerate(gates) if value != 0.0]
        B = [self.scale * gates[block] * self.B[block].float() for block in used]
        if self.shared_A:
            A, B = [self.A[0].float()], [torch.stack(B).sum(dim=0)]
        else:
            A = [self.A[block].float() for block in used]
        for block in self._fixed(used):
            value = 1.0 if self.shared_A else gates[block]
            A.append(self.A0[block].float())
            B.append(-self.scale * value * self.B0[block].float())
        return torch.cat(A), torch.cat(B, dim=1)

    @torch.no_grad()
    def fold_block(self, block: int) -> tuple[Tensor, Tensor]:
        """Return float32 (A, B) of one block at a gate of 1, scale and offset folded in.

        Not for heads over one A, of which :meth:`fold` returns the sum.
        """
        assert not self.shared_A
        A, B = [self.A[block].float()], [self.scale * self.B[block].float()]
        if self.A0:
            A.append(self.A0[block].float())
            B.append(-self.scale * self.B0[block].float())
        return torch.cat(A), torch.cat(B, dim=1)

    @torch.no_grad()
    def delta(self, task: int) -> Tensor:
        """Return float32 (out, in) ``B A`` of :meth:`fold`, which raises where there is none."""
        A, B = self.fold(task)
        return B @ A
