"""A training file of LLaMA-Factory becomes ours, and says what did not carry over."""

import json
from typing import Any

import pytest
import yaml

from coadapt import InputError
from coadapt.conversion import convert
from coadapt.settings import read_train_file
from tests.invoking import refuse, succeed
from tests.tiny_language import save_model

# The keys of its example for supervised fine-tuning with LoRA, with small numbers.
THEIRS = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 4,
    "lora_alpha": 12,
    "lora_target": "q_proj,v_proj",
    "lora_dropout": 0.1,
    "dataset": "identity,alpaca_en",
    "template": "llama3",
    "cutoff_len": 96,
    "max_samples": 30,
    "overwrite_cache": True,
    "preprocessing_num_workers": 16,
    "output_dir": "saves/x",
    "logging_steps": 10,
    "plot_loss": True,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1.0e-3,
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "seed": 7,
    "val_size": 0.2,
    "galore_rank": 16,
}


@pytest.fixture
def theirs(tmp_path):
    """A file with its data beside it, and a model."""
    model = save_model(tmp_path / "model", "llama")
    (tmp_path / "data").mkdir()
    names = ("identity", "alpaca_en")
    info = {name: {"file_name": f"{name}.json"} for name in names}
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(info))
    for name in names:
        rows = [
            {"instruction": f"{name}: what is {i} and 1?", "input": "", "output": str(i + 1)}
            for i in range(40)
        ]
        (tmp_path / f"data/{name}.json").write_text(json.dumps(rows))

    def write(**changes):
        content = {"model_name_or_path": str(model), **THEIRS, **changes}
        content = {key: value for key, value in content.items() if value is not None}
        file = tmp_path / "their.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


def test_the_file_trains_and_every_key_is_told(theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = theirs()
    told = succeed("import", file, "--output", "mine")
    for key in (*THEIRS, "model_name_or_path"):
        assert f"{key}: " in told.replace("lora_rank", "lora_rank"), key
    left = told.partition("left out:")[2].partition("written:")[0]
    assert "galore_rank: 16 (coadapt has no such option)" in left
    assert left.count("\n") == 6 + 1  # the five of running and the unknown one
    config, suite = read_train_file(tmp_path / "mine/train.yaml")
    structure: Any = config.recipe.structure
    assert (structure.kind, structure.scale, structure.dropout) == ("single", 3.0, 0.1)
    assert structure.dropout_at == "x"
    assert config.plan is not None
    assert config.plan.budget == 4
    assert (config.model.max_length, config.model.chat, config.seed) == (96, True, 7)
    assert config.model.target_modules == ("q_proj", "v_proj")
    assert config.training["lr_scheduler_type"] == "cosine"
    assert suite.names == ("identity", "alpaca_en")
    assert len(suite.rows("identity", "train")) <= 30
    assert suite.split.validation == 0.2
    few = ["--set", "training.max_steps=2", "--set", "training.use_cpu=true"]
    succeed("train", "mine/train.yaml", "--output", "runs/mine", *few)
    head = (tmp_path / "mine/train.yaml").read_text().partition("suite:")[0]
    assert "galore_rank" in head


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora_alpha": None}, {"scale": 2.0}),
        ({"use_rslora": True}, {"scale": 6.0}),
        ({"use_dora": True}, {"kind": "dora"}),
        ({"lora_rank": None, "lora_alpha": 16}, {"scale": 2.0}),
    ],
    ids=["alpha", "rslora", "dora", "rank"],
)
def test_scales_and_forms_are_theirs(changes, expected, theirs):
    made = convert(theirs(**changes))
    assert expected.items() <= made.train["recipe"]["structure"].items()
    assert made.train["budget"] == changes.get("lora_rank", 4) or 8


def test_other_options_have_their_places(theirs):
    made = convert(
        theirs(lora_target="all", pissa_init=True, quantization_bit=4, flash_attn="sdpa", bf16=True,
               packing=True, template=None, train_on_prompt=True)
    )  # fmt: skip
    assert made.train["model"]["target_modules"] == "all-linear"
    assert made.train["recipe"]["init"] == {"kind": "pissa"}
    assert made.train["model"]["quantization"] == {"load_in_4bit": True}
    assert made.train["model"]["attn_implementation"] == "sdpa"
    assert made.train["model"]["dtype"] == "bfloat16"
    assert made.train["model"]["prompt_loss"] is True
    assert made.train["model"]["chat"] is False
    assert made.train["packing"] is True
    assert convert(theirs(finetuning_type="full")).train["recipe"] == "full"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "dpo"}, "stage is 'dpo'; coadapt trains supervised tasks"),
        ({"finetuning_type": "freeze"}, "finetuning_type is 'freeze'"),
        ({"dataset": None}, "no training file of LLaMA-Factory"),
    ],
    ids=["stage", "freeze", "dataset"],
)
def test_what_coadapt_does_not_train_is_refused(changes, message, theirs):
    with pytest.raises(InputError, match=message):
        convert(theirs(**changes))


def test_nothing_is_overwritten(theirs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.yaml").write_text("mine: 1\n")
    assert "is there already" in refuse("import", theirs(), "--output", tmp_path / "mine")
    assert (tmp_path / "mine/train.yaml").read_text() == "mine: 1\n"
