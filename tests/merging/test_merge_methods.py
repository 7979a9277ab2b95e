"""What settings of a merge are taken, and which are refused."""

import math
from typing import get_args

import pytest

from coadapt._errors import InputError
from coadapt.config import parse, to_plain
from coadapt.merge_methods import Merge, MergeMethod


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "tie"}, "unknown method 'tie'; did you mean 'ties'"),
        ({"method": "ties", "scope": "module"}, "unknown scope 'module'.*global, tensor"),
        ({"weight": 0.0}, "weight must be a finite number other than 0"),
        ({"weight": math.nan}, "weight must be a finite number"),
        ({"method": "ties", "density": 0.0}, "above 0 and at most 1, not 0.0"),
        ({"method": "dare", "density": 1.1}, "above 0 and at most 1"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"density": 0.5}, "density is for DARE and TIES, not for 'average'"),
        ({"method": "ties", "rescale": False}, "rescale is for DARE"),
        ({"method": "dare_ties", "scope": "tensor"}, "scope is for method 'ties'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_or_without_effect_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Merge(**fields)


def test_settings_are_plain_data():
    method = Merge(method="dare_ties", density=0.5, weight=0.7, rescale=False, rank=3)
    assert parse(Merge, to_plain(method), "test") == method
    for name in get_args(MergeMethod):
        wanted = {"ties": 0.2}.get(name, 0.9 if "dare" in name else 1.0)
        assert parse(Merge, {"kind": "merge", "method": name}, "test").kept == wanted
