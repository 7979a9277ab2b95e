"""Task prompts in a model: in which layers, how they start, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from coadapt import InputError
from coadapt.adapters.attention import EXTENSION
from coadapt.structures import TaskPrompt
from tests import small
from tests.prompts import make_backbone, prompted

PART = TaskPrompt(length=3, layers=2)

# Which layers ------------------------------------------------------------------------------------


def chosen(backbone: Any, layers: Any) -> list[str]:
    """Return the modules that hold prompts, as the attached ones must be."""
    model = prompted(backbone, TaskPrompt(layers=layers))
    modules = model.backbone.named_modules()
    found = [n.removesuffix(f".{EXTENSION}") for n, _ in modules if n.endswith(f".{EXTENSION}")]
    assert found == list(model.attached.prompts) == list(model.attached.modules)
    return found


def test_the_last_half_of_the_layers_is_chosen_or_a_number_or_names():
    def bert():
        return make_backbone("bert", num_hidden_layers=5)

    name = "encoder.layer.{}.attention.self"
    half = chosen(bert(), "half")
    assert half == [name.format(index) for index in (2, 3, 4)]
    assert chosen(bert(), 2) == half[1:]
    named = (name.format(4), name.format(0))
    assert chosen(bert(), named) == list(named[::-1])


def test_each_stack_has_a_half_of_its_own_and_cross_attention_none():
    def t5():
        return make_backbone("t5", num_layers=3, num_decoder_layers=2)

    inner = "{}.block.{}.layer.0.SelfAttention".format
    half = [inner("encoder", 1), inner("encoder", 2), inner("decoder", 1)]
    assert chosen(t5(), "half") == half
    assert chosen(t5(), 1) == half[1:]
    assert chosen(t5(), (half[2],)) == half[2:]


def test_number_of_parameters_is_the_formula():
    L, d, H, T = 5, 32, 4, 3
    for part, expected in (
        (TaskPrompt(length=L), L * d + L * 8 + T * (8 + d) + 1),
        (TaskPrompt(length=L, inner_rank=2, fast_rank=3, gate="head"),
         L * d + L * 2 + T * 3 * (2 + d) + H),
        (TaskPrompt(length=L, form="hadamard", fast_rank=2), L * d + T * 2 * (L + d) + 1),
        (TaskPrompt(length=L, fast_rank=0, gate="none"), L * d),
    ):  # fmt: skip
        assert prompted(make_backbone("bert"), part).num_trainable["adapters"] == expected


# How they start ----------------------------------------------------------------------------------


def test_draws_are_as_wide_as_told():
    wide = TaskPrompt(length=200, inner_rank=50, fast_rank=4)
    model = prompted(make_backbone("bert"), wide)
    widths = {"theta": 0.02, "B": 50**-0.5, "u": 4**-0.5, "v": 0.02, "g": 0.0}
    for name, tensor in model.attached.tensors().items():
        width = float(tensor.detach().square().mean().sqrt())
        assert width == pytest.approx(widths[name.split("/")[-1]], rel=0.2), name
    for prompts in model.attached.prompts.values():
        own = (prompts.prompts([0, 1, 2]) - prompts.theta).detach()
        assert float(own.std()) == pytest.approx(0.02, rel=0.2)
        assert len(torch.linalg.matrix_rank(own, rtol=1e-4).unique()) == 1
        assert int(torch.linalg.matrix_rank(own[0], rtol=1e-4)) == 4  # whatever k is


def test_hadamard_prompts_start_near_the_common_one():
    model = prompted(make_backbone("bert"), TaskPrompt(form="hadamard", fast_rank=2))
    for prompts in model.attached.prompts.values():
        ratio = (prompts.prompts([0, 1, 2]) / prompts.theta).detach()
        assert 0 < float((ratio - 1).abs().max()) < 0.2


def test_what_a_task_starts_from_does_not_depend_on_the_others():
    few, many = (
        prompted(make_backbone("bert"), PART, tasks=tasks).attached.tensors()
        for tasks in (small.TASKS[1:2], small.TASKS)
    )
    assert len(few) < len(many)
    assert all(torch.equal(few[name], many[name]) for name in few)
    other = prompted(make_backbone("bert"), PART, seed=1).attached.tensors()
    assert not any(torch.equal(t, other[n]) for n, t in many.items() if not n.endswith("/g"))
    firsts = {float(tensor.detach().flatten()[0]) for tensor in many.values()}
    assert len(firsts) == len(many) - 1  # no draw is taken twice; both g are 0


def test_a_prompt_may_start_from_tokens():
    model = prompted(make_backbone("llama"), replace(PART, start="tokens"))
    words: Any = model.backbone.get_input_embeddings().weight
    for prompts in model.attached.prompts.values():
        assert ((prompts.theta[:, None] - words).abs().sum(-1) == 0).any(dim=1).all()


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be at least 1, not 0"),
        ({"inner_rank": 0}, "inner_rank must be at least 1, not 0"),
        ({"fast_rank": -1}, "fast_rank must be at least 0, not -1"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"layers": ()}, "layers: name at least one"),
        ({"scale": 0.0}, "scale must be positive, not 0.0"),
        ({"scale": float("nan")}, "scale must be positive, not nan"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        TaskPrompt(**options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {"layers": 3}, "layers: 3 is more than 'encoder.layer' has, 2"),
        ("t5", {"layers": 3}, "layers: 3 is more than 'encoder.block' has, 2"),
        ("bert", {"layers": ("layer.7",)}, r"no self-attention is named 'layer.7'; .*layer.1.att"),
        ("bert", {"layers": "similarity"}, r"'similarity' looks at .*coadapt.train.* or give a nu"),
        ("electra", {"start": "tokens"}, r"'tokens' have 16 dimensions .* 32; take 'normal'"),
        ("mpnet", {}, r"MPNetModel .* does not run its attention through transformers' registered"),
        ("gpt2", {}, r"GPT2LMHeadModel has no attention whose keys and values are known \(maps na"),
        ("phi", {}, r"'phi' makes its keys and values is not known, for its 'k_layernorm'"),
        ("olmo", {}, r"'olmo' makes its keys and values is not known, for its 'clip_qkv'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        prompted(make_backbone(name), TaskPrompt(**options))


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_another_attention_is_refused(attention):
    backbone = make_backbone("llama")
    backbone.config._attn_implementation = attention
    with pytest.raises(InputError, match=f"'{attention}'; set .*attn_implementation to eager or s"):
        prompted(backbone, TaskPrompt())


def test_it_is_no_lora():
    with pytest.raises(InputError, match=r"'task_prompt' has no exact LoRA form .*'runtime'"):
        prompted(make_backbone("bert"), TaskPrompt()).fold("two")
