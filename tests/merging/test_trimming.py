"""The exact cutoff against sorting."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coadapt.merging.trimming import find_cutoff, num_kept, trim


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.lists(st.floats(-1024, 1024, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 3e38])),
        min_size=1,
        max_size=4,
    ).filter(lambda parts: any(parts)),
    st.floats(0, 1),
)
def test_the_cutoff_keeps_the_first_of_the_greatest(parts, share):
    tensors = [torch.tensor(part) for part in parts]
    everything = [value for part in parts for value in torch.tensor(part).tolist()]
    kept = max(1, round(share * len(everything)))
    order = sorted(range(len(everything)), key=lambda i: (-abs(everything[i]), i))
    wanted = [value if i in order[:kept] else 0.0 for i, value in enumerate(everything)]
    cutoff = find_cutoff(lambda: tensors, kept)
    found = []
    for tensor in tensors:
        trimmed, cutoff = trim(tensor, cutoff)
        found += trimmed.tolist()
    assert found == wanted
    assert cutoff.ties == 0


@pytest.mark.parametrize("value", [0.0, 1e-45, 1.0, 3.4e38])
def test_equal_magnitudes_are_kept_in_order(value):
    tensor = torch.full((3, 5), value)
    cutoff = find_cutoff(lambda: [tensor, -tensor], 17)
    first, cutoff = trim(tensor, cutoff)
    second, _ = trim(-tensor, cutoff)
    assert torch.equal(first, tensor)
    assert torch.equal(second.flatten(), torch.tensor([-value] * 2 + [0.0] * 13))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 999), st.integers(1, 5000))
def test_the_number_kept_is_that_of_the_decimal_number(thousandths, num):
    dropped = (1000 - thousandths) * num // 1000
    assert num_kept(thousandths / 1000, num) == num - dropped
    assert num_kept(thousandths / 1000, num) >= max(1, math.floor(thousandths * num / 1000))
