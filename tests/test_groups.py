"""Rates and decay of task prompts' parameters on a real model; `Uniform` is in test_recipe.py."""

import math

import pytest

from coadapt import InputError
from coadapt.groups import FastSlow
from coadapt.recipe import Recipe
from coadapt.structures import Single, TaskPrompt
from tests.prompts import make_backbone, prompted
from tests.small import NAMES

RATE, DECAY = 0.1, 0.25
GROUPS = FastSlow(fast_rate=10.0, gate_rate=3.0, head_rate=5.0)


@pytest.mark.parametrize("gate", ["layer", "head", "none"])
@pytest.mark.parametrize("form", ["additive", "hadamard"])
def test_each_parameter_has_its_rate_and_decay(form, gate):
    model = prompted(make_backbone("bert"), TaskPrompt(form=form, gate=gate, layers=2))
    named = dict(model.named_parameters())
    adapters = [(n, p) for n, p in named.items() if not n.startswith("heads.")]
    groups = GROUPS.split(
        adapters, model.heads.named_parameters(), learning_rate=RATE, weight_decay=DECAY
    )
    found = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    factor = {"theta": 1.0, "B": 1.0, "u": 10.0, "v": 10.0, "g": 3.0}
    expected = {
        id(p): (pytest.approx(RATE * factor[n.split("/")[-1]]), 0.0 if n[-1] == "g" else DECAY)
        for n, p in model.attached.tensors().items()
    }
    for weight, bias in zip(model.heads.weight, model.heads.bias, strict=True):
        expected |= {id(weight): (RATE * 5.0, DECAY), id(bias): (RATE * 5.0, 0.0)}
    assert found == expected
    assert sum(len(group["params"]) for group in groups) == len(expected)  # and none twice
    assert set(found) == {id(p) for p in named.values() if p.requires_grad}
    per_layer = 1 + 2 * len(NAMES) + (form == "additive") + (gate != "none")
    assert len(expected) == 2 * per_layer + 2 * len(NAMES)


def test_the_rates_it_has_by_itself():
    assert (FastSlow().fast_rate, FastSlow().gate_rate, FastSlow().head_rate) == (10.0, 1.0, 1.0)


@pytest.mark.parametrize("field", ["fast_rate", "gate_rate", "head_rate"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_rate_that_is_not_positive_is_refused(field, value):
    with pytest.raises(InputError, match=f"{field} must be positive, not {value}"):
        FastSlow(**{field: value})


def test_another_structure_is_refused():
    with pytest.raises(InputError, match=r"'fast_slow' .* structure 'single' has none; take .*'u"):
        Recipe(structure=Single(), groups=FastSlow())
