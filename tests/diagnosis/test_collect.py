"""The collector against stock PEFT LoRAs, a row at a time, and loops over tokens."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model

from coadapt._errors import InputError
from coadapt.adapters import target_names
from coadapt.adapters.linear import linear_weight
from coadapt.backbone import ModelConfig, load_backbone, pool
from coadapt.diagnosis.collect import Collector, Moments
from coadapt.tasks.render import Collator
from tests.conftest import make_tokenizer
from tests.reference.slow_diagnosis import moments_by_tokens, peft_row_gradients

# PEFT asks transformers for a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LENGTHS = (3, 9, 5, 4, 9, 7, 3)
NUM_ROWS, NUM_CHUNKS, NUM_PROBES, SEED = len(LENGTHS), 3, 3, 5
CHUNKS = np.array([0, 2, 1, 0, 2, 2, 1])
QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def encoded():
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 40, size=length).tolist() for length in LENGTHS]
    return [{"input_ids": row, "token_type_ids": [0] * len(row)} for row in rows]


@pytest.fixture(scope="module")
def grad_pooled():
    return np.random.default_rng(1).normal(size=(NUM_ROWS, 32))


def make(folder, *, pooling: Any = "mean", dtype=torch.float32, targets="all-linear", **options):
    config = ModelConfig(name=str(folder), pooling=pooling)
    backbone, found = load_backbone(config, dtype)
    assert found is not None
    return Collector(
        backbone=backbone,
        pooling=found,
        collate=Collator(AutoTokenizer.from_pretrained(folder)),
        modules=target_names(backbone, targets),
        **{"batch_size": 4, **options},
    )


def gradients(collector, encoded, grad_pooled, chunks=CHUNKS, *, seed=SEED):
    return collector.gradients(encoded, grad_pooled, chunks, num_probes=NUM_PROBES, seed=seed)


def singly(encoded):
    """Each row as a batch of its own: nothing is padded."""
    for row in encoded:
        tensors = {name: torch.tensor([values]) for name, values in row.items()}
        yield {**tensors, "attention_mask": torch.ones_like(tensors["input_ids"])}


def assert_same(found, expected, *, rtol=1e-4, atol=1e-6):
    assert found.chunks.keys() == expected.chunks.keys()
    for name, chunk in expected.chunks.items():
        np.testing.assert_allclose(found.chunks[name], chunk, rtol=rtol, atol=atol)
        np.testing.assert_allclose(
            found.squares[name], expected.squares[name], rtol=rtol, atol=atol
        )


# --- gradients


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_gradients_are_those_of_pefts_loras_at_zero(tiny_bert, encoded, grad_pooled, pooling):
    collector = make(tiny_bert, pooling=pooling)
    probes = {n: collector._probes(n, NUM_PROBES, SEED) for n in collector.modules}
    slow, of_a = peft_row_gradients(
        lambda: AutoModel.from_pretrained(tiny_bert, attn_implementation="eager"),
        list(singly(encoded)),
        grad_pooled,
        probes,
        pooling,
    )
    assert of_a == 0.0
    found = gradients(collector, encoded, grad_pooled)
    assert set(found.chunks) == set(collector.modules)
    assert found.num_chunks == NUM_CHUNKS
    for name, rows in slow.items():
        assert found.chunks[name].dtype == np.float32
        assert found.squares[name].dtype == np.float64
        for chunk in range(NUM_CHUNKS):
            mean = rows[chunk == CHUNKS].mean(axis=0)
            np.testing.assert_allclose(found.chunks[name][chunk], mean, rtol=1e-3, atol=2e-6)
        squares = (rows.astype(np.float64) ** 2).mean(axis=0)
        np.testing.assert_allclose(found.squares[name], squares, rtol=1e-3, atol=1e-8)
    assert max(np.abs(chunks).max() for chunks in found.chunks.values()) > 0.1


def test_batch_size_and_order_of_rows_do_not_matter(tiny_bert, encoded, grad_pooled):
    expected = gradients(make(tiny_bert), encoded, grad_pooled)
    for batch_size in (1, 100):
        collector = make(tiny_bert, batch_size=batch_size)
        assert_same(gradients(collector, encoded, grad_pooled), expected)
    order = np.random.default_rng(2).permutation(NUM_ROWS)
    shuffled = [encoded[row] for row in order]
    found = gradients(make(tiny_bert), shuffled, grad_pooled[order], CHUNKS[order])
    assert_same(found, expected)


def test_probes_are_loras_a_of_their_seed_and_module(tiny_bert):
    collector = make(tiny_bert)
    drawn = {n: collector._probes(n, 200, SEED).numpy() for n in collector.modules}
    for probes in drawn.values():
        bound = probes.shape[1] ** -0.5
        assert abs(probes).max() <= bound
        assert probes.std() == pytest.approx(bound / 3**0.5, rel=0.03)  # uniform
        assert abs(probes.mean()) < 0.05 * bound
    assert len({probes[0, 0] for probes in drawn.values()}) == len(drawn)
    again = collector._probes(QUERY, 200, SEED).numpy()
    np.testing.assert_array_equal(again, drawn[QUERY])
    assert (collector._probes(QUERY, 200, SEED + 1).numpy() != drawn[QUERY]).all()


def test_nothing_is_left_behind(tiny_bert, encoded, grad_pooled):
    collector = make(tiny_bert)
    collector.features(encoded)
    gradients(collector, encoded, grad_pooled)
    for module in collector.backbone.modules():
        assert not module._forward_hooks
    for parameter in collector.backbone.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert not collector.backbone.training


def test_a_failure_leaves_no_hook_either(tiny_bert, encoded, grad_pooled):
    def fail(_):
        raise KeyboardInterrupt

    collector = make(tiny_bert, before=fail)
    with pytest.raises(KeyboardInterrupt):
        gradients(collector, encoded, grad_pooled)
    with pytest.raises(KeyboardInterrupt):
        collector.features(encoded)
    assert not any(module._forward_hooks for module in collector.backbone.modules())


def test_dropout_is_off_and_callbacks_count_rows(tiny_bert, encoded, grad_pooled):
    ticked, told = [], []
    collector = make(tiny_bert, tick=ticked.append, before=told.append, batch_size=3)
    first = gradients(collector, encoded, grad_pooled)
    assert ticked == told == [3, 3, 1]
    assert_same(gradients(collector, encoded, grad_pooled), first, rtol=0, atol=0)
    collector.features(encoded)
    assert sum(ticked) == sum(told) == 3 * NUM_ROWS


def test_bfloat16_is_near_and_in_float32(tiny_bert, encoded, grad_pooled):
    exact = gradients(make(tiny_bert), encoded, grad_pooled)
    rounded = gradients(make(tiny_bert, dtype=torch.bfloat16), encoded, grad_pooled)
    for name, chunks in exact.chunks.items():
        found = rounded.chunks[name]
        assert found.dtype == np.float32
        a, b = found.ravel().astype(np.float64), chunks.ravel().astype(np.float64)
        assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b), name


def test_what_is_not_finite_is_refused(tiny_bert, encoded, grad_pooled):
    collector = make(tiny_bert)
    with pytest.raises(InputError, match=r"gradients are not finite; try model\.dtype: float32"):
        gradients(collector, encoded, grad_pooled * np.inf)
    with torch.no_grad():
        collector.backbone.get_parameter(f"{QUERY}.weight")[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"output is not finite; try model\.dtype: float32"):
        collector.features(encoded)


# --- features and moments


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_features_are_the_pooled_outputs_of_each_row_alone(tiny_bert, encoded, pooling):
    collector = make(tiny_bert, pooling=pooling)
    found = collector.features(encoded, moments=False)
    assert (found.moments, found.source) == ({}, {})
    assert found.pooled.dtype == np.float64
    with torch.no_grad():
        for row, vector in zip(singly(encoded), found.pooled, strict=True):
            alone = pool(collector.backbone(**row), row["attention_mask"], pooling)
            np.testing.assert_allclose(vector, alone[0].numpy(), rtol=1e-4, atol=1e-5)


def test_moments_are_sums_over_the_tokens_that_are_there(tiny_bert, encoded):
    collector = make(tiny_bert)
    found = collector.features(encoded)
    assert list(found.source) == list(collector.modules)
    slow = moments_by_tokens(collector.backbone, collector.modules, singly(encoded))
    for name, (total, products, num) in slow.items():
        mine = found.moments[found.source[name]]
        assert mine.num_tokens == num == sum(LENGTHS)
        np.testing.assert_allclose(mine.sum, total, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(mine.products, products, rtol=1e-4, atol=1e-3)


def test_a_shared_input_is_summed_once(tiny_bert, encoded):
    found = make(tiny_bert).features(encoded)
    for layer in (0, 1):
        block = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            assert found.source[f"{block}.attention.self.{part}"].endswith("query")
        for part in ("attention.output", "intermediate", "output"):
            assert found.source[f"{block}.{part}.dense"] == f"{block}.{part}.dense"
    assert set(found.moments) == set(found.source.values())
    assert len(found.moments) == 2 * 4


def test_moments_by_numpy():
    x, y = np.random.default_rng(3).normal(1.0, 2.0, size=(2, 50, 4))
    first, second = (
        Moments(sum=values.sum(axis=0), products=values.T @ values, num_tokens=50)
        for values in (x, y)
    )
    both = np.concatenate([x, y])
    found = first + second
    assert found.num_tokens == 100
    np.testing.assert_allclose(found.covariance, np.cov(both.T, ddof=0), atol=1e-12)
    np.testing.assert_allclose(found.second, both.T @ both / 100, atol=1e-12)


# --- other maps than nn.Linear


def test_linear_weight_maps_input_to_output():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=2)
        backbone = GPT2Model(config)
        maps: list[Any] = [backbone.get_submodule("h.0.attn.c_attn"), torch.nn.Linear(8, 3)]
    for module in maps:
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(x @ linear_weight(module).T + module.bias, module(x))
        assert not linear_weight(module).requires_grad


def test_gpt2s_transposed_maps_have_gradients_too(encoded, grad_pooled):
    tokenizer = make_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = GPT2Model(config).requires_grad_(False)
    rows, chunks = [encoded[1], encoded[4]], np.array([0, 1])  # as long as each other: no padding
    found = [
        gradients(
            Collector(
                backbone=backbone,
                pooling="mean",
                collate=Collator(tokenizer),
                modules=target_names(backbone, "all-linear"),
                batch_size=batch_size,
            ),
            rows,
            grad_pooled[:2],
            chunks,
        )
        for batch_size in (1, 2)
    ]
    assert_same(*found)
    assert {chunk.shape[1] for chunk in found[0].chunks.values()} == {32, 96, 128}
