"""Loading a stock transformers model, and turning an encoder's output into one vector a row."""

import hashlib
import inspect
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils.hub import cached_file

from coadapt._errors import InputError
from coadapt.assets import resolve_model
from coadapt.config import LATER
from coadapt.quantization import Quantization, quantized_arguments, settle_model

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls", "pooler"]
ModelKind = Literal["encoder", "decoder", "encoder-decoder", "image-text"]

_MASKED = MODEL_FOR_MASKED_LM_MAPPING_NAMES
_CLASSES: dict[ModelKind, Any] = {
    "encoder": AutoModel,
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
    "image-text": AutoModelForImageTextToText,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base model and how it is used.

    Args:
        name: a hub id, a folder, or an asset: ``asset:minilm``, ``asset:smollm2``.
        kind: ``encoder`` (heads on its vectors), ``decoder`` or ``encoder-decoder`` (language
            models, that score and write text), ``image-text`` (a decoder that sees pictures too);
            ``auto`` goes by the architecture, and takes an encoder where ``pooling`` is given.
        target_modules: ``attention`` (what PEFT adapts by default in the family), ``mlp`` (the
            feed-forward's linear maps: gate, up and down), ``all-linear``, a regular expression, or
            names.
        pooling: ``mean`` over the tokens, ``cls`` (the first token) or the model's own trained
            ``pooler``; ``auto`` takes what a sentence encoder declares, else a trained pooler, else
            ``cls``.
        dtype: of the frozen backbone; ``auto`` is bfloat16 where the processor has it. Adapters,
            heads, losses and optimizer state are float32 always.
        max_length: tokens; longer texts are cut and counted. Of a language model's prompt the
            middle is cut, of an answer nothing, see `coadapt.tasks.language.PromptStyle`.
        chat: whether the tokenizer's chat template makes a language model's prompts.
        prompt_loss: whether a decoder learns the prompt's tokens too, not the answer's alone.
        backbone_dropout: keep the backbone's own dropout while training, as stock PEFT does. Off
            saves drawing its masks, and regularises less.
        attn_implementation: passed to transformers. None takes ``eager`` on a CPU, where the fused
            kernel's backward is slower than plain products (``benchmarks/step.py --attention``),
            and leaves the choice to transformers elsewhere.
        trust_remote_code: passed to transformers; runs code that the model's author ships.
        quantization: pack the linear maps of the frozen backbone in four or eight bits, see
            :class:`coadapt.quantization.Quantization`.
    """

    name: str
    kind: Literal["auto", "encoder", "decoder", "encoder-decoder", "image-text"] = field(
        default="auto", metadata=LATER
    )
    target_modules: str | tuple[str, ...] = "attention"
    pooling: Literal["auto", "mean", "cls", "pooler"] = "auto"
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    max_length: int = 256
    chat: bool = field(default=False, metadata=LATER)
    prompt_loss: bool = field(default=False, metadata=LATER)
    backbone_dropout: bool = True
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    quantization: Quantization | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        """Check the range."""
        if self.quantization is not None and self.dtype == "float64":
            raise InputError(
                "model.dtype float64 is none that a quantised model computes in; take float32"
            )
        if self.max_length < 1:
            raise InputError(f"model.max_length must be at least 1, not {self.max_length}")


def has_fast_bfloat16() -> bool:
    """Return whether this machine's processor computes in bfloat16 natively."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("arm_bf16"))


def compute_dtype(name: str) -> torch.dtype:
    """Return the torch dtype that ``ModelConfig.dtype`` means on this machine."""
    if name == "auto":
        name = "bfloat16" if has_fast_bfloat16() else "float32"
    return {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}[name]


def model_kind(config: ModelConfig) -> ModelKind:
    """Return which kind of model the configuration names, without loading its weights.

    Raises:
        InputError: if there is no configuration under that name.
    """
    return _kind(config, _read_config(config)[1])


def encoder_prefix(config: ModelConfig) -> str:
    """Return what an encoder's modules are called after in a stock model with a head, as ``bert.``.

    Empty for a language model, which is loaded with its head.
    """
    if model_kind(config) != "encoder":
        return ""
    stock: Any = transformers.MODEL_MAPPING[type(_read_config(config)[1])]
    return f"{stock.base_model_prefix}."


def is_quantized(config: ModelConfig) -> bool:
    """Return whether the model is to be packed as it is loaded, or lies packed in its folder.

    Raises:
        InputError: if there is no configuration under that name.
    """
    hf_config = _read_config(config)[1]
    packed = getattr(hf_config, "quantization_config", None) is not None
    return packed or config.quantization is not None


def _kind(config: ModelConfig, hf_config: Any) -> ModelKind:
    if config.kind != "auto":
        return config.kind
    if config.pooling != "auto":  # heads are asked for
        return "encoder"
    if hf_config.is_encoder_decoder:
        return "encoder-decoder"
    family = hf_config.model_type
    if sees_pictures(hf_config) and family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "image-text"
    # Encoders are in both tables: BERT can be made a decoder.
    if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in _MASKED:
        return "decoder"
    return "encoder"


def language_kind(hf_config: Any) -> ModelKind:
    """Return which kind of language model one of this configuration is."""
    if hf_config.is_encoder_decoder:
        return "encoder-decoder"
    return "image-text" if sees_pictures(hf_config) else "decoder"


def sees_pictures(hf_config: Any) -> bool:
    """Whether a model of this configuration has a part that reads pictures."""
    return getattr(hf_config, "vision_config", None) is not None


def load_backbone(
    config: ModelConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, Pooling | None]:
    """Load the model, frozen: an encoder without head, with how it is pooled; or a language model.

    Raises:
        InputError: if nothing loads under that name, or the pooler asked for was never trained.
    """
    path, hf_config, declared = _read_config(config)
    kwargs: dict[str, Any] = {"config": hf_config, "dtype": dtype, "use_safetensors": True}
    attention = config.attn_implementation or (None if torch.cuda.is_available() else "eager")
    if attention is not None:
        kwargs["attn_implementation"] = attention
    kind = _kind(config, hf_config)
    if kind == "encoder":
        kwargs |= _pooling_argument(declared, hf_config)
    quantized = quantized_arguments(config.quantization, hf_config, config.name)
    try:
        with quiet_loading():
            backbone, info = _CLASSES[kind].from_pretrained(
                path,
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
                **kwargs | (quantized or {}),
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"model '{config.name}' could not be loaded: {error}") from error
    _refuse_missing(config, info)
    if quantized is not None:
        settle_model(backbone, dtype)
    backbone.requires_grad_(False)
    if kind != "encoder":
        return backbone, None
    pooling = declared or ("pooler" if _has_trained_pooler(backbone, info) else "cls")
    if pooling == "pooler" and not _has_trained_pooler(backbone, info):
        raise InputError(
            f"model '{config.name}' has no trained pooler; set model.pooling to mean or cls"
        )
    return backbone, pooling


def empty_backbone(config: ModelConfig) -> PreTrainedModel:
    """Return what :func:`load_backbone` loads, but without weights (torch's meta device).

    Raises:
        InputError: if there is no configuration under that name.
    """
    _, hf_config, declared = _read_config(config)
    kind = _kind(config, hf_config)
    pooling = _pooling_argument(declared, hf_config) if kind == "encoder" else {}
    with torch.device("meta"):
        backbone = _CLASSES[kind].from_config(
            hf_config, trust_remote_code=config.trust_remote_code, **pooling
        )
    return backbone.requires_grad_(False)


def _read_config(config: ModelConfig) -> tuple[str, Any, Pooling | None]:
    """Return where the model lies, its configuration, and the pooling that it or we declare."""
    path = resolve_model(config.name)
    try:
        hf_config = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"model '{config.name}' could not be loaded: {error}") from error
    if not config.backbone_dropout:
        _drop_dropout(hf_config)
    return path, hf_config, config.pooling if config.pooling != "auto" else _declared_pooling(path)


def _drop_dropout(hf_config: Any) -> None:
    for key, value in hf_config.to_dict().items():
        if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
            setattr(hf_config, key, 0.0)


def _declared_pooling(path: str) -> Pooling | None:
    found = cached_file(path, "1_Pooling/config.json", _raise_exceptions_for_missing_entries=False)
    if found is None:
        return None
    declared = json.loads(Path(found).read_text(encoding="utf-8"))
    return "cls" if declared.get("pooling_mode_cls_token") else "mean"


def _pooling_argument(declared: Pooling | None, hf_config: Any) -> dict[str, Any]:
    """Return what leaves out a pooler that will not be used, where the model's class can."""
    try:
        model_class = AutoModel._model_mapping[type(hf_config)]
    except KeyError:  # code of the model's own
        return {}
    takes = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if takes and declared in ("mean", "cls") else {}


def _refuse_missing(config: ModelConfig, info: dict[str, Any]) -> None:
    """Refuse a backbone of which some weights would be left at random values."""
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise InputError(
            f"model '{config.name}' lacks {len(missing)} of its weights, such as '{missing[0]}'; "
            "they would be random. Take a complete checkpoint of this architecture"
        )


def _has_trained_pooler(backbone: nn.Module, info: dict[str, Any]) -> bool:
    missing = any(key.startswith("pooler.") for key in info["missing_keys"])
    return isinstance(getattr(backbone, "pooler", None), nn.Module) and not missing


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers from reporting the pooler that we leave out as an unexpected key."""
    logs = transformers.utils.logging
    verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()


def pool(output: Any, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one float32 (or wider) vector a row.

    Args:
        output: of the backbone, with ``last_hidden_state`` (B, S, d).
        attention_mask: (B, S), 1 at tokens and 0 at padding.
        pooling: see :class:`ModelConfig`.
    """
    if pooling == "pooler":
        pooled = output.pooler_output
    elif pooling == "cls":
        pooled = output.last_hidden_state[:, 0]
    else:
        hidden = _at_least_float32(output.last_hidden_state)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1.0)
    return _at_least_float32(pooled)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def fingerprint(backbone: nn.Module) -> str:
    """Return a short hash that tells one base model from another, whatever dtype it is loaded in.

    Names, shapes and the first 64 values of each weight, rounded to bfloat16: cheap for a model of
    any size, and blind to the dtype, since rounding twice is rounding once. Of a weight that is
    packed, its bytes and scales.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in backbone.state_dict().items():
        if ".quant_state." in name:  # tells the dtype that packed weights compute in
            continue
        values = weight.flatten()[:64].to(torch.bfloat16).view(torch.int16).cpu().numpy()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + values.tobytes())
    return digest.hexdigest()
