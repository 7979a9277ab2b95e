"""What a language model saves: a prompt that runs once, and a head that sees labels only.

    python benchmarks/language.py [--model asset:smollm2] [--rounds 5] [--dtype auto]

``choice``: options scored after their prompt's keys and values, against each option behind a prompt
of its own. ``memory``: forward and backward of one training step with the vocabulary's head at the
label positions, against the head at all of them. Times are of the processor, on one thread, which
what else a machine does touches little; both cases run in every round. Memory is a fresh process's
peak for each case.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _harness import machine, processor_seconds, summary, threads, write
from torch.nn import functional as F

from coadapt.backbone import ModelConfig
from coadapt.language import score_options
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.structures import Single
from coadapt.tasks import FileSource, Task
from coadapt.tasks.language import IGNORED, LanguageCollator

TASK = Task(name="question", kind="choice", data=FileSource(path="unused.jsonl"), options="options")
CASES = ("labels only", "full logits")


def model_of(options: argparse.Namespace) -> MultiTaskModel:
    """Return the model with one LoRA."""
    config = ModelConfig(name=options.model, dtype=options.dtype)
    plan = Plan.shared([TASK.name], options.rank)
    return build_model(config, [TASK], Recipe(structure=Single()), plan)


def drawn(generator: np.random.Generator, model: MultiTaskModel, size: int) -> list[int]:
    """Return random tokens."""
    return generator.integers(100, model.backbone.config.vocab_size, size).tolist()


def choices(options: argparse.Namespace, model: MultiTaskModel) -> list[dict[str, Any]]:
    """Return rows of a choice: prompts of about the length, options of one to eight tokens."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(
        int(0.9 * options.prompt), int(1.1 * options.prompt) + 1, options.rows
    )
    return [
        {
            "prompt": drawn(generator, model, length),
            "options": [
                drawn(generator, model, size) for size in generator.integers(1, 9, options.options)
            ],
        }
        for length in lengths
    ]


def choice(options: argparse.Namespace) -> dict[str, Any]:
    """Time the two ways to score options."""
    model = model_of(options)
    items = choices(options, model)
    scored: dict[str, list[np.ndarray]] = {}

    def case(name: str, *, reuse_prompt: bool) -> Callable[[], object]:
        def run() -> None:
            scored[name] = score_options(model, items, TASK.name, reuse_prompt=reuse_prompt)

        return run

    cases = {
        "prompt once": case("prompt once", reuse_prompt=True),
        "prompt with every option": case("prompt with every option", reuse_prompt=False),
    }
    seconds = processor_seconds(cases, options.rounds)
    pairs = zip(*scored.values(), strict=True)
    return {
        "rows": summary(seconds, "prompt once"),
        "largest_difference_nats": max(float(np.abs(a - b).max()) for a, b in pairs),
    }


def training_step(options: argparse.Namespace, case: str, batch: int) -> Callable[[], object]:
    """Return forward and backward of one batch whose last few tokens are labels."""
    model = model_of(options).train()
    generator = np.random.default_rng(0)
    blank = [IGNORED] * (options.length - options.answer)
    items = [
        {
            "input_ids": drawn(generator, model, options.length),
            "labels": blank + drawn(generator, model, options.answer),
            "task_id": 0,
        }
        for _ in range(batch)
    ]
    rows = LanguageCollator(0)(items)

    def labels_only() -> None:
        model(**rows)["loss"].backward()
        model.zero_grad()

    def full_logits() -> None:
        # As transformers takes the loss: every position's logits, in float32.
        model.route.set(rows["task_ids"])
        mask = rows["attention_mask"]
        output: Any = model.backbone(
            input_ids=rows["input_ids"], attention_mask=mask, use_cache=False
        )
        logits = output.logits.float().flatten(0, 1)
        F.cross_entropy(logits, rows["labels"].flatten(), ignore_index=IGNORED).backward()
        model.zero_grad()

    return labels_only if case == CASES[0] else full_logits


def memory(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Time a step of each case, and take each one's peak memory in a process of its own."""
    steps = {case: training_step(options, case, options.timed_batch) for case in CASES}
    rows = summary(processor_seconds(steps, options.rounds), CASES[0])
    vocabulary = model_of(options).backbone.config.vocab_size
    for case, row in rows.items():
        row["tokens_per_s"] = options.timed_batch * options.length / row["median_s"]
        row["peak_mib"] = peak_memory(case, arguments)
    logits = 4 * options.batch * options.length * vocabulary / 2**20
    saved = rows[CASES[1]]["peak_mib"] - rows[CASES[0]]["peak_mib"]
    return {"rows": rows, "full_logits_mib": logits, "saved_mib": saved}


def peak_memory(case: str, arguments: list[str]) -> float:
    """Return the peak resident memory of a fresh process in one step, in MiB."""
    command = [sys.executable, __file__, *arguments, "--only", case]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def _only(options: argparse.Namespace) -> None:
    step = training_step(options, options.only, options.batch)
    # Loading may peak higher than a step: start the kernel's high-water mark anew.
    Path("/proc/self/clear_refs").write_text("5")
    step()
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)  # pyright: ignore[reportOptionalSubscript]


def show(name: str, rows: dict[str, dict[str, float]]) -> None:
    """Print a table."""
    print(f"{name:26} {'median ms':>10} {'ratio':>6} {'quartiles':>13}")
    for case, row in rows.items():
        quartiles = f"{row['ratio_q1']:.2f} - {row['ratio_q3']:.2f}"
        print(f"{case:26} {1e3 * row['median_s']:10.0f} {row['ratio']:6.2f} {quartiles:>13}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="asset:smollm2")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2, help="of the choice")
    parser.add_argument("--options", type=int, default=4, help="a row of the choice")
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a choice's prompt")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step, for its memory")
    parser.add_argument("--timed-batch", type=int, default=1, help="rows of a step that is timed")
    parser.add_argument("--length", type=int, default=256, help="tokens of a training row")
    parser.add_argument("--answer", type=int, default=8, help="labels of a training row")
    parser.add_argument("--output", default="language.json", help="name of the result file")
    parser.add_argument("--only", default=None, help="run one step and print its peak memory")
    options = parser.parse_args()
    if options.only:
        _only(options)
        return
    threads(1)
    found = {"choice": choice(options), "memory": memory(options, sys.argv[1:])}
    for name, part in found.items():
        show(name, part["rows"])
    saved, logits = found["memory"]["saved_mib"], found["memory"]["full_logits_mib"]
    print(f"peak memory saved: {saved:.0f} MiB; the logits in float32 are {logits:.0f} MiB")
    path = write(options.output, {"options": vars(options), "machine": machine(), **found})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
