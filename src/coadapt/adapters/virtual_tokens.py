"""Virtual tokens of a frozen model: a prompt before its embeddings, or a prefix in its cache."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from coadapt._errors import InputError
from coadapt.adapters.cache_sizes import cache_shape, room_of, window_of
from coadapt.adapters.route import Route

Given = dict[str, Any]


class AbstractVirtualTokens(ABC):
    """Hooks that let a model's stack of layers attend to P positions that are no text.

    They stay on the model. What is trained is made anew in each forward that begins a text; one
    that goes on from a cache finds it there.

    Args:
        length: P.
        make: makes it for a number of rows, in their order.
        route: the rows' tasks; nothing is done while it says the bare model.
    """

    def __init__(self, length: int, make: Callable[[int], Tensor], route: Route) -> None:
        self.length, self.make, self.route = length, make, route
        self._room: int | None = None
        # Where the text is in the forward that is running, if a prompt was put into it; (B, S).
        self._text: Tensor | slice | None = None

    @abstractmethod
    def hook(self, backbone: Any) -> None:
        """Put the hooks on a transformers model.

        Raises:
            InputError: if a model of this kind cannot take them.
        """

    def _take(self, stack: Any, *needed: str) -> None:
        """Hook a stack of layers, whose forward has to take what is needed."""
        _require(stack, "attention_mask", *needed)
        self._room = room_of(stack)
        stack.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, stack: Any, args: tuple[Any, ...], kwargs: Given) -> Any:
        self._text = None
        if self.route.bare:
            return None
        names = inspect.signature(stack.forward).parameters
        return (), self.extended(stack, dict(zip(names, args, strict=False)) | kwargs)

    @abstractmethod
    def extended(self, stack: Any, given: Given) -> Given:
        """Return the arguments of a stack's forward with the virtual tokens in them."""

    def _check(self, stack: nn.Module, given: Given, seen: int) -> None:
        """Refuse packed rows, and more positions than the stack has vectors for.

        Args:
            stack: of layers.
            given: the arguments of its forward.
            seen: positions in the cache, the virtual ones included.
        """
        task_ids, positions = self.route.task_ids, given.get("position_ids")
        packed = task_ids is not None and task_ids.dim() > 1
        if given.get("attention_mask") is None and positions is not None:
            packed = packed or bool((positions.diff() < 0).any())
        if packed:
            raise InputError(
                "rows that are packed into one cannot have virtual tokens each; set packing to "
                "false"
            )
        num_tokens = _tokens(given).shape[1]
        if self._room is not None and max(seen, self.length) + num_tokens > self._room:
            raise InputError(
                f"{self.length} virtual tokens and a text of "
                f"{max(seen - self.length, 0) + num_tokens} are more than the {self._room} "
                f"positions that a {type(stack).__name__} has, or a layer of it sees; set "
                f"model.max_length to at most {self._room - self.length}, what is written "
                "included, or length to fewer"
            )

    def _move_text(self, given: Given) -> None:
        """Let the text's positions begin at P."""
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + self.length


class VirtualPrompt(AbstractVirtualTokens):
    """Embeddings, (B, P, d) of :attr:`make`, before those of the text.

    In a row that is padded on the left they stand behind the padding, since a window of attention
    counts that too. What leaves the stack has the text's positions alone, and a pooler sees these
    alone. An encoder-decoder has the prompt in its encoder, whose output keeps it: the decoder
    attends to it.
    """

    def hook(self, backbone: Any) -> None:
        """Put the hooks on a transformers model."""
        if backbone.config.is_encoder_decoder:
            self._take(backbone.get_encoder(), "inputs_embeds")
            backbone.get_decoder().register_forward_pre_hook(self._let_see, with_kwargs=True)
            return
        stack = backbone.base_model
        self._take(stack, "inputs_embeds")
        if backbone.can_generate():
            _require(stack, "past_key_values")
        stack.register_forward_hook(self._after)
        pooler = getattr(stack, "pooler", None)
        if isinstance(pooler, nn.Module):
            pooler.register_forward_pre_hook(self._before_pooler)

    def extended(self, stack: Any, given: Given) -> Given:
        """Put the prompt before a text that begins; else count it in."""
        seen = _seen(given)
        self._check(stack, given, seen)
        self._move_text(given)
        order = _behind_padding(given.get("attention_mask"), self.length)
        _begin(given, "attention_mask", torch.ones(self.length), order)
        if seen:
            return given
        if given.get("inputs_embeds") is None:
            given["inputs_embeds"] = stack.get_input_embeddings()(given["input_ids"])
        given["input_ids"] = None
        text = given["inputs_embeds"]
        prompt = self.make(len(text)).to(text.dtype)
        given["inputs_embeds"] = _ordered(torch.cat([prompt, text], dim=1), order)
        _begin(given, "position_ids", torch.arange(self.length), order)
        _begin(given, "token_type_ids", torch.zeros(self.length), order)
        self._text = slice(self.length, None)
        if order is not None:
            self._text = (order >= self.length).nonzero()[:, 1].view(len(text), -1)
        return given

    def _after(self, stack: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = self._text_of(output.last_hidden_state)
        self._text = None
        return output

    def _before_pooler(self, pooler: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._text_of(args[0]), *args[1:]

    def _text_of(self, states: Tensor) -> Tensor:
        """Return (B, S, d) of (B, P + S, d), where a prompt was put in."""
        if isinstance(self._text, slice):
            return states[:, self._text]
        return _ordered(states, self._text)

    def _let_see(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Given) -> Any:
        """Lengthen the mask of an encoder's output that has the prompt in it."""
        states, mask = (kwargs.get(f"encoder_{key}") for key in ("hidden_states", "attention_mask"))
        if states is None or mask is None or states.shape[1] == mask.shape[1]:
            return None
        assert states.shape[1] == mask.shape[1] + self.length
        given = dict(kwargs)
        order = _behind_padding(mask, self.length)
        _begin(given, "encoder_attention_mask", torch.ones(self.length), order)
        return args, given


class VirtualPrefix(AbstractVirtualTokens):
    """Keys and values, (B, P, 2 L H d_h) of :attr:`make`, in the cache before the text begins.

    Layer by layer its keys, then its values, as PEFT orders them. Of an encoder-decoder in the
    decoder's self-attention. Where layers see a window, prefix and text have to fit in it.
    """

    def hook(self, backbone: Any) -> None:
        """Put the hook on a transformers model."""
        apart = backbone.config.is_encoder_decoder
        self._shape = cache_shape(backbone.config)
        stack = backbone.get_decoder() if apart else backbone.base_model
        self._take(stack, "past_key_values")
        # Of a window, padding on the left would push the prefix out, and in some rows only.
        self._room = self._room or window_of(backbone.config)
        stack.register_forward_hook(self._give_no_cache, with_kwargs=True)

    def extended(self, stack: Any, given: Given) -> Given:
        """Fill the cache, or a new one, where a text begins; else count the prefix in."""
        seen = _seen(given)
        self._check(stack, given, seen)
        if stack.training and stack.is_activation_checkpointing:
            raise InputError(
                "a prefix of keys and values cannot be had with activation checkpointing, which "
                "leaves the cache out; set training.activation_checkpointing to false"
            )
        if not seen:
            if given.get("past_key_values") is None:
                given["past_key_values"] = _empty_cache(stack.config)
            cache, tokens = given["past_key_values"], _tokens(given)
            self._fill(cache, len(tokens), stack.get_input_embeddings().weight.dtype)
        _begin(given, "attention_mask", torch.ones(self.length))
        self._move_text(given)
        return given

    def _give_no_cache(
        self, stack: nn.Module, args: tuple[Any, ...], kwargs: Given, output: Any
    ) -> Any:
        """Keep the cache from a caller who wants none and would go on from it."""
        if kwargs.get("use_cache") is False:
            output.past_key_values = None
        return output

    def _fill(self, cache: Any, num_rows: int, dtype: torch.dtype) -> None:
        from transformers import EncoderDecoderCache

        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        layers, heads, width = self._shape
        states = self.make(num_rows).to(dtype)
        states = states.view(num_rows, self.length, 2 * layers, heads, width).permute(2, 0, 3, 1, 4)
        for layer in range(layers):
            own.update(states[2 * layer], states[2 * layer + 1], layer)


def _require(stack: Any, *names: str) -> None:
    known = inspect.signature(stack.forward).parameters
    for name in names:
        if name not in known:
            raise InputError(
                f"a {type(stack).__name__} takes no {name}, which virtual tokens need; take a "
                "LoRA, or another model"
            )


def _behind_padding(mask: Tensor | None, length: int) -> Tensor | None:
    """Return (B, P + S) which of [P; text] stands where: padding, then P, then what is no padding.

    None where no row is padded on the left.
    """
    if mask is None or bool(mask[:, 0].all()):
        return None
    padding = (mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
    places = torch.arange(length + mask.shape[1], device=mask.device)
    behind = torch.where(places < padding + length, places - padding, places)
    return torch.where(places < padding, places + length, behind)


def _begin(given: Given, name: str, first: Tensor, order: Tensor | None = None) -> None:
    """Put values, (P,), before each row of an argument, where it is given."""
    rest = given.get(name)
    if rest is not None:
        first = first.to(rest).expand(*rest.shape[:-1], -1)
        given[name] = _ordered(torch.cat([first, rest], dim=-1), order)


def _ordered(values: Tensor, order: Tensor | None) -> Tensor:
    """Return (B, N, ...) values in an order, (B, N or fewer), of each row's."""
    if order is None:
        return values
    return values.expand(len(order), *values.shape[1:])[torch.arange(len(order))[:, None], order]


def _tokens(given: Given) -> Tensor:
    tokens = given.get("input_ids")
    return given["inputs_embeds"] if tokens is None else tokens


def _seen(given: Given) -> int:
    cache = given.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def _empty_cache(config: Any) -> Any:
    from transformers import DynamicCache, EncoderDecoderCache

    if config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache()
