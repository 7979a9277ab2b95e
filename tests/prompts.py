"""Tiny frozen models of many architectures with task prompts in them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    CohereConfig,
    ElectraConfig,
    GPT2Config,
    Olmo2Config,
    OlmoConfig,
    PhiConfig,
    Qwen3Config,
)

from coadapt.backbone import ModelConfig
from coadapt.model import MultiTaskModel
from coadapt.recipe import Recipe
from coadapt.structures import TaskPrompt
from coadapt.tasks import Task
from tests import small, tiny_encoders, tiny_language

ENCODERS = (*tiny_encoders.CONFIGS, "electra")
REFUSED = ("mpnet", "gpt2", "phi", "olmo")
_SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, Any] = {
    **{name: lambda make=make: make(60) for name, make in tiny_encoders.CONFIGS.items()},
    **tiny_language.CONFIGS,
    # With norms of keys: of each head; of all together; with weights for each head.
    "qwen3": lambda: Qwen3Config(**_SMALL, head_dim=8),
    "olmo2": lambda: Olmo2Config(**_SMALL),
    "cohere": lambda: CohereConfig(**_SMALL, use_qk_norm=True),
    # Words of fewer dimensions than its layers.
    "electra": lambda: ElectraConfig(**_SMALL, embedding_size=16),
    # Without maps to keys and values alone; with a norm, or bounds, that others have not.
    "gpt2": lambda: GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4),
    "phi": lambda: PhiConfig(**_SMALL, qk_layernorm=True),
    "olmo": lambda: OlmoConfig(**_SMALL, clip_qkv=1.0),
}


def make_backbone(name: str, attention: str = "eager", **changes: Any) -> Any:
    """Return a frozen random model without dropout, whose vectors are random too."""
    config = CONFIGS[name]()
    dropout = {key: 0.0 for key in config.to_dict() if "dropout" in key}
    config.update({**dropout, **changes})
    make: Any = AutoModel if name in ENCODERS else AutoModelForCausalLM
    make = AutoModelForSeq2SeqLM if config.is_encoder_decoder else make
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = make.from_config(config, attn_implementation=attention)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases, which start at zero, and norms
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def prompted(
    backbone: Any,
    structure: TaskPrompt,
    *,
    tasks: Sequence[Task] | None = None,
    seed: int = 0,
    regularizers: Any = (),
) -> MultiTaskModel:
    """Return a fresh model around a backbone, which is edited in place."""
    encodes = backbone.config.model_type in ENCODERS
    return MultiTaskModel(
        backbone,
        "mean" if encodes else None,
        tasks or (small.TASKS if encodes else tiny_language.TASKS),
        recipe=Recipe(structure=structure, regularizers=regularizers),
        plan=None,
        config=ModelConfig(name="tiny", dtype="float32"),
        seed=seed,
    ).eval()


@torch.no_grad()
def scatter(model: MultiTaskModel, std: float = 0.7, seed: int = 1) -> MultiTaskModel:
    """Draw all that is trained, so that gates are open and no prompt is like another."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in [*model.attached.tensors().values(), *model.heads.parameters()]:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def scattered(
    name: str, structure: TaskPrompt, attention: str = "eager", **changes: Any
) -> MultiTaskModel:
    """Return a model of an architecture with all that is trained drawn."""
    return scatter(prompted(make_backbone(name, attention, **changes), structure))


def make_inputs(name: str, lengths: Sequence[int], *, left: bool = False) -> dict[str, Tensor]:
    """Return rows of random tokens of some lengths, padded on one side; T5 has a decoder's too."""
    generator = torch.Generator().manual_seed(2)
    longest = max(lengths)
    ids = torch.randint(5, 50, (len(lengths), longest), generator=generator)
    places = torch.arange(longest)
    mask = (places < torch.tensor(lengths)[:, None]).long()
    mask = mask.flip(1) if left else mask
    found = {"input_ids": ids * mask, "attention_mask": mask}
    if left:
        found["position_ids"] = mask.cumsum(1).sub(1).clamp_min(0)
    if name == "t5":
        found["decoder_input_ids"] = torch.randint(
            5, 50, (len(lengths), longest - 1), generator=generator
        )
    return found


def run(model: MultiTaskModel, inputs: dict[str, Tensor], task_ids: Sequence[int]) -> Tensor:
    """Return the backbone's logits, or an encoder's last hidden states."""
    model.route.set(torch.tensor(task_ids))
    return read(model.backbone, inputs)


def read(backbone: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return a model's logits, or an encoder's last hidden states."""
    found = backbone(**inputs)
    return found.logits if "logits" in found else found.last_hidden_state
