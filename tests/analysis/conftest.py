"""Toy runs that the analyses look into; each is trained once."""

from collections.abc import Callable
from typing import Any

import pytest

from coadapt import load_suite
from coadapt.config import to_plain
from coadapt.fitting import train
from coadapt.recipes import RECIPES
from coadapt.runs import Run
from tests.tiny_language import save_model, write_jsonl
from tests.toy_runs import model_of

STEPS = {"max_steps": 3, "use_cpu": True, "disable_tqdm": True}  # the first has rate 0
Make = Callable[..., Run]

QUESTIONS = [
    {"question": f"What is {n} and {n}?", "answer": str(2 * n), "verdict": "no" if n % 2 else "yes"}
    for n in range(30)
]


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny_decoder"), "llama")


@pytest.fixture(scope="session")
def language_suite(tmp_path_factory):
    """Two tasks of a language model: a classification and a written answer."""
    data = str(write_jsonl(tmp_path_factory.mktemp("language") / "rows.jsonl", QUESTIONS))
    return {
        "name": "spoken",
        "tasks": {
            "verdict": {
                "kind": "classification",
                "data": data,
                "labels": ["no", "yes"],
                "prompt": "{question} Is it even?",
                "label": "verdict",
            },
            "sum": {"kind": "generation", "data": data, "prompt": "{question}", "label": "answer"},
        },
    }


@pytest.fixture(scope="session")
def make_run(tiny_bert, toy_suite_files, tmp_path_factory) -> Make:
    """A function that trains a recipe for three steps on two tasks of the toy suite."""
    folder = tmp_path_factory.mktemp("runs")
    kept: dict[str, Run] = {}

    def make(
        recipe: str,
        name: str | None = None,
        *,
        rate: float = 1e-2,
        structure: dict[str, Any] | None = None,
        init: dict[str, Any] | None = None,
        suite: Any = None,
        model: Any = None,
        budget: int | None = 3,
        **options: Any,
    ) -> Run:
        name = name or recipe
        if name not in kept:
            plain = to_plain(RECIPES[recipe].recipe)
            plain["structure"] |= structure or {}
            plain["init"] = init or plain["init"]
            two = {key: toy_suite_files["tasks"][key] for key in ("sentiment", "topic")}
            kept[name] = train(
                model or model_of(tiny_bert),
                load_suite(suite or {"name": "toy", "tasks": two}),
                plain,
                output=folder / name,
                budget=budget,
                training={**STEPS, "learning_rate": rate},
                **options,
            )
        return kept[name]

    return make
