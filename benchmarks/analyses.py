"""What runs of ThanoRA and of Align-LoRA look like inside, drawn and told.

    python benchmarks/analyses.py thanora --output runs/analyses      # some 20 minutes; resumes
    python benchmarks/analyses.py alignment --output runs/analyses
    python benchmarks/analyses.py thanora --report                    # from the committed result

The demo suite, 100 rows a task, all-MiniLM-L6-v2, query and value, rank budget 32, three seeds.

thanora: blocks of HASI's start and of LoRA's own, each with and without SPR. Ranks and entropies by
layer (figures 4 and 1c of the paper), and whether tasks' blocks come to share a subspace while they
train: overlaps and effective ranks by step.

alignment: LoRA, both alignments and three ways of heads, on balanced batches. Cosines between heads
(figure 2 of the paper), a map of rows (figure 5), and whether alignment aligned or shrank.

Numbers are of all seeds, pictures of seed 0; rates are those of the middle trials of the studies.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _harness import RESULTS, machine, threads, write
from rich.console import Console

import coadapt
from coadapt._files import read_json
from coadapt._sheet import Sheet
from coadapt.analysis import (
    alignment_report,
    draw_alignment,
    draw_entropies,
    draw_heads,
    draw_maps,
    draw_overlap,
    draw_ranks,
    head_similarity,
    rank_allocation,
    representation_map,
    spectral_entropies,
    subspace_overlap,
)
from coadapt.loading import Loader
from coadapt.recipe import Recipe
from coadapt.structures import Single

MODEL = {"name": "asset:minilm", "backbone_dropout": False, "max_length": 64}
FIGURES = Path(__file__).parents[1] / "docs/figures"
SEEDS, BUDGET, EPOCHS, KEPT = (0, 1, 2), 32, 8, 25
ROWS = {"train": 100, "validation": 100, "test": 300}


@dataclass(frozen=True)
class Arm:
    """A recipe and the rate that suits its start."""

    name: str
    recipe: Any
    rate: float


BLOCKS = (
    Arm("HASI, SPR", "thanora", 1.5e-4),
    Arm("HASI", "thanora_hasi_only", 1.5e-4),
    Arm("LoRA's start, SPR", "thanora_spr_only", 3e-3),
    Arm("LoRA's start", Recipe(structure=Single(scale=5.0), sharing="cooperative"), 3e-3),
)
ALIGNED = tuple(
    Arm(name, name, 3e-3)
    for name in ("lora", "align_kl", "align_mmd", "m_lora", "r_lora", "hydra_lora")
)
HEADS = ("m_lora", "r_lora", "hydra_lora")


def trained(arm: Arm, seed: int, folder: Path, **more: Any) -> Path:
    """Train an arm, unless it is there, and return the run's folder."""
    name = arm.name.replace(",", "").replace("'", "").replace(" ", "_")
    output = folder / f"{name}-{seed}"
    if not (output / "result.json").is_file():
        print(f"training {output}", flush=True)
        coadapt.train(
            MODEL,
            coadapt.load_suite("demo", overrides=[f"max_rows={ROWS}", f"draw={seed}"]),
            arm.recipe,
            budget=BUDGET,
            output=output,
            seed=seed,
            resume=output.exists(),
            training={
                "learning_rate": arm.rate,
                "num_train_epochs": EPOCHS,
                "per_device_train_batch_size": 32,
                "save_strategy": "steps",
                "save_steps": KEPT,
                "save_total_limit": 100,
                "disable_tqdm": True,
            },
            **more,
        )
    return output


def thanora(folder: Path) -> dict[str, Any]:
    """Ranks, entropies and overlaps of ThanoRA's blocks."""
    loader = Loader()
    found = {
        arm.name: [subspace_overlap(trained(arm, seed, folder), loader=loader) for seed in SEEDS]
        for arm in BLOCKS
    }
    run = folder / "HASI_SPR-0"
    ranks, entropies = rank_allocation(run), spectral_entropies(run)
    alts = {
        "thanora_ranks.svg": draw_ranks(ranks, FIGURES / "thanora_ranks.svg"),
        "thanora_entropies.svg": draw_entropies(entropies, FIGURES / "thanora_entropies.svg"),
        "thanora_overlap.svg": draw_overlap(
            {name: of[0] for name, of in found.items()}, FIGURES / "thanora_overlap.svg"
        ),
    }
    return {
        "readings": {"ranks": ranks.reading, "entropies": entropies.reading},
        "overlaps": {name: [_ends(one) for one in of] for name, of in found.items()},
        "pictures": alts,
    }


def _ends(one: Any) -> dict[str, Any]:
    """Return the medians of the first and last known step; None where nothing is known."""
    told: dict[str, Any] = {"steps": [one.steps[0], one.steps[-1]], "reading": one.reading}
    for key in ("columns", "rows", "effective_rank", "added_rank"):
        values = getattr(one, key)
        known = [float(statistics.median(v[v == v])) for v in values if (v == v).any()]
        told[key] = [known[0], known[-1]] if known else None
    for key in ("random_columns", "random_rows"):
        values = getattr(one, key)
        told[key] = float(statistics.median(values[values == values]))
    return told


def alignment(folder: Path) -> dict[str, Any]:
    """Heads, maps and distances between tasks."""
    loader = Loader()
    runs = {
        arm.name: [trained(arm, seed, folder, batches="balanced") for seed in SEEDS]
        for arm in ALIGNED
    }
    heads = {name: [head_similarity(run, loader=loader) for run in runs[name]] for name in HEADS}
    reports = {
        name: [
            alignment_report(before, after, loader=loader)
            for before, after in zip(runs["lora"], runs[name], strict=True)
        ]
        for name in ("align_kl", "align_mmd")
    }
    maps = {
        name: representation_map(runs[name][0], loader=loader)
        for name in ("lora", "align_kl", "align_mmd")
    }
    alts = {
        "heads.svg": draw_heads({n: of[0] for n, of in heads.items()}, FIGURES / "heads.svg"),
        "rows.svg": draw_maps(maps, FIGURES / "rows.svg"),
        "alignment.svg": draw_alignment(reports["align_kl"][0], FIGURES / "alignment.svg"),
    }
    return {
        "heads": {name: [_heads(one) for one in of] for name, of in heads.items()},
        "reports": {
            name: [{**one.to_plain()["mean"], "reading": one.reading} for one in of]
            for name, of in reports.items()
        },
        "pictures": alts,
    }


def _heads(one: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"notes": list(one.notes)}
    for key in ("raw", "moved"):
        known = [v for v in one.to_plain()[key].values() if v is not None]
        told[key] = statistics.median(known) if known else None
    return told


def report(what: str, console: Console) -> None:
    """Print tables of the committed result."""
    found = read_json(RESULTS / f"analyses_{what}.json")
    for sheet in _overlaps(found) if what == "thanora" else _distances(found):
        console.print(sheet.to_rich())


def _overlaps(found: dict[str, Any]) -> Sequence[Sheet]:
    keys = ("columns", "rows", "effective_rank", "added_rank")
    rows = [
        (name, *(_range([one[key] for one in of]) for key in keys))
        for name, of in found["overlaps"].items()
    ]
    first = next(iter(found["overlaps"].values()))[0]
    random = (f"{first['random_columns']:.3f}", f"{first['random_rows']:.3f}", "", "")
    return [
        Sheet(
            title=f"first and last step, medians over modules and pairs, {len(SEEDS)} seeds",
            columns=("", "cos² of B", "cos² of A", "effective rank of the sum", "of what moved"),
            rows=(*rows, ("random", *random)),
            notes=tuple(found["readings"].values()),
        )
    ]


def _range(ends: Sequence[Sequence[float] | None]) -> str:
    """Return the seeds' mean at the first step and at the last."""
    known = [pair for pair in ends if pair is not None]
    if not known:
        return "-"
    first, last = (statistics.mean(pair[place] for pair in known) for place in (0, 1))
    return f"{first:.3f} to {last:.3f}" if last < 1 else f"{first:.1f} to {last:.1f}"


def _distances(found: dict[str, Any]) -> Sequence[Sheet]:
    keys = {"kl": "KL", "mmd": "MMD²", "norm": "mean norm", "effective_rank": "effective rank"}
    of_lora = next(iter(found["reports"].values()))  # the same runs beside each alignment
    sides = {"lora": (of_lora, "before")}
    sides |= {name: (of, "after") for name, of in found["reports"].items()}
    rows = [
        (name, *(f"{statistics.mean(one[side][key] for one in of):.3f}" for key in keys))
        for name, (of, side) in sides.items()
    ]
    heads = [
        (name, *(_cosines([one[key] for one in of]) for key in ("raw", "moved")))
        for name, of in found["heads"].items()
    ]
    return [
        Sheet(
            title=f"means over modules and {len(SEEDS)} seeds",
            columns=("", *keys.values()),
            rows=tuple(rows),
        ),
        Sheet(
            title=f"cosine between heads, medians over modules, {len(SEEDS)} seeds",
            columns=("", "as they are", "what training added"),
            rows=tuple(heads),
        ),
    ]


def _cosines(values: Sequence[float | None]) -> str:
    return ", ".join("-" if value is None else f"{value:.2f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("thanora", "alignment"))
    parser.add_argument("--output", type=Path, default=Path("runs/analyses"))
    parser.add_argument("--report", action="store_true", help="read the committed result")
    given = parser.parse_args()
    if not given.report:
        threads(1)
        made = {"thanora": thanora, "alignment": alignment}[given.what](given.output)
        write(f"analyses_{given.what}.json", {**made, "seeds": SEEDS, "machine": machine()})
    report(given.what, Console(width=140))


if __name__ == "__main__":
    main()
