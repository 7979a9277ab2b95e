"""DoRA: the direction of each row of a weight is adapted by a LoRA, its length by a number."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coadapt._errors import InputError
from coadapt.adapters.adapted import AbstractAdapted, Dropout
from coadapt.adapters.gate import AbstractGate, ConstantGate
from coadapt.adapters.linear import linear_weight
from coadapt.adapters.products import add_update
from coadapt.adapters.route import Route

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ROWS = 1024  # of the weight that are converted at once


class DoraLinear(AbstractAdapted[AbstractGate]):
    r"""A frozen linear map whose rows get new directions by a LoRA and new lengths by ``m``.

    .. math:: V = W + s B A, \quad g = m / \lVert V \rVert, \quad y = g \odot (V x) + b

    with m: (out,) and the norm of each row of V, over the inputs (DoRA, arXiv 2402.09353, equation
    5); m starts at that of W. V is never formed: with g folded into B, the step costs a LoRA's two
    products, one pass over y, and for the norm the r columns of W A',

    .. math:: \lVert V \rVert^2 = \lVert W \rVert^2 + 2 s\, \mathrm{rowsum}((W A') \odot B)
              + s^2\, \mathrm{rowsum}((B (A A')) \odot B)

    in float32 or wider, whatever the dtype of W. While x is dropped, W has a second product, since
    the frozen part stays whole as in PEFT: W x + b + (g - 1) W drop(x) + g s B A drop(x).

    ``m`` is a parameter of shape (out, 1), as in the authors' code, so that an optimizer treats it
    as the matrices and decays it. A row of W that is zero stays zero. A packed W is unpacked anew
    in every forward for the norms.

    Args:
        base: the map to adapt; it is frozen and never edited.
        rank: of the LoRA.
        route: shared by all layers of a model.
        scale: s = lora_alpha / r.
        dropout: what is dropped while training.
        detach_norm: take the norm for a constant in the backward pass (section 4.3).
        name: the module's name in its backbone.

    Raises:
        InputError: if the weight of ``base`` is neither a matrix of floats nor packed by
            bitsandbytes.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        *,
        route: Route,
        scale: float,
        dropout: Dropout,
        detach_norm: bool = True,
        name: str = "",
    ) -> None:
        super().__init__(
            base, [rank], gate=ConstantGate(1), route=route, scale=scale, dropout=dropout, name=name
        )
        W = self._checked_weight()
        self.detach_norm = detach_norm
        self._kept: tuple[object, Tensor] | None = None
        wide = torch.promote_types(W.dtype, torch.float32)
        start = self._squares(W, wide).sqrt().to(torch.float32)
        self.m = nn.Parameter(start.unsqueeze(1))

    def _checked_weight(self) -> Tensor:
        weight = getattr(self.base, "weight", None)
        found = "no weight"
        if isinstance(weight, Tensor):
            W = linear_weight(self.base)
            if W.dtype in _FLOATS and tuple(W.shape) == self._shape:
                return W
            found = f"a weight of {weight.dtype} and shape {tuple(weight.shape)}"
        raise InputError(
            f"'{self.name}' ({type(self.base).__name__}) has {found}, and DoRA takes the norms "
            f"of the rows of a {self._shape} matrix of floats; load the base model without "
            "quantisation, or take structure 'single' (recipe 'lora')"
        )

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Return y (B, ..., out) for x (B, ..., in)."""
        y = self.base(x)
        drops = self.training and self.dropout.p > 0
        at_x = drops and self.dropout.at == "x"
        dropped = self.dropout.drop(x) if at_x else x
        z = F.linear(dropped, self.route.joined(self.A, x.dtype).to(x.dtype))
        self.route.note("representation", self.name, z)
        if drops and not at_x:
            z = self.dropout.drop(z)
        g = self.route.keep((id(self), "gain"), self._gain)
        if at_x:
            plain = F.linear(dropped, linear_weight(self.base).to(x.dtype))
        else:
            plain = y if self._bias is None else y - self._bias
        y = torch.addcmul(y, plain, (g - 1).to(y.dtype))  # at start the bits of the base map
        return add_update(y, z, self._up(g, y.dtype), self.scale)

    def _up(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        """Return g B, (out, r); what lasts in ``dtype`` and as the product wants it in memory."""

        def up_t() -> Tensor:
            up_t = (g.unsqueeze(1) * self.B[0]).t()
            return up_t.to(dtype).contiguous() if self.route.lasts else up_t

        return self.route.keep((id(self), "up", dtype), up_t).t()

    @property
    def _bias(self) -> Tensor | None:
        return getattr(self.base, "bias", None)

    def _gain(self) -> Tensor:
        """Return g (out,), what each row of V is multiplied with."""
        assert self.m is not None
        return self.m.squeeze(1) / self.norm()

    def norm(self) -> Tensor:
        """Return (out,) the norm of each row of V = W + s B A; a constant if so asked for."""
        W, s = linear_weight(self.base), self.scale
        wide = torch.promote_types(torch.promote_types(W.dtype, self.A[0].dtype), torch.float32)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_norm):
            A, B = self.A[0].to(wide), self.B[0].to(wide)
            cross = (_product(W, A.T) * B).sum(dim=1)
            own = (B @ (A @ A.T) * B).sum(dim=1)
            square = self._squares(W, wide) + 2 * s * cross + s * s * own
            # Rounding may take it below zero where V is nearly zero, and a row of W may be zero.
            return square.clamp_min(torch.finfo(wide).tiny).sqrt()

    def _squares(self, W: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (out,) the squared norms of the rows of W, computed anew when it has changed."""
        stored = self.base.get_parameter("weight")  # W itself, unless that is packed
        key = (stored.data_ptr(), stored._version, stored.device, stored.dtype, dtype)
        if self._kept is None or self._kept[0] != key:
            parts = [rows.to(dtype).square().sum(dim=1) for rows in W.split(_ROWS)]
            self._kept = key, torch.cat(parts)
        return self._kept[1]

    def freeze_offset(self) -> None:
        """Refuse: DoRA starts at the base map's own directions.

        Raises:
            ValueError: always.
        """
        raise ValueError("DoRA starts at the base map's own directions; it has no offset")

    def fold(self, task: int) -> tuple[Tensor, Tensor]:
        """Refuse: rows that are rescaled make an update of full rank.

        Raises:
            ValueError: always.
        """
        raise ValueError("DoRA rescales rows, so it has no exact LoRA form; delta has all of it")

    @torch.no_grad()
    def delta(self, task: int) -> Tensor:
        """Return float32 (out, in) W' - W, the same for every task."""
        g = self._gain().unsqueeze(1)
        update = (g - 1) * linear_weight(self.base) + self.scale * (g * self.B[0]) @ self.A[0].to(g)
        return update.float()


def _product(W: Tensor, A_t: Tensor) -> Tensor:
    """Return W A' (out, r) in the dtype of A', without a copy of all of W in it."""
    if W.dtype == A_t.dtype:
        return W @ A_t
    return torch.cat([rows.to(A_t.dtype) @ A_t for rows in W.split(_ROWS)])
