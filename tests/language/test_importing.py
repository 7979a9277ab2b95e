"""Adapters from elsewhere, and tasks that come and go, on language models."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from coadapt._errors import InputError
from coadapt.exporting import export_peft
from coadapt.exporting.layout import load_fresh
from coadapt.importing import with_task, without_task
from coadapt.prediction import predict_texts
from coadapt.tasks import Task
from tests.language.exported import CONFIG, NAMES, make_model, plain_logits
from tests.peft_folders import peft_folder
from tests.tiny_language import NOWHERE

pytestmark = [
    # Stock PEFT asks transformers 5.23 for an attribute under its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

NEW = Task(name="new", kind="generation", data=NOWHERE, prompt="{q}?")


@pytest.mark.parametrize(
    ("name", "auto", "config"),
    [
        ("llama", AutoModelForCausalLM, {"task_type": "CAUSAL_LM"}),
        ("t5", AutoModelForSeq2SeqLM, {"target_modules": ["q", "v"], "use_rslora": True}),
    ],
    ids=["llama", "t5"],
)
@pytest.mark.filterwarnings("ignore:.*rslora:UserWarning")
def test_an_imported_adapter_gives_pefts_logits(folder_of, tmp_path, name, auto, config):
    folder = peft_folder(folder_of(name), tmp_path / "adapter", auto, **config)
    model = with_task(make_model(folder_of(name), "shared_private"), NEW, adapter=folder, rank=5)
    own, inputs = plain_logits(model, "new")
    stock = PeftModel.from_pretrained(load_fresh(auto, model.model_config), folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, own, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_a_model_without_its_head_fits(folder_of, tmp_path):
    """PEFT names modules from the model it was given: there is no ``model.`` before them."""
    folders = [
        peft_folder(folder_of("llama"), tmp_path / auto.__name__, auto)
        for auto in (AutoModel, AutoModelForCausalLM)
    ]
    bare, whole = (
        plain_logits(with_task(make_model(folder_of("llama"), "private"), NEW, adapter=f), "new")[0]
        for f in folders
    )
    assert torch.equal(bare, whole)


def test_an_export_comes_back_as_an_import(folder_of, tmp_path):
    model = make_model(folder_of("llama"), "shared_private")
    expected, _ = plain_logits(model, "verdict")
    export = export_peft(model, tmp_path / "out", card_config=CONFIG).folder
    again = make_model(folder_of("llama"), "private")
    model = with_task(again, NEW, adapter=export / "adapters/verdict")
    torch.testing.assert_close(plain_logits(model, "new")[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recipe", ["lora", "private", "shared_private", "frozen", "full"])
def test_a_new_task_leaves_the_others_bit_equal(folder_of, tokenizer, recipe):
    model = make_model(folder_of("llama"), recipe)
    before = {task: plain_logits(model, task)[0] for task in NAMES}
    model = with_task(model, NEW)
    assert model.task_names == (*NAMES, "new")
    for task in NAMES:
        assert torch.equal(plain_logits(model, task)[0], before[task])
    assert next(predict_texts(model, tokenizer, ["A dog"], "new")).keys() == {"text"}
    model = without_task(model, NAMES[0])
    for task in NAMES[1:]:
        assert torch.equal(plain_logits(model, task)[0], before[task])
    loss = model(
        input_ids=torch.ones(1, 3).long(),
        attention_mask=torch.ones(1, 3).long(),
        labels=torch.ones(1, 3).long(),
        task_ids=torch.tensor([model.task_id("new")]),
    )["loss"]
    assert loss.isfinite()


def test_refused_tasks_leave_the_model_usable(folder_of, tmp_path):
    model = make_model(folder_of("llama"), "private")
    before, _ = plain_logits(model, "verdict")
    value = Task(name="value", kind="regression", data=NOWHERE)
    unlabelled = Task(name="unlabelled", kind="classification", data=NOWHERE)
    for message, call in {
        "a regression needs an encoder": lambda: with_task(model, value),
        "no labels yet": lambda: with_task(model, unlabelled),
        "has no heads, so .*head.safetensors": lambda: with_task(
            model, NEW, head=tmp_path / "head.safetensors"
        ),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
    assert torch.equal(plain_logits(model, "verdict")[0], before)
