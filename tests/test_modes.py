"""A model that answers keeps what its factors alone say, and forgets it at the end."""

from contextlib import suppress

import pytest
import torch
from torch import Tensor

from coadapt.inits import Default, RLora
from coadapt.model import MultiTaskModel
from coadapt.modes import answering, evaluating
from coadapt.planning import Plan
from coadapt.structures import Bank, Dora, Mixture, RoutedHeads, Single
from tests.small import MIXED, NAMES, make_batch, make_model, randomize

ONE = Plan.shared(NAMES, 4)
CASES = {
    "single_with_offset": (Single(), ONE, RLora(), "attention"),
    "private": (Bank(), Plan.private(NAMES, 6), Default(), "all-linear"),
    "routed_heads": (RoutedHeads(num_heads=2), ONE, Default(), "attention"),
    "dora": (Dora(), ONE, Default(), "all-linear"),
    "mixture": (Mixture(num_experts=3), ONE, Default(), "mlp"),
}


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def model(tiny_bert, request, dtype):
    structure, plan, init, targets = request.param
    return randomize(
        make_model(tiny_bert, structure, plan, init=init, dtype=dtype, target_modules=targets)
    )


@torch.no_grad()
def outputs(model: MultiTaskModel) -> list[Tensor]:
    """Of a batch of all tasks, and of rows of one."""
    found = []
    for rows in (MIXED, (0, 0)):
        batch = make_batch(rows)
        del batch["labels"]
        found.append(model(**batch)["outputs"])
    return found


def test_answers_are_those_of_the_model_to_the_bit(model):
    for _ in range(2):
        with evaluating(model):
            expected = outputs(model)
        with answering(model):
            for _ in range(2):
                assert all(map(torch.equal, outputs(model), expected))
        randomize(model, seed=5)  # nothing was kept of the factors as they were


def test_the_mode_is_the_one_before(model):
    for training in (True, False):
        model.train(training)
        with suppress(KeyError), answering(model):
            assert not model.training
            raise KeyError
        assert model.training == training
        assert not model.route.lasts
