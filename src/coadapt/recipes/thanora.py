"""ThanoRA and its rivals."""

from coadapt.inits import Corda, Hasi, Pissa
from coadapt.merge_methods import Merge
from coadapt.recipe import Recipe
from coadapt.recipes.row import Row
from coadapt.regularizers import Spr
from coadapt.structures import (
    Bank,
    Dora,
    Single,
)

_THANORA = "ThanoRA: Task Heterogeneity-Aware Multi-Task Low-Rank Adaptation (arXiv 2505.18640)"

THANORA: dict[str, Row] = {
    "pissa": Row(
        recipe=Recipe(structure=Single(scale=1.0), init=Pissa(), sharing="shared"),
        paper="PiSSA: Principal Singular Values and Singular Vectors Adaptation (arXiv 2404.02948)",
        summary="one LoRA that starts as the principal part of each weight",
    ),
    "corda": Row(
        # Scale 1, no dropout: the authors' code; 256 samples, of all tasks' rows.
        recipe=Recipe(structure=Single(scale=1.0), init=Corda(rows=256), sharing="shared"),
        paper="CorDA: Context-Oriented Decomposition Adaptation (arXiv 2406.05223)",
        summary="one LoRA that starts as the part of each weight that inputs use most",
    ),
    "dora": Row(
        # The authors' script: r = 32, alpha = 64; dropout 0.05: their finetune.py.
        recipe=Recipe(structure=Dora(scale=2.0, dropout=0.05), sharing="shared"),
        paper="DoRA: Weight-Decomposed Low-Rank Adaptation (arXiv 2402.09353)",
        summary="one LoRA of directions, a trained magnitude a row",
    ),
    "dare": Row(
        # Which merger and how many entries ThanoRA's row of DARE takes, its text does not say.
        recipe=Recipe(structure=Bank(scale=2.0), compose=Merge(method="dare"), sharing="private"),
        paper="Language Models are Super Mario (arXiv 2311.03099)",
        summary="one LoRA a task, then their mean with entries dropped at random",
    ),
    "ties": Row(
        recipe=Recipe(structure=Bank(scale=2.0), compose=Merge(method="ties"), sharing="private"),
        paper="TIES-Merging: Resolving Interference When Merging Models (arXiv 2306.01708)",
        summary="one LoRA a task, then one update by trimming and electing signs",
    ),
    "thanora": Row(
        # gamma 5, tau 0.2, lambda 1e-4, 500 rows: the text; how gamma enters is our reading.
        recipe=Recipe(
            structure=Single(scale=5.0),
            init=Hasi(),
            regularizers=(Spr(weight=1e-4),),
            sharing="cooperative",
        ),
        paper=_THANORA,
        summary="a block a task where its inputs lie, ranks by entropy, blocks held apart",
    ),
    "thanora_spr_only": Row(
        recipe=Recipe(
            structure=Single(scale=5.0), regularizers=(Spr(weight=1e-4),), sharing="cooperative"
        ),
        paper=_THANORA,  # table 2, without HASI
        summary="blocks of LoRA's own start held apart",
    ),
    "thanora_hasi_only": Row(
        recipe=Recipe(structure=Single(scale=5.0), init=Hasi(), sharing="cooperative"),
        paper=_THANORA,  # table 2, without SPR
        summary="ThanoRA's start and ranks by entropy, without its regularizer",
    ),
}
