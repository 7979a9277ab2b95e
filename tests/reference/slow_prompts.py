"""The slow oracle of prompts in attention: a loop over rows, heads and queries.

It shares no code with the package, nor with transformers: keys and values are W x + b, cut into
heads; rotary embeddings, T5's position bias, masks and softmaxes are written out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def slow_prompt(
    theta: Tensor, B: Tensor | None, u: Tensor | None, v: Tensor | None, *, scale: float, form: str
) -> Tensor:
    """Return P_i (L, d), one direction of the fast rank after the other."""
    if u is None or v is None:
        return theta
    own = torch.zeros_like(theta)
    for r in range(u.shape[1]):
        left = u[:, r]
        if B is not None:
            left = torch.stack([(row * left).sum() for row in B])
        own = own + torch.outer(left, v[r])
    return theta * own if form == "hadamard" else theta + scale * own


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family's attention is made.

    Args:
        maps: the names of the maps to queries, keys and values, and of the one after the heads.
        heads: of queries, then of keys.
        scale: of the scores; None for 1 / sqrt(d_h).
        rotary: the base of the angles.
        bias: whether scores have T5's relative bias.
        results: how many the stock module returns; the first is the output.
    """

    maps: tuple[str, ...]
    heads: tuple[int, int]
    scale: float | None = None
    rotary: float | None = None
    bias: bool = False
    results: int = 2


BERT = Family(maps=("query", "key", "value"), heads=(4, 4))
LLAMA = Family(maps=("q_proj", "k_proj", "v_proj", "o_proj"), heads=(4, 2), rotary=10_000.0)
T5 = Family(maps=("q", "k", "v", "o"), heads=(4, 4), scale=1.0, bias=True, results=3)


class SlowAttention(nn.Module):
    """Stands where a self-attention stood.

    Args:
        attention: the stock one.
        family: its.
        causal: whether a position sees the ones before it only.
        bias: (buckets, H) of T5's relative bias.
        lengths: of the batch's rows; what is behind is padding.
        prompts: (L, d) a row, none for a module without.
        gate: (1,) or (H,) g; None for prompts at full strength.
    """

    def __init__(
        self,
        attention: nn.Module,
        family: Family,
        *,
        causal: bool,
        lengths: Sequence[int],
        prompts: Sequence[Tensor],
        gate: Tensor | None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.maps = [attention.get_submodule(name) for name in family.maps]
        self.family, self.causal, self.lengths = family, causal, lengths
        self.prompts, self.gate, self.bias = prompts, gate, bias

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor | None, ...]:
        rows = zip(hidden_states, self.lengths, self.prompts, strict=True)
        out = torch.stack([self.row(x, length, prompt) for x, length, prompt in rows])
        return (out, *[None] * (self.family.results - 1))

    def row(self, x: Tensor, length: int, prompt: Tensor) -> Tensor:
        """Return (S, d) of one row."""
        to_q, to_k, to_v = self.maps[:3]
        num_heads, num_keys = self.family.heads
        queries = [[self.turn(q, i) for q in heads(to_q, x[i], num_heads)] for i in range(len(x))]
        keys = [[self.turn(k, j) for k in heads(to_k, x[j], num_keys)] for j in range(length)]
        values = [heads(to_v, x[j], num_keys) for j in range(length)]
        prompt_keys = [heads(to_k, p, num_keys) for p in prompt]
        prompt_values = [heads(to_v, p, num_keys) for p in prompt]
        found = []
        for i in range(len(x)):
            seen = [j for j in range(length) if j <= i or not self.causal]
            both = []
            for h in range(num_heads):
                k, q = h // (num_heads // num_keys), queries[i][h]
                own = self.read(
                    q, [keys[j][k] for j in seen], [values[j][k] for j in seen], self.biases(i, h)
                )
                added = self.read(q, [p[k] for p in prompt_keys], [p[k] for p in prompt_values])
                both.append(own + self.openness(h) * added)
            found.append(torch.cat(both))
        out = torch.stack(found)
        return linear(self.maps[3], out) if len(self.maps) > 3 else out

    def openness(self, head: int) -> Tensor | float:
        if self.gate is None:
            return 1.0
        return torch.tanh(self.gate[head if len(self.gate) > 1 else 0])

    def read(
        self, q: Tensor, keys: list[Tensor], values: list[Tensor], biases: Mapping[int, Any] = {}
    ) -> Tensor:
        """Return the mean of the values by a softmax of the scores."""
        scale = self.family.scale or len(q) ** -0.5
        scores = torch.stack(keys) @ q * scale
        if biases:
            scores = scores + torch.stack([biases[j] for j in range(len(keys))])
        odds = (scores - scores.max().detach()).exp()
        return odds @ torch.stack(values) / odds.sum()

    def turn(self, x: Tensor, position: int) -> Tensor:
        """Rotate pairs of a vector's halves by angles that grow with the position."""
        if self.family.rotary is None:
            return x
        half = len(x) // 2
        angles = [position * self.family.rotary ** (-i / half) for i in range(half)]
        cos, sin = (x.new_tensor([f(a) for a in angles]) for f in (math.cos, math.sin))
        left, right = x[:half], x[half:]
        return torch.cat([left * cos - right * sin, right * cos + left * sin])

    def biases(self, query: int, head: int) -> dict[int, Tensor]:
        """Return T5's bias of each key's score, by its position."""
        if self.bias is None:
            return {}
        numbers = {j: bucket(j - query, len(self.bias), self.causal) for j in range(MOST)}
        return {j: self.bias[number, head] for j, number in numbers.items()}


MOST = 32  # positions


def bucket(distance: int, num_buckets: int, causal: bool, furthest: int = 128) -> int:
    """Return T5's bucket (arXiv 1910.10683, section 2.1): exact if near, logarithmic if far."""
    if causal:
        start, size, far = 0, num_buckets, max(-distance, 0)
    else:
        size = num_buckets // 2
        start, far = size if distance > 0 else 0, abs(distance)
    exact = size // 2
    if far < exact:
        return start + far
    steps = math.log(far / exact) / math.log(furthest / exact) * (size - exact)
    return start + min(exact + int(steps), size - 1)


def linear(layer: Any, x: Tensor) -> Tensor:
    out = x @ layer.weight.T
    return out if layer.bias is None else out + layer.bias


def heads(layer: Any, x: Tensor, number: int) -> list[Tensor]:
    """Return the vectors of the heads, one after the other in the map's output."""
    return list(linear(layer, x).split(len(layer.weight) // number))


# What is penalised ------------------------------------------------------------------------------


def slow_overlap(us: Sequence[Tensor], vs: Sequence[Tensor], of: str) -> Tensor:
    """Return a layer's mean over pairs of tasks, by whole matrices A_i = U_i V_i'.

    Args:
        us: (k, q) a task.
        vs: (q, d) a task.
        of: ``u``, ``v`` or ``product``.
    """
    found = []
    for i in range(len(us)):
        for j in range(i):
            if of == "product":
                first, second = us[i] @ vs[i], us[j] @ vs[j]
                overlap = (first * second).sum() ** 2
            else:
                first, second = (us[i].T, us[j].T) if of == "u" else (vs[i], vs[j])
                overlap = sum((a @ b) ** 2 for a in first for b in second)
            found.append(overlap / ((first**2).sum() * (second**2).sum()))
    return torch.stack(found).mean()
