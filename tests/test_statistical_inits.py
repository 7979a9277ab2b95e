"""PiSSA, CorDA and HASI: against explicit inverses and PEFT, and what each promises."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import nn

from coadapt import InputError
from coadapt.adapters import ConstantGate, PartitionedLinear, Route, TaskGate
from coadapt.adapters.linear import linear_weight
from coadapt.inits import POOLED, BlockStart, Corda, Hasi, Pissa, allocate_task_ranks
from coadapt.planning import COOPERATIVE, InfeasibleBudget, Plan
from coadapt.recipe import Recipe
from coadapt.spectra import full
from coadapt.structures import Bank, Heads
from tests.reference import slow_hasi

IN, OUT = 24, 18
TASKS = ("one", "two")


def moment(num_tokens=200, seed=0, size=IN):
    """Return E x x' of tokens that lie along some directions more than others."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(num_tokens, size, dtype=torch.float64, generator=rng)
    x = x * torch.linspace(3, 0.2, size, dtype=torch.float64)[torch.randperm(size, generator=rng)]
    return x.T @ x / num_tokens


def make_layer(ranks, *, scale=2.0, gate=None, seed=0, base=None):
    torch.manual_seed(seed)
    base = base or nn.Linear(IN, OUT)
    gate = gate or ConstantGate(len(ranks))
    return PartitionedLinear(
        base, ranks, gate=gate, route=Route(), scale=scale, name="map"
    ).double()


def spectra_of(init, layer, moments, rank):
    W = linear_weight(layer.base).double()
    return {
        task: init.decompose(W, C, rank, torch.Generator().manual_seed(1))
        for task, C in moments.items()
    }


def fill(init, layer, names, spectra, seed=0):
    for index, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed + index)
        init.fill(layer, index, BlockStart(block=name, generator=generator, spectra=spectra))
    if init.offset:
        layer.freeze_offset()
    return layer


def product(layer, block):
    return (layer.B[block] @ layer.A[block]).detach()


def x_of(layer):
    rng = torch.Generator().manual_seed(9)
    return torch.randn(3, 4, IN, dtype=torch.float64, generator=rng)


CASES = {
    "full_rank": moment(),
    "rank_deficient": moment(num_tokens=2),
    "zero": torch.zeros(IN, IN, dtype=torch.float64),
    "tiny": 1e-30 * moment(),
    "huge": 1e12 * moment(),
}
INITS = {
    "pissa": Pissa(),
    "corda": Corda(),
    "corda_paper": Corda(balance="paper"),
    "corda_kpm": Corda(mode="knowledge_preserving"),
    "corda_kpm_paper": Corda(mode="knowledge_preserving", balance="paper"),
    "hasi": Hasi(),
    "hasi_paper": Hasi(balance="paper"),
    "hasi_orthogonalised": Hasi(orthogonalise=True),
    "hasi_scaled": Hasi(factor_scale=5**0.5),
}


@pytest.mark.parametrize("C", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("init", INITS.values(), ids=list(INITS))
def test_it_starts_as_the_base_model_and_is_finite(init, C):
    layer = make_layer((3, 4, 2))
    spectra = {}
    if init.statistics == "tasks":
        spectra = spectra_of(init, layer, {"one": C, "two": moment(seed=2)}, 9)
    elif init.statistics == "pooled":
        spectra = spectra_of(init, layer, {POOLED: C}, 9)
    fill(init, layer, [*TASKS, COOPERATIVE], spectra)
    assert all(torch.isfinite(f).all() for f in (*layer.A, *layer.B))
    x = x_of(layer)
    torch.testing.assert_close(layer(x), layer.base(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("balance", ["svd", "paper"])
@pytest.mark.parametrize("seed", range(3))
def test_hasi_is_what_the_explicit_inverse_gives(balance, seed):
    """Block products and, where published factors are asked for, the factors but for signs."""
    init, moments = Hasi(balance=balance), {"one": moment(seed=seed), "two": moment(seed=seed + 7)}
    layer = make_layer((3, 5, 4), seed=seed)
    W = linear_weight(layer.base).double()
    spectra = spectra_of(init, layer, moments, 12)
    fill(init, layer, [*TASKS, COOPERATIVE], spectra)
    for index, (task, rank) in enumerate([("one", 3), ("two", 5)]):
        B, A, S = slow_hasi.block(W, moments[task], rank)
        torch.testing.assert_close(spectra[task].sigma[:12], S[:12], rtol=1e-6, atol=0)
        torch.testing.assert_close(product(layer, index), B @ A, rtol=1e-6, atol=1e-9)
        norms = torch.stack([layer.B[index].norm(), layer.A[index].norm()]).detach()
        wanted = torch.stack([B.norm(), A.norm()]) if balance == "paper" else norms.mean().expand(2)
        torch.testing.assert_close(norms, wanted, rtol=1e-6, atol=0)
    assert not layer.B[2].any()
    assert layer.A[2].all()


def test_products_do_not_depend_on_the_unit_of_the_moments():
    init = Hasi()
    found = []
    for unit in (1.0, 1e6):
        layer = make_layer((3, 4, 2))
        moments = {"one": unit * moment(), "two": moment(seed=2)}
        fill(init, layer, [*TASKS, COOPERATIVE], spectra_of(init, layer, moments, 9))
        found.append([f.detach() for f in (layer.A[0], layer.B[0])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_orthogonalised_blocks_write_to_orthogonal_spaces():
    init = Hasi(orthogonalise=True)
    moments = {"one": moment(), "two": moment(seed=2)}
    overlap = {}
    for init in (Hasi(), Hasi(orthogonalise=True)):
        layer = make_layer((3, 4, 2))
        fill(init, layer, [*TASKS, COOPERATIVE], spectra_of(init, layer, moments, 9))
        one, two = (torch.linalg.qr(layer.B[k].detach()).Q for k in (0, 1))
        overlap[init.orthogonalise] = float(torch.linalg.svdvals(one.T @ two).max())
    assert overlap[False] > 0.3  # blocks of one W are not independent at start
    assert overlap[True] < 1e-10


def test_without_subtraction_a_part_of_the_weight_counts_twice():
    init = Hasi(subtract=False)
    layer = make_layer((3, 4, 2), scale=5.0)
    moments = {"one": moment(), "two": moment(seed=2)}
    fill(init, layer, [*TASKS, COOPERATIVE], spectra_of(init, layer, moments, 9))
    x = x_of(layer)
    extra = 5.0 * x @ (product(layer, 0) + product(layer, 1)).T
    torch.testing.assert_close(layer(x), layer.base(x) + extra)


@pytest.mark.parametrize(
    ("scale", "factor_scale", "times"),
    [(5.0, 1.0, 5.0), (1.0, 5.0, 25.0), (1.0, 5**0.5, 5.0), (5.0, 5**-0.5, 1.0)],
    ids=["i", "ii", "iii", "iv"],
)
def test_readings_of_gamma(scale, factor_scale, times):
    """How many times s B A is the plain reconstruction, gamma = 5."""
    moments = {"one": moment(), "two": moment(seed=2)}
    layers = []
    for s, f in ((1.0, 1.0), (scale, factor_scale)):
        layer, init = make_layer((3, 4, 2), scale=s), Hasi(factor_scale=f)
        layers.append(fill(init, layer, [*TASKS, COOPERATIVE], spectra_of(init, layer, moments, 9)))
    plain, scaled = layers
    torch.testing.assert_close(scaled.scale * product(scaled, 0), times * product(plain, 0))
    torch.testing.assert_close(scaled.A[2], factor_scale * plain.A[2])  # the cooperative one too


# Ranks -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(0, 100),
)
def test_exact_ranks_sum_and_have_their_least(weights, least, extra):
    budget = least * len(weights) + extra
    shares = [w / math.fsum(weights) for w in weights]
    ranks = allocate_task_ranks(budget, shares, least)
    assert sum(ranks) == budget
    assert min(ranks) >= least
    ideal = [least + extra * share for share in shares]
    assert all(abs(r - i) < 1 + 1e-9 for r, i in zip(ranks, ideal, strict=True))
    order = sorted(range(len(shares)), key=lambda i: -shares[i])
    assert all(
        ranks[a] >= ranks[b] for a, b in itertools.pairwise(order) if shares[a] > shares[b] + 1e-9
    )


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(0.0, 3.0), min_size=2, max_size=6),
    st.floats(0.05, 2.0),
    st.integers(24, 80),
)
def test_paper_ranks_are_equation_seven_mended_where_it_exceeds(entropies, temperature, budget):
    shares = torch.softmax(torch.tensor(entropies).double() / temperature, 0).tolist()
    ranks = allocate_task_ranks(budget, shares, 2, rounding="paper")
    wanted = slow_hasi.paper_ranks(entropies, budget, 2, temperature)
    assert sum(ranks) <= budget
    if sum(wanted) <= budget:
        # A floor may fall on the other side of a whole number by rounding.
        assert all(abs(r - w) <= 1 for r, w in zip(ranks, wanted, strict=True))
    else:
        assert sum(ranks) == budget
        assert all(r <= w for r, w in zip(ranks, wanted, strict=True))


def test_equal_shares_are_ties_for_the_first():
    assert allocate_task_ranks(10, [1 / 3] * 3, 1) == [4, 3, 3]


def test_more_least_ranks_than_there_are_is_refused():
    with pytest.raises(InfeasibleBudget, match="3 tasks with rank 4 each need 12"):
        allocate_task_ranks(10, [1 / 3] * 3, 4)


@pytest.mark.parametrize("entropy", ["normalised", "raw"])
def test_refined_plan_gives_more_to_the_task_that_spreads(entropy):
    init = Hasi(entropy=entropy)
    layer = make_layer((1,))
    W = linear_weight(layer.base).double()
    narrow = torch.diag(torch.logspace(0, -6, IN, dtype=torch.float64))
    spectra = {"map": spectra_of(init, layer, {"one": narrow, "two": moment()}, 12)}
    plan = init.refine(Plan.cooperative(TASKS, 12), spectra)
    ranks = plan.ranks["map"]
    assert ranks[COOPERATIVE] == 4
    assert ranks["one"] + ranks["two"] == 8
    assert ranks["one"] < ranks["two"]
    H = [slow_hasi.entropy(slow_hasi.block(W, C, 12)[2], 12) for C in (narrow, moment())]
    found = [init.entropy_of(spectra["map"][task], 12) for task in TASKS]
    bound = math.log(12) if entropy == "normalised" else 1.0
    assert found == pytest.approx([h / bound for h in H], rel=1e-9)


def test_a_task_of_few_directions_leaves_ranks_to_the_cooperative_block():
    init = Hasi(min_rank=3)
    layer = make_layer((1,))
    spectra = {"map": spectra_of(init, layer, {"one": moment(num_tokens=2), "two": moment()}, 12)}
    ranks = init.refine(Plan.cooperative(TASKS, 12), spectra).ranks["map"]
    assert ranks == {"one": 2, "two": 5, COOPERATIVE: 5}


def test_other_plans_are_refused():
    with pytest.raises(InputError, match="the plan has shared"):
        Hasi().refine(Plan.shared(TASKS, 8), {})
    with pytest.raises(InputError, match="no task may be named 'cooperative'"):
        Plan.cooperative(["one", COOPERATIVE], 8)
    with pytest.raises(InfeasibleBudget):
        Plan.cooperative(TASKS, 2)


def test_sizes_of_the_cooperative_block():
    for num, budget, coop in ((2, 64, 21), (4, 64, 12), (2, 16, 5)):
        plan = Plan.cooperative([f"t{k}" for k in range(num)], budget)
        assert plan.blocks[COOPERATIVE].rank == coop
        assert plan.budget == budget


# PiSSA and CorDA ---------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(IN, OUT)

    def forward(self, x):
        return self.map(x)


def run_all(model, rows):
    for row in rows:
        model(row)


def as_peft(init_name, rank, alpha, run=None, method: Any = "ipm") -> Any:
    model: Any = Tiny()
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=["map"],
        init_lora_weights=init_name,
        corda_config=None if run is None else CordaConfig(corda_method=method),
    )
    if run is not None:
        preprocess_corda(model, config, run_model=lambda: run_all(model, run))
    adapted: Any = get_peft_model(model, config)
    return adapted.base_model.model.map


@pytest.mark.parametrize("alpha", [4, 8])
def test_pissa_is_peft_s(alpha):
    theirs = as_peft("pissa", 4, alpha)
    layer = make_layer((4,), scale=alpha / 4, base=Tiny().map)
    fill(Pissa(), layer, ["shared"], {})
    B, A = (getattr(theirs, f"lora_{k}")["default"].weight.detach().double() for k in "BA")
    torch.testing.assert_close(product(layer, 0), B @ A, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.A[0].norm(), A.norm(), rtol=1e-5, atol=0)
    residual = linear_weight(layer.base) - layer.scale * layer.B0[0] @ layer.A0[0]
    torch.testing.assert_close(residual, theirs.base_layer.weight.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["instruction_previewed", "knowledge_preserving"])
def test_corda_is_peft_s(mode):
    """The product; each row a batch of its own, as PEFT reads them, with its damping.

    PEFT divides a row by its largest entry, which here is made 1.
    """
    rng = torch.Generator().manual_seed(4)
    rows = [torch.rand(1, 40, IN, generator=rng) for _ in range(3)]
    rows = [row / row.max() for row in rows]
    theirs = as_peft("corda", 4, 8, rows, "ipm" if mode == "instruction_previewed" else "kpm")
    x = torch.cat(rows, dim=1)[0].double()
    C = x.T @ x / 3
    C = C + 0.01 * C.diag().mean() * torch.eye(IN, dtype=torch.float64)
    init = Corda(mode=mode, balance="paper")
    layer = make_layer((4,), scale=2.0, base=Tiny().map)
    fill(init, layer, ["shared"], spectra_of(init, layer, {POOLED: C}, 4))
    B, A = (getattr(theirs, f"lora_{k}")["default"].weight.detach().double() for k in "BA")
    torch.testing.assert_close(product(layer, 0), B @ A, rtol=0, atol=2e-5)
    torch.testing.assert_close(layer.B[0].norm(), B.norm(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("init", [Pissa(), Corda()], ids=["pissa", "corda"])
def test_blocks_of_all_rows_take_different_triplets_and_those_of_tasks_the_same(init):
    def filled(gate):
        layer = make_layer((3, 3), gate=gate)
        spectra = (
            spectra_of(init, layer, {POOLED: moment()}, 6) if init.statistics != "none" else {}
        )
        return fill(init, layer, ["a", "b"], spectra)

    common = filled(ConstantGate(2))
    assert float((common.B[0].T @ common.B[1]).detach().abs().max()) < 1e-10
    apart = filled(TaskGate([[0], [1]], [3, 3]))
    torch.testing.assert_close(product(apart, 0), product(apart, 1))
    torch.testing.assert_close(product(apart, 0), product(common, 0))


def test_corda_keeps_the_part_of_the_weight_its_inputs_use():
    layer = make_layer((5,), scale=1.0)
    W, C = linear_weight(layer.base).double(), moment()
    fill(Corda(), layer, ["shared"], spectra_of(Corda(), layer, {POOLED: C}, 5))
    U = full(W, C, count=5).U
    torch.testing.assert_close(product(layer, 0), U @ U.T @ W)


def test_ranks_wider_than_the_map_are_padded_with_zeros():
    layer = make_layer((OUT + 5,), scale=1.0)
    fill(Pissa(), layer, ["shared"], {})
    torch.testing.assert_close(product(layer, 0), linear_weight(layer.base).double())


# Refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"factor_scale": -1.0}, "factor_scale must be positive"),
        ({"min_rank": 0}, "min_rank must be at least 1"),
    ],
)
def test_ranges(change, message):
    with pytest.raises(InputError, match=message):
        Hasi(**change)


def test_structures_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="heads over one A"):
        Recipe(structure=Heads(), init=Pissa())
    with pytest.raises(InputError, match="take structure 'single'"):
        Recipe(structure=Bank(), init=Hasi())


def test_a_quantised_weight_is_refused():
    class Packed(nn.Module):
        in_features, out_features = IN, OUT

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(OUT * IN // 2, dtype=torch.uint8), False)

    layer = PartitionedLinear(
        Packed(), (2,), gate=ConstantGate(1), route=Route(), scale=1.0, name="map"
    )
    with pytest.raises(InputError, match="weight of 'map', which is quantised"):
        fill(Pissa(), layer, ["shared"], {})
