"""Merged PEFT folders against stock PEFT."""

import json
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from coadapt._errors import InputError
from coadapt.importing import read_peft_adapter
from coadapt.merging import Merge, merge_adapters, merge_folds
from tests.peft_folders import peft_folder
from tests.toy_runs import content_of

pytestmark = [
    # Stock PEFT asks transformers 5.23 for an attribute under its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*rslora:UserWarning"),
]

TEXT = {
    "input_ids": torch.tensor([[2, 9, 30, 12, 3], [2, 17, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
# Pairs of names that PEFT adapts by default in BERT, at other ranks and scales.
FORMS = {
    "one": {"r": 4, "lora_alpha": 6},
    "two": {"r": 3, "lora_alpha": 6, "use_rslora": True},
    "three": {
        "r": 2,
        "lora_alpha": 5,
        "rank_pattern": {"0.attention.self.query": 5},
        "alpha_pattern": {"1.attention.self.value": 7},
    },
}


@pytest.fixture(scope="module")
def folders(tiny_bert, tmp_path_factory):
    """Three adapters with different factors."""
    parent = tmp_path_factory.mktemp("adapters")
    found = [peft_folder(tiny_bert, parent / name, **form) for name, form in FORMS.items()]
    for index, folder in enumerate(found):  # the writer draws the same values for all
        rng = torch.Generator().manual_seed(index)
        file = folder / "adapter_model.safetensors"
        loaded = load_file(file)
        tensors = {n: t + 0.2 * torch.randn(t.shape, generator=rng) for n, t in loaded.items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return found


@torch.no_grad()
def outputs(model):
    return model.eval()(**TEXT)[0]


def dense(folder):
    return {name: B @ A for name, (A, B) in read_peft_adapter(folder).factors.items()}


def test_task_arithmetic_is_peft_s_cat(tiny_bert, folders, tmp_path):
    merged = merge_adapters(folders, tmp_path / "sum", Merge(method="task_arithmetic", weight=0.8))
    base = AutoModel.from_pretrained(tiny_bert)
    model: Any = PeftModel.from_pretrained(base, folders[0], "one")
    for folder in folders[1:]:
        model.load_adapter(folder, folder.name)
    model.add_weighted_adapter(list(FORMS), [0.8] * 3, "cat", combination_type="cat")
    found = dense(tmp_path / "sum")
    layers = dict(model.base_model.model.named_modules())
    for name, delta in found.items():
        wanted = layers[name].get_delta_weight("cat")
        torch.testing.assert_close(delta, wanted, rtol=1e-6, atol=1e-6)
    model.set_adapter("cat")
    mine = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), tmp_path / "sum")
    torch.testing.assert_close(outputs(mine), outputs(model), rtol=1e-5, atol=1e-5)
    assert set(merged.ranks.values()) == {9, 12}  # 4 + 3 + 2, or with its own rank 5
    assert merged.notes == ()


@pytest.mark.parametrize(
    "method",
    [Merge(method="ties"), Merge(method="dare_ties", density=0.5, weight=0.5), Merge(rank=3)],
    ids=lambda method: method.method,
)
def test_stock_peft_computes_what_the_update_says(tiny_bert, folders, tmp_path, method):
    turned = [folders[1], folders[2], folders[0]]  # the first, with rsLoRA, gives the configuration
    merged = merge_adapters(turned, tmp_path / "out", method, seed=3)
    folds = [read_peft_adapter(folder).factors for folder in folders]
    wanted = merge_folds(folds, list(FORMS), method, 3)
    base = AutoModel.from_pretrained(tiny_bert)
    mine = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), tmp_path / "out")
    with torch.no_grad():
        for name, (A, B) in wanted.factors.items():
            base.get_submodule(name).weight += B @ A
    torch.testing.assert_close(outputs(mine), outputs(base), rtol=1e-5, atol=1e-5)
    assert (outputs(mine) - outputs(AutoModel.from_pretrained(tiny_bert))).abs().max() > 1e-2
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == max(merged.ranks.values())
    assert (config["rank_pattern"], config["alpha_pattern"], config["use_rslora"]) == (
        {},
        {},
        False,
    )


def test_heads_beside_the_factors_are_left_out_and_told(tiny_bert, tmp_path):
    made = [
        peft_folder(
            tiny_bert, tmp_path / name, AutoModelForSequenceClassification, task_type="SEQ_CLS"
        )
        for name in ("a", "b")
    ]
    merged = merge_adapters(made, tmp_path / "out", Merge())
    assert merged.notes[0].startswith("whole modules were left out: of a (classifier, score)")
    assert all("lora_" in key for key in load_file(tmp_path / "out/adapter_model.safetensors"))
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    kept = base.classifier.weight.clone()
    mine: Any = PeftModel.from_pretrained(base, tmp_path / "out")
    assert torch.equal(mine.base_model.model.classifier.weight, kept)
    outputs(mine)


def change(folder, target, **fields):
    """Copy an adapter with other fields in its configuration."""
    target.mkdir()
    for name, content in content_of(folder).items():
        (target / name).write_bytes(content)
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    return target


def test_adapters_that_do_not_fit_are_refused(tiny_bert, folders, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "other").mkdir()
    first = folders[0]
    for others, output, message in (
        ([], "out", "there is no adapter to merge"),
        (folders, "full", "is there already"),
        ([first, first], "out", "two of the adapters are called 'one'"),
        ([first, tmp_path / "nowhere"], "out", "does not exist"),
        (
            [first, change(first, tmp_path / "b", base_model_name_or_path="else")],
            "out",
            "base model 'else', .* on '.*'; merge adapters of one",
        ),
        ([first, change(first, tmp_path / "c", use_dora=True)], "out", "the adapter has DoRA"),
        ([first, change(first, tmp_path / "d", bias="all")], "out", "bias is 'all'"),
        ([first, change(first, tmp_path / "e", fan_in_fan_out=True)], "out", "fan_in_fan_out"),
        (
            [first, peft_folder(tiny_bert, tmp_path / "f", target_modules=["query"])],
            "out",
            "adapts module '.*value', which 'f' does not",
        ),
    ):
        with pytest.raises(InputError, match=message):
            merge_adapters(others, tmp_path / output, Merge())
    assert not (tmp_path / "out").exists()


def test_a_base_model_without_a_name_is_told(folders, tmp_path):
    nameless = change(folders[1], tmp_path / "nameless", base_model_name_or_path=None)
    merged = merge_adapters([nameless, folders[0]], tmp_path / "out", Merge())
    assert merged.notes == ("no base model is named by nameless; it was not compared",)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    named = json.loads((folders[0] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == named["base_model_name_or_path"]
