"""Base models packed by bitsandbytes: trained on, exported, merged."""

import copy
import json
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from coadapt._errors import InputError
from coadapt.adapters.linear import linear_weight
from coadapt.adapters.quantized import is_quantized, settle
from coadapt.backbone import ModelConfig, load_backbone
from coadapt.config import parse
from coadapt.exporting import export_merged, export_peft, verify_peft
from coadapt.loading import Loader
from coadapt.model import build_model
from coadapt.processors import load_tokenizer
from coadapt.quantization import Quantization, unpack_model
from coadapt.recipes import find_recipe
from tests.language.exported import (
    CONFIG,
    NAMES,
    PLANS,
    encoded_rows,
    make_model,
    plain_logits,
    routes_of,
)
from tests.tiny_language import TASKS, VOCABULARY, make_tokenizer

pytestmark = [
    # Stock PEFT asks transformers 5.23 for an attribute under its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

FOUR = Quantization(load_in_4bit=True)
DOUBLE = Quantization(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="fp4")
EIGHT = Quantization(load_in_8bit=True)
WIDTHS = pytest.mark.parametrize("how", [FOUR, DOUBLE, EIGHT], ids=["4", "4-double", "8"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Llama whose maps have as many inputs as one block of four bits has entries."""
    folder = tmp_path_factory.mktemp("packed") / "llama"
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Any, how: Quantization | None, dtype: Any = "float32") -> Any:
    config = ModelConfig(name=str(folder), quantization=how, dtype=dtype)
    return load_backbone(config, getattr(torch, dtype))[0]


def maps_of(backbone: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in backbone.named_modules() if is_quantized(module)}


@WIDTHS
def test_a_map_computes_with_the_numbers_that_it_is_said_to_stand_for(base, how):
    backbone = load(base, how)
    plain, _ = load_backbone(ModelConfig(name=str(base)), torch.float32)
    generator = torch.Generator().manual_seed(0)
    maps = maps_of(backbone.train())
    assert len(maps) == 14  # all but the vocabulary's head
    for name, module in maps.items():
        W = linear_weight(module)
        assert W.dtype == torch.float32
        own = linear_weight(plain.get_submodule(name))
        # Half of the widest gap between values: of fp4 and nf4 a sixth, of eight bits 1/254.
        error = (W - own).abs().max() / own.abs().max()
        assert 0 < error < (0.0045 if how is EIGHT else 0.17)
        x = torch.randn(3, W.shape[1], generator=generator, requires_grad=True)
        y, wanted = module(x), F.linear(x, W)
        torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)
        (found,) = torch.autograd.grad(y.square().sum(), x)
        (slope,) = torch.autograd.grad(wanted.square().sum(), x)
        torch.testing.assert_close(found, slope, atol=1e-4, rtol=1e-4)


def test_four_bits_are_alike_in_training_and_evaluation(base):
    """Where the processor has AVX512-BF16, stock maps repack their weights when evaluated."""
    backbone = load(base, FOUR, "bfloat16")
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        evaluated = backbone.eval()(ids).logits
    embedded = backbone.get_input_embeddings()(ids).requires_grad_(True)
    trained = backbone.train()(inputs_embeds=embedded).logits
    torch.testing.assert_close(trained.detach(), evaluated, rtol=0, atol=0)
    trained.float().square().sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.count_nonzero() > 0.9 * embedded.grad.numel()


@WIDTHS
def test_what_is_packed_depends_on_the_checkpoint_alone(base, how):
    one, other = (load(base, how, dtype) for dtype in ("float32", "bfloat16"))
    assert other.dtype == other.get_output_embeddings().weight.dtype == torch.bfloat16
    for name, module in maps_of(one).items():
        assert torch.equal(linear_weight(module), linear_weight(other.get_submodule(name)))
    prints = [make_model(base, "lora", quantization=how, dtype=dtype)
              for dtype in ("float32", "bfloat16")]  # fmt: skip
    assert prints[0].base_fingerprint == prints[1].base_fingerprint
    plain = make_model(base, "lora")
    assert plain.base_fingerprint != prints[0].base_fingerprint


@WIDTHS
def test_runs_that_share_a_kept_model_compute_alike(base, how):
    config = ModelConfig(name=str(base), quantization=how, dtype="float32")
    loader, ids = Loader(), torch.arange(3, 12)[None]
    found = []
    for _ in range(2):
        backbone, _ = loader.backbone(config, torch.float32, trains=False)
        found += [backbone.train(mode)(ids).logits.detach() for mode in (True, False)]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    first, second = (loader.backbone(config, torch.float32, trains=False)[0] for _ in range(2))
    for name, module in maps_of(first).items():
        assert module.weight is second.get_submodule(name).weight
        if how is EIGHT:
            assert module.state.SCB is maps_of(second)[name].state.SCB


@pytest.mark.parametrize("recipe", ["lora", "private", "pissa", "dora", "r_lora"])
@WIDTHS
def test_a_recipe_learns_on_a_packed_model(base, how, recipe):
    config = ModelConfig(name=str(base), quantization=how, dtype="float32")
    plan = PLANS["private" if recipe == "private" else "lora"]
    model = build_model(config, TASKS, find_recipe(recipe), plan).train()
    unpacked = copy.deepcopy(model)
    unpack_model(unpacked.backbone)
    ids = torch.arange(3, 12).repeat(3, 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tasks = torch.arange(3)
    losses = []
    for one in (model, unpacked):
        parameters = [p for p in one.parameters() if p.requires_grad]
        torch.manual_seed(0)  # of dropout
        optimizer, seen = torch.optim.SGD(parameters, lr=1e-2), []
        for _ in range(3):
            optimizer.zero_grad()
            loss = one(task_ids=tasks, labels=ids, **batch)["loss"]
            loss.backward()
            optimizer.step()
            seen.append(float(loss.detach()))
        losses.append(seen)
    assert losses[0][2] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@WIDTHS
def test_merged_is_the_packed_numbers_plus_the_update(base, tmp_path, how):
    model = make_model(base, "private", quantization=how, dtype="float32")
    tokenizer = load_tokenizer(model.model_config)
    report = export_merged(model, tokenizer, tmp_path / "out", card_config=CONFIG)
    stock = AutoModelForCausalLM.from_pretrained(report.folder / str(report.tasks["verdict"]))
    assert "quantization_config" not in stock.config.to_dict()
    for name, layer in model.attached.layers.items():
        wanted = linear_weight(layer.base) + layer.delta(model.task_id("verdict"))
        torch.testing.assert_close(linear_weight(stock.get_submodule(name)), wanted)
    own, inputs = plain_logits(model, "verdict")
    # In evaluation an eight-bit map rounds what it reads, to 1 part in 127 of its largest entry.
    torch.testing.assert_close(
        stock.eval()(**inputs).logits.detach(), own, rtol=0, atol=0.6 if how is EIGHT else 1e-4
    )


@WIDTHS
def test_stock_peft_on_the_same_packed_base(base, tmp_path, how):
    model = make_model(base, "private", quantization=how, dtype="float32")
    tokenizer = load_tokenizer(model.model_config)
    report = export_peft(model, tmp_path / "out", card_config=CONFIG)
    differences = verify_peft(model, tokenizer, report.folder, encoded_rows(model, tokenizer))
    assert list(differences) == NAMES
    assert max(differences.values()) < 1e-4
    packed = AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=BitsAndBytesConfig(**how.arguments()),
        dtype=torch.float32,
    )
    settle(packed, torch.float32)  # or the processor decides how four bits are evaluated
    adapter = report.folder / routes_of(report.folder)["verdict"]["adapter"]
    # While training, eight bits are exact on a CPU; there is no dropout in either.
    stock = PeftModel.from_pretrained(packed, str(adapter)).train()
    inputs = plain_logits(model, "verdict")[1]
    own = model.train().backbone(**inputs).logits
    torch.testing.assert_close(stock(**inputs).logits, own, atol=1e-4, rtol=1e-4)
    assert "quantization_config=BitsAndBytesConfig(load_in_" in (adapter / "README.md").read_text()


def test_transposed_maps_are_unpacked_as_they_were(tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    backbone = load(tmp_path, FOUR).eval()
    ids = torch.arange(3, 12)[None]
    own = backbone(ids).logits
    assert not isinstance(backbone.transformer.h[0].attn.c_attn, Conv1D)
    plain: Any = unpack_model(backbone)
    assert isinstance(plain.transformer.h[0].attn.c_attn, Conv1D)
    torch.testing.assert_close(plain(ids).logits, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", [FOUR, EIGHT], ids=["4", "8"])
def test_a_model_that_lies_packed(base, tmp_path, how):
    stock = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(**how.arguments())
    )
    stock.save_pretrained(tmp_path / "packed")
    load_tokenizer(ModelConfig(name=str(base))).save_pretrained(tmp_path / "packed")
    model = make_model(tmp_path / "packed", "lora", dtype="float32")
    own = make_model(base, "lora", quantization=how, dtype="float32")
    wanted, inputs = plain_logits(own, "verdict")
    torch.testing.assert_close(plain_logits(model, "verdict")[0], wanted)
    report = export_merged(
        model, load_tokenizer(model.model_config), tmp_path / "out", card_config=CONFIG
    )
    merged = AutoModelForCausalLM.from_pretrained(report.folder / "models/shared").train()
    torch.testing.assert_close(merged(**inputs).logits, model.train().backbone(**inputs).logits,
                               atol=1e-4, rtol=1e-4)  # fmt: skip
    with pytest.raises(InputError, match=r"quantised in its own folder \(. bits.*drop model.quant"):
        load(tmp_path / "packed", how)
    with pytest.raises(InputError, match=r"'full' trains the weights of .* are quantised"):
        build_model(model.model_config, TASKS, find_recipe("full"), None)
    path = tmp_path / "packed/config.json"
    other = {**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}
    path.write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"in its own folder by gptq.*in full precision, and set"):
        load(tmp_path / "packed", None)


def test_what_is_refused(base, monkeypatch):
    def model(**quantization):
        return parse(ModelConfig, {"name": "m", "quantization": quantization}, "train.yaml")

    for given, said in [
        ({}, "neither of load_in_4bit and load_in_8bit"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "both of load_in_4bit"),
        ({"load_in_4bit": True, "quant_method": "torchao"}, "quantization.quant_method.*torchao"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type.*int4"),
        ({"load_in_4bit": "yes"}, "quantization.load_in_4bit"),
        ({"load_in_4bits": True}, "unknown key.*load_in_4bits.*did you mean"),
        ({"load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}, "no effect with load_in_8bit"),
        ({"load_in_4bit": True, "llm_int8_threshold": 3.0}, "no effect with load_in_4bit"),
        ({"load_in_8bit": True, "llm_int8_threshold": -1.0}, "must be at least 0"),
    ]:
        with pytest.raises(InputError, match=said):
            model(**given)
    with pytest.raises(InputError, match="float64 is none that a quantised model computes in"):
        ModelConfig(name="m", dtype="float64", quantization=FOUR)
    assert model(load_in_8bit=True).quantization == EIGHT
    config = ModelConfig(name=str(base), quantization=FOUR)
    with pytest.raises(InputError, match=r"'full' trains the weights of .*no model.quantization"):
        build_model(config, TASKS, find_recipe("full"), None)
    monkeypatch.setattr("coadapt.quantization.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'coadapt\[quantized\]'"):
        load_backbone(config, torch.float32)


def test_what_bitsandbytes_misreads_on_a_cpu_is_refused(folder_of):
    """Its four-bit kernel takes a row of 32 or 48 inputs for a whole number of blocks of 64."""
    with pytest.raises(InputError, match=r"misreads 14 maps.*\[lm_head, down_proj, gate_proj"):
        load(folder_of("llama"), FOUR)
    names = ("lm_head", *(f"{name}_proj" for name in ("down", "gate", "up", "k", "o", "q", "v")))
    skipped = Quantization(load_in_4bit=True, llm_int8_skip_modules=names)
    assert not maps_of(load(folder_of("llama"), skipped))
    assert len(maps_of(load(folder_of("llama"), EIGHT))) == 14


def test_plain_maps_are_not_packed():
    assert not is_quantized(nn.Linear(2, 2))
    assert not is_quantized(nn.Identity())
