"""Exports in the hands of a stock server and of stock PEFT: they answer as the run does."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from openai import APIConnectionError, OpenAI
from peft import PeftModel
from transformers import AutoModelForCausalLM

from coadapt.exporting import export_merged, export_peft
from coadapt.prediction import predict_texts
from coadapt.processors import load_tokenizer
from coadapt.tasks import Task
from coadapt.tasks.prompts import Generation
from tests.language.exported import CONFIG, make_model, routes_of
from tests.tiny_language import NOWHERE

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SERVE = ("-m", "transformers.cli.transformers", "serve", "--device", "cpu", "--host", "127.0.0.1")
TEXTS: tuple[str, ...] = ("Which animal barks?", "How many are 2 and 3?", "Is the sky red?")
TASKS = tuple(
    Task(name=name, kind="generation", data=NOWHERE, prompt=prompt, generation=generation)
    for name, prompt, generation in (
        ("plain", "{text}", Generation(max_new_tokens=6)),
        ("asked", "Question: {text}\nAnswer:", Generation(max_new_tokens=6, stop=("an",))),
    )
)


def answers_of(model, task):
    """Return what the run answers to the texts."""
    tokenizer = load_tokenizer(model.model_config)
    found = [row["text"] for row in predict_texts(model, tokenizer, TEXTS, task)]
    assert len(set(found)) > 1  # or a server that reads nothing would do
    return found


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a server that loads what it is asked for; one server for all tests."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *SERVE, "--port", str(port)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as made:
            _wait(made, process, log)
            yield made
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(client, process, log):
    for _ in range(900):
        assert process.poll() is None, log.read_text()
        try:
            client.get("../health", cast_to=object)
        except APIConnectionError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_an_openai_client_gets_the_runs_answers(folder_of, tmp_path, client, chat):
    model = make_model(folder_of("llama"), "private", tasks=TASKS, chat=chat)
    tokenizer = load_tokenizer(model.model_config)
    export_merged(model, tokenizer, tmp_path / "out", card_config=CONFIG)
    for task, route in routes_of(tmp_path / "out").items():
        how = route["generation"]
        asked = {
            "model": str(tmp_path / "out" / route["model"]),
            "max_tokens": how["max_new_tokens"],
            "temperature": how["temperature"],
            **({"stop": how["stop"]} if how["stop"] else {}),
        }
        for text, expected in zip(TEXTS, answers_of(model, task), strict=True):
            prompt = route["prompt"].replace("{text}", text)
            if chat:
                talk = [{"role": "user", "content": prompt}]
                made = client.chat.completions.create(messages=talk, **asked)
                written = made.choices[0].message.content
            else:
                written = client.completions.create(prompt=prompt, **asked).choices[0].text
            for stop in how["stop"]:  # which a server leaves at the end
                written = written.split(stop)[0]
            assert written.strip() == expected


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_mixed_batch_in_stock_peft_gives_the_runs_answers(folder_of, tmp_path):
    model = make_model(folder_of("llama"), "private", tasks=TASKS)
    tokenizer = load_tokenizer(model.model_config)
    export_peft(model, tmp_path / "out", card_config=CONFIG)
    routes = routes_of(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(folder_of("llama"), dtype=torch.float32)
    first, *others = routes
    stock = PeftModel.from_pretrained(
        base, str(tmp_path / "out" / routes[first]["adapter"]), adapter_name=first
    )
    for task in others:
        stock.load_adapter(str(tmp_path / "out" / routes[task]["adapter"]), adapter_name=task)
    rows = [(task, text) for text in TEXTS for task in routes]
    tokenizer.padding_side = "left"
    prompts = [routes[task]["prompt"].replace("{text}", text) for task, text in rows]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        written = stock.eval().generate(
            **batch, adapter_names=[task for task, _ in rows], max_new_tokens=6, do_sample=False
        )
    texts = tokenizer.batch_decode(
        written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    own = {task: dict(zip(TEXTS, answers_of(model, task), strict=True)) for task in routes}
    for (task, text), found in zip(rows, texts, strict=True):
        for stop in routes[task]["generation"]["stop"]:
            found = found.split(stop)[0]
        assert found.strip() == own[task][text]
    assert own["plain"] != own["asked"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_page_s_code_gives_the_runs_answers(folder_of, tmp_path, client, monkeypatch, capsys):
    model = make_model(folder_of("llama"), "private", tasks=TASKS)
    tokenizer = load_tokenizer(model.model_config)
    own = next(iter(predict_texts(model, tokenizer, ["a text"], "plain")))["text"]
    served, batch = CODE.findall(PAGE.read_text(encoding="utf-8"))
    export_merged(model, tokenizer, tmp_path / "merged", card_config=CONFIG)
    monkeypatch.chdir(tmp_path / "merged")
    # The server is this test's, and finds folders where it was started.
    code = served.replace("TASK", "plain").replace("http://127.0.0.1:8000/v1", str(client.base_url))
    exec(code.replace('route["model"]', f'"{tmp_path}/merged/" + route["model"]'), {})
    assert own in capsys.readouterr().out
    export_peft(model, tmp_path / "adapters", card_config=CONFIG)
    monkeypatch.chdir(tmp_path / "adapters")
    exec(batch.replace("max_new_tokens=32", "max_new_tokens=6"), {})
    assert own in capsys.readouterr().out
