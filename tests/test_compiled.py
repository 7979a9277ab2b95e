"""torch.compile is an option that changes no result."""

import pytest
import torch
import torch._dynamo.testing

from coadapt.planning import Plan
from coadapt.structures import Bank, RoutedHeads
from tests.small import MIXED, NAMES, gradients, make_batch, make_model, randomize

# Torch's own: it looks at the vectors that heads read.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

CASES = {
    "private": (Bank(), Plan.private(NAMES, 6)),
    "routed_heads": (RoutedHeads(num_heads=2), Plan.shared(NAMES, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_compiled_gradients_are_those_of_the_code_as_it_stands(tiny_bert, name):
    torch._dynamo.reset()
    structure, plan = CASES[name]
    model = randomize(make_model(tiny_bert, structure, plan))
    # Traced as for any backend, run by torch itself: no compiler of C++ takes half a minute.
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counted, dynamic=True)
    for seed in (0, 1):  # another length
        batch = make_batch(MIXED, seed=seed)
        expected = gradients(model, batch)
        model.zero_grad(set_to_none=True)
        found = compiled(**batch)
        torch.testing.assert_close(found["outputs"], model(**batch)["outputs"])
        found["loss"].backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-4, atol=1e-6)

    graphs = counted.frame_count
    compiled(**make_batch(MIXED, seed=2))["loss"].backward()
    assert graphs == counted.frame_count, "a third length is compiled anew"
