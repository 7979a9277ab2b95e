"""Runs to merge."""

import pytest

from tests.merging.parts import FAST, part
from tests.toy_runs import recipe_of, train_toy


@pytest.fixture(scope="session")
def sources(tiny_bert, toy_suite_files, tmp_path_factory):
    """A run of two private adapters, scored, and one of a LoRA that two tasks share."""
    folder = tmp_path_factory.mktemp("sources")
    private = train_toy(
        tiny_bert,
        part(toy_suite_files, "sentiment", "topic", max_rows=10),
        folder / "private",
        recipe_of("private", scale=0.7),
        budget=4,
        training=FAST,
    )
    shared = train_toy(
        tiny_bert,
        part(toy_suite_files, "same", "degree", name="others"),
        folder / "shared",
        budget=3,
        training=FAST,
    )
    private.evaluate()
    shared.evaluate()
    return private, shared
