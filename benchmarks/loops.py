"""Training loops over adapters and over heads, as published code has them, in ours' dtype."""

from collections.abc import Sequence

import torch
from against_peft import MODEL, SCALE, Plain
from heads import Looped
from peft import LoraConfig
from torch import nn
from transformers import AutoModel

from coadapt import TaskSuite
from coadapt.assets import resolve_model
from coadapt.backbone import has_fast_bfloat16


class AdapterLoop(Plain):
    """A LoRA a task in one PEFT model: ``set_adapter`` and a sub-batch for each task of a batch."""

    def __init__(self, suite: TaskSuite, rank: int, seed: int) -> None:
        super().__init__(suite, suite.names, rank, seed, as_ours=False)
        self.autocast = has_fast_bfloat16()
        config = LoraConfig(r=rank, lora_alpha=int(SCALE * rank), target_modules=["query", "value"])
        for task in suite.names:
            self.model.add_adapter(task, config)
        self.model.delete_adapter("default")

    def trained(self) -> list[nn.Parameter]:
        """Return all adapters' factors: ``set_adapter`` turns those of the others off."""
        factors = [p for name, p in self.model.named_parameters() if "lora_" in name]
        return [*factors, *self.heads.parameters()]

    def backward(self, chosen: Sequence[tuple[str, str, int]]) -> None:
        """Add the gradients of a batch, one task after the other."""
        present = dict.fromkeys(task for task, _, _ in chosen)
        for task in present:
            self.model.set_adapter(task)
            own = [(text, label) for name, text, label in chosen if name == task]
            outputs = self.heads[task](self.features([text for text, _ in own]))
            labels = torch.tensor([label for _, label in own])
            (nn.functional.cross_entropy(outputs, labels) / len(present)).backward()

    def accuracy(self, task: str) -> float:
        """Return the test accuracy."""
        self.model.set_adapter(task)
        return super().accuracy(task)


class HeadLoop(Plain):
    """Routed heads over one A, multiplied one after the other as HydraLoRA's code does."""

    def __init__(
        self, suite: TaskSuite, rank: int, num_heads: int, scale: float, seed: int
    ) -> None:
        super().__init__(suite, suite.names, rank, seed, as_ours=False)
        self.autocast = has_fast_bfloat16()
        torch.manual_seed(seed)
        self.model = AutoModel.from_pretrained(resolve_model(MODEL)).requires_grad_(False)
        for name, module in list(self.model.named_modules()):
            if name.rpartition(".")[2] in ("query", "value"):
                looped = Looped(
                    module, rank=rank, num_heads=num_heads, routed=True, down="each", scale=scale
                )
                self.model.set_submodule(name, looped)
