"""Gradients that conflict, the parts that resolve it, and a call of one of them."""

import numpy as np
import pytest
import torch

from coadapt.balancing import IMTLG, MGDA, AlignedMTL, CAGrad, PCGrad, UPGrad

SURGERIES = {
    "pcgrad": PCGrad(),
    "upgrad": UPGrad(),
    "mgda": MGDA(),
    "cagrad": CAGrad(),
    "aligned_mtl": AlignedMTL(),
    "imtl_g": IMTLG(),
}
NEEDS = {"upgrad": ("qpsolvers", "quadprog"), "cagrad": ("cvxpy", "clarabel")}


def need(kind):
    """Skip where a package is not installed that the part calls."""
    for name in ("torchjd", *NEEDS.get(kind, ())):
        pytest.importorskip(name)


def combine(balancing, jacobian, *, generator=None):
    jacobian = torch.as_tensor(jacobian)
    present = torch.ones(len(jacobian), dtype=torch.bool)
    generator = generator or torch.Generator().manual_seed(0)
    state = balancing.start(len(jacobian))
    return balancing.combine(state, jacobian, present.double(), present, generator)


def conflicting(P, n=12, seed=0, lean=0.5):
    """Gradients of unlike length with some negative inner products."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(P, n)) * np.geomspace(0.3, 3, P)[:, None]
    found[1] -= lean * found[0] * np.linalg.norm(found[1]) / np.linalg.norm(found[0])
    assert ((found @ found.T) < 0).any()
    return found
