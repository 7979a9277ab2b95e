"""What a vLLM server takes and refuses, as far as its sources and issues tell.

Read, not run: ``vllm/config/lora.py`` (ranks), ``vllm/lora/peft_helper.py`` (the configuration),
``vllm/lora/lora_model.py`` and ``model_manager.py`` (the tensors), the table of models in
``docs/models/supported_models.md``, and its maintainers' words in issues, up to 2026-09.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from coadapt.exporting.report import Finding
from coadapt.model import MultiTaskModel

VLLM_FILE = "vllm.json"

# vllm/config/lora.py, MaxLoRARanks; the default of --max-lora-rank is 16.
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_RANK = 16

# The decoders that docs/models/supported_models.md marks for LoRA, less "ForCausalLM"; among them
# those that run by the server's transformers backend (OLMo, Starcoder2, SmolLM3, ...).
SERVED_WITH_LORA = (
    "Afmoe", "Apertus", "Arcee", "BailingMoe", "BailingMoeV2", "Cohere", "Cohere2",
    "Cohere2Moe", "Cwm", "DeciLM", "Deepseek", "DeepseekV2", "DeepseekV3", "DeepseekV32",
    "Ernie4_5", "Ernie4_5_Moe", "Exaone", "Exaone4", "FalconH1", "GPTBigCode", "Gemma",
    "Gemma2", "Gemma3", "Gemma4", "Glm", "Glm4", "Glm4Moe", "Glm4MoeLite", "GlmMoeDsa",
    "GptOss", "Granite", "GraniteMoe", "GraniteMoeHybrid", "GraniteMoeShared", "GraniteMoeSWA",
    "GraniteSWA", "HunYuanDenseV1", "HunYuanMoEV1", "HYV3", "HyperCLOVAX", "InternLM2",
    "InternLM3", "Jamba", "Lfm2", "Lfm2Moe", "Llama", "LongcatFlash", "MiMo", "MiniCPM",
    "MiniCPM3", "MiniMaxM2", "Mistral", "MistralLarge3", "Mixtral", "Nemotron", "NemotronH",
    "OPT", "Olmo", "Olmo2", "Olmo3", "OlmoHybrid", "PanguEmbedded", "Phi", "Phi3", "PhiMoE",
    "Plamo3", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Qwen3Next", "SeedOss", "SmolLM3",
    "Solar", "Starcoder2", "TeleChat2", "TeleChat3", "TeleFLM", "VaultGemma",
)  # fmt: skip

# Names of a layer's linear maps in those models: a server finds an adapter's maps by their last
# name, and packs query, key and value, and gate and up, filling in what an adapter leaves out.
_SERVED_MAPS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "dense", "gate_proj",
    "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_attn", "c_proj", "c_fc",
)  # fmt: skip


def served_rank(rank: int) -> int:
    """Return the next rank that a server can be started for, or ``rank`` if it is above all."""
    return next((served for served in SERVED_RANKS if served >= rank), rank)


def vllm_findings(model: MultiTaskModel, ranks: Mapping[str, int]) -> tuple[Finding, ...]:
    """Return what a server would say to an export.

    Args:
        model: the exported model.
        ranks: the rank of each adapter folder, after padding.
    """
    found = list(_base(model))
    if model.recipe.structure.ships_as == "dora":
        found.append(_dora())
        ranks = {}  # there is no more to say of adapters that are refused
    found += [_rank(name, rank) for name, rank in ranks.items()]
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
    if not model.is_language_model:
        return (*found, _heads())
    if ranks and model.kind == "decoder":
        found.append(_maps(model))
        if not any(finding.level == "refused" for finding in found):
            found.append(_command(model.model_config.name, ranks))
    return (*found, *_prompts(model))


def _base(model: MultiTaskModel) -> Iterator[Finding]:
    config = model.backbone.config
    kind, name = config.model_type, (config.architectures or [type(model.backbone).__name__])[0]
    if model.kind == "encoder-decoder":
        yield Finding(
            level="refused",
            what=f"the base model {name}",
            why="the server runs no encoder-decoder of text; it dropped those it had (pull request "
            "24907), T5 never was among them (11901), and BART is left to a plugin",
            action="serve with transformers and PEFT (see README.md)",
        )
    elif model.kind == "image-text":
        yield Finding(
            level="refused",
            what=f"the base model {name}",
            why="whether the server makes of a picture and a prompt what the run does has not been "
            "tried",
            action="serve with transformers and PEFT (see README.md)",
        )
    elif model.kind == "decoder" and name.removesuffix("ForCausalLM") in SERVED_WITH_LORA:
        yield Finding(
            level="ok",
            what=f"LoRA on the base model {name}",
            why="the server's table of supported models marks it; start it with --enable-lora",
        )
    elif model.kind == "decoder":
        yield Finding(
            level="refused",
            what=f"LoRA on the base model {name}",
            why="the server's table of supported models did not mark it when this was written "
            "('... does not support LoRA yet')",
            action="try --model-impl transformers, which is to serve LoRA for any decoder, or "
            "export with --format merged: one model a server",
        )
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
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


def _dora() -> Finding:
    return Finding(
        level="refused",
        what="DoRA adapters",
        why="the server's reader refuses use_dora (vllm/lora/peft_helper.py: 'vLLM does not yet "
        "support DoRA')",
        action="export with --format merged: the update is added to the weights, one model a "
        "server; or serve with transformers and PEFT (see README.md)",
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


def _command(base: str, ranks: Mapping[str, int]) -> Finding:
    """Say how a server of all the adapters is started."""
    # An asset is a folder that only coadapt knows; there is a note of it.
    words = ["BASE" if base.startswith("asset:") else base, "--enable-lora"]
    words += ["--max-loras", str(len(ranks)), "--max-lora-rank", str(max(ranks.values()))]
    words += ["--lora-modules", *(f"{Path(name).name}={name}" for name in ranks)]
    return Finding(
        level="ok",
        what="a server of all adapters",
        why=f"in the export's folder: vllm serve {shlex.join(words)}",
    )


def _maps(model: MultiTaskModel) -> Finding:
    names = sorted({name.rpartition(".")[2] for name in model.attached.layers})
    unknown = [name for name in names if name not in _SERVED_MAPS]
    if unknown:
        return Finding(
            level="note",
            what=f"target modules {', '.join(unknown)}",
            why="the server refuses an adapter with a map that its own model does not have under "
            "that name, and whether it has these was not looked up",
            action="try it, or train with target_modules attention or mlp",
        )
    return Finding(
        level="ok",
        what=f"target modules {', '.join(names)}",
        why="linear maps of the layers, none of embeddings or head; those that the server packs "
        "(query, key and value; gate and up) need not all be there",
    )


def _prompts(model: MultiTaskModel) -> Iterator[Finding]:
    """Yield how a server's answers come to be those of the run."""
    chat = model.model_config.chat
    if model.kind != "decoder":
        return
    yield Finding(
        level="note",
        what="prompts",
        why="the run was trained " + ("with" if chat else "without") + " the chat template, and "
        "routes.json says how a row becomes a prompt",
        action=f"send it to {'/v1/chat/completions' if chat else '/v1/completions'}",
    )
    kinds = {task.kind for task in model.tasks}
    if "generation" in kinds:
        yield Finding(
            level="note",
            what="sampling",
            why="the server takes temperature and penalties from the base model's "
            "generation_config.json, the run takes them from its tasks",
            action="start it with --generation-config vllm and send what routes.json has under "
            "'generation'",
        )
    if kinds & {"choice", "classification"}:
        yield Finding(
            level="note",
            what="scores of options",
            why="the run compares the log-likelihoods of whole options",
            action="send prompt and option as one text with prompt_logprobs, and sum the option's",
        )


def _heads() -> Finding:
    return Finding(
        level="note",
        what="task heads",
        why="an adapter must hold nothing but LoRA factors (modules_to_save is refused), so the "
        "server returns hidden states",
        action="apply heads/<task>.safetensors to the pooled output yourself",
    )
