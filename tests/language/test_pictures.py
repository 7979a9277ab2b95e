"""Image-text models: pictures in rows, prompts, scores, exports; adapters in the language alone."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import coadapt
from coadapt import InputError
from coadapt.adapters import target_names
from coadapt.backbone import ModelConfig, load_backbone, model_kind
from coadapt.exporting import verify_peft
from coadapt.language import generate_texts, score_options
from coadapt.loading import Loader, encode_rows
from coadapt.processors import load_processor
from coadapt.recipes import RECIPES
from coadapt.runs import Run, load_run
from coadapt.tasks import load_suite
from coadapt.tasks.language import LanguageCollator
from tests.invoking import refuse, succeed
from tests.tiny_language import save_model, write_jsonl
from tests.tiny_pictures import PLACES, picture_suite, save_llava

pytestmark = [
    # Stock PEFT asks transformers 5.23 for an attribute under its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 6,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return picture_suite(tmp_path_factory.mktemp("pictures"))


def config_of(llava, **fields: Any) -> dict[str, Any]:
    return {"name": str(llava), "dtype": "float32", "max_length": 80, **fields}


@pytest.fixture(scope="module")
def run(llava, suite, tmp_path_factory) -> Run:
    """Of two steps, a shared block and one a task in every map of the language part."""
    output = tmp_path_factory.mktemp("runs") / "run"
    model = config_of(llava, target_modules="all-linear")
    return coadapt.train(model, suite, "shared_private", output=output, budget=8, training=TRAINING)


def rows_of(suite: dict[str, Any]) -> tuple[list[dict[str, Any]], Path]:
    """Return the suite's rows, and the folder of their pictures."""
    file = Path(suite["tasks"]["pick"]["data"])
    return [json.loads(line) for line in file.read_text().splitlines()], file.parent


def encoded_of(run: Run, task: str, number: int = 4) -> list[dict[str, Any]]:
    return run._loader.encoded(run.config.model, run.suite, task, "test")[:number]


# Where adapters go -------------------------------------------------------------------------------


def test_the_kind_is_told_by_the_architecture(llava, tmp_path):
    assert model_kind(ModelConfig(name=str(llava))) == "image-text"
    assert model_kind(ModelConfig(name=str(save_model(tmp_path / "llama", "llama")))) == "decoder"


@pytest.mark.parametrize(
    "targets", ["attention", "mlp", "all-linear", ["q_proj"], r".*fc1|.*q_proj"]
)
def test_adapters_are_in_the_language_part_alone(targets, llava):
    backbone, _ = load_backbone(ModelConfig(name=str(llava)), torch.float32)
    found = target_names(backbone, targets)
    assert found
    assert all(name.startswith("model.language_model.") for name in found)


@pytest.mark.parametrize("targets", [["fc1"], r".*vision_tower.*"])
def test_the_tower_is_refused(targets, llava):
    backbone, _ = load_backbone(ModelConfig(name=str(llava)), torch.float32)
    with pytest.raises(InputError, match="target_modules"):
        target_names(backbone, targets)


# What a row becomes ------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_is_what_the_processor_makes_of_it(chat, llava, suite):
    config = ModelConfig(name=str(llava), max_length=80, chat=chat)
    loaded = load_suite(suite)
    items = Loader().encoded(config, loaded, "name", "train")
    processor, rows = AutoProcessor.from_pretrained(llava), loaded.rows("name", "train")
    assert rows.pictures is not None
    for item, text, picture in zip(items, rows.texts, rows.pictures, strict=True):
        assert picture is not None
        parts = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = f"<image>\n{text}"
        if chat:
            talk = [{"role": "user", "content": parts}]
            prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
        made = processor(text=[prompt], images=[picture.open()], return_tensors="pt")
        assert item["prompt"] == made["input_ids"][0].tolist()
        assert item["prompt"].count(processor.image_token_id) == PLACES
        batch = LanguageCollator(0)([{**item, "task_id": 0}])
        assert torch.equal(batch["pixel_values"], made["pixel_values"])


def test_a_picture_has_one_split_whatever_is_asked_of_it(tmp_path):
    rows = []
    for index in range(60):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"{index}.png")
        rows += [{"image": f"{index}.png", "q": f"q {k} {index}", "y": k} for k in range(2)]
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    task = {"kind": "classification", "data": data, "prompt": "{q}", "image": "image", "label": "y"}
    loaded = load_suite({"tasks": {"a": task}})
    digests = []
    for split in ("train", "validation", "test"):
        found = loaded.rows("a", split).pictures
        assert found is not None
        digests.append({picture.digest for picture in found if picture})
    assert sum(map(len, digests)) == 60
    assert sum(len(loaded.rows("a", split)) for split in ("train", "validation", "test")) == 120


def test_rows_without_a_picture_are_text(llava, suite, tmp_path):
    rows, folder = rows_of(suite)
    for index, row in enumerate(rows):
        row["image"] = None if index % 2 else f"{folder}/{row['image']}"
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    tasks = {"pick": {**suite["tasks"]["pick"], "data": data}}
    run = coadapt.train(
        config_of(llava), {"tasks": tasks}, output=tmp_path / "run", budget=2, training=TRAINING
    )
    items = run._loader.encoded(run.config.model, run.suite, "pick", "test")
    assert {"picture" in item for item in items} == {True, False}
    together = score_options(run.model, items, "pick")
    for item, scores in zip(items, together, strict=True):
        np.testing.assert_allclose(score_options(run.model, [item], "pick")[0], scores, atol=1e-4)


# Scores and answers ------------------------------------------------------------------------------


def test_options_after_the_prompt_score_as_options_with_it(run):
    items = encoded_of(run, "pick")
    after = score_options(run.model, items, "pick")
    whole = score_options(run.model, items, "pick", reuse_prompt=False)
    for one, other in zip(after, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_scores_are_those_of_the_stock_forward(run):
    [item] = encoded_of(run, "name", 1)
    pixels = item["pixels"]([item["picture"]])
    for option, score in zip(
        item["options"], score_options(run.model, [item], "name")[0], strict=True
    ):
        ids = torch.tensor([[*item["prompt"], *option]])
        run.model.route.set(torch.tensor([run.model.task_id("name")]))
        with torch.no_grad():
            logits = run.model.backbone(input_ids=ids, **pixels).logits[0, -len(option) - 1 : -1]
        wanted = logits.log_softmax(-1)[range(len(option)), torch.tensor(option)].sum()
        assert score == pytest.approx(float(wanted), abs=1e-4)


def test_another_picture_gives_other_scores(run):
    one, other = encoded_of(run, "pick", 2)
    swapped = {**one, "picture": other["picture"]}
    first, second = (score_options(run.model, [item], "pick")[0] for item in (one, swapped))
    assert np.abs(first - second).max() > 1e-4


def test_written_answers_are_those_of_generate(run):
    items = encoded_of(run, "say", 3)
    how = run.suite.task("say").generation
    together = generate_texts(run.model, run.tokenizer, items, "say", how)
    alone = [generate_texts(run.model, run.tokenizer, [item], "say", how)[0] for item in items]
    assert together == alone


def test_a_run_opened_again_predicts_the_same(run, suite):
    _, folder = rows_of(suite)
    row = {"q": "Which?", "options": ["red", "blue"], "image": f"{folder}/3.png"}
    again = load_run(run.path).predict([row], task="pick")
    assert again == run.predict([row], task="pick")


# Every recipe of the LoRA family -----------------------------------------------------------------

FAMILY = [
    name
    for name, recipe in RECIPES.items()
    if recipe.recipe.structure.kind
    in ("single", "bank", "heads", "routed_heads", "experts", "dora")
    and not name.startswith("lora+")  # a balancing looks at losses alone
]


@pytest.mark.parametrize("recipe", FAMILY)
def test_a_recipe_trains_on_pictures(recipe, llava, suite, tmp_path):
    plan = {
        "blocks": {"a": {"rank": 4, "tasks": ["name", "pick"]}, "b": {"rank": 4, "tasks": ["say"]}}
    }
    how: dict[str, Any] = {"plan": plan} if recipe == "clustered" else {"budget": 8}
    if recipe == "lora_hub":
        how = {"budget": 9}
    run = coadapt.train(
        config_of(llava), suite, recipe, output=tmp_path / "run", **how, training=TRAINING
    )
    row = encoded_of(run, "pick", 1)
    before = score_options(run.model, row, "pick")[0]
    again = score_options(load_run(run.path).model, row, "pick")[0]
    np.testing.assert_array_equal(before, again)


# Exports -----------------------------------------------------------------------------------------


def test_stock_peft_answers_as_the_run(run, tmp_path):
    run.export(tmp_path / "peft")
    rows = {task: encoded_of(run, task) for task in run.suite.names}
    found = verify_peft(run.model, run.tokenizer, tmp_path / "peft", rows)
    assert max(found.values()) < 1e-4
    routes = json.loads((tmp_path / "peft/routes.json").read_text())["tasks"]
    assert {route["image"] for route in routes.values()} == {"image"}


def test_a_merged_model_answers_as_the_run(run, tmp_path):
    run.export(tmp_path / "merged", format="merged")
    [item] = encoded_of(run, "pick", 1)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged/models/pick").eval()
    assert AutoProcessor.from_pretrained(tmp_path / "merged/models/pick").image_token == "<image>"
    pixels = item["pixels"]([item["picture"]])
    for option, score in zip(
        item["options"], score_options(run.model, [item], "pick")[0], strict=True
    ):
        ids = torch.tensor([[*item["prompt"], *option]])
        with torch.no_grad():
            logits = stock(input_ids=ids, **pixels).logits[0, -len(option) - 1 : -1]
        wanted = logits.log_softmax(-1)[range(len(option)), torch.tensor(option)].sum()
        assert score == pytest.approx(float(wanted), abs=1e-4)


@pytest.mark.parametrize("form", ["peft", "merged"])
@pytest.mark.parametrize("task", ["name", "say"])
def test_a_cards_code_answers_as_the_run(form, task, run, suite, tmp_path, monkeypatch, capsys):
    run.export(tmp_path / "out", format=form)
    part = next((tmp_path / "out").glob(f"*/{task}/README.md"))
    [code] = re.findall(r"```python\n(.*?)```", part.read_text(encoding="utf-8"), re.DOTALL)
    shutil.copy(rows_of(suite)[1] / "3.png", tmp_path / "out/picture.png")
    (tmp_path / "out/card.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "out")
    runpy.run_path("card.py")
    [answer] = run.predict([{"q": "a q", "image": "picture.png"}], task=task)
    assert capsys.readouterr().out.strip() == answer.get("label", answer.get("text"))


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"), [(b"no png", "does not open"), (None, "there is no picture")]
)
def test_a_picture_that_does_not_open_is_named_with_its_row(content, message, suite, tmp_path):
    rows, folder = rows_of(suite)
    for row in rows:
        row["image"] = f"{folder}/{row['image']}"
    rows[4]["image"] = "bad.png"
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=message) as raised:
        load_suite({"tasks": {"pick": {**suite["tasks"]["pick"], "data": str(data)}}}).rows(
            "pick", "test"
        )
    assert f"{data}, line 5" in str(raised.value)
    assert str(tmp_path / "bad.png") in str(raised.value)


def test_pictures_need_a_model_that_reads_them(suite, tmp_path):
    llama = save_model(tmp_path / "llama", "llama")
    with pytest.raises(InputError, match=r"has pictures .*take an image-text model"):
        coadapt.train(config_of(llama), suite, output=tmp_path / "run", training=TRAINING)


def test_a_picture_is_not_cut(llava, suite):
    config, loaded = ModelConfig(name=str(llava), max_length=24), load_suite(suite)
    rows = loaded.rows("say", "train")
    processor = AutoProcessor.from_pretrained(llava)
    with pytest.raises(InputError, match="with its picture does not fit into max_length 24"):
        encode_rows(processor.tokenizer, config, "image-text", loaded.task("say"), rows)


def test_a_folder_without_a_processor_is_told(llava, suite, tmp_path):
    backbone, _ = load_backbone(ModelConfig(name=str(llava)), torch.float32)
    backbone.save_pretrained(tmp_path / "bare")
    AutoProcessor.from_pretrained(llava).tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="no processor"):
        coadapt.train(
            config_of(tmp_path / "bare"), suite, output=tmp_path / "run", training=TRAINING
        )


@pytest.mark.parametrize(
    "field", [{"kind": "regression"}, {"kind": "generation", "messages": "talk", "prompt": None}]
)
def test_kinds_that_show_no_pictures(field, suite):
    fields = {"data": suite["tasks"]["say"]["data"], "image": "image", "label": "colour", **field}
    with pytest.raises(InputError, match="'image' is for prompts of text"):
        load_suite({"tasks": {"a": fields}})


def test_packing_is_refused(llava, suite, tmp_path):
    with pytest.raises(InputError, match="pictures cannot be packed"):
        coadapt.train(
            config_of(llava), suite, output=tmp_path / "run", training=TRAINING, packing=True
        )


def test_commands(run, suite, tmp_path):
    """What a user types: predictions of a file, and a check of the server."""
    _, folder = rows_of(suite)
    row = {"q": "Which?", "options": ["red", "blue"], "image": f"{folder}/3.png"}
    file = write_jsonl(tmp_path / "new.jsonl", [row])
    told = succeed("predict", run.path, "--task", "pick", "--input", file)
    assert json.loads(told.splitlines()[-1])["option"] in ("red", "blue")
    assert "there is no picture" in refuse(
        *("predict", run.path, "--task", "pick", "--input"),
        write_jsonl(tmp_path / "gone.jsonl", [{**row, "image": "gone.png"}]),
    )


def test_a_frozen_model_s_adapter_learns_to_see(llava, tmp_path):
    """Colours of pictures, from random features: above the most frequent one, with an interval."""
    tasks = picture_suite(tmp_path, rows=150)["tasks"]
    run = coadapt.train(
        config_of(llava, target_modules="all-linear"),
        {"tasks": {"name": tasks["name"]}},
        output=tmp_path / "run",
        budget=16,
        training={**TRAINING, "max_steps": 60, "per_device_train_batch_size": 16},
    )
    score = run.evaluate()["name"].metrics["accuracy"]
    labels = run.suite.rows("name", "test").labels
    assert score.low > np.bincount(labels).max() / len(labels)


def test_without_pillow_the_extra_is_named(suite, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=re.escape('pip install "coadapt[vision]"')):
        load_suite(suite).rows("pick", "train")
    with pytest.raises(InputError, match=re.escape('pip install "coadapt[vision]"')):
        load_processor(ModelConfig(name="never-looked-for"))
