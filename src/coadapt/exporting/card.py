"""Model cards: what was trained, how, and ten lines that load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import yaml

from coadapt._version import __version__
from coadapt.exporting.snippets import snippet
from coadapt.model import MultiTaskModel

Routes = Mapping[str, Mapping[str, Any]]

# What a task without declared labels gives.
_OUTPUT = {
    "classification": "a label",
    "regression": "a value",
    "choice": "one of the row's options",
    "generation": "a text",
}

_PROMPTS = """\
A prompt is `prompt` of `routes.json` with the row's columns filled in (`{options}`: lettered
lines), after `system` and an empty line; with `chat` both go through the tokenizer's chat template
instead. `delimiter` stands between it and an option or answer, unless it ends in white space. In
training the middle of a prompt was cut where prompt and answer had more than `max_length` tokens.
Of options, or the `words` of labels, the likeliest is taken; `generation` is how answers are
written (temperature 0: always the likeliest token), in place of the base model's
`generation_config.json`."""


def export_card(model: MultiTaskModel, routes: Routes, config: str) -> str:
    """Return the card at the top of an export.

    Args:
        model: the exported model.
        routes: of all tasks.
        config: the resolved configuration as YAML.
    """
    title = f"{len(routes)} tasks on {model.model_config.name}"
    lead = "`routes.json` says which task uses what; loading it does not need `coadapt`."
    if model.is_language_model:
        lead += f"\n\n{_PROMPTS}"
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
    whose = "its tasks' update" if model.is_language_model else "the task's update"
    lead = f"A complete float32 model: {whose} is added to the base model's weights."
    if rank is not None:
        what = "DoRA" if model.recipe.structure.ships_as == "dora" else "LoRA"
        lead = (
            f"A {what} adapter of rank {rank} (`lora_alpha` is equal: the scale is folded into B, "
            "and modules of smaller rank are filled with zeros)."
        )
        if not model.is_language_model:
            lead += " The heads lie in `heads/` of the export."
    if model.is_language_model:
        lead += " `README.md` beside `routes.json` says what a prompt is."
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
        labels = ", ".join(str(label) for label in route["labels"]) or _OUTPUT[route["kind"]]
        where = route.get("adapter") or route.get("model") or "the base model"
        head = route.get("head") or "in the model"
        cells = (task, route["kind"], labels, where, head)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows).replace("\r", " ")
