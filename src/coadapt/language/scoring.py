"""The log-likelihood of options and of references, given their prompts."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from coadapt.model import MultiTaskModel
from coadapt.modes import answering
from coadapt.readouts import LanguageReadout, shifted_right
from coadapt.tasks.language import IGNORED, LanguageCollator
from coadapt.tasks.pictures import pixel_inputs
from coadapt.tasks.render import stack

Items = Sequence[Mapping[str, Any]]

# Options that run at once; each takes a copy of its prompt's keys and values.
OPTIONS_AT_ONCE = 64


@torch.no_grad()
def score_options(
    model: MultiTaskModel, items: Items, task: str, *, reuse_prompt: bool = True
) -> list[np.ndarray]:
    r"""Return each row's options' log-likelihoods, in nats.

    .. math:: \log p(o \mid x) = \sum_{t=1}^{|o|} \log p(o_t \mid x, o_{<t})

    without an end token. Divided by the option's number of tokens it is the length-normalised
    score. The prompt runs once a row, whatever the number of options: a decoder's options go on
    from its keys and values, an encoder-decoder's from the encoder's output.

    Args:
        model: a language model; its mode is restored.
        items: rows of `coadapt.tasks.language.encode_language`, each with options.
        task: whose blocks to use.
        reuse_prompt: False runs prompt and option together, once an option: slower, and the same up
            to rounding. A decoder without keys and values (Mamba) is run so in any case.

    Returns:
        A float64 array of shape (K,) a row, K its number of options.
    """
    found: list[np.ndarray] = [np.zeros(0)] * len(items)
    with answering(model):
        for rows in _lots(items):
            batch = [items[row] for row in rows]
            if model.backbone.config.is_encoder_decoder:
                scores = _score_apart(model, batch, task)
            elif reuse_prompt and _goes_on(model):
                scores = _score_after_prompt(model, batch, task)
            else:
                scores = _score_whole(model, batch, task)
            flat = iter(scores.double().cpu().numpy())
            for row in rows:
                found[row] = np.array([next(flat) for _ in items[row]["options"]])
    return found


@torch.no_grad()
def score_references(model: MultiTaskModel, items: Items, task: str) -> list[tuple[float, int]]:
    """Return the log-likelihood in nats and the number of tokens of each row's first reference.

    The end token counts: that an answer ends where it does is part of it. Of a prompt that is
    learned too (``prompt_loss``) nothing counts.
    """
    found: list[tuple[float, int]] = [(0.0, 0)] * len(items)
    collate = LanguageCollator(0, apart=model.backbone.config.is_encoder_decoder)
    index = model.task_id(task)
    with answering(model):
        for rows in _lots(items):
            batch = collate([_answer_alone(items[row]) | {"task_id": index} for row in rows])
            moved = {key: value.to(model.device) for key, value in batch.items()}
            losses = model(**moved)["row_losses"].double().tolist()
            counts = (batch["labels"] != IGNORED).sum(dim=1).tolist()
            for row, loss, count in zip(rows, losses, counts, strict=True):
                found[row] = -loss * count, count
    return found


def _answer_alone(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item whose prompt carries no labels."""
    known = len(item["labels"]) - item["num_answer"]
    return {**item, "labels": [IGNORED] * known + item["labels"][known:]}


def _lots(items: Items) -> Iterator[list[int]]:
    """Yield rows of like length, as many as run at once."""
    order = sorted(range(len(items)), key=lambda row: len(items[row]["prompt"]))
    lot: list[int] = []
    options = 0
    for row in order:
        more = max(1, len(items[row]["options"]))
        if lot and options + more > OPTIONS_AT_ONCE:
            yield lot
            lot, options = [], 0
        lot.append(row)
        options += more
    if lot:
        yield lot


def _score_after_prompt(model: MultiTaskModel, batch: Items, task: str) -> Tensor:
    """Return (N,) scores of all options, row after row, from one run of the prompts."""
    readout, device = _readout(model), model.device
    prompts = stack([item["prompt"] for item in batch], 0, left=True).to(device)
    mask = stack([[1] * len(item["prompt"]) for item in batch], 0, left=True).to(device)
    last = torch.zeros_like(mask, dtype=torch.bool)
    last[:, -1] = True
    inputs = {"input_ids": prompts, "attention_mask": mask, "use_cache": True}
    inputs |= {key: value.to(device) for key, value in pixel_inputs(batch).items()}
    _set_rows(model, task, len(batch))
    inputs |= _positions(model, mask.cumsum(1).sub(1).clamp_min(0))
    logits, output = readout.run(model.backbone, inputs, last)
    if not _can_branch(output.get("past_key_values")):
        return _score_whole(model, batch, task)
    options = [option for item in batch for option in item["options"]]
    owner = torch.tensor(
        [row for row, item in enumerate(batch) for _ in item["options"]], device=device
    )
    first = torch.tensor([option[0] for option in options], device=device)
    scores = logits.log_softmax(dim=-1)[owner, first]
    longer = [n for n, option in enumerate(options) if len(option) > 1]
    if longer:
        chosen = owner[longer]
        rest = _Rest([options[n] for n in longer], mask[chosen], device)
        output.past_key_values.batch_select_indices(chosen)
        _set_rows(model, task, len(longer))
        inputs = rest.inputs | _positions(model, rest.positions)
        inputs |= {"past_key_values": output.past_key_values, "use_cache": True}
        logits, _ = readout.run(model.backbone, inputs, rest.wanted)
        scores[longer] += _summed(logits, rest.labels, rest.wanted)
    return scores


def _goes_on(model: MultiTaskModel) -> bool:
    """Whether an option may follow a prompt by itself; some models count on from the picture."""
    return not any(hasattr(module, "rope_deltas") for module in model.backbone.modules())


def _can_branch(cache: Any) -> bool:
    """Whether options can go on from what a prompt left: keys and values, not a running state."""
    layers = cache.layers if isinstance(cache, DynamicCache) else [None]
    return all(isinstance(layer, DynamicLayer) for layer in layers)


class _Rest:
    """The options' tokens but the first, to be predicted from those before them."""

    def __init__(self, options: Sequence[list[int]], mask: Tensor, device: torch.device) -> None:
        self.labels = stack([option[1:] for option in options], IGNORED).to(device)
        self.wanted = self.labels != IGNORED
        read = stack([option[:-1] for option in options], 0).to(device)
        self.positions = mask.sum(1, keepdim=True) + torch.arange(read.shape[1], device=device)
        self.inputs: dict[str, Any] = {
            "input_ids": read,
            "attention_mask": torch.cat([mask, self.wanted.to(mask)], dim=1),
        }


def _score_whole(model: MultiTaskModel, batch: Items, task: str) -> Tensor:
    """Return (N,) scores, each option behind a prompt of its own."""
    owners = [item for item in batch for _ in item["options"]]
    both = [(item["prompt"], option) for item in batch for option in item["options"]]
    read = [[*prompt, *option[:-1]] for prompt, option in both]
    labels = stack([[IGNORED] * (len(p) - 1) + option for p, option in both], IGNORED)
    inputs = {
        "input_ids": stack(read, 0).to(model.device),
        "attention_mask": stack([[1] * len(ids) for ids in read], 0).to(model.device),
        "use_cache": False,
    }
    inputs |= {key: value.to(model.device) for key, value in pixel_inputs(owners).items()}
    labels = labels.to(model.device)
    _set_rows(model, task, len(both))
    wanted = labels != IGNORED
    logits, _ = _readout(model).run(model.backbone, inputs, wanted)
    return _summed(logits, labels, wanted)


def _score_apart(model: MultiTaskModel, batch: Items, task: str) -> Tensor:
    """Return (N,) scores of an encoder-decoder, whose encoder runs once a prompt."""
    backbone, device = model.backbone, model.device
    prompts = stack([item["prompt"] for item in batch], 0).to(device)
    mask = stack([[1] * len(item["prompt"]) for item in batch], 0).to(device)
    _set_rows(model, task, len(batch))
    encoded = backbone.get_encoder()(input_ids=prompts, attention_mask=mask)
    owner = torch.tensor([row for row, item in enumerate(batch) for _ in item["options"]])
    owner = owner.to(device)
    labels = stack([option for item in batch for option in item["options"]], IGNORED).to(device)
    encoded.last_hidden_state = encoded.last_hidden_state[owner]
    inputs = {
        "encoder_outputs": encoded,
        "attention_mask": mask[owner],
        "decoder_input_ids": shifted_right(backbone, labels),
        "use_cache": False,
    }
    _set_rows(model, task, len(owner))
    wanted = labels != IGNORED
    logits, _ = _readout(model).run(backbone, inputs, wanted)
    return _summed(logits, labels, wanted)


def _summed(logits: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """Return (B,) sums of the log-probabilities of the labels."""
    own = logits.log_softmax(dim=-1).gather(1, labels[wanted][:, None])[:, 0]
    return own.new_zeros(len(labels)).index_add(0, wanted.nonzero()[:, 0], own)


def _set_rows(model: MultiTaskModel, task: str, num_rows: int) -> None:
    index = model.task_id(task)
    model.route.set(torch.full((num_rows,), index, dtype=torch.long, device=model.device))


def _positions(model: MultiTaskModel, position_ids: Tensor) -> dict[str, Tensor]:
    """Return positions for a model that takes them; others go by the mask.

    An image-text model may count the places in a picture in its own way.
    """
    if model.kind == "image-text":
        return {}
    takes = "position_ids" in inspect.signature(model.backbone.forward).parameters
    return {"position_ids": position_ids} if takes else {}


def _readout(model: MultiTaskModel) -> LanguageReadout:
    assert isinstance(model.readout, LanguageReadout)
    return model.readout
