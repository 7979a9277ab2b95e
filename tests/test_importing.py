"""Adapters from elsewhere, and tasks that come and go beside others."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from coadapt._errors import InputError
from coadapt.evaluation import predict_outputs
from coadapt.exporting import export_peft, verify_peft
from coadapt.exporting.layout import load_fresh
from coadapt.importing import read_peft_adapter, with_task, without_task
from coadapt.tasks import Task
from coadapt.tasks.render import Collator
from tests.adapted import NAMES, NOWHERE, PLANS, TASKS, adapted, encoded_rows
from tests.peft_folders import peft_folder

pytestmark = [
    # Stock PEFT asks transformers 5.23 for an attribute under its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

ONES = torch.ones(32)
NEW = Task(name="new.one", kind="classification", data=NOWHERE, labels=("a", "b"))


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@torch.no_grad()
def outputs_of(model, tokenizer, task):
    return predict_outputs(model, Collator(tokenizer), encoded_rows(tokenizer, task), task.name)


def tensor_outputs(model, tokenizer, task):
    return torch.from_numpy(outputs_of(model, tokenizer, task))


def rank_in_plan(model, block):
    assert model.plan is not None
    return model.plan.blocks[block].rank


def head_file(path, classes=2):
    generator = torch.Generator().manual_seed(8)
    head = {
        "weight": torch.randn(classes, 32, generator=generator),
        "bias": torch.randn(classes, generator=generator),
    }
    save_file(head, path)
    return path


PATTERNS = {"rank_pattern": {"layer.0.attention.self.query": 7}, "alpha_pattern": {"value": 11}}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        PATTERNS,
        {"use_rslora": True, **PATTERNS},
        {"init_lora_weights": "gaussian", "target_modules": ["query"]},
    ],
    ids=["plain", "rslora", "patterns", "rslora-patterns", "subset"],
)
@pytest.mark.parametrize(("recipe", "offset"), [("private", False), ("shared_private", True)])
@pytest.mark.filterwarnings("ignore:.*rslora:UserWarning")
def test_an_imported_adapter_gives_pefts_logits(
    tiny_bert, tokenizer, tmp_path, config, recipe, offset
):
    folder = peft_folder(tiny_bert, tmp_path / "adapter", **config)
    head = head_file(tmp_path / "head.safetensors")
    model = with_task(
        adapted(tiny_bert, recipe, offset=offset), NEW, adapter=folder, head=head, rank=9
    )
    stock = PeftModel.from_pretrained(load_fresh(AutoModel, model.model_config), folder).eval()
    batch = Collator(tokenizer)(
        [{**row, "task_id": 0, "label": 0.0} for row in encoded_rows(tokenizer, NEW)]
    )
    del batch["task_ids"], batch["labels"]
    with torch.no_grad():
        hidden, mask = stock(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        expected = pooled @ load_file(head)["weight"].T + load_file(head)["bias"]
    found = tensor_outputs(model, tokenizer, NEW).float()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert rank_in_plan(model, "new.one") == 9


def test_an_export_comes_back_as_an_import(tiny_bert, tokenizer, tmp_path):
    model = adapted(tiny_bert, "shared_private", offset=True)
    expected = tensor_outputs(model, tokenizer, TASKS[1])
    export = export_peft(model, tmp_path / "out", card_config="").folder
    again = Task(name="again", kind="classification", data=NOWHERE, labels=(0, 1), text=("a", "b"))
    model = with_task(
        adapted(tiny_bert, "private"),
        again,
        adapter=export / "adapters/same",
        head=export / "heads/same.safetensors",
    )
    found = tensor_outputs(model, tokenizer, again)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_grown_model_exports(tiny_bert, tokenizer, tmp_path):
    folder = peft_folder(tiny_bert, tmp_path / "adapter")
    model = with_task(adapted(tiny_bert, "clustered"), NEW, adapter=folder)
    report = export_peft(model, tmp_path / "out", card_config="")
    rows = {task.name: encoded_rows(tokenizer, task) for task in model.tasks}
    assert max(verify_peft(model, tokenizer, report.folder, rows).values()) < 1e-4
    assert report.tasks["new.one"] == "adapters/new.one"


def test_an_adapter_of_a_model_with_a_head_fits(tiny_bert, tokenizer, tmp_path):
    """PEFT names modules from the model it was given: there is a ``bert.`` before them."""
    auto = AutoModelForSequenceClassification
    folder = peft_folder(tiny_bert, tmp_path / "with_head", auto=auto)
    plain = peft_folder(tiny_bert, tmp_path / "plain")
    assert any(".model.bert." in key for key in load_file(folder / "adapter_model.safetensors"))
    found = with_task(adapted(tiny_bert, "private"), NEW, adapter=folder)
    same = with_task(adapted(tiny_bert, "private"), NEW, adapter=plain)
    assert torch.equal(tensor_outputs(found, tokenizer, NEW), tensor_outputs(same, tokenizer, NEW))


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("recipe", PLANS)
def test_a_new_task_leaves_the_others_bit_equal(tiny_bert, tokenizer, recipe, offset):
    model = adapted(tiny_bert, recipe, offset=offset)
    before = {task.name: tensor_outputs(model, tokenizer, task) for task in TASKS}
    grown = with_task(model, NEW)
    for task in TASKS:
        assert torch.equal(tensor_outputs(grown, tokenizer, task), before[task.name])
    assert grown.backbone is model.backbone
    assert grown.base_fingerprint == model.base_fingerprint
    assert grown.task_names == (*NAMES, "new.one")
    assert tensor_outputs(grown, tokenizer, NEW).isfinite().all()
    back = without_task(grown, "new.one")
    assert back.plan == model.plan
    for name, tensor in back.state_tensors().items():
        assert torch.equal(tensor, model.state_tensors()[name]), name


@pytest.mark.parametrize("recipe", ["frozen", "full"])
def test_tasks_come_and_go_where_there_are_no_blocks(tiny_bert, tokenizer, recipe):
    model = adapted(tiny_bert, recipe)
    before = {task.name: tensor_outputs(model, tokenizer, task) for task in TASKS}
    fingerprint = model.base_fingerprint
    model = without_task(with_task(model, NEW), NAMES[0])
    for task in TASKS[1:]:
        assert torch.equal(tensor_outputs(model, tokenizer, task), before[task.name])
    assert model.base_fingerprint == fingerprint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", PLANS)
def test_removing_a_task_leaves_the_others_bit_equal(tiny_bert, tokenizer, recipe, name):
    model = adapted(tiny_bert, recipe, offset=True)
    before = {task.name: tensor_outputs(model, tokenizer, task) for task in TASKS}
    shorter = without_task(model, name)
    assert name not in shorter.task_names
    for task in TASKS:
        if task.name != name:
            assert torch.equal(tensor_outputs(shorter, tokenizer, task), before[task.name])


def test_the_new_model_keeps_mode_and_trains(tiny_bert):
    model = with_task(adapted(tiny_bert, "private").train(), NEW, rank=3)
    assert model.training
    assert all(p.requires_grad for layer in model.attached.layers.values() for p in layer.A)
    assert not model.backbone.get_parameter("embeddings.word_embeddings.weight").requires_grad


def test_rank_of_a_new_block(tiny_bert):
    assert rank_in_plan(with_task(adapted(tiny_bert, "private"), NEW), "new.one") == 2
    assert rank_in_plan(with_task(adapted(tiny_bert, "private"), NEW, rank=5), "new.one") == 5
    for recipe in ("lora", "frozen"):
        with pytest.warns(UserWarning, match="rank=5 has no effect"):
            with_task(adapted(tiny_bert, recipe), NEW, rank=5)


def test_refused_tasks_leave_the_model_usable(tiny_bert, tokenizer, tmp_path):
    model = adapted(tiny_bert, "private")
    before = tensor_outputs(model, tokenizer, TASKS[0])
    adapter = peft_folder(tiny_bert, tmp_path / "adapter")
    other = peft_folder(tiny_bert, tmp_path / "other", target_modules=["key"])
    unlabelled = Task(name="unlabelled", kind="classification", data=NOWHERE)
    for message, call in {
        "has task 'same' already": lambda: with_task(model, TASKS[1]),
        "no labels yet": lambda: with_task(model, unlabelled),
        "rank 4, more than rank=2": lambda: with_task(model, NEW, adapter=adapter, rank=2),
        "adapts module '.*key', which this": lambda: with_task(model, NEW, adapter=other),
        "no task 'sane'; did you mean 'same'": lambda: without_task(model, "sane"),
        "needs \\(2, 32\\)": lambda: with_task(model, NEW, head=head_file(tmp_path / "h", 3)),
        "does not exist": lambda: with_task(model, NEW, head=tmp_path / "none"),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
    assert torch.equal(tensor_outputs(model, tokenizer, TASKS[0]), before)


@pytest.mark.parametrize("recipe", ["lora", "frozen", "full"])
def test_an_import_needs_a_block_of_its_own(tiny_bert, tmp_path, recipe):
    folder = peft_folder(tiny_bert, tmp_path / "adapter")
    with pytest.raises(InputError, match="train with recipe private, clustered"):
        with_task(adapted(tiny_bert, recipe), NEW, adapter=folder)


def test_the_last_task_stays(tiny_bert):
    model = adapted(tiny_bert, "frozen", tasks=TASKS[:1])
    with pytest.raises(InputError, match="only task"):
        without_task(model, NAMES[0])


def test_read_folds_the_scale(tiny_bert, tmp_path):
    adapter = read_peft_adapter(peft_folder(tiny_bert, tmp_path / "a", **PATTERNS))
    assert adapter.r == 7
    stored = load_file(tmp_path / "a/adapter_model.safetensors")
    for name, (A, B) in adapter.factors.items():
        raw_A, raw_B = (stored[f"base_model.model.{name}.lora_{f}.weight"] for f in "AB")
        rank = 7 if name == "encoder.layer.0.attention.self.query" else 4
        alpha = 11 if name.endswith("value") else 6
        assert torch.equal(A, raw_A)
        assert A.shape[0] == rank
        torch.testing.assert_close(B, raw_B * alpha / rank)


@pytest.fixture(scope="module")
def written(tiny_bert, tmp_path_factory):
    return peft_folder(tiny_bert, tmp_path_factory.mktemp("adapter"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "a bias in B"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "only LORA"),
        ({"peft_type": None}, "only LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "edits the base model; convert"),
        ({"kasa_config": {"beta": 1.0}}, "KaSA"),
        ({"r": 8}, "has rank 4, its configuration says 8"),
    ],
    ids=str,
)
def test_other_adapters_are_refused(written, tmp_path, change, message):
    folder = shutil.copytree(written, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message):
        read_peft_adapter(folder)


def remove(folder):
    (folder / "adapter_model.safetensors").unlink()


def pickle_instead(folder):
    remove(folder)
    (folder / "adapter_model.bin").write_bytes(b"")


def truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_config(folder):
    (folder / "adapter_config.json").unlink()


def break_config(folder):
    (folder / "adapter_config.json").write_text("{")


def foreign_config(folder):
    (folder / "adapter_config.json").write_text("[]")


def edit_tensors(folder, edit):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors, next(key for key in tensors if "lora_A" in key))
    save_file(tensors, path)


def drop_factor(folder):
    edit_tensors(folder, lambda tensors, key: tensors.pop(key))


def other_rank(folder):
    edit_tensors(folder, lambda tensors, key: tensors.update({key: tensors[key][:2].clone()}))


def magnitude(folder):
    edit_tensors(folder, lambda tensors, _: tensors.update({"x.lora_magnitude_vector": ONES}))


def empty(folder):
    edit_tensors(folder, lambda tensors, _: tensors.clear())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "adapter_model.safetensors does not exist"),
        (pickle_instead, "a pickle, which coadapt does not open"),
        (truncate, "truncated or no safetensors"),
        (drop_config, "adapter_config.json does not exist"),
        (break_config, "not readable JSON"),
        (foreign_config, "no 'peft_type'"),
        (drop_factor, "needs lora_A"),
        (other_rank, "needs lora_A"),
        (magnitude, "no factor of a LoRA"),
        (empty, "holds no factors"),
    ],
)
def test_damaged_folders_are_refused(written, tmp_path, damage, message):
    folder = shutil.copytree(written, tmp_path / "adapter")
    damage(folder)
    with pytest.raises(InputError, match=message):
        read_peft_adapter(folder)
