"""Adapters compared through their factors, against the dense updates, SciPy and stock PEFT."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from scipy.linalg import subspace_angles
from transformers import AutoModel

from coadapt import InputError
from coadapt.diagnosis.folds import adapter_similarity, fold_cosine, principal_angles
from coadapt.importing import read_peft_adapter

SHAPES = {"layer.0.query": (6, 9), "layer.0.down": (12, 5), "layer.1.query": (6, 9)}  # (out, in)


def rng(seed=0):
    return np.random.default_rng(seed)


def random_folds(seed, rank=3, shapes=SHAPES):
    generator = rng(seed)
    return {
        name: (generator.normal(size=(rank, width)), generator.normal(size=(height, rank)))
        for name, (height, width) in shapes.items()
    }


def dense(folds):
    return {name: B @ A for name, (A, B) in folds.items()}


def dense_cosine(a, b):
    return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)


def flat(deltas, names=SHAPES):
    return np.concatenate([deltas[name].ravel() for name in names])


# The cosine --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [(3, 3), (1, 4), (7, 2), (15, 15)], ids=str)
def test_the_cosine_is_that_of_the_dense_updates(ranks):
    """Ranks above the modules' dimensions too."""
    folds = [random_folds(seed, rank) for seed, rank in enumerate(ranks)]
    deltas = [dense(fold) for fold in folds]
    found = fold_cosine(*folds)
    assert found.total == pytest.approx(dense_cosine(*map(flat, deltas)), abs=1e-13)
    assert list(found.by_module) == list(SHAPES)
    for name, cosine in found.by_module.items():
        assert cosine == pytest.approx(dense_cosine(*(delta[name] for delta in deltas)), abs=1e-13)


def test_the_same_opposed_and_scaled():
    folds = random_folds(1)
    opposed = {name: (A, -3 * B) for name, (A, B) in folds.items()}
    assert fold_cosine(folds, folds).total == pytest.approx(1)
    assert fold_cosine(folds, opposed).total == pytest.approx(-1)
    assert fold_cosine(folds, opposed).total >= -1


def test_a_module_that_is_missing_is_an_update_of_zero():
    a, b = random_folds(1), random_folds(2)
    del a["layer.0.down"], b["layer.1.query"]
    found = fold_cosine(a, b)
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    expected = dense_cosine(flat(zeros | dense(a)), flat(zeros | dense(b)))
    assert found.total == pytest.approx(expected, abs=1e-13)
    assert list(found.by_module) == ["layer.0.query", "layer.1.query", "layer.0.down"]
    assert np.isnan([found.by_module[name] for name in ("layer.1.query", "layer.0.down")]).all()
    explicit = a | {"layer.0.down": (rng().normal(size=(2, 5)), np.zeros((12, 2)))}
    assert fold_cosine(explicit, b).total == pytest.approx(found.total, abs=1e-15)
    empty = a | {"layer.0.down": (np.zeros((0, 5)), np.zeros((12, 0)))}
    assert fold_cosine(empty, b).total == pytest.approx(found.total, abs=1e-15)


def test_a_small_change_of_a_large_offset_keeps_its_digits():
    """Folds with an offset are [B, -B0] and [A; A0], whose product nearly cancels."""
    start, seed = random_folds(3), 4
    changes, folds = [], []
    for seed in (4, 5):
        step = {n: (A, 1e-6 * B) for n, (A, B) in random_folds(seed).items()}
        changes.append(flat(dense(step)))
        folds.append(
            {
                n: (np.concatenate([A, A, step[n][0]]), np.concatenate([B, -B, step[n][1]], 1))
                for n, (A, B) in start.items()
            }
        )
    expected = dense_cosine(*changes)
    assert fold_cosine(*folds).total == pytest.approx(expected, abs=1e-8)
    still = {n: (np.concatenate([A, A]), np.concatenate([B, -B], 1)) for n, (A, B) in start.items()}
    with pytest.raises(InputError, match="adapter 'folds_b': the update is zero in each of its 3"):
        fold_cosine(start, still)


def test_no_matrix_of_the_modules_size_is_formed():
    side = 4000  # 128 MB in float64, its factors 64 KB each
    generator = rng()
    A, B = generator.normal(size=(2, side)), generator.normal(size=(side, 2))
    other = B @ [[1, 0], [0, 0]]
    tracemalloc.start()
    try:
        found = fold_cosine({"m": (A, B)}, {"m": (A, other)})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5e6
    grams = [(A @ A.T) * (b.T @ c) for b, c in ((B, other), (B, B), (other, other))]
    inner, first, second = (gram.sum() for gram in grams)
    assert found.total == pytest.approx(inner / np.sqrt(first * second))


# Principal angles --------------------------------------------------------------------------------


def subspaces(delta, side):
    return delta.T if side == "in" else delta


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("ranks", [(3, 3), (1, 4), (2, 9)], ids=str)
def test_angles_are_scipys_of_the_dense_updates(ranks, side):
    folds = [random_folds(seed, rank) for seed, rank in enumerate(ranks)]
    found = principal_angles(*folds, side=side)
    for name in SHAPES:
        spaces = [subspaces(dense(fold)[name], side) for fold in folds]
        expected = np.cos(subspace_angles(*spaces))
        np.testing.assert_allclose(found.cosines[name], np.sort(expected)[::-1], atol=1e-12)
        overlap = found.overlap_by_module[name]
        assert overlap == pytest.approx(np.mean(expected**2), abs=1e-12)
    assert found.overlap == pytest.approx(np.mean(list(found.overlap_by_module.values())))


@pytest.mark.parametrize("side", ["in", "out"])
def test_the_ranks_are_those_of_the_updates_not_of_the_factors(side):
    """Padded with zeros, with a direction twice, and with one that only A or only B has."""
    generator = rng(6)
    A, B = generator.normal(size=(2, 9)), generator.normal(size=(6, 2))
    extra_A, extra_B = generator.normal(size=(1, 9)), generator.normal(size=(6, 1))
    zero_A, zero_B = np.zeros((1, 9)), np.zeros((6, 1))
    forms = {
        "padded": (np.vstack([A, zero_A]), np.hstack([B, zero_B])),
        "only A": (np.vstack([A, extra_A]), np.hstack([B, zero_B])),
        "only B": (np.vstack([A, zero_A]), np.hstack([B, extra_B])),
        "twice": (np.vstack([A, A]), np.hstack([0.3 * B, 0.7 * B])),
        "cancelled": (np.vstack([A, extra_A, extra_A]), np.hstack([B, extra_B, -extra_B])),
        "float32": (
            np.vstack([A, np.float32(extra_A / 3), -extra_A / 3]),
            np.hstack([B, 1e-2 * extra_B, 1e-2 * extra_B]),
        ),
    }
    other = {"m": (generator.normal(size=(3, 9)), generator.normal(size=(6, 3)))}
    expected = principal_angles({"m": (A, B)}, other, side)
    for what, form in forms.items():
        found = principal_angles({"m": form}, other, side)
        np.testing.assert_allclose(
            found.cosines["m"], expected.cosines["m"], atol=1e-7, err_msg=what
        )
        overlap = adapter_similarity({"a": {"m": form}, "b": other}).matrices[f"overlap_{side}"]
        assert overlap[0, 1] == pytest.approx(expected.overlap, abs=1e-7), what


def test_overlap_of_known_subspaces():
    axes = np.eye(6)

    def fold(rows, columns):
        return {"m": (axes[rows], axes[:, columns])}

    a = fold([0, 1], [0, 1])
    assert principal_angles(a, fold([0, 1], [2, 3])).overlap == 1
    assert principal_angles(a, fold([0, 1], [2, 3]), "out").overlap == 0
    assert principal_angles(a, fold([1, 2], [0, 1])).overlap == pytest.approx(0.5)
    assert principal_angles(a, fold([0, 1, 2], [0, 1, 2])).overlap == 1
    tilted = {"m": ((axes[[0]] + axes[[5]]) * 7, axes[:, [0]])}
    assert principal_angles(a, tilted).cosines["m"] == pytest.approx([np.sqrt(0.5)])
    assert principal_angles(a, tilted).overlap == pytest.approx(0.5)


def test_random_subspaces_overlap_as_documented():
    """max(r_1, r_2) / d on average, here 3 / 9 and 3 / 6."""
    overlaps = np.array(
        [
            [
                principal_angles(
                    random_folds(seed, 2), random_folds(-seed - 1 + 10**6, 3), side
                ).overlap_by_module["layer.0.query"]
                for side in ("in", "out")
            ]
            for seed in range(200)
        ]
    )
    error = overlaps.std(axis=0) / np.sqrt(len(overlaps))
    assert (np.abs(overlaps.mean(axis=0) - [3 / 9, 3 / 6]) < 4 * error).all()


def test_modules_of_one_adapter_have_no_angles():
    a, b = random_folds(1), random_folds(2)
    del a["layer.0.down"]
    b["layer.1.query"] = (b["layer.1.query"][0], np.zeros((6, 3)))
    assert list(principal_angles(a, b).cosines) == ["layer.0.query"]


# Both, of many -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(1e-3, 1e3))
def test_another_choice_of_factors_changes_nothing(seed, rank, scale):
    """(A, B) and (M A, B M^-1) are the same update, whatever the invertible M."""
    folds = {name: random_folds(seed + index, rank) for index, name in enumerate("abc")}
    mixed = {}
    generator = rng(seed)
    for name, fold in folds.items():
        M = scale * (np.eye(rank) + 0.3 * generator.uniform(-1, 1, size=(rank, rank)) / rank)
        mixed[name] = {n: (M @ A, B @ np.linalg.inv(M)) for n, (A, B) in fold.items()}
    found, other = adapter_similarity(folds), adapter_similarity(mixed)
    for name, matrix in found.matrices.items():
        np.testing.assert_allclose(other.matrices[name], matrix, atol=1e-10)
        np.testing.assert_allclose(other.by_module[name], found.by_module[name], atol=1e-10)


def test_the_matrices_hold_what_pairs_give():
    folds = {"a": random_folds(1), "b": random_folds(2, rank=5), "c": random_folds(3, rank=1)}
    del folds["b"]["layer.0.query"]
    found = adapter_similarity(folds)
    assert found.names == ("a", "b", "c")
    assert found.modules == tuple(SHAPES)
    for i, a in enumerate(folds):
        for j, b in enumerate(folds):
            cosine = fold_cosine(folds[a], folds[b])
            assert found.matrices["cosine"][i, j] == pytest.approx(cosine.total, abs=1e-14)
            angles = {side: principal_angles(folds[a], folds[b], side) for side in ("in", "out")}
            for side, angle in angles.items():
                overlap = found.matrices[f"overlap_{side}"][i, j]
                assert overlap == pytest.approx(angle.overlap, abs=1e-12)
            for m, module in enumerate(found.modules):
                of_pair = [values[m, i, j] for values in found.by_module.values()]
                expected = [cosine.by_module.get(module, np.nan)] + [
                    angle.overlap_by_module.get(module, np.nan) for angle in angles.values()
                ]
                np.testing.assert_allclose(of_pair, expected, atol=1e-12)
    for matrix in found.matrices.values():
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_tensors_are_compared_in_float64(dtype):
    folds = [
        {
            n: (torch.tensor(A).to(dtype).requires_grad_(), torch.tensor(B).to(dtype))
            for n, (A, B) in random_folds(seed).items()
        }
        for seed in (1, 2)
    ]
    exact = [
        {n: (A.detach().double().numpy(), B.double().numpy()) for n, (A, B) in fold.items()}
        for fold in folds
    ]
    assert fold_cosine(*folds).total == pytest.approx(fold_cosine(*exact).total, abs=1e-15)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*rslora:UserWarning")
@torch.no_grad()
def test_a_peft_folder_gives_pefts_own_updates(tiny_bert, tmp_path):
    """Its factors hold scale and patterns, so their products are what PEFT adds to the weights."""
    configs = {
        "plain": {"r": 4, "lora_alpha": 6},
        "patterns": {
            "r": 3,
            "lora_alpha": 5,
            "use_rslora": True,
            "rank_pattern": {"layer.0.attention.self.query": 7},
            "alpha_pattern": {"value": 40},
        },
    }
    folds, deltas = {}, {}
    for seed, (name, config) in enumerate(configs.items()):
        model = get_peft_model(
            AutoModel.from_pretrained(tiny_bert),
            LoraConfig(target_modules=["query", "value"], **config),
        )
        generator = torch.Generator().manual_seed(seed)
        for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(tmp_path / name)
        folds[name] = read_peft_adapter(tmp_path / name).factors
        deltas[name] = {
            module.removeprefix("base_model.model."): layer.get_delta_weight("default").numpy()
            for module, layer in model.named_modules()
            if isinstance(layer, Linear)
        }
    found = adapter_similarity(folds)
    assert set(found.modules) == set(deltas["plain"])
    a, b = (flat(delta, found.modules).astype(float) for delta in deltas.values())
    assert found.matrices["cosine"][0, 1] == pytest.approx(dense_cosine(a, b), abs=1e-6)
    for m, module in enumerate(found.modules):
        pair = [delta[module].astype(float) for delta in deltas.values()]
        assert found.by_module["cosine"][m, 0, 1] == pytest.approx(dense_cosine(*pair), abs=1e-6)


# Errors ------------------------------------------------------------------------------------------


def test_adapters_that_cannot_be_compared_are_refused():
    good = random_folds(1)
    zero = {name: (A, np.zeros_like(B)) for name, (A, B) in good.items()}
    A, B = good["layer.0.query"]
    for a, b, message in [
        (zero, good, "adapter 'folds_a': the update is zero in each of its 3 modules"),
        (good, {}, "adapter 'folds_b': the update is zero in each of its 0"),
        (good, {f"bert.{n}": pair for n, pair in good.items()}, r"no module in common .*'bert\."),
        (good, {"layer.0.query": (A[:, 1:], B)}, r"shape \(6, 9\) for folds_a, but \(6, 8\)"),
        (good, {"layer.0.query": (A[1:], B)}, r"folds_b\['layer.0.query'\] needs A \(r, in\)"),
        (good, {"layer.0.query": (A * np.nan, B)}, r"A of folds_b\['layer.0.query'\].* nan"),
        (good, {"layer.0.query": (A, B[0])}, "B of folds_b.* must be a matrix"),
    ]:
        for compare in (fold_cosine, principal_angles):
            with pytest.raises(InputError, match=message):
                compare(a, b)


def test_updates_that_never_meet_are_refused():
    a, b = random_folds(1), random_folds(2)
    for fold, still in ((a, "layer.0.query"), (b, "layer.1.query")):
        fold[still] = (fold[still][0], np.zeros((6, 3)))
        del fold["layer.0.down"]
    with pytest.raises(InputError, match="folds_a and folds_b update no module in common"):
        principal_angles(a, b)


def test_bad_arguments_are_named():
    good = random_folds(1)
    with pytest.raises(InputError, match="side must be in or out, not 'left'"):
        principal_angles(good, good, "left")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="folds holds no adapter"):
        adapter_similarity({})
    still = {"m": (np.ones((1, 2)), np.zeros((2, 1)))}
    with pytest.raises(InputError, match="adapter 'sst2': the update is zero"):
        adapter_similarity({"sst2": still, "mrpc": still})
    assert adapter_similarity({"only": good}).matrices["cosine"] == pytest.approx(np.ones((1, 1)))
