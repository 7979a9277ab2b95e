"""Scores beside a plain PEFT loop at the same rank, rows, epochs and rate, over several seeds.

    python benchmarks/against_peft.py [--rows 60 600] [--regimes shared ...] [--seeds 0 1 2]

The loop is what a user of stock PEFT would write: bfloat16 autocast where the processor has it,
mean pooling, a linear head a task, AdamW with linear decay, one PEFT model for each adapter,
trained one after the other on its tasks' rows. (It gets eager attention as ours does: only scores
count here.) Ours trains all adapters in one mixed-batch run. Both see the same rows, split and
tokenizer, and the same number of epochs at the same rate; neither was tuned on test.

A cell whose result file is there is skipped, so the command resumes.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import RESULTS, machine
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup

from coadapt import Plan, TaskSuite, load_suite, train
from coadapt._stats import mean_interval
from coadapt.assets import resolve_model
from coadapt.backbone import has_fast_bfloat16
from coadapt.demo import BUDGET, MODEL

SCALE, BATCH, WARMUP, DECAY, TEST_ROWS = 2.0, 32, 0.06, 0.01, 400
# (epochs, rate) a regime and number of rows, the same for both sides: the first one is the design's
# own orientation run, found with plain PEFT.
TUNING = {
    60: {"shared": (24, 2e-3), "clustered": (24, 2e-3), "private": (48, 3e-3)},
    600: {"shared": (6, 2e-3), "clustered": (6, 2e-3), "private": (10, 3e-3)},
}

# Families: the same questions under two label sets, spam, and sentiment in four domains.
CLUSTERS = {
    "questions": ["trec6", "trec50"],
    "spam": ["spam"],
    "sentiment": ["tweets", "amazon", "movie", "nyt"],
}


def plan_of(regime: str, tasks: Sequence[str]) -> Plan:
    """Return who shares."""
    match regime:
        case "shared":
            return Plan.shared(tasks, BUDGET)
        case "private":
            return Plan.private(tasks, BUDGET)
    return Plan.clustered(CLUSTERS, BUDGET)


def with_coadapt(
    suite: TaskSuite, regime: str, epochs: int, rate: float, seed: int
) -> dict[str, float]:
    """Train our way and return test accuracies."""
    output = Path(tempfile.mkdtemp())
    run = train(
        MODEL,
        suite,
        recipe={"shared": "lora"}.get(regime, regime),
        plan=plan_of(regime, suite.names),
        output=output / "run",
        seed=seed,
        training={
            "learning_rate": rate,
            "num_train_epochs": epochs,
            "per_device_train_batch_size": BATCH,
            "warmup_steps": WARMUP,
            "weight_decay": DECAY,
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_strategy": "no",
        },
    )
    scores = run.evaluate(num_resamples=0)
    shutil.rmtree(output)
    return {task: found.metrics["accuracy"].value for task, found in scores.items()}


class Plain:
    """A PEFT model with a head a task, as a user would write it.

    Args:
        suite: whose rows.
        tasks: that the adapter is for.
        rank: of the LoRA.
        seed: of its start and the heads'.
        as_ours: with the attention and the autocast that ours has, where only scores count.
    """

    def __init__(
        self,
        suite: TaskSuite,
        tasks: Sequence[str],
        rank: int,
        seed: int,
        *,
        as_ours: bool = True,
    ) -> None:
        torch.manual_seed(seed)
        folder = resolve_model(MODEL)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        kwargs = {"attn_implementation": "eager"} if as_ours else {}
        base = AutoModel.from_pretrained(folder, **kwargs)
        self.autocast = as_ours and has_fast_bfloat16()
        config = LoraConfig(r=rank, lora_alpha=int(SCALE * rank), target_modules=["query", "value"])
        self.model = get_peft_model(base, config)
        width = self.model.config.hidden_size
        self.heads = nn.ModuleDict({t: nn.Linear(width, suite.task(t).num_outputs) for t in tasks})
        self.suite, self.tasks = suite, tasks

    def features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return mean-pooled vectors."""
        rows = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            hidden = self.model(**rows).last_hidden_state
        mask = rows["attention_mask"].unsqueeze(-1).float()
        return (hidden.float() * mask).sum(1) / mask.sum(1)

    def fit(self, epochs: int, rate: float, seed: int) -> None:
        """Train on shuffled batches of all tasks' rows."""
        rows = [
            (task, text, int(label))
            for task in self.tasks
            for text, label in zip(*_texts(self.suite, task, "train"), strict=True)
        ]
        steps = epochs * -(-len(rows) // BATCH)
        parameters = self.trained()
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=DECAY)
        schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
        generator = np.random.default_rng(seed)
        self.model.train()
        for _ in range(epochs):
            order = generator.permutation(len(rows))
            for start in range(0, len(rows), BATCH):
                chosen = [rows[i] for i in order[start : start + BATCH]]
                self.backward(chosen)
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()

    def trained(self) -> list[nn.Parameter]:
        """Return what is trained."""
        both = [*self.model.parameters(), *self.heads.parameters()]
        return [p for p in both if p.requires_grad]

    def backward(self, chosen: Sequence[tuple[str, str, int]]) -> None:
        """Add the gradients of a batch of tasks, texts and labels."""
        features = self.features([text for _, text, _ in chosen])
        losses = []
        for task in dict.fromkeys(task for task, _, _ in chosen):
            own = [i for i, row in enumerate(chosen) if row[0] == task]
            labels = torch.tensor([chosen[i][2] for i in own])
            losses.append(nn.functional.cross_entropy(self.heads[task](features[own]), labels))
        torch.stack(losses).mean().backward()

    @torch.no_grad()
    def accuracy(self, task: str) -> float:
        """Return the test accuracy."""
        self.model.eval()
        texts, labels = _texts(self.suite, task, "test")
        predicted = [
            self.heads[task](self.features(texts[i : i + 64])).argmax(1)
            for i in range(0, len(texts), 64)
        ]
        return float((torch.cat(predicted).numpy() == labels).mean())


def _texts(suite: TaskSuite, task: str, split: str) -> tuple[Sequence[str], np.ndarray]:
    rows = suite.rows(task, split)  # pyright: ignore[reportArgumentType]
    return rows.texts, rows.labels


def with_peft(
    suite: TaskSuite, regime: str, epochs: int, rate: float, seed: int
) -> dict[str, float]:
    """Train a PEFT model for each adapter of the plan and return test accuracies."""
    found = {}
    for block in plan_of(regime, suite.names).blocks.values():
        plain = Plain(suite, block.tasks, block.rank, seed)
        plain.fit(epochs, rate, seed)
        found |= {task: plain.accuracy(task) for task in block.tasks}
    return found


SIDES = {"coadapt": with_coadapt, "peft": with_peft}


def cell(side: str, regime: str, rows: int, seed: int) -> dict[str, Any]:
    """Run one cell, or read it."""
    path = RESULTS / "against_peft" / f"{rows}_{regime}_{side}_{seed}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    epochs, rate = TUNING[rows][regime]
    suite = load_suite("demo", overrides=[f"max_rows={{train: {rows}, test: {TEST_ROWS}}}"])
    scores = SIDES[side](suite, regime, epochs, rate, seed)
    row = {
        "side": side,
        "regime": regime,
        "rows": rows,
        "seed": seed,
        "epochs": epochs,
        "learning_rate": rate,
        "accuracy": scores,
        "mean": float(np.mean(list(scores.values()))),
        "machine": machine(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    return row


def main() -> None:
    """Run every cell and print means, t intervals over seeds and paired differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[60, 600])
    parser.add_argument("--regimes", nargs="+", default=["shared", "clustered", "private"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", choices=list(SIDES), help="run one side's cells and print nothing"
    )
    options = parser.parse_args()
    for rows in options.rows:
        for regime in options.regimes:
            if options.only:
                for seed in options.seeds:
                    cell(options.only, regime, rows, seed)
                continue
            means = {
                side: [cell(side, regime, rows, seed)["mean"] for seed in options.seeds]
                for side in SIDES
            }
            paired = np.subtract(means["coadapt"], means["peft"]).tolist()
            shown = "  ".join(f"{side} {np.mean(values):.3f}" for side, values in means.items())
            low, high = mean_interval(paired)
            print(
                f"{rows:4} rows  {regime:10} {shown}  difference {np.mean(paired):+.3f} "
                f"({low:+.3f} to {high:+.3f}), {len(options.seeds)} seeds",
                flush=True,
            )


if __name__ == "__main__":
    main()
