"""The page of benchmarks is what its script makes of the committed results."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks/page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def test_the_page_is_made_of_the_results(script):
    assert script.page() == script.PAGE.read_text(encoding="utf-8")


def test_every_result_that_is_shown_says_where_it_was_taken(script):
    for file in script.PAGE.read_text(encoding="utf-8").split("results/")[1:]:
        name = file.partition(")")[0]
        if name.endswith(".json"):
            assert {"device", "packages", "commit"} <= script.read(name)["machine"].keys()
