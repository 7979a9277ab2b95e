"""Exports of language models, read by stock libraries."""

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
)

from coadapt._errors import InputError
from coadapt.exporting import export_merged, export_peft, verify_peft
from coadapt.exporting.merged import merge_task
from coadapt.processors import load_tokenizer
from tests.language.exported import (
    CONFIG,
    GROUPS,
    NAMES,
    encoded_rows,
    make_model,
    plain_logits,
    routes_of,
)
from tests.tiny_language import save_model

pytestmark = [
    # Stock PEFT asks transformers 5.23 for an attribute under its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

STOCK = {"llama": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *(("llama", recipe) for recipe in ("lora", "clustered", "shared_private", "frozen")),
        ("t5", "clustered"),
    ],
)
def test_stock_peft_gives_the_runs_logits(folder_of, tmp_path, name, recipe):
    model = make_model(folder_of(name), recipe)
    tokenizer = load_tokenizer(model.model_config)
    report = export_peft(model, tmp_path / "out", card_config=CONFIG)
    differences = verify_peft(model, tokenizer, report.folder, encoded_rows(model, tokenizer))
    assert list(differences) == NAMES
    assert max(differences.values()) < 1e-4
    routes = routes_of(report.folder)
    assert all(route["head"] is None for route in routes.values())
    assert not (report.folder / "heads").exists()
    if recipe == "frozen":
        assert report.tasks == dict.fromkeys(NAMES)
        return
    for folder, tasks in GROUPS[recipe].items():
        assert [t for t in NAMES if routes[t]["adapter"] == f"adapters/{folder}"] == tasks
    auto = {"llama": AutoPeftModelForCausalLM, "t5": AutoPeftModelForSeq2SeqLM}[name]
    for task in NAMES:
        adapter = report.folder / routes[task]["adapter"]
        own, inputs = plain_logits(model, task)
        with torch.no_grad():
            stock = auto.from_pretrained(adapter).eval()(**inputs).logits
        torch.testing.assert_close(stock, own, atol=1e-4, rtol=1e-4)
        kind = json.loads((adapter / "adapter_config.json").read_text())["task_type"]
        assert kind == {"llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}[name]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_verify_sees_a_wrong_adapter(folder_of, tmp_path, name):
    model = make_model(folder_of(name), "private", dtype="bfloat16")
    tokenizer = load_tokenizer(model.model_config)
    report = export_peft(model, tmp_path / "out", card_config=CONFIG)
    rows = encoded_rows(model, tokenizer)
    assert max(verify_peft(model, tokenizer, report.folder, rows).values()) < 1e-4
    with torch.no_grad():
        next(iter(model.attached.layers.values())).B[0].mul_(1.5)
    differences = verify_peft(model, tokenizer, report.folder, rows)
    assert differences["question"] > 1e-3
    assert max(differences["verdict"], differences["written"]) < 1e-4


@pytest.mark.parametrize(
    ("name", "recipe"),
    [*(("llama", recipe) for recipe in GROUPS), ("t5", "clustered"), ("t5", "full")],
)
def test_a_merged_folder_is_a_stock_model(folder_of, tmp_path, name, recipe):
    model = make_model(folder_of(name), recipe)
    tokenizer = load_tokenizer(model.model_config)
    before = torch.get_rng_state()
    report = export_merged(model, tokenizer, tmp_path / "out", card_config=CONFIG)
    assert torch.equal(before, torch.get_rng_state())
    found = {
        folder: [task for task in NAMES if report.tasks[task] == f"models/{folder}"]
        for folder in sorted(path.name for path in (report.folder / "models").iterdir())
    }
    assert found == GROUPS[recipe]
    for folder, tasks in found.items():
        stock = STOCK[name].from_pretrained(report.folder / "models" / folder).eval()
        assert stock.dtype == torch.float32
        assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
        assert "quantization_config" not in stock.config.to_dict()
        for task in tasks:
            own, inputs = plain_logits(model, task)
            with torch.no_grad():
                torch.testing.assert_close(stock(**inputs).logits, own, atol=1e-4, rtol=1e-4)
        again = AutoTokenizer.from_pretrained(report.folder / "models" / folder)
        assert again.chat_template == tokenizer.chat_template
        assert again("The dog barks.") == tokenizer("The dog barks.")


def test_merged_from_bfloat16_is_the_float32_model(folder_of, tmp_path):
    model = make_model(folder_of("llama"), "lora", dtype="bfloat16")
    tokenizer = load_tokenizer(model.model_config)
    report = export_merged(model, tokenizer, tmp_path / "out", card_config=CONFIG)
    own, inputs = plain_logits(make_model(folder_of("llama"), "lora"), "verdict")
    stock = AutoModelForCausalLM.from_pretrained(report.folder / "models/shared").eval()
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, own, atol=1e-4, rtol=1e-4)


def test_the_base_models_generation_settings_come_along(tmp_path):
    """Those that many instruction-tuned models have, and would not be saved as they are."""
    base = save_model(tmp_path / "base", "llama")
    settings = {"eos_token_id": [2, 7], "repetition_penalty": 1.3, "temperature": 0.6}
    path = base / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    model = make_model(base, "lora")
    tokenizer = load_tokenizer(model.model_config)
    report = export_merged(model, tokenizer, tmp_path / "out", card_config=CONFIG)
    found = GenerationConfig.from_pretrained(report.folder / "models/shared").to_dict()
    assert {key: found[key] for key in settings} == settings


def test_full_ships_merged_only(folder_of, tmp_path):
    with pytest.raises(InputError, match=r"'full' ships as 'merged'.*--format merged"):
        export_peft(make_model(folder_of("llama"), "full"), tmp_path / "out", card_config=CONFIG)


def test_merged_refuses_what_computes_something_else(folder_of, tmp_path, monkeypatch):
    def wrong(model, task):
        merged = merge_task(model, task)
        merged.get_parameter("model.embed_tokens.weight").data[5:] += 0.5
        return merged

    monkeypatch.setattr("coadapt.exporting.merged.merge_task", wrong)
    model = make_model(folder_of("llama"), "lora")
    tokenizer = load_tokenizer(model.model_config)
    with pytest.raises(InputError, match="does not compute what the run does"):
        export_merged(model, tokenizer, tmp_path / "out", card_config=CONFIG)


def test_what_routes_say(folder_of, tmp_path):
    model = make_model(folder_of("llama"), "private", max_length=80)
    routes = routes_of(export_peft(model, tmp_path / "out", card_config=CONFIG).folder)
    common = {
        "model_kind": "decoder", "pooling": None, "max_length": 80, "chat": False, "head": None,
        "system": None, "messages": None, "delimiter": " ",
    }  # fmt: skip
    assert routes["question"] == {
        **common, "adapter": "adapters/question", "kind": "choice", "labels": [],
        "text_columns": ["question"], "prompt": "Which? {question}\nAnswer:", "options": "options",
        "words": [], "generation": None,
    }  # fmt: skip
    assert routes["verdict"] == {
        **common, "adapter": "adapters/verdict", "kind": "classification",
        "labels": ["false", "true"], "text_columns": ["text"], "prompt": "{text}", "options": None,
        "words": ["no", "yes, it is"], "generation": None,
    }  # fmt: skip
    how = {"max_new_tokens": 64, "stop": [], "temperature": 0.0, "top_p": 1.0, "top_k": 0}
    assert routes["written"]["generation"] == how
    chat = make_model(folder_of("llama"), "private", chat=True)
    routes = routes_of(export_peft(chat, tmp_path / "chat", card_config=CONFIG).folder)
    assert {(route["chat"], route["delimiter"]) for route in routes.values()} == {(True, "")}


# What a vLLM server would say --------------------------------------------------------------------


def findings_of(model, folder):
    report = export_peft(model, folder, card_config=CONFIG, check_vllm=True)
    return report, {finding.what: finding for finding in report.findings}


def test_vllm_takes_a_llama(folder_of, tokenizer, tmp_path):
    model = make_model(folder_of("llama"), "private", target_modules="all-linear")
    report, found = findings_of(model, tmp_path / "out")
    assert not report.refused
    assert found["LoRA on the base model LlamaForCausalLM"].level == "ok"
    every = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert found[f"target modules {every}"].level == "ok"
    assert "/v1/completions" in found["prompts"].action
    assert "--generation-config vllm" in found["sampling"].action
    assert "prompt_logprobs" in found["scores of options"].action
    assert "task heads" not in found
    modules = " ".join(f"{name}=adapters/{name}" for name in NAMES)
    command = found["a server of all adapters"].why.partition("vllm serve ")[2]
    options = "--enable-lora --max-loras 3 --max-lora-rank 8 --lora-modules"
    assert command == f"{folder_of('llama')} {options} {modules}"
    for word in modules.split():
        assert (report.folder / word.partition("=")[2] / "adapter_config.json").is_file()
    assert set(report.ranks.values()) == {8}
    rows = encoded_rows(model, tokenizer)
    assert max(verify_peft(model, tokenizer, report.folder, rows).values()) < 1e-4
    chat = make_model(folder_of("llama"), "lora", chat=True)
    assert "/v1/chat" in findings_of(chat, tmp_path / "chat")[1]["prompts"].action


def test_m_lora_leaves_as_one_lora_that_vllm_takes(folder_of, tokenizer, tmp_path):
    """Five heads of rank 4 are one update of rank 4, and their start, subtracted, another."""
    model = make_model(folder_of("llama"), "m_lora")
    report, _ = findings_of(model, tmp_path / "out")
    assert not report.refused
    assert {Path(name).name: rank for name, rank in report.ranks.items()} == {"shared": 8}
    rows = encoded_rows(model, tokenizer)
    assert max(verify_peft(model, tokenizer, report.folder, rows).values()) < 1e-4


def test_vllm_refuses_some_language_models(folder_of, tmp_path):
    report, found = findings_of(make_model(folder_of("gpt_neox"), "lora"), tmp_path / "neox")
    refused = found["LoRA on the base model GPTNeoXForCausalLM"]
    assert (refused.level, report.refused) == ("refused", True)
    assert "--format merged" in refused.action
    assert found["target modules query_key_value"].level == "note"
    assert "a server of all adapters" not in found
    report, found = findings_of(make_model(folder_of("t5"), "lora"), tmp_path / "t5")
    assert found["the base model T5ForConditionalGeneration"].level == "refused"
    assert "prompts" not in found


def test_an_adapter_holds_every_layers_factors_in_float32(folder_of, tmp_path):
    model = make_model(folder_of("llama"), "lora", dtype="bfloat16", target_modules="mlp")
    report = export_peft(model, tmp_path / "out", card_config=CONFIG)
    tensors = load_file(report.folder / "adapters/shared/adapter_model.safetensors")
    names = {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in tensors}
    maps = ("gate_proj", "up_proj", "down_proj")
    assert names == {f"model.layers.{layer}.mlp.{part}" for layer in range(2) for part in maps}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert {t.shape[0] for key, t in tensors.items() if "lora_A" in key} == {3}
