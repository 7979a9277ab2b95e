"""Language models whose factors do something, to be exported, and what reads exports."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coadapt.loading import encode_rows
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Block, Plan
from coadapt.recipes import find_recipe
from tests.adapted import fill
from tests.language.toys import ROWS
from tests.tiny_language import TASKS
from tests.tiny_language import make_model as make_plain

CONFIG = "model:\n  name: tiny\nrecipe: some"
NAMES = [task.name for task in TASKS]
PLANS = {
    "lora": Plan.shared(NAMES, 3),
    "m_lora": Plan.shared(NAMES, 4),
    "hydra_lora": Plan.shared(NAMES, 6),
    "private": Plan.private(NAMES, 6),
    "clustered": Plan(
        blocks={
            "scored": Block(rank=3, tasks=("question", "verdict")),
            "rest": Block(rank=2, tasks=("written",)),
        }
    ),
    "shared_private": Plan(
        blocks={
            "shared": Block(rank=2, tasks=tuple(NAMES)),
            **{name: Block(rank=2, tasks=(name,)) for name in NAMES},
        }
    ),
}
# The tasks that have the same update, by the name of their folder.
GROUPS = {
    "lora": {"shared": NAMES},
    "clustered": {"scored": ["question", "verdict"], "written": ["written"]},
    "shared_private": {name: [name] for name in NAMES},
    "full": {"all": NAMES},
    "frozen": {"all": NAMES},
}


def make_model(folder: Path, recipe: str, *, tasks: Any = TASKS, **config: Any) -> MultiTaskModel:
    """Return a model of a recipe whose factors are drawn."""
    plain = make_plain(folder, tasks=tasks, **config).model_config
    plan = PLANS.get(recipe) if tasks is TASKS else Plan.private([t.name for t in tasks], 6)
    model = build_model(plain, tasks, find_recipe(recipe), plan).eval()
    fill(model, seed=1)
    return model


def encoded_rows(model: MultiTaskModel, tokenizer: Any) -> dict[str, list[dict[str, Any]]]:
    """Return tokenised rows of every task."""
    return {
        task.name: encode_rows(tokenizer, model.model_config, model.kind, task, ROWS[task.name])
        for task in model.tasks
    }


def routes_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "routes.json").read_text())["tasks"]


@torch.no_grad()
def plain_logits(model: MultiTaskModel, task: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the run's logits everywhere, not by way of its readout; and the inputs."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 384, (3, 9), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = ids[:, :4]
    model.route.set(torch.full((3,), model.task_id(task)))
    return model.eval().backbone(**inputs).logits, inputs
