"""A feed-forward run through several experts at once: a slot dimension between its maps.

Each token goes through k of the experts, each of which is the frozen feed-forward with a LoRA of
its own in every map. The maps that read the feed-forward's input give (..., k, out), a slot for
each chosen expert; what the model does between its maps, elementwise or on the last dimension,
works on that untouched; the last map sums the slots. So the model's own code runs, once, and the
frozen maps run once a token however many experts there are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coadapt._errors import InputError
from coadapt.adapters.adapted import AbstractAdapted
from coadapt.adapters.gate import spread
from coadapt.adapters.products import add_update
from coadapt.adapters.route import Route


class Choice(NamedTuple):
    """The experts of each token.

    Attributes:
        opened: (..., k, R) 1 on the ranks of a slot's expert, 0 on those of the others.
        weights: (..., k) of the slots, largest first, summing to 1, at least float32.
    """

    opened: Tensor
    weights: Tensor


class SlotRouter(nn.Module):
    r"""One router a feed-forward: the k most probable of its experts, for every token.

    .. math:: p = \mathrm{softmax}(W_r x), \quad
              w_j = p_{e_j} / \sum_{i \le k} p_{e_i} \quad p_{e_1} \ge p_{e_2} \ge \dots

    In float32 whatever the dtype of x, since logits in bfloat16 are often equal. It is the gate of
    the feed-forward's first map; the gates of the others follow it. The choice is made by whichever
    map reads x first and is made anew where activation checkpointing runs the maps again.

    Args:
        module: the first map's name, under which the probabilities are noted.
        in_features: of the feed-forward.
        ranks: (K,) the experts' ranks.
        top_k: k, from 1 to K.
        route: shared by all layers of a model.
        device: of the layer.
    """

    def __init__(
        self,
        module: str,
        in_features: int,
        ranks: Sequence[int],
        *,
        top_k: int,
        route: Route,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        assert 1 <= top_k <= len(ranks)
        self.top_k = top_k
        self.weight = nn.Parameter(torch.zeros(len(ranks), in_features, device=device))
        self._module, self._ranks, self._route = module, tuple(ranks), route
        self._kept: tuple[Tensor, Choice] | None = None

    @property
    def router(self) -> nn.Parameter:
        """The (K, in) map."""
        return self.weight

    def choose(self, x: Tensor) -> Choice:
        """Return the experts for x (..., in), the same ones to every map that reads this x."""
        if self._kept is None or self._kept[0] is not x:
            self._kept = x, self._choice(x)
        return self._kept[1]

    def take(self, a: Tensor, module: str) -> Choice:
        """Return the experts that ``a`` (..., k, f) came through, and forget them.

        Raises:
            InputError: if ``a`` is not what the maps that read x have made, without more.
        """
        kept, self._kept = self._kept, None
        if kept is None or kept[1].weights.shape != a.shape[:-1]:
            slots = "none" if kept is None else str(tuple(kept[1].weights.shape))
            raise InputError(
                f"'{module}' got an input of shape {tuple(a.shape)} where the slots are {slots}: "
                "this model does more between a feed-forward's maps than a mixture can follow; "
                "leave them out of target_modules, or take recipe 'lora_moe'"
            )
        return kept[1]

    def _choice(self, x: Tensor) -> Choice:
        wide = torch.promote_types(x.dtype, torch.float32)
        probabilities = F.linear(x.to(wide), self.weight.to(wide)).softmax(dim=-1)
        self._route.note("routing", self._module, probabilities)
        values, experts = probabilities.topk(self.top_k, dim=-1)
        every = torch.arange(len(self._ranks), device=x.device)
        opened = spread((experts.unsqueeze(-1) == every).to(x.dtype), self._ranks)
        return Choice(opened, values / values.sum(dim=-1, keepdim=True))


class SlotFollower:
    """The gate of a map that does not hold its feed-forward's router.

    Args:
        leader: the router, a part of another map.
    """

    router: nn.Parameter | None = None

    def __init__(self, leader: SlotRouter) -> None:
        self.top_k = leader.top_k
        self.choose, self.take = leader.choose, leader.take


class AbstractSlotted(AbstractAdapted[SlotRouter | SlotFollower]):
    """What the maps of a feed-forward with slots have in common."""

    def _down(self, x: Tensor) -> Tensor:
        """Return A x of all experts, (..., R)."""
        A = self.route.joined(self.A, x.dtype)
        return F.linear(self._dropped(x, "x"), A.to(x.dtype))

    def _up(self, dtype: torch.dtype) -> Tensor:
        """Return (out, R) B of all experts, in ``dtype``."""
        key = (id(self), "up", dtype)
        return self.route.keep(key, lambda: torch.cat(list(self.B), dim=1).to(dtype))

    def _dropped(self, values: Tensor, place: str) -> Tensor:
        drops = self.training and self.dropout.at == place
        return self.dropout.drop(values) if drops else values

    def freeze_offset(self) -> None:
        """Refuse: which experts a token starts with is not known.

        Raises:
            ValueError: always.
        """
        raise ValueError("experts that a token chooses cannot start away from zero")

    def fold(self, task: int) -> tuple[Tensor, Tensor]:
        """Refuse: the update is another one for every token.

        Raises:
            ValueError: always.
        """
        raise ValueError("a token-gated layer has no exact LoRA form; keep the run itself")

    def delta(self, task: int) -> Tensor:
        """Refuse, as :meth:`fold`.

        Raises:
            ValueError: always.
        """
        raise ValueError("a token-gated layer adds no one matrix; keep the run itself")


class SlotLinear(AbstractSlotted):
    r"""A map that reads the feed-forward's input, with an output for each slot j.

    .. math:: y_j = W x + b + s B_{e_j} A_{e_j} x

    W x and A x of all experts are computed once. Arguments as of :class:`AbstractAdapted`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., k, out) for x (..., in)."""
        y = self.base(x)
        opened = self.gate.choose(x).opened
        z = self._down(x)
        self.route.note("representation", self.name, z)
        h = self._dropped(z, "z").unsqueeze(-2) * opened.to(z.dtype)
        update = F.linear(h.to(y.dtype), self._up(y.dtype))
        return torch.add(y.unsqueeze(-2), update, alpha=self.scale)


class SlotSum(AbstractSlotted):
    r"""The last map of the feed-forward, which sums the slots.

    .. math:: y = \sum_j w_j (W a_j + b + s B_{e_j} A_{e_j} a_j)
                = W \sum_j w_j a_j + b + s B \sum_j w_j\, g_j \odot (A a_j)

    with g_j the one-hot of e_j over the experts' ranks: since the weights sum to 1, W and B are
    applied once. Arguments as of :class:`AbstractAdapted`.
    """

    def forward(self, a: Tensor) -> Tensor:
        """Return (..., out) for a (..., k, in)."""
        opened, weights = self.gate.take(a, self.name)
        y = self.base(_mean(a, weights))
        z = self._down(a) * weights.unsqueeze(-1).to(a.dtype)
        self.route.note("representation", self.name, z.sum(dim=-2))
        h = (self._dropped(z, "z") * opened.to(z.dtype)).sum(dim=-2)
        return add_update(y, h, self._up(y.dtype), self.scale)


def _mean(a: Tensor, weights: Tensor) -> Tensor:
    """Return sum_j w_j a_j as a running mean, which of equal slots is exactly what they are.

    So the base model's function is kept to the bit in any dtype while the experts are at B = 0,
    where weights that are rounded would not sum to 1.
    """
    shares = (weights / weights.cumsum(dim=-1)).to(a.dtype).unsqueeze(-1)
    mean = a[..., 0, :]
    for slot in range(1, a.shape[-2]):
        mean = torch.lerp(mean, a[..., slot, :], shares[..., slot, :])
    return mean
