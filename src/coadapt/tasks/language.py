"""Rows to tokens for language models: a prompt, and an answer or options after it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor

from coadapt._errors import InputError
from coadapt.tasks.answers import Message
from coadapt.tasks.pictures import Pixels, pixel_inputs
from coadapt.tasks.render import IGNORED, stack
from coadapt.tasks.rows import Rows
from coadapt.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Ids = list[int]


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """How a model reads prompts.

    Args:
        max_length: tokens of prompt and answer together; of each, where they are read apart.
        chat: whether the tokenizer's chat template makes the prompt.
        prompt_loss: whether the prompt's tokens are learned too.
        apart: whether the prompt is an encoder's and the answer a decoder's.
    """

    max_length: int
    chat: bool = False
    prompt_loss: bool = False
    apart: bool = False


class _Texts(NamedTuple):
    """A row's prompt and what may follow it, ready to be tokenised."""

    prompt: str
    answer: str  # what is trained on
    options: tuple[str, ...]


def encode_language(
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    rows: Rows,
    style: PromptStyle,
    processor: Any = None,
) -> list[dict[str, Any]]:
    """Tokenise rows; where a prompt is too long its middle is cut, an answer never is.

    A prompt with a picture begins with it and is not cut.

    Args:
        tokenizer: the model's.
        task: whose rows they are.
        rows: texts or conversations, with options or answers.
        style: how the model reads them.
        processor: the model's, for rows with pictures.

    Returns:
        A row each: ``input_ids`` and ``labels`` to train on (the token that each position is to
        predict, or `IGNORED`; the last ``num_answer`` are the answer and its end), ``prompt`` and
        ``options`` to predict with, and ``cut``, the tokens that were cut, where there are any.
        Where prompt and answer are read apart, ``input_ids`` is the prompt and ``labels`` the
        answer. A row without an answer, to be predicted only, has nothing to train on. With a
        picture: ``picture``, and ``pixels`` that reads it.

    Raises:
        InputError: for an answer that does not fit, or a conversation that the chat template
            refuses, naming the row.
    """
    if not 2 <= style.max_length <= tokenizer.model_max_length:
        raise InputError(
            f"max_length is {style.max_length}; give 2 to {tokenizer.model_max_length}, which is "
            f"what the model's tokenizer allows"
        )
    if task.kind == "regression":
        raise InputError(f"{task}: a regression needs an encoder; a language model says words")
    shown = rows.pictures or (None,) * len(rows)
    pixels = None if processor is None else Pixels(processor)
    texts = list(_texts(tokenizer, task, rows, style, pixels))
    prompts = _ids(tokenizer, [text.prompt for text in texts], special=not style.chat)
    if not style.apart:
        prompts = [_opened(tokenizer, ids, style) for ids in prompts]
    follow = _following(tokenizer, texts, prompts, style)
    items = []
    rows_of_ids = zip(texts, prompts, follow, shown, strict=True)
    for index, (text, prompt, (answer, *options), picture) in enumerate(rows_of_ids):
        known = answer if text.answer else None
        try:
            if picture is not None and pixels is not None:
                prompt = pixels.prompt_ids(text.prompt, picture, special=not style.chat)
                prompt = _opened(tokenizer, prompt, style)
            item = _item(tokenizer, task, style, prompt, known, options, whole=picture is not None)
        except InputError as error:
            raise InputError(f"{task}, row {index + 1}: {error}") from error
        items.append(item if picture is None else item | {"picture": picture, "pixels": pixels})
    # For training, prediction or both.
    shown = [len(item["prompt"]) - item.get("cut", 0) for item in items]
    if cut := sum(n < len(ids) for n, ids in zip(shown, prompts, strict=True)):
        logger.info(
            "%s: %d of %d prompts cut to fit %d tokens", task, cut, len(items), style.max_length
        )
    return items


def _texts(
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    rows: Rows,
    style: PromptStyle,
    pixels: Pixels | None,
) -> Iterator[_Texts]:
    words = task.words or tuple(str(label) for label in task.labels)
    for index, text in enumerate(rows.texts):
        both = text if rows.pairs is None else f"{text}\n{rows.pairs[index]}"
        turns = rows.conversations[index] if rows.conversations else (("user", both),)
        try:
            if pixels is not None and rows.pictures and rows.pictures[index]:
                prompt = pixels.prompt(turns, chat=style.chat)
            else:
                prompt = _prompt(tokenizer, turns, chat=style.chat)
        except InputError as error:
            raise InputError(f"{task}, row {index + 1}: {error}") from error
        joined = "" if style.chat or style.apart or prompt[-1:].isspace() else task.delimiter
        options = rows.options[index] if rows.options is not None else ()
        options = words if task.kind == "classification" else options
        label = rows.labels[index]
        answer = "".join(label[:1]) if task.kind == "generation" else options[int(label)]
        options = tuple(joined + option for option in options)
        yield _Texts(prompt, joined + answer if answer else "", options)


def _prompt(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Message], *, chat: bool) -> str:
    """Return the text of a conversation up to where the answer begins."""
    if not chat:
        spoken = [role for role, _ in turns if role != "system"]
        if spoken != ["user"]:
            raise InputError(
                f"a conversation of {len(turns)} messages ({', '.join(r for r, _ in turns)}) needs "
                "the chat template; set model.chat to true"
            )
        return "\n\n".join(content for _, content in turns)
    if tokenizer.chat_template is None:
        raise InputError(
            "model.chat is true, but the tokenizer has no chat template; take an instruction-tuned "
            "model, or set model.chat to false"
        )
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        made = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = ", ".join(role for role, _ in turns)
        raise InputError(
            f"the tokenizer's chat template refuses messages of {roles}: {error}"
        ) from error
    assert isinstance(made, str)
    return made


def _following(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[_Texts],
    prompts: Sequence[Ids],
    style: PromptStyle,
) -> list[list[Ids]]:
    """Return the tokens of each row's answer and of its options.

    After a prompt a text is tokenised together with it, for what a tokenizer makes of a text
    depends on what stands before; where that would change the prompt's own tokens, alone.
    """
    flat = [follower for text in texts for follower in (text.answer, *text.options)]
    if style.apart:
        found = iter(_without_end(tokenizer, ids) for ids in _ids(tokenizer, flat, special=True))
        return [[next(found) for _ in (0, *text.options)] for text in texts]
    alone = iter(_ids(tokenizer, flat, special=False))
    whole = [text.prompt + f for text in texts for f in (text.answer, *text.options)]
    joint = iter(_ids(tokenizer, whole, special=not style.chat))
    result = []
    for text, prompt in zip(texts, prompts, strict=True):
        row = []
        for _ in (0, *text.options):
            own, both = next(alone), next(joint)
            both = both if style.chat else _without_end(tokenizer, both)
            agrees = both[: len(prompt)] == prompt and len(both) > len(prompt)
            row.append(both[len(prompt) :] if agrees else own)
        result.append(row)
    return result


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, special: bool) -> list[Ids]:
    if not texts:
        return []
    found = tokenizer(
        list(texts),
        add_special_tokens=special,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        verbose=False,  # no word about texts too long for the model: they are cut next
    )
    ids: Any = found["input_ids"]
    return [list(row) for row in ids]


def _opened(tokenizer: "PreTrainedTokenizerBase", ids: Ids, style: PromptStyle) -> Ids:
    """Return a prompt that text can follow, of at least the token that begins or parts texts."""
    ids = ids if style.chat else _without_end(tokenizer, ids)
    first: Any = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if first is None else first
    return ids if ids or first is None else [first]


def _without_end(tokenizer: "PreTrainedTokenizerBase", ids: Ids) -> Ids:
    """Drop an end token that the tokenizer adds: the text goes on."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _item(
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    style: PromptStyle,
    prompt: Ids,
    answer: Ids | None,
    options: Sequence[Ids],
    *,
    whole: bool = False,
) -> dict[str, Any]:
    if not prompt:
        raise InputError("the prompt has no tokens, and the tokenizer none to begin with")
    for what, ids in (("the answer", answer), *(("an option", option) for option in options)):
        if ids == []:
            raise InputError(f"{what} has no tokens; it is nothing but what the tokenizer drops")
    trained, answer = answer is not None, answer or []
    end: Any = tokenizer.eos_token_id
    if end is not None:
        answer = [*answer, end]
    written = task.generation.max_new_tokens if task.kind == "generation" else 0
    longest = max(len(ids) for ids in (answer, *options))
    room = style.max_length if style.apart else style.max_length - longest
    if longest > style.max_length or room < 1:
        raise InputError(
            f"an answer of {longest} tokens does not fit into max_length {style.max_length}; raise "
            "model.max_length or take the row out"
        )
    asked = room if style.apart else style.max_length - max(written, longest if options else 0)
    if asked < 1:
        raise InputError(
            f"max_new_tokens {written} leaves no room for a prompt within max_length "
            f"{style.max_length}; raise model.max_length"
        )
    if whole and len(prompt) > min(asked, room):
        raise InputError(
            f"a prompt of {len(prompt)} tokens with its picture does not fit into max_length "
            f"{style.max_length} beside its answer, and is not cut; raise model.max_length"
        )
    item: dict[str, Any] = {"prompt": _cut(prompt, asked), "options": list(options)}
    if not trained:
        return item
    item["num_answer"] = len(answer)
    learned = _cut(prompt, room)
    if style.apart:
        item |= {"input_ids": learned, "labels": answer}
    else:
        known = learned[1:] if style.prompt_loss else [IGNORED] * (len(learned) - 1)
        item |= {"input_ids": [*learned, *answer[:-1]], "labels": [*known, *answer]}
    if len(learned) < len(prompt):
        item["cut"] = len(prompt) - len(learned)
    return item


def _cut(ids: Ids, room: int) -> Ids:
    """Cut the middle out: a prompt says at its two ends what is to be done."""
    if len(ids) <= room:
        return ids
    head = room // 2
    return ids[:head] + ids[len(ids) - (room - head) :]


class LanguageCollator:
    """Makes batches of `encode_language`'s items for training.

    A batch holds ``input_ids``, ``attention_mask`` and ``labels`` of shape (B, S), padded on the
    right, and ``task_ids`` of shape (B,); all int64; and what a model takes for the rows' pictures,
    in their order. Packed, the rows stand one after the other in
    a single one of shape (1, S), with ``position_ids`` that begin anew with each of them and
    ``row_ids``, and nothing is padding. No items give B = 0, since a rank may be left without rows.

    Args:
        pad_token_id: what to pad with.
        apart: whether inputs and labels differ in length, see `PromptStyle`.
        packed: whether rows are packed.

    Raises:
        InputError: if an encoder-decoder is to be packed.
    """

    def __init__(self, pad_token_id: int, *, apart: bool = False, packed: bool = False) -> None:
        if packed and apart:
            raise InputError("an encoder-decoder cannot pack rows; set packing to false")
        self._pad, self.packed = pad_token_id, packed

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pad or pack the items."""
        inputs = [item["input_ids"] for item in items]
        labels = [item["labels"] for item in items]
        batch = {"task_ids": torch.tensor([item["task_id"] for item in items], dtype=torch.long)}
        if self.packed and items:
            return batch | self._pack(inputs, labels)
        ones = [[1] * len(ids) for ids in inputs]
        return batch | {
            "input_ids": stack(inputs, self._pad),
            "attention_mask": stack(ones, 0),
            "labels": stack(labels, IGNORED),
            **pixel_inputs(items),
        }

    def _pack(self, inputs: Sequence[Ids], labels: Sequence[Ids]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(ids) for ids in inputs])
        flat = torch.tensor([token for ids in inputs for token in ids])
        return {
            "input_ids": flat[None],
            "attention_mask": torch.ones_like(flat)[None],
            "labels": torch.tensor([token for ids in labels for token in ids])[None],
            "position_ids": torch.cat([torch.arange(len(ids)) for ids in inputs])[None],
            "row_ids": torch.repeat_interleave(torch.arange(len(inputs)), lengths)[None],
        }
