"""Capacities of a trained model against dense formulas on moments that are computed by hand."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from coadapt import InputError
from coadapt.diagnosis.capacities import (
    SWEEP,
    capacity_tables,
    input_moments,
    reference_noise,
)
from coadapt.planning import Plan
from coadapt.structures import Bank, Single
from coadapt.tasks import Collator, encode
from coadapt.tasks.rows import Rows
from tests.small import NAMES, make_model, randomize

TEXTS = {
    "two": ["the good dog", "bread", "a house with a garden", "old rope"],
    "three": ["cheese and honey", "we met a horse near here today", "saw"],
    "value": ["very bright", "this street is dull this morning"],
}
PLAN = Plan.clustered({"classes": ["two", "three"], "value": ["value"]}, 5)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def encoded(tokenizer):
    rows = {
        name: Rows(texts=tuple(texts), pairs=None, labels=np.zeros(len(texts)))
        for name, texts in TEXTS.items()
    }
    return {name: encode(tokenizer, found, 64) for name, found in rows.items()}


@pytest.fixture(scope="module")
def model(tiny_bert):
    return randomize(make_model(tiny_bert, Bank(scale=1.5), PLAN)).eval()


@pytest.fixture(scope="module")
def moments(model, tokenizer, encoded):
    return input_moments(model, Collator(tokenizer), encoded, batch_size=3)


@torch.no_grad()
def inputs_by_hand(model, encoded):
    """Return for each layer (tokens, d) inputs of its query and value, one row at a time."""
    found = [[], []]
    for name, rows in encoded.items():
        for row in rows:
            model.route.set(torch.tensor([NAMES.index(name)]))
            batch = {key: torch.tensor([value]) for key, value in row.items()}
            states = model.backbone(**batch, output_hidden_states=True).hidden_states
            for layer in (0, 1):
                found[layer].append(states[layer][0].double().numpy())
    return [np.concatenate(tokens) for tokens in found]


def dense(A, S):
    return A @ S @ A.T


def half_log_det(matrix):
    sign, value = np.linalg.slogdet(np.eye(len(matrix)) + matrix)
    assert sign == 1
    return value / 2


def factors(model, module):
    layer = model.attached.layers[module]
    return [
        (a.detach().double().numpy(), b.detach().double().numpy())
        for a, b in zip(layer.A, layer.B, strict=True)
    ]


# Moments -----------------------------------------------------------------------------------------


def test_moments_are_those_of_all_tokens_each_through_its_own_blocks(model, encoded, moments):
    assert list(moments) == list(model.attached.layers)
    tokens = inputs_by_hand(model, encoded)
    for module, found in moments.items():
        x = tokens[int(module.split(".")[2])]
        assert found.num_tokens == len(x)
        np.testing.assert_allclose(
            found.covariance, np.cov(x, rowvar=False, ddof=0), rtol=1e-4, atol=1e-5
        )


def test_the_blocks_decide_what_the_second_layer_sees(model, tokenizer, encoded, moments):
    # Or the test above would not tell whose blocks the rows went through.
    swapped = {"value": encoded["two"], "two": encoded["value"], "three": encoded["three"]}
    other = input_moments(model, Collator(tokenizer), swapped)
    for module in moments:
        same = np.allclose(other[module].covariance, moments[module].covariance, atol=1e-3)
        assert same == (".0." in module)


# Capacities --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise(model, moments):
    return reference_noise(model, moments)


@pytest.fixture(scope="module")
def tables(model, moments, noise):
    return capacity_tables(model, moments, noise)


def test_the_noise_is_where_the_reference_has_a_ratio_of_one(model, moments, noise):
    for module, value in noise.items():
        A = np.concatenate([a for a, _ in factors(model, module)])
        assert value == pytest.approx(np.trace(dense(A, moments[module].covariance)) / len(A))


def test_rows_and_columns(model, tables):
    assert list(tables) == ["capacity", "update", "bounds", "sweep"]
    for name in ("capacity", "update", "bounds"):
        assert tables[name].rows == tuple(model.attached.layers)
    for name in ("capacity", "update", "sweep"):
        assert tables[name].columns == ("classes", "value")
    assert tables["sweep"].rows == ("0.1 x unit SNR", "1 x unit SNR", "10 x unit SNR")


def test_proxies_by_block(model, moments, noise, tables):
    for m, module in enumerate(model.attached.layers):
        for k, (A, _) in enumerate(factors(model, module)):
            wanted = half_log_det(dense(A, moments[module].covariance) / noise[module])
            assert tables["capacity"].values[m, k] == pytest.approx(wanted, rel=1e-9)


def test_updates_by_block(model, moments, tables):
    for m, (module, layer) in enumerate(model.attached.layers.items()):
        S = moments[module].covariance
        W = layer.base.weight.detach().double().numpy()
        power = np.mean(np.diag(dense(W, S)))  # of an output, on average
        for k, (A, B) in enumerate(factors(model, module)):
            wanted = half_log_det(1.5**2 * dense(B @ A, S) / power)
            assert tables["update"].values[m, k] == pytest.approx(wanted, rel=1e-9)


def test_bounds_are_in_order_and_of_all_blocks_together(model, moments, noise, tables):
    bounds = tables["bounds"]
    assert bounds.columns == ("proxy", "water-filling", "bound")
    assert (bounds.values[:, 0] < bounds.values[:, 1]).all()
    assert (bounds.values[:, 1] < bounds.values[:, 2]).all()
    for m, module in enumerate(model.attached.layers):
        A = np.concatenate([a for a, _ in factors(model, module)])
        S = moments[module].covariance
        wanted = half_log_det(dense(A, S) / noise[module])
        assert bounds.values[m, 0] == pytest.approx(wanted, rel=1e-9)
        # The bound by rank and power, and that by the spectrum.
        largest, power = np.linalg.eigvalsh(S)[::-1], (A**2).sum()
        by_rank = len(A) / 2 * np.log(1 + power * largest[0] / (len(A) * noise[module]))
        by_spectrum = np.log(1 + power * largest[: len(A)] / noise[module]).sum() / 2
        assert bounds.values[m, 2] == pytest.approx(min(by_rank, by_spectrum), rel=1e-9)


def test_the_sweep_sums_over_modules_and_falls_with_the_noise(model, moments, noise, tables):
    sweep = tables["sweep"].values
    np.testing.assert_allclose(sweep[1], tables["capacity"].values.sum(axis=0), rtol=1e-12)
    assert (np.diff(sweep, axis=0) < 0).all()
    for row, factor in enumerate(SWEEP):
        scaled = {module: factor * value for module, value in noise.items()}
        again = capacity_tables(model, moments, scaled)["capacity"].values.sum(axis=0)
        np.testing.assert_allclose(sweep[row], again, rtol=1e-12)


def test_the_readings_name_the_largest_block(tables):
    for name in ("capacity", "update"):
        totals = tables[name].values.sum(axis=0)
        block = ("classes", "value")[int(totals.argmax())]
        told = f"largest for block {block} ({totals.max():.1f} nats over all modules)"
        assert told in tables[name].reading


def test_the_update_does_not_depend_on_how_it_is_cut(tiny_bert, moments, noise):
    model = randomize(make_model(tiny_bert, Bank(scale=1.5), PLAN)).eval()
    before = capacity_tables(model, moments, noise)
    rng = torch.Generator().manual_seed(3)
    for layer in model.attached.layers.values():
        for A, B in zip(layer.A, layer.B, strict=True):
            M = torch.randn(len(A), len(A), generator=rng) + 2 * torch.eye(len(A))
            with torch.no_grad():
                A.copy_(M @ A)
                B.copy_(B @ torch.linalg.inv(M))
    after = capacity_tables(model, moments, noise)
    np.testing.assert_allclose(after["update"].values, before["update"].values, rtol=1e-4)
    assert (abs(after["capacity"].values / before["capacity"].values - 1) > 0.01).all()


def test_a_whole_rank_is_no_more_than_the_width(tiny_bert, moments):
    # More ranks than inputs: the bounds count the directions there are.
    model = randomize(make_model(tiny_bert, Single(), Plan.shared(NAMES, 40))).eval()
    bounds = capacity_tables(model, moments, reference_noise(model, moments))["bounds"].values
    assert np.isfinite(bounds).all()
    assert (np.diff(bounds, axis=1) > 0).all()


# A reference of its own --------------------------------------------------------------------------


def test_another_run_sets_the_noise(tiny_bert, model, moments, tables):
    other = make_model(tiny_bert, Single(), Plan.shared(NAMES, 3), seed=5)
    found = reference_noise(other, moments)
    for module, value in found.items():
        A = other.attached.layers[module].A[0].detach().double().numpy()
        assert value == pytest.approx(np.trace(dense(A, moments[module].covariance)) / 3)
    theirs = capacity_tables(model, moments, found)
    assert not np.allclose(theirs["capacity"].values, tables["capacity"].values)
    np.testing.assert_array_equal(theirs["update"].values, tables["update"].values)


def test_a_reference_that_lacks_a_module_is_refused(tiny_bert, moments):
    other = make_model(tiny_bert, Single(), Plan.shared(NAMES, 3), target_modules=["query"])
    with pytest.raises(InputError, match=r"reference run does not adapt '.*\.value'"):
        reference_noise(other, moments)
