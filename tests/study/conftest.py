"""What the tests of studies share: a toy study as plain data."""

from typing import Any

import pytest

from tests.toy_runs import model_of


@pytest.fixture
def toy_study(tiny_bert, toy_suite_dict) -> dict[str, Any]:
    """Plain data for `read_study`, the test's own copy: two recipes, two trials, two seeds.

    A cell trains on 8 rows a task, four steps an epoch.
    """
    return study_of(tiny_bert, toy_suite_dict)


def study_of(folder: Any, suite: dict[str, Any]) -> dict[str, Any]:
    """Return the toy study of a tiny BERT and a suite."""
    return {
        "name": "toy",
        "model": model_of(folder),
        "suite": suite,
        "rows": [8],
        "held_out": {"validation": 4, "test": 4},
        "seeds": [0, 1],
        "budgets": [8],
        "baseline": "lora",
        "trials": [{"learning_rate": 5e-3, "epochs": 1}, {"learning_rate": 2e-2, "epochs": 2}],
        "training": {"use_cpu": True, "per_device_train_batch_size": 8},
        "recipes": {"lora": None, "private": None},
    }
