"""What every direction found by TorchJD promises here, and what is said where it is missing."""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from coadapt._errors import InputError
from coadapt.balancing import (
    AbstractGradientBalancing,
    Balancing,
    CAGrad,
    GradNorm,
    PCGrad,
    Uncertainty,
)
from coadapt.balancing import surgery as module
from coadapt.config import parse, to_plain
from tests.balancing.gradients import SURGERIES, combine, conflicting, need


@pytest.fixture(params=list(SURGERIES))
def surgery(request):
    need(request.param)
    return SURGERIES[request.param]


def test_the_kinds():
    assert {kind: part.kind for kind, part in SURGERIES.items()} == {k: k for k in SURGERIES}
    assert all(part.needs_jacobian for part in SURGERIES.values())


@dataclass(frozen=True, kw_only=True)
class Chosen:
    balancing: Balancing


@pytest.mark.parametrize("part", [*SURGERIES.values(), CAGrad(c=0.2), GradNorm(), Uncertainty()])
def test_a_part_is_read_back_from_its_plain_form(part):
    assert parse(Chosen, to_plain(Chosen(balancing=part)), "file") == Chosen(balancing=part)


# What all of them promise.


def test_absent_tasks_contribute_nothing(surgery):
    jacobian = torch.from_numpy(conflicting(2))
    present = torch.tensor([False, True, False, True])
    losses = torch.tensor([np.nan, 1.0, np.nan, 2.0])
    state, generator = surgery.start(4), torch.Generator().manual_seed(0)
    found = surgery.combine(state, jacobian, losses, present, generator)
    assert torch.equal(found, combine(surgery, jacobian))
    assert state == {}


@pytest.mark.parametrize("P", [1, 3])
def test_equal_gradients_are_the_direction(surgery, P):
    row = torch.tensor([3.0, -4.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(combine(surgery, row.repeat(P, 1)), row, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1e6])
def test_the_direction_scales_with_the_gradients(surgery, size):
    jacobian = conflicting(3)
    one, scaled = combine(surgery, jacobian), combine(surgery, size * jacobian)
    assert float(one.norm()) > 1e-3
    torch.testing.assert_close(scaled / size, one, rtol=1e-6, atol=1e-9)


def test_a_common_turn_of_the_gradients_turns_the_direction(surgery):
    jacobian = conflicting(3)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    turned = torch.from_numpy(combine(surgery, jacobian).numpy() @ turn)
    torch.testing.assert_close(combine(surgery, jacobian @ turn), turned, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in SURGERIES if kind != "pcgrad"])
def test_the_order_of_the_tasks_does_not_matter(kind):
    need(kind)
    jacobian = conflicting(4)
    one = combine(SURGERIES[kind], jacobian)
    other = combine(SURGERIES[kind], jacobian[[2, 0, 3, 1]].copy())
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_type_and_width_are_the_gradients_own(surgery, monkeypatch):
    jacobian = torch.from_numpy(conflicting(3))
    wide = combine(surgery, jacobian)
    monkeypatch.setattr(module, "_COLUMNS", 5)  # the inner products are summed in parts
    narrow = combine(surgery, jacobian.float())
    assert narrow.dtype is torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-5)


def test_a_gradient_of_zero_is_no_failure(surgery):
    jacobian = conflicting(3)
    jacobian[2] = 0
    assert combine(surgery, jacobian).isfinite().all()
    assert torch.equal(combine(surgery, np.zeros((3, 4))), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_seen_in_the_direction(surgery, value):
    jacobian = conflicting(3)
    jacobian[1, 4] = value
    assert not combine(surgery, jacobian)[4].isfinite()


def test_the_global_random_state_is_neither_read_nor_touched(surgery):
    jacobian = conflicting(5)
    before = torch.get_rng_state()
    one = combine(surgery, jacobian)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(combine(surgery, jacobian), one)


# Errors.


@pytest.mark.parametrize("c", [-0.1, float("nan"), float("inf")])
def test_a_radius_out_of_range(c):
    with pytest.raises(InputError, match="cagrad: c must be at least 0"):
        CAGrad(c=c)


@pytest.mark.parametrize("part", SURGERIES.values(), ids=list(SURGERIES))
def test_without_torchjd_the_start_names_the_extra(part, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(InputError, match=r"pip install coadapt\[gradients\]"):
        part.start(3)


def test_without_its_solver_the_start_names_the_extra(monkeypatch):
    class Weighting:
        def __init__(self):
            raise ImportError("requires ['quadprog'] to be installed")

    fake: Any = ModuleType("torchjd")
    for name in ("aggregation", "linalg"):
        setattr(fake, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, f"torchjd.{name}", getattr(fake, name))
    fake.aggregation.PCGradWeighting = Weighting
    monkeypatch.setitem(sys.modules, "torchjd", fake)
    with pytest.raises(InputError, match=r"PCGrad.*coadapt\[gradients\].*quadprog"):
        PCGrad().start(3)


@pytest.mark.parametrize("part", [PCGrad(), GradNorm()], ids=["surgery", "grad_norm"])
def test_losses_alone_are_refused(part: AbstractGradientBalancing):
    with pytest.raises(AssertionError, match="takes gradients"):
        part.weights({}, torch.ones(2), torch.ones(2, dtype=torch.bool))
