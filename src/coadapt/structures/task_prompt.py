"""Prompts of tasks in low rank, behind a gate that starts closed: TA-LoRA."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from coadapt._errors import InputError
from coadapt._seeds import named_generator
from coadapt.adapters import DependsOn, TaskPrompts
from coadapt.adapters.attention import (
    extend_attention,
    last_layers,
    matching,
    number_of_heads,
    self_attentions,
    width,
)
from coadapt.adapters.prompts import PromptForm, PromptGate
from coadapt.structures.base import AbstractStructure, Attached, ShipsAs, Site

_STD = 0.02
_MIN_INNER_RANK = 8


@dataclass(frozen=True, kw_only=True)
class TaskPrompt(AbstractStructure):
    r"""In the last layers' self-attention a prompt a task, :math:`P_i = \theta_0 + s B U_i V_i'`.

    .. math:: o = \mathrm{attention}(Q, K, V) + \tanh(g)\, \mathrm{softmax}(c\, Q K_P^\top) V_P

    A reconstruction of TA-LoRA (arXiv 2505.00009), of which no text in full and no code could be
    had: :math:`\theta_0` and B are the slow weights that all tasks share, U_i and V_i a task's fast
    ones (rank 1 in the paper). See :class:`coadapt.adapters.TaskPrompts` for the equation and
    ``docs/methods/ta_lora.md`` for what the paper leaves open.

    At start g = 0 and the base model's function is kept to the bit; but for decay the first step
    moves only g, the second everything. :math:`\theta_0` and V_i are N(0, 0.02^2), B is N(0, 1/k)
    and U_i N(0, 1), so that an entry of what is a task's own is about 0.02 too. In the Hadamard
    form U_i and V_i are N(1, 0.02^2), U_i over q, so that P_i starts near :math:`\theta_0`.

    It is no weight update: it cannot be merged or exported as a LoRA, and runs as the run itself.

    Parameters a layer: L d + L k + T q (k + d) + 1 (``layer``) or H (``head``); in the Hadamard
    form L d + T q (L + d) + gates.

    Args:
        length: L, at least 1.
        inner_rank: k; None for the number of tasks, at least 8, since fewer than T directions
            cannot be orthogonal for T tasks. A task's own part has rank q whatever k is.
        fast_rank: q; 0 leaves :math:`\theta_0` alone, a prompt for all tasks.
        scale: s, positive.
        form: ``additive`` or ``hadamard``.
        gate: a g a ``layer`` (the paper's summary) or a ``head`` (LLaMA-Adapter); ``none`` has the
            prompts at full strength from the first step.
        layers: ``half`` of each stack's layers, the last ones (rounded up); a number of them;
            ``similarity``, from where the layers' representations of the training rows change
            least among themselves; or the names of self-attention modules.
        start: of :math:`\theta_0`: ``normal``, or the ``tokens``' embeddings of random tokens.

    Raises:
        InputError: if a number is out of range.
    """

    kind: Literal["task_prompt"] = "task_prompt"
    length: int = 10
    inner_rank: int | None = None
    fast_rank: int = 1
    scale: float = 1.0
    form: PromptForm = "additive"
    gate: PromptGate = "layer"
    layers: int | Literal["half", "similarity"] | tuple[str, ...] = "half"
    start: Literal["normal", "tokens"] = "normal"

    depends_on: ClassVar[DependsOn] = "task"
    ships_as: ClassVar[ShipsAs] = "runtime"
    divides: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("length", 1), ("inner_rank", 1), ("fast_rank", 0), ("layers", 1)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")
        if self.layers == ():
            raise InputError("layers: name at least one self-attention module")
        if not self.scale > 0:
            raise InputError(f"scale must be positive, not {self.scale}")

    def chosen_layers(self, backbone: nn.Module) -> list[str]:
        """Return the names of the self-attention modules that get prompts.

        Raises:
            InputError: if the model has none of them, or they are to be chosen by similarity.
        """
        stacks = self_attentions(backbone)
        if isinstance(self.layers, tuple):
            return matching(stacks, self.layers)
        if self.layers == "similarity":
            raise InputError(
                "layers: 'similarity' looks at the training rows; build the model with "
                "coadapt.train, which has them, or give a number of layers"
            )
        return last_layers(stacks, None if self.layers == "half" else self.layers)

    def attach(self, site: Site) -> Attached:
        """Put prompts into the chosen layers' self-attention.

        Raises:
            InputError: if the backbone's attention cannot be extended, or it lacks a layer.
        """
        backbone: Any = site.backbone
        num_tasks = len(site.tasks)
        prompts: dict[str, TaskPrompts] = {}
        for name in self.chosen_layers(backbone):
            attention = backbone.get_submodule(name)
            made = TaskPrompts(
                width(attention),
                length=self.length,
                inner_rank=self.inner_rank or max(_MIN_INNER_RANK, num_tasks),
                fast_rank=self.fast_rank,
                num_tasks=num_tasks,
                scale=self.scale,
                form=self.form,
                gate=self.gate,
                num_heads=number_of_heads(attention),
                route=site.route,
                device=backbone.device,
            )
            self._fill(made, name, site)
            prompts[name] = made
        extend_attention(backbone, dict(prompts))
        tasks = site.tasks if self.fast_rank else ()
        return Attached(
            prompts=prompts, blocks=tuple(tasks), owners=tuple((i,) for i in range(len(tasks)))
        )

    @torch.no_grad()
    def _fill(self, prompts: TaskPrompts, module: str, site: Site) -> None:
        common = named_generator(site.seed, "prompt", module)
        theta = torch.randn(prompts.theta.shape, generator=common) * _STD
        if self.start == "tokens":
            backbone: Any = site.backbone
            embeddings = backbone.get_input_embeddings().weight
            tokens = torch.randint(len(embeddings), (self.length,), generator=common)
            theta = embeddings[tokens.to(embeddings.device)].float()
            if theta.shape != prompts.theta.shape:
                raise InputError(
                    f"start: 'tokens' have {theta.shape[1]} dimensions and layer '{module}' "
                    f"{prompts.theta.shape[1]}; take 'normal'"
                )
        prompts.theta.copy_(theta)
        if prompts.B is not None:
            drawn = torch.randn(prompts.B.shape, generator=common)
            prompts.B.copy_(drawn / prompts.B.shape[1] ** 0.5)
        for task, u, v in zip(site.tasks, prompts.u, prompts.v, strict=bool(len(prompts.u))):
            own = named_generator(site.seed, "block", task, module)
            low, high = (torch.randn(part.shape, generator=own) for part in (u, v))
            if self.form == "hadamard":
                u.copy_((1 + _STD * low) / self.fast_rank)
                v.copy_(1 + _STD * high)
            else:
                u.copy_(low / self.fast_rank**0.5)
                v.copy_(_STD * high)
