"""Tasks that a run was not trained on: which blocks serve them, and what they score."""

import copy
import json
import logging
from typing import Any

import numpy as np
import pytest
import torch

from coadapt import InputError
from coadapt.fitting import train
from coadapt.language import answer_rows, score_options
from coadapt.loading import Loader
from coadapt.modes import answering
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.runs import load_run
from coadapt.structures import Bank
from coadapt.tasks import load_suite
from coadapt.unseen import evaluate_unseen, serve
from tests.language.toys import items_of
from tests.tiny_language import QUESTION, TASKS, write_jsonl
from tests.tiny_language import make_model as tiny_model

NAMES = tuple(task.name for task in TASKS)
TRAINING = {"max_steps": 3, "learning_rate": 3e-2, "use_cpu": True}
ANIMALS = [{"q": f"Which animal barks {n}?", "options": ["dog", "cat"], "key": 0} for n in range(9)]
APPLES = [{"q": f"How many apples are {n}?", "options": ["5", "17"], "key": 1} for n in range(9)]


def randomized(folder, plan: Plan) -> Any:
    """Return a bank whose factors are all drawn."""
    from coadapt.backbone import ModelConfig
    from coadapt.model import build_model

    config = ModelConfig(name=str(folder), dtype="float32", max_length=96)
    model = build_model(config, TASKS, Recipe(structure=Bank()), plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in model.attached.tensors().values():
            factor.copy_(torch.randn(factor.shape, generator=generator) * 0.3)
    return model.eval()


def scores_of(model, items, service) -> np.ndarray:
    with model.route.fixing(service.gates):
        return np.concatenate(score_options(model, items, service.like or NAMES[0]))


def served(model, items, rule) -> Any:
    suite: Any = None  # only `nearest` reads it
    return serve(model, Loader(), suite, items, rule)


def dense(model, weights: dict[str, float]) -> Any:
    """Return a plain copy of the base model with the tasks' updates added by these weights."""
    plain = copy.deepcopy(model)
    for name, layer in plain.attached.layers.items():
        update = torch.zeros_like(layer.base.weight)
        for task, weight in weights.items():
            A, B = model.fold(task)[name]
            update += weight * B @ A
        layer.base.weight.data += update
    with torch.no_grad():
        for factor in plain.attached.tensors().values():
            factor.zero_()
    return plain


@pytest.fixture(scope="module")
def private(folder_of):
    return randomized(folder_of("llama"), Plan.private(NAMES, 6))


def test_one_task_s_blocks_may_serve(private, tokenizer):
    items = items_of(private, tokenizer, QUESTION)
    own = np.concatenate(score_options(private, items, "written"))
    service = served(private, items, "task:written")
    assert service.told == "the blocks of written"
    assert np.array_equal(scores_of(private, items, service), own)
    assert not np.allclose(own, np.concatenate(score_options(private, items, "question")))


def test_the_mean_is_the_averaged_adapter(private, tokenizer):
    items = items_of(private, tokenizer, QUESTION)
    service = served(private, items, "mean")
    assert service.gates == pytest.approx((1 / 3,) * 3)
    found = scores_of(private, items, service)
    oracle = dense(private, dict.fromkeys(NAMES, 1 / 3))
    expected = np.concatenate(score_options(oracle, items, NAMES[0]))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert private.route.fixed is None


def test_the_shared_block_serves_alone(folder_of, tokenizer):
    model = randomized(folder_of("llama"), Plan.shared_private(NAMES, 8))
    items = items_of(model, tokenizer, QUESTION)
    service = served(model, items, None)
    assert service.told.startswith("the shared block ")
    assert sum(service.gates) == 1
    found = scores_of(model, items, service)
    whole = np.concatenate(score_options(model, items, "question"))
    with torch.no_grad():  # what only one task uses is taken away
        for block, owners in zip(model.attached.blocks, model.attached.owners, strict=True):
            if len(owners) == 1:
                for name, factor in model.attached.tensors().items():
                    if name.startswith(f"{block}/"):
                        factor.zero_()
    np.testing.assert_allclose(
        found, np.concatenate(score_options(model, items, "question")), atol=1e-5
    )
    assert not np.allclose(found, whole)


def test_where_all_rows_share_there_is_nothing_to_choose(folder_of, tokenizer):
    one = TASKS[:1]
    for model in (
        tiny_model(folder_of("llama")),
        tiny_model(folder_of("llama"), tasks=one, private=True),
    ):
        items = items_of(model, tokenizer, QUESTION)
        for rule in (None, "mean", "nearest"):
            assert served(model, items, rule).told == "the blocks that serve every row"
        with pytest.raises(InputError, match="no rule 'best'"):
            served(model, items, "best")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (None, "no block serves every trained task.*--by: mean, nearest, or task:NAME of question"),
        ("task:writen", "no rule 'task:writen' for unseen tasks; did you mean 'written'"),
        ("task:", "no rule 'task:' for unseen tasks; known: question"),
        ("best", "no rule 'best' for unseen tasks; known: shared, mean, nearest, task:NAME"),
    ],
)
def test_rules_that_do_not_fit(private, tokenizer, rule, message):
    with pytest.raises(InputError, match=message):
        served(private, items_of(private, tokenizer, QUESTION), rule)


# Whole runs ----------------------------------------------------------------------------------


def suite_of(folder, **rows: list[dict[str, Any]]) -> dict[str, Any]:
    fields = {"kind": "choice", "prompt": "{q}", "options": "options", "label": "key"}
    given = {
        name: {s: str(write_jsonl(folder / name / f"{s}.jsonl", part)) for s, part in split}
        for name, found in rows.items()
        for split in [(("train", found[:6]), ("test", found[6:]))]
    }
    data = {name: {"kind": "file", "path": paths} for name, paths in given.items()}
    return {"tasks": {name: {**fields, "data": data[name]} for name in rows}}


@pytest.fixture(scope="module")
def run(folder_of, tmp_path_factory):
    suite = suite_of(tmp_path_factory.mktemp("seen"), animals=ANIMALS, apples=APPLES)
    model = {"name": str(folder_of("llama")), "dtype": "float32", "max_length": 96}
    output = tmp_path_factory.mktemp("unseen") / "run"
    return train(model, suite, "private", output=output, budget=4, training=TRAINING)


@pytest.fixture
def other(tmp_path):
    """Tasks to be scored only: prompts like those of one trained task, and of the other."""
    rows = {
        "dogs": [{**row, "q": row["q"].replace("?", "0?")} for row in ANIMALS[:5]],
        "numbers": [{**row, "q": row["q"].replace("?", "0?")} for row in APPLES[:4]],
    }
    for name, found in rows.items():
        write_jsonl(tmp_path / name / "test.jsonl", found)
    fields = {"kind": "choice", "data": "x", "prompt": "{q}", "options": "options", "label": "key"}
    return {"name": "other", "tasks": {name: dict(fields) for name in rows}}, tmp_path


def test_the_nearest_task_s_blocks_serve(run, other):
    suite = load_suite(other[0], data_root=other[1])
    found = run.evaluate_unseen(suite, rule="nearest")
    assert found.served["dogs"].startswith("the blocks of animals (cosine ")
    assert found.served["numbers"].startswith("the blocks of apples (cosine ")
    for name, like in (("dogs", "animals"), ("numbers", "apples")):
        items = run._loader.encode(run.config.model, suite.task(name), suite.rows(name, "test"))
        own = answer_rows(run.model, run.tokenizer, items, suite.task(name), served_as=like)
        assert np.array_equal(found.predicted[name], own)


def test_the_scores_are_kept(run, other):
    suite = load_suite(other[0], data_root=other[1], only=["numbers"])
    found = run.evaluate_unseen(suite, rule="mean", num_resamples=50)
    kept = json.loads((run.path / "result.json").read_text(encoding="utf-8"))["unseen"]["other"]
    assert (kept["rule"], kept["split"]) == ("mean", "test")
    assert kept["served"] == {"numbers": "the mean of the trained tasks' adapters"}
    score = kept["tasks"]["numbers"]["metrics"]["accuracy"]["value"]
    assert score == found.tasks["numbers"].score.value
    assert (run.path / "predictions-other-test.json").is_file()
    # A later evaluation of the run's own tasks leaves them.
    load_run(run.path).evaluate(num_resamples=0)
    assert "other" in run.result["unseen"]


def test_texts_the_run_was_trained_on_are_told(run, tmp_path, caplog):
    write_jsonl(
        tmp_path / "known" / "test.jsonl", [ANIMALS[0], ANIMALS[1], {**APPLES[0], "q": "?"}]
    )
    fields = {"kind": "choice", "data": "x", "prompt": "{q}", "options": "options", "label": "key"}
    suite = load_suite({"tasks": {"known": fields}}, data_root=tmp_path)
    with caplog.at_level(logging.WARNING, logger="coadapt"):
        run.evaluate_unseen(suite, rule="mean", num_resamples=0)
    assert "task 'known': the model was trained on 2 of these 3 texts" in caplog.messages


def test_a_pair_is_known_by_both_texts(folder_of, tmp_path, caplog):
    def rows(*pairs):
        return [{"a": a, "b": b, "label": n % 2} for n, (a, b) in enumerate(pairs)]

    given = rows(("sky", "blue"), ("sky", "red"), ("sea", "blue"), ("sea", "red"))
    file = {"kind": "file", "path": {}}
    for split, part in (("train", given[:2]), ("test", given[2:])):
        file["path"][split] = str(write_jsonl(tmp_path / f"{split}.jsonl", part))
    fields = {"kind": "classification", "text": ["a", "b"], "labels": [0, 1]}
    model = {"name": str(folder_of("llama")), "dtype": "float32"}
    suite = {"tasks": {"t": {**fields, "data": file}}, "split": {"validation": 0}}
    run = train(model, suite, "frozen", output=tmp_path / "run", training=TRAINING)
    write_jsonl(tmp_path / "u" / "test.jsonl", rows(("sky", "blue"), ("sky", "green")))
    other = load_suite({"tasks": {"u": {**fields, "data": "x"}}}, data_root=tmp_path)
    with caplog.at_level(logging.WARNING, logger="coadapt.unseen"):
        run.evaluate_unseen(other, num_resamples=0)
    assert caplog.messages[-1] == "task 'u': the model was trained on 1 of these 2 texts"


def test_a_suite_s_name_that_is_no_file_s_is_refused_before_anything_is_scored(run, other):
    suite = load_suite({**other[0], "name": "my/suite"}, data_root=other[1])
    with pytest.raises(InputError, match="suite name 'my/suite'"):
        run.evaluate_unseen(suite, rule="mean")


def test_an_encoder_has_no_head_for_them(tiny_bert, toy_suite_dict, tmp_path):
    from tests.toy_runs import train_toy

    run = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run")
    with pytest.raises(InputError, match="a task that it was not trained on has none"):
        run.evaluate_unseen(run.suite)


def test_a_split_without_rows_is_refused(run, other):
    suite = load_suite(other[0], data_root=other[1])
    with pytest.raises(InputError, match="task 'dogs' of suite 'other' has no train rows"):
        run.evaluate_unseen(suite, rule="mean", split="train")


def test_the_mode_is_restored(run, other):
    suite = load_suite(other[0], data_root=other[1], only=["dogs"])
    model = run.model.train()
    evaluate_unseen(model, run._loader, run.suite, suite, rule="nearest", num_resamples=0)
    assert model.training
    with answering(model):
        assert not model.training


def test_a_run_without_training_is_the_base_model(folder_of, run, tmp_path):
    suite = run.suite
    model = {"name": str(folder_of("llama")), "dtype": "float32", "max_length": 96}
    base = train(model, suite, "frozen", output=tmp_path / "base", training=TRAINING)
    result = json.loads((base.path / "result.json").read_text(encoding="utf-8"))
    assert (result["run"]["status"], result["train"]["steps"]) == ("finished", 0)
    assert result["train"]["trainable"] == {"adapters": 0, "heads": 0}
    items = run._loader.encoded(run.config.model, suite, "animals", "test")
    with run.model.route.fixing((0.0, 0.0)):
        bare = score_options(run.model, items, "animals")
    found = score_options(load_run(base.path).model, items, "animals")
    assert all(np.array_equal(a, b) for a, b in zip(found, bare, strict=True))
