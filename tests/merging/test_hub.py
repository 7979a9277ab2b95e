"""LoRAHub on tiny models: the objective against dense weights, and what a search leaves."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from coadapt._errors import InputError
from coadapt.merging import LoraHub, compose_deltas, put, search_for_task
from coadapt.merging.hub import borrowing
from coadapt.planning import Plan
from coadapt.structures import Bank, Single
from coadapt.tasks.language import LanguageCollator
from coadapt.tasks.render import Collator
from tests.language.toys import items_of
from tests.merging.tiny import (
    OURS,
    SCALE,
    assert_same,
    blocks,
    changed_blocks,
    private,
    row_losses,
    rows_of,
    taught,
    tensors_of,
)
from tests.reference.slow_hub import dense_of_deltas, dense_of_factors, published_objective
from tests.small import NAMES, make_model
from tests.tiny_language import make_model as make_language_model
from tests.tiny_language import make_tokenizer, save_model

MODES: list[dict[str, Any]] = [
    {},
    {"compose": "deltas"},
    {"pool": "all"},
    {"compose": "deltas", "pool": "all"},
]


@pytest.fixture(scope="module")
def collate(tiny_bert):
    return Collator(AutoTokenizer.from_pretrained(tiny_bert))


@pytest.fixture
def model(tiny_bert):
    return private(tiny_bert)


def dense_losses(model, task, deltas, rows, collate):
    """Return losses under W + delta: base weights edited in a copy whose factors are all zero."""
    plain = copy.deepcopy(model).eval()
    with torch.no_grad():
        for factor in plain.attached.tensors().values():
            factor.zero_()
        for name, layer in plain.attached.layers.items():
            layer.base.weight += deltas[name]
    return row_losses(plain, rows, task, collate)


def raw(model, tasks, name):
    """Return the tasks' factors in a module, without scale."""
    layer = model.attached.layers[name]
    return [(layer.A[b].detach(), layer.B[b].detach()) for b in map(NAMES.index, tasks)]


def dense_update(model, weights, compose, name):
    pairs, values = raw(model, weights, name), list(weights.values())
    if compose == "factors":
        return dense_of_factors(SCALE, pairs, values)
    U, s, Vt = torch.linalg.svd(dense_of_deltas([SCALE] * len(pairs), pairs, values).double())
    return (U[:, :2] * s[:2] @ Vt[:2]).float()  # the block's rank is 2


@pytest.mark.parametrize(
    ("task", "changed"), [("two", {}), *(("value", changed) for changed in MODES)], ids=str
)
def test_what_is_found_is_the_best_composition_tried(model, collate, task, changed):
    hub = LoraHub(budget=16, **OURS, **changed)
    rows, before = taught(model, task, collate, hub), tensors_of(model)
    found = search_for_task(model.train(), task, rows, collate, hub=hub, seed=3)
    assert_same(tensors_of(model), before)
    assert model.training
    pool = NAMES if changed.get("pool") == "all" else [name for name in NAMES if name != task]
    assert list(found.weights) == list(pool)
    assert max(abs(value) for value in found.weights.values()) <= 1.5
    assert (len(found.history), len(found.shots), found.method) == (16, 5, "built_in")
    shots = [rows[shot] for shot in found.shots]
    assert len(set(found.shots)) == 5

    deltas = {
        name: dense_update(model, found.weights, hub.compose, name)
        for name in model.attached.layers
    }
    losses = dense_losses(model, task, deltas, shots, collate)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-4)
    penalty = 0.05 * np.mean(np.abs(list(found.weights.values())))
    assert min(found.history) == pytest.approx(np.mean(losses) + penalty, rel=1e-4)
    nothing = dict.fromkeys(deltas, torch.tensor(0.0))
    base = np.mean(dense_losses(model, task, nothing, shots, collate))
    assert found.history[0] == pytest.approx(base, rel=1e-4)
    assert found.base_loss == pytest.approx(base, rel=1e-4)
    assert found.loss < found.base_loss


@pytest.mark.parametrize("changed", MODES, ids=str)
def test_what_is_put_serves_the_task_and_no_other(model, collate, changed):
    hub = LoraHub(budget=16, **OURS, **changed)
    rows = taught(model, "value", collate, hub)
    others = {name: rows_of(name) for name in ("two", "three")}
    found = search_for_task(model.eval(), "value", rows, collate, hub=hub)
    before = {name: row_losses(model, others[name], name, collate) for name in others}
    put(model, "value", found.factors)
    shots = [rows[shot] for shot in found.shots]
    assert np.mean(row_losses(model, shots, "value", collate)) == pytest.approx(found.loss, 1e-5)
    assert found.loss < found.base_loss
    assert (found.error > 0) == (hub.compose == "deltas")
    for name in others:
        assert row_losses(model, others[name], name, collate) == before[name]
    for name, (A, B) in model.fold("value").items():
        torch.testing.assert_close(A, found.factors[name][0], rtol=0, atol=0)
        torch.testing.assert_close(B, found.factors[name][1], rtol=1e-6, atol=1e-7)


def test_the_error_of_a_cut_composition_is_that_of_the_dense_update(model, collate):
    hub = LoraHub(compose="deltas", budget=20, pool="all", **OURS)
    found = search_for_task(model, "two", rows_of("two"), collate, hub=hub)
    lost = whole = 0.0
    for name in model.attached.layers:
        values = list(found.weights.values())
        dense = dense_of_deltas([SCALE] * 3, raw(model, NAMES, name), values).double()
        kept = found.factors[name][1].double() @ found.factors[name][0].double()
        lost, whole = lost + float((dense - kept).norm() ** 2), whole + float(dense.norm() ** 2)
    assert found.error == pytest.approx(math.sqrt(lost / whole), rel=1e-5)


def test_the_same_seed_finds_the_same_and_another_does_not(model, collate):
    hub = LoraHub(budget=12, shots=4, **OURS)
    rows = taught(model, "value", collate, hub)
    one, again, other = (
        search_for_task(model, "value", rows, collate, hub=hub, seed=seed) for seed in (1, 1, 2)
    )
    assert (one.weights, one.history, one.shots) == (again.weights, again.history, again.shots)
    assert one.shots != other.shots
    assert one.weights != other.weights


def test_the_batch_size_is_no_matter(model, collate):
    """Five rows at once as in the other tests, and forty in batches of sixteen."""
    rows, hub = rows_of("two", 40), LoraHub(budget=3, shots=40, **OURS)
    found = search_for_task(model, "two", rows, collate, hub=hub)
    nothing = dict.fromkeys(model.attached.layers, torch.tensor(0.0))
    base = np.mean(dense_losses(model, "two", nothing, rows, collate))
    assert found.base_loss == pytest.approx(base, rel=1e-4)


def test_an_error_on_the_way_gives_the_block_back(model, collate, monkeypatch):
    before, calls = tensors_of(model), []

    def fail(*args, **kwargs):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    forward = model.forward
    monkeypatch.setattr(model, "forward", fail)
    model.train()
    with pytest.raises(KeyboardInterrupt):
        search_for_task(model, "two", rows_of("two"), collate, hub=LoraHub(**OURS))
    assert_same(tensors_of(model), before)
    assert model.training


def test_a_borrowed_block_comes_back(model):
    before = tensors_of(model)
    with borrowing(model, "two"):
        put(model, "two", {name: (2 * A, B) for name, (A, B) in model.fold("three").items()})
        assert changed_blocks(model, before) == {"two"}
    assert_same(tensors_of(model), before)


def test_zero_is_a_local_minimum_of_sums_of_factors(model, collate):
    """Their update is quadratic in w, so near 0 the L1 term is all that changes."""
    rows, slopes = rows_of("value"), {}
    for compose in ("factors", "deltas"):
        hub = LoraHub(compose=compose, budget=20, bounds=1e-3, shots=9, **OURS)
        found = search_for_task(model, "value", rows, collate, hub=hub)
        slopes[compose] = found.history[0] - min(found.history)
    assert slopes["factors"] == 0.0
    assert slopes["deltas"] > 0.0


def test_the_objective_is_the_formula_s_or_the_authors_code_s():
    weights, losses = [0.5, -1.0, 0.0, 0.3], [1.0, 2.0, 4.0, 0.5, 0.25]
    mean = sum(losses) / 5
    assert LoraHub().objective(mean, weights) == pytest.approx(mean + 0.05 * 1.8 / 4)
    assert LoraHub(l1=0.2).objective(mean, weights) == pytest.approx(mean + 0.2 * 1.8 / 4)
    published = LoraHub(official_norm=True).objective(mean, weights)
    assert published == pytest.approx(published_objective([mean], 5, weights))


def test_a_composition_is_json_without_its_factors(model, collate, monkeypatch):
    """A loss that is not finite is none, since JSON has no infinity."""
    losses = iter([1.0, math.inf, 0.5])
    monkeypatch.setattr("coadapt.merging.hub._mean_loss", lambda *_: next(losses))
    hub = LoraHub(budget=3, l1=0.0, **OURS)
    plain = search_for_task(model, "two", rows_of("two"), collate, hub=hub).to_plain()
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        "task": "two",
        "weights": {"three": plain["weights"]["three"], "value": plain["weights"]["value"]},
        "error": 0.0,
        "loss": 0.5,
        "base_loss": 1.0,
        "history": [1.0, None, 0.5],
        "method": "built_in",
        "shots": plain["shots"],
    }


def test_the_authors_norm_reaches_the_search(model, collate):
    rows = rows_of("two")
    for official, factor in ((False, 1), (True, 5)):
        hub = LoraHub(official_norm=official, budget=3, **OURS)
        found = search_for_task(model, "two", rows, collate, hub=hub)
        assert found.history[0] == pytest.approx(found.base_loss / factor)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": 0}, "budget must be at least 1, not 0"),
        ({"shots": 0}, "shots must be at least 1, not 0"),
        ({"l1": -0.1}, "l1 must be at least 0, not -0.1"),
        ({"l1": math.nan}, "l1 must be at least 0, not nan"),
        ({"bounds": 0.0}, "bounds must be above 0, not 0.0"),
        ({"bounds": math.inf}, "bounds must be above 0, not inf"),
        ({"compose": "factor"}, "unknown compose 'factor'; did you mean 'factors'"),
        ({"pool": "other"}, "unknown pool 'other'; did you mean 'others'"),
    ],
    ids=str,
)
def test_ranges_are_checked(changed, message):
    with pytest.raises(InputError, match=message):
        LoraHub(**changed)


def test_adapters_of_other_ranks_compose_as_updates_alone(tiny_bert, collate):
    model, rows = private(tiny_bert, plan=blocks(two=1, three=3, value=2)), rows_of("value")
    with pytest.raises(InputError, match=r"rank 1 in 'two' and 3 in 'three'.*compose='deltas'"):
        search_for_task(model, "value", rows, collate, hub=LoraHub(**OURS))
    hub = LoraHub(compose="deltas", budget=5, **OURS)
    found = search_for_task(model, "value", rows, collate, hub=hub)
    assert {A.shape[0] for A, _ in found.factors.values()} == {2}
    own = private(tiny_bert, plan=blocks(two=2, three=2, value=1))
    with pytest.raises(InputError, match="rank 2 in 'two' and 1 in 'value'"):
        search_for_task(own, "value", rows, collate, hub=LoraHub(**OURS))


@pytest.mark.parametrize(
    ("structure", "plan"),
    [
        (Single(), Plan.shared(NAMES, 4)),
        (Bank(), Plan.shared_private(NAMES, 6)),
        (Bank(), Plan.clustered({"a": ["two", "value"], "b": ["three"]}, 4)),
    ],
    ids=["single", "shared_private", "clustered"],
)
def test_a_model_without_a_lora_a_task_is_refused(tiny_bert, collate, structure, plan):
    model = private(tiny_bert, structure=structure, plan=plan)
    for call in (
        lambda: search_for_task(model, "two", rows_of("two"), collate),
        lambda: put(model, "two", model.fold("two")),
    ):
        with pytest.raises(InputError, match="train with recipe private"):
            call()


def test_a_frozen_start_is_refused(model, collate):
    for layer in model.attached.layers.values():
        layer.freeze_offset()
    with pytest.raises(InputError, match="train with init default"):
        search_for_task(model, "two", rows_of("two"), collate)


def test_what_cannot_be_searched_or_put_is_refused(model, tiny_bert, collate):
    rows = rows_of("two")
    alone = make_model(tiny_bert, Bank(), Plan.private(["two"], 2), tasks=model.tasks[:1])
    lower = private(tiny_bert, plan=blocks(two=1, three=2, value=2))
    for message, call in {
        "no task 'tow' and so no head; did you mean 'two'": lambda: search_for_task(
            model, "tow", rows, collate
        ),
        "has 4 rows to draw 5 shots from": lambda: search_for_task(model, "two", rows[:4], collate),
        "rows need their answers": lambda: search_for_task(
            model, "two", [{"input_ids": row["input_ids"]} for row in rows], collate
        ),
        "'two' is the model's only task": lambda: search_for_task(alone, "two", rows, collate),
        "no task 'tow'; did you mean 'two'": lambda: put(model, "tow", model.fold("two")),
        r"rank 2, the block of task 'two' 1; .*rank=1\)": lambda: put(
            lower, "two", lower.fold("three")
        ),
        "which 'the update' does not": lambda: put(
            model, "two", dict([*model.fold("two").items()][1:])
        ),
    }.items():
        with pytest.raises(InputError, match=message):
            call()


def test_a_lower_rank_is_put_exactly(model):
    cut = compose_deltas([model.fold("three")], [1.0], rank=1).factors
    put(model, "two", cut)
    for name, (A, B) in model.fold("two").items():
        torch.testing.assert_close(B @ A, cut[name][1] @ cut[name][0], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("llama"), "llama")


def test_a_new_task_of_a_language_model_is_searched_in_a_borrowed_block(language_folder):
    model = make_language_model(language_folder, private=True)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(1)
        for factor in model.attached.tensors().values():
            factor.copy_(torch.randn(factor.shape, generator=rng) * 0.15)
    items = [item for item in items_of(model, make_tokenizer(), model.tasks[1]) if "labels" in item]
    before, collate = tensors_of(model), LanguageCollator(0)
    hub = LoraHub(budget=30, shots=3, **OURS)
    found = search_for_task(model, "unheard", items, collate, hub=hub)
    assert_same(tensors_of(model), before)
    assert tuple(found.weights) == model.task_names
    for name in model.task_names:  # whichever block it is put into
        with borrowing(model, name):
            put(model, name, found.factors)
            assert np.mean(row_losses(model, items, name, collate)) == pytest.approx(
                found.loss, rel=1e-4
            )
