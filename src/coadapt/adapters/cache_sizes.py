"""How much a transformers model has room for: positions, and what a layer's cache holds."""

from typing import Any

from torch import nn

from coadapt._errors import InputError

_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")
_ATTENTION_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
# Of configurations whose layers keep other keys and values than each its own, of one shape.
_UNLIKE = (
    *("kv_lora_rank", "num_kv_shared_layers", "per_layer_config", "global_head_dim"),
    "multi_query",
)


def room_of(stack: nn.Module) -> int | None:
    """Return how many positions a stack has learned vectors for, None where it goes without."""
    for name, module in stack.named_modules():
        if name.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, nn.Embedding):
            # RoBERTa's first rows are for padding, OPT's and BART's are unused.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - max(unused, getattr(module, "offset", 0))
    return None


def window_of(config: Any) -> int | None:
    """Return how many positions a layer sees at once, None where all layers see all."""
    types = getattr(config, "layer_types", None)
    slides = types is None or "sliding_attention" in types
    return getattr(config, "sliding_window", None) if slides else None


def cache_shape(config: Any) -> tuple[int, int, int]:
    """Return layers, heads and a head's dimensions of the keys that a model caches.

    Of an encoder-decoder those of the decoder's self-attention.

    Raises:
        InputError: if its layers do not all keep keys and values of their own, of one shape.
    """
    apart = config.is_encoder_decoder
    layers, heads = _first(config, "num_hidden_layers"), _first(config, "num_attention_heads")
    if apart:
        layers = _first(config, "num_decoder_layers", "decoder_layers") or layers
        heads = _first(config, "decoder_attention_heads") or heads
    plain = config.to_dict()
    others = set(plain.get("layer_types") or ()) - _ATTENTION_TYPES
    if not layers or not heads or others or any(plain.get(name) for name in _UNLIKE):
        raise InputError(
            f"prefix tuning needs layers that all keep keys and values of one shape, which those "
            f"of a '{config.model_type}' do not; take structure 'prompt_tuning'"
        )
    width = _first(config, "head_dim", "d_kv") or config.hidden_size // heads
    return layers, _first(config, "num_key_value_heads", "num_kv_heads") or heads, width


def _first(config: Any, *names: str) -> int | None:
    return next((value for n in names if (value := getattr(config, n, None)) is not None), None)
