"""Extending the self-attention of a stock transformers model, through its registered functions."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from coadapt._errors import InputError
from coadapt.adapters.linear import linear_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXTENSION = "attention_extension"  # under which an attention module holds what is added to it
EXTENDABLE = ("eager", "sdpa")
_SUFFIX = "_with_extension"

_CROSS = re.compile(r"cross_?attention|EncDecAttention|encoder_attn|cross_attn", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)\.(\d+)\.")

# The maps that make keys and values, by the names that families give them; then those of one map
# that makes the queries too.
_APART = (("k_proj", "v_proj"), ("key", "value"), ("k", "v"), ("k_lin", "v_lin"))
_JOINED = ("Wqkv", "query_key_value")
_INTERLEAVED = ("gpt_neox", "gpt_neox_japanese")  # a head's query, key and value together

# What else some families do to keys or values, which `keys_and_values` does not.
_UNKNOWN = re.compile(r"(?!k_norm$)(qk|kv|k|key|v|value)_?(layer)?_?norm")


class Extension(Protocol):
    """What an attention module may hold."""

    def extend(self, attention: nn.Module, query: Tensor, scaling: float | None) -> Tensor | None:
        """Return (B, S, H, d_h) what is added to the heads' outputs, or None for nothing.

        Args:
            attention: the module.
            query: (B, H, S, d_h), after its position embedding.
            scaling: of the scores; None for 1 / sqrt(d_h).
        """


def self_attentions(backbone: nn.Module) -> dict[str, list[str]]:
    """Return the names of the self-attention modules in order, by the stack of layers they are in.

    A stack is an encoder's or a decoder's list of layers. Cross-attention is left out.

    Raises:
        InputError: if there is none whose keys and values are known.
    """
    stacks: dict[str, list[str]] = {}
    for name, module in backbone.named_modules():
        match = _NUMBERED.match(f"{name}.")
        if match and _maps(module) and not _CROSS.search(name):
            stacks.setdefault(match[1], []).append(name)
    if not stacks:
        pairs = ", ".join(f"{key}/{value}" for key, value in _APART)
        raise InputError(
            f"a {type(backbone).__name__} has no attention whose keys and values are known (maps "
            f"named {pairs}, {' or '.join(_JOINED)}); prompts cannot be put into it"
        )
    return stacks


def layer_of(name: str) -> str:
    """Return the name of the layer that a self-attention module of that name is a part of.

    >>> layer_of("encoder.layer.3.attention.self")
    'encoder.layer.3'
    """
    match = _NUMBERED.match(f"{name}.")
    assert match is not None
    return f"{match[1]}.{match[2]}"


def _maps(attention: nn.Module) -> tuple[str, ...]:
    """Return the names of the maps that make keys and values, one where it makes both, or none."""
    for names in (*_APART, *((name,) for name in _JOINED)):
        maps = [getattr(attention, name, None) for name in names]
        if all(isinstance(m, nn.Module) and linear_shape(m) for m in maps):
            return names
    return ()


def width(attention: nn.Module) -> int:
    """Return d, the length of the vectors that an attention module reads."""
    shape = linear_shape(getattr(attention, _maps(attention)[0]))
    assert shape is not None
    return shape[0]


def number_of_heads(attention: nn.Module) -> int:
    """Return H, how many heads of queries an attention module has."""
    for holder in (attention, getattr(attention, "config", None)):
        for name in ("num_heads", "num_attention_heads", "n_heads"):
            found = getattr(holder, name, None)
            if isinstance(found, int):
                return found
    raise InputError(f"how many heads a {type(attention).__name__} has is not known")


def keys_and_values(attention: nn.Module, x: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Return the keys and values, (N, H_kv, L, d_h) each, that an attention module makes of x.

    By its own frozen maps, biases and norms, without a position embedding.

    Args:
        attention: the module.
        x: (N, L, d) in the dtype of its weights.
        head_width: d_h.
    """
    names = _maps(attention)
    if len(names) == 2:
        keys, values = (getattr(attention, name)(x) for name in names)
        heads = (*x.shape[:-1], -1, head_width)
        norm = getattr(attention, "k_norm", None)
        # Over all heads together in some families (OLMo 2), in each head in others (Qwen 3; with
        # weights for each head: Cohere; without any: NanoChat).
        weight = getattr(norm, "weight", None)
        if norm is not None and weight is not None and weight.shape == keys.shape[-1:]:
            keys, norm = norm(keys), None
        keys, values = keys.view(heads), values.view(heads)
        keys = keys if norm is None else norm(keys)
    elif names == ("Wqkv",):
        joined = attention.Wqkv(x).view(*x.shape[:-1], 3, -1, head_width)  # pyright: ignore[reportCallIssue]
        _, keys, values = joined.unbind(dim=-3)
    else:  # as `_refuse_unknown` has seen to
        joined = attention.query_key_value(x).view(*x.shape[:-1], -1, 3 * head_width)  # pyright: ignore[reportCallIssue]
        _, keys, values = joined.chunk(3, dim=-1)
    return keys.transpose(-3, -2), values.transpose(-3, -2)


def _refuse_unknown(attention: nn.Module) -> None:
    """Refuse a module that makes its keys and values otherwise than `keys_and_values`."""
    config: Any = getattr(attention, "config", None)
    family = getattr(config, "model_type", type(attention).__name__)
    found = [name for name, _ in attention.named_children() if _UNKNOWN.fullmatch(name)]
    if getattr(config, "clip_qkv", None) is not None:
        found.append("clip_qkv")
    if _maps(attention) == ("query_key_value",) and family not in _INTERLEAVED:
        found.append("query_key_value")
    if found:
        raise InputError(
            f"how the attention of model type '{family}' makes its keys and values is not known, "
            f"for its '{found[0]}'; prompts cannot be put into it"
        )


def extend_attention(backbone: "PreTrainedModel", extensions: dict[str, Any]) -> None:
    """Let self-attention modules add what an extension makes of their queries.

    The model keeps its own attention function, masks and position biases: they are called as
    before, through functions that are registered with transformers under a name of ours. Whatever
    has no extension, cross-attention too, is as it was.

    Args:
        backbone: edited in place.
        extensions: modules that are an :class:`Extension`, by the name of an attention module.

    Raises:
        InputError: if the backbone runs an attention that cannot be extended.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # Models that were made of one configuration object have one name of their attention together.
    given = str(backbone.config._attn_implementation).removesuffix(_SUFFIX)
    if given not in EXTENDABLE:
        raise InputError(
            f"prompts cannot be put into attention '{given}'; set model.attn_implementation to "
            + " or ".join(EXTENDABLE)
        )
    if not backbone._can_set_attn_implementation():
        raise InputError(
            f"a {type(backbone).__name__} of this transformers does not run its attention through "
            "transformers' registered functions, so prompts cannot be put into it"
        )
    for module in extensions:
        _refuse_unknown(backbone.get_submodule(module))
    name = given + _SUFFIX
    # Without a mask function of this name transformers would leave out the padding mask unsaid.
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, {"eager": eager_mask, "sdpa": sdpa_mask}[given])
    ALL_ATTENTION_FUNCTIONS.register(name, _extended(given))
    backbone.set_attn_implementation(name)
    for module, extension in extensions.items():
        backbone.get_submodule(module).add_module(EXTENSION, extension)


def _extended(given: str) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        # Each family has an eager function of its own; the others are in transformers' table.
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        stock = own if given == "eager" else ALL_ATTENTION_FUNCTIONS[given]
        output, weights = stock(module, query, key, value, mask, **kwargs)  # pyright: ignore[reportOptionalCall]
        extension: Extension | None = getattr(module, EXTENSION, None)
        if extension is None:
            return output, weights
        added = extension.extend(module, query, kwargs.get("scaling"))
        return (output if added is None else output + added.to(output.dtype)), weights

    return attend


def last_layers(stacks: dict[str, list[str]], number: int | None) -> list[str]:
    """Return the last layers' modules of each stack; half of them, rounded up, if None.

    Args:
        stacks: of :func:`self_attentions`.
        number: of layers.

    Raises:
        InputError: if a stack has fewer layers.
    """
    found: list[str] = []
    for stack, names in stacks.items():
        count = (len(names) + 1) // 2 if number is None else number
        if count > len(names):
            raise InputError(f"layers: {count} is more than '{stack}' has, {len(names)}")
        found += names[len(names) - count :]
    return found


def matching(stacks: dict[str, list[str]], names: Sequence[str]) -> list[str]:
    """Return the modules among a model's self-attentions that are named, in the model's order.

    Raises:
        InputError: if one is not there.
    """
    every = [name for stack in stacks.values() for name in stack]
    for name in names:
        if name not in every:
            raise InputError(f"layers: no self-attention is named '{name}'; found {every}")
    return [name for name in every if name in names]
