"""Tiny frozen models with PEFT's prompts behind our hooks, and the same in stock PEFT."""

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import (
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from torch import Tensor, nn

from coadapt.backbone import ModelConfig
from coadapt.model import MultiTaskModel
from coadapt.recipe import Recipe
from coadapt.structures import MultitaskPromptTuning, PrefixTuning, PromptTuning
from tests import small, tiny_language
from tests.language.toys import OTHERS
from tests.prompts import CONFIGS, ENCODERS, make_backbone, make_inputs, scatter

LENGTH = 3
PROMPT = PromptTuning(length=LENGTH)
PREFIX = PrefixTuning(length=LENGTH)
PROJECTED = PrefixTuning(length=LENGTH, prefix_projection=True, encoder_hidden_size=5)
MULTITASK = MultitaskPromptTuning(length=LENGTH, num_ranks=2)
STRUCTURES = {
    "prompt": PROMPT,
    "prefix": PREFIX,
    "projected": PROJECTED,
    "multitask": MULTITASK,
}


def gentle(name: str, **changes: Any) -> Any:
    """Return a backbone whose rounding is not blown up by scores in the hundreds.

    Unless told otherwise Gemma 2 has a window that no test fills, GPT-2 the toy tokenizer's
    vocabulary, and BART fewer heads in its decoder than in its encoder.
    """
    named: dict[str, Any] = {
        "gemma2": {"sliding_window": 128},
        "gpt2": {"vocab_size": tiny_language.VOCABULARY},
        "bart": {"decoder_attention_heads": 2},
    }
    weights: Any = {} if name in ("t5", "bart", "gpt2") else {"initializer_range": 0.1}
    with pytest.MonkeyPatch.context() as patch:
        for other, make in OTHERS.items():
            patch.setitem(CONFIGS, other, make)
        return make_backbone(name, **{**weights, **named.get(name, {}), **changes})


def tuned(backbone: Any, structure: Any, *, seed: int = 0, pooling: Any = "mean") -> MultiTaskModel:
    """Return a model around a backbone, which is edited in place; its module as it starts."""
    encodes = backbone.config.model_type in ENCODERS
    return MultiTaskModel(
        backbone,
        pooling if encodes else None,
        small.TASKS if encodes else tiny_language.TASKS,
        recipe=Recipe(structure=structure),
        plan=None,
        config=ModelConfig(name="tiny", dtype="float32"),
        seed=seed,
    ).eval()


def scattered(name: str, structure: Any, **changes: Any) -> MultiTaskModel:
    """Return a model of an architecture with all that is trained drawn, prompts among it large."""
    return scatter(tuned(gentle(name, **changes), structure))


def stock(model: MultiTaskModel, backbone: Any) -> Any:
    """Return stock PEFT around another copy of the backbone, with a model's prompts."""
    structure: Any = model.recipe.structure
    kinds = {"encoder": TaskType.FEATURE_EXTRACTION, "decoder": TaskType.CAUSAL_LM}
    options: dict[str, Any] = {
        "task_type": kinds.get(model.kind, TaskType.SEQ_2_SEQ_LM),
        "num_virtual_tokens": structure.length,
    }
    if isinstance(structure, PrefixTuning):
        config: Any = PrefixTuningConfig(
            **options,
            prefix_projection=structure.prefix_projection,
            encoder_hidden_size=structure.encoder_hidden_size,  # pyright: ignore[reportArgumentType]
        )
    elif isinstance(structure, PromptTuning):
        config = PromptTuningConfig(**options, num_transformer_submodules=1)
    else:
        config = MultitaskPromptTuningConfig(
            **options,
            num_transformer_submodules=1,
            num_tasks=len(model.tasks),
            num_ranks=structure.num_ranks,
        )
    with warnings.catch_warnings():  # it asks transformers by a name that will go
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        found: Any = get_peft_model(backbone, config).eval()
    stock_module(found).load_state_dict(own_module(model).state_dict())
    return found


def own_module(model: MultiTaskModel) -> nn.Module:
    """Return PEFT's module in ours."""
    return model.backbone.get_submodule("prompt_encoder")


def stock_module(peft_model: Any) -> nn.Module:
    """Return PEFT's module in stock PEFT's."""
    return peft_model.prompt_encoder["default"]


def told(model: MultiTaskModel, task_ids: Sequence[int]) -> dict[str, Tensor]:
    """Return the rows' tasks, where stock PEFT asks for them."""
    own = model.recipe.structure.depends_on == "task"
    return {"task_ids": torch.tensor(task_ids)} if own else {}


def labelled(name: str, lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return a padded batch with tokens to predict, as T5 and BART take them."""
    inputs = make_inputs(name, lengths)
    inputs.pop("decoder_input_ids", None)
    drawn = torch.Generator().manual_seed(4)
    return {**inputs, "labels": torch.randint(5, 50, (len(lengths), 4), generator=drawn)}


@torch.no_grad()
def written(model: Any, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Return the eight tokens that ``generate`` adds, and the logits they were chosen by."""
    found = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return found.sequences[:, -8:], torch.stack(found.logits, dim=1)


def gradients_of(module: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """Return the gradient by parameter of a weighted sum of what a model computes."""
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad((value * weights).sum(), parameters)
    return dict(zip(names, found, strict=True))


def assert_same(
    model: MultiTaskModel, ours: Tensor, peft_model: Any, theirs: Tensor, *, tolerance: float = 1e-5
) -> None:
    """Assert that two computations are the same, and so are their gradients."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    found = gradients_of(own_module(model), ours)
    wanted = gradients_of(stock_module(peft_model), theirs)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.any(), name
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance * scale)
