"""Each direction against what its paper defines, computed another way."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from coadapt.balancing import IMTLG, MGDA, AlignedMTL, CAGrad, PCGrad, UPGrad
from tests.balancing.gradients import SURGERIES, combine, conflicting, need


def project_in_order(jacobian, generator):
    """PCGrad as in algorithm 1, on the gradients themselves."""
    moved = []
    for i, row in enumerate(jacobian):
        found = row.copy()
        for j in torch.randperm(len(jacobian), generator=generator).tolist():
            product = found @ jacobian[j]
            if j != i and product < 0:
                found = found - product / (jacobian[j] @ jacobian[j]) * jacobian[j]
        moved.append(found)
    return np.mean(moved, axis=0)


@pytest.mark.parametrize("P", [2, 3, 6])
def test_pcgrad_is_the_algorithm_step_by_step(P):
    need("pcgrad")
    jacobian = conflicting(P, n=7, seed=P)
    mine, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    for _ in range(3):  # the generator moves on as if it had been handed to the loop
        found = combine(PCGrad(), jacobian, generator=mine)
        expected = torch.from_numpy(project_in_order(jacobian, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_pcgrad_depends_on_the_order_drawn():
    need("pcgrad")
    generator = torch.Generator().manual_seed(0)
    found = {tuple(combine(PCGrad(), conflicting(6, n=7), generator=generator)) for _ in range(8)}
    assert len(found) > 1


def test_without_conflict_pcgrad_and_upgrad_are_the_mean():
    need("upgrad")
    jacobian = np.abs(conflicting(4))
    for part in (PCGrad(), UPGrad()):
        mean = torch.from_numpy(jacobian.mean(axis=0))
        torch.testing.assert_close(combine(part, jacobian), mean)


@pytest.mark.parametrize(("kind", "P"), [("pcgrad", 2), ("upgrad", 2), ("upgrad", 6)])
def test_no_conflict_is_left(kind, P):
    need(kind)
    before = 0.0
    for seed in range(5):
        jacobian = conflicting(P, n=7, seed=seed, lean=1.5)
        before = min(before, float((jacobian @ jacobian.mean(axis=0)).min()))
        products = jacobian @ combine(SURGERIES[kind], jacobian).numpy()
        assert products.min() > -1e-6
    assert before < -0.01  # the mean does leave some


@pytest.mark.parametrize("unlike", [1, 1000])
@pytest.mark.parametrize("P", [2, 3, 6])
def test_upgrad_is_the_mean_of_projections_on_the_dual_cone(P, unlike):
    need("upgrad")
    jacobian = conflicting(P, lean=1.5)
    jacobian[0] /= unlike
    # By duality the projection of g is g plus the non-negative combination that makes it shortest.
    rows = [row + jacobian.T @ nnls(jacobian.T, -row)[0] for row in jacobian]
    expected = torch.from_numpy(np.mean(rows, axis=0))
    found = combine(UPGrad(), jacobian)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert float((torch.from_numpy(jacobian.mean(axis=0)) - expected).norm()) > 0.05


def test_mgda_of_two_is_the_nearest_point_of_a_segment():
    need("mgda")
    for g, h, inside in (
        (*conflicting(2), True),
        (np.array([1.0, 0, 0]), np.array([3.0, 1, 0]), False),
    ):
        share = float(np.clip((h - g) @ h / ((h - g) @ (h - g)), 0, 1))
        assert (0 < share < 1) is inside
        expected = torch.from_numpy(share * g + (1 - share) * h)
        torch.testing.assert_close(combine(MGDA(), np.stack([g, h])), expected)


def test_mgda_of_many_is_nearly_the_shortest():
    need("mgda")
    jacobian = conflicting(5)
    # The sum of the weights is held at 1 by a heavy row.
    heavy = 1e6
    weights, _ = nnls(np.vstack([jacobian.T, np.full(5, heavy)]), np.r_[np.zeros(12), heavy])
    shortest = np.linalg.norm(weights @ jacobian)
    found = combine(MGDA(), jacobian)
    assert shortest * (1 - 1e-6) <= float(found.norm()) <= shortest * 1.05


@pytest.mark.parametrize("c", [0.2, 0.5, 2.0])
@pytest.mark.parametrize("P", [2, 3])
def test_cagrad_is_best_for_the_worst_off_on_its_circle(c, P):
    need("cagrad")
    jacobian = np.array([[1.0, 0.2], [-0.6, 1.0], [2.0, 1.5]])[:P]
    mean = jacobian.mean(axis=0)
    angle = np.linspace(0, 2 * np.pi, 200_001)
    around = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    circle = mean + c * np.linalg.norm(mean) * around
    best = circle[(circle @ jacobian.T).min(axis=1).argmax()]
    found = combine(CAGrad(c=c), jacobian).numpy() * (1 + c)
    assert np.linalg.norm(found - best) < 1e-3 * np.linalg.norm(best)
    assert (jacobian @ found).min() > (jacobian @ mean).min()


def test_cagrad_goes_on_when_one_task_has_nearly_arrived():
    need("cagrad")
    jacobian = conflicting(3)
    jacobian[0] *= 1e-6
    found, mean = combine(CAGrad(c=0.5), jacobian).numpy() * 1.5, jacobian.mean(axis=0)
    assert np.linalg.norm(found - mean) == pytest.approx(0.5 * np.linalg.norm(mean), rel=1e-4)


def test_cagrad_without_room_is_the_mean():
    need("cagrad")
    jacobian = conflicting(3)
    mean = torch.from_numpy(jacobian.mean(axis=0))
    torch.testing.assert_close(combine(CAGrad(c=0), jacobian), mean)


@pytest.mark.parametrize("rank", [2, 4])
def test_aligned_mtl_evens_the_singular_values(rank):
    need("aligned_mtl")
    jacobian = conflicting(4)
    jacobian[rank:] = jacobian[: 4 - rank] - 2 * jacobian[1]
    U, sigma, V = np.linalg.svd(jacobian, full_matrices=False)
    assert (sigma > 1e-9).sum() == rank
    expected = torch.from_numpy(sigma[rank - 1] * (U[:, :rank] @ V[:rank]).mean(axis=0))
    found = combine(AlignedMTL(), jacobian)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert float(found.norm()) <= np.linalg.norm(jacobian.mean(axis=0))


def test_imtl_g_projects_alike_on_every_gradient():
    need("imtl_g")
    jacobian = conflicting(4)
    units = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
    found = combine(IMTLG(), jacobian)
    projections = units @ found.numpy()
    np.testing.assert_allclose(projections, projections[0], rtol=1e-8)
    # Weights that sum to 1 and make the projections equal, found as the solution of equations.
    differences = (units[1:] - units[0]) @ jacobian.T
    weights = np.linalg.solve(np.vstack([differences, np.ones(4)]), [0, 0, 0, 1])
    torch.testing.assert_close(found, torch.from_numpy(weights @ jacobian))
