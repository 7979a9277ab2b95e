"""Prompts that an attention module of a frozen model attends to beside its own keys."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from coadapt.adapters.attention import keys_and_values
from coadapt.adapters.route import Route

PromptForm = Literal["additive", "hadamard"]
PromptGate = Literal["layer", "head", "none"]


class TaskPrompts(nn.Module):
    r"""A prompt a task: a common one, and what is the task's own in low rank.

    .. math:: P_i = \theta_0 + s\, B\, U_i V_i^\top, \qquad
              o = \mathrm{attention}(Q, K, V)
                  + \tanh(g)\, \mathrm{softmax}(c\, Q K_P^\top) V_P

    with :math:`\theta_0`: (L, d), B: (L, k), U_i: (k, q), V_i: (d, q), :math:`K_P = W_k P_i` and
    :math:`V_P = W_v P_i` by the module's own frozen maps, without position embedding, and c its
    scale of scores. Two softmaxes, so at g = 0 the frozen model is kept to the bit
    (LLaMA-Adapter, arXiv 2303.16199, equation 4). Or the Hadamard form
    :math:`P_i = \theta_0 \odot U_i V_i^\top`, U_i: (L, q) (arXiv 2303.02861, equation 2).

    Every position attends to the prompt; of a decoder too, and however far it is away.

    Parameters, all float32: ``theta``, ``B`` (not in the Hadamard form) and ``g`` are common,
    ``u`` and ``v`` (q, d) are a task's.

    Args:
        width: d.
        length: L.
        inner_rank: k.
        fast_rank: q; 0 for :math:`\theta_0` alone.
        num_tasks: T.
        scale: s.
        form: see above.
        gate: one g a layer or a head; ``none`` puts 1 in the place of tanh(g).
        num_heads: of the module's queries.
        route: the rows' tasks, shared by all layers of a model.
        device: of the module.
    """

    def __init__(
        self,
        width: int,
        *,
        length: int,
        inner_rank: int,
        fast_rank: int,
        num_tasks: int,
        scale: float,
        form: PromptForm,
        gate: PromptGate,
        num_heads: int,
        route: Route,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        tasks = range(num_tasks if fast_rank else 0)
        down = length if form == "hadamard" else inner_rank
        additive = form == "additive" and fast_rank
        self.theta = nn.Parameter(torch.zeros(length, width, device=device))
        self.B = nn.Parameter(torch.zeros(length, inner_rank, device=device)) if additive else None
        self.u = nn.ParameterList(torch.zeros(down, fast_rank, device=device) for _ in tasks)
        self.v = nn.ParameterList(torch.zeros(fast_rank, width, device=device) for _ in tasks)
        sizes = {"layer": 1, "head": num_heads, "none": 0}
        self.g = nn.Parameter(torch.zeros(sizes[gate], device=device)) if gate != "none" else None
        self.scale, self.route = scale, route

    def prompts(self, tasks: Sequence[int]) -> Tensor:
        """Return (N, L, d) the prompts of some tasks."""
        if not len(self.u):
            return self.theta.expand(len(tasks), *self.theta.shape)
        low = torch.stack([self.u[task] for task in tasks])
        own = torch.stack([self.v[task] for task in tasks])
        if self.B is None:
            return self.theta * (low @ own)
        return self.theta + self.scale * ((self.B @ low) @ own)

    def extend(self, attention: nn.Module, query: Tensor, scaling: float | None) -> Tensor | None:
        """Return (B, S, H, d_h) the gated attention to the prompts of the rows' tasks.

        See :class:`coadapt.adapters.attention.Extension`.
        """
        if self.route.bare:
            return None
        num_rows, num_heads, length, head_width = query.shape
        keys, values, blocked = self._of_rows(attention, num_rows, query)
        groups = num_heads // keys.shape[1]  # queries that share a head of keys
        together = query.reshape(num_rows, keys.shape[1], groups * length, head_width)
        scores = (together @ keys.transpose(-1, -2)) * (scaling or head_width**-0.5)
        if blocked is not None:
            scores = scores.masked_fill(blocked.repeat(groups, 1), float("-inf"))
        wide = torch.promote_types(scores.dtype, torch.float32)
        found = scores.softmax(dim=-1, dtype=wide).to(values.dtype) @ values
        found = found.view(num_rows, num_heads, length, head_width).transpose(1, 2)
        return found if self.g is None else found * torch.tanh(self.g).to(found.dtype)[:, None]

    def _of_rows(
        self, attention: nn.Module, num_rows: int, query: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the rows' keys and values, (B or 1, H_kv, L, d_h).

        Of rows packed into one the keys of all tasks, one after the other, and (S, N L) which of
        them a position may not see.
        """
        route, task_ids = self.route, self.route.rows(num_rows)
        if route.fixed is not None:
            return *self._mixed(attention, query, route.fixed), None
        # With gradients every task's prompt is in the graph, as every block is of a LoRA.
        tasks = range(max(1, len(self.u))) if route.every_block else route.present
        if not len(self.u):
            tasks, task_ids = (0,), torch.zeros_like(task_ids)
        keys, values = self._made(attention, query, tasks)
        if len(tasks) == 1:
            return keys, values, None
        places = torch.zeros(max(tasks) + 1, dtype=torch.long, device=task_ids.device)
        places[list(tasks)] = torch.arange(len(tasks), device=task_ids.device)
        if task_ids.dim() == 1:
            return keys[places[task_ids]], values[places[task_ids]], None
        owner = torch.arange(len(tasks), device=task_ids.device)
        owner = owner.repeat_interleave(keys.shape[-2])
        blocked = places[task_ids[0]][:, None] != owner
        keys, values = (x.transpose(0, 1).flatten(1, 2).unsqueeze(0) for x in (keys, values))
        return keys, values, blocked

    def _mixed(
        self, attention: nn.Module, query: Tensor, shares: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of the common prompt plus shares of what is the tasks' own."""
        prompt = self.theta[None]
        if len(self.u):
            own = self.prompts(range(len(self.u))) - self.theta
            prompt = prompt + torch.einsum("t,tld->ld", own.new_tensor(shares), own)
        return keys_and_values(attention, prompt.to(query.dtype), query.shape[-1])

    def _made(
        self, attention: nn.Module, query: Tensor, tasks: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values a task; without gradients each task's are made on their own."""

        def make(of: Sequence[int]) -> tuple[Tensor, Tensor]:
            return keys_and_values(attention, self.prompts(of).to(query.dtype), query.shape[-1])

        if self.route.every_block:  # gradients will be asked for
            return make(tasks)
        key = (id(self), query.dtype)
        parts = [self.route.keep((*key, task), partial(make, [task])) for task in tasks]
        keys, values = zip(*parts, strict=True)
        return torch.cat(keys), torch.cat(values)

    def extra_repr(self) -> str:
        """Return the sizes."""
        length, width = self.theta.shape
        return f"length={length}, width={width}, tasks={len(self.u)}"
