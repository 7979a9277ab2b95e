"""Loading what runs of one base model share, once for all of them."""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from coadapt._errors import InputError
from coadapt.adapters.quantized import packed_tensors
from coadapt.backbone import (
    ModelConfig,
    ModelKind,
    Pooling,
    load_backbone,
    model_kind,
)
from coadapt.config import to_plain
from coadapt.processors import load_processor, load_tokenizer
from coadapt.tasks import Rows, Task, TaskSuite
from coadapt.tasks.language import LanguageCollator, PromptStyle, encode_language
from coadapt.tasks.render import Collator, encode
from coadapt.token_cache import TokenCache


class _Shelf:
    """Keeps the things that were asked for last."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: list[Any], make: Callable[[], Any]) -> Any:
        """Return what is kept under a key of plain data, or make it."""
        text = json.dumps(key, sort_keys=True)
        if text not in self._kept:
            self._kept[text] = make()
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        self._kept.move_to_end(text)
        return self._kept[text]


def encode_rows(
    tokenizer: Any, config: ModelConfig, kind: ModelKind, task: Task, rows: Rows
) -> list[dict[str, Any]]:
    """Tokenise rows as a model of this kind reads them.

    Raises:
        InputError: for a task that a model of this kind cannot do, or rows that cannot be read.
    """
    for name, given, kinds in (
        ("chat", config.chat, ("decoder", "encoder-decoder", "image-text")),
        ("prompt_loss", config.prompt_loss, ("decoder",)),
    ):
        if given and kind not in kinds:
            raise InputError(f"model.{name} has no effect on an {kind}; set it to false")
    if task.image is not None and kind != "image-text":
        raise InputError(
            f"{task} has pictures ('{task.image}'), which '{config.name}' does not read; take an "
            "image-text model, or remove 'image'"
        )
    if kind == "encoder":
        if task.kind not in ("classification", "regression"):
            raise InputError(
                f"{task}: a {task.kind} needs a language model, but '{config.name}' is an "
                f"encoder; take a decoder such as asset:smollm2"
            )
        return encode(tokenizer, rows, config.max_length)
    style = PromptStyle(
        max_length=config.max_length,
        chat=config.chat,
        prompt_loss=config.prompt_loss,
        apart=kind == "encoder-decoder",
    )
    processor = load_processor(config) if task.image is not None else None
    return encode_language(tokenizer, task, rows, style, processor)


class Loader:
    """Loads tokenizers, tokenised rows and base models, and keeps them for the next run.

    A base model is kept as it was loaded. Each run gets a copy of its modules: with the kept
    weights, which are frozen, or with weights of its own where they train.
    """

    def __init__(self) -> None:
        self._tokenizers, self._kinds = _Shelf(2), _Shelf(2)
        self._rows, self._models, self._others = _Shelf(64), _Shelf(2), _Shelf(2)
        self._tokens = TokenCache()

    def keep(self, key: list[Any], make: Callable[[], Any]) -> Any:
        """Return what was made for a key of plain data, or make it; the last two are kept."""
        return self._others.get(key, make)

    def tokenizer(self, config: ModelConfig) -> Any:
        """Return the tokenizer that belongs to the model."""
        key = [config.name, config.trust_remote_code]
        return self._tokenizers.get(key, lambda: load_tokenizer(config))

    def kind(self, config: ModelConfig) -> ModelKind:
        """Return which kind of model it is."""
        key = [config.name, config.kind, config.pooling, config.trust_remote_code]
        return self._kinds.get(key, lambda: model_kind(config))

    def encoded(
        self, config: ModelConfig, suite: TaskSuite, task: str, split: str
    ) -> list[dict[str, Any]]:
        """Return a split's tokenised rows; not to be changed."""
        how = [config.name, self.kind(config), config.max_length, config.chat, config.prompt_loss]
        key = [how, suite.whole.to_plain(), task, split]
        return self._rows.get(
            key, lambda: self.encode(config, suite.task(task), suite.rows(task, split))
        )

    def encode(self, config: ModelConfig, task: Task, rows: Rows) -> list[dict[str, Any]]:
        """Return tokenised rows, see :func:`encode_rows`; of many rows they are kept on disk."""
        tokenizer, kind = self.tokenizer(config), self.kind(config)
        how = [kind, config.max_length, config.chat, config.prompt_loss]
        return self._tokens.get(
            tokenizer, how, task, rows, lambda: encode_rows(tokenizer, config, kind, task, rows)
        )

    def collator(self, config: ModelConfig, *, packed: bool = False) -> Collator | LanguageCollator:
        """Return what makes batches of encoded rows.

        Raises:
            InputError: if rows of such a model cannot be packed.
        """
        tokenizer, kind = self.tokenizer(config), self.kind(config)
        if kind != "encoder":
            apart = kind == "encoder-decoder"
            if packed and kind == "image-text":
                raise InputError("rows with pictures cannot be packed; set packing to false")
            return LanguageCollator(tokenizer.pad_token_id or 0, apart=apart, packed=packed)
        if packed:
            raise InputError("an encoder's rows cannot be packed; set packing to false")
        return Collator(tokenizer)

    def backbone(
        self, config: ModelConfig, dtype: torch.dtype, *, trains: bool
    ) -> tuple[PreTrainedModel, Pooling | None]:
        """Return the base model, frozen, for a run to build on.

        Args:
            config: the model.
            dtype: of its weights.
            trains: whether the run will train these weights.
        """
        key = [to_plain(config), str(dtype)]
        model, pooling = self._models.get(key, lambda: load_backbone(config, dtype))
        tensors = (*model.parameters(), *model.buffers(), *packed_tensors(model))
        tensors = () if trains else tensors
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}), pooling
