"""Where adapters go: names of a backbone's linear maps, and putting layers in their place."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from coadapt._errors import InputError, nearest
from coadapt.adapters.adapted import AbstractAdapted, Gated
from coadapt.adapters.linear import linear_shape

Layer = TypeVar("Layer", bound=AbstractAdapted[Gated])

# An output head or a pooler is not part of the backbone proper: PEFT's "all-linear" leaves the
# head out too, and the pooler of a mean-pooled encoder is not even run.
_NOT_BACKBONE = re.compile(r"(^|\.)(pooler|classifier|score|lm_head)(\.|$)")

# What stands in a layer beside its feed-forward part, by the class around a map: whatever mixes
# positions, and what sends tokens to experts; or by the map's own name. Tried on the text models of
# transformers 5.23.
_BESIDE_MLP = re.compile(
    r"(Attention|Mamba)(?!DecoderLayer)|Attn|MLA$|Mixer|DeltaNet|ShortConv|LSTMLayer|"
    r"RecurrentBlock|Router|Gating$|Norm$|Adapter|Bottleneck"
)
_NOT_MLP = re.compile(r"router|gate|shared_expert_gate|per_layer_\w+")


# Query and value, or the map that holds them, of families that PEFT has no default for.
_UNKNOWN_TO_PEFT: dict[str, list[str]] = {
    "albert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "modernbert": ["Wqkv"],
    "mpnet": ["attn.q", "attn.v"],
    "phi3": ["qkv_proj"],
}


def target_names(backbone: nn.Module, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Return the full names of the modules to adapt, in the order in which the backbone has them.

    Args:
        backbone: a transformers model; a language model has its vocabulary's head.
        targets: ``"attention"`` (the projections that PEFT adapts by default in this family),
            ``"mlp"`` (the maps of the layers' feed-forward part; of a mixture of experts those that
            every token passes, for the experts are one tensor), ``"all-linear"`` (every linear map
            but poolers and heads), a regular expression that must match a full name, or a sequence
            of names or name endings (``"query"``). Of an image-text model only the language part
            is meant.

    Raises:
        InputError: if the family is unknown, nothing matches, or the vocabulary's head does.
    """
    head = _vocabulary_head(backbone)
    part = _language_part(backbone)
    linear = [
        name
        for name, module in backbone.named_modules()
        if linear_shape(module) and (name.startswith(part) or name == head)
    ]
    if targets == "all-linear":
        found = [name for name in linear if name != head and not _NOT_BACKBONE.search(name)]
    elif targets == "mlp":
        found = _feed_forward(backbone, linear)
        if not found:
            raise InputError(
                f"no feed-forward maps are known for model type '{_family(backbone)}'; set "
                "target_modules to names, a regular expression or 'all-linear'"
            )
    elif isinstance(targets, str) and targets != "attention":
        found = _matching(linear, targets)
    else:
        endings = _family_default(backbone) if targets == "attention" else list(targets)
        found = [n for n in linear if any(n == e or n.endswith(f".{e}") for e in endings)]
        _refuse_unmatched(linear, found, endings)
    if not found:
        raise InputError(
            f"target_modules {targets!r} matches no linear module{_hint(linear, targets)}"
        )
    if head in found:
        raise InputError(
            f"target_modules {targets!r} takes in '{head}', the vocabulary's head: its weight may "
            "be the embedding's too, so it is not adapted; leave it out"
        )
    return tuple(found)


def _language_part(backbone: nn.Module) -> str:
    """Return how names in the part that reads text begin: not the pictures' tower or projector."""
    model: Any = backbone
    if getattr(getattr(model, "config", None), "vision_config", None) is None:
        return ""
    part = model.get_decoder()
    return next((f"{n}." for n, module in model.named_modules() if module is part and n), "")


def _vocabulary_head(backbone: nn.Module) -> str | None:
    """Return the name of what turns a language model's vectors into logits; an encoder has none."""
    from transformers import PreTrainedModel

    head = backbone.get_output_embeddings() if isinstance(backbone, PreTrainedModel) else None
    return next((n for n, m in backbone.named_modules() if m is head), None)


def _feed_forward(backbone: nn.Module, linear: list[str]) -> list[str]:
    """Return the maps in numbered layers that are in no attention or the like."""
    modules = dict(backbone.named_modules())

    def is_in_mlp(name: str) -> bool:
        parts = name.split(".")
        around = [".".join(parts[:end]) for end in range(1, len(parts))]
        beside = any(_BESIDE_MLP.search(type(modules[parent]).__name__) for parent in around)
        return any(map(str.isdecimal, parts)) and not beside and not _NOT_MLP.fullmatch(parts[-1])

    return [name for name in linear if is_in_mlp(name)]


def feed_forward_groups(
    backbone: nn.Module, names: Sequence[str]
) -> list[tuple[tuple[str, ...], str]]:
    """Return the feed-forward parts that are to be adapted: the maps that read each, and its last.

    The last map (down, fc2) turns what the others made of the part's input into its output. Maps
    outside of any such part are left out.

    Args:
        backbone: a transformers model.
        names: the modules to adapt.

    Raises:
        InputError: if only some of the maps of a part are among ``names``, or it has another form.
    """
    groups, chosen = [], set(names)
    linear = [name for name, module in backbone.named_modules() if linear_shape(module)]
    for maps in _parts(_feed_forward(backbone, linear)):
        missing = [name for name in maps if name not in chosen]
        if len(maps) == 1 or len(missing) == len(maps):
            continue
        if missing:
            raise InputError(
                f"target_modules leaves out {', '.join(missing)} of the feed-forward part of "
                f"{', '.join(name for name in maps if name in chosen)}; take all of its maps "
                "('mlp' or 'all-linear') or none"
            )
        last = _last_of(backbone, maps)
        groups.append((tuple(name for name in maps if name != last), last))
    return groups


def _parts(maps: list[str]) -> list[list[str]]:
    """Divide by layer, and in a layer by the module around if that holds several maps."""
    around = [name.rpartition(".")[0] for name in maps]
    parts: dict[str, list[str]] = {}
    for name, parent in zip(maps, around, strict=True):
        layer = re.match(r".*\.\d+(?=\.)", name)
        key = parent if around.count(parent) > 1 or layer is None else f"{layer[0]}:"
        parts.setdefault(key, []).append(name)
    return list(parts.values())


def _last_of(backbone: nn.Module, maps: list[str]) -> str:
    """Return the map whose output is as wide as the others' input, and that reads what they make.

    It reads as much as each of them gives, or half of it where two are fused. Of several that fit
    it is the one that comes last.
    """
    shapes = {name: linear_shape(backbone.get_submodule(name)) or (0, 0) for name in maps}

    def fits(last: str) -> bool:
        inner, outer = shapes[last]
        others = [shapes[name] for name in maps if name != last]
        return all(read == outer and made in (inner, 2 * inner) for read, made in others)

    fitting = [name for name in maps if fits(name)]
    if not fitting:
        found = ", ".join(f"{name} ({i} to {o})" for name, (i, o) in shapes.items())
        raise InputError(
            f"the feed-forward part of model type '{_family(backbone)}' has another form than maps "
            f"that read its input and one that reads what they make: {found}; a mixture of "
            "feed-forwards cannot be made of it, take recipe 'lora_moe'"
        )
    return fitting[-1]


def _family(backbone: nn.Module) -> str:
    config: Any = getattr(backbone, "config", None)
    if getattr(config, "vision_config", None) is not None:
        config = config.get_text_config()
    return str(getattr(config, "model_type", ""))


def _matching(linear: list[str], pattern: str) -> list[str]:
    try:
        return [name for name in linear if re.fullmatch(pattern, name)]
    except re.error as error:
        raise InputError(f"target_modules {pattern!r} is no regular expression: {error}") from error


def _family_default(backbone: nn.Module) -> list[str]:
    family = _family(backbone)
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    known = {**_UNKNOWN_TO_PEFT, **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING}
    if family not in known:
        raise InputError(
            f"no default target modules are known for model type '{family}'; "
            "set target_modules to names, a regular expression or 'all-linear'"
        )
    return list(known[family])


def _refuse_unmatched(linear: list[str], found: list[str], endings: Sequence[str]) -> None:
    for ending in endings:
        if not any(name == ending or name.endswith(f".{ending}") for name in found):
            hint = _hint(linear, ending)
            raise InputError(f"target_modules: no linear module is named '{ending}'{hint}")


def _hint(linear: list[str], wanted: str | Sequence[str]) -> str:
    kinds = sorted({name.rsplit(".", 1)[-1] for name in linear})
    if isinstance(wanted, str) and wanted in kinds:
        return f"; a text is a regular expression for full names, write ['{wanted}'] for the ending"
    return nearest(wanted if isinstance(wanted, str) else "".join(wanted[:1]), kinds)


def inject(
    backbone: nn.Module, names: Sequence[str], make: Callable[[str, nn.Module], Layer]
) -> dict[str, Layer]:
    """Replace each named module by ``make(name, module)`` and return the new layers by name."""
    layers: dict[str, Layer] = {}
    for name in names:
        parent, _, child = name.rpartition(".")
        layer = make(name, backbone.get_submodule(name))
        setattr(backbone.get_submodule(parent), child, layer)
        layers[name] = layer
    return layers


def eject(backbone: nn.Module, layers: Mapping[str, AbstractAdapted[Gated]]) -> None:
    """Put the base modules back: the exact inverse of :func:`inject`, no weight was edited."""
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, layer.base)
