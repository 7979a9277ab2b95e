"""What ThanoRA's start costs, against PEFT's CorDA preparation once a task.

    python benchmarks/init.py --data-root DIR [--rows 48] [--rounds 3]

Four commonsense tasks of DIR/<task>/<split>.jsonl and asset:smollm2, every linear map of every
layer, the same rows, whole. Both sides sum second moments of the inputs and decompose W C: PEFT one
row a forward, with an inverse of C (damped until it exists) and a full decomposition; ours by
products with U alone. HASI's fill of the blocks is counted on our side, PEFT's crop and fill
are not. Times are of the processor, on one thread; the sides alternate.

Accuracy is ours against the full float64 decomposition of the same W C: relative errors of the
largest R singular values, and angles between the spaces of the largest r left singular vectors for
r of a task's block, a rank at which values lie apart by more than rounding.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _harness import machine, threads, write
from peft import LoraConfig
from peft.tuners.lora import corda
from peft.tuners.lora.config import CordaConfig
from transformers import PreTrainedModel

from coadapt import load_suite
from coadapt.adapters.linear import linear_weight
from coadapt.backbone import ModelConfig
from coadapt.inits import Hasi, Start
from coadapt.loading import Loader
from coadapt.model import build_model
from coadapt.moments import InputMoments
from coadapt.planning import Plan
from coadapt.recipes import RECIPES
from coadapt.spectra import full
from coadapt.statistics import Request, _Gathering
from coadapt.tasks import TaskSuite

TASKS = ("arc_easy", "arc_challenge", "boolq", "openbookqa")
TARGETS = (*("q_proj", "k_proj", "v_proj", "o_proj"), *("gate_proj", "up_proj", "down_proj"))
RANK = 64


class Clock:
    """Adds up the processor time of parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*args, **kwargs)

        return timed

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is done within."""
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start


def ours(suite: TaskSuite, config: ModelConfig, loader: Loader, rows: int) -> Clock:
    """Gather, decompose and fill as a run of ThanoRA does."""
    clock, init = Clock(), Hasi(rows=rows)
    request = Request(model=config, init=init, rank=RANK, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        gathering = _Gathering(request, suite, Path(folder) / "s", loader, True)
        timed = clock.around("decompose", gathering._decompose)
        summed = clock.around("moments", InputMoments.__call__)
        with (
            clock.part("all"),
            patch.object(gathering, "_decompose", timed),
            patch.object(InputMoments, "__call__", summed),
        ):
            spectra = gathering.run(2**31)
    plan = init.refine(Plan.cooperative(suite.names, RANK), spectra)
    recipe = RECIPES["thanora_hasi_only"].recipe
    for part, start in (("fill", Start(spectra=spectra)), ("build", Start(fills=False))):
        with clock.part(part):
            build_model(config, suite.tasks, recipe, plan, loader=loader, start=start)
    clock.seconds["decompose"] += clock.seconds["fill"] - clock.seconds.pop("build")
    clock.seconds["all"] += clock.seconds.pop("fill")
    return clock


def theirs(suite: TaskSuite, config: ModelConfig, loader: Loader, rows: int) -> Clock:
    """Prepare CorDA once a task, on the rows that ours reads."""
    clock = Clock()
    request = Request(model=config, init=Hasi(rows=rows), rank=RANK, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        gathering = _Gathering(request, suite, Path(folder) / "s", loader, True)
    for items in gathering.items.values():
        backbone: PreTrainedModel = loader.backbone(config, torch.float32, trains=False)[0]
        lora = LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=list(TARGETS),
            init_lora_weights="corda",
            corda_config=CordaConfig(corda_method="ipm"),
        )
        batches = [torch.tensor([item["input_ids"]]) for item in items]

        def run(model: Any = backbone.base_model, batches: list[Any] = batches) -> None:
            with torch.no_grad():
                for ids in batches:
                    model(input_ids=ids)

        timed = clock.around("decompose", corda.collect_eigens)
        with clock.part("all"), patch.object(corda, "collect_eigens", timed):
            corda.preprocess_corda(backbone, lora, run_model=run)
    return clock


def accuracy(suite: TaskSuite, config: ModelConfig, loader: Loader, rows: int) -> dict[str, Any]:
    """Compare ours with the full decomposition, on every fifth map."""
    request = Request(model=config, init=Hasi(rows=rows), rank=RANK, seed=0)
    values, angles, residuals = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        gathering = _Gathering(request, suite, Path(folder) / "s", loader, True)
        original = gathering._decompose

        def compare(moments: Any, group: Any, task: str, before: Any) -> Any:
            found = original(moments, group, task, before)
            sources = {name: source for source, names in group.items() for name in names}
            for name in list(found)[::5]:
                C = torch.from_numpy(moments.sums[sources[name]].second)
                W = linear_weight(gathering.backbone.get_submodule(name))
                exact = full(W, C, count=RANK)
                mine = found[name]
                wrong = (mine.sigma[:RANK] - exact.sigma).abs() / exact.sigma
                values.append(float(wrong.max()))
                r = RANK * 4 // 5 // len(TASKS)  # of an even share
                cosines = torch.linalg.svdvals(exact.U[:, :r].T @ mine.U[:, :r])
                angles.append(float(torch.rad2deg(torch.arccos(cosines.clamp(max=1.0)).max())))
                residuals.append(mine.residual)
            return found

        with patch.object(gathering, "_decompose", compare):
            gathering.run(2**31)
    return {
        "maps": len(values),
        "largest relative error of a singular value": max(values),
        "largest angle, degrees": max(angles),
        "largest residual": max(residuals),
        "full decompositions": sum(residual == 0.0 for residual in residuals),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    threads(1)
    suite = load_suite(
        "commonsense8",
        data_root=options.data_root,
        only=list(TASKS),
        overrides=["max_rows={train: 500, validation: 10, test: 10}"],
    )
    config = ModelConfig(
        name="asset:smollm2", dtype="float32", max_length=256, target_modules=TARGETS
    )
    loader = Loader()
    sides: dict[str, Any] = {"HASI": ours, "PEFT's CorDA, a task each": theirs}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            seconds[name].append(side(suite, config, loader, options.rows).seconds)
    ratios = {
        part: sorted(peft[part] / hasi[part] for hasi, peft in zip(*seconds.values(), strict=True))
        for part in ("all", "decompose")
    }
    result = {
        "rank": RANK,
        "tasks": list(TASKS),
        "rows a task": options.rows,
        "modules": "all linear maps of 30 layers",
        "rounds": options.rounds,
        "processor seconds": {
            name: {part: statistics.median(run[part] for run in runs) for part in runs[0]}
            for name, runs in seconds.items()
        },
        "PEFT over HASI": {
            part: {"median": statistics.median(r), "least": r[0], "most": r[-1]}
            for part, r in ratios.items()
        },
        "accuracy": accuracy(suite, config, loader, options.rows),
        "machine": machine(),
    }
    path = write("init.json", result)
    print(path.read_text())


if __name__ == "__main__":
    main()
