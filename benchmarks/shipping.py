"""Export and merging of four trained adapters: time, and memory above the loaded model.

    python benchmarks/shipping.py [--rounds 7]

Four private LoRAs of rank 8 on all linear maps of all-MiniLM-L6-v2, with random factors. Export as
PEFT folders and as merged models, beside writing the adapters by PEFT's ``save_pretrained``, which
checks nothing; merging into one update, beside PEFT's ``add_weighted_adapter`` of the method that
does the same, if there is one (its ``dare_linear`` draws other masks; its ``ties`` trims each
tensor). Merging is of updates: those that drop or elect entries are cut back to rank 32. Processor
time of one thread; every case in every round.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _harness import machine, peak_mib, processor_seconds, summary, threads, write
from evaluation import randomized
from mixed_inference import same_factors
from step import peft_model

from coadapt.backbone import ModelConfig
from coadapt.exporting import export_merged, export_peft
from coadapt.loading import Loader
from coadapt.merge_methods import Merge
from coadapt.merging import merge_every_task
from coadapt.model import MultiTaskModel, build_model
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.structures import Bank
from coadapt.tasks import FileSource, Task

TASKS, RANK = ("a", "b", "c", "d"), 8
SUMMED = len(TASKS) * RANK
PEERS = {"task_arithmetic": "cat", "dare": "dare_linear_svd", "ties": "ties_svd"}
METHODS = {
    "average": Merge(),
    "task_arithmetic": Merge(method="task_arithmetic"),
    "dare": Merge(method="dare", rank=SUMMED),
    "ties": Merge(method="ties", scope="tensor", rank=SUMMED),
}


def trained() -> MultiTaskModel:
    """Return four private adapters."""
    nowhere = FileSource(path="never-read.jsonl")
    tasks = [Task(name=n, kind="classification", data=nowhere, labels=("no", "yes")) for n in TASKS]
    config = ModelConfig(
        name="asset:minilm", dtype="float32", target_modules="all-linear", pooling="pooler"
    )
    plan = Plan.private(TASKS, SUMMED)
    return randomized(build_model(config, tasks, Recipe(structure=Bank(scale=1.0)), plan))


def stock(model: MultiTaskModel) -> Any:
    """Return the same adapters in PEFT."""
    options = argparse.Namespace(
        model="asset:minilm", dtype="float32", attention="sdpa", targets="all-linear"
    )
    found: Any = peft_model(options, RANK, len(TASKS), 0.0)
    same_factors(found, model)
    for module in found.modules():
        if hasattr(module, "lora_A"):  # step.py's adapters have a scale of 2
            module.scaling = dict.fromkeys(module.scaling, 1.0)
    return found


def into_folder(folder: Path, export: Callable[[Path], object]) -> Callable[[], object]:
    """Return an export into a folder that is new each time."""

    def call() -> object:
        shutil.rmtree(folder, ignore_errors=True)
        return export(folder)

    return call


def exports() -> dict[str, Callable[[], object]]:
    """Return the ways to write adapters or models."""
    model = trained()
    tokenizer = Loader().tokenizer(model.model_config)
    peft, folder = stock(model), Path(tempfile.mkdtemp())
    return {
        "PEFT's save_pretrained": into_folder(folder / "stock", peft.save_pretrained),
        "as PEFT folders": into_folder(
            folder / "peft", lambda path: export_peft(model, path, card_config="")
        ),
        "as merged models": into_folder(
            folder / "merged", lambda path: export_merged(model, tokenizer, path, card_config="")
        ),
    }


def merges() -> dict[str, Callable[[], object]]:
    """Return the ways to merge."""
    model = trained()
    peft = stock(model)

    def by_peft(kind: str) -> None:
        if "one" in peft.peft_config:
            peft.delete_adapter("one")
        extra = {"svd_rank": SUMMED} if kind.endswith("svd") else {}
        dropped = kind.partition("_")[0] in METHODS and METHODS[kind.partition("_")[0]].kept
        extra |= {"density": dropped} if dropped else {}
        names = [f"a{index}" for index in range(len(TASKS))]
        peft.add_weighted_adapter(names, [1.0] * len(names), "one", kind, **extra)

    cases: dict[str, Callable[[], object]] = {}
    for name, method in METHODS.items():
        cases[name] = lambda method=method: merge_every_task(model, method)
        if name in PEERS:
            cases[f"PEFT's {PEERS[name]}"] = lambda kind=PEERS[name]: by_peft(kind)
    return cases


def one(kind: Callable[[], dict[str, Callable[[], object]]], case: str) -> Callable[[], object]:
    """Return one case alone."""
    return kind()[case]


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description="export and merging: time and memory")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    threads(1)
    found: dict[str, Any] = {}
    for kind in (exports, merges):
        cases = kind()
        rows: dict[str, Any] = summary(processor_seconds(cases, given.rounds), next(iter(cases)))
        for case, row in rows.items():
            row["peak_mib"] = peak_mib(one, kind, case)
            print(
                f"{kind.__name__}, {case}: {row['median_s']:.2f} s, {row['ratio']:.2f} "
                f"({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}), {row['peak_mib']:.0f} MiB",
                flush=True,
            )
        found[kind.__name__] = rows
    path = write("shipping.json", {"rounds": given.rounds, **found, "machine": machine()})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
