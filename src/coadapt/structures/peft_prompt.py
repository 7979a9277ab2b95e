"""Prompt, prefix and multitask prompt tuning by PEFT's own modules: what LoRA is compared with."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from coadapt._errors import InputError
from coadapt._seeds import named_seed
from coadapt.adapters import DependsOn, Route
from coadapt.adapters.cache_sizes import cache_shape
from coadapt.adapters.virtual_tokens import AbstractVirtualTokens, VirtualPrefix, VirtualPrompt
from coadapt.structures.base import AbstractStructure, Attached, ShipsAs, Site

# PEFT takes seconds to import, and the table of methods needs none of it.
if TYPE_CHECKING:
    from peft import PrefixEncoder, PromptEmbedding
    from peft.tuners import MultitaskPromptEmbedding

# Where the module lies in the backbone: PEFT's name.
PROMPT_ENCODER = "prompt_encoder"


@dataclass(frozen=True, kw_only=True)
class AbstractPeftPrompt(AbstractStructure):
    """P positions of PEFT's making that the model attends to beside a row's text.

    The module is PEFT's, with its start, in float32; the model stays as it is, with hooks in the
    place of PEFT's wrapper. ``docs/methods/prompt_tuning.md`` says what differs from stock PEFT.

    It is no weight update: it cannot be merged or exported as a LoRA, and runs as the run itself.
    Rows that are packed into one are refused.

    Args:
        length: P, at least 1. A model that has learned positions has that many fewer for text.
    """

    kind: str
    length: int = 20

    ships_as: ClassVar[ShipsAs] = "runtime"
    divides: ClassVar[bool] = False

    @abstractmethod
    def encoder(self, backbone: Any, num_tasks: int) -> nn.Module:
        """Return PEFT's module for a model, drawn from torch's global random state."""

    @abstractmethod
    def tokens(self, encoder: nn.Module, route: Route) -> AbstractVirtualTokens:
        """Return the hooks that run such a module."""

    def attach(self, site: Site) -> Attached:
        """Put PEFT's module beside the backbone's own, and hooks on the backbone.

        Raises:
            InputError: if a model of this kind cannot take it.
        """
        backbone: Any = site.backbone
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would reach other devices' generators too.
            torch.default_generator.manual_seed(named_seed(site.seed, self.kind))
            encoder = self.encoder(backbone, len(site.tasks))
        encoder = encoder.to(backbone.device, torch.float32)
        self.tokens(encoder, site.route).hook(backbone)
        backbone.add_module(PROMPT_ENCODER, encoder)
        return Attached(modules_beside={PROMPT_ENCODER: encoder})


@dataclass(frozen=True, kw_only=True)
class PromptTuning(AbstractPeftPrompt):
    r"""One prompt for all tasks before the text's embeddings, :math:`[P; X]`.

    Lester, Al-Rfou, Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning" (arXiv
    2104.08691), section 2: only P: (length, d) is trained, d the width of the embeddings. An
    encoder-decoder has it in its encoder alone, as in the paper.

    The tasks have nothing of their own but their heads, so a language model tells them apart by
    their texts only.

    Args:
        length: of P, at least 1.
        start: ``normal``, N(0, 1) as in PEFT; or ``tokens``, the embeddings of random tokens, which
            lie where the model knows its inputs to lie.

    Raises:
        InputError: if the length is not positive.
    """

    kind: Literal["prompt_tuning"] = "prompt_tuning"
    start: Literal["normal", "tokens"] = "normal"

    depends_on: ClassVar[DependsOn] = "nothing"

    def __post_init__(self) -> None:
        """Check the range."""
        _at_least_one("length", self.length)

    def encoder(self, backbone: Any, num_tasks: int) -> "PromptEmbedding":
        """Return PEFT's embedding of P."""
        from peft import PromptEmbedding, PromptTuningConfig

        words = _words(backbone)
        config = PromptTuningConfig(
            **_sizes(self.length, words),
            prompt_tuning_init="RANDOM" if self.start == "normal" else "SAMPLE_VOCAB",
        )
        return PromptEmbedding(config, words)

    def tokens(self, encoder: nn.Module, route: Route) -> VirtualPrompt:
        """Return hooks that put the one prompt before every row."""
        return VirtualPrompt(self.length, _alike(encoder, self.length), route)


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(AbstractPeftPrompt):
    r"""Keys and values in every layer's cache, one prefix for all tasks.

    .. math:: h = \mathrm{attention}(Q, [P_K; K], [P_V; V])

    Li and Liang, "Prefix-Tuning" (arXiv 2101.00190), section 4. What is trained is
    (length, 2 L H d_h), or the map that makes it. Of an encoder-decoder the decoder's
    self-attention has it, as PEFT does; the paper has one in the encoder too.

    Not with activation checkpointing, which leaves caches out. In a model whose layers see a window
    of positions, prefix and text have to fit in it.

    Args:
        length: of the prefix, at least 1.
        prefix_projection: whether it is made by an embedding and two layers, as the paper trains it
            (section 4.3), and not trained itself.
        encoder_hidden_size: the layers' width, at least 1; None for H d_h.

    Raises:
        InputError: if a number is not positive, or a width is given without the layers.
    """

    kind: Literal["prefix_tuning"] = "prefix_tuning"
    prefix_projection: bool = False
    encoder_hidden_size: int | None = None

    depends_on: ClassVar[DependsOn] = "nothing"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least_one("length", self.length)
        if self.encoder_hidden_size is not None:
            _at_least_one("encoder_hidden_size", self.encoder_hidden_size)
            if not self.prefix_projection:
                raise InputError(
                    "encoder_hidden_size is the width of the projection; set prefix_projection too"
                )

    def encoder(self, backbone: Any, num_tasks: int) -> "PrefixEncoder":
        """Return PEFT's embedding of the keys and values, with its layers if asked for."""
        from peft import PrefixEncoder, PrefixTuningConfig

        layers, heads, width = cache_shape(backbone.config)
        config = PrefixTuningConfig(
            num_virtual_tokens=self.length,
            num_layers=layers,
            num_attention_heads=heads,
            token_dim=heads * width,
            num_transformer_submodules=1,
            prefix_projection=self.prefix_projection,
            encoder_hidden_size=self.encoder_hidden_size or heads * width,
        )
        return PrefixEncoder(config)

    def tokens(self, encoder: nn.Module, route: Route) -> VirtualPrefix:
        """Return hooks that put the one prefix into every row's cache."""
        return VirtualPrefix(self.length, _alike(encoder, self.length), route)


@dataclass(frozen=True, kw_only=True)
class MultitaskPromptTuning(AbstractPeftPrompt):
    r"""A prompt a task: a common one times the task's own matrix of low rank, before the text.

    .. math:: \hat P_k = P \odot (u_k v_k^\top)

    Wang et al., "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning" (arXiv
    2303.02861), equation 2, with P: (length, d), u_k: (length, r) and v_k: (d, r). Trained on all
    tasks from the start: the paper first distils P from prompts of single tasks, which PEFT leaves
    to its user and so do we.

    PEFT starts P at N(0, 1), u and v at N(0, 0.02^2): prompts start near zero. All tasks' u lie in
    one parameter, and so do their v, so there is no lazy update: a step that has no row of a task
    still moves its part by decay and old moments, unlike a block of a LoRA.

    Args:
        length: of the prompts, at least 1.
        num_ranks: r, at least 1; 1 in the paper.

    Raises:
        InputError: if a number is not positive.
    """

    kind: Literal["multitask_prompt_tuning"] = "multitask_prompt_tuning"
    num_ranks: int = 1

    depends_on: ClassVar[DependsOn] = "task"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least_one("length", self.length)
        _at_least_one("num_ranks", self.num_ranks)

    def encoder(self, backbone: Any, num_tasks: int) -> "MultitaskPromptEmbedding":
        """Return PEFT's embedding of P, u and v."""
        from peft import MultitaskPromptTuningConfig
        from peft.tuners import MultitaskPromptEmbedding

        words = _words(backbone)
        config = MultitaskPromptTuningConfig(
            **_sizes(self.length, words), num_tasks=num_tasks, num_ranks=self.num_ranks
        )
        return MultitaskPromptEmbedding(config, words)

    def tokens(self, encoder: nn.Module, route: Route) -> VirtualPrompt:
        """Return hooks that put each row's task's prompt before it."""

        def make(num_rows: int) -> Tensor:
            if route.fixed is not None:
                raise InputError(
                    "multitask prompts have no blocks that could be mixed for a task that is new; "
                    "choose with --by: nearest, or task:NAME"
                )
            task_ids = route.rows(num_rows)
            places = torch.arange(self.length, device=task_ids.device)
            return encoder(places.expand(num_rows, -1), task_ids)

        return VirtualPrompt(self.length, make, route)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be at least 1, not {value}")


def _words(backbone: Any) -> nn.Embedding:
    """Return the embeddings that a prompt is put before."""
    stack = backbone.get_encoder() if backbone.config.is_encoder_decoder else backbone.base_model
    return stack.get_input_embeddings()


def _sizes(length: int, words: nn.Embedding) -> dict[str, Any]:
    """Return what PEFT's configurations of prompts ask for; of two submodules one would idle."""
    return {
        "num_virtual_tokens": length,
        "token_dim": words.weight.shape[1],
        "num_transformer_submodules": 1,
    }


def _alike(encoder: nn.Module, length: int) -> Any:
    """Return what makes the same (1, P, ...) for each of a number of rows, as a view."""

    def make(num_rows: int) -> Tensor:
        places = torch.arange(length, device=next(encoder.parameters()).device)
        made = encoder(places[None])
        return made.expand(num_rows, *made.shape[1:])

    return make
