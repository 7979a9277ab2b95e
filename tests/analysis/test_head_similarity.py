"""Cosines between heads against a loop over dense matrices, and where they are known."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt import InputError
from coadapt.analysis import head_similarity, similarity_sheet, start_of
from coadapt.analysis.head_similarities import mean_cosine, product_gram
from tests.analysis.toys import fill, reopened
from tests.toy_runs import tensors_of

SMALL = {"num_heads": 3}
KINDS = {
    "heads": ("m_lora", SMALL),
    "routed": ("r_lora", SMALL),
    "zero_start": ("hydra_lora", SMALL),
    "experts": ("lora_moe", {"num_experts": 3}),
}


def slow_mean_cosine(vectors):
    """A mean over pairs, of dense vectors."""
    pairs = combinations([np.asarray(v, dtype=np.float64).ravel() for v in vectors], 2)
    return np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in pairs])


def dense(tensors, module, product):
    """B_i, or B_i A_i, of an adapter's saved tensors."""
    blocks = sorted(name for name in tensors if name.endswith(f"/{module}/B"))
    found = []
    for name in blocks:
        B = tensors[name].double().numpy()
        found.append(B @ tensors[f"{name[:-1]}A"].double().numpy() if product else B)
    return found


# --- closed forms


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[1, 0], [0, 2]], 0.0),
        ([[1, 1], [5, 5], [0.1, 0.1]], 1.0),
        ([[1, 0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]], -0.5),
        ([[1, 0], [-3, 0], [0, 1]], -1 / 3),
        ([[1, 0], [1, 1]], 0.5**0.5),
    ],
    ids=["orthogonal", "parallel", "at-120-degrees", "opposite-and-across", "at-45-degrees"],
)
def test_known_cosines(vectors, expected):
    vectors = np.array(vectors, dtype=float)
    assert mean_cosine(vectors @ vectors.T) == pytest.approx(expected)
    assert mean_cosine(100 * vectors @ vectors.T) == pytest.approx(expected)


def test_a_zero_vector_has_no_cosine():
    assert np.isnan(mean_cosine(np.diag([1.0, 0.0, 2.0])))


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_products_are_compared_without_being_made(seed, num, rank):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(num, rank, 5, generator=generator)
    B = torch.randn(num, 7, rank, generator=generator)
    products = torch.stack([(b.double() @ a.double()).flatten() for a, b in zip(A, B, strict=True)])
    found = product_gram(list(zip(A, B, strict=True)))
    np.testing.assert_allclose(found, products @ products.T, atol=1e-12)
    assert mean_cosine(found) == pytest.approx(slow_mean_cosine(list(products.numpy())))


def test_rotated_factors_are_the_same_expert():
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, 5, generator=generator), torch.randn(4, 2, generator=generator)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=generator))[0]
    gram = product_gram([(A, B), (turn @ A, B @ turn.T)])
    assert mean_cosine(gram) == pytest.approx(1.0)


# --- of runs


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_are_those_of_the_saved_factors(kind, make_run):
    recipe, structure = KINDS[kind]
    run = make_run(recipe, f"{kind}-1", structure=structure)
    still = make_run(recipe, f"{kind}-0", structure=structure, rate=0.0)
    now, then = tensors_of(run.path / "adapter"), tensors_of(still.path / "adapter")
    found = head_similarity(run.path)
    product = kind == "experts"
    assert found.compared == ("BA" if product else "B")
    assert (found.num_heads, found.structure) == (3, run.config.recipe.structure.kind)
    assert list(found.raw) == list(run.model.attached.layers)
    for module in found.raw:
        after, before = (dense(tensors, module, product) for tensors in (now, then))
        assert found.raw[module] == pytest.approx(slow_mean_cosine(after), abs=1e-9)
        added = [a - b for a, b in zip(after, before, strict=True)]
        assert found.moved[module] == pytest.approx(slow_mean_cosine(added), abs=1e-6)
    assert found.notes == ()


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_factors_of_every_structure(kind, make_run):
    recipe, structure = KINDS[kind]
    run = fill(reopened(make_run(recipe, f"{kind}-1", structure=structure)))
    found = head_similarity(run)
    for module, layer in run.model.attached.layers.items():
        factors = [(A.detach().numpy(), B.detach().numpy()) for A, B in layer.blocks()]
        vectors = [B @ A if kind == "experts" else B for A, B in factors]
        assert found.raw[module] == pytest.approx(slow_mean_cosine(vectors), abs=1e-5)


def test_heads_over_one_mask_stay_equal(make_run):
    found = head_similarity(make_run("hydra_lora_no_router"))
    np.testing.assert_allclose(list(found.raw.values()), 1.0, atol=1e-9)
    np.testing.assert_allclose(list(found.moved.values()), 1.0, atol=1e-9)


def test_random_heads_that_have_hardly_moved_are_unlike_by_their_start(make_run):
    found = head_similarity(make_run("m_lora", "heads-1", structure=SMALL))
    assert np.median(list(found.raw.values())) < 0.5
    assert np.median(list(found.moved.values())) > np.median(list(found.raw.values()))


@pytest.mark.parametrize("kind", ["zero_start", "experts"])
def test_an_untrained_zero_start_has_no_cosine_and_says_so(kind, make_run):
    recipe, structure = KINDS[kind]
    found = head_similarity(make_run(recipe, f"{kind}-0", structure=structure, rate=0.0))
    assert np.isnan([*found.raw.values(), *found.moved.values()]).all()
    assert found.notes[0].startswith("in 4 of 4 modules")
    assert len(found.notes) == 2
    assert found.to_plain()["raw"] == dict.fromkeys(found.raw)
    sheet = similarity_sheet(found)
    assert sheet.rows[0] == ("median", "-", "-")
    assert sheet.notes == found.notes


def test_a_random_start_that_did_not_move_has_a_cosine_but_no_movement(make_run):
    found = head_similarity(make_run("r_lora", "routed-0", structure=SMALL, rate=0.0))
    assert not np.isnan(list(found.raw.values())).any()
    assert np.isnan(list(found.moved.values())).all()
    (note,) = found.notes
    assert "4 of 4 modules training added nothing to a head" in note


def test_a_block_that_is_alone_is_left_out_and_said(make_run):
    run = fill(reopened(make_run("lora_moe", "experts-1", structure={"num_experts": 3})))
    first, layer = next(iter(run.model.attached.layers.items()))
    layer.A, layer.B = layer.A[:1], layer.B[:1]
    found = head_similarity(run)
    assert (len(found.raw), found.num_heads) == (3, 3)
    assert found.notes == (f"in 1 of 4 modules there is one block alone, left out here: {first}",)


def test_the_start_is_the_model_before_its_first_step(make_run):
    run = make_run("r_lora", "routed-1", structure=SMALL)
    still = make_run("r_lora", "routed-0", structure=SMALL, rate=0.0)
    start = start_of(run.path).model.state_tensors()
    kept = tensors_of(still.path / "adapter")
    trained = run.model.state_tensors()
    blocks = [name for name in start if not name.startswith("heads/")]
    assert blocks
    for name in blocks:
        assert torch.equal(start[name], kept[f"blocks.safetensors/{name}"])
    assert not all(torch.equal(start[name], trained[name]) for name in blocks)


def test_a_language_model_s_heads(make_run, tiny_decoder, language_suite):
    model = {"name": str(tiny_decoder), "dtype": "float32", "max_length": 96}
    run = make_run("m_lora", "decoder", suite=language_suite, model=model, structure=SMALL)
    found = head_similarity(run)
    assert len(found.raw) == len(run.model.attached.layers)
    assert not np.isnan([*found.raw.values(), *found.moved.values()]).any()


def test_the_sheet_and_the_plain_data(make_run):
    found = head_similarity(make_run("m_lora", "heads-1", structure=SMALL))
    sheet, plain = similarity_sheet(found), json.loads(json.dumps(found.to_plain()))
    assert plain["raw"] == found.raw
    assert [row[0] for row in sheet.rows] == ["median", "mean", *found.raw]
    assert sheet.rows[1][1] == f"{np.mean(list(found.raw.values())):.2f}"
    assert sheet.rows[2][2] == f"{next(iter(found.moved.values())):.2f}"


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("m_lora", {"structure": {"num_heads": 1}}, "has 1 head; a similarity is between two"),
        ("lora", {}, "structure 'single', which has no heads or experts"),
        ("private", {"budget": 4}, "structure 'bank', which has no heads or experts"),
        ("frozen", {"budget": None}, "has no adapters to look at: its structure is 'frozen'"),
    ],
    ids=["one-head", "lora", "private", "frozen"],
)
def test_runs_without_heads_are_refused(recipe, options, message, make_run):
    run = make_run(recipe, f"refused-{recipe}", **options)
    with pytest.raises(InputError, match=message):
        head_similarity(run)
