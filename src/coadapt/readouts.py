"""What turns a backbone's output into a loss a row: heads on an encoder, the vocabulary's head."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from coadapt._errors import InputError
from coadapt.adapters import Route
from coadapt.backbone import Pooling, pool
from coadapt.heads import TaskHeads
from coadapt.tasks.language import IGNORED

Inputs = Mapping[str, Any]


class Reading(NamedTuple):
    """What a readout made of a batch.

    Attributes:
        outputs: (B, C) of the heads; None of a language model.
        row_losses: (B,); None without labels.
    """

    outputs: Tensor | None
    row_losses: Tensor | None


class AbstractReadout(ABC):
    """How a model of one kind reads a batch."""

    @abstractmethod
    def read(
        self, backbone: nn.Module, inputs: Inputs, labels: Tensor | None, route: Route
    ) -> Reading:
        """Run the backbone on a batch and return outputs and losses.

        Args:
            backbone: runs under the caller's autocast.
            inputs: what the collator made, less task ids and labels; B >= 1.
            labels: as the collator made them.
            route: set for the batch's rows.
        """

    @abstractmethod
    def close(self) -> None:
        """Take from the backbone what was put on it; another readout may follow."""

    @abstractmethod
    def tokens_learned(self, labels: Tensor, inputs: Inputs, num_rows: int) -> Tensor:
        """Return (B,) how many positions carry a label: what a mean over tokens weighs by."""


class HeadReadout(AbstractReadout):
    """A linear head a task on the pooled vector of an encoder.

    Args:
        heads: of all tasks.
        pooling: how the encoder's output becomes a vector.
    """

    def __init__(self, heads: TaskHeads, pooling: Pooling) -> None:
        self.heads = heads
        self.pooling: Pooling = pooling

    def read(
        self, backbone: nn.Module, inputs: Inputs, labels: Tensor | None, route: Route
    ) -> Reading:
        """Return the heads' outputs, and cross-entropy or squared error a row."""
        pooled = pool(backbone(**inputs), inputs["attention_mask"], self.pooling)
        with torch.autocast(pooled.device.type, enabled=False):
            outputs = self.heads(pooled, route)
            if labels is None:
                return Reading(outputs, None)
            return Reading(outputs, self.heads.row_losses(outputs, labels, route.rows(len(pooled))))

    def close(self) -> None:
        """Nothing was put on it."""

    def tokens_learned(self, labels: Tensor, inputs: Inputs, num_rows: int) -> Tensor:
        """One label a row."""
        return torch.ones(num_rows, dtype=torch.long, device=labels.device)


class LanguageReadout(AbstractReadout):
    r"""The mean cross-entropy of the tokens that a row's answer consists of, in nats.

    .. math:: \ell_i = -\frac{1}{|Y_i|} \sum_{t \in Y_i} \log p(y_t \mid x_{\le t})

    The vocabulary's head sees only the positions that carry a label, since its logits are the
    largest tensor of a step (``benchmarks/language.py``). What a model does to its logits
    afterwards (Gemma-2's soft-capping, a scale) is done to each alone, so nothing else changes.

    Args:
        backbone: a decoder or encoder-decoder with its head.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        head = backbone.get_output_embeddings()
        assert isinstance(head, nn.Module), "load_backbone loads language models with their head"
        self._apart = bool(backbone.config.is_encoder_decoder)
        self._wanted: Tensor | None = None
        self._packs = False  # once found that packed rows do not see each other
        self._hook: RemovableHandle = head.register_forward_pre_hook(self._select)

    def close(self) -> None:
        """Take the hook off the vocabulary's head."""
        self._hook.remove()

    def _select(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._wanted is None:
            return None
        return (args[0][self._wanted].unsqueeze(0), *args[1:])

    def run(self, backbone: nn.Module, inputs: Inputs, wanted: Tensor) -> tuple[Tensor, Any]:
        """Return logits at the positions that are wanted, and the backbone's whole output.

        Args:
            backbone: the one this readout was made for.
            inputs: of its forward.
            wanted: (B, S), true at the N positions.

        Returns:
            (N, V) logits in float32 or wider, and the output.
        """
        self._wanted = wanted
        try:
            output = backbone(**inputs)
        finally:
            self._wanted = None
        logits = output.logits.squeeze(0)
        return logits if logits.dtype == torch.float64 else logits.float(), output

    def read(
        self, backbone: nn.Module, inputs: Inputs, labels: Tensor | None, route: Route
    ) -> Reading:
        """Return each row's mean cross-entropy over its labels; a row without any has 0."""
        assert labels is not None, "a language model's answers come from coadapt.language"
        wanted = labels != IGNORED
        row_ids = inputs.get("row_ids")
        given = {key: value for key, value in inputs.items() if key != "row_ids"}
        if row_ids is not None:  # packed: transformers tells the rows apart by their positions
            del given["attention_mask"]
            if not self._packs:
                task_ids = route.rows(1)
                self._refuse_leak(backbone, route)
                route.set(task_ids)
        if self._apart:
            # With labels the model would run its head everywhere and take a loss of its own.
            given["decoder_input_ids"] = shifted_right(backbone, labels)
        logits, _ = self.run(backbone, {**given, "use_cache": False}, wanted)
        with torch.autocast(logits.device.type, enabled=False):
            losses = F.cross_entropy(logits, labels[wanted], reduction="none")
            rows = wanted.nonzero()[:, 0] if row_ids is None else row_ids[wanted]
            num_rows = len(labels) if row_ids is None else int(row_ids.max()) + 1
            count = torch.bincount(rows, minlength=num_rows).clamp_min(1)
            total = losses.new_zeros(num_rows).index_add(0, rows, losses)
        return Reading(None, total / count)

    @torch.no_grad()
    def _refuse_leak(self, backbone: nn.Module, route: Route) -> None:
        """Refuse to pack where a row's logits follow from the row before it.

        Not every architecture looks at the positions: some have a mask of their own making, some a
        state that runs on. Tried once, on two rows of four tokens.
        """
        model: Any = backbone
        weight = model.get_input_embeddings().weight
        tokens = torch.arange(12, device=weight.device) + len(weight) // 2
        places = torch.arange(8, device=weight.device)[None]
        route.set(tokens.new_zeros(1))
        training, found = backbone.training, []
        backbone.eval()
        for first in (tokens[:4], tokens[4:8]):
            ids = torch.cat([first, tokens[8:]])[None]
            inputs = {"input_ids": ids, "position_ids": places % 4, "use_cache": False}
            found.append(self.run(backbone, inputs, places >= 4)[0])
        backbone.train(training)
        self._packs = torch.allclose(*found, rtol=0.0, atol=1e-2 * float(found[0].std()))
        if not self._packs:
            raise InputError(
                f"a {type(backbone).__name__} cannot pack rows: one would see those before it; set "
                "packing to false"
            )

    def tokens_learned(self, labels: Tensor, inputs: Inputs, num_rows: int) -> Tensor:
        """Count the labels of each row."""
        wanted = labels != IGNORED
        row_ids = inputs.get("row_ids")
        rows = wanted.nonzero()[:, 0] if row_ids is None else row_ids[wanted]
        return torch.bincount(rows, minlength=num_rows)


def shifted_right(backbone: nn.Module, labels: Tensor) -> Tensor:
    """Return (B, S) what the decoder reads to predict ``labels``: a start token, then they."""
    config: Any = backbone.config
    start = config.decoder_start_token_id
    read = labels.new_full(labels.shape, start)
    read[:, 1:] = labels[:, :-1]
    return read.masked_fill(read == IGNORED, config.pad_token_id or 0)
