"""Scores by lm-evaluation-harness: the same as ours where texts and options are."""

import json
import sys
from functools import partial
from typing import Any

import lm_eval.tasks
import numpy as np
import pytest
from lm_eval.tasks import TaskManager

from coadapt import InputError
from coadapt.fitting import train
from coadapt.harness import choose_services, evaluate_harness, load_harness_tasks
from coadapt.language import generate_texts, score_options
from coadapt.loading import encode_rows
from coadapt.runs import load_run
from coadapt.tasks.prompts import Generation
from coadapt.unseen import Service
from tests.invoking import refuse, succeed
from tests.language.exported import make_model
from tests.language.toys import question_rows, written_rows
from tests.tiny_language import QUESTION, WRITTEN, write_jsonl

WORDS = ("dog", "cat", "fish", "bird", "yes", "no", "5", "17")
ROWS = [
    {
        "question": f"{WORDS[n % 8]} or {WORDS[(3 * n) % 8]} {n}?",
        "options": [WORDS[n % 8], f"{WORDS[(n + 3) % 8]} {n % 5}", WORDS[(n + 5) % 8]],
        "answer": (7 * n) % 3,
        "said": WORDS[n % 4],
    }
    for n in range(40)
]
CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Which? {{{{question}}}}\\nAnswer:"
doc_to_choice: options
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
WRITE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
doc_to_target: said
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A function from a task's name and text to its file, in a folder with the rows."""
    folder = tmp_path_factory.mktemp("harness")
    rows = write_jsonl(folder / "rows.jsonl", ROWS)

    def write(name: str, text: str = CHOICE, **data: Any) -> str:
        path = folder / "tasks" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(name=name, data=data.get("data", rows)), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "recipe"), [("llama", "private"), ("llama", "hydra_lora"), ("t5", "private")]
)
def test_options_and_answers_are_those_of_the_blocks(folder_of, tokenizer, files, name, recipe):
    model = make_model(folder_of(name), recipe)
    # A space would be part of what an encoder-decoder's decoder reads.
    joined = CHOICE + 'target_delimiter: ""\n' if name == "t5" else CHOICE
    tasks = load_harness_tasks([files(f"{name}_pick", joined), files("say", WRITE)], None, ())
    prompts = [f"Which? {row['question']}\nAnswer:" for row in ROWS]
    rows = question_rows(prompts, [row["options"] for row in ROWS])
    how = Generation(max_new_tokens=4, stop=(".",))
    answers = np.array([row["answer"] for row in ROWS])
    seen = []
    for block in ("question", "verdict"):
        service = Service(like=block, gates=None, told=f"the blocks of {block}")
        found = evaluate_harness(model, tokenizer, tasks, [service] * 2)
        items = encode_rows(tokenizer, model.model_config, model.kind, QUESTION, rows)
        chosen = np.array([scores.argmax() for scores in score_options(model, items, block)])
        assert found[f"{name}_pick"].metrics["acc"].value == np.mean(chosen == answers)
        assert found[f"{name}_pick"].num_rows == len(ROWS)
        assert found[f"{name}_pick"].served == f"the blocks of {block}"
        texts = written_rows([row["question"] for row in ROWS], [""] * len(ROWS))
        items = encode_rows(tokenizer, model.model_config, model.kind, WRITTEN, texts)
        said = generate_texts(model, tokenizer, items, block, how)
        right = np.mean([row["said"] == text for row, text in zip(ROWS, said, strict=True)])
        assert found["say"].metrics["exact_match"].value == right
        seen.append(tuple(chosen))
    # So that the wrong block would be found out; a router's blocks serve every task.
    assert (seen[0] != seen[1]) == (recipe == "private")
    assert not model.backbone._forward_pre_hooks


@pytest.fixture(scope="module")
def run(folder_of, tmp_path_factory):
    """A run with a block a task, whose blocks were drawn."""
    folder = tmp_path_factory.mktemp("harness_run")
    fields = {
        "kind": "choice",
        "prompt": "Which? {question}\nAnswer:",
        "options": "options",
        "label": "answer",
        "metrics": ["accuracy"],
    }
    train_rows = [{**row, "question": f"Say {row['question']}"} for row in ROWS[:6]]
    paths = {
        "train": str(write_jsonl(folder / "train.jsonl", train_rows)),
        "test": str(write_jsonl(folder / "test.jsonl", ROWS)),
    }
    data = {"kind": "file", "path": paths}
    suite = {"tasks": {name: {**fields, "data": data} for name in ("pick", "choose")}}
    model = {"name": str(folder_of("llama")), "dtype": "float32", "max_length": 96}
    training = {"max_steps": 4, "learning_rate": 0.3, "use_cpu": True}
    return train(model, suite, "private", output=folder / "run", budget=4, training=training)


def test_the_command_says_theirs_beside_ours(run, files):
    folder = files("pick").rpartition("/")[0]
    other = files("theirs")
    told = json.loads(
        succeed("evaluate", run.path, "--lm-eval", f"pick,choose={other}", "--json",
                "--lm-eval-path", folder)
    )  # fmt: skip
    kept = load_run(run.path).result
    assert told["lm_eval"] == kept["lm_eval"]
    for theirs, ours in (("pick", "pick"), ("theirs", "choose")):
        found = told["lm_eval"][theirs]
        assert found["task"] == ours
        assert found["served"] == f"the blocks of {ours}"
        value = kept["metrics"]["test"][ours]["metrics"]["accuracy"]["value"]
        assert found["metrics"]["acc"]["value"] == value
    assert told["lm_eval"]["pick"]["task_version"] == "1.0"
    lines = succeed("evaluate", run.path, "--lm-eval", other, "--by", "task:pick").splitlines()
    row = next(line for line in lines if "theirs" in line)
    assert "acc" in row
    assert set(load_run(run.path).result["lm_eval"]) == {"pick", "theirs"}


def test_what_cannot_be_scored_is_told_before_anything_is(run, files, tmp_path, monkeypatch):
    # Its own index takes ten seconds to make, of tasks that are not asked for here.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(TaskManager, include_defaults=False))
    (tmp_path / "no.yaml").write_text("task: [no", encoding="utf-8")
    gone = files("gone", data="gone.jsonl")
    alone = files("alone")
    wrong = files("wrong", CHOICE.replace("question", "question.none.at"))
    for words, said in {
        ("--lm-eval", "pikc", "--lm-eval-path", files("pick").rpartition("/")[0]): "did you mean",
        ("--lm-eval", f"pikc={alone}"): "there is no task 'pikc'; did you mean 'pick'",
        ("--lm-eval", alone): "which blocks serve",
        ("--lm-eval", alone, "--by", "nearest"): f"TASK={alone}",
        ("--lm-eval", "none.yaml"): "no file none.yaml",
        ("--lm-eval", tmp_path / "no.yaml"): "cannot load",
        ("--lm-eval", gone): "gone.jsonl",
        ("--lm-eval", wrong, "--by", "mean"): "cannot load",
        ("--lm-eval", f"{alone},{alone}"): "'alone' more than once",
        ("--lm-eval", ","): "names no task",
        ("--lm-eval", alone, "--lm-eval-path", tmp_path / "none"): "is no folder",
        ("--lm-eval-path", tmp_path): "has no effect",
    }.items():
        assert said in refuse("evaluate", run.path, *words)


def test_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    told = refuse("evaluate", run.path, "--lm-eval", "pick")
    assert 'pip install "coadapt[lm-eval]"' in told


def test_a_model_with_heads_is_refused(tiny_bert, toy_suite_dict, tmp_path, files):
    from tests.toy_runs import train_toy

    encoder = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run")
    with pytest.raises(InputError, match="scores language models"):
        choose_services(encoder, load_harness_tasks([files("alone")], None, ()))
