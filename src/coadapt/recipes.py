"""The table of methods: a name, the recipe that it stands for, and where it comes from."""

from dataclasses import dataclass, replace
from typing import Any

from coadapt._errors import InputError, nearest
from coadapt.balancing import Balancing, CAGrad, GradNorm, PCGrad, Uncertainty, UPGrad
from coadapt.groups import FastSlow, Uniform
from coadapt.inits import Corda, Hasi, Pissa, RLora, RLoraCode
from coadapt.lora_hub import LoraHub
from coadapt.merge_methods import Merge
from coadapt.recipe import Recipe
from coadapt.regularizers import AlignKL, AlignMMD, LoadBalance, Spr, TaskOrthogonality
from coadapt.structures import (
    Bank,
    Dora,
    Experts,
    Frozen,
    Full,
    Heads,
    Mixture,
    MultitaskPromptTuning,
    PrefixTuning,
    PromptTuning,
    RoutedHeads,
    Single,
    TaskPrompt,
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A named recipe with where it comes from."""

    recipe: Recipe
    paper: str
    summary: str


_ALIGN = "Align, Don't Divide: Revisiting the LoRA Architecture (arXiv 2508.05078)"
_HYDRA = "HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning (arXiv 2404.19245)"
_R_LORA = "R-LoRA: Randomized Multi-Head LoRA for Efficient Multi-Task Learning (arXiv 2502.15455)"

# Five heads, alpha = 32 and r = 4 under rank-stabilised scaling, alpha / sqrt(r), dropout of A x:
# the authors' code. A router at zero makes "the base model's function at start" true.
_R_HEADS = RoutedHeads(scale=16.0, dropout=0.1, num_heads=5, router_init="zero")
_M_HEADS = Heads(scale=16.0, dropout=0.1, num_heads=5)

_THANORA = "ThanoRA: Task Heterogeneity-Aware Multi-Task Low-Rank Adaptation (arXiv 2505.18640)"
_CR = "Capacity and Redundancy Trade-offs in Multi-Task Learning (OpenReview bRxdN43ItK)"


def _balanced(balancing: Balancing, paper: str, summary: str) -> Row:
    recipe = Recipe(structure=Single(scale=2.0), balancing=balancing, sharing="shared")
    return Row(recipe=recipe, paper=paper, summary=summary)


RECIPES: dict[str, Row] = {
    "full": Row(
        recipe=Recipe(structure=Full()),
        paper="Multitask Learning (Caruana, 1997)",
        summary="every weight of the backbone, all tasks together",
    ),
    "frozen": Row(
        recipe=Recipe(structure=Frozen()),
        paper="How transferable are features in deep neural networks? (arXiv 1411.1792)",
        summary="heads on a frozen backbone",
    ),
    "lora": Row(
        # scale 2: the method sheets' reading where a paper leaves alpha open; dropout not stated.
        recipe=Recipe(structure=Single(scale=2.0), sharing="shared"),
        paper="LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685)",
        summary="one LoRA for all tasks",
    ),
    "private": Row(
        recipe=Recipe(structure=Bank(scale=2.0), sharing="private"),
        paper=_CR,  # section 6, regime K = T
        summary="one LoRA a task, the rank budget split",
    ),
    "clustered": Row(
        recipe=Recipe(structure=Bank(scale=2.0), sharing="clustered"),
        paper=_CR,  # section 6, regime 1 < K < T
        summary="one LoRA a cluster of tasks, by a plan",
    ),
    "shared_private": Row(
        recipe=Recipe(structure=Bank(scale=2.0), sharing="shared_private"),
        paper=_CR,  # section 5, equation 8: Z = (Z_s, Z_t)
        summary="a common LoRA plus one a task",
    ),
    "lora_multi_sample_dropout": Row(
        # Ours: what M-LoRA is but for its heads. One B in the place of five that get the same
        # gradient, their masks' mean, and five times the rate, as a sum of five moves under Adam.
        recipe=Recipe(
            structure=Single(scale=16.0, dropout=0.1, dropout_samples=5),
            init=RLora(),
            groups=Uniform(b_rate=5.0),
            sharing="shared",
        ),
        paper=_ALIGN,  # a control for section 3.1; multi-sample dropout: arXiv 1905.09788
        summary="one LoRA, the mean of five dropout masks, B at five times the rate",
    ),
    "hydra_lora": Row(
        # The authors' script: alpha 32, r = 4, dropout 0.05, four heads.
        recipe=Recipe(
            structure=RoutedHeads(scale=8.0, dropout=0.05, num_heads=4), sharing="shared"
        ),
        paper=_HYDRA,
        summary="heads over one A, weighted by a router a token",
    ),
    "hydra_lora_no_router": Row(
        # As in R-LoRA's copy of the code: one mask for all heads, which so stay equal.
        recipe=Recipe(
            structure=Heads(scale=8.0, dropout=0.05, num_heads=4, common_mask=True),
            sharing="shared",
        ),
        paper=_ALIGN,  # table 1, "w/o router"
        summary="heads over one A, added up; they stay equal",
    ),
    "r_lora": Row(
        # The start: table 1, gamma = 64.
        recipe=Recipe(structure=_R_HEADS, init=RLora(), sharing="shared"),
        paper=_R_LORA,
        summary="HydraLoRA with random heads and a dropout mask each",
    ),
    "r_lora_code": Row(
        recipe=Recipe(
            structure=replace(_R_HEADS, router_init="kaiming"), init=RLoraCode(), sharing="shared"
        ),
        paper=_R_LORA,
        summary="R-LoRA with the start that its published code makes",
    ),
    "m_lora": Row(
        # Section 3.1 and appendix B: R-LoRA without its router; no code is published.
        recipe=Recipe(structure=_M_HEADS, init=RLora(), sharing="shared"),
        paper=_ALIGN,
        summary="R-LoRA without a router, the heads added up",
    ),
    "m_lora_mean": Row(
        recipe=Recipe(
            structure=replace(_M_HEADS, reduction="mean"), init=RLora(), sharing="shared"
        ),
        paper=_ALIGN,  # section 3.3: "simple averaging"
        summary="R-LoRA without a router, the heads averaged",
    ),
    "lora_moe": Row(
        # The authors' script: alpha 32, r = 4, dropout 0.05, eight experts, balance off.
        recipe=Recipe(structure=Experts(scale=8.0, dropout=0.05, num_experts=8), sharing="shared"),
        paper="LoRAMoE: Alleviating World Knowledge Forgetting (arXiv 2312.09979)",
        summary="whole LoRAs, weighted by a router a token",
    ),
    "mix_lora": Row(
        # The authors' template: alpha 32, r = 16, dropout 0.05, two of eight; their balance.
        recipe=Recipe(
            structure=Mixture(scale=2.0, dropout=0.05, num_experts=8, top_k=2),
            regularizers=(LoadBalance(weight=0.001),),
            sharing="shared",
        ),
        paper="MixLoRA: Mixture of Experts on LoRA (arXiv 2404.15159)",
        summary="whole feed-forwards with LoRAs, a token through two of eight",
    ),
    "lora_hub": Row(
        # Forty evaluations on five rows, |w| at 0.05, within 1.5: the authors' code.
        recipe=Recipe(structure=Bank(scale=2.0), compose=LoraHub(), sharing="private"),
        paper="LoraHub: Efficient Cross-Task Generalization (arXiv 2307.13269)",
        summary="one LoRA a task, then each task by a weighted sum of the others'",
    ),
    "align_kl": Row(
        # lambda: appendix K; alpha 32 and r = 8, dropout 0.1: the authors' train.py.
        recipe=Recipe(
            structure=Single(scale=4.0, dropout=0.1),
            regularizers=(AlignKL(weight=0.1),),
            sharing="shared",
        ),
        paper=_ALIGN,
        summary="one LoRA, tasks' representations drawn together by KL",
    ),
    "align_mmd": Row(
        recipe=Recipe(
            structure=Single(scale=4.0, dropout=0.1),
            regularizers=(AlignMMD(weight=0.15),),
            sharing="shared",
        ),
        paper=_ALIGN,
        summary="one LoRA, tasks' representations drawn together by MMD",
    ),
    "r_lora+align": Row(
        recipe=Recipe(
            structure=_R_HEADS,
            init=RLora(),
            regularizers=(AlignKL(weight=0.1),),
            sharing="shared",
        ),
        paper=_ALIGN,  # appendix I, table 9
        summary="R-LoRA with alignment by KL",
    ),
    "m_lora+align": Row(
        recipe=Recipe(
            structure=_M_HEADS,
            init=RLora(),
            regularizers=(AlignKL(weight=0.1),),
            sharing="shared",
        ),
        paper=_ALIGN,
        summary="M-LoRA with alignment by KL",
    ),
    "hydra_lora_3b1a": Row(
        # ThanoRA's rows of HydraLoRA: three and four heads over one A; the rest as published.
        recipe=Recipe(
            structure=RoutedHeads(scale=8.0, dropout=0.05, num_heads=3), sharing="shared"
        ),
        paper=_HYDRA,
        summary="HydraLoRA with three heads",
    ),
    "hydra_lora_4b1a": Row(
        recipe=Recipe(
            structure=RoutedHeads(scale=8.0, dropout=0.05, num_heads=4), sharing="shared"
        ),
        paper=_HYDRA,
        summary="HydraLoRA with four heads",
    ),
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
    "ta_lora": Row(
        # Half of the layers, rank 1 and a gate a layer: the paper's summary; the rest is ours.
        recipe=Recipe(
            structure=TaskPrompt(),
            groups=FastSlow(),
            regularizers=(TaskOrthogonality(weight=1e-2),),
        ),
        paper="Task-Adaptive Low-Rank Representation (arXiv 2505.00009), a reconstruction",
        summary="prompts of a shared part and a rank-1 one a task, behind a gate at zero",
    ),
    "prompt_tuning": Row(
        recipe=Recipe(structure=PromptTuning(length=20, start="tokens")),  # section 3.2
        paper="The Power of Scale for Parameter-Efficient Prompt Tuning (arXiv 2104.08691)",
        summary="a prompt for all tasks before the text",
    ),
    "prefix_tuning": Row(
        recipe=Recipe(structure=PrefixTuning(length=10)),  # section 7.2; not section 4.3's MLP
        paper="Prefix-Tuning: Optimizing Continuous Prompts for Generation (arXiv 2101.00190)",
        summary="keys and values for all tasks before those of the text",
    ),
    "multitask_prompt_tuning": Row(
        recipe=Recipe(structure=MultitaskPromptTuning(length=20)),  # rank 1; 100 in the paper
        paper="Multitask Prompt Tuning Enables Parameter-Efficient Transfer (arXiv 2303.02861)",
        summary="a common prompt times a rank-1 matrix a task, before the text",
    ),
    "lora+pcgrad": _balanced(
        PCGrad(),
        "Gradient Surgery for Multi-Task Learning (arXiv 2001.06782)",
        "one LoRA, conflicting parts of the tasks' gradients projected away",
    ),
    "lora+upgrad": _balanced(
        UPGrad(),
        "Jacobian Descent for Multi-Objective Optimization (arXiv 2406.16232)",
        "one LoRA, a direction that points against no task's gradient",
    ),
    "lora+cagrad": _balanced(
        CAGrad(),  # c = 0.5: section 5
        "Conflict-Averse Gradient Descent for Multi-task Learning (arXiv 2110.14048)",
        "one LoRA, near the mean gradient the best for the task it helps least",
    ),
    "lora+grad_norm": _balanced(
        GradNorm(),  # alpha = 1.5: section 5
        "GradNorm: Gradient Normalization for Adaptive Loss Balancing (arXiv 1711.02257)",
        "one LoRA, tasks weighted to gradients of comparable size",
    ),
    "lora+uncertainty": _balanced(
        Uncertainty(),
        "Multi-Task Learning Using Uncertainty to Weigh Losses (arXiv 1705.07115)",
        "one LoRA, tasks weighted by a learned uncertainty",
    ),
}


def find_recipe(recipe: "str | Recipe") -> Recipe:
    """Return the recipe of that name, or the recipe itself.

    Raises:
        InputError: if no row has the name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise InputError(f"no recipe is named '{recipe}'{nearest(recipe, RECIPES)}")
    return RECIPES[recipe].recipe


def list_methods() -> list[dict[str, Any]]:
    """Return a row a recipe: name, paper, summary, depends_on, ships_as, mergeable."""
    return [
        {
            "name": name,
            "paper": row.paper,
            "summary": row.summary,
            "depends_on": row.recipe.structure.depends_on,
            "ships_as": row.recipe.structure.ships_as,
            "mergeable": row.recipe.structure.mergeable,
        }
        for name, row in RECIPES.items()
    ]
