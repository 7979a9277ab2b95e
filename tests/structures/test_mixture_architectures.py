"""A mixture of feed-forwards in models of many architectures."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModel,
    DistilBertConfig,
    GPT2Config,
    MixtralConfig,
    MobileBertConfig,
    OPTConfig,
    Phi3Config,
    RwkvConfig,
    T5Config,
)

from coadapt import InputError
from tests import tiny_encoders, tiny_language
from tests.mixtures import MIXTURE, attach, close, normal, scatter
from tests.reference.slow_mixture import BertFeedForward, SlowBertOutput, SlowMixture

# In models, against the oracle -------------------------------------------------------------------


def slow_bert(backbone: Any, index: int, **options: Any) -> None:
    layer = backbone.encoder.layer[index]
    mixture = SlowMixture(BertFeedForward(layer), **options)
    layer.output = SlowBertOutput(mixture, layer.output.LayerNorm)
    layer.intermediate = nn.Identity()


def slow_llama(backbone: Any, index: int, **options: Any) -> None:
    layer = backbone.layers[index]
    layer.mlp = SlowMixture(layer.mlp, **options)


# The name of a layer's feed-forward, its maps (and what the oracle calls them), and the oracle.
MODELS: dict[str, Any] = {
    "bert": (
        "encoder.layer.{}.",
        {"intermediate.dense": "intermediate.dense", "output.dense": "dense"},
        slow_bert,
    ),
    "llama": ("layers.{}.mlp.", {n: n for n in ("gate_proj", "up_proj", "down_proj")}, slow_llama),
}


def tiny(name: str, dtype: torch.dtype = torch.float64) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(CONFIGS[name](), attn_implementation="eager")
    return model.to(dtype).eval()


def outputs_of(model: Any) -> Tensor:
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][1, 5:] = 0
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids
    return model(**batch).last_hidden_state


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_one_whose_experts_run_one_by_one(name):
    prefix, maps, slow = MODELS[name]
    model, frozen = tiny(name), tiny(name)
    attached = attach(model, MIXTURE, "all-linear")
    scatter(attached, 0.3)
    model.double()
    exact = {n: t.detach().double().requires_grad_() for n, t in attached.tensors().items()}
    for index in range(2):
        part, experts = prefix.format(index), [f"expert{e}" for e in range(3)]
        slow(
            frozen,
            index,
            router=exact[f"router/{part}{next(iter(maps))}/weight"],
            experts=[
                {
                    inner: (exact[f"{e}/{part}{own}/A"], exact[f"{e}/{part}{own}/B"])
                    for own, inner in maps.items()
                }
                for e in experts
            ],
            scale=1.5,
            top_k=2,
        )
    for key in exact:
        if key.startswith("unrouted/") and key.endswith("/A"):
            name = key.split("/")[1]
            layer = frozen.get_submodule(name)
            delta = 1.5 * exact[f"unrouted/{name}/B"] @ exact[f"unrouted/{name}/A"]
            weight = layer.weight.detach() + delta
            del layer.weight
            layer.weight = weight
    y, y_exact = outputs_of(model), outputs_of(frozen)
    close(y, y_exact, 1e-10)
    weights = normal(*y.shape, seed=5)
    (y * weights).sum().backward()
    (y_exact * weights).sum().backward()
    for key, tensor in attached.tensors().items():
        close(tensor.grad, exact[key].grad, 1e-10, key)


# Architectures -----------------------------------------------------------------------------------

_SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
_T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_BOTTLENECK: dict[str, Any] = {"intra_bottleneck_size": 32, "true_hidden_size": 32}
CONFIGS: dict[str, Any] = {
    **{n: lambda c=c: c(99) for n, c in tiny_encoders.CONFIGS.items()},
    **tiny_language.CONFIGS,
    "t5_gated": lambda: T5Config(vocab_size=99, feed_forward_proj="gated-gelu", **_T5),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=99, dim=32, hidden_dim=48, n_layers=2, n_heads=4
    ),
    "gpt2": lambda: GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "phi3": lambda: Phi3Config(**_SMALL, eos_token_id=1),
    "opt": lambda: OPTConfig(
        vocab_size=99, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=64,
    ),
    "albert": lambda: AlbertConfig(**_SMALL, embedding_size=16),
    # Several feed-forwards a layer.
    "mobilebert": lambda: MobileBertConfig(
        **_SMALL, embedding_size=32, **_BOTTLENECK
    ),
}  # fmt: skip
NUM_ROUTERS = {"t5": 4, "t5_gated": 4, "albert": 1, "mobilebert": 8}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_architecture_starts_as_it_is_and_all_of_it_learns(name):
    # T5 keeps its last map in float32, so its slots come in another dtype than they left.
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny(name, dtype)
        with torch.no_grad():
            before = outputs_of(model)
            attached = attach(model, MIXTURE, "all-linear")
            assert torch.equal(outputs_of(model), before)
    scatter(attached, 0.2)
    after = outputs_of(model)
    after.float().square().sum().backward()
    assert float((after - before).detach().abs().max()) > 0.1
    assert all(t.grad is not None for t in attached.tensors().values())
    routers = [t for n, t in attached.tensors().items() if n.startswith("router/")]
    assert len(routers) == NUM_ROUTERS.get(name, 2)
    assert all(t.grad is not None and bool(t.grad.any()) for t in routers)


OTHER_FORMS = {
    "no_feed_forward": (
        lambda: MixtralConfig(**_SMALL, num_key_value_heads=2, num_local_experts=2),
        "takes in none.*recipe 'lora_moe'",
    ),
    "a_map_beside": (
        lambda: RwkvConfig(
            vocab_size=99, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2
        ),
        r"'rwkv' has another form.*receptance \(32 to 32\)",
    ),
}


@pytest.mark.parametrize(("make", "told"), OTHER_FORMS.values(), ids=list(OTHER_FORMS))
def test_models_of_another_form_are_refused(make, told):
    model = AutoModel.from_config(make())
    with pytest.raises(InputError, match=told):
        attach(model, MIXTURE, "all-linear")
