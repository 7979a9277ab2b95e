"""Writing answers: greedy or sampled, by the model's own ``generate``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from coadapt._seeds import named_seed
from coadapt.language.scoring import Items
from coadapt.model import MultiTaskModel
from coadapt.modes import answering
from coadapt.tasks.pictures import pixel_inputs
from coadapt.tasks.prompts import Generation
from coadapt.tasks.render import stack

PROMPTS_AT_ONCE = 16

# Kept of a model's own configuration; its beams, penalties and cuts of the tail are not.
_KEPT = (
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)


def generate_texts(
    model: MultiTaskModel,
    tokenizer: Any,
    items: Items,
    task: str,
    how: Generation,
    *,
    batch_size: int = PROMPTS_AT_ONCE,
    seed: int = 0,
) -> list[str]:
    """Return an answer a row, in the order given.

    Args:
        model: a language model; its mode is restored.
        tokenizer: its tokenizer.
        items: rows of `coadapt.tasks.language.encode_language`.
        task: whose blocks to use.
        how: length, stops and sampling.
        batch_size: rows a run.
        seed: of the draws, with the task's name; greedy answers do not depend on it.
    """
    order = sorted(range(len(items)), key=lambda row: len(items[row]["prompt"]))
    found = [""] * len(items)
    lots = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for number, rows in enumerate(lots):
        key = named_seed(seed, "generate", task, str(number))
        lot = [items[row] for row in rows]
        for row, text in zip(rows, _generate(model, tokenizer, lot, task, how, key), strict=True):
            found[row] = text
    return found


@torch.no_grad()
def _generate(
    model: MultiTaskModel,
    tokenizer: Any,
    items: Items,
    task: str,
    how: Generation,
    seed: int,
) -> list[str]:
    device = model.device
    backbone: Any = model.backbone
    # An encoder counts positions from the left, whatever the mask says.
    left = not backbone.config.is_encoder_decoder
    prompts = [item["prompt"] for item in items]
    ids = stack(prompts, tokenizer.pad_token_id or 0, left=left).to(device)
    mask = stack([[1] * len(prompt) for prompt in prompts], 0, left=left).to(device)
    index = model.task_id(task)
    model.route.set(torch.full((len(prompts),), index, dtype=torch.long, device=device))
    config = _config(backbone.generation_config, tokenizer, how)
    # The stock sampler draws from the global state, which is put back afterwards.
    devices = [device] if device.type == "cuda" else []
    with (
        answering(model),
        _configured(backbone, config),
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(seed)
        written = backbone.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            tokenizer=tokenizer,
            **{key: value.to(device) for key, value in pixel_inputs(items).items()},
        )
    start = ids.shape[1] if left else 0
    texts = tokenizer.batch_decode(written[:, start:], skip_special_tokens=True)
    return [_stopped(text, how.stop) for text in texts]


@contextmanager
def _configured(backbone: Any, config: GenerationConfig) -> Iterator[None]:
    """Give a model another configuration for a while: ``generate`` fills gaps from its own."""
    own = backbone.generation_config
    backbone.generation_config = config
    try:
        yield
    finally:
        backbone.generation_config = own


def _config(own: GenerationConfig, tokenizer: Any, how: Generation) -> GenerationConfig:
    """Return the model's tokens with our way of choosing."""
    tokens = {name: getattr(own, name, None) for name in _KEPT}
    if tokens["eos_token_id"] is None:
        tokens["eos_token_id"] = tokenizer.eos_token_id
    # Given to a greedy choice they would be warned of.
    drawn = {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k}
    drawn = drawn if how.temperature else {}
    return GenerationConfig(
        **tokens,
        pad_token_id=tokenizer.pad_token_id or 0,
        max_new_tokens=how.max_new_tokens,
        stop_strings=list(how.stop) or None,
        do_sample=how.temperature > 0,
        **drawn,
    )


def _stopped(text: str, stops: Sequence[str]) -> str:
    """Cut an answer at the first of the stops, and white space around it."""
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends, default=len(text))].strip()
