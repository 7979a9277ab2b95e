"""What a vLLM server takes and refuses, as far as its sources and issues tell.

Read, not run: ``vllm/config/lora.py`` (ranks), ``vllm/lora/peft_helper.py`` (the configuration),
``vllm/lora/lora_model.py`` (the tensors), and its maintainers' words in issues, up to 2026-09.
"""

from collections.abc import Iterator, Mapping

from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from coadapt.exporting.report import Finding
from coadapt.model import MultiTaskModel

VLLM_FILE = "vllm.json"

# vllm/config/lora.py, MaxLoRARanks; the default of --max-lora-rank is 16.
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_RANK = 16


def served_rank(rank: int) -> int:
    """Return the next rank that a server can be started for, or ``rank`` if it is above all."""
    return next((served for served in SERVED_RANKS if served >= rank), rank)


def vllm_findings(model: MultiTaskModel, ranks: Mapping[str, int]) -> tuple[Finding, ...]:
    """Return what a server would say to an export.

    Args:
        model: the exported model.
        ranks: the rank of each adapter folder, after padding.
    """
    found = [*_base(model), *(_rank(name, rank) for name, rank in ranks.items())]
    if ranks:
        found.append(
            Finding(
                level="ok",
                what="adapter files",
                why="one rank and one alpha for all modules, rsLoRA, DoRA and bias off, no extra "
                "modules: all that the server's reader knows",
            )
        )
        found.append(_one_a_prompt(ranks))
    return (*found, _heads())


def _base(model: MultiTaskModel) -> Iterator[Finding]:
    kind = model.backbone.config.model_type
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        yield Finding(
            level="refused",
            what=f"LoRA on the base model type '{kind}'",
            why="the server starts with --enable-lora only for architectures that declare it; "
            "plain encoders did not when this was written ('... does not support LoRA yet'; "
            "vllm issue 57002 for ModernBERT, pull request 40581 for others, not BERT)",
            action="serve with transformers and PEFT (see README.md), or export with --format "
            "merged: it serves BertForSequenceClassification and its like, one model a server",
        )
    if model.model_config.name.startswith("asset:"):
        yield Finding(
            level="note",
            what=f"base model '{model.model_config.name}'",
            why="the server does not know assets",
            action="give it the folder that coadapt.assets.resolve_model returns",
        )


def _rank(name: str, rank: int) -> Finding:
    if rank > SERVED_RANKS[-1]:
        return Finding(
            level="refused",
            what=f"{name}: rank {rank}",
            why=f"the largest rank of a server is {SERVED_RANKS[-1]}",
            action=f"train with a plan in which no task uses more than {SERVED_RANKS[-1]} ranks",
        )
    if rank > DEFAULT_RANK:
        return Finding(
            level="note",
            what=f"{name}: rank {rank}",
            why=f"the server's limit is {DEFAULT_RANK} unless it is told",
            action=f"start it with --max-lora-rank {rank}",
        )
    return Finding(level="ok", what=f"{name}: rank {rank}", why="within the server's default limit")


def _one_a_prompt(ranks: Mapping[str, int]) -> Finding:
    return Finding(
        level="note",
        what=f"{len(ranks)} adapters",
        why="the server applies one adapter to a prompt; shared and private parts are already "
        "flattened into one a task",
        action="route each prompt to its task's adapter by routes.json",
    )


def _heads() -> Finding:
    return Finding(
        level="note",
        what="task heads",
        why="an adapter must hold nothing but LoRA factors (modules_to_save is refused), so the "
        "server returns hidden states",
        action="apply heads/<task>.safetensors to the pooled output yourself",
    )
