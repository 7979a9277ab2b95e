"""The clustering gap against its definition from whole joint covariances."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt._errors import InputError
from coadapt.theory import clustering_gap
from tests.reference.slow_theory import correlation_given, information, joint_covariance
from tests.theory.models import models, random_model


def places(model):
    T = model.num_tasks
    return range(T, T + len(model.A))


def random_clusters(model, seed):
    """Return clusters of the model's tasks, each with a random encoder of 0 to 3 rows."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, size=model.num_tasks)
    clusters = []
    for label in np.unique(labels):
        A = generator.normal(size=(int(generator.integers(0, 4)), len(model.cov_x)))
        noise = float(generator.uniform(0.1, 1))
        encoder = replace(model, A=A, encoder_noise=noise)
        clusters.append((generator.permutation(np.flatnonzero(labels == label)).tolist(), encoder))
    return clusters


@given(models(max_tasks=5), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_both_forms_and_every_term_are_those_of_the_definition(model, seed):
    clusters = random_clusters(model, seed)
    found = clustering_gap(model, clusters)
    cov, z, y = joint_covariance(model), places(model), range(model.num_tasks)
    covs = [joint_covariance(encoder) for _, encoder in clusters]
    own = [(tasks, c, places(encoder)) for (tasks, encoder), c in zip(clusters, covs, strict=True)]

    gap = sum(information(c, zk, [t]) for tasks, c, zk in own for t in tasks)
    gap -= sum(information(cov, z, [t]) for t in y)
    for total in (found.gap, found.form_1, found.form_2):
        assert total == pytest.approx(gap, abs=1e-9)

    joint = sum(information(c, zk, tasks) for tasks, c, zk in own) - information(cov, z, y)
    between = correlation_given(cov, y) - sum(correlation_given(cov, s) for s, _ in clusters)
    coupling = correlation_given(cov, y, z)
    coupling -= sum(correlation_given(c, tasks, zk) for tasks, c, zk in own)
    assert found.joint_information_gain == pytest.approx(joint, abs=1e-9)
    assert found.between_redundancy == pytest.approx(between, abs=1e-9)
    assert found.between_redundancy > -1e-9
    assert found.coupling_removed == pytest.approx(coupling, abs=1e-9)

    gains = [information(c, zk, s) - information(cov, z, s) for s, c, zk in own]
    removed = [correlation_given(cov, s, z) - correlation_given(c, s, zk) for s, c, zk in own]
    assert found.cluster_information_gains == pytest.approx(gains, abs=1e-9)
    assert found.cluster_coupling_removed == pytest.approx(removed, abs=1e-9)


def test_one_cluster_with_the_global_encoder_gains_nothing():
    model = random_model()
    found = clustering_gap(model, [([2, 0, 1], model)])
    assert found.gap == pytest.approx(0, abs=1e-12)
    assert found.between_redundancy == pytest.approx(0, abs=1e-12)


def test_clusters_that_leave_the_noise_of_others_out_gain():
    model = replace(random_model(d=2, T=2), cov_x=np.eye(2), U=np.eye(2), A=np.ones((1, 2)))
    private = [([t], replace(model, A=np.eye(2)[[t]])) for t in (0, 1)]
    found = clustering_gap(model, private)
    assert found.gap > 0
    assert found.between_redundancy == pytest.approx(0, abs=1e-12)
    assert found.coupling_removed == pytest.approx(model.residual_coupling)


@pytest.mark.parametrize(
    "tasks", [[[0, 1]], [[0, 1], [1, 2]], [[0, 1, 2], []], [[0, 1], [3]], []], ids=str
)
def test_what_is_no_partition_is_refused(tasks):
    model = random_model()
    with pytest.raises(InputError, match="are no partition of 3 tasks"):
        clustering_gap(model, [(members, model) for members in tasks])


@pytest.mark.parametrize("name", ["cov_x", "U", "label_noise"])
def test_other_inputs_or_labels_are_refused(name):
    model = random_model()
    other = replace(model, **{name: 2 * getattr(model, name)})
    with pytest.raises(InputError, match=f"{name} of cluster 1 differs from that of the global"):
        clustering_gap(model, [([0], model), ([1, 2], other)])
