"""What a training step of TA-LoRA costs beside prefix tuning in PEFT, on the same model.

    python benchmarks/prompts.py [--rounds 15]

Steps are forward, backward and AdamW of a BERT of random weights, in the size of MiniLM, with
prompts of the same length; every case runs in every round, in processor time on one thread. PEFT's
prefix is one for all tasks and in all layers; ours is one a task, in half of the layers as
published, and in all of them to compare like with like. The floor trains heads alone.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _harness import machine, processor_seconds, summary, threads, write
from heads import batch, tasks_of
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel

from coadapt.backbone import ModelConfig, pool
from coadapt.groups import FastSlow
from coadapt.model import MultiTaskModel
from coadapt.recipe import Recipe
from coadapt.recipes import find_recipe
from coadapt.structures import Frozen, TaskPrompt

SEED = 0
PEFT = "PEFT prefix tuning"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Steps:
    """Steps on one base model."""

    def __init__(self, options: argparse.Namespace, dtype: torch.dtype) -> None:
        self._options, self._tasks, self._dtype = options, tasks_of(options), dtype
        self._bert = BertConfig(
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=12,
            intermediate_size=4 * options.width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )

    def cases(self) -> dict[str, Callable[[], object]]:
        """Return a step of each."""
        every, length = self._options.layers, self._options.prompt
        ta_lora = find_recipe("ta_lora")
        prompts = {
            "TA-LoRA": TaskPrompt(length=length),
            "TA-LoRA, all layers": TaskPrompt(length=length, layers=every),
            "one prompt, all layers": TaskPrompt(length=length, layers=every, fast_rank=0),
        }
        found = {PEFT: self._peft(length), "floor": self._ours(Recipe(structure=Frozen()))}
        for name, structure in prompts.items():
            regularizers = ta_lora.regularizers if structure.fast_rank else ()
            recipe = Recipe(structure=structure, groups=FastSlow(), regularizers=regularizers)
            found[name] = self._ours(recipe)
        return found

    def _backbone(self) -> Any:
        torch.manual_seed(SEED)
        backbone = BertModel(self._bert, add_pooling_layer=False).requires_grad_(False)
        return backbone.to(self._dtype)  # pyright: ignore[reportArgumentType]

    def _ours(self, recipe: Recipe) -> Callable[[], object]:
        dtype: Any = str(self._dtype).removeprefix("torch.")
        config = ModelConfig(name="random", dtype=dtype, backbone_dropout=False)
        model = MultiTaskModel(
            self._backbone(), "mean", self._tasks, recipe=recipe, plan=None, config=config
        ).train()
        rows = batch(self._options)
        return self._stepping(model, lambda: model(**rows)["loss"])

    def _peft(self, length: int) -> Callable[[], object]:
        config = PrefixTuningConfig(
            task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=length
        )
        model: Any = get_peft_model(self._backbone(), config).train()
        model.prompt_encoder.float()
        head = nn.Linear(self._options.width, 2)
        rows = batch(self._options)
        labels = rows["labels"].long().clamp(0, 1)

        def loss() -> torch.Tensor:
            mask = rows["attention_mask"]
            vectors = pool(model(input_ids=rows["input_ids"], attention_mask=mask), mask, "mean")
            return nn.functional.cross_entropy(head(vectors), labels)

        return self._stepping(nn.ModuleList([model, head]), loss)

    def _stepping(self, model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

        def step() -> None:
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="tokens a row")
    parser.add_argument("--tasks", type=int, default=7)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=10, help="tokens of a prompt")
    options = parser.parse_args()
    threads(1)
    found: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        seconds = processor_seconds(Steps(options, dtype).cases(), options.rounds)
        found[name] = summary(seconds, PEFT)
        print(f"{name}, a step in units of that of {PEFT}:")
        for case, row in found[name].items():
            spread = f"{row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}"
            print(f"  {case:26} {row['ratio']:.2f}  (middle half {spread})")
    write(
        "prompts.json",
        {"options": vars(options), "seed": SEED, "steps": found, "machine": machine()},
    )


if __name__ == "__main__":
    main()
