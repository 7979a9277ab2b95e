"""Loading what runs of one base model share, once for all of them."""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from coadapt.backbone import ModelConfig, Pooling, load_backbone, load_tokenizer
from coadapt.config import to_plain
from coadapt.tasks import TaskSuite
from coadapt.tasks.render import encode


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


class Loader:
    """Loads tokenizers, tokenised rows and base models, and keeps them for the next run.

    A base model is kept as it was loaded. Each run gets a copy of its modules: with the kept
    weights, which are frozen, or with weights of its own where they train.
    """

    def __init__(self) -> None:
        self._tokenizers, self._rows, self._models = _Shelf(2), _Shelf(64), _Shelf(2)

    def tokenizer(self, config: ModelConfig) -> Any:
        """Return the tokenizer that belongs to the model."""
        key = [config.name, config.trust_remote_code]
        return self._tokenizers.get(key, lambda: load_tokenizer(config))

    def encoded(
        self, config: ModelConfig, suite: TaskSuite, task: str, split: str
    ) -> list[dict[str, list[int]]]:
        """Return a split's tokenised rows; not to be changed."""
        tokenizer, length = self.tokenizer(config), config.max_length
        key = [config.name, length, suite.whole.to_plain(), task, split]
        return self._rows.get(key, lambda: encode(tokenizer, suite.rows(task, split), length))

    def backbone(
        self, config: ModelConfig, dtype: torch.dtype, *, trains: bool
    ) -> tuple[PreTrainedModel, Pooling]:
        """Return the base model, frozen, for a run to build on.

        Args:
            config: the model.
            dtype: of its weights.
            trains: whether the run will train these weights.
        """
        key = [to_plain(config), str(dtype)]
        model, pooling = self._models.get(key, lambda: load_backbone(config, dtype))
        tensors = () if trains else (*model.parameters(), *model.buffers())
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}), pooling
