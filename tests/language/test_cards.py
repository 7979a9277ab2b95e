"""The code on the model cards of language models: it answers as the run does."""

import runpy

import pytest
from tokenizers.processors import TemplateProcessing

from coadapt.exporting import export_merged, export_peft
from coadapt.exporting.snippets import snippet
from coadapt.prediction import predict_texts
from coadapt.processors import load_tokenizer
from coadapt.tasks import Task
from coadapt.tasks.prompts import Generation
from tests.language.exported import CONFIG, GROUPS, make_model, routes_of
from tests.tiny_language import NOWHERE, QUESTION, VERDICT, make_tokenizer, save_model

pytestmark = [
    # Stock PEFT asks transformers 5.23 for an attribute under its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

SHORT = Generation(max_new_tokens=6, stop=("a", "is"))
ASKED = (
    QUESTION,
    VERDICT,
    Task(
        name="spelled", kind="choice", data=NOWHERE, prompt="{goal} {options} \n",
        options=("do {a}", "{b}."), label="answer",
    ),
    Task(name="pair", kind="classification", data=NOWHERE, text=("a", "b"), labels=(0, 1),
         system="It is about {topic}."),
    Task(name="short", kind="generation", data=NOWHERE, prompt="How many are {n}?", system="Say:",
         generation=SHORT),
    Task(name="talk", kind="generation", data=NOWHERE, messages="talk",
         generation=Generation(max_new_tokens=4)),
)  # fmt: skip
PREDICTED = {
    "question": {"question": "a question", "options": ["one option", "another"]},
    "verdict": {"text": "a text"},
    "spelled": {"goal": "a goal", "a": "a a", "b": "a b"},
    "pair": {"a": "a a", "b": "a b", "topic": "a topic"},
    "short": {"n": "a n"},
    "talk": {"talk": [{"role": "user", "content": "a text"}]},
}


def save_ending(folder, name):
    """Write a tiny model whose tokenizer begins and ends each text with a token."""
    base = save_model(folder, name)
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save_pretrained(base)
    return base


@pytest.mark.parametrize(
    ("name", "form", "chat"),
    [
        ("llama", "peft", False),
        ("llama-ending", "merged", False),
        ("llama-ending", "peft", True),
        ("t5", "merged", False),
        ("t5-ending", "peft", False),
        ("t5-ending", "merged", True),
    ],
)
def test_a_cards_code_answers_as_the_run_does(folder_of, tmp_path, monkeypatch, name, form, chat):
    architecture, _, ending = name.partition("-")
    base = save_ending(tmp_path / "base", architecture) if ending else folder_of(architecture)
    model = make_model(base, "private", tasks=ASKED, chat=chat)
    tokenizer = load_tokenizer(model.model_config)
    if form == "peft":
        report = export_peft(model, tmp_path / "out", card_config=CONFIG)
    else:
        report = export_merged(model, tokenizer, tmp_path / "out", card_config=CONFIG)
    monkeypatch.chdir(report.folder)
    for task, route in routes_of(report.folder).items():
        (tmp_path / "snippet.py").write_text(snippet(model, task, route))
        found = runpy.run_path(str(tmp_path / "snippet.py"))
        (own,) = predict_texts(model, tokenizer, [PREDICTED[task]], task)
        match route["kind"]:
            case "generation":
                assert found["answer"].strip() == own["text"]
            case "choice":
                assert found["logits"].tolist() == pytest.approx(own["log_likelihoods"], abs=1e-3)
            case "classification":
                shares = found["logits"].softmax(0).tolist()
                assert shares == pytest.approx([*own["probabilities"].values()], abs=1e-3)


@pytest.mark.parametrize("form", ["peft", "merged"])
@pytest.mark.parametrize("recipe", ["frozen", "clustered"])
def test_every_card_has_its_code(folder_of, tmp_path, monkeypatch, form, recipe):
    model = make_model(folder_of("llama"), recipe)
    out = tmp_path / "out"
    if form == "peft":
        export_peft(model, out, card_config=CONFIG)
    else:
        export_merged(model, load_tokenizer(model.model_config), out, card_config=CONFIG)
    monkeypatch.chdir(out)
    cards = list(out.rglob("README.md"))
    assert len(cards) == 1 + (0 if (form, recipe) == ("peft", "frozen") else len(GROUPS[recipe]))
    for card in cards:
        text = card.read_text()
        (tmp_path / "snippet.py").write_text(text.split("```python\n")[1].split("```")[0])
        found = runpy.run_path(str(tmp_path / "snippet.py"))
        assert "answer" in found or found["logits"].isfinite().all()
    card = (out / "README.md").read_text()
    assert "`generation` is how answers are" in card
    assert "| written | generation | a text |" in card
