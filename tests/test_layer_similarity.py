"""Which layers are the last ones by how alike their representations are."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from coadapt.layer_similarity import last_segment, linear_cka
from coadapt.runs import load_run
from coadapt.saving import saved_form
from tests.language.toys import ARCHITECTURES
from tests.tiny_language import save_model, write_jsonl
from tests.toy_runs import model_of, recipe_of, train_toy


def slow_cka(x, y):
    """The kernel form with its centring matrix (arXiv 1905.00414, equation 3, linear kernels)."""
    n = len(x)
    H = np.eye(n) - 1 / n
    K, L = x @ x.T, y @ y.T

    def hsic(a, b):
        return np.trace(a @ H @ b @ H) / (n - 1) ** 2

    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def test_linear_cka():
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(9, d)) + 5 for d in (4, 7, 4)]
    states.append(3 * states[0] @ np.linalg.qr(rng.normal(size=(4, 4)))[0] - 2)
    found = linear_cka(states)
    wanted = [[slow_cka(x, y) for y in states] for x in states]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    # Blind to rotation, scale and shift.
    np.testing.assert_allclose(found[0, 3], 1.0, atol=1e-12)


@pytest.mark.parametrize("last", [1, 2, 4, 5])
def test_the_last_segment_of_layers_in_two_blocks(last):
    block = np.arange(6) >= 6 - last
    similarity = np.where(block[:, None] == block, 0.9, 0.3) + 0.1 * np.eye(6)
    assert last_segment(similarity) == last


def test_two_layers_are_cut_between_them():
    assert last_segment(np.array([[1.0, 0.9], [0.9, 1.0]])) == 1


def test_a_run_keeps_the_layers_that_were_found(tiny_bert, toy_suite_dict, tmp_path):
    recipe = recipe_of("ta_lora", layers="similarity")
    model = model_of(tiny_bert, pooling="mean")
    run = train_toy(model, toy_suite_dict, tmp_path / "run", recipe)
    told = json.loads((run.path / "statistics.json").read_text())
    names = tuple(f"encoder.layer.{n}.attention.self" for n in range(2))
    assert tuple(told["layers"]) == names[1:]
    structure, _ = saved_form(run.path / "adapter")
    assert structure.layers == names[1:]  # pyright: ignore[reportAttributeAccessIssue]
    assert list(load_run(run.path).model.attached.prompts) == [names[1]]

    tokenizer, stock = (
        AutoTokenizer.from_pretrained(tiny_bert),
        AutoModel.from_pretrained(tiny_bert),
    )
    states = [[], []]
    for task in run.suite.names:
        rows = run.suite.rows(task, "train")
        for index in range(min(32, len(rows))):
            pair = [] if rows.pairs is None else [rows.pairs[index]]
            batch = tokenizer(rows.texts[index], *pair, return_tensors="pt")
            with torch.no_grad():
                hidden = stock(**batch, output_hidden_states=True).hidden_states[1:]
            for layer, values in zip(states, hidden, strict=True):
                layer.append(values[0].double().mean(0).numpy())
    wanted = slow_cka(*map(np.stack, states))
    [[_, found], _] = told["interlayer_similarity"]["encoder.layer"]
    assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_language_models_have_last_layers_too(name, tmp_path):
    rows = [{"q": f"Which? {n}", "options": ["dog", f"cat {n}"], "key": n % 2} for n in range(20)]
    task = {"kind": "choice", "prompt": "{q}", "options": "options", "label": "key"}
    task["data"] = str(write_jsonl(tmp_path / "pick.jsonl", rows))
    recipe = recipe_of("ta_lora", layers="similarity")
    model = model_of(save_model(tmp_path / name, name))
    run = train_toy(model, {"tasks": {"pick": task}}, tmp_path / "run", recipe)
    told = json.loads((run.path / "statistics.json").read_text())
    assert list(run.model.attached.prompts) == told["layers"]
    # Two layers each, cut between them.
    assert len(told["layers"]) == len(told["interlayer_similarity"]) == (2 if name == "t5" else 1)
