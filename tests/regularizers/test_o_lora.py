from dataclasses import replace

import pytest
import torch

from coadapt import InputError
from coadapt.regularizers import OLora
from tests.reference.slow_orthogonality import captured_of, make_layer, value_and_gradients


def test_a_known_value():
    A = {"t": torch.tensor([[1.0, 2.0], [0.0, -1.0]]), "u": torch.tensor([[1.0, -3.0]])}
    layer = replace(make_layer(), A=A, B={name: torch.zeros(4, len(a)) for name, a in A.items()})
    assert OLora().loss(captured_of(layer)).item() == 5 + 3


def test_the_subgradient_at_zero_is_zero_and_B_has_none():
    eye = torch.eye(3, dtype=torch.float64)
    layer = replace(
        make_layer(),
        A={"t": eye[:2].clone().requires_grad_(), "u": (eye[:1] + eye[2:]).requires_grad_()},
        B={name: torch.ones(4, r, requires_grad=True) for name, r in (("t", 2), ("u", 1))},
    )
    captured = captured_of(layer)
    loss, of_t, of_u, *of_B = value_and_gradients(OLora().loss(captured), captured)
    assert loss == 1
    # The second row of A_t is orthogonal to A_u already.
    torch.testing.assert_close(of_t, torch.stack([eye[0] + eye[2], 0 * eye[0]]))
    torch.testing.assert_close(of_u, eye[:1])
    assert all((gradient == 0).all() for gradient in of_B)


def test_heads_over_one_A_are_refused():
    layers = {"query": make_layer(shared_A=True, ranks=(2, 2))}
    with pytest.raises(InputError, match="heads have one A together; take structure 'single'"):
        OLora().check(3, layers)
