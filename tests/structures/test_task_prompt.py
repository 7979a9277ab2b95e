"""Task prompts in attention: against the slow oracle, at start, with padding, their keys."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from coadapt.adapters.attention import keys_and_values, number_of_heads
from coadapt.model import MultiTaskModel
from coadapt.structures import TaskPrompt
from tests.prompts import (
    CONFIGS,
    ENCODERS,
    REFUSED,
    make_backbone,
    make_inputs,
    prompted,
    read,
    run,
    scatter,
    scattered,
)
from tests.reference.slow_prompts import BERT, LLAMA, T5, SlowAttention, slow_prompt

MIXED = (1, 0, 2, 1)
LENGTHS = (6, 3, 5, 1)

# Against the oracle ------------------------------------------------------------------------------

FAMILIES = {"bert": BERT, "llama": LLAMA, "qwen2": LLAMA, "t5": T5}
PAPER = TaskPrompt(length=3, scale=1.5, layers=2)
HADAMARD = TaskPrompt(length=3, form="hadamard", gate="head", fast_rank=2, layers=2)
COMMON = TaskPrompt(length=3, fast_rank=0, gate="none", layers=2)
CASES = [(name, part) for name in FAMILIES for part in (PAPER, HADAMARD, COMMON)] + [
    ("llama", replace(PAPER, fast_rank=2, gate="head", inner_rank=1)),
    ("llama", replace(HADAMARD, fast_rank=1, gate="none")),
    ("llama", replace(HADAMARD, fast_rank=0, gate="layer")),
]


def told(value: Any) -> str:
    if not isinstance(value, TaskPrompt):
        return value
    return f"{value.form}-{value.gate}-{value.fast_rank}"


def slow_copy(model: MultiTaskModel, backbone: Any, name: str) -> dict[str, Tensor]:
    """Put slow attentions into a stock backbone, and return float64 leaves of what is trained."""
    structure: Any = model.recipe.structure
    tensors = {n: p.detach().double().requires_grad_() for n, p in model.attached.tensors().items()}
    for module in model.attached.prompts:
        part = {key: tensors.get(f"shared/{module}/{key}") for key in ("theta", "B", "g")}
        prompts = [
            slow_prompt(
                tensors[f"shared/{module}/theta"],
                part["B"],
                tensors.get(f"{model.task_names[task]}/{module}/u"),
                tensors.get(f"{model.task_names[task]}/{module}/v"),
                scale=structure.scale,
                form=structure.form,
            )
            for task in MIXED
        ]
        decodes = module.startswith("decoder")
        stack, bias = module.split(".")[0], None
        if FAMILIES[name].bias:
            first = backbone.get_submodule(f"{stack}.block.0.layer.0.SelfAttention")
            bias = getattr(first, "bias", None)
            bias = first.relative_attention_bias.weight if bias is None else bias
        slow = SlowAttention(
            backbone.get_submodule(module),
            FAMILIES[name],
            causal=decodes or FAMILIES[name].rotary is not None,
            lengths=[max(LENGTHS) - 1] * len(LENGTHS) if decodes else LENGTHS,
            prompts=prompts,
            gate=part["g"],
            bias=bias,
        )
        parent, _, child = module.rpartition(".")
        setattr(backbone.get_submodule(parent), child, slow)
    return tensors


def weighed(outputs: Tensor, name: str) -> Tensor:
    """Return a scalar of the outputs at tokens, none of padding."""
    weights = torch.randn(outputs.shape[-1], generator=torch.Generator().manual_seed(4))
    if name != "t5":
        outputs = outputs[make_inputs(name, LENGTHS)["attention_mask"].bool()]
    return (outputs @ weights.to(outputs)).mean()


def close(mine: Tensor, exact: Tensor, tolerance: float) -> None:
    assert mine.shape == exact.shape
    largest = float(exact.detach().abs().max())
    assert float((mine.double() - exact).detach().abs().max()) <= tolerance * largest


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("name", "structure"), CASES, ids=told)
def test_outputs_and_gradients_against_loops(name, structure, attention):
    dtype = torch.float64 if attention == "eager" else torch.float32
    rotates = FAMILIES[name].rotary is not None  # and that, and its norms, in float32 always
    tolerance = 1e-5 if rotates or dtype == torch.float32 else 1e-11
    weights: Any = {"initializer_range": 0.1} if rotates else {}
    model = scattered(name, structure, attention, **weights).to(dtype)
    backbone, inputs = make_backbone(name, **weights).double(), make_inputs(name, LENGTHS)
    exact = slow_copy(model, backbone, name)
    mine, value = weighed(run(model, inputs, MIXED), name), weighed(read(backbone, inputs), name)
    close(mine, value, tolerance)
    mine.backward()
    value.backward()
    moved = 0
    for key, parameter in model.attached.tensors().items():
        wanted = exact[key].grad
        assert parameter.grad is not None, key
        assert wanted is not None, key
        close(parameter.grad, wanted, tolerance)
        moved += bool(wanted.abs().max() > 1e-3)
    assert moved == len(exact)  # each of them does something
    with torch.no_grad():  # each task's keys and values on their own
        close(weighed(run(model, inputs, MIXED), name), value, tolerance)


# At start, and padding ---------------------------------------------------------------------------

FRESH = ("bert", "roberta", "modernbert", "llama", "qwen2", "gemma2", "gpt_neox", "t5")
NO_SDPA = ("gemma2",)  # of transformers itself
ROWS = [
    (name, attention)
    for name in FRESH
    for attention in ("eager", "sdpa")
    if not (attention == "sdpa" and name in NO_SDPA)
]


@pytest.mark.parametrize(("name", "attention"), ROWS)
def test_a_fresh_model_is_the_frozen_one(name, attention):
    model = prompted(make_backbone(name, attention), TaskPrompt(layers=2))
    base, inputs = make_backbone(name, attention), make_inputs(name, LENGTHS)
    assert model.num_trainable["adapters"] > 0
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.equal(run(model, inputs, MIXED), read(base, inputs))
    scatter(model)
    assert not torch.allclose(run(model, inputs, MIXED), read(base, inputs), atol=1e-2)
    with torch.no_grad(), model.route.without_adapters():
        assert torch.equal(run(model, inputs, MIXED), read(base, inputs))


@pytest.mark.parametrize(("name", "attention"), ROWS)
@torch.no_grad()
def test_a_padded_batch_is_its_rows_alone(name, attention):
    model = scattered(name, TaskPrompt(length=3, layers=2), attention)
    decodes = not (name in ENCODERS or name == "t5")
    if not decodes:  # stock decoders' softmax in float32 has no numbers for float64's mask
        model.double()
    inputs = make_inputs(name, LENGTHS, left=decodes)
    together = run(model, inputs, MIXED)
    for row, (task, length) in enumerate(zip(MIXED, LENGTHS, strict=True)):
        real = slice(max(LENGTHS) - length, None) if decodes else slice(length)
        alone = {n: x[row : row + 1] for n, x in inputs.items() if n != "attention_mask"}
        alone = {n: x if n.startswith("decoder") else x[:, real] for n, x in alone.items()}
        mine = together[row] if name == "t5" else together[row, real]
        close(mine, run(model, alone, [task])[0].double(), 3e-6 if decodes else 1e-11)


# The keys and values of a module's own -----------------------------------------------------------


KNOWN = [name for name in CONFIGS if name not in REFUSED]
NO_ROTARY = ("bert", "roberta", "electra", "t5")


@pytest.mark.parametrize("name", KNOWN)
@torch.no_grad()
def test_keys_and_values_are_what_the_attention_is_called_with(name, monkeypatch):
    backbone, inputs = make_backbone(name), make_inputs(name, (5, 5))
    modules = prompted(make_backbone(name), TaskPrompt(layers=2)).attached.prompts
    read_by, called = {}, {}
    home = sys.modules[type(backbone.get_submodule(next(iter(modules)))).__module__]
    stock = home.eager_attention_forward

    def attend(module, query, key, value, *args, **kwargs):
        called[module] = query, key, value
        return stock(module, query, key, value, *args, **kwargs)

    def note(module, args, kwargs):
        read_by[module] = args[0] if args else kwargs["hidden_states"]

    monkeypatch.setattr(home, "eager_attention_forward", attend)
    for module in modules:
        backbone.get_submodule(module).register_forward_pre_hook(note, with_kwargs=True)
    read(backbone, inputs)
    assert len(read_by) == len(modules)
    for module, x in read_by.items():
        query, key, value = called[module]
        keys, values = keys_and_values(module, x, query.shape[-1])
        assert number_of_heads(module) == query.shape[1]
        torch.testing.assert_close(values, value, rtol=0, atol=1e-6)
        # A rotary embedding leaves the first position as it is.
        free = slice(None) if name in NO_ROTARY else slice(1)
        torch.testing.assert_close(keys[:, :, free], key[:, :, free], rtol=0, atol=1e-6)
