"""How DoRA leaves: as stock PEFT's DoRA, or added to the weights."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
)

from coadapt.exporting import export_merged, export_peft, verify_peft
from coadapt.model import MultiTaskModel
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.structures import Dora
from tests.adapted import NAMES, TASKS, adapted, encoded_rows
from tests.small import make_batch

# PEFT asks transformers for a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CONFIG = "recipe: dora"


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


def shipped(folder: Path, **config: Any) -> MultiTaskModel:
    recipe: Any = Recipe(structure=Dora(scale=2.0, detach_norm=False))
    return adapted(folder, recipe, plan=Plan.shared(NAMES, 3), **config)


def verified(model, tokenizer, folder) -> float:
    rows = {task.name: encoded_rows(tokenizer, task) for task in TASKS}
    return max(verify_peft(model, tokenizer, folder, rows).values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stock_peft_gives_the_run_s_logits(tiny_bert, tokenizer, tmp_path, dtype):
    model = shipped(tiny_bert, dtype=dtype)
    report = export_peft(model, tmp_path / "out", card_config=CONFIG)
    assert set(report.tasks.values()) == {"adapters/shared"}
    folder = report.folder / "adapters/shared"
    assert verified(model, tokenizer, report.folder) < 1e-4
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["use_dora"], config["r"], config["lora_alpha"]) == (True, 3, 3)
    tensors = load_file(folder / "adapter_model.safetensors")
    vectors = {k: t for k, t in tensors.items() if k.endswith(".lora_magnitude_vector")}
    assert len(vectors) == len(model.attached.layers)
    assert {(t.dtype, t.shape) for t in vectors.values()} == {(torch.float32, (32,))}
    layer: Any = next(iter(model.attached.layers.values()))
    with torch.no_grad():
        layer.m.mul_(1.5)
    assert verified(model, tokenizer, report.folder) > 1e-3  # the comparison sees them


def test_the_card_says_dora_and_its_code_runs(tiny_bert, tmp_path, monkeypatch):
    report = export_peft(shipped(tiny_bert), tmp_path / "out", card_config=CONFIG)
    card = (report.folder / "adapters/shared/README.md").read_text()
    assert "A DoRA adapter of rank 3" in card
    monkeypatch.chdir(report.folder)
    (tmp_path / "code.py").write_text(card.split("```python\n")[1].split("```")[0])
    assert runpy.run_path(str(tmp_path / "code.py"))["logits"].isfinite().all()


def test_transposed_weights_are_exported(tokenizer, tmp_path):
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    model = shipped(tmp_path / "gpt2", target_modules="all-linear")
    report = export_peft(model, tmp_path / "out", card_config=CONFIG)
    assert verified(model, tokenizer, report.folder) < 1e-4


def test_a_merged_model_gives_the_run_s_logits(tiny_bert, tokenizer, tmp_path):
    model = shipped(tiny_bert, pooling="pooler", target_modules="all-linear")
    report = export_merged(model, tokenizer, tmp_path / "out", card_config=CONFIG)
    for index, task in enumerate(TASKS):
        stock = AutoModelForSequenceClassification.from_pretrained(
            report.folder / f"models/{task.name}"
        )
        batch = make_batch((0, 0, 0))
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            own = model(task_ids=torch.full((3,), index), **inputs)["outputs"]
            found = stock.eval()(**inputs).logits
        np.testing.assert_allclose(found, own[:, : task.num_outputs], atol=1e-5)


def test_vllm_is_told_to_refuse_it(tiny_bert, tmp_path):
    report = export_peft(shipped(tiny_bert), tmp_path / "o", card_config=CONFIG, check_vllm=True)
    (finding,) = (found for found in report.findings if found.what == "DoRA adapters")
    assert finding.level == "refused"
    assert "--format merged" in finding.action
    assert not any(
        "rank" in found.what or found.what == "adapter files" for found in report.findings
    )
