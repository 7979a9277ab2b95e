"""What every init promises, and LoRA's own in particular: an init joins by one line in INITS."""

import pytest
import torch
from torch import nn

from coadapt.adapters import ConstantGate, PartitionedLinear, Route
from coadapt.inits import BlockStart, Default
from coadapt.planning import Block, Plan
from coadapt.structures import Bank, Single
from tests.small import NAMES, TASKS, blocks_of, make_batch, make_model

INITS = {"default": Default()}


@pytest.fixture(params=INITS.values(), ids=list(INITS))
def init(request):
    return request.param


def make_layer(ranks=(3, 5), in_features=16, out_features=7, dtype=torch.float32):
    base = nn.Linear(in_features, out_features, dtype=dtype)
    return PartitionedLinear(base, ranks, gate=ConstantGate(len(ranks)), route=Route(), scale=2.0)


def start_of(seed):
    return BlockStart(block="any", generator=torch.Generator().manual_seed(seed))


def fill(init, layer, seed=0):
    for block in range(len(layer.A)):
        init.fill(layer, block, start_of(seed + block))
    if init.offset:
        layer.freeze_offset()
    return layer


def test_the_function_is_unchanged_or_compensated(init):
    layer = fill(init, make_layer().double())
    x = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), layer.base(x), rtol=0, atol=1e-12)


def test_same_generator_same_result(init):
    one, two, other = (fill(init, make_layer(), seed) for seed in (0, 0, 1))
    for mine, same, different in zip(one.A, two.A, other.A, strict=True):
        assert torch.equal(mine, same)
        assert not torch.equal(mine, different)
    assert all(torch.equal(mine, same) for mine, same in zip(one.B, two.B, strict=True))


def test_global_random_state_is_not_touched(init):
    before = torch.get_rng_state()
    one = fill(init, make_layer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        two = fill(init, make_layer())
    assert all(torch.equal(a, b) for a, b in zip(one.A, two.A, strict=True))
    torch.set_rng_state(before)
    fill(init, one)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_block_is_filled_and_no_other(init):
    layer = make_layer()
    init.fill(layer, 1, start_of(0))
    assert not layer.A[0].any()
    assert layer.A[1].all()


def test_default_is_uniform_within_its_bound_and_zero():
    layer = fill(Default(), make_layer(ranks=(400,), in_features=64))
    bound = 64**-0.5
    A = layer.A[0].detach().flatten()
    assert A.abs().max() <= bound
    # 25,600 draws: the extremes come close, and mean and variance are those of U(-bound, bound).
    assert A.max() > 0.999 * bound
    assert A.min() < -0.999 * bound
    assert abs(A.mean()) < 5 * bound / (3 * len(A)) ** 0.5
    assert float(A.var()) == pytest.approx(bound**2 / 3, rel=0.03)
    assert not layer.B[0].any()


def test_default_bound_is_that_of_torch_and_peft():
    """Kaiming-uniform with a = sqrt(5), which is how PEFT fills lora_A."""
    reference = torch.empty(1000, 24)
    nn.init.kaiming_uniform_(reference, a=5**0.5, generator=torch.Generator().manual_seed(3))
    layer = make_layer(ranks=(1000,), in_features=24)
    Default().fill(layer, 0, start_of(3))
    torch.testing.assert_close(layer.A[0].detach(), reference)


def test_default_gradient_moves_b_first():
    layer = fill(Default(), make_layer())
    layer(torch.ones(2, 16)).sum().backward()
    assert all(not a.grad.any() for a in layer.A)
    assert all(b.grad.all() for b in layer.B)


# Streams by name ---------------------------------------------------------------------------------

PLAN = Plan.private(NAMES, 6)


def factors(folder, plan, *, tasks=TASKS, structure=None, seed=0, **config):
    model = make_model(folder, structure or Bank(), plan, tasks=tasks, seed=seed, **config)
    return blocks_of(model)


def assert_common_ones_equal(mine, other, num_common):
    common = mine.keys() & other.keys()
    assert len(common) == num_common
    assert all(torch.equal(mine[name], other[name]) for name in common)


def test_a_block_starts_the_same_whatever_the_other_blocks(tiny_bert):
    mine = factors(tiny_bert, PLAN)
    assert_common_ones_equal(mine, factors(tiny_bert, PLAN), len(mine))
    fewer = factors(tiny_bert, PLAN.without_task("two"), tasks=TASKS[1:])
    assert_common_ones_equal(mine, fewer, len(fewer))
    turned = Plan(blocks=dict(reversed(PLAN.blocks.items())))
    assert_common_ones_equal(mine, factors(tiny_bert, turned), len(mine))
    tasks_turned = factors(tiny_bert, PLAN, tasks=TASKS[::-1])
    assert_common_ones_equal(mine, tasks_turned, len(mine))


def test_a_block_starts_the_same_whatever_the_structure_and_the_other_modules(tiny_bert):
    plan = Plan.shared(NAMES, 4)
    mine = factors(tiny_bert, plan)
    assert_common_ones_equal(mine, factors(tiny_bert, plan, structure=Single()), len(mine))
    everywhere = factors(tiny_bert, plan, target_modules="all-linear")
    assert len(everywhere) > len(mine)
    assert_common_ones_equal(mine, everywhere, len(mine))


def test_blocks_modules_and_seeds_differ(tiny_bert):
    plan = Plan(blocks={"one": Block(rank=2, tasks=NAMES), "two": Block(rank=2, tasks=NAMES)})
    every = [a for name, a in factors(tiny_bert, plan).items() if name.endswith("/A")]
    other = factors(tiny_bert, plan, seed=1)
    every += [a for name, a in other.items() if name.endswith("/A")]
    assert len(every) == 2 * 2 * 4
    assert len({tuple(a.flatten().tolist()) for a in every}) == len(every)


def test_heads_start_by_name_too(tiny_bert):
    wide = make_model(tiny_bert, Bank(), PLAN)
    narrow = make_model(tiny_bert, Bank(), PLAN.without_task("two"), tasks=TASKS[:0:-1])
    mine, other = wide.state_tensors(), narrow.state_tensors()
    for name in ("three", "value"):
        assert torch.equal(mine[f"heads/{name}/weight"], other[f"heads/{name}/weight"])
    batch = make_batch((2, 2))
    with torch.no_grad():
        outputs = wide.eval()(**batch)["outputs"]
        batch["task_ids"] = torch.zeros(2, dtype=torch.long)
        assert torch.equal(narrow.eval()(**batch)["outputs"], outputs)
