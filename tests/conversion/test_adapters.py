"""PEFT adapters become a run that says what stock PEFT says."""

import json
import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, BertForSequenceClassification

from coadapt import InputError, load_run
from coadapt.conversion import import_adapters
from coadapt.tasks import load_suite
from tests.invoking import refuse, succeed
from tests.peft_folders import peft_folder
from tests.tiny_language import make_tokenizer, save_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    for task in ("sums", "names", "dates"):
        rows = [{"q": f"{task} {i} of many?", "answer": f"it is {i}"} for i in range(30)]
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = "".join(
        f"  {t}: {{kind: generation, data: {t}.jsonl, prompt: '{{q}}', label: answer,\n"
        "    generation: {max_new_tokens: 5}}\n"
        for t in ("sums", "names", "dates")
    )
    (folder / "suite.yaml").write_text(f"tasks:\n{tasks}")
    return folder / "suite.yaml"


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Of two ranks, scales and sets of modules; the second with rsLoRA."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    folder = tmp_path_factory.mktemp("adapters")
    first = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    second = {"r": 2, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}
    return {
        name: peft_folder(base, folder / name, auto=AutoModelForCausalLM, **config)
        for name, config in (("sums", first), ("names", second))
    }


def logits(model, text):
    batch = make_tokenizer()(text, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def test_the_run_answers_as_stock_peft(base, suite_file, adapters, tmp_path):
    folders = {**adapters, "dates": adapters["sums"]}  # two tasks through one adapter
    model = {"name": str(base), "dtype": "float32", "max_length": 64}
    run = import_adapters(folders, load_suite(suite_file), model, tmp_path / "run")
    assert run.config.plan is not None
    assert {n: (b.rank, b.tasks) for n, b in run.config.plan.blocks.items()} == {
        "sums": (4, ("sums", "dates")),
        "names": (2, ("names",)),
    }
    opened = load_run(tmp_path / "run")
    for task, folder in folders.items():
        stock = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        merged = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        fold = opened.model.fold(task)
        for name, (A, B) in fold.items():
            merged.get_submodule(name).get_parameter("weight").data += B @ A
        text = "sums 3 of many?"
        torch.testing.assert_close(logits(merged, text), logits(stock, text), rtol=1e-4, atol=1e-4)
    # And it is a run like any other.
    assert set(opened.evaluate()) == set(folders)
    opened.export(tmp_path / "out")
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        tmp_path / "out/adapters/names",
    )
    stock = AutoPeftModelForCausalLM.from_pretrained(adapters["names"], dtype=torch.float32)
    torch.testing.assert_close(
        logits(again.eval(), "x y"), logits(stock.eval(), "x y"), atol=1e-4, rtol=1e-4
    )


def test_an_encoder_s_classifier_becomes_the_head(tiny_bert, toy_suite_dict, tmp_path):
    from peft import LoraConfig, TaskType, get_peft_model

    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, lora_alpha=4, target_modules=["query"])
    stock = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    stock.save_pretrained(str(tmp_path / "sentiment"))
    suite = load_suite({"tasks": {"sentiment": toy_suite_dict["tasks"]["sentiment"]}})
    base = {"name": str(tiny_bert), "dtype": "float32", "max_length": 32, "pooling": "pooler"}
    run = import_adapters({"sentiment": tmp_path / "sentiment"}, suite, base, tmp_path / "run")
    text = "a superb apple"
    batch = run.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        expected = stock.eval()(**batch).logits.softmax(-1)[0]
    [found] = run.predict([text], task="sentiment")
    labels = run.suite.task("sentiment").labels
    assert [found["probabilities"][str(label)] for label in labels] == pytest.approx(
        expected.tolist(), abs=1e-5
    )


def test_an_adapter_without_a_head_is_refused_for_an_encoder(tiny_bert, toy_suite_dict, tmp_path):
    folder = peft_folder(tiny_bert, tmp_path / "a", target_modules=["query"])
    suite = load_suite({"tasks": {"sentiment": toy_suite_dict["tasks"]["sentiment"]}})
    with pytest.raises(InputError, match="no linear classifier was saved beside the factors"):
        import_adapters({"sentiment": folder}, suite, str(tiny_bert), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command(base, suite_file, adapters, tmp_path):
    told = succeed(
        "import", f"dates={adapters['sums']}", adapters["names"], "--suite", suite_file,
        "--tasks", "dates,names", "--model", base, "--output", tmp_path / "run",
    )  # fmt: skip
    assert "dates: rank 4" in told
    assert load_run(tmp_path / "run").suite.names == ("dates", "names")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{names}", "--output", "x"], "need --suite"),
        (["gone", "--suite", "{suite}", "--model", "m", "--output", "x"], "is no PEFT adapter"),
        (
            ["{names}", "--suite", "{suite}", "--model", "{base}", "--output", "x"],
            "adapters are given for names, the suite's tasks are sums, names, dates",
        ),
    ],
    ids=["suite", "gone", "tasks"],
)
def test_what_cannot_be(words, message, base, suite_file, adapters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"names": adapters["names"], "suite": suite_file, "base": base}
    assert message in refuse("import", *(word.format(**places) for word in words))
    assert list(tmp_path.iterdir()) == []
