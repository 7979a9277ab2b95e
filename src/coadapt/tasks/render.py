"""Rows to tensors: tokenised once, padded batch by batch."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from coadapt._errors import InputError
from coadapt.tasks.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# What of a tokenizer's output is kept; the attention mask comes with the padding.
_KEPT = ("input_ids", "token_type_ids")

IGNORED = -100  # of labels: a position without one, as in transformers


def encode(
    tokenizer: "PreTrainedTokenizerBase", rows: Rows, max_length: int
) -> list[dict[str, Any]]:
    """Tokenise rows, cut to a length; the share of rows that is cut is logged.

    Args:
        tokenizer: the model's tokenizer.
        rows: texts, or pairs of texts (of which the longer one is cut).
        max_length: in tokens, special tokens included.

    Returns:
        ``input_ids`` a row, ``token_type_ids`` if the tokenizer makes them, and ``cut``, the tokens
        that were cut, where there are any.

    Raises:
        InputError: if the model takes fewer tokens than ``max_length``.
    """
    if not 1 <= max_length <= tokenizer.model_max_length:
        raise InputError(
            f"max_length is {max_length}; give 1 to {tokenizer.model_max_length}, which is what "
            f"the model's tokenizer allows"
        )
    if not rows.texts:
        return []
    # Whole first, since the tokenizer does not say what it cut.
    items = _tokenize(tokenizer, rows.texts, rows.pairs)
    long = [i for i, item in enumerate(items) if len(item["input_ids"]) > max_length]
    if long:
        share = len(long) / len(items)
        logger.info("%.1f %% of %d rows cut to %d tokens", 100 * share, len(items), max_length)
        texts = [rows.texts[i] for i in long]
        pairs = [rows.pairs[i] for i in long] if rows.pairs else None
        cut = _tokenize(tokenizer, texts, pairs, truncation=True, max_length=max_length)
        for i, item in zip(long, cut, strict=True):
            lost = len(items[i]["input_ids"]) - len(item["input_ids"])
            items[i] = {**item, "cut": lost}
    return items


def _tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    **truncation: Any,
) -> list[dict[str, Any]]:
    found = tokenizer(
        list(texts),
        text_pair=list(pairs) if pairs is not None else None,
        padding=False,
        return_attention_mask=False,
        verbose=False,  # no word about texts too long for the model: they are cut next
        **(truncation or {"truncation": False}),
    )
    keys = [key for key in _KEPT if key in found]
    return [{key: found[key][i] for key in keys} for i in range(len(texts))]


class TaskDataset(Dataset[dict[str, Any]]):
    """The encoded rows of several tasks, one task after the other.

    Args:
        encoded: what `encode` or `coadapt.tasks.language.encode_language` returned, a task each.
        labels: class ids or values, a task each; None where the rows hold their own.
        task_ids: the tasks' ids in the model; their positions if not given.

    Attributes:
        lengths: tokens of each row, int64, shape (N,).
        task_ids: task id of each row, int64, shape (N,).
        cut: for each task how many of its rows were cut.
    """

    def __init__(
        self,
        encoded: Sequence[list[dict[str, Any]]],
        labels: Sequence[np.ndarray] | None,
        task_ids: Sequence[int] | None = None,
    ) -> None:
        ids = range(len(encoded)) if task_ids is None else task_ids
        sizes = [len(items) for items in encoded]
        self._items = [item for items in encoded for item in items]
        self._labels: np.ndarray | None = None
        if labels is not None:
            assert sizes == [len(values) for values in labels], "a label a row"
            flat = [np.asarray(values, np.float64) for values in labels]
            self._labels = np.concatenate(flat or [np.zeros(0)])
        self.task_ids = np.repeat(np.asarray(ids, np.int64), sizes)
        self.lengths = np.array([len(item["input_ids"]) for item in self._items], np.int64)
        self.cut = [sum("cut" in item for item in items) for items in encoded]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the item with its ``task_id``, and its ``label`` where labels were given."""
        item = {**self._items[index], "task_id": int(self.task_ids[index])}
        return item if self._labels is None else item | {"label": float(self._labels[index])}


class Collator:
    """Pads items of a `TaskDataset` to a batch.

    The batch holds ``input_ids``, ``attention_mask`` (and ``token_type_ids``) of shape (B, L) as
    int64, ``task_ids`` of shape (B,) as int64 and ``labels`` of shape (B,) as float32: class ids or
    values. No items give B = 0 and L = 1, since a rank may be left without rows.

    Args:
        tokenizer: says with what and on which side to pad.

    Raises:
        InputError: if the tokenizer has no padding token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if tokenizer.pad_token_id is None:
            raise InputError(
                "the tokenizer has no padding token; set one: "
                "tokenizer.pad_token = tokenizer.eos_token"
            )
        self._left = tokenizer.padding_side == "left"
        self._padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
        if "token_type_ids" in tokenizer.model_input_names:
            self._padding["token_type_ids"] = tokenizer.pad_token_type_id

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pad and stack the items."""
        rows = [
            {key: item[key] for key in _KEPT if key in item}
            | {"attention_mask": [1] * len(item["input_ids"])}
            for item in items
        ]
        batch = {
            key: stack([row[key] for row in rows], value, left=self._left)
            for key, value in self._padding.items()
        }
        batch["task_ids"] = torch.tensor([item["task_id"] for item in items], dtype=torch.long)
        batch["labels"] = torch.tensor([item["label"] for item in items], dtype=torch.float32)
        return batch


def stack(values: Sequence[Sequence[int]], padding: int, *, left: bool = False) -> Tensor:
    """Return (B, S) int64, S the longest but at least 1; padded on the right, or on the left."""
    length = max((len(tokens) for tokens in values), default=1)
    stacked = torch.full((len(values), max(length, 1)), padding, dtype=torch.long)
    for row, tokens in zip(stacked, values, strict=True):
        start = len(row) - len(tokens) if left else 0
        row[start : start + len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    return stacked


def answer_tokens(labels: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return (B, S) which tokens of a decoder's batch are an answer's: those that were predicted.

    A position's label is the token after it.

    Args:
        labels: (B, S) of a batch whose prompts have none.
        positions: (B, S) in their rows, where rows are packed.
    """
    learned = torch.zeros_like(labels, dtype=torch.bool)
    learned[:, 1:] = labels[:, :-1] != IGNORED
    return learned if positions is None else learned & (positions > 0)
