"""Whole runs of tiny language models: train, resume, evaluate, predict, open again."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from coadapt import InputError
from coadapt.backbone import ModelConfig
from coadapt.fitting import train
from coadapt.loading import Loader
from coadapt.predictions import read_predictions
from coadapt.runs import load_run
from coadapt.tasks import load_suite
from coadapt.training import MultiTaskTrainer
from tests.tiny_language import write_jsonl
from tests.toy_runs import (
    assert_same_run,
    assert_same_tensors,
    log_of,
    prefer_step,
    result_of,
    tensors_of,
)

NUM_ROWS = 24
TRAINING = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 3e-2,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "use_cpu": True,
}
ROW = {"question": "Which animal barks?", "options": ["dog", "cat"]}
TASKS = ("pick", "verdict", "sum")


class Stopped(BaseException):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rows")
    pick = [
        {"question": f"Which is it? {n}", "options": ["dog", "The cat", f"bird {n}"], "key": n % 3}
        for n in range(NUM_ROWS)
    ]
    verdict = [
        {"a": f"The sky is blue {n}.", "b": "Is it?", "label": bool(n % 2)} for n in range(NUM_ROWS)
    ]
    total = [{"q": f"{n} and 1?", "answer": [str(n + 1), f"#{n}"]} for n in range(NUM_ROWS)]
    paths = {
        name: str(write_jsonl(folder / f"{name}.jsonl", rows))
        for name, rows in zip(TASKS, (pick, verdict, total), strict=True)
    }
    fields: dict[str, Any] = {
        "pick": {
            "kind": "choice",
            "prompt": "{question}\n{options}\nAnswer:",
            "options": "options",
            "label": "key",
        },
        "verdict": {
            "kind": "classification",
            "text": ["a", "b"],
            "labels": [False, True],
            "words": ["no", "yes, it is"],
        },
        "sum": {
            "kind": "generation",
            "prompt": "Question: {q}\nAnswer:",
            "system": "Be short.",
            "label": "answer",
            "metrics": ["exact_match", "log_likelihood", "perplexity"],
            "generation": {"max_new_tokens": 4, "stop": ["\n"]},
        },
    }
    tasks = {name: {**fields[name], "data": paths[name]} for name in TASKS}
    shares = {"validation": 0.25, "test": 0.25}
    return {"tasks": tasks, "split": shares}


def train_tiny(folder, suite, output, recipe="private", model=None, **options):
    """Train in four steps unless told otherwise."""
    chosen = {"name": str(folder), "dtype": "float32", "max_length": 96, **(model or {})}
    training = {**TRAINING, **options.pop("training", {})}
    return train(chosen, suite, recipe, output=output, budget=6, training=training, **options)


@pytest.fixture(scope="module", params=["llama", "t5"])
def run(request, folder_of, suite, tmp_path_factory):
    """A run that was trained, scored and chosen by its validation scores."""
    output = tmp_path_factory.mktemp(request.param) / "run"
    best = {"best": "overall", "training": {"eval_strategy": "steps", "eval_steps": 2}}
    with pytest.MonkeyPatch.context() as patch:
        prefer_step(patch, 2)
        return train_tiny(folder_of(request.param), suite, output, **best)


def test_a_run_is_chosen_by_the_validation_scores(run):
    result = result_of(run.path)
    assert result["run"]["status"] == "finished"
    assert result["train"]["best_checkpoint"] == "checkpoint-2"
    # The files of a checkpoint and of an adapter have other names.
    best, kept = (
        {name.partition("/")[2]: tensor for name, tensor in tensors_of(run.path / folder).items()}
        for folder in ("checkpoint-2", "adapter")
    )
    assert kept
    for name, tensor in kept.items():
        assert torch.equal(tensor, best[name]), name
    scored = log_of(run.path, "eval_overall")
    assert set(scored) == {2, 4}
    assert {f"eval_{task}" for task in TASKS} <= scored[2].keys()
    assert "eval_sum_log_likelihood" in scored[2]
    # All the tasks were learned, by blocks of their own.
    logged = {key for line in log_of(run.path).values() for key in line}
    assert {f"loss_{task}" for task in TASKS} <= logged
    assert set(result["train"]["updates"]) == set(TASKS)
    assert result["train"]["trainable"]["heads"] == 0


def test_a_run_opened_again_scores_and_predicts_the_same(run):
    scores = run.evaluate(num_resamples=20)
    assert {task: tuple(score.metrics) for task, score in scores.items()} == {
        "pick": ("accuracy", "accuracy_norm"),
        "verdict": ("accuracy",),
        "sum": ("exact_match", "log_likelihood", "perplexity"),
    }
    took = run.result["inference"]["test"]["tasks"]
    at_once = {task: one["batch"] for task, one in took.items()}
    assert at_once == {"pick": "64 options", "verdict": "64 options", "sum": "16 rows"}
    labels, written = read_predictions(run.path / "predictions-test.json")["sum"]
    assert len(labels) == len(written) == scores["sum"].num_rows
    again = load_run(run.path)
    assert again.evaluate(num_resamples=20) == scores
    for task, texts in {
        "pick": [ROW, {**ROW, "options": ["yes", "no", "it is"]}],
        "verdict": [("The sky is red.", "Is it?")],
        "sum": [{"q": "2 and 3?"}, "7 and 1?"],
    }.items():
        found = run.predict(texts, task)
        assert again.predict(texts, task) == found
        json.dumps(found)


def test_what_a_prediction_holds(run):
    pick = run.predict([ROW], "pick")[0]
    assert pick["option"] == ROW["options"][pick["position"]]
    assert pick["log_likelihoods"][pick["position"]] == max(pick["log_likelihoods"])
    verdict = run.predict([{"a": "The sky is red.", "b": "Is it?"}], "verdict")[0]
    assert verdict["probabilities"].keys() == {"false", "true"}
    assert sum(verdict["probabilities"].values()) == pytest.approx(1)
    assert set(run.predict(["2 and 3?"], "sum")[0]) == {"text"}


def test_a_run_learns(folder_of, suite, tmp_path):
    """The loss of every task falls, and by itself a run's last weights are kept."""
    found = train_tiny(
        folder_of("llama"),
        suite,
        tmp_path / "run",
        training={"max_steps": 20, "save_strategy": "no"},
        loss_mean="tokens",
    )
    log = log_of(found.path)
    for task in TASKS:
        first, last = (
            sum(log[step][f"loss_{task}"] for step in steps if f"loss_{task}" in log[step])
            for steps in (range(1, 4), range(18, 21))
        )
        assert last < 0.8 * first, task


# A T5 has dropout of its own, so that random numbers have to be taken up too.
@pytest.mark.parametrize(
    ("name", "packing"), [("llama", True), ("t5", False)], ids=["llama-packed", "t5"]
)
def test_a_run_that_was_stopped_ends_the_same(name, packing, folder_of, suite, tmp_path):
    options = {"packing": packing, "recipe": "shared_private"}
    whole = train_tiny(folder_of(name), suite, tmp_path / "whole", **options)
    seen = []

    def compute_loss(self, *args, **kwargs):
        seen.append(self.state.global_step)
        if seen.count(3) == 2:
            raise Stopped
        return original(self, *args, **kwargs)

    original = MultiTaskTrainer.compute_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiTaskTrainer, "compute_loss", compute_loss)
        with pytest.raises(Stopped):
            train_tiny(folder_of(name), suite, tmp_path / "stopped", **options)
    assert (tmp_path / "stopped" / "checkpoint-2").is_dir()
    resumed = train_tiny(folder_of(name), suite, tmp_path / "stopped", resume=True, **options)
    assert_same_run(resumed.path, whole.path)


def test_a_packed_run_is_the_padded_one(folder_of, suite, tmp_path):
    padded, packed = (
        train_tiny(folder_of("llama"), suite, tmp_path / str(packing), packing=packing)
        for packing in (False, True)
    )
    # AdamW's first steps have the size of the rate whatever the gradient's: rounding shows.
    assert_same_tensors(packed.path / "adapter", padded.path / "adapter", tolerance=2e-3)
    for key in ("tokens", "updates", "steps"):
        assert result_of(packed.path)["train"][key] == result_of(padded.path)["train"][key]
    for step, line in log_of(packed.path).items():
        assert line["loss"] == pytest.approx(log_of(padded.path)[step]["loss"], rel=1e-3)
    assert packed.evaluate(num_resamples=0).keys() == set(TASKS)
    shares = [result_of(run.path)["train"]["padding"] for run in (packed, padded)]
    assert shares[0] == 0 < shares[1]


def test_a_chat_is_trained_and_asked(folder_of, suite, tmp_path):
    turns = [
        {"from": "human", "value": "Which? {n}"},
        {"from": "gpt", "value": "dog"},
        {"from": "human", "value": "And then?"},
        {"from": "gpt", "value": "cat"},
    ]
    rows = [{"talk": [{**turns[0], "value": f"Which? {n}"}, *turns[1:]]} for n in range(NUM_ROWS)]
    path = write_jsonl(tmp_path / "talk.jsonl", rows)
    tasks = {
        "talk": {
            "kind": "generation",
            "messages": "talk",
            "data": str(path),
            "generation": {"max_new_tokens": 3},
        },
        "pick": suite["tasks"]["pick"],
    }
    chat = {"tasks": tasks}
    model = {"chat": True}
    found = train_tiny(folder_of("llama"), chat, tmp_path / "run", model=model)
    assert found.evaluate(num_resamples=0).keys() == {"talk", "pick"}
    asked = found.predict(["Which?", {"talk": turns[:1]}, {"talk": turns[:3]}], "talk")
    assert [set(answer) for answer in asked] == [{"text"}] * 3
    with pytest.raises(InputError, match=r"task 'talk', row \d+: .* set model.chat to true"):
        train_tiny(folder_of("llama"), chat, tmp_path / "plain", model={"chat": False})


def test_an_encoder_decoder_does_not_pack(folder_of, suite, tmp_path):
    with pytest.raises(InputError, match="an encoder-decoder cannot pack rows"):
        train_tiny(folder_of("t5"), suite, tmp_path / "run", packing=True)
    assert not (tmp_path / "run").exists()


def test_a_decoder_that_cannot_pack_is_refused(folder_of, suite, tmp_path):
    with pytest.raises(InputError, match="a BloomForCausalLM cannot pack rows"):
        train_tiny(folder_of("bloom"), suite, tmp_path / "run", packing=True)


def test_what_a_decoder_cannot_do_is_told(folder_of, suite, tmp_path):
    path = write_jsonl(tmp_path / "v.jsonl", [{"text": f"{n}", "label": n / 7} for n in range(30)])
    value = {"kind": "regression", "data": str(path)}
    with pytest.raises(InputError, match="task 'value': a regression needs an encoder"):
        train_tiny(folder_of("llama"), {"tasks": {"value": value}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loader_tells_a_language_model_from_an_encoder_of_the_same_name(folder_of, suite):
    """Pooling asks for heads; what was kept for the one must not serve the other."""
    loader, loaded = Loader(), load_suite(suite)
    speaks = ModelConfig(name=str(folder_of("llama")), max_length=96)
    pools = replace(speaks, pooling="mean")
    assert (loader.kind(speaks), loader.kind(pools)) == ("decoder", "encoder")
    items = [loader.encoded(config, loaded, "verdict", "train")[0] for config in (speaks, pools)]
    assert ["labels" in item for item in items] == [True, False]


@pytest.mark.parametrize(
    ("folder", "setting", "kind"),
    [("bert", "chat", "encoder"), ("bert", "prompt_loss", "encoder"),
     ("t5", "prompt_loss", "encoder-decoder")],
)  # fmt: skip
def test_a_setting_without_effect_is_refused(
    folder, setting, kind, folder_of, tiny_bert, suite, tmp_path
):
    name = tiny_bert if folder == "bert" else folder_of(folder)
    verdict = {**suite, "tasks": {"verdict": suite["tasks"]["verdict"]}}
    with pytest.raises(InputError, match=f"model.{setting} has no effect on an {kind}"):
        train_tiny(name, verdict, tmp_path / "run", model={setting: True, "max_length": 32})
    assert not (tmp_path / "run").exists()
