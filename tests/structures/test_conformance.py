"""What every structure must hold: a structure joins by one line in PARTS."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from coadapt.adapters import AbstractAdapted, Route, TaskGate, eject
from coadapt.backbone import pool
from coadapt.fitting import train
from coadapt.inits import AbstractInit, BlockStart
from coadapt.planning import Block, Plan
from coadapt.recipe import Recipe
from coadapt.saving import load_adapter, save_adapter
from coadapt.structures import Bank, Experts, Heads, RoutedHeads, Single, Site, Structure
from tests.reference.dense import dense_layer
from tests.small import (
    MIXED,
    NAMES,
    blocks_of,
    gradients,
    make_batch,
    make_model,
    output_hash,
    randomize,
    take,
)

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Part:
    """A structure and the plan it is tried with."""

    structure: Structure
    plan: Callable[[Sequence[str]], Plan]
    by_row: bool = False


def two_blocks(tasks: Sequence[str]) -> Plan:
    blocks = {"left": Block(rank=1, tasks=tuple(tasks)), "right": Block(rank=3, tasks=tuple(tasks))}
    return Plan(blocks=blocks)


def unequal_clusters(tasks: Sequence[str]) -> Plan:
    few, many = Block(rank=4, tasks=tuple(tasks[:1])), Block(rank=1, tasks=tuple(tasks[1:]))
    return Plan(blocks={"few": few, "many": many})


def one_block(tasks: Sequence[str]) -> Plan:
    return Plan.shared(tasks, 2)


PARTS = {
    "single": Part(Single(scale=1.5), lambda tasks: Plan.shared(tasks, 3)),
    "single_two_blocks": Part(Single(scale=0.5), two_blocks),
    "bank_private": Part(Bank(scale=1.5), lambda tasks: Plan.private(tasks, 2 * len(tasks))),
    "bank_unequal_clusters": Part(Bank(scale=0.5), unequal_clusters),
    "bank_shared_private": Part(Bank(scale=2.0), lambda tasks: Plan.shared_private(tasks, 8)),
    "bank_private_by_row": Part(
        Bank(scale=1.5), lambda tasks: Plan.private(tasks, 2 * len(tasks)), by_row=True
    ),
    "bank_unequal_clusters_by_row": Part(Bank(scale=0.5), unequal_clusters, by_row=True),
    "bank_shared_private_by_row": Part(
        Bank(scale=2.0), lambda tasks: Plan.shared_private(tasks, 8), by_row=True
    ),
    "bank_one_cluster": Part(Bank(scale=2.0), lambda tasks: Plan.shared(tasks, 3)),
    "heads_sum": Part(Heads(scale=1.5, num_heads=3), one_block),
    "heads_mean": Part(Heads(scale=2.0, num_heads=2, reduction="mean"), one_block),
    "routed_heads": Part(RoutedHeads(scale=1.5, num_heads=3), one_block),
    # A scale of its own: at that of heads_mean it would be the same function to the last bit.
    "routed_heads_zero": Part(RoutedHeads(scale=1.0, num_heads=2, router_init="zero"), one_block),
    "experts": Part(Experts(scale=1.5, num_experts=3), one_block),
    "experts_top_2": Part(Experts(scale=0.5, num_experts=3, top_k=2), one_block),
}


class Scattered(AbstractInit):
    """Both factors away from zero."""

    @property
    def offset(self) -> bool:
        return False

    def fill(self, layer: AbstractAdapted, block: int, start: BlockStart) -> None:
        scatter(layer, block, start.generator)


class ScatteredOffset(AbstractInit):
    """Both factors away from zero, and an offset to compensate."""

    @property
    def offset(self) -> bool:
        return True

    def fill(self, layer: AbstractAdapted, block: int, start: BlockStart) -> None:
        scatter(layer, block, start.generator)


@torch.no_grad()
def scatter(layer: AbstractAdapted, block: int, generator: Generator) -> None:
    for factor in layer.pair(block):
        factor.copy_(torch.randn(factor.shape, generator=generator) * 0.5)


def prepared(part: Part, monkeypatch: pytest.MonkeyPatch) -> Part:
    """Have a layer take products by row, or not, whatever its ranks."""
    monkeypatch.setattr(TaskGate, "min_rank", 0 if part.by_row else 1_000_000)
    monkeypatch.setattr(TaskGate, "min_share", 0)
    return part


@pytest.fixture(params=PARTS.values(), ids=list(PARTS))
def part(request, monkeypatch):
    return prepared(request.param, monkeypatch)


@pytest.fixture(
    params=[part for part in PARTS.values() if part.structure.mergeable],
    ids=[name for name, part in PARTS.items() if part.structure.mergeable],
)
def mergeable(request, monkeypatch):
    return prepared(request.param, monkeypatch)


@pytest.fixture(params=[False, True], ids=["plain", "offset"])
def offset(request):
    return request.param


# The layer against the dense oracle ------------------------------------------------------------

IN, OUT = 6, 5


def linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(IN, OUT, bias=bias)


def conv1d() -> Conv1D:
    base = Conv1D(OUT, IN)
    nn.init.normal_(base.bias)
    return base


BASES = {"linear": linear, "linear_no_bias": lambda: linear(bias=False), "conv1d": conv1d}


@dataclass
class Case:
    """One adapted map with everything the oracle needs to know about it."""

    part: Part
    layer: AbstractAdapted
    route: Route
    start: list[tuple[Tensor, Tensor]]

    @classmethod
    def make(cls, part: Part, *, offset: bool = False, base: nn.Module | None = None) -> "Case":
        if offset:
            skip_refused(part)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            host = nn.ModuleDict({"map": base or linear()})
            route = Route()
            site = Site(
                backbone=host,
                names=("map",),
                tasks=NAMES,
                plan=part.plan(NAMES),
                init=ScatteredOffset() if offset else Scattered(),
                route=route,
                seed=0,
            )
            layer = part.structure.attach(site).layers["map"]
            start = [(a.detach().clone(), b.detach().clone()) for a, b in pairs(layer)]
            with torch.no_grad():
                for factor in trained(layer):  # as training would, away from an offset
                    factor.add_(torch.randn(factor.shape) * 0.5)
        return cls(part, layer, route, start if offset else [])

    @property
    def rounding(self) -> float:
        """Of float64; heads keep the sum of their starts in float32."""
        return 1e-6 if self.start and self.part.structure.kind not in ("single", "bank") else 1e-12

    def forward(self, x: Tensor, task_ids: Sequence[int]) -> Tensor:
        self.route.set(torch.tensor(task_ids, dtype=torch.long))
        return self.layer(x)

    def expected(self, x: Tensor, task_ids: Sequence[int], *factors: Tensor) -> Tensor:
        """The oracle in the dtype of ``x``, on the layer's own factors unless others are given."""
        factors = factors or tuple(p.detach().to(x.dtype) for p in trained(self.layer))
        A, rest = factors[: len(self.layer.A)], factors[len(self.layer.A) :]
        B, router = rest[: len(self.layer.B)], rest[len(self.layer.B) :]
        base: Any = self.layer.base
        W = base.weight.T if isinstance(base, Conv1D) else base.weight
        structure: Any = self.part.structure
        mean = getattr(structure, "reduction", "sum") == "mean"
        return dense_layer(
            x,
            task_ids,
            W=W.detach().to(x.dtype),
            b=None if base.bias is None else base.bias.detach().to(x.dtype),
            scale=structure.scale / (len(B) if mean else 1),
            gates=self.gates(),
            blocks=[(A[0] if self.layer.shared_A else A[k], b) for k, b in enumerate(B)],
            offset=[(a.to(x.dtype), b.to(x.dtype)) for a, b in self.start],
            router=router[0] if router else None,
            top_k=getattr(structure, "top_k", None),
        )

    def gates(self) -> list[list[float]]:
        """The design's table: 1 everywhere, or the one-hot of the row's task."""
        if self.part.structure.depends_on != "task":
            return [[1.0] * len(self.layer.B) for _ in NAMES]
        blocks = self.part.plan(NAMES).blocks.values()
        return [[float(task in block.tasks) for block in blocks] for task in NAMES]


def skip_refused(part: Part) -> None:
    if getattr(part.structure, "top_k", None) is not None:
        pytest.skip("no offset under a top-k router, see test_routed.py")


def pairs(layer: AbstractAdapted) -> list[tuple[Tensor, Tensor]]:
    """A and B of every block; heads have the same A."""
    return [(layer.A[0 if layer.shared_A else k], b) for k, b in enumerate(layer.B)]


def trained(layer: AbstractAdapted) -> list[nn.Parameter]:
    """A, B and the router, in this order."""
    router = layer.gate.router
    return [*layer.A, *layer.B, *([] if router is None else [router])]


def normal(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows_of(task_ids: Sequence[int], *between: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal(len(task_ids), *between, IN, dtype=dtype)


BATCHES = {"mixed": MIXED, "one_task": (1, 1, 1), "one_row": (2,), "no_row": ()}


def compare_gradients(case: Case, x: Tensor, task_ids: Sequence[int], tolerance: float) -> None:
    """Compare output and gradients with the oracle's in float64, relative to the largest entry."""
    x = x.detach().requires_grad_()
    y = case.forward(x, task_ids)
    weights = normal(*y.shape, seed=5)
    (y.double() * weights).sum().backward()

    x_exact = x.detach().double().requires_grad_()
    exact_factors = [p.detach().double().requires_grad_() for p in trained(case.layer)]
    y_exact = case.expected(x_exact, task_ids, *exact_factors)
    if task_ids:
        (y_exact * weights).sum().backward()

    assert y.dtype == x.dtype
    close(y, y_exact, tolerance)
    for tensor, exact in zip([x, *trained(case.layer)], [x_exact, *exact_factors], strict=True):
        # The oracle's row loop leaves out what no row uses, the layer's gradient is zero there.
        wanted = torch.zeros_like(exact) if exact.grad is None else exact.grad
        assert tensor.grad is not None
        close(tensor.grad, wanted, tolerance)


def close(mine: Tensor, exact: Tensor, tolerance: float) -> None:
    mine, exact = mine.detach(), exact.detach()
    assert mine.shape == exact.shape
    if exact.numel():
        largest = max(float(exact.abs().max()), 1.0)
        assert float((mine.double() - exact).abs().max()) <= tolerance * largest


@pytest.mark.parametrize("between", [(), (4,)], ids=["B_d", "B_S_d"])
@pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))
def test_layer_equals_the_dense_oracle_in_float64(part, offset, base, between):
    case = Case.make(part, offset=offset, base=base())
    case.layer.double()
    compare_gradients(case, rows_of(MIXED, *between), MIXED, case.rounding)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Eight bits of mantissa, a few roundings in a row; the factors stay in float32.
    [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)],
    ids=["float32", "bfloat16"],
)
def test_layer_equals_the_dense_oracle_in_low_precision(part, offset, dtype, tolerance):
    case = Case.make(part, offset=offset)
    case.layer.base.to(dtype)
    compare_gradients(case, rows_of(MIXED, 4, dtype=dtype), MIXED, tolerance)
    assert {f.dtype for f in case.layer.A} | {f.grad.dtype for f in case.layer.B} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_lasts_between_forwards_changes_no_bit(part, offset, dtype):
    case = Case.make(part, offset=offset)
    case.layer.eval().base.to(dtype)
    x, one = rows_of(MIXED, 4, dtype=dtype), [MIXED[0]] * len(MIXED)
    for _ in range(2):
        with torch.no_grad():
            expected = [case.forward(x, tasks) for tasks in (MIXED, one)]
            with case.route.lasting():
                for _ in range(2):
                    found = [case.forward(x, tasks) for tasks in (MIXED, one)]
                    assert all(map(torch.equal, found, expected))
            for factor in trained(case.layer):  # what was made of them is not kept beyond the end
                factor.mul_(1.5)


def test_gradients_flow_while_factors_last(part):
    case = Case.make(part)
    case.layer.double()
    with case.route.lasting():
        with torch.no_grad():
            case.forward(rows_of(MIXED, 4), MIXED)
        compare_gradients(case, rows_of(MIXED, 4), MIXED, case.rounding)


@pytest.mark.parametrize("task_ids", BATCHES.values(), ids=list(BATCHES))
def test_layer_takes_any_batch(part, offset, task_ids):
    case = Case.make(part, offset=offset)
    case.layer.double()
    x = rows_of(task_ids, 4)
    compare_gradients(case, x, task_ids, case.rounding)
    with torch.no_grad():
        close(case.forward(x, task_ids), case.expected(x, task_ids), case.rounding)


def test_layer_folds_into_the_dense_update(mergeable, offset):
    case = Case.make(mergeable, offset=offset)
    for task in range(len(NAMES)):
        A, B = case.layer.fold(task)
        downs = zip(case.layer.A, case.gates()[task], strict=not case.layer.shared_A)
        used = sum(a.shape[0] for a, gate in downs if gate)
        assert (A.dtype, B.dtype) == (torch.float32, torch.float32)
        assert A.shape == (used * (1 + offset), IN)
        assert B.shape == (OUT, used * (1 + offset))
        x = rows_of((task,) * 3)
        case.layer.base.double()
        y = case.layer.base(x) + x @ (B.double() @ A.double()).T
        close(y, case.expected(x, (task,) * 3), 1e-6)


# Dropout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["z", "x"])
def test_dropout_does_nothing_in_evaluation_and_at_zero(part, offset, where):
    x = rows_of(MIXED, 4)
    dropping = replace(part, structure=replace(part.structure, dropout=0.5, dropout_at=where))
    case = Case.make(dropping, offset=offset)
    case.layer.double().eval()
    close(case.forward(x, MIXED), case.expected(x, MIXED), case.rounding)
    keeping = replace(part, structure=replace(part.structure, dropout=0.0, dropout_at=where))
    case = Case.make(keeping, offset=offset)
    case.layer.double().train()
    close(case.forward(x, MIXED), case.expected(x, MIXED), case.rounding)


@pytest.mark.parametrize("where", ["z", "x"])
def test_dropout_is_unbiased_and_leaves_the_base_alone(part, where):
    part = replace(part, structure=replace(part.structure, dropout=0.4, dropout_at=where))
    case = Case.make(part)
    num_draws, task = 20_000, 1
    x = rows_of((task,))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        case.layer.double().train()
        y = case.forward(x.expand(num_draws, IN), (task,) * num_draws)
        standard_error = y.std(dim=0) / num_draws**0.5
        exact = case.expected(x, (task,))[0]
        assert (standard_error > 0).all()
        assert ((y.mean(dim=0) - exact).abs() < 4.5 * standard_error).all()
        # What dropout takes away without compensation would be seen.
        base = case.layer.base(x)[0]
        assert ((exact - base).abs() * 0.4 > 9 * standard_error).any()
        for factor in case.layer.B:
            factor.zero_()
        assert torch.equal(case.forward(x, (task,)), case.layer.base(x))


@pytest.mark.parametrize("where", ["z", "x"])
def test_dropout_drops_what_it_says(where):
    part = Part(Single(scale=1.0, dropout=0.5, dropout_at=where), lambda t: Plan.shared(t, 1))
    case = Case.make(part)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        x = rows_of((0,)).float().expand(2000, IN)
        y = case.layer.train()
        y = case.forward(x, (0,) * 2000) - case.layer.base(x)
    # Of rank 1, an update with one entry of z has two values, one with six inputs up to 64.
    num_values = len(torch.unique((y[:, 0] * 1e4).round()))
    assert num_values == (2 if where == "z" else 64)


# The whole model ---------------------------------------------------------------------------------


def part_model(folder, part: Part, *, offset: bool = False, **options):
    if offset:
        skip_refused(part)
    init = ScatteredOffset() if offset else None
    options["attn_implementation"] = "eager"  # the same kernels in both, for the same bits
    return make_model(folder, part.structure, part.plan(NAMES), init=init, **options)


def base_model(folder, dtype: torch.dtype) -> nn.Module:
    return AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_fresh_model_is_the_base_model(tiny_bert, part, dtype):
    model = part_model(tiny_bert, part, dtype=dtype, target_modules="all-linear").eval()
    base = base_model(tiny_bert, getattr(torch, dtype))
    assert len(model.attached.layers) == 12
    batch = make_batch(MIXED)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            model.route.set(batch["task_ids"])
            mine, theirs = model.backbone(**inputs), base(**inputs)
        assert torch.equal(mine.last_hidden_state, theirs.last_hidden_state)


def test_a_fresh_model_with_offset_is_the_base_model_to_rounding(tiny_bert, part):
    model = part_model(tiny_bert, part, offset=True, dtype="float64").eval()
    with torch.no_grad():  # a router keeps the function where it starts at zero
        for name, factor in blocks_of(model).items():
            if name.startswith("router/"):
                factor.zero_()
    base = base_model(tiny_bert, torch.float64)
    assert any(bool(b.any()) for name, b in blocks_of(model).items() if name.endswith("/B"))
    batch = make_batch(MIXED)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    model.route.set(batch["task_ids"])
    mine, theirs = model.backbone(**inputs), base(**inputs)
    torch.testing.assert_close(mine.last_hidden_state, theirs.last_hidden_state, rtol=0, atol=1e-6)


@torch.no_grad()
def test_merged_equals_unmerged(tiny_bert, mergeable, offset):
    model = randomize(part_model(tiny_bert, mergeable, offset=offset, dtype="float64")).eval()
    for index, task in enumerate(model.tasks):
        merged = base_model(tiny_bert, torch.float64)
        folded = model.fold(task.name)
        assert set(folded) == set(model.attached.layers)
        for name, (A, B) in folded.items():
            merged.get_parameter(f"{name}.weight").add_((B @ A).double())
        batch = make_batch((index,) * 4)
        del batch["labels"]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        pooled = pool(merged(**inputs), batch["attention_mask"], "mean")
        head = model.heads.weight[index].double(), model.heads.bias[index].double()
        outputs = model(**batch)["outputs"]
        assert outputs.shape == (4, task.num_outputs)
        torch.testing.assert_close(outputs, nn.functional.linear(pooled, *head), rtol=0, atol=2e-6)


@pytest.mark.parametrize("task", range(len(NAMES)), ids=NAMES)
def test_only_assigned_blocks_get_gradient(tiny_bert, part, offset, task):
    model = randomize(part_model(tiny_bert, part, offset=offset))
    model(**make_batch((task,) * 3))["loss"].backward()
    owners = dict(zip(model.attached.blocks, model.attached.owners, strict=True))
    for name, factor in blocks_of(model).items():
        used = task in owners.get(name.split("/")[0], range(len(NAMES)))  # A and router of heads
        assert factor.grad is not None, name  # every block is in every step's graph
        chosen = getattr(part.structure, "top_k", None) is None  # or perhaps by no token at all
        assert bool(factor.grad.any()) == used or not chosen, name
    for index, (weight, bias) in enumerate(zip(model.heads.weight, model.heads.bias, strict=True)):
        assert bool(weight.grad.any()) == bool(bias.grad.any()) == (index == task)
    frozen = [p for n, p in model.attached.tensors().items() if n.endswith(("/A0", "/B0"))]
    assert bool(frozen) == offset
    trained = {id(p) for p in [*blocks_of(model).values(), *model.heads.parameters()]}
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained


def test_parameter_count_equals_the_formula(tiny_bert, part, offset):
    model = part_model(tiny_bert, part, offset=offset, target_modules="all-linear")
    d_in = d_out = 2 * (4 * 32 + 32 + 64)  # summed over the maps of two layers
    structure: Any = part.structure
    R = sum(block.rank for block in part.plan(NAMES).blocks.values())
    number = getattr(structure, "num_heads", getattr(structure, "num_experts", 1))
    expected = {
        "single": R * (d_in + d_out),
        "bank": R * (d_in + d_out),
        "heads": R * d_in + number * R * d_out,
        "routed_heads": R * d_in + number * (R * d_out + d_in),
        "experts": number * (R * (d_in + d_out) + d_in),
    }
    assert model.num_trainable["adapters"] == expected[structure.kind]
    assert model.num_trainable["heads"] == (2 + 3 + 1) * (32 + 1)


@torch.no_grad()
def test_a_mixed_batch_equals_its_rows_one_by_one(tiny_bert, part, offset):
    model = randomize(part_model(tiny_bert, part, offset=offset, dtype="float64")).eval()
    batch = make_batch(MIXED)
    together = model(**batch)
    for index, task in enumerate(MIXED):
        alone = model(**take(batch, slice(index, index + 1)))
        width = model.tasks[task].num_outputs
        mine = together["outputs"][index]
        torch.testing.assert_close(mine[:width], alone["outputs"][0], rtol=0, atol=1e-12)
        assert torch.isneginf(mine[width:]).all()
        torch.testing.assert_close(
            together["row_losses"][index], alone["row_losses"][0], rtol=1e-12, atol=1e-12
        )


def test_a_batch_without_rows_gives_zero_loss_and_zero_gradients(tiny_bert, part, offset):
    model = randomize(part_model(tiny_bert, part, offset=offset))
    batch = make_batch(())
    outputs = model(**batch)
    assert outputs["outputs"].shape == (0, 3)
    assert outputs["loss"].item() == 0.0
    for name, gradient in gradients(model, batch).items():
        assert not gradient.any(), name
    # As DistributedDataParallel needs it: every trainable parameter is in the graph.
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        assert len(model(**batch)["outputs"]) == 0


def test_eject_restores_the_base_modules(tiny_bert, part, offset):
    if offset:
        skip_refused(part)
    backbone = AutoModel.from_pretrained(tiny_bert)
    before = dict(backbone.named_modules())
    weights = copy.deepcopy(backbone.state_dict())
    names = ("encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense")
    site = Site(
        backbone=backbone,
        names=names,
        tasks=NAMES,
        plan=part.plan(NAMES),
        init=ScatteredOffset() if offset else Scattered(),
        route=Route(),
        seed=0,
    )
    attached = part.structure.attach(site)
    for name in names:
        assert backbone.get_submodule(name) is attached.layers[name]
        assert attached.layers[name].base is before[name]
    eject(backbone, attached.layers)
    after = dict(backbone.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert all(torch.equal(weights[n], w) for n, w in backbone.state_dict().items())


def test_saved_and_loaded_factors_have_the_same_bits(tiny_bert, part, offset, tmp_path):
    model = randomize(part_model(tiny_bert, part, offset=offset, seed=1)).eval()
    save_adapter(model, tmp_path / "adapter")
    other = part_model(tiny_bert, part, offset=offset, seed=2).eval()
    batch = make_batch(MIXED)
    with torch.no_grad():
        assert not torch.equal(model(**batch)["outputs"], other(**batch)["outputs"])
        load_adapter(other, tmp_path / "adapter")
        assert torch.equal(model(**batch)["outputs"], other(**batch)["outputs"])


def test_a_fresh_process_loads_runs_with_the_same_bits(tiny_bert, toy_suite_dict, tmp_path):
    hashes = {}
    for name, part in PARTS.items():
        if part.by_row:  # the same structures and plans once more
            continue
        run = train(
            {
                "name": str(tiny_bert),
                "dtype": "float32",
                "max_length": 32,
                "backbone_dropout": False,
            },
            toy_suite_dict,
            Recipe(structure=part.structure),
            plan=part.plan(list(toy_suite_dict["tasks"])),
            output=tmp_path / name,
            training={"max_steps": 2, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True},
        )
        hashes[name] = output_hash(run)
    assert len(set(hashes.values())) == len(hashes)
    source = (
        "import json, sys, torch\n"
        "from coadapt.runs import load_run\n"
        "from tests.small import output_hash\n"
        "torch.set_num_threads(1)\n"  # as here: how a product is divided decides its last bits
        "print(json.dumps({p: output_hash(load_run(p)) for p in sys.argv[1:]}))\n"
    )
    paths = {name: str(tmp_path / name) for name in hashes}
    command = [sys.executable, "-c", source, *paths.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: found[path] for name, path in paths.items()} == hashes
