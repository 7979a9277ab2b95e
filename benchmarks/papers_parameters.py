"""The share of parameters that papers publish beside the one that their settings give.

    python benchmarks/papers_parameters.py

The papers' base models are built without weights from their architecture, as their published
config.json states it; nothing is downloaded. For each published share: the exact one with the rank
and number of heads that the paper states, with and without a router; and the number of heads, or
the rank of a plain LoRA, at which it comes nearest. Shares are of the base model's weights, its
embeddings included; PEFT prints that of base and adapters together.
"""

import argparse
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _harness import machine, write
from transformers import LlamaConfig, Qwen2Config

from coadapt.accounting import StepCounter
from coadapt.backbone import ModelConfig
from coadapt.planning import Plan
from coadapt.recipe import Recipe
from coadapt.recipes import RECIPES
from coadapt.structures import Experts, Heads, RoutedHeads, Single
from coadapt.study.budget import Counter

TASKS = ("one", "two")


_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size"),
)


def _architecture(*sizes: int) -> dict[str, Any]:
    return dict(zip(_KEYS, sizes, strict=True))


# The config.json of the model's page on the Hugging Face hub.
ARCHITECTURES: dict[str, Any] = {
    "Qwen2.5-3B": Qwen2Config(
        **_architecture(2048, 11008, 36, 16, 2, 151936), tie_word_embeddings=True
    ),
    "Qwen2.5-7B": Qwen2Config(
        **_architecture(3584, 18944, 28, 28, 4, 152064), tie_word_embeddings=False
    ),
    "Qwen2.5-14B": Qwen2Config(
        **_architecture(5120, 13824, 48, 40, 8, 152064), tie_word_embeddings=False
    ),
    "LLaMA-2-7B": LlamaConfig(
        **_architecture(4096, 11008, 32, 32, 32, 32000), tie_word_embeddings=False
    ),
    "LLaMA-2-13B": LlamaConfig(
        **_architecture(5120, 13824, 40, 40, 40, 32000), tie_word_embeddings=False
    ),
    "LLaMA-3-8B": LlamaConfig(
        **_architecture(4096, 14336, 32, 32, 8, 128256), tie_word_embeddings=False
    ),
}
SITES: dict[str, str | tuple[str, ...]] = {"mlp": "mlp", "q, v": ("q_proj", "v_proj")}
MOST_HEADS = 12


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A share that is published.

    Attributes:
        paper: of whose settings it is.
        table: in it.
        method: its name there.
        kind: what is counted: ``single``, ``heads``, ``routed_heads`` or ``experts``.
        models: of which it is said.
        sites: the adapted maps, a key of `SITES`.
        rank: stated.
        heads: stated; None where it is not, or there are none.
        percent: published.
    """

    paper: str = "2508.05078"
    table: str
    method: str
    kind: str
    models: tuple[str, ...]
    sites: str = "mlp"
    rank: int
    heads: int | None = None
    percent: float


_3B, _7B, _QWEN = ("Qwen2.5-3B",), ("Qwen2.5-7B",), ("Qwen2.5-7B", "Qwen2.5-14B")
_LLAMA, _THREE = ("LLaMA-2-7B", "LLaMA-2-13B"), ("Qwen2.5-7B", "LLaMA-3-8B", "Qwen2.5-14B")


def _table(
    table: str, models: tuple[str, ...], rows: list[tuple[Any, ...]], **rest: Any
) -> list[Claim]:
    keys = ("method", "kind", "rank", "heads", "percent")
    return [
        Claim(table=table, models=models, **dict(zip(keys, r, strict=True)), **rest) for r in rows
    ]


# Ranks and sites: appendix K and the tables. Heads: five in table 1 and ten in table 2 (appendix
# K); of the other tables nothing is said, and their tasks are five, eight or ten.
CLAIMS = [
    *_table(
        "1",
        _3B,
        [
            ("HydraLoRA", "routed_heads", 4, 5, 0.45),
            ("HydraLoRA w/o router", "heads", 4, 5, 0.41),
            ("R-LoRA", "routed_heads", 4, 5, 0.45),
            ("M-LoRA", "heads", 4, 5, 0.41),
        ],
    ),
    *_table(
        "2",
        _LLAMA,
        [
            ("LoRA", "single", 8, None, 0.06),
            ("HydraLoRA", "routed_heads", 8, 10, 0.34),
            ("R-LoRA", "routed_heads", 8, 10, 0.34),
            ("LoRA, rank 30", "single", 30, None, 0.34),
            ("M-LoRA", "heads", 8, 10, 0.32),
        ],
        sites="q, v",
    ),
    *_table(
        "3",
        _QWEN,
        [
            ("LoRA, rank 4", "single", 4, None, 0.10),
            ("LoRA, rank 8", "single", 8, None, 0.20),
            ("LoRA, rank 9", "single", 9, None, 0.22),
            ("LoRA, rank 10", "single", 10, None, 0.25),
            ("HydraLoRA", "routed_heads", 4, None, 0.25),
            ("M-LoRA", "heads", 4, None, 0.22),
        ],
    ),
    *_table(
        "4",
        _THREE,
        [
            ("LoRA", "single", 10, None, 0.25),
            ("LoRAMoE", "experts", 4, None, 0.38),
            ("R-LoRA", "routed_heads", 4, None, 0.25),
            ("M-LoRA", "heads", 4, None, 0.22),
            ("Align-LoRA", "single", 8, None, 0.20),
        ],
    ),
    *_table(
        "5",
        _3B,
        [
            ("LoRA", "single", 10, None, 0.45),
            ("LoRAMoE", "experts", 4, None, 0.68),
            ("R-LoRA", "routed_heads", 4, None, 0.45),
            ("M-LoRA", "heads", 4, None, 0.42),
            ("Align-LoRA", "single", 8, None, 0.42),
        ],
    ),
]
# Table 6: FLOPs of a training, Qwen2.5-3B, by LoRA's of rank 10.
FLOPS = {
    "LoRA": ("single", 10, None, 3.545e18),
    "HydraLoRA": ("routed_heads", 4, 3, 3.986e18),
    "HydraLoRA, 5 heads": ("routed_heads", 4, 5, 3.986e18),
    "Align-LoRA": ("align_kl", 8, None, 3.539e18),
}


def recipe_of(kind: str, heads: int | None) -> Recipe:
    """Return what is counted."""
    if kind == "align_kl":
        return RECIPES["align_kl"].recipe
    if kind == "single":
        return Recipe(structure=Single())
    assert heads is not None
    if kind == "heads":
        return Recipe(structure=Heads(num_heads=heads))
    if kind == "routed_heads":
        return Recipe(structure=RoutedHeads(num_heads=heads))
    return Recipe(structure=Experts(num_experts=heads))


class Papers:
    """The papers' models, as folders that hold a configuration and nothing else."""

    def __init__(self, folder: Path) -> None:
        for name, config in ARCHITECTURES.items():
            config.save_pretrained(folder / name)
        self._folder = folder
        self.counter = functools.cache(self._counter)
        self.trainable = functools.cache(self._trainable)

    def config(self, model: str, sites: str) -> ModelConfig:
        """Return a model with its adapted maps."""
        return ModelConfig(name=str(self._folder / model), target_modules=SITES[sites])

    def _counter(self, model: str, sites: str) -> Counter:
        return Counter(self.config(model, sites))

    def _trainable(self, model: str, sites: str, kind: str, rank: int, heads: int | None) -> int:
        plan = Plan.shared(TASKS, rank)
        return self.counter(model, sites).spent(recipe_of(kind, heads), TASKS, plan).trainable

    def percent(self, model: str, sites: str, kind: str, rank: int, heads: int | None) -> float:
        """Return the trainable values in percent of the base's weights."""
        trainable = self.trainable(model, sites, kind, rank, heads)
        return 100 * trainable / self.counter(model, sites).num_weights

    def judge(self, claim: Claim, model: str) -> dict[str, Any]:
        """Return what a claim says and what is."""
        of = functools.partial(self.percent, model, claim.sites)
        row = {"model": model, "sites": claim.sites, "published": claim.percent}
        row |= {"table": claim.table, "method": claim.method, "kind": claim.kind}
        row |= {"rank": claim.rank, "heads": claim.heads}
        if claim.kind == "single":
            one = of("single", 1, None)  # linear in the rank
            nearest = max(1, round(claim.percent / one))
            row["exact"] = of("single", claim.rank, None)
            return row | {"nearest_rank": nearest, "at_nearest": of("single", nearest, None)}
        without = {"routed_heads": "heads"}.get(claim.kind)
        if claim.heads is not None:
            row["exact"] = of(claim.kind, claim.rank, claim.heads)
            if without:
                row["exact_without_router"] = of(without, claim.rank, claim.heads)
        by_number = {n: of(claim.kind, claim.rank, n) for n in range(2, MOST_HEADS + 1)}
        nearest = min(by_number, key=lambda n: abs(by_number[n] - claim.percent))
        row |= {"nearest_heads": nearest, "at_nearest": by_number[nearest]}
        if without:
            row["at_nearest_without_router"] = of(without, claim.rank, nearest)
        return row

    def flops(self) -> dict[str, dict[str, Any]]:
        """Return the FLOPs of a training by LoRA's, published and exact."""
        steps = StepCounter(self.config("Qwen2.5-3B", "mlp"), batch=5, tokens=512, num_tasks=5)
        found = {}
        for name, (kind, rank, heads, published) in FLOPS.items():
            flops = steps.flops(recipe_of(kind, heads), rank)
            assert flops is not None
            found[name] = {"rank": rank, "heads": heads, "published": published, "exact": flops}
        for row in found.values():
            for key in ("published", "exact"):
                row[f"{key}_by_lora"] = row[key] / found["LoRA"][key]
        return found


def table_of(rows: list[dict[str, Any]]) -> str:
    """Return the claims as Markdown."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    lines = [
        "| table | model | method | r | heads stated | published | exact | without router "
        "| nearest | exact there | without router |",
        "| --- " * 11 + "|",
    ]
    for row in rows:
        near = f"rank {row['nearest_rank']}" if "nearest_rank" in row else row["nearest_heads"]
        cells = [
            *(row["table"], row["model"], row["method"], row["rank"], row["heads"] or "-"),
            f"{row['published']:.2f}",
            *(number(row.get(key)) for key in ("exact", "exact_without_router")),
            near,
            *(number(row.get(key)) for key in ("at_nearest", "at_nearest_without_router")),
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="papers_parameters.json", help="name of the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        papers = Papers(Path(folder))
        rows = [papers.judge(claim, model) for claim in CLAIMS for model in claim.models]
        flops = papers.flops()
        models = {
            name: {"weights": papers.counter(name, "mlp").num_weights}
            | {key: getattr(config, key) for key in (*_KEYS, "tie_word_embeddings")}
            for name, config in ARCHITECTURES.items()
        }
    print(table_of(rows))
    for name, row in flops.items():
        print(name, {k: round(v, 4) for k, v in row.items() if k.endswith("_by_lora")})
    found = {"machine": machine(), "models": models, "claims": rows, "flops": flops}
    print(f"written to {write(options.output, found)}")


if __name__ == "__main__":
    main()
