"""The slow oracle of a mixture of feed-forwards: each expert is a whole feed-forward, run alone.

It shares no code with the package: no slots, no gate; the experts' updates are merged into dense
weights, and every expert runs on every token, from the feed-forward's input to its output.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Factors = tuple[Tensor, Tensor]  # A (r, in), B (out, r)


class SlowMixture(nn.Module):
    """Stands where a feed-forward stood.

    Args:
        feed_forward: the frozen one.
        router: (N, d).
        experts: (N,) the factors of each map of the feed-forward, by its name in there.
        scale: s.
        top_k: how many experts a token uses.
    """

    def __init__(
        self,
        feed_forward: nn.Module,
        *,
        router: Tensor,
        experts: Sequence[Mapping[str, Factors]],
        scale: float,
        top_k: int,
    ) -> None:
        super().__init__()
        self.feed_forward = feed_forward
        self.router, self.experts = router, experts
        self.scale, self.top_k = scale, top_k

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.stack([self.weights(token) for token in x.reshape(-1, x.shape[-1])])
        weights = weights.reshape(*x.shape[:-1], len(self.experts))
        total = torch.zeros_like(x)
        for index, factors in enumerate(self.experts):
            merged = {
                f"{name}.weight": self.feed_forward.get_parameter(f"{name}.weight")
                + self.scale * (B @ A)
                for name, (A, B) in factors.items()
            }
            out: Any = functional_call(self.feed_forward, merged, (x,))
            total = total + weights[..., index : index + 1] * out
        return total

    def weights(self, token: Tensor) -> Tensor:
        """Return (N,) those of one token."""
        odds = [(row @ token).exp() for row in self.router]
        kept = sorted(range(len(odds)), key=lambda e: -odds[e].item())[: self.top_k]
        total = torch.stack([odds[e] for e in kept]).sum()
        zero = torch.zeros_like(total)
        return torch.stack([odds[e] / total if e in kept else zero for e in range(len(odds))])


class BertFeedForward(nn.Module):
    """What BERT has in two modules: up to where the residual is added."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.intermediate, self.dense = layer.intermediate, layer.output.dense

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.intermediate(x))


class SlowBertOutput(nn.Module):
    """BERT's output module with a mixture before it, which gets the feed-forward's input."""

    def __init__(self, mixture: SlowMixture, norm: nn.Module) -> None:
        super().__init__()
        self.mixture, self.norm = mixture, norm

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.mixture(x) + residual)
