"""A diagnosis of toy tasks, by a tiny model that tells them apart."""

import pytest

from coadapt.diagnosis import diagnose
from tests.diagnosis.kin import FAST, suite_of, write_kin


@pytest.fixture(scope="package")
def kin_tasks(tmp_path_factory):
    """Fields of tasks by name, see `write_kin`."""
    return write_kin(tmp_path_factory.mktemp("kin_tasks"))


@pytest.fixture(scope="package")
def kin_model(tiny_bert):
    """Plain data of the tiny model, in float32."""
    return {"name": str(tiny_bert), "dtype": "float32", "pooling": "mean", "max_length": 32}


@pytest.fixture(scope="package")
def kin_found(kin_model, kin_tasks):
    """The diagnosis of all of them."""
    return diagnose(kin_model, suite_of(kin_tasks, *kin_tasks), **FAST)
